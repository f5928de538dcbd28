"""Carry out the stage mount: check the disks, mount the tree, clean up after a failure.

`linux.mount_tree` makes the system calls: each mount is made detached (fsopen(2), open_tree(2)),
and the whole tree is attached in one step (move_mount(2)).
"""

from __future__ import annotations

import os
import posixpath
import re
import shlex
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from chrootfw.errors import DiskError, PlanError, StepError, add_details
from chrootfw.lifecycle import steps, unmount
from chrootfw.lifecycle.context import Job
from chrootfw.linux import (
    block_devices,
    deadlines,
    files,
    loop,
    mount_copies,
    mount_tree,
    mountinfo,
    statx,
    syscalls,
)
from chrootfw.linux.mountinfo import MountEntry
from chrootfw.linux.root import Root
from chrootfw.model import MountPoint, Step
from chrootfw.planning.paths import is_within
from chrootfw.planning.printable import printable
from chrootfw.state import record
from chrootfw.state.record import RecordedDisk

#: Seconds for the removal of a mount point that a failed start made. If it takes longer, the mount
#: point stays.
_REMOVAL = 1.0

#: Mounts that one warning names.
_NAMED_MAX = 5

#: ``(plugin, mount point)`` pairs, parents first.
Points = Sequence[tuple[str, MountPoint]]


def check_disks(
    job: Job, points: Points, lock_disk: Callable[[block_devices.Disk], None]
) -> list[RecordedDisk]:
    """Identify, lock and check every disk in the tree, before anything is changed.

    Args:
        job: The instance.
        points: What the plugins want to mount.
        lock_disk: Takes the lock of a disk.

    Returns:
        The disks, for the start record.

    Raises:
        DiskError: A disk is in use, or cannot be used.
        PlanError: Two mount points have the same disk.
    """
    check_binds(job, points)
    found = []
    keys: dict[str, str] = {}
    for plugin, point in points:
        with job.attribution(plugin):
            disk = find_disk(job, point)
            if disk is None:
                continue
            block_devices.check_place(disk, job.run_dir)
        if disk.key in keys:
            raise PlanError(
                f"{job.name} would mount one disk twice: {keys[disk.key]} and {disk.path}"
            )
        keys[disk.key] = disk.path
        lock_disk(disk)
        recorded = _disk_record(disk)
        kept = _find_kept_disk(job, disk, point)
        device = (kept.loop if disk.kind == "image" else disk.path) if kept else None
        users = block_devices.users(disk, kept=device)
        if disk.kind == "directory":
            own = _instances_on(job, {(disk.dev, disk.ino)})
            users += [f"the root of instance {other}" for other in own]
        if users:
            raise DiskError(
                f"the disk {disk.path} is already in use: {_describe_users(job, users)}",
                hint="a disk is mounted once only: stop or unmount its other user first",
            )
        _warn_of_exchange(job, disk)
        job.disks[disk.path] = disk
        if kept:
            recorded.loop, recorded.devices = kept.loop, kept.devices
        found.append(recorded)
    _warn_of_left_out(job, points)
    return found


def _warn_of_left_out(job: Job, points: Points) -> None:
    """Warn of what is mounted below a directory that is bound, and is not there inside."""
    tree = [point for _, point in points if point.at == "root"]
    for point in tree:
        source = point.source
        options = expand_options(job, point)
        if not isinstance(source, str) or not source.startswith("/") or "rbind" in options:
            continue
        disk = job.disks.get(source)
        if disk is None and "bind" not in options:
            continue
        if disk is not None:
            if disk.kind != "directory":
                continue
            source = os.readlink(f"/proc/thread-self/fd/{disk.fd}")
        deeper = [o.target for o in tree if o is not point and is_within(o.target, point.target)]
        names: list[str] = []
        for entry in mountinfo.list_mounts_below(os.fsencode(source)):
            place = os.fsdecode(entry.mount_point)
            inside = posixpath.join(point.target, posixpath.relpath(place, source))
            if place not in (source, *names) and not any(is_within(inside, d) for d in deeper):
                names.append(place)
        if names:
            shown = ", ".join(names[:_NAMED_MAX])
            more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
            remedy = (
                'mount_options = ["rbind"]'
                if point.target == "/"
                else f"the option rbind of the bind to {point.target}"
            )
            job.warn(
                "mount",
                f"what is mounted below {source} is not there inside: {shown}{more} ({remedy}"
                " brings it along)",
            )


