"""System calls that Python lacks, by ctypes, each one a function that raises ``OSError``.

Nothing well kept exists for these on PyPI. Numbers from 424 up are the same on every architecture
(except alpha); everything here is in Linux 5.14 unless its docstring says otherwise.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Calls:
    """Functions of libc, bound: by ``ctypes.CDLL`` for everyday use, by ``ctypes.PyDLL`` for a child, which must not give
    back the interpreter's lock, nor look a function up."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        self.syscall = libc.syscall
        self.syscall.restype = ctypes.c_long
        self.close, self.read, self.write, self.statx = libc.close, libc.read, libc.write, libc.statx
        self.mount, self.umount2, self.unshare, self.setns = libc.mount, libc.umount2, libc.unshare, libc.setns
        self.fork, self.exit, self.wait4, self.kill, self.usleep = (
            libc.fork,
            libc["_exit"],
            libc.wait4,
            libc.kill,
            libc.usleep,
        )
        self.prctl, self.sigprocmask = libc.prctl, libc.sigprocmask


#: e_machine of elf(5); asm-generic is Linux' word for the numbers that aarch64, riscv64 and loongarch64 share.
_MACHINES = {
    0x3E: "x86_64",
    0xB7: "asm-generic",
    0xF3: "asm-generic",
    0x102: "asm-generic",
    0x15: "ppc64",
    0x16: "s390x",
}


def _architecture() -> str:
    """Whose numbers this program's system calls have: by its own ELF header, since uname(2) says what a personality(2) wants it to."""
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
    """Its version, such as ``(6, 1)``; of ``5.15-rc3`` it is ``(5, 15)``."""
    major, minor = RELEASE.replace("-", ".").replace("+", ".").split(".")[:2]
    return int(major), int(minor)


CALLS = Calls(ctypes.CDLL(None, use_errno=True))
_syscall = CALLS.syscall

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_OPENAT2, _MOUNT_SETATTR = 437, 442
_STATMOUNT, _LISTMOUNT = 457, 458
_KCMP = {"x86_64": 312, "asm-generic": 272, "ppc64": 354, "s390x": 343}.get(ARCHITECTURE, -1)
_KCMP_FILES, _KCMP_FS = 2, 3

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
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
#: struct statx, and of it: attributes, uid, mode, ino, rdev and dev as major and minor, mnt_id.
STATX_SIZE, STATX_MNT_ID_OFFSET = 256, 144
_Statx = ctypes.c_char * STATX_SIZE
STATMOUNT_SB_BASIC, STATMOUNT_MNT_BASIC, STATMOUNT_MNT_ROOT, STATMOUNT_MNT_POINT = 0x1, 0x2, 0x8, 0x10
STATMOUNT_FS_TYPE, STATMOUNT_FS_SUBTYPE, STATMOUNT_SB_SOURCE = 0x20, 0x100, 0x200
#: struct mnt_id_req: size, mnt_ns_fd, mnt_id, param.
_MNT_ID_REQ = struct.Struct("=IIQQ")
#: struct statmount: room for it, and of it mask, device, IDs (both kinds, of the mount and its parent) and attributes; where its texts
#: begin, and where it is said how far from there each does.
_STATMOUNT_SIZE, _STATMOUNT_STRINGS = 16384, 512
_STATMOUNT_FIELDS = struct.Struct("=8xQII16xQQIIQ")
_STATMOUNT_TEXTS = {
    STATMOUNT_MNT_ROOT: 104, STATMOUNT_MNT_POINT: 108, STATMOUNT_FS_TYPE: 36, STATMOUNT_FS_SUBTYPE: 120,
    STATMOUNT_SB_SOURCE: 124,
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
    """A system call, made again when a signal has interrupted it, as Python does with its own (PEP 475)."""
    while True:
        result: int = _syscall(*arguments)
        if result >= 0 or ctypes.get_errno() != errno.EINTR:
            return result


class OpenHow(ctypes.Structure):
    """struct open_how"""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dir_fd: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2): a file descriptor, close-on-exec. A rename that races with the look-up (EAGAIN) is tried again."""
    how = OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    code = 0
    for _ in range(1 if resolve & RESOLVE_CACHED else 100):
        result: int = _syscall(_OPENAT2, dir_fd, os.fsencode(path), ctypes.byref(how), size)
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, f"openat2: {os.strerror(code)}", os.fsdecode(path))


def open_tree(dir_fd: int, path: str | bytes, *, recursive: bool = False) -> int:
    """open_tree(2) with OPEN_TREE_CLONE: a detached copy of the mount at ``path`` (``""`` for ``dir_fd`` itself)."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_NO_AUTOMOUNT
    flags |= AT_RECURSIVE if recursive else 0
    flags |= 0 if path else AT_EMPTY_PATH
    return _check(_call(_OPEN_TREE, dir_fd, os.fsencode(path), flags), "open_tree", path)


