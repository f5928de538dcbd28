"""Who lives in, or holds, an instance's mounts (proc(5)).

Own processes are in the instance's cgroup or have their root directory in its mounts; they are found by mount
ID, never by path or device. Holders are everybody else with a file, a working directory, a mapping or a copy of
the mounts. Nothing here waits for a file system: statx uses what the kernel has cached.
"""

from __future__ import annotations

import os

from chrootfw.system import mounts, statuses, syscalls
from chrootfw.system.processes import all_pids, command, namespace, read, user
from chrootfw.views import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_BLOCK, _SOCKET = 0o060000, 0o140000  # of st_mode (inode(7))
#: So many processes are looked at together: what is found of one is a moment old when its name is asked for.
_AT_ONCE = 32
#: The links of /proc/PID/task where there is one thread: one for each, two of every directory.
_ONE_THREAD = 3


def rooted(mount_ids: Mapping[int, str]) -> dict[str, list[int]]:
    """One pass over /proc: the processes whose root directory is on one of these mounts.

    ``mount_ids`` maps mount IDs to what to file the pids under (an instance's name).
    """
    found: dict[str, list[int]] = {}
    if not mount_ids:
        return found  # no mounts means no users, never all
    pids = all_pids()
    for pid, status in zip(pids, roots(pids), strict=True):
        if status and status[-1] in mount_ids:
            found.setdefault(mount_ids[status[-1]], []).append(pid)
    return found


def roots(pids: Sequence[int]) -> list[statuses.Status | None]:
    """The status of the root directory of each process, ``None`` for who is gone."""
    found = statuses.statuses([b"/proc/%d/root" % pid for pid in pids])
    for index, status in enumerate(found):
        if status is None:  # gone, a zombie, or only its first thread has ended
            base = b"/proc/%d/task" % pids[index]
            threads = statuses.statuses([b"%b/%b/root" % (base, thread) for thread in _names_in(base)])
            found[index] = next(filter(None, threads), None)
    return found


def root(pid: int) -> statuses.Status | None:
    """``roots`` for one."""
    return roots([pid])[0]


class Held:
    """What to look for in a holder scan of one instance.

    ``entries``: its mounts. ``root``: the path of its root. ``devices``: devices (as in ``os.stat``) that only the
    instance uses; a directory instance's file system is the host's, so its device is not among them.
    """

    __slots__ = ("devices", "ids", "marks", "packed", "root")

    def __init__(self, entries: Sequence[mounts.MountEntry], root: str, devices: Iterable[int] = ()) -> None:
        self.ids = {entry.id for entry in entries}
        self.root = os.fsencode(root)
        self.devices = frozenset(devices)
        numbers = [(os.major(dev), os.minor(dev)) for dev in self.devices]
        #: The devices as ``statuses`` has them.
        self.packed = frozenset(statuses.packed(*each) for each in numbers)
        #: One of these stands in /proc/PID/maps when something of it is mapped.
        self.marks = (self.root, *(b" %02x:%02x " % each for each in numbers))


def find(
    held: Held, *, spare_own: Iterable[int] = (), only: Iterable[int] | None = None, devices_too: bool = True
) -> list[Process]:
    """Every process that uses the instance's mounts or devices, each once, with the first reason found.

    Looks at the root, working directory, executable and files of each thread, mappings, unix sockets bound inside, loop
    devices over files inside, and copies of the mounts in other mount namespaces. ``spare_own``: pids known as the
    instance's own; ``only``: look at these pids alone; ``devices_too``: the loop
    devices as well, which nobody can signal, and who has the disk itself open, such as udev for a moment. What holds without a process cannot be seen here: only the unmount and the device know.
    """
    ids = set(held.ids)
    own = set(spare_own)
    sockets = _sockets_inside(held)
    found: dict[int, Process] = {}
    here = namespace("thread-self")
    copies: dict[int, bool] = {here: False}
    late: list[tuple[int, int]] = []
    pids = all_pids() if only is None else list(only)
    spaces = namespaces(pids)
    for pid, space in spaces.items():
        if space and space not in copies:
            copied = _copies(pid, held.devices)
            copies[space] = bool(copied)
            ids |= copied
    others = [pid for pid in pids if pid not in own]
    for at in range(0, len(others), _AT_ONCE):
        some = others[at : at + _AT_ONCE]
        ties = _ties(some, ids, held, sockets, devices_too=devices_too)
        for pid in some:
            tie = ties.get(pid) or _mapping(pid, ids, held)
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


