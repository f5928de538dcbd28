"""Read what `ps` shows of a process: user, state, memory, processor time, start, arguments.

A process can make the kernel wait in a read of its memory, as `cmdline` and `smaps_rollup` are: a
child reads these, within a time limit.
"""

from __future__ import annotations

import errno
import os
import time

from chrootfw.errors import ChrootfwError
from chrootfw.linux import deadlines, passwd, procfs, syscalls
from chrootfw.linux.call_batch import UNSET
from chrootfw.views import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
#: Bytes of a command line that are read, and of smaps_rollup, which has some 700.
_READ_MAX = 4096
#: Files that one child reads.
_FILES_MAX = 500
#: Seconds for one file to answer, and how many that do not answer are waited for.
_ANSWERS, _SILENT_MAX = 0.3, 3
#: Seconds for all files: a process can share so much memory that each answer takes long.
_TOTAL = 2.0
#: Seconds for the root's own /etc/passwd to answer.
_NAMES_ANSWER = 1.0
#: What reads of a process that is gone, or is not to be read, fail with.
_IGNORED = (
    errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.EBADF, errno.EINVAL, errno.EIO,
)  # fmt: skip
#: The state letters of proc_pid_stat(5) that a living thread of a process can have.
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a device",
    "T": "stopped",
    "t": "traced",
    "I": "idle",
}


def add_details(found: Sequence[Process], root: str) -> list[Process]:
    """Return processes with everything that `ps` shows.

    Args:
        found: The processes.
        root: The path of the instance's root, whose /etc/passwd names the users of own processes.
    """
    pids = [process.pid for process in found if process.pid > 0]
    lines = _read_files([f"/proc/{pid}/cmdline" for pid in pids])
    memory = read_memory(pids)
    users = {process.pid: procfs.user_id(process.pid) for process in found if process.own}
    names = _names(root, {uid for uid in users.values() if uid is not None})
    detailed = []
    for process in found:
        pid, stat = process.pid, _read_stat(process.pid)
        state = _find_state(pid, stat[0]) if stat else ""
        if not state:
            detailed.append(process)  # no process, or one that has just ended
            continue
        line = lines.get(f"/proc/{pid}/cmdline")
        uid = users.get(pid)
        detailed.append(
            Process(
                pid,
                process.command,
                process.user if uid is None else names.get(uid, str(uid) if uid else "root"),
                process.why,
                process.what,
                state=state,
                memory_bytes=memory.get(pid),
                cpu_seconds=_cpu_seconds(stat),
                started_at=_started_at(int(stat[19])),
                arguments=None if line is None else _split(line),
            )
        )
    return detailed


def read_memory(pids: Iterable[int]) -> dict[int, int]:
    """Read the memory of processes, in bytes: each one's share of what several have in common.

    The resident memory of a process takes the place of its share (PSS) if that cannot be read:
    the caller is not root, or the process does not let it be read in time.

    Args:
        pids: The processes.

    Returns:
        The bytes of each; 0 for a process that is gone.
    """
    return _read_memory([pids])


def sum_memory(instances: Sequence[Collection[int]]) -> list[int]:
    """Read the memory of instances, in bytes: that of all processes of each, as `read_memory` does.

    The processes of all instances have one time limit together, and share the children that read.

    Args:
        instances: The processes of each instance.

    Returns:
        The bytes of each instance, in this order.
    """
    memory = _read_memory(instances)
    return [sum(memory[pid] for pid in set(pids) if pid > 0) for pids in instances]


def _read_memory(instances: Sequence[Iterable[int]]) -> dict[int, int]:
    groups = {pid: number for number, pids in enumerate(instances) for pid in pids if pid > 0}
    shares = _read_files([f"/proc/{pid}/smaps_rollup" for pid in groups], list(groups.values()))
    memory = {}
    for pid in groups:
        _, found, rest = shares.get(f"/proc/{pid}/smaps_rollup", b"").partition(b"\nPss:")
        memory[pid] = int(rest.split()[0]) << 10 if found else _resident(pid)
    return memory


