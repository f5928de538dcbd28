"""Start processes that make system calls, and wait for them with a time limit.

A child is created with clone3(2), is known by a pidfd, and carries out a batch of system calls that
was prepared before (`call_batch`). The compiled module does that without Python (`native`). Without
it, a program with one thread forks, and one with threads starts its children from an interpreter of
their own: Python in a fork would wait for locks that other threads held at the fork.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import struct
import time
from array import array
from weakref import ref

from chrootfw.errors import StepError
from chrootfw.linux import call_batch, descriptors, native, polling, syscalls
from chrootfw.linux.syscalls import CALLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from chrootfw.linux.call_batch import CallBatch

    Starter = Callable[[array[int], int, int], int]

SIG_BLOCK, SIG_SETMASK = 0, 2
_SignalSet = ctypes.c_char * 128  # sigset_t
ALL_SIGNALS = _SignalSet.from_buffer_copy(b"\xff" * 128)

#: Whether a core dump of one process no longer ends all processes that share its memory: Linux
#: 5.16.
_MAY_SHARE = syscalls.kernel() >= (5, 16)

_PIDFD_GET_INFO, _PIDFD_INFO_EXIT = 0xC040FF0B, 8
#: struct pidfd_info as of Linux 6.13, with its fields mask and exit_code.
_PIDFD_INFO = struct.Struct("=Q52xi")

#: Seconds for the kernel to record the status of a child that it reaps by itself.
_STATUS_KEPT = 0.2


class Child:
    """A process that this process has created.

    The object owns `pidfd` (close-on-exec), which is closed once.

    Attributes:
        pid: The process ID.
        calls: The batch that the child carries out; `None` once it has executed its program.
        has_ended: Whether the exit was seen.
        is_abandoned: Whether it runs on without this object.
        status: The exit status, negative for a signal. `None` before the exit, and if the embedding
            program reaped the child and the kernel (before Linux 6.15) does not keep the status.
    """

    __slots__ = (
        "__weakref__",
        "_owner",
        "_pidfd",
        "calls",
        "has_ended",
        "is_abandoned",
        "pid",
        "status",
    )

    def __init__(self, calls: CallBatch | None = None) -> None:
        self._owner = os.getpid()
        self.is_abandoned = False
        self.pid = 0
        self.has_ended = False
        self.status: int | None = None
        self.calls = calls  # the child reads it: do not free it before its execve
        self._pidfd = array("i", (-1,))  # clone3 writes here, so no exception can come between

    @classmethod
    def adopt(cls, pidfd: int) -> Child:
        """Make the object for a child that another process created for this one (CLONE_PARENT).

        Args:
            pidfd: The child's pidfd, which the object owns from now on.

        Raises:
            OSError: The descriptor is not a pidfd of a running process.
        """
        child = cls()
        child._pidfd[0] = pidfd
        with open(f"/proc/self/fdinfo/{pidfd}", "rb", buffering=0) as file:
            child.pid = int(file.read().partition(b"\nPid:")[2].split()[0])
        return child

    @property
    def pidfd(self) -> int:
        """The descriptor; -1 after `close`."""
        return self._pidfd[0] if self._pidfd else -1

    def start(self, how: Starter, flags: int, cgroup_fd: int) -> None:
        """Start the process. The caller has blocked all signals.

        Args:
            how: A function of the array for the pidfd, the flags and the cgroup. It returns the
                pid.
            flags: Flags of clone3(2).
            cgroup_fd: A descriptor of the cgroup v2 directory to start in; -1 for the caller's.
        """
        self.pid = how(self._pidfd, flags, cgroup_fd)
        _with_copies[self.pid] = ref(self)

    def wait_for_end(self, seconds: float | None) -> bool:
        """Wait until the child exits, and reap it.

        Args:
            seconds: Seconds to wait; `None` for no limit.

        Returns:
            Whether the child has exited.
        """
        if not self.has_ended and is_ready(self.pidfd, seconds):
            self.reap()
        return self.has_ended

    def reap(self) -> int | None:
        """Reap a child whose pidfd is readable.

        Returns:
            The exit status; `None` if it is unknown.
        """
        has_no_copies(self)
        if not self.has_ended:
            try:
                result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
                assert result is not None
                self.status = (
                    result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
                )
            except ChildProcessError:
                self.status = _status_kept(self.pidfd)
            self.has_ended = True
        return self.status

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal, unless the child has exited or was closed."""
        try:
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Close the pidfd; a second call does nothing."""
        if self.pidfd >= 0:
            descriptors.close_last(self._pidfd)

    def end(self, seconds: float = 5.0) -> bool:
        """Send KILL, wait, and close the pidfd.

        Args:
            seconds: Seconds to wait for the exit.

        Returns:
            Whether the child exited. If not, a system call does not return (state D); the child is
            abandoned, and `reap` collects it later.
        """
        if not self.has_ended:
            self.kill()
        if not self.wait_for_end(seconds):
            leave(self)
            return False
        self.close()
        return True

    def __del__(self) -> None:
        if not hasattr(self, "_pidfd"):
            return  # an exception came before the pidfd was known
        # An exception (KeyboardInterrupt) may come before the code that would have ended the child.
        # An abandoned child runs on, and a fork of this process does not own the child.
        if self.pidfd >= 0 and not self.is_abandoned and os.getpid() == self._owner:
            heir = Child(self.calls)  # another object, since no object is finalized twice
            heir.pid = self.pid
            heir._pidfd, self._pidfd = self._pidfd, heir._pidfd
            heir.kill()
            leave(heir)
        else:
            self.close()

    def forget_batch(self) -> None:
        """Free the batch, with its memory: the child has executed its program."""
        self.calls = None

    def leave(self) -> None:
        """Mark the child as abandoned: it does not end with this object."""
        self.is_abandoned = True


#: Why the status of a child is unknown.
STATUS_LOST = (
    "its exit status is lost: this program reaped it (SIGCHLD is ignored, or a handler "
    "or thread waits for any child)"
)


def known_status(child: Child, what: str) -> int:
    """Return the exit status of a child that has exited.

    Args:
        child: The child.
        what: The name of the program, for the error.

    Raises:
        StepError: The status is unknown.
    """
    if child.status is None:
        raise StepError(
            f"{what} has ended, but {STATUS_LOST}",
            hint="leave SIGCHLD at its default and wait for children by their pid; Linux 6.15 "
            "and later keep the status",
        )
    return child.status


def _status_kept(pidfd: int) -> int | None:
    """Ask the kernel for the status of a child that was reaped elsewhere.

    Uses ioctl PIDFD_GET_INFO (Linux 6.15); returns `None` if the kernel does not keep the status.
    """
    deadline = time.monotonic() + _STATUS_KEPT
    while True:
        info = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, 0))
        try:
            fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
        except OSError:
            return None
        mask, status = _PIDFD_INFO.unpack(info)
        if mask & _PIDFD_INFO_EXIT:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.0005)  # the kernel announces the exit before it reaps the child


def is_ready(fd: int, seconds: float | None) -> bool:
    """Wait until a descriptor is readable.

    Args:
        fd: The descriptor.
        seconds: Seconds to wait; `None` for no limit.

    Returns:
        Whether it is readable.
    """
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return polling.is_ready(poller, seconds)


#: Children that were abandoned, or run as long as their instance.
_left: list[Child] = []

#: Children that were created with copies of all descriptors of this process. The references are
#: weak: a child without an owner is ended.
_with_copies: dict[int, ref[Child]] = {}


def has_no_copies(child: Child) -> None:
    """Note that a child has closed its copies of this process's descriptors (execve or exit)."""
    known = _with_copies.get(child.pid)
    if known is not None and known() in (child, None):
        _with_copies.pop(child.pid, None)


