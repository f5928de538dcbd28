"""Find and unmount copies of an instance's mounts in other namespaces (mount_namespaces(7)).

A mount namespace that is created while an instance runs gets a copy of the instance's mounts. An
unmount of private mounts here does not reach that copy, which keeps the disk busy though no process
there uses it. A child enters the namespace and unmounts the copy. No unmount is lazy, and no
process is signalled.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import struct
import time

from chrootfw.linux import child, deadlines, mountinfo, procfs, statx, syscalls, umount
from chrootfw.linux.descriptors import Descriptors, opened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from typing import IO

#: Seconds for a child to enter a namespace, and to read the table there.
_ENTERS = 2.0
#: Seconds for reading the descriptors of all processes.
_SCAN_SECONDS = 1.0
#: Bytes of a mount table that are read at once.
_CHUNK = 1 << 18
#: Most mounts of one instance that are read in one namespace: no instance has more, and each costs
#: memory.
_MANY = 20_000
_NAMESPACE_LINK = re.compile(r"mnt:\[(\d+)\]")


class Wanted:
    """A description of an instance's mounts: by its disks, and by their mount points.

    A mount without a device of its own is the instance's if it is mounted below the instance's
    disk, since the device numbers of such file systems are soon used again.

    Args:
        name: The instance's name.
        devices: Device numbers of its disks as in `os.stat`, which no other disk can get meanwhile.
        sources: The paths of its disks' devices.
    """

    __slots__ = ("_layers", "_numbers", "_place", "_sources", "needles")

    def __init__(self, name: str, devices: Iterable[int], sources: Iterable[str]) -> None:
        raw = os.fsencode(name)
        self._numbers = frozenset(device for device in devices if os.major(device))
        self._sources = frozenset(os.fsencode(source) for source in sources)
        self._place = re.compile(rb"/" + re.escape(raw) + rb"/(root|aux/[^/]+)(/.*)?", re.DOTALL)
        self._layers = b"/" + raw + b"/aux/"
        numbers = [b" %d:%d " % (os.major(device), os.minor(device)) for device in self._numbers]
        #: Every line of interest in a mount table contains one of these.
        self.needles = (
            b"/" + raw + b"/",
            *numbers,
            *(b" " + mountinfo.escape(source) + b" " for source in self._sources),
        )

    def is_disk(self, entry: mountinfo.MountEntry) -> bool:
        """Check that a mount is of the instance's disk, wherever it is mounted."""
        return entry.dev in self._numbers or (
            entry.fstype in mountinfo.ON_SEVERAL and entry.source in self._sources
        )

    def is_copy(self, entry: mountinfo.MountEntry) -> bool:
        """Check that a mount of the disk is where the instance's mounts are.

        These are `.../NAME/root`, `.../NAME/aux/...`, and below.
        """
        if not self.is_disk(entry) or not (place := self._place.search(entry.mount_point)):
            return False
        # A part of the disk, bound to a directory of that name, was mounted there on purpose.
        is_top = place[1] == b"root" and not place[2]
        return not is_top or entry.root == b"/" or entry.fstype in mountinfo.ON_SEVERAL

    def may_be_overlay(self, entry: mountinfo.MountEntry) -> bool:
        """Check whether a mount may be an overlay of an instance's layers, which keeps their disks.

        It may belong to this instance, or to another one with its name.
        """
        is_here = entry.fstype == b"overlay" and bool(self._place.search(entry.mount_point))
        return is_here and self._layers in entry.super_options


class Space:
    """Another mount namespace.

    Attributes:
        number: Its inode, which identifies it.
        path: A file that opens it.
        pids: The processes in it.
        holder_pid: Of a namespace without processes, the pid of a process that has a descriptor of
            it, or 0.
        by: What keeps a namespace without processes, in words.
    """

    __slots__ = ("by", "holder_pid", "number", "path", "pids")

    def __init__(
        self, number: int, path: str, pids: Sequence[int] = (), holder_pid: int = 0, by: str = ""
    ) -> None:
        self.number = number
        self.path = path
        self.pids = pids
        self.holder_pid = holder_pid
        self.by = by

    @property
    def pid(self) -> int:
        """A process by which to name the namespace; 0 for none."""
        return self.pids[0] if self.pids else self.holder_pid

    def describe(self) -> str:
        """Describe it: `mount namespace 4026532208 of pid 17 (sleep) and 3 others`."""
        if not self.pids:
            return f"mount namespace {self.number}, which has no process and is kept by {self.by}"
        more = len(self.pids) - 1
        others = f" and {more} other{'s' if more > 1 else ''}" if more else ""
        return (
            f"mount namespace {self.number} of pid {self.pids[0]} "
            f"({procfs.command(self.pids[0])}){others}"
        )


