"""Thousands of files looked at in one go: the same as one by one, with machine code and without."""

from __future__ import annotations

import os
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
    return (status.st_mode, status.st_ino, *devices, syscalls.statx(path).mnt_id)


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
        assert statuses.mount_ids(paths) == [(expected(path) or (-1,))[-1] for path in paths]


def test_two_at_once_do_not_share_their_room(way: None) -> None:
    ids = syscalls.statx("/").mnt_id, syscalls.statx("/proc").mnt_id
    assert ids[0] != ids[1]
    many = [b"/"] * 1000
    looks = statuses._looks(many) if runner.run else iter(())
    next(looks, None)
    assert statuses.mount_ids([b"/proc"] * 1000) == [ids[1]] * 1000
    assert statuses.mount_ids(many) == [ids[0]] * 1000


def test_a_path_that_is_too_long_is_an_error_and_no_other_answer() -> None:
    if runner.run is not None:
        with pytest.raises((ValueError, IndexError)):
            statuses.mount_ids([b"/", b"/" * 65, b"/"])
