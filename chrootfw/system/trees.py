"""Making mounts detached, building them into a tree, and attaching the tree in one step.

Every mount is private before it is attached (mount_namespaces(7)): what happens in a tree never reaches the mounts
that it was made from. From Linux 6.15 a tree is built on a detached mount; before, in a fresh thread with a mount
namespace of its own. Either way a manager that is killed midway leaves no mount.
"""

from __future__ import annotations

import errno
import os
import stat
import threading

from chrootfw.errors import DiskError, StepError
from chrootfw.system import deadlines, disks, loops, syscalls
from chrootfw.system.root import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from chrootfw.model import MountPoint, Node

ATTRIBUTES = {
    "ro": syscalls.MOUNT_ATTR_RDONLY,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
    "noatime": syscalls.MOUNT_ATTR_NOATIME,
    "strictatime": syscalls.MOUNT_ATTR_STRICTATIME,
    "nodiratime": syscalls.MOUNT_ATTR_NODIRATIME,
}
#: Options that are the default, or speak to mount(8) and not to the kernel.
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
    ("shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable", "move", "remount")
)


class Detached:
    """A mount that is attached nowhere yet: its descriptor, whether it is a directory, the loop device made for it."""

    __slots__ = ("fd", "is_directory", "loop", "point")

    def __init__(self, point: MountPoint, fd: int) -> None:
        self.loop: str | None = None
        self.point = point
        self.fd = fd
        self.is_directory = stat.S_ISDIR(syscalls.statx("", fd).mode)


def detach(point: MountPoint, source: str, options: Sequence[str], *, seconds: float) -> Detached:
    """The mount that ``point`` asks for, not yet attached. The caller closes ``fd``. ``seconds``: for a disk to answer.

    Raises ``StepError`` (``DiskError`` when the disk is to blame).
    """
    check_options(point, options)
    try:
        if source.startswith("/"):
            deadlines.check_answers(source, seconds=seconds)
        if kind := _stored(point, source, options):
            return _from_disk(point, source, options, kind, seconds)
        if _is_bind(point, source, options):
            return _bind(point, source, options)
        return _new(point, source, options, point.fstype or source)
    except deadlines.Overdue as error:
        raise disks.silent(source, error) from error
    except OSError as error:
        if error.errno == errno.ENODEV and point.fstype:
            raise StepError(
                f"cannot mount {point.describe()}: this kernel has no file system {point.fstype}"
            ) from error
        raise StepError(f"cannot mount {point.describe()}: {_text(error)}") from error


def check_options(point: MountPoint, options: Sequence[str]) -> None:
    """Refuse the options that are not for an instance's mounts. Raises ``StepError``."""
    for option in options:
        if option in _REFUSED:
            raise StepError(
                f"cannot mount {point.describe()}: the option {option} is not for an instance's mounts",
                hint="chrootfw makes every mount private before it attaches it",
            )


def _text(error: OSError) -> str:
    return f"{error.strerror}" + (f" ({error.filename})" if error.filename else "")


def _stored(point: MountPoint, source: str, options: Sequence[str]) -> str:
    """``block`` or ``image`` if the source is a disk with a file system on it, else ``""``."""
    if not source.startswith("/") or "bind" in options or "rbind" in options:
        return ""
    mode = os.stat(source).st_mode
    if stat.S_ISBLK(mode):
        return "block"
    if stat.S_ISREG(mode) and (point.fstype or point.target == "/" or "loop" in options):
        return "image"
    return ""


def _is_bind(point: MountPoint, source: str, options: Sequence[str]) -> bool:
    if "bind" in options or "rbind" in options or point.fstype == "bind":
        return True
    return source.startswith("/") and point.fstype is None


def _bind(point: MountPoint, source: str, options: Sequence[str]) -> Detached:
    recursive = "rbind" in options
    fd = syscalls.open_tree(syscalls.AT_FDCWD, source, recursive=recursive)
    try:
        attributes, parameters = _split(options)
        if parameters:
            raise StepError(f"cannot bind {point.describe()}: a bind mount has no option {parameters[0][0]}")
        clear = syscalls.MOUNT_ATTR_ATIME if attributes & syscalls.MOUNT_ATTR_ATIME else 0
        syscalls.mount_setattr(fd, set=attributes, clear=clear, propagation=syscalls.MS_PRIVATE, recursive=recursive)
        return Detached(point, fd)
    except BaseException:
        os.close(fd)
        raise


