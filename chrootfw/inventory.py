"""What is here: the instances of a run directory as the kernel shows them, in one pass however many.

A lean room: ``list``, ``info`` and ``exec`` come here straight from the command line. What a list of running instances
does without, system calls by ctypes above all, is imported where it is used.
"""

from __future__ import annotations

import os

from chrootfw import intents
from chrootfw.errors import InputError, NotFoundError, NotSupported, TrustError, nearest
from chrootfw.planning.paths import check_name
from chrootfw.system import cgroups, mounts, processes, store
from chrootfw.views import InstanceInfo, InstanceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from chrootfw.system import statuses
    from chrootfw.system.mounts import MountEntry
    from chrootfw.views import Process

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

#: File systems in which every file has the device number that stands in the mount table; on others st_dev tells nothing (btrfs, overlay).
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

#: What an instance's mounts are below, in its directory.
_TREES = ([b"root"], [b"aux"])


class _Places:
    """Where the run directory, the hierarchies of cgroup v2 and of v1's memory are, and ``homes``, what is ours in those: none
    without a run directory. ``namespace``: the caller's mount namespace. Raises ``TrustError``."""

    __slots__ = ("homes", "namespace", "run_dir", "top", "tracking", "v1")

    def __init__(self, run_dir: str, table: Callable[[], bytes]) -> None:
        self.run_dir = os.path.realpath(run_dir)
        self.top, self.v1 = cgroups.hierarchies(table)
        self.namespace = processes.namespace("thread-self")
        self.tracking = ""
        self.homes: tuple[str, ...] = ()
        if os.path.isdir(self.run_dir):
            store.check_trusted(run_dir, what="run directory")
            self.homes = tuple(cgroups.home(top, self.run_dir) if top else "" for top in (self.top, self.v1))


