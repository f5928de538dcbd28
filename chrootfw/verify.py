"""Is this machine fit for chrootfw? One ``Check`` for each thing looked at; nothing is changed."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator

from chrootfw import config, intents, inventory
from chrootfw.errors import ChrootfwError, TrustError
from chrootfw.plugins import Registry
from chrootfw.stages import Stages
from chrootfw.system import cgroups, deadlines, mounts, store, syscalls
from chrootfw.views import Check, InstanceState

_FLOOR = (5, 14)
#: Seconds for a disk to answer here.
_DISK_ANSWERS = 5.0


def checks(run_dir: str, config_dir: str, registry: Registry) -> list[Check]:
    """All checks, in the order in which a start would meet them."""
    return [
        *_privileges(),
        *_kernel(),
        *_cgroup(),
        *_loops(),
        *_directory("run directory", run_dir, missing="it is made at the first start"),
        *_directory("definitions", config_dir, missing="instances can still be started with --disk"),
        *_propagation(run_dir),
        *_space(run_dir),
        *_plugins(registry),
        *_definitions(config_dir, registry),
        *_instances(run_dir),
    ]


def _privileges() -> Iterator[Check]:
    if os.geteuid() == 0:
        yield Check("privileges", "ok", "running as root")
    else:
        yield Check("privileges", "error", f"running as user {os.geteuid()}, not root", "run it with sudo, or as root")


def _kernel() -> Iterator[Check]:
    release, version = syscalls.RELEASE, syscalls.kernel()
    if version < _FLOOR:
        yield Check("kernel", "error", f"Linux {release}", "chrootfw needs Linux 5.14 or newer")
    else:
        how = "built on a detached mount" if version >= (6, 15) else "built in a mount namespace of their own"
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
            missing = error.errno == errno.ENOSYS
            hint = "a seccomp filter or an old kernel hides it" if missing else "it needs CAP_SYS_ADMIN"
            yield Check(name, "error", f"{name} does not work: {error.strerror}", hint)
        else:
            yield Check(name, "ok", f"{name} works")
    try:
        ctypes.CDLL("libblkid.so.1")
    except OSError:
        yield Check("libblkid", "warning", "libblkid.so.1 is missing", "install util-linux's libblkid, or set fstype")
    else:
        yield Check("libblkid", "ok", "file system types can be found")


def _cgroup() -> Iterator[Check]:
    raw = mounts.read_table()
    top = cgroups.hierarchies(lambda: raw)[0]
    if top is None or not cgroups.is_writable(top):
        state = (
            "no cgroup v2 hierarchy is mounted"
            if top is None
            else f"the cgroup v2 hierarchy at {top} cannot be written"
        )
        yield Check(
            "cgroup", "warning", f"{state}; own processes are found by their root directory",
            "mount cgroup2: tracking is then quicker, and a fork bomb ends at once",
        )  # fmt: skip
        return
    yield Check("cgroup", "ok", f"cgroup v2 at {top} can be written: own processes are tracked by cgroup")
    try:
        with open(f"{top}/cgroup.controllers", encoding="utf-8") as file:
            controllers = file.read().split()
    except OSError:
        controllers = []
    if "memory" in controllers:
        yield Check("memory accounting", "ok", "by cgroup v2")
    else:
        yield Check("memory accounting", "ok", "summed up by process: cgroup v2 has no memory controller here")


def _loops() -> Iterator[Check]:
    if os.path.exists("/dev/loop-control"):
        yield Check("loop devices", "ok", "/dev/loop-control is there")
    else:
        yield Check(
            "loop devices", "warning", "/dev/loop-control is missing: image files cannot be used", "modprobe loop"
        )


def _directory(name: str, path: str, *, missing: str) -> Iterator[Check]:
    if not os.path.lexists(path):
        yield Check(name, "ok", f"{path} does not exist; {missing}")
        return
    try:
        store.check_trusted(path, what=name)
        if not os.path.isdir(path):
            yield Check(name, "error", f"{path} is not a directory", "move it away")
            return
        if os.geteuid() == 0 and not os.access(path, os.W_OK) and name == "run directory":
            yield Check(name, "error", f"{path} cannot be written", "is its file system mounted read-only?")
            return
    except (ChrootfwError, OSError) as error:
        yield Check(name, "error", getattr(error, "brief", str(error)), getattr(error, "hint", ""))
    else:
        yield Check(name, "ok", f"{path} belongs to root alone")


def _propagation(run_dir: str) -> Iterator[Check]:
    entry = mounts.containing(os.fsencode(os.path.realpath(run_dir)), mounts.table())
    if entry is None:
        return
    kind = mounts.propagation(entry)
    where = f"the run directory lies on a {kind} mount ({os.fsdecode(entry.mount_point)})"
    if kind == "shared":
        yield Check("mount propagation", "ok", f"{where}: an unmount reaches every mount namespace")
    else:
        yield Check(
            "mount propagation", "warning",
            f"{where}: a mount namespace made while an instance runs keeps a copy of its mounts",
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
            "space", "error", f"{place} has {free >> 10} KiB and {space.f_favail} inodes free", f"make room: df {place}"
        )
    else:
        yield Check("space", "ok", f"{place} has {free >> 20} MiB free")


def _plugins(registry: Registry) -> Iterator[Check]:
    for failure in registry.failures:
        yield Check("plugin", "error", failure.brief, failure.hint)
    third = [record for record in registry.records.values() if not record.ours]
    names = ", ".join(record.describe().removeprefix("plugin ") for record in third)
    yield Check(
        "plugins", "ok", f"{len(registry.records)} loaded" + (f", besides the defaults: {names}" if names else "")
    )


def _definitions(config_dir: str, registry: Registry) -> Iterator[Check]:
    for name in inventory.defined_names(config_dir):
        try:
            found = config.read_definition(config_dir, name)
            if found is None:
                continue
            own = registry.for_instance(found[0].plugins)
            own.check_loaded()
            try:
                stages = Stages(own, lambda _event: None)
                config.resolve(found[0], stages.parameters(), stages.check_parameter)
            except ChrootfwError as error:
                raise config.with_place(error, config_dir, name, found[1]) from error  # type: ignore[arg-type]
        except ChrootfwError as error:
            yield Check(f"definition {name}", "error", error.brief, error.hint)
            continue
        yield _disk(name, found[0].disk)


def _disk(name: str, disk: str | None) -> Check:
    what = f"definition {name}"
    if disk is None:
        return Check(what, "ok", "well formed")
    try:
        deadlines.check_answers(disk, seconds=_DISK_ANSWERS)
    except deadlines.Overdue as error:
        return Check(what, "error", f"its disk {disk} does not answer: {error.strerror}", error.describe())
    if not os.path.exists(disk):
        return Check(what, "warning", f"its disk {disk} does not exist", "make it, or correct the definition")
    return Check(what, "ok", "well formed")


def _instances(run_dir: str) -> Iterator[Check]:
    try:
        survey = inventory.Survey(run_dir)
    except TrustError:
        return  # the check of the run directory says so
    for name in sorted(survey.names()):
        intent, notes = inventory.read_intent(survey, name)
        for note in notes:
            yield Check(f"instance {name}", "error", note)
        info = inventory.show(survey, name)
        if info.state == InstanceState.HELD:
            yield Check(
                f"instance {name}", "warning", "held: an earlier stop is not finished", f"chrootfw cleanup {name}"
            )
        elif intent and intents.is_current(intent) and intent["phase"] == "starting":
            yield Check(
                f"instance {name}",
                "warning",
                "its start is under way, or was interrupted",
                f"if none is: chrootfw stop {name}",
            )
        elif info.state == InstanceState.ABSENT:
            yield Check(
                f"instance {name}", "warning", "absent, but something of it is left", f"chrootfw cleanup {name}"
            )
        elif intent is None and not notes:
            yield Check(
                f"instance {name}",
                "warning",
                f"{info.state}, but the record of its start is lost",
                f"chrootfw stop {name} still works",
            )
        else:
            yield Check(f"instance {name}", "ok", str(info.state))
