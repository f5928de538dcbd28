"""``chrootfw demo``: it shows a whole life, and leaves nothing, however it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import driving
import kernelview
import leaks
import pytest

WIDTH = 100


class Demo:
    """A demo that runs, in a directory of the test's own."""

    def __init__(self, cli: driving.Cli, place: Path, ground: leaks.Ground) -> None:
        self.cli = cli
        self.place = place
        self.ground = ground
        self.environment = {"TMPDIR": str(place)}

    def begin(self, **how: object) -> subprocess.Popen[str]:
        return self.cli.begin("demo", env=self.environment, **how)

    def end(self, process: subprocess.Popen[str], **how: object) -> driving.Result:
        return self.cli.end(process, **how)

    def __call__(self, *, expect: int = 0, **how: object) -> driving.Result:
        return self.end(self.begin(**how), expect=expect)

    def until(self, process: subprocess.Popen[str], words: str) -> None:
        """Read what it shows until it comes to ``words``; ``leaks`` then knows its run directory."""
        assert process.stdout is not None
        for line in process.stdout:
            if words in line:
                for base in self.place.iterdir():
                    self.ground.know_run_dir(base / "run")
                return
        raise AssertionError(f"the demo ended without {words!r}")

    def is_gone(self) -> bool:
        """Whether its directory, its mounts and its loop devices are gone; ``leaks`` looks at the rest."""
        over = [
            file for file in kernelview.loop_devices().values() if file.startswith(f"{self.place}/")
        ]
        return (
            not over and not kernelview.mounts_below(self.place) and not list(self.place.iterdir())
        )


@pytest.fixture
def demo(cli: driving.Cli, tmp_path: Path, ground: leaks.Ground) -> Demo:
    place = tmp_path / "place"
    place.mkdir(mode=0o755)
    return Demo(cli, place, ground)


def in_namespace(commands: str) -> list[str]:
    """A prefix: the command runs in a mount namespace of its own, changed by ``commands`` first."""
    return ["unshare", "--mount", "sh", "-ec", f'{commands}\nexec "$@"', "sh"]


