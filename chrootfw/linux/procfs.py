"""Read what the kernel reports about processes (proc(5)): name, user, state, parent."""

from __future__ import annotations

import os
import stat
from itertools import islice

from chrootfw.linux import statx
from chrootfw.linux.descriptors import SHORT, opened
from chrootfw.planning.ids import parse_id
from chrootfw.views import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


#: Most bytes that are read of a file; the host's /etc/passwd is the longest.
_READ_MAX = 1 << 22
#: Descriptors of a process in which its terminal is searched for.
_DESCRIPTORS_MAX = 1024
#: Bytes of a process's arguments that are read.
_ARGUMENTS_MAX = 4096


def all_pids() -> list[int]:
    """List every process that the caller can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def newest_first() -> Iterator[int]:
    """Yield every process that the caller can see, those started last first; some of them twice."""
    last = first_line("/proc/loadavg").split()[-1:]
    for number in last:
        yield from range(int(number), max(1, int(number) - 8), -1)
    for name in reversed(os.listdir("/proc")):
        if name.isdigit():
            yield int(name)


def command(pid: int) -> str:
    """Return the process's name as in ps(1), on one line; `?` if it is gone."""
    return os.fsdecode(read(f"/proc/{pid}/comm")[:-1]).replace("\n", "?") or "?"


def stat_fields(pid: int, *, thread: int | None = None) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; none if the process is gone.

    With a thread ID they are those of that thread (/proc/PID/task/TID/stat).

    The name before them, in parentheses, is what the process chose: with `)` and newlines too.
    """
    task = "" if thread is None else f"task/{thread}/"
    return os.fsdecode(read(f"/proc/{pid}/{task}stat").rpartition(b")")[2]).split()


def user(pid: int) -> str:
    """Return the name of the process's effective user, or the number if it has no name."""
    uid = user_id(pid)
    return "?" if uid is None else user_name(uid)


def user_id(pid: int) -> int | None:
    """Return the number of the process's effective user; `None` if the process is gone."""
    for line in _lines(f"/proc/{pid}/status"):
        if line.startswith("Uid:"):
            return int(line.split()[2])
    return None


_names: dict[int, str] = {}


def user_name(uid: int) -> str:
    """Return a user's name from /etc/passwd, without NSS, which may wait for a silent server."""
    if not _names:
        for line in _lines("/etc/passwd"):
            fields = line.split(":")
            if len(fields) > 2 and (number := parse_id(fields[2])) is not None:
                _names.setdefault(number, fields[0])
    return _names.get(uid, str(uid))


def state(pid: int) -> tuple[str, str]:
    """Return the process's state letter and wchan, to report why it does not exit.

    Returns:
        Both; `("gone", "")` if the process is gone.
    """
    parts = stat_fields(pid)
    return (parts[0], first_line(f"/proc/{pid}/wchan").strip("0")) if parts else ("gone", "")


#: States of a process (proc(5)), in words.
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a device or a file system",
    "T": "stopped by a signal",
    "t": "stopped by its tracer",
    "Z": "ended, and not reaped by its parent",
}


def describe_state(pid: int) -> str:
    """Describe the state of a process, and what it waits for; empty if it is gone."""
    letter, wchan = state(pid)
    if letter == "gone":
        return ""
    words = _STATES.get(letter, "")
    by = tracer(pid)
    who = f", traced by pid {by} ({command(by)})" if by else ""
    return f"state {letter}{', ' + words if words else ''}{who}{', in ' + wchan if wchan else ''}"


def tracer(pid: int) -> int:
    """Return the pid of the process that traces a process (ptrace(2)); 0 if none does."""
    for line in _lines(f"/proc/{pid}/status"):
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    return 0


def parent(pid: int) -> int:
    """Return the pid of the process's parent; 0 if it has none."""
    parts = stat_fields(pid)
    return int(parts[1]) if len(parts) > 1 else 0


