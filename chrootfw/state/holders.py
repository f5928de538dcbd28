"""Find the outside holders of an instance: processes that use its mounts and are not its own.

They are found by mount ID, also in copies of the mounts that other mount namespaces have, never by
path (proc(5)). Nothing here waits for a file system: statx(2) answers with what the kernel has
cached. What holds without a process cannot be seen; only the unmount and the device tell of it.
"""

from __future__ import annotations

import math
import os
import time
from itertools import islice

from chrootfw.linux import mountinfo, procfs, statx, syscalls
from chrootfw.linux.process_roots import read_namespaces
from chrootfw.planning.paths import is_within_bytes
from chrootfw.state.disks import exclusive_devices
from chrootfw.views import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from chrootfw.linux import sock_diag
    from chrootfw.state.record import StartRecord

    #: How a process uses an instance (``Process.why``), and what of it (``Process.what``).
    _Use = tuple[str, str]
    #: A process, a link of its directory in /proc, and the use that the link stands for.
    _Link = tuple[int, str, bytes]

_TYPE, _BLOCK, _SOCKET = 0o170000, 0o060000, 0o140000  # of st_mode (inode(7))
#: Processes that are examined together. What a link leads to is described a moment after it was
#: examined; with more of them that moment is longer.
_BATCH = 32
#: Links, bytes of maps and bytes of a mount table that are read of each process at first.
_LINKS, _BYTES, _TABLE = 1024, 1 << 18, 1 << 16
#: Seconds for the processes that have more, which are few, and are read when all others have been:
#: for each, and for all together. So no process hides another one by its size.
_SECONDS_EACH, _SECONDS = 0.15, 0.5
_CHUNK = 1 << 16
#: Processes that a message names.
_NAMED_MAX = 20
#: The links of /proc/PID/task of a process with one thread: two of every directory, one of the
#: thread's.
_ONE_THREAD = 3


class Target:
    """What of one instance a scan searches for.

    Attributes:
        root: The path of its root.
        ids: The IDs of its mounts.
        numbers: The device number of each mount, as the kernel has it for the whole file system.
        devices: The devices that only the instance uses, as ``os.stat`` has them.
        packed: The same, as ``statx`` has them.
        marks: One of these stands in /proc/PID/maps where something of the instance is mapped.
    """

    __slots__ = ("devices", "ids", "marks", "numbers", "packed", "root")

    def __init__(
        self,
        entries: Sequence[mountinfo.MountEntry],
        root: str,
        devices: Iterable[int] = (),
        ids: Iterable[int] = (),
    ) -> None:
        """Describe an instance.

        Args:
            entries: Its mounts.
            root: The path of its root.
            devices: Devices that only the instance uses. That of a directory instance is not one of
                them: its file system is the host's.
            ids: The IDs of more mounts of it, in other mount namespaces.
        """
        self.ids = {*(entry.id for entry in entries), *ids}
        self.numbers = {entry.id: entry.dev for entry in entries}
        self.root = os.fsencode(root)
        self.devices = frozenset(devices)
        numbers = [(os.major(device), os.minor(device)) for device in self.devices]
        self.packed = frozenset(statx.packed(*number) for number in numbers)
        self.marks = (self.root, *(b" %02x:%02x " % number for number in numbers))


class Holders(list[Process]):
    """Outside holders.

    Attributes:
        unexamined: The pids of processes that had too much to be examined in time.
        target: What was searched for.
    """

    def __init__(
        self,
        found: Iterable[Process] = (),
        unexamined: Iterable[int] = (),
        target: Target | None = None,
    ) -> None:
        """Keep the holders that were found."""
        super().__init__(found)
        self.unexamined = tuple(unexamined)
        self.target = target

    def describe_unexamined(self) -> list[str]:
        """Return a line that names the processes that were not examined; no line without any."""
        if not self.unexamined:
            return []
        named = ", ".join(
            f"pid {pid} ({procfs.command(pid)})" for pid in self.unexamined[:_NAMED_MAX]
        )
        more = len(self.unexamined) - _NAMED_MAX
        return [
            (
                f"not examined: {named}{f' and {more} more' if more > 0 else ''}, with too many"
                " descriptors, mappings or mounts"
            )
        ]


