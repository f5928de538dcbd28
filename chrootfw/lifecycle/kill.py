"""Carry out a kill strategy: signal by pidfd, wait for events, never by a clock alone.

Plugins decide the strategy (`planning.kill_plan`). `stop` calls `execute_escalations` with it, and
the undo of a start calls `kill_at_once`.
"""

from __future__ import annotations

import os
import resource
import select
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from chrootfw.errors import SurvivorError
from chrootfw.lifecycle.context import Job
from chrootfw.linux import cgroups, polling, procfs, statx
from chrootfw.linux.descriptors import SHORT, Descriptors
from chrootfw.model import Escalation
from chrootfw.planning import kill_plan
from chrootfw.state.ownership import Judge
from chrootfw.state.snapshot import Snapshot
from chrootfw.views import Process

#: Finds outside holders by a snapshot and the pids of the own processes: all holders, or those
#: among some pids.
FindHolders = Callable[[Snapshot, Iterable[int], Iterable[int] | None], list[Process]]

#: The most pidfds that are watched at once, and never more than a quarter of the descriptors that
#: the program may have. The other processes are watched when these have exited.
_WATCHED_MAX = 256

#: Seconds for stopping processes that fork, where no cgroup can be killed.
_STOP_MAX = 10.0

#: Seconds for which no scan of /proc must find a new process: usually, and where a scan has found
#: one.
_QUIET, _QUIET_AFTER_NEW = 0.005, 0.25

#: Seconds after which a list of processes is too old for finding the newest.
_LIST_AGE_MAX = 0.02

#: Seconds for moving strangers out of a cgroup. The kernel may take 7 ms for each (measured).
_MOVING = 0.5

#: Seconds in which a child that is created in the cgroup has the instance's root directory.
_BEING_STARTED = 0.05

#: Seconds after which a wait for processes that get no signal checks whether an end was requested.
_WAIT_ROUND = 0.5

#: Where in the kernel a process waits that writes to a frozen file system (wchan of proc(5)).
_WAITS_FOR_THAW = "percpu_rwsem_wait"

#: The most survivors that an error names.
_NAMED_MAX = 20

#: The description of the step that ends the processes in an undo.
KILL_DESCRIPTION = "SIGKILL to the own processes"