class Stay:
    """A mount of the instance's disk that stays in another namespace, and the reason.

    Attributes:
        space: The namespace.
        entry: The mount; `None` if the namespace cannot be entered.
        code: The errno; `None` if nothing was tried.
        reason: The reason, as a clause.
        remedy: A command that unmounts it; empty if there is none.
    """

    __slots__ = ("code", "entry", "reason", "remedy", "space")

    def __init__(
        self,
        space: Space,
        entry: mountinfo.MountEntry | None,
        code: int | None,
        reason: str,
        remedy: str = "",
    ) -> None:
        self.space = space
        self.entry = entry
        self.code = code
        self.reason = reason
        self.remedy = remedy

    @property
    def what(self) -> str:
        """The description, to follow the word "namespace"."""
        space = self.space
        others = f" (of {len(space.pids)} processes)" if len(space.pids) > 1 else ""
        who = (
            f"{space.number}{others}"
            if space.pids
            else f"{space.number}, which has no process and is kept by {space.by},"
        )
        if self.entry is None:
            return f"{who}: {self.reason}"
        return f"{who} has {os.fsdecode(self.entry.mount_point)} mounted: {self.reason}"


def with_processes() -> list[Space]:
    """List the other mount namespaces that contain processes or single threads, each once."""
    here = os.stat("/proc/thread-self/ns/mnt").st_ino
    found: dict[int, tuple[str, list[int]]] = {}
    for pid, path, number in _namespaces(procfs.all_pids()):
        if number not in (0, here):
            pids = found.setdefault(number, (path, []))[1]
            if pid not in pids[-1:]:
                pids.append(pid)
    return [Space(number, path, pids) for number, (path, pids) in sorted(found.items())]


def _namespaces(pids: Iterable[int]) -> Iterator[tuple[int, str, int]]:
    """Yield the mount namespace of each process and of each of its threads.

    Yields:
        The pid, the path of the namespace's file, and the namespace's inode.
    """
    paths = []
    for pid in pids:
        base = f"/proc/{pid}"
        paths.append((pid, f"{base}/ns/mnt"))
        try:
            threads = os.listdir(f"{base}/task")
        except OSError:
            continue
        if len(threads) > 1:
            paths += [(pid, f"{base}/task/{thread}/ns/mnt") for thread in threads]
    found = statx.statx_many([os.fsencode(path) for _, path in paths])
    for (pid, path), status in zip(paths, found, strict=True):
        yield pid, path, status[1] if status else 0


def without_processes(known: Collection[int], table: Iterable[bytes]) -> list[Space]:
    """List the mount namespaces without processes that a descriptor or a mount of their file keeps.

    Args:
        known: The inodes of namespaces to leave out.
        table: The mount table in pieces of whole lines.
    """
    found: dict[int, Space] = {}
    here = os.stat("/proc/thread-self/ns/mnt").st_ino
    deadline = time.monotonic() + _SCAN_SECONDS
    for entry in mountinfo.of_type(table, b"nsfs"):
        number = _number_in(os.fsdecode(entry.root))
        if number and number != here and number not in known:
            path = os.fsdecode(entry.mount_point)
            found.setdefault(number, Space(number, path, by=f"the mount on {path}"))
    for pid in procfs.all_pids():
        if time.monotonic() > deadline:
            break
        directory = f"/proc/{pid}/fd"
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            try:
                number = _number_in(os.readlink(f"{directory}/{name}"))
            except OSError:
                continue
            if (
                number
                and number != here
                and number not in known
                and number not in found
                and pid != os.getpid()
            ):
                by = f"descriptor {name} of pid {pid} ({procfs.command(pid)})"
                found[number] = Space(number, f"{directory}/{name}", holder_pid=pid, by=by)
    return list(found.values())


def _number_in(link: str) -> int:
    match = _NAMESPACE_LINK.fullmatch(link)
    return int(match[1]) if match else 0


def read_mounts(space: Space, wanted: Wanted) -> list[mountinfo.MountEntry]:
    """Read the mounts in a namespace that concern an instance.

    These are the mounts of its disks, and those below its directory. They are read from the
    namespace's own root directory, which its processes need not have.

    Args:
        space: The namespace.
        wanted: The instance's mounts.

    Returns:
        The mounts, in the order of the mount table there.

    Raises:
        OSError: The namespace cannot be entered, or its table cannot be read in time.
    """
    return _read(space, lambda line: any(needle in line for needle in wanted.needles))


