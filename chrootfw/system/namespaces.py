"""The namespaces that an instance's processes share: found by a process that lives in them, or made (namespaces(7))."""

from __future__ import annotations

import os

from chrootfw.planning.privileges import NAMESPACES
from chrootfw.system import isolation as isolations
from chrootfw.system.keeper import Keeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Joined:
    """While it is entered, an isolation joins the namespaces of the first of ``own`` (pids) that has some of its own.

    If none has, they are made: a pid namespace with a ``Keeper``, which is released at the end; others by the process that is isolated.
    Nothing for an isolation without namespaces. Raises ``OSError``.
    """

    __slots__ = ("isolation", "keeper", "pidfd")

    def __init__(self, isolation: isolations.Isolation, own: Iterable[int], root_fd: int, cgroup: str | None) -> None:
        self.isolation = isolation
        self.keeper: Keeper | None = None
        self.pidfd = -1
        if not isolation.flags:
            return
        kind = next(word for word, flag in NAMESPACES.items() if isolation.flags & flag)
        self.pidfd = _find(sorted(own), kind)
        if self.pidfd >= 0:
            isolation.join = self.pidfd
        elif isolation.flags & isolations.NEWPID:
            self.keeper = Keeper(isolation, root_fd, cgroup)
            isolation.join = self.keeper.child.pidfd

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.isolation.join = -1
        if self.pidfd >= 0:
            os.close(self.pidfd)
        if self.keeper is not None:
            self.keeper.release()


def _find(own: Iterable[int], kind: str) -> int:
    """The pidfd of the first process whose namespace of that kind is not the caller's, -1 if there is none."""
    here = os.stat(f"/proc/self/ns/{kind}").st_ino
    for pid in own:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if os.stat(f"/proc/{pid}/ns/{kind}").st_ino != here:
                return pidfd
        except OSError:
            pass  # it has ended
        os.close(pidfd)
    return -1
