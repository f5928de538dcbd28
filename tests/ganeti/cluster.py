"""A real Ganeti cluster on one machine, without systemd and without virtual machines.

A node is a set of namespaces (mount, uts, ipc, net, pid) with a root of its own: an overlay over a Debian that has
Ganeti. Its network card is a veth on a bridge in a network namespace that nothing else is in, and there is no default
route: nothing can leave. Its Ganeti is the real one, with its own noded, wconfd, luxid, confd and rapi.

All of it lives in the ``Ground``: one more set of namespaces, whose first process ends when this process does. So
whatever becomes of the tests, the kernel takes nodes, daemons, mounts, loop devices and network cards away.

    with Cluster(scratch, "3.0.2") as cluster:
        cluster.boot()
        cluster.initialise()
        cluster.gnt("gnt-node", "list")
        cluster.nodes[1].power_off()
"""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import node_system
import page
from kernelview import Mounted, cgroups_of, identity, loop_devices, mount_table, wait_until

HERE = Path(__file__).resolve().parent
DOMAIN = "example.com"
NETWORK = "192.0.2"  # TEST-NET-1: nobody's
SHARED = "/srv/ganeti/shared-file-storage"

#: Seconds after which a command of a node is taken for hung; no assertion.
PATIENCE = 180.0

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}


