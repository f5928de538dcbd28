"""Equality, hash and repr of classes that are nothing but their fields.

attrs writes and compiles these for each class at its making: half of what importing ``chrootfw.model`` would take.
"""

from __future__ import annotations


class Value:
    """Base of classes with ``__slots__``, also of those that attrs makes with ``eq=False, repr=False``."""

    __slots__: tuple[str, ...] = ()

    def _fields(self) -> list[str]:
        slots = [name for kind in reversed(type(self).__mro__) for name in getattr(kind, "__slots__", ())]
        return [name for name in dict.fromkeys(slots) if name != "__weakref__"]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._fields())

    def __hash__(self) -> int:
        """Of the plain values alone: a mapping has none."""
        values = (getattr(self, name) for name in self._fields())
        return hash(tuple(value for value in values if isinstance(value, str | int | float)))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields())
        return f"{type(self).__name__}({inside})"
