"""System calls that Python lacks, through ctypes; each function raises `OSError`.

No maintained package on PyPI has them. Numbers from 424 up are the same on every architecture
except alpha. Every call exists in Linux 5.14 unless its docstring says otherwise.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from chrootfw.linux.descriptors import Descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Calls:
    """Bound functions of libc."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        self.syscall = libc.syscall
        self.syscall.restype = ctypes.c_long
        self.close, self.read, self.write = libc.close, libc.read, libc.write
        self.statx = getattr(libc, "statx", self._statx)  # musl has it since 1.2.5
        self.mount, self.umount2, self.unshare, self.setns = (
            libc.mount,
            libc.umount2,
            libc.unshare,
            libc.setns,
        )
        self.prctl, self.sigprocmask = libc.prctl, libc.sigprocmask
        self.tee = libc.tee
        self.tee.restype = ctypes.c_ssize_t

    def _statx(self, *arguments: Any) -> int:
        from chrootfw.linux.syscall_numbers import NUMBERS  # which imports this module

        result: int = self.syscall(NUMBERS["statx"], *arguments)
        return result


#: e_machine of elf(5). asm-generic is Linux's name for the numbers that aarch64, riscv64 and
#: loongarch64 share.
_MACHINES = {
    0x3E: "x86_64",
    0xB7: "asm-generic",
    0xF3: "asm-generic",
    0x102: "asm-generic",
    0x15: "ppc64",
    0x16: "s390x",
}


def _architecture() -> str:
    """Return the architecture whose system call numbers this program has.

    The program's own ELF header is read, since uname(2) depends on personality(2).
    """
    try:
        with open("/proc/self/exe", "rb", buffering=0) as file:
            header = file.read(20)
    except OSError:
        return ""
    is_64_bits = header[4:5] == b"\2"
    return _MACHINES.get(int.from_bytes(header[18:20], sys.byteorder), "") if is_64_bits else ""


ARCHITECTURE = _architecture()


RELEASE = os.uname().release


def kernel() -> tuple[int, int]:
    """Return the kernel's version, such as `(6, 1)`; `(5, 15)` for `5.15-rc3`."""
    major, minor = RELEASE.replace("-", ".").replace("+", ".").split(".")[:2]
    return int(major), int(minor)


CALLS = Calls(ctypes.CDLL(None, use_errno=True))
_syscall = CALLS.syscall

_IS_NO_ERROR = (-1).__lt__

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_OPENAT2, _MOUNT_SETATTR = 437, 442
_STATMOUNT, _LISTMOUNT = 457, 458
_KCMP_FILES, _KCMP_FS = 2, 3
_SPLICE_F_NONBLOCK = 2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
AT_REMOVEDIR = 0x200
AT_NO_AUTOMOUNT = 0x800
AT_RECURSIVE = 0x8000
AT_STATX_DONT_SYNC = 0x4000

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

CLONE_NEWNS = 0x00020000
CLONE_FS = 0x00000200
MS_REC, MS_PRIVATE, MS_SLAVE = 0x4000, 0x40000, 0x80000

OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20  # 5.12

_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6

STATX_MNT_ID, _STATX_MNT_ID_UNIQUE = 0x1000, 0x4000
STATX_BASIC_AND_MNT_ID = 0x07FF | STATX_MNT_ID
STATX_ATTR_MOUNT_ROOT = 0x2000
#: struct statx, and its fields: attributes, uid, mode, ino, rdev and dev as major and minor,
#: mnt_id.
STATX_SIZE, STATX_SIZE_OFFSET, STATX_MNT_ID_OFFSET = 256, 40, 144
_Statx = ctypes.c_char * STATX_SIZE
STATMOUNT_SB_BASIC, STATMOUNT_MNT_BASIC, STATMOUNT_MNT_ROOT, STATMOUNT_MNT_POINT = (
    0x1,
    0x2,
    0x8,
    0x10,
)
STATMOUNT_FS_TYPE, STATMOUNT_FS_SUBTYPE, STATMOUNT_SB_SOURCE = 0x20, 0x100, 0x200
#: struct mnt_id_req: size, mnt_ns_fd, mnt_id, param.
_MNT_ID_REQ = struct.Struct("=IIQQ")
#: struct statmount: its size; its fields mask, device, IDs (both kinds, of the mount and its
#: parent) and attributes; the offset of its texts, and the offsets of the words that locate them.
_STATMOUNT_SIZE, _STATMOUNT_STRINGS = 16384, 512
_STATMOUNT_FIELDS = struct.Struct("=8xQII16xQQIIQ")
_STATMOUNT_TEXTS = {
    STATMOUNT_MNT_ROOT: 104, STATMOUNT_MNT_POINT: 108, STATMOUNT_FS_TYPE: 36,
    STATMOUNT_FS_SUBTYPE: 120, STATMOUNT_SB_SOURCE: 124,
}  # fmt: skip
_WORD = struct.Struct("=I")
_STATX_FIELDS = struct.Struct("=8xQ4xI4xH2xQ88x4IQ")


