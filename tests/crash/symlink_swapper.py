"""Processes that swap directories of a tree with symbolic links that lead out of it, as fast as they can.

They live in a mount namespace of their own, where what is mounted in the tree meanwhile is not: there even a mount
point can be renamed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000
_RENAME_EXCHANGE = 2
_PR_SET_PDEATHSIG = 1

#: The tree: sub-mounts are made on these; the directories above are swapped, and so are these.
PARENTS = ("a", "a/b")
LEAVES = tuple(f"a/b/{leaf}" for leaf in "cdefghij")
EVERY = (*PARENTS, *LEAVES)

_libc = ctypes.CDLL(None, use_errno=True)


def make_tree(top: Path) -> None:
    """The directories; below ``top`` they are swapped, below the outside the links would lead there."""
    for path in EVERY:
        (top / path).mkdir()


@contextmanager
def swapping(top: Path, outside: Path) -> Iterator[Callable[[], int]]:
    """Two swappers, one with absolute links, one with relative ones; yields how many swaps there were so far."""
    counters = mmap.mmap(-1, 16)
    for path in EVERY:
        (top / f"{path}.absolute").symlink_to(outside / path)
        (top / f"{path}.relative").symlink_to("../" * 20 + str(outside / path)[1:])
    pids = [
        _swapper(top, kind, counters, place) for place, kind in enumerate(("absolute", "relative"))
    ]
    try:
        yield lambda: sum(
            int.from_bytes(counters[8 * place : 8 * place + 8], "little")
            for place in range(len(pids))
        )
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _swapper(top: Path, kind: str, counters: mmap.mmap, place: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Descriptors, since the paths change; opened here, before the others swap anything of importance.
        pairs = []
        if _libc.unshare(_CLONE_NEWNS) or _libc.mount(
            None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None
        ):
            os._exit(1)
        for path in EVERY:
            parent, _, name = path.rpartition("/")
            directory = os.open(_real(top, parent), os.O_PATH | os.O_DIRECTORY)
            pairs.append((directory, name.encode(), f"{name}.{kind}".encode()))
        swaps = 0
        while True:
            for directory, name, link in pairs:
                _libc.renameat2(directory, name, directory, link, _RENAME_EXCHANGE)
                _libc.renameat2(directory, name, directory, link, _RENAME_EXCHANGE)
                swaps += 2
            counters[8 * place : 8 * place + 8] = swaps.to_bytes(8, "little")
    finally:
        os._exit(1)


def _real(top: Path, parent: str) -> str:
    """Where a directory is now, should the other swapper have begun already."""
    here = str(top)
    for name in filter(None, parent.split("/")):
        names = (name, f"{name}.absolute", f"{name}.relative")
        here = next(
            f"{here}/{n}"
            for n in names
            if os.path.isdir(f"{here}/{n}") and not os.path.islink(f"{here}/{n}")
        )
    return here
