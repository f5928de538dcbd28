"""Unmount mounts in a given order, each known by its mount ID: umount(2), in a child.

`lifecycle.unmount` passes the order that the plugins decided.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import itertools
import os
import struct

from chrootfw.linux import deadlines, syscalls
from chrootfw.linux.call_batch import UNSET
from chrootfw.linux.descriptors import Descriptors, opened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Protocol

    from chrootfw.linux import mountinfo
    from chrootfw.linux.call_batch import Buffer, CallBatch

    class Observer(Protocol):
        """What is called while mounts are unmounted."""

        def begin(self, entry: mountinfo.MountEntry) -> None:
            """Note that the child is at work on a mount."""

        def end(
            self, entry: mountinfo.MountEntry, outcome: int | None, seconds: float | None
        ) -> None:
            """Note that it is done with a mount, for which `begin` may not have been called.

            Args:
                entry: The mount.
                outcome: As `unmount` returns it.
                seconds: How long the child worked on it, by the child's clock; `None` if it did
                    not come to it.
            """


#: Errnos of a path that leads elsewhere: another mount hides it, which must go first, or it is
#: being renamed.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EAGAIN)

_FLAGS = syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_STATX_DONT_SYNC | syscalls.AT_NO_AUTOMOUNT
_UINT_MAX = 0xFFFFFFFF
#: Bytes of a path, with its final NUL, that the kernel takes at most.
_PATH_MAX = 4096
_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: The child's descriptors: the directory at which paths begin, /proc of this namespace, the parent
#: directory, and the mount that is checked. Each is the lowest free number.
_BASE, _PROC, _PARENT, _NAMED = 0, 1, 2, 3
#: struct timespec.
_TIMESPEC = struct.Struct("=2q")
_CLOCK_MONOTONIC = 1
#: Bytes of /proc/PID/fdinfo/N that are read.
_FDINFO = 256
_EIGHT = struct.Struct("=q")


def unmount(
    directory: bytes,
    entries: Sequence[mountinfo.MountEntry],
    *,
    seconds: float,
    observer: Observer | None = None,
) -> tuple[list[int | None], OSError | None]:
    """Unmount mounts below a directory, in the given order and never lazily.

    The parent directory of each mount is opened inside `directory` without following symlinks. The
    mount is then named relative to it, so a symlink that replaces a component leads nowhere.
    statx(2) reports which mount the name leads to. If the file system refuses that, the VFS's own
    knowledge is used.

    A child makes the calls, since an unmount may have to write to a device or wait for a server.
    The child is abandoned if one call takes longer than the time limit.

    Args:
        directory: The directory; the mount on it is not unmounted.
        entries: The mounts below it.
        seconds: Seconds for each call to return.
        observer: Called when the child begins and ends with a mount.

    Returns:
        For each mount 0, an errno (EBUSY if it is in use), or `None` if its path leads to another
        mount now, or its turn has not come. Then an error or `None`: `DeadlineExceeded`, which
        names the mount, or another `OSError` if no child could be made or the child was killed.
    """
    with opened_for_list(directory) as (base, proc):
        calls = deadlines.make_closing_batch([base, proc])
        calls.add("dup3", base, _BASE, 0)
        calls.add("dup3", proc, _PROC, 0)
        return _run_unmounts(calls, directory, entries, seconds, observer)


def unmount_in(
    namespace: int,
    entries: Sequence[mountinfo.MountEntry],
    *,
    seconds: float,
    observer: Observer | None = None,
) -> tuple[list[int | None], OSError | None]:
    """Unmount mounts in another mount namespace, as `unmount` does.

    Args:
        namespace: A descriptor of the namespace.
        entries: The mounts, as in the mount table of a process whose root directory is the
            namespace's own. The mount on that directory must not be among them: umount2(2) would
            remount it read-only.
        seconds: Seconds for each call to return.
        observer: Called when the child begins and ends with a mount.

    Returns:
        The same as for `unmount`.
    """
    with Descriptors() as owned:
        proc = _open_high(b"/proc", owned)
        calls = deadlines.make_closing_batch([namespace, proc])
        calls.add("dup3", proc, _PROC, 0)
        calls.add("setns", namespace, syscalls.CLONE_NEWNS)
        calls.add("close_range", _PARENT, _UINT_MAX, 0)
        # _BASE, the lowest free number.
        calls.add("openat", syscalls.AT_FDCWD, b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return _run_unmounts(calls, b"", entries, seconds, observer)


@contextlib.contextmanager
def opened_for_list(directory: bytes) -> Iterator[tuple[int, int]]:
    """Open a directory and /proc for a batch whose own descriptors have low numbers.

    Yields:
        Both descriptors.
    """
    with Descriptors() as owned:
        yield _open_high(directory, owned), _open_high(b"/proc", owned)


def _open_high(directory: bytes, owner: Descriptors) -> int:
    """Open a directory, with a descriptor that the batch does not use itself."""
    with opened(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW) as fd:
        return high(fd, owner)


def high(fd: int, owner: Descriptors) -> int:
    """Duplicate a descriptor for `owner`, to a number that the batch does not use itself."""
    return owner.take(fcntl.fcntl, fd, fcntl.F_DUPFD_CLOEXEC, _PARENT)


def _run_unmounts(
    calls: CallBatch,
    directory: bytes,
    entries: Sequence[mountinfo.MountEntry],
    seconds: float,
    observer: Observer | None,
) -> tuple[list[int | None], OSError | None]:
    """Carry out the unmounts, after the calls that open `_BASE` and `_PROC`."""
    status = calls.add_buffer(syscalls.STATX_SIZE)
    clocks = calls.add_buffer((len(entries) + 1) * _TIMESPEC.size)
    calls.add("clock_gettime", _CLOCK_MONOTONIC, clocks)
    how = syscalls.OpenHow(
        os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC,
        0,
        syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS,
    )
    steps = _add_unmounts(
        calls,
        [(entry.mount_point[len(directory) + 1 :], entry.id) for entry in entries],
        how,
        status,
        clocks,
    )
    failure = None
    progress = _Progress(calls, clocks, entries, steps, observer) if observer is not None else None
    show = progress.show if progress else None
    try:
        deadlines.run_batch("unmount", calls, seconds=seconds, show_progress=show)
    except OSError as error:
        failure = error
    if progress is not None:
        progress.show(has_ended=failure is None)
    results = calls.results()
    if isinstance(failure, deadlines.DeadlineExceeded):
        waits = [
            entry
            for entry, each in zip(entries, steps, strict=True)
            if results[each.begin] != UNSET
        ]
        failure.filename = f"unmount {os.fsdecode(waits[-1].mount_point)}" if waits else "unmount"
    return [_outcome(each, results) for each in steps], failure


class _Steps:
    """The steps of one mount.

    Attributes:
        begin: The first step.
        unmounts: Those of its steps that are umount2(2).
        clock: Its last step, which reads the clock.
    """

    __slots__ = ("begin", "clock", "unmounts")

    def __init__(self, begin: int, unmounts: tuple[int, ...], clock: int) -> None:
        self.begin = begin
        self.unmounts = unmounts
        self.clock = clock


class _Progress:
    """Tell an observer how far the child has come.

    Args:
        calls: The batch.
        clocks: What the child's clock showed at the beginning, and after each mount.
        entries: The mounts.
        steps: The steps of each mount.
        observer: The observer.
    """

    def __init__(
        self,
        calls: CallBatch,
        clocks: Buffer,
        entries: Sequence[mountinfo.MountEntry],
        steps: Sequence[_Steps],
        observer: Observer,
    ) -> None:
        self._calls = calls
        self._clocks = clocks
        self._entries = entries
        self._steps = steps
        self._observer = observer
        self._begun = -1
        self._next = 0
        self._last_clock: float | None = None
        self._begin()

    def show(self, *, has_ended: bool = False) -> None:
        """Report what has happened since the last call.

        Args:
            has_ended: Whether the child has come to the end of the batch.
        """
        results = self._calls.results()
        reached = len(results) - 1
        while reached >= 0 and results[reached] == UNSET:
            reached -= 1
        while self._next < len(self._steps) and (
            has_ended or reached >= self._steps[self._next].clock
        ):
            each = self._steps[self._next]
            if self._last_clock is None:
                self._last_clock = self._read_clock(0)
            seconds = None
            if results[each.clock] == 0:
                clock = self._read_clock(self._next + 1)
                seconds, self._last_clock = clock - self._last_clock, clock
            self._observer.end(self._entries[self._next], _outcome(each, results), seconds)
            self._next += 1
        self._begin()

    def _begin(self) -> None:
        if self._begun < self._next < len(self._steps):
            self._begun = self._next
            self._observer.begin(self._entries[self._next])

    def _read_clock(self, number: int) -> float:
        at = number * _TIMESPEC.size
        seconds, nanoseconds = _TIMESPEC.unpack(self._clocks.read(_TIMESPEC.size, at))
        return float(seconds + nanoseconds / 1e9)


def _add_unmounts(
    calls: CallBatch,
    mounted: Sequence[tuple[bytes, int]],
    how: ctypes.Structure,
    status: Buffer,
    clocks: Buffer,
) -> list[_Steps]:
    """Append the calls for mounts; after a failure, the next mount follows.

    Args:
        calls: The batch.
        mounted: The path below the base, and the ID, of each mount.
        how: The struct open_how for the parent directories.
        status: A buffer for statx(2).
        clocks: Gets what the clock shows after each mount, from the second place on.
    """
    found: list[_Steps] = []
    shown = status.at(syscalls.STATX_MNT_ID_OFFSET)
    for parent, group in itertools.groupby(mounted, lambda each: each[0].rpartition(b"/")[0]):
        # What is left of another directory.
        closed = calls.add("close_range", _PARENT, _UINT_MAX, 0)
        add_open(calls, _BASE, parent, how, _PARENT)
        first = calls.add("fchdir", _PARENT) + 1
        begin = closed
        for path, mount_id in group:
            text = path.rpartition(b"/")[2]
            query = calls.add(
                "statx", syscalls.AT_FDCWD, text, _FLAGS, syscalls.STATX_MNT_ID, status
            )
            calls.compare(shown, mount_id)
            plain = calls.add("umount2", text, syscalls.UMOUNT_NOFOLLOW)
            # Always fails: the following calls are not for this mount.
            over = calls.compare(shown, ~mount_id)
            calls.skip(query, before=query + 1)
            by_vfs = _add_unmount_by_vfs(calls, text, mount_id)
            calls.skip(query + 1, before=over + 1)
            place = clocks.at((len(found) + 1) * _TIMESPEC.size)
            clock = calls.add("clock_gettime", _CLOCK_MONOTONIC, place)
            found.append(_Steps(begin, (plain, by_vfs), clock))
            begin = len(calls.names)
        calls.skip(closed, before=first)
    return found


def add_open(calls: CallBatch, base: int, path: bytes, how: ctypes.Structure, number: int) -> None:
    """Append the calls that open a path from the mount table, however long it is.

    The kernel takes no path of PATH_MAX bytes, but a rename can give a mount point a longer one.
    Such a path is opened in pieces, each relative to the descriptor of the piece before.

    Args:
        calls: The batch.
        base: The child's descriptor at which the path begins.
        path: The path below it, without links and `..`; empty for `base` itself.
        how: The struct open_how.
        number: The number that the descriptor gets. It and the next are the lowest free ones.
    """
    first, *rest = _pieces(path)
    calls.add("openat2", base, first, how, ctypes.sizeof(how))
    for piece in rest:
        calls.add("openat2", number, piece, how, ctypes.sizeof(how))
        calls.add("dup3", number + 1, number, os.O_CLOEXEC)
        calls.add("close", number + 1)


def _pieces(path: bytes) -> list[bytes]:
    """Split a path between its names into pieces that the kernel takes."""
    found = []
    while len(path) >= _PATH_MAX:
        end = path.rindex(b"/", 0, _PATH_MAX)
        found.append(path[:end])
        path = path[end + 1 :]
    return [*found, path or b"."]


def _add_unmount_by_vfs(calls: CallBatch, text: bytes, mount_id: int) -> int:
    """Append the calls for a mount whose file system refuses statx(2).

    The directory of a process that has exited may refuse it, or a FUSE server. A descriptor that is
    opened for its path alone (O_PATH) makes no call to the file system, and proc(5) shows the ID of
    its mount.

    Returns:
        The index of the umount2(2).
    """
    answer = calls.add_buffer(_FDINFO)
    number = b"mnt_id:\t%d\n" % mount_id
    named = calls.add("openat", syscalls.AT_FDCWD, text, _PATH_ONLY)
    calls.add("openat", _PROC, b"self/fdinfo/%d" % _NAMED, os.O_RDONLY)
    calls.add("read", _NAMED + 1, answer, _FDINFO)
    for at in (*range(0, len(number) - 8, 8), len(number) - 8):
        (word,) = _EIGHT.unpack_from(number, at)
        calls.compare(answer.at(_before_the_id() + at), word)
    calls.add("close_range", _NAMED, _UINT_MAX, 0)  # it would keep the mount busy
    unmount = calls.add("umount2", text, syscalls.UMOUNT_NOFOLLOW)
    calls.skip(named)
    calls.add("close_range", _NAMED, _UINT_MAX, 0)
    return unmount


@functools.cache
def _before_the_id() -> int:
    """Return the offset of the mount ID in /proc/PID/fdinfo/N of such a descriptor."""
    with (
        opened("/", _PATH_ONLY) as fd,
        open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as file,
    ):
        return file.read(_FDINFO).index(b"mnt_id:")


def _outcome(steps: _Steps, results: Sequence[int]) -> int | None:
    tried = next((results[index] for index in steps.unmounts if results[index] != UNSET), UNSET)
    if tried != UNSET:
        failed = -tried
    else:  # the last that failed: the first may be the file system's refusal
        failed = next(
            (
                -result
                for result in reversed(results[steps.begin : steps.clock])
                if UNSET < result < 0
            ),
            0,
        )
        return None if failed in (0, *_NOT_THERE) else failed
    return None if failed in _NOT_THERE else failed
