"""Attach loop devices to image files, and find them (loop(4))."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time

from chrootfw.errors import DiskError
from chrootfw.linux import deadlines, syscalls
from chrootfw.linux.call_batch import UNSET
from chrootfw.linux.descriptors import opened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LOOP_GET_STATUS64 = 0x4C82, 0x4C0A, 0x4C05
#: Seconds for the file of a loop device to answer; seconds for which a silent file is not asked
#: again.
_ANSWERS, _SILENT_FOR = 1.0, 30.0
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_UINT_MAX = 0xFFFFFFFF
_MAJOR = 7

#: Errnos that mean that the question was not asked: no child or descriptor could be made, or the
#: child was killed.
_NOT_ASKED = (errno.EAGAIN, errno.ECHILD, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

#: Bytes reserved for the path of one device.
_PATH = 24

#: More loop devices than these are queried by one child together.
_FEW = 4


class _Info(ctypes.Structure):
    """The kernel's struct loop_info64."""

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
    """The kernel's struct loop_config."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _Info),
        ("reserved", ctypes.c_uint64 * 8),
    )


def attach(image: str, image_fd: int, *, read_only: bool) -> tuple[str, int]:
    """Attach a loop device to an open image, with direct I/O if the image's file system allows it.

    The kernel releases the device with its last user (AUTOCLEAR), also if chrootfw is killed.

    Args:
        image: The image's path, for errors and for the device's record.
        image_fd: A descriptor of the image.
        read_only: Whether the device is read-only.

    Returns:
        The path of the device, and a descriptor that keeps it until it is mounted.

    Raises:
        DiskError: No loop device can be made.
        OSError: The kernel refused a step.
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
            try:
                device_fd = os.open(
                    device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
                )
            except OSError as error:
                raise DiskError(
                    f"cannot make a loop device for {image}: {device}: {error.strerror}",
                    hint=_missing_hint(device)
                    if error.errno == errno.ENOENT
                    else "a container must be allowed to use loop devices; a directory as disk"
                    " needs none",
                ) from error
            try:
                fcntl.ioctl(device_fd, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device_fd)
                if error.errno == errno.EBUSY and attempt < 99:
                    continue  # another process took the free device first
                raise
            except BaseException:
                os.close(device_fd)
                raise
            return device, device_fd
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), "/dev/loop-control")


def _missing_hint(device: str) -> str:
    """Return the hint for a /dev that is not the kernel's own: nothing makes new nodes in it."""
    number = device.removeprefix("/dev/loop")
    return (
        f"mknod -m 0660 {device} b {_MAJOR} {number}: nothing makes new devices in this /dev; a"
        " container can be given the host's /dev"
    )


def obstacle() -> str:
    """Describe why no loop device can be attached; empty if one can.

    A file in memory is attached and released to find out.
    """
    fd = os.memfd_create("chrootfw")
    try:
        os.ftruncate(fd, 1 << 20)
        _, device_fd = attach("a trial", fd, read_only=False)
    except DiskError as error:
        return error.brief.removeprefix("cannot make a loop device for a trial: ")
    except OSError as error:
        return f"{error.filename or '/dev/loop-control'}: {error.strerror}"
    finally:
        os.close(fd)
    os.close(device_fd)  # this makes the kernel release it
    return ""


def reopen(device: str, image: str, image_fd: int, *, read_only: bool) -> int:
    """Open a loop device again if it is still attached to an image.

    Args:
        device: The path of the loop device.
        image: The image's path.
        image_fd: A descriptor of the image.
        read_only: Whether the device is read-only.

    Returns:
        A descriptor that keeps the device; -1 if it is not attached to the image.

    Raises:
        DiskError: The device shows only a part of the image.
        OSError: The device cannot be opened.
    """
    status = os.fstat(image_fd)
    path = _path_of(os.path.basename(device))
    if path is None:
        return -1
    fd = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        info = _asked(device, path)
        if (info.device, info.inode) == (status.st_dev, status.st_ino):
            if info.offset or info.sizelimit:
                raise DiskError(
                    f"the loop device {device} shows a part of {image} only",
                    hint=f"losetup --list {device}",
                )
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return -1


def find_loop_devices(
    files: dict[tuple[int, int], str] | None = None, *, devices: frozenset[int] = frozenset()
) -> dict[str, str]:
    """Find the loop devices that are attached to some files.

    If a file's own server does not answer, the file is recognised by its path alone.

    Args:
        files: Device and inode of each file, with its path; `None` for no files.
        devices: Device numbers; any file on one of these devices counts.

    Returns:
        The files by loop device: `{"/dev/loopN": file}`.

    Raises:
        DiskError: The loop devices cannot be queried.
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
            except deadlines.DeadlineExceeded:
                if files and (
                    named := [
                        called for called in files.values() if os.path.normpath(called) == path
                    ]
                ):
                    found[f"/dev/{name}"] = named[0]
                continue
            except OSError:
                continue  # not attached, or released meanwhile
            if identity[0] in devices:
                found[f"/dev/{name}"] = path
        if files and identity in files:
            found[f"/dev/{name}"] = files[identity]
    return found


def _ask_together(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Query the files of many loop devices in one child.

    A node has as many loop devices as instances, and each start queries all of them.

    Returns:
        Device and inode by the name of the loop device, without those that did not answer.
    """
    found: dict[str, tuple[int, int]] = {}
    if _silent:
        names = [name for name in names if not _was_silent(f"/dev/{name}", _path_of(name))]
    while names:
        calls = deadlines.make_closing_batch()
        infos = calls.add_buffer(len(names) * _SIZE)
        begins = []
        for number, name in enumerate(names):
            # The device is descriptor 0.
            begins.append(calls.add("close_range", 0, _UINT_MAX, 0))
            path = f"/dev/{name}".encode()
            calls.add("openat", syscalls.AT_FDCWD, path, os.O_RDONLY | os.O_NONBLOCK)
            calls.add("ioctl", 0, _LOOP_GET_STATUS64, infos.at(number * _SIZE))
            calls.skip(begins[-1])
        silent = False
        try:
            deadlines.run_batch("the loop devices", calls, seconds=_ANSWERS)
        except deadlines.DeadlineExceeded:
            silent = True
        except OSError:
            pass  # no child could be made, or it was killed: each device is queried alone
        results = calls.results()
        for number, (name, begin) in enumerate(zip(names, begins, strict=True)):
            if results[begin + 2] >= 0:
                info = _Info.from_buffer_copy(infos.read(_SIZE, number * _SIZE))
                found[name] = info.device, info.inode
        begun = sum(results[begin] != UNSET for begin in begins)
        if not silent or not begun:
            break
        _silent[f"/dev/{names[begun - 1]}", _path_of(names[begun - 1])] = time.monotonic()
        names = names[begun:]
    return found


