"""Create detached mounts, build a tree of them, and attach the tree in one step.

Every mount is private before it is attached (mount_namespaces(7)), so an event in a tree never
reaches the mounts that it was made from. From Linux 6.15, a tree is built on a detached mount.
Before, it is built in a new thread with a mount namespace of its own. Either way, chrootfw leaves
no mount if it is killed midway.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shlex
import stat
import sys
import threading

from chrootfw.errors import DiskError, StepError
from chrootfw.linux import block_devices, deadlines, loop, syscalls
from chrootfw.linux.call_batch import UNSET
from chrootfw.linux.root import LOOK_UP, RACES, Root
from chrootfw.model import MountPoint
from chrootfw.planning import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from chrootfw.linux.call_batch import Buffer, CallBatch
    from chrootfw.model import Node

ATTRIBUTES = {
    "ro": syscalls.MOUNT_ATTR_RDONLY,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
    "noatime": syscalls.MOUNT_ATTR_NOATIME,
    "strictatime": syscalls.MOUNT_ATTR_STRICTATIME,
    "nodiratime": syscalls.MOUNT_ATTR_NODIRATIME,
}
#: Options that clear an attribute, which a bind has from the mount that it is made of.
CLEARED = {
    "suid": syscalls.MOUNT_ATTR_NOSUID,
    "dev": syscalls.MOUNT_ATTR_NODEV,
    "exec": syscalls.MOUNT_ATTR_NOEXEC,
}
#: Options that are the default, or are for mount(8) and not for the kernel.
_NO_EFFECT = frozenset(
    (
        "defaults",
        "rw",
        "suid",
        "dev",
        "exec",
        "atime",
        "diratime",
        "relatime",
        "bind",
        "rbind",
        "loop",
        "auto",
        "noauto",
        "nofail",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "_netdev",
    )
)
_REFUSED = frozenset(
    (
        "shared",
        "rshared",
        "slave",
        "rslave",
        "private",
        "rprivate",
        "unbindable",
        "runbindable",
        "move",
        "remount",
    )
)


#: Directories on which the kernel's interfaces are mounted, and /run.
_KERNELS = ("proc", "sys", "dev", "run")
#: A device node opens with these if nothing is behind it.
_NO_DEVICE = (errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM)
#: File systems on one or several devices, whose mounts have a device number of their own.
_SEVERAL_DEVICES = ("btrfs", "bcachefs")


class Detached:
    """A mount that is not attached yet.

    Attributes:
        point: The mount point that asked for it.
        fd: The mount's descriptor.
        is_directory: Whether the mount is a directory.
        loop: The loop device made for it, or `None`.
        has_several_disks: Whether other disks can be of the same file system.
        unmade: The device nodes that mknod(2) was not permitted to make: empty files for now.
    """

    __slots__ = ("fd", "has_several_disks", "is_directory", "loop", "point", "unmade")

    def __init__(self, point: MountPoint, fd: int) -> None:
        self.loop: str | None = None
        self.has_several_disks = False
        self.unmade: list[Node] = []
        self.point = point
        self.fd = fd
        self.is_directory = stat.S_ISDIR(syscalls.statx("", fd).mode)


def detach(
    point: MountPoint,
    source: str,
    options: Sequence[str],
    *,
    seconds: float,
    disk_fd: int = -1,
    loop_device: str | None = None,
    follow: bool = False,
) -> Detached:
    """Create the mount that a mount point asks for, without attaching it.

    Args:
        point: The mount point.
        source: The resolved source.
        options: The resolved options.
        seconds: Seconds for a disk to answer.
        disk_fd: The source (O_PATH) if it is open; otherwise it is opened once.
        loop_device: The loop device over which an image was mounted before. It is used again if it
            is still attached.
        follow: Whether a bind's source may lead through symbolic links, as an instance's disk may.

    Returns:
        The mount. The caller must close its `fd`.

    Raises:
        StepError: The mount cannot be made; `DiskError` if the disk is the cause.
    """
    check_options(point, options)
    opened = -1
    try:
        if disk_fd < 0 and (source.startswith("/") or _is_bind(point, source, options)):
            if follow:
                disk_fd = opened = deadlines.open_path(source, seconds=seconds)
            else:
                disk_fd = opened = _open_source(point, source, options, seconds)
        if disk_fd >= 0:
            deadlines.check_open(source, disk_fd, seconds=seconds)
        if kind := _stored(point, disk_fd, options):
            return _from_disk(point, source, disk_fd, options, kind, seconds, loop_device)
        if _is_bind(point, source, options):
            return _bind(point, disk_fd, options)
        return _new(point, source, options, point.fstype or source)
    except deadlines.DeadlineExceeded as error:
        raise block_devices.silent(source, error) from error
    except OSError as error:
        if error.errno == errno.ENODEV and point.fstype:
            raise StepError(
                f"cannot mount {point.describe()}: this kernel has no file system {point.fstype}",
                hint=f"modprobe {shlex.quote(point.fstype)}",
            ) from error
        raise StepError(
            f"cannot mount {point.describe()}: {_text(error)}", _kernels_words(error)
        ) from error
    finally:
        if opened >= 0:
            os.close(opened)


def check_bind(point: MountPoint, source: str, options: Sequence[str], *, seconds: float) -> None:
    """Refuse a bind whose source leads through a symbolic link, before anything is mounted.

    Any other error is left to `detach`.

    Raises:
        StepError: The source leads through a symbolic link; `DiskError` if it does not answer.
    """
    if not _is_bind(point, source, options):
        return
    try:
        os.close(_open_source(point, source, options, seconds))
    except deadlines.DeadlineExceeded as error:
        raise block_devices.silent(source, error) from error
    except OSError:
        pass


def _open_source(point: MountPoint, source: str, options: Sequence[str], seconds: float) -> int:
    """Open a source (O_PATH); a link may lead to a device or an image, but not to what is bound.

    Processes that can write where the source is, such as those of an instance, could make a link to
    any file of the host.

    Raises:
        StepError: The source of a bind leads through a symbolic link.
        OSError: The source cannot be opened.
    """
    if not _is_bind(point, source, options):
        return deadlines.open_path(source, seconds=seconds)
    try:
        return deadlines.open_path(source, seconds=seconds, follow=False)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        refused = error
    opened, leads_to = -1, ""
    try:
        opened = deadlines.open_path(source, seconds=seconds)
        if _stored(point, opened, options):
            return opened
        leads_to = os.readlink(f"/proc/thread-self/fd/{opened}")
    except deadlines.DeadlineExceeded:
        raise
    except OSError:  # the link leads nowhere
        pass
    if opened >= 0:
        os.close(opened)
    raise _linked(point, source, options, leads_to) from refused


def _linked(point: MountPoint, source: str, options: Sequence[str], leads_to: str) -> StepError:
    """Make the error for a source of a bind that leads through a symbolic link."""
    ends = [end for end, letter in enumerate(source) if letter == "/" and end]
    link = next((path for end in ends if _is_link(path := source[:end])), source)
    words = ",".join(option for option in options if option != "bind")
    bind = ":".join(paths.escape_colons(path) for path in (leads_to, point.target))
    bind += f":{words}" if words else ""
    hint = f"if it may be {leads_to}, give binds = {json.dumps([bind], ensure_ascii=False)}"
    return StepError(
        f"cannot bind {source} on {point.target}: {link} is a symbolic link, and a bind follows "
        "none",
        ["a process of an instance that can write there could make a link to any file of the host"],
        hint if leads_to else f"see where it leads: ls -l {shlex.quote(link)}",
    )


def _is_link(path: str) -> bool:
    try:
        return stat.S_ISLNK(syscalls.statx(path, follow=False).mode)
    except OSError:
        return False


def check_options(point: MountPoint, options: Sequence[str]) -> None:
    """Refuse the options that an instance's mounts cannot have.

    Raises:
        StepError: An option is refused.
    """
    for option in options:
        if option in _REFUSED:
            raise StepError(
                f"cannot mount {point.describe()}: the option {option} is "
                "not for an instance's mounts",
                hint="chrootfw makes every mount private before it attaches it",
            )


def _kernels_words(error: OSError) -> list[str]:
    """Return the details of an error: what the kernel itself says of a file system."""
    said = error.said if isinstance(error, syscalls.FilesystemError) else []
    return [f"the kernel says: {line}" for line in said]


def _text(error: OSError) -> str:
    return f"{error.strerror}" + (f" ({error.filename})" if error.filename else "")


def _stored(point: MountPoint, disk_fd: int, options: Sequence[str]) -> str:
    """Return `block` or `image` for a disk with a file system on it, else an empty string."""
    if disk_fd < 0 or "bind" in options or "rbind" in options:
        return ""
    mode = syscalls.statx("", disk_fd).mode
    if stat.S_ISBLK(mode):
        return "block"
    if stat.S_ISREG(mode) and (point.fstype or point.target == "/" or "loop" in options):
        return "image"
    return ""


def _is_bind(point: MountPoint, source: str, options: Sequence[str]) -> bool:
    if "bind" in options or "rbind" in options or point.fstype == "bind":
        return True
    return source.startswith("/") and point.fstype is None


def _bind(point: MountPoint, source_fd: int, options: Sequence[str]) -> Detached:
    recursive = "rbind" in options
    fd = syscalls.open_tree(source_fd, "", recursive=recursive)
    try:
        attributes, parameters = _split(options)
        if parameters:
            raise StepError(
                f"cannot bind {point.describe()}: a bind mount has no option {parameters[0][0]}"
            )
        clear = syscalls.MOUNT_ATTR_ATIME if attributes & syscalls.MOUNT_ATTR_ATIME else 0
        taken_back = [word for word in options if word in CLEARED]
        for word in taken_back:
            clear |= CLEARED[word] & ~attributes
        try:
            syscalls.mount_setattr(
                fd,
                set=attributes,
                clear=clear,
                propagation=syscalls.MS_PRIVATE,
                recursive=recursive,
            )
        except PermissionError as error:
            if not taken_back:
                raise
            raise StepError(
                f"cannot bind {point.describe()}: the kernel does not let the option"
                f" {taken_back[0]} take back what the mount of its source has",
                hint="in a user namespace, such attributes are fixed: leave the option out",
            ) from error
        return Detached(point, fd)
    except BaseException:
        os.close(fd)
        raise


def _from_disk(
    point: MountPoint,
    source: str,
    path_fd: int,
    options: Sequence[str],
    kind: str,
    seconds: float,
    loop_device: str | None,
) -> Detached:
    read_only = "ro" in options
    opened = f"/proc/thread-self/fd/{path_fd}"
    try:
        disk_fd = os.open(opened, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        hint = "" if read_only else "set read_only = true to use it without writing"
        if error.errno in _NO_DEVICE:
            hint = "no driver, or no medium, is behind it: lsblk lists the devices that there are"
        raise DiskError(
            f"cannot open the disk {source} for {'reading' if read_only else 'writing'}: "
            f"{error.strerror}",
            hint=hint,
        ) from error
    loop_fd = -1
    try:
        if kind == "image" and os.fstat(disk_fd).st_size == 0:
            raise DiskError(
                f"the disk {source} is empty",
                hint=f"truncate -s SIZE {shlex.quote(source)}, then make a file system on it with"
                " mkfs",
            )
        fstype = point.fstype or block_devices.filesystem(source, disk_fd)
        device = source
        if kind == "image":
            if (
                loop_device
                and (loop_fd := loop.reopen(loop_device, source, disk_fd, read_only=read_only)) >= 0
            ):
                device = loop_device
            else:
                device, loop_fd = loop.attach(source, disk_fd, read_only=read_only)
        if fstype.startswith("ext") and not any(option.startswith("errors=") for option in options):
            options = [*options, "errors=remount-ro"]
        # Such a device number cannot be compared: rely on the path in /dev, which only root can
        # change.
        if kind == "block" and fstype in _SEVERAL_DEVICES:
            device = os.readlink(opened)
        if "dev" not in options:
            # Only /dev has devices; a bind mount of the host is not a disk.
            options = ["nodev", *options]
        try:
            detached = _new(point, device, options, fstype, seconds)
            detached.loop = device if kind == "image" else None
            detached.has_several_disks = fstype in _SEVERAL_DEVICES
            if kind == "block":
                _check_same(source, path_fd, detached, fstype)
            return detached
        except deadlines.DeadlineExceeded:
            raise
        except OSError as error:
            raise _refused(
                error, source, device, disk_fd, fstype, read_only=read_only, seconds=seconds
            ) from error
    finally:
        os.close(disk_fd)
        if loop_fd >= 0:
            os.close(loop_fd)


def _refused(
    error: OSError,
    source: str,
    device: str,
    disk_fd: int,
    fstype: str,
    *,
    read_only: bool,
    seconds: float,
) -> DiskError:
    """Make the error for a disk that the kernel refuses to mount."""
    said = _kernels_words(error)
    if error.errno == errno.EBUSY:
        return DiskError(
            f"the disk {source} is in use as another file system, or with other options: "
            f"{error.strerror}",
            said,
            f"lsblk -o NAME,FSTYPE,MOUNTPOINTS {device}",
        )
    if error.errno == errno.EROFS and not read_only:
        return DiskError(f"the disk {source} is read-only", said, "set read_only = true")
    here = os.lseek(disk_fd, 0, os.SEEK_END)
    wanted = block_devices.size_recorded(disk_fd, fstype)
    if here < wanted:
        return DiskError(
            f"the disk {source} is truncated: its {fstype} has {wanted >> 20} MiB, of "
            f"which {here >> 20} MiB are there",
            said,
            "copy it again, or restore it from a backup",
        )
    if error.errno == errno.EINVAL and fstype == "xfs":
        same = block_devices.find_same_xfs(disk_fd, seconds=seconds)
        if same:
            return _same_xfs(source, same)
    return DiskError(
        f"cannot mount the disk {source} as {fstype}: {error.strerror}",
        said,
        _mount_hint(error, fstype, source),
    )


def _mount_hint(error: OSError, fstype: str, source: str) -> str:
    """Return the hint for a disk that the kernel refuses to mount."""
    if isinstance(error, syscalls.FilesystemError) and error.option:
        return f"correct mount_options; what {fstype} takes: man 5 {fstype}, or man 8 mount"
    if error.errno == errno.ENODEV:
        return f"this kernel has no file system {fstype}: modprobe {shlex.quote(fstype)}"
    # A refused permission says nothing about the disk's content.
    if error.errno in (errno.EPERM, errno.EACCES):
        return (
            "the kernel refuses it: dmesg may say why; chrootfw verify checks the rights to mount"
        )
    return (
        "it may be damaged or truncated: dmesg may say more; "
        f"{block_devices.checker(fstype, source)} checks it"
    )


def _same_xfs(source: str, other: str) -> DiskError:
    """Make the error for a copy of an XFS file system that is mounted too."""
    return DiskError(
        f"the disk {source} is a copy of a file system that is mounted: {other} has the same UUID",
        ["xfs mounts no two file systems of one UUID"],
        'set mount_options = ["nouuid"]; or, once and for all, give it a UUID of its own:'
        f" xfs_admin -U generate {shlex.quote(source)}",
    )


def _check_same(source: str, path_fd: int, detached: Detached, fstype: str) -> None:
    """Check that the path of a block device still led to the opened device when it was mounted.

    Raises:
        DiskError: It did not. The mount has been closed.
    """
    mounted, wanted = syscalls.statx("", detached.fd).dev, syscalls.statx("", path_fd).rdev
    if fstype not in _SEVERAL_DEVICES and os.major(mounted) and mounted != wanted:
        os.close(detached.fd)
        raise DiskError(
            f"the disk {source} was exchanged for another while it was mounted",
            hint="see who can write the directories on the way to it",
        )


def _new(
    point: MountPoint,
    source: str,
    options: Sequence[str],
    fstype: str,
    seconds: float | None = None,
) -> Detached:
    """Mount a new file system, detached.

    Args:
        point: The mount point.
        source: The resolved source.
        options: The resolved options.
        fstype: The type of the file system.
        seconds: Seconds for the device to answer; a child then makes the call that reads it. `None`
            makes the call here, without a limit.

    Raises:
        DeadlineExceeded: The device does not answer.
    """
    attributes, parameters = _split(options)
    if attributes & syscalls.MOUNT_ATTR_RDONLY and source.startswith("/dev/"):
        # read-only for the file system too: no journal replay, no writes.
        parameters.insert(0, ("ro", None))

    def create(context: int) -> None:
        calls = deadlines.make_closing_batch([context])
        calls.add("fsconfig", context, syscalls.FSCONFIG_CMD_CREATE, None, None, 0)
        deadlines.run_batch(source, calls, seconds=seconds or 0)

    fd = syscalls.new_filesystem(
        fstype, [("source", source), *parameters], attributes, None if seconds is None else create
    )
    try:
        made = Detached(point, fd)
        for node in point.nodes:
            try:
                _make_node(fd, node)
            except PermissionError:
                if node.device is None:
                    raise
                os.close(os.open(node.path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, dir_fd=fd))
                made.unmade.append(node)
        return made
    except BaseException:
        os.close(fd)
        raise


def bind_nodes(parent: Detached, *, seconds: float) -> list[Detached]:
    """Bind the host's device nodes in place of those that mknod(2) was not permitted to make.

    It is not permitted in a user namespace, and without CAP_MKNOD, as in most containers.

    Args:
        parent: The mount with the nodes.
        seconds: Seconds for the host's /dev to answer.

    Returns:
        The binds. The caller must close each one's `fd`.

    Raises:
        StepError: The host has no such device node.
    """
    binds: list[Detached] = []
    try:
        for node in parent.unmade:
            # Read-only: root inside can write to the device, and not change the host's node.
            options = ("bind", "ro", "nosuid", "noexec")
            target = f"{parent.point.target}/{node.path}"
            point = MountPoint(target, f"/dev/{node.path}", options=options)
            _check_node(node, str(point.source))
            binds.append(detach(point, str(point.source), options, seconds=seconds))
    except BaseException:
        for bind in binds:
            os.close(bind.fd)
        raise
    return binds


def _check_node(node: Node, path: str) -> None:
    """Check that a path of the host leads to the device of a node.

    Raises:
        StepError: It does not.
    """
    try:
        status = syscalls.statx(path, follow=False)
        kind = stat.S_IFBLK if node.block else stat.S_IFCHR
        number = os.makedev(*(node.device or (0, 0)))
        is_same = stat.S_IFMT(status.mode) == kind and status.rdev == number
    except OSError:
        is_same = False
    if not is_same:
        raise StepError(
            f"cannot make the device node {node.path}: mknod is not permitted, and the host's"
            f" {path} is not that device",
            hint="allow mknod (CAP_MKNOD, and the device controller of a container), or mount the"
            " host's own /dev here",
        )


def _split(options: Sequence[str]) -> tuple[int, list[tuple[str, str | None]]]:
    """Split options into mount attributes and the file system's own parameters."""
    attributes = 0
    parameters: list[tuple[str, str | None]] = []
    for option in options:
        key, equals, value = option.partition("=")
        if option in ATTRIBUTES:
            attributes |= ATTRIBUTES[option]
        elif option not in _NO_EFFECT and not key.startswith("x-"):
            parameters.append((key, value if equals else None))
    return attributes, parameters


