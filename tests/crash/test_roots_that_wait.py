"""Row 10 again: a root, or a part of it, that does not answer, is frozen, or is leased keeps no
manager, no lock and no signal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import driving
import kernelview
import pytest
import roots
from fuse_server import Fuse

MakeChroot = Callable[..., driving.Chroot]

#: Seconds for a root to answer before a command is run in it (``docs/explanation/reliability.md``), and how
#: long a command may take besides.
ANSWERS, BESIDES = 10.0, 15.0
#: ``disk_timeout`` in these tests.
PATIENCE = 2.0

LEASE = """
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
for path in sys.argv[1:]:
    fcntl.fcntl(os.open(path, os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
time.sleep(3600)
"""


@contextlib.contextmanager
def silent(source: Path, place: Path) -> Iterator[Fuse]:
    """A server that shows a directory at another place, and is silent from now on."""
    server = Fuse(source, place)
    try:
        server.fall_silent()
        yield server
    finally:
        server.end()
        for stream in (server.process.stdin, server.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def freeze() -> Iterator[Callable[[Path], Callable[[], None]]]:
    """Freeze the file system at a path; what it returns thaws it."""
    frozen: list[int] = []

    def make(path: Path) -> Callable[[], None]:
        fd = os.open(path, os.O_RDONLY)
        fcntl_freeze(fd)
        frozen.append(fd)

        def thaw() -> None:
            if fd in frozen:
                frozen.remove(fd)
                fcntl_thaw(fd)
                os.close(fd)

        return thaw

    yield make
    for fd in frozen:
        fcntl_thaw(fd)
        os.close(fd)


def fcntl_freeze(fd: int) -> None:
    import fcntl

    fcntl.ioctl(fd, 0xC0045877, 0)  # FIFREEZE


def fcntl_thaw(fd: int) -> None:
    import fcntl

    fcntl.ioctl(fd, 0xC0045878, 0)  # FITHAW


@pytest.fixture
def frozen_disk(
    image: Callable[..., Path],
    mounted: Callable[..., Path],
    freeze: Callable[[Path], Callable[[], None]],
    tmp_path: Path,
) -> Callable[[], tuple[Path, Callable[[], None]]]:
    """A root directory on a file system that is then frozen, and what thaws it."""

    def make() -> tuple[Path, Callable[[], None]]:
        disk = mounted(
            tmp_path / "mounted", "-o", "loop", str(image(init=roots.script(start=roots.DAEMON)))
        )
        (disk / "sys").rmdir()
        os.sync()
        return disk, freeze(disk)

    return make


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def waits_in_the_kernel(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"


def test_a_command_in_a_root_whose_etc_is_silent(
    make_chroot: MakeChroot, cli: driving.Cli, tmp_path: Path
) -> None:
    web1 = make_chroot(grace=0.5)
    web1.start()
    (tmp_path / "store").mkdir()
    with silent(tmp_path / "store", web1.root / "etc"):
        with within(ANSWERS + BESIDES):
            ran = cli("exec", "web1", "--", "/bin/sh", "-c", "echo words")
        assert ran.stdout == "words\n"
        assert "/etc/passwd" in ran.stderr
        assert "chrootfw's own, waits" in ran.stderr
        with within(ANSWERS + BESIDES):
            cli(
                "exec", "web1", "--user", "0:99", "--", "/bin/true"
            )  # of another user busybox itself would read /etc
        with within(ANSWERS + BESIDES):
            refused = cli(
                "exec",
                "web1",
                "--user",
                "nobody",
                "--",
                "/bin/true",
                expect=125,
                says=["/etc/passwd"],
            )
        assert "chrootfw's own, waits" in refused.stderr
        for verb in (["list"], ["info", "web1"], ["ps", "web1"], ["verify"]):
            with within(BESIDES):
                cli(*verb)
        shell = cli.begin("shell", "web1", stdin=subprocess.PIPE)
        kernelview.wait_until(
            lambda: len(web1.pids("sh")),
            "the shell runs, and waits itself",
            seconds=ANSWERS + BESIDES,
        )
        assert not waits_in_the_kernel(shell.pid)
    ended = cli.end(shell, input="echo shell $((3 + 4))\n")
    assert "shell 7" in ended.stdout
    kernelview.wait_until(
        lambda: cli("stop", "web1", "--no-script", expect=(0, 4)).status == 0, "it is stopped"
    )
    assert web1.is_gone()


def test_a_lease_keeps_nobody_waiting(
    make_chroot: MakeChroot, cli: driving.Cli, outside: Callable[..., Any]
) -> None:
    web1 = make_chroot(init=roots.script(start=roots.DAEMON), grace=0.5)
    web1.start()
    paths = [str(web1.root / path) for path in ("etc/passwd", "etc/group", "etc/chrootfw/init")]
    process = outside(sys.executable, "-c", LEASE, *paths, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "leased\n"
    with within(BESIDES):
        ran = cli("exec", "web1", "--", "/bin/true")
    assert f"leased by pid {process.pid}" in ran.stderr
    with within(BESIDES):
        stopped = cli("stop", "web1", "--kill-holders")
    assert f"leased by pid {process.pid}" in stopped.stderr
    process.wait()
    assert web1.is_gone()


def test_a_mount_point_that_has_to_be_made_on_a_frozen_disk(
    make_chroot: MakeChroot,
    cli: driving.Cli,
    frozen_disk: Callable[[], tuple[Path, Callable[[], None]]],
) -> None:
    disk, thaw = frozen_disk()
    web1 = make_chroot(disk=disk, disk_timeout=PATIENCE)
    with within(PATIENCE + BESIDES):
        refused = cli("start", "web1", expect=1, says=["/sys", "no answer"])
    assert "fsfreeze" in refused.stderr
    assert "chrootfw's own, waits for it" in refused.stderr
    thaw()
    kernelview.wait_until(
        lambda: cli("stop", "web1", expect=(0, 1, 4)).status == 0, "what was held is stopped"
    )
    cli("start", "web1")
    cli("stop", "web1")
    assert web1.is_gone()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_start_on_a_frozen_disk(
    make_chroot: MakeChroot,
    cli: driving.Cli,
    frozen_disk: Callable[[], tuple[Path, Callable[[], None]]],
    signum: int,
) -> None:
    disk, thaw = frozen_disk()
    web1 = make_chroot(disk=disk, disk_timeout=300)
    command = cli.begin("start", "web1")
    time.sleep(2)
    assert command.poll() is None
    assert not waits_in_the_kernel(command.pid)
    command.send_signal(signum)
    with within(PATIENCE + BESIDES):
        command.wait()
    command.communicate()
    with within(BESIDES):
        cli("list")
    thaw()
    kernelview.wait_until(
        lambda: cli("stop", "web1", expect=(0, 1, 4)).status == 0, "what was held is stopped"
    )
    assert web1.is_gone()


def own_file(image: Path) -> str:
    """/etc/resolv.conf as the image has it, and what lies beside it."""
    shown = subprocess.run(
        ["debugfs", "-R", "cat /etc/resolv.conf", str(image)],
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout


def image_with_resolver(
    make_root: Callable[..., Path], tmp_path: Path, own: str = "nameserver 192.0.2.1\n"
) -> Path:
    directory = make_root("with-resolver", init=roots.script())
    (directory / "etc/resolv.conf").write_text(own)
    image = tmp_path / "with-resolver.img"
    subprocess.run(["mkfs.ext4", "-q", "-d", str(directory), str(image), "32M"], check=True)
    return image


def test_a_stop_that_has_to_write_into_a_frozen_image(
    make_chroot: MakeChroot, cli: driving.Cli, make_root: Callable[..., Path], tmp_path: Path,
    freeze: Callable[[Path], Callable[[], None]],
) -> None:  # fmt: skip
    image = image_with_resolver(make_root, tmp_path)
    web1 = make_chroot(disk=image, init_script=False, resolv_conf="copy", disk_timeout=PATIENCE)
    web1.start()
    thaw = freeze(web1.root)
    with within(PATIENCE + BESIDES):
        held = cli("stop", "web1", expect=4, says=["web1 is held", "frozen"])
    assert "chrootfw's own, waits" in held.stderr
    assert f"fsfreeze -u {web1.root}" in held.stderr
    command = cli.begin("cleanup", "web1", "--lock-timeout", "1")
    time.sleep(1)
    command.send_signal(signal.SIGTERM)
    with within(PATIENCE + BESIDES):
        command.wait()
    command.communicate()
    thaw()
    kernelview.wait_until(
        lambda: cli("cleanup", "web1", expect=(0, 4)).status == 0, "it is cleaned up"
    )
    assert web1.is_gone()
    assert own_file(image) == "nameserver 192.0.2.1\n"


def test_a_start_that_has_to_write_into_a_frozen_disk(
    make_chroot: MakeChroot,
    cli: driving.Cli,
    frozen_disk: Callable[[], tuple[Path, Callable[[], None]]],
) -> None:
    disk, thaw = frozen_disk()
    thaw()
    (disk / "sys").mkdir()
    (disk / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    os.sync()
    fd = os.open(disk, os.O_RDONLY)
    fcntl_freeze(fd)
    try:
        web1 = make_chroot(disk=disk, init_script=False, resolv_conf="copy", disk_timeout=PATIENCE)
        with within(PATIENCE + BESIDES):
            refused = cli("start", "web1", expect=1)
        assert "chrootfw's own, waits" in refused.stderr
    finally:
        fcntl_thaw(fd)
        os.close(fd)
    kernelview.wait_until(
        lambda: cli("stop", "web1", expect=(0, 1, 4)).status == 0, "what was held is stopped"
    )
    assert (disk / "etc/resolv.conf").read_text() == "nameserver 192.0.2.1\n"
    assert sorted(path.name for path in (disk / "etc").glob("resolv*")) == ["resolv.conf"]
    assert web1.is_gone()
