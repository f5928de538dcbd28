"""A cluster with one class for chroots, as a test sees it: instances, and where the kernel shows their disks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import DOMAIN, Cluster, Failed, Node
from kernelview import Mounted, wait_until

DAEMONS = 3  # of an instance of the OS definition "busybox"

#: Seconds that a shutdown may take before Ganeti kills.
TIMEOUT = "10"


class Site:
    """``kind``: whose class it is, as in hypervisors.py."""

    def __init__(self, cluster: Cluster, kind: str) -> None:
        self.cluster = cluster
        self.kind = kind
        self.seconds: float | None = None  # of what the test at hand measures

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the time of the block as that of the row."""
        begin = time.monotonic()
        yield
        self.seconds = (self.seconds or 0.0) + time.monotonic() - begin

    @property
    def nodes(self) -> list[Node]:
        return self.cluster.nodes

    def gnt(self, *argv: str, check: bool = True, stdin: str = "") -> str:
        return self.cluster.gnt(*argv, check=check, stdin=stdin)

    def add(
        self, name: str, node: Node, *options: str, os: str = "busybox", size: str = "32M"
    ) -> Chroot:
        """``gnt-instance add`` on a node, and so start."""
        chroot = Chroot(self, name)
        self.gnt("gnt-instance", "add", "--disk-template=sharedfile", f"--disk=0:size={size}", f"--os-type={os}",
                 f"--node={node.name}", "--backend-parameters=memory=128", "--no-nics", "--no-name-check",
                 "--no-ip-check", *options, chroot.name)  # fmt: skip
        return chroot

    def running(self, name: str = "web1") -> Chroot:
        """An instance in its best state, whatever was before: all nodes on, and it runs on its primary node."""
        self.all_on()
        chroot = Chroot(self, name)
        listed = self.gnt(
            "gnt-instance", "list", "--no-headers", "--output=name,pnode,status"
        ).splitlines()
        known = [line.split()[1:] for line in listed if line.split()[0] == chroot.name]
        if not known:
            return self.add(name, self.nodes[1])
        primary, status = self.cluster.node(known[0][0]), known[0][1]
        is_fine = chroot.mounted_on() == [primary] and len(chroot.processes_on(primary)) == DAEMONS
        if not is_fine or status != "running":
            chroot.clear_away()
            chroot.gnt("start")
        chroot.must_run_on(primary)
        return chroot

    def all_on(self) -> None:
        """Switch on what is off, as an administrator does it after a repair."""
        off = [node for node in self.nodes if not node.pid]
        for node in off:
            node.power_on()
            node.run(
                "/usr/lib/ganeti/daemon-util", "start", "ganeti-noded"
            )  # the rest comes with the next line
        for node in off:
            self.gnt("gnt-node", "add", "--readd", "--no-ssh-key-check", node.name)

    def spare(self, *taken: Node) -> Node:
        """A node that is on and none of those; the master last, so that it may be switched off."""
        free = [node for node in self.cluster.living if node not in taken]
        return min(free, key=lambda node: node is self.cluster.master)


class Chroot:
    """An instance."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.name = f"{name}.{DOMAIN}"

    def gnt(self, verb: str, *options: str, check: bool = True) -> str:
        return self.site.gnt("gnt-instance", verb, *options, self.name, check=check)

    def shows(self, *fields: str) -> list[str]:
        """Fields of ``gnt-instance list``."""
        return (
            self.gnt("list", "--no-headers", "--separator=|", f"--output={','.join(fields)}")
            .strip()
            .split("|")
        )

    def exists(self) -> bool:
        return (
            self.name
            in self.site.gnt("gnt-instance", "list", "--no-headers", "--output=name").split()
        )

    @property
    def primary(self) -> Node:
        return self.site.cluster.node(self.shows("pnode")[0])

    @property
    def file(self) -> Path:
        """Its disk: a file of the ground, the same on all nodes."""
        inside = self.site.cluster.ground.files / "shared" / self.name
        return self.site.cluster.shared / self.name / next(file.name for file in inside.iterdir())

    @property
    def devices(self) -> set[str]:
        return self.site.cluster.loops_over(self.file)

    def mounted_on(self) -> list[Node]:
        """The nodes that have its disk mounted, wherever."""
        devices = self.devices
        return [node for node in self.site.nodes if node.mounts_of(devices)]

    def mounts_on(self, node: Node) -> list[Mounted]:
        return node.mounts_of(self.devices)

    def processes_on(self, node: Node) -> dict[int, str]:
        return node.processes_on(self.devices)

    def must_run_on(self, node: Node) -> None:
        """All daemons there, the disk mounted there and nowhere else, and Ganeti says so."""
        places = self.mounted_on()
        assert places == [node], (
            f"the disk is mounted on {places or 'no node'}, not on {node} alone"
        )
        processes = self.processes_on(node)
        assert len(processes) == DAEMONS, (
            f"{len(processes)} of {DAEMONS} daemons run on {node}: {processes}"
        )
        status, primary = self.shows("status", "pnode")
        assert (status, primary) == ("running", node.name), f"Ganeti says {status} on {primary}"

    def must_be_down(self) -> None:
        """No process, no mount, no loop device, and Ganeti says so."""
        for node in self.site.cluster.living:
            assert not self.processes_on(node), (
                f"processes are left on {node}: {self.processes_on(node)}"
            )
        assert not self.mounted_on(), f"the disk is still mounted on {self.mounted_on()}"
        assert not self.devices, f"the loop device is still there: {self.devices}"
        assert self.shows("status") == ["ADMIN_down"], f"Ganeti says {self.shows('status')[0]}"

    def calls(self, node: Node) -> list[str]:
        """How its init script was called, since it was made."""
        return self.read("/var/calls", node).splitlines()

    def read(self, path: str, node: Node) -> str:
        return self._inside(path, node).read_text()

    def write(self, path: str, text: str, node: Node) -> None:
        self._inside(path, node).write_text(text)

    def _inside(self, path: str, node: Node) -> Path:
        pid = next(iter(self.processes_on(node)))
        return Path(f"/proc/{pid}/root{path}")

    def kill(self, node: Node) -> None:
        """SIGKILL to all of its processes, behind everybody's back."""
        for pid in self.processes_on(node):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes_on(node), f"the daemons of {self.name} are gone")

    def clear_away(self) -> None:
        """End and unmount it on all nodes, whoever's class could not."""
        for node in self.site.cluster.living:
            self.kill(node)
            for mount in sorted(self.mounts_on(node), reverse=True):
                node.run("umount", "--recursive", os.fsdecode(mount.target), check=False)

    def remove(self) -> None:
        """Take it away for good, by force where need be."""
        try:
            self.gnt("remove", "--force", f"--shutdown-timeout={TIMEOUT}")
        except Failed:
            self.clear_away()
            self.gnt("remove", "--force", "--ignore-failures")
