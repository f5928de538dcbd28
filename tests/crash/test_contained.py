"""Row 21: whatever leads from an instance to the host is tried, in a plain one, where it works, and in hardened ones, where it does not.

``containment_probe`` makes all attempts in one process, once for each way into an instance. What the machine refuses outside of every instance
too proves nothing: the figure names it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kernelview
import pytest
import roots
from driving import Chroot, Cli

import chrootfw
from chrootfw.planning import privileges
from chrootfw_hardened import hardening

_PROBE = Path(__file__).with_name("containment_probe.py")
_PYTHON = os.path.realpath(sys.executable)
_BINDS = [
    f"{place}:{place}:ro" for place in dict.fromkeys(("/usr", os.path.realpath(sys.base_prefix)))
]
_OPEN = "open"
#: How a hardened instance refuses: the caller may not; there is no such thing inside; the filter's answer to clone3(2).
_REFUSALS = {"EPERM", "EACCES", "EROFS", "ENOENT", "ESRCH", "ENOSYS"}


def _refusals(attempt: str) -> set[str]:
    """How an attempt is refused: programs know some calls to answer that the kernel has no such thing."""
    if attempt.startswith(("a lease", "a watched directory", "a delegation")):
        return {"EINVAL"}
    return {"EPROTONOSUPPORT"} if attempt.startswith("a netlink socket") else _REFUSALS


CONFIGURATIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "hardened": {"hardened": True},
    "hardened, no ipc, uts, cgroup": {"hardened": True, "hardened_namespaces": []},
}
#: A process whose root is no mount namespace's gets no user namespace (unshare(2)): the kernel's, and no merit of a plain instance's.
_CHROOTED_IS_REFUSED = {
    f"{how} user namespace" for how in ("unshare a", "clone into a new", "clone3 into a new")
}
#: What docs/explanation/security.md says of every hardened instance under "What remains".
_REMAINS = {"an abstract socket of the host"}
#: … and what is closed by those of ``hardened_namespaces`` alone.
_CLOSED_BY = {
    "ipc": {"System V memory of the host"},
    "uts": {"the host's name"},
    "cgroup": {"the name of its cgroup"},
}


@pytest.fixture
def runtime(run_dir: Path, config_dir: Path) -> chrootfw.Runtime:
    return chrootfw.Runtime([hardening], run_dir=str(run_dir), config_dir=str(config_dir))


@pytest.fixture
def world(
    tmp_path: Path, attach: Callable[[Path], str], outside: Callable[..., subprocess.Popen[str]]
) -> Iterator[dict[str, Any]]:
    """What of the host there is to reach."""
    text = "canary-of-the-host\n"
    canary, disk = tmp_path / "canary", tmp_path / "disk of the host"
    canary.write_text(text)
    canary.chmod(0o600)
    disk.write_bytes(bytes(1 << 20))
    marker = f"3600.{os.getpid()}"
    process = outside("sleep", marker)
    library = ctypes.CDLL("libseccomp.so.2")
    names = re.findall(r'_call\(\s*"(\w+)"', _PROBE.read_text()) + [
        "process_vm_readv",
        "process_vm_writev",
    ]
    memory = _memory(text)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0chrootfw-{marker}")
        listener.listen(64)
        try:
            yield {
                "canary": str(canary), "text": text, "pid": process.pid, "marker": marker, "abstract": f"chrootfw-{marker}", "shm": memory,
                "device": os.stat(attach(disk)).st_rdev, "hostname": socket.gethostname(), "scratch": "/srv/scratch",
                "kept": sum(1 << privileges.CAPABILITIES.index(name) for name in hardening.CAPABILITIES),
                "calls": {name: library.seccomp_syscall_resolve_name(name.encode()) for name in names},
            }  # fmt: skip
        finally:
            ctypes.CDLL(None).shmctl(memory, 0, None)  # IPC_RMID


def _memory(text: str) -> int:
    """A System V segment of the host's with ``text`` in it; its number."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmdt.argtypes = [ctypes.c_void_p]
    number = libc.shmget(0, 4096, 0o1600)
    assert number >= 0, os.strerror(ctypes.get_errno())
    address = libc.shmat(number, None, 0)
    ctypes.memmove(address, text.encode(), len(text))
    libc.shmdt(address)
    return int(number)


