"""Row 10: nothing hangs. A server that keeps its file system mounted and answers no more; processes that no signal ends."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import driving
import kernelview
import pytest
import roots
from fuse_server import Fuse

from chrootfw.linux import child, loop

MakeChroot = Callable[..., driving.Chroot]

#: Seconds for a disk to answer in these tests, and how long a command may take besides: nothing else waits.
PATIENCE, BESIDES = 1.0, 25.0


def _unmounted(place: Path) -> bool:
    return (
        not kernelview.mounts_below(place)
        or subprocess.run(["umount", str(place)], check=False).returncode == 0
    )


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Callable[[Path], Fuse]]:
    """A factory: ``fuse(directory)`` shows it through a server of its own."""
    made: list[Fuse] = []

    def make(source: Path, place: Path | None = None, *options: str) -> Fuse:
        made.append(Fuse(source, place or tmp_path / f"fuse{len(made)}", *options))
        return made[-1]

    yield make
    for each in made:
        each.end()
        for stream in (each.process.stdin, each.process.stdout):
            assert stream is not None
            stream.close()
        with contextlib.suppress(TimeoutError):  # leaks reports it, should it stay in use
            kernelview.wait_until(
                lambda place=each.place: _unmounted(place),
                "its last user, which has its answer, is gone",
                seconds=10,
            )


@pytest.fixture(scope="module")
def done() -> list[str]:
    """The commands that came back in time, of all tests here."""
    return []


@pytest.fixture
def in_time(cli: driving.Cli, done: list[str]) -> Callable[..., driving.Result]:
    """Run a command, and assert that it came back within its deadline."""

    def run(*argv: str, **how: Any) -> driving.Result:
        began = time.monotonic()
        result = cli(*argv, **how)
        assert time.monotonic() - began < PATIENCE + BESIDES, result
        done.append(argv[0])
        return result

    return run


def image_behind(
    fuse: Callable[[Path], Fuse], image: Callable[..., Path], tmp_path: Path
) -> tuple[Fuse, Path]:
    """An image file that only a server can reach."""
    store = tmp_path / "store"
    store.mkdir()
    image(init=roots.script(start=roots.DAEMON)).rename(store / "disk.img")
    server = fuse(store)
    return server, server.place / "disk.img"


def test_a_silent_bind_hinders_nobody(
    make_chroot: MakeChroot,
    fuse: Callable[[Path], Fuse],
    in_time: Callable[..., driving.Result],
    tmp_path: Path,
) -> None:
    (tmp_path / "data").mkdir()
    server = fuse(tmp_path / "data")
    web1 = make_chroot(binds=[f"{server.place}:/mnt"], disk_timeout=PATIENCE)
    web1.start()
    server.fall_silent()
    for argv in (
        ["list"],
        ["info", "web1"],
        ["ps", "web1"],
        ["node"],
        ["verify"],
        ["plan", "stop", "web1"],
    ):
        in_time(*argv)
    in_time("exec", "web1", "--", "/bin/true")
    in_time("reboot", "web1", expect=1)  # the bind cannot be made again
    in_time("stop", "web1")
    assert web1.is_gone()
    refused = in_time("start", "web1", expect=1, says=[str(server.place), "does not answer"])
    assert "chrootfw's own" in refused.stderr
    in_time("list")
    assert web1.is_gone()


@pytest.fixture
def settings(
    make_chroot: MakeChroot, fuse: Callable[[Path], Fuse], tmp_path: Path
) -> tuple[driving.Chroot, Fuse]:
    """An instance, and the server of its environment file."""
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings/env").write_text("A=b\n")
    server = fuse(tmp_path / "settings")
    return make_chroot(environment_file=f"{server.place}/env", disk_timeout=PATIENCE), server


def test_a_silent_environment_file(
    settings: tuple[driving.Chroot, Fuse], in_time: Callable[..., driving.Result]
) -> None:
    web1, server = settings
    server.fall_silent()
    refused = in_time("start", "web1", expect=(1, 2), says=["environment file", "no answer"])
    assert "chrootfw's own" in refused.stderr
    assert web1.is_gone()


def test_an_environment_file_that_falls_silent_when_it_is_read_again(
    settings: tuple[driving.Chroot, Fuse], in_time: Callable[..., driving.Result]
) -> None:
    web1, server = settings
    server.fall_silent_when_opened_again()
    in_time("start", "web1", expect=(0, 1, 2))
    server.speak()
    in_time("stop", "web1")
    assert web1.is_gone()


def test_a_silent_disk_whose_mounts_are_brought_along(
    make_chroot: MakeChroot,
    fuse: Callable[[Path], Fuse],
    in_time: Callable[..., driving.Result],
    make_root: Callable[..., Path],
    tmp_path: Path,
) -> None:
    (tmp_path / "store").mkdir()
    make_root().rename(tmp_path / "store/root")
    server = fuse(tmp_path / "store")
    web1 = make_chroot(disk=server.place / "root", mount_options=["rbind"], disk_timeout=PATIENCE)
    server.fall_silent()
    in_time("start", "web1", expect=1, says=["does not answer"])
    in_time("plan", "start", "web1", expect=(0, 1))
    server.speak()
    assert web1.is_gone()


def test_a_silent_directory_above_a_mount_that_is_brought_along(
    make_chroot: MakeChroot,
    fuse: Callable[[Path], Fuse],
    in_time: Callable[..., driving.Result],
    tmp_path: Path,
) -> None:
    (tmp_path / "store/root").mkdir(parents=True)
    server = fuse(tmp_path / "store")
    data = server.place / "root"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(data)], check=True)
    (data / "more").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(data / "more")], check=True)
    web1 = make_chroot(binds=[f"{data}:/mnt:rbind"], disk_timeout=PATIENCE)
    try:
        server.fall_silent()
        in_time("start", "web1", expect=(0, 1))
        in_time("stop", "web1")
    finally:
        server.speak()
        subprocess.run(["umount", str(data / "more"), str(data)], check=True)
    assert web1.is_gone()


@pytest.mark.parametrize("kind", ["directory", "image"])
def test_a_disk_that_is_silent_from_the_beginning(
    make_chroot: MakeChroot, fuse: Callable[[Path], Fuse], in_time: Callable[..., driving.Result], image: Callable[..., Path],
    make_root: Callable[..., Path], tmp_path: Path, kind: str,
) -> None:  # fmt: skip
    if kind == "image":
        server, disk = image_behind(fuse, image, tmp_path)
    else:
        server = fuse(make_root())
        disk = server.place
    web1 = make_chroot(disk=disk, disk_timeout=PATIENCE)
    server.fall_silent()
    for argv, statuses in (
        (["start", "web1"], 1),
        (["verify"], 1),
        (["node"], 0),
        (["list"], 0),
        (["info", "web1"], 0),
    ):
        in_time(*argv, expect=statuses)
    refused = in_time("start", "web1", expect=1, says=[str(disk), "does not answer"])
    assert "disk_timeout" in refused.stderr
    assert not kernelview.mounts_below(web1.root)
    server.speak()
    in_time("start", "web1", "--set", f"disk_timeout={BESIDES}")
    in_time("stop", "web1")
    assert web1.is_gone()


def test_an_image_whose_server_falls_silent_while_it_runs(
    make_chroot: MakeChroot, fuse: Callable[[Path], Fuse], in_time: Callable[..., driving.Result], image: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    server, disk = image_behind(fuse, image, tmp_path)
    web1 = make_chroot(disk=disk, disk_timeout=5 * PATIENCE)
    web1.start()
    web1.runtime.run("web1", ["/bin/sh", "-c", "echo words > /srv/dirty"], check=True)
    server.fall_silent()
    for argv in (["list"], ["info", "web1"], ["ps", "web1"], ["node"], ["plan", "stop", "web1"]):
        in_time(*argv)
    in_time("verify", expect=1)
    held = in_time("stop", "web1", "--no-script", "--timeout", "1", expect=4, says=["web1"])
    assert "chrootfw's own" in held.stderr
    assert in_time("list", "--json").json()["instances"][0]["state"] == "held"
    in_time("cleanup", "web1", expect=4)
    server.speak()
    kernelview.wait_until(lambda: not kernelview.loops_over(disk), "the image is written out")
    in_time("cleanup", "web1")
    assert web1.is_gone()
    roots.check_image(tmp_path / "store/disk.img", "ext4")


def test_a_root_whose_server_falls_silent_while_it_runs(
    make_chroot: MakeChroot, fuse: Callable[[Path], Fuse], in_time: Callable[..., driving.Result], make_root: Callable[..., Path]
) -> None:  # fmt: skip
    server = fuse(make_root(init=f"#!/bin/sh\ncase $1 in\nstart) {roots.DAEMON};;\nesac\n"))
    web1 = make_chroot(disk=server.place, disk_timeout=PATIENCE)
    web1.start()
    server.fall_silent()
    for argv in (["list"], ["info", "web1"], ["ps", "web1"], ["node"], ["plan", "stop", "web1"]):
        in_time(*argv)
    in_time("verify", expect=1)
    entered = in_time("exec", "web1", "--", "/bin/true", expect=125)
    assert "does not answer" in entered.brief
    held = in_time("stop", "web1", "--timeout", "1", expect=(1, 4))
    assert "chrootfw's own" in held.stderr or "state D" in held.stderr
    server.speak()
    kernelview.wait_until(
        lambda: in_time("stop", "web1", expect=(0, 1, 4)).status == 0, "it can be stopped"
    )
    assert web1.is_gone()


@pytest.mark.parametrize("whose", ["own", "holder"])
def test_a_process_that_no_signal_ends(
    make_chroot: MakeChroot, fuse: Callable[[Path], Fuse], in_time: Callable[..., driving.Result], tmp_path: Path, whose: str,
    outside: Callable[..., subprocess.Popen[str]],
) -> None:  # fmt: skip
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("words\n")
    server = fuse(tmp_path / "data")
    web1 = make_chroot(binds=[f"{server.place}:/mnt"], disk_timeout=PATIENCE)
    web1.start()
    server.fall_silent()
    reads = "exec 3< /srv; exec cat mnt/file"
    if whose == "own":
        web1.runtime.run("web1", ["/bin/sh", "-c", "cat /mnt/file > /dev/null 2>&1 &"], check=True)
        kernelview.wait_until(lambda: web1.pids("cat"), "cat has begun")
        (pid,) = web1.pids("cat")
    else:
        pid = outside("sh", "-c", reads, cwd=web1.root).pid
    wchan = Path(f"/proc/{pid}/wchan")
    kernelview.wait_until(
        lambda: wchan.read_text().startswith("request_wait"), "it waits for the server"
    )
    for argv in (["list"], ["info", "web1"], ["ps", "web1"], ["verify"]):
        in_time(*argv)
    more = ["--kill-holders"] if whose == "holder" else []
    left = in_time(
        "stop", "web1", "--timeout", "0.2", *more, expect=1 if whose == "own" else (1, 4)
    )
    assert str(pid) in left.stderr
    assert whose == "holder" or "state D" in left.stderr
    in_time("list")
    server.speak()
    kernelview.wait_until(lambda: not kernelview.is_running(pid), "it ends")
    in_time("stop", "web1")
    assert web1.is_gone()


def test_a_silent_file_below_a_loop_device_keeps_no_answer_of_others_away(
    fuse: Callable[[Path], Fuse], image: Callable[..., Path], tmp_path: Path, attach: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where all are asked by one child, and it is kept by the one in the middle."""
    monkeypatch.setattr(loop, "_FEW", 0)
    server, disk = image_behind(fuse, image, tmp_path)
    files = [image(name="one"), disk, image(name="two")]
    known = {(file.stat().st_dev, file.stat().st_ino): str(file) for file in files}
    devices = {attach(file): str(file) for file in files}
    server.fall_silent()
    for _ in range(2):  # and again while it is remembered, and not asked
        assert {
            device: file
            for device, file in loop.find_loop_devices(known).items()
            if device in devices
        } == devices
        assert len(child._left) == 1
    server.speak()
    kernelview.wait_until(
        lambda: child.reap() or not child._left,
        "the children that were left behind have their answer",
    )


