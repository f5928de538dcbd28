"""Check whether this machine is fit for chrootfw. Nothing is changed."""

from __future__ import annotations

import ctypes
import errno
import os
import shlex
from collections.abc import Callable, Iterator

from chrootfw import config
from chrootfw.errors import ChrootfwError, InputError, PrivilegeError, TrustError
from chrootfw.hooks.dispatch import Dispatcher
from chrootfw.hooks.registry import Registry
from chrootfw.linux import (
    block_devices,
    capabilities,
    cgroups,
    deadlines,
    files,
    mountinfo,
    native,
    syscalls,
)
from chrootfw.linux.process_settings import ProcessSettings
from chrootfw.state import ownership, show
from chrootfw.state import snapshot as snapshots
from chrootfw.views import Check, InstanceState

_OLDEST_KERNEL = (5, 14)
#: Leftovers that a line names.
_SHOWN_MAX = 5
#: Seconds for a disk to answer.
_ANSWER_TIMEOUT = 5.0

#: Of what an ordinary user cannot try.
_NOT_CHECKED, _AS_ROOT = "not checked: it takes the root user", "run it with sudo, or as root"


def checks(run_dir: str, config_dir: str, registry: Registry) -> list[Check]:
    """Make every check, in the order in which a start would meet the problems.

    Args:
        run_dir: The run directory.
        config_dir: The directory of the definitions.
        registry: The loaded plugins.

    Returns:
        One or more results for each thing that is checked, problems or not.
    """
    return [
        *_privileges(),
        *_kernel(),
        *_native(),
        *_limits(),
        *_cgroup(),
        *_loops(),
        *_directory("run directory", run_dir, missing="it is made at the first start"),
        *_directory(
            "definitions",
            config_dir,
            missing="instances can still be started without one",
        ),
        *_propagation(run_dir),
        *_space(run_dir),
        *_plugins(registry),
        *_definitions(config_dir, registry),
        *_instances(run_dir),
    ]


def _privileges() -> Iterator[Check]:
    if os.geteuid() == 0 and (reason := capabilities.missing()):
        status = "warning" if capabilities.may_administer() else "error"
        yield Check("privileges", status, f"running as root, but {reason}", capabilities.HINT)
    elif os.geteuid() == 0:
        yield Check("privileges", "ok", "running as root")
    else:
        yield Check(
            "privileges",
            "error",
            f"running as user {os.geteuid()}, not root",
            _AS_ROOT,
        )


def _limits() -> Iterator[Check]:
    settings = ProcessSettings({})
    if short := settings.shortfalls():
        yield Check(
            "limits",
            "warning",
            f"instances get less than the defaults: {'; '.join(short)}",
            "start them with CAP_SYS_RESOURCE and CAP_SYS_NICE, or from a shell without such"
            " limits (ulimit -a)",
        )
    elif lowered := settings.lowered_hard_limits():
        yield Check(
            "limits", "ok", f"without CAP_SYS_RESOURCE, hard limits are lower: {', '.join(lowered)}"
        )
    else:
        yield Check("limits", "ok", "instances get the defaults, or their own")


def _kernel() -> Iterator[Check]:
    release, version = syscalls.RELEASE, syscalls.kernel()
    if version < _OLDEST_KERNEL:
        yield Check("kernel", "error", f"Linux {release}", "chrootfw needs Linux 5.14 or newer")
    else:
        how = (
            "built on a detached mount"
            if version >= (6, 15)
            else "built in a mount namespace of their own"
        )
        yield Check("kernel", "ok", f"Linux {release}; mount trees are {how}")
    probes: tuple[tuple[str, Callable[[], int]], ...] = (
        ("mount API", lambda: syscalls.open_tree(syscalls.AT_FDCWD, "/")),
        ("openat2", lambda: syscalls.openat2(syscalls.AT_FDCWD, "/", os.O_PATH, 0)),
        ("pidfd", lambda: os.pidfd_open(os.getpid())),
    )
    for name, probe in probes:
        try:
            os.close(probe())
        except OSError as error:
            if isinstance(error, PermissionError) and os.geteuid() != 0:
                yield Check(name, "warning", _NOT_CHECKED, _AS_ROOT)
                continue
            if error.errno == errno.ENOSYS:
                hint = "a seccomp filter or an old kernel hides it"
            else:
                hint = (
                    capabilities.HINT
                    if capabilities.missing()
                    else "a security policy refuses it: dmesg may say more"
                )
            yield Check(name, "error", f"{name} does not work: {error.strerror}", hint)
        else:
            yield Check(name, "ok", f"{name} works")
    try:
        ctypes.CDLL("libblkid.so.1")
    except OSError:
        yield Check(
            "libblkid",
            "warning",
            "libblkid.so.1 is missing",
            "install util-linux's libblkid, or set fstype",
        )
    else:
        yield Check("libblkid", "ok", "file system types can be found")


