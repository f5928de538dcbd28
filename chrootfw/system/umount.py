"""Taking mounts away (umount(2)), by their mount IDs."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os

from chrootfw.system import deadlines, syscalls
from chrootfw.system.call_lists import UNSET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from chrootfw.system import mounts
    from chrootfw.system.call_lists import CallList

#: What the look at a path may say of one that leads elsewhere: hidden below another mount, which must go first, or renamed at this moment.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EAGAIN)

_FLAGS = syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_STATX_DONT_SYNC | syscalls.AT_NO_AUTOMOUNT
_TO_THE_LAST = 0xFFFFFFFF


def unmount(
    directory: bytes, entries: Sequence[mounts.MountEntry], *, seconds: float
) -> tuple[list[int | None], OSError | None]:
    """Unmount ``entries``, which are all below ``directory`` and not on it, in their order: for each 0, an errno (EBUSY in use), or ``None``
    when its path leads to another mount now, or its turn has not come.

    The parent directory is opened inside ``directory`` without following symlinks, and the mount is taken by its name in there: a symlink put
    into the path leads nowhere. Never lazy. A child does it, since an unmount may have to write to a device or wait for a server. It is left behind when
    one call takes longer than ``seconds``; then there is an error too, ``deadlines.Overdue``, which names the mount. Another error is that no
    child could be made, or that it was ended by somebody.
    """
    base = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        calls = deadlines.alone([base])
        if base:
            calls.add("dup3", base, 0, 0)
        status = calls.room(syscalls.STATX_SIZE).address
        how = syscalls.OpenHow(
            os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
        )
        begins = _add(calls, [(entry.mount_point[len(directory) + 1 :], entry.id) for entry in entries], how, status)
        failure = None
        try:
            deadlines.carry_out("unmount", calls, seconds=seconds)
        except OSError as error:
            failure = error
    finally:
        os.close(base)
    results = calls.results()
    if isinstance(failure, deadlines.Overdue):
        waits = [entry for entry, begin in zip(entries, begins, strict=True) if results[begin] != UNSET]
        failure.filename = f"unmount {os.fsdecode(waits[-1].mount_point)}" if waits else "unmount"
    return [_outcome(results[slice(*steps)]) for steps in itertools.pairwise([*begins, len(results)])], failure


def _add(calls: CallList, mounted: Sequence[tuple[bytes, int]], how: ctypes.Structure, status: int) -> list[int]:
    """The calls for mounts, given by path and ID: where those of each begin in the list. Whichever of them fails, the next mount comes."""
    begins = []
    for parent, group in itertools.groupby(mounted, lambda each: each[0].rpartition(b"/")[0]):
        # What is left of another directory; then 1 is the lowest number that is free.
        opened = calls.add("close_range", 1, _TO_THE_LAST, 0)
        calls.add("openat2", 0, parent or b".", how, ctypes.sizeof(how))
        first = calls.add("fchdir", 1) + 1
        begin = opened
        for path, mount_id in group:
            text = ctypes.create_string_buffer(path.rpartition(b"/")[2])
            begins.append(begin)
            look = calls.add("statx", syscalls.AT_FDCWD, text, _FLAGS, syscalls.STATX_MNT_ID, status)
            calls.compare(status + syscalls.STATX_MNT_ID_OFFSET, mount_id)
            calls.add("umount2", text, syscalls.UMOUNT_NOFOLLOW)
            calls.skip(look)
            begin = look + 3
        calls.skip(opened, before=first)
    return begins


def _outcome(results: Sequence[int]) -> int | None:
    failed = next((-result for result in results if result < 0), 0)
    return None if failed in (*_NOT_THERE, -UNSET) else failed