def _configured() -> list[str]:
    """List the names of loop devices that have a size.

    The kernel lists hundreds of others that have no file.
    """
    with open("/proc/partitions", encoding="utf-8") as file:
        names = [line.split()[-1] for line in file if " loop" in line]
    return [name for name in names if name[4:].isdigit()]  # without partitions


def backing(device: str) -> tuple[int, int] | None:
    """Return device and inode of the file that a loop device is attached to.

    Args:
        device: The path of the device.

    Returns:
        Device and inode; `None` if it is not a loop device, or not attached.

    Raises:
        DeadlineExceeded: The file's server does not answer.
        DiskError: The device cannot be queried.
    """
    path = backing_path(device)
    if path is None:
        return None
    try:
        return _identity(device, path)
    except deadlines.DeadlineExceeded:
        raise
    except OSError:
        return None


def backing_path(device: str) -> str | None:
    """Return the kernel's path of the file that a loop device is attached to, or `None`."""
    return _path_of(os.path.basename(os.path.realpath(device)))


def backing_path_of(device: int) -> str | None:
    """Return the same as `backing_path` for a device number, also for a partition's."""
    place = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    return _read_path(f"{place}/loop/backing_file") or _read_path(f"{place}/../loop/backing_file")


def _path_of(name: str) -> str | None:
    """Return the same as `backing_path` for a name `loopN`, without resolving a path."""
    return _read_path(f"/sys/block/{name}/loop/backing_file")


def _read_path(file: str) -> str | None:
    try:
        with opened(file, os.O_RDONLY) as fd:
            return os.fsdecode(os.read(fd, 1 << 16)).rstrip("\n")
    except OSError:
        return None


def is_over(device: str, file: tuple[int, int], path: str) -> bool:
    """Check that one loop device is attached to a file.

    If the file's server does not answer, the path decides, as in `find_loop_devices`.

    Args:
        device: The path of the loop device.
        file: Device and inode of the file.
        path: The file's path.
    """
    try:
        return backing(device) == file
    except deadlines.DeadlineExceeded:
        return backing_path(device) == os.path.normpath(path)


#: Loop devices whose file did not answer, with the time of that (time.monotonic).
_silent: dict[tuple[str, str | None], float] = {}


def _was_silent(device: str, path: str | None) -> bool:
    return time.monotonic() < _silent.get((device, path), 0) + _SILENT_FOR


def _identity(device: str, path: str) -> tuple[int, int]:
    """Query device and inode of a loop device's file (LOOP_GET_STATUS64).

    The kernel asks the file's file system (vfs_getattr), which may be a silent server.

    Raises:
        DeadlineExceeded: The file's server does not answer.
        OSError: The device is not attached.
        DiskError: The device cannot be queried. This is not an answer: a caller that took it for
            one would call the file free.
    """
    try:
        info = _asked(device, path)
    except OSError as error:
        if error.errno not in _NOT_ASKED:
            raise
        raise DiskError(
            f"cannot ask the loop device {device} which file it is over: {error.strerror}",
            hint="processes, descriptors or memory are used up; try it again",
        ) from error
    return info.device, info.inode


def _asked(device: str, path: str) -> _Info:
    if deadlines.is_local(path):
        info = _Info()
        with opened(device, os.O_RDONLY | os.O_NONBLOCK) as fd:
            fcntl.ioctl(fd, _LOOP_GET_STATUS64, info)
        return info
    if _was_silent(device, path):
        raise deadlines.DeadlineExceeded(errno.ETIMEDOUT, "it did not answer a moment ago", path)
    calls = deadlines.make_closing_batch()
    # The device is descriptor 0: no other is open.
    calls.add("openat", syscalls.AT_FDCWD, os.fsencode(device), os.O_RDONLY | os.O_NONBLOCK)
    buffer = calls.add_buffer(_SIZE)
    calls.add("ioctl", 0, _LOOP_GET_STATUS64, buffer)
    try:
        deadlines.run_batch(path, calls, seconds=_ANSWERS)
    except deadlines.DeadlineExceeded:
        _silent[device, path] = time.monotonic()
        raise
    return _Info.from_buffer_copy(buffer.data)
