"""Identify an instance's disk: its kind, its users, and the file system on it."""

from __future__ import annotations

import ctypes
import errno
import os
import shlex
import stat
import time

from chrootfw.errors import DiskError
from chrootfw.linux import deadlines, loop, mountinfo, syscalls
from chrootfw.linux.descriptors import opened
from chrootfw.linux.root import Root
from chrootfw.planning.paths import is_within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds that a device may need to become free after an unmount. A mount namespace that is being
#: created elsewhere pins the device for some milliseconds.
SETTLE = 1.0

_CHECKERS = {
    "ext2": "e2fsck -n",
    "ext3": "e2fsck -n",
    "ext4": "e2fsck -n",
    "xfs": "xfs_repair -n",
    "btrfs": "btrfs check",
}


#: Formats that are not disks although they are given as disks: offset of the mark, the mark, name,
#: hint.
_OTHERS = (
    (0, b"QFI\xfb", "a qcow2 image", "qemu-img convert -O raw PATH PATH.raw"),
    (0, b"KDMV", "a VMDK image", "qemu-img convert -O raw PATH PATH.raw"),
    (0, b"vhdxfile", "a VHDX image", "qemu-img convert -O raw PATH PATH.raw"),
    (0, b"\xfd7zXZ\0", "compressed by xz", "xz --decompress --stdout PATH > PATH.raw"),
    (0, b"\x1f\x8b", "compressed by gzip", "gzip --decompress --stdout PATH > PATH.raw"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "zstd --decompress PATH -o PATH.raw"),
    (0, b"BZh", "compressed by bzip2", "bzip2 --decompress --stdout PATH > PATH.raw"),
    (0, b"PK\3\4", "a zip archive", "unpack it into a directory, and give that as the disk"),
    (
        257,
        b"ustar",
        "a tar archive",
        "mkdir PATH.root && tar -xpf PATH -C PATH.root, and give that directory as the disk",
    ),
)
#: What may lie between a disk and its file system, by its name in libblkid: how to come through.
_LAYERS = {
    "crypto_LUKS": "cryptsetup open PATH NAME, and give /dev/mapper/NAME as the disk",
    "BitLocker": "cryptsetup open PATH NAME, and give /dev/mapper/NAME as the disk",
    "LVM2_member": "vgchange -ay, and give a volume as the disk: lvs -o lv_path lists them",
    "linux_raid_member": "mdadm --assemble --scan, and give /dev/mdN as the disk",
}
#: Bytes of data that are read before a disk counts as not blank.
_BLANK_MAX = 64 << 20
#: The largest block of ext4 is 64 KiB: 1 KiB shifted by this.
_EXT_SHIFT_MAX = 6
#: Where the superblock of XFS has the UUID.
_XFS_UUID = slice(32, 48)
#: Every file is smaller than this (off_t).
_SIZE_LIMIT = 1 << 63


class Disk:
    """A disk that was opened once (O_PATH): `fd` stays the disk that was checked.

    The path may lead to another file later. Close the disk when done.

    Attributes:
        path: The path as given.
        real: The path without symbolic links.
        fd: The descriptor (O_PATH), owned by this object.
        kind: `block`, `image` or `directory`.
        key: The identity apart from the path: `block-MAJ:MIN`, or `DEV-INO` of the file or
            directory.
    """

    __slots__ = ("dev", "fd", "file", "ino", "key", "kind", "path", "rdev", "real")
    fd: int

    def __init__(self, path: str, fd: int, kind: str, status: syscalls.Stat) -> None:
        self.fd = -1
        self.path = path
        self.real = os.readlink(f"/proc/thread-self/fd/{fd}")
        self.kind = kind
        self.dev = status.dev
        self.ino = status.ino
        self.rdev = status.rdev
        # A loop device of another program is locked as the file that it is attached to.
        self.file = loop.backing(self.real) if kind == "block" else (self.dev, self.ino)
        if self.file is None:
            self.key = f"block-{os.major(self.rdev)}:{os.minor(self.rdev)}"
        else:
            self.key = f"{os.major(self.file[0])}:{os.minor(self.file[0])}-{self.file[1]}"
        self.fd = fd

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def silent(path: str, error: deadlines.DeadlineExceeded) -> DiskError:
    """Make the error for a disk that does not answer.

    Args:
        path: The disk's path.
        error: The expired time limit.
    """
    return DiskError(
        f"the disk {path} does not answer: {error.strerror}",
        [error.describe()],
        "look at its device or server; disk_timeout says how long to wait for it",
    )


