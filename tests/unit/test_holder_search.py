"""Holders and copies of mounts: a search that cannot be made is never taken for one that found nothing."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from chrootfw.linux import mount_copies, sock_diag
from chrootfw.state import copies, holders


@pytest.fixture
def no_descriptors() -> Iterator[None]:
    """This process can open nothing more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert sock_diag  # imported before
    first_free = os.open("/", os.O_PATH)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, limits[1]))
    held = []
    try:
        with pytest.raises(OSError, match="Too many"):
            while True:
                held.append(os.open("/", os.O_PATH))
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_without_descriptors_it_does_not_say_that_nothing_holds(no_descriptors: None) -> None:
    with pytest.raises(OSError, match="Too many"):
        holders.scan(holders.Target((), "/nowhere"), only=[os.getpid()], devices_too=False)


def test_a_namespace_that_cannot_be_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    space = mount_copies.Space(4026532208, str(loop / "x"), by=f"the mount on {loop}")
    monkeypatch.setattr(mount_copies, "without_processes", lambda *_: [space])

    (stay,) = copies.find_kept_copies(mount_copies.Wanted("web1", (), ()), ())

    assert (stay.space, stay.entry, stay.code) == (space, None, errno.ELOOP)


def test_a_namespace_that_is_gone_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = mount_copies.Space(4026532208, str(tmp_path / "gone"), by="a mount")
    monkeypatch.setattr(mount_copies, "without_processes", lambda *_: [space])

    assert copies.find_kept_copies(mount_copies.Wanted("web1", (), ()), ()) == []
