"""Instances that are started in a network namespace which is not the host's: they stay in it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import kernelview
import pytest
import roots
from driving import Chroot, Cli
from kernelview import wait_until

import chrootfw
from chrootfw.linux import network_namespace, syscalls

MakeChroot = Callable[..., Chroot]
Outside = Callable[..., "subprocess.Popen[str]"]

#: Prints the network namespace that it runs in.
SHOW = ("--", "readlink", "/proc/self/ns/net")
#: Its loopback device is up, which that of a new namespace is not; and it notes where each script runs.
NOTE = "readlink /proc/self/ns/net >> /var/networks"


class Network:
    """A network namespace without a name, kept by one process."""

    def __init__(self, keeper: subprocess.Popen[str]) -> None:
        self.keeper = keeper
        self.prefix = ["nsenter", f"--net=/proc/{keeper.pid}/ns/net"]
        self.link = os.readlink(f"/proc/{keeper.pid}/ns/net")

    def end(self) -> None:
        self.keeper.kill()
        self.keeper.wait()


def _make_network(outside: Outside) -> Network:
    keeper = outside(
        "unshare", "--net", "sh", "-c", "echo; exec sleep 3600", stdout=subprocess.PIPE
    )
    assert keeper.stdout is not None
    keeper.stdout.readline()
    return Network(keeper)


@pytest.fixture
def elsewhere(outside: Outside) -> Network:
    return _make_network(outside)


@pytest.fixture
def noting(make_chroot: MakeChroot) -> Chroot:
    """An instance whose script notes in which network it runs."""
    return make_chroot(init=roots.script(f"{NOTE}\n{roots.DAEMON}", f"{NOTE}\n{roots.END_DAEMON}"))


def _pin(chroot: Chroot) -> Path:
    return chroot.root.with_name("netns")


def _network_of(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def test_it_stays_in_the_network_that_it_was_started_in(noting: Chroot, elsewhere: Network) -> None:
    noting.cli("start", prefix=elsewhere.prefix)
    elsewhere.end()
    (daemon,) = noting.pids("sleep")
    assert _network_of(daemon) == elsewhere.link

    assert noting.cli("exec", *SHOW).stdout.strip() == elsewhere.link
    assert noting.cli("info", "--json").json()["instances"][0]["network"] == str(_pin(noting))
    assert str(_pin(noting)) in noting.cli("info").stdout

    noting.cli("reboot")
    (rebooted,) = noting.pids("sleep")
    assert rebooted != daemon
    assert _network_of(rebooted) == elsewhere.link
    assert noting.cli("exec", "--", "ls", "/sys/class/net").stdout.split() == ["lo"]

    noting.cli("stop")
    noted = (noting.disk / "var/networks").read_text().split()
    assert noted == [elsewhere.link] * 4  # start, stop and start of the reboot, stop
    assert not noting.root.parent.exists()


def test_it_stays_in_it_without_a_process(
    web1: Chroot, elsewhere: Network, outside: Outside
) -> None:
    """Nothing but the pin keeps the namespace; its number would be used again at once."""
    web1.cli("start --no-init", prefix=elsewhere.prefix)
    elsewhere.end()
    others = [_make_network(outside) for _ in range(3)]
    assert elsewhere.link not in [other.link for other in others]
    assert web1.cli("exec", *SHOW).stdout.strip() == elsewhere.link
    web1.cli("stop")
    assert not web1.root.parent.exists()


def test_a_shell_is_in_it_too(web1: Chroot, elsewhere: Network) -> None:
    web1.cli("start", prefix=elsewhere.prefix)
    shell = web1._cli.begin("shell", "web1", stdin=subprocess.PIPE)
    shown = web1._cli.end(shell, input="readlink /proc/self/ns/net\nexit\n")
    assert elsewhere.link in shown.stdout


@pytest.mark.parametrize("namespaces", [[], ["pid", "ipc"]])
def test_a_hardened_one_is_in_it_too(
    noting: Chroot, elsewhere: Network, namespaces: list[str]
) -> None:
    noting.define(hardened=True, hardened_namespaces=namespaces)
    noting.cli("start", prefix=elsewhere.prefix)
    assert noting.cli("exec", *SHOW).stdout.strip() == elsewhere.link
    noting.cli("reboot")
    assert {_network_of(pid) for pid in noting.pids("sleep")} == {elsewhere.link}
    noting.cli("stop")
    assert not noting.root.parent.exists()


def test_one_of_the_hosts_network_stays_in_that(noting: Chroot, elsewhere: Network) -> None:
    """Also where the command is run in another one."""
    here = os.readlink("/proc/self/ns/net")
    noting.cli("start")
    assert not _pin(noting).exists()
    assert noting.cli("exec", *SHOW, prefix=elsewhere.prefix).stdout.strip() == here
    noting.cli("reboot", prefix=elsewhere.prefix)
    assert {_network_of(pid) for pid in noting.pids("sleep")} == {here}
    noting.cli("stop", prefix=elsewhere.prefix)
    assert set((noting.disk / "var/networks").read_text().split()) == {here}


def test_the_next_start_goes_by_its_own_caller(web1: Chroot, elsewhere: Network) -> None:
    web1.cli("start --no-init", prefix=elsewhere.prefix)
    web1.cli("start")  # on the mounted root
    assert not _pin(web1).exists()
    assert web1.cli("exec", *SHOW).stdout.strip() == os.readlink("/proc/self/ns/net")


def test_a_start_that_cannot_pin_another_network_leaves_none(
    web1: Chroot, elsewhere: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_how: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    web1.cli("start --no-init", prefix=elsewhere.prefix)
    with monkeypatch.context() as patch:
        patch.setattr(network_namespace, "is_host", lambda _pid="thread-self": False)
        patch.setattr(syscalls, "move_mount", refuse)
        with pytest.raises(chrootfw.StepError, match="network namespace"):
            web1.start()
    assert web1.cli("exec", *SHOW).stdout.strip() == os.readlink("/proc/self/ns/net")
    assert "network" not in web1.cli("info").stdout


def test_a_pin_that_is_gone_is_named(noting: Chroot, elsewhere: Network) -> None:
    noting.cli("start", prefix=elsewhere.prefix)
    subprocess.run(["umount", str(_pin(noting))], check=True)
    assert f"no longer pinned at {_pin(noting)}" in noting.cli("info").stdout
    assert "network" not in noting.cli("info", "--json").json()["instances"][0]
    for verb, status in (("exec", 125), ("reboot", 1)):
        more = SHOW if verb == "exec" else ()
        noting.cli(verb, *more, expect=status, says=["web1", str(_pin(noting))])
    assert noting.state == "running"
    assert "network" in noting.cli("stop").stderr  # its script cannot be run there
    assert not noting.root.parent.exists()


def test_a_copy_of_the_pin_elsewhere_keeps_nothing(
    web1: Chroot, elsewhere: Network, outside: Outside
) -> None:
    web1.cli("start", prefix=elsewhere.prefix)
    stranger = outside(
        "unshare", "--mount", "sh", "-c", "echo; exec sleep 3600", stdout=subprocess.PIPE
    )
    assert stranger.stdout is not None
    stranger.stdout.readline()
    assert "netns" in Path(f"/proc/{stranger.pid}/mountinfo").read_text()
    web1.cli("stop")
    assert str(_pin(web1)) not in Path(f"/proc/{stranger.pid}/mountinfo").read_text()
    assert stranger.poll() is None


@pytest.mark.parametrize("verb", ["cleanup", "stop", "start"])
def test_a_start_that_was_killed(noting: Chroot, cli: Cli, elsewhere: Network, verb: str) -> None:
    noting.write_init(roots.script(f"{NOTE}\n: > /var/here\n/bin/sleep 3600"))
    starting = cli.begin("start", "web1", prefix=elsewhere.prefix)
    wait_until((noting.disk / "var/here").exists, "the script runs")
    os.kill(starting.pid, signal.SIGKILL)
    starting.communicate()
    for pid in noting.pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not noting.pids(), "its processes have ended")
    assert _pin(noting).exists()

    noting.write_init(roots.script())
    noting.cli(verb)
    assert not _pin(noting).exists()
    assert kernelview.mount_on(_pin(noting)) is None
