"""The mounts of one directory, by listmount(2) and statmount(2): they cost what this directory has, not what the whole mount table has."""

from __future__ import annotations

import os

from chrootfw.system import syscalls
from chrootfw.system.mounts import MountEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: More mounts than these are read from the mount table as quickly.
_MANY = 64

_MASK = (
    syscalls.STATMOUNT_SB_BASIC
    | syscalls.STATMOUNT_MNT_BASIC
    | syscalls.STATMOUNT_MNT_ROOT
    | syscalls.STATMOUNT_MNT_POINT
    | syscalls.STATMOUNT_FS_TYPE
    | syscalls.STATMOUNT_FS_SUBTYPE
    | syscalls.STATMOUNT_SB_SOURCE
)
#: What an answer must have: a text that is empty is said to be unknown, and most have no subtype.
_ALWAYS = _MASK & ~syscalls.STATMOUNT_FS_SUBTYPE

#: Attributes of a mount (mount_setattr(2)) as words, in the mount table's order; access times are a number of two bits.
_WORDS = ((0x2, b"nosuid"), (0x4, b"nodev"), (0x8, b"noexec"), (0x10, b"noatime"), (0x80, b"nodiratime"))
_ATIME, _NOSYMFOLLOW, _IDMAP = 0x70, 0x20_0000, 0x10_0000


def on(mount_points: Iterable[str]) -> list[MountEntry] | None:
    """The mounts on some mount points (absolute, resolved, something is mounted on each) and below them, in the mount table's order.
    ``optional`` and ``super_options`` of each are left empty.

    ``None`` where only the mount table can tell: before Linux 6.13, for very many, and while they change. Raises ``OSError`` for a mount point that is gone.
    """
    ids: set[int] = set()
    for mount_point in mount_points:
        lowest = _lowest(mount_point)
        below = syscalls.listmount(lowest, _MANY + 1) if lowest else None
        if below is None:
            return None
        ids |= {lowest, *below}
        if len(ids) > _MANY:
            return None
    found = []
    for mount_id in sorted(ids):  # in the order in which they were made
        answer = _look(mount_id)
        if answer is None:
            return None
        found.append(_entry(answer))
    return found


def _lowest(mount_point: str) -> int:
    """The unique ID of the lowest of the mounts on one mount point; 0 where the kernel does not tell."""
    lowest = syscalls.unique_mount_id(mount_point)
    answer = _look(lowest) if lowest else None
    while answer is not None:
        above = _look(answer.parent)
        if above is None or above.text(syscalls.STATMOUNT_MNT_POINT) != os.fsencode(mount_point):
            return answer.id
        answer = above
    return 0


def _look(mount_id: int) -> syscalls.StatMount | None:
    answer = syscalls.statmount(mount_id, _MASK)
    return answer if answer is not None and answer.mask & _ALWAYS == _ALWAYS else None


def _entry(answer: syscalls.StatMount) -> MountEntry:
    subtype = answer.text(syscalls.STATMOUNT_FS_SUBTYPE)
    return MountEntry(
        answer.id_in_table,
        answer.parent_in_table,
        answer.dev,
        answer.text(syscalls.STATMOUNT_MNT_ROOT),
        answer.text(syscalls.STATMOUNT_MNT_POINT),
        _options(answer.attributes),
        (),
        answer.text(syscalls.STATMOUNT_FS_TYPE) + (b"." + subtype if subtype else b""),
        answer.text(syscalls.STATMOUNT_SB_SOURCE),
        b"",
    )


def _options(attributes: int) -> bytes:
    words = [b"ro" if attributes & 0x1 else b"rw", *(word for bit, word in _WORDS if attributes & bit)]
    if not attributes & _ATIME:
        words.append(b"relatime")
    if attributes & _NOSYMFOLLOW:
        words.append(b"nosymfollow")
    if attributes & _IDMAP:
        words.append(b"idmapped")
    return b",".join(words)
