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


class Lines(str):
    """Join ``lines`` to a text.

    Each stays one line when it is printed, whatever line breaks it holds.
    """

    __slots__ = ("lines",)
    lines: tuple[str, ...]

    def __new__(cls, lines: Iterable[str]) -> Lines:
        """Join the lines."""
        kept = tuple(lines)
        made = super().__new__(cls, "\n".join(kept))
        made.lines = kept
        return made

    def __getnewargs__(self) -> tuple[tuple[str, ...]]:  # type: ignore[override]  # what __new__ takes
        """Be copied and pickled line by line."""
        return (self.lines,)


class Hint(str):
    """A hint that names an argument of the library, which the command calls otherwise.

    Args:
        text: The hint in the words of the library.
        command: The same hint in the words of the command.
    """

    __slots__ = ("command",)
    command: str

    def __new__(cls, text: str, command: str) -> Hint:
        """Keep both."""
        made = super().__new__(cls, text)
        made.command = command
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # what __new__ takes
        """Be copied and pickled with both."""
        return (str(self), self.command)


def word_for_command(text: str) -> str:
    """Return a text in the words of the command: a ``Hint``, or one line of ``Lines``."""
    return text.command if isinstance(text, Hint) else text


class ChrootfwError(Exception):
    """Be the top of the tree.

    Args:
        brief: One sentence: what failed and on what.
        details: Further lines.
        hint: What to do next, or ``""``; a ``Hint`` where the command has other words for it.
    """

    def __init__(self, brief: str, details: Iterable[str] = (), hint: str = "") -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = tuple(details)
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.brief, *(f"  {line}" for line in self.details)]
        if isinstance(self.hint, Hint):
            lines.append(Hint(f"  hint: {self.hint}", f"  hint: {self.hint.command}"))
        elif self.hint:
            lines.append(f"  hint: {self.hint}")
        return Lines(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Be copied and pickled with every field, whatever a class takes to be made."""
        return _rebuild, (type(self), self.args), self.__dict__

    @property
    def kind(self) -> str:
        """Return the class's name, as in the JSON form of an error."""
        return type(self).__name__


def _rebuild(kind: type[ChrootfwError], arguments: tuple[object, ...]) -> ChrootfwError:
    return kind.__new__(kind, *arguments)


class InputError(ChrootfwError):
    """A bad name, parameter or argument.

    Raised by every verb and by the values (``Instance``, ``MountPoint``, ``Command`` …), before
    anything is touched.

    Args:
        brief: One sentence.
        details: Further lines.
        hint: What to do next, or ``""``.
        parameter: The parameter of an instance that is wrong, or ``""``.
    """

    def __init__(
        self, brief: str, details: Iterable[str] = (), hint: str = "", *, parameter: str = ""
    ) -> None:
        super().__init__(brief, details, hint)
        self.parameter = parameter


class DefinitionError(InputError):
    """A bad instance definition file: unreadable, no TOML, an unknown key, a wrong value.

    ``brief`` names the file and, where known, the line.

    Raised by what reads a definition: ``start`` and ``plan`` with a name, ``instance``.
    """


class NotFoundError(ChrootfwError):
    """No such instance: neither present nor defined.

    Raised by every verb that is given a name; ``hint`` has a name that is near.
    """


class TrustError(ChrootfwError):
    """A file or directory that someone else than root could have changed.

    Raised by every verb that would use it: the run directory, a record, a definition. A stop whose
    record is not to be trusted goes on without it.
    """


class PrivilegeError(ChrootfwError):
    """The verb needs root's privileges.

    Raised by ``start``, ``stop``, ``cleanup``, ``reboot``, ``running`` and ``run``, before anything
    else.
    """


class LockError(ChrootfwError):
    """Another command, or another thread, holds the lock on the instance or on its disk.

    ``brief`` names it.

    Raised by ``start``, ``stop``, ``cleanup`` and ``reboot`` when ``lock_timeout`` has passed.
    Nothing was touched.
    """


class TransitionError(ChrootfwError):
    """The verb does not fit the state of the instance, or the mount namespace in which it runs.

    Raised by ``start`` of what runs, ``cleanup`` of what runs, ``reboot`` and ``run`` of what is
    absent, and their plans. Nothing was touched.
    """


class PlanError(ChrootfwError):
    """The answers of the plugins do not make a plan: no root, one disk twice.

    Raised by ``start``, ``reboot`` and ``plan``, before anything is mounted.

    Args:
        brief: One sentence.
        details: Further lines.
        hint: What to do next, or ``""``.
        has_no_root: Whether no plugin answered with a mount point for the root.
    """

    def __init__(
        self, brief: str, details: Iterable[str] = (), hint: str = "", *, has_no_root: bool = False
    ) -> None:
        super().__init__(brief, details, hint)
        self.has_no_root = has_no_root


class PreStartError(ChrootfwError):
    """Pre-start checks found problems.

    One problem is the ``brief``; of several each is a line of ``details``.

    Raised by ``start`` and ``reboot``; a start has been undone.
    """


class StepError(ChrootfwError):
    """A step failed: the kernel, or a plugin's ``Step``, refused.

    Raised by ``start``, which has been undone; by ``stop``, ``cleanup`` and ``reboot``, which
    another ``stop`` takes up; by ``run`` when the root does not answer.
    """


class DiskError(StepError):
    """The instance's disk is missing, of the wrong type, in use, or holds no file system.

    Raised by ``start`` and ``reboot``.
    """


class ScriptError(ChrootfwError):
    """The init script failed, timed out or could not be run.

    Raised by ``start``, which has been undone, and by ``reboot``. A script that fails in a stop is
    an event, and the stop goes on.

    Args:
        brief: One sentence.
        details: Further lines.
        hint: What to do next, or ``""``.
        output: At most the last 64 KiB of the script's output.
    """

    def __init__(
        self, brief: str, details: Iterable[str] = (), hint: str = "", *, output: bytes = b""
    ) -> None:
        super().__init__(brief, details, hint)
        self.output = output


class SurvivorError(ChrootfwError):
    """An own process survived KILL; ``details`` name pid, command, state and wchan.

    Raised by ``stop`` and ``reboot``, and by ``start`` if its undo meets one.
    """


class HeldError(ChrootfwError):
    """Something still uses the instance's mounts or its device.

    Raised by ``stop``, ``cleanup`` and ``reboot``. When the holders have gone, ``cleanup`` or
    another ``stop`` goes on from there.

    Args:
        brief: One sentence.
        details: Further lines.
        hint: What to do next, or ``""``.
        holders: ``Process`` values.
        only_copies: Whether its mounts are gone, and its disk is in use through other mount
            namespaces only; then ``start`` works all the same.
    """

    def __init__(
        self,
        brief: str,
        details: Iterable[str] = (),
        hint: str = "",
        *,
        holders: Iterable[object] = (),
        only_copies: bool = False,
    ) -> None:
        super().__init__(brief, details, hint)
        self.holders = tuple(holders)
        self.only_copies = only_copies


class PluginError(ChrootfwError):
    """A plugin broke the rules of its hook.

    Raised by ``start``, which has been undone, ``plan`` and ``parameters``. In what stops an
    instance it is an event.

    Args:
        brief: One sentence.
        details: Further lines.
        hint: What to do next, or ``""``.
        plugin: The plugin's name, or ``""``.
        hook: The hook's name, or ``""``.

    Attributes:
        traceback: The traceback of what the plugin's code raised, as text, or ``""``.
    """

    traceback = ""

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

    Raised by ``Runtime(…)`` for an object of the program's, by ``start``, ``reboot`` and ``plan``
    for an installed plugin or one that the instance names. Everything else works without it;
    ``plugin_failures`` lists it.
    """


class NotSupported(ChrootfwError):
    """This kernel, this machine, or this version of chrootfw cannot do it.

    Raised by ``start`` and ``run`` for what a library or a device inside is missing, and by all
    verbs for the record of a newer chrootfw.
    """


class Interrupted(ChrootfwError):
    """SIGINT, SIGTERM or SIGHUP requested an end, or ``Cancellation.request`` did.

    Raised by ``start``, which has been undone, and by ``stop``, ``cleanup`` and ``reboot`` when
    the step at hand is done.

    Args:
        brief: One sentence.
        details: Further lines.
        hint: What to do next, or ``""``.
        signum: The signal's number.
    """

    def __init__(
        self, brief: str, details: Iterable[str] = (), hint: str = "", *, signum: int
    ) -> None:
        super().__init__(brief, details, hint)
        self.signum = signum


def nearest(word: str, known: Iterable[str]) -> str:
    """Return what a word may have been meant to be.

    Args:
        word: The word.
        known: The words that there are.

    Returns:
        One of ``known``, ``""`` when nothing comes near.
    """
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), 1)), "")


def add_details(error: BaseException, lines: Iterable[str]) -> None:
    """Add lines to an error that is being raised: details, or notes of an error of others."""
    if isinstance(error, ChrootfwError):
        error.details = (*error.details, *lines)
    else:
        for line in lines:
            error.add_note(line)
