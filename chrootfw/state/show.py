"""Describe instances of a snapshot for list, info and ps."""

from __future__ import annotations

import os
import time

from chrootfw.errors import ChrootfwError, NotFoundError, PrivilegeError, TrustError, nearest
from chrootfw.linux import cgroups, files, mountinfo, network_namespace
from chrootfw.planning.paths import check_name
from chrootfw.state import output_record, ownership, record
from chrootfw.state import snapshot as snapshots
from chrootfw.state.ownership import OwnProcesses
from chrootfw.state.snapshot import Snapshot, is_name
from chrootfw.views import InstanceInfo, InstanceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from chrootfw.state import holders
    from chrootfw.state.record import RecordedPlugin, StartRecord


def known_names(run_dir: str, config_dir: str) -> list[str]:
    """Read the names of the instances that are present or defined, sorted."""
    return sorted(snapshots.read_names(run_dir) | set(defined_names(config_dir)))


def defined_names(config_dir: str) -> list[str]:
    """Read the names that have a definition file, sorted."""
    try:
        found = os.listdir(config_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        return []  # the caller is not root: `unread_definitions`
    return sorted(file[:-5] for file in found if file.endswith(".toml") and is_name(file[:-5]))


def unread_definitions(config_dir: str) -> str:
    """Say why the caller cannot read which instances are defined; empty if that can be read."""
    try:
        os.listdir(config_dir)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"the definitions in {config_dir} cannot be read: {error.strerror}"
    return ""


def defined_disk(config_dir: str, name: str) -> str | None:
    """Read the disk that a definition file names in a plain line, ``disk = "…"``.

    The parser of TOML takes longer to load than ``list`` takes for all instances.

    Args:
        config_dir: The directory of the definitions.
        name: The instance.

    Returns:
        The path; ``None`` where the file is not to be trusted, or has no such line.
    """
    try:
        data = files.read(f"{config_dir}/{name}.toml", files.DEFINITION_MAX)
        text = (data or b"").decode("utf-8")
    except (OSError, TrustError, UnicodeDecodeError):
        return None  # verify says why
    if '"""' in text or "'''" in text:
        return None  # a line may be part of a string
    for line in text.split("\n"):
        key, _, value = line.partition("=")
        if key.strip().startswith("["):
            return None  # what follows are keys of a table
        if key.strip() == "disk":
            quote, value = value.strip()[:1], value.strip()[1:]
            path, end, rest = value.partition(quote) if quote in ("'", '"') else ("", "", "")
            is_plain = end and "\\" not in path and rest.strip()[:1] in ("", "#")
            return path if is_plain else None
    return None


def _add_definition(info: InstanceInfo, config_dir: str) -> None:
    """Add what the definition of an absent instance says: its disk, or that it is not valid.

    What only plugins can tell of it, such as an unknown parameter, ``verify`` says.
    """
    if info.disk is None:
        info.disk = defined_disk(config_dir, info.name)
    if not os.path.lexists(f"{config_dir}/{info.name}.toml"):
        return
    from chrootfw import config

    try:
        config.read_definition(config_dir, info.name)
    except ChrootfwError as error:
        if not isinstance(error.__cause__, PermissionError):  # the caller is not root
            command = f"chrootfw plan start {info.name}"
            note = f"it cannot be started: {error.brief}; {command} shows all of it"
            info.notes = (*info.notes, note)


def show_all(run_dir: str, config_dir: str) -> list[InstanceInfo]:
    """Describe every instance that is present or defined, without its holders.

    An instance that cannot be read is shown with a note that says so, beside the others.

    Args:
        run_dir: The run directory.
        config_dir: The directory of the definitions.

    Raises:
        TrustError: A user other than root can change the run directory.
        PrivilegeError: The caller may not read an instance.
    """
    snapshot = snapshots.read_snapshot(run_dir)
    names = sorted(snapshot.names() | set(defined_names(config_dir)))
    own = ownership.read_all(snapshot, names)
    uncounted: list[tuple[InstanceInfo, Collection[int]]] = []
    found = [show_anyway(snapshot, name, own[name], uncounted) for name in names]
    try:
        _sum_memory(uncounted)
    except (ChrootfwError, OSError) as error:
        for info, _ in uncounted:
            info.notes = (*info.notes, _describe_unread(error))
    for info in found:
        if info.state == InstanceState.ABSENT:
            _add_definition(info, config_dir)
    return found


def show_anyway(
    snapshot: Snapshot,
    name: str,
    own: OwnProcesses | Exception,
    uncounted: list[tuple[InstanceInfo, Collection[int]]],
) -> InstanceInfo:
    """Describe an instance, with a note for what cannot be read of it.

    Args:
        snapshot: The state of the instance.
        name: The instance.
        own: Its own processes, or why they cannot be read (``read_all``).
        uncounted: As for ``show``.

    Raises:
        PrivilegeError: The caller may not read it.
    """
    try:
        if isinstance(own, Exception):
            raise own
        return show(snapshot, name, own, uncounted=uncounted)
    except PrivilegeError:
        raise
    except (ChrootfwError, OSError, ValueError, RecursionError) as error:
        state = InstanceState.MOUNTED if snapshot.is_mounted(name) else InstanceState.ABSENT
        return InstanceInfo(
            name,
            state,
            record.root(snapshot.run_dir, name),
            tracking=snapshot.tracking,
            notes=[_describe_unread(error)],
        )


def _describe_unread(error: Exception) -> str:
    reason = getattr(error, "brief", None) or getattr(error, "strerror", None) or str(error)
    return f"not all of it can be read: {reason}"


def show(
    snapshot: Snapshot,
    name: str,
    own: OwnProcesses | None = None,
    *,
    uncounted: list[tuple[InstanceInfo, Collection[int]]] | None = None,
) -> InstanceInfo:
    """Describe an instance, without its mounts and holders.

    Args:
        snapshot: The state of the instance.
        name: The instance.
        own: Its own processes, where the caller has read them (``read_running`` or more).
        uncounted: Receives the instance and its processes if no cgroup counts their memory: the
            caller reads that of all instances together. Without it, it is read here.
    """
    recorded = snapshot.record(name)
    own = own or ownership.Judge(snapshot, name).read_running()
    elsewhere = snapshot.find_elsewhere(name)
    state = ownership.read_state(snapshot, name, own=own, elsewhere=elsewhere)
    current = (
        recorded
        if recorded and recorded.is_of_this_boot() and state != InstanceState.ABSENT
        else None
    )
    info = InstanceInfo(
        name,
        state,
        record.root(snapshot.run_dir, name),
        disk=_disk(snapshot, name, current),
        network=_network(snapshot, name, current, state),
        started_at=_started_at(snapshot, name, current, state),
        tracking=snapshot.tracking,
        notes=snapshot.notes(name),
    )
    if elsewhere.is_mounted:
        whose = f"that of pid {elsewhere.pid}" if elsewhere.pid else "which has no process"
        info.namespace = f"mount namespace {recorded.namespace if recorded else '?'}, {whose}"
        info.notes = (
            *info.notes,
            f"runs in another mount namespace, {whose}: enter it with nsenter -m",
        )
    elif info.network and not network_namespace.is_pinned(info.network):
        note = (
            f"its network namespace is no longer pinned at {info.network}, so exec, shell and"
            f" reboot cannot enter it: chrootfw stop {name}, then start it again"
        )
        info.network = None
        info.notes = (*info.notes, note)
    if pending := pending_undos(recorded, state):
        info.pending_undos = tuple(pending)
        note = (
            f"{count_undos(pending)} pending: chrootfw cleanup {name} tries again; with --forget it"
            " gives up what cannot be undone"
        )
        info.notes = (*info.notes, note)
    if current and current.phase == "starting":
        info.notes = (*info.notes, "its start is under way, or was interrupted")
    if state == InstanceState.RUNNING:
        alone: list[tuple[InstanceInfo, Collection[int]]] = []
        _account(snapshot, name, info, own, alone if uncounted is None else uncounted)
        _sum_memory(alone)
    if state == InstanceState.MOUNTED and current and current.phase == "started":
        info.ended = current.left_process
    return info


def pending_undos(recorded: StartRecord | None, state: InstanceState) -> list[str]:
    """Describe the Steps that a stop, a cleanup or an earlier boot has left, the next first.

    While a start is under way, and until a stop is requested, the Steps of the record are in use.

    Args:
        recorded: The start record; ``None`` if there is none.
        state: The instance's state.
    """
    if recorded is None or (
        recorded.is_of_this_boot()
        and (
            recorded.phase == "starting" or state in (InstanceState.RUNNING, InstanceState.MOUNTED)
        )
    ):
        return []
    return [step.describe() for step in reversed(recorded.steps)]


def count_undos(pending: Sequence[str]) -> str:
    """Return the number of undos with its noun and verb, as in ``2 undos are``."""
    return "1 undo is" if len(pending) == 1 else f"{len(pending)} undos are"


def show_one(run_dir: str, config_dir: str, name: str) -> InstanceInfo:
    """Describe an instance in full: mounts, holders, whether its definition has changed.

    Holders are searched for as root only, since the processes of others cannot be read otherwise.

    Args:
        run_dir: The run directory.
        config_dir: The directory of the definitions.
        name: The instance.

    Raises:
        InputError: The name is not valid.
        NotFoundError: The instance is neither present nor defined.
    """
    return _show_with_own(run_dir, config_dir, name)[0]


def _show_with_own(
    run_dir: str, config_dir: str, name: str
) -> tuple[InstanceInfo, OwnProcesses, list[mountinfo.MountEntry]]:
    """Describe an instance in full, and return its own processes and its mounts too."""
    check_name(name)
    snapshot = snapshots.read_instance(run_dir, name)
    if not snapshot.is_present(name) and name not in defined_names(config_dir):
        raise not_found(name, config_dir, known_names(run_dir, config_dir))
    from chrootfw.state import copies, holders

    recorded = snapshot.record(name)
    own_processes = ownership.Judge(snapshot, name).read_own()
    info = show(snapshot, name, own_processes)
    if info.state == InstanceState.ABSENT:
        _add_definition(info, config_dir)
    entries = snapshot.read_mounts(name)
    info.mounts = [_mount_dict(entry, info.root) for entry in entries]
    info.definition_changed = (
        is_definition_changed(recorded, config_dir, name) if info.state != "absent" else False
    )
    if info.state != InstanceState.ABSENT and (output := output_record.read(run_dir, name)):
        info.log = output.to_dict()
    info.plugins = [_plugin_text(plugin) for plugin in (recorded.plugins if recorded else ())]
    if info.state != InstanceState.ABSENT and os.geteuid() == 0:
        own = set(own_processes.pids)
        stay = (
            copies.find_copies(name, recorded)
            if recorded and info.state == InstanceState.HELD and not entries
            else []
        )
        ids = [each.entry.id for each in stay if each.entry]
        found = holders.find_holders(entries, info.root, recorded, own, ids=ids)
        others = [each for each in found if each.pid not in own]
        namespaces = copies.list_namespaces(stay, others)
        info.holders = holders.Holders([*others, *namespaces], found.unexamined)
        info.notes = (*info.notes, *found.describe_unexamined())
    return info, own_processes, entries


def all_processes(run_dir: str, config_dir: str, name: str) -> holders.Holders:
    """Find an instance's own processes and its outside holders, in this order, with details.

    Args:
        run_dir: The run directory.
        config_dir: The directory of the definitions.
        name: The instance.

    Raises:
        InputError: The name is not valid.
        NotFoundError: The instance is neither present nor defined.
    """
    return _read_processes(*_show_with_own(run_dir, config_dir, name)[:2])


def read_tree(
    run_dir: str, config_dir: str, name: str
) -> tuple[InstanceInfo, list[dict[str, object]], holders.Holders]:
    """Describe an instance in full, with each mount's place in the tree, and its processes.

    Args:
        run_dir: The run directory.
        config_dir: The directory of the definitions.
        name: The instance.

    Returns:
        The instance; its mounts as in ``InstanceInfo.mounts``, each also with its ``id`` and that
        of its ``parent``; its own processes and its outside holders.

    Raises:
        InputError: The name is not valid.
        NotFoundError: The instance is neither present nor defined.
    """
    info, own, entries = _show_with_own(run_dir, config_dir, name)
    mounts = [
        {"id": entry.id, "parent": entry.parent, **_mount_dict(entry, info.root)}
        for entry in entries
    ]
    return info, mounts, _read_processes(info, own)


def _read_processes(info: InstanceInfo, own: OwnProcesses) -> holders.Holders:
    from chrootfw.state import holders, process_details

    unexamined = info.holders.unexamined if isinstance(info.holders, holders.Holders) else ()
    found = [*own.describe(), *(info.holders or ())]
    return holders.Holders(process_details.add_details(found, info.root), unexamined)


def not_found(name: str, config_dir: str, known: Iterable[str]) -> NotFoundError:
    """Return the error for a name that has no definition, and of which nothing is known."""
    known = list(known)
    missing = unread_definitions(config_dir) or f"{config_dir}/{name}.toml does not exist"
    if name in known:
        return NotFoundError(
            f"{name} has no definition",
            [f"it is mounted, and {missing}"],
            f"chrootfw start {name} --disk DISK, with the disk that chrootfw info {name} shows",
        )
    near = nearest(name, known)
    return NotFoundError(
        f"there is no instance {name}",
        [f"it is not running, and {missing}"],
        f"did you mean {near}?"
        if near
        else f"chrootfw list shows them; chrootfw start {name} --disk PATH makes a new one",
    )


def _plugin_text(plugin: RecordedPlugin) -> str:
    return " ".join(filter(None, (plugin.name, plugin.version)))


def _disk(snapshot: Snapshot, name: str, recorded: StartRecord | None) -> str | None:
    if recorded:
        return recorded.disk
    root = os.fsencode(record.root(snapshot.run_dir, name))
    for entry in snapshot.read_mounts(name) if snapshot.is_mounted(name) else ():
        if entry.mount_point == root:
            source = os.fsdecode(entry.source)
            if source.startswith("/dev/loop"):
                try:
                    with open(
                        f"/sys/block/{source[5:]}/loop/backing_file",
                        encoding="utf-8",
                        errors="surrogateescape",
                    ) as file:
                        return file.read().rstrip("\n")
                except OSError:
                    return source  # the loop device was detached meanwhile
            return source if source.startswith("/dev/") and entry.root == b"/" else None
    return None


def _network(
    snapshot: Snapshot, name: str, recorded: StartRecord | None, state: InstanceState
) -> str | None:
    """Return where the network namespace of an instance is pinned, or was at its start."""
    path = record.network(snapshot.run_dir, name)
    if state == InstanceState.ABSENT:
        return None
    if recorded:
        return path if recorded.network == "pinned" else None
    return path if os.path.lexists(path) else None


def _started_at(
    snapshot: Snapshot, name: str, recorded: StartRecord | None, state: InstanceState
) -> str | None:
    if recorded:
        return recorded.started_at
    if state == InstanceState.RUNNING:
        for path in snapshot.groups(name):
            try:
                return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(os.stat(path).st_ctime))
            except FileNotFoundError:
                return None  # the instance was stopped meanwhile
    return None


