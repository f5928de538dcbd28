"""Judge whether a process is an instance's own.

A process is an instance's own if it is in the instance's cgroup and was not moved there, or if its
root directory is in the instance's mounts, or in a copy of them that another mount namespace has.
Nothing else judges that: list and info, the checks of start and exec, kill and stop use this.

``list`` and ``exec`` import this module, so it imports late what needs ctypes (``process_roots``).
"""

from __future__ import annotations

import os
import time
from itertools import islice

from chrootfw.linux import cgroups, mountinfo, procfs
from chrootfw.state import record as start_records
from chrootfw.state import snapshot as snapshots
from chrootfw.views import InstanceState, Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from chrootfw.linux import statx
    from chrootfw.linux.mountinfo import MountEntry
    from chrootfw.state.snapshot import Elsewhere, Snapshot

    #: A process, the status of its root directory, its mount namespace.
    _Rooted = tuple[int, statx.Status, int]

#: File systems in which st_dev of every file is the device number in the mount table. On others
#: (btrfs, overlay) it is not, and tells nothing.
_ONE_NUMBER = frozenset(
    (
        b"ext2",
        b"ext3",
        b"ext4",
        b"xfs",
        b"f2fs",
        b"squashfs",
        b"erofs",
        b"vfat",
        b"iso9660",
        b"tmpfs",
        b"ramfs",
        b"devtmpfs",
        b"proc",
        b"sysfs",
        b"devpts",
        b"mqueue",
        b"hugetlbfs",
        b"cgroup",
        b"cgroup2",
    )
)

#: Seconds for judging which processes in the cgroups of one instance were moved there.
_JUDGE_SECONDS = 0.25

#: Lines of the mount table of another namespace that are searched for a copy of an instance's
#: mounts.
_LINES_MAX = 10_000

#: Ancestors of a process whose root directory is read.
_ANCESTORS_MAX = 64


class Roots:
    """The root directories of all processes at one moment.

    Attributes:
        by_mount: The processes that have another root directory than the caller, by the ID of the
            mount that it is on.
    """

    __slots__ = ("by_mount",)

    def __init__(self, by_mount: Mapping[int, Sequence[_Rooted]]) -> None:
        self.by_mount = by_mount


def read_roots() -> Roots:
    """Read the root directory of every process, in one pass over /proc for all instances."""
    from chrootfw.linux import process_roots

    mine = process_roots.read(os.getpid())
    pids = procfs.all_pids()
    roots = [
        (pid, root)
        for pid, root in zip(pids, process_roots.read_all(pids), strict=True)
        if root is not None
        and not (mine and (root[-1] == mine[-1] or (root[1], root[3]) == (mine[1], mine[3])))
    ]
    namespaces = process_roots.read_namespaces(pid for pid, _ in roots)
    found: dict[int, list[_Rooted]] = {}
    for pid, root in roots:
        found.setdefault(root[-1], []).append((pid, root, namespaces[pid]))
    return Roots(found)


class OwnProcesses:
    """The own processes of one instance at one moment.

    Attributes:
        tracked: The pids in its cgroups, without those that were moved there and run elsewhere. 0
            stands for a process that cannot be seen from this pid namespace.
        strangers: The pids in its cgroups that ``tracked`` leaves out.
        is_populated: Whether an own process was in one of its cgroups.
        rooted: The pids whose root directory was in its mounts; ``None`` where /proc was not read.
    """

    __slots__ = ("is_populated", "rooted", "strangers", "tracked")

    def __init__(
        self,
        tracked: Sequence[int],
        strangers: Sequence[int],
        *,
        is_populated: bool,
        rooted: Sequence[int] | None,
    ) -> None:
        self.tracked = tracked
        self.strangers = strangers
        self.is_populated = is_populated
        self.rooted = rooted

    @property
    def pids(self) -> list[int]:
        """All pids, each once; 0 as in ``tracked``."""
        return list(dict.fromkeys([*self.tracked, *(self.rooted or ())]))

    @property
    def rooted_only(self) -> list[int]:
        """The pids that only the root directory shows."""
        tracked = set(self.tracked)
        return [pid for pid in self.rooted or () if pid not in tracked]

    def describe(self) -> list[Process]:
        """Return the processes that still run, described."""
        tracked = [pid for pid in self.tracked if pid > 1]
        return [
            *procfs.describe(tracked, "cgroup"),
            *procfs.describe(self.rooted_only, "root"),
        ]


