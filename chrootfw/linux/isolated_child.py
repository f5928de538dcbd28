"""Start the interpreter between the host and an isolated instance, and receive its reports.

`isolated_program` is what the interpreter runs. A fork of this process would not do: it has a copy
of this process's memory. Its executable is also a file of the host, which the root user inside
could open for writing through `/proc/self/exe`.

The interpreter that is executed instead is on a detached, read-only mount that no other process can
make writable. It has only the descriptors that it needs. If it will execute a program of the
instance, the executable is also a copy. A path that the program's interpreter line leads to is then
no file of the host that could be locked or watched.
"""

from __future__ import annotations

import errno
import fcntl
import marshal
import os
import socket
import stat
import sys
import time

from chrootfw.linux import call_batch, child, deadlines, interpreter, isolated_program, syscalls
from chrootfw.linux.descriptors import Descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from chrootfw.linux.child import Child
    from chrootfw.linux.isolation import Isolation

_UINT_MAX = 0xFFFFFFFF
_BOOTSTRAP = (
    f"import marshal;f=open({isolated_program.PLAN},'rb');"
    "g={'__name__':'inner'};exec(marshal.load(f),g);g['run'](marshal.load(f))"
)
#: Lowest number for descriptors that wait to be moved to their places.
_AWAY = 32
_REPORT_MAX = 4096
_INT = 4
_ERRNO_DIGITS = 5
_SENT_AT_ONCE = 1 << 30
_WRITERS_SECONDS = 10.0
_NULL = os.makedev(1, 3)


