"""An old kernel, and a strict one, played by the one that runs: what came after Linux 5.14 is refused as 5.14 refuses it.

``install`` puts a seccomp filter on the calling process, which all that it starts inherits:

- system calls that are newer give ENOSYS, newer flags of older ones what an unknown flag gives;
- no memory can be made executable after it was written to, as in a service with MemoryDenyWriteExecute=: EACCES;
- a mount is attached to a detached tree, or copied out of one, from Linux 6.15 on: EINVAL. Whether a descriptor is in
  a detached tree no filter can see. So move_mount(2) and open_tree(2) are put to a supervisor (seccomp_unotify(2)), a
  process outside of the filter, which looks into /proc.

What 5.14 gave in structures in memory (clone3(2)'s flags, statx(2)'s answers) is as the running kernel has it.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable

#: The first system call that Linux 5.14 has not: process_mrelease(2). The same on every architecture but alpha.
FIRST_NEWER = 448
#: Beside the numbers of x32 this keeps -1, with which a tracer says that a call is not to run.
LAST_NEWER = 0x3FFFFFFF

PIDFD_SEND_SIGNAL, OPEN_TREE, MOVE_MOUNT, FSCONFIG, PIDFD_OPEN = 424, 428, 429, 431, 434
MPROTECT, _PROT_EXEC = {"x86_64": 10, "aarch64": 226, "riscv64": 226}, 4
IOCTL = {"x86_64": 16, "aarch64": 29, "riscv64": 29}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}

OPEN_TREE_CLONE, AT_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 1, 0x1000, 0x40
_OPEN_TREE_KNOWN = (
    0o2000000 | OPEN_TREE_CLONE | 0x9900
)  # O_CLOEXEC, AT_* for path look-up, AT_RECURSIVE
_MOVE_MOUNT_KNOWN = 0x77  # without SET_GROUP (5.15) and BENEATH (6.5)
_PIDFD_KNOWN = 0o4000  # PIDFD_NONBLOCK, without PIDFD_THREAD (6.9)
_FSCONFIG_CMD_RECONFIGURE = 7  # the last; CMD_CREATE_EXCL is 6.6
_PIDFS_MAGIC, _NSFS_MAGIC, _NS_GET_OWNER_UID = (
    0xFF,
    0xB7,
    4,
)  # ioctls on pidfds 6.11, on namespaces beyond these 6.8

_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277}
_SET_MODE_FILTER, _ALL_THREADS, _NEW_LISTENER, _WAIT_KILLABLE = (
    1,
    1 | 16,
    8,
    32,
)  # TSYNC with TSYNC_ESRCH
_ALLOW, _ERRNO, _NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000
_CONTINUE = 1
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_*
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
#: Offsets in struct seccomp_data; an argument has 8 bytes, the lower half comes first.
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16


def install() -> Callable[[], None]:
    """Refuse from now on, in this process and all that it starts, what is newer than Linux 5.14.

    Gives back what ends the supervisor; after that the filter refuses move_mount(2) and open_tree(2) altogether.
    """
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(theirs.fileno())]
    supervisor = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd="/")
    theirs.close()
    assert ours.recv(1) == b"r", "the supervisor did not start"
    listener = _set_filter(program(platform.machine()))
    ours.sendmsg([b"l"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
    os.close(listener)
    assert ours.recv(1) == b"r", "the supervisor did not take the listener"

    def end() -> None:
        ours.close()
        supervisor.wait()

    return end


# -- the filter -----------------------------------------------------------------------------------------


def program(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter, in classic BPF: ``(code, jump if true, jump if false, operand)``."""
    lines = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _ALLOW),  # a 32-bit program; the product is none
        (_LOAD, 0, 0, _NUMBER),
        (_GREATER, 0, 2, FIRST_NEWER - 1),
        (_GREATER, 1, 0, LAST_NEWER),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number, argument, checks, otherwise in (
        (OPEN_TREE, 2, [(_ANY_BIT, ~_OPEN_TREE_KNOWN, errno.EINVAL)], _NOTIFY),
        (MOVE_MOUNT, 4, [(_ANY_BIT, ~_MOVE_MOUNT_KNOWN, errno.EINVAL)], _NOTIFY),
        (FSCONFIG, 1, [(_GREATER, _FSCONFIG_CMD_RECONFIGURE, errno.EOPNOTSUPP)], _ALLOW),
        (PIDFD_OPEN, 1, [(_ANY_BIT, ~_PIDFD_KNOWN, errno.EINVAL)], _ALLOW),
        (PIDFD_SEND_SIGNAL, 3, [(_ANY_BIT, ~0, errno.EINVAL)], _ALLOW),
        (MPROTECT[machine], 2, [(_ANY_BIT, _PROT_EXEC, errno.EACCES)], _ALLOW),
    ):
        body = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
        for code, operand, refusal in checks:
            body += [(code, 0, 1, operand & 0xFFFFFFFF), (_RETURN, 0, 0, _ERRNO | refusal)]
        body.append((_RETURN, 0, 0, otherwise))
        lines += [(_EQUAL, 0, len(body), number), *body]
    lines += [
        (_EQUAL, 0, 9, IOCTL[machine]),
        (_LOAD, 0, 0, _ARGUMENTS + 8),
        (_AND, 0, 0, 0xFF00),
        (_EQUAL, 4, 0, _PIDFS_MAGIC << 8),
        (_EQUAL, 0, 4, _NSFS_MAGIC << 8),
        (_LOAD, 0, 0, _ARGUMENTS + 8),
        (_AND, 0, 0, 0xFF),
        (_GREATER, 0, 1, _NS_GET_OWNER_UID),
        (_RETURN, 0, 0, _ERRNO | errno.ENOTTY),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return lines


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))