def _native() -> Iterator[Check]:
    if native.MODULE is not None:
        yield Check("native helper", "ok", "in use")
    else:
        yield Check("native helper", "ok", f"not in use ({native.REASON}): verbs take longer")


def _cgroup() -> Iterator[Check]:
    top = cgroups.hierarchies(mountinfo.Table)[0]
    if top is not None and os.geteuid() != 0:
        yield Check("cgroup", "warning", _NOT_CHECKED, _AS_ROOT)
        return
    if top is None or not cgroups.is_writable(top):
        state = (
            "no cgroup v2 hierarchy is mounted"
            if top is None
            else f"the cgroup v2 hierarchy at {top} cannot be written"
        )
        yield Check(
            "cgroup", "warning", f"{state}; own processes are found by the root that they run in",
            "mount cgroup2: tracking is then quicker, and a fork bomb ends at once",
        )  # fmt: skip
        return
    yield Check("cgroup", "ok", f"cgroup v2 at {top} can be written: own processes are found by it")
    try:
        with open(f"{top}/cgroup.controllers", encoding="utf-8") as file:
            controllers = file.read().split()
    except OSError as error:
        yield Check(
            "memory accounting", "warning", f"{top}/cgroup.controllers cannot be read:"
            f" {error.strerror}", f"cat {top}/cgroup.controllers",
        )  # fmt: skip
        return
    if "memory" in controllers:
        yield Check("memory accounting", "ok", "by cgroup v2")
    else:
        yield Check(
            "memory accounting",
            "ok",
            "summed up by process: cgroup v2 has no memory controller here",
        )


def _loops() -> Iterator[Check]:
    if os.path.exists("/dev/loop-control"):
        yield Check("loop devices", "ok", "/dev/loop-control is there")
    else:
        yield Check(
            "loop devices",
            "warning",
            "/dev/loop-control is missing: image files cannot be used",
            "modprobe loop",
        )


def _directory(name: str, path: str, *, missing: str) -> Iterator[Check]:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        yield Check(name, "ok", f"{path} does not exist; {missing}")
        return
    except OSError as error:
        yield Check(name, "error", f"cannot look at {path}: {error.strerror}", _AS_ROOT)
        return
    try:
        files.check_trusted(path, what=name)
        if not os.path.isdir(path):
            yield Check(name, "error", f"{path} is not a directory", "move it away")
            return
        if os.geteuid() == 0 and not os.access(path, os.W_OK) and name == "run directory":
            yield Check(
                name, "error", f"{path} cannot be written", "is its file system mounted read-only?"
            )
            return
    except (ChrootfwError, OSError) as error:
        yield Check(name, "error", getattr(error, "brief", str(error)), getattr(error, "hint", ""))
    else:
        yield Check(name, "ok", f"{path} belongs to root alone")


def _propagation(run_dir: str) -> Iterator[Check]:
    entry = mountinfo.containing(os.fsencode(os.path.realpath(run_dir)), mountinfo.entries())
    if entry is None:
        return
    kind = mountinfo.propagation(entry)
    where = f"the run directory lies on a {kind} mount ({os.fsdecode(entry.mount_point)})"
    if kind == "shared":
        yield Check(
            "mount propagation",
            "ok",
            f"{where}: an unmount reaches the mount namespaces that receive it",
        )
    else:
        yield Check(
            "mount propagation", "warning",
            f"{where}: a mount namespace made while an instance runs keeps a copy of its mounts"
            " until a stop unmounts it there",
            f"mount --make-shared {os.fsdecode(entry.mount_point)} (systemd does that at boot)",
        )  # fmt: skip


def _space(run_dir: str) -> Iterator[Check]:
    place = run_dir
    while not os.path.exists(place):
        place = os.path.dirname(place)
    space = os.statvfs(place)
    free = space.f_bavail * space.f_frsize
    if free < 1 << 20 or (space.f_files and space.f_favail < 64):
        yield Check(
            "space",
            "error",
            f"{place} has {free >> 10} KiB and {space.f_favail} inodes free",
            f"free space: df {place}",
        )
    else:
        yield Check("space", "ok", f"{place} has {free >> 20} MiB free")


def _plugins(registry: Registry) -> Iterator[Check]:
    for failure in registry.failures:
        yield Check("plugin", "error", failure.brief, failure.hint)
    third = [record for record in registry.records.values() if not record.is_first_party]
    names = ", ".join(record.describe().removeprefix("plugin ") for record in third)
    yield Check(
        "plugins",
        "ok",
        f"{len(registry.records)} loaded" + (f", besides the defaults: {names}" if names else ""),
    )