def read_cpu_seconds(pid: int) -> float:
    """Read the processor time of a process, in seconds; 0 if it is gone."""
    stat = _read_stat(pid)
    return _cpu_seconds(stat) if stat else 0.0


def _read_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; none if the process is gone."""
    fields = procfs.stat_fields(pid) if pid > 0 else []
    return fields if len(fields) > 19 else []


def _find_state(pid: int, letter: str) -> str:
    """Return a process's state in words; "" if it has ended.

    A first thread that has ended is shown as a zombie until all others have: one of these tells.
    """
    if letter in _STATES:
        return _STATES[letter]
    threads = procfs.scan_names(b"/proc/%d/task" % pid)
    letters = (procfs.stat_fields(pid, thread=int(name))[:1] for name in threads)
    return next((_STATES[each[0]] for each in letters if each and each[0] in _STATES), "")


def _cpu_seconds(stat: Sequence[str]) -> float:
    return (int(stat[11]) + int(stat[12])) / _CLOCK_TICKS


def _started_at(ticks: int) -> str:
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(boot + ticks / _CLOCK_TICKS))


def _resident(pid: int) -> int:
    """Read the resident memory of a process in bytes, shared pages included."""
    fields = procfs.read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE if len(fields) > 1 else 0


def _split(line: bytes) -> list[str]:
    """Split a command line into its words."""
    return [os.fsdecode(word) for word in line.rstrip(b"\0").split(b"\0")] if line else []


def _names(root: str, uids: set[int]) -> dict[int, str]:
    """Find the names of users in the root's own /etc/passwd; none if it cannot be read."""
    try:
        return passwd.names(root, uids, seconds=_NAMES_ANSWER) if uids else {}
    except (OSError, ChrootfwError):
        return {}  # the numbers are shown


def _read_files(paths: Sequence[str], groups: Sequence[int] = ()) -> dict[str, bytes]:
    """Read the beginning of files of /proc in children, without waiting for any for long.

    Args:
        paths: The files.
        groups: The group of each file; none if they are one group. After `_SILENT_MAX` files that
            do not answer, nothing more is read of their group.

    Returns:
        The content of those that could be read.
    """
    found: dict[str, bytes] = {}
    waiting = list(zip(paths, groups or [0] * len(paths), strict=True))
    silent: dict[int, int] = {}
    until = time.monotonic() + _TOTAL
    while waiting and (left := until - time.monotonic()) > 0:
        part = [path for path, _ in waiting[:_FILES_MAX]]
        try:
            done, is_silent = _read_part(part, found, left)
        except OSError:
            break  # no process can be made
        waiting = waiting[done:]
        if is_silent:
            _, group = waiting.pop(0)
            silent[group] = silent.get(group, 0) + 1
            if silent[group] == _SILENT_MAX:
                waiting = [each for each in waiting if each[1] != group]
    return found


def _read_part(paths: Sequence[str], found: dict[str, bytes], seconds: float) -> tuple[int, bool]:
    """Read files in one child, for at most so many seconds.

    Returns:
        How many were read or refused, and whether the next one has not answered.
    """
    calls = deadlines.make_closing_batch()
    reads = []
    fd = deadlines.lowest_free([])
    for path in paths:
        flags = os.O_RDONLY | os.O_CLOEXEC
        calls.add("openat", syscalls.AT_FDCWD, os.fsencode(path), flags, 0, ignore=_IGNORED)
        buffer = calls.add_buffer(_READ_MAX)
        step = calls.add("pread64", fd, buffer, _READ_MAX, 0, ignore=_IGNORED)
        last = calls.add("close", fd, ignore=_IGNORED)
        reads.append((path, buffer, step, last))
    is_silent = False
    try:
        deadlines.run_batch("/proc", calls, seconds=_ANSWERS, total=seconds)
    except deadlines.DeadlineExceeded:
        is_silent = True
    results = calls.results()
    done = 0
    for path, buffer, step, last in reads:
        if results[last] == UNSET:
            break
        done += 1
        if results[step] >= 0:
            found[path] = buffer.read(results[step])
    return done, is_silent and done < len(paths)
