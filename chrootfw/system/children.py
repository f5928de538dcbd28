"""Children of our own: made by clone3(2), known by a pidfd, waited for with a deadline.

No ``os.fork`` and no ``preexec_fn``: the embedding program may have threads. A child carries out a list of system calls, prepared
beforehand (``call_lists``): by ``runner``, or as a fork of this interpreter.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import time

from chrootfw.system import call_lists, runner, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

    from chrootfw.system.call_lists import CallList
else:
    import _signal as signal  # signal makes enums of its numbers, and takes as long to import as a list to make

_LIBC = ctypes.PyDLL(None, use_errno=True)
#: For what a fork does. Bound once, and the interpreter's lock is kept: there is no thread there to hand it to, and
#: looking a function up takes the dynamic linker's lock, which another thread may hold at the clone.
CALLS = syscalls.Calls(_LIBC)
_syscall = call_lists.by_libc(_LIBC)

_CLONE_VM, _CLONE_PIDFD, _CLONE_INTO_CGROUP = 0x100, 0x1000, 0x200000000
_SIG_BLOCK, _SIG_SETMASK = 0, 2
_SignalSet = ctypes.c_char * 128  # sigset_t
_ALL_SIGNALS = _SignalSet.from_buffer_copy(b"\xff" * 128)
_CloneArgs = ctypes.c_uint64 * 11

#: Seconds that a fork may need to begin, attempt by attempt. A thread of the embedding program that asks
#: for the interpreter's lock at the very moment of the clone leaves that request in the fork's copy, where nobody can
#: grant it: such a fork has done nothing yet, is killed, and another one made.
ATTEMPTS = (0.5, 5.0, 30.0)

#: The status of a child that the embedding program reaped (it ignores SIGCHLD, or waits for any child).
LOST = 255


class Child:
    """A process we started: ``pid`` and a ``pidfd`` (close-on-exec). Close it when done. ``calls``: its list."""

    __slots__ = ("calls", "pid", "pidfd", "status")

    def __init__(self, pid: int, pidfd: int, calls: CallList | None = None) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.status: int | None = None
        self.calls = calls  # not to be given back while it is read

    def wait(self, seconds: float | None) -> int | None:
        """The exit status (negative: ended by that signal), or ``None`` if it lives on after ``seconds``."""
        if self.status is None and is_ready(self.pidfd, seconds):
            self.reap()
        return self.status

    def reap(self) -> int:
        """The exit status of a child whose pidfd is readable."""
        has_no_copies(self)
        if self.status is None:
            try:
                result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
                assert result is not None
                self.status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
            except ChildProcessError:
                self.status = LOST
        return self.status

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Signal it, unless it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Give back the pidfd."""
        os.close(self.pidfd)

    def end(self, seconds: float = 5.0) -> bool:
        """KILL it, wait and close. ``False``: it has not ended, since a call of its own does not return (state D); it
        is left behind, and reaped when it has."""
        if self.status is None:
            self.kill()
        if self.wait(seconds) is None:
            leave(self)
            return False
        self.close()
        return True


def is_ready(fd: int, seconds: float | None) -> bool:
    """Wait until a descriptor can be read, at most so long; ``None``: for ever."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(None if seconds is None else max(0, seconds * 1000)))


#: Children that were left behind, or live as long as their instance.
_left: list[Child] = []

#: Lists that a child is about to read: kept by this too until the child is known.
_in_use: list[CallList] = []

#: Children that were made with copies of all descriptors of this process.
_with_copies: dict[int, Child] = {}


def has_no_copies(child: Child) -> None:
    """A child has closed what it had of its parent's descriptors, by its execve or its end."""
    if _with_copies.get(child.pid) is child:
        del _with_copies[child.pid]


def copies_are_about() -> bool:
    """Whether a child that a thread of this process has just made may hold any descriptor of this process open."""
    return any(_holds_copies(child) for child in list(_with_copies.values()))


def _holds_copies(child: Child) -> bool:
    calls = child.calls
    return calls is None or calls.closes < 0 or calls.result(calls.closes) == call_lists.UNSET


def leave(child: Child) -> None:
    """Leave a child behind, to be reaped when it has ended."""
    has_no_copies(child)
    _left.append(child)
    reap()


def reap() -> None:
    """Reap the children that were left behind and have ended meanwhile."""
    for _ in range(len(_left)):
        try:
            child = _left.pop(0)  # it is the caller's alone from now on: another thread may look at the same time
        except IndexError:
            return
        if child.wait(0) is None:
            _left.append(child)
        else:
            child.close()


