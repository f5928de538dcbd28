"""The stage ``mount``: an instance's disks looked at, its tree mounted, and what that made taken back."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chrootfw import debts, intents, unmounting
from chrootfw.errors import DiskError, PlanError, StepError
from chrootfw.jobs import Job
from chrootfw.model import MountPoint, Step
from chrootfw.system import disks, loops, statuses, store, syscalls, trees
from chrootfw.system.root import Root

#: ``(plugin, mount point)`` pairs, parents first.
Points = Sequence[tuple[str, MountPoint]]


def check_disks(job: Job, points: Points, lock_disk: Callable[[disks.Disk], None]) -> list[dict[str, Any]]:
    """Identify, lock and check every disk in the tree; nothing is touched yet. Raises ``DiskError``."""
    found = []
    keys: dict[str, str] = {}
    for _, point in points:
        disk = disk_of(job, point)
        if disk is None:
            continue
        disks.check_place(disk, job.run_dir)
        if disk.key in keys:
            raise PlanError(f"{job.name} would mount one disk twice: {keys[disk.key]} and {disk.path}")
        keys[disk.key] = disk.path
        lock_disk(disk)
        users = disks.users(disk)
        users += [f"the root of instance {other}" for other in _instances_on(job, disk)]
        if users:
            raise DiskError(
                f"the disk {disk.path} is already in use: {name_users(job, users)}",
                hint="an image or device is mounted once only: stop or unmount its other user first",
            )
        found.append(_disk_record(disk))
    return found


def describe_disks(job: Job, points: Points) -> list[dict[str, Any]]:
    """The disks of an instance whose record is lost, with the devices that are mounted now."""
    devices = [entry.dev for entry in unmounting.root_mounts(job, job.survey().mounts(job.name))]
    found = [_disk_record(disk) for _, point in points if (disk := disk_of(job, point))]
    for record in found[:1]:
        record["devices"] = devices
    return found


def _disk_record(disk: disks.Disk) -> dict[str, Any]:
    return {
        "kind": disk.kind,
        "path": disk.path,
        "file": [disk.dev, disk.ino],
        "devices": [disk.rdev] if disk.kind == "block" else [],
        "loop": None,
    }


def disk_of(job: Job, point: MountPoint) -> disks.Disk | None:
    """The disk behind a mount point: every image and block device, and a directory that becomes the root."""
    if not isinstance(point.source, str) or not point.source.startswith("/"):
        return None
    bound = "bind" in point.options or "rbind" in point.options
    is_root = point.target == "/"
    if not is_root and (bound or point.fstype is None):
        return None
    disk = disks.identify(point.source, seconds=job.disk_timeout)
    if disk.kind == "directory" and not (is_root and point.at == "root"):
        return None
    return None if bound and disk.kind != "directory" else disk


def _instances_on(job: Job, disk: disks.Disk) -> list[str]:
    """The other instances whose root is this very directory."""
    if disk.kind != "directory":
        return []
    names = [name for name in os.listdir(job.run_dir) if name not in (job.name, store.LOCKS)]
    roots = statuses.statuses([os.fsencode(intents.root(job.run_dir, name)) for name in names])
    device = statuses.packed(os.major(disk.dev), os.minor(disk.dev))
    survey = job.survey()
    return [
        name
        for name, status in zip(names, roots, strict=True)
        if status and (status[3], status[1]) == (device, disk.ino) and survey.is_mounted(name)
    ]


def name_users(job: Job, users: Sequence[str]) -> str:
    """The users of a disk, mounts below the run directory by the instance's name."""
    lines = []
    for user in users:
        below = user.removeprefix(f"mounted on {job.run_dir}/")
        lines.append(user if below == user else f"{user} (instance {below.split('/', 1)[0]})")
    return "; ".join(lines)


def check_same_disk(job: Job, points: Points, lock_disk: Callable[[disks.Disk], None]) -> None:
    """What is mounted on the root's mount point must be the instance's own disk. Raises ``DiskError``.

    A root that a plugin makes of something else (an overlay, a snapshot) is nobody's disk; the record says that it is ours.
    """
    entries = unmounting.root_mounts(job, job.survey().mounts(job.name))
    if job.instance.disk is None or not entries:
        return
    made = any(p.at == "root" and p.target == "/" and p.source != job.instance.disk for _, p in points)
    if made and job.intent is not None:
        return
    disk = disks.identify(job.instance.disk, seconds=job.disk_timeout)
    disks.check_place(disk, job.run_dir)
    lock_disk(disk)
    entry = entries[0]
    source = os.fsdecode(entry.source)
    status = syscalls.statx(os.fsencode(job.root))
    if disk.kind == "directory":
        same = len(entries) == 1 and (status.dev, status.ino) == (disk.dev, disk.ino)
    elif disk.kind == "image":
        same = source in loops.over({(disk.dev, disk.ino): disk.path})
    else:
        same = entry.dev == disk.rdev or (source.startswith("/dev/") and os.stat(source).st_rdev == disk.rdev)
    if not same:
        raise DiskError(
            f"something else is mounted on {job.root}: {source} ({os.fsdecode(entry.fstype)}), not the disk {disk.path}",
            hint=f"unmount it, or see what it is: findmnt {job.root}",
        )


def parted(points: Points) -> tuple[Points, Points]:
    """Auxiliary layers, and the root's tree; each in the order in which they are mounted."""
    layers = [(plugin, point) for plugin, point in points if point.at != "root"]
    return layers, [(plugin, point) for plugin, point in points if point.at == "root"]