class Survey:
    """One look at the mounts and the cgroups, and at most one at /proc, for all instances of a run directory.

    Each question is looked into when it is asked first, and answered likewise from then on. The mount table is read where nothing else
    tells: it takes a microsecond for each mount of the machine.
    ``before``: an earlier survey of the same command, from which is taken what does not change meanwhile: where the run
    directory and the cgroup hierarchies are, and whether they can be used.
    """

    def __init__(self, run_dir: str, before: Survey | None = None) -> None:
        self._raw_table: bytes | None = None
        self._by_name: dict[str, list[bytes]] | None = None
        known = before._places if before else None  # noqa: SLF001  # of its own class
        self._places: _Places = known if known and known.homes else _Places(run_dir, lambda: self.raw_table)
        self.run_dir, self.top, self.v1 = self._places.run_dir, self._places.top, self._places.v1
        self._entries: dict[str, list[MountEntry]] = {}
        v2, v1 = self._places.homes or ("", "")
        self.cgroups = cgroups.Groups(v2)
        self.v1_groups = cgroups.Groups(v1)
        self._tracked: dict[str, list[int]] = {}
        self._populated: dict[str, bool] = {}
        self._looked: dict[int, list[tuple[int, statuses.Status]]] | None = None
        self._rooted: dict[str, list[int]] = {}
        self._mounted: dict[str, bool] = {}
        self._spaces: dict[int, int] = {}
        self._owners: dict[int, str | None] = {}
        self._tables: dict[int, bytes] = {}
        self._copies: dict[tuple[str, int], frozenset[int]] = {}
        self._namespaces: dict[int, list[int]] | None = None
        self._counts_memory: bool | None = None

    @property
    def raw_table(self) -> bytes:
        """The mount table."""
        if self._raw_table is None:
            self._raw_table = mounts.read_table()
        return self._raw_table

    @property
    def _lines(self) -> dict[str, list[bytes]]:
        if self._by_name is None:
            self._by_name = _lines_by_instance(self.raw_table, self.run_dir)
        return self._by_name

    def _lines_of(self, name: str) -> Sequence[bytes]:
        """Those of one instance are searched for alone: another verb is not about the others."""
        if self._by_name is None:
            below = mounts.lines_below(self.raw_table, os.fsencode(f"{self.run_dir}/{name}"))
            return [line for line, path in below if path.split(b"/", 2)[1:2] in _TREES]
        return self._by_name.get(name, ())

    @property
    def tracking(self) -> str:
        """``cgroup`` where a v2 hierarchy can be written, else ``root``."""
        places = self._places
        places.tracking = places.tracking or ("cgroup" if self.top and cgroups.is_writable(self.top) else "root")
        return places.tracking

    @property
    def counts_memory(self) -> bool:
        """Whether the cgroups of version 2 have the memory controller; one look instead of a file that is missing in each."""
        if self._counts_memory is None:
            self._counts_memory = bool(self.top and self._places.homes) and cgroups.hands_down(
                self._places.homes[0], "memory"
            )
        return self._counts_memory

    def names(self) -> set[str]:
        """The names of everything that is present, whole or in pieces."""
        return {*self._lines, *self.cgroups, *store.instances(self.run_dir)}

    def is_present(self, name: str) -> bool:
        """Whether ``names`` has it."""
        return os.path.isdir(f"{self.run_dir}/{name}") or name in self.cgroups or self.is_mounted(name)

    def is_mounted(self, name: str) -> bool:
        """Whether it had a mount at the first time of asking."""
        if name not in self._mounted:
            seen: str | None = None
            if self._raw_table is None and name not in self._entries:
                seen = next(_seen(f"{self.run_dir}/{name}"), "")
            self._mounted[name] = bool(self.mounts(name)) if seen is None else bool(seen)
        return self._mounted[name]

    def mounts(self, name: str) -> list[MountEntry]:
        """The instance's mounts: its root, what is below it, its auxiliary layers."""
        if name not in self._entries:
            known = _listed(f"{self.run_dir}/{name}") if self._raw_table is None else None
            if known is None:
                known = [mounts.parse_line(line) for line in self._lines_of(name)]
            self._entries[name] = known
        return self._entries[name]

    def _name_at(self, entry: MountEntry) -> str | None:
        """The instance whose mount it is."""
        base = os.fsencode(self.run_dir) + b"/"
        parts = entry.mount_point.removeprefix(base).split(b"/", 2)
        return os.fsdecode(parts[0]) if entry.mount_point.startswith(base) and parts[1:2] in _TREES else None

    def instances_on(self, file: tuple[int, int], path: str) -> set[str | None]:
        """The instances in which the loop devices over an image are mounted; ``None`` among them for one that is mounted elsewhere or not at all."""
        from chrootfw.system import loops

        found: set[str | None] = set()
        for device in loops.over({file: path}):
            entries = mounts.of_device(self.raw_table, os.stat(device).st_rdev)
            found |= {self._name_at(entry) for entry in entries} or {None}
        return found

    def tracked(self, name: str) -> list[int]:
        """The pids in its cgroups at the first time of asking; 0 stands for one that cannot be seen from here."""
        if name not in self._tracked:
            self._tracked[name] = [pid for path in self.cgroups.get(name, ()) for pid in cgroups.pids(path)]
        return self._tracked[name]

    def is_populated(self, name: str) -> bool:
        """Whether something lived in one of its cgroups at the first time of asking."""
        if name not in self._populated:
            paths = self.cgroups.get(name, ())
            self._populated[name] = bool(self.tracked(name)) or any(cgroups.is_populated(path) for path in paths)
        return self._populated[name]

    def rooted(self, name: str) -> list[int]:
        """The processes whose root directory is in its mounts; the one pass over all processes serves every instance."""
        if name not in self._rooted:
            entries = self.mounts(name)  # no mounts means no users, never all
            ours = {entry.id for entry in entries}
            found, elsewhere = [], []
            for mount_id, those in self._roots().items() if entries else ():
                if mount_id in ours:
                    found += [pid for pid, _ in those]
                else:
                    elsewhere += those
            self._rooted[name] = sorted([*found, *self._in_copies(name, elsewhere)])
        return self._rooted[name]

    def _roots(self) -> dict[int, list[tuple[int, statuses.Status]]]:
        """The processes that have another root directory than the caller, each with the status of its root, by the ID of its mount."""
        if self._looked is None:
            from chrootfw.system import holders

            mine = holders.root(os.getpid())
            pids = processes.all_pids()
            self._looked = {}
            for pid, root in zip(pids, holders.roots(pids), strict=True):
                if root is None or (mine and (root[-1] == mine[-1] or (root[1], root[3]) == (mine[1], mine[3]))):
                    continue  # nearly all
                self._looked.setdefault(root[-1], []).append((pid, root))
        return self._looked

    def owner(self, pid: int) -> str | None:
        """The instance in whose mounts the root directory of a process is; in a copy of them that another mount
        namespace has, too."""
        from chrootfw.system import holders

        root = holders.root(pid)
        if root is None:
            return None
        entry = mounts.by_id(self.raw_table, root[-1])
        if entry is not None:
            return self._name_at(entry)
        if processes.namespace(pid) == self._places.namespace:
            return None
        if root[-1] not in self._owners:
            names = (name for name in self._lines if root[-1] in self._copies_in(pid, root[-1], self.mounts(name)))
            self._owners[root[-1]] = next(names, None)
        return self._owners[root[-1]]

    def _in_copies(self, name: str, suspects: Sequence[tuple[int, statuses.Status]]) -> list[int]:
        """Those whose root directory is in a copy of the instance's mounts, which another mount namespace has."""
        if not suspects:
            return []
        from chrootfw.system import statuses, syscalls

        entries = self.mounts(name)
        if all(entry.fstype in _ONE_NUMBER for entry in entries):
            devices = [statuses.packed(os.major(entry.dev), os.minor(entry.dev)) for entry in entries]
            (top,) = statuses.statuses([os.fsencode(intents.root(self.run_dir, name))])
            # Most are the root directories of other instances, from the same file system.
            others = top[3] if top and devices.count(top[3]) == 1 else None
            suspects = [
                (pid, root)
                for pid, root in suspects
                if root[3] in devices
                and (root[3] != others or not root[4] & syscalls.STATX_ATTR_MOUNT_ROOT or (top and root[1] == top[1]))
            ]
        unknown = [pid for pid, _ in suspects if pid not in self._spaces]
        for pid, status in zip(unknown, statuses.statuses([b"/proc/%d/ns/mnt" % pid for pid in unknown]), strict=True):
            self._spaces[pid] = status[1] if status else 0
        found = []
        for pid, root in suspects:
            if self._spaces[pid] in (0, self._places.namespace):
                continue
            if (name, root[-1]) not in self._copies:
                self._copies[name, root[-1]] = self._copies_in(pid, root[-1], entries)
            if root[-1] in self._copies[name, root[-1]]:
                found.append(pid)
        return found

    def _copies_in(self, pid: int, mount_id: int, entries: Sequence[MountEntry]) -> frozenset[int]:
        """The IDs of the copies of some mounts in the mount namespace of a process, as far as it is seen from its root directory, on the mount
        ``mount_id``: the same part of the same file system, which is mounted nowhere else here."""
        devices = {entry.dev for entry in entries}
        ours = {entry.id for entry in entries}
        elsewhere = {(e.dev, e.root) for e in mounts.of_devices(self.raw_table, devices) if e.id not in ours}
        places = {(entry.dev, entry.root) for entry in entries} - elsewhere
        try:
            if mount_id not in self._tables:
                self._tables[mount_id] = mounts.read_table(pid)
        except OSError:
            return frozenset()
        there = mounts.of_devices(self._tables[mount_id], devices)
        return frozenset(entry.id for entry in there if (entry.dev, entry.root) in places)

    def own(self, name: str) -> list[int]:
        """The pids of its own processes, found both ways; 0 stands for one that cannot be seen from here."""
        return list(dict.fromkeys([*self.tracked(name), *self.rooted(name)]))

    def own_processes(self, name: str) -> list[Process]:
        """Its own processes, as values."""
        tracked = processes.tracked(self.cgroups.get(name, ()))
        by_root = [pid for pid in self.rooted(name) if pid not in set(tracked)]
        return [*processes.describe(tracked, "cgroup"), *processes.describe(by_root, "root")]

    def _pids_in(self, namespace: int) -> list[int]:
        """The processes that live in a mount namespace."""
        if self._namespaces is None:
            self._namespaces = {}
            for pid in processes.all_pids():
                try:
                    self._namespaces.setdefault(store.mount_namespace(pid), []).append(pid)
                except OSError:
                    continue
        return self._namespaces.get(namespace, [])

    def elsewhere(self, name: str, intent: dict[str, Any] | None) -> int:
        """A pid in the other mount namespace in which the instance is mounted, or 0 when it is not elsewhere.

        -1: it is mounted in one that has no process.
        """
        return self._found_elsewhere(name, intent)[0]

    def _found_elsewhere(self, name: str, intent: dict[str, Any] | None) -> tuple[int, Sequence[MountEntry]]:
        if self.is_mounted(name) or not intent or not intents.is_current(intent):
            return 0, []
        namespace = intent.get("namespace")
        if not namespace or namespace == store.mount_namespace():
            return 0, []
        for pid in self._pids_in(namespace):
            try:
                lines = _lines_by_instance(mounts.read_table(pid), self.run_dir).get(name)
            except OSError:
                continue
            entries = [mounts.parse_line(line) for line in lines or ()]
            if entries:  # a process that is chrooted sees its own part of the table only
                return pid, entries
        # A namespace may be kept without a process (nsenter(1) on a file); the disk tells whether it lives.
        return (-1 if unreleased(intent["disks"], settle=0, survey=self, name=name) else 0), []

    def state(self, name: str, intent: dict[str, Any] | None) -> InstanceState:
        """The instance's state; the intent only says whether a stop was asked for."""
        pid, there = self._found_elsewhere(name, intent)
        mounted = self.is_mounted(name) or pid != 0
        if self.is_populated(name) or (mounted and self.rooted(name)):
            return InstanceState.RUNNING
        if there:
            from chrootfw.system import holders

            if holders.rooted({entry.id: name for entry in there}):
                return InstanceState.RUNNING
        stopping = bool(intent and intents.is_current(intent) and intent["phase"] == "stopping")
        disks = intent["disks"] if intent else ()
        if stopping and (mounted or unreleased(disks, settle=0, survey=self, name=name)):
            return InstanceState.HELD
        return InstanceState.MOUNTED if mounted else InstanceState.ABSENT