def _warn_of_exchange(job: Job, disk: block_devices.Disk) -> None:
    """Warn of a disk whose file can be exchanged by other users, or from inside an instance."""
    way = block_devices.way_to(disk.path, seconds=job.disk_timeout)
    if why := block_devices.exposed(way):
        job.warn("mount", f"the disk {disk.path} can be exchanged by others than root: {why}")
    for other in _instances_on(job, block_devices.directories_above(way)):
        job.warn(
            "mount",
            f"the disk {disk.path} lies in the root of instance {other}, whose processes can "
            "exchange it (keep it elsewhere)",
        )


def check_binds(job: Job, points: Points) -> None:
    """Refuse binds whose source leads through a symbolic link, before anything is changed.

    The paths of the instance's disk and of a root that a plugin makes may be links.

    Raises:
        StepError: A bind is refused.
    """
    for plugin, point in points:
        if (
            isinstance(point.source, str)
            and point.source != job.instance.disk
            and (point.at, point.target) != ("root", "/")
        ):
            with job.attribution(plugin):
                mount_tree.check_bind(point, point.source, point.options, seconds=job.disk_timeout)


def _find_kept_disk(job: Job, disk: block_devices.Disk, point: MountPoint) -> RecordedDisk | None:
    """Find a disk in the record of the earlier start, if copies of its mounts still use it.

    Returns:
        The recorded disk; `None` if no other mount namespace has such copies.

    Raises:
        DiskError: It is mounted there with another type, or read-only where this start wants to
            write, or the reverse.
    """
    for before in job.record.disks if job.record else ():
        if not job.stay or (before.kind, before.file) != (disk.kind, (disk.dev, disk.ino)):
            continue
        for each in job.stay:
            if each.entry and each.entry.dev in before.devices:
                _check_same_file_system(job, disk, point, each)
        return before
    return None


def _check_same_file_system(
    job: Job, disk: block_devices.Disk, point: MountPoint, stay: mount_copies.Stay
) -> None:
    assert stay.entry is not None
    is_there = os.fsdecode(stay.entry.fstype), stay.entry.super_options.split(b",")[0] == b"ro"
    wanted = point.fstype or is_there[0], "ro" in expand_options(job, point)
    if wanted == is_there:
        return
    (fstype, read_only), (wants, wants_read_only) = is_there, wanted
    raise DiskError(
        f"the disk {disk.path} is still mounted as {fstype}, {_access(read_only)}, and not as"
        f" {wants}, {_access(wants_read_only)}",
        [stay.what],
        f"start it as it was started before; or, when that has ended: chrootfw cleanup {job.name}",
    )


def _access(read_only: bool) -> str:
    return "read-only" if read_only else "for reading and writing"


def describe_disks(job: Job, points: Points) -> list[RecordedDisk]:
    """Describe the disks of an instance whose record is lost, with the devices mounted now."""
    devices = [entry.dev for entry in unmount.list_root_mounts(job, job.read_mounts())]
    found = [_disk_record(disk) for _, point in points if (disk := find_disk(job, point))]
    for recorded in found[:1]:
        recorded.devices = devices
    return found


def _disk_record(disk: block_devices.Disk) -> RecordedDisk:
    return RecordedDisk(
        disk.kind, disk.path, (disk.dev, disk.ino), [disk.rdev] if disk.kind == "block" else ()
    )


def find_disk(job: Job, point: MountPoint) -> block_devices.Disk | None:
    """Identify the disk of a mount point.

    Returns:
        The image, the block device, or the directory that becomes the root; `None` for another
        source, such as a bind or an API file system.

    Raises:
        DiskError: The source cannot be identified.
    """
    if not isinstance(point.source, str) or not point.source.startswith("/"):
        return None
    bound = "bind" in point.options or "rbind" in point.options
    is_root = point.target == "/"
    if not is_root and (bound or point.fstype is None):
        return None
    disk = block_devices.identify(point.source, seconds=job.disk_timeout)
    if disk.kind == "directory" and not (is_root and point.at == "root"):
        return None
    return None if bound and disk.kind != "directory" else disk


