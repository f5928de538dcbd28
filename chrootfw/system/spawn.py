"""Starting a process inside a root: clone3(2) into its cgroup, then isolation, chroot at least, and execve.

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
import stat
import time

from chrootfw.system import isolation as isolations
from chrootfw.system import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping, Sequence
else:
    import _signal as signal  # signal makes enums of its numbers, and takes as long to import as a list to make

#: For what a child does. Bound once, and the interpreter's lock is kept: there is no thread there to hand it to, and
#: looking a function up takes the dynamic linker's lock, which another thread may hold at the clone.
CALLS = syscalls.Calls(ctypes.PyDLL(None, use_errno=True))

_CLONE3, CLOSE_RANGE = 435, 436
_CLONE_PIDFD, _CLONE_INTO_CGROUP = 0x1000, 0x200000000
_CLOSE_RANGE_CLOEXEC = 4
_F_DUPFD, _SIG_BLOCK, _SIG_SETMASK, _TIOCSCTTY = 0, 0, 2, 0x540E
_SignalSet = ctypes.c_char * 128  # sigset_t
_ALL_SIGNALS = _SignalSet.from_buffer_copy(b"\xff" * 128)
_SIGNALS = tuple(int(number) for number in signal.valid_signals())
#: setgroups, setresgid, setresuid. Not by libc: that waits for the other threads, which a clone does not have.
_GENERIC = (159, 149, 147)
_IDS = {"x86_64": (116, 119, 117), "ppc64le": (81, 169, 164), "s390x": (206, 210, 208)}.get(
    os.uname().machine, _GENERIC
)

#: Seconds that a child may need to come to its execve, attempt by attempt. A thread of the embedding program that asks
#: for the interpreter's lock at the very moment of the clone leaves that request in the child's copy, where nobody can
#: grant it: such a child has done nothing yet, is killed, and another one made.
ATTEMPTS = (0.5, 5.0, 30.0)


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
        has_no_copies(self)
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

    def end(self, seconds: float = 5.0) -> bool:
        """KILL it, wait and close. ``False``: it has not ended, since a call of its own does not return (state D); it
        is left behind, and reaped when it has."""
        self.kill()
        if self.wait(seconds) is None:
            leave(self)
            return False
        self.close()
        return True


#: Children that were left behind, or live as long as their instance.
_left: list[Child] = []

#: The pids of children that have copies of all descriptors of this process: they are on the way to their execve.
_with_copies: set[int] = set()


def has_no_copies(child: Child) -> None:
    """A child has closed what it had of its parent's descriptors, by its execve, its end, or one by one."""
    _with_copies.discard(child.pid)


def copies_are_about() -> bool:
    """Whether a child that a thread of this process has just made may hold any descriptor of this process open."""
    return bool(_with_copies)


def leave(child: Child) -> None:
    """Leave a child behind, to be reaped when it has ended."""
    has_no_copies(child)
    _left.append(child)
    reap()


def reap() -> None:
    """Reap the children that were left behind and have ended meanwhile."""
    for _ in range(len(_left)):
        try:
            child = _left.pop(0)  # it is the caller's alone from now on: another thread may look at the same time
        except IndexError:
            return
        if child.wait(0) is None:
            _left.append(child)
        else:
            child.close()


#: A mere chroot(2).
PLAIN = isolations.Isolation({"method": "chroot"}, "")


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
    terminal: int | None = None,
    isolation: isolations.Isolation = PLAIN,
) -> Child:
    """Start ``argv`` in the root that ``root_fd`` (O_PATH) refers to.

    The child has file descriptors 0, 1 and 2 only, default signals, umask 022 and no other environment than ``env``.
    ``argv[0]`` without a slash is looked for in ``env["PATH"]``, inside. ``cgroup`` is the path of a v2 cgroup to be born in; ``joins`` are
    ``cgroup.procs`` files to write to. ``ids`` are user, group and supplementary groups. ``terminal`` makes ``stdin``, the pty of that number,
    the controlling terminal. ``isolation``: what it is parted from.

    Raises ``OSError`` with the errno of what failed in the child: of execve (ENOENT, EACCES, ENOEXEC …), of chdir, and so on.
    """
    stdio = (stdin, stdout, stderr)
    if not isolation.is_plain and any(stat.S_ISDIR(os.fstat(fd).st_mode) for fd in stdio):
        raise OSError(
            errno.EISDIR, "a directory of the host as standard input or output would be a way out of the root"
        )
    plan = _Plan(argv, env, cwd, root_fd, stdio, ids, new_session=new_session, terminal=terminal, isolation=isolation)
    join_fds = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in joins]
    cgroup_fd = -1
    try:
        if cgroup is not None:
            cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for seconds in ATTEMPTS:
            child, report = _attempt(plan, cgroup, cgroup_fd, join_fds, seconds)
            if report is not None or child.status is None:
                break
    finally:
        for fd in (*join_fds, *([cgroup_fd] if cgroup_fd >= 0 else [])):
            os.close(fd)
    if report is None:
        raise OSError(errno.ETIMEDOUT, "it did not come to run in time: does its file system answer?", argv[0])
    if not report:
        return child
    child.end()
    number, _, what = report.partition(b" ")
    code = int(number)
    raise OSError(code, f"{what.decode()}: {os.strerror(code)}", argv[0] if what == b"execve" else cwd)