def _read(space: Space, concerns: Callable[[bytes], bool]) -> list[mountinfo.MountEntry]:
    with Descriptors() as owned:
        fd = _open(space, owned)
        entered, report = owned.pipe()
        calls = deadlines.make_closing_batch([fd, report])
        calls.add("setns", fd, syscalls.CLONE_NEWNS)
        calls.add("write", report, b"+", 1)
        # In case this process is killed first.
        calls.add("nanosleep", struct.pack("=qq", int(_ENTERS) + 1, 0), None)
        worker = child.begin(calls)
        try:
            owned.close(report)
            if not (child.is_ready(entered, _ENTERS) and os.read(entered, 1)):
                _, code = calls.stopped_at() or (b"", 0)
                raise OSError(
                    code or errno.ETIMEDOUT, os.strerror(code or errno.ETIMEDOUT), space.path
                )
            with open(f"/proc/{worker.pid}/mountinfo", "rb", buffering=0) as table:
                return _lines(table, concerns, time.monotonic() + _ENTERS)
        finally:
            worker.end()


def _lines(
    table: IO[bytes], concerns: Callable[[bytes], bool], deadline: float
) -> list[mountinfo.MountEntry]:
    """Parse the wanted lines of a mount table, without keeping the others."""
    found: list[mountinfo.MountEntry] = []
    rest = b""
    while chunk := table.read(_CHUNK):
        *whole, rest = (rest + chunk).split(b"\n")
        found += [mountinfo.parse_line(line) for line in whole if concerns(line)]
        if len(found) > _MANY:
            raise OSError(errno.E2BIG, f"more than {_MANY} mounts of the instance are in there")
        if time.monotonic() > deadline:
            raise OSError(errno.ETIMEDOUT, "its mount table is too large to be read in time")
    return found


def _open(space: Space, owner: Descriptors) -> int:
    """Open the namespace, with a descriptor of `owner` that `umount` does not use itself.

    Raises:
        OSError: The namespace cannot be opened; ESTALE if the path leads to another one now.
    """
    # Checked before it is opened: the path may lead to any file by now.
    with opened(space.path, os.O_PATH) as path_fd:
        status, here = os.fstat(path_fd), os.stat("/proc/thread-self/ns/mnt")
        # The process has exited or has moved.
        if (status.st_dev, status.st_ino) != (here.st_dev, space.number):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), space.path)
        with opened(f"/proc/thread-self/fd/{path_fd}", os.O_RDONLY) as fd:
            return umount.high(fd, owner)


def trees(entries: Sequence[mountinfo.MountEntry], wanted: Wanted) -> list[mountinfo.MountEntry]:
    """Select the instance's mounts in a namespace, and all mounts below them, children first."""
    parents = {entry.id: entry.parent for entry in entries}
    tops = {entry.id for entry in entries if wanted.is_copy(entry)}

    def path(entry: mountinfo.MountEntry) -> list[int]:
        """List the IDs above a mount and its own, as far as they are known."""
        ids: list[int] = []
        at: int | None = entry.id
        while at is not None and at not in ids:
            ids.append(at)
            at = parents.get(at)
        return ids

    found = [(ids, entry) for entry in entries if not tops.isdisjoint(ids := path(entry))]
    return [
        entry
        for _, entry in sorted(found, key=lambda each: (len(each[0]), each[1].id), reverse=True)
    ]


