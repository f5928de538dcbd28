"""Commands inside a started instance: exec, shell and Runtime.run."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from driving import Chroot, Cli
from kernelview import is_running, wait_until

import chrootfw
from chrootfw.linux import child, deadlines, spawn
from chrootfw.linux.root import Root
from chrootfw.state.snapshot import read_instance

pytestmark = pytest.mark.quick

MakeChroot = Callable[..., Chroot]

_PR_GET_DUMPABLE = 3


@pytest.fixture
def started(web1: Chroot) -> Chroot:
    web1.start()
    return web1


def test_output_goes_where_it_should(started: Chroot) -> None:
    done = started.cli("exec", "--", "/bin/sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_input_comes_from_the_caller(started: Chroot, cli: Cli) -> None:
    process = cli.begin("exec", "web1", "--", "/bin/wc", "-c", stdin=subprocess.PIPE)
    assert cli.end(process, input="x" * 100_000).stdout.split() == ["100000"]


def test_it_is_inside(started: Chroot) -> None:
    (started.disk / "srv/only-here").touch()
    assert started.cli("exec", "--", "/bin/ls", "/srv").stdout == "only-here\n"
    assert started.cli("exec", "--", "/bin/pwd").stdout == "/\n"


def test_a_program_without_a_slash_is_looked_for_inside(started: Chroot) -> None:
    assert started.cli("exec", "--", "echo", "hi").stdout == "hi\n"


@pytest.mark.parametrize("status", [0, 1, 4, 42, 255])
def test_the_status_is_the_commands(started: Chroot, status: int) -> None:
    started.cli("exec", "--", "/bin/sh", "-c", f"exit {status}", expect=status)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_the_status_after_a_signal(started: Chroot, signum: signal.Signals) -> None:
    started.cli("exec", "--", "/bin/sh", "-c", f"kill -{int(signum)} $$", expect=128 + signum)


def test_what_is_not_there_or_cannot_be_run(started: Chroot) -> None:
    (started.disk / "srv/not-executable").write_text("#!/bin/sh\n")
    (started.disk / "srv/no-program").write_text("")
    (started.disk / "srv/no-program").chmod(0o755)
    started.cli("exec", "--", "/no/such/program", expect=127, says=["/no/such/program"])
    started.cli("exec", "--", "no-such-program", expect=127, says=["no-such-program"])
    started.cli("exec", "--", "/srv/not-executable", expect=126, says=["/srv/not-executable"])
    started.cli("exec", "--", "/srv/no-program", expect=126, says=["/srv/no-program"])
    started.cli("exec", "--", "/srv", expect=126, says=["/srv"])


def test_failures_of_our_own(web1: Chroot, cli: Cli) -> None:
    cli("exec", "nobody", "--", "/bin/true", expect=125, says=["nobody"])
    web1.cli("exec", "--", "/bin/true", expect=125, says=["web1"])
    web1.start()
    web1.cli("exec", "--user", "no-such-user", "--", "/bin/true", expect=125, says=["no-such-user"])
    web1.cli(
        "exec",
        "--cwd",
        "/no/such/directory",
        "--",
        "/bin/true",
        expect=125,
        says=["/no/such/directory"],
    )
    web1.cli("exec", "--", "/bin/true")


def test_the_environment_is_clean(started: Chroot) -> None:
    shown = started.cli(
        "exec", "--env", "ADDED=a=b c", "--", "/bin/env", env={"SECRET": "of the caller"}
    ).stdout
    variables = dict(line.split("=", 1) for line in shown.splitlines())
    assert variables.pop("ADDED") == "a=b c"
    assert variables["CHROOTFW_INSTANCE"] == "web1"
    assert variables.keys() <= {
        "PATH",
        "HOME",
        "LANG",
        "TERM",
        "USER",
        "LOGNAME",
        "SHELL",
        "CHROOTFW_INSTANCE",
    }


def test_user_and_groups_are_those_of_the_root(started: Chroot) -> None:
    for user in ("web", "1000"):
        shown = started.cli("exec", "--user", user, "--", "/bin/id").stdout
        assert "uid=1000(web) gid=1001(web)" in shown
        assert "1002(pictures)" in shown
        assert "0(root)" not in shown
    assert (
        started.cli(
            "exec", "--user", "web", "--env", "A=b", "--cwd", "/srv", "--", "/bin/pwd"
        ).stdout
        == "/srv\n"
    )


def test_it_inherits_no_descriptor(started: Chroot) -> None:
    read_end, write_end = os.pipe()
    shown = started.cli("exec", "--", "/bin/ls", "/proc/self/fd", pass_fds=[write_end]).stdout
    os.close(read_end)
    os.close(write_end)
    assert set(shown.split()) <= {"0", "1", "2", "3"}  # 3 is the directory that ls lists


def test_default_signals_whatever_the_caller_ignores(started: Chroot) -> None:
    shown = started.cli(
        "exec", "--", "/bin/grep", "-E", "Sig(Ign|Blk)", "/proc/self/status",
        prefix=["env", "--ignore-signal=TERM,HUP,PIPE", "--block-signal=USR1"],
    ).stdout  # fmt: skip
    assert shown == "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"


def test_what_it_leaves_belongs_to_the_instance(started: Chroot) -> None:
    left = int(
        started.cli("exec", "--", "/bin/sh", "-c", "sleep 3600 > /dev/null 2>&1 & echo $!").stdout
    )
    assert left in started.pids()
    started.cli("stop")
    assert not is_running(left)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_the_cgroup_is_frozen(
    started: Chroot, cli: Cli, hierarchy: Path, signum: signal.Signals
) -> None:
    """As the root user inside can do it to its own cgroup."""
    group = Path(f"/proc/{min(started.pids())}/cgroup").read_text().rpartition("0::/")[2].strip()
    file = hierarchy / group / "cgroup.freeze"
    file.write_text("1")
    try:
        inside = cli.begin("exec", "web1", "--", "/bin/true")
        wait_until(
            lambda: len((hierarchy / group / "cgroup.procs").read_text().split()) > 1,
            "its child is there",
        )
        began = time.monotonic()
        inside.send_signal(signum)
        cli.end(inside, expect=128 + signum)
        assert (
            time.monotonic() - began < 5
        )  # of the ten seconds that the program has to come to run
    finally:
        file.write_text("0")


@pytest.mark.parametrize("params", [{}, {"hardened": True}], ids=["plain", "hardened"])
def test_term_ends_a_command_that_is_stopped(
    web1: Chroot, cli: Cli, params: dict[str, object]
) -> None:
    """As root inside can do it to each command: a signal alone would wait until it goes on."""
    web1.define(**params)
    web1.cli("start", "--no-init")
    inside = cli.begin("exec", "web1", "--", "/bin/sh", "-c", "kill -STOP $$")
    wait_until(
        lambda: (
            "stopped"
            in [each.get("state") for each in cli("ps", "web1", "--json").json()["processes"]]
        ),  # one that ends meanwhile has no state
        "the command is stopped",
    )
    inside.send_signal(signal.SIGTERM)
    cli.end(inside, expect=128 + signal.SIGTERM)


def _is_stuck(pipe: Any) -> bool:
    """Whether as much waits to be read as a moment ago."""

    def waiting() -> int:
        return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)

    before = waiting()
    time.sleep(0.3)
    return 0 < before == waiting()


@pytest.mark.parametrize("params", [{}, {"hardened": True}], ids=["plain", "hardened"])
@pytest.mark.parametrize("on", [[], ["--tty"]], ids=["pipes", "terminal"])
def test_a_reader_of_a_commands_output_that_does_not_read_keeps_no_stop_waiting(
    web1: Chroot, cli: Cli, params: dict[str, object], on: list[str]
) -> None:
    """As `less` that was left open, or the command of another instance in the same pipeline."""
    web1.define(**params)
    web1.cli("start")
    inside = cli.begin("exec", *on, "web1", "--", "/bin/sh", "-c", "while echo yes; do :; done")
    wait_until(lambda: _is_stuck(inside.stdout), "the pipe is full")
    web1.cli("stop")
    assert web1.state == "absent"
    cli.end(inside, expect=128 + signal.SIGTERM)


@pytest.mark.parametrize("params", [{}, {"hardened": True}], ids=["plain", "hardened"])
def test_a_command_that_does_not_end_with_term_is_killed(
    web1: Chroot, cli: Cli, params: dict[str, object]
) -> None:
    """As a process inside that stops it again and again can bring about."""
    web1.define(grace=0.5, **params)
    web1.cli("start", "--no-init")
    script = "trap '' TERM; touch /run/up; while :; do sleep 0.1; done"
    inside = cli.begin("exec", "web1", "--", "/bin/sh", "-c", script)
    wait_until((web1.root / "run/up").exists, "the command runs")
    inside.send_signal(signal.SIGTERM)
    cli.end(inside, expect=128 + signal.SIGKILL)


def test_a_stop_ends_a_command_that_runs(started: Chroot, cli: Cli) -> None:
    inside = cli.begin("exec", "web1", "--", "/bin/sh", "-c", "touch /run/up; exec sleep 3600")
    wait_until((started.root / "run/up").exists, "the command runs")
    started.cli("stop")
    cli.end(inside, expect=(128 + signal.SIGTERM, 128 + signal.SIGKILL))
    assert started.is_gone()


def test_a_command_in_what_is_only_mounted_makes_it_run(web1: Chroot, cli: Cli) -> None:
    web1.cli("start", "--no-init")
    inside = cli.begin("exec", "web1", "--", "/bin/sh", "-c", "touch /run/up; exec sleep 3600")
    wait_until((web1.root / "run/up").exists, "the command runs")
    assert web1.state == "running"
    web1.cli("stop")
    cli.end(inside, expect=(128 + signal.SIGTERM, 128 + signal.SIGKILL))
    assert web1.is_gone()


@pytest.mark.parametrize("file", ["/proc/version", "/sys/kernel/uevent_seqnum"])
def test_a_file_of_the_kernels_is_not_read_for_one_of_the_root(started: Chroot, file: str) -> None:
    """The host's /proc/kmsg, for one, gives each line once."""
    (started.root / "etc/passwd").unlink()
    (started.root / "etc/passwd").symlink_to(file)
    with pytest.raises(OSError, match="a file of the kernel's"):
        Root(str(started.root)).open("/etc/passwd")
    assert started.cli("exec", "--", "/bin/echo", "goes on").stdout == "goes on\n"


