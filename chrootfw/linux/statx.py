"""Call statx(2) for many files at once: a scan of all processes needs tens of thousands of calls.

Cached values are used, as in `syscalls.statx`: no call waits for a file system.
"""

from __future__ import annotations

from chrootfw.linux import native, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    #: Mode, inode, device of a device file and device (both as `packed`), attributes
    #: (STATX_ATTR_*), mount ID.
    Status = tuple[int, int, int, int, int, int]

_FLAGS = syscalls.AT_STATX_DONT_SYNC | syscalls.AT_NO_AUTOMOUNT


def packed(major: int, minor: int) -> int:
    """Pack a device number into one word, as in `Status`."""
    return major | minor << 32


def statx_many(paths: Sequence[bytes]) -> list[Status | None]:
    """Return the status of each path; `None` if it cannot be read."""
    if native.MODULE is not None:
        found: list[Status | None] = native.MODULE.statx_many(
            list(paths), _FLAGS, syscalls.STATX_BASIC_AND_MNT_ID
        )
        return found
    return [_one(path) for path in paths]


def _one(path: bytes) -> Status | None:
    status = syscalls.statx_fields(path)
    if status is None:
        return None
    attributes, _, mode, inode, *numbers, mount_id = status
    return mode, inode, packed(*numbers[:2]), packed(*numbers[2:]), attributes, mount_id
