"""A child's standard streams in the shape of ``subprocess.run``: which ends it gets, and what is written and read meanwhile."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from chrootfw.interrupts import Interrupts
from chrootfw.system import children

#: How often a pipe is read after the end of the command: as much as a pipe can hold (pipe(7)).
_DRAIN_MAX = 16


class Pipes:
    """The three ends that a child gets, from ``subprocess.run``'s arguments, and our ends of pipes."""

    def __init__(self, stdin: Any, stdout: Any, stderr: Any) -> None:
        self._made: set[int] = set()
        self._ours: set[int] = set()
        self.feed: int | None = None
        self.collected: dict[int, bytearray] = {}
        self._outputs: list[bytearray | None] = []
        try:
            self.childs = [self._input(stdin)]
            self.childs.append(self._output(stdout, 1))
            self.childs.append(self.childs[1] if stderr == subprocess.STDOUT else self._output(stderr, 2))
            if stderr == subprocess.STDOUT:
                self._outputs.append(None)
        except BaseException:
            self.__exit__()
            raise

    def _input(self, stdin: Any) -> int:
        if stdin == subprocess.PIPE:
            theirs, self.feed = os.pipe2(os.O_CLOEXEC)
            self._made.add(theirs)
            self._ours.add(self.feed)
            return theirs
        return self._given(stdin, 0, os.O_RDONLY)

    def _output(self, wanted: Any, default: int) -> int:
        if wanted == subprocess.PIPE:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            self._made.add(theirs)
            self._ours.add(ours)
            self.collected[ours] = bytearray()
            self._outputs.append(self.collected[ours])
            return theirs
        self._outputs.append(None)
        return self._given(wanted, default, os.O_WRONLY)

    def _given(self, wanted: Any, default: int, flags: int) -> int:
        if wanted is None:
            return default
        if wanted == subprocess.DEVNULL:
            fd = os.open(os.devnull, flags | os.O_CLOEXEC)
            self._made.add(fd)
            return fd
        return wanted if isinstance(wanted, int) else int(wanted.fileno())

    def take_feed(self, data: bytes) -> tuple[int, bytes] | None:
        """The pipe to the child and what to write to it; whoever takes it closes it."""
        if self.feed is None:
            return None
        self._ours.discard(self.feed)
        return self.feed, data

    def close_childs(self) -> None:
        """Close what the child has got: then the end of a pipe can be seen."""
        for fd in self._made:
            os.close(fd)
        self._made.clear()

    def outputs(self) -> tuple[bytearray | None, bytearray | None]:
        """What was collected of its standard output and error, ``None`` where nothing was to be."""
        return self._outputs[0], self._outputs[1]

    def __enter__(self) -> Pipes:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close_childs()
        for fd in self._ours:
            os.close(fd)
        self._ours.clear()


def communicate(
    child: children.Child,
    feed: tuple[int, bytes] | None,
    collect: Mapping[int, bytearray],
    seconds: float | None,
    interrupts: Interrupts,
) -> bool:
    """Write to and read from a child's pipes until it has ended; ``False`` when ``seconds`` are over first.

    ``feed``: a pipe and what to write to it; ``collect``: pipes, and where their bytes go. Daemons that keep a pipe open are not waited
    for. Closes nothing but the fed pipe. Raises ``Interrupted``.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    poller = select.poll()
    poller.register(child.pidfd, select.POLLIN)
    if interrupts.wakes:
        poller.register(interrupts.fd, select.POLLIN)
    for fd in collect:
        os.set_blocking(fd, False)
        poller.register(fd, select.POLLIN)
    pending = memoryview(b"")
    if feed is not None:
        os.set_blocking(feed[0], False)
        pending = memoryview(feed[1])
        poller.register(feed[0], select.POLLOUT)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(poller.poll(left))
        if feed is not None and feed[0] in ready:
            try:
                pending = pending[os.write(feed[0], pending[: 1 << 16]) :] if pending else pending
            except BlockingIOError:
                pass
            except BrokenPipeError:
                pending = memoryview(b"")
            if not pending:
                poller.unregister(feed[0])
                os.close(feed[0])
                feed = None
        for fd in [fd for fd in collect if fd in ready]:
            if _take(fd, collect[fd]) == b"":
                poller.unregister(fd)
        if child.pidfd in ready:
            for fd in collect:
                for _ in range(_DRAIN_MAX):  # a daemon may go on writing
                    if not _take(fd, collect[fd]):
                        break
            if feed is not None:
                os.close(feed[0])
            child.reap()
            return True
        if interrupts.fd in ready:
            if feed is not None:
                os.close(feed[0])
            interrupts.check()
        if deadline is not None and time.monotonic() >= deadline:
            if feed is not None:
                os.close(feed[0])
            return False


def _take(fd: int, into: bytearray) -> bytes | None:
    """Read once: the bytes, ``b""`` at the end, ``None`` when there is nothing now."""
    try:
        data = os.read(fd, 1 << 16)
    except BlockingIOError:
        return None
    into += data
    return data