class Remaining:
    """The processes that remain to be ended: own ones, and holders where those are wanted.

    `refresh` reads them again. If the first scan has shown that all own processes are in the
    cgroup, and each exits within its grace period, /proc is not read again: their children run in
    the cgroup too. A process that leaves the cgroup at that moment keeps the root busy, and
    `kill_stragglers` finds it. With `stays_mounted` no unmount would show such a process, so /proc
    is read each time.

    Attributes:
        find_holders: Finds the holders that are to be ended too; `None`: holders get no signal.
        stays_mounted: Nothing is unmounted afterwards.
        snapshot: The snapshot of the last scan.
        cgroups: The instance's cgroups.
        own: The pids of the own processes that can be seen from here.
        strangers: The pids in the cgroups that were moved there: they get no signal.
        rooted_only: Those of `own` that are in no cgroup of the instance; `None`: a process may
            have left the cgroup since the last scan.
        holders: The processes outside that are to be ended too, by pid.
        spared: The caller and its ancestors.
    """

    def __init__(
        self, job: Job, holders: FindHolders | None, *, stays_mounted: bool = False
    ) -> None:
        """Scan for the first time.

        Args:
            job: The instance.
            holders: Finds the holders that are to be ended too; `None`: holders get no signal.
            stays_mounted: Nothing is unmounted afterwards.
        """
        self.job = job
        self.stays_mounted = stays_mounted
        self.find_holders = holders
        self.spared = procfs.self_and_ancestors()
        self.cgroups: Sequence[str] = ()
        self.strangers: Sequence[int] = ()
        self.rooted_only: list[int] | None = None
        self._terminals: set[int] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read the cgroups again, and /proc where it may show more processes."""
        all_in_cgroup = bool(self.cgroups) and self.rooted_only == []
        self.snapshot = self.job.read_snapshot()
        self._judge = self.job.judge(self.snapshot)
        self.cgroups = self._judge.groups
        found = self._judge.read_tracked()
        is_enough = all_in_cgroup and self.cgroups and not found.strangers
        if self.stays_mounted or self.find_holders or not is_enough:
            found = self._judge.read_own(found)
        self._found = found
        self.strangers = found.strangers
        self.own = [pid for pid in found.pids if pid > 1]
        self.rooted_only = found.rooted_only
        self.holders: dict[int, Process] = {}
        if self.find_holders:
            own = set(self.own)
            holders = [
                p
                for p in self.find_holders(self.snapshot, found.pids, None)
                if p.pid > 1 and p.pid not in own
            ]
            self.holders = {p.pid: p for p in holders if not self._judge.is_of_another(p.pid)}

    @property
    def has_own(self) -> bool:
        """Whether an own process is running, even one that this pid namespace does not show."""
        return bool(self.own) or (
            not self.strangers and any(cgroups.is_populated(path) for path in self.cgroups)
        )

    def describe_own(self) -> list[Process]:
        """Return the own processes of the last scan, as the hooks see them."""
        return self._found.describe()

    def is_own(self, pid: int) -> bool:
        """Return whether a process is the instance's own now."""
        return self._judge.is_own(pid)

    def is_on_terminal(self, pid: int) -> bool:
        """Return whether a process is on a terminal of the instance's own.

        Its terminal is one of those that it has open, and lies on a devpts of the instance.
        """
        if self._terminals is None:
            mounts = self.snapshot.read_mounts(self.job.name)
            devices = [mount.dev for mount in mounts if mount.fstype == b"devpts"]
            self._terminals = {statx.packed(os.major(dev), os.minor(dev)) for dev in devices}
        return bool(self._terminals) and procfs.terminal(pid) in self._terminals

    def is_still(self, pid: int) -> bool:
        """Return whether a process is still the instance's own, or a holder.

        The caller keeps the process's pidfd open meanwhile, so the pid cannot become another's.
        """
        if self.is_own(pid):
            return True
        if pid not in self.holders or self.find_holders is None:
            return False
        snapshot = self.job.read_snapshot()
        return bool(self.find_holders(snapshot, self.job.read_own(snapshot).pids, [pid]))


def execute_escalations(
    remaining: Remaining, plugin: str, escalations: Sequence[Escalation]
) -> None:
    """Signal and wait, escalation by escalation, until no own process is running.

    Args:
        remaining: The processes, scanned a moment ago.
        plugin: The plugin that answered.
        escalations: Its answer.

    Raises:
        SurvivorError: An own process is still running after the last escalation.
        Interrupted: An end was requested; raised between two escalations.
    """
    job = remaining.job
    for number, step in enumerate(escalations):
        job.cancellation.check()
        if number:
            remaining.refresh()
        if not remaining.has_own and not remaining.holders:
            return
        with job.step("kill", kill_plan.describe(step), plugin), job.cancellation.shield():
            _escalate(remaining, step)
    remaining.find_holders = None
    if (
        remaining.has_own
        or remaining.stays_mounted
        or remaining.rooted_only is None
        or not remaining.cgroups
    ):
        remaining.refresh()
    if remaining.has_own:
        raise survivors(job.name, remaining)


def wait_for_own(remaining: Remaining, seconds: float) -> None:
    """Wait until the own processes have ended by themselves; no signal is sent.

    Args:
        remaining: The processes, scanned a moment ago; read again afterwards.
        seconds: Seconds to wait at most.

    Raises:
        Interrupted: An end was requested.
    """
    job = remaining.job
    deadline = time.monotonic() + seconds
    with job.step("kill", kill_plan.describe_wait(seconds)):
        while remaining.has_own and (left := deadline - time.monotonic()) > 0:
            job.cancellation.check()
            groups = () if remaining.strangers else remaining.cgroups
            with Pidfds() as watched:
                for pid in remaining.own[: watched.most]:
                    watched.signal(remaining, pid, None)
                _wait_for(watched, groups, min(left, _WAIT_ROUND))
                if not watched.of and not groups:
                    time.sleep(min(left, _BEING_STARTED))  # none of them could be watched
            remaining.refresh()


