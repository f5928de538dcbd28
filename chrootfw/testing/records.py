"""What a recording is made of: the processes that are said to live, the steps that would have happened, and the book in which they stand."""

from __future__ import annotations

import signal
from collections.abc import Collection

import attrs

from chrootfw.model import Event, Instance
from chrootfw.views import Process

#: What ends no process unless it wants to (signal(7)).
_HARMLESS = frozenset(
    getattr(signal, f"SIG{name}") for name in ("CHLD", "CONT", "URG", "WINCH", "STOP", "TSTP", "TTIN", "TTOU")
)


class Alive:
    """A process of a recorded instance.

    ``why``: ``cgroup`` or ``root`` for one of its own, ``cwd``, ``fd`` … for an outside holder. ``ignores``: the signals that do not end it;
    with KILL among them it is in state D. ``takes``: seconds from the first signal that ends it to its end; KILL ends it at once.
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
        """Its number."""
        return self.process.pid

    def born(self) -> Alive:
        """The same process, in another life of the instance."""
        ours = self.process
        return Alive(ours.pid, ours.command, ours.user, ours.why, ignores=self.ignores, takes=self.takes)

    def receive(self, signum: int, now: float) -> None:
        """Be signalled at the second ``now``."""
        if signum not in self.ignores and signum not in _HARMLESS and signum != 0:
            self.ends_at = min(self.ends_at, now + (0 if signum == signal.SIGKILL else self.takes))


@attrs.frozen
class Recorded:
    """A step that would have happened: ``stage``, what it ``does``, the ``plugin`` that answered (``""``: the core); ``undo`` is the step that takes
    it back, ``""`` where nothing need be taken back."""

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
    """A signal that would have been sent: its number and the process."""

    signal: int
    pid: int


@attrs.frozen
class Record:
    """What a verb would have done.

    ``steps``: those that came to their end, in order. ``failed``: the step that failed. ``undo``: the steps that took back what a
    failed start had done. ``left``: what is not taken back after that, a line each. ``signals`` and ``seconds``: what was sent, and how
    long all grace periods took. ``events``: all that an observer is told. ``error``: what the verb raised.
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
        """Whether nothing is left of what was done before a failure."""
        return not self.left

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was told besides, blame on plugins included."""
        return tuple(event.does for event in self.events if event.what in ("warning", "blame"))

    def describe(self) -> str:
        """The record for people: a line for each step."""
        lines = [f"{self.verb} {self.instance.name}:", *(f"  {step}" for step in self.steps)]
        if self.failed:
            lines.append(f"  {self.failed}: FAILED")
        lines += [f"undo: {step}" for step in self.undo]
        lines += [f"left: {line}" for line in self.left]
        return "\n".join(lines)


class Book:
    """What is written down in one verb."""

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

    def is_due(self, number: int, does: str) -> bool:
        """Whether this step is the one that is to fail."""
        if self.fail_at is None or self.has_failed or self.failing:
            return False
        due = self.fail_at in does if isinstance(self.fail_at, str) else self.fail_at == number
        self.has_failed = due
        return due

    def record(self) -> Record:
        """All of it, as a value."""
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