@pytest.mark.quick
def test_a_whole_life(demo: Demo, tracking: str) -> None:
    began = time.monotonic()
    result = demo()
    assert time.monotonic() - began < 10
    shown = result.stdout
    assert result.stderr == ""
    titles = re.findall(r"^(\d)  (\w+)", shown, re.MULTILINE)
    assert [number for number, _ in titles] == list("1234567")
    for command in (
        "start demo",
        "exec demo",
        "list",
        "ps demo",
        "info demo",
        "plan stop demo",
        "stop demo",
    ):
        assert re.search(rf"^   \$ chrootfw (-v )?{command}", shown, re.MULTILINE), command
    assert re.search(r"^   demo is running: 3 processes$", shown, re.MULTILINE)
    assert "Hello! I am pid" in shown
    assert re.search(r"^   demo +running +3 ", shown, re.MULTILINE)
    assert re.search(r"^   demo is stopped$", shown, re.MULTILINE)
    assert ("found by their cgroup" in shown) is (tracking == "cgroup")
    assert re.fullmatch(
        r"A whole life in [\d.]+ s .*: nothing of it is left\.", shown.splitlines()[-1]
    )
    before_it_starts, _, rest = shown.partition("\n1  ")
    assert "an ext4 image" in before_it_starts
    assert re.search(r"^   \$ .*mkfs\.ext4", rest, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert demo.is_gone()
    assert not list(demo.cli.run_dir.iterdir()), "it has used the machine's run directory"


def test_two_end_at_term_and_the_third_at_kill(demo: Demo) -> None:
    *_, stop, proof = demo().stdout.split("\n\n")[:-1]
    lines = [" ".join(line.split()) for line in stop.splitlines()]
    told = [re.sub(r"^…? ?(kill )?|pid \d+ | to the.*", "", line) for line in lines]
    told = [line for line in told if line.startswith(("SIG", "("))]
    assert told[0] == "SIGTERM"
    assert sorted(told[1:3]) == ["(web) has ended", "(worker) has ended"]
    assert told[3:5] == ["SIGKILL", "(stubborn) has ended"]
    (term,) = re.findall(r"^   ✓ +([\d.]+) ms  kill +SIGTERM", stop, re.MULTILINE)
    (removal,) = re.findall(r"^   ✓ +([\d.]+) ms  unmount +remove", stop, re.MULTILINE)
    assert 1000 <= float(term) < 5000
    assert float(removal) < 1000, "it has its own time, not the stop's"
    marks = re.findall(r"^   (.) ([a-z][a-z ]+?)  ", proof, re.MULTILINE)
    kinds = ["mounts", "loop device", "cgroup", "processes", "file system", "files"]
    assert marks == [("✓", kind) for kind in kinds]
    assert "clean" in proof


@pytest.mark.quick
def test_the_proof_is_true(demo: Demo) -> None:
    process = demo.begin()
    demo.until(process, "demo is running")
    pids = {
        p.pid
        for p in kernelview.processes_of_the_tests()
        if p.command in ("web", "worker", "stubborn")
    }
    (base,) = demo.place.iterdir()
    assert len(pids) == 3
    assert kernelview.mount_on(base / "run/demo/root")
    assert kernelview.loops_over(base / "disk.img")
    demo.end(process)
    assert not any(map(kernelview.is_running, pids))
    assert demo.is_gone()


EARLY = [
    "mkfs.ext4",
    "init script in it",
    "-v start",
    "mount bind /usr",
    "attach the tree",
    "check the root",
    "is running",
]
LATER = [
    "$ curl",
    "Hello!",
    "$ chrootfw ps",
    "What a stop would do",
    "-v stop",
    "SIGTERM to the own",
    "(worker) has ended",
]


@pytest.mark.parametrize("words", [*EARLY, *LATER])
def test_an_interrupt_leaves_nothing(demo: Demo, words: str) -> None:
    process = demo.begin()
    demo.until(process, words)
    process.send_signal(signal.SIGINT)
    result = demo.end(process, expect=130, says=["SIGINT"])
    assert "cleaned up: no mount, loop device, cgroup or process is left" in result.stderr
    assert demo.is_gone()


@pytest.mark.parametrize(
    "words", ["SIGKILL to the own", "ms  unmount", "demo is stopped", "✓ mounts"]
)
def test_an_interrupt_near_the_end_leaves_nothing(demo: Demo, words: str) -> None:
    process = demo.begin()
    demo.until(process, words)
    process.send_signal(signal.SIGINT)
    demo.end(process, expect=(130, 0, -2))  # it may be through, or the interpreter about to end
    assert demo.is_gone()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_and_second_ones(demo: Demo, signum: signal.Signals) -> None:
    process = demo.begin()
    demo.until(process, "is running")
    for _ in range(3):
        process.send_signal(signum)
    demo.end(process, expect=128 + signum, says=[signum.name])
    assert demo.is_gone()


@pytest.mark.parametrize("words", ["mkfs.ext4", "is running", "SIGTERM to the own"])
def test_a_reader_that_goes_away(demo: Demo, words: str) -> None:
    process = demo.begin(stderr=subprocess.PIPE)
    demo.until(process, words)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    result = demo.end(process, expect=1)
    assert result.stderr == ""
    assert demo.is_gone()


class Terminal:
    """A terminal on which a demo runs, as a user sees it."""

    def __init__(self, demo: Demo) -> None:
        self.fd, inside = os.openpty()
        self.shown = b""
        self._news = threading.Condition()
        prefix = ["setsid", "--ctty", "--wait"]
        self.process = demo.begin(prefix=prefix, stdin=inside, stdout=inside, stderr=inside)
        os.close(inside)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # EIO: nobody has it any more
                data = b""
            with self._news:
                self.shown += data
                self._news.notify()
            if not data:
                return

    def until(self, words: bytes) -> None:
        with self._news:
            assert self._news.wait_for(lambda: words in self.shown, timeout=60), self.shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self.fd)


@pytest.fixture
def terminal(demo: Demo) -> Iterator[Terminal]:
    made = Terminal(demo)
    yield made
    made.close()