def find_holders(
    entries: Sequence[mountinfo.MountEntry],
    root: str,
    record: StartRecord | None,
    own: Iterable[int],
    only: Iterable[int] | None = None,
    *,
    devices_too: bool = True,
    ids: Iterable[int] = (),
) -> Holders:
    """Find the outside holders of an instance's mounts and devices.

    Args:
        entries: The instance's mounts.
        root: The path of its root.
        record: Its start record, which tells its disks; ``None`` if it is lost.
        own: As in ``scan``.
        only: As in ``scan``.
        devices_too: As in ``scan``.
        ids: The IDs of its mounts in other mount namespaces.
    """
    target = Target(entries, root, exclusive_devices(entries, record), ids)
    return scan(target, own=own, only=only, devices_too=devices_too)


def find_users(entries: Sequence[mountinfo.MountEntry], root: str, own: Iterable[int]) -> Holders:
    """Find the outside processes that use some mounts of an instance, and no other of them.

    Args:
        entries: The mounts.
        root: The path of its root.
        own: As in ``scan``.
    """
    return scan(Target(entries, root), own=own)


def scan(
    target: Target,
    *,
    own: Iterable[int] = (),
    only: Iterable[int] | None = None,
    devices_too: bool = True,
) -> Holders:
    """Find every process that uses the mounts or the devices of an instance.

    A process is examined by the root, working directory, executable and descriptors of each thread,
    by its mappings, and by its unix sockets that are bound inside. Each is named once, with the
    first use that was found.

    Args:
        target: The instance.
        own: The pids of its own processes, which are not examined.
        only: The pids to examine; ``None`` for all processes.
        devices_too: Whether to find what has the disk itself open, such as udev for a moment, and
            loop devices over files inside. No signal ends the latter.

    Returns:
        The holders, and the pids of processes that could not be examined in time.
    """
    own = set(own)
    pids = procfs.all_pids() if only is None else list(only)
    search = _Search(target, devices_too=devices_too)
    search.read_copies(pids)
    search.examine([pid for pid in pids if pid not in own])
    holders = list(search.found.values())
    if devices_too and target.devices:
        from chrootfw.linux import loop

        loops = loop.find_loop_devices(devices=target.devices)
        holders += [Process(0, device, "root", "loop", file) for device, file in loops.items()]
    unexamined = (pid for pid in search.unexamined if pid not in search.found and pid not in own)
    return Holders(holders, unexamined, target)


