"""A reboot asks what can be asked before it stops anything; refused, it leaves the service running."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driving import Chroot
from kernelview import mount_on

import chrootfw

pytestmark = pytest.mark.quick

MakeChroot = Callable[..., Chroot]


def _remove_script(web1: Chroot) -> None:
    (web1.root / "etc/chrootfw/init").unlink()


def _forbid_script(web1: Chroot) -> None:
    (web1.root / "etc/chrootfw/init").chmod(0o644)


def _remove_interpreter(web1: Chroot) -> None:
    (web1.root / "etc/chrootfw/init").write_text("#!/bin/no-such\n")


def _give_away_root(web1: Chroot) -> None:
    web1.root.chmod(0o777)


def _remove_bind_source(web1: Chroot) -> None:
    (web1.disk.parent / "data").rmdir()


def _lose_record_and_definition(web1: Chroot) -> None:
    (web1.root.parent / "record.json").unlink()
    web1.definition.write_text("this is not TOML")


def _lose_record_and_mistype(web1: Chroot) -> None:
    (web1.root.parent / "record.json").unlink()
    web1.define(grace="soon")


OBSTACLES = {
    _remove_script: "does not exist inside the root",
    _forbid_script: "is not executable",
    _remove_interpreter: "/bin/no-such does not exist",
    _give_away_root: "writable by others",
    _remove_bind_source: "/data does not exist",
    _lose_record_and_definition: "not valid TOML",
    _lose_record_and_mistype: "grace",
}


@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda each: each.__name__)
def test_what_can_be_asked_is_asked_before_anything_is_stopped(
    make_chroot: MakeChroot, tmp_path: Path, obstacle: Callable[[Chroot], None]
) -> None:
    (tmp_path / "data").mkdir()
    web1 = make_chroot(binds=[f"{tmp_path}/data:/srv"])
    web1.start()
    before = web1.pids()
    obstacle(web1)

    refused = web1.cli("reboot", expect=(1, 2))

    assert OBSTACLES[obstacle] in refused.stderr
    _assert_untouched(web1, before)


class _Refuses:
    """A plugin that finds a problem, once it is set to."""

    def __init__(self, what: str) -> None:
        self.what, self.is_due = what, False

    @chrootfw.hookimpl
    def chrootfw_pre_start(self, root: Any) -> list[Any]:
        if self.is_due and self.what == "problem":
            return [chrootfw.Problem("the database is not migrated", "migrate it")]
        if self.is_due and self.what == "pre-start fails":
            raise OSError("no licence")
        return []

    @chrootfw.hookimpl
    def chrootfw_mount(self) -> list[Any]:
        if self.is_due and self.what == "mount fails":
            raise OSError("no licence")
        if self.is_due and self.what == "no such file system":
            return [chrootfw.MountPoint("/mnt", "nofs", "nofs")]
        return []

    @chrootfw.hookimpl(tryfirst=True)
    def chrootfw_enter(self) -> chrootfw.Entry | None:
        return chrootfw.Entry(user="nobody-knows") if self.is_due and self.what == "user" else None


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("problem", "the database is not migrated"),
        ("pre-start fails", "no licence"),
        ("mount fails", "no licence"),
        ("no such file system", "nofs"),
        ("user", "nobody-knows"),
    ],
)
def test_a_plugin_that_refuses_is_asked_first(
    web1: Chroot, runtime: chrootfw.Runtime, what: str, words: str
) -> None:
    plugin = _Refuses(what)
    mine = runtime.with_plugins(plugin)
    mine.start("web1")
    before = web1.pids()
    plugin.is_due = True
    with pytest.raises(chrootfw.ChrootfwError, match=words):
        mine.reboot("web1")
    _assert_untouched(web1, before)


def test_a_record_that_cannot_be_written(
    make_chroot: MakeChroot, run_dir: Path, mounted: Callable[..., Path]
) -> None:
    mounted(run_dir, "-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs")
    web1 = make_chroot()
    web1.start()
    before = web1.pids()
    full = run_dir / "full"
    subprocess.run(["dd", "if=/dev/zero", f"of={full}", "bs=4k"], capture_output=True, check=False)
    web1.cli("reboot", expect=1, says=["record"])
    full.unlink()
    _assert_untouched(web1, before)
    web1.stop()


def test_a_holder_of_what_is_to_be_mounted_afresh(
    web1: Chroot, outside: Callable[..., subprocess.Popen[str]]
) -> None:
    """The root stays mounted, so who uses only that is in nobody's way."""
    web1.start()
    outside("sleep", "3600", cwd=web1.root / "srv")
    web1.cli("reboot")
    holder = outside("sleep", "3600", cwd=web1.root / "run")
    before = web1.pids()

    refused = web1.cli("reboot", expect=4, says=["cannot reboot web1", "other processes"])

    assert f"pid {holder.pid} (sleep" in refused.stderr
    assert (web1.state, web1.pids()) == ("running", before)
    assert web1.calls() == ["start", "stop", "start"]


def test_a_frozen_root_that_is_to_be_written_to(
    make_chroot: MakeChroot, image: Callable[..., Path]
) -> None:
    web1 = make_chroot(disk=image(), resolv_conf="copy")
    web1.start()
    before = web1.pids()
    subprocess.run(["fsfreeze", "-f", str(web1.root)], check=True)
    try:
        refused = web1.cli("reboot", expect=4, says=["cannot reboot web1", "frozen"])
    finally:
        subprocess.run(["fsfreeze", "-u", str(web1.root)], check=True)
    assert f"fsfreeze -u {web1.root}; then chrootfw reboot web1" in refused.stderr
    _assert_untouched(web1, before)


@pytest.mark.parametrize("kind", ["image", "directory"])
def test_the_path_of_a_disk_that_stays_mounted_is_not_needed(
    make_chroot: MakeChroot, image: Callable[..., Path], kind: str
) -> None:
    web1 = make_chroot(disk=image()) if kind == "image" else make_chroot()
    web1.start()
    before, mount = web1.pids(), web1.root_mount
    moved = web1.disk.rename(web1.disk.with_name("moved"))
    web1.cli("reboot")
    assert web1.root_mount == mount
    assert web1.pids()
    assert not web1.pids() & before
    moved.rename(web1.disk)


def test_another_mount_over_the_root_is_no_disk_of_its_own(web1: Chroot) -> None:
    web1.start()
    before = web1.pids()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(web1.root)], check=True)
    web1.cli("reboot", expect=1, says=["something else is mounted"])
    subprocess.run(["umount", str(web1.root)], check=True)
    _assert_untouched(web1, before)


def _assert_untouched(web1: Chroot, before: set[int]) -> None:
    assert mount_on(web1.root)
    assert web1.pids() == before
    assert web1.state == "running"
    assert web1.calls() == ["start"]
