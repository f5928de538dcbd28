"""Make system calls that may never return in a child, with a time limit.

A device or a server may not answer. A thread would not do: a thread in state D keeps its process
from exiting. A child can be abandoned; it is killed, and exits when the kernel lets go of it. The
child has no descriptors but those it needs, so no other process waits for a pipe or a lock because
of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
import threading
import time

from chrootfw.linux import call_batch, child, mountinfo, syscalls
from chrootfw.linux.call_batch import CallBatch
from chrootfw.linux.descriptors import Descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

_AT_STATX_FORCE_SYNC = 0x2000
_UINT_MAX = 0xFFFFFFFF

#: How often a child's progress is checked within the time limit of one call.
_CHECKS = 10

#: Seconds after which a request to end is noticed; shorter calls are not interrupted.
_NOTICES = 0.5

#: Seconds between two looks at the progress of a batch whose caller shows it.
_SHOWS = 0.1

#: Seconds for a child to finish what it has begun after its answer is no longer needed.
_FINISHES = 1.0

#: File systems without a block device of their own that never wait for a server.
_LOCAL = frozenset((b"tmpfs", b"ramfs", b"devtmpfs", b"btrfs", b"bcachefs", b"zfs"))


class DeadlineExceeded(OSError):
    """No answer came in time (ETIMEDOUT).

    Attributes:
        pid: The child that is still waiting for the answer.
        wchan: The kernel function in which it waits; empty if that is unknown.
    """

    pid = 0
    wchan = ""

    def describe(self) -> str:
        """Describe which process waits, and where in the kernel."""
        return (
            f"pid {self.pid}, chrootfw's own, waits for it in {self.wchan or 'the kernel'}; "
            "it ends when it has its answer"
        )


class Waiting:
    """A context manager that sets how the calling thread waits for children.

    Args:
        check: Called every half second; an exception from it ends the wait.
        most: Longest time limit of one call in seconds; `None` for no other limit.
    """

    __slots__ = ("_before", "check", "most")

    def __init__(
        self, check: Callable[[], object] | None = None, *, most: float | None = None
    ) -> None:
        self.check = check
        self.most = most

    def __enter__(self) -> None:
        self._before = dict(_here.__dict__)
        if self.check is not None:
            _here.check = self.check
        if self.most is not None:
            _here.most = min(self.most, getattr(_here, "most", self.most))

    def __exit__(self, *_exc: object) -> None:
        _here.__dict__.clear()
        _here.__dict__.update(self._before)


#: How the calling thread waits.
_here = threading.local()


def make_closing_batch(keep: Iterable[int] = ()) -> CallBatch:
    """Make a batch that first closes all descriptors of the child but some.

    A descriptor that the child opens later gets the lowest free number.

    Args:
        keep: The descriptors that stay open.
    """
    kept = sorted(keep)
    calls = CallBatch(kept)
    first = 0
    for fd in kept:
        if fd > first:
            calls.add("close_range", first, fd - 1, 0)
        first = fd + 1
    calls.closes = calls.add("close_range", first, _UINT_MAX, 0)
    return calls


def run_batch(
    what: str,
    calls: CallBatch,
    *,
    seconds: float,
    total: float | None = None,
    show_progress: Callable[[], object] | None = None,
) -> None:
    """Carry out a batch in a child, with a time limit for each call.

    Args:
        what: The name in errors of what did not answer.
        calls: The batch.
        seconds: Seconds for each call to return.
        total: Seconds for all of them; `None` for no such limit.
        show_progress: Called every tenth of a second while the child is at work. Its own time is
            not the calls'.

    Raises:
        DeadlineExceeded: A call has not returned in time.
        OSError: A call failed; the errno is the call's.
        BaseException: What the check of `Waiting`, or `show_progress`, raised.
    """
    seconds = min(seconds, getattr(_here, "most", seconds))
    worker = child.begin(calls)
    try:
        _wait(worker, calls, seconds, total, show_progress)
    except BaseException:
        try:
            # An ext4 whose mount(2) is killed stays marked as needing recovery.
            worker.wait_for_end(_FINISHES)
        finally:
            worker.end(0)
        raise
    if not worker.has_ended:
        error = DeadlineExceeded(errno.ETIMEDOUT, f"no answer within {seconds:g} s", what)
        error.pid, error.wchan = worker.pid, wchan(worker.pid)
        worker.end(0.1)
        raise error
    worker.end()
    if stopped := calls.stopped_at():
        if not stopped[1]:
            raise OSError(errno.ECHILD, "the process that was to do it was ended", what)
        raise OSError(stopped[1], os.strerror(stopped[1]), what)


def _wait(
    worker: child.Child,
    calls: CallBatch,
    seconds: float,
    total: float | None,
    show_progress: Callable[[], object] | None,
) -> None:
    """Wait until the child exits, or until no call has returned within the time limit."""
    checked = since = time.monotonic()
    until = since + (float("inf") if total is None else total)
    progress = 0
    check = getattr(_here, "check", None)
    pause = min(seconds / _CHECKS, _SHOWS if show_progress else _NOTICES)
    while not worker.wait_for_end(pause):
        if check is not None:
            check()
        done = len(calls.names) - calls.results().count(call_batch.UNSET)
        if done != progress:
            progress, since = done, checked  # the call returned at some time since the last check
        checked = time.monotonic()
        if show_progress is not None:
            show_progress()
            since += time.monotonic() - checked
            checked = time.monotonic()
        if checked >= min(since + seconds, until):
            return


def is_ready(fd: int, seconds: float) -> bool:
    """Wait until a descriptor is readable.

    Args:
        fd: The descriptor.
        seconds: Seconds to wait.

    Returns:
        Whether it is readable.

    Raises:
        BaseException: What the check of `Waiting` raised.
    """
    check = getattr(_here, "check", None)
    deadline = time.monotonic() + seconds
    while not child.is_ready(fd, max(0.0, min(_NOTICES, deadline - time.monotonic()))):
        if check is not None:
            check()
        if time.monotonic() >= deadline:
            return False
    return True


def lowest_free(keep: Collection[int]) -> int:
    """Return the number that a child's next descriptor gets if it has only some open.

    Args:
        keep: The child's open descriptors.
    """
    number = 0
    while number in keep:
        number += 1
    return number


class Passage:
    """A socket pair by which a child passes a descriptor to this process. Close it when done.

    Attributes:
        theirs: The end that the child keeps.
    """

    __slots__ = ("_ours", "_theirs", "theirs")

    def __init__(self) -> None:
        import socket  # what reads no file with a time limit does without it

        self._ours, self._theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        )
        self.theirs = self._theirs.fileno()

    def add(self, calls: CallBatch, fd: int) -> None:
        """Append the call by which the child passes a descriptor (SCM_RIGHTS, unix(7)).

        Args:
            calls: The child's batch.
            fd: The descriptor in the child.
        """
        import socket

        control = _CONTROL.pack(_CONTROL_LENGTH, socket.SOL_SOCKET, socket.SCM_RIGHTS, fd)
        message = calls.add_buffer(_MESSAGE.size, _MESSAGE.pack(0, 0, 0, 1, 0, len(control), 0))
        vector = calls.add_buffer(_VECTOR.size, _VECTOR.pack(0, 1))
        message.point(_MESSAGE_VECTOR, vector)
        message.point(_MESSAGE_CONTROL, calls.add_buffer(len(control), control))
        vector.point(0, calls.add_buffer(1))
        calls.add("sendmsg", self.theirs, message, 0)

    def take(self) -> int:
        """Receive the descriptor.

        Raises:
            OSError: None came, since the descriptors of this process are used up (EMFILE), or the
                child passed none.
        """
        import socket

        _data, control, _flags, _address = self._ours.recvmsg(
            1, 24, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        )
        if not control:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return int.from_bytes(control[0][2][:4], sys.byteorder)

    def __enter__(self) -> Passage:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ours.close()
        self._theirs.close()


#: struct msghdr, and the offsets of its pointers to struct iovec and struct cmsghdr.
_MESSAGE, _MESSAGE_VECTOR, _MESSAGE_CONTROL = struct.Struct("=QI4xQQQQi4x"), 16, 32
#: struct iovec.
_VECTOR = struct.Struct("=QQ")
#: struct cmsghdr with one descriptor, and its length without the padding.
_CONTROL, _CONTROL_LENGTH = struct.Struct("=Qiii4x"), 20


def open_path(path: str, *, seconds: float, follow: bool = True) -> int:
    """Open a path in a child (O_PATH), mounting what is mounted there on demand (autofs).

    Later use of the descriptor itself waits for no server.

    Args:
        path: The path.
        seconds: Seconds for each call to return.
        follow: Whether the path may lead through symbolic links.

    Returns:
        The descriptor. The caller must close it.

    Raises:
        DeadlineExceeded: The path's file system does not answer.
        OSError: The path cannot be opened; ELOOP if it leads through a symbolic link that is not
            to be followed.
    """
    raw = os.fsencode(path)
    with Passage() as passage:
        calls = make_closing_batch([passage.theirs])
        found = lowest_free([passage.theirs])
        resolve = 0 if follow else syscalls.RESOLVE_NO_SYMLINKS
        flags = os.O_PATH | os.O_CLOEXEC
        directory = syscalls.OpenHow(flags | os.O_DIRECTORY, 0, resolve)
        how, size = syscalls.OpenHow(flags, 0, resolve), ctypes.sizeof(directory)
        calls.add("openat2", syscalls.AT_FDCWD, raw, directory, size, ignore=(errno.ENOTDIR,))
        calls.add("close", found, ignore=(errno.EBADF,))
        calls.add("openat2", syscalls.AT_FDCWD, raw, how, size)
        passage.add(calls, found)
        run_batch(path, calls, seconds=seconds)
        return passage.take()


def check_answers(path: str, *, seconds: float) -> None:
    """Check that the file system at a path answers.

    A file, directory or block device is opened, and a byte is read. It is also an answer that the
    path does not exist. A file system that waits for no server is not asked.

    Args:
        path: The path.
        seconds: Seconds for each call to return.

    Raises:
        DeadlineExceeded: The file system does not answer.
    """
    if not is_local(path):
        _check(path, syscalls.AT_FDCWD, os.fsencode(path), os.fsencode(path), seconds)


def check_open(path: str, fd: int, *, seconds: float) -> None:
    """Check the same as `check_answers` for an open file (O_PATH).

    Args:
        path: The file's name in errors.
        fd: The descriptor.
        seconds: Seconds for each call to return.

    Raises:
        DeadlineExceeded: The file system does not answer.
    """
    if not _is_local(fd):
        _check(path, fd, b"", b"/proc/self/fd/%d" % fd, seconds)


def _check(path: str, fd: int, name: bytes, raw: bytes, seconds: float) -> None:
    kept = [fd] if fd >= 0 else []
    calls = make_closing_batch(kept)
    status = calls.add_buffer(256)
    flags = _AT_STATX_FORCE_SYNC | (0 if name else syscalls.AT_EMPTY_PATH)
    calls.add("statx", fd, name, flags, 0x7FF, status)
    if not _answers(path, calls, seconds):
        return
    mode = int.from_bytes(status.data[28:30], sys.byteorder)  # stx_mode
    # Opening another kind of file has side effects.
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        calls = make_closing_batch(kept)
        calls.add("openat", syscalls.AT_FDCWD, raw, os.O_RDONLY | os.O_NONBLOCK)
        calls.add("read", lowest_free(kept), calls.add_buffer(1), 1)
        _answers(path, calls, seconds)


def _answers(path: str, calls: CallBatch, seconds: float) -> bool:
    """Check that the calls succeed; a failure is an answer too.

    Raises:
        DeadlineExceeded: A call has not returned in time.
    """
    try:
        run_batch(path, calls, seconds=seconds)
    except DeadlineExceeded:
        raise
    except OSError:
        return False
    return True


def wchan(pid: int) -> str:
    """Return the kernel function in which a process waits; empty if that is unknown."""
    try:
        with open(f"/proc/{pid}/wchan", encoding="utf-8") as file:
            return file.read().strip("0\n")
    except OSError:
        return ""


def is_local(path: str) -> bool:
    """Check that a path leads to a file system that waits for no server.

    Only the kernel's look-up cache is used (RESOLVE_CACHED, Linux 5.12), so the check never waits.
    """
    found = Descriptors()
    try:
        fd = syscalls.openat2(
            syscalls.AT_FDCWD, path, os.O_PATH, syscalls.RESOLVE_CACHED, owner=found
        )
    except OSError:
        return False
    with found:
        return _is_local(fd)


def _is_local(fd: int) -> bool:
    status = syscalls.statx("", fd)
    return os.major(status.dev) != 0 or fstype(fd, status.mnt_id) in _LOCAL


def cached_device(path: str) -> int:
    """Return the device of the file system that a path leads to, from the look-up cache alone.

    Returns:
        The device number as in `os.stat`; 0 if the cache does not know the path.
    """
    try:
        fd = syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH, syscalls.RESOLVE_CACHED)
    except OSError:
        return 0
    try:
        return syscalls.statx("", fd).dev
    except OSError:
        return 0
    finally:
        os.close(fd)


def fstype(fd: int, mount_id: int) -> bytes:
    """Return the type of the file system that an open file is on.

    Args:
        fd: The descriptor.
        mount_id: The ID of the file's mount, for kernels before 6.8.
    """
    found = syscalls.fstype(fd)
    if found is None:
        entry = mountinfo.by_id(mountinfo.pieces(), mount_id)
        found = entry.fstype if entry else b""
    return found