def identify(path: str, *, seconds: float) -> Disk:
    """Open the disk at a path and determine its kind.

    Args:
        path: The path of a block device, image or directory.
        seconds: Seconds for the disk to answer.

    Returns:
        The disk. The caller must close it.

    Raises:
        DiskError: The disk is missing, of no usable kind, or does not answer in time.
    """
    fd = -1
    try:
        fd = deadlines.open_path(path, seconds=seconds)
        deadlines.check_open(path, fd, seconds=seconds)
        disk = _disk(path, fd)
        fd = -1  # owned by the disk
        return disk
    except deadlines.DeadlineExceeded as error:
        raise silent(path, error) from error
    except OSError as error:
        reason = (
            "does not exist"
            if error.errno == errno.ENOENT
            else f"cannot be looked at: {error.strerror}"
        )
        raise DiskError(
            f"the disk {path} {reason}", hint="disk is a block device, an image file or a directory"
        ) from error
    finally:
        if fd >= 0:
            os.close(fd)


def _disk(path: str, fd: int) -> Disk:
    status = syscalls.statx("", fd)
    for test, kind in (
        (stat.S_ISBLK, "block"),
        (stat.S_ISREG, "image"),
        (stat.S_ISDIR, "directory"),
    ):
        if test(status.mode):
            return Disk(path, fd, kind, status)
    words = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a character device"}
    what = words.get(stat.S_IFMT(status.mode), "of an unknown type")
    raise DiskError(
        f"the disk {path} is {what}", hint="disk is a block device, an image file or a directory"
    )


def way_to(path: str, *, seconds: float) -> dict[str, os.stat_result]:
    """Look up a disk.

    Args:
        path: The disk's path.
        seconds: Seconds for each directory to answer.

    Returns:
        The status of each directory and link on the way, and of the disk, as `Root.on_the_way`;
        empty if the path is gone.

    Raises:
        DiskError: The path does not answer in time.
    """
    try:
        return Root("/", seconds=seconds).on_the_way(path)
    except deadlines.DeadlineExceeded as error:
        raise silent(path, error) from error
    except OSError:
        # the path was just found, so it is being replaced; the mount detects that by its descriptor
        return {}


def exposed(way: Mapping[str, os.stat_result]) -> str:
    """Find a directory on the way to a disk in which other users could replace the disk.

    In a sticky directory, only root can replace files of root.

    Args:
        way: The way, by `way_to`.

    Returns:
        The reason, as a clause; empty if only root can replace the disk.
    """
    roots = (0, os.geteuid())
    for place, status in list(way.items())[:-1]:
        if not stat.S_ISDIR(status.st_mode):
            continue
        if status.st_uid not in roots:
            return f"the directory {place} belongs to user {status.st_uid}"
        inside = [
            other.st_uid
            for name, other in way.items()
            if name != "/" and os.path.dirname(name) == place
        ]
        kept = status.st_mode & stat.S_ISVTX and all(user in roots for user in inside)
        if status.st_mode & 0o022 and not kept:
            return (
                f"the directory {place} can be written by others (mode "
                f"{stat.S_IMODE(status.st_mode):04o})"
            )
    return ""


def directories_above(way: Mapping[str, os.stat_result]) -> set[tuple[int, int]]:
    """List the directories on the way to a disk, the disk itself excepted.

    Args:
        way: The way, by `way_to`.

    Returns:
        The device and inode of each, as in `os.stat`.
    """
    passed = list(way.values())[:-1]
    return {(each.st_dev, each.st_ino) for each in passed if stat.S_ISDIR(each.st_mode)}


def check_place(disk: Disk, run_dir: str) -> None:
    """Refuse a disk that is `/`, contains the run directory, or lies in the run directory.

    Raises:
        DiskError: The disk is refused.
    """
    run = os.path.realpath(run_dir)
    if disk.kind != "block" and is_within(disk.real, run):
        raise DiskError(
            f"the disk {disk.path} lies in the run directory {run}",
            hint="keep disks outside the run directory",
        )
    if disk.kind != "directory":
        return
    top = os.stat("/")
    if disk.real == "/" or (disk.dev, disk.ino) == (top.st_dev, top.st_ino):
        raise DiskError(
            f"the disk {disk.path} is the host's own root directory",
            hint="give the instance a directory of its own",
        )
    if is_within(run, disk.real):
        raise DiskError(
            f"the disk {disk.path} contains the run directory {run}",
            hint="give the instance a directory of its own",
        )


def users(disk: Disk, *, kept: str | None = None) -> list[str]:
    """Describe what already uses a block device or image: mounts and loop devices.

    A device that is in use but not mounted is checked again for `SETTLE` seconds, because a mount
    or unmount may be ending after its manager was killed.

    Args:
        disk: The disk.
        kept: The device with the disk's file system, which other mount namespaces may have mounted.

    Returns:
        One line for each user; empty if the disk is free.
    """
    deadline = time.monotonic() + SETTLE
    while True:
        found = _users(disk, kept)
        if (
            not found
            or any(line.startswith("mounted on ") for line in found)
            or time.monotonic() >= deadline
        ):
            return found
        time.sleep(0.01)  # the kernel does not announce a release


