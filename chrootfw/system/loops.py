"""Image files and their loop devices (loop(4))."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time

from chrootfw.errors import DiskError
from chrootfw.system import deadlines, syscalls
from chrootfw.system.call_lists import UNSET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LOOP_GET_STATUS64 = 0x4C82, 0x4C0A, 0x4C05
#: Seconds for the file below a loop device to answer, and for which one that did not is not asked again.
_ANSWERS, _SILENT_FOR = 1.0, 30.0
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_TO_THE_LAST = 0xFFFFFFFF

#: What is said where no child or descriptor could be made to ask with, or somebody ended the child.
_NOT_ASKED = (errno.EAGAIN, errno.ECHILD, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

#: Bytes for the path of one.
_PATH = 24

#: More loop devices than these are asked by one child together.
_FEW = 4


class _Info(ctypes.Structure):
    """struct loop_info64"""

    _fields_ = (
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("rdevice", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("sizelimit", ctypes.c_uint64),
        ("number", ctypes.c_uint32),
        ("encrypt_type", ctypes.c_uint32),
        ("encrypt_key_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("file_name", ctypes.c_char * 64),
        ("crypt_name", ctypes.c_char * 64),
        ("encrypt_key", ctypes.c_char * 32),
        ("init", ctypes.c_uint64 * 2),
    )


_SIZE = ctypes.sizeof(_Info)


class _Config(ctypes.Structure):
    """struct loop_config"""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _Info),
        ("reserved", ctypes.c_uint64 * 8),
    )


def attach(image: str, image_fd: int, *, read_only: bool) -> tuple[str, int]:
    """A loop device over the open image: its path, and a descriptor that keeps it until it is mounted.

    AUTOCLEAR: the kernel releases it with the last user, a killed manager included. Direct I/O where
    the image's file system can. Raises ``OSError``.
    """
    flags = _AUTOCLEAR | _DIRECT_IO | (_READ_ONLY if read_only else 0)
    config = _Config(fd=image_fd, info=_Info(flags=flags, file_name=os.fsencode(image)[:63]))
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DiskError(
            f"cannot make a loop device for {image}: /dev/loop-control: {error.strerror}",
            hint="modprobe loop; a container needs the host's loop devices",
        ) from error
    try:
        for attempt in range(100):
            device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device_fd = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device_fd, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device_fd)
                if error.errno == errno.EBUSY and attempt < 99:
                    continue  # somebody else took the free one first
                raise
            except BaseException:
                os.close(device_fd)
                raise
            return device, device_fd
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), "/dev/loop-control")


def over(files: dict[tuple[int, int], str] | None = None, *, devices: frozenset[int] = frozenset()) -> dict[str, str]:
    """The loop devices over some files, as ``{"/dev/loopN": file}``.

    ``files``: (device, inode) of the files looked for, with what to call them; ``devices``: any file on one of these devices.
    Where the file's own server does not answer, a file goes by its path alone. Raises ``DiskError`` where nothing can be asked.
    """
    found: dict[str, str] = {}
    names = _configured()
    known = _ask_together(names) if len(names) > _FEW else {}
    for name in names:
        identity = known.get(name)
        if identity is None or identity[0] in devices:
            path = _path_of(name)
            if path is None:
                continue
            try:
                identity = identity or _identity(f"/dev/{name}", path)
            except deadlines.Overdue:
                if files and (named := [called for called in files.values() if os.path.normpath(called) == path]):
                    found[f"/dev/{name}"] = named[0]
                continue
            except OSError:
                continue  # not configured, or released meanwhile
            if identity[0] in devices:
                found[f"/dev/{name}"] = path
        if files and identity in files:
            found[f"/dev/{name}"] = files[identity]
    return found


def _ask_together(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(device, inode) of the files below many loop devices, asked for by one child; those that do not answer are left out.

    A node has as many as it has instances, and each start asks for all.
    """
    found: dict[str, tuple[int, int]] = {}
    if _silent:
        names = [name for name in names if not _was_silent(f"/dev/{name}", _path_of(name))]
    while names:
        calls = deadlines.alone()
        room, paths = calls.room(len(names) * _SIZE), calls.room(len(names) * _PATH)
        paths.data[:] = b"".join([f"/dev/{name}".encode().ljust(_PATH, b"\0") for name in names])
        begins = calls.repeat(
            len(names),
            ("close_range", [(0, 0), (_TO_THE_LAST, 0), (0, 0)]),
            ("openat", [(syscalls.AT_FDCWD, 0), (paths.address, _PATH), (os.O_RDONLY | os.O_NONBLOCK, 0)]),  # 0
            ("ioctl", [(0, 0), (_LOOP_GET_STATUS64, 0), (room.address, _SIZE)]),
        )
        silent = False
        try:
            deadlines.carry_out("the loop devices", calls, seconds=_ANSWERS)
        except deadlines.Overdue:
            silent = True
        except OSError:
            pass  # no child could be made, or somebody ended it: each is asked alone
        results = calls.results()
        for number, (name, begin) in enumerate(zip(names, begins, strict=True)):
            if results[begin + 2] >= 0:
                info = _Info.from_buffer_copy(room.data, number * _SIZE)
                found[name] = info.device, info.inode
        begun = sum(results[begin] != UNSET for begin in begins)
        if not silent or not begun:
            break
        _silent[f"/dev/{names[begun - 1]}", _path_of(names[begun - 1])] = time.monotonic()
        names = names[begun:]
    return found


