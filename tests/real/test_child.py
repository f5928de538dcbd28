"""The processes that chrootfw makes for itself: none outlives its use."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import chrootfw
from chrootfw.lifecycle import unmount
from chrootfw.linux import child as children
from chrootfw.linux import mountinfo, native, umount
from chrootfw.linux.call_batch import CallBatch
from chrootfw.state import disks


def sleeps(seconds: int) -> children.Child:
    """A child with a copy of every descriptor."""
    calls = CallBatch(map(int, os.listdir("/proc/self/fd")[:-1]))
    calls.add("nanosleep", struct.pack("=qq", seconds, 0), None)
    return children.begin(calls)


def test_no_verb_leaves_a_child(runtime: chrootfw.Runtime, image: Callable[..., Path]) -> None:
    """No zombie either: a program that lives for months would collect them."""
    before = set(psutil.Process().children())  # what earlier tests left may end meanwhile
    web1 = chrootfw.Instance("web1", disk=str(image()), params={"log": "off"})
    for verb in (runtime.start, runtime.info, runtime.reboot, runtime.stop):
        verb(web1)
        assert set(psutil.Process().children()) <= before, verb


def test_the_logger_is_the_one_child_that_stays_until_the_stop(
    runtime: chrootfw.Runtime, image: Callable[..., Path]
) -> None:
    before = set(psutil.Process().children())
    web1 = chrootfw.Instance("web1", disk=str(image()), params={"log": "file"})
    for verb in (runtime.start, runtime.reboot):
        verb(web1)
        log = runtime.info(web1).log
        assert log is not None
        left = set(psutil.Process().children()) - before
        assert [child.pid for child in left] == [log["logger"]], verb
    runtime.stop(web1)
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("what", ["the root", "the device"])
def test_a_child_on_its_way_to_its_execve_is_waited_for(
    runtime: chrootfw.Runtime, image: Callable[..., Path], what: str
) -> None:
    """Another thread's: it has a copy of every descriptor, and fifty of them share the processors for seconds."""
    web1 = chrootfw.Instance("web1", disk=str(image()))
    root = runtime.start(web1).root
    device = next(entry.source for entry in mountinfo.list_mounts_below(os.fsencode(root)))
    fd = os.open(root if what == "the root" else device, os.O_RDONLY | os.O_CLOEXEC)
    child = sleeps(2)
    os.close(fd)
    waiting = threading.Thread(target=child.wait_for_end, args=(60,))
    waiting.start()
    try:
        assert runtime.stop(web1).state == "absent"
    finally:
        waiting.join()
        child.close()
    assert not children.copies_are_about()


@pytest.mark.parametrize("attempt", ["unmount", "proof"])
def test_a_child_that_ends_right_after_it_was_in_the_way_was_in_the_way(
    runtime: chrootfw.Runtime,
    image: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    attempt: str,
) -> None:
    """It is gone when the failure is looked at; the next attempt succeeds, and nobody is told to be holding anything."""
    web1 = chrootfw.Instance("web1", disk=str(image()))
    root = runtime.start(web1).root
    device = next(entry.source for entry in mountinfo.list_mounts_below(os.fsencode(root)))
    fd = os.open(root if attempt == "unmount" else device, os.O_RDONLY | os.O_CLOEXEC)
    child = sleeps(60)
    os.close(fd)
    place, name = (umount, "unmount") if attempt == "unmount" else (disks, "find_unreleased_disks")
    real = getattr(place, name)

    def then_it_ends(*args: object, **kwargs: object) -> object:
        result = real(*args, **kwargs)
        has_failed = 0 not in result[0] if attempt == "unmount" else bool(result)
        if child.status is None and has_failed:
            child.kill()
            child.wait_for_end(60)
        return result

    monkeypatch.setattr(place, name, then_it_ends)
    monkeypatch.setattr(unmount, "_BUSY_SETTLE", 0.0)
    try:
        assert runtime.stop(web1).state == "absent"
        assert child.status is not None
    finally:
        child.end()


def test_two_threads_that_look_at_once_close_a_child_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second close would be that of a stranger's descriptor."""
    closed: list[object] = []

    class Ended(children.Child):
        def wait_for_end(self, seconds: float | None) -> bool:  # noqa: ARG002
            children.reap()  # what another thread does at this very moment
            return True

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(children, "_left", [])
    children.leave(Ended())
    assert len(closed) == 1
    assert not children._left


#: Starts a child in a cgroup. If it is told so, a seccomp filter is as old as Docker's first ones, and does not know clone3(2).
_IN_A_CGROUP = """
import ctypes, os, struct, sys, threading
from chrootfw.linux import child, native
from chrootfw.linux.call_batch import CallBatch
from chrootfw.linux.syscall_numbers import NUMBERS
directory, way, knows, shares = sys.argv[1:]
if way != "native":
    native.MODULE = None
if way == "interpreter":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
if knows == "no clone3":
    lines = [(0x20, 0, 0, 0), (0x15, 0, 1, NUMBERS["clone3"]), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    filtering = struct.pack("=H6xQ", len(lines), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filtering, 0, 0) == 0
cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
waits, opens = os.pipe()
begun, tells = os.pipe()
calls = CallBatch([waits, tells])
calls.add("write", tells, b"+", 1)
calls.add("read", waits, calls.add_buffer(1), 1)
made = child.begin(calls, cgroup, shares_memory=shares == "shares")
assert os.read(begun, 1) == b"+"
with open(f"/proc/{made.pid}/cgroup") as file:
    print(file.read())
os.write(opens, b"+")
assert made.wait_for_end(60) and made.status == 0, made.status
"""


@pytest.mark.parametrize(
    ("way", "shares"),
    [("native", "shares"), ("native", "does not"), ("fork", ""), ("interpreter", "")],
)
@pytest.mark.parametrize("knows", ["clone3", "no clone3"])
def test_a_child_does_all_that_it_does_in_its_cgroup(
    hierarchy: Path, way: str, shares: str, knows: str
) -> None:
    if way == "native" and native.MODULE is None:
        way = "fork"
    directory = hierarchy / f"chrootfw-test-{os.getpid()}"
    directory.mkdir()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IN_A_CGROUP, directory, way, knows, shares],
            cwd="/", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"/{directory.name}\n" in done.stdout
    finally:
        directory.rmdir()