def _from_disk(point: MountPoint, source: str, options: Sequence[str], kind: str, seconds: float) -> Detached:
    read_only = "ro" in options
    try:
        disk_fd = os.open(source, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        hint = "" if read_only else "set read_only = true to use it without writing"
        raise DiskError(
            f"cannot open the disk {source} for {'reading' if read_only else 'writing'}: {error.strerror}", hint=hint
        ) from error
    loop_fd = -1
    try:
        fstype = point.fstype or disks.filesystem(source, disk_fd)
        device = source
        if kind == "image":
            if os.fstat(disk_fd).st_size == 0:
                raise DiskError(f"the disk {source} is empty", hint="make a file system on it with mkfs")
            device, loop_fd = loops.attach(source, disk_fd, read_only=read_only)
        if fstype.startswith("ext") and not any(option.startswith("errors=") for option in options):
            options = [*options, "errors=remount-ro"]
        try:
            detached = _new(point, device, options, fstype, seconds)
            detached.loop = device if kind == "image" else None
            return detached
        except deadlines.Overdue:
            raise
        except OSError as error:
            if error.errno == errno.EROFS and not read_only:
                raise DiskError(f"the disk {source} is read-only", hint="set read_only = true") from error
            here, wanted = os.lseek(disk_fd, 0, os.SEEK_END), disks.size_recorded(disk_fd, fstype)
            if here < wanted:
                raise DiskError(
                    f"the disk {source} is truncated: its {fstype} has {wanted >> 20} MiB, of which {here >> 20} MiB are there",
                    hint="copy it again, or restore it from a backup",
                ) from error
            raise DiskError(
                f"cannot mount the disk {source} as {fstype}: {error.strerror}",
                hint=f"it may be damaged or truncated: dmesg may say more; {disks.checker(fstype, source)} checks it",
            ) from error
    finally:
        os.close(disk_fd)
        if loop_fd >= 0:
            os.close(loop_fd)


def _new(point: MountPoint, source: str, options: Sequence[str], fstype: str, seconds: float | None = None) -> Detached:
    """With ``seconds`` a child makes the call that reads the device. Raises ``deadlines.Overdue``."""
    attributes, parameters = _split(options)
    if attributes & syscalls.MOUNT_ATTR_RDONLY and source.startswith("/dev/"):
        parameters.insert(0, ("ro", None))  # the file system too: no journal replay marks, no writes

    def create(context: int) -> None:
        calls = deadlines.alone([context])
        calls.add("fsconfig", context, syscalls.FSCONFIG_CMD_CREATE, None, None, 0)
        deadlines.carry_out(source, calls, seconds=seconds or 0)

    fd = syscalls.new_filesystem(
        fstype, [("source", source), *parameters], attributes, None if seconds is None else create
    )
    try:
        for node in point.nodes:
            _make_node(fd, node)
        return Detached(point, fd)
    except BaseException:
        os.close(fd)
        raise


def _split(options: Sequence[str]) -> tuple[int, list[tuple[str, str | None]]]:
    """Mount attributes, and what is left for the file system."""
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
        os.mknod(node.path, stat.S_IFCHR | 0o600, os.makedev(*node.device), dir_fd=fd)
    else:
        os.mkdir(node.path, dir_fd=fd)
    os.chmod(node.path, node.mode, dir_fd=fd)  # the caller's umask is the program's business


def assemble(root: Detached, parts: Sequence[Detached], place: str, made: list[str]) -> int:
    """One detached tree: ``parts`` (parents first) on their targets in ``root``. ``place`` is the directory on which the
    tree will be attached.

    Returns the tree's descriptor, which the caller closes; the paths that had to be made in the disk are added to
    ``made``. Raises ``StepError``.
    """
    if not parts:
        return os.dup(root.fd)
    try:
        attach_parts(root, parts, made)
        return os.dup(root.fd)
    except _DetachedTargetRefused:
        pass

    def build() -> int:
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_FS)
        # Not private: a copy of somebody's mounts that goes on while we live would keep their devices busy.
        syscalls.make_all_slave()
        place_fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            syscalls.move_mount(root.fd, place_fd)
        finally:
            os.close(place_fd)
        attach_parts(root, parts, made)
        return syscalls.open_tree(root.fd, "", recursive=True)

    tree_fd: int = _in_fresh_thread(build)
    return tree_fd