def kill_at_once(job: Job) -> None:
    """Send KILL to every own process, to undo a start.

    Raises:
        SurvivorError: An own process is still running.
    """
    remaining = Remaining(job, None)
    if remaining.has_own:
        with job.step("kill", KILL_DESCRIPTION):
            _escalate(remaining, Escalation(signal.SIGKILL, kill_plan.KILL_GRACE))
        remaining.refresh()
    if remaining.has_own:
        raise survivors(job.name, remaining)


def kill_stragglers(job: Job) -> bool:
    """Send KILL to own processes that no scan had shown, because the root is busy.

    Such a process has left the cgroup at the last moment. Without a cgroup, a single scan of /proc
    may miss processes that run only for a moment each.

    Returns:
        Whether there were any.

    Raises:
        SurvivorError: One of them is still running.
    """
    remaining = Remaining(job, None)
    if not remaining.cgroups:
        with _raised_priority():
            _stop_forks(remaining, time.monotonic() + _STOP_MAX, quiet=_QUIET_AFTER_NEW)
        remaining.refresh()
    if not remaining.has_own:
        return False
    kill_at_once(job)
    return True


def move_strangers_out(job: Job, strangers: Sequence[int]) -> bool:
    """Move strangers out of the instance's cgroups, without a signal.

    A stranger was moved into a cgroup of the instance and runs outside the instance.
    A child that is being started has the caller's root directory for a moment, so each stranger is
    judged twice.

    Args:
        job: The instance.
        strangers: The pids that were found (`OwnProcesses.strangers`).

    Returns:
        Whether there were any.
    """
    if not strangers:
        return False
    time.sleep(_BEING_STARTED)
    snapshot = job.read_snapshot()
    judge = job.judge(snapshot)
    strangers = judge.read_tracked().strangers
    ends = time.monotonic() + _MOVING
    for number, pid in enumerate(strangers):
        if time.monotonic() > ends:
            left = len(strangers) - number
            job.warn(
                "kill",
                f"{left} more in the cgroup of {job.name} run outside: they got no signal, and are"
                " still there",
            )
            break
        _move_out(job, judge, snapshot.top or "", pid)
    return True


def _move_out(job: Job, judge: Judge, top: str, pid: int) -> None:
    """Judge a process again, move it to the top of the hierarchy, and warn.

    Args:
        job: The instance.
        judge: The judge of its processes.
        top: The mount point of the hierarchy; "" without cgroup v2.
        pid: The process.
    """
    process = f"pid {pid} ({procfs.command(pid)})"
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # it has exited
    except OSError as error:
        job.warn(
            "kill",
            f"{process} in the cgroup of {job.name} may run outside, and could not be judged"
            f" ({error.strerror}): it got no signal, and is still there",
        )
        return
    try:
        if not judge.was_moved_in(pid):
            return
        moved = bool(top) and cgroups.move_out(pid, top)
    finally:
        os.close(pidfd)
    what = (
        "was moved to the top of the hierarchy" if moved else "is still there, and so is the cgroup"
    )
    job.warn(
        "kill",
        f"{process} was in the cgroup of {job.name} and runs outside: it got no signal, and {what}",
    )


def has_own_process(job: Job) -> bool:
    """Return whether an own process is running; read /proc only if no cgroup shows one."""
    return (
        job.judge(job.read_snapshot()).read_tracked().is_populated or Remaining(job, None).has_own
    )


def survivors(name: str, remaining: Remaining) -> SurvivorError:
    """Make the error that names the survivors: pid, command, state and wchan (proc(5))."""
    details: list[str] = []
    waits_for_thaw = False
    tracers: list[int] = []
    for pid in remaining.own:
        if len(details) == _NAMED_MAX:
            details.append("and more")
            break
        letter, wchan = procfs.state(pid)
        waits_for_thaw = waits_for_thaw or wchan == _WAITS_FOR_THAW
        if described := procfs.describe_state(pid):
            details.append(f"pid {pid} ({procfs.command(pid)}): {described}")
        if letter == "t" and (tracer := procfs.tracer(pid)):
            tracers.append(tracer)
    if not details:
        details = ["a process in its cgroup that cannot be seen from this pid namespace"]
    if waits_for_thaw:
        hint = (
            "if a backup froze the file system: fsfreeze -u"
            f" {shlex.quote(remaining.job.root)}; then chrootfw stop {name}"
        )
        return survived(name, details, hint)
    if tracers:
        pids = " ".join(map(str, dict.fromkeys(tracers)))
        hint = f"end the tracer, or let it go on: kill {pids}; then chrootfw stop {name}"
        return survived(name, details, hint)
    return survived(name, details)


