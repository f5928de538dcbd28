"""Taking one mount away (umount(2)), by its mount ID."""

from __future__ import annotations

import ctypes
import errno
import os

from chrootfw.system import deadlines, spawn, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from chrootfw.system import mounts

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def unmount(root: bytes, mount: mounts.MountEntry, *, seconds: float | None = None) -> bool:
    """Unmount ``mount``, which is on or below ``root``; ``False`` when its path leads to another mount now.

    The parent directory is opened inside ``root`` without following symlinks, and the mount is taken by
    its name in there: a symlink put into the path leads nowhere. Never lazy. With ``seconds`` a child does it, which is left behind when it does
    not come back: ``deadlines.Overdue``. Raises ``OSError`` (EBUSY in use).
    """
    root_fd = -1
    try:
        if mount.mount_point != root:
            root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if seconds is None:
            return bool(_raise_for(_unmount(syscalls.CALLS, root_fd, root, mount)))
        what = f"unmount {os.fsdecode(mount.mount_point)}"
        keep = [root_fd] if root_fd >= 0 else []
        return bool(
            deadlines.call(what, lambda: _unmount(spawn.CALLS, root_fd, root, mount), seconds=seconds, keep=keep)
        )
    except OSError as error:
        if error.errno in _NOT_THERE:
            return False  # hidden below another mount, which must go first
        raise
    finally:
        if root_fd >= 0:
            os.close(root_fd)


def _unmount(calls: syscalls.Calls, root_fd: int, root: bytes, mount: mounts.MountEntry) -> int:
    """1 when it is unmounted, 0 when its path leads to another mount, or a negative errno."""
    directory, name, path = syscalls.AT_FDCWD, root, root
    if root_fd >= 0:
        parent, _, name = mount.mount_point[len(root) + 1 :].rpartition(b"/")
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
        directory = syscalls.openat2_with(calls, root_fd, parent or b".", os.O_PATH | os.O_DIRECTORY, resolve)
        if directory < 0:
            return directory
        path = b"/proc/thread-self/fd/%d/%s" % (directory, name)
    try:
        status = syscalls.statx_with(calls, directory, name, syscalls.AT_SYMLINK_NOFOLLOW)
        if isinstance(status, int):
            return status
        if status.mnt_id != mount.id:
            return 0
        return 1 if calls.umount2(path, syscalls.UMOUNT_NOFOLLOW) == 0 else -ctypes.get_errno()
    finally:
        if directory >= 0:
            calls.close(directory)


def _raise_for(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
