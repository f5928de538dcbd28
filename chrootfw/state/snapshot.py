"""Read the state of the instances in a run directory from the kernel, in one pass.

Processes are not read here: ``ownership`` judges them. ``list``, ``info`` and ``exec`` import this
module, so it imports late what a list of running instances does without: system calls by ctypes
above all.
"""

from __future__ import annotations

import os

from chrootfw.errors import InputError, NotSupported, PrivilegeError, TrustError
from chrootfw.linux import cgroups, files, mountinfo, procfs
from chrootfw.linux.descriptors import SHORT, opened
from chrootfw.planning.paths import check_name
from chrootfw.state import record as start_records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Literal

    from chrootfw.linux.mountinfo import MountEntry
    from chrootfw.state.record import StartRecord

#: The names in an instance's directory below which its mounts are.
_TREES = ([b"root"], [b"aux"])


class Locations:
    """The run directory and the cgroup hierarchies, which do not change while a verb runs.

    Attributes:
        run_dir: The path of the run directory, resolved.
        top: Where cgroup v2 is mounted, or ``None``.
        v1: Where the memory controller of cgroup v1 is mounted, or ``None``.
        homes: The directories of the run directory's cgroups in both; none without a run directory.
        is_own: Whether the run directory belongs to the caller.
        namespace: The inode of the caller's mount namespace.
        tracking: ``cgroup`` if a v2 hierarchy can be written, else ``root``.
    """

    __slots__ = ("homes", "is_own", "namespace", "run_dir", "top", "tracking", "v1")

    def __init__(self, run_dir: str, table: Callable[[], mountinfo.Table]) -> None:
        """Read the locations.

        Args:
            run_dir: The run directory. It does not have to exist.
            table: Returns the mount table, which is read only where nothing else tells.

        Raises:
            TrustError: A user other than root can change the run directory.
            PrivilegeError: The caller may not look at it.
        """
        self.run_dir = os.path.realpath(run_dir)
        self.top, self.v1 = cgroups.hierarchies(table)
        self.namespace = procfs.namespace("thread-self")
        self.tracking = "cgroup" if self.top and cgroups.is_writable(self.top) else "root"
        self.homes: tuple[str, ...] = ()
        self.is_own = True
        try:
            is_there = files.is_directory(self.run_dir)
        except PermissionError as error:
            raise PrivilegeError(
                f"cannot look at the run directory {run_dir}: {error.strerror}",
                hint="run it with sudo, or as root",
            ) from error
        if is_there:
            files.check_trusted(run_dir, what="run directory")
            self.homes = tuple(
                cgroups.home(top, self.run_dir) if top else "" for top in (self.top, self.v1)
            )
            self.is_own = os.stat(self.run_dir).st_uid == os.geteuid()


