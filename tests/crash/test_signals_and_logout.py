"""Row 17: INT, TERM and HUP, once and twice, at every stage of start, stop and reboot; logout; the starter's unit ends."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import driving
import kernelview
import roots

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Runs a verb, and sends itself a signal when the step of a given number begins.
STAGED = """
import os, signal, sys
from chrootfw.cli import main as cli; from chrootfw import runtime

number, signals, *argv = sys.argv[1:]
steps = 0
before = runtime.Runtime._report

def tell(self, event):
    global steps
    before(self, event)
    if event.what == "begin":
        steps += 1
        if steps == int(number):
            for _ in range(int(signals.partition("x")[2])):
                os.kill(os.getpid(), int(signals.partition("x")[0]))

runtime.Runtime._report = tell
sys.argv = ["chrootfw", *argv]
sys.exit(cli.main())
"""


def test_signals_at_every_step(
    make_chroot: Callable[..., driving.Chroot],
    cli: driving.Cli,
    image: Callable[..., Path],
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    web1 = make_chroot(
        disk=image(init=roots.script(roots.DAEMON, "true")), binds=["/etc:/mnt"], grace=0.2
    )
    before = kernelview.mount_table()
    sent = 0
    steps: dict[str, int] = {}
    for verb in ("start", "stop", "reboot"):
        number = 0
        while True:
            number += 1
            # In a sample one of the six ways at every third step.
            ways = [(signum, times) for times in (1, 2) for signum in SIGNALS]
            for signum, times in (
                ways if whole else [ways[number // 3 % len(ways)]] if number % 3 == 1 else []
            ):
                if verb != "start":
                    web1.start()
                command = [
                    sys.executable,
                    "-c",
                    STAGED,
                    str(number),
                    f"{int(signum)}x{times}",
                    verb,
                    "web1",
                ]
                done = subprocess.run(
                    command,
                    env=cli.environment(),
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=120,
                )
                what = (verb, number, signum.name, times, done.returncode, done.stderr)
                assert "Traceback" not in done.stderr, what
                assert done.returncode in (0, 128 + signum), what
                if verb == "start":
                    assert web1.state == ("absent" if done.returncode else "running"), what
                    if done.returncode:
                        assert web1.is_gone(), what
                        assert kernelview.mount_table() == before, what
                        assert not web1.root.parent.exists(), what
                        assert signum.name in done.stderr, what
                elif done.returncode:
                    assert signum.name in done.stderr, what
                    assert verb == "reboot" or "remain" in done.stderr or web1.state == "absent", (
                        what
                    )
                elif verb == "stop":
                    assert web1.state == "absent", what
                else:
                    assert web1.state == "running", what
                web1.cli("stop", "--force")
                assert web1.is_gone(), what
                assert kernelview.mount_table() == before, what
                sent += 1
            if number > _steps(steps, verb, web1):
                break
    roots.check_image(web1.disk, "ext4")
    assert all(count >= 5 for count in steps.values()), steps
    figure(
        17,
        f"{sent} of {sent} times INT, TERM, HUP (once, twice) at {', '.join(f'{n} steps of {v}' for v, n in steps.items())}: "
        "start undone, stop and reboot ended after the step with 128 + n or came through; nothing left after a stop",
    )


def _steps(known: dict[str, int], verb: str, web1: driving.Chroot) -> int:
    """How many steps a verb has, counted once from its own progress."""
    if verb not in known:
        if verb != "start":
            web1.start()
        begun = 0

        def tell(event: object) -> None:
            nonlocal begun
            begun += getattr(event, "what", "") == "begin"

        web1.runtime.on_event = tell
        try:
            getattr(web1.runtime, verb)("web1")
        finally:
            web1.runtime.on_event = None
        known[verb] = begun
        web1.cli("stop", "--force")
    return known[verb]


def test_a_logout_ends_no_instance(
    web1: driving.Chroot, cli: driving.Cli, whole: bool, figure: Callable[[int, str], None]
) -> None:
    """A terminal, its session's leader a shell; the shell starts the instance; then the terminal is closed."""
    rounds = 10 if whole else 2
    for number in range(rounds):
        command = f"{sys.executable} -m chrootfw {'start' if number % 2 == 0 else '-v start'} web1; echo started; exec sleep 3600"
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve("/bin/sh", ["sh", "-c", command], cli.environment())
        said = b""
        while b"started" not in said:
            said += os.read(terminal, 4096)
        own = web1.pids()
        assert own, said
        os.close(terminal)  # the kernel sends HUP to the session's leader and to the foreground
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGHUP
        assert web1.pids() == own
        assert all(kernelview.is_running(each) for each in own)
        for each in own:
            tty = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[4]
            assert tty == "0", "it has the terminal"
        web1.cli("stop")
    figure(
        17,
        f"{rounds} of {rounds} logouts (terminal closed, HUP to the session): the instance runs on",
    )


def test_the_unit_that_started_it_is_stopped(
    web1: driving.Chroot, cli: driving.Cli, whole: bool, figure: Callable[[int, str], None]
) -> None:
    """Whatever is in the starter's cgroup is killed, as systemd does it with a unit; v2 here."""
    hierarchy = kernelview.cgroup_hierarchy()
    assert hierarchy is not None
    unit = hierarchy / f"unit-of-tests-{os.getpid()}"
    rounds = 10 if whole else 2
    for _ in range(rounds):
        unit.mkdir()
        try:
            command = f"echo $$ > {unit}/cgroup.procs; {sys.executable} -m chrootfw start web1; echo; exec sleep 3600"
            shell = subprocess.Popen(
                ["sh", "-c", command], env=cli.environment(), stdout=subprocess.PIPE
            )
            assert shell.stdout is not None
            shell.stdout.readline()
            own = web1.pids()
            assert own
            assert str(shell.pid) in (unit / "cgroup.procs").read_text().split()
            fd = os.open(unit / "cgroup.kill", os.O_WRONLY)
            os.write(fd, b"1")
            os.close(fd)
            assert shell.wait(60) == -signal.SIGKILL
            shell.stdout.close()
            kernelview.wait_until(
                lambda: "populated 0" in (unit / "cgroup.events").read_text(), "the unit is empty"
            )
            assert web1.pids() == own
            assert all(kernelview.is_running(each) for each in own)
        finally:
            unit.rmdir()
        web1.cli("stop")
        assert web1.is_gone()
    figure(
        17,
        f"{rounds} of {rounds} times everything in the cgroup of the starter killed: the instance runs on in its own",
    )
