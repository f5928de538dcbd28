"""Descriptors run out: at each call that makes one, and under a limit of 64. A right result, or a named error; none leaks."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import driving
import kernelview
import psutil
import pytest
import roots
from open_descriptors import open_descriptors

import chrootfw
from chrootfw.linux import child, native, syscalls
from chrootfw.linux.log_file import COMMAND

#: What makes a descriptor: the module and the name.
MAKERS = (
    (os, "open"), (os, "pipe2"), (os, "eventfd"), (os, "pidfd_open"), (os, "dup"), (os, "scandir"), (os, "listdir"),
    (builtins, "open"), (socket, "socket"), (syscalls, "openat2"), (syscalls, "open_tree"), (syscalls, "new_filesystem"),
)  # fmt: skip


#: Of a sample, so many of them for each verb.
SAMPLE = 12


class Counter:
    """Counts the calls that make a descriptor; the one of number ``fails`` says EMFILE."""

    def __init__(self) -> None:
        self.count = 0
        self.fails = -1
        self.failed = ""

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            if name == "socket.socket" and (named.get("fileno") or len(arguments) > 3):
                return call(*arguments, **named)  # an object for a descriptor that is there
            self.count += 1
            if self.count == self.fails:
                self.failed = f"{name}{arguments}"
                raise OSError(
                    errno.EMFILE,
                    os.strerror(errno.EMFILE),
                    str(arguments[0]) if arguments else None,
                )
            return call(*arguments, **named)

        counted.detach = getattr(call, "detach", None)  # type: ignore[attr-defined]
        return counted


@contextlib.contextmanager
def counting(fails: int = -1) -> Iterator[Counter]:
    counter = Counter()
    counter.fails = fails
    with pytest.MonkeyPatch.context() as patch:
        for module, name in MAKERS:
            patch.setattr(
                module, name, counter.wrap(f"{module.__name__}.{name}", getattr(module, name))
            )
        yield counter


@pytest.fixture
def busy(image: Callable[..., Path], make_chroot: Callable[..., driving.Chroot]) -> driving.Chroot:
    return make_chroot(disk=image(init=roots.script()), grace=0.05)


def check_left(before: dict[int, str], where: str) -> None:
    """The logger of an instance that runs is the only child that may stay, with its pidfd."""

    def loggers() -> dict[int, int]:
        names = {each: Path(f"/proc/{each.pid}/comm") for each in child._left}
        return {
            each.pid: each.pidfd
            for each, comm in names.items()
            if comm.exists() and comm.read_text().strip() == COMMAND
        }

    kernelview.wait_until(
        lambda: child.reap() or len(child._left) == len(loggers()),
        f"{where}: children that were left end",
    )
    stay = loggers()
    after = open_descriptors()
    new = {fd: name for fd, name in after.items() if fd not in (*before, *stay.values())}
    assert new == {}, where
    assert not {each.pid for each in psutil.Process().children()} - set(stay), where


def verbs(runtime: chrootfw.Runtime) -> dict[str, Callable[[], object]]:
    return {
        "start": lambda: runtime.start("web1"),
        "info": lambda: runtime.info("web1"),
        "list": runtime.list,
        "processes": lambda: runtime.processes("web1"),
        "run": lambda: runtime.run("web1", ["/bin/cat"], input=b"x" * 100_000, capture_output=True),
        "stop": lambda: runtime.stop("web1"),
        "forced": lambda: runtime.stop("web1", force=True),
    }


@pytest.mark.parametrize("verb", ["start", "info", "list", "processes", "run", "stop", "forced"])
@pytest.mark.parametrize("how", ["as usual", "by forks"])
def test_each_call_that_makes_a_descriptor_fails(
    busy: driving.Chroot,
    runtime: chrootfw.Runtime,
    verb: str,
    how: str,
    whole: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if how == "by forks":
        monkeypatch.setattr(native, "MODULE", None)
    do = verbs(runtime)[verb]

    def prepare() -> None:
        if verb == "start":
            runtime.stop("web1", force=True)
        elif busy.state != "running":
            runtime.stop("web1", force=True)
            runtime.start("web1")

    prepare()
    do()
    prepare()
    with counting() as reference:
        do()
    assert reference.count > 3
    points = list(range(1, reference.count + 1))
    if not whole:
        points = sorted(random.Random(verb).sample(points, min(SAMPLE, len(points))))
    for point in points:
        prepare()
        before = open_descriptors()
        where = f"{verb}, descriptor {point} of {reference.count}"
        with counting(point) as counter:
            try:
                result = do()
            except chrootfw.ChrootfwError:
                result = None
            except OSError:
                if verb != "run":  # it says so of a command that cannot be run
                    raise
                result = None
        where += f" ({counter.failed}): {result}"
        check_left(before, where)
        if verb == "run":
            assert result is None or len(result.stdout) == 100_000, where
        if verb in ("stop", "forced") and result is not None:
            assert busy.is_gone(), where
        if verb in ("start", "run", "info") and result is None:
            assert busy.state in ("absent", "running", "mounted"), where
    runtime.stop("web1", force=True)
    assert busy.is_gone()


def open_at_most(more: int) -> int:
    """Leave room for so many descriptors. Return the limit that was."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + more, hard))
    return soft


