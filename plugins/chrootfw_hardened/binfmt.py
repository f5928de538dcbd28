"""The interpreters that the kernel hands into every root: binfmt_misc(5), entries with the flag F.

Such an interpreter was opened when it was registered, on a mount of the host's. A program that
makes the kernel run a file for it reaches it by ``/proc/self/exe``: the root user inside changes
its mode and its owner, and on Linux 6.11 and 6.12 its contents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from chrootfw.linux import mountinfo, syscalls
from chrootfw.linux.descriptors import Descriptors

_NO_ENTRIES = ("register", "status")


def interpreters_handed_in() -> list[tuple[str, str]]:
    """Return the entries that hand in a file of the host's that can be changed.

    Returns:
        The name and the interpreter of each.
    """
    with open("/proc/filesystems", encoding="utf-8") as file:
        if "binfmt_misc" not in file.read().split():  # and mounting it would load it
            return []
    found: dict[str, str] = {}
    with Descriptors() as opened:
        for directory in _directories(opened):
            found |= _read(directory)
    return sorted(found.items())


def _directories(opened: Descriptors) -> Iterator[str]:
    """Yield where the entries are.

    In the first user namespace there is one table, mounted or not. In another that mounts one of
    its own (Linux 6.7), mounting it would put an empty table in the place of the host's.
    """
    with open("/proc/self/uid_map", encoding="utf-8") as file:
        is_first = file.read().split() == ["0", "0", "4294967295"]
    if is_first:
        try:
            fd = opened.take(syscalls.new_filesystem, "binfmt_misc", [], 0)
            yield f"/proc/thread-self/fd/{fd}"
            return
        except OSError:  # a container that must not mount: what it sees
            pass
    for mount in mountinfo.of_type(mountinfo.pieces(), b"binfmt_misc"):
        yield os.fsdecode(mount.mount_point)


def _read(directory: str) -> Iterator[tuple[str, str]]:
    try:
        names = os.listdir(directory)
        if _lines(f"{directory}/status")[:1] != ["enabled"]:
            return
    except OSError:  # it is unmounted, or covered by another mount
        return
    for name in names:
        try:
            lines = [] if name in _NO_ENTRIES else _lines(f"{directory}/{name}")
        except OSError:  # it is unregistered meanwhile
            continue
        values = dict(line.partition(" ")[::2] for line in lines)
        if lines[:1] == ["enabled"] and "F" in values.get("flags:", ""):
            path = values.get("interpreter", "")
            if not _is_read_only(path):
                yield name, path


def _lines(path: str) -> list[str]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().splitlines()


def _is_read_only(path: str) -> bool:
    """Return whether a file is on a mount that is read-only.

    A file that is not found, since another namespace registered it, is taken for writable.
    """
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False
