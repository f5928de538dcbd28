"""Starting a process inside a root: clone3(2) into its cgroup, then isolation, chroot at least, and execve.

The child tells of its execve, or its end, by closing a close-on-exec pipe; what failed stands in its list of calls.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat

from chrootfw.system import children, syscalls
from chrootfw.system import isolation as isolations
from chrootfw.system.call_lists import CallList

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence

    from chrootfw.system.children import Child
else:
    import _signal as signal  # as in children

_CLOSE_RANGE_CLOEXEC = 4
_TO_THE_LAST = 0xFFFFFFFF
_SIG_SETMASK, _TIOCSCTTY = 2, 0x540E
_SIGSET_SIZE = 8
_NOTHING = ctypes.create_string_buffer(64)  # an empty set of signals; the default action (struct sigaction)

#: What version 1 has instead of ``max`` is the greatest number of pages, and that is greater.
_NO_LIMIT = 1 << 62

#: errnos after which the next directory of PATH is looked into (execvp(3)).
_NOT_HERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)


def _default_signals() -> CallList:
    calls = CallList()
    for number in signal.valid_signals():  # KILL and STOP cannot be changed
        calls.add("rt_sigaction", int(number), _NOTHING, None, _SIGSET_SIZE, ignore=(errno.EINVAL,))
    return calls


_DEFAULT_SIGNALS = _default_signals()
_DEFAULT_SIGNALS_WORDS = _DEFAULT_SIGNALS.words


def forget_signals(calls: CallList) -> None:
    """Every signal as it is by default; those that are blocked stay so."""
    calls.extend(_DEFAULT_SIGNALS_WORDS, _DEFAULT_SIGNALS.names)


#: Seconds for a root to answer before a command is run in it, and then for the command to be loaded.
ANSWERS = 10.0

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
    answers: float = ANSWERS,
) -> Child:
    """Start ``argv`` in the root that ``root_fd`` (O_PATH) refers to.

    The child has file descriptors 0, 1 and 2 only, default signals, umask 022 and no other environment than ``env``.
    ``argv[0]`` without a slash is looked for in ``env["PATH"]``, inside. ``cgroup`` is the path of a v2 cgroup to be born in; ``joins`` are
    ``cgroup.procs`` files to write to. ``ids`` are user, group and supplementary groups. ``terminal`` makes ``stdin``, the pty of that number,
    the controlling terminal. ``isolation``: what it is parted from. ``answers``: seconds for the file system to hand out the program.

    Raises ``OSError`` with the errno of what failed in the child: of execve (ENOENT, EACCES, ENOEXEC …), of chdir, and so on.
    """
    stdio = [stdin, stdout, stderr]
    if not isolation.is_plain and any(stat.S_ISDIR(os.fstat(fd).st_mode) for fd in stdio):
        raise OSError(
            errno.EISDIR, "a directory of the host as standard input or output would be a way out of the root"
        )
    opened: list[int] = []
    try:
        for place, fd in enumerate(stdio):
            if fd <= 2:  # out of the way of 0 to 2, which they are put to one after the other
                stdio[place] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
                opened.append(stdio[place])
        join_fds = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in joins]
        opened += join_fds
        calls = CallList()
        forget_signals(calls)
        for fd in join_fds:
            calls.add("write", fd, b"0", 1, what=b"cgroup.procs")
        if new_session:
            calls.add("setsid")
        for place, fd in enumerate(stdio):
            calls.add("dup3", fd, place, 0)
        if terminal is not None:
            calls.add("ioctl", 0, _TIOCSCTTY, 0, what=b"TIOCSCTTY")
        isolation.enter(calls, root_fd)
        if terminal is not None and not isolation.is_plain:
            _open_terminal(calls, b"/dev/pts/%d" % terminal)
        calls.add("close_range", 3, _TO_THE_LAST, _CLOSE_RANGE_CLOEXEC)
        calls.add("umask", 0o022)
        _confine(calls, isolation, ids)
        calls.add("chdir", os.fsencode(cwd))
        calls.add("rt_sigprocmask", _SIG_SETMASK, _NOTHING, None, _SIGSET_SIZE)
        first = len(calls.names)
        _execute(calls, argv, env)
        cgroup_fd = -1
        if cgroup is not None:
            cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.append(cgroup_fd)
        is_root = ids is None or (ids[0] == ids[1] == 0 and os.geteuid() == os.getegid() == 0)
        shares_memory = is_root and not isolation.gives_up and not memory_is_limited(cgroup, joins)
        child, said = _begin(calls, isolation, cgroup, cgroup_fd, answers, shares_memory=shares_memory)
    finally:
        for fd in opened:
            os.close(fd)
    _check_begun(child, calls, first, said=said, program=argv[0], cwd=cwd)
    return child


def memory_is_limited(cgroup: str | None, joins: Sequence[str]) -> bool:
    """Whether a cgroup that is to be joined, or one above it, may run out of memory. The kernel then ends all processes that share the memory of
    the one that it chooses (mm/oom_kill.c): the manager too, and a child that shares its memory counts as large as it is."""
    waiting = [cgroup or "/", *(os.path.dirname(path) for path in joins)]
    while waiting:
        directory = waiting.pop()
        if directory == "/":
            continue
        waiting.append(os.path.dirname(directory))
        for file in ("memory.max", "memory.limit_in_bytes"):  # version 2, version 1
            try:
                with open(f"{directory}/{file}", "rb", buffering=0) as opened:
                    limit = opened.read(32).strip()
            except OSError:
                continue
            if limit != b"max" and int(limit) < _NO_LIMIT:
                return True
    return False


def _begin(
    calls: CallList,
    isolation: isolations.Isolation,
    cgroup: str | None,
    cgroup_fd: int,
    seconds: float,
    *,
    shares_memory: bool,
) -> tuple[Child, bool]:
    """The child, and whether it has come to its execve or its end in time."""
    ended, held = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            with children_in(isolation):
                child = children.begin(calls, cgroup, cgroup_fd, shares_memory=shares_memory)
        finally:
            os.close(held)
        try:
            said = children.is_ready(ended, seconds)
        except BaseException:
            child.end()
            raise
        children.has_no_copies(child)
        return child, said
    finally:
        os.close(ended)


def _check_begun(child: Child, calls: CallList, first: int, *, said: bool, program: str, cwd: str) -> None:
    """Whether the child runs its program, or has run it; ``first``: the step of the first execve. Raises ``OSError``, the child being gone."""
    if not said:
        child.end()
        raise OSError(errno.ETIMEDOUT, "it did not come to run in time: does its file system answer?", program)
    what, code = calls.stopped_at() or (b"", 0)
    if what == b"execve" and not code:
        return
    child.end()
    if not what:  # every execve has failed
        misses = [-result for result in calls.results()[first:] if result not in (-errno.ENOENT, -errno.ENOTDIR)]
        what, code = b"execve", misses[-1] if misses else errno.ENOENT
    if not code:
        raise OSError(errno.ECHILD, "it was ended before it came to run", program)
    raise OSError(code, f"{what.decode()}: {os.strerror(code)}", program if what == b"execve" else cwd)


class children_in:  # noqa: N801  # it reads like words
    """While it is entered, children of the calling thread are born in the pid namespace that an isolation joins
    (pid_namespaces(7)); the thread itself stays where it is."""

    def __init__(self, isolation: isolations.Isolation) -> None:
        self.join = isolation.join if isolation.flags & isolations.NEWPID else -1

    def __enter__(self) -> None:
        if self.join >= 0:
            self.own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            if children.CALLS.setns(self.join, isolations.NEWPID) < 0:
                os.close(self.own)
                code = ctypes.get_errno()
                raise OSError(code, f"setns: {os.strerror(code)}")

    def __exit__(self, *_exc: object) -> None:
        if self.join >= 0:
            back = children.CALLS.setns(self.own, isolations.NEWPID)
            os.close(self.own)
            if back < 0:
                code = ctypes.get_errno()
                raise OSError(code, f"setns: {os.strerror(code)}")


def _open_terminal(calls: CallList, path: bytes) -> None:
    """The pty as it is called in the mount namespace that was entered; a mere chroot is in the caller's."""
    calls.add("close", 0)
    calls.add(
        "openat", syscalls.AT_FDCWD, path, os.O_RDWR | os.O_NOCTTY, what=path
    )  # gets the lowest number that is free
    for place in (1, 2):
        calls.add("dup3", 0, place, 0)


