"""What chrootfw writes into a root, or removes there: only files that it has made itself, and until
it is undone."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import driving
import kernelview
import pytest
import roots

from chrootfw.linux.call_batch import CallBatch
from chrootfw.linux.root import Root
from chrootfw_defaults import resolver_files

OWN = "nameserver 192.0.2.1\n"
MakeChroot = Callable[..., driving.Chroot]


@pytest.fixture
def web1(make_chroot: MakeChroot) -> driving.Chroot:
    """An instance with a resolver file of its own, which is to be covered by a copy of the
    host's."""
    chroot = make_chroot(resolv_conf="copy")
    (chroot.disk / "etc/resolv.conf").write_text(OWN)
    return chroot


def in_etc(web1: driving.Chroot) -> list[str]:
    return sorted(path.name for path in (web1.disk / "etc").glob("resolv*"))


@pytest.mark.parametrize(
    "name", ["resolv.conf", "resolv.conf.chrootfw-new", "resolv.conf.chrootfw-own"]
)
@pytest.mark.parametrize("kind", ["hard link", "FIFO", "device", "link"])
def test_nothing_that_is_in_the_root_is_written_to(
    web1: driving.Chroot, tmp_path: Path, attach: Callable[[Path], str], name: str, kind: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"the host's".ljust(1 << 20, b"\0"))
    victim.chmod(0o600)
    trap = web1.disk / "etc" / name
    trap.unlink(missing_ok=True)
    if kind == "hard link":
        os.link(victim, trap)
    elif kind == "FIFO":
        os.mkfifo(trap)
    elif kind == "link":
        trap.symlink_to(victim)
    else:
        os.mknod(trap, stat.S_IFBLK | 0o600, os.stat(attach(victim)).st_rdev)
    before = victim.read_bytes()
    web1.cli("start", env={"CHROOTFW_TRACEBACK": ""}, expect=(0, 1))
    web1.cli("stop")
    assert victim.read_bytes() == before
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    assert web1.is_gone()


def test_what_ran_inside_cannot_keep_the_copy_from_being_taken_back(web1: driving.Chroot) -> None:
    web1.start()
    web1.runtime.run(
        "web1", ["/bin/sh", "-c", "cd /etc; rm *-own; mkdir resolv.conf.chrootfw-own"], check=True
    )
    web1.cli("stop")
    assert web1.is_gone()
    assert in_etc(web1) == ["resolv.conf"]
    web1.cli("start")
    web1.cli("stop")
    assert web1.is_gone()


def test_a_directory_in_the_place_of_the_copy_does_not_keep_the_own_file_away(
    web1: driving.Chroot,
) -> None:
    web1.start()
    web1.runtime.run(
        "web1", ["/bin/sh", "-c", "cd /etc; rm resolv.conf; mkdir resolv.conf"], check=True
    )
    web1.cli("stop")
    assert web1.is_gone()
    assert (web1.disk / "etc/resolv.conf").read_text() == OWN
    assert in_etc(web1) == ["resolv.conf"]


@pytest.mark.parametrize("is_own_gone", [False, True])
def test_an_exchanged_etc_keeps_nothing_of_an_undo(
    make_chroot: MakeChroot, monkeypatch: pytest.MonkeyPatch, is_own_gone: bool
) -> None:
    """Another directory is in its place at each look-up; the own file is a directory meanwhile."""
    web1 = make_chroot()
    web1.start()
    etc, other = web1.root / "etc", web1.root / "srv/etc"
    other.mkdir(parents=True)
    step = resolver_files.CopyHostFile("/etc/resolv.conf", str(web1.root))
    facts = step.apply()
    (etc / "resolv.conf.chrootfw-own").mkdir()
    carry_out = Root.carry_out

    def exchanging(root: Root, path: str, calls: CallBatch, **how: int) -> None:
        names = b" ".join(calls.names)
        if is_own_gone and names.count(b"renameat2") > 1:
            (etc / "resolv.conf.chrootfw-own").rmdir()
        carry_out(root, path, calls, **how)
        if names.count(b"renameat2") > 1:
            etc.rename(web1.root / "srv/before")
            other.rename(etc)

    monkeypatch.setattr(Root, "carry_out", exchanging)
    with contextlib.suppress(OSError):
        step.undo({"facts": facts})
    web1.stop()
    assert not list(web1.disk.rglob("resolv.conf.chrootfw-*"))


@pytest.mark.parametrize(("covered", "verb"), [("/etc", "stop"), ("/", "stop"), ("/etc", "reboot")])
def test_what_is_mounted_over_the_copy_does_not_keep_the_own_file_away(
    web1: driving.Chroot, covered: str, verb: str
) -> None:
    web1.start()
    web1.runtime.run("web1", ["/bin/mount", "-t", "tmpfs", "cover", covered], check=True)
    web1.cli(verb)
    if verb == "reboot":
        assert (web1.root / "etc/resolv.conf").read_bytes() == Path("/etc/resolv.conf").read_bytes()
        web1.cli("stop")
    assert web1.is_gone()
    assert (web1.disk / "etc/resolv.conf").read_text() == OWN
    assert in_etc(web1) == ["resolv.conf"]


