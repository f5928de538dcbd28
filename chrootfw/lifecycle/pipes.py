"""Connect a child's standard streams, in the shape of `subprocess.run`.

`Pipes` makes the descriptors that the child gets; `communicate` writes its input and collects its
output until it exits.
"""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

from chrootfw.cancellation import Cancellation
from chrootfw.linux import polling
from chrootfw.linux.child import Child
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.pipe_workers import InputWorker, OutputWorker

if TYPE_CHECKING:
    from chrootfw.linux.relays import Relays

#: Seconds for the caller's own files to take the output that the command has written.
_RELAY_END = 10.0


class Pipes:
    """The descriptors of a child's standard streams, and chrootfw's ends of the pipes.

    Workers stand between the two: a process inside can keep the child's pipes locked.

    Attributes:
        childs: The descriptors that the child gets, of its standard input, output and error.
        feed: Where its input is written; -1 without one.
        collected: The output so far, by the descriptor that it is read from.
        left: Where workers wait that were left behind.
    """

    def __init__(self, stdin: Any, stdout: Any, stderr: Any) -> None:
        self._made = Descriptors()
        self._kept = Descriptors()
        self.feed = -1
        self.collected: dict[int, bytearray] = {}
        self.left: list[str] = []
        self._feeder: InputWorker | None = None
        self._readers: list[OutputWorker] = []
        self._outputs: list[bytearray | None] = []
        self._relays: Relays | None = None
        self._relayer: threading.Thread | None = None
        self.childs = [self._input(stdin)]
        self.childs.append(self._output(stdout, 1))
        self.childs.append(
            self.childs[1] if stderr == subprocess.STDOUT else self._output(stderr, 2)
        )
        if stderr == subprocess.STDOUT:
            self._outputs.append(None)

    def _input(self, stdin: Any) -> int:
        if stdin == subprocess.PIPE:
            shared = Descriptors()
            inside, sink = shared.pipe()
            self._feeder = InputWorker(shared, inside, sink)
            self.feed = self._feeder.writes
            return inside
        return self._given(stdin, 0, os.O_RDONLY)

    def _output(self, wanted: Any, default: int) -> int:
        if wanted == subprocess.PIPE:
            shared = Descriptors()
            reader = OutputWorker(shared, *shared.pipe())
            self._readers.append(reader)
            self.collected[reader.reads] = bytearray()
            self._outputs.append(self.collected[reader.reads])
            return reader.inside
        self._outputs.append(None)
        return self._given(wanted, default, os.O_WRONLY)

    def _given(self, wanted: Any, default: int, flags: int) -> int:
        if wanted is None:
            return default
        if wanted == subprocess.DEVNULL:
            return self._made.open(os.devnull, flags)
        return wanted if isinstance(wanted, int) else int(wanted.fileno())

    def close_feed(self) -> None:
        """Close the pipe to the child, which is the end of its input."""
        if self._feeder is not None:
            self._feeder.own.close(self.feed)
        self.feed = -1

    def drain(self) -> None:
        """Read what the child has left in its pipes when it exited."""
        for reader in self._readers:

            def take(fd: int = reader.reads) -> bytes | None:
                return _take(fd, self.collected[fd])

            if not reader.finish(take):
                self.left.append(reader.left)

    def relay(self, *, stdin_is_inherited: bool) -> None:
        """Give the child pipes in place of what is the caller's, and relay them.

        Args:
            stdin_is_inherited: The caller passed no standard input. A terminal is then replaced by
                the null device, because the calling program goes on reading it.
        """
        from chrootfw.linux.relays import Relays

        if stdin_is_inherited and os.isatty(self.childs[0]):
            self.childs[0] = self._given(subprocess.DEVNULL, 0, os.O_RDONLY)
        own = [reader.inside for reader in self._readers]
        if self._feeder is not None:
            own.append(self._feeder.inside)
        self._relays = Relays(self.childs, own=own)
        self.childs = self._relays.childs

    def begin_relaying(self, child: Child) -> None:
        """Relay in a thread of its own until the child has exited."""
        if self._relays is not None:
            self._pidfd = self._kept.take(os.dup, child.pidfd)
            self._relayer = threading.Thread(
                target=self._relays.run, args=(self._pidfd,), name="chrootfw relay", daemon=True
            )
            self._relayer.start()

    def end_relaying(self) -> None:
        """Wait until the child's output has been written to the caller's files.

        Raises:
            OSError: Output could not be written.
        """
        if self._relays is None or self._relayer is None:
            return
        self._relayer.join(_RELAY_END)
        if self._relayer.is_alive():
            self._relays.stop()
            self._relayer.join()
        if self._relays.failed is not None:
            raise self._relays.failed[1]

    def close_childs(self) -> None:
        """Close the descriptors that the child has got; its input may begin then."""
        self._made.close_all()
        if self._feeder is not None:
            self._feeder.shared.close(self._feeder.inside)

    def outputs(self) -> tuple[bytearray | None, bytearray | None]:
        """Return the collected standard output and error; `None` for one that has no pipe."""
        return self._outputs[0], self._outputs[1]

    def __enter__(self) -> Pipes:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._made.close_all()
        self._kept.close_all()
        for worker in (*self._readers, *filter(None, [self._feeder])):
            worker.close()
            if worker.left and worker.left not in self.left:
                self.left.append(worker.left)
        if self._relays is not None:
            self._relays.close()
            self.left += self._relays.left
            self._relays = None


