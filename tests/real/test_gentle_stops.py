"""A stop that lets processes end by themselves, hangs up on shells, and names what never ended."""

from __future__ import annotations

import os
import pty
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import roots
from driving import Chroot, Cli
from kernelview import wait_until

import chrootfw
from chrootfw_hardened import hardening

MakeChroot = Callable[..., Chroot]

#: A daemon that finishes its work when it is asked to (USR1), and loses it when it gets TERM.
_WORKS = """
(trap 'echo cut > /var/end; exit' TERM; trap 'left=10' USR1
left=-1; while [ $left -ne 0 ]; do sleep 0.1; left=$((left - 1)); done; echo whole > /var/end) &
echo $! > /run/daemon
"""
_ASKS = "kill -USR1 $(cat /run/daemon)"
SOON = 15


@pytest.mark.quick
@pytest.mark.parametrize(
    ("verb", "stop_wait", "end"),
    [
        ("stop", 60, "whole"),
        ("reboot", 60, "whole"),
        ("stop --keep-mounted", 60, "whole"),
        ("stop", 0, "cut"),
        ("stop --no-script", 60, "cut"),
    ],
)
def test_processes_end_by_themselves_after_the_script(
    make_chroot: MakeChroot, verb: str, stop_wait: int, end: str
) -> None:
    web1 = make_chroot(init=roots.script(start=_WORKS, stop=_ASKS), stop_wait=stop_wait)
    web1.start()
    began = time.monotonic()
    web1.cli(verb)
    assert time.monotonic() - began < SOON
    top = web1.root if verb != "stop" and "no-script" not in verb else web1.disk
    assert (top / "var/end").read_text().strip() == end
    web1.cli("stop --force")


@pytest.mark.quick
def test_who_does_not_end_gets_term_then(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(stop=":"), stop_wait=0.3)
    web1.start()
    stopped = web1.cli("stop", "-v")
    assert "wait at most 0.3 s for the own processes to end by themselves" in stopped.stderr
    assert "SIGTERM" in stopped.stderr
    assert web1.is_gone()


@pytest.mark.quick
def test_the_wait_is_in_the_plan(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(stop_wait=7)
    web1.start()
    steps = [step["does"] for step in web1.cli("plan stop", "--json").json()["steps"]]
    (at,) = [number for number, does in enumerate(steps) if "to end by themselves" in does]
    assert "/etc/chrootfw/init stop" in steps[at - 1]
    assert "SIGTERM" in steps[at + 1]


@pytest.mark.quick
@pytest.mark.parametrize("value", [-1, 1e9, "soon"])
def test_a_wrong_wait(make_chroot: MakeChroot, value: object) -> None:
    web1 = make_chroot(stop_wait=value)
    web1.cli("start", expect=1, says=["stop_wait"])


HARDENED = pytest.mark.parametrize("how", [{}, {"hardened": True}], ids=["plain", "hardened"])


@pytest.fixture
def runtime(run_dir: Path, config_dir: Path) -> chrootfw.Runtime:
    return chrootfw.Runtime([hardening], run_dir=str(run_dir), config_dir=str(config_dir))


@HARDENED
def test_a_shell_that_ignores_term_is_hung_up_on(
    make_chroot: MakeChroot, cli: Cli, how: dict[str, object]
) -> None:
    """The daemon, which has no terminal, gets no HUP."""
    daemon = "trap 'touch /var/hup' HUP; trap 'exit' TERM; while :; do sleep 0.1; done &"
    web1 = make_chroot(init=roots.script(start=daemon, stop=":"), grace=60, **how)
    web1.start()
    outer, inner = pty.openpty()
    shell = cli.begin("shell", "web1", stdin=inner, stdout=inner, stderr=inner)
    try:
        os.write(outer, b"trap '' TERM; touch /var/ready\n")
        wait_until((web1.root / "var/ready").exists, "the shell is ready")
        began = time.monotonic()
        web1.cli("stop")
        assert time.monotonic() - began < SOON
        cli.end(shell, expect=129)
    finally:
        shell.kill()
        os.close(outer)
        os.close(inner)
    assert not (web1.disk / "var/hup").exists()
    assert web1.is_gone()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("init", "named"),
    [
        (roots.script(start="/bin/sleep 3600"), "/bin/sleep 3600"),
        (roots.script(start="exec /bin/sleep 3601"), "/bin/sleep 3601"),
        (roots.script(start="/bin/sleep '36 \x1b[2J'$((0))0 || sleep 3602"), "sleep 3602"),
    ],
)
@HARDENED
def test_a_script_that_is_the_daemon_is_told_how(
    make_chroot: MakeChroot, init: str, named: str, how: dict[str, object]
) -> None:
    web1 = make_chroot(init=init, start_timeout=2, **how)
    refused = web1.cli("start", expect=1, says=["did not end within 2 s"])
    (hint,) = [line for line in refused.stderr.splitlines() if "hint:" in line]
    assert f"{named} &" in hint
    assert web1.is_gone()


@pytest.mark.quick
def test_a_script_that_hangs_itself_is_told_that(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(start="while :; do :; done"), start_timeout=1)
    refused = web1.cli("start", expect=1, says=["did not end within 1 s"])
    assert "hint: let /etc/chrootfw/init start end" in refused.stderr
