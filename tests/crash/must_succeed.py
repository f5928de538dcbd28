"""Errors of system calls after which a start or a stop must succeed all the same: a table, derived from what the code promises.

An error walk that takes any status would not notice that a retry, or a second way, is gone. An entry stands here only if its
reason holds for every call of that name; ``but`` is what strace shows of those to which it does not apply.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Rule(NamedTuple):
    """``errors`` at one of ``names``, made by the manager: a success, and why. ``first_only``: at the first call of that name."""

    names: tuple[str, ...]
    errors: tuple[str, ...]
    why: str
    but: str = r"(?!)"
    first_only: bool = False


#: A directory that is listed (opendir(3)), and a library that is loaded (dlopen(3), which reads 832 bytes first): libc's own calls.
_OF_LIBC = r"O_DIRECTORY|\.so\b|, 832\)"

RULES = (
    Rule(
        ("openat", "read", "pread64", "write", "poll", "flock", "fsync", "waitid"),
        ("EINTR",),
        "Python makes them again after a signal (PEP 475)",
        but=_OF_LIBC,
    ),
    Rule(
        ("open_tree", "move_mount", "fsopen", "fsmount", "mount_setattr"),
        ("EINTR",),
        "syscalls makes them again after a signal, as Python does with its own",
    ),
    Rule(
        ("openat2",),
        ("EINTR", "EAGAIN"),
        "the look-up is made again: a signal, or a rename beside it",
    ),
    Rule(("clone3",), ("ENOSYS",), "a fork is made instead of a child that shares the memory"),
    Rule(
        ("ftruncate", "pwrite64"),
        ("ENOSPC", "EIO", "EINTR"),
        "only the name of a lock's holder is lost",
    ),
    Rule(("getpriority",), ("EIO", "EPERM"), "the end of the processes is not hurried then"),
    Rule(
        ("setpriority",),
        ("EACCES", "EPERM"),
        "the same; the second call takes the first back",
        first_only=True,
    ),
)


def reason(hit: str, error: str, count: int) -> str:
    """Why the command must succeed although strace has injected this error (``hit``: its line), ``""`` if it need not."""
    found = re.match(r"(?:\d+ +)?([a-z_0-9]+)\(", hit)
    for rule in RULES:
        if found and found[1] in rule.names and error in rule.errors:
            return "" if re.search(rule.but, hit) or (rule.first_only and count > 1) else rule.why
    return ""
