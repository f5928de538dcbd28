"""Workers that are ended from outside: an end of one ends no command."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from chrootfw.linux.child import is_ready
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.pipe_workers import LastClose, OutputWorker, RelayedInput
from chrootfw.linux.relays import Relays


def _end(worker: OutputWorker | RelayedInput | LastClose) -> None:
    """End it as the kernel does for want of memory."""
    assert worker._child is not None
    worker._child.kill(signal.SIGKILL)
    os.waitid(os.P_PIDFD, worker._child.pidfd, os.WEXITED | os.WNOWAIT)


def test_output_whose_worker_was_ended() -> None:
    shared = Descriptors()
    worker = OutputWorker(shared, *shared.pipe())
    try:
        _end(worker)
        assert not worker.finish(lambda: os.read(worker.reads, 100))
        assert "was ended" in worker.left
    finally:
        worker.close()


def test_a_terminal_whose_worker_was_ended() -> None:
    shared = Descriptors()
    first, _ = shared.pipe()
    worker = LastClose(shared, first)
    try:
        _end(worker)
        worker.close_first()
        assert not worker.left
    finally:
        worker.close()


def test_input_whose_worker_was_ended_is_at_its_end() -> None:
    reads, writes = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    stdio = Relays((reads, null, null))
    inside, command = os.dup(stdio.childs[0]), os.pidfd_open(os.getpid())
    thread = threading.Thread(target=stdio.run, args=(command,))
    try:
        (worker,) = stdio._workers
        _end(worker)
        os.write(writes, b"too late")
        thread.start()
        assert is_ready(inside, 30)
        assert os.read(inside, 100) == b""
        assert "was ended" in worker.left
        turns = _count_turns(stdio)
        time.sleep(0.2)
        assert turns() < 5
    finally:
        stdio.stop()
        thread.join()
        stdio.close()
        for fd in (reads, writes, null, inside, command):
            os.close(fd)


def _count_turns(stdio: Relays) -> Callable[[], int]:
    counted: list[object] = []
    before = stdio._turn

    def turn(pidfd: int) -> bool:
        counted.append(pidfd)
        return before(pidfd)

    stdio._turn = turn  # type: ignore[method-assign]  # counts them
    return lambda: len(counted)
