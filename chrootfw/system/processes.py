"""Who lives in, or holds, an instance's mounts (proc(5)).

Own processes are in the instance's cgroup or have their root directory in its mounts; they are found by mount
ID, never by path or device. Holders are everybody else with a file, a working directory, a mapping or a copy of
the mounts. Nothing here waits for a file system: statx uses what the kernel has cached.
"""

from __future__ import annotations

import os

from chrootfw.system import cgroups, mounts, syscalls
from chrootfw.views import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


def all_pids() -> list[int]:
    """Every process that the caller can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def newest_first() -> Iterator[int]:
    """Every process that the caller can see, those that were born last before the others; some of them twice."""
    last = first_line("/proc/loadavg").split()[-1:]
    for number in last:
        yield from range(int(number), max(1, int(number) - 8), -1)
    for name in reversed(os.listdir("/proc")):
        if name.isdigit():
            yield int(name)


def command(pid: int) -> str:
    """The process's name as in ps(1), or ``?`` when it is gone."""
    return first_line(f"/proc/{pid}/comm") or "?"


def user(pid: int) -> str:
    """The name of its effective user, or the number where nobody knows a name."""
    for line in _lines(f"/proc/{pid}/status"):
        if line.startswith("Uid:"):
            return user_name(int(line.split()[2]))
    return "?"


_names: dict[int, str] = {}


def user_name(uid: int) -> str:
    """The name in /etc/passwd; not by NSS, which may ask a server that does not answer."""
    if not _names:
        for line in _lines("/etc/passwd"):
            fields = line.split(":")
            if len(fields) > 2 and fields[2].isdigit():
                _names.setdefault(int(fields[2]), fields[0])
    return _names.get(uid, str(uid))


def state(pid: int) -> tuple[str, str]:
    """Its state letter and wchan, for telling why it does not die; ``("gone", "")`` when it is gone."""
    parts = first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (parts[0], first_line(f"/proc/{pid}/wchan").strip("0")) if parts else ("gone", "")


def parent(pid: int) -> int:
    """Its parent's pid, 0 when there is none."""
    parts = first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(parts[1]) if len(parts) > 1 else 0


def is_alive(pid: int) -> bool:
    """Whether it exists and is no zombie."""
    return state(pid)[0] not in ("gone", "Z", "X")


def self_and_ancestors() -> frozenset[int]:
    """The caller's process and all above it: never to be signalled."""
    chain: list[int] = []
    pid = os.getpid()
    while pid > 0 and pid not in chain:
        chain.append(pid)
        pid = parent(pid)
    return frozenset(chain)


def rooted(mount_ids: Mapping[int, str]) -> dict[str, list[int]]:
    """One pass over /proc: the processes whose root directory is on one of these mounts.

    ``mount_ids`` maps mount IDs to what to file the pids under (an instance's name).
    """
    found: dict[str, list[int]] = {}
    if not mount_ids:
        return found  # no mounts means no users, never all
    for pid in all_pids():
        mount_id = root_mount(pid)
        if mount_id in mount_ids:
            found.setdefault(mount_ids[mount_id], []).append(pid)
    return found


def root_mount(pid: int) -> int:
    """The ID of the mount that its root directory is on, -1 when it is gone."""
    try:
        return syscalls.statx(f"/proc/{pid}/root").mnt_id
    except OSError:
        pass  # gone, a zombie, or only its first thread has ended
    for thread in _names_in(f"/proc/{pid}/task"):
        try:
            return syscalls.statx(f"/proc/{pid}/task/{thread}/root").mnt_id
        except OSError:
            continue
    return -1


def describe(pids: Iterable[int], why: str) -> list[Process]:
    """The processes as values; those that are gone meanwhile, or are zombies, are left out."""
    return [Process(pid, command(pid), user(pid), why) for pid in dict.fromkeys(pids) if pid > 0 and is_alive(pid)]


class Held:
    """What to look for in a holder scan of one instance.

    ``entries``: its mounts. ``root``: the path of its root. ``devices``: devices (as in ``os.stat``) that only the
    instance uses; a directory instance's file system is the host's, so its device is not among them.
    """

    __slots__ = ("devices", "ids", "marks", "root")

    def __init__(self, entries: Sequence[mounts.MountEntry], root: str, devices: Iterable[int] = ()) -> None:
        self.ids = {entry.id for entry in entries}
        self.root = os.fsencode(root)
        self.devices = frozenset(devices)
        #: One of these stands in /proc/PID/maps when something of it is mapped.
        self.marks = (self.root, *(b" %02x:%02x " % (os.major(dev), os.minor(dev)) for dev in self.devices))