def _seen(directory: str) -> Iterator[str | None]:
    """The mount points of an instance on which something is mounted, by mount IDs; ``None`` for one about which only the mount table can tell.

    The kernel takes a microsecond for each line of the table, however few are about this instance.
    """
    from chrootfw.system import syscalls

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
        if not os.path.isdir(os.path.dirname(directory)):
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
            continue
        except OSError:
            yield None


def _listed(directory: str) -> list[MountEntry] | None:
    """The mounts of an instance without the mount table; ``None`` if only that can tell."""
    from chrootfw.system import listmount

    places = []
    for place in _seen(directory):
        if place is None:
            return None
        places.append(place)
    try:
        return listmount.on(places)
    except OSError:
        return None


def _lines_by_instance(raw_table: bytes, run_dir: str) -> dict[str, list[bytes]]:
    """The lines of the mount table that are an instance's mounts; a verb parses those of the one that it is about."""
    found: dict[bytes, list[bytes]] = {}
    for line, below in mounts.lines_below(raw_table, os.fsencode(run_dir)):
        parts = below.split(b"/", 3)
        if parts[2:3] in _TREES:
            found.setdefault(parts[1], []).append(line)
    return {os.fsdecode(mounts.unescape(name)): lines for name, lines in found.items()}


def disks_of(entries: Sequence[mounts.MountEntry]) -> list[dict[str, Any]]:
    """The disk of an instance whose record is lost, as far as the mount table tells: a device, a loop device too.

    Only what is mounted on the root alone, and nowhere outside the instance: a bind of the host's own file system has
    the host's device, and everybody uses that.
    """
    elsewhere = _devices_outside(entries)
    return [
        {"kind": "block", "path": os.fsdecode(entry.source), "file": [0, 0], "devices": [entry.dev]}
        for entry in entries[:1]
        if entry.source.startswith(b"/dev/") and entry.root == b"/" and entry.dev not in elsewhere
    ]