def _make_node(fd: int, node: Node) -> None:
    if node.link is not None:
        os.symlink(node.link, node.path, dir_fd=fd)
        return
    if node.device is not None:
        kind = stat.S_IFBLK if node.block else stat.S_IFCHR
        os.mknod(node.path, kind | 0o600, os.makedev(*node.device), dir_fd=fd)
    else:
        os.mkdir(node.path, dir_fd=fd)
    os.chmod(node.path, node.mode, dir_fd=fd)  # apply the mode despite the caller's umask


def assemble(
    root: Detached, parts: Sequence[Detached], place: str, made: list[str], *, seconds: float
) -> int:
    """Attach mounts to a detached root mount, and return them as one tree.

    Args:
        root: The root mount.
        parts: The other mounts, parents first.
        place: The directory on which the tree will be attached.
        made: Gets the paths that had to be created on the disk.
        seconds: Seconds for the file systems in the tree to answer.

    Returns:
        The tree's descriptor. The caller must close it.

    Raises:
        StepError: A mount cannot be attached.
    """
    if not parts:
        return os.dup(root.fd)
    try:
        attach_parts(root, parts, made, seconds=seconds)
        return os.dup(root.fd)
    except _DetachedTargetRefused:
        pass

    def build() -> int:
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_FS)
        # Slave and not private: a private copy of other mounts would keep their devices busy while
        # chrootfw runs.
        syscalls.make_all_slave()
        place_fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            syscalls.move_mount(root.fd, place_fd)
        finally:
            os.close(place_fd)
        attach_parts(root, parts, made, seconds=seconds)
        return syscalls.open_tree(root.fd, "", recursive=True)

    tree_fd: int = _in_fresh_thread(build)
    return tree_fd


