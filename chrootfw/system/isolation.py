"""What a process may be parted from before it runs: the host's mounts, namespaces, capabilities, system calls.

Everything is prepared here as calls with their arguments, for a child that must look nothing up (``spawn``). A call that
fails ends the child: nothing runs less isolated than was asked for.
"""

from __future__ import annotations

import ctypes
import errno
import os

from chrootfw.errors import NotSupported
from chrootfw.planning.privileges import CAPABILITIES, NAMESPACES, decode_program
from chrootfw.system import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    #: A call for a child: what it is called in an error, the errnos that do not matter, the function, its arguments.
    Call = tuple[bytes, tuple[int, ...], Callable[..., int], tuple[Any, ...]]

NEWPID = NAMESPACES["pid"]

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND = 2, 4, 8, 4096
_PR_SET_DUMPABLE, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 23, 24, 38
_SECCOMP_SET_MODE_FILTER = 1
_CAPABILITY_VERSION_3 = 0x20080522
_PIVOT_ROOT, _CAPSET, _SECCOMP = {"x86_64": (155, 126, 317), "ppc64le": (203, 184, 358), "s390x": (217, 185, 348)}.get(
    os.uname().machine, (41, 91, 277)
)
#: What is no mistake of ours: a path that the root does not have, or that is no mount point.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EINVAL)


class _Filter(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))


class Isolation:
    """An entry's isolation, from its recorded form (``Entry.to_dict``), and the name of the instance for its host name.

    ``join``: the pidfd of a process whose namespaces are entered, -1 where new ones are made.
    Raises ``NotSupported`` for what this chrootfw does not know.
    """

    __slots__ = ("entry", "flags", "hostname", "join", "program")

    def __init__(self, entry: Mapping[str, Any], name: str) -> None:
        unknown = [word for word in entry.get("namespaces", ()) if word not in NAMESPACES]
        if entry["method"] not in ("chroot", "pivot_root") or unknown:
            what = f"the namespace {unknown[0]!r}" if unknown else f"the method {entry['method']!r}"
            raise NotSupported(f"cannot enter {name}: this chrootfw does not know {what}")
        self.entry = entry
        self.hostname = os.fsencode(name)[:64]
        self.flags = 0
        for word in entry.get("namespaces", ()):
            self.flags |= NAMESPACES[word]
        self.join = -1
        self.program = decode_program(entry.get("seccomp", ""))

    def entering(self, calls: syscalls.Calls, root_fd: int) -> list[Call]:
        """Into the root ``root_fd``, which is made the top of a mount namespace of its own."""
        if self.entry["method"] == "chroot":
            return [(b"fchdir", (), calls.fchdir, (root_fd,)), (b"chroot", (), calls.chroot, (b".",))]
        shared = self.flags & ~NEWPID
        done: list[Call] = []
        if shared and self.join >= 0:
            done.append((b"setns", (), calls.setns, (self.join, shared)))
        unshared = syscalls.CLONE_NEWNS | (0 if self.join >= 0 else shared)
        done += [
            (b"fchdir", (), calls.fchdir, (root_fd,)),
            # What the working directory is on is in the new namespace the copy of the same mount.
            (b"unshare", (), calls.unshare, (unshared,)),
            (b"mount (slave)", (), calls.mount, (None, b"/", None, _long(syscalls.MS_REC | syscalls.MS_SLAVE), None)),
            (b"pivot_root", (), calls.syscall, (_PIVOT_ROOT, b".", b".")),
            (b"umount2 (the host's root)", (), calls.umount2, (b".", syscalls.MNT_DETACH)),
            (b"chdir", (), calls.chdir, (b"/",)),
        ]
        if self.flags & NAMESPACES["uts"] and self.join < 0:
            done.append((b"sethostname", (), calls.sethostname, (self.hostname, ctypes.c_size_t(len(self.hostname)))))
        if self.flags & NEWPID:
            how = _long(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
            done.append((b"mount /proc", (errno.ENOENT,), calls.mount, (b"proc", b"/proc", b"proc", how, None)))
        return done + self._restricting_mounts(calls)

    def _restricting_mounts(self, calls: syscalls.Calls) -> list[Call]:
        done: list[Call] = []
        for path in map(os.fsencode, self.entry.get("read_only", ())):
            bind = (path, path, None, _long(_MS_BIND | syscalls.MS_REC), None)
            done.append((b"mount (bind)", _ABSENT[:2], calls.mount, bind))
            done.append(_setattr(calls, path, syscalls.MOUNT_ATTR_RDONLY, 0, recursive=True, absent=_ABSENT[:2]))
        wanted = self.entry.get("mount_attributes", ())
        nodev = syscalls.MOUNT_ATTR_NODEV if "nodev" in wanted else 0
        attributes = nodev | (syscalls.MOUNT_ATTR_NOSUID if "nosuid" in wanted else 0)
        if attributes:
            done.append(_setattr(calls, b"/", attributes, 0, recursive=True))
        if nodev:  # where the devices are that it is to have
            done.append(_setattr(calls, b"/dev", 0, nodev, recursive=True, absent=_ABSENT))
            done.append(_setattr(calls, b"/dev/shm", nodev, 0, absent=_ABSENT))
        return done

    @property
    def is_plain(self) -> bool:
        """Whether it is a mere chroot(2)."""
        return bool(self.entry["method"] == "chroot")

    def giving_up(self, calls: syscalls.Calls, *, is_root: bool) -> tuple[list[Call], list[Call]]:
        """Before and after the change of user: the bounding set; the rest of the capabilities, then system calls."""
        before: list[Call] = []
        after: list[Call] = []
        if not self.is_plain:
            # Until its execve it has a copy of the manager's memory, which nobody inside may read (PR_SET_DUMPABLE).
            before.append((b"prctl (dumpable)", (), calls.prctl, (_PR_SET_DUMPABLE, _long(0), 0, 0, 0)))
        kept = self.entry.get("capabilities")
        if kept is not None:
            numbers = {CAPABILITIES.index(word) for word in kept}
            for number in range(64):
                if number not in numbers and calls.prctl(_PR_CAPBSET_READ, number) >= 0:
                    before.append(
                        (b"prctl (bounding set)", (), calls.prctl, (_PR_CAPBSET_DROP, _long(number), 0, 0, 0))
                    )
            if is_root:
                mask = sum(1 << number for number in numbers)
                header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
                low, high = mask & 0xFFFFFFFF, mask >> 32
                data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
                after.append((b"capset", (), calls.syscall, (_CAPSET, header, data)))
        if self.entry.get("no_new_privs"):
            after.append((b"prctl (no_new_privs)", (), calls.prctl, (_PR_SET_NO_NEW_PRIVS, _long(1), 0, 0, 0)))
        if self.program:
            program = _Filter(len(self.program) // 8, self.program)
            after.append(
                (b"seccomp", (), calls.syscall, (_SECCOMP, _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(program)))
            )
        return before, after


def _setattr(
    calls: syscalls.Calls, path: bytes, set: int, clear: int, *, recursive: bool = False, absent: tuple[int, ...] = ()
) -> Call:
    flags = syscalls.AT_RECURSIVE if recursive else 0
    arguments = syscalls.mount_setattr_arguments(syscalls.AT_FDCWD, path, flags, set=set, clear=clear)
    return b"mount_setattr " + path, absent, calls.syscall, arguments


def _long(number: int) -> ctypes.c_ulong:
    return ctypes.c_ulong(number)
