"""Let the life cycle see a fake kernel in the place of ``chrootfw.linux``.

``chrootfw.lifecycle`` reaches the kernel by names of its modules: ``mount_tree``, ``umount``,
``cgroups`` and so on. Each such name is put behind a view once. In the context of a recording the
view shows what the fake has, and refuses what it does not have; everywhere else it shows the real
module. ``chrootfw.linux`` itself is not changed.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Protocol

from chrootfw import lifecycle

#: The modules that are put behind a view. Of the last three the fake has a few functions.
_VIEWED = ("chrootfw.linux.", "chrootfw.state.", "os.", "signal.", "time.")
#: Classes that the life cycle imports by name.
_CLASSES = ("Isolation", "Joined", "Root")


class Kernel(Protocol):
    """What a recording shows in the place of the kernel."""

    def find(self, module: ModuleType, name: str) -> Any:
        """Return what is shown of a module."""


_current: ContextVar[Kernel | None] = ContextVar("chrootfw_fake_kernel", default=None)


@contextmanager
def show(kernel: Kernel | None) -> Iterator[None]:
    """Let the life cycle see a fake kernel in this context; ``None``: the real one again."""
    _install()
    token = _current.set(kernel)
    try:
        yield
    finally:
        _current.reset(token)


class _View:
    """A module as the life cycle sees it."""

    __slots__ = ("_viewed",)

    def __init__(self, module: ModuleType) -> None:
        object.__setattr__(self, "_viewed", module)

    def __getattr__(self, name: str) -> Any:
        kernel = _current.get()
        return getattr(self._viewed, name) if kernel is None else kernel.find(self._viewed, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._viewed, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._viewed, name)


def _view_class(module: ModuleType, name: str, real: Any) -> Any:
    def make(*arguments: Any, **named: Any) -> Any:
        kernel = _current.get()
        kind = real if kernel is None else kernel.find(module, name)
        return kind(*arguments, **named)

    return functools.update_wrapper(make, real, updated=())


@functools.cache
def _install() -> None:
    """Put the names of all modules of the life cycle behind views."""
    for found in pkgutil.iter_modules(lifecycle.__path__):
        module = importlib.import_module(f"{lifecycle.__name__}.{found.name}")
        for name, value in list(vars(module).items()):
            if isinstance(value, ModuleType):
                if f"{value.__name__}.".startswith(_VIEWED):
                    setattr(module, name, _View(value))
            elif name in _CLASSES:
                setattr(module, name, _view_class(module, name, value))