def _ties(
    pids: Iterable[int], ids: set[int], held: Held, sockets: Mapping[int, str], *, devices_too: bool
) -> dict[int, tuple[str, str]]:
    """Why processes are tied to the instance, and by what; mappings are not looked at."""
    looks: list[tuple[int, str]] = []
    paths: list[bytes] = []
    for pid in pids:
        bases = _bases(pid)
        for base in bases:
            paths += (base + b"/root", base + b"/cwd", base + b"/exe")
            looks += ((pid, "root"), (pid, "cwd"), (pid, "map"))
        for base in bases:
            names = _names_in(base + b"/fd")
            paths += [b"%b/fd/%b" % (base, name) for name in names]
            looks += [(pid, "fd")] * len(names)
    found: dict[int, tuple[str, str]] = {}
    for (pid, why), path, status in zip(looks, paths, statuses.statuses(paths), strict=True):
        if status is None or pid in found:
            continue
        mode, inode, device_file, device, _, mount_id = status
        if mount_id in ids:
            found[pid] = why, _readlink(path)
        elif why != "fd":
            continue
        elif device in held.packed or (devices_too and device_file in held.packed and mode & 0o170000 == _BLOCK):
            found[pid] = why, _readlink(path)
        elif inode in sockets and mode & 0o170000 == _SOCKET:
            found[pid] = "socket", sockets[inode]
    return found


def namespaces(pids: Iterable[int]) -> dict[int, int]:
    """The inode that names the mount namespace of each process, 0 for who is gone."""
    pids = list(pids)
    found = statuses.statuses([b"/proc/%d/ns/mnt" % pid for pid in pids])
    return {pid: status[1] if status else 0 for pid, status in zip(pids, found, strict=True)}


def _bases(pid: int) -> list[bytes]:
    """The directories in /proc of the process and of those of its threads that do not share all with the first (kcmp(2))."""
    base = b"/proc/%d" % pid
    try:
        if os.stat(base + b"/task").st_nlink <= _ONE_THREAD:
            return [base]
    except OSError:
        return [base]
    threads = [int(thread) for thread in _names_in(base + b"/task")]
    apart = [thread for thread in threads if thread != pid and not syscalls.shares_files(pid, thread)]
    return [base, *(b"%b/task/%d" % (base, thread) for thread in apart)]


def _mapping(pid: int, ids: set[int], held: Held) -> tuple[str, str] | None:
    """A file mapped into memory, its descriptor closed: first by the text of maps, then sure by mount ID."""
    text = read(f"/proc/{pid}/maps")
    if not any(mark in text for mark in held.marks):
        return None
    for line in text.split(b"\n"):
        fields = line.split(None, 5)
        if len(fields) < 6 or not fields[5].startswith(b"/"):
            continue
        major, _, minor = fields[3].partition(b":")
        exclusive = statuses.packed(int(major, 16), int(minor, 16)) in held.packed
        if not exclusive and held.root not in fields[5]:
            continue
        start, _, end = fields[0].partition(b"-")
        status = syscalls.statx_fields(b"/proc/%d/map_files/%x-%x" % (pid, int(start, 16), int(end, 16)))
        if exclusive or (status and status[-1] in ids):
            return "map", os.fsdecode(fields[5])
    return None


def _copies(pid: int, devices: frozenset[int]) -> set[int]:
    """The mount IDs under which another mount namespace has the instance's own devices."""
    if not devices:
        return set()
    try:
        return {entry.id for entry in mounts.of_devices(mounts.read_table(pid), devices)}
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


def _readlink(path: bytes) -> str:
    try:
        return os.fsdecode(os.readlink(path))
    except OSError:
        return ""


def _names_in(path: bytes) -> list[bytes]:
    try:
        return os.listdir(path)
    except OSError:
        return []
