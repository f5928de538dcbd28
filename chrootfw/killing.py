"""Carrying out a kill strategy: signals by pidfd, waits on events, never on a clock alone."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from chrootfw.errors import SurvivorError
from chrootfw.inventory import Survey
from chrootfw.jobs import Job
from chrootfw.model import Escalation
from chrootfw.planning import kill_plan
from chrootfw.system import cgroups, processes
from chrootfw.views import Process

#: As many pidfds are watched at once; beyond, the others are looked at again when these are gone.
_WATCHED_MAX = 256

#: Seconds for stopping what forks, where no cgroup can be killed.
_STOP_MAX = 10.0

#: Seconds for which no look at /proc must find anybody new: usually, and where processes were born meanwhile.
_QUIET, _QUIET_AFTER_BIRTHS = 0.005, 0.25

#: Seconds after which a list of processes is too old for finding the newest.
_LOOK = 0.02

#: So many survivors are named.
_NAMED_MAX = 20


#: What the step of an undo that ends the processes does, in words.
KILL_DOES = "SIGKILL to the own processes"

#: Finds outside holders by a survey, all of them or among some pids.
FindHolders = Callable[[Survey, Iterable[int] | None], list[Process]]


class Living:
    """Who lives now: asked again before each signal.

    Where a first look has shown that all own processes are in the cgroup, and none outlives its grace period, /proc is not read
    again: what they start is born in there. One that leaves the cgroup at that very moment keeps the root busy (``hunt``); with
    ``stays_mounted`` nothing would tell of it, and /proc is read each time.
    """

    def __init__(self, job: Job, holders: FindHolders | None, *, stays_mounted: bool = False) -> None:
        self.job = job
        self.stays_mounted = stays_mounted
        self.look_for_holders = holders
        self.spared = processes.self_and_ancestors()
        self.cgroups: Sequence[str] = ()
        self.rooted_only: list[int] | None = None
        self.look()

    def look(self) -> None:
        """Read cgroups and /proc again."""
        name = self.job.name
        all_in_cgroup = bool(self.cgroups) and self.rooted_only == []
        self.survey: Survey = self.job.survey()
        self.cgroups = self.survey.cgroups.get(name)
        tracked = processes.tracked(self.cgroups)
        rooted = []
        if self.stays_mounted or not (all_in_cgroup and self.cgroups):
            rooted = [pid for pid in self.survey.rooted(name) if not self._is_of_another(pid)]
        self.own = list(dict.fromkeys([*tracked, *rooted]))
        self.rooted_only = [pid for pid in rooted if pid not in set(tracked)]
        self.holders: dict[int, Process] = {}
        if self.look_for_holders:
            own = set(self.own)
            found = [p for p in self.look_for_holders(self.survey, None) if p.pid > 1 and p.pid not in own]
            self.holders = {p.pid: p for p in found if not self._is_of_another(p.pid)}

    def _by_cgroup(self, pid: int) -> bool | None:
        """Whether its cgroup makes it a process of the instance's, or of another instance's (``False``), or tells nothing."""
        path = cgroups.path_of(pid, self.survey.top) if self.survey.top else None
        if path and any(path == mine or path.startswith(mine + "/") for mine in self.cgroups):
            return True
        return False if path and path.startswith(f"{self.survey.top}/{cgroups.TOP}/") else None

    def _is_of_another(self, pid: int) -> bool:
        """Whether it is a process of another instance, of this or another run directory: by its cgroup, or by root."""
        mine = self._by_cgroup(pid)
        return not mine if mine is not None else self.survey.owner(pid) not in (None, self.job.name)

    @property
    def has_own(self) -> bool:
        """Whether an own process lives, one that cannot be seen from here included."""
        return bool(self.own) or any(cgroups.is_populated(path) for path in self.cgroups)

    def is_own(self, pid: int) -> bool:
        """Whether the pid is a process of the instance's now: by its cgroup, else by its root directory."""
        mine = self._by_cgroup(pid)
        return mine if mine is not None else self.survey.owner(pid) == self.job.name

    def is_still(self, pid: int) -> bool:
        """Whether the pid is still a process of the instance's, or a holder: asked with its pidfd open."""
        if self.is_own(pid):
            return True
        if pid not in self.holders or self.look_for_holders is None:
            return False
        return bool(self.look_for_holders(self.job.survey(), [pid]))


