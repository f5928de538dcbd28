"""What an instance prints is kept, for as long as it runs, and no process of it gets an error."""

from __future__ import annotations

import itertools
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import driving
import kernelview
import pytest
import roots

from chrootfw.errors import NotFoundError

#: Prints "line N" each 10 ms, and notes the status of a write that failed.
_TALKS = """
( n=0
while :; do n=$((n + 1)); echo "line $n" || echo "$n: $?" >>/failed; usleep 10000; done ) &
"""
#: Prints 64 KiB at a time without a pause, and counts how often.
_FLOODS = """
b=$(head -c 65535 /dev/zero | tr '\\0' x)
( n=0
while :; do n=$((n + 1)); echo "$b" || echo "$n: $?" >>/failed; echo $n >/count; done ) &
"""


def busy(web1: driving.Chroot, *names: str) -> driving.Chroot:
    for name in ("tr", "head", "usleep", "yes", "seq", *names):
        if not (web1.disk / "bin" / name).is_symlink():
            (web1.disk / "bin" / name).symlink_to("busybox")
    return web1


def log_of(cli: driving.Cli, name: str = "web1") -> Path:
    return cli.log_dir / f"{name}.log"


@pytest.fixture(autouse=True)
def _no_log(cli: driving.Cli) -> None:
    for file in cli.log_dir.glob("web1*") if cli.log_dir.exists() else ():
        file.unlink()


def loggers() -> dict[int, list[str]]:
    """The command lines of all loggers."""
    found = {}
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text() == "chrootfw-logger\n":
                words = (comm.parent / "cmdline").read_bytes().split(b"\0")
                found[int(comm.parent.name)] = [os.fsdecode(word) for word in words]
        except OSError:
            continue
    return found


def logger_of(cli: driving.Cli) -> list[int]:
    return [
        pid for pid, words in loggers().items() if str(cli.log_dir) in words and "web1.log" in words
    ]


def says(cli: driving.Cli, text: str) -> Callable[[], bool]:
    return lambda: log_of(cli).exists() and text in log_of(cli).read_text(errors="replace")


@pytest.mark.parametrize("hardened", [False, True])
def test_what_a_daemon_prints_is_kept_while_it_runs_and_after_a_stop(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli, hardened: bool
) -> None:
    web1 = busy(
        make_chroot(init=roots.script(f"echo it begins\n{_TALKS}", "true"), hardened=hardened)
    )
    web1.cli("start")
    kernelview.wait_until(says(cli, "line 50\n"), "the daemon's lines are in the log")
    assert len(logger_of(cli)) == 1
    web1.cli("stop", "--timeout", "1")
    assert logger_of(cli) == []
    text = log_of(cli).read_text()
    assert "it begins\n" in text
    assert text.index("it begins\n") < text.index("line 1\n")
    assert not (web1.disk / "failed").exists()
    assert log_of(cli).stat().st_mode & 0o777 == 0o640
    assert web1.is_gone()