class _DetachedTargetRefused(StepError):
    """The kernel (before 6.15) may not attach a mount to a detached tree."""


def attach_parts(
    root: Detached, parts: Sequence[Detached], made: list[str], *, seconds: float
) -> None:
    """Attach each mount to its target inside a root.

    A child does it: a look-up in the root, or a new directory, may wait for a server, a device or a
    thaw.

    Args:
        root: The root mount.
        parts: The other mounts, parents first.
        made: Gets the paths that had to be created on the disk.
        seconds: Seconds for each call to return.

    Raises:
        StepError: A mount cannot be attached.
    """
    inside = Root("the root", fd=root.fd, seconds=seconds)
    done, tried, races = 0, -1, 0
    while done < len(parts):
        calls, begins = _attachments(inside, parts[done:])
        try:
            inside.carry_out(parts[done].point.target, calls, attempts=1)
            return
        except OSError as error:
            results = calls.results()
            number = sum(results[index] >= 0 for index, _ in begins)  # move_mount(2) succeeded
            part, (index, status) = parts[done + number], begins[number]
            if isinstance(error, deadlines.DeadlineExceeded) or results[index - 2] == UNSET:
                raise _unusable(part, error) from error
            if results[index] != UNSET:
                if (
                    stat.S_ISDIR(int.from_bytes(status.data[28:30], sys.byteorder))
                    != part.is_directory
                ):
                    what = "directory" if part.is_directory else "file"
                    raise StepError(
                        f"cannot mount {part.point.describe()}: the mount point in the root is "
                        f"not a {what}"
                    ) from error
                refused = error.errno == errno.EINVAL and done + number == 0
                kind = _DetachedTargetRefused if refused else StepError
                raise kind(f"cannot attach {part.point.describe()}: {error.strerror}") from error
            done += number
            if error.errno == errno.EAGAIN and races < RACES:
                races += 1  # a rename raced with the look-up
                continue
            if error.errno == errno.ELOOP and _is_kernels(part):
                _refuse_link(inside, part.point.target)
            if error.errno != errno.ENOENT or tried == done:
                raise _unusable(part, error) from error
            tried = done
            _make_missing(inside, part, made)


