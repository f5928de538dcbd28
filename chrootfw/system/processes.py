"""What the kernel tells of a process (proc(5)): its name, its user, its state, its parent."""

from __future__ import annotations

import os

from chrootfw.system import cgroups
from chrootfw.views import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def all_pids() -> list[int]:
    """Every process that the caller can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def newest_first() -> Iterator[int]:
    """Every process that the caller can see, those that were born last before the others; some of them twice."""
    last = first_line("/proc/loadavg").split()[-1:]
    for number in last:
        yield from range(int(number), max(1, int(number) - 8), -1)
    for name in reversed(os.listdir("/proc")):
        if name.isdigit():
            yield int(name)


def command(pid: int) -> str:
    """The process's name as in ps(1), or ``?`` when it is gone."""
    return first_line(f"/proc/{pid}/comm") or "?"


def user(pid: int) -> str:
    """The name of its effective user, or the number where nobody knows a name."""
    for line in _lines(f"/proc/{pid}/status"):
        if line.startswith("Uid:"):
            return user_name(int(line.split()[2]))
    return "?"


_names: dict[int, str] = {}


def user_name(uid: int) -> str:
    """The name in /etc/passwd; not by NSS, which may ask a server that does not answer."""
    if not _names:
        for line in _lines("/etc/passwd"):
            fields = line.split(":")
            if len(fields) > 2 and fields[2].isdigit():
                _names.setdefault(int(fields[2]), fields[0])
    return _names.get(uid, str(uid))


def state(pid: int) -> tuple[str, str]:
    """Its state letter and wchan, for telling why it does not die; ``("gone", "")`` when it is gone."""
    parts = first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (parts[0], first_line(f"/proc/{pid}/wchan").strip("0")) if parts else ("gone", "")


def parent(pid: int) -> int:
    """Its parent's pid, 0 when there is none."""
    parts = first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(parts[1]) if len(parts) > 1 else 0


def is_alive(pid: int) -> bool:
    """Whether it exists and is no zombie."""
    return state(pid)[0] not in ("gone", "Z", "X")


def self_and_ancestors() -> frozenset[int]:
    """The caller's process and all above it: never to be signalled."""
    chain: list[int] = []
    pid = os.getpid()
    while pid > 0 and pid not in chain:
        chain.append(pid)
        pid = parent(pid)
    return frozenset(chain)


def describe(pids: Iterable[int], why: str) -> list[Process]:
    """The processes as values; those that are gone meanwhile, or are zombies, are left out."""
    return [Process(pid, command(pid), user(pid), why) for pid in dict.fromkeys(pids) if pid > 0 and is_alive(pid)]


def tracked(cgroup_paths: Iterable[str]) -> list[int]:
    """The pids in some cgroups that the caller can see and may signal: never 0 or 1."""
    return [pid for path in cgroup_paths for pid in cgroups.pids(path) if pid > 1]


def namespace(pid: int | str) -> int:
    """The inode that names its mount namespace, 0 when it is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return 0


def first_line(path: str) -> str:
    """The first line of a file of /proc, ``""`` when the process is gone."""
    return next(iter(_lines(path)), "")


def read(path: str) -> bytes:
    """A whole file of /proc, empty when the process is gone. By read(2): ``open`` asks four more things about each."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        data = b""
        while chunk := os.read(fd, 1 << 16):
            data += chunk
        return data
    except OSError:
        return b""
    finally:
        os.close(fd)


def _lines(path: str) -> list[str]:
    return os.fsdecode(read(path)).split("\n")