class Probed:
    """An instance in which the probe can be run, and what it found, by the way it came in."""

    def __init__(self, chroot: Chroot, cli: Cli, world: dict[str, Any]) -> None:
        self.chroot, self.cli = chroot, cli
        self.place = chroot.disk / "srv/results"
        self.place.mkdir()
        self.place.chmod(0o777)
        (chroot.disk / "srv/probe.py").write_bytes(_PROBE.read_bytes())
        (chroot.disk / "srv/world.json").write_text(json.dumps(world))
        file = chroot.disk / "srv/probe"
        file.write_text(
            f'#!/bin/sh\nexec {_PYTHON} -I -S /srv/probe.py "$(cat /srv/world.json)" /srv/results/$1\n'
        )
        file.chmod(0o755)

    def all_verbs(self) -> dict[str, dict[str, str]]:
        """Bring the probe in by each verb."""
        self.chroot.cli("start")
        self.chroot.cli("exec", "--", "/srv/probe", "exec")
        self.chroot.cli("exec", "--user", "web", "--", "/srv/probe", _AS_A_USER)
        self._on_a_terminal("exec", self.chroot.name, "--", "/srv/probe", "exec-on-a-terminal")
        shell = self.cli.begin("shell", self.chroot.name, stdin=subprocess.PIPE)
        self.cli.end(shell, input="/srv/probe shell\nexit 0\n")
        self.chroot.cli("reboot")
        self.chroot.cli("stop")
        return {file.name: json.loads(file.read_text()) for file in self.place.iterdir()}

    def _on_a_terminal(self, *argv: str) -> None:
        """On a terminal of its own, the controlling one: as an administrator runs it."""
        ours, theirs = pty.openpty()
        try:
            process = self.cli.begin(
                *argv,
                prefix=["setsid", "--ctty", "--wait"],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
            )
            assert process.wait(120) == 0
        finally:
            os.close(theirs)
            with contextlib.suppress(OSError):
                os.close(ours)


_INIT = "n=$(grep -c $1 /var/calls); /srv/probe init-$1-$n"
#: The probe's results by the name that the init script, or the test, gives them. A reboot calls for the first stop and the second start.
_AS_ROOT = {
    "init-start-1",
    "exec",
    "exec-on-a-terminal",
    "shell",
    "init-stop-1",
    "init-start-2",
    "init-stop-2",
}
_AS_A_USER = "exec-as-a-user"
_WITH_A_TERMINAL = {"exec-on-a-terminal", "shell"}


@pytest.fixture
def probed(
    make_chroot: Callable[..., Chroot],
    make_root: Callable[..., Path],
    cli: Cli,
    world: dict[str, Any],
) -> Callable[..., dict[str, dict[str, str]]]:
    def probe(name: str, **params: object) -> dict[str, dict[str, str]]:
        root = make_root(
            name, roots.script(f"{_INIT}\n{roots.DAEMON}", f"{_INIT}\n{roots.END_DAEMON}")
        )
        for directory in ("lib", "lib64"):
            (root / directory).symlink_to(f"usr/{directory}")
        return Probed(make_chroot(name, disk=root, binds=_BINDS, **params), cli, world).all_verbs()

    return probe


def _on_the_host(world: dict[str, Any], tmp_path: Path, *namespaces: str) -> dict[str, str]:
    """What the same probe finds outside of every instance, as root: in a mount namespace of its own, for what it mounts."""
    here = {**world, "scratch": str(tmp_path / "scratch")}
    results = tmp_path / "results"
    command = [
        "unshare",
        "--mount",
        *namespaces,
        _PYTHON,
        "-I",
        "-S",
        str(_PROBE),
        json.dumps(here),
        str(results),
    ]
    subprocess.run(command, check=True, cwd="/")
    return dict(json.loads(results.read_text()))