def _attachments(
    inside: Root, parts: Sequence[Detached]
) -> tuple[CallBatch, list[tuple[int, Buffer]]]:
    """Make the batch that attaches the mounts one after the other.

    Returns:
        The batch; for each mount the step of move_mount(2), and the buffer for its target's status.
    """
    kept = [part.fd for part in parts]
    calls, found, _ = inside.look_up("/", keep=kept)
    begins = []
    for part in parts:
        calls.add("close", found)
        links = syscalls.RESOLVE_NO_SYMLINKS if _is_kernels(part) else 0
        how = syscalls.OpenHow(os.O_PATH | os.O_CLOEXEC, 0, syscalls.RESOLVE_IN_ROOT | links)
        calls.add(
            "openat2",
            inside.fd,
            os.fsencode(part.point.target),
            how,
            ctypes.sizeof(how),
            what=LOOK_UP,
        )
        status = calls.add_buffer(syscalls.STATX_SIZE)
        calls.add(
            "statx",
            found,
            b"",
            syscalls.AT_EMPTY_PATH | syscalls.AT_STATX_DONT_SYNC,
            0x7FF,
            status,
        )
        flags = syscalls.MOVE_MOUNT_F_EMPTY_PATH | syscalls.MOVE_MOUNT_T_EMPTY_PATH
        begins.append((calls.add("move_mount", part.fd, b"", found, b"", flags), status))
    return calls, begins


