"""A whole Debian with nginx, redis and cron, on every kind of disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import roots
from debian import Debian
from driving import Chroot, Cli
from kernelview import is_running, wait_until

IMAGE_SIZE = 1 << 30  # sparse
DISKS = ("directory", "ext4", "xfs", "btrfs")

#: Leaves a process that no TERM ends, and says which.
STUBBORN = "trap '' TERM; sleep 3600 > /dev/null 2>&1 & echo $!"

Make = Callable[[str, str], tuple[Debian, Chroot]]


@pytest.fixture
def make_debian(debian_system: Path, tmp_path: Path, make_chroot: Callable[..., Chroot]) -> Make:
    """``make_debian(name, disk)``: an instance that runs Debian from a disk of one of ``DISKS``."""

    def make(name: str, disk: str) -> tuple[Debian, Chroot]:
        debian = Debian(name)

        def fill(root: Path) -> None:
            roots.copy(debian_system, root)
            debian.configure(root)

        if disk == "directory":
            path = tmp_path / f"{name}.root"
            fill(path)
        else:
            path = roots.make_image(tmp_path / f"{name}.img", disk, fill, IMAGE_SIZE)
        return debian, make_chroot(name, disk=path)

    return make


@pytest.mark.parametrize("disk", DISKS)
def test_its_whole_life(make_debian: Make, disk: str, cli: Cli, tracking: str) -> None:
    debian, chroot = make_debian("web1", disk)

    chroot.cli("start")
    wait_until(debian.serves, "nginx and redis answer")
    assert chroot.pids("cron")
    (listed,) = cli.json("list")["instances"]
    assert (listed["name"], listed["state"], listed["tracking"]) == ("web1", "running", tracking)
    assert listed["processes"] == len(chroot.pids())
    assert {process["command"] for process in chroot.cli("ps", "--json").json()["processes"]} >= {
        "nginx",
        "redis-server",
        "cron",
    }

    assert "running" in chroot.cli("info").stdout

    before, root_mount = chroot.pids(), chroot.root_mount
    chroot.cli("reboot")
    wait_until(debian.serves, "nginx and redis answer after the reboot")
    assert chroot.root_mount == root_mount
    assert not before & chroot.pids()

    chroot.cli("stop", "--keep-mounted")
    assert chroot.state == "mounted"
    assert debian.is_silent()
    chroot.cli("cleanup")
    assert chroot.state == "absent"
    assert chroot.is_gone()
    if disk != "directory":
        roots.check_image(chroot.disk, disk)


@pytest.mark.parametrize("disk", DISKS)
def test_one_that_does_not_want_to_end(make_debian: Make, disk: str) -> None:
    debian, chroot = make_debian("web1", disk)
    chroot.start()
    stubborn = chroot.runtime.run(
        "web1", ["/bin/sh", "-c", STUBBORN], capture_output=True, text=True
    )
    wait_until(debian.serves, "nginx and redis answer")

    chroot.cli("stop", "--timeout", "0.5")

    assert not is_running(int(stubborn.stdout))
    assert chroot.is_gone()
    assert debian.is_silent()
    if disk != "directory":
        roots.check_image(chroot.disk, disk)


def test_killed_by_force_the_file_system_is_clean(make_debian: Make) -> None:
    debian, chroot = make_debian("web1", "ext4")
    chroot.start()
    wait_until(debian.serves, "nginx and redis answer")

    chroot.cli("stop", "--force")

    assert chroot.is_gone()
    roots.check_image(chroot.disk, "ext4")


def test_three_at_once(make_debian: Make) -> None:
    several = [
        make_debian(name, disk)
        for name, disk in (("web1", "directory"), ("web10", "ext4"), ("web2", "btrfs"))
    ]
    for _, chroot in several:
        chroot.start()
    for debian, _ in several:
        wait_until(debian.serves, f"{debian.name} answers")

    first, others = several[0], several[1:]
    lives = [chroot.pids() for _, chroot in others]
    first[1].cli("stop")

    assert first[0].is_silent()
    assert [chroot.pids() for _, chroot in others] == lives
    assert all(debian.serves() for debian, _ in others)
    for debian, chroot in others:
        chroot.cli("stop")
        assert debian.is_silent()
        roots.check_image(chroot.disk, {"web10": "ext4", "web2": "btrfs"}[debian.name])