def move_mount(mount_fd: int, target_fd: int) -> None:
    """move_mount(2): attach the mount ``mount_fd`` on the file or directory ``target_fd``.

    A target inside a detached tree needs Linux 6.15 (EINVAL before).
    """
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _check(_call(_MOVE_MOUNT, mount_fd, b"", target_fd, b"", flags), "move_mount")


class MountAttr(ctypes.Structure):
    """struct mount_attr"""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount_setattr(
    mount_fd: int, *, set: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = False
) -> None:
    """mount_setattr(2) on the mount ``mount_fd``; ``propagation`` is MS_PRIVATE, MS_SLAVE or 0 to leave it."""
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    attr = MountAttr(set, clear, propagation, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    _check(_call(_MOUNT_SETATTR, mount_fd, b"", flags, ctypes.byref(attr), size), "mount_setattr")


def make_all_slave() -> None:
    """mount(2): every mount of the calling thread's namespace receives from, and no longer sends to, its peers."""
    _check(CALLS.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None), "mount", "/")


def new_filesystem(
    fstype: str,
    parameters: list[tuple[str, str | None]],
    attributes: int,
    create: Callable[[int], object] | None = None,
) -> int:
    """fsopen, fsconfig and fsmount: a detached mount of a new file system.

    ``parameters`` are ``(key, value)``; the value is ``None`` for a flag. ``attributes`` are MOUNT_ATTR_*. ``create``: makes the one call
    that reads the device, FSCONFIG_CMD_CREATE on the context, and raises ``OSError``; without it the call is made here. What the
    kernel says in the context's log goes into the ``OSError``'s text.
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


def _with_log(context: int, code: int, option: str) -> OSError:
    said = []
    try:
        while line := os.read(context, 1024):
            said.append(line.decode("utf-8", "replace").strip()[2:])
    except OSError:
        pass  # the log is empty: ENODATA
    text = f"option {option}: {os.strerror(code)}" if option else os.strerror(code)
    return OSError(code, "; ".join([text, *said]))


def umount2(path: str | bytes, flags: int) -> None:
    """umount2(2)."""
    _check(CALLS.umount2(os.fsencode(path), flags), "umount2", path)


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread alone."""
    _check(CALLS.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """setns(2), for the calling thread alone."""
    _check(CALLS.setns(fd, flags), "setns")


class Stat:
    """What ``statx`` says: ``mnt_id``, ``dev`` (as in ``os.stat``), ``ino``, ``mode``, ``rdev``, ``uid``, ``attributes`` (STATX_ATTR_*)."""

    __slots__ = ("attributes", "dev", "ino", "mnt_id", "mode", "rdev", "uid")
    attributes: int
    uid: int
    mode: int
    ino: int
    mnt_id: int

    def __init__(self, buffer: ctypes.Array[ctypes.c_char]) -> None:
        self.attributes, self.uid, self.mode, self.ino, *devices, self.mnt_id = _STATX_FIELDS.unpack_from(buffer)
        self.rdev, self.dev = os.makedev(*devices[:2]), os.makedev(*devices[2:])


def statx(path: str | bytes, dir_fd: int = AT_FDCWD, *, follow: bool = True) -> Stat:
    """statx(2) with what the kernel has cached (AT_STATX_DONT_SYNC): never waits for a dead server."""
    flags = (0 if follow else AT_SYMLINK_NOFOLLOW) | (0 if path else AT_EMPTY_PATH)
    flags |= AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT
    buffer = _Statx()
    result = CALLS.statx(dir_fd, os.fsencode(path), flags, STATX_BASIC_AND_MNT_ID, buffer)
    _check(result, "statx", path)
    return Stat(buffer)


def unique_mount_id(path: str | bytes, dir_fd: int = AT_FDCWD) -> int:
    """The number of a mount that no other gets in this boot, of the mount that a path, not followed, is on; 0 before Linux 6.8."""
    flags = (AT_SYMLINK_NOFOLLOW if path else AT_EMPTY_PATH) | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT
    buffer = _Statx()
    _check(CALLS.statx(dir_fd, os.fsencode(path), flags, _STATX_MNT_ID_UNIQUE, buffer), "statx", path)
    mask, mount_id = _WORD.unpack_from(buffer)[0], _STATX_FIELDS.unpack_from(buffer)[-1]
    return mount_id if mask & _STATX_MNT_ID_UNIQUE else 0


class StatMount:
    """What ``statmount`` says: the ``mask`` of what it knows; unique mount IDs, and those of the mount table; ``dev`` as in ``os.stat``;
    ``attributes`` as of mount_setattr(2)."""

    __slots__ = ("_buffer", "attributes", "dev", "id", "id_in_table", "mask", "parent", "parent_in_table")
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
        """A text by its bit of the mask, as it is; empty if it is not known."""
        if not self.mask & which:
            return b""
        begin = _STATMOUNT_STRINGS + _WORD.unpack_from(self._buffer, _STATMOUNT_TEXTS[which])[0]
        return self._buffer[begin : self._buffer.index(b"\0", begin)]


def statmount(mount_id: int, mask: int) -> StatMount | None:
    """statmount(2), Linux 6.8, of a unique mount ID; ``None`` where it fails: there is no such mount, or not this much room."""
    buffer = ctypes.create_string_buffer(_STATMOUNT_SIZE)
    request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, mount_id, mask)
    if _call(_STATMOUNT, request, buffer, ctypes.c_size_t(_STATMOUNT_SIZE), 0) < 0:
        return None
    return StatMount(buffer.raw)


