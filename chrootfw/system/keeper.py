"""The first process of an instance's own pid namespace (pid_namespaces(7))."""

from __future__ import annotations

import ctypes
import errno
import os
import select

from chrootfw.system import isolation as isolations
from chrootfw.system import spawn

_F_DUPFD, _PR_SET_NAME, _WNOHANG = 0, 15, 1
_NAME = ctypes.create_string_buffer(b"chrootfw-init")


class Keeper:
    """The first process of a pid namespace: whoever loses its parent in there becomes its child, and without it the kernel ends
    the namespace. It does nothing but wait, and ends as soon as it is alone.

    It is a clone of the manager, isolated as the others in there. ``child.pidfd`` is what they join.
    """

    __slots__ = ("child", "hears", "holds")

    def __init__(self, isolation: isolations.Isolation, root_fd: int, cgroup: str | None) -> None:
        """Raises ``OSError``."""
        entering = isolation.entering(spawn.CALLS, root_fd)
        before, after = isolation.giving_up(spawn.CALLS, is_root=True)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        held, self.holds = os.pipe2(os.O_CLOEXEC)
        self.hears, tell = os.pipe2(os.O_CLOEXEC)
        cgroup_fd = -1
        try:
            if cgroup is not None:
                cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            calls, line = [*entering, *before, *after], _command_line()
            self.child = spawn.clone(
                lambda: _keep(calls, null, held, tell, line), cgroup, cgroup_fd, None, isolations.NEWPID
            )
        except BaseException:
            os.close(self.holds)
            os.close(self.hears)
            raise
        finally:
            for fd in (null, held, tell, *([cgroup_fd] if cgroup_fd >= 0 else [])):
                os.close(fd)
        said = self._hear(spawn.ATTEMPTS[-1])
        spawn.has_no_copies(self.child)
        if said != b"+":
            self.child.end()
            os.close(self.holds)
            os.close(self.hears)
            code, _, what = (said or b"%d it says nothing" % errno.ETIMEDOUT).partition(b" ")
            raise OSError(
                int(code), f"the first process of its pid namespace: {what.decode()}: {os.strerror(int(code))}"
            )

    def release(self) -> None:
        """What was to be started in there has ended, or was never started: let it end when it is alone."""
        os.close(self.holds)
        alone = not self._hear(spawn.ATTEMPTS[1])
        os.close(self.hears)
        if alone:
            self.child.wait(spawn.ATTEMPTS[1])
        spawn.leave(self.child)

    def _hear(self, seconds: float) -> bytes:
        poller = select.poll()
        poller.register(self.hears, select.POLLIN)
        return os.read(self.hears, 256) if poller.poll(seconds * 1000) else b""


def _command_line() -> ctypes.Array[ctypes.c_char]:
    """Where the kernel reads this process's command line (proc_pid_stat(5): arg_start, arg_end). The keeper puts its name
    there: everybody inside may read it."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    return (ctypes.c_char * (end - start)).from_address(start)


def _keep(
    steps: list[isolations.Call], null: int, held: int, tell: int, command_line: ctypes.Array[ctypes.c_char]
) -> None:
    """The keeper's side."""
    calls = spawn.CALLS
    try:
        spawn.forget_signals()
        calls.prctl(_PR_SET_NAME, _NAME, 0, 0, 0)
        command_line.raw = _NAME.raw.ljust(len(command_line), b"\0")[: len(command_line)]
        spawn.check(b"setsid", calls.setsid())
        calls.umask(0o022)
        spawn.carry_out(steps)
        # First out of the way of 0 to 4, then to their places.
        moved = [spawn.check(b"fcntl", calls.fcntl(fd, _F_DUPFD, 5)) for fd in (null, null, null, held, tell)]
        tell = moved[-1]
        for place, fd in enumerate(moved):
            spawn.check(b"dup3", calls.dup3(fd, place, 0))
        held, tell = 3, 4
        spawn.check(b"close_range", calls.syscall(spawn.CLOSE_RANGE, 5, ctypes.c_uint(0xFFFFFFFF), 0))
    except spawn.Failed as failed:
        failed.tell(tell)
        return
    calls.write(tell, b"+", 1)
    calls.read(held, ctypes.create_string_buffer(1), 1)  # until the manager closes its end, or dies
    patience = _WNOHANG
    while True:
        ended = calls.wait4(-1, None, patience, None)
        if ended > 0:
            continue
        if ended < 0 and calls.kill(-1, 0) < 0:  # no children, and nobody else in here: ESRCH
            calls.exit(0)
        if patience:
            calls.write(tell, b"1", 1)
            calls.close(tell)
            patience = 0
        elif ended < 0:
            calls.usleep(200_000)  # somebody lives whose parent is outside: nothing tells of its end