def _attempt(
    plan: _Plan, cgroup: str | None, cgroup_fd: int, join_fds: list[int], seconds: float
) -> tuple[Child, bytes | None]:
    """One clone. The report is empty when the program runs, says what failed, or is ``None`` when none came."""
    failed, tell = os.pipe2(os.O_CLOEXEC)
    try:
        with children_in(plan.isolation):
            child = clone(lambda: _become(plan, join_fds, tell), cgroup, cgroup_fd, join_fds)
    except BaseException:
        os.close(failed)
        raise
    finally:
        os.close(tell)
    try:
        with os.fdopen(failed, "rb", buffering=0) as pipe:
            poller = select.poll()
            poller.register(pipe, select.POLLIN)
            report = pipe.read(256) if poller.poll(seconds * 1000) else None
    except BaseException:
        child.end()
        raise
    if report is None:
        child.end()
    has_no_copies(child)
    return child, report


def clone(
    body: Callable[[], None],
    cgroup: str | None = None,
    cgroup_fd: int = -1,
    join_fds: list[int] | None = None,
    namespaces: int = 0,
) -> Child:
    """A child that runs ``body``, with all signals blocked, and ends with status 127.

    ``body`` must call nothing that gives back the interpreter's lock: only ``CALLS`` and what is bound above. It is born in the cgroup that
    ``cgroup_fd`` refers to; where the kernel refuses clone3, the cgroup's ``cgroup.procs`` is added to ``join_fds``.
    """
    reap()
    before = _SignalSet()  # by libc: signal.pthread_sigmask makes an enum of each of 64 signals, three times
    CALLS.sigprocmask(_SIG_BLOCK, _ALL_SIGNALS, before)
    try:
        try:
            time.sleep(0)  # the interpreter's lock given back and taken: others wait for their turn from now on
            pid, pidfd = _clone(cgroup_fd, namespaces)
        except OSError as error:
            if error.errno != errno.ENOSYS or namespaces:  # a seccomp filter from before clone3
                raise
            if cgroup is not None and join_fds is not None:
                join_fds.append(os.open(f"{cgroup}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
            pid, pidfd = _plain_fork()
        if pid == 0:
            # No garbage collection: finalizers here would be the parent's.
            try:
                gc.disable()
                body()
            finally:
                CALLS.exit(127)
        _with_copies.add(pid)
    finally:
        CALLS.sigprocmask(_SIG_SETMASK, before, None)
    return Child(pid, pidfd)


class children_in:  # noqa: N801  # it reads like words
    """While it is entered, children of the calling thread are born in the pid namespace that an isolation joins
    (pid_namespaces(7)); the thread itself stays where it is."""

    def __init__(self, isolation: isolations.Isolation) -> None:
        self.join = isolation.join if isolation.flags & isolations.NEWPID else -1

    def __enter__(self) -> None:
        if self.join >= 0:
            self.own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            if CALLS.setns(self.join, isolations.NEWPID) < 0:
                os.close(self.own)
                code = ctypes.get_errno()
                raise OSError(code, f"setns: {os.strerror(code)}")

    def __exit__(self, *_exc: object) -> None:
        if self.join >= 0:
            back = CALLS.setns(self.own, isolations.NEWPID)
            os.close(self.own)
            if back < 0:
                code = ctypes.get_errno()
                raise OSError(code, f"setns: {os.strerror(code)}")


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
        terminal: int | None,
        isolation: isolations.Isolation,
    ) -> None:
        self.candidates = _candidates(argv[0], env.get("PATH", ""))
        self.argv = _strings([os.fsencode(word) for word in argv])
        self.env = _strings([os.fsencode(key) + b"=" + os.fsencode(value) for key, value in env.items()])
        self.cwd = os.fsencode(cwd)
        self.isolation = isolation
        self.entering = isolation.entering(CALLS, root_fd)
        self.before, self.after = isolation.giving_up(CALLS, is_root=ids is None or ids[0] == 0)
        # The pty as it is called in the mount namespace to come; a mere chroot is in the caller's.
        self.pty = b"" if terminal is None or isolation.is_plain else b"/dev/pts/%d" % terminal
        self.stdio = stdio
        self.new_session = new_session
        self.terminal = terminal is not None
        self.mask = _SignalSet()
        self.ids = None
        if ids is not None:
            user, group, groups = ids
            count = -1 if user == 0 and list(groups) == [0] and _keeps_groups() else len(groups)
            self.ids = (user, group, count, (ctypes.c_uint32 * max(len(groups), 1))(*groups))


def _keeps_groups() -> bool:
    """Whether this is a user namespace whose processes cannot change their groups (user_namespaces(7)): then root's stay as they are."""
    try:
        with open("/proc/self/setgroups", encoding="utf-8") as file:
            return file.read().strip() == "deny"
    except OSError:
        return False


def _strings(words: list[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)


def _candidates(program: str, path: str) -> list[bytes]:
    if "/" in program:
        return [os.fsencode(program)]
    return [os.fsencode(f"{directory or '.'}/{program}") for directory in path.split(":")]


def _clone(cgroup_fd: int, namespaces: int) -> tuple[int, int]:
    """clone3(2) as a fork with a pidfd, into the cgroup if there is one: ``(pid, pidfd)``, pid 0 in the child."""
    pidfd = ctypes.c_int(-1)
    flags = namespaces | _CLONE_PIDFD | (_CLONE_INTO_CGROUP if cgroup_fd >= 0 else 0)
    words = (ctypes.c_uint64 * 11)(flags, ctypes.addressof(pidfd), 0, 0, signal.SIGCHLD)
    words[10] = max(cgroup_fd, 0)
    result: int = CALLS.syscall(_CLONE3, ctypes.byref(words), ctypes.c_size_t(ctypes.sizeof(words)))
    if result >= 0:
        return result, pidfd.value
    code = ctypes.get_errno()
    raise OSError(code, f"clone3: {os.strerror(code)}")


def _plain_fork() -> tuple[int, int]:
    pid: int = CALLS.fork()
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"fork: {os.strerror(code)}")
    return pid, os.pidfd_open(pid) if pid else -1


class Failed(Exception):
    """A call of the child's failed; ``errno`` says how."""

    def __init__(self, what: bytes) -> None:
        self.what = what

    def tell(self, fd: int) -> None:
        """Write ``ERRNO what`` into a pipe."""
        text = b"%d %s" % (ctypes.get_errno() or errno.EIO, self.what)
        CALLS.write(fd, text, len(text))


def check(what: bytes, result: int) -> int:
    """What a call returned; raises ``Failed``."""
    if result < 0:
        raise Failed(what)
    return result


def carry_out(calls: Sequence[isolations.Call]) -> None:
    """An isolation's calls, one after the other. Raises ``Failed``."""
    for what, absent, function, arguments in calls:
        if function(*arguments) < 0 and ctypes.get_errno() not in absent:
            raise Failed(what)


def forget_signals() -> None:
    """Every signal as it is by default."""
    for number in _SIGNALS:
        CALLS.signal(number, None)  # SIG_DFL


def _become(plan: _Plan, join_fds: list[int], tell: int) -> None:
    """The child's side; never returns."""
    try:
        forget_signals()
        for fd in join_fds:
            check(b"cgroup.procs", CALLS.write(fd, b"0", 1))
        if plan.new_session:
            check(b"setsid", CALLS.setsid())
        # First out of the way of 0 to 2, then to their places.
        moved = [check(b"fcntl", CALLS.fcntl(fd, _F_DUPFD, 3)) for fd in plan.stdio]
        for place, fd in enumerate(moved):
            check(b"dup3", CALLS.dup3(fd, place, 0))
        if plan.terminal:
            check(b"TIOCSCTTY", CALLS.ioctl(0, _TIOCSCTTY, 0))
        carry_out(plan.entering)
        if plan.pty:
            pty = check(plan.pty, CALLS.open(plan.pty, os.O_RDWR | os.O_NOCTTY))
            for place in range(3):
                check(b"dup3", CALLS.dup3(pty, place, 0))
        check(b"close_range", CALLS.syscall(CLOSE_RANGE, 3, ctypes.c_uint(0xFFFFFFFF), _CLOSE_RANGE_CLOEXEC))
        CALLS.umask(0o022)
        _confine(plan)
        check(b"chdir", CALLS.chdir(plan.cwd))
        CALLS.sigprocmask(_SIG_SETMASK, plan.mask, None)
        _execute(plan)
    except Failed as failed:
        failed.tell(tell)
    except BaseException:  # whatever it is, it must not become a second manager
        Failed(b"setup").tell(tell)


def _confine(plan: _Plan) -> None:
    """Capabilities, user, system calls."""
    carry_out(plan.before)
    if plan.ids is not None:
        user, group, count, groups = plan.ids
        if count >= 0:
            check(b"setgroups", CALLS.syscall(_IDS[0], count, groups))
        check(b"setgid", CALLS.syscall(_IDS[1], group, group, group))
        check(b"setuid", CALLS.syscall(_IDS[2], user, user, user))
    carry_out(plan.after)


def _execute(plan: _Plan) -> None:
    failure: int = errno.ENOENT
    for path in plan.candidates:
        CALLS.execve(path, plan.argv, plan.env)
        code = ctypes.get_errno()
        if code not in (errno.ENOENT, errno.ENOTDIR):
            failure = code
            if code != errno.EACCES:
                break
    ctypes.set_errno(failure)
    raise Failed(b"execve")