class _Found:
    """Directory, record and mounts of one instance, as they were read."""

    __slots__ = ("has_directory", "is_mounted", "notes", "record")

    def __init__(
        self,
        *,
        has_directory: bool,
        is_mounted: bool,
        record: StartRecord | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.has_directory = has_directory
        self.is_mounted = is_mounted
        self.record = record
        self.notes = list(notes)


_NOTHING = _Found(has_directory=False, is_mounted=False)


class Elsewhere:
    """Where an instance is mounted that is not mounted in the caller's mount namespace.

    Attributes:
        is_mounted: Whether it is mounted in the mount namespace of its start.
        pid: A process there; 0 if that namespace has no process.
        entries: The mounts there; none without a process.
    """

    __slots__ = ("entries", "is_mounted", "pid")

    def __init__(
        self, *, is_mounted: bool, pid: int = 0, entries: Sequence[MountEntry] = ()
    ) -> None:
        self.is_mounted = is_mounted
        self.pid = pid
        self.entries = entries


class Snapshot:
    """Records, cgroups and mounts of instances at one moment.

    A snapshot never changes: after anything that starts, stops or mounts, read a new one.
    ``read_snapshot`` reads one of all instances. That of ``read_instance`` answers for its instance
    alone, else with a ``KeyError``. It has no mount table, so ``read_mounts`` reads the mounts of
    the moment when it is called: an instance may have a hundred thousand, and few verbs need them.

    Attributes:
        locations: The run directory and the cgroup hierarchies.
        run_dir: As in ``Locations``.
        top: As in ``Locations``.
        v1: As in ``Locations``.
        tracking: As in ``Locations``.
        cgroups: The v2 cgroups of the run directory.
        v1_groups: Its cgroups in the memory hierarchy of v1.
        counts_memory: Whether the v2 cgroups have the memory controller.
        table: The mount table; ``None`` where it was not read.
        pids_elsewhere: The processes in the mount namespaces in which instances were started that
            are not mounted here; ``None`` where they were not searched for.
    """

    __slots__ = (
        "_found", "_is_of_all", "_lines", "cgroups", "counts_memory", "locations",
        "pids_elsewhere", "run_dir", "table", "top", "tracking", "v1", "v1_groups",
    )  # fmt: skip

    def __init__(
        self,
        locations: Locations,
        found: Mapping[str, _Found],
        groups: tuple[cgroups.Groups, cgroups.Groups],
        *,
        is_of_all: bool,
        table: mountinfo.Table | None = None,
        lines: Mapping[str, Sequence[bytes]] | None = None,
    ) -> None:
        """Keep what was read, and read the processes in the namespaces that it names.

        Args:
            locations: The run directory and the cgroup hierarchies.
            found: The instances by name.
            groups: The cgroups of v2, and of v1's memory hierarchy.
            is_of_all: Whether a name that is not in ``found`` is of nothing.
            table: The mount table, if it was read.
            lines: Its lines by instance.
        """
        self.locations = locations
        self.run_dir, self.top, self.v1 = locations.run_dir, locations.top, locations.v1
        self.tracking = locations.tracking
        self.table = table
        self.cgroups, self.v1_groups = groups
        home = locations.homes[0] if locations.homes else ""
        self.counts_memory = bool(home) and cgroups.hands_down(home, "memory")
        self._found = found
        self._is_of_all = is_of_all
        self._lines = lines
        self.pids_elsewhere: Mapping[int, Sequence[int]] | None = None
        if lines is not None:
            spaces = {self._recorded_namespace(name) for name in found} - {None, 0}
            self.pids_elsewhere = _pids_by_namespace(spaces) if spaces else {}

    def _of(self, name: str) -> _Found:
        return self._found.get(name, _NOTHING) if self._is_of_all else self._found[name]

    def names(self) -> set[str]:
        """Return the names of everything that is present, whole or in pieces.

        A cgroup of that name is not enough: others can make one.
        """
        return {name for name in self._found if self.is_present(name)}

    def is_present(self, name: str) -> bool:
        """Return whether the instance has a directory or a mount."""
        found = self._of(name)
        return found.has_directory or found.is_mounted

    def is_mounted(self, name: str) -> bool:
        """Return whether the instance had a mount."""
        return self._of(name).is_mounted

    def record(self, name: str) -> StartRecord | None:
        """Return the start record; ``None`` without one that can be used."""
        return self._of(name).record

    def notes(self, name: str) -> list[str]:
        """Return sentences on why the record cannot be used."""
        return list(self._of(name).notes)

    def groups(self, name: str) -> Sequence[str]:
        """Return the v2 cgroups of an instance, oldest first.

        They are those that the start record names by their inodes. Without a record they are those
        that bear the instance's name, if the instance is present.

        Raises:
            PrivilegeError: The caller may not read them.
        """
        return self._recorded(name, self.cgroups)

    def memory_groups(self, name: str) -> Sequence[str]:
        """Return the cgroups of an instance in v1's memory hierarchy, as ``groups`` does."""
        return self._recorded(name, self.v1_groups)

    def leftovers(self, name: str) -> list[str]:
        """Return the cgroups that bear an instance's name and are not its own.

        An earlier start left them, or another program made them.
        """
        own = {*self.groups(name), *self.memory_groups(name)}
        return [
            path for path in (*self.cgroups.get(name), *self.v1_groups.get(name)) if path not in own
        ]

    def _recorded(self, name: str, groups: cgroups.Groups) -> Sequence[str]:
        paths = groups.get(name)
        if not paths:
            return ()
        record = self.record(name)
        known = record.cgroups if record and record.is_of_this_boot() else None
        if known is not None:
            return [path for path in paths if groups.identity(path) in known]
        return paths if self.is_present(name) else ()

    def _recorded_namespace(self, name: str) -> int | None:
        """Return the mount namespace in which an instance was started.

        ``None`` if the instance is mounted here, or was started here, or not in this boot.
        """
        record = self.record(name)
        if self.is_mounted(name) or not record or not record.is_of_this_boot():
            return None
        return record.namespace if record.namespace != files.mount_namespace() else None

    def read_mounts(self, name: str) -> list[MountEntry]:
        """Read the instance's mounts: its root, those below, its auxiliary layers.

        They come from the snapshot's mount table, else from the kernel at this moment.
        """
        if self._lines is not None:
            return mountinfo.parse_alike(self._lines.get(name, ()))
        directory = f"{self.run_dir}/{name}"
        found = _list_mounts(directory)
        return mountinfo.parse_alike(_lines_in(directory)) if found is None else found

    def find_elsewhere(self, name: str) -> Elsewhere:
        """Search the mount namespace of the start for an instance that is not mounted here."""
        namespace = self._recorded_namespace(name)
        if not namespace:
            return Elsewhere(is_mounted=False)
        pids = self.pids_elsewhere
        for pid in (_pids_by_namespace({namespace}) if pids is None else pids).get(namespace, ()):
            try:
                lines = lines_by_instance(mountinfo.pieces(pid), self.run_dir).get(name)
            except OSError as error:
                if error.errno in SHORT:
                    raise
                continue  # the process has ended
            entries = [mountinfo.parse_line(line) for line in lines or ()]
            if entries:  # a process that is chrooted sees its own part of the table only
                return Elsewhere(is_mounted=True, pid=pid, entries=entries)
        # A namespace may be kept without a process (nsenter(1) on a file); the disk shows whether
        # it is mounted.
        from chrootfw.state.disks import find_unreleased_disks

        record = self.record(name)
        disks = record.disks if record else ()
        held = find_unreleased_disks(disks, settle=0, run_dir=self.run_dir, name=name)
        return Elsewhere(is_mounted=bool(held))


def read_snapshot(run_dir: str, *, cgroups_only: bool = False) -> Snapshot:
    """Read every instance of a run directory: directories, records, cgroups, the mount table.

    Args:
        run_dir: The run directory. It does not have to exist.
        cgroups_only: Read only instances that have a cgroup, and not the mount table, which takes a
            microsecond for each mount of the machine. Then no instance counts as mounted.

    Raises:
        TrustError: A user other than root can change the run directory.
    """
    table = mountinfo.Table()
    locations = Locations(run_dir, lambda: table)
    if cgroups_only:
        groups = _read_groups(locations)
        found = {name: _read(locations.run_dir, name, is_mounted=False) for name in groups[0]}
        return Snapshot(locations, found, groups, is_of_all=True)
    lines = lines_by_instance(table, locations.run_dir)
    present = {*filter(is_name, lines), *files.instances(locations.run_dir)}
    groups = _read_groups(locations)
    found = {name: _read(locations.run_dir, name, is_mounted=name in lines) for name in present}
    return Snapshot(locations, found, groups, is_of_all=True, table=table, lines=lines)


def read_names(run_dir: str) -> set[str]:
    """Read only the names of the instances that are present.

    Raises:
        TrustError: A user other than root can change the run directory.
    """
    table = mountinfo.Table()
    locations = Locations(run_dir, lambda: table)
    lines = lines_by_instance(table, locations.run_dir)
    return {*filter(is_name, lines), *files.instances(locations.run_dir)}


def read_instance(
    run_dir: str,
    name: str,
    *,
    locations: Locations | None = None,
    record: StartRecord | Literal["unread"] | None = "unread",
) -> Snapshot:
    """Read one instance: its directory, whether it is mounted, its cgroups, its record.

    Args:
        run_dir: The run directory.
        name: The instance.
        locations: The locations of an earlier snapshot of the same verb.
        record: The start record, if the caller has read it.

    Raises:
        TrustError: A user other than root can change the run directory.
    """
    if locations is None or not locations.homes:
        locations = Locations(run_dir, mountinfo.Table)
    directory = f"{locations.run_dir}/{name}"
    place = next(_list_mount_points(directory), "")
    is_mounted = bool(place) if place is not None else any(_lines_in(directory))
    groups = _read_groups(locations, name)
    found = _read(locations.run_dir, name, is_mounted=is_mounted, record=record)
    return Snapshot(locations, {name: found}, groups, is_of_all=False)


def _read_groups(
    locations: Locations, only: str | None = None
) -> tuple[cgroups.Groups, cgroups.Groups]:
    """Read the cgroups of v2, and of v1's memory hierarchy."""
    v2, v1 = locations.homes or ("", "")
    return (
        cgroups.Groups(v2, is_own=locations.is_own, only=only),
        cgroups.Groups(v1, is_own=locations.is_own, only=only),
    )


def _read(
    run_dir: str,
    name: str,
    *,
    is_mounted: bool,
    record: StartRecord | Literal["unread"] | None = "unread",
) -> _Found:
    """Read the directory and the record of one instance."""
    has_directory = files.is_directory(f"{run_dir}/{name}")
    known, notes = _read_record(run_dir, name) if isinstance(record, str) else (record, [])
    return _Found(has_directory=has_directory, is_mounted=is_mounted, record=known, notes=notes)


def _read_record(run_dir: str, name: str) -> tuple[StartRecord | None, list[str]]:
    """Read the start record, and notes on why it cannot be used."""
    try:
        return start_records.load(run_dir, name), []
    except (TrustError, NotSupported) as error:
        return None, [error.brief]
    except PermissionError:
        return None, ["its record can be read by root only"]
    except OSError as error:
        return None, [f"its record cannot be read: {error.strerror}"]


def _pids_by_namespace(wanted: Collection[int | None]) -> dict[int, list[int]]:
    """Read which processes run in some mount namespaces, by the inode of the namespace."""
    found: dict[int, list[int]] = {}
    for pid in procfs.all_pids():
        try:
            namespace = files.mount_namespace(pid)
        except OSError:
            continue  # it has ended, or the caller may not see it
        if namespace in wanted:
            found.setdefault(namespace, []).append(pid)
    return found


def _list_mount_points(directory: str) -> Iterator[str | None]:
    """Read on which of an instance's mount points something is mounted, by mount IDs.

    The kernel takes a microsecond for each line of the mount table, however few are about this
    instance. So the table is read only if nothing else can tell.

    Yields:
        Paths; ``None`` if only the mount table can tell what is there.
    """
    from chrootfw.linux import syscalls

    root, aux = f"{directory}/root", f"{directory}/aux"
    try:
        run_dir = syscalls.statx(os.path.dirname(directory))
        if run_dir.attributes & syscalls.STATX_ATTR_MOUNT_ROOT:
            yield None  # it may cover another one, with instances that the table still has
            return
        mount_id = syscalls.statx(directory, follow=False).mnt_id
        if mount_id != run_dir.mnt_id:
            yield None
            return
    except (FileNotFoundError, NotADirectoryError):
        if not files.is_directory(os.path.dirname(directory)):
            yield None
        return  # below a directory that is not there is no mount
    except OSError:
        yield None
        return
    for place in (root, aux):
        try:
            if syscalls.statx(place, follow=False).mnt_id != mount_id:
                yield place
                continue
            for each in [root] if place == root else [f"{aux}/{name}" for name in os.listdir(aux)]:
                if syscalls.statx(each, follow=False).mnt_id != mount_id:
                    yield each
                elif os.listdir(each):
                    yield None  # something may be mounted on what is in there
        except FileNotFoundError:
            if _exists(place):
                yield None
        except OSError:
            yield None


def _exists(place: str) -> bool:
    """Return whether the VFS has such a name.

    A file system that is mounted on it may refuse every other answer, with any errno.
    """
    try:
        with opened(place, os.O_PATH | os.O_NOFOLLOW):
            return True
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _list_mounts(directory: str) -> list[MountEntry] | None:
    """Read the mounts of an instance without the mount table; ``None`` if only that can tell."""
    from chrootfw.linux import statmount

    places = []
    for place in _list_mount_points(directory):
        if place is None:
            return None
        places.append(place)
    try:
        return statmount.list_mounts_on(places)
    except OSError:
        return None  # such as before Linux 6.8, which brought listmount(2)


def _lines_in(directory: str) -> Iterator[bytes]:
    """Yield the lines of the mount table that are mounts of one instance."""
    for line, below in mountinfo.lines_below(mountinfo.pieces(), os.fsencode(directory)):
        if below.split(b"/", 2)[1:2] in _TREES:
            yield line


def name_at(run_dir: str, entry: MountEntry) -> str | None:
    """Return the name of the instance that a mount belongs to; ``None`` if it is of none."""
    base = os.fsencode(run_dir) + b"/"
    parts = entry.mount_point.removeprefix(base).split(b"/", 2)
    return (
        os.fsdecode(parts[0])
        if entry.mount_point.startswith(base) and parts[1:2] in _TREES
        else None
    )


def lines_by_instance(table: Iterable[bytes], run_dir: str) -> dict[str, list[bytes]]:
    """Return the lines of a mount table that are mounts of instances, by the instance's name.

    Args:
        table: The mount table in pieces of whole lines.
        run_dir: The run directory, resolved.
    """
    found: dict[bytes, list[bytes]] = {}
    for line, below in mountinfo.lines_below(table, os.fsencode(run_dir)):
        parts = below.split(b"/", 3)
        if parts[2:3] in _TREES:
            found.setdefault(parts[1], []).append(line)
    return {os.fsdecode(mountinfo.unescape(name)): lines for name, lines in found.items()}


def is_name(text: str) -> bool:
    """Return whether a text is a valid name for an instance."""
    try:
        check_name(text)
    except InputError:
        return False
    return True
