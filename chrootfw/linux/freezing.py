"""Find frozen file systems (fsfreeze(8)).

No system call queries this. A frozen file system makes a writer wait. So a child removes an
extended attribute that does not exist: the call fails at once and changes nothing, or waits for the
thaw. FIFREEZE would freeze a file system that is not frozen.

A read-only file system makes no writer wait. While it is frozen, it refuses a remount that changes
nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os

from chrootfw.linux import deadlines, loop, mountinfo, syscalls, umount
from chrootfw.linux.call_batch import UNSET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from chrootfw.linux.call_batch import CallBatch

#: An extended attribute that no file has.
_NONE = b"user.chrootfw.none"
#: Seconds for a file system to take a write.
_ANSWERS = 1.0
#: Kernel functions in which a writer waits for a thaw (wchan of proc(5)); empty if the kernel does
#: not report it.
_WAITS_FOR_THAW = (
    "percpu_rwsem_wait",
    "__percpu_down_read",
    "__sb_start_write",
    "sb_start_write",
    "",
)
_UINT_MAX = 0xFFFFFFFF
#: The child's descriptors: the directory, /proc, the mount point, the configuration context.
_BASE, _PROC, _PLACE, _CONTEXT = 0, 1, 2, 3
_FSPICK_CLOEXEC, _FSPICK_EMPTY_PATH = 1, 8
#: Most images, one inside the other, that are checked.
_IMAGES_MAX = 8
_FSCONFIG_SET_FLAG, _FSCONFIG_CMD_RECONFIGURE = 0, 7


class Frozen:
    """The result of `find_frozen`.

    Attributes:
        frozen: A mount of a file system that takes no writes, or `None`.
        image: An image on such a file system; empty if there is none.
        waits: A description of the child that waits there.
        hidden: Mounts that were not checked, since their paths lead to other mounts now.
    """

    __slots__ = ("frozen", "hidden", "image", "waits")

    def __init__(
        self,
        frozen: mountinfo.MountEntry | None,
        waits: str,
        hidden: Sequence[mountinfo.MountEntry],
        image: str = "",
    ) -> None:
        self.frozen = frozen
        self.waits = waits
        self.hidden = hidden
        self.image = image


def can_freeze(entries: Iterable[mountinfo.MountEntry]) -> list[mountinfo.MountEntry]:
    """Select the mounts whose file systems can be frozen: those on block devices.

    Of the mounts of one file system, only the last is returned.
    """
    by_device = {
        entry.dev: entry
        for entry in entries
        if (os.major(entry.dev) or entry.fstype in mountinfo.ON_SEVERAL)
        and not entry.fstype.startswith(b"fuse")
    }
    return list(by_device.values())


def images_below(devices: Iterable[int]) -> list[str]:
    """List the images of loop devices, and the images that contain these, on local file systems.

    Args:
        devices: Device numbers of loop devices.
    """
    found: list[str] = []
    waiting = list(devices)
    while waiting and len(found) < _IMAGES_MAX:
        path = loop.backing_path_of(waiting.pop())
        if path is not None and path not in found and deadlines.is_local(path):
            found.append(path)
            waiting.append(deadlines.cached_device(path))
    return found


def find_frozen(
    directory: bytes,
    entries: Sequence[mountinfo.MountEntry],
    images: Sequence[str] = (),
    *,
    seconds: float,
) -> Frozen:
    """Find the first frozen file system of some mounts and images.

    Args:
        directory: A directory that contains all the mounts.
        entries: The mounts to check.
        images: The paths of images; the file systems that contain them are checked too.
        seconds: Time limit, at most a second.

    Raises:
        OSError: The check cannot be made.
    """
    if not entries and not images:
        return Frozen(None, "", ())
    with umount.opened_for_list(directory) as (base, proc):
        calls, asked = _list(base, proc), []
        for entry in entries:
            opened = _add_place(calls, directory, entry)
            asked.append(calls.add("removexattr", b"self/fd/%d" % _PLACE, _NONE))
            calls.skip(opened)
        for image in images:
            opened = _add_image(calls, image)
            asked.append(calls.add("removexattr", b"self/fd/%d" % _PLACE, _NONE))
            calls.skip(opened)
        waits = _carry_out(calls, seconds)
        results = [calls.result(index) for index in asked[: len(entries)]]
        hidden = [entry for entry, result in zip(entries, results, strict=True) if result == UNSET]
        if waits is not None:
            begun = [calls.result(index - 1) != UNSET for index in asked]
            place = len(begun) - begun[::-1].index(True) - 1 if True in begun else 0
            if place >= len(entries):
                return Frozen(None, waits, hidden, images[place - len(entries)])
            return Frozen(entries[place], waits, hidden)
        read_only = [
            e for e, result in zip(entries, results, strict=True) if result == -errno.EROFS
        ]
        return Frozen(_read_only_and_frozen(base, proc, directory, read_only, seconds), "", hidden)


def _list(base: int, proc: int) -> CallBatch:
    calls = deadlines.make_closing_batch([base, proc])
    calls.add("dup3", base, _BASE, 0)
    calls.add("dup3", proc, _PROC, 0)
    calls.add("fchdir", _PROC)
    return calls


def _add_place(calls: CallBatch, directory: bytes, entry: mountinfo.MountEntry) -> int:
    """Append the calls that open a mount point, if its path leads to that mount.

    Returns:
        The index of the first step.
    """
    how = syscalls.OpenHow(
        os.O_PATH | os.O_CLOEXEC, 0, syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
    )
    status = calls.add_buffer(syscalls.STATX_SIZE)
    first = calls.add("close_range", _PLACE, _UINT_MAX, 0)
    umount.add_open(calls, _BASE, entry.mount_point[len(directory) + 1 :], how, _PLACE)
    flags = syscalls.AT_EMPTY_PATH | syscalls.AT_STATX_DONT_SYNC
    calls.add("statx", _PLACE, b"", flags, syscalls.STATX_MNT_ID, status)
    calls.compare(status.at(syscalls.STATX_MNT_ID_OFFSET), entry.id)
    return first


def _add_image(calls: CallBatch, image: str) -> int:
    """Append the calls that open an image, as `_add_place` does for a mount point.

    Args:
        calls: The batch.
        image: The path, as the kernel reports it for a loop device.
    """
    how = syscalls.OpenHow(os.O_PATH | os.O_CLOEXEC, 0, syscalls.RESOLVE_NO_SYMLINKS)
    first = calls.add("close_range", _PLACE, _UINT_MAX, 0)
    calls.add("openat2", syscalls.AT_FDCWD, os.fsencode(image), how, ctypes.sizeof(how))
    return first


def _carry_out(calls: CallBatch, seconds: float) -> str | None:
    """Carry out a batch that may wait for a thaw.

    A wait for anything else is ignored: the unmount reports it.

    Returns:
        A description of the child that waits; `None` if every call has returned.
    """
    try:
        deadlines.run_batch("the file system", calls, seconds=min(seconds, _ANSWERS))
    except deadlines.DeadlineExceeded as error:
        return error.describe() if error.wchan in _WAITS_FOR_THAW else None
    except OSError:
        if calls.stopped_at():
            raise
    return None


def _read_only_and_frozen(
    base: int, proc: int, directory: bytes, entries: Sequence[mountinfo.MountEntry], seconds: float
) -> mountinfo.MountEntry | None:
    """Return the first mount whose read-only file system refuses an unchanged remount (EBUSY)."""
    if not entries:
        return None
    table = mountinfo.Table()
    for entry in entries:
        listed = mountinfo.by_id(table, entry.id)
        if listed is None or listed.super_options.split(b",")[0] != b"ro":
            continue  # the mount is read-only, but not its file system: a writer would have waited
        calls = _list(base, proc)
        _add_place(calls, directory, entry)
        calls.add("fspick", _PLACE, b"", _FSPICK_CLOEXEC | _FSPICK_EMPTY_PATH)
        calls.add("fsconfig", _CONTEXT, _FSCONFIG_SET_FLAG, b"ro", None, 0)
        last = calls.add("fsconfig", _CONTEXT, _FSCONFIG_CMD_RECONFIGURE, None, None, 0)
        try:
            deadlines.run_batch("the file system", calls, seconds=min(seconds, _ANSWERS))
        except OSError:
            if calls.result(last) == -errno.EBUSY:
                return entry
    return None