def _make_missing(inside: Root, part: Detached, made: list[str]) -> None:
    try:
        _make_target(inside, inside.resolve(part.point.target), made, directory=part.is_directory)
    except OSError as error:
        if error.errno == errno.EROFS:
            raise missing_on_read_only(part.point, is_directory=part.is_directory) from error
        raise _unusable(part, error) from error


def _unusable(part: Detached, error: OSError) -> StepError:
    brief = f"cannot use the mount point {part.point.target} in the root: {_text(error)}"
    if isinstance(error, deadlines.DeadlineExceeded):
        return StepError(
            brief,
            [error.describe()],
            "look at the device or server of its file system; is it frozen (fsfreeze -u)?",
        )
    return StepError(brief)


def _is_kernels(part: Detached) -> bool:
    """Check that a target is at or below a directory of the kernel's interfaces."""
    return part.point.target.split("/")[1] in _KERNELS


def _refuse_link(inside: Root, target: str) -> None:
    """Refuse a target for a kernel interface that leads through a symbolic link.

    Processes inside could change such a link after the mount.

    Raises:
        StepError: A component of the target is a symbolic link.
    """
    parts = target.split("/")[1:]
    for number in range(1, len(parts) + 1):
        path = "/" + "/".join(parts[:number])
        try:
            text = inside.readlink(path)
        except OSError:  # not a link, or missing; opening it reports any other error
            continue
        raise StepError(
            f"{path} in the root is a symbolic link, to {text!r}: nothing is mounted through it",
            hint=f"make {path} in the disk a directory",
        )