def unmount(
    space: Space,
    wanted: Wanted,
    *,
    seconds: float,
    observer: umount.Observer,
) -> tuple[list[int], list[Stay]]:
    """Unmount the instance's mounts in another namespace, as far as the kernel allows.

    Args:
        space: The namespace.
        wanted: The instance's mounts.
        seconds: Seconds for each call to return.
        observer: Called when the child begins and ends with a mount.

    Returns:
        The IDs of the unmounted mounts, and the mounts of the instance's disks that stay.
    """
    gone: list[int] = []
    codes: dict[int, int | None] = {}
    while True:
        try:
            entries = read_mounts(space, wanted)
            order = trees(entries, wanted)
            if not order:
                return gone, _others(space, entries, wanted)
            with Descriptors() as owned:
                outcomes, failure = umount.unmount_in(
                    _open(space, owned), order, seconds=seconds, observer=observer
                )
        except OSError as error:
            return gone, describe_unknown(space, error)
        codes = dict(zip((entry.id for entry in order), outcomes, strict=True))
        for entry, outcome in zip(order, outcomes, strict=True):
            if outcome == 0:
                gone.append(entry.id)
        if failure is not None:
            entry = next((entry for entry in order if codes[entry.id] is None), order[0])
            text = (
                failure.describe()
                if isinstance(failure, deadlines.DeadlineExceeded)
                else str(failure.strerror or failure)
            )
            return gone, [Stay(space, entry, errno.ETIMEDOUT, text)]
        if 0 not in outcomes:  # the rest stays for a reason
            break
    named = [entry for entry in order if wanted.is_disk(entry) or not _has_children(entry, order)]
    stay = [_stay(space, entry, codes[entry.id]) for entry in named]
    return gone, [*stay, *_others(space, entries, wanted)]


def list_stays(space: Space, wanted: Wanted) -> list[Stay]:
    """List the mounts of the instance's disks in a namespace, without a change."""
    try:
        entries = read_mounts(space, wanted)
    except OSError as error:
        return describe_unknown(space, error)
    copied = [entry for entry in trees(entries, wanted) if wanted.is_disk(entry)]
    return [
        *(Stay(space, entry, errno.EBUSY, "a copy") for entry in copied),
        *_others(space, entries, wanted),
    ]


def kept(space: Space, entry: mountinfo.MountEntry) -> Stay:
    """Describe a copy in a namespace without processes."""
    return Stay(
        space,
        entry,
        None,
        "a copy",
        "" if space.holder_pid else f"umount {shlex.quote(space.path)}",
    )


def describe_unknown(space: Space, error: OSError) -> list[Stay]:
    """Describe a namespace that cannot be entered; return nothing if it is gone."""
    if error.errno in (errno.ENOENT, errno.ESRCH, errno.ESTALE, errno.EBADF):
        return []
    reason = f"it cannot be looked into: {error.strerror}"
    return [Stay(space, None, error.errno, reason)]


def _has_children(entry: mountinfo.MountEntry, among: Sequence[mountinfo.MountEntry]) -> bool:
    return any(other.parent == entry.id for other in among if other is not entry)


def _others(space: Space, entries: Sequence[mountinfo.MountEntry], wanted: Wanted) -> list[Stay]:
    """List the mounts of the disk that were made elsewhere on purpose, and are not copies."""
    copied = {entry.id for entry in trees(entries, wanted)}
    overlays = [
        Stay(
            space,
            entry,
            None,
            "it may be an overlay of the disk",
            _command(space, "umount", entry.mount_point),
        )
        for entry in entries
        if wanted.may_be_overlay(entry) and entry.id not in copied
    ]
    return overlays + [
        Stay(
            space,
            entry,
            None,
            "it was mounted there on purpose",
            _command(space, "umount", entry.mount_point),
        )
        for entry in entries
        if wanted.is_disk(entry) and entry.id not in copied
    ]


def _stay(space: Space, entry: mountinfo.MountEntry, code: int | None) -> Stay:
    if code == errno.EBUSY:
        return Stay(space, entry, code, "it is in use")
    if code == errno.EINVAL:
        return Stay(
            space,
            entry,
            code,
            "it is locked, in another user namespace, until the processes there end",
        )
    if code is None:
        cover = _cover(space, entry)
        if cover is None:
            return Stay(space, entry, code, "its path leads elsewhere")
        place = os.fsdecode(cover.mount_point)
        remedy = _command(space, "umount", cover.mount_point)
        return Stay(
            space, entry, code, f"it is covered by what was mounted on {place} later", remedy
        )
    return Stay(space, entry, code, os.strerror(code))


def _command(space: Space, verb: str, path: bytes) -> str:
    return f"nsenter --mount={shlex.quote(space.path)} {verb} {shlex.quote(os.fsdecode(path))}"


def _cover(space: Space, entry: mountinfo.MountEntry) -> mountinfo.MountEntry | None:
    """Find the mount that hides another mount in a namespace."""

    def concerns(line: bytes) -> bool:
        place = mountinfo.unescape(line.split(b" ", 5)[4])
        return place in (b"/", entry.mount_point) or entry.mount_point.startswith(place + b"/")

    try:
        entries = _read(space, concerns)
    except OSError:
        return None
    return mountinfo.cover(entry, entries)
