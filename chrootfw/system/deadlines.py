"""System calls that may never return, because a device or a server does not answer: a child makes them.

A thread would not do: one in state D keeps its process from ending. A child can be left behind; it is killed, and ends when the
kernel lets go of it. It holds no file descriptor but those it needs, so nobody waits for a pipe or a lock because of it.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time

from chrootfw.system import call_lists, children, mounts, syscalls
from chrootfw.system.call_lists import CallList

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_AT_STATX_FORCE_SYNC = 0x2000
_TO_THE_LAST = 0xFFFFFFFF

#: How often a child is looked at, for calls that have returned, within the time that one of them may take.
_LOOKS = 10

#: Seconds for a child to finish what it has begun when nobody wants its answer any more.
_FINISHES = 1.0

#: File systems without a block device of their own that wait for no server all the same.
_LOCAL = frozenset((b"tmpfs", b"ramfs", b"devtmpfs", b"btrfs", b"bcachefs", b"zfs"))


class Overdue(OSError):
    """ETIMEDOUT: no answer came in time. ``pid``: the child that still waits for it, ``wchan``: where in the kernel."""

    pid = 0
    wchan = ""

    def describe(self) -> str:
        """Who waits, and where: ``pid 17, chrootfw's own, waits for it in request_wait_answer``."""
        return f"pid {self.pid}, chrootfw's own, waits for it in {self.wchan or 'the kernel'}; it ends when it has its answer"


def alone(keep: Iterable[int] = ()) -> CallList:
    """A list that begins with the closing of all descriptors but those in ``keep``; one that is opened has the lowest number that is free."""
    calls = CallList()
    first = 0
    for fd in sorted(keep):
        if fd > first:
            calls.add("close_range", first, fd - 1, 0)
        first = fd + 1
    calls.closes = calls.add("close_range", first, _TO_THE_LAST, 0)
    return calls


def carry_out(what: str, calls: CallList, *, seconds: float) -> None:
    """Have a child carry out a list. ``what`` says in an error what did not answer.

    Raises ``Overdue`` when a call has not returned after ``seconds``, ``OSError`` with the errno of what failed.
    """
    child = children.begin(calls)
    try:
        _wait(child, calls, seconds)
    except BaseException:
        try:
            child.wait(_FINISHES)  # ext4 that is killed in its mount(2) stays marked as to be recovered
        finally:
            child.end(0)
        raise
    if child.status is None:
        overdue = Overdue(errno.ETIMEDOUT, f"no answer within {seconds:g} s", what)
        overdue.pid, overdue.wchan = child.pid, _wchan(child.pid)
        child.end(0.1)
        raise overdue
    child.end()
    if stopped := calls.stopped_at():
        if not stopped[1]:
            raise OSError(errno.ECHILD, "the process that was to do it was ended", what)
        raise OSError(stopped[1], os.strerror(stopped[1]), what)


def _wait(child: children.Child, calls: CallList, seconds: float) -> None:
    """Until its end, or until no call has returned for so long."""
    looked = since = time.monotonic()
    progress = 0
    while child.wait(seconds / _LOOKS) is None:
        done = len(calls.names) - calls.results().count(call_lists.UNSET)
        if done != progress:
            progress, since = done, looked  # at some time since then
        looked = time.monotonic()
        if looked >= since + seconds:
            return


def check_answers(path: str, *, seconds: float) -> None:
    """See whether the file system at ``path`` answers: look at what is there and, if it is a file, a directory or a block device, open it and read a byte.

    That it does not exist is an answer too. A file system that waits for no server is not asked. Raises ``Overdue``.
    """
    if is_local(path):
        return
    raw = os.fsencode(path)
    calls = alone()
    status = calls.room(256)
    calls.add("statx", syscalls.AT_FDCWD, raw, _AT_STATX_FORCE_SYNC, 0x7FF, status.address)
    if not _answers(path, calls, seconds):
        return
    mode = int.from_bytes(status.data[28:30], sys.byteorder)  # stx_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode):  # others do something when they are opened
        calls = alone()
        calls.add("openat", syscalls.AT_FDCWD, raw, os.O_RDONLY | os.O_NONBLOCK)  # 0: no other is open
        calls.add("read", 0, calls.room(1).address, 1)
        _answers(path, calls, seconds)


def _answers(path: str, calls: CallList, seconds: float) -> bool:
    """Whether the calls succeed; that they fail is an answer too. Raises ``Overdue``."""
    try:
        carry_out(path, calls, seconds=seconds)
    except Overdue:
        raise
    except OSError:
        return False
    return True


def _wchan(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/wchan", encoding="utf-8") as file:
            return file.read().strip("0\n")
    except OSError:
        return ""


def is_local(path: str) -> bool:
    """Whether the path leads, by what the kernel's look-up cache knows alone, to a file system that waits for no server."""
    try:
        fd = syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH, syscalls.RESOLVE_CACHED)
    except OSError:
        return False
    try:
        status = syscalls.statx("", fd)
        return os.major(status.dev) != 0 or _fstype(fd, status.mnt_id) in _LOCAL
    finally:
        os.close(fd)


def _fstype(fd: int, mount_id: int) -> bytes:
    found = syscalls.fstype(fd)
    if found is None:
        entry = mounts.by_id(mounts.read_table(), mount_id)
        found = entry.fstype if entry else b""
    return found