def _set_filter(lines: list[tuple[int, int, int, int]]) -> int:
    """Put the filter on all threads; the listener's descriptor. Root needs no PR_SET_NO_NEW_PRIVS for it."""
    packed = b"".join(struct.pack("=HBBI", *line) for line in lines)
    libc = ctypes.CDLL(None, use_errno=True)
    filtering = ctypes.byref(_Program(len(lines), packed))
    for flags in (
        _ALL_THREADS | _NEW_LISTENER | _WAIT_KILLABLE,
        _ALL_THREADS | _NEW_LISTENER,
    ):  # WAIT_KILLABLE is itself newer: Linux 5.19
        listener = libc.syscall(_SECCOMP[platform.machine()], _SET_MODE_FILTER, flags, filtering)
        if listener >= 0 or ctypes.get_errno() != errno.EINVAL:
            break
    if listener < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp: {os.strerror(code)}")
    os.set_inheritable(listener, False)
    return int(listener)


# -- the supervisor -------------------------------------------------------------------------------------


def _supervise(control: socket.socket) -> None:
    """Answer until the starter goes, or the last process under the filter."""
    control.send(b"r")
    _, ancillary, _, _ = control.recvmsg(1, socket.CMSG_SPACE(4))
    if not ancillary:
        return
    listener = array.array("i", ancillary[0][2])[0]
    control.send(b"r")
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    poller.register(control, select.POLLIN)
    while True:
        for fd, event in poller.poll():
            if fd == control.fileno() or event & (select.POLLHUP | select.POLLERR):
                return
            _answer(listener)


def _answer(listener: int) -> None:
    notice = bytearray(80)  # struct seccomp_notif
    try:
        fcntl.ioctl(listener, _RECEIVE, notice)
        identity, thread, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", notice)
        refused = _is_newer(thread, number, arguments)
        answer = struct.pack(
            "=QqiI", identity, 0, -errno.EINVAL if refused else 0, 0 if refused else _CONTINUE
        )
        fcntl.ioctl(listener, _SEND, answer)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINTR):  # the caller was killed meanwhile
            raise


def _is_newer(thread: int, number: int, arguments: list[int]) -> bool:
    """Whether the call needs Linux 6.15: the target, or what is to be copied, is in a detached tree."""
    directory, path, flags = arguments[2:5] if number == MOVE_MOUNT else arguments[0:3]
    if number == OPEN_TREE and not flags & OPEN_TREE_CLONE:
        return False
    empty = flags & (MOVE_MOUNT_T_EMPTY_PATH if number == MOVE_MOUNT else AT_EMPTY_PATH)
    fd = ctypes.c_int(directory & 0xFFFFFFFF).value
    if fd < 0:
        return False
    if not empty and _first_byte(thread, path) in (b"", b"/"):
        return False
    mount = _mount_of(thread, fd)
    return mount >= 0 and mount not in _mounts(thread)


def _first_byte(thread: int, address: int) -> bytes:
    try:
        with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(1).rstrip(b"\0")
    except (OSError, ValueError):
        return b""


def _mount_of(thread: int, fd: int) -> int:
    """The ID of the mount that an open descriptor is on, -1 when there is no such descriptor."""
    try:
        with open(f"/proc/{thread}/fdinfo/{fd}", "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(b"mnt_id:"))
    except (OSError, StopIteration):
        return -1


def _mounts(thread: int) -> set[int]:
    """The mounts of a thread's mount namespace; what is chrooted sees a part only, so its neighbours are asked too."""
    found = _table(thread)
    if os.readlink(f"/proc/{thread}/root") == "/":
        return found
    namespace = os.stat(f"/proc/{thread}/ns/mnt").st_ino
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}/ns/mnt").st_ino == namespace:
                found |= _table(int(pid))
        except OSError:
            continue
    return found


def _table(thread: int) -> set[int]:
    with open(f"/proc/{thread}/mountinfo", "rb") as file:
        return {int(line.split(b" ", 1)[0]) for line in file.read().split(b"\n") if line}


if __name__ == "__main__":
    _supervise(socket.socket(fileno=int(sys.argv[1])))
