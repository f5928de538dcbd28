"""Starting a process inside a root: clone3(2) into its cgroup, then chroot and execve.

No ``os.fork`` and no ``preexec_fn``: the embedding program may have threads. The child runs a handful of
calls, prepared beforehand, and tells of a failure through a close-on-exec pipe. ``ctypes.PyDLL`` keeps the interpreter's
lock over the clone: with ``CDLL`` children of a program with busy threads hung.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_libc = ctypes.PyDLL(None, use_errno=True)
# Bound once: looking a function up takes the dynamic linker's lock, which another thread may hold at the clone.
_syscall, _fork, _exit = _libc.syscall, _libc.fork, _libc["_exit"]
_signal, _sigprocmask, _setsid, _umask = _libc.signal, _libc.sigprocmask, _libc.setsid, _libc.umask
_dup3, _dup, _fchdir, _chroot, _chdir = _libc.dup3, _libc.fcntl, _libc.fchdir, _libc.chroot, _libc.chdir
_ioctl, _write, _execve = _libc.ioctl, _libc.write, _libc.execve
_syscall.restype = ctypes.c_long

_CLONE3, _CLOSE_RANGE = 435, 436
_CLONE_PIDFD, _CLONE_INTO_CGROUP = 0x1000, 0x200000000
_CLOSE_RANGE_CLOEXEC = 4
_F_DUPFD, _SIG_SETMASK, _TIOCSCTTY = 0, 2, 0x540E
_SIGNALS = tuple(int(number) for number in signal.valid_signals())
#: setgroups, setresgid, setresuid. Not by libc: that waits for the other threads, which a clone does not have.
_GENERIC = (159, 149, 147)
_IDS = {"x86_64": (116, 119, 117), "ppc64le": (81, 169, 164), "s390x": (206, 210, 208)}.get(
    os.uname().machine, _GENERIC
)

#: Seconds that a child may need to come to its execve, attempt by attempt. A thread of the embedding program that asks
#: for the interpreter's lock at the very moment of the clone leaves that request in the child's copy, where nobody can
#: grant it: such a child has done nothing yet, is killed, and another one made.
_ATTEMPTS = (0.5, 5.0, 30.0)


#: The status of a child that the embedding program reaped (it ignores SIGCHLD, or waits for any child).
LOST = 255


class Child:
    """A process we started: ``pid`` and a ``pidfd`` (close-on-exec). Close it when done."""

    __slots__ = ("pid", "pidfd", "status")

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.status: int | None = None

    def wait(self, seconds: float | None) -> int | None:
        """The exit status (negative: ended by that signal), or ``None`` if it lives on after ``seconds``."""
        if self.status is None:
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            if poller.poll(None if seconds is None else max(0, seconds * 1000)):
                self.reap()
        return self.status

    def reap(self) -> int:
        """The exit status of a child whose pidfd is readable."""
        if self.status is None:
            try:
                result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
                assert result is not None
                self.status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
            except ChildProcessError:
                self.status = LOST
        return self.status

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Signal it, unless it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Give back the pidfd."""
        os.close(self.pidfd)


def spawn(
    argv: Sequence[str],
    *,
    root_fd: int,
    env: Mapping[str, str],
    cwd: str = "/",
    cgroup: str | None = None,
    joins: Sequence[str] = (),
    stdin: int,
    stdout: int,
    stderr: int,
    ids: tuple[int, int, Sequence[int]] | None = None,
    new_session: bool = True,
    terminal: bool = False,
) -> Child:
    """Start ``argv`` in the root that ``root_fd`` (O_PATH) refers to.

    The child has file descriptors 0, 1 and 2 only, default signals, umask 022 and no other environment than ``env``.
    ``argv[0]`` without a slash is looked for in ``env["PATH"]``, inside. ``cgroup`` is the path of a v2 cgroup to be born in; ``joins`` are
    ``cgroup.procs`` files to write to. ``ids`` are user, group and supplementary groups. ``terminal`` makes ``stdin`` the controlling terminal.

    Raises ``OSError`` with the errno of what failed in the child: of execve (ENOENT, EACCES, ENOEXEC …), of chdir, and so on.
    """
    plan = _Plan(argv, env, cwd, root_fd, (stdin, stdout, stderr), ids, new_session=new_session, terminal=terminal)
    join_fds = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in joins]
    cgroup_fd = -1
    try:
        if cgroup is not None:
            cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for seconds in _ATTEMPTS:
            child, report = _attempt(plan, cgroup, cgroup_fd, join_fds, seconds)
            if report is not None:
                break
    finally:
        for fd in (*join_fds, *([cgroup_fd] if cgroup_fd >= 0 else [])):
            os.close(fd)
    if report is None:
        raise OSError(errno.ETIMEDOUT, f"clone3: {os.strerror(errno.ETIMEDOUT)}", argv[0])
    if not report:
        return child
    child.wait(None)
    child.close()
    number, _, what = report.partition(b" ")
    code = int(number)
    raise OSError(code, f"{what.decode()}: {os.strerror(code)}", argv[0] if what == b"execve" else cwd)


