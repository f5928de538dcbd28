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
    """A bad name, parameter or argument.

    Raised by every verb and by the values (``Instance``, ``MountPoint``, ``Command`` …), before anything is touched.
    """


class DefinitionError(InputError):
    """A bad instance definition file: unreadable, no TOML, an unknown key, a wrong value; ``brief`` names the file and, where known, the line.

    Raised by what reads a definition: ``start`` and ``plan`` with a name, ``instance``.
    """


class NotFoundError(ChrootfwError):
    """No such instance: neither present nor defined.

    Raised by every verb that is given a name; ``hint`` has a name that is near.
    """


class TrustError(ChrootfwError):
    """A file or directory that someone else than root could have changed.

    Raised by every verb that would use it: the run directory, a record, a definition. A stop whose record is not to be trusted goes on
    without it.
    """


class PrivilegeError(ChrootfwError):
    """The verb needs root's privileges.

    Raised by ``start``, ``stop``, ``cleanup``, ``reboot``, ``running`` and ``run``, before anything else.
    """


class LockError(ChrootfwError):
    """Another command, or another thread, holds the lock on the instance or on its disk; ``brief`` names it.

    Raised by ``start``, ``stop``, ``cleanup`` and ``reboot`` when ``lock_timeout`` has passed. Nothing was touched.
    """


class TransitionError(ChrootfwError):
    """The verb does not fit the state in which the instance is, or the mount namespace in which it lives.

    Raised by ``start`` of what runs, ``cleanup`` of what runs, ``reboot`` and ``run`` of what is absent, and their plans. Nothing was touched.
    """


class PlanError(ChrootfwError):
    """The answers of the plugins do not make a plan: no root, one disk twice.

    Raised by ``start``, ``reboot`` and ``plan``, before anything is mounted.
    """


class PreStartError(ChrootfwError):
    """Pre-start checks found problems: one is the ``brief``, of several each is a line of ``details``.

    Raised by ``start`` and ``reboot``; a start has been undone.
    """


class StepError(ChrootfwError):
    """A step failed: the kernel, or a plugin's ``Step``, refused.

    Raised by ``start``, which has been undone; by ``stop``, ``cleanup`` and ``reboot``, which another ``stop`` takes up; by ``run`` when the root
    does not answer.
    """


class DiskError(StepError):
    """The instance's disk is missing, of the wrong type, in use, or holds no file system.

    Raised by ``start`` and ``reboot``.
    """


class ScriptError(ChrootfwError):
    """The init script failed, timed out or could not be run. ``output`` holds at most its last 64 KiB (bytes).

    Raised by ``start``, which has been undone, and by ``reboot``. A script that fails in a stop is an event, and the stop goes on.
    """

    def __init__(self, brief: str, details: Iterable[str] = (), hint: str = "", *, output: bytes = b"") -> None:
        super().__init__(brief, details, hint)
        self.output = output


class SurvivorError(ChrootfwError):
    """An own process survived KILL; ``details`` name pid, command, state and wchan.

    Raised by ``stop`` and ``reboot``, and by ``start`` if its undo meets one.
    """


class HeldError(ChrootfwError):
    """Something still uses the instance's mounts or its device; ``holders`` are ``Process`` values.

    Raised by ``stop``, ``cleanup`` and ``reboot``. When the holders have gone, ``cleanup`` or another ``stop`` goes on from there.
    """

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
    """A plugin broke the rules of its hook. ``plugin`` and ``hook`` are names, or empty.

    Raised by ``start``, which has been undone, ``plan`` and ``parameters``. In what stops an instance it is an event.
    """

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
    """A plugin cannot be imported or registered.

    Raised by ``Runtime(…)`` for an object of the program's, by ``start``, ``reboot`` and ``plan`` for an installed plugin or one that the
    instance names. Everything else works without it; ``plugin_failures`` lists it.
    """


class NotSupported(ChrootfwError):
    """This kernel, this machine, or this version of chrootfw cannot do it.

    Raised by ``start`` and ``run`` for what a library or a device inside is missing, and by all verbs for the record of a newer chrootfw.
    """


class Interrupted(ChrootfwError):
    """SIGINT, SIGTERM or SIGHUP asked chrootfw to end, or ``Interrupts.request`` did; ``signum`` is the signal's number.

    Raised by ``start``, which has been undone, and by ``stop``, ``cleanup`` and ``reboot`` when the step at hand is done.
    """

    def __init__(self, brief: str, details: Iterable[str] = (), hint: str = "", *, signum: int) -> None:
        super().__init__(brief, details, hint)
        self.signum = signum


def nearest(word: str, known: Iterable[str]) -> str:
    """What ``word`` may have been meant to be, ``""`` when nothing comes near."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), 1)), "")
