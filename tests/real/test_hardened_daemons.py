"""Daemons as Debian packages them do their work in a hardened instance, and nothing of them is left after the stop.

Some in each run, all of them with ``--whole``, for which a larger Debian system is made.
"""

from __future__ import annotations

import concurrent.futures
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import daemons
import prepare
import pytest
import roots
from debian import free_ports
from driving import Chroot
from kernelview import wait_until

#: Those that change their root, and so need SYS_CHROOT: in the Debian system that other tests have, too.
SAMPLE = ("haproxy", "postfix", "sshd")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize(
            "name", daemons.DAEMONS if metafunc.config.getoption("--whole") else SAMPLE
        )


@pytest.fixture(scope="module")
def root(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A Debian system in which one daemon after the other is configured."""
    whole = request.config.getoption("--whole")
    more = (
        {package for daemon in daemons.DAEMONS.values() for package in daemon.packages}
        if whole
        else ()
    )
    path = tmp_path_factory.mktemp("daemons") / "root"
    path.mkdir(mode=0o755)
    roots.extract(prepare.debian_system(more), path)
    daemons.prepare_root(path)
    yield path
    shutil.rmtree(path)


def test_its_whole_life(name: str, root: Path, make_chroot: Callable[..., Chroot]) -> None:
    daemon = daemons.DAEMONS[name]
    (port,) = free_ports(1)
    daemons.configure(daemon, root, port)
    web1 = make_chroot(disk=root, hardened=True)

    web1.cli("start")
    wait_until(lambda: daemons.answers(daemon, web1, port), f"{name} answers")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [
            pool.submit(daemon.request, web1, port, number) for number in range(1, daemon.load + 1)
        ]:
            done.result()
    assert web1.pids(daemon.process)
    assert web1.cli("exec", "--", "/bin/cat", "/srv/www/index.html").stdout == daemons.PAGE

    before = web1.pids()
    web1.cli("reboot")
    wait_until(lambda: daemons.answers(daemon, web1, port), f"{name} answers after the reboot")
    assert web1.pids(daemon.process)
    assert not before & web1.pids()

    web1.cli("stop")
    assert web1.is_gone()


def test_what_writes_to_the_audit_log_goes_on(
    root: Path, make_chroot: Callable[..., Chroot]
) -> None:
    """PAM and the tools of shadow end with an error where a socket of audit is refused by an errno that they do not know."""
    web1 = make_chroot(disk=root, hardened=True)
    web1.cli("start", "--no-init")
    said = web1.cli("exec", "--", "/bin/su", "-s", "/bin/sh", daemons.USER, "-c", "id -u").stdout
    assert said.split() == [str(daemons.UID)]
    web1.cli("exec", "--", "/usr/sbin/useradd", "audited")
    web1.cli("exec", "--", "/usr/sbin/userdel", "audited")
    web1.cli("stop")
