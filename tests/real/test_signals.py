"""INT, TERM and HUP at every stage: a start undoes, a stop finishes the step and says what remains."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driving
import kernelview
import pytest
import roots

import chrootfw
from chrootfw.linux import syscalls

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def _until(process: subprocess.Popen[str], words: str) -> None:
    """Read the progress of a command until it comes to ``words``."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"the command ended without {words!r}")


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("twice", [False, True])
def test_a_start_is_undone_while_the_init_script_runs(
    make_chroot: Callable[..., driving.Chroot], signum: signal.Signals, twice: bool
) -> None:
    chroot = make_chroot(init=roots.script(f"{roots.DAEMON}\nsleep 3600"))
    process = chroot._cli.begin("start", "web1", "-v")
    _until(process, "check the root")
    process.send_signal(signum)
    if twice:
        process.send_signal(signum)
    result = chroot._cli.end(process, expect=128 + signum)
    assert signum.name in result.stderr
    assert chroot.is_gone()
    assert chroot.state == "absent"
    chroot.write_init(roots.script())
    chroot.start()


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("words", ["on / ", "on /dev ", "attach the tree", "check the root"])
def test_a_start_is_undone_at_each_step_before_the_script(
    web1: driving.Chroot, signum: signal.Signals, words: str
) -> None:
    # The event is shown before the next step begins; the command may also be through before the signal comes.
    process = web1._cli.begin("start", "web1", "-v")
    _until(process, words.strip() if words != "on / " else " on /")
    process.send_signal(signum)
    result = web1._cli.end(process, expect=(128 + signum, 0))
    if result.status:
        assert web1.is_gone()
    else:
        assert web1.state == "running"
        web1.cli("stop")


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_stop_finishes_the_script_and_says_what_remains(
    make_chroot: Callable[..., driving.Chroot], signum: signal.Signals
) -> None:
    chroot = make_chroot(
        init=roots.script(
            stop="echo > /run/stopping; while [ ! -e /var/go ]; do usleep 10000; done"
        )
    )
    chroot.start()
    process = chroot._cli.begin("stop", "web1", "-v")
    kernelview.wait_until(lambda: (chroot.root / "run/stopping").exists(), "the stop script runs")
    process.send_signal(signum)
    assert process.poll() is None
    (chroot.disk / "var/go").touch()
    result = chroot._cli.end(process, expect=128 + signum)
    assert "1 process;" in result.stderr
    assert "mounts remain" in result.stderr
    assert chroot.state == "running"
    chroot.cli("stop")
    assert chroot.calls() == ["start", "stop"], "the script ran to its end: it is not called again"


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_stop_ends_between_two_signals(
    make_chroot: Callable[..., driving.Chroot], signum: signal.Signals
) -> None:
    chroot = make_chroot(init=roots.script(roots.STUBBORN, "true"))
    chroot.start()
    process = chroot._cli.begin("stop", "web1", "-v", "--timeout", "1")
    _until(process, "/etc/chrootfw/init stop")
    process.send_signal(signum)
    chroot._cli.end(process, expect=128 + signum)
    assert chroot.pids(), "KILL was sent after the interrupt"
    chroot.cli("stop", "--force")
    assert chroot.is_gone()


def test_a_signal_that_was_ignored_stays_ignored(web1: driving.Chroot) -> None:
    """As under nohup(1)."""
    process = web1._cli.begin(
        "start", "web1", "-v", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    _until(process, " on /")
    process.send_signal(signal.SIGHUP)
    web1._cli.end(process)
    assert web1.state == "running"


@pytest.mark.parametrize("signum", SIGNALS)
def test_waiting_for_a_lock_ends_at_once(web1: driving.Chroot, signum: signal.Signals) -> None:
    web1.start()
    lock = web1._cli.run_dir / ".locks/web1.lock"
    with lock.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = web1._cli.begin("stop", "web1", "--lock-timeout", "600")

        kernelview.wait_until(
            lambda: str(lock.resolve()) in _open_files(process.pid),
            "the command has opened the lock",
        )
        process.send_signal(signum)
        web1._cli.end(process, expect=128 + signum)
    assert web1.state == "running"


def _open_files(pid: int) -> list[str]:
    """Where its descriptors lead; they come and go meanwhile."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


@pytest.mark.parametrize("number", [428, 429, 430, 431, 432, 442])
def test_a_call_that_a_signal_interrupts_is_made_again(
    runtime: chrootfw.Runtime,
    image: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """open_tree, move_mount, fsopen, fsconfig, fsmount, mount_setattr: the interrupt is for the next step to see."""
    real, interrupted = syscalls._syscall, []

    def once(*arguments: Any) -> int:
        if arguments[0] == number and not interrupted:
            interrupted.append(number)
            ctypes.set_errno(errno.EINTR)
            return -1
        result: int = real(*arguments)
        return result

    monkeypatch.setattr(syscalls, "_syscall", once)
    runtime.start(
        chrootfw.Instance("web1", disk=str(image()), params={"binds": [f"{tmp_path}:/mnt:ro"]})
    )
    runtime.stop("web1")
    assert interrupted