def _users(disk: Disk, kept: str | None) -> list[str]:
    found: list[str] = []
    if disk.kind == "directory":
        return found
    if disk.kind == "image":
        for device in loop.find_loop_devices({(disk.dev, disk.ino): disk.path}):
            attached = [f"attached as {device}"] if device != kept else []
            found.extend(_mounted_on(os.stat(device).st_rdev) or attached)
    elif disk.kind == "block":
        if disk.file is not None:
            others = [
                device
                for device in loop.find_loop_devices({disk.file: disk.path})
                if os.stat(device).st_rdev != disk.rdev
            ]
            for device in others:
                found.extend(
                    _mounted_on(os.stat(device).st_rdev)
                    or [f"its file is attached as {device} too"]
                )
        # A disk that opens exclusively is not mounted: the mount table need not be read.
        if not is_free(f"/proc/thread-self/fd/{disk.fd}"):
            found.extend(_mounted_on(disk.rdev))
            in_use = (
                "in use by the kernel (swap, LVM, RAID, device mapper), or mounted in another "
                "mount namespace"
            )
            found = found or ([] if kept else [in_use])
    return found


def _mounted_on(rdev: int) -> list[str]:
    table = mountinfo.Table()
    entries = list(mountinfo.of_device(table, rdev))
    for entry in mountinfo.on_several_devices(table):
        try:
            if os.stat(entry.source).st_rdev == rdev:
                entries.append(entry)
        except OSError:
            continue
    return [f"mounted on {os.fsdecode(entry.mount_point)}" for entry in entries]


def is_free(device: str) -> bool:
    """Check with `open(O_EXCL)` that nothing in the kernel uses a block device.

    Raises:
        OSError: The device cannot be checked.
    """
    try:
        with opened(device, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK):
            pass
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM):
            return True  # gone, so nothing uses it
        raise
    return True


def is_released(
    kind: str, path: str, file: tuple[int, int], loop_device: str | None, *, settle: float = SETTLE
) -> bool:
    """Prove that a disk is free: the device opens exclusively, or no loop device uses the image.

    Args:
        kind: `block`, `image` or `directory`; a directory is always free.
        path: The disk's path.
        file: Device and inode of an image.
        loop_device: The loop device made for the image. `None` if it is unknown; then no loop
            device at all may use the image.
        settle: Seconds to wait for the release.

    Returns:
        Whether the disk is free.
    """
    deadline = time.monotonic() + settle
    pause = 0.0005
    while True:
        if kind == "directory" or (kind == "block" and is_free(path)):
            return True
        if kind == "image" and not (
            loop.find_loop_devices({file: path})
            if loop_device is None
            else loop.is_over(loop_device, file, path)
        ):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)  # the kernel does not announce a release: check less and less often
        pause = min(pause * 2, 0.05)


class _Blkid:
    """libblkid, which every system with util-linux has."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libblkid.so.1")
        self.lib.blkid_new_probe.restype = ctypes.c_void_p


def filesystem(path: str, fd: int) -> str:
    """Determine the type of the file system on an open disk with libblkid, such as `ext4`.

    Args:
        path: The disk's path, for errors.
        fd: A readable descriptor of the device or image.

    Raises:
        DiskError: The disk has no file system, several, or other content.
        OSError: The disk cannot be read.
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
        for _ in range(2):  # libblkid does not repeat a read that a signal interrupted
            result = lib.blkid_do_safeprobe(probe)
            if result >= 0 or result == -2:
                break
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
        raise DiskError(
            f"the disk {path} holds {kind} ({usage}), not a file system",
            hint=_device_first(fd, path, _LAYERS[kind]) if kind in _LAYERS else "",
        )
    if partitions:
        is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        raise DiskError(
            f"the disk {path} holds a {partitions} partition table, not a file system",
            hint=f"{'lsblk' if is_device else 'losetup --find --show --partscan'}"
            f" {shlex.quote(path)}, and give a partition as the disk",
        )
    raise _unknown(path, fd)


def _device_first(fd: int, path: str, hint: str) -> str:
    """Return the hint for what lies below a file system; an image needs a device for it first."""
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return hint.replace("PATH", shlex.quote(path))
    if "PATH" not in hint:
        return f"losetup --find --show {shlex.quote(path)}, then {hint}"
    return hint.replace("PATH", shlex.quote(path))  # cryptsetup takes a file


