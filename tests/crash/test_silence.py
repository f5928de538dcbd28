"""Row 10: nothing hangs. A server that keeps its file system mounted and answers no more; processes that no signal ends."""

from __future__ import annotations

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

from chrootfw.system import children, loops

SERVER = str(Path(__file__).with_name("silent_fuse.py"))
MakeChroot = Callable[..., driving.Chroot]

#: Seconds for a disk to answer in these tests, and how long a command may take besides: nothing else waits.
PATIENCE, BESIDES = 1.0, 25.0


class Fuse:
    """The server of ``silent_fuse.py``, and where it shows its directory."""

    def __init__(self, source: Path, place: Path) -> None:
        self.place = place
        place.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, SERVER, str(source), str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._hears("ready")

    def fall_silent(self) -> None:
        self._say("silent", "silent")

    def speak(self) -> None:
        self._say("speak", "speaks")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _say(self, word: str, answer: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        self._hears(answer)

    def _hears(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Callable[[Path], Fuse]]:
    """A factory: ``fuse(directory)`` shows it through a server of its own."""
    made: list[Fuse] = []

    def make(source: Path) -> Fuse:
        made.append(Fuse(source, tmp_path / f"fuse{len(made)}"))
        return made[-1]

    yield make
    for each in made:
        each.end()
        for stream in (each.process.stdin, each.process.stdout):
            assert stream is not None
            stream.close()
        subprocess.run(["umount", str(each.place)], check=False)  # leaks tells, should it be in use


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


def image_behind(fuse: Callable[[Path], Fuse], image: Callable[..., Path], tmp_path: Path) -> tuple[Fuse, Path]:
    """An image file that only a server can reach."""
    store = tmp_path / "store"
    store.mkdir()
    image(init=roots.script(start=roots.DAEMON)).rename(store / "disk.img")
    server = fuse(store)
    return server, server.place / "disk.img"


def test_a_silent_bind_hinders_nobody(
    make_chroot: MakeChroot, fuse: Callable[[Path], Fuse], in_time: Callable[..., driving.Result], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    server = fuse(tmp_path / "data")
    web1 = make_chroot(binds=[f"{server.place}:/mnt"], disk_timeout=PATIENCE)
    web1.start()
    server.fall_silent()
    for argv in (["list"], ["info", "web1"], ["ps", "web1"], ["node"], ["verify"], ["plan", "stop", "web1"]):
        in_time(*argv)
    in_time("exec", "web1", "--", "/bin/true")
    in_time("reboot", "web1", expect=1)  # the bind cannot be made again
    in_time("stop", "web1")
    assert web1.is_gone()
    refused = in_time("start", "web1", expect=1, says=[str(server.place), "does not answer"])
    assert "chrootfw's own" in refused.stderr
    in_time("list")
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
    kernelview.wait_until(lambda: in_time("stop", "web1", expect=(0, 1, 4)).status == 0, "it can be stopped")
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
    kernelview.wait_until(lambda: wchan.read_text().startswith("request_wait"), "it waits for the server")
    for argv in (["list"], ["info", "web1"], ["ps", "web1"], ["verify"]):
        in_time(*argv)
    more = ["--kill-holders"] if whose == "holder" else []
    left = in_time("stop", "web1", "--timeout", "0.2", *more, expect=1 if whose == "own" else (1, 4))
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
    monkeypatch.setattr(loops, "_FEW", 0)
    server, disk = image_behind(fuse, image, tmp_path)
    files = [image(name="one"), disk, image(name="two")]
    known = {(file.stat().st_dev, file.stat().st_ino): str(file) for file in files}
    devices = {attach(file): str(file) for file in files}
    server.fall_silent()
    for _ in range(2):  # and again while it is remembered, and not asked
        assert {device: file for device, file in loops.over(known).items() if device in devices} == devices
        assert len(children._left) == 1
    server.speak()
    kernelview.wait_until(
        lambda: children.reap() or not children._left, "the children that were left behind have their answer"
    )


def test_an_init_script_that_never_ends(make_chroot: MakeChroot, in_time: Callable[..., driving.Result]) -> None:
    hangs = "while :; do sleep 3600; done"
    web1 = make_chroot(init=roots.script(start=hangs, stop=hangs), start_timeout=0.5, stop_script_timeout=0.5)
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
