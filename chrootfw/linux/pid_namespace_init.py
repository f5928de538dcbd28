"""Start and release the first process of an instance's pid namespace (pid_namespaces(7))."""

from __future__ import annotations

import errno
import os

from chrootfw.linux import child, isolated_child, isolated_program, spawn
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.isolation import NEWPID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from chrootfw.linux.isolation import Isolation

#: Seconds for it to be ready; for it to exit once it is the only process.
_READY, _ENDS = 30.0, 5.0


class NamespaceInit:
    """The first process of a pid namespace, and the only one that chrootfw runs there.

    A process that loses its parent in the namespace becomes its child; without it, the kernel ends
    the namespace. It makes the instance's namespaces and hardens the mounts. Then it only waits,
    and exits as soon as it is the only process left. It is an interpreter of its own
    (`isolated_program`).

    Attributes:
        child: The process; other processes join the namespaces of `child.pidfd`.
    """

    __slots__ = ("begun", "child", "holds")

    def __init__(self, isolation: Isolation, root_fd: int, cgroup: str | None) -> None:
        """Start the process, and wait until its namespaces are ready.

        Args:
            isolation: The isolation.
            root_fd: A descriptor of the instance's root.
            cgroup: The path of the v2 cgroup to start in.

        Raises:
            OSError: The process cannot be started, or is not ready in time.
        """
        self.holds = Descriptors()
        with Descriptors() as opened:
            held, _ = self.holds.pipe()
            self.holds.move(held, opened)
            null = opened.open("/dev/null", os.O_RDWR)
            plan = {**isolation.plan(), "is_init": True, "ids": None}
            self.begun = isolated_child.begin(
                isolation, plan, stdio=[null] * 3, passed=[held, root_fd, -1], cgroup=cgroup,
                namespaces=NEWPID,
                shares_memory=not spawn.memory_is_limited(cgroup, ()),
            )  # fmt: skip
        self.child = self.begun.child
        report = self.begun.hear(_READY)
        child.has_no_copies(self.child)
        if report != isolated_program.READY:
            self.child.end()
            what, code = (
                ("it is not ready in time", errno.ETIMEDOUT)
                if report is None
                else self.begun.failure(report)
            )
            text = f": {os.strerror(code)}" if code else ""
            raise OSError(code, f"the first process of its pid namespace: {what}{text}")
        self.child.leave()  # from now on, other processes may be in the namespace

    def release(self) -> None:
        """Let the process exit when it is the only one left.

        The process for which it was made has exited, or was never started.
        """
        try:
            self.holds.close_all()
            if self.begun.hear(_ENDS) != isolated_program.ALONE:
                self.child.wait_for_end(_ENDS)
        finally:
            child.leave(self.child)