class Failed(Exception):
    """A command did not exit with 0. ``output``: what it said."""

    def __init__(self, argv: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{' '.join(argv)}: status {status}\n{output}")
        self.argv = argv
        self.status = status
        self.output = output


def run(*argv: str, check: bool = True, stdin: str = "") -> str:
    """Run a command to its end and give back what it said. Raises ``Failed`` when its status is not 0."""
    try:
        done = subprocess.run(
            argv, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired as expired:
        raise Failed(
            argv, -1, f"Error: it did not end within {PATIENCE:.0f} s\n{expired.output}"
        ) from None
    if check and done.returncode != 0:
        raise Failed(argv, done.returncode, done.stdout)
    return done.stdout


class Ground:
    """The namespaces that hold the cluster: its disks (a tmpfs) and its switch (a bridge)."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child",
             "--propagation", "private", "sh", "-c", "echo here; exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "here\n"
        self.pid = _only_child(self._holder.pid)
        #: Descriptors of all pid namespaces that there were: as long as they are open, no other gets their number.
        self.pid_namespaces: list[int] = []
        self.note_namespace(self.pid)
        self.run("mount", "-t", "tmpfs", "-o", "size=80%,mode=755", "ground", str(scratch))
        self.run("ip", "link", "add", "switch", "type", "bridge")
        self.run("ip", "link", "set", "switch", "up")
        self.run("ip", "link", "set", "lo", "up")

    @property
    def files(self) -> Path:
        """The scratch directory as it is inside, reached from outside."""
        return Path(f"/proc/{self.pid}/root{self.scratch}")

    def note_namespace(self, pid: int) -> None:
        self.pid_namespaces.append(os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC))

    def inside(self, *argv: str) -> list[str]:
        """The command that runs ``argv`` inside."""
        return [
            "nsenter",
            "--target",
            str(self.pid),
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--",
            *argv,
        ]

    def run(self, *argv: str) -> str:
        return run(*self.inside(*argv))

    def plug_in(self, pid: int, port: str) -> None:
        """Give the network namespace of a process an ``eth0`` that is connected to the switch."""
        entered = ("nsenter", "--target", str(self.pid), "--net", "--")
        run(
            *entered,
            "ip",
            "link",
            "add",
            port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(pid),
        )
        run(*entered, "ip", "link", "set", port, "master", "switch", "up")

    def close(self) -> None:
        assert self._holder.stdin is not None and self._holder.stdout is not None
        self._holder.stdin.close()  # the first process reads its end, and all others go with it
        self._holder.wait(PATIENCE)
        self._holder.stdout.close()


class Node:
    """A machine: ``power_on``, ``power_off``, and whatever is to be run on it in between."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.name = f"node{number}.{DOMAIN}"
        self.address = f"{NETWORK}.{10 + number}"
        self.pid = 0  # of its init, as seen from outside; 0: it is off
        self._unshare: subprocess.Popen[str] | None = None
        self.run_dirs: set[str] = (
            set()
        )  # and chrootfw's run directories, as kernelview.identity names them

    def __repr__(self) -> str:
        return self.name

    @property
    def disk(self) -> Path:
        """What the node has written, as a directory of the ground."""
        return self.cluster.ground.scratch / f"node{self.number}"

    def path(self, inside: str | Path) -> Path:
        """A path of the node, reached from outside. Follow no absolute symbolic links by it."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def power_on(self) -> None:
        assert not self.pid, f"{self} is on"
        ground = self.cluster.ground
        command = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child",
                   sys.executable, str(HERE / "node_boot.py"), self.name, str(self.disk), str(self.cluster.shared),
                   *self.cluster.layers]  # fmt: skip
        self._unshare = subprocess.Popen(
            ground.inside(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._unshare.stdout is not None
        said = self._unshare.stdout.readline()
        assert said == "up\n", f"{self} does not come up: {said}{self._unshare.stdout.read()}"
        self.pid = _only_child(_only_child(self._unshare.pid))  # nsenter, unshare, init
        ground.note_namespace(self.pid)
        ground.plug_in(self.pid, f"port{self.number}")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        # That nobody has an address is known after 0.3 s, not 3 s: each of Ganeti's calls of a dead node waits for it.
        self.run("sh", "-c", "echo 100 > /proc/sys/net/ipv4/neigh/eth0/retrans_time_ms")
        self.run(
            "ip", "link", "add", "xen-br0", "type", "bridge"
        )  # where a NIC is unless said otherwise
        self.run("ip", "link", "set", "xen-br0", "up")
        self.run("/usr/sbin/sshd")
        for other in self.cluster.others(
            self
        ):  # who asked for it while it was off may go on thinking so for a moment
            wait_until(lambda other=other: other.reaches(self), f"{other} reaches {self}")

    def reaches(self, other: Node) -> bool:
        """Whether the other's sshd can be reached from here."""
        connect = f"import socket; socket.create_connection(({other.address!r}, 22), 5)"
        return not self.run("python3", "-c", connect, check=False)

    def power_off(self) -> None:
        """Pull the plug: SIGKILL to its init. What it wrote stays, as a disk would keep it."""
        if not self.pid:
            return
        assert self._unshare is not None and self._unshare.stdout is not None
        self.run_dirs |= (
            run_dirs := {identity(path) for path in self.path("/run").glob("chrootfw*")}
        )
        os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait(PATIENCE)
        self._unshare.stdout.close()
        self.pid = 0
        for other in self.cluster.living:  # what they know of it would keep them waiting 10 s
            other.run("ip", "neigh", "flush", "dev", "eth0")
        for run_dir in run_dirs:  # a machine's cgroups are gone with its power
            for cgroup in sorted(cgroups_of(run_dir), reverse=True):
                wait_until(lambda cgroup=cgroup: _is_removed(cgroup), f"{cgroup} is empty")

    def inside(self, *argv: str) -> list[str]:
        """The command that runs ``argv`` on the node."""
        assert self.pid, f"{self} is off"
        enter = [
            "nsenter",
            "--target",
            str(self.pid),
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--root",
            "--wd",
        ]
        return [
            *enter,
            "--",
            "env",
            "-i",
            *(f"{name}={value}" for name, value in _ENVIRONMENT.items()),
            *argv,
        ]

    def run(self, *argv: str, check: bool = True, stdin: str = "") -> str:
        try:
            return run(*self.inside(*argv), check=check, stdin=stdin)
        except Failed as failed:
            raise Failed([f"{self}:", *argv], failed.status, failed.output) from None

    def type(self, argv: Sequence[str], text: str) -> str:
        """Run a command on a terminal on which ``text`` is typed, and give back what is then seen there."""
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            self.inside(*argv), stdin=theirs, stdout=theirs, stderr=theirs
        ) as process:
            os.close(theirs)
            os.write(ours, text.encode())
            seen = b""
            while True:
                try:
                    read = os.read(ours, 65536)
                except OSError:  # EIO: nobody has the terminal any more
                    break
                if not read:
                    break
                seen += read
        os.close(ours)
        shown = seen.decode(errors="replace")
        if process.returncode != 0:
            raise Failed([f"{self}:", *argv], process.returncode, shown)
        return shown

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    @property
    def python(self) -> str:
        """The version of its Python, as in the names of directories."""
        (interpreter,) = self.path("/usr/bin").glob("python3.[0-9]*[0-9]")
        return interpreter.name.removeprefix("python")

    def start_ganeti(self) -> None:
        self.run("/usr/lib/ganeti/daemon-util", "start-all")

    def stop_ganeti(self) -> None:
        self.run("/usr/lib/ganeti/daemon-util", "stop-all")

    def restart_noded(self) -> None:
        self.run("/usr/lib/ganeti/daemon-util", "stop", "ganeti-noded")
        self.run("/usr/lib/ganeti/daemon-util", "start", "ganeti-noded")

    # -- what the kernel says of a disk, not what Ganeti or chrootfw says -----------------------------------

    def mounts_of(self, devices: set[str]) -> list[Mounted]:
        """The mounts of block devices, each given as ``MAJOR:MINOR``, in the node's mount table."""
        return (
            [mount for mount in mount_table(self.pid).values() if mount.device in devices]
            if self.pid
            else []
        )

    def processes_on(self, devices: set[str]) -> dict[int, str]:
        """The processes whose root directory is on one of the devices, by pid as seen from outside, with their command."""
        found = {}
        for pid in self._pids():
            try:
                device = os.stat(f"/proc/{pid}/root/.").st_dev
                command = (
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                )
            except OSError:
                continue
            if command and f"{os.major(device)}:{os.minor(device)}" in devices:
                found[pid] = command
        return found

    def _pids(self) -> Iterator[int]:
        if not self.pid:
            return
        mine = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    if os.stat(f"/proc/{entry}/ns/pid").st_ino == mine:
                        yield int(entry)
                except OSError:
                    continue


class Cluster:
    """Nodes, the disk that they share, and Ganeti: ``version`` ``3.0.2`` or ``3.1``, of a ``release`` of Debian."""

    def __init__(
        self, scratch: Path, version: str, release: str = "bookworm", *, nodes: int = 3
    ) -> None:
        self.version = version
        self.release = release
        self.ground = Ground(scratch)
        self.shared = scratch / "shared"  # as NFS would be
        self.name = f"cluster.{DOMAIN}"
        self.nodes = [Node(self, number) for number in range(1, nodes + 1)]
        self.master = self.nodes[0]
        self.layers: list[str] = []

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for node in self.nodes:
            node.power_off()
        self.ground.close()

    # -- building -------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Make the nodes' system and switch them on."""
        files = self.ground.files
        for directory in ("shared", "keys"):
            (files / directory).mkdir()
        for number, image in enumerate(node_system.layers(self.release, self.version)):
            (files / f"layer{number}").mkdir()
            self.layers.append(f"{self.ground.scratch}/layer{number}")
            self.ground.run("mount", "-o", "loop,ro", "-t", "squashfs", str(image), self.layers[-1])
        self.ground.run(
            "ssh-keygen",
            "-q",
            "-t",
            "rsa",
            "-b",
            "2048",
            "-N",
            "",
            "-f",
            f"{self.ground.scratch}/keys/id_rsa",
        )
        for node in self.nodes:
            (files / f"node{node.number}").mkdir()
            self._install(files / f"node{node.number}/written")
            node.power_on()

    def _install(self, root: Path) -> None:
        """Write into the directory of a node's files what an administrator would have there."""
        (root / "root").mkdir(parents=True, mode=0o700)
        ssh = root / "root/.ssh"
        ssh.mkdir(mode=0o700)
        for key in ("id_rsa", "id_rsa.pub"):
            shutil.copy(self.ground.files / "keys" / key, ssh / key)
        shutil.copy(ssh / "id_rsa.pub", ssh / "authorized_keys")
        (root / "etc/ganeti").mkdir(parents=True)
        (root / "etc/ganeti/file-storage-paths").write_text(f"{SHARED}\n/srv/ganeti/file-storage\n")
        (root / "var/lib/ganeti/rapi").mkdir(parents=True)
        (root / "var/lib/ganeti/rapi/users").write_text("tests secret read\n")
        (root / "etc/hosts").write_text(self._hosts())
        (root / "etc/resolv.conf").write_text("")
        for directory in ("shared-file-storage", "file-storage"):
            (root / "srv/ganeti" / directory).mkdir(parents=True)
        for definition in sorted((HERE / "os").iterdir()):
            shutil.copytree(definition, root / "srv/ganeti/os" / definition.name)

    def _hosts(self) -> str:
        lines = ["127.0.0.1 localhost", f"{NETWORK}.10 {self.name} cluster"]
        lines += [f"{node.address} {node.name} node{node.number}" for node in self.nodes]
        lines += [
            f"{NETWORK}.{100 + number} site{number}.{DOMAIN}" for number in range(1, 4)
        ]  # instances
        return "\n".join(lines) + "\n"

    def initialise(self) -> None:
        """Make it a cluster, as docs/how-to/scale-out.md has it; without questions, and without changing ssh and /etc/hosts."""
        text = page.block("the master", "an empty machine").text
        text = text.replace("gnt-cluster init ", "gnt-cluster init --no-etc-hosts --no-ssh-init ")
        self.gnt("sh", "-euc", text.replace("gnt-node add ", "gnt-node add --no-ssh-key-check "))

    def save(self) -> None:
        """Keep what all nodes have on their disks now."""
        for node in self.nodes:
            node.stop_ganeti()
        for node in self.nodes:
            self.ground.run("cp", "-a", f"{node.disk}/written", f"{node.disk}/saved")
        for node in reversed(self.nodes):  # the master asks the others who is
            node.start_ganeti()

    def restore(self) -> None:
        """Power off, put back what ``save`` kept, empty the shared disk, power on: as if nothing had been since."""
        for node in self.nodes:
            node.power_off()
        for node in self.nodes:
            self.ground.run("rm", "-r", f"{node.disk}/written", f"{node.disk}/work")
            self.ground.run("cp", "-a", f"{node.disk}/saved", f"{node.disk}/written")
        self.ground.run("find", str(self.shared), "-mindepth", "1", "-delete")
        self.master = self.nodes[0]
        for node in self.nodes:
            node.power_on()
        for node in reversed(self.nodes):  # the master asks the others who is
            node.start_ganeti()

    # -- using ----------------------------------------------------------------------------------------------

    def gnt(self, *argv: str, check: bool = True, stdin: str = "") -> str:
        """Run a command of Ganeti's on the master."""
        return self.master.run(*argv, check=check, stdin=stdin)

    @property
    def living(self) -> list[Node]:
        return [node for node in self.nodes if node.pid]

    def others(self, node: Node) -> list[Node]:
        return [each for each in self.living if each is not node]

    def loops_over(self, file: Path) -> set[str]:
        """The loop devices over a file of the ground, each as ``MAJOR:MINOR``: a file is known by its inode alone."""
        status = os.stat(f"/proc/{self.ground.pid}/root{file}")
        device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
        table = run(
            "losetup", "--list", "--noheadings", "--output", "MAJ:MIN,BACK-MAJ:MIN,BACK-INO"
        )
        rows = [line.split() for line in table.splitlines()]
        return {row[0] for row in rows if row[1:] == [device, str(status.st_ino)]}

    def layer_loops(self) -> set[tuple[str, str]]:
        """The loop devices over the nodes' system, with their files."""
        files = loop_devices()
        sources = {mount.source for mount in mount_table(self.ground.pid).values()}
        return {(loop, file) for loop, file in files.items() if loop in sources}

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)


def _only_child(pid: int) -> int:
    children = wait_until(
        lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text().split(),
        f"process {pid} has a child",
    )
    assert len(children) == 1, f"process {pid} has the children {children}"
    return int(children[0])


def _is_removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False  # its last process is not gone yet
    return True
