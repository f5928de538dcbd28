"""What the kernel says about mounts, loop devices, cgroups and processes.

Written without the product's code on purpose: it is what the product is measured against.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from attrs import field, frozen

T = TypeVar("T")

#: Of the flags in proc_pid_stat(5), include/linux/sched.h.
_PF_EXITING = 0x4


def wait_until(condition: Callable[[], T], what: str, *, seconds: float = 60) -> T:
    """Ask until ``condition`` is true, and give back its value; the only place that sleeps."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain until {what}")
        time.sleep(0.005)
    return value


class Mounted(NamedTuple):
    """A line of the mount table."""

    id: int
    parent: int
    device: str
    target: bytes
    fstype: str
    source: str
    options: str

    def __str__(self) -> str:
        return f"mount {self.id}: {self.source} ({self.fstype}) on {os.fsdecode(self.target)!r}"


def mount_table(pid: int | str = "self") -> dict[int, Mounted]:
    """The mount table of a process's namespace, of this one's by default, by mount ID."""
    table = {}
    for line in Path(f"/proc/{pid}/mountinfo").read_bytes().split(b"\n"):
        if line:
            first, last = line.split(b" - ", 1)
            mount_id, parent, device, _root, target, options, *_ = first.split(b" ")
            fstype, source, *_ = last.split(b" ")
            table[int(mount_id)] = Mounted(
                int(mount_id), int(parent), device.decode(), _unescaped(target), fstype.decode(),
                os.fsdecode(_unescaped(source)), options.decode(),
            )  # fmt: skip
    return table


def mounts_below(path: str | os.PathLike[str]) -> list[Mounted]:
    """The mounts on ``path`` and below it."""
    top = os.fsencode(path)
    return [
        mount
        for mount in mount_table().values()
        if mount.target == top or mount.target.startswith(top + b"/")
    ]


def mount_on(path: str | os.PathLike[str]) -> Mounted | None:
    """The mount that is seen at ``path`` itself."""
    top = os.fsencode(path)
    on_it = [mount for mount in mount_table().values() if mount.target == top]
    return on_it[-1] if on_it else None


def _unescaped(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def loop_devices() -> dict[str, str]:
    """Every loop device in use, with the path of its file."""
    found = {}
    for block in Path("/sys/block").glob("loop*"):
        try:
            found[f"/dev/{block.name}"] = os.fsdecode(
                (block / "loop/backing_file").read_bytes().rstrip(b"\n")
            )
        except OSError:
            continue  # not in use
    return found


def file_of_loop(loop: str) -> tuple[int, int] | None:
    """Return device and inode number of the file of a loop device; ``None`` if the loop device is not in use."""
    info = bytearray(232)  # struct loop_info64 of linux/loop.h
    try:
        fd = os.open(loop, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.ioctl(fd, 0x4C05, info)  # LOOP_GET_STATUS64
    except OSError:
        return None
    finally:
        os.close(fd)
    return int.from_bytes(info[:8], sys.byteorder), int.from_bytes(info[8:16], sys.byteorder)


def loops_over(path: str | os.PathLike[str]) -> list[str]:
    """The loop devices over one file."""
    return [device for device, file in loop_devices().items() if file == os.fspath(path)]


def is_free(device: str) -> bool:
    """Whether nothing uses a block device."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError:
        return False
    return True


def cgroup_hierarchy() -> Path | None:
    """Where cgroup v2 is mounted in this process's namespace."""
    found = [mount.target for mount in mount_table().values() if mount.fstype == "cgroup2"]
    return Path(os.fsdecode(found[0])) if found else None


def cgroups_of(run_dir_id: str) -> list[Path]:
    """The cgroups of one run directory, given as ``identity`` names it, v2 and v1; its own directory too."""
    tops = {
        os.fsdecode(mount.target)
        for mount in mount_table().values()
        if mount.fstype in ("cgroup", "cgroup2")
    }
    homes = [Path(top) / "chrootfw" / run_dir_id for top in sorted(tops)]
    return [path for home in homes if home.is_dir() for path in (home, *home.rglob("*@*"))]


def identity(path: str | os.PathLike[str]) -> str:
    """``MAJOR:MINOR-INODE`` of a file or directory."""
    status = os.stat(path)
    return f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}-{status.st_ino}"


@frozen(order=True)
class Running:
    """A process, told apart from a later one of the same number by when it began."""

    pid: int
    began: int
    command: str = field(eq=False)  # a process may give itself another name

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in "ZX"


def processes_of_the_tests() -> set[Running]:
    """Whatever the tests started: the processes of their private mount namespace, and all that descend from here.

    A verb of other tests enters this namespace too, for a moment, to read its mounts: a child of a process that is
    neither in the namespace nor above the tests, as what adopts their orphans is. If that verb was killed, its child is
    an orphan, and has its environment.
    """
    namespace = os.stat("/proc/self/ns/mnt").st_ino
    parents, found = {}, {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        fields = _stat(pid)
        if fields is None or fields[0] in "ZX" or pid == os.getpid():
            continue
        parents[pid] = int(fields[1])
        found[pid] = Running(pid, int(fields[19]), _command(pid))
    above = {0, 1, *_ancestors(os.getppid(), parents)}
    ours = {
        process
        for pid, process in found.items()
        if os.getpid() in _ancestors(pid, parents)
        or (
            _namespace(pid) == namespace
            and (parents[pid] in above or _namespace(parents[pid]) == namespace)
            and not _is_of_other_tests(pid)
        )
    }
    return {process for process in ours if not _ends(process.pid)}


def _ends(pid: int) -> bool:
    """Whether a process has ended, or does so soon because it was killed: on a busy machine that takes a moment."""
    try:
        wait_until(lambda: not (is_running(pid) and _is_ending(pid)), "it has ended", seconds=10)
    except TimeoutError:
        return False
    return not is_running(pid)


def _is_ending(pid: int) -> bool:
    """Whether a process exits, or KILL is waiting for it."""
    fields = _stat(pid)
    if fields is None or int(fields[6]) & _PF_EXITING:
        return True
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return True
    pending = re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)$", status, re.MULTILINE)
    return any(int(mask, 16) >> (signal.SIGKILL - 1) & 1 for mask in pending)


#: The variable that tells whose tests have started a process: the process ID of the worker.
WORKER = "WORKER_OF_THE_TESTS"


def _is_of_other_tests(pid: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(
        each.startswith(f"{WORKER}=".encode()) and each != f"{WORKER}={os.getpid()}".encode()
        for each in environment
    )


def _ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    """The process and all above it, as far as they are known."""
    found = [pid]
    while pid in parents and parents[pid] not in found:
        pid = parents[pid]
        found.append(pid)
    return found


def _namespace(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return "?"


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command: state, parent, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