def test_words_are_passed_as_they_are(started: Chroot) -> None:
    words = ["a b", "", "-n", "--user", "$HOME", "*", "ü", "a\nb", "\udcff"]
    shown = started.cli("exec", "--", "/bin/printf", "%s|", *words).stdout
    assert shown == "".join(f"{word}|" for word in words)


def test_a_shell_gives_its_own_status(started: Chroot, cli: Cli) -> None:
    """Without a terminal it reads commands, as any shell does."""
    process = cli.begin("shell", "web1", stdin=subprocess.PIPE)
    done = cli.end(process, input="echo in $CHROOTFW_INSTANCE\nexit 7\n", expect=7)
    assert "in web1" in done.stdout


def test_a_shell_has_a_terminal_of_its_own(started: Chroot, cli: Cli) -> None:
    ours, theirs = pty.openpty()
    process = cli.begin(
        "shell", "web1", stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    os.write(ours, b"tty; test -t 0 && echo y''es; exit 9\n")
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # EIO: the other side is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    assert process.wait() == 9
    assert b"/dev/pts/" in shown
    assert b"yes" in shown


# -- the library ----------------------------------------------------------------------------------------


def test_a_command_can_have_a_terminal_of_the_instances_own(started: Chroot, cli: Cli) -> None:
    for words in (("exec", "-t", "web1"), ("shell", "web1"), ("shell", "web1", "--")):
        done = cli(*words, "sh", "-c", "test -t 0 && tty; exit 7", expect=7)
        assert done.stdout.strip() == "/dev/pts/0"
    assert "not a tty" in cli("exec", "web1", "tty", expect=1).stdout


def test_a_shell_of_another_user_in_another_directory(started: Chroot, cli: Cli) -> None:
    words = ("shell", "web1", "--user", "1", "--cwd", "/etc", "--", "sh", "-c", "id -u; pwd")
    assert cli(*words).stdout.split() == ["1", "/etc"]
    cli("shell", "web1", "--cwd", "/etc", "nonsense", expect=127, says=["cannot run nonsense"])


def test_run_has_the_shape_of_subprocess_run(started: Chroot) -> None:
    run = started.runtime.run
    done = run("web1", ["/bin/cat"], input=b"bytes", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"bytes", b"")
    assert run("web1", ["/bin/cat"], input="text", capture_output=True, text=True).stdout == "text"
    assert run("web1", ["/bin/false"]).returncode == 1
    assert run("web1", ["/bin/sh", "-c", "kill -9 $$"]).returncode == -9
    assert (
        run(
            "web1",
            ["/bin/sh", "-c", "echo out; echo err >&2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ).stdout
        == b"out\nerr\n"
    )
    assert run("web1", ["/bin/echo", "x"], stdout=subprocess.DEVNULL).stdout is None


def test_run_raises_what_subprocess_run_raises(started: Chroot) -> None:
    run = started.runtime.run
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run("web1", ["/bin/sh", "-c", "echo out; exit 3"], capture_output=True, check=True)
    assert (failed.value.returncode, failed.value.stdout) == (3, b"out\n")
    with pytest.raises(FileNotFoundError):
        run("web1", ["/no/such/program"])
    (started.disk / "srv/file").touch()
    with pytest.raises(PermissionError):
        run("web1", ["/srv/file"])
    with pytest.raises(subprocess.TimeoutExpired):
        run("web1", ["/bin/sleep", "3600"], timeout=0.1)
    assert len(started.pids()) == 1


def test_run_in_what_is_not_started(web1: Chroot) -> None:
    with pytest.raises(chrootfw.TransitionError, match="web1"):
        web1.runtime.run("web1", ["/bin/true"])
    with pytest.raises(chrootfw.NotFoundError, match="nobody"):
        web1.runtime.run("nobody", ["/bin/true"])


def test_large_output_is_whole(started: Chroot) -> None:
    done = started.runtime.run(
        "web1", ["/bin/dd", "if=/dev/zero", "bs=1M", "count=16"], capture_output=True
    )
    assert len(done.stdout) == 16 << 20


def test_no_child_changes_what_the_program_may(started: Chroot, make_chroot: MakeChroot) -> None:
    """A child that shares memory would make the whole program one that nobody may trace, by its new user alone."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(_PR_GET_DUMPABLE) == 1
    started.runtime.run("web1", ["/bin/true"], user="web", check=True)
    hardened = make_chroot("web2", hardened=True, hardened_namespaces=["pid"])
    runtime = chrootfw.Runtime(
        discover=True, run_dir=started.runtime.run_dir, config_dir=started.runtime.config_dir
    )
    runtime.start(hardened.name)
    runtime.run(hardened.name, ["/bin/true"], check=True)
    assert libc.prctl(_PR_GET_DUMPABLE) == 1


@pytest.mark.parametrize("limited", [True, False])
def test_below_a_memory_limit_no_child_shares_the_managers_memory(
    web1: Chroot, monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    """When the cgroup runs out of memory, the kernel ends all that share the memory of the process it chooses."""
    web1.start()
    asked: list[tuple[str | None, list[str]]] = []
    shared: list[bool] = []
    begin = child.begin

    def is_limited(cgroup: str | None, joins: Sequence[str]) -> bool:
        asked.append((cgroup, list(joins)))
        return limited

    def note(*arguments: Any, shares_memory: bool = True) -> child.Child:
        shared.append(shares_memory)
        return begin(*arguments, shares_memory=shares_memory)

    monkeypatch.setattr(spawn, "memory_is_limited", is_limited)
    monkeypatch.setattr(child, "begin", note)
    web1.runtime.run("web1", ["/bin/true"], check=True)
    assert shared[-1] is not limited  # of the command, after those that read the root
    groups = read_instance(str(web1.runtime.run_dir), "web1").groups("web1")
    assert [cgroup for cgroup, _ in asked] == [groups[-1] if groups else None]


@pytest.mark.parametrize(
    "user",
    ["4294967295", "4294967296", "9" * 30, "0:4294967295", "²", "", "0:", "nobody", "daemon"],
)
def test_a_user_without_a_valid_id_runs_nothing(web1: Chroot, cli: Cli, user: str) -> None:
    with open(web1.disk / "etc/passwd", "a") as file:
        file.write("nobody:x:4294967295:65534:nobody:/:/bin/sh\ndaemon:x:1:abc:daemon:/:/bin/sh\n")
    web1.start()
    refused = cli("exec", "web1", "--user", user, "--", "/bin/sh", "-c", "echo came", expect=125)
    assert "came" not in refused.stdout
    cli("exec", "web1", "--user", "4294967294", "--", "/bin/true")


def test_a_root_whose_users_are_nonsense(web1: Chroot, cli: Cli) -> None:
    (web1.disk / "etc/passwd").write_text("root:x:0:abc:root:/root:/bin/sh\n²:x:²:²::/:/bin/sh\n")
    (web1.disk / "etc/group").write_text("x:x:²:root\n")
    web1.start()
    cli("exec", "web1", "--", "/bin/true")
    os.truncate(web1.disk / "etc/passwd", 40 << 30)
    cli("exec", "web1", "--", "/bin/true", prefix=["prlimit", f"--as={300 << 20}"])
    (web1.disk / "etc/passwd").unlink()
    os.mkfifo(web1.disk / "etc/passwd")
    cli("exec", "web1", "--", "/bin/true")
    cli("exec", "web1", "--user", "ann", "--", "/bin/true", expect=125)


def test_what_subprocess_refuses_and_what_it_translates(
    web1: Chroot, runtime: chrootfw.Runtime
) -> None:
    web1.start()
    for how in (
        {"args": ["/bin/echo", "a\0b"]},
        {"args": ["/bin/echo", 7]},
        {"args": ["/bin/true"], "env": {"A": "x\0y"}},
        {"args": ["/bin/true"], "env": {"A=B": "x"}},
        {"args": ["/bin/true"], "timeout": 1e10},
        {"args": ["/bin/true"], "timeout": float("nan")},
        {"args": ["/bin/true"], "timeout": "5"},
        {"args": ["/bin/true"], "user": 0},
    ):
        with pytest.raises(chrootfw.InputError):
            runtime.run("web1", **how)  # type: ignore[arg-type]
    said = runtime.run(
        "web1", ["/bin/sh", "-c", r"printf 'a\rb\r\nc\n'"], capture_output=True, text=True
    )
    assert said.stdout == "a\nb\nc\n"
    for timeout in ("5", -1, float("nan"), 1e10, True):
        with pytest.raises(chrootfw.InputError, match="timeout"):
            runtime.stop("web1", timeout=timeout)  # type: ignore[arg-type]
    assert web1.state == "running"


def test_an_instance_that_is_stopped_meanwhile_is_not_entered(
    started: Chroot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its root directory is empty then, and no program is found in it."""
    answers = deadlines.check_answers

    def stop_then_answer(path: str, *, seconds: float) -> None:
        started.cli("stop")
        Path(path).mkdir(parents=True)  # where the next start is about to mount
        answers(path, seconds=seconds)

    monkeypatch.setattr(deadlines, "check_answers", stop_then_answer)
    with pytest.raises(chrootfw.TransitionError, match="not started"):
        started.runtime.run("web1", ["/bin/true"])
    started.root.rmdir()
    started.root.parent.rmdir()
