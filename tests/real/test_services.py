"""Services of a real Debian live their days in one instance: start, load, reboot under load, stop; plain, then hardened.

With ``--whole`` postgresql, nginx, redis, sshd and postfix, some of them in each run.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import daemons
import kernelview
import prepare
import pytest
import roots
import services
from driving import Chroot, Cli
from kernelview import wait_until

from chrootfw.linux import syscalls
from chrootfw.linux.network_namespace import CLONE_NEWNET

SAMPLE = ("redis", "sshd")
#: By what a run that is a sample makes fewer requests.
FEWER = 10


@pytest.fixture
def own_network() -> Iterator[None]:
    """Move this thread, and what it starts, to a network with a loopback device alone."""
    with Path("/proc/thread-self/ns/net").open() as before:
        syscalls.unshare(CLONE_NEWNET)
        try:
            subprocess.run(["busybox", "ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            syscalls.setns(before.fileno(), CLONE_NEWNET)


@pytest.fixture
def root(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Path, dict[str, services.Service]]]:
    whole = request.config.getoption("--whole")
    # The one that test_hardened_daemons has, not another 300 MB.
    more = [each for daemon in daemons.DAEMONS.values() for each in daemon.packages]
    names = tuple(services.SERVICES) if whole else SAMPLE
    path = tmp_path / "debian"
    path.mkdir(mode=0o755)
    roots.extract(prepare.debian_system(more if whole else ()), path)
    services.configure(path, names)
    fewer = 1 if whole else FEWER
    yield (
        path,
        {
            name: service._replace(load=max(2, service.load // fewer))
            for name, service in services.SERVICES.items()
            if name in names
        },
    )
    shutil.rmtree(path)


def test_their_days(
    own_network: None,
    root: tuple[Path, dict[str, services.Service]],
    make_chroot: Callable[..., Chroot],
    cli: Cli,
) -> None:
    disk, chosen = root
    earlier: list[services.Client] = []
    for name, hardened in (("plain", False), ("hardened", True)):
        chroot = make_chroot(name, disk=disk, hardened=hardened, log="file", log_size=64)
        chroot.cli("start")
        with contextlib.ExitStack() as stack:
            clients = {each: chosen[each].client(chroot) for each in chosen}
            rows = cast("services.Rows | None", clients.get("postgresql"))
            if rows is not None:
                rows.prepare()
            for client in clients.values():
                stack.enter_context(client)
            if rows is not None:
                rows.bench()
            _serve(clients, chosen)

            before = chroot.pids()
            chroot.cli("reboot")
            assert not before & chroot.pids()
            _serve(clients, chosen)
            assert chroot.state == "running"
        for client in (*clients.values(), *earlier):
            client.chroot = chroot
            client.check()
        earlier += clients.values()
        _look(chroot, chosen, cli)

        running = chroot.pids()
        chroot.cli("stop")
        assert chroot.is_gone()
        assert not [pid for pid in running if kernelview.is_running(pid)]
        printed = chroot.cli("logs").stdout
        for each, service in chosen.items():
            assert printed.count(service.prints) > 0, f"{each} is not in the log"
        assert "exited with status 0" in chroot.cli("logs", "--stop").stdout


def _serve(clients: dict[str, services.Client], chosen: dict[str, services.Service]) -> None:
    """Wait until each service has answered as many requests more as it is to."""
    served = {name: client.has_served(chosen[name].load) for name, client in clients.items()}
    for name, condition in served.items():
        wait_until(condition, f"{name} answers", seconds=180)


def _look(chroot: Chroot, chosen: dict[str, services.Service], cli: Cli) -> None:
    """What the looking verbs say of a service at work."""
    (listed,) = [each for each in cli.json("list")["instances"] if each["name"] == chroot.name]
    assert (listed["state"], listed["holders"]) == ("running", None)
    info = chroot.cli("info", "--json").json()["instances"][0]
    assert info["network"] == str(chroot.root.with_name("netns"))
    assert info["log"]["logger"]
    users = {each["user"] for each in chroot.cli("ps", "--json").json()["processes"]}
    names = {"nginx": "www-data", "postgresql": "postgres", "redis": "redis", "postfix": "postfix"}
    assert users >= {user for service, user in names.items() if service in chosen}