def test_a_root_without_the_file_has_none_afterwards(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(resolv_conf="copy")
    web1.start()
    assert (web1.root / "etc/resolv.conf").read_bytes() == Path("/etc/resolv.conf").read_bytes()
    web1.cli("stop")
    assert in_etc(web1) == []


@pytest.mark.parametrize("verb", ["stop", "cleanup"])
@pytest.mark.parametrize("boot", ["this", "another"])
def test_an_undo_that_cannot_reach_its_root_is_not_done(
    make_chroot: MakeChroot, make_root: Callable[..., Path], verb: str, boot: str
) -> None:
    """Somebody has unmounted the root, or the machine was started anew: the root's own file is not
    back yet."""
    web1 = make_chroot(resolv_conf="copy", init_script=False)
    own = web1.disk / "etc/resolv.conf"
    own.write_text(OWN)
    web1.start()
    for mounted in reversed(kernelview.mounts_below(web1.root)):
        subprocess.run(["umount", os.fsdecode(mounted.target)], check=True)
    assert own.read_text() != OWN
    record = Path(web1.runtime.run_dir) / "web1/record.json"
    if boot == "another":
        record.write_text(
            json.dumps({**json.loads(record.read_text()), "boot_id": "of-another-boot"}) + "\n"
        )
    for _ in range(2):
        refused = web1.cli(verb, expect=1 if boot == "this" else 0)
        assert "copy-host-file" in refused.stderr
        assert record.exists()
    web1.cli("start")
    assert (web1.root / "etc/resolv.conf").read_bytes() == Path("/etc/resolv.conf").read_bytes()
    web1.cli("stop")
    assert own.read_text() == OWN
    assert in_etc(web1) == ["resolv.conf"]
    assert web1.is_gone()


@pytest.mark.parametrize("is_writable_again", [True, False])
def test_an_undo_that_fails_is_tried_a_second_time_before_the_disk_is_unmounted(
    make_chroot: MakeChroot, is_writable_again: bool
) -> None:
    web1 = make_chroot(resolv_conf="copy")
    own = web1.disk / "etc/resolv.conf"
    own.write_text(OWN)
    web1.start()
    subprocess.run(["mount", "-o", "remount,bind,ro", str(web1.root)], check=True)
    refused = web1.cli("stop", expect=1)
    assert "copy-host-file" in refused.stderr
    assert kernelview.mount_on(web1.root)
    if is_writable_again:
        subprocess.run(["mount", "-o", "remount,bind,rw", str(web1.root)], check=True)
        web1.cli("cleanup")
    else:
        web1.cli("cleanup", expect=1)
        assert not kernelview.mounts_below(web1.root)
        web1.cli("start")
        web1.cli("stop")
    assert own.read_text() == OWN
    assert web1.is_gone()


def test_what_was_not_undone_on_one_disk_is_not_undone_on_another(
    make_chroot: MakeChroot, make_root: Callable[..., Path]
) -> None:
    web1 = make_chroot(resolv_conf="copy", init_script=False)
    web1.start()
    for mounted in reversed(kernelview.mounts_below(web1.root)):
        subprocess.run(["umount", os.fsdecode(mounted.target)], check=True)
    web1.cli("stop", expect=1)
    other = make_root("other")
    (other / "etc/resolv.conf").write_text(OWN)
    refused = web1.cli("start", "--disk", str(other), expect=1)
    assert str(web1.disk) in refused.stderr
    web1.cli("cleanup", "--forget")
    web1.cli("start", "--disk", str(other))
    web1.cli("stop")
    assert (other / "etc/resolv.conf").read_text() == OWN
    assert web1.is_gone()


@pytest.mark.parametrize("kind", ["fifo", "large"])
def test_a_host_file_that_is_no_resolver_file_is_not_copied(
    web1: driving.Chroot, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "file"
    if kind == "fifo":
        os.mkfifo(file)
    else:
        file.touch()
        os.truncate(file, 40 << 30)
    host = os.path.realpath("/etc/resolv.conf")
    subprocess.run(
        ["mount", "--bind", str(file), host], check=True
    )  # in the tests' own mount namespace
    try:
        web1.cli("start", expect=1, says=["/etc/resolv.conf of the host"])
    finally:
        subprocess.run(["umount", host], check=True)
    assert (web1.disk / "etc/resolv.conf").read_text() == OWN
    assert web1.is_gone()


def test_a_full_disk_gets_no_half_copy(
    make_chroot: MakeChroot, mounted: Callable[..., Path], tmp_path: Path
) -> None:
    disk = mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=3m,mode=755", "small")
    roots.make_root(disk)
    (disk / "etc/resolv.conf").write_text(OWN)
    with contextlib.suppress(OSError), open(disk / "filled", "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    web1 = make_chroot(disk=disk, resolv_conf="copy", init_script=False)
    web1.cli("start", expect=1, says=["No space left"])
    assert (disk / "etc/resolv.conf").read_text() == OWN
    assert web1.is_gone()
