"""Starting a process inside a root: clone3(2) into its cgroup, then chroot and execve.

No ``os.fork`` and no ``preexec_fn``: the embedding program may have threads. The child runs a handful of
calls, prepared beforehand, and tells of a failure through a close-on-exec pipe. ``ctypes.PyDLL`` keeps the interpreter's lock
over the clone: with ``CDLL`` children of a program with busy threads hung.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_libc = ctypes.PyDLL(None, use_errno=True)
_clone3 = _libc.syscall
_clone3.restype = ctypes.c_long
_CLONE3, _CLOSE_RANGE = 435, 436
_CLONE_PIDFD, _CLONE_INTO_CGROUP = 0x1000, 0x200000000
_CLOSE_RANGE_CLOEXEC = 4
_ALL_SIGNALS = signal.valid_signals()


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
                self.status = 0  # the embedding program reaped it (SIGCHLD ignored): how it ended is lost
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
    candidates = _candidates(argv[0], env.get("PATH", ""))
    arguments = [os.fsencode(word) for word in argv]
    environment = {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
    join_fds = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in joins]
    cgroup_fd = -1
    if cgroup is not None:
        cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    failed, tell = os.pipe2(os.O_CLOEXEC)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
    try:
        try:
            pid, pidfd = _clone(cgroup_fd)
        except OSError as error:
            if error.errno != errno.ENOSYS:  # a seccomp filter from before clone3
                raise
            if cgroup is not None:
                join_fds.append(os.open(f"{cgroup}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
            pid, pidfd = _fork()
        if pid == 0:
            _become(
                candidates, arguments, environment, root_fd, os.fsencode(cwd), join_fds, tell,
                (stdin, stdout, stderr), ids, new_session, terminal,
            )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for fd in (*join_fds, tell, *([cgroup_fd] if cgroup_fd >= 0 else [])):
            os.close(fd)
    child = Child(pid, pidfd)
    try:
        with os.fdopen(failed, "rb", buffering=0) as pipe:
            report = pipe.read(256)
    except BaseException:
        child.kill()
        child.wait(None)
        child.close()
        raise
    if not report:
        return child
    child.wait(None)
    child.close()
    number, _, what = report.partition(b" ")
    code = int(number)
    raise OSError(code, f"{what.decode()}: {os.strerror(code)}", argv[0] if what == b"execve" else cwd)


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
    result = _clone3(_CLONE3, ctypes.byref(words), ctypes.c_size_t(ctypes.sizeof(words)))
    if result >= 0:
        return result, pidfd.value
    code = ctypes.get_errno()
    raise OSError(code, f"clone3: {os.strerror(code)}")


def _fork() -> tuple[int, int]:
    pid = _libc.fork()
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"fork: {os.strerror(code)}")
    return pid, os.pidfd_open(pid) if pid else -1


def _become(
    candidates: list[bytes],
    argv: list[bytes],
    env: dict[bytes, bytes],
    root_fd: int,
    cwd: bytes,
    join_fds: list[int],
    tell: int,
    stdio: tuple[int, int, int],
    ids: tuple[int, int, Sequence[int]] | None,
    new_session: bool,
    terminal: bool,
) -> None:
    """The child's side; never returns. No garbage collection: finalizers here would be the parent's."""
    gc.disable()
    what = b"signal"
    try:
        for signum in _ALL_SIGNALS:
            _libc.signal(int(signum), None)  # SIG_DFL; signal.signal() works in the main thread only
        what = b"cgroup.procs"
        for fd in join_fds:
            os.write(fd, b"0")
        if new_session:
            os.setsid()
        what = b"dup2"
        # First out of the way of 0 to 2, then to their places.
        moved = [_above_stdio(fd) for fd in stdio]
        for number, fd in enumerate(moved):
            os.dup2(fd, number, inheritable=True)
        if terminal:
            import fcntl  # loaded by the caller: no file is read here
            import termios

            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        what = b"chroot"
        os.fchdir(root_fd)
        os.chroot(".")
        _libc.syscall(_CLOSE_RANGE, 3, ctypes.c_uint(0xFFFFFFFF), _CLOSE_RANGE_CLOEXEC)
        os.umask(0o022)
        if ids is not None:
            what = b"setuid"
            user, group, groups = ids
            os.setgroups(list(groups))
            os.setresgid(group, group, group)
            os.setresuid(user, user, user)
        what = b"chdir"
        os.chdir(cwd)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        what = b"execve"
        failure: int = errno.ENOENT
        for path in candidates:
            try:
                os.execve(path, argv, env)
            except OSError as error:
                code = error.errno or errno.EIO
                if code not in (errno.ENOENT, errno.ENOTDIR):
                    failure = code
                    if code != errno.EACCES:
                        break
        os.write(tell, b"%d execve" % failure)
    except OSError as error:
        os.write(tell, b"%d %s" % (error.errno or errno.EIO, what))
    except BaseException:
        os.write(tell, b"%d %s" % (errno.EIO, what))
    finally:
        os._exit(127)


def _above_stdio(fd: int) -> int:
    held = []
    while fd <= 2:
        fd = os.dup(fd)
        held.append(fd)
    return fd
