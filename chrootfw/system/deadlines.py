"""System calls that may never return, because a device or a server does not answer: a child makes them.

A thread would not do: one in state D keeps its process from ending. A child can be left behind; it is killed, and ends when the
kernel lets go of it. It holds no file descriptor but those it needs, so nobody waits for a pipe or a lock because of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat

from chrootfw.system import spawn, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_AT_STATX_FORCE_SYNC = 0x2000

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


def call(what: str, body: Callable[[], int], *, seconds: float, keep: Sequence[int] = ()) -> int:
    """What ``body`` returns in a child: a number from 0 up, or a negative errno, which is raised as ``OSError``.

    ``body`` calls nothing that gives back the interpreter's lock, so only ``spawn.CALLS``, and finds open only the
    descriptors in ``keep``. ``what`` says in an error what did not answer. Raises ``Overdue`` after ``seconds``.
    """
    for patience in spawn.ATTEMPTS:
        child, read_fd = _begin(body, keep)
        try:
            # As in spawn: a child that does not even begin has the interpreter in a bad state, and another one is made.
            begun = _ready(read_fd, patience) and os.read(read_fd, 1)
            spawn.has_no_copies(child)
            answer = os.read(read_fd, 64) if begun and _ready(read_fd, seconds) else None
        except BaseException:
            try:
                child.wait(_FINISHES)  # ext4 that is killed in its mount(2) stays marked as to be recovered
            finally:
                child.end(0)
            raise
        finally:
            os.close(read_fd)
        if begun:
            return _result(child, what, answer, seconds)
        child.end()
    raise OSError(errno.EAGAIN, "no process could be made for it", what)


def _begin(body: Callable[[], int], keep: Sequence[int]) -> tuple[spawn.Child, int]:
    """The child, and the pipe in which it says that it begins, and then its result."""
    read_fd, tell = os.pipe2(os.O_CLOEXEC)
    try:
        return spawn.clone(lambda: _tell(tell, body, sorted({tell, *keep}))), read_fd
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(tell)


def _ready(fd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def _result(child: spawn.Child, what: str, answer: bytes | None, seconds: float) -> int:
    if answer is None:
        overdue = Overdue(errno.ETIMEDOUT, f"no answer within {seconds:g} s", what)
        overdue.pid, overdue.wchan = child.pid, _wchan(child.pid)
        child.end(0.1)
        raise overdue
    child.end()
    if not answer:
        raise OSError(errno.ECHILD, "the process that was to do it was ended", what)
    result = int(answer)
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def _tell(tell: int, body: Callable[[], int], keep: list[int]) -> None:
    """The child's side: nothing else open, the call, its result into the pipe."""
    first = 0
    for fd in keep:
        if fd > first:
            spawn.CALLS.syscall(spawn.CLOSE_RANGE, first, fd - 1, 0)
        first = fd + 1
    spawn.CALLS.syscall(spawn.CLOSE_RANGE, first, ctypes.c_uint(0xFFFFFFFF), 0)
    spawn.CALLS.write(tell, b"+", 1)
    text = b"%d" % body()
    spawn.CALLS.write(tell, text, len(text))


def check_answers(path: str, *, seconds: float) -> None:
    """See whether the file system at ``path`` answers: look at what is there and, if it is a file, a directory or a block device, open it and read a byte.

    That it does not exist is an answer too. A file system that waits for no server is not asked. Raises ``Overdue``.
    """
    if is_local(path):
        return
    raw, status, byte = os.fsencode(path), ctypes.create_string_buffer(256), ctypes.create_string_buffer(1)

    def body() -> int:
        calls = spawn.CALLS
        if calls.statx(syscalls.AT_FDCWD, raw, _AT_STATX_FORCE_SYNC, 0x7FF, status) < 0:
            return 0
        mode = status.raw[28] | status.raw[29] << 8
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode):  # others do something when they are opened
            fd = calls.open(raw, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if fd >= 0:
                calls.read(fd, byte, 1)
        return 0

    call(path, body, seconds=seconds)


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
    finally:
        os.close(fd)
    return os.major(status.dev) != 0 or _fstype(status.mnt_id) in _LOCAL


def _fstype(mount_id: int) -> bytes:
    with open("/proc/thread-self/mountinfo", "rb") as file:
        for line in file:
            if line.startswith(b"%d " % mount_id):
                return line.partition(b" - ")[2].split(b" ")[0]
    return b""
