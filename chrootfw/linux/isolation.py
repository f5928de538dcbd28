"""Isolate a process before it runs: from the host's mounts, namespaces, capabilities, system calls.

A mere chroot(2) that drops capabilities or system calls does so in the child's batch of calls
(`spawn`). An instance with its own mount namespace has an interpreter between (`isolated_program`).
A step that fails ends the child: no process runs less isolated than its entry asks for.
"""

from __future__ import annotations

import ctypes
import os
import struct

from chrootfw.errors import NotSupported
from chrootfw.linux import network_namespace, syscalls
from chrootfw.linux.syscall_numbers import NUMBERS
from chrootfw.planning.privileges import CAPABILITIES, NAMESPACES, decode_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from chrootfw.linux.call_batch import CallBatch
    from chrootfw.linux.process_settings import ProcessSettings

NEWPID = NAMESPACES["pid"]

_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38
_SECCOMP_SET_MODE_FILTER = 1
_CAPABILITY_VERSION_3 = 0x20080522
#: struct sock_fprog, and the offset of its pointer to the program.
_FILTER, _FILTER_PROGRAM = struct.Struct("=H6xQ"), 8


class Isolation:
    """An entry's isolation, from its recorded form (`Entry.to_dict`).

    Attributes:
        entry: The recorded form.
        join: The pidfd of a process whose namespaces are entered; -1 to make new ones.
        flags: The namespaces that the entry asks for, as flags of clone3(2).
        hostname: The instance's host name.
        settings: The limits and priorities of the process; `None` for the caller's.
        network: The network namespace that is entered first; -1 for the caller's.

    Raises:
        NotSupported: The entry asks for something that this chrootfw does not know.
    """

    __slots__ = ("entry", "flags", "hostname", "join", "network", "program", "settings")

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
        self.join = self.network = -1
        self.settings: ProcessSettings | None = None
        self.program = decode_program(entry.get("seccomp", ""))

    def plan(self) -> dict[str, Any]:
        """Make the plan for `isolated_program`."""
        joins_all = self.join >= 0 and bool(self.flags & NEWPID)
        shared = self.flags & ~NEWPID
        kept = self.entry.get("capabilities")
        # The mounts get nodev when they are made: /dev and below must not have it.
        nosuid = "nosuid" in self.entry.get("mount_attributes", ())
        return {
            "join": (shared if self.join >= 0 else 0) | (syscalls.CLONE_NEWNS if joins_all else 0),
            "join_pid": joins_all,
            "makes_mounts": not joins_all,
            "unshare": 0 if self.join >= 0 else shared,
            "hostname": self.hostname if self.flags & NAMESPACES["uts"] and self.join < 0 else b"",
            "fresh_proc": bool(self.flags & NEWPID),
            "read_only": [os.fsencode(path) for path in self.entry.get("read_only", ())],
            "masked": [os.fsencode(path) for path in self.entry.get("masked", ())],
            "attributes": syscalls.MOUNT_ATTR_NOSUID if nosuid else 0,
            "limits": []
            if self.settings is None
            else [list(step) for step in self.settings.steps_of_limits()],
            "capabilities": None
            if kept is None
            else sorted(CAPABILITIES.index(word) for word in kept),
            "no_new_privs": bool(self.entry.get("no_new_privs")),
            "filter": self.program,
            "pivot_root": NUMBERS["pivot_root"],
            "capset": NUMBERS["capset"],
            "seccomp": NUMBERS["seccomp"],
            "getcwd": NUMBERS["getcwd"],
            "keyctl": NUMBERS["keyctl"],
            "clone": (NUMBERS["clone"], syscalls.ARCHITECTURE == "s390x"),
        }

    @property
    def may_share_memory(self) -> bool:
        """Whether a child may share the memory of its caller, as far as its settings go."""
        return self.settings is None or not self.settings.needs_memory

    def leave_caller(self, calls: CallBatch) -> None:
        """Append the calls that enter the network, and set what would be the caller's.

        Limits come later, since they hold for what is done before the execve too.
        """
        self._enter_network(calls)
        if self.settings is not None:
            self.settings.add_priorities(calls)

    def _enter_network(self, calls: CallBatch) -> None:
        """Append the call that enters the instance's network namespace."""
        if self.network >= 0:
            calls.add("setns", self.network, network_namespace.CLONE_NEWNET, what=b"setns (net)")

    @property
    def is_plain(self) -> bool:
        """Whether it is a mere chroot(2), without a mount namespace of its own."""
        return bool(self.entry["method"] == "chroot")

    @property
    def gives_up(self) -> bool:
        """Whether a process has fewer privileges after its execve than before.

        Processes inside may have as many as it has before, and could trace it.
        """
        given_up = self.entry.get("no_new_privs") or self.entry.get("seccomp")
        return bool(not self.is_plain or given_up or self.entry.get("capabilities") is not None)

    def give_up_before(self, calls: CallBatch) -> None:
        """Append the calls before the change of user: they drop the bounding set."""
        kept = self.entry.get("capabilities")
        if kept is not None:
            numbers = {CAPABILITIES.index(word) for word in kept}
            for number in range(64):
                if number not in numbers and syscalls.CALLS.prctl(_PR_CAPBSET_READ, number) >= 0:
                    calls.add(
                        "prctl", _PR_CAPBSET_DROP, number, 0, 0, 0, what=b"prctl (bounding set)"
                    )

    def give_up_after(self, calls: CallBatch, *, is_root: bool) -> None:
        """Append the calls after the change of user: they drop capabilities, then system calls.

        Args:
            calls: The batch.
            is_root: Whether the user is the root user.
        """
        kept = self.entry.get("capabilities")
        if kept is not None and is_root:
            mask = sum(1 << CAPABILITIES.index(word) for word in kept)
            header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
            low, high = mask & 0xFFFFFFFF, mask >> 32
            calls.add("capset", header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))
        if self.entry.get("no_new_privs"):
            calls.add("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, what=b"prctl (no_new_privs)")
        if self.program:
            filtering = calls.add_buffer(_FILTER.size, _FILTER.pack(len(self.program) // 8, 0))
            program = calls.add_buffer(len(self.program), self.program)
            filtering.point(_FILTER_PROGRAM, program)
            calls.add("seccomp", _SECCOMP_SET_MODE_FILTER, 0, filtering)
