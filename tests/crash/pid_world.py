"""A pid namespace in which pids are used again after some few processes, full of strangers that are watched.

The world is forked: its first process is the namespace's init. There ``World`` reaps, holds what it
is told to, and runs the managers, each in a process group of its own beside a stranger.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

_CLONE_NEWNS, _CLONE_NEWPID = 0x20000, 0x20000000
_MS_REC, _MS_SLAVE = 0x4000, 1 << 19
_PR_SET_PDEATHSIG = 1

#: As many pids are handed out before the first is used again; those of the living are passed over.
PIDS = 8

_libc = ctypes.CDLL(None, use_errno=True)

#: Strangers that live for some milliseconds each. Their parent sees how each ends: a signal that ends or stops one
#: is in its status. Sets the counter of pids back all the time (pid_namespaces(7), ns_last_pid): what a small pid_max does
#: too, but there a fork fails when all pids are taken.
_STRANGERS = """
import json, os, select, sys, time
last_pid = os.open("/proc/sys/kernel/ns_last_pid", os.O_WRONLY)
living, count, hit, pids = set(), 0, [], set()
while not select.select([0], [], [], 0)[0]:
    while len(living) < 16:
        if count % int(sys.argv[1]) == 0:
            os.pwrite(last_pid, b"300", 0)
        pid = os.fork()
        if pid == 0:
            time.sleep(os.getpid() * 7 % 10 / 1000)
            os._exit(0)
        living.add(pid)
        pids.add(pid)
        count += 1
    pid, status = os.waitpid(-1, os.WUNTRACED)
    if status:
        hit.append([pid, status])
    if os.WIFSTOPPED(status):
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    living.discard(pid)
print(json.dumps([count, len(pids), hit]))
"""

#: A stranger that lives long, and tells of each signal that it gets; KILL and STOP it cannot tell.
_RECORDER = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.write(1, b"ready\\n")
while True:
    got = signal.sigwaitinfo(signal.valid_signals())
    os.write(1, b"signal %d from pid %d\\n" % (got.si_signo, got.si_pid))
"""


class Recorder:
    """A stranger that tells of signals."""

    def __init__(self, **how: Any) -> None:
        argv = [sys.executable, "-I", "-S", "-c", _RECORDER]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **how
        )
        self._pipe = self.process.stdout.fileno()
        self.pidfd = os.pidfd_open(self.process.pid)
        assert os.read(self._pipe, 100) == b"ready\n"
        os.set_blocking(self._pipe, False)

    def check(self) -> None:
        """Fail if it was signalled."""
        __tracebackhide__ = True
        try:
            told = os.read(self._pipe, 1 << 16)
        except BlockingIOError:
            told = b""
        state = _state(self.process.pid)
        assert not told and state not in "TZX", (
            f"a stranger was signalled: {told!r}, it is now {state}"
        )

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        os.close(self.pidfd)


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


class World:
    """Made in the tests' process by ``live``; the methods are called inside."""

    def __init__(self, managers: list[Callable[[socket.socket], Any]]) -> None:
        self.bodies = managers

    def live(self, seconds: float) -> tuple[list[Any], dict[str, Any]]:
        """Run until the managers are done: what they gave back, and what is known of the strangers."""
        ours, theirs = os.pipe()
        keeper = os.fork()
        if keeper == 0:
            try:
                os.close(ours)
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if _libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID):
                    raise OSError(ctypes.get_errno(), "unshare")
                init = os.fork()
                if init == 0:
                    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                    try:
                        answer: Any = self._inside()
                    except BaseException:
                        answer = [[], {"hit": traceback.format_exc()}]
                    with os.fdopen(theirs, "wb") as pipe:
                        pickle.dump(answer, pipe)
                    os._exit(0)
                os.close(theirs)
                os.waitpid(init, 0)
            finally:
                os._exit(0)
        os.close(theirs)
        pidfd = os.pidfd_open(keeper)
        try:
            with os.fdopen(ours, "rb") as pipe:
                assert select.select([pipe], [], [], seconds)[0], (
                    f"the world did not end within {seconds} s"
                )
                data = pipe.read()
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(keeper, 0)
            os.close(pidfd)
        assert data, "the world came to an end by itself"
        results, strangers = pickle.loads(data)
        return results, strangers

    def _inside(self) -> tuple[list[Any], dict[str, Any]]:
        if _libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None) or _libc.mount(
            b"proc", b"/proc", b"proc", ctypes.c_ulong(0), None
        ):
            raise OSError(ctypes.get_errno(), "mount")
        strangers = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _STRANGERS, str(PIDS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
        )  # fmt: skip
        managers = [_Manager(body) for body in self.bodies]
        while any(manager.answer is None for manager in managers) and not any(
            manager.failed for manager in managers
        ):
            ended = _reap()
            assert strangers.pid not in ended, (
                f"the strangers' parent ended: {ended[strangers.pid]:#x}"
            )
            for manager in managers:
                manager.serve(ended)
            time.sleep(
                0.002
            )  # an init has nothing else to do than to look whether there is something to reap
        strangers.stdin.close()
        told = strangers.stdout.read()
        assert told, "the strangers' parent ended"
        count, pids, hit = json.loads(told)
        return [manager.answer for manager in managers], {"count": count, "pids": pids, "hit": hit}


def _reap() -> dict[int, int]:
    """Take the wait statuses of those that ended: orphans, managers, the strangers' parent."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


class _Manager:
    """A child of init's that does the work; it may ask init to hold a file."""

    def __init__(self, body: Callable[[socket.socket], Any]) -> None:
        self.answer: Any = None
        self.held = -1  # init's own descriptor, for this manager
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._ours.close()
                os.setpgid(0, 0)
                try:
                    answer = body(theirs)
                except BaseException:
                    answer = traceback.format_exc()
                theirs.send(pickle.dumps(("done", answer)))
            finally:
                os._exit(0)
        theirs.close()

    @property
    def failed(self) -> bool:
        return isinstance(self.answer, str)

    def serve(self, ended: dict[int, int]) -> None:
        """Answer what it asks. ``ended``: the wait statuses of those that ended since."""
        try:
            data = self._ours.recv(1 << 20)
        except BlockingIOError:
            data = b""
        if not data:
            if self.pid in ended and self.answer is None:
                self.answer = f"manager {self.pid} ended with wait status {ended[self.pid]:#x}"
            return
        what, argument = pickle.loads(data)
        if what == "hold":
            if self.held >= 0:
                os.close(self.held)
            self.held = os.open(argument, os.O_RDONLY | os.O_CLOEXEC)
            self._ours.send(b"held")
        else:
            self.answer = argument


def let_init_hold(init: socket.socket, path: str) -> None:
    """Have pid 1 open a file or directory, and close the one before."""
    init.send(pickle.dumps(("hold", path)))
    assert init.recv(100) == b"held"