def communicate(
    child: Child, pipes: Pipes, data: bytes, seconds: float | None, cancellation: Cancellation
) -> bool:
    """Write the input of a child, and collect its output until it exits.

    Daemons that keep a pipe open are not waited for.

    Args:
        child: The child.
        pipes: Its standard streams.
        data: The input.
        seconds: Seconds to wait; `None` for no limit.
        cancellation: Reports whether an end was requested.

    Returns:
        Whether the child has exited in time.

    Raises:
        Interrupted: An end was requested.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    poller = select.poll()
    poller.register(child.pidfd, select.POLLIN)
    if cancellation.wakes:
        poller.register(cancellation.fd, select.POLLIN)
    for fd in pipes.collected:
        os.set_blocking(fd, False)
        poller.register(fd, select.POLLIN)
    pending = memoryview(data)
    if pipes.feed >= 0:
        os.set_blocking(pipes.feed, False)
        poller.register(pipes.feed, select.POLLOUT)
    while True:
        ready = dict(
            polling.poll(poller, None if deadline is None else deadline - time.monotonic())
        )
        if pipes.feed in ready:
            pending = _write_some(pipes.feed, pending)
            if not pending:
                poller.unregister(pipes.feed)
                pipes.close_feed()
        for fd in [fd for fd in pipes.collected if fd in ready]:
            if _take(fd, pipes.collected[fd]) == b"":
                poller.unregister(fd)
        if child.pidfd in ready:
            pipes.drain()
            child.reap()
            return True
        if cancellation.fd in ready:
            cancellation.answer()
        if deadline is not None and time.monotonic() >= deadline:
            return False


def _write_some(fd: int, pending: memoryview) -> memoryview:
    """Write as much of an input as the pipe takes; return the rest, empty if no process reads."""
    try:
        return pending[os.write(fd, pending[: 1 << 16]) :] if pending else pending
    except BlockingIOError:
        return pending  # the pipe is full
    except BrokenPipeError:
        return memoryview(b"")  # as subprocess does: the child has closed its input


def _take(fd: int, into: bytearray) -> bytes | None:
    """Read once; return the bytes, `b""` at the end, or `None` if the pipe is empty now."""
    try:
        data = os.read(fd, 1 << 16)
    except BlockingIOError:
        return None
    into += data
    return data
