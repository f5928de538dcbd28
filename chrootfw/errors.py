"""Every error that chrootfw raises on purpose.

.. code-block:: text

    ChrootfwError
    ├── InputError            a bad name, parameter or argument; nothing was touched
    │   └── DefinitionError   a bad instance definition file; names file and, where known, line
    ├── NotFoundError         no such instance: neither present nor defined
    ├── PrivilegeError        the verb needs root
    ├── TrustError            a file or directory that others could change; refused
    ├── LockError             another command holds the lock past the deadline
    ├── TransitionError       the verb does not fit the instance's state
    ├── PlanError             the answers of the plugins do not make a plan
    ├── PreStartError         pre-start checks found problems; all of them are in ``details``
    ├── StepError             a step failed; what had been done is undone
    │   └── DiskError         the disk: missing, wrong type, busy, not a file system
    ├── ScriptError           the init script failed, timed out or could not be run
    ├── SurvivorError         a process of the instance's own survived KILL
    ├── HeldError             "stopped" is not proven: holders still use a mount or the device
    ├── PluginError           a plugin broke the rules of its hook; names plugin, version and hook
    │   └── PluginLoadError   a plugin cannot be imported or registered
    ├── NotSupported          this kernel, or chrootfw, cannot do it
    └── Interrupted           a signal asked chrootfw to end; ``signum`` says which

This module imports nothing, so that the quick verbs stay quick.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class ChrootfwError(Exception):
    """The top of the tree.

    ``brief`` is one sentence: what failed and on what. ``details`` are further lines (a tuple of
    ``str``). ``hint`` says what to do next, or is empty.
    """

    def __init__(self, brief: str, details: Iterable[str] = (), hint: str = "") -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = tuple(details)
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.brief, *(f"  {line}" for line in self.details)]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)

    @property
    def kind(self) -> str:
        """The class's name, as in the JSON form of an error."""
        return type(self).__name__


class InputError(ChrootfwError):
    """A bad name, parameter or argument. Raised before anything is touched."""


class DefinitionError(InputError):
    """A bad instance definition file."""


class NotFoundError(ChrootfwError):
    """No such instance: neither present nor defined."""


class TrustError(ChrootfwError):
    """A file or directory that someone else than root could have changed."""


class PrivilegeError(ChrootfwError):
    """The verb needs root's privileges."""


class LockError(ChrootfwError):
    """Another command holds the lock, and the deadline has passed."""


class TransitionError(ChrootfwError):
    """The verb does not fit the state in which the instance is."""


class PlanError(ChrootfwError):
    """The answers of the plugins do not make a plan."""


class PreStartError(ChrootfwError):
    """Pre-start checks found problems; each is one line of ``details``."""


class StepError(ChrootfwError):
    """A step failed on the kernel's side."""


class DiskError(StepError):
    """The instance's disk is missing, of the wrong type, in use, or holds no file system."""


class ScriptError(ChrootfwError):
    """The init script failed. ``output`` holds at most its last 64 KiB (bytes)."""

    def __init__(self, brief: str, details: Iterable[str] = (), hint: str = "", *, output: bytes = b"") -> None:
        super().__init__(brief, details, hint)
        self.output = output


class SurvivorError(ChrootfwError):
    """An own process survived KILL; ``details`` name pid, command, state and wchan."""


class HeldError(ChrootfwError):
    """Something still uses the instance's mounts or its device; ``holders`` are ``Process`` values."""

    def __init__(
        self,
        brief: str,
        details: Iterable[str] = (),
        hint: str = "",
        *,
        holders: Iterable[object] = (),
    ) -> None:
        super().__init__(brief, details, hint)
        self.holders = tuple(holders)


class PluginError(ChrootfwError):
    """A plugin broke the rules of its hook. ``plugin`` and ``hook`` are names, or empty."""

    def __init__(
        self,
        brief: str,
        details: Iterable[str] = (),
        hint: str = "",
        *,
        plugin: str = "",
        hook: str = "",
    ) -> None:
        super().__init__(brief, details, hint)
        self.plugin = plugin
        self.hook = hook


class PluginLoadError(PluginError):
    """A plugin cannot be imported or registered."""


class NotSupported(ChrootfwError):
    """This kernel, or chrootfw itself, cannot do it."""


class Interrupted(ChrootfwError):
    """SIGINT, SIGTERM or SIGHUP asked chrootfw to end; ``signum`` is its number."""

    def __init__(self, brief: str, details: Iterable[str] = (), hint: str = "", *, signum: int) -> None:
        super().__init__(brief, details, hint)
        self.signum = signum
