"""An instance's disk: what it is, whether it is free, which file system it holds."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time

from chrootfw.errors import DiskError
from chrootfw.planning.paths import is_within
from chrootfw.system import deadlines, loops, mounts

#: Seconds that a device may need to become free after a good unmount: a mount namespace that is just being
#: made elsewhere pins it for some milliseconds.
SETTLE = 1.0

_CHECKERS = {
    "ext2": "e2fsck -n",
    "ext3": "e2fsck -n",
    "ext4": "e2fsck -n",
    "xfs": "xfs_repair -n",
    "btrfs": "btrfs check",
}


class Disk:
    """A disk that exists. ``kind``: ``block``, ``image`` or ``directory``. ``key`` is its identity, whatever its path:
    ``block-MAJ:MIN``, or ``DEV-INO`` of the file or directory. ``path`` is as given, ``real`` without symlinks."""

    __slots__ = ("dev", "file", "ino", "key", "kind", "path", "rdev", "real")

    def __init__(self, path: str, real: str, kind: str, status: os.stat_result) -> None:
        self.path = path
        self.real = real
        self.kind = kind
        self.dev = status.st_dev
        self.ino = status.st_ino
        self.rdev = status.st_rdev
        # A loop device that somebody else made is the file below it, and locked as that.
        self.file = loops.backing(real) if kind == "block" else (self.dev, self.ino)
        if self.file is None:
            self.key = f"block-{os.major(self.rdev)}:{os.minor(self.rdev)}"
        else:
            self.key = f"{os.major(self.file[0])}:{os.minor(self.file[0])}-{self.file[1]}"


def silent(path: str, overdue: deadlines.Overdue) -> DiskError:
    """The error for a disk that does not answer."""
    return DiskError(
        f"the disk {path} does not answer: {overdue.strerror}",
        [overdue.describe()],
        "look at its device or server; disk_timeout says how long to wait for it",
    )


def identify(path: str, *, seconds: float) -> Disk:
    """What the disk at ``path`` is. Raises ``DiskError`` when it is missing, of no usable type, or has not answered after ``seconds``."""
    try:
        deadlines.check_answers(path, seconds=seconds)
        status = os.stat(path)
        real = os.path.realpath(path, strict=True)
    except deadlines.Overdue as error:
        raise silent(path, error) from error
    except OSError as error:
        reason = "does not exist" if error.errno == errno.ENOENT else f"cannot be looked at: {error.strerror}"
        raise DiskError(
            f"the disk {path} {reason}", hint="disk is a block device, an image file or a directory"
        ) from error
    for test, kind in ((stat.S_ISBLK, "block"), (stat.S_ISREG, "image"), (stat.S_ISDIR, "directory")):
        if test(status.st_mode):
            try:
                return Disk(path, real, kind, status)
            except deadlines.Overdue as error:
                raise silent(path, error) from error
    words = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a character device"}
    what = words.get(stat.S_IFMT(status.st_mode), "of an unknown type")
    raise DiskError(f"the disk {path} is {what}", hint="disk is a block device, an image file or a directory")


def check_place(disk: Disk, run_dir: str) -> None:
    """Refuse a directory that is ``/`` or contains the run directory, and anything that lies in that.

    Raises ``DiskError``.
    """
    run = os.path.realpath(run_dir)
    if disk.kind != "block" and is_within(disk.real, run):
        raise DiskError(
            f"the disk {disk.path} lies in the run directory {run}", hint="keep disks outside the run directory"
        )
    if disk.kind != "directory":
        return
    top = os.stat("/")
    if disk.real == "/" or (disk.dev, disk.ino) == (top.st_dev, top.st_ino):
        raise DiskError(
            f"the disk {disk.path} is the host's own root directory", hint="give the instance a directory of its own"
        )
    if is_within(run, disk.real):
        raise DiskError(
            f"the disk {disk.path} contains the run directory {run}", hint="give the instance a directory of its own"
        )


def users(disk: Disk) -> list[str]:
    """Who uses a block device or image already, a line each: mounts of it, loop devices over it.

    What is in use and not mounted is asked again for at most ``SETTLE`` seconds: a mount or unmount whose manager was killed
    comes to its end by itself.
    """
    deadline = time.monotonic() + SETTLE
    while True:
        found = _users(disk)
        if not found or any(line.startswith("mounted on ") for line in found) or time.monotonic() >= deadline:
            return found
        time.sleep(0.01)  # nothing tells of a release


def _users(disk: Disk) -> list[str]:
    found: list[str] = []
    if disk.kind == "directory":
        return found
    if disk.kind == "image":
        for device in loops.over({(disk.dev, disk.ino): disk.path}):
            found.extend(_mounted_on(os.stat(device).st_rdev) or [f"attached as {device}"])
    elif disk.kind == "block":
        if disk.file is not None:
            others = [device for device in loops.over({disk.file: disk.path}) if os.stat(device).st_rdev != disk.rdev]
            for device in others:
                found.extend(_mounted_on(os.stat(device).st_rdev) or [f"its file is attached as {device} too"])
        if not is_free(disk.path):  # what is mounted is not: no need to read the mount table
            found.extend(_mounted_on(disk.rdev))
            found = found or [
                "in use by the kernel (swap, LVM, RAID, device mapper), or mounted in another mount namespace"
            ]
    return found


def _mounted_on(rdev: int) -> list[str]:
    table = mounts.read_table()
    entries = mounts.of_device(table, rdev)
    for entry in mounts.on_several_devices(table):
        try:
            if os.stat(entry.source).st_rdev == rdev:
                entries.append(entry)
        except OSError:
            continue
    return [f"mounted on {os.fsdecode(entry.mount_point)}" for entry in entries]


def is_free(device: str) -> bool:
    """Whether nothing in the kernel uses a block device: ``open(O_EXCL)``, right for all kinds of user."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM):
            return True  # gone, so nobody uses it
        raise
    return True