def _definitions(config_dir: str, registry: Registry) -> Iterator[Check]:
    for name in show.defined_names(config_dir):
        try:
            found = config.read_definition(config_dir, name)
            if found is None:
                continue
            own = registry.for_instance(found[0].plugins)
            own.check_loaded()
            try:
                stages = Dispatcher(own, lambda _event: None)
                config.resolve(found[0], stages.parameters(), stages.check_parameter)
            except InputError as error:
                raise config.with_place(error, config_dir, name, found[1]) from error
        except ChrootfwError as error:
            yield Check(f"definition {name}", "error", error.brief, error.hint)
            continue
        yield _disk(name, found[0].disk)


def _disk(name: str, disk: str | None) -> Check:
    what = f"definition {name}"
    if disk is None:
        return Check(what, "ok", "well formed")
    try:
        deadlines.check_answers(disk, seconds=_ANSWER_TIMEOUT)
    except deadlines.DeadlineExceeded as error:
        return Check(
            what, "error", f"its disk {disk} does not answer: {error.strerror}", error.describe()
        )
    if not os.path.exists(disk):
        return Check(
            what, "warning", f"its disk {disk} does not exist", "make it, or correct the definition"
        )
    try:
        why = block_devices.exposed(block_devices.way_to(disk, seconds=_ANSWER_TIMEOUT))
    except ChrootfwError as error:
        return Check(what, "error", error.brief, error.hint)
    if why:
        brief = f"its disk {disk} can be exchanged by others than root: {why}"
        return Check(
            what,
            "warning",
            brief,
            "chown root and chmod go-w what it names, or keep the disk elsewhere",
        )
    return Check(what, "ok", "well formed")


def _instances(run_dir: str) -> Iterator[Check]:
    try:
        snapshot = snapshots.read_snapshot(run_dir)
    except (TrustError, PrivilegeError):
        return  # the check of the run directory says so
    names = sorted(snapshot.names())
    own = ownership.read_all(snapshot, names)
    for name in names:
        try:
            yield from _instance(snapshot, name, own[name])
        except (ChrootfwError, OSError, ValueError) as error:
            reason = getattr(error, "brief", None) or getattr(error, "strerror", None) or str(error)
            yield Check(
                f"instance {name}",
                "error",
                f"not all of it can be read: {reason}",
                getattr(error, "hint", "") or "",
            )
    yield from _leftovers(snapshot)


def _instance(
    snapshot: snapshots.Snapshot, name: str, own: ownership.OwnProcesses | Exception
) -> Iterator[Check]:
    record, notes = snapshot.record(name), snapshot.notes(name)
    for note in notes:
        yield Check(f"instance {name}", "error", note)
    if isinstance(own, Exception):
        raise own
    info = show.show(snapshot, name, own)
    if info.pending_undos:
        yield Check(
            f"instance {name}",
            "warning",
            f"{show.count_undos(info.pending_undos)} pending: {'; '.join(info.pending_undos)}",
            f"chrootfw cleanup {name} tries again, chrootfw cleanup {name} --forget gives it up",
        )
    if info.state == InstanceState.HELD:
        yield Check(
            f"instance {name}",
            "warning",
            "held: an earlier stop is not finished",
            f"chrootfw cleanup {name}",
        )
    elif record and record.is_of_this_boot() and record.phase == "starting":
        yield Check(
            f"instance {name}",
            "warning",
            "its start is under way, or was interrupted",
            f"if none is: chrootfw stop {name}",
        )
    elif info.state == InstanceState.ABSENT:
        yield Check(
            f"instance {name}",
            "warning",
            "absent, but something of it is left",
            f"chrootfw cleanup {name}",
        )
    elif record is None and not notes:
        yield Check(
            f"instance {name}",
            "warning",
            f"{info.state}, but the record of its start is lost",
            f"chrootfw stop {name} still works",
        )
    elif info.ended:
        yield Check(
            f"instance {name}",
            "warning",
            "mounted: all the processes that its start left have ended",
            f"chrootfw logs {name} shows what they printed; chrootfw reboot {name} starts them",
        )
    else:
        yield Check(f"instance {name}", "ok", str(info.state))


def _leftovers(snapshot: snapshots.Snapshot) -> Iterator[Check]:
    """Warn of cgroups that are named like instances and belong to none.

    A crash left them, or the root user of an instance made them.
    """
    try:
        found = [path for name in snapshot.cgroups for path in snapshot.leftovers(name)]
        found += [
            shlex.quote(path) if path.isprintable() else ascii(path)
            for path in snapshot.cgroups.others()
        ]
    except ChrootfwError as error:
        yield Check("leftover cgroups", "warning", error.brief, error.hint)
        return
    if found:
        shown = ", ".join(found[:_SHOWN_MAX]) + (" …" if len(found) > _SHOWN_MAX else "")
        yield Check(
            "leftover cgroups", "warning", f"{len(found)} belong to no instance: {shown}",
            f"see cgroup.procs in there; when it is empty: rmdir {found[0]}",
        )  # fmt: skip