def begin(calls: CallList, cgroup: str | None = None, cgroup_fd: int = -1, *, shares_memory: bool = True) -> Child:
    """A child that has begun with its list, all signals blocked; it ends with the list unless that has an execve.

    It is born in the cgroup that ``cgroup_fd`` refers to. ``shares_memory``: ``False`` for a list that changes the child's user or
    capabilities. Raises ``OSError``.
    """
    if runner.start is not None and shares_memory:
        reap()
        first = calls.prepare()
        _in_use.append(calls)
        with _blocked():
            pid, pidfd = _clone(_CLONE_VM, cgroup_fd, first)
            if pid > 0:
                child = Child(pid, pidfd, calls)
                _with_copies[pid] = child
                _in_use.remove(calls)
                return child
        _in_use.remove(calls)
        # A seccomp filter from before clone3; another time namespace for children, before Linux 6.1.
        if pid not in (-errno.ENOSYS, -errno.EINVAL):
            raise OSError(-pid, f"clone3: {os.strerror(-pid)}")
    return _begin_fork(calls, cgroup, cgroup_fd)


def _begin_fork(calls: CallList, cgroup: str | None, cgroup_fd: int) -> Child:
    for patience in ATTEMPTS:
        calls.prepare()
        begun, tell = os.pipe2(os.O_CLOEXEC)
        try:
            child = clone(lambda: _carry_out(calls, tell), cgroup, cgroup_fd)  # noqa: B023  # called before the next turn
            child.calls = calls
            if _is_either_ready(begun, child.pidfd, patience):
                return child  # it has begun, or has ended already
            child.end()
            if is_ready(begun, 0):  # it did begin, at the last moment: whatever it has done is not to be done twice
                break
        finally:
            os.close(tell)
            os.close(begun)
    raise OSError(errno.EAGAIN, "no process could be made for it")


def _is_either_ready(first: int, second: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(first, select.POLLIN)
    poller.register(second, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def _carry_out(calls: CallList, tell: int) -> None:
    CALLS.write(tell, b"+", 1)
    carry_out_here(calls)
    CALLS.exit(0)


def carry_out_here(calls: CallList) -> None:
    """Carry out a list in the calling process, a fork."""
    calls.carry_out(_syscall, ctypes.get_errno)


def clone(
    body: Callable[[], None],
    cgroup: str | None = None,
    cgroup_fd: int = -1,
    namespaces: int = 0,
) -> Child:
    """A fork that runs ``body``, with all signals blocked, and ends with status 127.

    ``body`` must call nothing that gives back the interpreter's lock: only ``CALLS`` and what is bound above. It is born in the cgroup that
    ``cgroup_fd`` refers to; where the kernel refuses clone3, it joins the one at the path ``cgroup``.
    """
    reap()
    join_fd = -1
    try:
        with _blocked():
            time.sleep(0)  # the interpreter's lock given back and taken: others wait for their turn from now on
            pid, pidfd = _clone(namespaces, cgroup_fd)
            if pid == -errno.ENOSYS and not namespaces:  # a seccomp filter from before clone3
                if cgroup is not None:
                    join_fd = os.open(f"{cgroup}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
                pid, pidfd = _plain_fork()
            if pid < 0:
                raise OSError(-pid, f"clone3: {os.strerror(-pid)}")
            if pid == 0:
                # No garbage collection: finalizers here would be the parent's.
                try:
                    gc.disable()
                    if join_fd < 0 or CALLS.write(join_fd, b"0", 1) == 1:
                        body()
                finally:
                    CALLS.exit(127)
            child = Child(pid, pidfd)
            _with_copies[pid] = child
    finally:
        if join_fd >= 0:
            os.close(join_fd)
    return child


class _blocked:  # noqa: N801  # it reads like words
    """While it is entered, the calling thread has all signals blocked. By libc: signal.pthread_sigmask makes an enum of each of 64
    signals, three times."""

    def __enter__(self) -> None:
        self.before = _SignalSet()
        CALLS.sigprocmask(_SIG_BLOCK, _ALL_SIGNALS, self.before)

    def __exit__(self, *_exc: object) -> None:
        CALLS.sigprocmask(_SIG_SETMASK, self.before, None)


def _clone(flags: int, cgroup_fd: int, first: int = 0) -> tuple[int, int]:
    """clone3(2) with a pidfd, into the cgroup if there is one: ``(pid, pidfd)``; pid 0 in a fork, or a negative errno.

    ``first``: the first step of a list for ``runner``.
    """
    pidfd = ctypes.c_int(-1)
    flags |= _CLONE_PIDFD | (_CLONE_INTO_CGROUP if cgroup_fd >= 0 else 0)
    words = _CloneArgs(flags, ctypes.addressof(pidfd), 0, 0, signal.SIGCHLD)
    words[10] = max(cgroup_fd, 0)
    if first:
        assert runner.start is not None
        return runner.start(ctypes.addressof(words), ctypes.sizeof(words), first), pidfd.value
    result: int = _syscall(call_lists.NUMBERS["clone3"], ctypes.addressof(words), ctypes.sizeof(words), 0, 0, 0, 0)
    return (result if result >= 0 else -ctypes.get_errno()), pidfd.value


def _plain_fork() -> tuple[int, int]:
    pid: int = CALLS.fork()
    return (pid, os.pidfd_open(pid) if pid else -1) if pid >= 0 else (-ctypes.get_errno(), -1)