def survived(name: str, details: Sequence[str], hint: str = "") -> SurvivorError:
    """Make the error for processes that are still running after the last signal.

    Args:
        name: The instance's name.
        details: A line for each process.
        hint: What to do; empty for the usual advice.
    """
    return SurvivorError(
        f"{name} still has processes after the last signal",
        details,
        hint
        or (
            "a process in state D waits for a device or a file system: when that answers, stop"
            " again"
        ),
    )


def _escalate(remaining: Remaining, step: Escalation) -> None:
    """Send one signal to its targets; wait until they have exited, or the grace period is over."""
    with _raised_priority():
        _send_and_wait(remaining, step)


def _send_and_wait(remaining: Remaining, step: Escalation) -> None:
    deadline = time.monotonic() + step.grace
    targets = kill_plan.list_targets(step, remaining.own, remaining.holders, remaining.spared)
    final = step.signal == signal.SIGKILL
    whole = step.to in ("own", "all")
    if final and whole and not _spares_any(remaining):
        for path in remaining.cgroups:
            cgroups.kill(path)  # a kernel without cgroup.kill: the targets are signalled below
    if final and whole and remaining.rooted_only:
        _stop_forks(remaining, time.monotonic() + _STOP_MAX)
        remaining.refresh()
        targets = kill_plan.list_targets(step, remaining.own, remaining.holders, remaining.spared)
        deadline = time.monotonic() + step.grace
    if not final:
        for path in remaining.cgroups:
            cgroups.thaw(path)
    groups = remaining.cgroups if whole and not remaining.strangers else []
    with Pidfds() as watched:
        known: set[int] = set()  # the processes that have got the signal
        while True:
            for pid in targets:
                if pid not in known:
                    watched.signal(remaining, pid, step.signal)
                elif pid not in watched.of and len(watched.of) < watched.most:
                    watched.signal(remaining, pid, None)
            _wait_for(watched, groups, deadline - time.monotonic())
            if not whole or time.monotonic() >= deadline:
                remaining.rooted_only = None  # a target that is left may have left the cgroup too
                return
            remaining.refresh()
            # Processes may have started since. KILL goes to all again, another signal once to each.
            known = set() if final else set(targets)
            targets = kill_plan.list_targets(
                step, remaining.own, remaining.holders, remaining.spared
            )
            if not targets and not any(cgroups.is_populated(path) for path in groups):
                return
            watched.keep(known.intersection(targets))


def _spares_any(remaining: Remaining) -> bool:
    """Return whether a process in one of the cgroups must get no signal.

    Such are the caller, its ancestors, and strangers. The pids are then signalled one by one.
    """
    return bool(remaining.strangers) or any(pid in remaining.spared for pid in remaining.own)


@contextmanager
def _raised_priority() -> Iterator[None]:
    """Give the calling thread the highest priority, nice -20.

    Beside a fork bomb of 800 processes on two processors it would get a 400th of a processor.
    """
    thread = threading.get_native_id()
    try:
        before = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, -20)
    except OSError:  # a container may refuse it: the same work, more slowly
        yield
        return
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, thread, before)


def _stop_forks(remaining: Remaining, deadline: float, quiet: float = _QUIET) -> None:
    """Send STOP to every own process until no new one appears, where no cgroup can be killed.

    The processes of a fork bomb may run for less than a millisecond each, so those on a list have
    exited before they get a signal. The newest are therefore judged first, each process once, and
    the list is read again after `_LIST_AGE_MAX` seconds.

    Args:
        remaining: The processes; only own ones are stopped.
        deadline: When to give up, by the monotonic clock.
        quiet: Seconds for which no scan must find a new own process.
    """
    seen: set[int] = set()
    known = set(remaining.own)
    quiet_since = 0.0
    while (began := time.monotonic()) < deadline:
        there = []
        for pid in procfs.newest_first():
            there.append(pid)
            if pid in seen:
                continue
            seen.add(pid)
            if pid > 1 and pid not in remaining.spared and remaining.is_own(pid):
                quiet_since = 0.0
                if pid not in known:
                    quiet = _QUIET_AFTER_NEW
                with Pidfds() as one:
                    one.signal(remaining, pid, signal.SIGSTOP)
            if time.monotonic() > began + _LIST_AGE_MAX:
                quiet_since = 0.0  # the rest of the list was not judged
                break
        else:
            seen.intersection_update(there)  # a number may be used again
            quiet_since = quiet_since or time.monotonic()
            if time.monotonic() >= quiet_since + quiet:
                return


