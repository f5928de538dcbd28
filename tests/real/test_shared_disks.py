"""Disks of one file system (btrfs of several devices) are one disk: it is mounted once only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import driving
import pytest
import roots

pytestmark = pytest.mark.full

MEMBERS = 2


def loop_of(path: Path) -> str:
    done = subprocess.run(
        ["losetup", "--find", "--show", str(path)], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def members(tmp_path: Path, make_root: Callable[..., Path]) -> Iterator[list[Path]]:
    """Two images that are one btrfs, each with a whole copy of a root."""
    paths = [tmp_path / f"member{number}.img" for number in range(MEMBERS)]
    devices = []
    place = tmp_path / "filled"
    place.mkdir()
    try:
        for path in paths:
            path.touch()
            os.truncate(path, roots.SIZES["btrfs"])
            devices.append(loop_of(path))
        subprocess.run(
            ["mkfs.btrfs", "-q", "-f", "-d", "raid1", "-m", "raid1", *devices], check=True
        )
        subprocess.run(["mount", "-t", "btrfs", devices[0], str(place)], check=True)
        try:
            roots.make_root(place, roots.script())
        finally:
            subprocess.run(["umount", str(place)], check=True)
    finally:
        for device in devices:
            subprocess.run(["losetup", "--detach", device], check=True)
    yield paths
    subprocess.run(["btrfs", "device", "scan", "--forget"], check=False)


def test_another_member_is_refused_while_one_is_mounted(
    make_chroot: Callable[..., driving.Chroot], members: list[Path]
) -> None:
    web1, web2 = (
        make_chroot(name, disk=member, mount_options=["degraded"])
        for name, member in zip(("web1", "web2"), members, strict=True)
    )
    web1.cli("start")
    own = web1.pids("sleep")

    refused = web2.cli("start", expect=1)
    assert f"{web2.disk} is one file system with another disk" in refused.stderr
    assert str(web1.root) in refused.stderr
    assert web2.is_gone()
    assert web1.state == "running"
    assert web1.pids("sleep") == own

    web1.cli("stop")
    assert web1.is_gone()