class _DetachedTargetRefused(StepError):
    """Perhaps the kernel (before 6.15) does not attach to a detached tree."""


def attach_parts(root: Detached, parts: Sequence[Detached], made: list[str]) -> None:
    """Attach each part on its target inside ``root``; what is made in the disk for it is added to ``made``."""
    inside = Root(f"/proc/thread-self/fd/{root.fd}/.")
    for number, part in enumerate(parts):
        target_fd = _target(inside, part, made)
        try:
            syscalls.move_mount(part.fd, target_fd)
        except OSError as error:
            refused = error.errno == errno.EINVAL and number == 0
            kind = _DetachedTargetRefused if refused else StepError
            raise kind(f"cannot attach {part.point.describe()}: {_text(error)}") from error
        finally:
            os.close(target_fd)


def _target(inside: Root, part: Detached, made: list[str]) -> int:
    """The mount point inside, opened (O_PATH); made where it is missing."""
    target = part.point.target
    what = "directory" if part.is_directory else "file"
    try:
        try:
            fd = inside.open_fd(target)
        except FileNotFoundError:
            target = inside.resolve(target)
            _make_target(inside, target, made, directory=part.is_directory)
            fd = inside.open_fd(target)
    except OSError as error:
        if error.errno == errno.EROFS:
            raise missing_on_read_only(part.point, is_directory=part.is_directory) from error
        raise StepError(f"cannot use the mount point {part.point.target} in the root: {_text(error)}") from error
    if stat.S_ISDIR(syscalls.statx("", fd).mode) != part.is_directory:
        os.close(fd)
        raise StepError(f"cannot mount {part.point.describe()}: the mount point in the root is not a {what}")
    return fd


def missing_on_read_only(point: MountPoint, *, is_directory: bool) -> StepError:
    """The error for a mount point that would have to be made."""
    what = "directory" if is_directory else "file"
    return StepError(
        f"the mount point {point.target} does not exist in the root, and the root is read-only",
        hint=f"make the {what} {point.target} in the disk, or leave the mount out",
    )


def _make_target(inside: Root, target: str, made: list[str], *, directory: bool) -> None:
    """Make what is missing of a path inside; what is made on the root's own mount is added to ``made``."""
    parts = [part for part in target.split("/") if part]
    root_mount = syscalls.statx(inside.path).mnt_id
    for number, name in enumerate(parts):
        path = "/" + "/".join(parts[: number + 1])
        if inside.exists(path):
            continue
        parent_fd = inside.open_fd("/" + "/".join(parts[:number]), os.O_PATH | os.O_DIRECTORY)
        try:
            if directory or number < len(parts) - 1:
                os.mkdir(name, dir_fd=parent_fd)
                os.chmod(name, 0o755, dir_fd=parent_fd)  # whatever the program's umask is
            else:
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent_fd))
            if syscalls.statx("", parent_fd).mnt_id == root_mount:
                made.append(path)
        finally:
            os.close(parent_fd)


def attach(tree_fd: int, place: str) -> None:
    """Attach a detached tree on the directory ``place``, under the propagation of the mount it lies in. Raises ``OSError``."""
    place_fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        syscalls.move_mount(tree_fd, place_fd)
    finally:
        os.close(place_fd)


def attached_root(point: MountPoint, place: str) -> Detached:
    """A root that is attached already, for attaching parts to it. The caller closes ``fd``."""
    fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return Detached(point, fd)


def _in_fresh_thread(body: Callable[[], Any]) -> Any:
    """Run ``body`` in a thread of its own, whose mount namespace and working directory end with it."""
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