class _Search:
    """One scan of processes for the holders of an instance.

    Attributes:
        found: The holders by their pids.
        unexamined: The pids of processes of which something could not be read in time, in order.
    """

    def __init__(self, target: Target, *, devices_too: bool) -> None:
        self.found: dict[int, Process] = {}
        self.unexamined: dict[int, None] = {}
        self._target = target
        self._devices_too = devices_too
        self._ids = set(target.ids)
        self._sockets = _find_sockets_inside(target)

    def read_copies(self, pids: Sequence[int]) -> None:
        """Add the mounts that the instance has in the mount namespaces of some processes."""
        known = {procfs.namespace("thread-self"), 0}
        large: list[int] = []
        for pid, namespace in read_namespaces(pids).items():
            if namespace not in known:
                known.add(namespace)
                if not self._read_copies_of(pid, most=_TABLE):
                    large.append(pid)
        ends = time.monotonic() + _SECONDS
        for pid in large:
            if not self._read_copies_of(pid, ends=min(ends, time.monotonic() + _SECONDS_EACH)):
                self.unexamined[pid] = None

    def _read_copies_of(self, pid: int, *, most: float = math.inf, ends: float = math.inf) -> bool:
        """Add the mounts of one process, and return whether all were read.

        Args:
            pid: The process.
            most: Bytes of its mount table to read.
            ends: When to give up, by ``time.monotonic``.
        """
        devices = self._target.devices
        if not devices:
            return True
        rest, count = b"", 0
        for chunk in procfs.scan_chunks(f"/proc/{pid}/mountinfo", _CHUNK):
            count += len(chunk)
            lines, _, rest = (rest + chunk).rpartition(b"\n")
            self._ids.update(entry.id for entry in mountinfo.of_devices(lines, devices))
            if count > most or time.monotonic() > ends:
                return False
        return True

    def examine(self, pids: Sequence[int]) -> None:
        """Examine processes, and keep those that use the instance."""
        large: list[int] = []
        for start in range(0, len(pids), _BATCH):
            large += self._examine_batch(pids[start : start + _BATCH])
        ends = time.monotonic() + _SECONDS
        for pid in large:
            if not self._examine_large(pid, min(ends, time.monotonic() + _SECONDS_EACH)):
                self.unexamined[pid] = None

    def _examine_batch(self, pids: Sequence[int]) -> list[int]:
        """Examine processes as far as their limits go, and return those that have more."""
        links: list[_Link] = []
        large = set()
        for pid in pids:
            some = list(islice(_list_links(pid), _LINKS + 1))
            if len(some) > _LINKS:
                large.add(pid)
            links += some
        uses = self._find_first_uses(links)
        for pid in pids:
            use = uses.get(pid)
            if use is None:
                use, is_whole = self._find_mapping(pid, most=_BYTES)
                if not is_whole:
                    large.add(pid)
            self._keep(pid, use)
        return [pid for pid in pids if pid in large and pid not in self.found]

    def _examine_large(self, pid: int, ends: float) -> bool:
        """Examine a process until a time, and return whether that was enough."""
        links = _list_links(pid)
        while time.monotonic() < ends:
            some = list(islice(links, _LINKS))
            use = self._find_first_uses(some).get(pid)
            if use is None and not some:
                use, is_whole = self._find_mapping(pid, ends=ends)
                self._keep(pid, use)
                return is_whole
            if use is not None:
                self._keep(pid, use)
                return True
        return False

    def _keep(self, pid: int, use: _Use | None) -> None:
        if use is not None:
            self.found[pid] = Process(pid, procfs.command(pid), procfs.user(pid), *use)

    def _find_first_uses(self, links: Sequence[_Link]) -> dict[int, _Use]:
        """Find the first of the links of each process that leads to the instance."""
        found: dict[int, _Use] = {}
        statuses = statx.statx_many([path for _, _, path in links])
        for (pid, why, path), status in zip(links, statuses, strict=True):
            if status is None or pid in found:
                continue
            mode, inode, device_file, device, _, mount_id = status
            if mount_id in self._ids:
                found[pid] = why, _read_link(path)
            elif why != "fd":
                continue
            elif device in self._target.packed or (
                self._devices_too and device_file in self._target.packed and mode & _TYPE == _BLOCK
            ):
                found[pid] = why, _read_link(path)
            elif inode in self._sockets and mode & _TYPE == _SOCKET:
                found[pid] = "socket", self._sockets[inode]
        return found

    def _find_mapping(
        self, pid: int, *, most: float = math.inf, ends: float = math.inf
    ) -> tuple[_Use | None, bool]:
        """Find a file of the instance that a process has mapped; its descriptor may be closed.

        Args:
            pid: The process.
            most: Bytes of its mappings to read.
            ends: When to give up, by ``time.monotonic``.

        Returns:
            The use, or ``None``; and whether all that matters was read.
        """
        rest, count = b"", 0
        for chunk in procfs.scan_chunks(f"/proc/{pid}/maps", _CHUNK):
            count += len(chunk)
            lines, _, rest = (rest + chunk).rpartition(b"\n")
            if any(mark in lines for mark in self._target.marks):
                for line in lines.split(b"\n"):
                    if use := self._read_mapping(pid, line):
                        return use, True
            if count > most or time.monotonic() > ends:
                return None, False
        return None, True

    def _read_mapping(self, pid: int, line: bytes) -> _Use | None:
        """Read whether a line of /proc/PID/maps is a file of the instance.

        The path in the line only tells that it may be: the mount ID of the mapped file decides.
        """
        fields = line.split(None, 5)
        if len(fields) < 6 or not fields[5].startswith(b"/"):
            return None
        use = "map", os.fsdecode(fields[5])
        major, _, minor = fields[3].partition(b":")
        if statx.packed(int(major, 16), int(minor, 16)) in self._target.packed:
            return use
        if self._target.root not in fields[5]:
            return None
        start, _, end = fields[0].partition(b"-")
        file = b"/proc/%d/map_files/%x-%x" % (pid, int(start, 16), int(end, 16))
        status = syscalls.statx_fields(file)
        return use if status and status[-1] in self._ids else None