def _instances_on(job: Job, directories: Collection[tuple[int, int]]) -> list[str]:
    """List the other instances whose root is one of these directories (device, inode)."""
    names = [name for name in os.listdir(job.run_dir) if name not in (job.name, files.LOCKS)]
    roots = statx.statx_many([os.fsencode(record.root(job.run_dir, name)) for name in names])
    wanted = {(statx.packed(os.major(dev), os.minor(dev)), inode) for dev, inode in directories}
    return [
        name
        for name, status in zip(names, roots, strict=True)
        if status
        and (status[3], status[1]) in wanted
        and status[4] & syscalls.STATX_ATTR_MOUNT_ROOT
    ]


def _describe_users(job: Job, users: Sequence[str]) -> str:
    """Describe the users of a disk; for a mount below the run directory, name its instance."""
    lines = []
    for user in users:
        below = user.removeprefix(f"mounted on {job.run_dir}/")
        lines.append(user if below == user else f"{user} (instance {below.split('/', 1)[0]})")
    return "; ".join(lines)


def check_same_disk(
    job: Job, points: Points, lock_disk: Callable[[block_devices.Disk], None]
) -> None:
    """Check that the instance's own disk is mounted on the root's mount point, and lock it.

    A plugin may make the root of something else (an overlay, a snapshot), which is not a disk. The
    record is then the proof that it is the instance's own.

    Args:
        job: The instance.
        points: What the plugins want to mount.
        lock_disk: Takes the lock of a disk.

    Raises:
        DiskError: Another disk is mounted there.
        StepError: A bind is refused.
    """
    check_binds(job, points)
    entries = unmount.list_root_mounts(job, job.read_mounts())
    if job.instance.disk is None or not entries:
        return
    made = any(
        p.at == "root" and p.target == "/" and p.source != job.instance.disk for _, p in points
    )
    if made and job.record is not None:
        return
    disk = block_devices.identify(job.instance.disk, seconds=job.disk_timeout)
    block_devices.check_place(disk, job.run_dir)
    lock_disk(disk)
    entry = entries[0]
    source = os.fsdecode(entry.source)
    if disk.kind == "directory":
        same = len(entries) == 1 and _is_at(job.root, (disk.dev, disk.ino))
    elif disk.kind == "image":
        same = source in loop.find_loop_devices({(disk.dev, disk.ino): disk.path})
    else:
        same = entry.dev == disk.rdev or (
            source.startswith("/dev/") and os.stat(source).st_rdev == disk.rdev
        )
    if not same:
        raise _other_disk_error(job, entry, disk.path)


def _other_disk_error(job: Job, entry: MountEntry, path: str) -> DiskError:
    """Make the error for a root on which something else than the disk is mounted."""
    return DiskError(
        f"something else is mounted on {job.root}: {os.fsdecode(entry.source)}"
        f" ({os.fsdecode(entry.fstype)}), not the disk {path}",
        hint=f"unmount it, or see what it is: findmnt {job.root}",
    )


def check_mounted_disk(job: Job, points: Points, *, is_lost: bool) -> None:
    """Check that what is mounted on the root's mount point is the disk that the start has recorded.

    The path of the disk is not needed, so the disk may have another one by now.

    Args:
        job: The instance.
        points: What the plugins want to mount.
        is_lost: The record is lost: the path must lead to the disk.

    Raises:
        DiskError: Another disk is mounted there.
        StepError: A bind is refused.
    """
    recorded = job.record.disks[0] if job.record and job.record.disks else None
    on_root = unmount.list_root_mounts(job, job.read_mounts())
    if is_lost or recorded is None or not recorded.devices:
        check_same_disk(job, points, lambda _disk: None)
        return
    check_binds(job, points)
    if len(on_root) != 1 or not {on_root[0].dev, _device_at(job.root)}.intersection(
        recorded.devices
    ):
        raise _other_disk_error(job, on_root[-1], recorded.path)