def holders(
    held: Held, *, spare_own: Iterable[int] = (), only: Iterable[int] | None = None, devices_too: bool = True
) -> list[Process]:
    """Every process that uses the instance's mounts or devices, each once, with the first reason found.

    Looks at the root, working directory, executable and files of each thread, mappings, unix sockets bound inside, loop
    devices over files inside, and copies of the mounts in other mount namespaces. ``spare_own``: pids known as the
    instance's own; ``only``: look at these pids alone; ``devices_too``: the loop
    devices as well, which nobody can signal. What holds without a process cannot be seen here: only the unmount and the device know.
    """
    ids = set(held.ids)
    own = set(spare_own)
    sockets = _sockets_inside(held)
    found: dict[int, Process] = {}
    here = namespace("thread-self")
    copies: dict[int, bool] = {here: False}
    late: list[tuple[int, int]] = []
    pids = all_pids() if only is None else list(only)
    spaces = {pid: namespace(pid) for pid in pids}
    for pid, space in spaces.items():
        if space and space not in copies:
            copied = _copies(pid, held.devices)
            copies[space] = bool(copied)
            ids |= copied
    for pid in pids:
        if pid in own:
            continue
        tie = _tie(pid, ids, held, sockets)
        if tie:
            found[pid] = Process(pid, command(pid), user(pid), *tie)
        elif copies.get(spaces[pid]):
            late.append((pid, spaces[pid]))
    for pid, space in late:
        found[pid] = Process(
            pid, command(pid), user(pid), "namespace", f"mount namespace {space} has a copy of the mounts"
        )
    for device, backing in (_loops_inside(held) if devices_too else {}).items():
        found[-len(found) - 1] = Process(0, device, "root", "loop", backing)
    return list(found.values())


def _tie(pid: int, ids: set[int], held: Held, sockets: Mapping[int, str]) -> tuple[str, str] | None:
    """Why a process is tied to the instance, and by what; ``None`` if it is not."""
    bases = [f"/proc/{pid}"]
    threads = _names_in(f"/proc/{pid}/task")
    if len(threads) > 1:
        bases.extend(f"/proc/{pid}/task/{thread}" for thread in threads if int(thread) != pid)
    for base in bases:
        for link, why in (("root", "root"), ("cwd", "cwd"), ("exe", "map")):
            if _mount_of(f"{base}/{link}") in ids:
                return why, _readlink(f"{base}/{link}")
    for base in bases:
        for fd in _names_in(f"{base}/fd"):
            path = f"{base}/fd/{fd}"
            try:
                status = syscalls.statx(path)
            except OSError:
                continue
            if status.mnt_id in ids or status.dev in held.devices:
                return "fd", _readlink(path)
            if sockets and status.mode & 0o170000 == 0o140000 and status.ino in sockets:
                return "socket", sockets[status.ino]
    return _mapping(pid, ids, held)


def _mapping(pid: int, ids: set[int], held: Held) -> tuple[str, str] | None:
    """A file mapped into memory, its descriptor closed: first by the text of maps, then sure by mount ID."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            text = file.read()
    except OSError:
        return None
    if not any(mark in text for mark in held.marks):
        return None
    for line in text.split(b"\n"):
        fields = line.split(None, 5)
        if len(fields) < 6 or not fields[5].startswith(b"/"):
            continue
        major, _, minor = fields[3].partition(b":")
        exclusive = os.makedev(int(major, 16), int(minor, 16)) in held.devices
        if not exclusive and held.root not in fields[5]:
            continue
        start, _, end = fields[0].partition(b"-")
        path = f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}"
        if exclusive or _mount_of(path) in ids:
            return "map", os.fsdecode(fields[5])
    return None


def _copies(pid: int, devices: frozenset[int]) -> set[int]:
    """The mount IDs under which another mount namespace has the instance's own devices."""
    if not devices:
        return set()
    try:
        return {entry.id for entry in mounts.parse(mounts.read_table(pid)) if entry.dev in devices}
    except OSError:
        return set()


def _sockets_inside(held: Held) -> dict[int, str]:
    """Unix sockets bound inside, by socket inode (sock_diag(7)); those of the caller's network namespace."""
    from chrootfw.system import sock_diag

    inside = {}
    for socket in sock_diag.unix_sockets():
        if socket.dev in held.devices or socket.path.startswith(held.root + b"/"):
            inside[socket.inode] = os.fsdecode(socket.path) or f"socket:[{socket.inode}]"
    return inside


def _loops_inside(held: Held) -> dict[str, str]:
    from chrootfw.system import loops

    return loops.over(devices=held.devices) if held.devices else {}


def tracked(cgroup_paths: Iterable[str]) -> list[int]:
    """The pids in some cgroups that the caller can see and may signal: never 0 or 1."""
    return [pid for path in cgroup_paths for pid in cgroups.pids(path) if pid > 1]


def namespace(pid: int | str) -> int:
    """The inode that names its mount namespace, 0 when it is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return 0


def _mount_of(path: str) -> int:
    try:
        return syscalls.statx(path).mnt_id
    except OSError:
        return -1


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _names_in(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def first_line(path: str) -> str:
    """The first line of a file of /proc, ``""`` when the process is gone."""
    return next(_lines(path), "")


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                yield line.rstrip("\n")
    except OSError:
        return
