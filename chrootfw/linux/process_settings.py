"""Give the processes of an instance limits and priorities of their own, in place of the caller's.

What a process does not set, it inherits: an instance that is started from a shell with `ulimit -n
64`, `nice` or `taskset` would keep that for as long as it runs. Only what differs from the caller
is set, in the batch of the child.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct

from chrootfw.linux.call_batch import CallBatch, Result
from chrootfw.planning.limits import DEFAULTS, UNLIMITED, is_below, parse_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_CAP_SYS_NICE, _CAP_SYS_RESOURCE = 23, 24
_WHO_PROCESS = 1  # of ioprio_set(2)
_RLIMIT = struct.Struct("=QQ")
_RLIM_INFINITY = (1 << 64) - 1
_NUMBERS = {name: number for number, name in enumerate((
    "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks",
    "sigpending", "msgqueue", "nice", "rtprio", "rttime",
))}  # fmt: skip
#: The names of the limits that a default takes from pid 1, in /proc/PID/limits.
_LINES = {"nproc": "Max processes", "sigpending": "Max pending signals"}
_REFUSED = (errno.EPERM, errno.EACCES)


class ProcessSettings:
    """The limits and priorities of an instance's processes.

    Args:
        params: The instance's parameters: `limits`, `nice`, `oom_score_adj`; what is missing has
            its default.

    Attributes:
        limits: Soft and hard limit by name.
        nice: The nice value.
        oom_score_adj: What the kernel adds when it looks for a process to kill.
    """

    __slots__ = ("_asked", "_wanted", "limits", "nice", "oom_score_adj")

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._wanted = params.get("limits") or {}
        self.limits = {name: default or _of_pid_1(name) for name, default in DEFAULTS.items()}
        self.limits |= {name: parse_limit(value) for name, value in self._wanted.items()}
        self._asked = dict(self.limits)
        self.limits["nofile"] = _cap_nofile(*self.limits["nofile"])
        self.nice = int(params.get("nice", 0))
        self.oom_score_adj = int(params.get("oom_score_adj", 0))

    @property
    def needs_memory(self) -> bool:
        """Whether a child must not share its caller's memory.

        The kernel gives all processes that share memory one oom_score_adj.
        """
        return self.oom_score_adj != _oom_score_adj()

    def steps_of_limits(self) -> Iterator[tuple[int, bytes, bool]]:
        """Yield the number and struct rlimit of each call, and whether it may be refused.

        A hard limit above the caller's own is refused without CAP_SYS_RESOURCE, in a user
        namespace, or above fs.nr_open: so the limit is first set as high as it may be.
        """
        for name, (soft, hard) in self.limits.items():
            now_soft, now_hard = _current(name)
            if (soft, hard) == (now_soft, now_hard):
                continue
            if is_below(now_hard, hard):
                lower = now_hard if is_below(now_hard, soft) else soft
                yield _NUMBERS[name], _pack(lower, now_hard), False
                yield _NUMBERS[name], _pack(soft, hard), True
            else:
                yield _NUMBERS[name], _pack(soft, hard), False

    def add_limits(self, calls: CallBatch) -> None:
        """Append the calls that set the limits."""
        for number, limit, may_fail in self.steps_of_limits():
            given = calls.add_buffer(len(limit), limit)
            calls.add(
                "prlimit64", 0, number, given, None,
                ignore=(errno.EPERM,) if may_fail else (), what=b"prlimit",
            )  # fmt: skip

    def add_priorities(self, calls: CallBatch) -> None:
        """Append the calls that set scheduling, nice value, processors and oom_score_adj.

        What the kernel refuses stays as it is (`shortfalls`).
        """
        # The caller's is not compared: musl has no sched_getscheduler(2).
        calls.add("sched_setscheduler", 0, os.SCHED_OTHER, ctypes.c_int(0), ignore=_REFUSED)
        # The kernel takes the value as a C int.
        calls.add("setpriority", os.PRIO_PROCESS, 0, self.nice, ignore=_REFUSED)
        calls.add("ioprio_set", _WHO_PROCESS, 0, 0, ignore=(*_REFUSED, errno.ENOSYS))
        processors = _processors_of_pid_1()
        if processors and processors != os.sched_getaffinity(0):
            mask = sum(1 << number for number in processors)
            size = (max(processors) // 64 + 1) * 8
            given = calls.add_buffer(size, mask.to_bytes(size, "little"))
            # EINVAL: none of them is in the cgroup's set (cpusets(7)).
            calls.add("sched_setaffinity", 0, size, given, ignore=(*_REFUSED, errno.EINVAL))
        if self.needs_memory:
            path, text = b"/proc/self/oom_score_adj", b"%d" % self.oom_score_adj
            opened = calls.add("openat", -1, path, os.O_WRONLY | os.O_CLOEXEC, 0)
            calls.add("write", Result(opened), text, len(text), ignore=_REFUSED)
            calls.add("close", Result(opened))

    def shortfalls(self) -> list[str]:
        """Describe what this process may not set, each in some words.

        Of limits that nobody asked for, only a soft one that is not reached counts.
        """
        found = []
        may_raise = _may(_CAP_SYS_RESOURCE)
        for name, (soft, hard) in self._asked.items():
            # The kernel has a maximum of its own for nofile alone.
            most = self.limits[name][1] if may_raise else _current(name)[1]
            if is_below(most, hard if name in self._wanted else soft):
                found.append(f"{name} is at most {_text(most)}, not {_text(soft)}:{_text(hard)}")
        if not may_raise and self.oom_score_adj < (now := _oom_score_adj()):
            found.append(f"oom_score_adj may stay {now}, not {self.oom_score_adj}")
        if not _may(_CAP_SYS_NICE) and self.nice < (now := os.getpriority(os.PRIO_PROCESS, 0)):
            found.append(f"nice is {now}, not {self.nice}")
        return found

    def lowered_hard_limits(self) -> list[str]:
        """Describe the hard limits that this process may not set."""
        if _may(_CAP_SYS_RESOURCE):
            return []
        rows = ((name, _current(name)[1], hard) for name, (_, hard) in self.limits.items())
        return [f"{name} {_text(now)}" for name, now, hard in rows if is_below(now, hard)]


def _current(name: str) -> tuple[int, int]:
    return resource.getrlimit(_NUMBERS[name])


def _pack(soft: int, hard: int) -> bytes:
    return _RLIMIT.pack(soft & _RLIM_INFINITY, hard & _RLIM_INFINITY)


def _cap_nofile(soft: int, hard: int) -> tuple[int, int]:
    """Return the limit of open files without what exceeds fs.nr_open: no process may have more."""
    try:
        with open("/proc/sys/fs/nr_open", encoding="utf-8") as file:
            most = int(file.read())
    except (OSError, ValueError):
        return soft, hard
    return (most if is_below(most, soft) else soft, most if is_below(most, hard) else hard)


def _text(limit: int) -> str:
    return "unlimited" if limit == UNLIMITED else str(limit)


def _of_pid_1(name: str) -> tuple[int, int]:
    """Return a limit of pid 1; the caller's own where that cannot be read."""
    try:
        with open("/proc/1/limits", encoding="utf-8") as file:
            line = next(line for line in file if line.startswith(_LINES[name]))
        soft, hard = (
            UNLIMITED if word == "unlimited" else int(word)
            for word in line[len(_LINES[name]) :].split()[:2]
        )
    except (OSError, ValueError, StopIteration):
        return _current(name)
    return soft, hard


def _processors_of_pid_1() -> set[int]:
    """Return the processors that pid 1 may use: without those that are set apart for others."""
    try:
        return os.sched_getaffinity(1)
    except OSError:
        return set()


def _oom_score_adj() -> int:
    try:
        with open("/proc/self/oom_score_adj", encoding="utf-8") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0  # the default of every process


def _may(capability: int) -> bool:
    """Return whether this process has a capability, and not only in a user namespace."""
    from chrootfw.linux import capabilities

    return capabilities.is_effective(capability) and capabilities.is_first_user_namespace()