def check_parts(job: Job, points: Points) -> None:
    """Check that everything but the root can be mounted again, by mounts that are not attached.

    What a plugin's Step makes is not there yet. A disk is only looked up, since a second mount of
    an image would damage it.

    Raises:
        StepError: A source or an option is wrong.
        DiskError: A disk is not there.
    """
    for plugin, point in points:
        if point.at != "root" or point.target == "/" or isinstance(point.source, Step):
            continue
        with job.attribution(plugin):
            if find_disk(job, point) is None:
                options = expand_options(job, point)
                with _missing_source(job, point, point.source):
                    detached = mount_tree.detach(
                        point, point.source, options, seconds=job.disk_timeout
                    )
                os.close(detached.fd)


def _is_at(path: str, file: tuple[int, int]) -> bool:
    """Return whether a file (device, inode) is at a path."""
    try:
        status = syscalls.statx(path)
    except OSError:
        return False  # not shown to be the same, so the caller refuses it by name
    return (status.dev, status.ino) == file


def _device_at(path: str) -> int | None:
    """Return the device of the file system at a path, as `_record_device` has it.

    A subvolume of btrfs has another one than the mount table says.
    """
    try:
        return syscalls.statx(path).dev
    except OSError:
        return None  # not shown to be the same, so the caller refuses it by name


def split_layers(points: Points) -> tuple[Points, Points]:
    """Split mount points into auxiliary layers and the root's tree, each in mount order."""
    layers = [(plugin, point) for plugin, point in points if point.at != "root"]
    return layers, [(plugin, point) for plugin, point in points if point.at == "root"]


def describe_attach(job: Job, count: int) -> str:
    """Return the description of the step that attaches the tree."""
    return f"attach the tree of {count} mounts on {job.root}"


def describe_attach_parts(job: Job, count: int) -> str:
    """Describe the step that attaches mounts in a root that is mounted."""
    return f"attach {count} mounts in {job.root}"


def describe_mount(point: MountPoint) -> str:
    """Return the description of the step that makes one mount."""
    return f"mount {printable(point.describe())}"


def mount_all(job: Job, points: Points) -> None:
    """Mount the auxiliary layers, then the root's tree, which is attached in one step.

    Args:
        job: The instance.
        points: The mount points, parents first.

    Raises:
        StepError: A mount failed.
        DiskError: A disk cannot be mounted.
        PluginError: A plugin's step could not be applied.
        Interrupted: An end was requested; raised between two mounts.
    """
    layers, tree = split_layers(points)
    for plugin, point in layers:
        _mount_aux(job, plugin, point)
    opened: list[mount_tree.Detached] = []
    tree_fd = -1
    try:
        for plugin, point in tree:
            job.cancellation.check()
            opened.append(_detach(job, plugin, point))
            opened.extend(_bind_nodes(job, opened[-1]))
        root, *parts = opened
        _record_device(job, root)
        with job.step("mount", describe_attach(job, len(opened)), limit=job.disk_timeout):
            with _name_disk(job):
                tree_fd = mount_tree.assemble(
                    root, parts, job.root, job.made, seconds=job.disk_timeout
                )
            try:
                mount_tree.attach(tree_fd, job.root)
            except OSError as error:
                raise StepError(
                    f"cannot attach the tree on {job.root}: {error.strerror}"
                ) from error
        _check_not_shared(job, opened)
        _warn_of_open_directories(job, [detached.point for detached in opened])
        report_made(job)
    finally:
        for fd in (tree_fd, *(detached.fd for detached in opened)):
            if fd >= 0:
                os.close(fd)
        for disk in job.disks.values():
            disk.close()
        job.disks.clear()


