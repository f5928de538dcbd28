"""A child that was made is known, whatever fails next; its status is right, or known to be unknown."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ways
from open_descriptors import none_left_open

from chrootfw.errors import StepError
from chrootfw.lifecycle import init_script
from chrootfw.linux import child as children
from chrootfw.linux.call_batch import CallBatch


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    with none_left_open():
        yield
        deadline = time.monotonic() + 10
        gc.collect()
        subprocess._cleanup()  # type: ignore[attr-defined]  # what it reaps when it starts the next process
        children.reap()
        while children._left:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            children.reap()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture(autouse=True, params=ways.WAYS)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    ways.use(request.param, monkeypatch)


def ends_with(status: int) -> children.Child:
    calls = CallBatch()
    calls.add("exit_group", status)
    return children.begin(calls)


def sleeps() -> children.Child:
    calls = CallBatch()
    calls.add("nanosleep", struct.pack("=qq", 60, 0), None)
    return children.begin(calls)


def fails_with(code: int) -> Callable[..., int]:
    def fails(*_arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    return fails


# -- where a seccomp filter does not know clone3 ---------------------------------------------------

#: Refuses clone3(2) as a filter does that is older than it, and makes a child that creates a file.
_WITHOUT_CLONE3 = """
import ctypes, os, resource, struct, sys, threading
from chrootfw.linux import child, native
from chrootfw.linux.call_batch import CallBatch
from chrootfw.linux.syscall_numbers import NUMBERS
path, way, few = sys.argv[1:]
if way != "native":
    native.MODULE = None
if way == "interpreter":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, NUMBERS["clone3"]), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
filtering = struct.pack("=H6xQ", len(lines), ctypes.addressof(program))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filtering, 0, 0) == 0
calls = CallBatch()
calls.add("openat", -100, os.fsencode(path), os.O_CREAT | os.O_WRONLY, 0o600)
if few == "few":
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, 4096))
try:
    made = child.begin(calls)
except OSError as error:
    print(error.errno)
else:
    assert made.wait_for_end(60)
    print(made.status, calls.stopped_at())
"""


@pytest.mark.parametrize("way", ways.WAYS)
@pytest.mark.parametrize("few", ["enough", "few"])
def test_a_child_is_known_without_clone3_too(way: str, few: str, tmp_path: Path) -> None:
    """Without a descriptor for its pidfd there is none, and nothing was done."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_CLONE3, str(tmp_path / "done"), way, few],
        cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == (str(errno.EMFILE) if few == "few" else "0 None")
    time.sleep(0.1)  # nothing says that a child will do nothing any more
    assert (tmp_path / "done").exists() == (few == "enough")


# -- ownership ---------------------------------------------------------------------------------------


def test_a_child_is_closed_once() -> None:
    child = ends_with(0)
    assert child.wait_for_end(60)
    number = child.pidfd
    child.close()
    taken = os.dup2(0, number, inheritable=False)  # the number is another file's now
    child.close()
    child.kill()
    os.fstat(taken)
    os.close(taken)


def test_a_child_that_an_exception_left_without_an_owner_is_ended() -> None:
    child = sleeps()
    pid = child.pid
    del child
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        children.reap()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fork_of_the_program_does_not_end_its_children() -> None:
    child = sleeps()
    pid = os.fork()
    if pid == 0:
        try:
            del child
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert not child.wait_for_end(0.1)
    child.end()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it may come in a finalizer
