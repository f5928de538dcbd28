"""List the mounts of one directory with listmount(2) and statmount(2).

The cost depends on this directory's mounts, and not on the whole mount table.
"""

from __future__ import annotations

import os

from chrootfw.linux import syscalls
from chrootfw.linux.mountinfo import MountEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: For more mounts than these, reading the mount table is as fast.
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
#: Required fields of an answer: an empty text counts as unknown, and most mounts have no subtype.
_ALWAYS = _MASK & ~syscalls.STATMOUNT_FS_SUBTYPE

#: Attributes of a mount (mount_setattr(2)) as words, in the mount table's order; the access time is
#: a number of two bits.
_WORDS = (
    (0x2, b"nosuid"),
    (0x4, b"nodev"),
    (0x8, b"noexec"),
    (0x10, b"noatime"),
    (0x80, b"nodiratime"),
)
_ATIME, _NOSYMFOLLOW, _IDMAP = 0x70, 0x20_0000, 0x10_0000


def list_mounts_on(mount_points: Iterable[str]) -> list[MountEntry] | None:
    """List the mounts on some mount points and below them, in the mount table's order.

    `optional` and `super_options` of each mount are empty.

    Args:
        mount_points: Absolute, resolved paths on which something is mounted.

    Returns:
        The mounts; `None` if the mount table is needed: before Linux 6.13, for very many mounts,
        and while they change.

    Raises:
        OSError: A mount point is gone.
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
        answer = _list_once(mount_id)
        if answer is None:
            return None
        found.append(_entry(answer))
    return found


def _lowest(mount_point: str) -> int:
    """Return the unique ID of the lowest mount on a mount point; 0 if it is unknown."""
    lowest = syscalls.unique_mount_id(mount_point)
    answer = _list_once(lowest) if lowest else None
    while answer is not None:
        above = _list_once(answer.parent)
        if above is None or above.text(syscalls.STATMOUNT_MNT_POINT) != os.fsencode(mount_point):
            return answer.id
        answer = above
    return 0


def _list_once(mount_id: int) -> syscalls.StatMount | None:
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
    words = [
        b"ro" if attributes & 0x1 else b"rw",
        *(word for bit, word in _WORDS if attributes & bit),
    ]
    if not attributes & _ATIME:
        words.append(b"relatime")
    if attributes & _NOSYMFOLLOW:
        words.append(b"nosymfollow")
    if attributes & _IDMAP:
        words.append(b"idmapped")
    return b",".join(words)