def _mount_aux(job: Job, plugin: str, point: MountPoint) -> None:
    """Mount an auxiliary layer, and attach it at once: later mounts name it by its path."""
    base = f"{record.directory(job.run_dir, job.name)}/aux"
    place = f"{base}/{point.at[4:]}"
    for path in (base, place):
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            pass  # an earlier mount of the layer has made it
    detached = _detach(job, plugin, point)
    try:
        _record_device(job, detached)
        if detached.unmade:
            raise StepError(
                f"cannot make the device nodes of {point.describe()}: mknod is not permitted"
            )
        if point.target == "/":
            mount_tree.attach(detached.fd, place)
        else:
            layer = mount_tree.attached_root(point, place)
            try:
                mount_tree.attach_parts(layer, [detached], [], seconds=job.disk_timeout)
            finally:
                os.close(layer.fd)
        _check_not_shared(job, [detached])
    except OSError as error:
        raise StepError(f"cannot attach {point.describe()} on {place}: {error.strerror}") from error
    finally:
        os.close(detached.fd)


def mount_parts(job: Job, points: Points, earlier: Sequence[str]) -> None:
    """Mount everything but the root, in a root that is mounted already.

    Args:
        job: The instance.
        points: The mount points, parents first.
        earlier: The attributes of mounts that the earlier start has set.

    Raises:
        StepError: A mount failed.
        PluginError: A plugin's step could not be applied.
    """
    parts = [
        (plugin, point) for plugin, point in points if point.at == "root" and point.target != "/"
    ]
    top = next(point for _, point in points if point.at == "root" and point.target == "/")
    opened: list[mount_tree.Detached] = []
    root = mount_tree.attached_root(top, job.root)
    try:
        _restrict_again(job, root, earlier)
        for plugin, point in parts:
            opened.append(_detach(job, plugin, point))
            opened.extend(_bind_nodes(job, opened[-1]))
        does = describe_attach_parts(job, len(parts))
        with job.step("mount", does, limit=job.disk_timeout), _name_disk(job):
            mount_tree.attach_parts(root, opened, job.made, seconds=job.disk_timeout)
        report_made(job)
    finally:
        for detached in (root, *opened):
            os.close(detached.fd)


@contextmanager
def _name_disk(job: Job) -> Iterator[None]:
    """Let the error of a mount in the root name the disk, which may be damaged."""
    try:
        yield
    except StepError as error:
        if job.instance.disk is not None:
            add_details(error, [f"the disk of {job.name} is {job.instance.disk}"])
        raise


def _detach(job: Job, plugin: str, point: MountPoint) -> mount_tree.Detached:
    """Make one mount without attaching it; first apply the step that makes its source, if any."""
    source = make_source(job, plugin, point)
    with job.step("mount", describe_mount(point), plugin, limit=job.disk_timeout):
        disk = job.disks.get(source)
        disk_fd = disk.fd if disk else -1
        options = expand_options(job, point)
        if disk is None or disk.kind == "directory":
            _check_taken_back(job, point, options)
        with _missing_source(job, point, source):
            detached = mount_tree.detach(
                point,
                source,
                options,
                seconds=job.disk_timeout,
                disk_fd=disk_fd,
                loop_device=_known_loop(job, source),
                follow=source == job.instance.disk,
            )
        try:
            mount_tree.restrict(detached, _entry_attributes(job))
        except OSError as error:
            os.close(detached.fd)
            raise StepError(f"cannot restrict {point.describe()}: {error.strerror}") from error
        return detached


@contextmanager
def _missing_source(job: Job, point: MountPoint, source: str) -> Iterator[None]:
    """Say of a source that is not there what names it, and how it gets there."""
    try:
        yield
    except StepError as error:
        cause = error.__cause__
        if not isinstance(cause, FileNotFoundError) or cause.filename != source:
            raise
        named = [key for key, value in job.instance.params.items() if source in repr(value)]
        out = f"take it out of {', '.join(named)}" if named else "take it out"
        raise StepError(
            f"cannot mount {source} on {point.target}: {source} does not exist",
            hint=f"mkdir -p {shlex.quote(source)}, or {out}: chrootfw show {job.name}",
        ) from error


def _bind_nodes(job: Job, parent: mount_tree.Detached) -> list[mount_tree.Detached]:
    """Bind the host's device nodes where mknod(2) is not permitted."""
    if not parent.unmade:
        return []
    target = printable(parent.point.target)
    with job.step("mount", f"bind the host's device nodes in {target}: mknod is not permitted"):
        return mount_tree.bind_nodes(parent, seconds=job.disk_timeout)