def find_hidden(target: Target) -> list[Process]:
    """Find what holds an instance without a descriptor that a scan sees.

    These are swap files, overlays of this mount namespace, and processes with fanotify(7) marks,
    whose unread events keep files. It takes longer than a scan, so it is for what no scan explains.

    Args:
        target: The instance.
    """
    return [*_find_swap(target), *_find_overlays(target), *_find_fanotify(target)]


def _find_swap(target: Target) -> Iterator[Process]:
    for chunk in procfs.scan_chunks("/proc/swaps", _CHUNK):
        for line in chunk.splitlines()[1:]:
            file = mountinfo.unescape(line.split()[0])
            if is_within_bytes(file, target.root):
                yield Process(0, "swap", "root", "swap", os.fsdecode(file))


def _find_overlays(target: Target) -> Iterator[Process]:
    for entry in mountinfo.entries():
        if entry.fstype != b"overlay" or is_within_bytes(entry.mount_point, target.root):
            continue
        for option in entry.super_options.split(b","):
            name, _, value = option.partition(b"=")
            layers = value.split(b":") if name.startswith(b"lowerdir") else [value]
            if any(layer and is_within_bytes(layer, target.root) for layer in layers):
                place = os.fsdecode(entry.mount_point)
                yield Process(0, "overlay", "root", "overlay", place)
                break


def _find_fanotify(target: Target) -> Iterator[Process]:
    marks = {b"mnt_id:%x" % number for number in target.ids}
    # As the kernel writes the number of a device (MKDEV).
    marks |= {b"sdev:%x" % (os.major(dev) << 20 | os.minor(dev)) for dev in target.devices}
    ends = time.monotonic() + _SECONDS
    for pid in procfs.all_pids():
        if time.monotonic() > ends:
            return
        for name in islice(procfs.scan_names(f"/proc/{pid}/fd"), _LINKS):
            if _read_link(b"/proc/%d/fd/%b" % (pid, name)) != "anon_inode:[fanotify]":
                continue
            chunks = procfs.scan_chunks(b"/proc/%d/fdinfo/%b" % (pid, name), _CHUNK)
            if not marks.isdisjoint(next(iter(chunks), b"").split()):
                what = f"descriptor {os.fsdecode(name)}, with a mark on it"
                yield Process(pid, procfs.command(pid), procfs.user(pid), "fanotify", what)
                break


def find_suspects() -> list[str]:
    """Find the processes that have a unix socket in which something waits.

    A file in flight in a socket keeps its mount busy (unix(7), SCM_RIGHTS), and no process shows
    it.

    Returns:
        A line for each process.
    """
    waiting = _find_waiting_sockets()
    if not waiting:
        return []
    named: list[str] = []
    ends = time.monotonic() + _SECONDS
    for pid in procfs.all_pids():
        if len(named) == _NAMED_MAX or time.monotonic() > ends:
            break
        descriptors = islice(procfs.scan_names(f"/proc/{pid}/fd"), _LINKS)
        for status in statx.statx_many([b"/proc/%d/fd/%b" % (pid, name) for name in descriptors]):
            if status and status[0] & _TYPE == _SOCKET and status[1] in waiting:
                named.append(
                    f"may be held by pid {pid} ({procfs.command(pid)}, {procfs.user(pid)}): socket"
                    f" {waiting[status[1]]}"
                )
                break
    return named