def test_a_flood_is_kept_in_bounds_and_nobody_waits_for_ever(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    web1 = busy(make_chroot(init=roots.script(_FLOODS, "true"), log_size=0.25))
    web1.cli("start")
    kernelview.wait_until(
        lambda: (
            (web1.root / "count").exists()
            and int((web1.root / "count").read_text().strip() or 0) > 200
        ),
        "more than 12 MiB were printed",
    )
    web1.cli("stop", "--force")
    sizes = [file.stat().st_size for file in cli.log_dir.glob("web1.log*")]
    assert len(sizes) == 2
    assert max(sizes) <= 256 << 10
    assert not (web1.disk / "failed").exists()
    assert web1.is_gone()


def test_a_logger_that_was_killed_harms_no_daemon_and_the_next_verb_starts_it_again(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    web1 = busy(make_chroot(init=roots.script(_TALKS, "true")))
    web1.cli("start")
    kernelview.wait_until(says(cli, "line 50\n"), "the daemon's lines are in the log")
    (first,) = logger_of(cli)
    os.kill(first, signal.SIGKILL)
    kernelview.wait_until(lambda: not logger_of(cli), "the logger has ended")
    size = log_of(cli).stat().st_size
    time.sleep(0.2)  # nothing says that no line will come
    assert log_of(cli).stat().st_size == size
    assert web1.state == "running"
    web1.cli("info")
    kernelview.wait_until(lambda: log_of(cli).stat().st_size > size, "the log goes on")
    assert len(logger_of(cli)) == 1
    numbers = [
        int(line[5:]) for line in log_of(cli).read_text().splitlines() if line.startswith("line ")
    ]
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    # Lost is at most what it had read and not yet written when it was killed.
    assert len(steps - {1}) <= 1
    assert min(steps) == 1
    web1.cli("stop", "--timeout", "1")
    assert not (web1.disk / "failed").exists()
    assert web1.is_gone()


def test_which_verbs_start_a_logger_again(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    """Those of one instance do; those that show all, and may be asked every second, start nothing."""
    web1 = busy(make_chroot(init=roots.script(_TALKS, "true")))
    web1.cli("start")
    # Before its execve it has not the name by which it is found here.
    kernelview.wait_until(lambda: logger_of(cli), "the logger runs")

    def kill_logger() -> None:
        for pid in logger_of(cli):
            os.kill(pid, signal.SIGKILL)
        kernelview.wait_until(lambda: not logger_of(cli), "the logger has ended")

    kill_logger()
    for verb in ("list", "verify", "node"):
        cli(verb, expect=(0, 1))
        assert logger_of(cli) == [], verb
    for words in (["info"], ["ps"], ["tree"], ["logs", "-n1"], ["exec", "--", "true"], ["reboot"]):
        web1.cli(words[0], *words[1:])
        kernelview.wait_until(lambda: logger_of(cli), f"{words[0]} starts it again")
        kill_logger()
    web1.cli("stop", "--timeout", "1")
    assert not (web1.disk / "failed").exists()
    assert logger_of(cli) == []


def test_a_logger_is_in_a_cgroup_of_its_own_and_no_process_of_the_instance(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    web1 = busy(make_chroot(init=roots.script(_TALKS, "true")))
    web1.cli("start")
    (pid,) = kernelview.wait_until(lambda: logger_of(cli), "the logger has its name")
    assert pid not in [each["pid"] for each in cli.json("ps", "web1")["processes"]]
    shown = cli.json("info", "web1")
    written_at = shown["log"].pop("written_at")
    assert written_at is None or written_at.endswith("+00:00")
    assert shown["log"] == {"mode": "file", "path": str(log_of(cli)), "logger": pid}
    assert str(pid) in web1.cli("info").stdout
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert sorted(os.listdir(f"/proc/{pid}/fd"))[:3] == ["0", "1", "2"]
    assert cli("verify", expect=(0, 1)).stdout.count("@log") == 0
    web1.cli("reboot")
    kernelview.wait_until(lambda: logger_of(cli) != [pid], "the reboot has another logger")
    web1.cli("stop", "--timeout", "1")
    assert web1.is_gone()


def test_no_logger_runs_for_an_instance_whose_processes_print_elsewhere(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    web1 = make_chroot(init=roots.script("echo ready\nsleep 1000 >/dev/null 2>&1 &", "true"))
    web1.cli("start")
    # The shell's child may still have had the pipe when the script ended.
    kernelview.wait_until(lambda: not logger_of(cli), "no logger runs")
    assert "ready\n" in log_of(cli).read_text()
    web1.cli("stop")


def test_the_output_of_a_start_that_failed_is_kept(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    web1 = make_chroot(init=roots.script("echo cannot open the database\nexit 3"))
    failed = web1.cli("start", expect=1)
    assert "cannot open the database" in failed.stderr
    shown = cli("logs", "web1", "--start").stdout
    assert shown.splitlines() == [
        "cannot open the database",
        "-- chrootfw: it exited with status 3",
    ]
    assert "cannot open the database" in cli("logs", "web1").stdout
    cli("logs", "web1", "--stop", expect=3)


def test_off_keeps_the_scripts_output_alone(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    web1 = busy(
        make_chroot(init=roots.script(f"echo it begins\n{_TALKS}", "echo it ends"), log="off")
    )
    web1.cli("start")
    assert logger_of(cli) == []
    assert not log_of(cli).exists()
    assert "it begins" in cli("logs", "web1", "--start").stdout
    refused = cli("logs", "web1", expect=3)
    assert "log = 'off'" in refused.brief
    web1.cli("stop", "--timeout", "1")
    assert "it ends" in cli("logs", "web1", "--stop").stdout
    assert web1.is_gone()


def test_logs_shows_the_last_lines_and_follows(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    web1 = busy(make_chroot(init=roots.script(_TALKS, "true")))
    web1.cli("start")
    kernelview.wait_until(says(cli, "line 20\n"), "the daemon's lines are in the log")
    last = cli("logs", "-n", "3", "web1").stdout.splitlines()
    numbers = [int(line.removeprefix("line ")) for line in last]
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    process = cli.begin("logs", "-f", "-n", "1", "web1", stdout=subprocess.PIPE)
    assert process.stdout is not None
    seen = [int(process.stdout.readline().removeprefix("line ")) for _ in range(30)]
    assert seen == list(range(seen[0], seen[0] + 30))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    web1.cli("stop", "--timeout", "1")


def test_a_log_that_is_replaced_while_it_is_followed_is_named(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    web1 = busy(make_chroot(init=roots.script(_TALKS, "true")))
    web1.cli("start")
    kernelview.wait_until(says(cli, "line 20\n"), "the daemon's lines are in the log")
    process = cli.begin("logs", "-f", "-n", "1", "web1")
    assert process.stdout is not None
    process.stdout.readline()
    log_of(cli).unlink()
    log_of(cli).mkdir()
    try:
        refused = cli.end(process, expect=1)
        assert "cannot read the log of web1: Is a directory" in refused.stderr
    finally:
        log_of(cli).rmdir()
        web1.cli("stop", "--timeout", "1")


def test_hostile_output_is_escaped_on_a_terminal_and_raw_in_a_pipe(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    busy(make_chroot(init=roots.script("printf 'a\\033]0;title\\007b\\n'"))).cli("start")
    assert "a\x1b]0;title\x07b\n" in cli("logs", "web1").stdout
    from chrootfw.linux import pty  # noqa: F401  # the module that the terminal's tests use

    shown = subprocess.run(
        ["script", "-qec", "python3 -m chrootfw logs web1 --start", "/dev/null"],
        env=cli.environment(), capture_output=True, timeout=60, check=True, stdin=subprocess.DEVNULL,
    ).stdout  # fmt: skip
    assert b"\\x1b]0;title\\x07" in shown
    assert b"\x1b]0" not in shown
    cli("stop", "web1")


def test_what_was_never_started_has_no_log(cli: driving.Cli) -> None:
    missing = cli("logs", "web9", expect=3)
    assert "web9" in missing.brief
    assert cli("logs", "../x", expect=2).stdout == ""


def test_a_log_that_cannot_be_written_harms_no_start(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli, tmp_path: Path
) -> None:
    web1 = busy(make_chroot(init=roots.script(_TALKS, "true")))
    others = tmp_path / "others"
    others.mkdir()
    others.chmod(0o777)
    started = web1.cli("start", env={"CHROOTFW_LOG_DIR": str(others)})
    assert "others may write to it" in started.stderr
    assert os.listdir(others) == []
    time.sleep(0.5)  # lines are printed into nothing, and nothing says that they will not fail
    assert web1.state == "running"
    web1.cli("stop", "--timeout", "1")
    assert not (web1.disk / "failed").exists()
    assert web1.is_gone()


# -- the journal -----------------------------------------------------------------------------------


class Journald:
    """Takes streams as systemd-journald does, in a mount namespace that the tests have to themselves."""

    def __init__(self, place: Path) -> None:
        self.received: list[bytes] = []
        self._selector = selectors.DefaultSelector()
        listens = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listens.bind(str(place))
        listens.listen()
        self._selector.register(listens, selectors.EVENT_READ, None)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.05):
                stream = key.fileobj
                assert isinstance(stream, socket.socket)
                if key.data is None:
                    taken, _ = stream.accept()
                    self._selector.register(taken, selectors.EVENT_READ, len(self.received))
                    self.received.append(b"")
                elif data := stream.recv(65536):
                    self.received[key.data] += data
                else:
                    self._selector.unregister(stream)
                    stream.close()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def says(self, text: bytes) -> bool:
        return any(text in each for each in self.received)


@pytest.fixture
def journald() -> Iterator[Journald]:
    directory = Path("/run/systemd/journal")
    made = [each for each in (directory.parent, directory) if not each.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tests", str(directory)], check=True)
    served = Journald(directory / "stdout")
    yield served
    served.close()
    subprocess.run(["umount", str(directory)], check=True)
    for each in reversed(made):
        each.rmdir()


@pytest.mark.parametrize("hardened", [False, True])
def test_where_journald_answers_it_gets_the_output(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli, journald: Journald, hardened: bool
) -> None:
    web1 = busy(
        make_chroot(init=roots.script(f"echo it begins\n{_TALKS}", "true"), hardened=hardened)
    )
    web1.cli("start")
    kernelview.wait_until(lambda: journald.says(b"line 20\n"), "the journal has the daemon's lines")
    assert not log_of(cli).exists()
    (stream,) = [each for each in journald.received if b"line 20\n" in each]
    assert stream.startswith(b"web1\n\n6\n0\n0\n0\n0\n")
    assert journald.says(b"it begins\n")
    shown = cli.json("info", "web1")["log"]
    assert shown["mode"] == "journal"
    # Nothing of chrootfw's stays but for a hardened instance, which gets no socket of the host's.
    assert (shown["logger"] is not None) == hardened
    web1.cli("stop", "--timeout", "1")
    assert not (web1.disk / "failed").exists()
    assert web1.is_gone()


def test_a_wrong_log_is_refused(make_chroot: Callable[..., driving.Chroot]) -> None:
    web1 = make_chroot(log="syslog")
    assert "journal, file, off" in web1.cli("start", expect=1).brief
    web1.define(log_size=0)
    assert "MiB" in web1.cli("start", expect=1).brief
    assert web1.state == "absent"


def test_python_reads_the_log_too(
    make_chroot: Callable[..., driving.Chroot], runtime: object
) -> None:
    web1 = make_chroot(init=roots.script("echo one\necho two\necho three"))
    web1.runtime.start("web1")
    assert list(web1.runtime.logs("web1", lines=2)) == [b"two", b"three"]
    web1.runtime.stop("web1")
    with pytest.raises(NotFoundError):
        web1.runtime.logs("web9")