def test_on_a_terminal(demo: Demo, terminal: Terminal) -> None:
    demo.end(terminal.process)
    terminal.until(b"A whole life")
    assert b"\033[1m1  A disk" in terminal.shown
    assert "\033[32m✓".encode() in terminal.shown
    plain = re.sub(r"\033\[\d+m", "", terminal.shown.decode())
    assert "\\x1b" not in plain, "its own colours are not escaped"
    assert max(map(len, plain.splitlines())) <= WIDTH
    seconds = re.search(r"A whole life in ([\d.]+) s", plain)
    assert seconds is not None and float(seconds[1]) < 10
    assert demo.is_gone()


@pytest.mark.parametrize("words", [b"mkfs.ext4", b"is running", b"SIGTERM to the own"])
def test_ctrl_c_on_a_terminal(demo: Demo, terminal: Terminal, words: bytes) -> None:
    terminal.until(words)
    os.write(terminal.fd, b"\x03")
    demo.end(terminal.process, expect=130)
    terminal.until(b"interrupted by SIGINT")
    assert demo.is_gone()


def test_without_root_it_says_what_it_needs(demo: Demo) -> None:
    # Who may read everything all the same: the interpreter may lie where only root can read.
    command = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all,+dac_read_search",
    ]
    result = demo(expect=1, prefix=[*command, "--ambient-caps=+dac_read_search"])
    assert result.stdout == ""
    assert re.fullmatch(
        r"chrootfw: the demo needs root, [^\n]+\n  hint: [^\n]+\n", result.stderr
    ), result.stderr
    assert demo.is_gone()


def hidden(program: str) -> str:
    return f'mount --bind /dev/null "$(PATH=$PATH:/usr/sbin:/sbin command -v {program})"'


#: What is missing of an image, by the commands that take it away, and a word of the reason.
WITHOUT_AN_IMAGE = {
    "no mkfs.ext4": (hidden("mkfs.ext4"), "apt-get update && apt-get install e2fsprogs"),
    "no e2fsck": (hidden("e2fsck"), "e2fsck is not installed"),
    "no loop-control": ("mount --bind /dev/null /dev/loop-control", "/dev/loop-control"),
    "no /dev of its own": (
        "mkdir /run/bare; for name in null zero full random urandom tty; do\n"
        "touch /run/bare/$name; mount --bind /dev/$name /run/bare/$name; done\n"
        "mkdir /run/bare/pts /run/bare/shm; mount --rbind /run/bare /dev",
        "/dev/loop-control: No such file or directory",
    ),
    "no node of a loop device": (
        "touch /run/control; mount --bind /dev/loop-control /run/control; mkdir /run/bare\n"
        "mount -t tmpfs -o mode=755 tmpfs /run/bare\n"
        "for name in null zero full random urandom tty loop-control; do touch /run/bare/$name\n"
        "mount --bind /dev/$name /run/bare/$name; done\n"
        "mkdir /run/bare/pts /run/bare/shm; mount --rbind /run/bare /dev",
        "/dev/loop",
    ),
}


@pytest.mark.parametrize(("take_away", "reason"), WITHOUT_AN_IMAGE.values(), ids=WITHOUT_AN_IMAGE)
def test_where_no_image_can_be_used_the_disk_is_a_directory(
    demo: Demo, take_away: str, reason: str
) -> None:
    result = demo(prefix=in_namespace(f"mount -t tmpfs -o mode=755 tmpfs /run\n{take_away}"))
    before_it_starts, _, rest = result.stdout.partition("\n1  ")
    assert "a directory" in before_it_starts
    assert reason in before_it_starts
    assert "mkfs" not in rest
    assert "ext4 image" not in rest
    assert re.search(r"--disk \$D/rootfs\b", rest)
    assert "this page is in a directory" in rest
    marks = re.findall(r"^   ([✓✗]) ([a-z][a-z ]+?)  ", rest, re.MULTILINE)
    assert marks == [
        ("✓", kind) for kind in ("mounts", "loop device", "cgroup", "processes", "files")
    ]
    assert rest.splitlines()[-1].endswith("nothing of it is left.")
    assert demo.is_gone()


def test_a_directory_is_made_where_programs_may_run(demo: Demo) -> None:
    commands = (
        f"mount -t tmpfs -o mode=755 tmpfs /run\n{hidden('mkfs.ext4')}\n"
        f"mount -t tmpfs -o noexec,mode=755 tmpfs '{demo.place}'"
    )
    result = demo(prefix=in_namespace(commands))
    assert f"D={demo.place}" not in result.stdout
    assert "demo is running: 3 processes" in result.stdout
    assert demo.is_gone()