class Pidfds(Descriptors):
    """The pidfds of the processes that are waited for, at most `most` of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, int] = {}  # pid: pidfd
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The program's other threads need descriptors too.
        self.most = (
            _WATCHED_MAX if soft == resource.RLIM_INFINITY else max(1, min(_WATCHED_MAX, soft // 4))
        )

    def keep(self, pids: Iterable[int]) -> None:
        """Close all pidfds but those of some pids."""
        kept = set(pids)
        for pid in [pid for pid in self.of if pid not in kept]:
            self.close(self.of.pop(pid))

    def drop_half(self) -> bool:
        """Close half of the pidfds, and watch no more than that at once from now on.

        Returns:
            Whether there were any.
        """
        had = len(self.of)
        self.most = max(1, had // 2)
        self.keep(list(self.of)[: had // 2])
        return had > 0

    def signal(self, remaining: Remaining, pid: int, signum: int | None) -> None:
        """Signal a process if it is still the instance's own or a holder, and watch it.

        The process is judged with its pidfd open, so no other process with a reused pid is
        signalled. It is watched from now on if a descriptor is free.

        Args:
            remaining: The processes.
            pid: The process.
            signum: The signal; `None` sends none.

        Raises:
            OSError: Another reason than that the process has exited.
        """
        while True:
            try:
                self._signal(remaining, pid, signum)
            except OSError as error:
                if error.errno not in SHORT or not self.drop_half():
                    raise
            else:
                return

    def _signal(self, remaining: Remaining, pid: int, signum: int | None) -> None:
        try:
            pidfd = self.take(os.pidfd_open, pid)
        except ProcessLookupError:
            return  # it has exited
        is_watched = False
        try:
            if remaining.is_still(pid):
                if signum is not None:
                    signal.pidfd_send_signal(pidfd, signum)
                    if signum == signal.SIGTERM and remaining.is_on_terminal(pid):
                        # A shell ignores TERM; this is what the end of a terminal sends.
                        signal.pidfd_send_signal(pidfd, signal.SIGHUP)
                    if signum not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT):
                        # A stopped process cannot handle a signal.
                        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
                is_watched = len(self.of) < self.most and pid not in self.of
        except ProcessLookupError:
            pass  # it has exited meanwhile
        finally:
            if is_watched:
                self.of[pid] = pidfd
            else:
                self.close(pidfd)


def _wait_for(watched: Pidfds, groups: Sequence[str], seconds: float) -> None:
    """Wait until all watched processes have exited and all cgroups are empty.

    Args:
        watched: The processes.
        groups: The paths of the cgroups.
        seconds: Seconds to wait at most.
    """
    deadline = time.monotonic() + max(0.0, seconds)
    with Descriptors() as events:
        for path in groups:
            while True:
                try:
                    events.take(cgroups.events_fd, path)
                except FileNotFoundError:
                    pass  # the cgroup is removed, so it is empty
                except OSError as error:
                    if error.errno in SHORT and watched.drop_half():
                        continue
                    raise
                break
        poller = select.poll()
        for fd in events:
            poller.register(fd, select.POLLPRI)
        alive = set(watched.of.values())
        for pidfd in alive:
            poller.register(pidfd, select.POLLIN)
        # Read before each wait: POLLPRI reports changes since the last read.
        while any([cgroups.read_populated(fd) for fd in events]) or alive:  # noqa: C419  # every one must be read
            left = deadline - time.monotonic()
            if left <= 0:
                return
            for fd, _ in polling.poll(poller, left):
                if fd in alive:
                    alive.discard(fd)
                    poller.unregister(fd)
