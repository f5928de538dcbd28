"""Start the logger of an instance, and find it again.

The logger is a process of its own on the host (`log_file`): it reads the pipe that the instance's
processes print to, and ends when no process can write to it any more. It has nothing of the
instance's open but the pipe, and it is in a cgroup of its own, so it is never taken for an own
process of the instance.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import time

from chrootfw.linux import call_batch, child, interpreter, log_file, polling, procfs
from chrootfw.linux.descriptors import Descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_UINT_MAX = 0xFFFFFFFF
_CLOSE_RANGE_CLOEXEC = 4
#: Lowest number for a descriptor that waits to be moved to its place.
_AWAY = 3
#: Bytes that a pipe can hold: what may be printed while its logger is being started again.
_PIPE_SIZE = 1 << 20
#: Seconds for the kernel to execute the logger.
_EXECUTE = 10.0
#: Seconds for the search of a pipe, of whose processes there may be many.
_SEARCH = 0.25


def make_pipe(opened: Descriptors) -> tuple[int, int]:
    """Make the pipe that an instance's processes print to.

    The end for the processes is open for reading too: a process that prints while no logger reads
    gets no SIGPIPE, and waits once the pipe is full.

    Args:
        opened: Owns both descriptors.

    Returns:
        The end that the logger reads, and the end for the processes.
    """
    reads, writes = opened.pipe()
    both = opened.open(f"/proc/self/fd/{writes}", os.O_RDWR)
    opened.close(writes)
    try:
        fcntl.fcntl(reads, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    except OSError:
        pass  # pipe-user-pages-soft (pipe(7)): a smaller pipe works too
    return reads, both


def has_writers(reads: int) -> bool:
    """Check that a process can still write to a pipe.

    Args:
        reads: The end that is read.
    """
    poller = select.poll()
    poller.register(reads, 0)
    return not polling.poll(poller, 0)


def identity(fd: int) -> int:
    """Return the inode of a pipe, which no other pipe has as long as this one exists."""
    return os.fstat(fd).st_ino


class PipeOf:
    """A pipe that a process of an instance has.

    Attributes:
        pid: The process.
        number: Its descriptor.
        inode: The pipe (`identity`).
    """

    __slots__ = ("inode", "number", "pid")

    def __init__(self, pid: int, number: int, inode: int) -> None:
        self.pid, self.number, self.inode = pid, number, inode


class Logger:
    """The process that reads an instance's pipe.

    Attributes:
        pid: The process ID.
        start_time: When it was started, in clock ticks since the boot: another process may have
            the pid later.
    """

    __slots__ = ("pid", "start_time")

    def __init__(self, pid: int, start_time: int) -> None:
        self.pid = pid
        self.start_time = start_time

    def wait_for_end(self, seconds: float) -> bool:
        """Wait until the process has ended.

        Args:
            seconds: Seconds to wait.

        Returns:
            Whether it has ended.
        """
        with Descriptors() as opened:
            pidfd = self._open(opened)
            return pidfd < 0 or child.is_ready(pidfd, seconds)

    def kill(self) -> None:
        """Send KILL to the process, if it is still the logger."""
        with Descriptors() as opened:
            pidfd = self._open(opened)
            if pidfd >= 0:
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it has just ended

    def _open(self, opened: Descriptors) -> int:
        """Open a pidfd of the process; -1 if it has ended."""
        try:
            pidfd = opened.take(os.pidfd_open, self.pid)
        except OSError:
            return -1
        return pidfd if procfs.start_time(self.pid) == self.start_time else -1


def start(
    pipe: int | PipeOf,
    arguments: Sequence[str],
    cgroup: str | None,
    *,
    stream: int | None = None,
) -> Logger:
    """Start the logger for a pipe.

    Args:
        pipe: The end of the pipe that is read; or a process that has the pipe, whose descriptor
            the logger copies (pidfd_getfd(2)) and opens again.
        arguments: The directory, the name and the size of the log (`log_file`); empty for a stream.
        cgroup: The v2 cgroup to start in; `None` for the caller's.
        stream: A stream of the journal, in place of a log.

    Returns:
        The logger. It runs on when the caller ends.

    Raises:
        OSError: It cannot be started.
        NotSupported: This process has no interpreter that it could execute.
    """
    path = interpreter.path()
    with Descriptors() as opened:
        reports, held = opened.pipe()
        null = opened.open(os.devnull, os.O_RDWR)
        null = opened.take(fcntl.fcntl, null, fcntl.F_DUPFD_CLOEXEC, _AWAY)
        source: int | call_batch.Result
        if isinstance(pipe, PipeOf):
            given = opened.take(os.pidfd_open, pipe.pid)
        else:
            given = source = opened.take(fcntl.fcntl, pipe, fcntl.F_DUPFD_CLOEXEC, _AWAY)
        output = null
        if stream is not None:
            output = opened.take(fcntl.fcntl, stream, fcntl.F_DUPFD_CLOEXEC, _AWAY)
        calls = call_batch.CallBatch([given, null, output, held])
        if isinstance(pipe, PipeOf):
            source = call_batch.Result(calls.add("pidfd_getfd", given, pipe.number, 0))
            arguments = (log_file.AGAIN, str(pipe.inode), *arguments)
        calls.add("setsid")
        calls.add("chdir", b"/")
        calls.add("dup3", source, 0, 0)
        calls.add("dup3", output, 1, 0)
        calls.add("dup3", null, 2, 0)
        calls.add("close_range", _AWAY, _UINT_MAX, _CLOSE_RANGE_CLOEXEC)
        calls.add(
            "execve", os.fsencode(path),
            calls.add_strings([path, "-I", "-S", "-B", log_file.__file__, *arguments]),
            calls.add_strings(f"{key}={value}" for key, value in interpreter.environment().items()),
        )  # fmt: skip
        cgroup_fd = -1 if cgroup is None else opened.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        process = child.begin(calls, cgroup_fd)
        try:
            opened.close(held)  # only the child has it now, until its execve
            if not child.is_ready(reports, _EXECUTE):
                raise OSError(errno.ETIMEDOUT, "the logger is not executed in time")
            call, code = calls.stopped_at() or (b"", 0)
            if code or process.wait_for_end(0):
                raise OSError(code or errno.ECHILD, f"{call.decode()}: {os.strerror(code)}")
            found = Logger(process.pid, procfs.start_time(process.pid))
            process.forget_batch()
            child.leave(process)
        except BaseException:
            process.end()
            raise
    return found


def find_pipe(pids: Iterable[int], pipe: int) -> PipeOf | None:
    """Find a process of an instance whose standard output or error is a pipe.

    Only names are read here. The logger itself opens the pipe, which may wait for a process that
    keeps the pipe locked.

    Args:
        pids: The own processes of the instance.
        pipe: The pipe (`identity`).

    Returns:
        The pipe; `None` if none of them has it, or it was not found in time.
    """
    wanted = f"pipe:[{pipe}]"
    deadline = time.monotonic() + _SEARCH
    for pid in pids:
        if time.monotonic() > deadline:
            return None
        for number in (1, 2):
            try:
                if os.readlink(f"/proc/{pid}/fd/{number}") == wanted:
                    return PipeOf(pid, number, pipe)
            except OSError:
                continue  # it has ended, or closed it
    return None