def read_all(snapshot: Snapshot, names: Iterable[str]) -> dict[str, OwnProcesses | Exception]:
    """Read the own processes of several instances, with one pass over /proc at most.

    They are read as far as by ``Judge.read_running``.

    Args:
        snapshot: The state of the instances.
        names: The instances.

    Returns:
        The processes by instance, or the error if they cannot be read.

    Raises:
        PrivilegeError: The caller may not read the cgroups.
    """
    from chrootfw.errors import ChrootfwError, PrivilegeError

    found: dict[str, OwnProcesses | Exception] = {}
    roots: Roots | None = None
    for name in names:
        try:
            judge = Judge(snapshot, name)
            own = judge.read_tracked()
            if judge.needs_roots(own):
                roots = roots or read_roots()
                own = judge.add_rooted(own, roots)
            found[name] = own
        except PrivilegeError:
            raise
        except (ChrootfwError, OSError, ValueError, RecursionError) as error:
            found[name] = error
    return found


def read_state(
    snapshot: Snapshot,
    name: str,
    *,
    own: OwnProcesses | None = None,
    elsewhere: Elsewhere | None = None,
) -> InstanceState:
    """Read the state of an instance. Its record only tells whether a stop was requested.

    Args:
        snapshot: The mounts and cgroups of the instance.
        name: The instance.
        own: Its own processes, if the caller has read them (``read_running`` or more).
        elsewhere: The answer of ``find_elsewhere``, if the caller has it.
    """
    elsewhere = elsewhere or snapshot.find_elsewhere(name)
    mounted = snapshot.is_mounted(name) or elsewhere.is_mounted
    own = own or Judge(snapshot, name).read_running()
    if own.is_populated or own.rooted:
        return InstanceState.RUNNING
    if elsewhere.entries:
        from chrootfw.linux import process_roots

        if process_roots.is_any_on({entry.id for entry in elsewhere.entries}):
            return InstanceState.RUNNING
    record = snapshot.record(name)
    if record and record.is_of_this_boot() and record.phase == "stopping":
        if mounted:
            return InstanceState.HELD
        from chrootfw.state.disks import find_unreleased_disks

        if find_unreleased_disks(record.disks, settle=0, run_dir=snapshot.run_dir, name=name):
            return InstanceState.HELD
    return InstanceState.MOUNTED if mounted else InstanceState.ABSENT


