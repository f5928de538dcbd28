"""Options of binds and directories do what they say, or are refused; what is left out is named."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from driving import Chroot
from kernelview import mount_on

import chrootfw
from chrootfw_hardened import hardening

pytestmark = pytest.mark.quick

MakeChroot = Callable[..., Chroot]
Mounted = Callable[..., Path]


@pytest.fixture
def runtime(run_dir: Path, config_dir: Path) -> chrootfw.Runtime:
    return chrootfw.Runtime([hardening], run_dir=str(run_dir), config_dir=str(config_dir))


def _options(path: Path) -> set[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines()[::-1]:
        fields = line.split()
        if fields[4] == str(path):
            return set(fields[5].split(","))
    raise AssertionError(f"nothing is mounted on {path}")


# -- suid, dev, exec ------------------------------------------------------------------------------------


@pytest.fixture
def restricted(tmp_path: Path, mounted: Mounted) -> Path:
    """A directory on a file system that is mounted without suid programs, devices and programs."""
    return mounted(tmp_path / "usb", "-t", "tmpfs", "-o", "nosuid,nodev,noexec,mode=755", "tmpfs")


def test_a_directory_as_disk_takes_back_what_its_file_system_has(
    make_chroot: MakeChroot, make_root: Callable[..., Path], restricted: Path
) -> None:
    subprocess.run(["cp", "-a", str(make_root()), f"{restricted}/root"], check=True)
    web1 = make_chroot(disk=restricted / "root", mount_options=["suid", "dev", "exec"])
    started = web1.cli("start")
    assert not _options(web1.root) & {"nosuid", "nodev", "noexec"}
    assert "nosuid" not in started.stderr
    web1.cli("exec", "--", "/bin/true")
    web1.cli("reboot")
    assert not _options(web1.root) & {"nosuid", "nodev", "noexec"}
    assert {"nosuid", "nodev", "noexec"} <= _options(restricted)


def test_without_them_each_is_named(
    make_chroot: MakeChroot, make_root: Callable[..., Path], restricted: Path
) -> None:
    subprocess.run(["cp", "-a", str(make_root()), f"{restricted}/root"], check=True)
    web1 = make_chroot(disk=restricted / "root")
    refused = web1.cli("start", expect=1)
    assert "noexec" in refused.stderr
    assert 'mount_options = ["exec"]' in refused.stderr
    web1.define(mount_options=["exec"])
    started = web1.cli("start")
    assert "nosuid" in started.stderr
    assert 'mount_options = ["suid"]' in started.stderr
    web1.cli("reboot")
    assert "nosuid" in _options(web1.root), "a reboot takes nothing back that nobody asked for"
    web1.stop()
    web1.define(mount_options=["exec", "nosuid"])
    assert "nosuid" not in web1.cli("start").stderr
    web1.stop()
    web1.define(mount_options=["exec"], hardened=True)
    assert "suid" not in web1.cli("start").stderr


@pytest.mark.parametrize(
    ("words", "has"),
    [
        ("", {"nosuid", "nodev", "noexec"}),
        (":suid", {"nodev", "noexec"}),
        (":dev,exec", {"nosuid"}),
        (":ro,suid,dev,exec", {"ro"}),
    ],
)
def test_a_bind_takes_back(
    make_chroot: MakeChroot, restricted: Path, words: str, has: set[str]
) -> None:
    web1 = make_chroot(binds=[f"{restricted}:/mnt{words}"])
    web1.start()
    assert _options(web1.root / "mnt") & {"ro", "nosuid", "nodev", "noexec"} == has


@pytest.mark.parametrize("word", ["nosuid", "nodev", "noexec", "ro"])
def test_a_bind_can_have_less(make_chroot: MakeChroot, tmp_path: Path, word: str) -> None:
    (tmp_path / "data").mkdir()
    web1 = make_chroot(binds=[f"{tmp_path}/data:/mnt:{word}"])
    web1.start()
    assert word in _options(web1.root / "mnt")


@pytest.mark.parametrize("word", ["suid", "dev"])
@pytest.mark.parametrize("what", ["bind", "disk"])
def test_hardened_takes_nothing_back(
    make_chroot: MakeChroot, restricted: Path, word: str, what: str
) -> None:
    given = (
        {"binds": [f"{restricted}:/mnt:{word}"]} if what == "bind" else {"mount_options": [word]}
    )
    web1 = make_chroot(hardened=True, **given)
    refused = web1.cli("start", expect=1, says=[f"the option {word}"])
    assert "hardened" in refused.stderr
    assert web1.is_gone()


@pytest.mark.parametrize("words", ["banana", "ro,ro=1", "", "remount"])
def test_another_word_is_refused(make_chroot: MakeChroot, words: str) -> None:
    web1 = make_chroot(binds=[f"/etc:/mnt:{words}"])
    web1.cli("start", expect=1, says=["binds"])


# -- what is mounted below a source ---------------------------------------------------------------------


@pytest.fixture
def volumes(tmp_path: Path, mounted: Mounted) -> Path:
    """A directory with a file system on it, and another one in that."""
    top = tmp_path / "data"
    top.mkdir()
    outer = mounted(top / "outer", "-t", "tmpfs", "-o", "mode=755", "tmpfs")
    (mounted(outer / "inner", "-t", "tmpfs", "tmpfs") / "file").touch()
    (outer / "file").touch()
    return top


def test_what_a_bind_leaves_out_is_named(make_chroot: MakeChroot, volumes: Path) -> None:
    web1 = make_chroot(binds=[f"{volumes}:/mnt"])
    warned = web1.cli("start").stderr
    assert f"{volumes}/outer" in warned
    assert f"{volumes}/outer/inner" in warned
    assert "rbind" in warned
    assert not list((web1.root / "mnt/outer").iterdir())


def test_rbind_brings_it_along(make_chroot: MakeChroot, volumes: Path) -> None:
    web1 = make_chroot(binds=[f"{volumes}:/mnt:rbind,nosuid"])
    assert "mounted below" not in web1.cli("start").stderr
    for place in ("mnt/outer", "mnt/outer/inner"):
        assert (web1.root / place / "file").exists()
        assert "nosuid" in _options(web1.root / place)
    web1.cli("reboot")
    assert (web1.root / "mnt/outer/inner/file").exists()
    web1.stop()
    assert web1.is_gone()
    assert (volumes / "outer/inner/file").exists()


def test_a_directory_as_disk(make_chroot: MakeChroot, mounted: Mounted) -> None:
    web1 = make_chroot()
    (mounted(web1.disk / "srv", "-t", "tmpfs", "-o", "mode=755", "tmpfs") / "file").touch()
    mounted(web1.disk / "proc", "-t", "tmpfs", "tmpfs")  # where the instance has its own
    warned = web1.cli("start").stderr
    assert f"{web1.disk}/srv" in warned
    assert f"{web1.disk}/proc" not in warned
    assert 'mount_options = ["rbind"]' in warned
    web1.cli("stop")
    web1.define(mount_options=["rbind"])
    assert "mounted below" not in web1.cli("start").stderr
    assert (web1.root / "srv/file").exists()
    assert (web1.root / "proc/self").exists()
    web1.cli("reboot")
    assert (web1.root / "srv/file").exists()
    web1.cli("stop")
    assert web1.is_gone()
    assert (web1.disk / "srv/file").exists()


def test_an_rbind_in_a_hardened_instance_keeps_its_rules(
    make_chroot: MakeChroot, volumes: Path
) -> None:
    web1 = make_chroot(hardened=True, binds=[f"{volumes}:/mnt:rbind"])
    web1.cli("start")
    for place in ("mnt", "mnt/outer", "mnt/outer/inner"):
        assert {"nosuid", "nodev"} <= _options(web1.root / place)


@pytest.mark.parametrize("fstype", ["cgroup2", "debugfs", "devtmpfs", "devpts", "mqueue"])
def test_a_hardened_instance_gets_no_interface_of_the_kernels_by_rbind(
    make_chroot: MakeChroot, tmp_path: Path, mounted: Mounted, fstype: str
) -> None:
    (tmp_path / "data").mkdir()
    mounted(tmp_path / "data/it", "-t", fstype, fstype)
    web1 = make_chroot(hardened=True, binds=[f"{tmp_path}/data:/mnt:rbind"])
    refused = web1.cli("start", expect=1)
    assert f"rbind brings the host's {fstype}" in refused.stderr
    assert "/mnt/it" in refused.stderr
    assert web1.is_gone()


@pytest.mark.parametrize("above", [False, True])
def test_a_hardened_instance_gets_no_run_directory_to_write_to(
    make_chroot: MakeChroot, run_dir: Path, above: bool
) -> None:
    """Its record says what the next exec may do."""
    source = run_dir.parent if above else run_dir
    web1 = make_chroot(hardened=True, binds=[f"{source}:/mnt"])
    refused = web1.cli("start", expect=1)
    assert "/mnt contains the run directory" in refused.stderr
    assert web1.is_gone()
    web1.define(hardened=True, binds=[f"{source}:/mnt:ro"])
    web1.cli("start")
    web1.cli("stop")


def test_a_hardened_instance_gets_no_part_of_it_and_no_definitions(
    make_chroot: MakeChroot, run_dir: Path, config_dir: Path
) -> None:
    """The record of another instance says what runs there, and a definition names plugins, which run outside."""
    part = run_dir / "web2"
    part.mkdir(mode=0o700)
    for source, what in (
        (part, "the run directory"),
        (config_dir, "the directory of the definitions"),
    ):
        web1 = make_chroot("web1", hardened=True, binds=[f"{source}:/mnt"])
        refused = web1.cli("start", expect=1)
        assert f"/mnt contains {what}" in refused.stderr
        assert web1.is_gone()
    part.rmdir()


def test_a_link_in_the_root_hides_no_interface_of_the_kernels(
    make_chroot: MakeChroot, tmp_path: Path, mounted: Mounted
) -> None:
    """Root inside can make the way to a bind's target a symbolic link."""
    (tmp_path / "data").mkdir()
    mounted(tmp_path / "data/it", "-t", "devpts", "devpts")
    web1 = make_chroot(hardened=True, binds=[f"{tmp_path}/data:/data/in:rbind"])
    (web1.disk / "elsewhere/in").mkdir(parents=True)
    (web1.disk / "data").symlink_to("/elsewhere")
    refused = web1.cli("start", expect=1)
    assert "rbind brings the host's devpts" in refused.stderr
    assert "/elsewhere/in/it" in refused.stderr
    assert web1.is_gone()