def unreleased(
    recorded: Iterable[dict[str, Any]], *, settle: float, survey: Survey | None = None, name: str = ""
) -> list[str]:
    """The disks out of those recorded for which the proof that they are free fails (``disks.is_released``).

    With ``survey`` and ``name``: an image without a recorded loop device is free of that instance when others have mounted it: its start was ended
    before it had one that lasts.
    """
    held = []
    for disk in recorded:
        if disk["kind"] == "directory":
            continue
        from chrootfw.system import disks

        device, inode = disk["file"]
        if survey and disk["kind"] == "image" and disk.get("loop") is None:
            owners = survey.instances_on((device, inode), disk["path"])
            if owners and owners.isdisjoint((name, None)):
                continue
        if not disks.is_released(disk["kind"], disk["path"], (device, inode), disk.get("loop"), settle=settle):
            held.append(disk["path"])
    return held


def known_names(survey: Survey, config_dir: str) -> list[str]:
    """The names of what is present and of what is defined, sorted."""
    return sorted(survey.names() | set(defined_names(config_dir)))


def defined_names(config_dir: str) -> list[str]:
    """The names that have a definition file."""
    try:
        files = os.listdir(config_dir)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # the last for who is not root; verify tells
        return []
    return sorted(file[:-5] for file in files if file.endswith(".toml") and _is_name(file[:-5]))


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except InputError:
        return False
    return True