def test_an_init_script_that_never_ends(
    make_chroot: MakeChroot, in_time: Callable[..., driving.Result]
) -> None:
    hangs = "while :; do sleep 3600; done"
    web1 = make_chroot(
        init=roots.script(start=hangs, stop=hangs), start_timeout=0.5, stop_script_timeout=0.5
    )
    in_time("start", "web1", expect=1, says=["web1", "0.5 s"])
    assert web1.is_gone()
    web1.write_init(roots.script(stop=hangs))
    in_time("start", "web1")
    assert "did not end within 0.5 s" in in_time("stop", "web1").stderr
    assert web1.is_gone()


def test_the_figure(done: list[str], figure: Callable[[int, str], None]) -> None:
    verbs = sorted(set(done))
    assert len(verbs) >= 9, "run this file as a whole"
    figure(
        10,
        f"{len(done)} of {len(done)} commands ({', '.join(verbs)}) came back in time beside a silent FUSE server under a bind, "
        "a root directory and an image, processes in state D, and init scripts that never end",
    )


def test_a_users_own_file_system_inside_is_unmounted(
    make_chroot: MakeChroot, fuse: Callable[..., Fuse], tmp_path: Path
) -> None:
    """FUSE without allow_other answers everybody but that user with EACCES, the root user too."""
    web1 = make_chroot()
    web1.start()
    before = kernelview.mounts_below(web1.root)
    fuse(tmp_path, web1.root / "srv/of-a-user", "user_id=65534,group_id=65534")
    with pytest.raises(PermissionError):
        (web1.root / "srv/of-a-user").stat()
    assert len(kernelview.mounts_below(web1.root)) == len(before) + 1
    web1.cli("stop")
    assert web1.is_gone()
    assert web1.state == "absent"