def _read_only(path: str) -> int:
    """Open a file through a read-only mount of its own.

    Returns:
        The descriptor. The caller must close it; the mount ends with its last user.
    """
    mount = syscalls.open_tree(syscalls.AT_FDCWD, path)
    try:
        syscalls.mount_setattr(mount, set=syscalls.MOUNT_ATTR_RDONLY)
        return os.open(f"/proc/thread-self/fd/{mount}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(mount)


def _copy(path: str) -> int:
    """Copy a file to a detached read-only file system of its own, and open the copy.

    Returns:
        The descriptor. The caller must close it.

    Raises:
        OSError: The copy cannot be made.
    """
    attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    with Descriptors() as opened:
        mount = opened.take(
            syscalls.new_filesystem, "tmpfs", [("source", "chrootfw"), ("mode", "0755")], attributes
        )
        name = f"/proc/thread-self/fd/{mount}/interpreter"
        source = opened.open(path, os.O_RDONLY)
        copy = opened.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.fchmod(copy, 0o555)
        while os.sendfile(copy, source, None, _SENT_AT_ONCE):
            pass
        opened.close(copy)
        syscalls.mount_setattr(mount, set=syscalls.MOUNT_ATTR_RDONLY)
        program = opened.open(name, os.O_RDONLY)
        _wait_for_writers(program)
        return opened.pop(opened.index(program))


def _wait_for_writers(fd: int) -> None:
    """Wait until no process has a file open for writing.

    A child that another thread forks meanwhile has this process's descriptors until its execve, and
    executing the file would fail with ETXTBSY. A lease for reading is refused while the file is
    open for writing.
    """
    deadline = time.monotonic() + _WRITERS_SECONDS
    while True:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            if error.errno != errno.EAGAIN or time.monotonic() > deadline:
                return  # leases are disabled (fs.leases-enable): the execve reports the error
            time.sleep(0.001)
        else:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            return


class Begun:
    """An interpreter that has begun: its process, and the socket on which it reports.

    Attributes:
        replacement: The process that replaces it in the instance's pid namespace; `None` before
            that is reported.
    """

    __slots__ = ("calls", "child", "hears", "opened", "replacement")

    def __init__(
        self, child: Child, calls: call_batch.CallBatch, hears: int, opened: Descriptors
    ) -> None:
        self.child, self.calls, self.hears, self.opened = child, calls, hears, opened
        self.replacement: Child | None = None

    def hear(self, seconds: float) -> bytes | None:
        """Receive the next report.

        Args:
            seconds: Seconds to wait.

        Returns:
            The report; empty after the last one, `None` if none came in time.
        """
        return self._receive() if deadlines.is_ready(self.hears, seconds) else None

    def _receive(self) -> bytes:
        before = child.signals_blocked()
        try:  # a reported process is owned before a signal handler can raise
            syscalls.CALLS.sigprocmask(child.SIG_BLOCK, child.ALL_SIGNALS, None)
            hears = socket.socket(fileno=self.hears)
            try:
                space = socket.CMSG_LEN(_INT) if self.replacement is None else 0
                word, ancillary, _, _ = hears.recvmsg(_REPORT_MAX, space, socket.MSG_CMSG_CLOEXEC)
            finally:
                hears.detach()
            for _, _, data in ancillary:
                self.replacement = child.Child.adopt(int.from_bytes(data, sys.byteorder))
        finally:
            syscalls.CALLS.sigprocmask(child.SIG_SETMASK, before, None)
        return word

    def take(self) -> Child:
        """Return the process that executes the program. The caller must end it."""
        if self.replacement is None:
            return self.child
        self.child.end()  # it has nothing more to do
        return self.replacement

    def end(self) -> None:
        """End the interpreter, and the process that it has created."""
        self.child.end()
        # Its last report may be about that process.
        while self.replacement is None and self.hear(0):
            pass
        if self.replacement is not None:
            self.replacement.end()

    def hear_all(self, seconds: float) -> bytes | None:
        """Receive all reports until the interpreter executes its program or exits.

        Args:
            seconds: Seconds to wait.

        Returns:
            The reports; `None` if the time limit expired.
        """
        deadline = time.monotonic() + seconds
        reports = b""
        while len(reports) < _REPORT_MAX:
            word = self.hear(max(0.0, deadline - time.monotonic()))
            if word is None:
                return None
            if not word:
                break
            reports += word
        return reports.removeprefix(isolated_program.REPLACED)

    def failure(self, reports: bytes) -> tuple[str, int]:
        """Return what failed, and the errno, from the reports of an interpreter or from its batch.

        Args:
            reports: All reports.
        """
        _, failed, words = reports.partition(isolated_program.FAILED)
        if failed:
            # Plain text: a process of the instance may write to the socket just before this one
            # exits.
            number, _, what = words.partition(b" ")
            if number.isdigit() and len(number) < _ERRNO_DIGITS:
                return what.decode("utf-8", "backslashreplace"), int(number)
        name, code = self.calls.stopped_at() or (b"", 0)
        if name and code:
            return name.decode(), code
        return "the interpreter before it", errno.ECHILD


def begin(
    isolation: Isolation,
    plan: dict[str, Any],
    *,
    stdio: Sequence[int],
    passed: Sequence[int],
    cgroup: str | None = None,
    joins: Sequence[str] = (),
    namespaces: int = 0,
    shares_memory: bool = True,
) -> Begun:
    """Execute an interpreter that does what a plan says.

    Args:
        isolation: The isolation, whose network and priorities the interpreter has.
        plan: The plan for `isolated_program.run`.
        stdio: The three standard descriptors.
        passed: Further descriptors that it gets; -1 for one that is left out.
        cgroup: The path of the v2 cgroup to start in.
        joins: The paths of `cgroup.procs` files to write to.
        namespaces: Flags of clone3(2) for new namespaces.
        shares_memory: Whether the process may share the caller's memory until its execve.

    Returns:
        The interpreter. The caller must end it or take its process.

    Raises:
        OSError: The kernel refused a step.
        NotSupported: This process has no interpreter that it could execute.
    """
    path = interpreter.path()
    # A copy for the interpreter that will execute the instance's program. A namespace's init never
    # does, and shares the host's pages as long as it runs.
    reached = _read_only if plan["is_init"] else _copy
    words = {**plan, "passed": [fd >= 0 for fd in passed]}
    heard = Descriptors()
    with Descriptors() as opened:
        text = opened.take(os.memfd_create, "chrootfw", os.MFD_CLOEXEC)
        os.write(text, marshal.dumps(interpreter.code_of(isolated_program)) + marshal.dumps(words))
        os.lseek(text, 0, os.SEEK_SET)
        opened.extend(
            map(socket.socket.detach, socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
        )
        hears, tells = opened[-2:]
        opened.move(hears, heard)
        places = dict(enumerate(stdio))
        places |= {
            isolated_program.TELL: tells,
            isolated_program.PLAN: text,
            isolated_program.PROGRAM: opened.take(reached, path),
        }
        places |= {
            isolated_program.PASSED + number: fd for number, fd in enumerate(passed) if fd >= 0
        }
        # Out of the way of the places, to which they are moved one by one.
        for (
            place,
            fd,
        ) in places.items():
            places[place] = opened.take(fcntl.fcntl, fd, fcntl.F_DUPFD_CLOEXEC, _AWAY)
        join_fds = [opened.open(file, os.O_WRONLY) for file in joins]
        calls = call_batch.CallBatch([*places.values(), *join_fds, isolation.network])
        calls.add("setsid")  # first, since a session's autogroup can be changed from inside
        isolation.leave_caller(calls)
        for fd in join_fds:
            calls.add("write", fd, b"0", 1, what=b"cgroup.procs")
        for place, fd in places.items():
            calls.add("dup3", fd, place, os.O_CLOEXEC if place == isolated_program.PROGRAM else 0)
        for number, fd in enumerate(passed):
            if fd < 0:
                calls.add("close", isolated_program.PASSED + number, ignore=(errno.EBADF,))
        calls.closes = calls.add("close_range", isolated_program.PASSED + len(passed), _UINT_MAX, 0)
        environment = [f"{key}={value}" for key, value in interpreter.environment().items()]
        calls.add(
            "execve", b"/proc/self/fd/%d" % isolated_program.PROGRAM,
            calls.add_strings([path, "-I", "-S", "-B", "-c", _BOOTSTRAP]),
            calls.add_strings(environment),
            what=b"execve (the interpreter)",
        )  # fmt: skip
        cgroup_fd = -1 if cgroup is None else opened.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        shares_memory = shares_memory and isolation.may_share_memory
        worker = child.begin(calls, cgroup_fd, shares_memory=shares_memory, namespaces=namespaces)
    return Begun(worker, calls, hears, heard)


def is_null(fd: int) -> bool:
    """Check that a descriptor is the null device, which `isolated_program` replaces."""
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL


def _is_anonymous_pipe(fd: int) -> bool:
    status = os.fstat(fd)
    if not stat.S_ISFIFO(status.st_mode):
        return False
    with Descriptors() as pipe:
        pipe.pipe()
        return status.st_dev == os.fstat(pipe[0]).st_dev


def check_streams(stdio: Sequence[int]) -> list[int]:
    """Check that the standard descriptors do not lead to the host.

    A pipe must be one of chrootfw's own, made for this command: `relays` sees to that.

    Returns:
        The numbers of those that are the null device.

    Raises:
        OSError: A descriptor is a file, a directory or a socket of the host.
    """
    for fd in stdio:
        if is_null(fd) or _is_anonymous_pipe(fd):
            continue
        mode = os.fstat(fd).st_mode
        is_directory = stat.S_ISDIR(mode)
        what = "directory" if is_directory else "socket" if stat.S_ISSOCK(mode) else "file"
        raise OSError(
            errno.EISDIR if is_directory else errno.EINVAL,
            f"a {what} of the host as standard input or output would be a way out of the root",
        )
    return [place for place, fd in enumerate(stdio) if is_null(fd)]