def _check(result: int, call: str, path: str | bytes | None = None) -> int:
    if result >= 0:
        return result
    code = ctypes.get_errno()
    shown = os.fsdecode(path) if path else None
    raise OSError(code, f"{call}: {os.strerror(code)}", shown)


def _call(*arguments: Any) -> int:
    """Make a system call, again after a signal has interrupted it, as Python does (PEP 475)."""
    while True:
        result: int = _syscall(*arguments)
        if result >= 0 or ctypes.get_errno() != errno.EINTR:
            return result


class OpenHow(ctypes.Structure):
    """The kernel's struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(
    dir_fd: int,
    path: str | bytes,
    flags: int,
    resolve: int,
    mode: int = 0,
    *,
    owner: Descriptors | None = None,
) -> int:
    """Open a file with openat2(2), close-on-exec.

    A look-up that races with a rename (EAGAIN) is repeated.

    Args:
        dir_fd: The directory at which a relative path begins.
        path: The path.
        flags: Flags of open(2).
        resolve: Flags RESOLVE_*.
        mode: The mode of a file that is created.
        owner: Gets the descriptor, if it is given.

    Returns:
        The descriptor. The caller must close it if it has no owner.
    """
    how = OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    code = 0
    arguments = [
        (argument,) for argument in (_OPENAT2, dir_fd, os.fsencode(path), ctypes.byref(how), size)
    ]
    found = Descriptors() if owner is None else owner
    had = len(found)
    for _ in range(1 if resolve & RESOLVE_CACHED else 100):
        found.extend(filter(_IS_NO_ERROR, map(_syscall, *arguments)))
        if len(found) > had:
            return found.pop() if owner is None else found[-1]
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, f"openat2: {os.strerror(code)}", os.fsdecode(path))


def open_tree(dir_fd: int, path: str | bytes, *, recursive: bool = False) -> int:
    """Clone a mount, detached, with open_tree(2) and OPEN_TREE_CLONE.

    Args:
        dir_fd: The directory at which a relative path begins.
        path: The path of the mount; empty for `dir_fd` itself.
        recursive: Whether to clone the mounts below it too.

    Returns:
        The descriptor of the clone. The caller must close it.
    """
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_NO_AUTOMOUNT
    flags |= AT_RECURSIVE if recursive else 0
    flags |= 0 if path else AT_EMPTY_PATH
    return _check(_call(_OPEN_TREE, dir_fd, os.fsencode(path), flags), "open_tree", path)


def move_mount(mount_fd: int, target_fd: int) -> None:
    """Attach a mount with move_mount(2). A target in a detached tree needs Linux 6.15.

    Args:
        mount_fd: The mount.
        target_fd: The file or directory to attach it to.

    Raises:
        OSError: The kernel refused it; EINVAL for a detached tree before Linux 6.15.
    """
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _check(_call(_MOVE_MOUNT, mount_fd, b"", target_fd, b"", flags), "move_mount")


class MountAttr(ctypes.Structure):
    """The kernel's struct mount_attr."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount_setattr(
    mount_fd: int, *, set: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = False
) -> None:
    """Change the attributes of a mount with mount_setattr(2).

    Args:
        mount_fd: The mount.
        set: MOUNT_ATTR_* to set.
        clear: MOUNT_ATTR_* to clear.
        propagation: MS_PRIVATE, MS_SLAVE, or 0 for no change.
        recursive: Whether to change the mounts below it too.
    """
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    attr = MountAttr(set, clear, propagation, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    _check(_call(_MOUNT_SETATTR, mount_fd, b"", flags, ctypes.byref(attr), size), "mount_setattr")


def make_all_slave() -> None:
    """Make every mount of the calling thread's namespace a slave with mount(2).

    The mounts still receive events from their peers, and no longer send any.
    """
    _check(CALLS.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None), "mount", "/")


#: Messages in the log of a context; the kernel keeps eight.
_LOG_MAX = 16


