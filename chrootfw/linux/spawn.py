"""Start a process inside a root: clone3(2) into its cgroup, isolation or chroot, and execve.

The child reports its execve, or its exit, by closing a close-on-exec pipe. Its batch of calls
contains what failed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import sys

from chrootfw.errors import InputError
from chrootfw.linux import child, deadlines, syscalls
from chrootfw.linux.call_batch import ZEROS, CallBatch
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.isolation import Isolation
from chrootfw.planning.ids import is_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chrootfw.linux.child import Child

#: The end of the pipe that reports the execve, after 0 to 2.
_TELL = 3
_UINT_MAX = 0xFFFFFFFF
_SIG_SETMASK, _TIOCSCTTY = 2, 0x540E
_SIGSET_SIZE = 8
_PATH_MAX = 4096

#: Version 1 has the largest number of pages in place of `max`, and that number is larger.
_NO_LIMIT = 1 << 62

#: Errnos after which the next directory of PATH is tried (execvp(3)).
_NOT_HERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)


def _default_signals() -> CallBatch:
    calls = CallBatch()
    for number in signal.valid_signals():  # KILL and STOP cannot be changed
        calls.add("rt_sigaction", int(number), ZEROS, None, _SIGSET_SIZE, ignore=(errno.EINVAL,))
    return calls


_DEFAULT_SIGNALS = _default_signals()


def forget_signals(calls: CallBatch) -> None:
    """Append the calls that reset every signal to its default; blocked signals stay blocked."""
    calls.extend(_DEFAULT_SIGNALS)


#: Seconds for a root to answer before a command is run in it, and then for the command to be
#: loaded.
ANSWERS = 10.0

#: A mere chroot(2).
PLAIN = Isolation({"method": "chroot"}, "")


def _execve_error(code: int, text: str, program: str) -> OSError:
    """Make the error of an execve(2) that refused the program; everything before it was done.

    It is of Python's own class for the errno, such as `FileNotFoundError`.
    """
    error = OSError(code, text, program)
    error.is_of_execve = True  # type: ignore[attr-defined]
    return error


def is_of_execve(error: OSError) -> bool:
    """Check that an error of `spawn` is that of execve(2): the program itself was refused."""
    return getattr(error, "is_of_execve", False)


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
    isolation: Isolation = PLAIN,
    answers: float = ANSWERS,
) -> Child:
    """Start a command in a root.

    The child has only the file descriptors 0, 1 and 2, default signals and umask 022.

    Args:
        argv: The command and its arguments. A command without a slash is looked for in
            `env["PATH"]`, inside.
        root_fd: A descriptor of the root (O_PATH).
        env: The whole environment.
        cwd: The working directory inside.
        cgroup: The path of the v2 cgroup to start in.
        joins: The paths of `cgroup.procs` files to write to.
        stdin: The standard input.
        stdout: The standard output.
        stderr: The standard error.
        ids: User, group and supplementary groups.
        new_session: Whether the child starts a session of its own.
        terminal: The number of the pty on `stdin`, which becomes the controlling terminal.
        isolation: What the command is isolated from.
        answers: Seconds for the file system to hand out the program.

    Returns:
        The child. The caller must end or abandon it.

    Raises:
        OSError: A step failed in the child; the errno is that of execve (ENOENT, EACCES, ENOEXEC
            …), chdir and so on.
        InputError: An ID is not valid.
    """
    for number in (ids[0], ids[1], *ids[2]) if ids is not None else ():
        if not is_id(number):
            raise InputError(f"{number!r} is not a valid user or group ID")
    stdio = [stdin, stdout, stderr]
    if not isolation.is_plain:
        return _spawn_isolated(
            argv, env, cwd, root_fd, stdio, ids, terminal, isolation, cgroup, joins, answers
        )
    with Descriptors() as opened:
        reports, held = opened.pipe()
        # Out of the way of 0 to 3, to which they are moved one by one.
        for place, fd in enumerate(stdio):
            if fd <= _TELL:
                stdio[place] = opened.take(fcntl.fcntl, fd, fcntl.F_DUPFD_CLOEXEC, _TELL + 1)
        tells = opened.take(fcntl.fcntl, held, fcntl.F_DUPFD_CLOEXEC, _TELL + 1)
        opened.close(held)
        join_fds = [opened.open(path, os.O_WRONLY) for path in joins]
        calls = CallBatch([*join_fds, *stdio, root_fd, tells, isolation.network])
        forget_signals(calls)
        isolation.leave_caller(calls)
        for fd in join_fds:
            calls.add("write", fd, b"0", 1, what=b"cgroup.procs")
        if new_session:
            calls.add("setsid")
        for place, fd in enumerate(stdio):
            calls.add("dup3", fd, place, 0)
        if terminal is not None:
            calls.add("ioctl", 0, _TIOCSCTTY, 0, what=b"TIOCSCTTY")
        calls.add("fchdir", root_fd)
        calls.add("chroot", b".")
        # Closed before a path of the instance is resolved: no link in the root may lead to them.
        calls.add("dup3", tells, _TELL, os.O_CLOEXEC)
        calls.closes = calls.add("close_range", _TELL + 1, _UINT_MAX, 0)
        calls.add("umask", 0o022)
        if isolation.settings is not None:
            isolation.settings.add_limits(calls)
        _confine(calls, isolation, ids)
        _change_directory(calls, os.fsencode(cwd))
        calls.add("rt_sigprocmask", _SIG_SETMASK, ZEROS, None, _SIGSET_SIZE)
        first = len(calls.names)
        _execute(calls, argv, env)
        cgroup_fd = -1
        if cgroup is not None:
            cgroup_fd = opened.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        is_root = ids is None or (ids[0] == ids[1] == 0 and os.geteuid() == os.getegid() == 0)
        shares_memory = is_root and isolation.may_share_memory and not isolation.gives_up
        shares_memory = shares_memory and not memory_is_limited(cgroup, joins)
        started = child.begin(calls, cgroup_fd, shares_memory=shares_memory)
        opened.close(tells)
        said = _hear(started, reports, answers)
    _check_begun(started, calls, first, said=said, program=argv[0], cwd=cwd)
    return started


def _hear(started: Child, ended: int, seconds: float) -> bool:
    """Wait until a child comes to its execve or its exit.

    Args:
        started: The child, which is ended if the wait is interrupted.
        ended: The pipe whose other end the child then closes.
        seconds: Seconds to wait.

    Returns:
        Whether it came in time.
    """
    try:
        said = deadlines.is_ready(ended, seconds)
    except BaseException:
        started.end()
        raise
    child.has_no_copies(started)
    return said


def _change_directory(calls: CallBatch, path: bytes) -> None:
    """Append the calls that change to a directory, without magic links (`/proc/self/fd`).

    A directory that was moved out of the root meanwhile has no path there, and is refused.
    """
    how = syscalls.OpenHow(
        os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, syscalls.RESOLVE_NO_MAGICLINKS
    )
    calls.add("openat2", syscalls.AT_FDCWD, path, how, ctypes.sizeof(how), what=b"chdir")
    calls.add("fchdir", _TELL + 1, what=b"chdir")  # the lowest number that was free
    calls.add("close", _TELL + 1)
    there = calls.add_buffer(_PATH_MAX)
    calls.add("getcwd", there, there.size)
    compared = calls.compare(there, int.from_bytes(b"(unreach", sys.byteorder))
    calls.add("fchdir", -1, what=b"chdir (out of the root)")
    calls.skip(compared, compared + 1)


def _spawn_isolated(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    root_fd: int,
    stdio: Sequence[int],
    ids: tuple[int, int, Sequence[int]] | None,
    terminal: int | None,
    isolation: Isolation,
    cgroup: str | None,
    joins: Sequence[str],
    answers: float,
) -> Child:
    from chrootfw.linux import isolated_child, isolated_program

    plan = {
        **isolation.plan(),
        "is_init": False,
        "nulls": isolated_child.check_streams(stdio) if terminal is None else [],
        "terminal": terminal,
        "ids": None if ids is None else (ids[0], ids[1], list(ids[2])),
        "keeps_groups": ids is not None and ids[0] == 0 and list(ids[2]) == [0] and _keeps_groups(),
        "cwd": os.fsencode(cwd),
        "argv": [os.fsencode(word) for word in argv],
        "env": [os.fsencode(key) + b"=" + os.fsencode(value) for key, value in env.items()],
        "candidates": _candidates(argv[0], env.get("PATH", "")),
    }
    # The kernel treats all processes that share memory alike, whatever their cgroups.
    begun = isolated_child.begin(
        isolation, plan, stdio=stdio, passed=[root_fd, isolation.join], cgroup=cgroup,
        joins=joins, shares_memory=False,
    )  # fmt: skip
    try:
        report = begun.hear_all(answers)
    except BaseException:
        begun.end()
        raise
    child.has_no_copies(begun.child)
    if report == isolated_program.READY:
        return begun.take()
    begun.end()
    if report is None:
        raise OSError(
            errno.ETIMEDOUT,
            "it did not come to run in time: is its cgroup frozen, or does "
            "its file system not answer?",
            argv[0],
        )
    what, code = begun.failure(report)
    text = f": {os.strerror(code)}" if code else ""
    if what == "execve":
        raise _execve_error(code, f"{what}{text}", argv[0])
    raise OSError(code, f"{what}{text}", cwd)


def memory_is_limited(cgroup: str | None, joins: Sequence[str]) -> bool:
    """Check whether a cgroup to be joined, or one above it, may run out of memory.

    The kernel then kills all processes that share the memory of its victim (mm/oom_kill.c),
    including the manager. A child that shares the manager's memory also counts as large as the
    manager.

    Args:
        cgroup: The path of the v2 cgroup to start in.
        joins: The paths of `cgroup.procs` files to write to.
    """
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
            if limit.isdigit() and int(limit) < _NO_LIMIT:
                return True
    return False


def _check_begun(
    started: Child, calls: CallBatch, first: int, *, said: bool, program: str, cwd: str
) -> None:
    """Check that the child runs its program, or has run it.

    Args:
        started: The child, which is ended if it does not run.
        calls: Its batch.
        first: The step of the first execve.
        said: Whether the child reported in time.
        program: The program, for errors.
        cwd: The working directory, for errors.

    Raises:
        OSError: The program does not run.
    """
    if not said:
        started.end()
        raise OSError(
            errno.ETIMEDOUT,
            "it did not come to run in time: is its cgroup frozen, or does "
            "its file system not answer?",
            program,
        )
    what, code = calls.stopped_at() or (b"", 0)
    if what == b"execve" and not code:
        started.forget_batch()
        return
    started.end()
    if not what:  # every execve has failed
        misses = [
            -result
            for result in calls.results()[first:]
            if result not in (-errno.ENOENT, -errno.ENOTDIR)
        ]
        what, code = b"execve", misses[-1] if misses else errno.ENOENT
    if not code:
        raise OSError(errno.ECHILD, "it was ended before it came to run", program)
    text = f"{what.decode()}: {os.strerror(code)}"
    if what == b"execve":
        raise _execve_error(code, text, program)
    raise OSError(code, text, cwd)


def _confine(
    calls: CallBatch, isolation: Isolation, ids: tuple[int, int, Sequence[int]] | None
) -> None:
    """Append the calls that drop capabilities, change the user, and drop system calls."""
    isolation.give_up_before(calls)
    if ids is not None:
        user, group, groups = ids
        if not (user == 0 and list(groups) == [0] and _keeps_groups()):
            calls.add("setgroups", len(groups), (ctypes.c_uint32 * max(len(groups), 1))(*groups))
        calls.add("setresgid", group, group, group, what=b"setgid")
        calls.add("setresuid", user, user, user, what=b"setuid")
    isolation.give_up_after(calls, is_root=ids is None or ids[0] == 0)


def _keeps_groups() -> bool:
    """Check whether this is a user namespace whose processes cannot change their groups.

    The root user's groups then stay (user_namespaces(7)).
    """
    try:
        with open("/proc/self/setgroups", encoding="utf-8") as file:
            return file.read().strip() == "deny"
    except OSError:
        return False


def _execute(calls: CallBatch, argv: Sequence[str], env: Mapping[str, str]) -> None:
    words = calls.add_strings(argv)
    variables = calls.add_strings(f"{key}={value}" for key, value in env.items())
    for path in _candidates(argv[0], env.get("PATH", "")):
        calls.add("execve", path, words, variables, ignore=_NOT_HERE)


def _candidates(program: str, path: str) -> list[bytes]:
    if "/" in program:
        return [os.fsencode(program)]
    return [os.fsencode(f"{directory or '.'}/{program}") for directory in path.split(":")]
