"""Values of a recording: its processes, the steps that would have happened, their list."""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection

import attrs

from chrootfw.model import Event, Instance
from chrootfw.views import Process

#: What ends no process unless it wants to (signal(7)).
_HARMLESS = frozenset(
    getattr(signal, f"SIG{name}")
    for name in ("CHLD", "CONT", "URG", "WINCH", "STOP", "TSTP", "TTIN", "TTOU")
)


class Alive:
    """Be a process of a recorded instance.

    Args:
        pid: The process ID.
        command: The command's name.
        user: The user's name.
        why: ``cgroup`` or ``root`` for one of its own, ``cwd``, ``fd`` … for an outside holder,
            which keeps the root busy.
        ignores: The signals that do not end it; with KILL among them it is in state D.
        takes: Seconds from the first signal that ends it to its exit (float); KILL ends it at once.
    """

    def __init__(
        self,
        pid: int = 4242,
        command: str = "daemon",
        user: str = "root",
        why: str = "cgroup",
        *,
        ignores: Collection[int] = (),
        takes: float = 0.0,
    ) -> None:
        self.process = Process(pid, command, user, why)
        self.ignores = frozenset(ignores)
        self.takes = takes
        self.ends_at = float("inf")

    def __repr__(self) -> str:
        return f"Alive({self.process.describe()})"

    @property
    def pid(self) -> int:
        """Return its number."""
        return self.process.pid

    def copy(self) -> Alive:
        """Return the same process, in another life of the instance."""
        ours = self.process
        return Alive(
            ours.pid, ours.command, ours.user, ours.why, ignores=self.ignores, takes=self.takes
        )

    def receive(self, signum: int, now: float) -> None:
        """Take a signal at the second ``now``."""
        if signum not in self.ignores and signum not in _HARMLESS and signum != 0:
            self.ends_at = min(self.ends_at, now + (0 if signum == signal.SIGKILL else self.takes))


@attrs.frozen
class Recorded:
    """Be a step that would have happened.

    Args:
        stage: The stage.
        does: The description.
        plugin: The plugin that answered, ``""`` for the core.
        undo: The step that undoes it, ``""`` where nothing need be undone.
    """

    stage: str
    does: str
    plugin: str
    undo: str = ""

    def __str__(self) -> str:
        by = f"  [{self.plugin}]" if self.plugin else ""
        back = f"  (taken back by: {self.undo})" if self.undo else ""
        return f"{self.stage:<10}  {self.does}{by}{back}"


@attrs.frozen
class Sent:
    """Be a signal that would have been sent: its number and the process."""

    signal: int
    pid: int


@attrs.frozen
class Record:
    """Show what a verb would have done.

    Args:
        verb: ``start``, ``stop``, ``cleanup`` or ``reboot``.
        instance: The instance as resolved.
        steps: The steps that were finished, in order.
        failed: The step that failed.
        undo: The steps that undid a failed start.
        left: What is not undone after that, a line each.
        signals: The signals that were sent.
        seconds: How long all grace periods took (float).
        events: All that an observer receives.
        error: What the verb raised.
    """

    verb: str
    instance: Instance = attrs.field(repr=False)
    steps: tuple[Recorded, ...]
    failed: Recorded | None
    undo: tuple[Recorded, ...]
    left: tuple[str, ...]
    signals: tuple[Sent, ...]
    seconds: float
    events: tuple[Event, ...] = attrs.field(repr=False)
    error: Exception | None

    @property
    def undone(self) -> bool:
        """Return whether nothing is left of what was done before a failure."""
        return not self.left

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what was reported besides, plugin errors included."""
        return tuple(
            event.does for event in self.events if event.what in ("warning", "plugin-error")
        )

    def describe(self) -> str:
        """Return the record for people: a line for each step."""
        lines = [f"{self.verb} {self.instance.name}:", *(f"  {step}" for step in self.steps)]
        if self.failed:
            lines.append(f"  {self.failed}: FAILED")
        lines += [f"undo: {step}" for step in self.undo]
        lines += [f"left: {line}" for line in self.left]
        return "\n".join(lines)


class Book:
    """Collect what is recorded in one verb."""

    def __init__(self, verb: str, instance: Instance, fail_at: int | str | None) -> None:
        self.verb = verb
        self.instance = instance
        self.fail_at = fail_at
        self.has_failed = False
        self.failing = False
        self.number = 0
        self.steps: list[Recorded] = []
        self.undo: list[Recorded] = []
        self.failed: Recorded | None = None
        self.left: list[str] = []
        self.sent: list[Sent] = []
        self.seconds = 0.0
        self.events: list[Event] = []
        self.error: Exception | None = None
        self.takes_back = ""
        self.outer = sys.exc_info()[1]  # what the caller handles just now

    def is_due(self, number: int, does: str) -> bool:
        """Return whether this step is the one that is to fail."""
        if self.fail_at is None or self.has_failed or self.failing:
            return False
        due = self.fail_at in does if isinstance(self.fail_at, str) else self.fail_at == number
        self.has_failed = due
        return due

    def record(self) -> Record:
        """Return all of it, as a value."""
        return Record(
            self.verb,
            self.instance,
            tuple(self.steps),
            self.failed,
            tuple(self.undo),
            tuple(self.left),
            tuple(self.sent),
            self.seconds,
            tuple(self.events),
            self.error,
        )