def read_intent(survey: Survey, name: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The intent, and notes on why it cannot be used."""
    try:
        return intents.load(survey.run_dir, name), []
    except (TrustError, NotSupported) as error:
        return None, [error.brief]
    except PermissionError:
        return None, ["its record can be read by root only"]


def show_all(run_dir: str, config_dir: str) -> list[InstanceInfo]:
    """Every instance, present or defined; ``holders`` are not looked for."""
    survey = Survey(run_dir)
    return [show(survey, name) for name in known_names(survey, config_dir)]


def show(survey: Survey, name: str) -> InstanceInfo:
    """One instance of a survey."""
    return show_with(survey, name, *read_intent(survey, name))


def show_with(survey: Survey, name: str, intent: dict[str, Any] | None, notes: Sequence[str] = ()) -> InstanceInfo:
    """The same, for who has read its intent already."""
    state = survey.state(name, intent)
    current = intent if intent and intents.is_current(intent) and state != InstanceState.ABSENT else None
    info = InstanceInfo(
        name,
        state,
        intents.root(survey.run_dir, name),
        disk=_disk(survey, name, current),
        started_at=_started_at(survey, name, current, state),
        tracking=survey.tracking,
        notes=notes,
    )
    if pid := survey.elsewhere(name, intent):
        whose = f"that of pid {pid}" if pid > 0 else "which has no process"
        info.namespace = f"mount namespace {intent['namespace'] if intent else '?'}, {whose}"
        info.notes = (*info.notes, f"lives in another mount namespace, {whose}: enter it with nsenter -m")
    if state == InstanceState.RUNNING:
        _account(survey, name, info)
    return info


def show_one(run_dir: str, config_dir: str, name: str) -> InstanceInfo:
    """One instance in full: mounts, holders, whether its definition has changed. Raises ``NotFoundError``."""
    check_name(name)
    survey = Survey(run_dir)
    if not survey.is_present(name) and name not in defined_names(config_dir):
        raise not_found(name, config_dir, known_names(survey, config_dir))
    intent, notes = read_intent(survey, name)
    info = show_with(survey, name, intent, notes)
    entries = survey.mounts(name)
    info.mounts = [_mount_dict(entry, info.root) for entry in entries]
    info.definition_changed = _definition_changed(intent, config_dir, name) if info.state != "absent" else False
    info.plugins = [_plugin_text(plugin) for plugin in (intent or {}).get("plugins", ())]
    if info.state != InstanceState.ABSENT and os.geteuid() == 0:
        own = set(survey.own(name))
        info.holders = [holder for holder in find_holders(entries, info.root, intent, own) if holder.pid not in own]
    return info


def all_processes(run_dir: str, config_dir: str, name: str) -> list[Process]:
    """The instance's own processes, then whoever else holds something of it. Raises ``NotFoundError``."""
    info = show_one(run_dir, config_dir, name)
    return [*Survey(run_dir).own_processes(name), *(info.holders or ())]


def find_holders(
    entries: Sequence[mounts.MountEntry],
    root: str,
    intent: dict[str, Any] | None,
    own: Iterable[int],
    only: Iterable[int] | None = None,
    *,
    devices_too: bool = True,
) -> list[Process]:
    """Who else uses the instance's mounts or device (``holders.find``)."""
    from chrootfw.system import holders

    held = holders.Held(entries, root, exclusive_devices(entries, intent))
    return holders.find(held, spare_own=own, only=only, devices_too=devices_too)


def exclusive_devices(entries: Sequence[mounts.MountEntry], intent: dict[str, Any] | None) -> set[int]:
    """The devices that are the instance's alone: its disk's, its in-memory file systems'; never the host's."""
    own = disk_devices(intent["disks"] if intent else disks_of(entries))
    return own | ({entry.dev for entry in entries} - _devices_outside(entries))


def _devices_outside(entries: Sequence[mounts.MountEntry]) -> set[int]:
    """The devices out of those of some mounts that other mounts have too."""
    ours = {entry.id for entry in entries}
    same = mounts.of_devices(mounts.read_table(), {entry.dev for entry in entries})
    return {entry.dev for entry in same if entry.id not in ours}


def disk_devices(recorded: Iterable[dict[str, Any]]) -> set[int]:
    """The devices of those disks that are not free yet: the number of one that was released is soon another's."""
    found: set[int] = set()
    for disk in recorded:
        if disk["kind"] != "directory" and disk["devices"] and unreleased([disk], settle=0):
            found.update(disk["devices"])
    return found


def not_found(name: str, config_dir: str, known: Iterable[str]) -> NotFoundError:
    """The error for a name that is neither present nor defined."""
    near = nearest(name, known)
    return NotFoundError(
        f"there is no instance {name}",
        [f"it is not running, and {config_dir}/{name}.toml does not exist"],
        f"did you mean {near}?" if near else "chrootfw list shows those that there are",
    )


def _plugin_text(plugin: dict[str, str]) -> str:
    return " ".join(filter(None, (plugin.get("name"), plugin.get("version"))))


def _disk(survey: Survey, name: str, intent: dict[str, Any] | None) -> str | None:
    if intent:
        disk: str | None = intent["instance"].get("disk")
        return disk
    root = os.fsencode(intents.root(survey.run_dir, name))
    for entry in survey.mounts(name) if survey.is_mounted(name) else ():
        if entry.mount_point == root:
            source = os.fsdecode(entry.source)
            if source.startswith("/dev/loop"):
                try:
                    with open(
                        f"/sys/block/{source[5:]}/loop/backing_file", encoding="utf-8", errors="surrogateescape"
                    ) as file:
                        return file.read().rstrip("\n")
                except OSError:
                    return source
            return source if source.startswith("/dev/") and entry.root == b"/" else None
    return None


def _started_at(survey: Survey, name: str, intent: dict[str, Any] | None, state: InstanceState) -> str | None:
    if intent:
        started: str | None = intent.get("started_at")
        return started
    if state == InstanceState.RUNNING:
        for path in survey.cgroups.get(name, ()):
            import time

            try:
                return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(os.stat(path).st_ctime))
            except FileNotFoundError:
                return None
    return None


