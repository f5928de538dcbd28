"""The feed of a command: closed once, whatever wakes or ends the wait."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from open_descriptors import none_left_open

from chrootfw.cancellation import Cancellation
from chrootfw.errors import Interrupted
from chrootfw.lifecycle.pipes import Pipes, communicate
from chrootfw.linux import child as children
from chrootfw.linux import spawn

MUCH = b"x" * 4_000_000


@pytest.fixture(autouse=True)
def _none_leaks(cancellation: Cancellation) -> Iterator[None]:
    with none_left_open():
        yield
    assert cancellation


@pytest.fixture
def cancellation() -> Cancellation:
    return Cancellation()


def run(
    cancellation: Cancellation, script: str, data: bytes, seconds: float | None = 60
) -> tuple[bool, bytes]:
    root = os.open("/", os.O_PATH)
    try:
        with Pipes(subprocess.PIPE, subprocess.PIPE, None) as pipes:
            command = ["/bin/sh", "-c", script]
            child = spawn.spawn(command, root_fd=root, env={"PATH": os.environ["PATH"]}, stdin=pipes.childs[0],
                                stdout=pipes.childs[1], stderr=2)  # fmt: skip
            try:
                pipes.close_childs()
                ended = communicate(child, pipes, data, seconds, cancellation)
            finally:
                child.end()
            return ended, bytes(pipes.outputs()[0] or b"")
    finally:
        os.close(root)


SLOW = "sleep 1; wc -c"
ALL_READ = b"4000000"


def in_another_process(call: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            call()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def later(call: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(0.3, call)
    timer.start()
    return timer


def test_a_request_in_another_process_ends_nothing_here(cancellation: Cancellation) -> None:
    timer = later(lambda: in_another_process(cancellation.request))
    assert run(cancellation, SLOW, MUCH) == (True, ALL_READ + b"\n")
    timer.join()


def test_a_request_here_ends_nothing_in_another_process(cancellation: Cancellation) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            status = 0 if run(cancellation, SLOW, MUCH) == (True, ALL_READ + b"\n") else 2
        os._exit(status)
    time.sleep(0.3)
    cancellation.request()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    cancellation.clear()


def test_a_request_before_the_fork_holds_in_both(cancellation: Cancellation) -> None:
    cancellation.request()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(Interrupted):
            run(cancellation, SLOW, MUCH)
            status = 2
        os._exit(0 if status == 1 else status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with pytest.raises(Interrupted):
        run(cancellation, SLOW, MUCH)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_request_that_was_cleared_neither_ends_the_wait_nor_keeps_it_busy(
    cancellation: Cancellation, when: str
) -> None:
    """What a request and a clear leave behind, when they come at the same moment."""
    if when == "before":
        os.eventfd_write(cancellation.fd, 1)
    else:
        timer = later(lambda: os.eventfd_write(cancellation.fd, 1))
    used = time.process_time()
    assert run(cancellation, SLOW, MUCH) == (True, ALL_READ + b"\n")
    assert time.process_time() - used < 0.5
    if when == "meanwhile":
        timer.join()


def test_a_request_ends_it(cancellation: Cancellation) -> None:
    timer = later(cancellation.request)
    with pytest.raises(Interrupted):
        run(cancellation, "sleep 60", MUCH)
    timer.join()


def test_the_time_limit_ends_it(cancellation: Cancellation) -> None:
    assert run(cancellation, "sleep 60", MUCH, 0.2) == (False, b"")


def test_a_command_that_does_not_read(cancellation: Cancellation) -> None:
    assert run(cancellation, "exec 0<&-; sleep 0.3; echo done", MUCH) == (True, b"done\n")
    assert run(cancellation, "true", MUCH) == (True, b"")


def test_an_exception_of_a_handler_leaves_nothing_open(cancellation: Cancellation) -> None:
    class Stop(Exception):
        pass

    def handler(_signum: int, _frame: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(5):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Stop):
                run(cancellation, "sleep 60", MUCH)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not children._left
