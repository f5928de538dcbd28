"""Use the pipes and terminals that processes of an instance have, in workers.

The kernel guards a pipe with one lock, and a process keeps it for as long as its own call sleeps:
splice(2) from a socket that says nothing, or a write(2) from memory whose file system does not
answer. A process that then reads, writes or opens the pipe, asks how much is in it, or closes its
last descriptor, waits in state D, where not even KILL ends it. What does not wait: poll(2),
fstat(2), F_SETFL, and to close a descriptor of which another process has a copy.

So this process does only the latter. A worker has copies of both ends until this process has closed
its own, and passes on the bytes through a pipe that no other process has.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
import termios
import time

from chrootfw.linux import child, deadlines, polling, procfs
from chrootfw.linux.call_batch import ZEROS, Buffer, CallBatch, Result
from chrootfw.linux.descriptors import Descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 1 << 16
#: How often a pipe is read after its command's exit: as much as it can hold (pipe(7)).
_DRAIN_MAX = 16
#: Seconds for a worker to read what is left in a pipe, and for one in state D.
_DRAINS, _WAITS = 10.0, 1.0
_TURN = 0.1
#: The words for the worker of `RelayedInput`.
_WRITE, _COUNT, _END = b"write   ", b"count   ", b"end     "
_MESSAGES = (socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
_INT = 4
#: Seconds for a worker to exit.
_EXITS = 2.0
#: struct pollfd.
_POLLED = struct.Struct("=ihh")


class _Worker:
    """A child that carries out a batch, and the descriptors around it.

    Attributes:
        shared: The ends of the pipe that processes of the instance have.
        own: The descriptors that only this process and the worker have.
        left: Where the worker waits, if it was left behind; empty otherwise.
    """

    def __init__(self, shared: Descriptors) -> None:
        self.shared = shared
        self.own = Descriptors()
        self.left = ""
        self._child: child.Child | None = None
        self._tells = -1

    def _begin(self, calls: CallBatch, theirs: Descriptors) -> None:
        with theirs:  # the worker has copies
            self._child = child.begin(calls)

    def close(self) -> None:
        """Close the descriptors, and end the worker or leave it behind."""
        worker, self._child = self._child, None
        self.shared.close_all()  # not the last ones: the worker has copies
        self.own.close_all()
        if worker is not None and not worker.end(0.1 if self.left else _EXITS):
            self._note(worker)

    def _tell(self) -> bool:
        """Let the worker go on; return false if it was ended, such as for want of memory."""
        try:
            os.write(self._tells, b".")
        except BrokenPipeError:
            return False
        return True

    def _answers(self, poller: select.poll) -> bool:
        """Wait for what the worker says; return false if it waits in state D instead."""
        assert self._child is not None
        begun = last = time.monotonic()
        while time.monotonic() < min(begun + _DRAINS, last + _WAITS):
            if polling.is_ready(poller, _TURN):
                return True
            if procfs.state(self._child.pid)[0] != "D":
                last = time.monotonic()
        return False

    def _note(self, worker: child.Child) -> None:
        self.left = (
            f"pid {worker.pid}, chrootfw's own, waits for it in"
            f" {deadlines.wchan(worker.pid) or 'the kernel'}; it ends when the process inside that"
            " keeps it locked has ended"
        )


class OutputWorker(_Worker):
    """A worker that reads what processes print to a pipe.

    Attributes:
        reads: Where this process reads it, without waiting.
        source: The end of the processes' pipe that the worker reads.
        inside: The end that the processes have.
    """

    def __init__(self, shared: Descriptors, source: int, inside: int) -> None:
        """Start the worker.

        Args:
            shared: Owns both ends, which no other process has yet; it belongs to this object.
            source: The end that is read.
            inside: The end for the processes.

        Raises:
            OSError: The kernel refused to create the process.
        """
        super().__init__(shared)
        self.source, self.inside = source, inside
        os.set_blocking(source, False)
        with Descriptors() as theirs:
            self.reads, gives = self.own.pipe()
            hears, self._tells = self.own.pipe()
            for fd in (gives, hears):
                self.own.move(fd, theirs)
            os.set_blocking(self.reads, False)
            self._begin(_copy_out(source, inside, gives, hears), theirs)

    def finish(self, take: Callable[[], bytes | None]) -> bool:
        """Read what is left in the pipe, at most as much as it can hold, and close `inside`.

        Args:
            take: Reads once from `reads`, and returns what came: `b""` at the end, `None` if
                nothing did.

        Returns:
            Whether it could be read. If not, the pipe is locked, and the worker waits for it; or
            the worker was ended.
        """
        assert self._child is not None
        self.shared.close(self.inside)
        is_there = self._tell()
        if not is_there:
            self.left = f"pid {self._child.pid}, chrootfw's own, which read it, was ended"
        poller = select.poll()
        poller.register(self.reads, select.POLLIN)
        while self._answers(poller):
            if take() == b"":
                return is_there
        self._note(self._child)
        return False


class InputWorker(_Worker):
    """A worker that writes the input of a process to its pipe.

    Attributes:
        writes: Where this process writes it, without waiting; closed, it is the input's end.
        inside: The end that the process has.
    """

    def __init__(self, shared: Descriptors, inside: int, sink: int) -> None:
        """Start the worker.

        Args:
            shared: Owns both ends, which no other process has yet; it belongs to this object.
            inside: The end for the process.
            sink: The end that is written to.

        Raises:
            OSError: The kernel refused to create the process.
        """
        super().__init__(shared)
        self.inside = inside
        with Descriptors() as theirs:
            takes, self.writes = self.own.pipe()
            self.own.move(takes, theirs)
            os.set_blocking(self.writes, False)
            self._begin(_copy_in(takes, inside, sink), theirs)
        shared.close(sink)  # the worker's copy is the last one: its exit is the input's end


class RelayedInput(_Worker):
    """A worker that writes the input of a process, and counts what the process has not read.

    Attributes:
        inside: The end that the process has.
        sink: The end that is written to, to be polled and not used otherwise; -1 at the end.
    """

    def __init__(self, shared: Descriptors, inside: int, sink: int) -> None:
        """Start the worker.

        Args:
            shared: Owns both ends, which no other process has yet; it belongs to this object.
            inside: The end for the process.
            sink: The end that is written to.

        Raises:
            OSError: The kernel refused to create the process.
        """
        super().__init__(shared)
        self.inside, self.sink = inside, sink
        os.set_blocking(sink, False)
        with Descriptors() as theirs:
            self.own.extend(map(socket.socket.detach, socket.socketpair(*_MESSAGES)))
            self._asks, hears = self.own[-2:]
            self.own.move(hears, theirs)
            self._calls = deadlines.make_closing_batch([inside, sink, hears])
            self._written = _write_and_count(self._calls, inside, sink, hears)
            self._begin(self._calls, theirs)

    def write(self, data: bytes) -> int:
        """Write what the pipe takes now; return how many bytes that was."""
        if self.sink < 0 or self._ask(_WRITE, data) < 0:
            return 0
        return max(0, self._calls.result(self._written))

    def unread(self) -> int:
        """Return how many bytes are in the pipe; 0 if it is locked."""
        return max(0, self._ask(_COUNT))

    def end(self) -> None:
        """Close `sink`: the process comes to the end of its input."""
        self.shared.close(self.sink)
        self.sink = -1
        self._ask(_END)

    def _ask(self, word: bytes, data: bytes = b".") -> int:
        """Let the worker do something; return how much is in the pipe, -1 if it does not answer."""
        if self.left or self._child is None:
            return -1
        poller = select.poll()
        poller.register(self._asks, select.POLLIN)
        try:
            os.write(self._asks, word)
            os.write(self._asks, data)
            if not self._answers(poller):
                self._note(self._child)
                return -1
            if answer := os.read(self._asks, _INT):
                return int.from_bytes(answer, sys.byteorder)
        except OSError:
            pass
        self.left = f"pid {self._child.pid}, chrootfw's own, which wrote it, was ended"
        return -1


def _write_and_count(calls: CallBatch, inside: int, sink: int, hears: int) -> int:
    """Append the calls of `RelayedInput`: a word, and then data, come as two messages.

    Returns:
        The index of the write.
    """
    word, chunk = calls.add_buffer(len(_WRITE)), calls.add_buffer(_CHUNK)
    waiting = calls.add_buffer(_INT)
    first = calls.add("read", hears, word, len(_WRITE))
    read = calls.add("read", hears, chunk, _CHUNK)
    is_write = calls.compare(word, _as_number(_WRITE))
    written = calls.add("write", sink, chunk, Result(read), ignore=(errno.EAGAIN, errno.EPIPE))
    calls.skip(is_write, is_write + 1)
    is_end = calls.compare(word, _as_number(_END))
    calls.add("close", sink)
    calls.skip(is_end, is_end + 1)
    calls.add("ioctl", inside, termios.FIONREAD, waiting)
    calls.add("write", hears, waiting, _INT)  # fails when this process has ended
    _go_back(calls, first)
    return written


class LastClose(_Worker):
    """A worker that has copies of descriptors, so that no close of this process's is the last one.

    A process inside that writes to its terminal from memory which does not answer keeps the close
    of the other end waiting.
    """

    def __init__(self, shared: Descriptors, first: int) -> None:
        """Start the worker.

        Args:
            shared: The descriptors, which no process of the instance has yet; they belong to this
                object.
            first: The one that `close_first` closes.

        Raises:
            OSError: The kernel refused to create the process.
        """
        super().__init__(shared)
        self._first = first
        with Descriptors() as theirs:
            hears, self._tells = self.own.pipe()
            self.own.move(hears, theirs)
            calls = deadlines.make_closing_batch([*shared, hears])
            word = calls.add_buffer(1)
            calls.add("read", hears, word, 1)
            calls.add("close", first)
            calls.add("read", hears, word, 1)
            self._begin(calls, theirs)

    def close_first(self) -> None:
        """Close the first descriptor here, and then in the worker."""
        self.shared.close(self._first)
        self._tell()


def _copy_out(source: int, inside: int, gives: int, hears: int) -> CallBatch:
    """Make the batch that copies from `source` to `gives`, until a word comes or this process ends.

    It then reads what is left, closes `inside` and `gives`, and exits when `hears` comes to its
    end.
    """
    calls = deadlines.make_closing_batch([source, inside, gives, hears])
    polled = calls.add_buffer(2 * _POLLED.size)
    polled.write(_POLLED.pack(source, select.POLLIN, 0))
    polled.write(_POLLED.pack(hears, select.POLLIN, 0), _POLLED.size)
    chunk = calls.add_buffer(_CHUNK)
    first = calls.add("ppoll", polled, 2, None, None, 0)
    no_word = calls.compare(
        polled.at(_POLLED.size), _as_number(_POLLED.pack(hears, select.POLLIN, 0))
    )
    read = _add_copy(calls, source, chunk, gives)
    calls.repeat(read, first)  # EAGAIN: another process has read it
    _go_back(calls, first)
    calls.skip(no_word, no_word + 1)
    calls.add("read", hears, chunk, 1)
    begin = len(calls.names)
    for _ in range(_DRAIN_MAX):
        _add_copy(calls, source, chunk, gives)
    calls.skip(begin)
    calls.add("close", inside)
    calls.add("close", gives)
    calls.add("read", hears, chunk, 1)
    return calls


def _copy_in(takes: int, inside: int, sink: int) -> CallBatch:
    """Make the batch that copies from `takes` to `sink`, until the input's end."""
    calls = deadlines.make_closing_batch([takes, inside, sink])
    polled = calls.add_buffer(_POLLED.size, _POLLED.pack(takes, select.POLLIN, 0))
    chunk = calls.add_buffer(_CHUNK)
    calls.add("ppoll", polled, 1, None, None, 0)
    calls.add("close", inside)  # so that it is seen when the process closes its own
    first = calls.add("ppoll", polled, 1, None, None, 0)
    at_end = calls.compare(polled, _as_number(_POLLED.pack(takes, select.POLLIN, select.POLLHUP)))
    calls.compare(ZEROS, 1)  # the end
    calls.skip(at_end, at_end + 1)
    _add_copy(calls, takes, chunk, sink)
    _go_back(calls, first)
    return calls


def _add_copy(calls: CallBatch, source: int, chunk: Buffer, sink: int) -> int:
    """Append a read, and the write of what it read; return the index of the read."""
    read = calls.add("read", source, chunk, _CHUNK)
    calls.add("write", sink, chunk, Result(read))
    return read


def _go_back(calls: CallBatch, first: int) -> None:
    """Append an operation that fails, after which the batch continues with an earlier one."""
    calls.repeat(calls.compare(ZEROS, 1), first)


def _as_number(content: bytes) -> int:
    return int.from_bytes(content, sys.byteorder)