class FilesystemError(OSError):
    """A file system that the kernel refused to mount.

    Attributes:
        option: The option that was refused, or an empty string.
        said: The kernel's messages in the log of the file system's context (fsopen(2)), one a line.
    """

    def __init__(self, code: int, option: str, said: list[str]) -> None:
        text = os.strerror(code)
        super().__init__(code, f"option {option}: {text}" if option else text)
        self.option = option
        self.said = said


def new_filesystem(
    fstype: str,
    parameters: list[tuple[str, str | None]],
    attributes: int,
    create: Callable[[int], object] | None = None,
) -> int:
    """Mount a new file system, detached, with fsopen(2), fsconfig(2) and fsmount(2).

    Args:
        fstype: The type of the file system.
        parameters: Pairs of key and value; the value is `None` for a flag.
        attributes: MOUNT_ATTR_* of the mount.
        create: Makes the one call that reads the device, FSCONFIG_CMD_CREATE, on the context's
            descriptor. `None` makes the call here.

    Returns:
        The descriptor of the mount. The caller must close it.

    Raises:
        FilesystemError: A call failed.
        OSError: The kernel has no such file system, or the device does not answer.
    """
    context = _check(_call(_FSOPEN, fstype.encode(), 1), "fsopen", fstype)
    try:
        for key, value in parameters:
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            raw = None if value is None else os.fsencode(value)
            shown = key if value is None else f"{key}={value}"
            _logged(context, _call(_FSCONFIG, context, command, os.fsencode(key), raw, 0), shown)
        if create is None:
            _logged(context, _call(_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0), "")
        else:
            try:
                create(context)
            except OSError as error:
                if error.errno == errno.ETIMEDOUT:
                    raise
                raise _with_log(context, error.errno or 0, "") from error
        return _logged(context, _call(_FSMOUNT, context, 1, attributes), "")
    finally:
        os.close(context)


def _logged(context: int, result: int, option: str) -> int:
    if result >= 0:
        return result
    raise _with_log(context, ctypes.get_errno(), option)


def _with_log(context: int, code: int, option: str) -> FilesystemError:
    said: list[str] = []
    try:
        while len(said) < _LOG_MAX and (line := os.read(context, 1024)):
            said.append(line.decode("utf-8", "replace").strip()[2:])  # without its "e ", "w ", "i "
    except OSError:
        pass  # the log is empty: ENODATA
    return FilesystemError(code, option, said)


def umount2(path: str | bytes, flags: int) -> None:
    """Unmount with umount2(2)."""
    _check(CALLS.umount2(os.fsencode(path), flags), "umount2", path)