def _check_taken_back(job: Job, point: MountPoint, options: Sequence[str]) -> None:
    """Refuse an option of a bind that would take back an attribute of every mount.

    Raises:
        StepError: The entry, such as that of a hardened instance, wants the attribute.
    """
    for word in options:
        if word in mount_tree.CLEARED and f"no{word}" in _entry_attributes(job):
            raise StepError(
                f"cannot mount {point.describe()}: the option {word} has no effect in a hardened"
                f" instance, whose mounts are all no{word}",
                hint=f"leave {word} out, or set hardened = false",
            )


def _restrict_again(job: Job, root: mount_tree.Detached, earlier: Sequence[str]) -> None:
    """Set the attributes that this start wants on a root that stayed mounted.

    Attributes that an earlier start has set, and this one does not want, are cleared.

    Args:
        job: The instance.
        root: Its root.
        earlier: The attributes that the earlier start has set.
    """
    options, wanted = expand_options(job, root.point), _entry_attributes(job)
    disk = job.record.disks[0].kind if job.record and job.record.disks else ""
    # chrootfw mounts every image with nodev, whatever the entry asks for.
    settable = ("nosuid", "nodev") if disk == "directory" else ("nosuid",)
    cleared = [
        word for word in settable if disk and word in earlier and word not in (*options, *wanted)
    ]
    try:
        mount_tree.restrict(root, wanted, cleared)
    except OSError as error:
        raise StepError(f"cannot restrict {root.point.describe()}: {error.strerror}") from error


def _warn_of_open_directories(job: Job, points: Sequence[MountPoint]) -> None:
    """Warn of directories in which a suid program of the instance's is one of the host's too.

    The instance's own mounts are nosuid. A directory as disk and the source of a writable bind are
    not, where they lie.
    """
    if "nosuid" not in _entry_attributes(job):
        return
    disk = job.disks.get(job.instance.disk or "")
    if disk is not None and disk.kind == "directory":
        path = os.readlink(f"/proc/thread-self/fd/{disk.fd}")
        if _is_open_to_all(path):
            job.warn(
                "mount",
                f"every user of the host can enter {path}: a suid program that root makes inside is"
                " theirs to run"
                " (keep the directory in one of mode 0700, or use an image)",
            )
    for point in points:
        options = expand_options(job, point)
        source = point.source
        is_bind = isinstance(source, str) and source != job.instance.disk and "bind" in options
        if is_bind and "ro" not in options and _runs_suid_programs(str(source)):
            job.warn(
                "mount",
                f"every user of the host can enter {source}, which is bound on {point.target}: a"
                " suid program that root makes inside is theirs to run (bind it read-only, keep it"
                " in a directory of mode 0700, or on a file system mounted nosuid)",
            )


def _is_open_to_all(path: str) -> bool:
    ways = [path[:end] or "/" for end, letter in enumerate(path) if letter == "/"]
    return all(syscalls.statx(way).mode & stat.S_IXOTH for way in (*ways, path))


def _runs_suid_programs(path: str) -> bool:
    status = syscalls.statx(path)
    return (
        stat.S_ISDIR(status.mode)
        and not os.statvfs(path).f_flag & os.ST_NOSUID
        and _is_open_to_all(path)
    )


def _entry_attributes(job: Job) -> Sequence[str]:
    """Return the attributes that the entry wants for each mount of the instance."""
    return job.record.mount_attributes if job.record else ()


def _known_loop(job: Job, source: str) -> str | None:
    """Return the recorded loop device of an image: copies in other mount namespaces may keep it."""
    recorded = job.record.disks if job.record else ()
    return next((disk.loop for disk in recorded if disk.path == source), None)


def make_source(job: Job, plugin: str, point: MountPoint) -> str:
    """Return the source of a mount; apply the step that makes it, if there is one.

    Args:
        job: The instance.
        plugin: The plugin that wants the mount.
        point: The mount point.

    Returns:
        The path, or the name of a virtual file system.

    Raises:
        StepError: The step could not be applied, or its facts have no source.
        PluginError: The step is not plain data.
    """
    if not isinstance(point.source, Step):
        return point.source
    facts: Mapping[str, Any] = steps.apply_step(
        job, "mount", plugin, point.source, place=f"{point.at}:{point.target}"
    )
    made = facts.get("source")
    if not isinstance(made, str) or not made:
        raise StepError(
            f"{job.stages.registry.record(plugin).describe()}: mount for {job.name}: cannot mount"
            f" {point.describe()}: the step says no source",
            hint='apply() of a source step returns {"source": path}',
        )
    return made