def count_memory(snapshot: Snapshot, name: str) -> tuple[int, str] | None:
    """Read what the cgroups of an instance count: from v2, else from v1.

    Args:
        snapshot: Where its cgroups are.
        name: The instance.

    Returns:
        The bytes, and which cgroups count them; ``None`` without a memory controller.
    """
    v2 = snapshot.groups(name) if snapshot.counts_memory else ()
    for source, groups in (("cgroup v2", v2), ("cgroup v1", snapshot.memory_groups(name))):
        counted = [count for group in groups if (count := cgroups.memory_bytes(group)) is not None]
        if counted:
            return sum(counted), source
    return None


def _account(
    snapshot: Snapshot,
    name: str,
    info: InstanceInfo,
    own: OwnProcesses,
    uncounted: list[tuple[InstanceInfo, Collection[int]]],
) -> None:
    """Fill in processes, CPU time, and the memory that cgroups count (`count_memory`).

    Where none does, the instance and its processes are added to those that are uncounted.
    """
    paths = snapshot.groups(name)
    pids = own.tracked or own.pids
    info.processes = len(pids)
    if not own.is_populated:
        info.tracking = "root"
    if counted := count_memory(snapshot, name):
        info.memory_bytes, info.memory_source = counted
    else:
        uncounted.append((info, pids))
    seconds = [found for path in paths if (found := cgroups.cpu_seconds(path)) is not None]
    if not seconds:
        from chrootfw.state.process_details import read_cpu_seconds

        seconds = list(map(read_cpu_seconds, pids))
    info.cpu_seconds = round(sum(seconds), 6)


def _sum_memory(uncounted: Sequence[tuple[InstanceInfo, Collection[int]]]) -> None:
    """Fill in the memory of instances, summed up by process."""
    if uncounted:
        from chrootfw.state import process_details

        memory = process_details.sum_memory([pids for _, pids in uncounted])
        for (info, _), size in zip(uncounted, memory, strict=True):
            info.memory_bytes, info.memory_source = size, "processes"


def _mount_dict(entry: mountinfo.MountEntry, root: str) -> dict[str, object]:
    """Describe a mount as ``info`` shows it.

    ``target`` is inside the root; that of an auxiliary layer is its path on the host.
    """
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


def is_definition_changed(recorded: StartRecord | None, config_dir: str, name: str) -> bool:
    """Return whether the definition is another than the one that the record was made from."""
    if not recorded or recorded.definition is None:
        return False
    try:
        now = files.read(f"{config_dir}/{name}.toml", files.DEFINITION_MAX)
    except (OSError, TrustError):
        return True  # the next start cannot read it, and verify says why
    return now is None or bool(now.decode("utf-8", "surrogateescape") != recorded.definition)
