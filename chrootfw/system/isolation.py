"""What a process may be parted from before it runs: the host's mounts, namespaces, capabilities, system calls.

Everything is added to the list of calls that the child carries out (``spawn``). A call that fails ends the child: nothing runs less
isolated than was asked for.
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
    from collections.abc import Mapping
    from typing import Any

    from chrootfw.system.call_lists import CallList

NEWPID = NAMESPACES["pid"]

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND = 2, 4, 8, 4096
_PR_SET_DUMPABLE, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 23, 24, 38
_SECCOMP_SET_MODE_FILTER = 1
_CAPABILITY_VERSION_3 = 0x20080522
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

    def enter(self, calls: CallList, root_fd: int) -> None:
        """Into the root ``root_fd``, which is made the top of a mount namespace of its own."""
        if self.is_plain:
            calls.add("fchdir", root_fd)
            calls.add("chroot", b".")
            return
        shared = self.flags & ~NEWPID
        if shared and self.join >= 0:
            calls.add("setns", self.join, shared)
        calls.add("fchdir", root_fd)
        # What the working directory is on is in the new namespace the copy of the same mount.
        calls.add("unshare", syscalls.CLONE_NEWNS | (0 if self.join >= 0 else shared))
        calls.add("mount", None, b"/", None, syscalls.MS_REC | syscalls.MS_SLAVE, None, what=b"mount (slave)")
        calls.add("pivot_root", b".", b".")
        calls.add("umount2", b".", syscalls.MNT_DETACH, what=b"umount2 (the host's root)")
        calls.add("chdir", b"/")
        if self.flags & NAMESPACES["uts"] and self.join < 0:
            calls.add("sethostname", self.hostname, len(self.hostname))
        if self.flags & NEWPID:
            how = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
            calls.add("mount", b"proc", b"/proc", b"proc", how, None, ignore=(errno.ENOENT,), what=b"mount /proc")
        self._restrict_mounts(calls)

    def _restrict_mounts(self, calls: CallList) -> None:
        for path in map(os.fsencode, self.entry.get("read_only", ())):
            how = _MS_BIND | syscalls.MS_REC
            calls.add("mount", path, path, None, how, None, ignore=_ABSENT[:2], what=b"mount (bind)")
            _setattr(calls, path, syscalls.MOUNT_ATTR_RDONLY, 0, recursive=True, absent=_ABSENT[:2])
        wanted = self.entry.get("mount_attributes", ())
        nodev = syscalls.MOUNT_ATTR_NODEV if "nodev" in wanted else 0
        attributes = nodev | (syscalls.MOUNT_ATTR_NOSUID if "nosuid" in wanted else 0)
        if attributes:
            _setattr(calls, b"/", attributes, 0, recursive=True)
        if nodev:  # where the devices are that it is to have
            _setattr(calls, b"/dev", 0, nodev, recursive=True, absent=_ABSENT)
            _setattr(calls, b"/dev/shm", nodev, 0, absent=_ABSENT)

    @property
    def is_plain(self) -> bool:
        """Whether it is a mere chroot(2)."""
        return bool(self.entry["method"] == "chroot")

    @property
    def gives_up(self) -> bool:
        """Whether a process has less than its parent before its execve; those inside may have as much then, and trace it."""
        given_up = self.entry.get("no_new_privs") or self.entry.get("seccomp")
        return bool(not self.is_plain or given_up or self.entry.get("capabilities") is not None)

    def give_up_before(self, calls: CallList) -> None:
        """Before the change of user: the bounding set."""
        if not self.is_plain:
            # Until its execve it has a copy of the manager's memory, which nobody inside may read (PR_SET_DUMPABLE).
            calls.add("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0, what=b"prctl (dumpable)")
        kept = self.entry.get("capabilities")
        if kept is not None:
            numbers = {CAPABILITIES.index(word) for word in kept}
            for number in range(64):
                if number not in numbers and syscalls.CALLS.prctl(_PR_CAPBSET_READ, number) >= 0:
                    calls.add("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0, what=b"prctl (bounding set)")

    def give_up_after(self, calls: CallList, *, is_root: bool) -> None:
        """After the change of user: the rest of the capabilities, then system calls."""
        kept = self.entry.get("capabilities")
        if kept is not None and is_root:
            mask = sum(1 << CAPABILITIES.index(word) for word in kept)
            header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
            low, high = mask & 0xFFFFFFFF, mask >> 32
            calls.add("capset", header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))
        if self.entry.get("no_new_privs"):
            calls.add("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, what=b"prctl (no_new_privs)")
        if self.program:
            calls.add("seccomp", _SECCOMP_SET_MODE_FILTER, 0, _Filter(len(self.program) // 8, self.program))


def _setattr(
    calls: CallList, path: bytes, set: int, clear: int, *, recursive: bool = False, absent: tuple[int, ...] = ()
) -> None:
    flags = syscalls.AT_RECURSIVE if recursive else 0
    how = syscalls.MountAttr(set, clear, 0, 0)
    what = b"mount_setattr " + path
    calls.add("mount_setattr", syscalls.AT_FDCWD, path, flags, how, ctypes.sizeof(how), ignore=absent, what=what)