def test_a_hardened_instance_gets_no_terminals_of_the_disks_own_dev(
    make_chroot: MakeChroot, mounted: Mounted
) -> None:
    web1 = make_chroot(
        hardened=True, api_filesystems=["proc", "sys", "run"], mount_options=["rbind"]
    )
    (web1.disk / "dev/pts").mkdir(parents=True)
    mounted(web1.disk / "dev/pts", "-t", "devpts", "devpts")
    assert "rbind brings the host's devpts" in web1.cli("start", expect=1).stderr
    assert web1.is_gone()


# -- names with colons ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a:b", ":", "a:ro", "back\\slash", "two\\\\", "a\\:b"])
def test_a_colon_in_a_path(make_chroot: MakeChroot, tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.mkdir()
    (source / "file").touch()
    escaped = name.replace("\\", "\\\\").replace(":", "\\:")
    web1 = make_chroot(binds=[f"{tmp_path}/{escaped}:/srv/{escaped}:ro"])
    web1.start()
    assert (web1.root / "srv" / name / "file").exists()
    assert "ro" in next(
        mount["options"]
        for mount in web1.cli("info", "--json").json()["instances"][0]["mounts"]
        if mount["target"].endswith(name)
    )


def test_the_hint_for_a_link_escapes_too(make_chroot: MakeChroot, tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a:b")
    web1 = make_chroot(binds=[f"{tmp_path}/link:/mnt"])
    refused = web1.cli("start", expect=1)
    web1.define(binds=[f"{tmp_path}/a\\:b:/mnt"])
    assert json.dumps([f"{tmp_path}/a\\:b:/mnt"]) in refused.stderr
    web1.start()


# -- /dev and /run --------------------------------------------------------------------------------------


def test_dev_and_run_are_left_to_the_disk(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(api_filesystems=["proc", "sys"])
    (web1.disk / "run/own").touch()
    os.mknod(web1.disk / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    web1.start()
    assert mount_on(web1.root / "proc")
    assert not mount_on(web1.root / "dev")
    assert not mount_on(web1.root / "run")
    assert (web1.root / "run/own").exists()
    web1.cli("exec", "--", "/bin/sh", "-c", "echo x > /dev/null")
    web1.cli("reboot")
    web1.cli("stop")
    assert web1.is_gone()


@pytest.mark.parametrize("value", [["tmp"], "dev", [1]])
def test_a_wrong_list(make_chroot: MakeChroot, value: object) -> None:
    make_chroot(api_filesystems=value).cli("start", expect=1, says=["api_filesystems"])


@pytest.mark.parametrize("hardened", [False, True])
def test_devices_of_the_definition(make_chroot: MakeChroot, hardened: bool) -> None:
    web1 = make_chroot(hardened=hardened, devices=["/dev/loop-control", "/dev/kmsg:0600"])
    web1.cli("start")
    for name, mode in (("loop-control", None), ("kmsg", 0o600)):
        host, inside = os.stat(f"/dev/{name}"), os.stat(web1.root / "dev" / name)
        assert stat.S_ISCHR(inside.st_mode)
        assert inside.st_rdev == host.st_rdev
        assert inside.st_mode & 0o777 == (mode or host.st_mode & 0o777)
        assert inside.st_ino != host.st_ino, "its mode inside is its own"


def test_a_block_device_in_a_directory(
    make_chroot: MakeChroot, tmp_path: Path, attach: Callable[[Path], str]
) -> None:
    (tmp_path / "file").write_bytes(b"data".ljust(1 << 20))
    device = attach(tmp_path / "file")
    web1 = make_chroot(devices=[device])
    web1.start()
    read = web1.cli("exec", "--", "/bin/dd", f"if={device}", "bs=4", "count=1")
    assert read.stdout == "data"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["/etc/passwd"], "/dev/"),
        (["/dev/no-such"], "/dev/no-such"),
        (["/dev/../etc"], "/dev/../etc"),
        (["/dev/shm"], "/dev/shm"),
        (["/dev/pts/ptmx"], "/dev/pts/ptmx"),
        (["/dev/kmsg:9"], "mode"),
        (["dev/null"], "absolute"),
    ],
)
def test_a_wrong_device(make_chroot: MakeChroot, value: list[str], words: str) -> None:
    web1 = make_chroot(devices=value)
    refused = web1.cli("start", expect=1)
    assert words in refused.stderr
    assert web1.is_gone()


def test_devices_need_a_dev_of_the_instances(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(devices=["/dev/full"], api_filesystems=["proc", "run"])
    web1.cli("start", expect=1, says=["devices"])


def test_a_source_that_is_missing_is_named_with_its_parameter(
    make_chroot: MakeChroot, tmp_path: Path
) -> None:
    web1 = make_chroot(binds=[f"{tmp_path}/my data:/mnt"])
    refused = web1.cli("start", expect=1)
    assert f"cannot mount {tmp_path}/my data on /mnt: {tmp_path}/my data does not exist" in (
        refused.stderr
    )
    assert f"mkdir -p '{tmp_path}/my data', or take it out of binds: chrootfw show web1" in (
        refused.stderr
    )
    assert web1.is_gone()