def copies_are_about() -> bool:
    """Check whether a new child may still hold copies of this process's descriptors."""
    found = [known() for known in list(_with_copies.values())]
    return any(_holds_copies(child) for child in found if child is not None)


def _holds_copies(child: Child) -> bool:
    calls = child.calls
    return calls is None or calls.closes < 0 or calls.result(calls.closes) == call_batch.UNSET


def leave(child: Child) -> None:
    """Abandon a child: it is reaped after its exit."""
    has_no_copies(child)
    child.is_abandoned = True  # no call follows, where a signal handler could raise
    _left.append(child)
    reap()


def reap() -> None:
    """Reap the abandoned children that have exited."""
    owned: list[Child] = []
    for _ in range(len(_left)):
        try:
            # This thread owns it from now on: another thread may reap at the same time. It is
            # moved within one call, so that a signal handler that raises does not lose it.
            owned.extend(map(_left.pop, (0,)))
            if owned[0].wait_for_end(0):
                owned.pop().close()
        except IndexError:
            return  # another thread was faster
        finally:
            _left.extend(owned)
            owned.clear()


def begin(
    calls: CallBatch,
    cgroup_fd: int = -1,
    *,
    shares_memory: bool = True,
    namespaces: int = 0,
) -> Child:
    """Start a child that carries out a batch, with all signals blocked.

    The child exits after the batch, unless the batch has an execve.

    Args:
        calls: The batch. It must not change until the child has exited.
        cgroup_fd: A descriptor of the cgroup v2 directory to start in; -1 for the caller's.
        shares_memory: Whether the child may share the caller's memory. It must not if the batch
            changes users or capabilities.
        namespaces: Flags of clone3(2) for new namespaces.

    Returns:
        The child. The caller must end or abandon it.

    Raises:
        OSError: The kernel refused to create the process.
        NotSupported: This program has threads, and neither `_native` nor an interpreter.
    """
    reap()
    child = Child(calls)
    start = _choose(calls, shares_memory=shares_memory)
    before = signals_blocked()
    try:
        CALLS.sigprocmask(SIG_BLOCK, ALL_SIGNALS, None)
        child.start(start, namespaces, cgroup_fd)
    finally:
        CALLS.sigprocmask(SIG_SETMASK, before, None)
    return child


def _choose(calls: CallBatch, *, shares_memory: bool) -> Starter:
    """Choose how a child is started, and prepare its batch."""
    if native.MODULE is not None:
        compiled, memory = native.MODULE.start, calls.prepare()
        shares = shares_memory and _MAY_SHARE and bool(native.MODULE.CAN_SHARE)
        return lambda pidfd, flags, cgroup: compiled(memory, pidfd, flags, cgroup, shares)
    from chrootfw.linux import batch_program, interpreter

    if _has_threads():
        return lambda pidfd, flags, cgroup: interpreter.start(calls, pidfd, flags, cgroup)
    memory, numbers = calls.prepare(), interpreter.numbers()
    return lambda pidfd, flags, cgroup: batch_program.start(numbers, memory, pidfd, flags, cgroup)


def _has_threads() -> bool:
    """Check whether this process has more than one thread, of Python or not."""
    return len(os.listdir("/proc/self/task")) > 1


def signals_blocked() -> ctypes.Array[Any]:
    """Return the signals that the calling thread has blocked.

    A child is created with all signals blocked. The callers block and restore with calls of libc in
    a `finally`, and not in a context manager: a signal handler may raise when a Python function
    begins or ends, and the signals would stay blocked.
    """
    before = _SignalSet()
    CALLS.sigprocmask(SIG_BLOCK, None, before)
    return before
