"""The peers: one class for each, with what the rows need of it. A start returns when the daemons run, a stop when all is gone.

Each instance is an own directory (Ganeti's: an own image). Where a peer makes an instance's first process, that one starts the
daemons and says so through a FIFO. No peer is asked for a network or limits: chrootfw gives none.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from world import CLEAN, ONE, Daemons, World

#: Seconds for anything of a peer; what takes longer hangs.
TIMEOUT = 60


class Peer:
    """``name``: as in the table. ``program``: what must be installed.

    Not all can do all: what a row asks of a peer that cannot is a mistake of the row, and NotImplementedError.
    """

    name = ""
    program = ""

    def __init__(self, world: World) -> None:
        self.world = world

    def available(self) -> str:
        """Why it cannot be measured here, or nothing."""
        found = shutil.which(self.program, path=self.world.environment["PATH"])
        return "" if found else f"{self.program} is not installed"

    def version(self) -> str:
        """What it says of itself, in a line."""
        if self.available():
            return ""
        shown = self.world.run(
            self.program,
            "--version",
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ).stdout
        return next((line.strip() for line in shown.splitlines() if line.strip()), "")

    def create(self, daemons: Daemons = CLEAN) -> str:
        """A new instance, not started: its name. Making it is not measured."""
        raise NotImplementedError

    def start(self, name: str) -> None:
        raise NotImplementedError

    def stop(self, name: str, limit: float = 10.0) -> None:
        """TERM, and after ``limit`` seconds KILL; then remove what keeps the name or a mount."""
        raise NotImplementedError

    def run(self, name: str, *command: str) -> None:
        """Run a command in an instance that runs."""
        raise NotImplementedError

    def listing(self) -> None:
        """Ask once for all instances, their states included."""
        raise NotImplementedError

    def fill(self, count: int, names: list[str]) -> None:
        """Start so many instances that a list shows as running. Each name is added before its start, which may fail."""
        for _ in range(count):
            names.append(self.create(ONE))
            self.start(names[-1])

    def clear(self, names: Iterable[str]) -> None:
        """Stop what ``fill`` has started, also what it did not start to the end."""
        for name in names:
            with contextlib.suppress(RuntimeError, OSError, LookupError):
                self.stop(name)


def _open_ready(root: Path) -> int:
    return os.open(root / "ready", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _wait_ready(fd: int, what: str) -> None:
    try:
        if not select.select([fd], [], [], TIMEOUT)[0]:
            raise TimeoutError(f"{what}: its first process never said that the daemons run")
        os.read(fd, 64)
    finally:
        os.close(fd)


def _ends(pidfd: int, seconds: float) -> bool:
    return bool(select.select([pidfd], [], [], seconds)[0])


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


class Crun(Peer):
    """An OCI runtime: a bundle's config.json, one command to start, one to signal, one to delete."""

    name = program = "crun"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.state = world.new(f"{self.name}-state")
        self.bundles: dict[str, Path] = {}

    def create(self, daemons: Daemons = CLEAN) -> str:
        name = self.world.name(self.name)
        bundle = self.bundles[name] = self.world.new("bundle")
        bundle.mkdir()
        root = self.world.root(daemons, linked=True)
        self.world.run(self.program, "spec", cwd=bundle)
        spec = json.loads((bundle / "config.json").read_text())
        spec["root"] = {"path": str(root), "readonly": False}
        spec["process"].update(args=["/first-process"], terminal=False)
        spec["linux"]["namespaces"] = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]
        spec["linux"]["cgroupsPath"] = f"/{name}"
        (bundle / "config.json").write_text(json.dumps(spec))
        return name

    def _command(self, *words: str) -> None:
        self.world.run(self.program, "--root", self.state, *words)

    def start(self, name: str) -> None:
        bundle = self.bundles[name]
        ready = _open_ready(Path(json.loads((bundle / "config.json").read_text())["root"]["path"]))
        self._command(
            "run", "--detach", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"), name
        )
        _wait_ready(ready, name)

    def stop(self, name: str, limit: float = 10.0) -> None:
        with _pidfd(int((self.bundles[name] / "pid").read_text())) as pidfd:
            self._command("kill", name, "TERM")
            if not _ends(pidfd, limit):
                self._command("kill", name, "KILL")
                _ends(pidfd, TIMEOUT)
        self._command("delete", name)

    def run(self, name: str, *command: str) -> None:
        self._command("exec", name, *command)

    def listing(self) -> None:
        self._command("list")


class Runc(Crun):
    name = program = "runc"