class Judge:
    """Judge whether processes are an instance's own, in one scan of processes.

    A process is read when it is judged: before a signal, that is with its pidfd open. It is
    compared with the instance's cgroups and mounts of one moment. The mounts and the mount table
    are read when the first process needs them, which few do, and are kept with the judge. So is
    the verdict on a mount, which holds for every process with its root directory there.
    """

    def __init__(
        self, snapshot: Snapshot, name: str, proven: set[tuple[int, int]] | None = None
    ) -> None:
        """Prepare a scan.

        Args:
            snapshot: The mounts and cgroups of the instance.
            name: The instance.
            proven: The processes, each with its start time, that an earlier scan of the same verb
                has proven to be the instance's own: their parents may end before them. This scan
                adds its own.
        """
        self.snapshot = snapshot
        self.name = name
        self.groups = snapshot.groups(name)
        self.proven: set[tuple[int, int]] = set() if proven is None else proven
        self._root = start_records.root(snapshot.run_dir, name)
        self._namespace = snapshot.locations.namespace
        self._table = snapshot.table or mountinfo.Table()
        self._entries: list[MountEntry] | None = None
        self._lines: dict[str, list[bytes]] | None = None
        self._verdicts: dict[tuple[int, int], bool | None] = {}
        self._entries_elsewhere: dict[int, MountEntry | None] = {}
        self._parts: dict[str, set[tuple[int, bytes]]] = {}
        self._owners: dict[int, str | None] = {}

    def read_tracked(self) -> OwnProcesses:
        """Read the own processes in the cgroups."""
        found = [pid for path in self.groups for pid in cgroups.pids(path)]
        strangers = self._find_strangers(found)
        left_out = set(strangers)
        tracked = [pid for pid in found if pid not in left_out]
        is_populated = bool(tracked) or (
            not strangers and any(cgroups.is_populated(path) for path in self.groups)
        )
        return OwnProcesses(tracked, strangers, is_populated=is_populated, rooted=None)

    def read_running(self) -> OwnProcesses:
        """Read as many own processes as needed to tell whether the instance runs, and how many.

        /proc is read only if the cgroups show no process: that takes ten milliseconds beside 2,000
        processes.
        """
        found = self.read_tracked()
        return self.add_rooted(found, read_roots()) if self.needs_roots(found) else found

    def needs_roots(self, found: OwnProcesses) -> bool:
        """Return whether only root directories can tell which own processes there are."""
        return not found.tracked and (found.is_populated or self.snapshot.is_mounted(self.name))

    def read_own(self, tracked: OwnProcesses | None = None) -> OwnProcesses:
        """Read the own processes in the cgroups, and those with a root directory in the mounts.

        Args:
            tracked: The processes in the cgroups, if they have just been read.
        """
        found = tracked or self.read_tracked()
        return self.add_rooted(found, read_roots() if self._read_mounts() else Roots({}))

    def add_rooted(self, found: OwnProcesses, roots: Roots) -> OwnProcesses:
        """Add the processes whose root directory is in the instance's mounts.

        Args:
            found: The own processes in the cgroups.
            roots: The root directories of all processes.
        """
        ours = {entry.id for entry in self._read_mounts()}  # no mounts means no users, never all
        rooted: list[int] = []
        others: list[_Rooted] = []
        for mount_id, those in roots.by_mount.items() if ours else ():
            if mount_id in ours:
                rooted += [pid for pid, _, _ in those]
            else:
                others += those
        rooted = sorted([*rooted, *self._find_in_copies(others)])
        return OwnProcesses(
            found.tracked, found.strangers, is_populated=found.is_populated, rooted=rooted
        )

    def _find_strangers(self, pids: Sequence[int]) -> list[int]:
        """Return the processes in the cgroups that were moved there.

        Another program may move tens of thousands there. When the time is over, the processes that
        are not judged yet count as moved, and are found by their root directory only.
        """
        ends = time.monotonic() + _JUDGE_SECONDS
        found: list[int] = []
        for number, pid in enumerate(pids):
            if self.was_moved_in(pid):
                found.append(pid)
                if time.monotonic() > ends:
                    return [*found, *pids[number + 1 :]]
        return found

    def is_own(self, pid: int) -> bool:
        """Return whether a process is the instance's own now, as the module defines it."""
        return (
            not self.was_moved_in(pid) if self._judge_by_cgroup(pid) else self.has_root_inside(pid)
        )

    def is_of_another(self, pid: int) -> bool:
        """Return whether a process belongs to another instance, of any run directory.

        Its cgroup tells, or its root directory. The process is not this instance's own.
        """
        mine = self._judge_by_cgroup(pid)
        return not mine if mine is not None else self._find_owner(pid) not in (None, self.name)

    def was_moved_in(self, pid: int) -> bool:
        """Return whether a process in the instance's cgroup was moved there and runs elsewhere.

        It was not if its root directory, or that of an ancestor, is in the instance's mounts: no
        write into a cgroup changes that. A process that runs in the instance, leaves its root for
        the host's and loses its parent counts as moved.
        """
        if pid <= 0:
            return False
        try:
            # The kernel's own path is enough for nearly all, and waits for no file system.
            if procfs.namespace_of(pid) == self._namespace:
                root = os.readlink(f"/proc/{pid}/root")
                if root == self._root or root.startswith(f"{self._root}/"):
                    return False
        except OSError:
            return False  # it has ended, or the caller may not see
        return self._descends_from_outside(pid)

    def has_root_inside(self, pid: int) -> bool:
        """Return whether a process has its root directory in the instance's mounts or a copy."""
        from chrootfw.linux import process_roots

        root = process_roots.read(pid)
        if root is None:
            return False
        if any(entry.id == root[-1] for entry in self._read_mounts()):
            return True
        namespace = procfs.namespace(pid)
        if namespace == self._namespace:
            return False
        return bool(self._find_in_copies([(pid, root, namespace)]))

    def _judge_by_cgroup(self, pid: int) -> bool | None:
        """Judge a process by its cgroup alone.

        Returns:
            ``True`` for the instance's cgroup, ``False`` for another instance's, ``None`` for any
            other cgroup, which tells nothing.
        """
        top = self.snapshot.top
        path = cgroups.path_of(pid, top) if top else None
        if path and any(path == mine or path.startswith(mine + "/") for mine in self.groups):
            return True
        return False if path and path.startswith(f"{top}/{cgroups.TOP}/") else None

    def _find_owner(self, pid: int) -> str | None:
        """Find the instance in whose mounts, or their copy, a process has its root directory."""
        from chrootfw.linux import process_roots

        root = process_roots.read(pid)
        if root is None:
            return None
        entry = mountinfo.by_id(self._table, root[-1])
        if entry is not None:
            return snapshots.name_at(self.snapshot.run_dir, entry)
        if procfs.namespace(pid) == self._namespace:
            return None
        if root[-1] not in self._owners:
            names = (name for name in self._read_lines() if self._is_copy(pid, root[-1], name))
            self._owners[root[-1]] = next(names, None)
        return self._owners[root[-1]]

    def _descends_from_outside(self, pid: int) -> bool:
        """Return whether neither a process nor one that it descends from runs in the instance."""
        from chrootfw.linux import process_roots

        known = pid, procfs.start_time(pid)
        if known in self.proven:
            return False
        for _ in range(_ANCESTORS_MAX):
            root = process_roots.read(pid)
            if root is None:
                return False  # it has ended
            place = root[1], root[-1]
            if place not in self._verdicts:
                self._verdicts[place] = self._judge_by_root(pid, root)
            is_inside = self._verdicts[place]
            if is_inside is not None:
                if is_inside:
                    self.proven.add(known)  # its parent may end before it
                return not is_inside
            pid = procfs.parent(pid)
            if pid <= 1:
                break
        return True

    def _judge_by_root(self, pid: int, root: statx.Status) -> bool | None:
        """Judge a process by its root directory; the verdict holds for all on that mount.

        Returns:
            Whether it runs in the instance; ``None`` if only its ancestors can tell.
        """
        is_mounted_here = mountinfo.by_id(self._table, root[-1]) is not None
        namespace = procfs.namespace(pid)
        if self._read_mounts():
            if any(entry.id == root[-1] for entry in self._read_mounts()) or self._find_in_copies(
                [(pid, root, namespace)]
            ):
                return True
            if is_mounted_here and self._find_owner(pid) is not None:
                return False  # another instance's
        if is_mounted_here or _is_callers_root(root):
            return None
        if namespace not in (0, self._namespace) and self._is_copy_of_any(pid, root[-1]):
            return True
        # The mount is in no table here: it was unmounted lazily, or only another mount namespace
        # has it.
        if namespace == self._namespace or not self._read_mounts():
            return True
        return self._is_in_sandbox(pid, root[-1])

    def _is_in_sandbox(self, pid: int, mount_id: int) -> bool | None:
        """Judge whether a process is in a sandbox that was made inside the instance.

        A sandbox leaves the instance's root for a file system that only its own mount namespace has
        (pivot_root(2)), beside a copy of the instance's mounts.

        Returns:
            ``True``, or ``None`` if that cannot be seen.
        """
        entry = self._read_entry(pid, mount_id)
        if entry is None or any(mountinfo.of_device(self._table, entry.dev)):
            return None
        parts = self._parts_of(self.name)
        lines = islice(mountinfo.lines_of(pid), _LINES_MAX)
        return True if any((each.dev, each.root) in parts for each in lines) else None

    def _read_mounts(self) -> list[MountEntry]:
        """Return the instance's mounts, read once."""
        if self._entries is None:
            self._entries = self.snapshot.read_mounts(self.name)
        return self._entries

    def _read_lines(self) -> dict[str, list[bytes]]:
        """Return the lines of the mount table by instance, read once."""
        if self._lines is None:
            self._lines = snapshots.lines_by_instance(self._table, self.snapshot.run_dir)
        return self._lines

    def _find_in_copies(self, suspects: Sequence[_Rooted]) -> list[int]:
        """Find the processes with their root directory in a copy of the instance's mounts.

        Args:
            suspects: Processes whose root directory is not in the instance's mounts here.
        """
        if not suspects:
            return []
        from chrootfw.linux import statx, syscalls

        entries = self._read_mounts()
        if all(entry.fstype in _ONE_NUMBER for entry in entries):
            devices = [statx.packed(os.major(entry.dev), os.minor(entry.dev)) for entry in entries]
            (top,) = statx.statx_many([os.fsencode(self._root)])
            # Most are the root directories of other instances, from the same file system.
            others = top[3] if top and devices.count(top[3]) == 1 else None
            suspects = [
                (pid, root, namespace)
                for pid, root, namespace in suspects
                if root[3] in devices
                and (
                    root[3] != others
                    or not root[4] & syscalls.STATX_ATTR_MOUNT_ROOT
                    or (top and root[1] == top[1])
                )
            ]
        return [
            pid
            for pid, root, namespace in suspects
            if namespace not in (0, self._namespace) and self._is_copy(pid, root[-1], self.name)
        ]

    def _is_copy(self, pid: int, mount_id: int, name: str) -> bool:
        """Return whether a mount in another mount namespace is a copy of an instance's mount.

        A copy shows the same part of the same file system, which is mounted nowhere else here.

        Args:
            pid: A process in that namespace.
            mount_id: The mount, on which the process has its root directory.
            name: The instance.
        """
        entry = self._read_entry(pid, mount_id)
        return entry is not None and (entry.dev, entry.root) in self._parts_of(name)

    def _is_copy_of_any(self, pid: int, mount_id: int) -> bool:
        """Return whether a mount in another mount namespace shows the same as one of the instance.

        The host may have the same mounted elsewhere, such as a volume that is the disk, or sysfs:
        by itself this says nothing. For a process in the instance's cgroup it does.
        """
        entry = self._read_entry(pid, mount_id)
        return entry is not None and any(
            (entry.dev, entry.root) == (each.dev, each.root) for each in self._read_mounts()
        )

    def is_found_by_its_root(self) -> bool:
        """Return whether a copy of the instance's root tells its processes, without a cgroup.

        It does not if the host has the same directory mounted elsewhere, too.
        """
        root = os.fsencode(self._root)
        parts = self._parts_of(self.name)
        return all(
            (each.dev, each.root) in parts
            for each in self._read_mounts()
            if each.mount_point == root
        )

    def _read_entry(self, pid: int, mount_id: int) -> MountEntry | None:
        """Read the line of a mount in the table of a process.

        The table, which may have a hundred thousand lines, is read to that line.
        """
        if mount_id not in self._entries_elsewhere:
            self._entries_elsewhere[mount_id] = next(
                (e for e in mountinfo.lines_of(pid) if e.id == mount_id), None
            )
        return self._entries_elsewhere[mount_id]

    def _parts_of(self, name: str) -> set[tuple[int, bytes]]:
        """Return the parts of file systems that only the mounts of an instance show here.

        A part is a device number and the directory of that file system which is mounted.
        """
        if name not in self._parts:
            entries = (
                self._read_mounts()
                if name == self.name
                else mountinfo.parse_alike(self._read_lines().get(name, ()))
            )
            ours = {entry.id for entry in entries}
            same = mountinfo.of_devices(self._table, {entry.dev for entry in entries})
            others = {(entry.dev, entry.root) for entry in same if entry.id not in ours}
            self._parts[name] = {(entry.dev, entry.root) for entry in entries} - others
        return self._parts[name]


def _is_callers_root(root: statx.Status) -> bool:
    """Return whether a root directory is the caller's own, through whichever mount."""
    from chrootfw.linux import process_roots

    mine = process_roots.read(os.getpid())
    return bool(mine and (root[1], root[3]) == (mine[1], mine[3]))
