"""Descriptors are closed once, whatever fails."""

from __future__ import annotations

import os
import signal

import pytest
from open_descriptors import none_left_open, open_descriptors

from chrootfw.linux.descriptors import Descriptors


def test_all_are_closed_at_the_end() -> None:
    with none_left_open(), Descriptors() as opened:
        reads, writes = opened.pipe()
        null = opened.open("/dev/null", os.O_RDONLY)
        assert {reads, writes, null} <= open_descriptors().keys()
        assert not os.get_inheritable(reads)
        os.write(writes, b"x")
        assert os.read(reads, 9) == b"x"


def test_one_is_closed_once() -> None:
    with Descriptors() as opened:
        one, two = opened.open("/dev/null", os.O_RDONLY), opened.open("/dev/null", os.O_RDONLY)
        opened.close(one)
        assert os.dup2(0, one, inheritable=False) == one  # a stranger's from now on
        opened.close(one)
        os.fstat(one)
        os.fstat(two)
    os.fstat(one)
    os.close(one)


def test_the_closing_of_one_that_fails_keeps_no_other_open() -> None:
    with none_left_open():
        opened = Descriptors()
        for _ in range(3):
            opened.open("/dev/null", os.O_RDONLY)
        os.close(opened.open("/dev/null", os.O_RDONLY))
        with pytest.raises(OSError, match="Bad file"):
            opened.close_all()


def test_they_end_with_their_object() -> None:
    with none_left_open():
        opened = Descriptors()
        opened.pipe()
        del opened


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it may come in a finalizer
def test_a_handler_that_raises_leaves_none_open() -> None:
    class Stop(Exception):
        pass

    def handler(_signum: int, _frame: object) -> None:
        raise Stop

    kept = signal.signal(signal.SIGALRM, handler)
    interrupted = 0
    with none_left_open():
        try:
            for number in range(2000):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.000005 + number % 200 * 0.000001)
                    with Descriptors() as opened:
                        for _ in range(4):
                            opened.pipe()
                            opened.close(opened.open("/proc/self/mountinfo", os.O_RDONLY))
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Stop:
                    interrupted += 1
        finally:
            signal.signal(signal.SIGALRM, kept)
    assert interrupted > 100