class Lxc(Peer):
    name = "lxc"
    program = "lxc-start"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.containers = world.new("lxc")
        self.containers.mkdir()
        self.roots: dict[str, Path] = {}

    def create(self, daemons: Daemons = CLEAN) -> str:
        name = self.world.name("lxc")
        root = self.roots[name] = self.world.root(daemons, linked=True)
        (self.containers / name).mkdir()
        (self.containers / name / "config").write_text(
            f"lxc.rootfs.path = dir:{root}\n"
            f"lxc.uts.name = {name}\n"
            "lxc.init.cmd = /first-process\n"
            "lxc.signal.halt = SIGTERM\n"
            "lxc.net.0.type = none\n"
            "lxc.mount.auto = proc sys\n"
            "lxc.apparmor.profile = unconfined\n"
            f"lxc.cgroup.dir = {name}\n"
            "lxc.console.path = none\n"
            "lxc.tty.max = 0\n"
        )
        return name

    def _command(self, program: str, name: str, *words: str) -> None:
        self.world.run(program, "-P", self.containers, "-n", name, *words)

    def start(self, name: str) -> None:
        ready = _open_ready(self.roots[name])
        self._command("lxc-start", name, "--daemon")
        _wait_ready(ready, name)

    def stop(self, name: str, limit: float = 10.0) -> None:
        self._command("lxc-stop", name, "--timeout", str(max(1, round(limit))))

    def run(self, name: str, *command: str) -> None:
        self._command("lxc-attach", name, "--", *command)

    def listing(self) -> None:
        self.world.run("lxc-ls", "-P", self.containers, "--fancy", "-F", "NAME,STATE")


class _Foreground(Peer):
    """A peer whose command stays while the instance runs."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.roots: dict[str, Path] = {}
        self.commands: dict[str, subprocess.Popen[bytes]] = {}

    def create(self, daemons: Daemons = CLEAN) -> str:
        name = self.world.name(self.name.rpartition("-")[2])
        self.roots[name] = self.world.root(daemons, linked=True)
        return name

    def words(self, name: str) -> list[str]:
        raise NotImplementedError

    def start(self, name: str) -> None:
        ready = _open_ready(self.roots[name])
        self.commands[name] = subprocess.Popen(
            self.words(name), env=self.world.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _wait_ready(ready, name)

    def stop(self, name: str, limit: float = 10.0) -> None:
        command = self.commands.pop(name)
        first = _first_child(command.pid)
        os.kill(first, signal.SIGTERM)
        try:
            command.wait(limit)
        except subprocess.TimeoutExpired:
            os.kill(first, signal.SIGKILL)
            command.wait(TIMEOUT)


class Nspawn(_Foreground):
    """Without machined and systemd as process 1, which would only add to it."""

    name = "systemd-nspawn"
    program = "systemd-nspawn"

    def words(self, name: str) -> list[str]:
        return [
            self.program, "--quiet", "--register=no", "--keep-unit", "--console=pipe", "--kill-signal=SIGTERM",
            "--resolv-conf=off", "--timezone=off", "--link-journal=no", f"--machine={name}",
            f"--directory={self.roots[name]}", "/first-process",
        ]  # fmt: skip

    def stop(self, name: str, limit: float = 10.0) -> None:
        command = self.commands.pop(name)
        command.terminate()  # it passes --kill-signal on
        try:
            command.wait(limit)
        except subprocess.TimeoutExpired:
            command.terminate()  # the second ends the instance by KILL
            command.wait(TIMEOUT)


class Bubblewrap(_Foreground):
    name = "bubblewrap"
    program = "bwrap"

    def words(self, name: str) -> list[str]:
        return [
            self.program, "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--as-pid-1", "--die-with-parent",
            "--bind", str(self.roots[name]), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run",
            "/first-process",
        ]  # fmt: skip


def _first_child(pid: int) -> int:
    """The instance's first process, seen from here."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


class Schroot(Peer):
    """A session each; the daemons are started by the same init script that chrootfw and Ganeti call."""

    name = program = "schroot"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.sessions: set[str] = set()

    def create(self, daemons: Daemons = CLEAN) -> str:
        name = self.world.name("schroot")
        Path(f"/etc/schroot/chroot.d/{name}-source").write_text(
            f"[{name}-source]\ntype=directory\ndirectory={self.world.root(daemons, linked=True)}\nprofile=minimal\n"
            "root-users=root\nusers=root\n"
        )
        return name

    def start(self, name: str) -> None:
        self.world.run(
            "schroot", "--begin-session", "--chroot", f"{name}-source", "--session-name", name
        )
        self.run(name, "/etc/chrootfw/init", "start")

    def stop(self, name: str, limit: float = 10.0) -> None:  # noqa: ARG002  # its limits are in its scripts
        self.world.run("schroot", "--end-session", "--chroot", name)

    def run(self, name: str, *command: str) -> None:
        self.world.run(
            "schroot", "--run-session", "--chroot", name, "--directory", "/", "--", *command
        )

    def listing(self) -> None:
        self.world.run("schroot", "--list", "--all-sessions")

    def fill(self, count: int, names: list[str]) -> None:
        """Sessions of one directory, in which nothing runs: its list looks at nothing but its files."""
        source = self.create(ONE)
        for _ in range(count):
            names.append(self.world.name("schroot"))
            self.world.run(
                "schroot",
                "--begin-session",
                "--chroot",
                f"{source}-source",
                "--session-name",
                names[-1],
            )


