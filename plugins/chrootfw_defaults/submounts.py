"""Bring along what is mounted below a directory that is bound: the option ``rbind``."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from functools import cache

from chrootfw import MountPoint, Root
from chrootfw.linux import mountinfo

#: Seconds to wait for the file system that a mount is on.
_TIMEOUT = 2.0


def bind_below(directory: str, target: str, options: Sequence[str]) -> Iterator[MountPoint]:
    """Make a bind of each mount below a directory of the host, to its own place inside.

    They are mounts like all others: a plugin's own mount at such a place replaces one, and a reboot
    makes them afresh. The roots of instances are left out.

    Args:
        directory: The directory, without symbolic links.
        target: Where it is bound.
        options: The options of each bind.
    """
    is_of_instance = cache(_has_record)  # of many mounts in one root it is asked once
    entries = mountinfo.list_mounts_below(os.fsencode(directory))
    for path in dict.fromkeys(os.fsdecode(entry.mount_point) for entry in entries):
        if path != directory and not any(map(is_of_instance, _list_roots(path))):
            inside = posixpath.join(target, posixpath.relpath(path, directory))
            yield MountPoint(inside, path, None, options)


def _list_roots(path: str) -> list[str]:
    """List the directories on a path that have an instance's root if one is there."""
    parts = path.split("/")
    return ["/".join(parts[:at]) for at, word in enumerate(parts) if word == "root"]


def _has_record(directory: str) -> bool:
    """Return whether a directory is an instance's; false if its file system does not answer."""
    try:
        return Root("/", seconds=_TIMEOUT).exists(f"{directory}/record.json")
    except OSError:
        return False
