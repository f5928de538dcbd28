"""Waits and signals: a handler runs soon, whatever thread the signal finds."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from chrootfw.linux import polling


class HandledError(Exception):
    pass


@pytest.fixture
def silent() -> Iterator[select.poll]:
    """A poller of a pipe into which nothing is written."""
    reads, writes = os.pipe()
    poller = select.poll()
    poller.register(reads, select.POLLIN)
    yield poller
    os.close(reads)
    os.close(writes)


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_a_signal_that_finds_another_thread_is_handled(
    silent: select.poll, seconds: float | None
) -> None:
    def handle(signum: int, _frame: object) -> None:
        raise HandledError

    def signal_oneself() -> None:
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=signal_oneself)
    try:
        thread.start()
        with pytest.raises(HandledError):
            polling.is_ready(silent, seconds)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_the_limit_is_kept(silent: select.poll) -> None:
    begin = time.monotonic()
    assert not polling.is_ready(silent, 1.5)
    assert time.monotonic() - begin >= 1.5
    assert not polling.is_ready(silent, -1)


def test_what_is_ready_is_seen(silent: select.poll) -> None:
    reads, writes = os.pipe()
    try:
        silent.register(reads, select.POLLIN)
        os.write(writes, b"x")
        assert polling.poll(silent, None) == [(reads, select.POLLIN)]
        assert polling.is_ready(silent, 0)
    finally:
        os.close(reads)
        os.close(writes)