def is_released(kind: str, path: str, file: tuple[int, int], loop: str | None, *, settle: float = SETTLE) -> bool:
    """The proof that a disk is free: the block device opens exclusively, the loop device over the image is released.

    ``file`` is the (device, inode) of an image; ``loop`` the loop device that was made for it, ``None`` when that is not
    known: then there may be none at all over it. Asks again for at most ``settle`` seconds.
    """
    deadline = time.monotonic() + settle
    pause = 0.0005
    while True:
        if kind == "directory" or (kind == "block" and is_free(path)):
            return True
        if kind == "image" and not (loops.over({file: path}) if loop is None else loops.is_over(loop, file, path)):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)  # nothing tells of a release: ask, ever less often
        pause = min(pause * 2, 0.05)


class _Blkid:
    """libblkid, which every util-linux system has: the field's word on what a device holds."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libblkid.so.1")
        self.lib.blkid_new_probe.restype = ctypes.c_void_p


def filesystem(path: str, fd: int) -> str:
    """The type of the file system that the open device or image holds, such as ``ext4``.

    Raises ``DiskError`` when it holds none, several, or something else; ``OSError`` when it cannot be read.
    """
    try:
        lib = _Blkid().lib
    except OSError as error:
        raise DiskError(
            f"cannot tell which file system {path} holds: libblkid.so.1 is missing",
            hint="install util-linux's libblkid, or set fstype",
        ) from error
    probe = ctypes.c_void_p(lib.blkid_new_probe())
    if not probe:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), path)
    try:
        if lib.blkid_probe_set_device(probe, fd, ctypes.c_int64(0), ctypes.c_int64(0)) != 0:
            raise DiskError(f"the disk {path} is empty or cannot be read")
        lib.blkid_probe_enable_superblocks(probe, 1)
        lib.blkid_probe_set_superblocks_flags(probe, 1 << 5 | 1 << 7)  # TYPE, USAGE
        lib.blkid_probe_enable_partitions(probe, 1)
        result = lib.blkid_do_safeprobe(probe)
        kind, usage = _value(lib, probe, b"TYPE"), _value(lib, probe, b"USAGE")
        partitions = _value(lib, probe, b"PTTYPE")
    finally:
        lib.blkid_free_probe(probe)
    if result == -2:
        raise DiskError(
            f"the disk {path} carries the signatures of more than one file system",
            hint="set fstype, or remove the stale signature with wipefs",
        )
    if kind and usage == "filesystem":
        return kind
    if kind:
        raise DiskError(f"the disk {path} holds {kind} ({usage}), not a file system")
    if partitions:
        raise DiskError(
            f"the disk {path} holds a {partitions} partition table, not a file system",
            hint="give the partition as the disk",
        )
    raise DiskError(f"the disk {path} holds no known file system", hint="make one with mkfs, or set fstype")


def size_recorded(fd: int, fstype: str) -> int:
    """How large the file system on the open disk says it is, in bytes; 0 where its superblock is not known here.

    A mount of a truncated image says no more than EINVAL.
    """
    number = int.from_bytes
    if fstype.startswith("ext"):
        head = os.pread(fd, 32, 1024)
        return number(head[4:8], "little") << (10 + number(head[24:28], "little"))
    if fstype == "xfs":
        head = os.pread(fd, 16, 0)
        return number(head[4:8], "big") * number(head[8:16], "big")
    if fstype == "btrfs":
        return number(os.pread(fd, 8, 0x10070), "little")
    return 0


def _value(lib: ctypes.CDLL, probe: ctypes.c_void_p, name: bytes) -> str:
    data, length = ctypes.c_char_p(), ctypes.c_size_t()
    if lib.blkid_probe_lookup_value(probe, name, ctypes.byref(data), ctypes.byref(length)) != 0:
        return ""
    return (data.value or b"").decode("utf-8", "replace")


def checker(fstype: str | None, path: str) -> str:
    """The command with which an administrator checks such a file system without writing to it."""
    return f"{_CHECKERS.get(fstype or '', 'fsck -N')} {path}"