def expand_options(job: Job, point: MountPoint) -> list[str]:
    """Return a mount's options, with the paths of auxiliary layers in place of `{aux:NAME}`."""
    base = f"{record.directory(job.run_dir, job.name)}/aux"
    return [re.sub(r"\{aux:([^{}]*)\}", rf"{base}/\1", option) for option in point.options]


def _record_device(job: Job, detached: mount_tree.Detached) -> None:
    """Record the device number of a disk's mount: a stop finds holders of a busy disk by it."""
    if job.record is None:
        return
    device = syscalls.statx("", detached.fd).dev
    for disk in job.record.disks:
        if disk.path == detached.point.source:
            disk.devices = sorted({*disk.devices, device})
            disk.loop = detached.loop
            job.save()


def _check_not_shared(job: Job, mounts: Sequence[mount_tree.Detached]) -> None:
    """Refuse a disk that is one file system with another disk that is mounted elsewhere.

    btrfs gives the same file system for each of its devices, so that two instances would have one
    root. The mount table tells only of mounts that are attached.

    Raises:
        DiskError: Another disk of the file system is in use.
    """
    disks = {
        syscalls.statx("", each.fd).mnt_id: each.point.source
        for each in mounts
        if each.has_several_disks
    }
    if not disks:
        return
    below = os.fsencode(f"{record.directory(job.run_dir, job.name)}/")
    entries = list(mountinfo.on_several_devices(mountinfo.Table()))
    own = {entry.dev: disks[entry.id] for entry in entries if entry.id in disks}
    for entry in entries:
        if entry.dev in own and not entry.mount_point.startswith(below):
            raise DiskError(
                f"the disk {own[entry.dev]} is one file system with another disk, which is in"
                f" use: mounted on {os.fsdecode(entry.mount_point)}",
                hint="a file system is mounted once only: unmount it there; btrfs filesystem show"
                " lists the disks of each",
            )


def report_made(job: Job) -> None:
    """Warn of each mount point that was missing in the disk, and was made."""
    for path in job.made:
        if any(other.startswith(f"{path}/") for other in job.made):
            continue  # the warning of the path below names this one too
        job.warn("mount", f"made the mount point {path} in the root: it was missing")


def remove_made(job: Job) -> None:
    """Unmount everything in the root, and remove the mount points that a failed start made in it.

    A mount point that is not empty stays, with a warning.

    Raises:
        HeldError: A mount is busy.
        StepError: An unmount failed.
    """
    if not job.made:
        return
    steps.undo_steps(job, ("pre-start",))
    unmount.unmount_in_order(job, keep_root=True)
    inside = Root(job.root)
    with deadlines.Waiting(most=_REMOVAL):
        for path in reversed(job.made):
            try:
                _remove_empty(inside, path)
            except FileNotFoundError:
                pass  # it is removed already
            except OSError as error:
                _warn_of_mount_point(job, path, error)


def _remove_empty(inside: Root, path: str) -> None:
    """Remove an empty directory or file of a root, in a child.

    Raises:
        OSError: It is not empty, or cannot be removed in time.
    """
    status = inside.stat(path, follow=False)
    directory, _, name = path.rpartition("/")
    calls, found, _ = inside.look_up(directory or "/", os.O_PATH | os.O_DIRECTORY)
    if stat.S_ISDIR(status.st_mode):
        calls.add("unlinkat", found, os.fsencode(name), syscalls.AT_REMOVEDIR)
    elif not status.st_size:
        calls.add("unlinkat", found, os.fsencode(name), 0)
    inside.carry_out(path, calls)


def _warn_of_mount_point(job: Job, path: str, error: OSError) -> None:
    job.warn(
        "mount",
        f"the mount point {path}, which this start made in the disk, stays there: {error.strerror}",
    )