def _open_ones(results: dict[str, str]) -> set[str]:
    return {name for name, result in results.items() if result == _OPEN}


def _open_in(params: dict[str, object]) -> set[str]:
    """What the documentation says is open in a hardened instance."""
    asked = params.get("hardened_namespaces", list(_CLOSED_BY))
    assert isinstance(asked, list)
    return _REMAINS.union(*(attempts for name, attempts in _CLOSED_BY.items() if name not in asked))


def _wrong_in_a_plain_one(verb: str, results: dict[str, str], reachable: set[str]) -> set[str]:
    """A plain instance closes nothing; if it does, the documentation says too much."""
    if verb == _AS_A_USER:
        return set()
    wrong = (_open_ones(results) ^ reachable) - _CHROOTED_IS_REFUSED
    return {
        name
        for name in wrong
        if verb in _WITH_A_TERMINAL or not name.endswith("the given terminal")
    }


def _wrong_in_a_hardened_one(
    verb: str, results: dict[str, str], remains: set[str], provable: set[str]
) -> set[str]:
    wrong = set() if verb == _AS_A_USER else remains - _open_ones(results)
    for name in results.keys() - remains:
        refusals = _refusals(name)
        if name.endswith("the given terminal") and verb not in _WITH_A_TERMINAL:
            refusals = {"it was given no terminal"}
        if results[name] not in refusals and (name in provable or results[name] == _OPEN):
            wrong.add(name)
    return wrong


def test_hardened_means_contained(
    probed: Callable[..., dict[str, dict[str, str]]],
    world: dict[str, Any],
    tmp_path: Path,
    figure: Callable[[int, str], None],
) -> None:
    before = kernelview.mount_table()
    host = _on_the_host(world, tmp_path)
    # A first process that is not the host's: that one may be guarded by the machine's own means.
    other = _on_the_host(world, tmp_path, "--pid", "--fork", "--mount-proc")
    found = {
        name: probed(f"web{number}", **params)
        for number, (name, params) in enumerate(CONFIGURATIONS.items(), 1)
    }
    reachable = _open_ones(host).union(
        *(_open_ones(results) for results in found["plain"].values())
    )
    provable = reachable | {name for name in _open_ones(other) if name.startswith("/proc/1/")}
    wrong: dict[str, dict[str, str]] = {}
    for configuration, params in CONFIGURATIONS.items():
        assert found[configuration].keys() == _AS_ROOT | {_AS_A_USER}
        for verb, results in found[configuration].items():
            assert results.keys() == host.keys()
            if params:
                names = _wrong_in_a_hardened_one(verb, results, _open_in(params), provable)
            else:
                names = _wrong_in_a_plain_one(verb, results, reachable)
            if names:
                wrong[f"{configuration}, {verb}"] = {name: results[name] for name in sorted(names)}
    assert not wrong, json.dumps(wrong, indent=1)
    # Where the machine has no such thing, the filter may refuse it all the same: that is proven.
    closed = found["hardened"]["exec"]
    filtered = {name for name in host.keys() - provable if closed[name] != host[name]}
    unproven = sorted(f"{name} ({host[name]})" for name in host.keys() - provable - filtered)
    figure(
        21,
        f"{len(host)} ways to the host, tried by exec (also on a terminal, and as a user), shell, start, reboot and stop in {len(found)} instances: "
        f"{len(provable)} are open outside or in the plain one, and closed in the hardened ones, with and without the namespaces, but for "
        f"{len(_open_in({}))} that are documented; {len(filtered)} more are refused by the filter alone, and {len(unproven)} by this machine "
        f"everywhere, so that nothing is proven of them: {'; '.join(unproven) or 'none'}",
    )
    assert kernelview.mount_table() == before