def terminal(pid: int) -> int:
    """Return the file system that has the process's controlling terminal.

    Each devpts has a terminal of the same number, so a descriptor of the process tells which one.

    Returns:
        Its device number, as ``statx.packed`` has it; 0 if the process has no terminal, or none of
        its first descriptors leads to it.
    """
    parts = stat_fields(pid)
    number = int(parts[4]) if len(parts) > 4 else 0
    if not number:
        return 0
    wanted = statx.packed(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00)
    names = islice(scan_names(f"/proc/{pid}/fd"), _DESCRIPTORS_MAX)
    for status in statx.statx_many([b"/proc/%d/fd/%b" % (pid, name) for name in names]):
        if status is not None and stat.S_ISCHR(status[0]) and status[2] == wanted:
            return status[3]
    return 0


def children(pid: int) -> list[int]:
    """Return the pids of the processes that a process's main thread has started, oldest first."""
    return [int(word) for word in first_line(f"/proc/{pid}/task/{pid}/children").split()]


def arguments(pid: int) -> list[str]:
    """Return the arguments of a process; none if it is gone."""
    for chunk in scan_chunks(f"/proc/{pid}/cmdline", _ARGUMENTS_MAX):
        return [os.fsdecode(word) for word in chunk.rstrip(b"\0").split(b"\0")]
    return []


def start_time(pid: int) -> int:
    """Return when the process was started, in clock ticks since the boot; 0 if it is gone."""
    parts = stat_fields(pid)
    return int(parts[19]) if len(parts) > 19 else 0


def is_alive(pid: int) -> bool:
    """Check that a process exists and is not a zombie."""
    return state(pid)[0] not in ("gone", "Z", "X")


def self_and_ancestors() -> frozenset[int]:
    """Return the pids of the caller and its ancestors, which are never signalled."""
    chain: list[int] = []
    pid = os.getpid()
    while pid > 0 and pid not in chain:
        chain.append(pid)
        pid = parent(pid)
    return frozenset(chain)


def describe(pids: Iterable[int], why: str) -> list[Process]:
    """Describe processes, without those that are gone or zombies.

    Args:
        pids: The processes.
        why: The reason for each `Process`.
    """
    return [
        Process(pid, command(pid), user(pid), why)
        for pid in dict.fromkeys(pids)
        if pid > 0 and is_alive(pid)
    ]


def namespace(pid: int | str) -> int:
    """Return the inode that identifies the process's mount namespace; 0 if it is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return 0


def namespace_of(pid: int) -> int:
    """Return the same as `namespace`, from the text of the link, without opening the namespace.

    Raises:
        OSError: The process is gone.
    """
    return int(os.readlink(f"/proc/{pid}/ns/mnt")[5:-1])  # mnt:[4026531840]


def first_line(path: str) -> str:
    """Return the first line of a file of /proc; empty if the process is gone."""
    return next(iter(_lines(path)), "")


def read(path: str) -> bytes:
    """Read at most `_READ_MAX` bytes of a file of /proc; empty if the process is gone.

    read(2) is used directly, since `open` makes four more system calls for each file.
    """
    try:
        file = opened(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in SHORT:
            # this says nothing about the process: an ancestor that seems gone would not be spared
            raise
        return b""
    with file as fd:
        try:
            data = bytearray()
            while len(data) < _READ_MAX and (chunk := os.read(fd, 1 << 16)):
                data += chunk
            return bytes(data)
        except OSError:
            return b""


def scan_names(path: str | bytes) -> Iterator[bytes]:
    """Yield the names in a directory of /proc, as long as the process runs.

    Raises:
        OSError: Descriptors or memory are used up, which says nothing about the process.
    """
    try:
        with os.scandir(os.fsencode(path)) as entries:
            for entry in entries:
                yield entry.name
    except OSError as error:
        if error.errno in SHORT:
            raise


def scan_chunks(path: str | bytes, size: int) -> Iterator[bytes]:
    """Yield the content of a file of /proc in pieces, as long as the process runs.

    Args:
        path: The file, of any size.
        size: The largest piece in bytes.

    Raises:
        OSError: Descriptors or memory are used up, which says nothing about the process.
    """
    try:
        with opened(path, os.O_RDONLY) as fd:
            while chunk := os.read(fd, size):
                yield chunk
    except OSError as error:
        if error.errno in SHORT:
            raise


def _lines(path: str) -> list[str]:
    return os.fsdecode(read(path)).split("\n")
