"""Row 13: the mounts of the host are as before, whatever root does with mounts inside."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import driving
import kernelview
import pytest

#: What root tries inside; each as a shell script that goes on whatever fails. The last step tells that it is through.
DEEDS = {
    "mounts": "mount -t tmpfs t /data/sub; mount -t tmpfs t /mnt; mkdir -p /mnt/a/b; mount -t tmpfs t /mnt/a/b; mount --bind / /srv; mount --rbind / /tmp",
    "makes all shared, and mounts": "mount --make-rshared /; mount -t tmpfs t /mnt; mount --rbind / /srv; mount -t tmpfs t /srv/tmp",
    "makes each shared, and unmounts": (
        "for m in / /dev /dev/pts /dev/shm /proc /run /sys /data; do mount --make-shared $m; done\n"
        "mount -t tmpfs t /data; umount /data; umount -l /data; umount -l /sys; umount -l /dev"),
    "unmounts everything": "for i in 1 2 3; do for m in $(cut -d' ' -f5 /proc/mounts /proc/self/mountinfo | sort -r); do umount -l $m; done; done",
    "makes slaves and private": "mount --make-rslave /; mount --make-rprivate /; mount --make-runbindable /; umount -l /proc",
    "moves": "mount -t tmpfs t /mnt; mkdir /mnt/x; mount --move /data /mnt/x; mount --move /run /srv; mount --make-private /; mount --move /dev /tmp",
    # Mounts, and file systems that are the instance's own: the options of one that is bound are the host's as well,
    # and a plain chroot keeps nobody from changing them.
    "remounts": (
        "for m in / /sys /proc /data /dev; do mount -o remount,bind,ro,nosuid,nodev,noexec $m; done\n"
        "mount -o remount,size=1M /run; mount -o remount,ro /dev; mount -o remount,bind,rw /sys"),
    "mounts the host's disk through /data": "mount --rbind /data /mnt; mount --make-rshared /mnt; mount -t tmpfs t /mnt/sub; umount -l /mnt/sub; umount -l /data/sub",
    "in a mount namespace of its own": (
        "unshare -m --propagation shared sh -c 'mount -t tmpfs t /mnt; umount -l /data; mount --move /run /srv' ||"
        "unshare -m sh -c 'mount --make-rshared /; mount -t tmpfs t /mnt; umount -l /data; mount --move /run /srv'"),
}  # fmt: skip


@pytest.mark.parametrize("propagation", ["shared", "private"])
def test_the_mounts_of_the_host_are_unchanged(
    make_chroot: Callable[..., driving.Chroot],
    mounted: Callable[..., Path],
    image: Callable[..., Path],
    cli: driving.Cli,
    run_dir: Path,
    tmp_path: Path,
    whole: bool,
    figure: Callable[[int, str], None],
    propagation: str,
) -> None:
    """``/data`` inside is a bind of a directory of the host, with a mount below it."""
    data = mounted(tmp_path / "data", "-t", "tmpfs", "tmpfs")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    mounted(data / "sub", "-t", "tmpfs", "tmpfs")
    (data / "witness").write_text("here\n")
    (data / "sub/witness").write_text("here\n")
    subprocess.run(["mount", f"--make-r{propagation}", "/"], check=True)
    try:
        tested = acted = 0
        for disk in ("image", "directory") if whole else ("image",):
            for number, (what, deed) in enumerate(DEEDS.items()):
                if not whole and (number % 2) != (propagation == "private"):
                    continue
                name = f"web{disk[0]}{number}"
                chroot = make_chroot(
                    name,
                    **({"disk": image(name=name)} if disk == "image" else {}),
                    binds=[f"{data}:/data"],
                )
                _write_deed(chroot, deed, disk)
                before = _host(run_dir)
                options = Path("/proc/self/mountinfo").read_bytes()
                chroot.cli("start")
                during = _host(run_dir)
                assert during == before, (what, _difference(before, during))
                inside = kernelview.mounts_below(chroot.root)
                done = chroot.cli("exec", "--", "/bin/sh", "/srv/deed", expect=range(256))
                assert done is not None
                acted += kernelview.mounts_below(chroot.root) != inside
                during = _host(run_dir)
                assert during == before, (what, _difference(before, during))
                assert (
                    (data / "witness").read_text() == (data / "sub/witness").read_text() == "here\n"
                ), what
                (data / "written").touch()  # not read-only either
                (data / "written").unlink()
                chroot.cli("stop", "--force")
                after = _host(run_dir)
                assert after == before, (what, _difference(before, after))
                assert Path("/proc/self/mountinfo").read_bytes() == options, what
                assert chroot.is_gone(), what
                chroot.definition.unlink()
                tested += 1
    finally:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    assert acted >= tested / 2, "what is done inside has no effect there"
    figure(
        13,
        f"{tested} of {tested} instances whose root mounts, moves, remounts and unmounts all it can: the mount table outside "
        f"({propagation} /) is the same before, while and after",
    )


def _write_deed(chroot: driving.Chroot, deed: str, disk: str) -> None:
    if disk == "directory":
        (chroot.disk / "srv/deed").write_text(deed)
        return
    place = chroot.disk.with_suffix(".open")
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(chroot.disk), str(place)], check=True)
    (place / "srv/deed").write_text(deed)
    for applet in ("cut", "sort", "unshare"):
        if not (place / "bin" / applet).is_symlink():
            (place / "bin" / applet).symlink_to("busybox")
    subprocess.run(["umount", str(place)], check=True)
    place.rmdir()


def _host(run_dir: Path) -> list[bytes]:
    """The lines of the mount table but those of instances' roots; with options, parents and propagation."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    inside = b" %s/web" % str(run_dir).encode()
    return [line for line in lines if inside not in line]


def _difference(before: list[bytes], now: list[bytes]) -> list[bytes]:
    return [b"- " + line for line in before if line not in now] + [
        b"+ " + line for line in now if line not in before
    ]


def test_the_oracle_sees_every_change(
    mounted: Callable[..., Path], tmp_path: Path, run_dir: Path
) -> None:
    before = _host(run_dir)
    place = mounted(tmp_path / "seen", "-t", "tmpfs", "tmpfs")
    assert len(_difference(before, _host(run_dir))) == 1
    with_it = _host(run_dir)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    assert len(_difference(with_it, _host(run_dir))) == 2
    assert kernelview.mount_on(place) is not None