def attach_does(job: Job, count: int) -> str:
    """What the step that attaches the tree does, in words."""
    return f"attach the tree of {count} mounts on {job.root}"


def mount_does(point: MountPoint) -> str:
    """What the step of one mount does, in words."""
    return f"mount {point.describe()}"


def mount_tree(job: Job, points: Points) -> None:
    """Auxiliary layers, then the root's tree, attached in one step. Raises ``StepError``, ``DiskError``."""
    layers, tree = parted(points)
    for plugin, point in layers:
        _mount_aux(job, plugin, point)
    opened: list[trees.Detached] = []
    tree_fd = -1
    try:
        for plugin, point in tree:
            job.interrupts.check()
            opened.append(_detach(job, plugin, point))
        root, *parts = opened
        _record_device(job, root)
        with job.step("mount", attach_does(job, len(opened))):
            tree_fd = trees.assemble(root, parts, job.root, job.made)
            try:
                trees.attach(tree_fd, job.root)
            except OSError as error:
                raise StepError(f"cannot attach the tree on {job.root}: {error.strerror}") from error
        say_made(job)
    finally:
        for fd in (tree_fd, *(detached.fd for detached in opened)):
            if fd >= 0:
                os.close(fd)


def _mount_aux(job: Job, plugin: str, point: MountPoint) -> None:
    """An auxiliary layer: attached at once, since others name it by its path."""
    base = f"{intents.directory(job.run_dir, job.name)}/aux"
    place = f"{base}/{point.at[4:]}"
    for path in (base, place):
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            pass
    detached = _detach(job, plugin, point)
    try:
        _record_device(job, detached)
        if point.target == "/":
            trees.attach(detached.fd, place)
        else:
            layer = trees.attached_root(point, place)
            try:
                trees.attach_parts(layer, [detached], [])
            finally:
                os.close(layer.fd)
    except OSError as error:
        raise StepError(f"cannot attach {point.describe()} on {place}: {error.strerror}") from error
    finally:
        os.close(detached.fd)


def mount_parts(job: Job, points: Points) -> None:
    """Everything but the root, in a root that is mounted already."""
    parts = [(plugin, point) for plugin, point in points if point.at == "root" and point.target != "/"]
    top = next(point for _, point in points if point.at == "root" and point.target == "/")
    opened: list[trees.Detached] = []
    root = trees.attached_root(top, job.root)
    try:
        for plugin, point in parts:
            opened.append(_detach(job, plugin, point))
        with job.step("mount", f"attach {len(parts)} mounts in {job.root}"):
            trees.attach_parts(root, opened, job.made)
        say_made(job)
    finally:
        for detached in (root, *opened):
            os.close(detached.fd)


def _detach(job: Job, plugin: str, point: MountPoint) -> trees.Detached:
    """Apply the step that makes the source, if there is one, and make the mount."""
    source = source_of(job, plugin, point)
    with job.step("mount", mount_does(point), plugin):
        return trees.detach(point, source, options_of(job, point), seconds=job.disk_timeout)


def source_of(job: Job, plugin: str, point: MountPoint) -> str:
    """The source of a mount; a step that makes it is applied. Raises ``StepError``, ``PluginError``."""
    if not isinstance(point.source, Step):
        return point.source
    facts: Mapping[str, Any] = debts.apply(job, "mount", plugin, point.source, place=f"{point.at}:{point.target}")
    made = facts.get("source")
    if not isinstance(made, str) or not made:
        raise StepError(
            f"{job.stages.registry.record(plugin).describe()}: mount for {job.name}: the step {point.source.describe()!r} says no source for {point.target}",
            hint='apply() of a source step returns {"source": path}',
        )
    return made


def options_of(job: Job, point: MountPoint) -> list[str]:
    """The options of a mount, with the paths of auxiliary layers filled in."""
    base = f"{intents.directory(job.run_dir, job.name)}/aux"
    return [re.sub(r"\{aux:([^{}]*)\}", rf"{base}/\1", option) for option in point.options]


def _record_device(job: Job, detached: trees.Detached) -> None:
    """Remember the device of a disk's mount: when a stop finds it busy, its holders are looked for by it."""
    if job.intent is None:
        return
    device = syscalls.statx("", detached.fd).dev
    for record in job.intent["disks"]:
        if record["path"] == detached.point.source:
            record["devices"] = sorted({*record["devices"], device})
            record["loop"] = detached.loop
            job.save()


def say_made(job: Job) -> None:
    """Tell of the mount points that were missing in the disk."""
    for path in job.made:
        if any(other.startswith(f"{path}/") for other in job.made):
            continue  # what is below it says it all
        job.warn("mount", f"made the mount point {path} in the root: it was missing")


def remove_made(job: Job) -> None:
    """Take the mount points that a failed start made in the disk away again, as far as they are still empty."""
    if not job.made:
        return
    debts.pay(job, ("pre-start",))
    unmounting.take_down(job, keep_root=True)
    inside = Root(job.root)
    for path in reversed(job.made):
        directory, _, name = path.rpartition("/")
        try:
            parent_fd = inside.open_fd(directory or "/", os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            _say_stays(job, path, error)
            continue
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
                os.rmdir(name, dir_fd=parent_fd)
            elif not os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_size:
                os.unlink(name, dir_fd=parent_fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            _say_stays(job, path, error)
        finally:
            os.close(parent_fd)


def _say_stays(job: Job, path: str, error: OSError) -> None:
    job.warn("mount", f"the mount point {path}, which this start made in the disk, stays there: {error.strerror}")