def _find_waiting_sockets() -> dict[int, str]:
    """Find the unix sockets in which something waits, described, by their inode."""
    from chrootfw.linux import sock_diag

    waiting: dict[int, str] = {}
    for socket in sock_diag.unix_sockets():
        if socket.waiting:
            path = os.fsdecode(socket.path.rstrip(b"\0").replace(b"\0", b"@", 1))
            what = "on which connections wait" if socket.listens else "in which bytes wait"
            waiting[socket.inode] = f"{path or f'socket:[{socket.inode}]'}, {what}"
            if len(waiting) == _LINKS:
                break
    return waiting


def _list_links(pid: int) -> Iterator[_Link]:
    """Yield the links of a process in /proc that may lead to an instance."""
    for base in _list_directories(pid):
        yield pid, "root", base + b"/root"
        yield pid, "cwd", base + b"/cwd"
        yield pid, "map", base + b"/exe"
        for name in procfs.scan_names(base + b"/fd"):
            yield pid, "fd", b"%b/fd/%b" % (base, name)


def _list_directories(pid: int) -> Iterator[bytes]:
    """Yield the directories in /proc of a process, and of its threads that have files of their own.

    Most threads share all with the first one (kcmp(2)).
    """
    base = b"/proc/%d" % pid
    yield base
    try:
        if os.stat(base + b"/task").st_nlink <= _ONE_THREAD:
            return
    except OSError:
        return  # the process has ended
    for name in procfs.scan_names(base + b"/task"):
        thread = int(name)
        if thread != pid and not syscalls.shares_files(pid, thread):
            yield b"%b/task/%d" % (base, thread)


def _read_link(path: bytes) -> str:
    """Read where a link of /proc leads; empty if the process has ended meanwhile."""
    try:
        return os.fsdecode(os.readlink(path))
    except OSError:
        return ""  # the use is known all the same, by its mount ID


def _find_sockets_inside(target: Target) -> dict[int, str]:
    """Find the unix sockets that are bound inside, in the caller's network namespace.

    The kernel tells the file that each is bound to (sock_diag(7)). The path is a text that only
    says where to search for that file.

    Returns:
        The paths by the inodes of the sockets.
    """
    from chrootfw.linux import sock_diag

    inside = {}
    for socket in sock_diag.unix_sockets():
        if socket.dev in target.devices or (
            socket.dev >= 0
            and socket.path.startswith(target.root + b"/")
            and _is_bound_inside(socket, target)
        ):
            path = os.fsdecode(socket.path.rstrip(b"\0"))
            inside[socket.inode] = path or f"socket:[{socket.inode}]"
    return inside


def _is_bound_inside(socket: sock_diag.UnixSocket, target: Target) -> bool:
    """Check that the path of a socket leads to the file that the socket is bound to.

    That file must be on one of the instance's mounts. No file system is asked: the kernel has
    cached the way to a file that is in use.
    """
    path = socket.path.rstrip(b"\0")
    if b"\0" in path:
        return False
    try:
        fd = syscalls.openat2(
            syscalls.AT_FDCWD, path, os.O_PATH | os.O_NOFOLLOW, syscalls.RESOLVE_CACHED
        )
    except OSError:
        return False  # not cached, so the socket's file is not there
    try:
        status = syscalls.statx(b"", fd)
    except OSError:
        return False  # such a file is not the socket's: that one would answer from the cache
    finally:
        os.close(fd)
    is_that_file = status.ino & 0xFFFFFFFF == socket.file
    return is_that_file and target.numbers.get(status.mnt_id) == socket.dev
