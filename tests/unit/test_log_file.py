"""A log keeps its size, goes on after whatever befalls it, and never makes one that prints wait."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chrootfw.linux.log_file import LogFile, open_directory


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def log_in(place: Path, size: int = 1000) -> LogFile:
    return LogFile(str(place), "web1.log", size)


def test_what_is_written_is_appended_for_root_and_the_group_alone(place: Path) -> None:
    old = os.umask(0o077)
    try:
        for data in (b"one\n", b"two\n"):
            log = log_in(place)
            log.write(data)
            log.close()
    finally:
        os.umask(old)
    assert (place / "web1.log").read_bytes() == b"one\ntwo\n"
    assert (place / "web1.log").stat().st_mode & 0o777 == 0o640


def test_one_old_file_is_kept_and_both_keep_their_size(place: Path) -> None:
    log = log_in(place)
    for number in range(100):
        log.write(b"%099d\n" % number)
    log.close()
    assert sorted(os.listdir(place)) == ["web1.log", "web1.log.1"]
    kept = (place / "web1.log.1").read_bytes() + (place / "web1.log").read_bytes()
    assert max((place / name).stat().st_size for name in os.listdir(place)) <= 1000
    assert kept.endswith(b"%099d\n" % 99)
    assert len(kept) > 1000


def test_a_log_that_was_moved_away_or_removed_is_begun_again(place: Path) -> None:
    log = log_in(place)
    log.write(b"one\n")
    (place / "web1.log").rename(place / "elsewhere")
    log.write(b"two\n")
    (place / "web1.log").unlink()
    log.write(b"three\n")
    log.close()
    assert (place / "elsewhere").read_bytes() == b"one\n"
    assert (place / "web1.log").read_bytes() == b"three\n"


def test_what_cannot_be_written_is_counted_and_said(place: Path) -> None:
    place.mkdir()
    (place / "web1.log").mkdir()
    log = log_in(place)
    log.write(b"lost\n")
    assert log.left_out == 5
    assert log.error is not None
    (place / "web1.log").rmdir()
    log._retry_at = 0.0
    log.write(b"again\n")
    log.close()
    assert (
        place / "web1.log"
    ).read_bytes() == b"\n-- chrootfw: 5 bytes were left out here\nagain\n"


@pytest.mark.parametrize("what", ["link", "fifo"])
def test_nothing_but_a_file_of_its_own_is_written_to(
    what: str, place: Path, tmp_path: Path
) -> None:
    place.mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    if what == "link":
        (place / "web1.log").symlink_to(tmp_path / "precious")
    else:
        os.mkfifo(place / "web1.log")
    log = log_in(place)
    log.write(b"x\n")
    log.close()
    assert log.left_out == 2
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_directory_that_others_may_write_to_is_refused(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write to it"):
        open_directory(str(place))


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, b"-- head"), (b"", b"-- head"), (b"a\n", b"a\n-- head"), (b"a", b"a\n-- head")],
)
def test_a_line_of_its_own(tmp_path: Path, before: bytes | None, after: bytes) -> None:
    place = tmp_path / "web1.log"
    if before is not None:
        place.write_bytes(before)
        place.chmod(0o640)
    log = LogFile(str(tmp_path), "web1.log", 1 << 20)
    log.end_line()
    log.write(b"-- head")
    log.close()
    assert place.read_bytes() == after
