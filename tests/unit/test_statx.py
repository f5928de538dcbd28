"""Thousands of files looked at in one go: the same as one by one, by the compiled module and without."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from chrootfw.linux import native, statx, syscalls


@pytest.fixture(params=["native", "one by one"] if native.MODULE else ["one by one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "one by one":
        monkeypatch.setattr(native, "MODULE", None)


def expected(path: bytes) -> statx.Status | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    devices = (
        statx.packed(os.major(dev), os.minor(dev)) for dev in (status.st_rdev, status.st_dev)
    )
    asked = syscalls.statx(path)
    return (status.st_mode, status.st_ino, *devices, asked.attributes, asked.mnt_id)


@pytest.mark.parametrize("count", [0, 1, 511, 512, 513, 1300])
def test_many_are_as_each(
    way: None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        kinds = [
            b"/",
            b"/dev/null",
            b"socket",
            b"/proc/self/ns/mnt",
            b"/nowhere",
            b"/dev/null/x",
            b"",
            os.fsencode("ö"),
        ]
        paths = [kinds[number * 7 % len(kinds)] for number in range(count)]
        assert statx.statx_many(paths) == [expected(path) for path in paths]


@pytest.mark.parametrize("length", [1, 62, 63, 64, 65, 127, 128, 300, 4095])
def test_paths_of_any_length(way: None, length: int) -> None:
    path = b"/" * (length - 4) + b"proc" if length > 4 else b"/"
    wanted = expected(path[-5:] if length > 4 else b"/")
    assert statx.statx_many([b"/", path, b"/nowhere", path]) == [
        expected(b"/"),
        wanted,
        None,
        wanted,
    ]


def test_the_root_of_a_mount_is_known_by_an_attribute(way: None) -> None:
    found = statx.statx_many([b"/", b"/proc", b"/proc/self", b"/dev/null"])
    assert [bool(status and status[4] & syscalls.STATX_ATTR_MOUNT_ROOT) for status in found] == [
        True,
        True,
        False,
        False,
    ]


def test_a_fork_has_lists_of_its_own(way: None) -> None:
    """A server that forks its workers after it has looked once."""
    statx.statx_many([b"/"])
    child = os.fork()
    paths, wanted = (
        ([b"/proc"] * 40, expected(b"/proc"))
        if child
        else ([b"/dev/null"] * 30, expected(b"/dev/null"))
    )
    wrong = sum(answer != wanted for _ in range(300) for answer in statx.statx_many(paths))
    if child == 0:
        os._exit(bool(wrong))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert wrong == 0


def test_a_look_that_a_signal_handler_breaks_off_spoils_no_later_one(way: None) -> None:
    class Broken(Exception):
        pass

    def handler(_number: int, _frame: object) -> None:
        raise Broken

    before = signal.signal(signal.SIGALRM, handler)
    broken = 0
    try:
        for attempt in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + attempt % 30 * 0.00001)
                while True:
                    statx.statx_many([b"/proc/self"] * 300)
            except Broken:
                broken += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert broken == 300
    assert statx.statx_many([b"/"] * 500) == [expected(b"/")] * 500
    assert statx.statx_many([b"/nowhere"] * 500) == [None] * 500


class _OldMusl:
    """A C library without the function, as musl was before 1.2.5 and glibc before 2.28."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __getattr__(self, name: str) -> Any:
        if name == "statx":
            raise AttributeError(name)
        return getattr(self._libc, name)


def test_a_c_library_may_lack_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [b"/", b"/dev/null", b"/proc/self/ns/mnt", b"/nowhere"]
    wanted = [expected(path) for path in paths]
    unique = syscalls.unique_mount_id("/proc")
    monkeypatch.setattr(syscalls, "CALLS", syscalls.Calls(_OldMusl()))  # type: ignore[arg-type]
    monkeypatch.setattr(native, "MODULE", None)
    assert statx.statx_many(paths) == wanted
    assert [expected(path) for path in paths] == wanted
    assert syscalls.unique_mount_id("/proc") == unique
    with pytest.raises(FileNotFoundError):
        syscalls.statx("/nowhere")
