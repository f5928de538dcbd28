"""Find the Python interpreter as a program, and start children from one.

Without `_native`, a program with threads starts no child by itself: Python in a fork would wait for
locks that other threads held at the fork. It executes an interpreter, which has one thread, starts
the child as its own parent's, and exits.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import socket
import sys

from chrootfw.errors import NotSupported
from chrootfw.linux import batch_program, polling, syscalls
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.syscall_numbers import NUMBERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator
    from types import ModuleType
    from typing import Any

    from chrootfw.linux.call_batch import CallBatch

#: Seconds for an interpreter to start a child.
_STARTS = 30.0
#: Seconds for a program to print what interpreter it is.
_ANSWERS = 10.0
_INT = 4
_TAG = sys.implementation.cache_tag


@functools.cache
def path() -> str:
    """Return the path of a Python interpreter of this version.

    `sys.executable` may be another program, which embeds Python.

    Raises:
        NotSupported: None was found.
    """
    for candidate in _candidates():
        if _is_interpreter(candidate):
            return candidate
    raise NotSupported(
        f"no Python {sys.version_info[0]}.{sys.version_info[1]} interpreter was found as a program "
        f"(sys.executable is {sys.executable!r})",
        hint="use the command chrootfw for it",
    )


def _candidates() -> Iterator[str]:
    if getattr(sys, "frozen", False):
        return  # sys.executable is the program, and the prefix has no interpreter
    yield sys.executable
    yield getattr(sys, "_base_executable", None) or ""
    for prefix in (sys.exec_prefix, sys.base_exec_prefix):
        yield f"{prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
        yield f"{prefix}/bin/python{sys.version_info[0]}"
    import sysconfig

    directory = sysconfig.get_config_var("BINDIR")
    if directory:
        yield f"{directory}/python{sys.version_info[0]}.{sys.version_info[1]}"


def _is_interpreter(candidate: str) -> bool:
    """Check that a program is an interpreter of this version.

    A program of another name is not run.
    """
    if not (
        os.path.basename(candidate).startswith(("python", "pypy")) and os.access(candidate, os.X_OK)
    ):
        return False
    if os.path.samefile(candidate, "/proc/self/exe"):
        return True
    import subprocess

    code = "import sys;print(sys.implementation.cache_tag)"
    try:
        done = subprocess.run(
            [candidate, "-I", "-S", "-B", "-c", code],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_ANSWERS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.decode(errors="replace").strip() == _TAG


def environment() -> dict[str, str]:
    """Return the environment of an interpreter: where the linker finds its libraries."""
    return {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}


def code_of(module: ModuleType) -> Any:
    """Return the code of a module, as this interpreter has compiled it."""
    get_code = getattr(module.__loader__, "get_code", None)
    if get_code is not None:
        return get_code(module.__name__)
    assert module.__file__ is not None
    with open(module.__file__, "rb") as file:
        return compile(file.read(), module.__file__, "exec")


def start(calls: CallBatch, pidfd: array[int], flags: int, cgroup: int) -> int:
    """Start a child of this process that carries out a batch, from an interpreter.

    The caller has blocked all signals. They stay blocked in the child.

    Args:
        calls: The batch.
        pidfd: Its first element gets the pidfd.
        flags: Flags of clone3(2) for new namespaces.
        cgroup: A descriptor of the cgroup v2 directory to start in; -1 for the caller's.

    Returns:
        The pid.

    Raises:
        OSError: The kernel refused to create a process.
        NotSupported: No interpreter was found.
    """
    import subprocess

    with Descriptors() as opened:
        opened.extend(
            map(socket.socket.detach, socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
        )
        ours, theirs = opened[-2:]
        for fd in (ours, theirs):
            os.set_inheritable(fd, False)
        memory = opened.take(os.memfd_create, "chrootfw-batch", os.MFD_CLOEXEC)
        calls.prepare(memory)
        plan = {
            "socket": theirs,
            "memory": memory,
            "cgroup": cgroup,
            "flags": flags,
            "numbers": numbers(),
        }
        program = opened.take(os.memfd_create, "chrootfw-program", os.MFD_CLOEXEC)
        os.write(program, batch_program.packed(code_of(batch_program), plan))
        os.lseek(program, 0, os.SEEK_SET)
        passed = {theirs, memory, program, *calls.uses, cgroup} - {-1}
        command = [path(), "-I", "-S", "-B", "-c", batch_program.BOOTSTRAP, str(program)]
        starter = subprocess.Popen(command, env=environment(), pass_fds=tuple(passed))
        try:
            opened.close(theirs)
            _await_report(ours)
            if os.read(ours, 1) != batch_program.READY:
                raise OSError(errno.ECHILD, "the interpreter that was to start a process has ended")
            _start_child(ours, pidfd)
            pid = _pid_of(pidfd[0])
            os.write(ours, batch_program.BEGIN)
        except BaseException:
            starter.kill()
            raise
        finally:
            starter.wait(_STARTS)
    return pid


def _start_child(ours: int, pidfd: array[int]) -> None:
    """Let the interpreter start its child, and receive the pidfd.

    If a signal handler raises meanwhile, the child is received all the same: it has no other owner.
    """
    os.write(ours, batch_program.START)
    try:
        _receive(ours, pidfd)
    except OSError:
        raise
    except BaseException:
        if pidfd[0] < 0:
            _receive(ours, pidfd)
        raise


def numbers() -> dict[str, int]:
    """Return the numbers of the system calls that start a child."""
    wanted = {name: NUMBERS[name] for name in ("clone3", "clone", "exit_group")}
    return wanted | {"flags come second": int(syscalls.ARCHITECTURE == "s390x")}


def _await_report(fd: int) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not polling.is_ready(poller, _STARTS):
        raise OSError(errno.ETIMEDOUT, f"an interpreter started no process within {_STARTS:g} s")


def _receive(fd: int, pidfd: array[int]) -> None:
    """Receive the pidfd of the child, or raise why there is none."""
    _await_report(fd)
    connection = socket.socket(fileno=fd)
    try:
        report, ancillary, _, _ = connection.recvmsg(
            64, socket.CMSG_LEN(_INT), socket.MSG_CMSG_CLOEXEC
        )
    finally:
        connection.detach()
    for _, _, data in ancillary:
        pidfd[0] = int.from_bytes(data, sys.byteorder)
    if report[:1] == batch_program.FAILED:
        code = int(report[1:])
        raise OSError(code, f"clone3: {os.strerror(code)}")
    if pidfd[0] < 0:
        raise OSError(
            errno.EMFILE if report else errno.ECHILD,
            "the interpreter that was to start a process has ended"
            if not report
            else os.strerror(errno.EMFILE),
        )


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", "rb", buffering=0) as file:
        return int(file.read().partition(b"\nPid:")[2].split()[0])