def _configured() -> list[str]:
    """The names of the loop devices that have a size: the kernel's list of all of them holds hundreds that have no file."""
    with open("/proc/partitions", encoding="utf-8") as file:
        names = [line.split()[-1] for line in file if " loop" in line]
    return [name for name in names if name[4:].isdigit()]  # not their partitions


def backing(device: str) -> tuple[int, int] | None:
    """(device, inode) of the file that a loop device is over; ``None`` when it is none, or not configured.

    Raises ``deadlines.Overdue`` when the file's server does not answer, ``DiskError`` where it cannot be asked.
    """
    path = backing_path(device)
    if path is None:
        return None
    try:
        return _identity(device, path)
    except deadlines.Overdue:
        raise
    except OSError:
        return None


def backing_path(device: str) -> str | None:
    """The path of the file that a loop device is over, as the kernel knows it; ``None`` when there is none."""
    return _path_of(os.path.basename(os.path.realpath(device)))


def _path_of(name: str) -> str | None:
    """``backing_path`` of ``loopN``; a node has as many as it has instances, and each start asks for all."""
    try:
        fd = os.open(f"/sys/block/{name}/loop/backing_file", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.fsdecode(os.read(fd, 1 << 16)).rstrip("\n")
    except OSError:
        return None
    finally:
        os.close(fd)


def is_over(device: str, file: tuple[int, int], path: str) -> bool:
    """Whether this one loop device is over a file, given as (device, inode) and by its path; as ``over`` has it."""
    try:
        return backing(device) == file
    except deadlines.Overdue:
        return backing_path(device) == os.path.normpath(path)


#: Loop devices whose file did not answer, and when that was (time.monotonic).
_silent: dict[tuple[str, str | None], float] = {}


def _was_silent(device: str, path: str | None) -> bool:
    return time.monotonic() < _silent.get((device, path), 0) + _SILENT_FOR


def _identity(device: str, path: str) -> tuple[int, int]:
    """LOOP_GET_STATUS64. It asks the file's file system (vfs_getattr), which may be a server that does not answer.

    Raises ``deadlines.Overdue`` then, ``OSError`` when the device is not configured, and ``DiskError`` where it cannot be asked: that is no answer,
    and whoever took it for one would call the file free.
    """
    try:
        return _asked(device, path)
    except OSError as error:
        if error.errno not in _NOT_ASKED:
            raise
        raise DiskError(
            f"cannot ask the loop device {device} which file it is over: {error.strerror}",
            hint="processes, descriptors or memory are used up; try it again",
        ) from error


def _asked(device: str, path: str) -> tuple[int, int]:
    if deadlines.is_local(path):
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        info = _Info()
        try:
            fcntl.ioctl(fd, _LOOP_GET_STATUS64, info)
        finally:
            os.close(fd)
        return info.device, info.inode
    if _was_silent(device, path):
        raise deadlines.Overdue(errno.ETIMEDOUT, "it did not answer a moment ago", path)
    calls = deadlines.alone()
    calls.add("openat", syscalls.AT_FDCWD, os.fsencode(device), os.O_RDONLY | os.O_NONBLOCK)  # 0: no other is open
    room = calls.room(_SIZE)
    calls.add("ioctl", 0, _LOOP_GET_STATUS64, room.address)
    try:
        deadlines.carry_out(path, calls, seconds=_ANSWERS)
    except deadlines.Overdue:
        _silent[device, path] = time.monotonic()
        raise
    info = _Info.from_buffer_copy(room.data)
    return info.device, info.inode
