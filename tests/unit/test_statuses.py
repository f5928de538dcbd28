"""Thousands of files looked at in one go: the same as one by one, with machine code and without."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from chrootfw.system import runner, statuses, syscalls


@pytest.fixture(params=["machine code", "one by one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "one by one":
        monkeypatch.setattr(runner, "run", None)


def expected(path: bytes) -> statuses.Status | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    devices = (statuses.packed(os.major(dev), os.minor(dev)) for dev in (status.st_rdev, status.st_dev))
    asked = syscalls.statx(path)
    return (status.st_mode, status.st_ino, *devices, asked.attributes, asked.mnt_id)


@pytest.mark.parametrize("count", [0, 1, 511, 512, 513, 1300])
def test_many_are_as_each(way: None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert statuses.statuses(paths) == [expected(path) for path in paths]


def test_two_at_once_do_not_share_their_room(way: None) -> None:
    many = [b"/"] * 1000
    looks = statuses._looks(many) if runner.run else iter(())
    next(looks, None)
    assert statuses.statuses([b"/proc"] * 1000) == [expected(b"/proc")] * 1000
    assert statuses.statuses(many) == [expected(b"/")] * 1000


@pytest.mark.parametrize("length", [1, 62, 63, 64, 65, 127, 128, 300, 4095])
def test_paths_of_any_length(way: None, length: int) -> None:
    path = b"/" * (length - 4) + b"proc" if length > 4 else b"/"
    wanted = expected(path[-5:] if length > 4 else b"/")
    assert statuses.statuses([b"/", path, b"/nowhere", path]) == [expected(b"/"), wanted, None, wanted]


def test_the_root_of_a_mount_is_known_by_an_attribute(way: None) -> None:
    found = statuses.statuses([b"/", b"/proc", b"/proc/self", b"/dev/null"])
    assert [bool(status and status[4] & syscalls.STATX_ATTR_MOUNT_ROOT) for status in found] == [
        True,
        True,
        False,
        False,
    ]


def test_a_fork_has_lists_of_its_own(way: None) -> None:
    """A server that forks its workers after it has looked once."""
    statuses.statuses([b"/"])
    child = os.fork()
    paths, wanted = ([b"/proc"] * 40, expected(b"/proc")) if child else ([b"/dev/null"] * 30, expected(b"/dev/null"))
    wrong = sum(answer != wanted for _ in range(300) for answer in statuses.statuses(paths))
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
                    statuses.statuses([b"/proc/self"] * 300)
            except Broken:
                broken += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert broken == 300
    assert statuses.statuses([b"/"] * 500) == [expected(b"/")] * 500
    assert statuses.statuses([b"/nowhere"] * 500) == [None] * 500