def set_limit(soft: int) -> None:
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


MANY = 90


@pytest.mark.parametrize("ends", ["on TERM", "on KILL"])
def test_a_limit_of_64_is_enough_for_any_number_of_processes(
    make_chroot: Callable[..., driving.Chroot], runtime: chrootfw.Runtime, ends: str
) -> None:
    trap = "trap '' TERM; " if ends == "on KILL" else ""
    start = f'i=0; while [ $i -lt {MANY} ]; do /bin/sh -c "{trap}while :; do sleep 600; done" & i=$((i+1)); done'
    web1 = make_chroot(init=roots.script(start=start, stop=""), grace=1)
    before = open_descriptors()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        set_limit(64)
        runtime.start("web1")
        assert (runtime.info("web1").processes or 0) >= MANY
        assert runtime.run("web1", ["/bin/cat"], input=b"yes", capture_output=True).stdout == b"yes"
        runtime.stop("web1")
    finally:
        set_limit(limit)
    check_left(before, ends)
    assert web1.is_gone()


def test_room_for_only_a_few(busy: driving.Chroot, runtime: chrootfw.Runtime) -> None:
    """The errors name what is used up; with the least room that a start takes, a stop works too."""
    sufficient = {}
    for room in range(24):
        for verb in ("start", "info", "run", "stop"):
            before = open_descriptors()
            limit = open_at_most(room)
            try:
                verbs(runtime)[verb]()
                sufficient.setdefault(verb, room)
            except (chrootfw.ChrootfwError, OSError) as error:
                assert isinstance(error, chrootfw.ChrootfwError) or verb == "run"
                chain = f"{error!r} {error.__cause__!r} {error.__context__!r}"
                assert "Too many open files" in chain or busy.state == "absent", chain
            finally:
                set_limit(limit)
            check_left(before, f"{verb} with room for {room}")
    assert set(sufficient) == {"start", "info", "run", "stop"}, sufficient
    assert busy.is_gone()


class Stop(BaseException):
    """As KeyboardInterrupt, from a timer."""


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it may come in a finalizer
@pytest.mark.parametrize("verb", ["run", "info"])
def test_an_exception_of_a_signal_handler_at_any_moment(
    busy: driving.Chroot, runtime: chrootfw.Runtime, verb: str, whole: bool
) -> None:
    def handler(_signum: int, _frame: object) -> None:
        raise Stop

    runtime.start("web1")
    do = verbs(runtime)[verb]
    do()
    began = time.monotonic()
    do()
    usual = time.monotonic() - began
    chosen = random.Random(verb)
    before = open_descriptors()
    kept = signal.signal(signal.SIGALRM, handler)
    interrupted = 0
    rounds = 3000 if whole else 150
    try:
        for _ in range(rounds):
            try:
                signal.setitimer(signal.ITIMER_REAL, chosen.uniform(0.00001, usual))
                do()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop:
                interrupted += 1
            except chrootfw.ChrootfwError as error:
                assert "lost" not in error.brief
    finally:
        with contextlib.suppress(Stop):
            signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
    assert interrupted > rounds / 10
    check_left(before, f"{interrupted} interruptions")
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGALRM, signal.SIGINT}
    do()