def _account(survey: Survey, name: str, info: InstanceInfo) -> None:
    """Fill in processes, memory and CPU time from the best source there is."""
    paths = survey.cgroups.get(name, [])
    pids = survey.tracked(name) or survey.own(name)
    info.processes = len(pids)
    if not survey.is_populated(name):
        info.tracking = "root"
    v2 = paths if survey.counts_memory else []
    for source, groups in (("cgroup v2", v2), ("cgroup v1", survey.v1_groups.get(name, []))):
        counted = [count for group in groups if (count := cgroups.memory_bytes(group)) is not None]
        if counted:
            info.memory_bytes, info.memory_source = sum(counted), source
            break
    else:
        info.memory_bytes, info.memory_source = sum(_resident(pid) for pid in pids), "processes"
    seconds = [found for path in paths if (found := cgroups.cpu_seconds(path)) is not None]
    info.cpu_seconds = round(sum(seconds) if seconds else sum(_cpu(pid) for pid in pids), 6)


def _resident(pid: int) -> int:
    """Resident memory in bytes; shared pages count for each process that has them."""
    fields = processes.read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE if len(fields) > 1 else 0


def _cpu(pid: int) -> float:
    fields = processes.first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS if len(fields) > 12 else 0.0


def _mount_dict(entry: mounts.MountEntry, root: str) -> dict[str, object]:
    """A mount as ``info`` shows it: ``target`` inside the root; an auxiliary layer by its path on the host."""
    inside = os.fsdecode(entry.mount_point)
    if inside == root:
        inside = "/"
    elif inside.startswith(root + "/"):
        inside = inside[len(root) :]
    options = [*os.fsdecode(entry.options).split(",")]
    return {
        "target": inside,
        "source": os.fsdecode(entry.source),
        "fstype": os.fsdecode(entry.fstype),
        "options": options,
    }


def _definition_changed(intent: dict[str, Any] | None, config_dir: str, name: str) -> bool:
    if not intent or intent.get("definition") is None:
        return False
    try:
        now = store.read(f"{config_dir}/{name}.toml")
    except (OSError, TrustError):
        return True
    return now is None or bool(now.decode("utf-8", "surrogateescape") != intent["definition"])