def restrict(detached: Detached, attributes: Sequence[str], back: Sequence[str] = ()) -> None:
    """Set `nosuid` and `nodev` on a mount before a process of the instance can use it.

    `nodev` is not set on mounts at `/dev` and below.

    Args:
        detached: The mount.
        attributes: The attributes to set.
        back: The attributes to clear.

    Raises:
        OSError: The kernel refused the change.
    """
    point = detached.point
    devices = point.at == "root" and (point.target == "/dev" or point.target.startswith("/dev/"))
    wanted = 0
    for word in attributes:
        if not (word == "nodev" and devices):
            wanted |= ATTRIBUTES[word]
    clear = sum(ATTRIBUTES[word] for word in back)
    if wanted or clear:
        syscalls.mount_setattr(detached.fd, set=wanted, clear=clear, recursive=True)


def missing_on_read_only(point: MountPoint, *, is_directory: bool) -> StepError:
    """Make the error for a target that does not exist in a read-only root."""
    what = "directory" if is_directory else "file"
    return StepError(
        f"the mount point {point.target} does not exist in the root, and the root is read-only",
        hint=f"make the {what} {point.target} in the disk, or leave the mount out",
    )


def _make_target(inside: Root, target: str, made: list[str], *, directory: bool) -> None:
    """Create what is missing of a path inside a root.

    The paths that are created on the root's own mount are added to `made`.
    """
    parts = [part for part in target.split("/") if part]
    root_mount = syscalls.statx("", inside.fd).mnt_id
    calls, found, _ = inside.look_up("/", os.O_PATH | os.O_DIRECTORY)
    calls.add("umask", 0)
    steps = []
    for number, name in enumerate(parts, 1):
        raw = os.fsencode(name)
        status = calls.add_buffer(syscalls.STATX_SIZE)
        flags = syscalls.AT_EMPTY_PATH | syscalls.AT_STATX_DONT_SYNC
        calls.add("statx", found, b"", flags, syscalls.STATX_MNT_ID, status)
        if directory or number < len(parts):
            step = calls.add("mkdirat", found, raw, 0o755, ignore=(errno.EEXIST,))
        else:
            how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            step = calls.add("openat", found, raw, how, 0o644, ignore=(errno.EEXIST,))
        steps.append(("/" + "/".join(parts[:number]), status, step))
        if number < len(parts):
            calls.add("close", found)
            into = syscalls.OpenHow(
                os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC,
                0,
                syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS,
            )
            calls.add(
                "openat2",
                inside.fd,
                os.fsencode(steps[-1][0]),
                into,
                ctypes.sizeof(into),
                what=LOOK_UP,
            )
    try:
        inside.carry_out(target, calls, attempts=1)
    finally:
        results = calls.results()
        for path, status, step in steps:
            offset = syscalls.STATX_MNT_ID_OFFSET
            mount = int.from_bytes(status.data[offset : offset + 8], sys.byteorder)
            if results[step] >= 0 and mount == root_mount:
                made.append(path)


def attach(tree_fd: int, place: str) -> None:
    """Attach a detached tree to a directory; the propagation of the directory's mount applies.

    Args:
        tree_fd: The tree's descriptor.
        place: The path of the directory.

    Raises:
        OSError: The kernel refused to attach it.
    """
    place_fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        syscalls.move_mount(tree_fd, place_fd)
    finally:
        os.close(place_fd)


def attached_root(point: MountPoint, place: str) -> Detached:
    """Open a root that is attached already, so that mounts can be attached to it.

    Args:
        point: The root's mount point.
        place: The path of the root.

    Returns:
        The root. The caller must close its `fd`.
    """
    fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return Detached(point, fd)


def _in_fresh_thread(body: Callable[[], Any]) -> Any:
    """Run a function in a new thread, whose mount namespace and working directory end with it."""
    results: list[Any] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(body())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="chrootfw mount builder", daemon=True)
    thread.start()
    thread.join()
    if failures:
        if isinstance(failures[0], OSError):
            raise StepError(f"cannot build the mount tree: {_text(failures[0])}") from failures[0]
        raise failures[0]
    return results[0]