def listmount(mount_id: int, most: int) -> list[int] | None:
    """listmount(2), Linux 6.8: the unique IDs of at most so many mounts below one; ``None`` where it fails."""
    found = (ctypes.c_uint64 * most)()
    request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, mount_id, 0)
    count = _call(_LISTMOUNT, request, found, ctypes.c_size_t(most), 0)
    return found[:count] if count >= 0 else None


def fstype(fd: int) -> bytes | None:
    """The type of the file system that an open file is on; ``None`` before Linux 6.8."""
    mount_id = unique_mount_id("", fd)
    answer = statmount(mount_id, STATMOUNT_FS_TYPE) if mount_id else None
    return answer.text(STATMOUNT_FS_TYPE) if answer else None


def statx_fields(path: bytes) -> tuple[int, ...] | None:
    """``statx`` for who looks at thousands of paths: attributes, uid, mode, ino, rdev and dev as major and minor, mnt_id; ``None`` for an error."""
    buffer = _Statx()
    if CALLS.statx(AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_BASIC_AND_MNT_ID, buffer) < 0:
        return None
    return _STATX_FIELDS.unpack_from(buffer)


def shares_files(one: int, other: int) -> bool:
    """kcmp(2): whether two threads share their open files and their root and working directory; ``False`` where that is not known."""
    return all(_syscall(_KCMP, one, other, kind, 0, 0) == 0 for kind in (_KCMP_FILES, _KCMP_FS))
