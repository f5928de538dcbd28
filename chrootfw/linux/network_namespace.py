"""Pin a network namespace by a mount, and find out whether one is the host's.

A network namespace has no name, and ends with its last process. A bind mount of `/proc/PID/ns/net`
on a file keeps it, as ip-netns(8) does. Its inode number is used again as soon as it has ended, so
numbers are compared only of namespaces that both exist at that moment.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager

from chrootfw.linux import files, procfs, syscalls
from chrootfw.linux.descriptors import Descriptors, opened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"
_NS_GET_NSTYPE = 0xB703
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


def is_host(pid: int | str = "thread-self") -> bool:
    """Return whether a process is in the network namespace of pid 1, which is called the host's.

    Each namespace has a file net/dev of its own, which may be looked at where ns/net may not: pid 1
    often has capabilities that the caller lacks. A kernel without networks has neither file.
    """
    try:
        return _files_of(pid) == _files_of(1)
    except OSError:
        return True  # nothing shows another one


def _files_of(pid: int | str) -> tuple[int, int]:
    status = os.stat(f"/proc/{pid}/net/dev")
    return status.st_dev, status.st_ino


def pin(path: str) -> None:
    """Pin the calling thread's network namespace by a mount on a new file.

    Raises:
        OSError: The kernel refused it; the file is removed again.
    """
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600) as place, Descriptors() as held:
        try:
            syscalls.move_mount(held.take(syscalls.open_tree, syscalls.AT_FDCWD, _OWN), place)
        except OSError:
            files.remove(path)
            raise


def unpin(path: str) -> None:
    """Unmount what pins a network namespace, and remove the file.

    The kernel removes no file that is a mount point in the caller's mount namespace, and takes the
    mounts on it in others away: once the file is gone, nothing is mounted there anywhere. Processes
    that are in the namespace, or have it open, keep it.

    Raises:
        OSError: It cannot be unmounted or removed.
    """
    while True:
        try:
            syscalls.umount2(path, _MNT_DETACH | _UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # not mounted, not there
                break
            raise
    files.remove(path)


def is_pinned(path: str) -> bool:
    """Return whether a namespace is mounted at a path; nothing is opened, so anybody may look."""
    try:
        return os.stat(path).st_dev == os.stat(_OWN).st_dev  # nsfs is one file system
    except OSError:
        return False


def open_pin(path: str, held: Descriptors) -> int:
    """Open the network namespace that is pinned at a path.

    Args:
        path: The file on which it is mounted.
        held: Owns the descriptor.

    Raises:
        OSError: None is pinned there (ENOENT if the mount or the file is gone).
    """
    import fcntl

    fd = held.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET:
            return fd
    except OSError:
        pass  # an ordinary file: nothing is mounted on it
    raise OSError(errno.ENOENT, "no network namespace is mounted there", path)


def open_host(held: Descriptors) -> int:
    """Open the host's network namespace by a process in it that the caller may look at.

    Args:
        held: Owns the descriptor.

    Raises:
        OSError: There is no such process.
    """
    for pid in (1, *procfs.all_pids()):
        try:
            with opened(f"/proc/{pid}/ns/net", os.O_RDONLY) as fd:
                if is_host(pid):
                    return held.take(os.dup, fd)
        except OSError:
            continue  # it has ended, or may do more than the caller
    raise OSError(errno.EPERM, os.strerror(errno.EPERM), "/proc/1/ns/net")


@contextmanager
def entered(fd: int) -> Iterator[None]:
    """Put the calling thread into a network namespace, and then back; do nothing for -1."""
    if fd < 0:
        yield
        return
    with opened(_OWN, os.O_RDONLY) as before:
        syscalls.setns(fd, CLONE_NEWNET)
        try:
            yield
        finally:
            syscalls.setns(before, CLONE_NEWNET)
