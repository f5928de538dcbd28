"""A process that keeps the kernel's lock of a pipe delays no command for longer than its deadlines.

Whoever reads, writes, opens or closes such a pipe waits in state D, where KILL does not help.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import driving
import kernelview
import pytest
import roots
from locked_pipes import can_lock_terminals, locked, locked_terminal

#: Says where it is, and waits for the word to go on.
_WAITS = "echo $$ > /run/{0}; while [ ! -e /run/{0}.go ]; do usleep 10000; done"
#: A command that stays in the way after a deadline takes this many seconds more at most.
_SOON = 40


def waiting(make_chroot: Callable[..., driving.Chroot], **how: object) -> driving.Chroot:
    web1 = make_chroot(**how)
    for name in ("usleep", "cat"):
        if not (web1.disk / "bin" / name).is_symlink():
            (web1.disk / "bin" / name).symlink_to("busybox")
    return web1


def let_go(web1: driving.Chroot, word: str = "waits") -> None:
    (web1.root / f"run/{word}.go").touch()


def process_in(web1: driving.Chroot, word: str = "waits") -> int:
    """The process that waits, as the host counts it."""
    kernelview.wait_until((web1.root / f"run/{word}").exists, "it waits")
    said = kernelview.wait_until((web1.root / f"run/{word}").read_text, "it has said where")
    inside = said.strip()
    for pid in web1.pids("sh") | web1.pids("init"):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:") and line.split()[-1] == inside:
                return pid
    raise AssertionError("it is not there")


@pytest.mark.parametrize("hardened", [False, True])
@pytest.mark.parametrize("log", ["file", "off"])
def test_an_init_script_whose_output_is_locked_delays_no_start_and_no_stop(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli, hardened: bool, log: str
) -> None:
    web1 = waiting(
        make_chroot,
        init=roots.script(
            f"echo begins; {roots.DAEMON}\n{_WAITS.format('start')}",
            f"echo ends; {_WAITS.format('stop')}",
        ),
        hardened=hardened,
        log=log,
    )
    start = cli.begin("start", "web1")
    with locked(process_in(web1, "start"), 1):
        let_go(web1, "start")
        started = time.monotonic()
        result = cli.end(start)
        assert time.monotonic() - started < _SOON
        assert "chrootfw's own, waits" in result.stderr
        assert web1.state == "running"
    stop = cli.begin("stop", "web1", "--timeout", "1")
    with locked(process_in(web1, "stop"), 1):
        let_go(web1, "stop")
        started = time.monotonic()
        cli.end(stop)
        assert time.monotonic() - started < _SOON
    assert web1.is_gone()


def test_a_locked_pipe_delays_no_command_that_starts_the_logger_again(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    web1 = make_chroot()
    web1.cli("start")
    logger = cli.json("info", "web1")["log"]["logger"]
    os.kill(logger, signal.SIGKILL)
    kernelview.wait_until(lambda: not kernelview.is_running(logger), "the logger has ended")
    (pid,) = web1.pids("sleep")
    with locked(pid, 1):
        started = time.monotonic()
        web1.cli("info")
        web1.cli("exec", "--", "true")
        assert time.monotonic() - started < _SOON
    web1.cli("stop", "--timeout", "1")
    assert web1.is_gone()


@pytest.mark.parametrize("number", [0, 1])
def test_a_command_of_a_program_whose_pipe_is_locked_delays_nobody(
    make_chroot: Callable[..., driving.Chroot], number: int
) -> None:
    web1 = waiting(make_chroot)
    web1.start()
    found: list[int] = []

    def run() -> None:
        command = ["sh", "-c", _WAITS.format("waits")]
        done = web1.runtime.run("web1", command, input=b"x" * 200_000, capture_output=True)
        found.append(done.returncode)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    with locked(process_in(web1), number):
        let_go(web1)
        thread.join(_SOON)
        assert not thread.is_alive(), "it hangs"
    assert found == [0]
    web1.stop(force=True)


@pytest.mark.parametrize("number", [0, 1])
def test_a_command_in_a_hardened_instance_whose_pipe_is_locked_delays_nobody(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli, number: int
) -> None:
    web1 = waiting(make_chroot, hardened=True)
    web1.cli("start")
    process = cli.begin(
        "exec", "web1", "--", "sh", "-c", _WAITS.format("waits"), stdin=subprocess.PIPE
    )
    with locked(process_in(web1), number):
        let_go(web1)
        started = time.monotonic()
        result = cli.end(process, input="x" * 100_000)
        assert time.monotonic() - started < _SOON
        assert "chrootfw's own, waits" in result.stderr
    web1.cli("stop", "--force")


def test_a_shell_whose_terminal_is_locked_delays_nobody(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    if not can_lock_terminals():
        pytest.skip("no userfaultfd(2)")
    web1 = waiting(make_chroot)
    web1.start()
    shell = cli.begin("shell", "web1", stdin=subprocess.PIPE)
    assert shell.stdin is not None
    shell.stdin.write(f"{_WAITS.format('waits')}; exit\n")
    shell.stdin.flush()
    with locked_terminal(process_in(web1), 0):
        let_go(web1)
        started = time.monotonic()
        result = cli.end(shell)
        assert time.monotonic() - started < _SOON
        assert "chrootfw's own, waits" in result.stderr
    web1.stop(force=True)