def _confine(calls: CallList, isolation: isolations.Isolation, ids: tuple[int, int, Sequence[int]] | None) -> None:
    """Capabilities, user, system calls."""
    isolation.give_up_before(calls)
    if ids is not None:
        user, group, groups = ids
        if not (user == 0 and list(groups) == [0] and _keeps_groups()):
            calls.add("setgroups", len(groups), (ctypes.c_uint32 * max(len(groups), 1))(*groups))
        calls.add("setresgid", group, group, group, what=b"setgid")
        calls.add("setresuid", user, user, user, what=b"setuid")
    isolation.give_up_after(calls, is_root=ids is None or ids[0] == 0)


def _keeps_groups() -> bool:
    """Whether this is a user namespace whose processes cannot change their groups (user_namespaces(7)): then root's stay as they are."""
    try:
        with open("/proc/self/setgroups", encoding="utf-8") as file:
            return file.read().strip() == "deny"
    except OSError:
        return False


def _execute(calls: CallList, argv: Sequence[str], env: Mapping[str, str]) -> None:
    words = _strings([os.fsencode(word) for word in argv])
    variables = _strings([os.fsencode(key) + b"=" + os.fsencode(value) for key, value in env.items()])
    for path in _candidates(argv[0], env.get("PATH", "")):
        calls.add("execve", path, words, variables, ignore=_NOT_HERE)


def _strings(words: list[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)


def _candidates(program: str, path: str) -> list[bytes]:
    if "/" in program:
        return [os.fsencode(program)]
    return [os.fsencode(f"{directory or '.'}/{program}") for directory in path.split(":")]
