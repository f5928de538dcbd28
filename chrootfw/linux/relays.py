"""Relay the caller's standard streams through pipes while an isolated command runs.

A file, a terminal or a pipe that is passed as standard input or output could be opened again with
other rights by `/proc/self/fd/N`: a pipe to read from is then written to. Flags such as O_NONBLOCK
stay set for everyone who shares a descriptor, and a terminal or a socket could be read after the
command has exited. So the command gets pipes of its own. Only the null device is replaced by the
process's own (`isolated_program`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import stat

from chrootfw.linux import isolated_child, polling, pty, syscalls
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.pipe_workers import OutputWorker, RelayedInput
from chrootfw.planning.privileges import RefusalWatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_CHUNK = 65536
#: Seconds between checks of whether the caller's terminal may be read.
_BACKGROUND = 0.2
#: Seconds between checks of whether a command has read its input, if its pipe cannot report that.
_CROWDED = 0.01
#: Errnos of a pipe or socket whose other end is closed.
_UNREAD = (errno.EPIPE, errno.ECONNRESET)


def in_foreground(fd: int) -> bool:
    """Check that this process may read a terminal without being stopped for it."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # not the terminal of this session
        return True


class _Stream:
    """A relay from one descriptor to another.

    Attributes:
        source: The descriptor to read from; -1 at the end.
        sink: The descriptor to write to; -1 at the end.
        pending: Bytes that were read and not yet written.
        given: The caller's descriptor.
        inside: The end of the pipe that the command has.
        worker: The worker that uses that pipe, which the command can lock.
        socket: The caller's socket, if it is one.
    """

    __slots__ = (
        "given",
        "inside",
        "is_input",
        "is_terminal",
        "opened",
        "pending",
        "refusals",
        "relayed",
        "sink",
        "socket",
        "source",
        "worker",
    )

    def __init__(
        self,
        opened: Descriptors,
        source: int,
        sink: int,
        given: int,
        worker: RelayedInput | OutputWorker,
    ) -> None:
        self.opened = opened
        self.source, self.sink, self.given, self.inside = source, sink, given, worker.inside
        self.worker = worker
        self.is_input = is_input = isinstance(worker, RelayedInput)
        self.pending = b""
        self.relayed = 0
        self.refusals = RefusalWatch()
        self.is_terminal = is_input and os.isatty(source)
        self.socket: socket.socket | None = None

    def waits_for(self) -> tuple[int, int]:
        """Return the descriptor and the event of poll(2) to wait for; -1 for none at present."""
        if self.pending:
            return self.sink, select.POLLOUT
        if self.source >= 0 and (not self.is_terminal or in_foreground(self.source)):
            return self.source, select.POLLIN
        return -1, 0

    def waits_at_most(self) -> float | None:
        """Return the seconds after which to call `waits_for` again although nothing happened."""
        return _BACKGROUND if self.is_terminal and self.source >= 0 else None

    def proceed(self) -> None:
        """Do what `waits_for` has waited for."""
        if self.pending:
            self.give()
        else:
            self.take()

    def take(self) -> bool:
        """Read once; return false at the end, or if nothing is available now."""
        try:
            self.pending = self.read()
        except BlockingIOError:
            return False
        except OSError:  # a terminal that was hung up; what cannot be read counts as empty
            self.pending = b""
        if not self.pending:
            self.opened.close(self.source)
            self.source = -1
            if self.is_input:
                self.end()
        elif not self.is_input:
            self.refusals(self.pending)
        return bool(self.pending)

    def read(self) -> bytes:
        """Read from the source."""
        return os.read(self.source, _CHUNK)

    def give(self) -> None:
        """Write once."""
        try:
            if isinstance(self.worker, RelayedInput):
                written = self._give_to(self.worker)
            elif self.socket is not None:
                written = self.socket.send(self.pending, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            else:
                written = os.write(self.sink, self.pending)
        except BlockingIOError:
            return
        self.relayed += written
        self.pending = self.pending[written:]

    def _give_to(self, worker: RelayedInput) -> int:
        written = worker.write(self.pending)
        if worker.left:  # the pipe is locked, or the worker was ended: nothing more goes in
            self.source = -1
            self.end()
        return written

    def end(self) -> None:
        """Close the sink, so that the other side sees the end."""
        if isinstance(self.worker, RelayedInput):
            self.worker.end()
        else:
            self.opened.close(self.sink)
        self.sink = -1

    def unread(self) -> int:
        """Return how much of what was relayed the command has not read.

        The command can write to the pipe itself: it is no more than what was relayed.
        """
        assert isinstance(self.worker, RelayedInput)
        return min(self.worker.unread(), self.relayed)

    def give_back(self) -> None:
        """Set the caller's file back to what the command has not read.

        The caller's next command reads it then.
        """
        if self.is_input and stat.S_ISREG(os.fstat(self.given).st_mode):
            os.lseek(self.given, -self.unread() - len(self.pending), os.SEEK_CUR)


class _Peeked(_Stream):
    """A relay of input that cannot be set back: a pipe or a socket.

    The next bytes are copied, and taken from the caller's only when the command has read them:
    what it does not read is there for the caller's next command. The command's pipe holds one
    page, so that poll(2) reports when the command has read all of it.

    Attributes:
        relayed: Bytes that were written, and not yet taken from the caller's.
        scratch: The ends of a pipe that a copy goes through; empty for a socket.
    """

    __slots__ = ("is_crowded", "scratch", "size")

    def __init__(
        self, opened: Descriptors, source: int, sink: int, given: int, worker: RelayedInput
    ) -> None:
        super().__init__(opened, source, sink, given, worker)
        self.size = fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 1)
        self.is_crowded = False
        self.scratch: tuple[int, ...] = ()
        if stat.S_ISSOCK(os.fstat(source).st_mode):
            return
        self.scratch = opened.pipe()

    def waits_for(self) -> tuple[int, int]:
        if self.is_crowded:
            self.settle()
        if self.is_crowded:
            return -1, 0
        if self.relayed:
            return self.sink, select.POLLOUT
        return super().waits_for()

    def waits_at_most(self) -> float | None:
        return _CROWDED if self.is_crowded else None

    def proceed(self) -> None:
        if self.relayed and not self.pending:
            self.settle()
        else:
            super().proceed()

    def read(self) -> bytes:
        if self.socket is not None:
            return self.socket.recv(self.size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        found = syscalls.tee(self.source, self.scratch[1], self.size)
        return os.read(self.scratch[0], found) if found else b""

    def settle(self) -> None:
        """Take from the caller's what the command has read, if it has read everything."""
        # A command can make its pipe larger, or fill it: poll(2) then reports nothing useful.
        self.is_crowded = self.unread() > 0
        if not self.is_crowded:
            self.give_back()

    def give_back(self) -> None:
        """Take from the caller's what the command has read, and leave it the rest."""
        taken = self.relayed - self.unread()
        self.relayed -= taken
        try:
            while taken > 0 and self.source >= 0:
                found = (
                    self.socket.recv(taken, socket.MSG_DONTWAIT)
                    if self.socket is not None
                    else os.read(self.source, taken)
                )
                taken -= len(found) or taken
        except OSError:  # another process has read it meanwhile
            pass


class Relays:
    """Three standard descriptors for a child, in place of the caller's. Close it when done.

    Attributes:
        childs: The descriptors.
    """

    def __init__(self, stdio: Sequence[int], *, own: Collection[int] = ()) -> None:
        """Make the pipes.

        Args:
            stdio: The caller's three standard descriptors.
            own: Those of them that are pipes of chrootfw's own, made for this command only.

        Raises:
            OSError: One is a directory, which would be a way out of the root, or a socket that is
                not a stream, or not open in its direction, or a pipe cannot be made.
        """
        self.childs = list(stdio)
        #: Where workers wait that were left behind.
        self.left: list[str] = []
        self._workers: list[RelayedInput | OutputWorker] = []
        #: The output that could not be written to, and the error.
        self.failed: tuple[int, OSError] | None = None
        #: Whether the command has printed that something is not permitted (EPERM).
        self.has_refusal = False
        self._outputs: list[int] = []
        self._streams: list[_Stream] = []
        self._sockets: list[socket.socket] = []
        self._opened = Descriptors()
        self._wake = self._opened.take(os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            for place, fd in enumerate(stdio):
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    raise OSError(
                        errno.EISDIR,
                        "a directory of the host as standard input or output "
                        "would be a way out of the root",
                    )
                if fd not in own and not isolated_child.is_null(fd):
                    _check_direction(place, fd)
                    self._replace(place, fd)
        except BaseException:
            self.close()
            raise

    def _replace(self, place: int, fd: int) -> None:
        if (
            place == 2
            and self.childs[1] in self._outputs
            and os.path.sameopenfile(fd, self._streams[-1].given)
        ):
            self.childs[2] = self.childs[1]  # relayed in the order in which it was written
            return
        connection = self._open_socket(fd)
        shared = Descriptors()
        reads, writes = shared.pipe()
        stream: _Stream
        if place == 0:
            feeder = RelayedInput(shared, reads, writes)
            self._workers.append(feeder)
            if connection is not None:
                stream = _Peeked(self._opened, connection.fileno(), writes, fd, feeder)
            else:
                source = self._opened.take(pty.reopen, fd, os.O_RDONLY)
                kind = _Peeked if stat.S_ISFIFO(os.fstat(fd).st_mode) else _Stream
                stream = kind(self._opened, source, writes, fd, feeder)
            self.childs[place] = reads
        else:
            # Open for reading too: a process that outlives the command then gets no SIGPIPE after
            # the other end is closed.
            both = shared.open(f"/proc/thread-self/fd/{writes}", os.O_RDWR)
            shared.close(writes)
            reader = OutputWorker(shared, reads, both)
            self._workers.append(reader)
            sink = (
                connection.fileno()
                if connection is not None
                else self._opened.take(pty.reopen, fd, os.O_WRONLY)
            )
            stream = _Stream(self._opened, reader.reads, sink, fd, reader)
            self._outputs.append(both)
            self.childs[place] = both
        stream.socket = connection
        self._streams.append(stream)

    def _open_socket(self, fd: int) -> socket.socket | None:
        """Duplicate a descriptor if it is a socket.

        Raises:
            OSError: The socket has no stream of bytes that could be relayed.
        """
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return None
        self._sockets.extend(map(_duplicate, (fd,)))
        connection = self._sockets[-1]
        if connection.type != socket.SOCK_STREAM or connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            raise OSError(
                errno.ESOCKTNOSUPPORT,
                "a socket of the host that is not a connected stream as standard input or output "
                "would be a way out of the root, and cannot be relayed",
            )
        return connection

    def run(self, pidfd: int) -> None:
        """Relay until a process exits or `stop` is called, then relay what its outputs contain."""
        while self._turn(pidfd):
            pass
        for fd in self._outputs:
            # First non-blocking, then drained: a process that outlives the command and sleeps on a
            # full pipe wakes up with EAGAIN.
            _set_nonblocking(fd)
        for stream in self._streams:
            if not stream.is_input:
                self._drain(stream)
        self.has_refusal = any(stream.refusals.has_seen for stream in self._streams)

    def _turn(self, pidfd: int) -> bool:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        waits: list[float] = []
        waiting: dict[int, _Stream] = {}
        for stream in self._streams:
            fd, events = stream.waits_for()
            if fd >= 0:
                poller.register(fd, events)
                waiting[fd] = stream
            elif (seconds := stream.waits_at_most()) is not None:
                waits.append(seconds)
        ready = {fd for fd, _ in polling.poll(poller, min(waits, default=None))}
        for fd, stream in waiting.items():
            if fd in ready:
                try:
                    stream.proceed()
                except OSError as error:
                    self._fail(stream, error, pidfd)
        return pidfd not in ready and self._wake not in ready

    def _fail(self, stream: _Stream, error: OSError, pidfd: int) -> None:
        """Report to the command that an output cannot be written, and discard further output.

        The report is SIGPIPE. If no process reads the output any more, what ignores SIGPIPE gets
        EAGAIN. (EPIPE is not possible: its own descriptor is open for reading, too.)
        """
        if error.errno in _UNREAD:
            _set_nonblocking(stream.inside)
            stream.take()  # wakes up what sleeps on a full pipe
            stream.source = -1
        else:
            self.failed = self.failed or (stream.given, error)
        stream.end()
        stream.sink = self._opened.open("/dev/null", os.O_WRONLY)
        stream.pending = b""
        stream.socket = None
        if pidfd >= 0:
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGPIPE)
            except ProcessLookupError:
                pass

    def _drain(self, stream: _Stream) -> None:
        def take() -> bytes | None:
            if not self._finish_pending(stream) or stream.source < 0:
                return b""
            if stream.take():
                taken = stream.pending  # which the next line empties
                return taken if self._finish_pending(stream) else b""
            return None if stream.source >= 0 else b""

        if stream.source >= 0 and self._finish_pending(stream):
            assert isinstance(stream.worker, OutputWorker)
            stream.worker.finish(take)

    def _finish_pending(self, stream: _Stream) -> bool:
        """Write what was read; return false if `stop` was called and nothing takes it."""
        while stream.pending:
            poller = select.poll()
            poller.register(stream.sink, select.POLLOUT)
            poller.register(self._wake, select.POLLIN)
            ready = {fd for fd, _ in polling.poll(poller, None)}
            if self._wake in ready and stream.sink not in ready:
                return False
            if stream.sink not in ready:
                continue
            try:
                stream.give()
            except OSError as error:
                self._fail(stream, error, -1)
        return True

    def stop(self) -> None:
        """End `run`, from another thread or a signal handler.

        An output that takes nothing is no longer waited for.
        """
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close all descriptors, and give back unread input."""
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.give_back()
        for worker in self._workers:
            worker.close()
            self.left += [worker.left] if worker.left else []
        self._workers.clear()
        for connection in self._sockets:
            connection.close()
        self._opened.close_all()


def _check_direction(place: int, fd: int) -> None:
    """Check that a standard descriptor is open for reading or writing, as its place says.

    Raises:
        OSError: It is not.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    wanted = os.O_WRONLY if place else os.O_RDONLY
    if flags & os.O_PATH or flags & os.O_ACCMODE not in (wanted, os.O_RDWR):
        name = ("input", "output", "error")[place]
        raise OSError(
            errno.EBADF,
            f"the standard {name} is not open for {'writing' if place else 'reading'}",
        )


def _duplicate(fd: int) -> socket.socket:
    return socket.socket(fileno=os.dup(fd))


def _set_nonblocking(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR | os.O_NONBLOCK)