def carry_out(living: Living, plugin: str, escalations: Sequence[Escalation]) -> None:
    """Signal and wait, escalation by escalation, until no own process lives.

    ``living``: who was found a moment ago. Raises ``SurvivorError`` when an own process is still alive after the last
    escalation, ``Interrupted`` between two of them.
    """
    job = living.job
    for number, step in enumerate(escalations):
        job.interrupts.check()
        if number:
            living.look()
        if not living.has_own and not living.holders:
            return
        with job.step("kill", kill_plan.describe(step), plugin), job.interrupts.shield():
            _escalate(living, step)
    living.look_for_holders = None
    if living.has_own or living.stays_mounted or living.rooted_only is None or not living.cgroups:
        living.look()
    if living.has_own:
        raise survivors(job.name, living)


def kill_at_once(job: Job) -> None:
    """KILL to everything of the instance's own, for undoing a start. Raises ``SurvivorError``."""
    living = Living(job, None)
    if living.has_own:
        with job.step("kill", KILL_DOES):
            _escalate(living, Escalation(signal.SIGKILL, kill_plan.KILL_GRACE))
        living.look()
    if living.has_own:
        raise survivors(job.name, living)


def hunt(job: Job) -> bool:
    """KILL own processes that nobody had seen, for a root that is busy; whether there were any.

    One has left the cgroup at the last moment; or, without a cgroup, no single look at /proc shows them, because none of them lives
    for long. Raises ``SurvivorError``.
    """
    living = Living(job, None)
    if not living.cgroups:
        with _before_others():
            _stop_forks(living, time.monotonic() + _STOP_MAX, quiet=_QUIET_AFTER_BIRTHS)
        living.look()
    if not living.has_own:
        return False
    kill_at_once(job)
    return True


def any_lives(job: Job) -> bool:
    """Whether an own process lives; /proc is read only where no cgroup tells."""
    return job.survey().is_populated(job.name) or Living(job, None).has_own


def survivors(name: str, living: Living) -> SurvivorError:
    """The error that names who survived: pid, command, state and wchan."""
    details: list[str] = []
    for pid in living.own:
        if len(details) == _NAMED_MAX:
            details.append("and more")
            break
        letter, wchan = processes.state(pid)
        if letter != "gone":
            details.append(f"pid {pid} ({processes.command(pid)}): state {letter}{', in ' + wchan if wchan else ''}")
    if not details:
        details = ["a process in its cgroup that cannot be seen from this pid namespace"]
    return survived(name, details)


def survived(name: str, details: Sequence[str]) -> SurvivorError:
    """The error for processes that the last signal has not ended; a line for each."""
    return SurvivorError(
        f"{name} still has processes after the last signal",
        details,
        "a process in state D waits for a device or a file system: when that answers, stop again",
    )


def _escalate(living: Living, step: Escalation) -> None:
    """Send one signal to its targets and wait until they are gone, or the grace period is over."""
    with _before_others():
        _send_and_wait(living, step)


def _send_and_wait(living: Living, step: Escalation) -> None:
    deadline = time.monotonic() + step.grace
    targets = kill_plan.targets(step, living.own, living.holders, living.spared)
    final = step.signal == signal.SIGKILL
    whole = step.to in ("own", "all")
    if final and whole and not _spares_any(living):
        for path in living.cgroups:
            cgroups.kill(path)
    if final and whole and living.rooted_only:
        _stop_forks(living, time.monotonic() + _STOP_MAX)
        living.look()
        targets = kill_plan.targets(step, living.own, living.holders, living.spared)
        deadline = time.monotonic() + step.grace
    if not final:
        for path in living.cgroups:
            cgroups.thaw(path)
    groups = living.cgroups if whole else []
    watched = _signal(living, targets, step.signal)
    try:
        while True:
            _wait_for(watched, groups, deadline - time.monotonic())
            if not whole or time.monotonic() >= deadline:
                living.rooted_only = None  # who outlives its time may be anywhere by now
                return
            living.look()
            alive = kill_plan.targets(step, living.own, living.holders, living.spared)
            if not alive and not any(cgroups.is_populated(path) for path in groups):
                return
            # Born since. KILL goes to all of them again, another signal once to each.
            known = set() if final else {pid for pid, _ in watched}
            _close(watched)
            watched = _signal(living, [pid for pid in alive if pid not in known], step.signal)
            watched += _open(living, [pid for pid in alive if pid in known])
    finally:
        _close(watched)