def test_without_the_right_to_mount_it_does_not_begin(demo: Demo) -> None:
    result = demo(
        expect=1, prefix=["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    )
    assert result.stdout == ""
    assert "CAP_SYS_ADMIN" in result.stderr
    assert "damaged" not in result.stderr
    assert demo.is_gone()


def test_in_a_user_namespace_it_says_so(demo: Demo) -> None:
    result = demo(expect=1, prefix=["unshare", "--user", "--map-root-user", "--mount"])
    assert "user namespace" in result.stderr
    assert "damaged" not in result.stderr
    assert demo.is_gone()


@pytest.mark.parametrize("argv", [["demo", "--json"], ["--json", "demo"]])
def test_json_is_refused(cli: driving.Cli, argv: list[str]) -> None:
    error = cli(*argv, expect=2).json()["error"]
    assert "the demo" in error["brief"]
    assert error["kind"] == "InputError"


def test_a_hint_names_no_file_that_is_removed(demo: Demo, tmp_path: Path) -> None:
    maker, real = (
        tmp_path / "mkfs.ext4",
        shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin"),
    )
    damage = (
        "printf '\\377\\377\\377\\377' | dd of=\"$last\" bs=1 seek=1044 conv=notrunc status=none"
    )
    maker.write_text(f'#!/bin/sh\nfor last; do :; done\n{real} "$@"\n{damage}\n')
    maker.chmod(0o755)
    demo.environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    result = demo(expect=1)
    assert "disk.img" in result.brief
    assert "disk.img" not in result.stderr.partition("hint: ")[2]
    assert demo.is_gone()


def test_a_damaged_file_system_is_told(demo: Demo, tmp_path: Path) -> None:
    checker = tmp_path / "e2fsck"
    checker.write_text("#!/bin/sh\necho 'Inode 12 is bad'\nexit 4\n")
    checker.chmod(0o755)
    demo.environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    result = demo(expect=1)
    assert re.search(r"✗ file system .*status 4; Inode 12 is bad", result.stdout)
    assert demo.is_gone()


def test_what_somebody_holds_is_told_and_never_deleted(
    demo: Demo, outside: Callable[..., subprocess.Popen[str]]
) -> None:
    process = demo.begin()
    demo.until(process, "is running")
    (base,) = demo.place.iterdir()
    root = base / "run/demo/root"
    holder = outside("sleep", "3600", cwd=root / "srv")
    result = demo.end(process, expect=4, says=["demo is held"])
    assert f"pid {holder.pid}" in result.stderr
    assert "left: mounts: " in result.stderr
    assert (root / "srv/page").exists()
    assert Path("/usr/bin").exists()
    holder.kill()
    holder.wait()
    again = re.search(r"env CHROOTFW_RUN_DIR=\S+ .* stop demo$", result.stderr, re.MULTILINE)
    assert again is not None
    subprocess.run(
        again[0],
        shell=True,
        check=True,
        env=demo.cli.environment(),
        cwd="/",
        timeout=driving.TIMEOUT,
    )
    assert not kernelview.mounts_below(demo.place)


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_any_umask(demo: Demo, mask: int) -> None:
    demo(umask=mask)
    assert demo.is_gone()


def test_a_place_that_others_can_write_is_not_used(demo: Demo) -> None:
    demo.place.chmod(0o777)
    base = re.search(r"\$ D=(\S+)", demo().stdout)
    assert base is not None
    assert not base[1].startswith(str(demo.place))
    assert not Path(base[1]).exists()
    assert demo.is_gone()


def test_a_library_path_reaches_the_daemons(demo: Demo) -> None:
    demo.environment["LD_LIBRARY_PATH"] = "/nowhere:/a b"
    assert "export LD_LIBRARY_PATH='/nowhere:/a b'" in demo().stdout


def test_a_mount_below_usr_that_holds_the_interpreter_is_borrowed_too(demo: Demo) -> None:
    # The directory of the libraries that it maps becomes a mount of its own.
    hide = "mount --make-rprivate /; mount --bind /usr/lib /usr/lib"
    result = demo(prefix=in_namespace(hide))
    assert "mount bind /usr/lib on /usr/lib" in result.stdout