def unshare(flags: int) -> None:
    """Call unshare(2) for the calling thread alone."""
    _check(CALLS.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """Call setns(2) for the calling thread alone."""
    _check(CALLS.setns(fd, flags), "setns")


class Stat:
    """A result of `statx`.

    Attributes:
        mnt_id: The ID of the mount.
        dev: The device, as in `os.stat`.
        ino: The inode.
        mode: The type and mode.
        rdev: The device of a device file, as in `os.stat`.
        uid: The owner.
        attributes: STATX_ATTR_*.
    """

    __slots__ = ("attributes", "dev", "ino", "mnt_id", "mode", "rdev", "uid")
    attributes: int
    uid: int
    mode: int
    ino: int
    mnt_id: int

    def __init__(self, buffer: Any) -> None:
        self.attributes, self.uid, self.mode, self.ino, *devices, self.mnt_id = (
            _STATX_FIELDS.unpack_from(buffer)
        )
        self.rdev, self.dev = os.makedev(*devices[:2]), os.makedev(*devices[2:])


def statx(path: str | bytes, dir_fd: int = AT_FDCWD, *, follow: bool = True) -> Stat:
    """Call statx(2) for cached values (AT_STATX_DONT_SYNC), which never waits for a dead server."""
    flags = (0 if follow else AT_SYMLINK_NOFOLLOW) | (0 if path else AT_EMPTY_PATH)
    flags |= AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT
    buffer = _Statx()
    result = CALLS.statx(dir_fd, os.fsencode(path), flags, STATX_BASIC_AND_MNT_ID, buffer)
    _check(result, "statx", path)
    return Stat(buffer)


def unique_mount_id(path: str | bytes, dir_fd: int = AT_FDCWD) -> int:
    """Return the ID of a path's mount that no other mount gets in this boot; 0 before Linux 6.8.

    The path is not followed.
    """
    flags = (AT_SYMLINK_NOFOLLOW if path else AT_EMPTY_PATH) | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT
    buffer = _Statx()
    _check(
        CALLS.statx(dir_fd, os.fsencode(path), flags, _STATX_MNT_ID_UNIQUE, buffer), "statx", path
    )
    mask, mount_id = _WORD.unpack_from(buffer)[0], _STATX_FIELDS.unpack_from(buffer)[-1]
    return mount_id if mask & _STATX_MNT_ID_UNIQUE else 0


class StatMount:
    """A result of `statmount`.

    Attributes:
        mask: The fields that are known (STATMOUNT_*).
        id: The unique ID of the mount; `parent` is that of its parent.
        dev: The device, as in `os.stat`.
        attributes: Those of mount_setattr(2).
    """

    __slots__ = (
        "_buffer",
        "attributes",
        "dev",
        "id",
        "id_in_table",
        "mask",
        "parent",
        "parent_in_table",
    )
    mask: int
    id: int
    parent: int
    attributes: int

    def __init__(self, buffer: bytes) -> None:
        self._buffer = buffer
        self.mask, major, minor, *ids, self.attributes = _STATMOUNT_FIELDS.unpack_from(buffer)
        self.id, self.parent, self.id_in_table, self.parent_in_table = ids
        self.dev = os.makedev(major, minor)

    def text(self, which: int) -> bytes:
        """Return a text by its bit of the mask, unchanged; empty if it is unknown."""
        if not self.mask & which:
            return b""
        begin = _STATMOUNT_STRINGS + _WORD.unpack_from(self._buffer, _STATMOUNT_TEXTS[which])[0]
        return self._buffer[begin : self._buffer.index(b"\0", begin)]


def statmount(mount_id: int, mask: int) -> StatMount | None:
    """Call statmount(2) (Linux 6.8).

    Args:
        mount_id: A unique mount ID.
        mask: The fields to read (STATMOUNT_*).

    Returns:
        The result; `None` if there is no such mount, or the result is too large.
    """
    buffer = ctypes.create_string_buffer(_STATMOUNT_SIZE)
    request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, mount_id, mask)
    if _call(_STATMOUNT, request, buffer, ctypes.c_size_t(_STATMOUNT_SIZE), 0) < 0:
        return None
    return StatMount(buffer.raw)


def listmount(mount_id: int, most: int) -> list[int] | None:
    """List the mounts below a mount with listmount(2) (Linux 6.8).

    Args:
        mount_id: A unique mount ID.
        most: Most mounts to list.

    Returns:
        The unique IDs; `None` if the call fails.
    """
    found = (ctypes.c_uint64 * most)()
    request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, mount_id, 0)
    count = _call(_LISTMOUNT, request, found, ctypes.c_size_t(most), 0)
    return found[:count] if count >= 0 else None


def tee(source: int, sink: int, count: int) -> int:
    """Copy bytes from one pipe to another, and leave them in the first (tee(2)); never wait.

    Returns:
        The number of bytes; 0 at the end of the input.
    """
    return _check(CALLS.tee(source, sink, ctypes.c_size_t(count), _SPLICE_F_NONBLOCK), "tee")


def fstype(fd: int) -> bytes | None:
    """Return the type of the file system that an open file is on; `None` before Linux 6.8."""
    mount_id = unique_mount_id("", fd)
    answer = statmount(mount_id, STATMOUNT_FS_TYPE) if mount_id else None
    return answer.text(STATMOUNT_FS_TYPE) if answer else None


def statx_fields(path: bytes) -> tuple[int, ...] | None:
    """Return the fields of `statx` as a tuple, for a scan of thousands of paths.

    Returns:
        Attributes, uid, mode, ino, rdev and dev as major and minor, mnt_id; `None` if the call
        fails.
    """
    buffer = _Statx()
    if (
        CALLS.statx(
            AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_BASIC_AND_MNT_ID, buffer
        )
        < 0
    ):
        return None
    return _STATX_FIELDS.unpack_from(buffer)


def shares_files(one: int, other: int) -> bool:
    """Check with kcmp(2) that two threads share open files, root and working directory.

    Args:
        one: The ID of a thread.
        other: The ID of the other thread.

    Returns:
        Whether they share all of these; false if that is unknown.
    """
    from chrootfw.linux.syscall_numbers import NUMBERS  # which imports this module

    number = NUMBERS["kcmp"]
    return all(_syscall(number, one, other, kind, 0, 0) == 0 for kind in (_KCMP_FILES, _KCMP_FS))