def _unknown(path: str, fd: int) -> DiskError:
    """Make the error for a disk without a known file system.

    mkfs(8) is suggested only for a disk that is blank.
    """
    try:
        head = os.pread(fd, 512, 0)
        is_blank = _is_blank(fd)
    except OSError as error:
        return DiskError(
            f"the disk {path} cannot be read: {error.strerror}", hint="dmesg may say more"
        )
    for at, magic, what, hint in _OTHERS:
        if head[at:].startswith(magic):
            return DiskError(
                f"the disk {path} is {what}, not a file system", hint=hint.replace("PATH", path)
            )
    if is_blank:
        return DiskError(
            f"the disk {path} holds no file system, and nothing else",
            hint=f"make one: mkfs.ext4 {path}",
        )
    return DiskError(
        f"the disk {path} holds no known file system",
        hint=f"blkid -p {path} and file -s {path} may say what is on it; set fstype if you know",
    )


def _is_blank(fd: int) -> bool:
    """Check that a disk contains only zeros.

    A disk with more than `_BLANK_MAX` bytes of data is not read to its end, and counts as not
    blank.
    """
    at, left, end = 0, _BLANK_MAX, os.lseek(fd, 0, os.SEEK_END)
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # the rest is a hole
                return True
            if error.errno != errno.EINVAL:  # a device has no holes
                raise
        chunk = os.pread(fd, 1 << 20, at)
        left -= len(chunk)
        if not chunk or left < 0 or chunk.count(0) != len(chunk):
            return False
        at += len(chunk)
    return True


def size_recorded(fd: int, fstype: str) -> int:
    """Read from the superblock how large the file system is.

    The mount of a truncated image fails with EINVAL only.

    Args:
        fd: A readable descriptor of the device or image.
        fstype: The type of its file system.

    Returns:
        The size in bytes; 0 if the superblock of this type is not known here.
    """
    number = int.from_bytes
    size = 0
    try:
        if fstype.startswith("ext"):
            head = os.pread(fd, 64, 1024)
            shift = number(head[24:28], "little")
            if head[56:58] == b"\x53\xef" and shift <= _EXT_SHIFT_MAX:
                size = number(head[4:8], "little") << (10 + shift)
        elif fstype == "xfs":
            head = os.pread(fd, 16, 0)
            if head.startswith(b"XFSB"):
                size = number(head[4:8], "big") * number(head[8:16], "big")
        elif fstype == "btrfs":
            head = os.pread(fd, 64, 0x10040)
            if head.startswith(b"_BHRfS_M"):
                size = number(head[48:56], "little")
    except OSError:
        return 0  # the mount reports that the disk cannot be read
    return size if size < _SIZE_LIMIT else 0


def find_same_xfs(fd: int, *, seconds: float) -> str:
    """Find a mounted XFS file system with the UUID of an open disk's.

    The kernel lists what it has mounted, in whichever mount namespace, in /sys/fs/xfs.

    Args:
        fd: A readable descriptor of the device or image.
        seconds: Seconds for a device to answer.

    Returns:
        The path of the other device; empty if there is none.
    """
    try:
        own = os.pread(fd, _XFS_UUID.stop, 0)
        names = [name for name in os.listdir("/sys/fs/xfs") if name != "stats"]
    except OSError:
        return ""  # the mount's own error is reported
    for name in names if own.startswith(b"XFSB") else ():
        device = "/dev/" + name.replace("!", "/")  # as sysfs writes a slash
        try:
            head = _read_head(device, _XFS_UUID.stop, seconds)
        except OSError:
            continue
        if head[_XFS_UUID] == own[_XFS_UUID]:
            return device
    return ""


def _read_head(device: str, size: int, seconds: float) -> bytes:
    """Read the beginning of a block device, in a child: the device may not answer."""
    root = Root("/", seconds=seconds)
    calls, found, _ = root.look_up(device, os.O_RDONLY | os.O_NONBLOCK)
    buffer = calls.add_buffer(size)
    calls.add("pread64", found, buffer, size, 0)
    root.carry_out(device, calls)
    return buffer.read(size)


def _value(lib: ctypes.CDLL, probe: ctypes.c_void_p, name: bytes) -> str:
    data, length = ctypes.c_char_p(), ctypes.c_size_t()
    if lib.blkid_probe_lookup_value(probe, name, ctypes.byref(data), ctypes.byref(length)) != 0:
        return ""
    return (data.value or b"").decode("utf-8", "replace")


def checker(fstype: str | None, path: str) -> str:
    """Return the command that checks such a file system without writing to it.

    Args:
        fstype: The type of the file system; `None` if it is unknown.
        path: The disk's path.
    """
    return f"{_CHECKERS.get(fstype or '', 'fsck -N')} {path}"