# An interpreter that starts a child may be left behind by an exception, and its child be reaped late.
@pytest.mark.parametrize("_way", [way for way in ways.WAYS if way != "interpreter"], indirect=True)
def test_a_signal_handler_that_raises_while_a_child_is_made_leaves_no_signal_blocked() -> None:
    """A KeyboardInterrupt may come at any moment, many times in the life of a program."""

    class Stop(Exception):
        pass

    def handler(_signum: int, _frame: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, handler)
    interrupted = 0
    try:
        for number in range(300 if ways.is_quick() else 30):
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
            calls = CallBatch()
            calls.add("umask", 0o022)
            child = None  # its finalizer is not to be interrupted: nothing could be raised there
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.00001 + number * 0.000001)
                    child = children.begin(calls)
                    child.end()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    os.getpid()  # a signal that came is handled here at the latest
            except Stop:
                interrupted += 1
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", ["left", "ended"])
@pytest.mark.parametrize("_way", [way for way in ways.WAYS if way != "interpreter"], indirect=True)
def test_an_exception_at_any_call_leaves_no_child_behind(way: str) -> None:
    """A signal handler may raise when a function begins, and after any call; here at each in turn."""

    class Stop(Exception):
        pass

    lives_on = sleeps()
    children.leave(lives_on)
    left_to_pass = 0

    def raises(_frame: object, event: str, _argument: object) -> None:
        nonlocal left_to_pass
        if event in ("call", "c_return"):
            left_to_pass -= 1
            if left_to_pass == 0:
                sys.setprofile(None)
                raise Stop

    for number in range(1, 2000):
        left_to_pass = number
        try:
            sys.setprofile(raises)
            calls = CallBatch()
            calls.add("umask", 0o022)
            child = children.begin(calls)
            if way == "left":
                children.leave(child)
            else:
                child.end()
            children.reap()
        except Stop:
            pass
        finally:
            sys.setprofile(None)
        child = None  # its finalizer is not interrupted
        if left_to_pass > 0:
            break
    lives_on.kill()
    assert number > 20, "no call was interrupted"
    assert left_to_pass > 0, "there are calls that were not interrupted"


# -- the status --------------------------------------------------------------------------------------


def keeps_status() -> bool:
    release = os.uname().release.replace("-", ".").split(".")
    return (int(release[0]), int(release[1])) >= (6, 15)


class _Reaper:
    """A thread that reaps every child, as a supervisor has one."""

    def __enter__(self) -> None:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._reap, daemon=True)
        self.thread.start()

    def _reap(self) -> None:
        while not self.over.is_set():
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.0005)

    def __exit__(self, *_exc: object) -> None:
        self.over.set()
        self.thread.join(60)


class _Ignored:
    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    def __exit__(self, *_exc: object) -> None:
        signal.signal(signal.SIGCHLD, self.before)


class _Handler:
    def __enter__(self) -> None:
        def reap(_signum: int, _frame: object) -> None:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass

        self.before = signal.signal(signal.SIGCHLD, reap)

    def __exit__(self, *_exc: object) -> None:
        signal.signal(signal.SIGCHLD, self.before)


@pytest.mark.skipif(not keeps_status(), reason="Linux 6.15 is the first to keep it")
@pytest.mark.parametrize("how", [_Reaper, _Ignored, _Handler])
def test_the_status_of_a_child_that_the_program_reaps(how: Callable[[], Any]) -> None:
    with how():
        for status in (0, 1, 5, 255):
            child = ends_with(status)
            assert child.wait_for_end(60)
            assert child.status == status
            child.close()
        child = sleeps()
        child.kill(signal.SIGTERM)
        child.kill(signal.SIGKILL)
        assert child.wait_for_end(60)
        assert child.status == -signal.SIGKILL
        child.close()


@pytest.mark.parametrize("code", [errno.ENOTTY, errno.EINVAL, errno.ESRCH])
def test_a_status_that_is_lost_is_no_number(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel that has no such call, one of before 6.15, and one that has forgotten it."""
    monkeypatch.setattr(fcntl, "ioctl", fails_with(code))
    with _Ignored():
        child = ends_with(255)
        assert child.wait_for_end(60)
    assert child.has_ended
    assert child.status is None
    with pytest.raises(StepError, match="is lost") as caught:
        children.known_status(child, "true in web1")
    assert "SIGCHLD" in str(caught.value)
    child.close()
    lost = init_script.Result(None, b"").describe(3)
    assert "is lost" in lost
    assert "255" not in lost


def test_255_is_a_status_as_any_other() -> None:
    assert init_script.Result(255, b"").describe(3) == "exited with status 255"
    assert "within 3 s" in init_script.Result(None, b"", ended=False).describe(3)
