"""The first process of an instance's own pid namespace (pid_namespaces(7))."""

from __future__ import annotations

import ctypes
import errno
import os
from fcntl import F_DUPFD_CLOEXEC, fcntl

from chrootfw.system import call_lists, children, spawn
from chrootfw.system import isolation as isolations

_PR_SET_NAME, _WNOHANG = 15, 1
_TO_THE_LAST = 0xFFFFFFFF
_NAME = ctypes.create_string_buffer(b"chrootfw-init")

#: The keeper's descriptors, after 0 to 2: what it reads until the manager lets it go, and where it says what it has come to.
_HELD, _TELL = 3, 4


class Keeper:
    """The first process of a pid namespace: whoever loses its parent in there becomes its child, and without it the kernel ends
    the namespace. It does nothing but wait, and ends as soon as it is alone.

    It is a fork of the manager, isolated as the others in there. ``child.pidfd`` is what they join.
    """

    __slots__ = ("child", "hears", "holds")

    def __init__(self, isolation: isolations.Isolation, root_fd: int, cgroup: str | None) -> None:
        """Raises ``OSError``."""
        held, self.holds = os.pipe2(os.O_CLOEXEC)
        self.hears, tell = os.pipe2(os.O_CLOEXEC)
        opened = [held, tell, os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)]
        try:
            for fd in (held, tell, opened[2]):  # out of the way of 0 to 4, which they are put to one after the other
                opened.append(fcntl(fd, F_DUPFD_CLOEXEC, _TELL + 1))
            cgroup_fd = -1
            if cgroup is not None:
                cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.append(cgroup_fd)
            calls = _becoming(isolation, root_fd, *opened[3:6])
            calls.prepare()
            line = _command_line()
            self.child = children.clone(lambda: _keep(calls, line), cgroup, cgroup_fd, isolations.NEWPID)
        except BaseException:
            os.close(self.holds)
            os.close(self.hears)
            raise
        finally:
            for fd in opened:
                os.close(fd)
        said = self._hear(children.ATTEMPTS[-1])
        children.has_no_copies(self.child)
        if said != b"+":
            self.child.end()
            os.close(self.holds)
            os.close(self.hears)
            what, code = calls.stopped_at() or (b"", 0)
            code = code or errno.ETIMEDOUT
            raise OSError(code, f"the first process of its pid namespace: {what.decode()}: {os.strerror(code)}")

    def release(self) -> None:
        """What was to be started in there has ended, or was never started: let it end when it is alone."""
        os.close(self.holds)
        alone = not self._hear(children.ATTEMPTS[1])
        os.close(self.hears)
        if alone:
            self.child.wait(children.ATTEMPTS[1])
        children.leave(self.child)

    def _hear(self, seconds: float) -> bytes:
        return os.read(self.hears, 1) if children.is_ready(self.hears, seconds) else b""


def _becoming(isolation: isolations.Isolation, root_fd: int, held: int, tell: int, null: int) -> call_lists.CallList:
    """What the fork does to become the keeper."""
    calls = call_lists.CallList()
    spawn.forget_signals(calls)
    calls.add("prctl", _PR_SET_NAME, _NAME, 0, 0, 0)
    calls.add("setsid")
    calls.add("umask", 0o022)
    isolation.enter(calls, root_fd)
    isolation.give_up_before(calls)
    isolation.give_up_after(calls, is_root=True)
    for place, fd in enumerate((null, null, null, held, tell)):
        calls.add("dup3", fd, place, 0)
    calls.add("close_range", _TELL + 1, _TO_THE_LAST, 0)
    return calls


def _command_line() -> ctypes.Array[ctypes.c_char]:
    """Where the kernel reads this process's command line (proc_pid_stat(5): arg_start, arg_end). The keeper puts its name
    there: everybody inside may read it."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    return (ctypes.c_char * (end - start)).from_address(start)


def _keep(becoming: call_lists.CallList, command_line: ctypes.Array[ctypes.c_char]) -> None:
    """The keeper's side."""
    command_line.raw = _NAME.raw.ljust(len(command_line), b"\0")[: len(command_line)]
    children.carry_out_here(becoming)
    if becoming.stopped_at():
        return
    calls = children.CALLS
    calls.write(_TELL, b"+", 1)
    calls.read(_HELD, ctypes.create_string_buffer(1), 1)  # until the manager closes its end, or dies
    patience = _WNOHANG
    while True:
        ended = calls.wait4(-1, None, patience, None)
        if ended > 0:
            continue
        if ended < 0 and calls.kill(-1, 0) < 0:  # no children, and nobody else in here: ESRCH
            calls.exit(0)
        if patience:
            calls.write(_TELL, b"1", 1)
            calls.close(_TELL)
            patience = 0
        elif ended < 0:
            calls.usleep(200_000)  # somebody lives whose parent is outside: nothing tells of its end
