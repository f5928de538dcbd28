"""Join or make the namespaces that an instance's processes share (namespaces(7))."""

from __future__ import annotations

import errno
import os
import time

from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.isolation import NEWPID, Isolation
from chrootfw.planning.privileges import NAMESPACES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from chrootfw.linux.pid_namespace_init import NamespaceInit


#: Seconds for another command's new helper process to be ready.
_READY = 10.0


class Joined:
    """A context manager that makes an isolation join the instance's namespaces.

    The namespaces are found by one of the instance's own processes. If none has namespaces of its
    own, they are made: a pid namespace with a `NamespaceInit`, which is released at the end; others
    by the isolated process. Nothing happens for an isolation without namespaces.

    Args:
        isolation: The isolation; its `join` is set.
        own: The pids of the instance's own processes.
        root_fd: A descriptor of the instance's root.
        cgroup: The path of the v2 cgroup in which processes start.

    Raises:
        OSError: A namespace cannot be found or made.
    """

    __slots__ = ("init", "isolation", "opened", "pidfd")

    def __init__(
        self, isolation: Isolation, own: Iterable[int], root_fd: int, cgroup: str | None
    ) -> None:
        self.isolation = isolation
        self.init: NamespaceInit | None = None
        self.opened = Descriptors()
        self.pidfd = -1
        if not isolation.flags:
            return
        if isolation.flags & NEWPID:
            self.pidfd = _find_first(sorted(own), self.opened)
        else:
            kind = next(word for word, flag in NAMESPACES.items() if isolation.flags & flag)
            self.pidfd = _find(sorted(own), kind, self.opened)
        if self.pidfd >= 0:
            isolation.join = self.pidfd
        elif isolation.flags & NEWPID:
            from chrootfw.linux.pid_namespace_init import NamespaceInit

            self.init = NamespaceInit(isolation, root_fd, cgroup)
            isolation.join = self.init.child.pidfd

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.isolation.join = -1
        self.opened.close_all()
        if self.init is not None:
            self.init.release()


def _find_first(own: Iterable[int], opened: Descriptors) -> int:
    """Find the first process of the instance's pid namespace.

    Its namespace is a child of the caller's, and its pid in there is 1. The instance's own
    processes made the namespaces that are deeper.

    Args:
        own: The pids of the instance's own processes.
        opened: Gets the descriptor.

    Returns:
        The pidfd; -1 if there is none.

    Raises:
        OSError: The process exists, but is not ready in time.
    """
    from chrootfw.linux import isolated_program

    depth = len(_pids("self"))
    deadline = time.monotonic() + _READY
    for pid in own:
        try:
            pidfd = opened.take(os.pidfd_open, pid)
        except ProcessLookupError:
            continue
        while True:
            try:
                pids = _pids(pid)
                if len(pids) != depth + 1 or pids[-1] != b"1":
                    break
                with open(f"/proc/{pid}/comm", "rb", buffering=0) as file:
                    if file.read().strip() == isolated_program.INIT_NAME:
                        return pidfd
            except OSError:
                break  # it has exited
            if time.monotonic() >= deadline:
                raise OSError(
                    errno.ETIMEDOUT,
                    f"the first process of its pid namespace (pid {pid}) is not ready",
                )
            time.sleep(0.01)
        opened.close(pidfd)
    return -1


def _pids(pid: int | str) -> list[bytes]:
    """Return a process's pid in each pid namespace, from the reader's on (proc_pid_status(5))."""
    with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
        return file.read().partition(b"\nNSpid:")[2].partition(b"\n")[0].split()


def _find(own: Iterable[int], kind: str, opened: Descriptors) -> int:
    """Find the first process whose namespace of one kind is not the caller's.

    Args:
        own: The pids to check.
        kind: The name of the namespace's file in /proc/PID/ns.
        opened: Gets the descriptor.

    Returns:
        The pidfd; -1 if there is none.
    """
    here = os.stat(f"/proc/self/ns/{kind}").st_ino
    for pid in own:
        try:
            pidfd = opened.take(os.pidfd_open, pid)
        except ProcessLookupError:
            continue
        try:
            if os.stat(f"/proc/{pid}/ns/{kind}").st_ino != here:
                return pidfd
        except OSError:
            pass  # it has exited
        opened.close(pidfd)
    return -1
