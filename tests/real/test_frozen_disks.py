"""A file system that a backup tool has frozen (fsfreeze(8)): found before its last unmount, since nothing could thaw it afterwards."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import roots
from driving import Chroot, Result
from kernelview import loops_over, mounts_below

MakeChroot = Callable[..., Chroot]
Freeze = Callable[[Path], None]

#: Seconds within which a stop says that a file system is frozen, on a machine with other things to do.
SOON = 20.0


@pytest.fixture
def freeze() -> Iterator[Freeze]:
    """Freeze what is mounted on a path; it is thawed after the test, if that has not done it."""
    frozen: list[Path] = []

    def do(path: Path) -> None:
        subprocess.run(["fsfreeze", "--freeze", str(path)], check=True)
        frozen.append(path)

    yield do
    for path in frozen:
        subprocess.run(
            ["fsfreeze", "--unfreeze", str(path)], check=False, stderr=subprocess.DEVNULL
        )


def assert_held(chroot: Chroot, verb: str = "stop", at: Path | None = None) -> Result:
    """The verb is refused soon, with every mount in its place, and what its hint says helps.

    A reboot is refused before anything is stopped.
    """
    before, running = mounts_below(chroot.root), chroot.pids() if verb == "reboot" else set()
    began = time.monotonic()
    held = chroot.cli(verb, expect=4, says=[chroot.name, "frozen", str(at or chroot.root)])
    assert time.monotonic() - began < SOON
    assert [mount.id for mount in mounts_below(chroot.root)] == [mount.id for mount in before]
    assert chroot.pids() == running
    (hint,) = [line for line in held.stderr.splitlines() if "hint:" in line]
    command = hint.partition("hint: ")[2].split(";")[0]
    assert command.startswith("fsfreeze -u ")
    subprocess.run(shlex.split(command), check=True)
    assert chroot.state == ("running" if running else "held")
    return held


@pytest.mark.parametrize(
    ("fstype", "verb"),
    [
        ("ext4", "stop"),
        ("ext4", "stop --force"),
        ("ext4", "stop --kill-holders"),
        ("xfs", "stop"),
        ("btrfs", "stop"),
    ],
)
def test_a_frozen_image_is_held_with_its_mounts_in_place(
    make_chroot: MakeChroot, image: Callable[..., Path], freeze: Freeze, fstype: str, verb: str
) -> None:
    web1 = make_chroot(disk=image(fstype), init_script=False)
    web1.cli("start")
    freeze(web1.root)
    assert_held(web1, verb)
    web1.cli("cleanup")
    assert web1.is_gone()
    assert not loops_over(web1.disk)
    roots.check_image(web1.disk, fstype)


def test_a_process_that_does_not_write_is_ended_all_the_same(
    make_chroot: MakeChroot, image: Callable[..., Path], freeze: Freeze
) -> None:
    web1 = make_chroot(disk=image())
    web1.cli("start")
    freeze(web1.root)
    assert_held(web1, "stop --no-script")
    web1.cli("stop")
    assert web1.is_gone()


def test_a_process_that_writes(
    make_chroot: MakeChroot, image: Callable[..., Path], freeze: Freeze
) -> None:
    """It waits in the kernel, where KILL does not reach it; the error says what it waits for."""
    web1 = make_chroot(disk=image())
    web1.cli("start")
    freeze(web1.root)
    web1.cli(
        "exec", "--", "/bin/sh", "-c", "(exec >/dev/null 2>&1; echo x > /srv/file) & sleep 0.2"
    )
    failed = web1.cli("stop --no-script --timeout 0.2", expect=1, says=["web1"])
    assert f"fsfreeze -u {web1.root}" in failed.stderr
    subprocess.run(["fsfreeze", "-u", str(web1.root)], check=True)
    web1.cli("stop")
    assert web1.is_gone()


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_a_read_only_file_system(
    make_chroot: MakeChroot, image: Callable[..., Path], freeze: Freeze, fstype: str
) -> None:
    """Nothing waits for its thaw, and an unmount loses it all the same."""
    web1 = make_chroot(disk=image(fstype), init_script=False, read_only=True)
    web1.cli("start")
    freeze(web1.root)
    assert_held(web1)
    assert {
        mount.options.split(",")[0]
        for mount in mounts_below(web1.root)
        if mount.target == bytes(web1.root)
    } == {"ro"}
    web1.cli("cleanup")
    assert web1.is_gone()
    assert not loops_over(web1.disk)


def test_a_read_only_file_system_on_a_device_that_can_be_written(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    attach: Callable[[Path], str],
    freeze: Freeze,
) -> None:
    file = image()
    web1 = make_chroot(disk=Path(attach(file)), init_script=False, read_only=True)
    kept = file.read_bytes()
    web1.cli("start")
    freeze(web1.root)
    assert_held(web1)
    web1.cli("cleanup")
    assert web1.is_gone()
    assert file.read_bytes() == kept


@pytest.mark.parametrize(
    "place", ["in the open", "below another mount", "twice", "read-only mount"]
)
@pytest.mark.parametrize("verb", ["stop --no-script", "reboot"])
def test_a_frozen_image_that_is_mounted_inside(
    make_chroot: MakeChroot, image: Callable[..., Path], freeze: Freeze, place: str, verb: str
) -> None:
    web1 = make_chroot()
    inner = image(name="inner")
    web1.start()
    at = web1.root / "mnt"
    subprocess.run(["mount", "-o", "loop", str(inner), str(at)], check=True)
    freeze(at)
    if place == "below another mount":
        subprocess.run(["mount", "-t", "tmpfs", "t", str(at)], check=True)
        before = loops_over(inner)
        web1.cli(verb, expect=4, says=["frozen", str(at)])
        assert loops_over(inner) == before
        subprocess.run(["fsfreeze", "-u", str(at)], check=True)
    elif place == "twice":
        subprocess.run(["mount", "--bind", str(at), str(web1.root / "srv")], check=True)
        assert_held(web1, verb, web1.root)
    else:
        if place == "read-only mount":
            subprocess.run(["mount", "-o", "remount,bind,ro", str(at)], check=True)
        assert_held(web1, verb, at)
    web1.cli("stop")
    assert web1.is_gone()
    assert not loops_over(inner)


@pytest.mark.parametrize("verb", ["stop", "reboot"])
def test_a_directory_on_a_frozen_file_system(
    make_chroot: MakeChroot, make_root: Callable[..., Path], image: Callable[..., Path], mounted: Callable[..., Path],
    freeze: Freeze, tmp_path: Path, verb: str,
) -> None:  # fmt: skip
    """Its mount is not the last one: it is stopped; the host thaws its own."""
    host = mounted(tmp_path / "host", "-o", "loop", str(image(name="host")))
    web1 = make_chroot(disk=host, init_script=False)
    web1.cli("start")
    freeze(host)
    web1.cli(verb)
    assert web1.is_gone() is (verb == "stop")
    subprocess.run(["fsfreeze", "-u", str(host)], check=True)
    web1.cli("stop")


@pytest.mark.parametrize("kind", ["directory", "image"])
def test_what_is_to_be_undone_in_a_frozen_root_waits_for_the_thaw(
    make_chroot: MakeChroot, image: Callable[..., Path], mounted: Callable[..., Path], freeze: Freeze, tmp_path: Path,
    kind: str,
) -> None:  # fmt: skip
    host = (
        mounted(tmp_path / "host", "-o", "loop", str(image(name="host")))
        if kind == "directory"
        else image()
    )
    web1 = make_chroot(disk=host, init_script=False, resolv_conf="copy")
    web1.cli("start")
    freeze(web1.root)
    assert "cannot be undone" in assert_held(web1).brief
    web1.cli("cleanup")
    assert web1.is_gone()


@pytest.mark.parametrize("verb", ["stop", "stop --force", "cleanup"])
@pytest.mark.parametrize("kind", ["the disk", "mounted inside", "an image in an image"])
def test_an_image_on_a_frozen_file_system(
    make_chroot: MakeChroot, image: Callable[..., Path], mounted: Callable[..., Path], freeze: Freeze, tmp_path: Path,
    kind: str, verb: str,
) -> None:  # fmt: skip
    """What its unmount writes would wait for the thaw: it is held before that, and the file system that is frozen is named."""
    host = mounted(tmp_path / "host", "-o", "loop", str(image(name="host", size=200 << 20)))
    place = host
    if kind == "an image in an image":
        outer = place / "outer"
        shutil.copy(image(name="middle", size=100 << 20), outer)
        place = mounted(tmp_path / "middle", "-o", "loop", str(outer))
    inner = place / "inner"
    shutil.copy(image(name="inner"), inner)
    if kind == "mounted inside":
        web1 = make_chroot(init_script=False)
        web1.cli("start")
        subprocess.run(["mount", "-o", "loop", str(inner), str(web1.root / "mnt")], check=True)
        (web1.root / "mnt/file").write_text("x")
    else:
        web1 = make_chroot(disk=inner, init_script=False)
        web1.cli("start")
        (web1.root / "file").write_text("x")
    freeze(host)
    before = mounts_below(web1.root)
    began = time.monotonic()
    held = web1.cli(
        verb, expect=4, says=["frozen", str(inner if kind != "an image in an image" else outer)]
    )
    assert time.monotonic() - began < SOON
    assert {mount.id for mount in mounts_below(web1.root)} <= {mount.id for mount in before}
    assert web1.state == "held"
    (hint,) = [line for line in held.stderr.splitlines() if "hint:" in line]
    command = shlex.split(hint.partition("hint: ")[2].split(";")[0])
    assert command[:2] == ["fsfreeze", "-u"]
    subprocess.run(command, check=True)
    web1.cli("cleanup")
    assert web1.is_gone()
    assert not loops_over(inner)


def test_a_read_only_image_on_a_frozen_file_system(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    mounted: Callable[..., Path],
    freeze: Freeze,
    tmp_path: Path,
) -> None:
    """Its unmount writes nothing."""
    host = mounted(tmp_path / "host", "-o", "loop", str(image(name="host", size=200 << 20)))
    shutil.copy(image(name="inner"), host / "inner")
    web1 = make_chroot(disk=host / "inner", init_script=False, read_only=True)
    web1.cli("start")
    freeze(host)
    web1.cli("stop")
    assert web1.is_gone()