def _attempt(
    plan: _Plan, cgroup: str | None, cgroup_fd: int, join_fds: list[int], seconds: float
) -> tuple[Child, bytes | None]:
    """One clone. The report is empty when the program runs, says what failed, or is ``None`` when none came."""
    failed, tell = os.pipe2(os.O_CLOEXEC)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        try:
            time.sleep(0)  # the interpreter's lock given back and taken: others wait for their turn from now on
            pid, pidfd = _clone(cgroup_fd)
        except OSError as error:
            if error.errno != errno.ENOSYS:  # a seccomp filter from before clone3
                raise
            if cgroup is not None:
                join_fds.append(os.open(f"{cgroup}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
            pid, pidfd = _plain_fork()
        if pid == 0:
            _become(plan, join_fds, tell)
    except BaseException:
        os.close(failed)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(tell)
    child = Child(pid, pidfd)
    try:
        with os.fdopen(failed, "rb", buffering=0) as pipe:
            poller = select.poll()
            poller.register(pipe, select.POLLIN)
            report = pipe.read(256) if poller.poll(seconds * 1000) else None
    except BaseException:
        child.kill()
        child.wait(None)
        child.close()
        raise
    if report is None:
        child.kill()
        child.wait(None)
        child.close()
    return child, report


class _Plan:
    """What the child does, made ready for C: it must not look anything up."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        root_fd: int,
        stdio: tuple[int, int, int],
        ids: tuple[int, int, Sequence[int]] | None,
        *,
        new_session: bool,
        terminal: bool,
    ) -> None:
        self.candidates = _candidates(argv[0], env.get("PATH", ""))
        self.argv = _strings([os.fsencode(word) for word in argv])
        self.env = _strings([os.fsencode(key) + b"=" + os.fsencode(value) for key, value in env.items()])
        self.cwd = os.fsencode(cwd)
        self.root_fd = root_fd
        self.stdio = stdio
        self.new_session = new_session
        self.terminal = terminal
        self.mask = ctypes.create_string_buffer(128)  # an empty sigset_t
        self.ids = None
        if ids is not None:
            user, group, groups = ids
            self.ids = (user, group, len(groups), (ctypes.c_uint32 * max(len(groups), 1))(*groups))


def _strings(words: list[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)


def _candidates(program: str, path: str) -> list[bytes]:
    if "/" in program:
        return [os.fsencode(program)]
    return [os.fsencode(f"{directory or '.'}/{program}") for directory in path.split(":")]


def _clone(cgroup_fd: int) -> tuple[int, int]:
    """clone3(2) as a fork with a pidfd, into the cgroup if there is one: ``(pid, pidfd)``, pid 0 in the child."""
    pidfd = ctypes.c_int(-1)
    flags = _CLONE_PIDFD | (_CLONE_INTO_CGROUP if cgroup_fd >= 0 else 0)
    words = (ctypes.c_uint64 * 11)(flags, ctypes.addressof(pidfd), 0, 0, signal.SIGCHLD)
    words[10] = max(cgroup_fd, 0)
    result: int = _syscall(_CLONE3, ctypes.byref(words), ctypes.c_size_t(ctypes.sizeof(words)))
    if result >= 0:
        return result, pidfd.value
    code = ctypes.get_errno()
    raise OSError(code, f"clone3: {os.strerror(code)}")


def _plain_fork() -> tuple[int, int]:
    pid: int = _fork()
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"fork: {os.strerror(code)}")
    return pid, os.pidfd_open(pid) if pid else -1


class _Failed(Exception):
    """A call of the child's failed."""


def _become(plan: _Plan, join_fds: list[int], tell: int) -> None:
    """The child's side; never returns.

    Every call keeps the interpreter's lock (PyDLL): there is no thread here to hand it to. No garbage collection:
    finalizers here would be the parent's.
    """
    gc.disable()
    what = b"setup"

    def do(result: int) -> int:
        if result < 0:
            raise _Failed
        return result

    try:
        for number in _SIGNALS:
            _signal(number, None)  # SIG_DFL
        what = b"cgroup.procs"
        for fd in join_fds:
            do(_write(fd, b"0", 1))
        if plan.new_session:
            what = b"setsid"
            do(_setsid())
        what = b"dup3"
        # First out of the way of 0 to 2, then to their places.
        moved = [do(_dup(fd, _F_DUPFD, 3)) for fd in plan.stdio]
        for place, fd in enumerate(moved):
            do(_dup3(fd, place, 0))
        if plan.terminal:
            what = b"TIOCSCTTY"
            do(_ioctl(0, _TIOCSCTTY, 0))
        what = b"chroot"
        do(_fchdir(plan.root_fd))
        do(_chroot(b"."))
        what = b"close_range"
        do(_syscall(_CLOSE_RANGE, 3, ctypes.c_uint(0xFFFFFFFF), _CLOSE_RANGE_CLOEXEC))
        _umask(0o022)
        if plan.ids is not None:
            what = b"setuid"
            user, group, count, groups = plan.ids
            do(_syscall(_IDS[0], count, groups))
            do(_syscall(_IDS[1], group, group, group))
            do(_syscall(_IDS[2], user, user, user))
        what = b"chdir"
        do(_chdir(plan.cwd))
        _sigprocmask(_SIG_SETMASK, plan.mask, None)
        what = b"execve"
        failure: int = errno.ENOENT
        for path in plan.candidates:
            _execve(path, plan.argv, plan.env)
            code = ctypes.get_errno()
            if code not in (errno.ENOENT, errno.ENOTDIR):
                failure = code
                if code != errno.EACCES:
                    break
        ctypes.set_errno(failure)
    except _Failed:
        pass
    finally:
        text = b"%d %s" % (ctypes.get_errno() or errno.EIO, what)
        _write(tell, text, len(text))
        _exit(127)
