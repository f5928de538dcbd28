"""Row 14: a full run directory; disks that are read-only, corrupt, truncated, empty; I/O errors: the old state stays."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import driving
import kernelview
import pytest
import roots

import chrootfw

_CHECKED = {"ext4": 1024, "xfs": 0, "btrfs": 0x10000, "squashfs": 0}


def _fill(image: Path, place: int, size: int, dice: random.Random) -> None:
    with image.open("r+b") as file:
        file.seek(place)
        file.write(dice.randbytes(size))


def _damages(fstype: str, whole: bool) -> dict[str, Callable[[Path, random.Random], object]]:
    """What is done to a good image. Where it leaves a file system that still mounts, a start may well succeed."""
    start = _CHECKED[fstype]
    found: dict[str, Callable[[Path, random.Random], object]] = {
        "zero size": lambda image, _: os.truncate(image, 0),
        "one byte": lambda image, _: os.truncate(image, 1),
        "truncated to 4 KiB": lambda image, _: os.truncate(image, 4096),
        "truncated to a half": lambda image, _: os.truncate(image, image.stat().st_size // 2),
        "empty": lambda image, _: (os.truncate(image, 0), os.truncate(image, 24 << 20)),
        "superblock overwritten": lambda image, dice: _fill(image, start, 4096, dice),
        "superblock but its signature overwritten": lambda image, dice: _fill(
            image, start + 96, 512, dice
        ),
        "metadata overwritten": lambda image, dice: [
            _fill(image, 4096 * n, 4096, dice) for n in range(1, 64) if 4096 * n != start
        ],
    }
    for number in range(24 if whole else 2):
        found[f"damage {number}"] = lambda image, dice: [
            _fill(
                image,
                dice.randrange(max(1, image.stat().st_size - 512)),
                dice.randint(1, 512),
                dice,
            )
            for _ in range(200)
        ]
    return found


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "squashfs"])
def test_damaged_disks(
    make_chroot: Callable[..., driving.Chroot],
    image: Callable[..., Path],
    whole: bool,
    figure: Callable[[int, str], None],
    fstype: str,
) -> None:
    good = image(fstype, name="good")
    web1 = make_chroot(disk=good, read_only=fstype == "squashfs", init_script=None)
    before = kernelview.mount_table()
    refused = started = 0
    for number, (what, damage) in enumerate(_damages(fstype, whole).items()):
        if not whole and fstype != "ext4" and number % 2:
            continue
        dice = random.Random(f"{fstype} {what}")
        disk = good.with_name("damaged.img")
        subprocess.run(["cp", "--sparse=always", str(good), str(disk)], check=True)
        damage(disk, dice)
        kept = _digest(disk)
        disk_instance = chrootfw.Instance(
            "web1",
            disk=str(disk),
            init_script=None,
            params={"read_only": fstype == "squashfs" or bool(number % 2)},
        )
        try:
            web1.runtime.start(disk_instance)
        except chrootfw.ChrootfwError as error:
            assert str(disk) in str(error), (what, str(error))
            assert error.brief and error.brief == error.brief.strip(), what
            assert kernelview.mount_table() == before, what
            assert kernelview.loops_over(disk) == [], what
            assert not web1.root.parent.exists(), what
            # A journal may have been replayed before the kernel gave up; nothing is written to one that is not mounted.
            assert (
                "damage" in what
                or "metadata" in what
                or "signature" in what
                or _digest(disk) == kept
            ), what
            refused += 1
        else:
            started += 1
            web1.runtime.stop("web1", force=True)
            assert kernelview.mount_table() == before, what
            assert kernelview.loops_over(disk) == [], what
        assert web1.state == "absent"
        disk.unlink()
    assert refused >= 2
    figure(
        14,
        f"{fstype}: {refused} of {refused + started} damaged disks refused with an error that names the disk, the others ran; no mount, no loop left",
    )


def test_disks_that_cannot_be_written(
    make_chroot: Callable[..., driving.Chroot],
    image: Callable[..., Path],
    mounted: Callable[..., Path],
    tmp_path: Path,
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    """On a read-only mount, immutable, mode 0400: read-only is asked for, or refused; never silently."""
    tried = 0
    for fstype in ("ext4", "xfs", "btrfs") if whole else ("ext4",):
        disk = image(fstype, name=f"ro-{fstype}")
        kept = _digest(disk)
        place = tmp_path / f"place-{fstype}"
        mounted(place, "--bind", str(tmp_path))
        subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
        for how in ("a read-only mount", "immutable"):
            path = place / disk.name if how == "a read-only mount" else disk
            if (
                how == "immutable"
                and subprocess.run(
                    ["chattr", "+i", str(disk)], check=False, capture_output=True
                ).returncode
            ):
                continue
            try:
                web1 = make_chroot(disk=path, init_script=False)
                refused = web1.cli("start", expect=1, says=[str(path)])
                assert "read" in refused.stderr.lower(), refused
                assert web1.is_gone()
                assert not web1.root.parent.exists()
                web1.define(read_only=True, init_script=False)
                web1.cli("start")
                web1.cli("exec", "--", "/bin/touch", "/x", expect=1)
                web1.cli("stop")
            finally:
                subprocess.run(["chattr", "-i", str(disk)], check=False, capture_output=True)
            assert _digest(disk) == kept
            assert kernelview.loops_over(disk) == []
            tried += 1
    figure(
        14,
        f"{tried} of {tried} disks that cannot be written: refused, unless read_only is asked for; not a byte changed",
    )


def test_a_full_run_directory(
    make_chroot: Callable[..., driving.Chroot],
    image: Callable[..., Path],
    cli: driving.Cli,
    mounted: Callable[..., Path],
    run_dir: Path,
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    """A tiny tmpfs, filled up before each verb: a start says so and leaves nothing, a stop works."""
    mounted(run_dir, "-t", "tmpfs", "-o", "size=256k,mode=0755", "tmpfs")
    cli.ground.know_run_dir(run_dir)
    web1 = make_chroot(disk=image())
    filler = run_dir / ".filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            for size in (4096, 512, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue

    web1.cli("start")
    web1.cli("stop")
    rounds = 0
    for _ in range(10 if whole else 1):
        fill()
        web1.cli("start", expect=1, says=["web1", str(run_dir)])
        assert web1.is_gone()
        assert not (run_dir / "web1").exists()
        filler.unlink()
        web1.cli("start")
        assert web1.state == "running"
        fill()
        assert web1.state == "running"
        web1.cli("reboot", expect=(0, 1))
        web1.cli("stop")
        assert web1.is_gone()
        assert not (run_dir / "web1").exists()
        filler.unlink()
        rounds += 1
    roots.check_image(web1.disk, "ext4")
    figure(
        14,
        f"run directory full, {rounds} of {rounds}: a start is refused and leaves nothing, a stop works",
    )


@pytest.mark.parametrize("fstype", ["ext4", "btrfs"])
def test_the_image_is_truncated_under_the_mount(
    make_chroot: Callable[..., driving.Chroot],
    image: Callable[..., Path],
    figure: Callable[[int, str], None],
    fstype: str,
) -> None:
    """Every read and write beyond the new end is an I/O error; the instance is stopped all the same."""
    web1 = make_chroot(disk=image(fstype))
    web1.cli("start")
    os.truncate(web1.disk, 64 << 10)
    web1.cli(
        "exec",
        "--",
        "/bin/dd",
        "if=/dev/zero",
        "of=/srv/x",
        "bs=1M",
        "count=4",
        "conv=fsync",
        expect=range(256),
    )
    assert [info.state for info in web1.runtime.list()] == ["running"]
    stopped = web1.cli("stop", "--no-script", expect=(0, 1, 4))
    assert stopped.status == 0 or str(web1.disk) in stopped.stderr or "web1" in stopped.brief, (
        stopped
    )
    assert web1.is_gone(), stopped
    assert web1.state == "absent"
    figure(
        14,
        f"{fstype} with its image truncated under the mount: stopped with status {stopped.status}, nothing left",
    )


def _digest(file: Path) -> str:
    """Of where its data is and of what it is; holes are not read."""
    digest = hashlib.sha256(b"%d" % file.stat().st_size)
    with file.open("rb", buffering=0) as opened:
        end = 0
        while True:
            try:
                start = os.lseek(opened.fileno(), end, os.SEEK_DATA)
            except OSError:  # ENXIO: no more data
                return digest.hexdigest()
            end = os.lseek(opened.fileno(), start, os.SEEK_HOLE)
            data = os.pread(opened.fileno(), end - start, start)
            if data.strip(b"\0"):
                digest.update(b"%d" % start + data)