def _spares_any(living: Living) -> bool:
    """Whether the caller or an ancestor is in one of the cgroups: then pids are signalled one by one."""
    return any(pid in living.spared for pid in living.own)


@contextmanager
def _before_others() -> Iterator[None]:
    """Let the calling thread go before the processes that it ends: beside a fork bomb of 800 it would get one part in
    400 of a processor."""
    thread = threading.get_native_id()
    try:
        before = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, -20)
    except OSError:  # not allowed to (a container): it goes more slowly
        yield
        return
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, thread, before)


def _stop_forks(living: Living, deadline: float, quiet: float = _QUIET) -> None:
    """Without a cgroup to kill, a fork bomb outruns any list: STOP everything to a fixpoint first, then KILL it all.

    A process that forks and ends within a fraction of a millisecond is gone before its turn on any list comes. So the
    newest are looked at first, only who was not seen before, and the list is read again after ``_LOOK`` seconds.
    """
    seen: set[int] = set()
    known = set(living.own)
    quiet_since = 0.0
    while (began := time.monotonic()) < deadline:
        there = []
        for pid in processes.newest_first():
            there.append(pid)
            if pid in seen:
                continue
            seen.add(pid)
            if pid > 1 and pid not in living.spared and living.is_own(pid):
                quiet_since = 0.0
                if pid not in known:
                    quiet = _QUIET_AFTER_BIRTHS
                _close(_signal(living, [pid], signal.SIGSTOP))
            if time.monotonic() > began + _LOOK:
                quiet_since = 0.0  # not everybody was looked at
                break
        else:
            seen.intersection_update(there)  # a number may be used again
            quiet_since = quiet_since or time.monotonic()
            if time.monotonic() >= quiet_since + quiet:
                return


def _open(living: Living, pids: Iterable[int]) -> list[tuple[int, int]]:
    """``(pid, pidfd)`` of those that are still the instance's, judged with the pidfd open: no stranger by reuse of a pid."""
    opened = []
    for pid in list(pids)[:_WATCHED_MAX]:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if living.is_still(pid):
            opened.append((pid, pidfd))
        else:
            os.close(pidfd)
    return opened


def _signal(living: Living, pids: Iterable[int], signum: int) -> list[tuple[int, int]]:
    pending = list(pids)
    watched: list[tuple[int, int]] = []
    while pending:
        batch, pending = pending[:_WATCHED_MAX], pending[_WATCHED_MAX:]
        for pid, pidfd in _open(living, batch):
            try:
                signal.pidfd_send_signal(pidfd, signum)
                if signum not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT):
                    signal.pidfd_send_signal(pidfd, signal.SIGCONT)  # a stopped process cannot handle a signal
            except ProcessLookupError:
                os.close(pidfd)
                continue
            except BaseException:
                os.close(pidfd)
                raise
            if len(watched) < _WATCHED_MAX:
                watched.append((pid, pidfd))
            else:
                os.close(pidfd)
    return watched


def _close(watched: Iterable[tuple[int, int]]) -> None:
    for _, pidfd in watched:
        os.close(pidfd)


def _wait_for(watched: list[tuple[int, int]], groups: Sequence[str], seconds: float) -> None:
    """Wait until all of ``watched`` have ended and all of ``groups`` are empty, at most ``seconds``."""
    deadline = time.monotonic() + max(0.0, seconds)
    poller = select.poll()
    alive = {pidfd for _, pidfd in watched}
    for pidfd in alive:
        poller.register(pidfd, select.POLLIN)
    events: list[int] = []
    try:
        for path in groups:
            try:
                fd = cgroups.events_fd(path)
            except FileNotFoundError:
                continue
            events.append(fd)
            poller.register(fd, select.POLLPRI)
        # Read before each wait: POLLPRI tells of changes since the last read.
        while any([cgroups.says_populated(fd) for fd in events]) or alive:  # noqa: C419  # every one must be read
            left = deadline - time.monotonic()
            if left <= 0:
                return
            for fd, _ in poller.poll(left * 1000):
                if fd in alive:
                    alive.discard(fd)
                    poller.unregister(fd)
    finally:
        for fd in events:
            os.close(fd)


__all__ = ["Living", "carry_out", "kill_at_once", "survivors"]