class Podman(Peer):
    name = program = "podman"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.state = world.new("podman")
        self.roots: dict[str, Path] = {}

    def create(self, daemons: Daemons = CLEAN) -> str:
        name = self.world.name("podman")
        self.roots[name] = self.world.root(daemons, linked=True)
        return name

    def _command(self, *words: str) -> None:
        self.world.run(
            "podman", "--root", self.state / "root", "--runroot", self.state / "run", "--tmpdir", self.state / "tmp",
            "--network-config-dir", self.state / "networks", "--cgroup-manager=cgroupfs", "--events-backend=none", *words,
        )  # fmt: skip

    def start(self, name: str) -> None:
        ready = _open_ready(self.roots[name])
        self._command(
            "run", "--detach", "--name", name, "--network=host", "--cgroups=disabled", "--log-driver=none",
            "--rootfs", str(self.roots[name]), "/first-process",
        )  # fmt: skip
        _wait_ready(ready, name)

    def stop(self, name: str, limit: float = 10.0) -> None:
        self._command("rm", "--force", "--time", str(max(1, round(limit))), name)

    def run(self, name: str, *command: str) -> None:
        self._command("exec", name, *command)

    def listing(self) -> None:
        self._command("ps", "--all")


class Ganeti(Peer):
    """Ganeti's own class in process, as its node daemon calls it; with the one line repaired that keeps it from stopping."""

    name = "hv_chroot"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.images: dict[str, Path] = {}
        self._class: Any = None

    def available(self) -> str:
        return "" if sys.version_info[:2] == (3, 11) else "Debian 12's Ganeti runs on Python 3.11"

    def version(self) -> str:
        return "" if self.available() else "Ganeti 3.0, stop repaired (tests/ganeti/stock.py)"

    @property
    def hypervisor(self) -> Any:
        if self._class is None:
            import ganeti_packages

            ganeti_packages.use()
            import stock

            mounts = self.world.new("ganeti")
            mounts.mkdir()
            self._class = stock.repaired(mounts)
        return self._class()

    def create(self, daemons: Daemons = CLEAN) -> str:
        name = self.world.name("g")
        self.images[name] = self.world.image(daemons, 8 << 20)
        return name

    def start(self, name: str) -> None:
        hypervisor = self.hypervisor
        objects = importlib.import_module("ganeti.objects")

        instance = objects.Instance(
            name=name, hypervisor="chroot", hvparams={"init_script": "/ganeti-chroot"}, disks_info=[],
            beparams={"vcpus": 1, "maxmem": 64, "minmem": 64},
        )  # fmt: skip
        hypervisor.StartInstance(instance, [(None, str(self.images[name]), None)], False)

    def stop(self, name: str, limit: float = 10.0) -> None:
        """As Ganeti's backend does: stop every 5 s, then by force, then clean up."""
        objects = importlib.import_module("ganeti.objects")

        instance = objects.Instance(
            name=name, hypervisor="chroot", hvparams={"init_script": "/ganeti-chroot"}
        )
        hypervisor, began, tried = self.hypervisor, time.monotonic(), False
        while True:
            over = time.monotonic() - began >= limit
            hypervisor.StopInstance(instance, force=over, retry=tried)
            tried = True
            if not hypervisor.GetInstanceInfo(name):
                break
            time.sleep(min(5.0, max(0.0, limit - (time.monotonic() - began))) if not over else 0.01)
        hypervisor.CleanupInstance(name)

    def run(self, name: str, *command: str) -> None:
        self.world.run("chroot", f"{self.hypervisor._ROOT_DIR}/{name}", *command)

    def listing(self) -> None:
        """Ganeti reads the memory and the CPU time of all this way."""
        self.hypervisor.GetAllInstancesInfo()


ALL: tuple[type[Peer], ...] = (Schroot, Nspawn, Crun, Runc, Lxc, Bubblewrap, Podman, Ganeti)


def available(world: World, *kinds: type[Peer]) -> tuple[dict[str, Peer], list[str]]:
    """Those that can be measured here, by name; and a note for each other one."""
    found, notes = {}, []
    for kind in kinds or ALL:
        peer = kind(world)
        if why := peer.available():
            notes.append(f"{peer.name} is not measured: {why}")
        else:
            found[peer.name] = peer
    return found, notes
