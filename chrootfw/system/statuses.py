"""statx(2) of many files at once: who looks at all processes of a machine asks for tens of thousands.

What the kernel has cached, as ``syscalls.statx``: nothing here waits for a file system.
"""

from __future__ import annotations

import ctypes
import mmap
import struct

from chrootfw.system import call_lists, runner, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    #: mode, inode, device of a device file and device as ``packed``, attributes (STATX_ATTR_*), mount ID.
    Status = tuple[int, int, int, int, int, int]

_FLAGS = syscalls.AT_STATX_DONT_SYNC | syscalls.AT_NO_AUTOMOUNT
#: So many at a time.
_ONCE = 512
_STEP, _ANSWER = 10, syscalls.STATX_SIZE // 8  # in words of eight bytes
_END, _STATX = -1, call_lists.NUMBERS["statx"]


def packed(major: int, minor: int) -> int:
    """A device number as struct statx has it, in one word."""
    return major | minor << 32


class _Batch:
    """A list of ``_ONCE`` calls and the room for their paths, of less than ``length`` bytes, and their answers. Made once: only the paths change.

    Where a look was broken off (a signal handler that raises), the list is not to be used again.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        sizes = (_ONCE * _STEP + 1) * 8, _ONCE * length, _ONCE * _ANSWER * 8
        rooms = [mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for size in sizes]  # a fork has its own
        self.table, self.paths, answers = rooms
        self.first, paths, answer = (ctypes.addressof(ctypes.c_char.from_buffer(room)) for room in rooms)
        words = [_STATX, syscalls.AT_FDCWD, 0, _FLAGS, syscalls.STATX_BASIC_AND_MNT_ID, 0, 0, 0, 0, 0] * _ONCE
        for column, begin, step in (
            (2, paths, length),
            (5, answer, _ANSWER * 8),
            (8, self.first + _STEP * 8, _STEP * 8),
        ):
            words[column::_STEP] = range(begin, begin + _ONCE * step, step)
        struct.pack_into(f"={len(words) + 1}q", self.table, 0, *words, _END)
        self.words = memoryview(self.table).cast("q")
        self.answers = memoryview(answers).cast("Q")
        self.modes = memoryview(answers).cast("H")

    def look(self, paths: Sequence[bytes]) -> int:
        """Ask for at most ``_ONCE`` paths; how many they are."""
        count = len(paths)
        length = self.length
        self.paths[: count * length] = b"".join([path.ljust(length, b"\0") for path in paths])
        self.words[count * _STEP] = _END
        assert runner.run is not None
        runner.run(self.first)
        if count < _ONCE:
            self.words[count * _STEP] = _STATX
        return count

    def of(self, count: int, word: int) -> list[int]:
        """One word of each answer."""
        return self.answers[word : count * _ANSWER : _ANSWER].tolist()

    def failures(self, count: int) -> list[int]:
        """What the calls returned."""
        return self.words[9 : count * _STEP : _STEP].tolist()


#: Those that no thread uses at the moment, by the length of their paths.
_batches: dict[int, list[_Batch]] = {}


def _looks(paths: Sequence[bytes]) -> Iterator[tuple[_Batch, int]]:
    longest = max(map(len, paths), default=0)
    length = max(64, 1 << longest.bit_length())
    idle = _batches.setdefault(length, [])
    try:
        batch = idle.pop()
    except IndexError:
        batch = _Batch(length)
    for at in range(0, len(paths), _ONCE):
        yield batch, batch.look(paths[at : at + _ONCE])
    idle.append(batch)


def statuses(paths: Sequence[bytes]) -> list[Status | None]:
    """``Status`` of each, ``None`` where it cannot be looked at."""
    found: list[Status | None] = []
    if runner.run is None:
        for path in paths:
            status = syscalls.statx_fields(path)
            if status is None:
                found.append(None)
            else:
                attributes, _, mode, inode, *numbers, mount_id = status
                found.append((mode, inode, packed(*numbers[:2]), packed(*numbers[2:]), attributes, mount_id))
        return found
    for batch, count in _looks(paths):
        columns = [batch.of(count, word) for word in (4, 16, 17, 1, 18)]
        modes = batch.modes[14 : count * _ANSWER * 4 : _ANSWER * 4].tolist()
        rows = zip(modes, *columns, strict=True)
        found += [None if failed else row for row, failed in zip(rows, batch.failures(count), strict=True)]
    return found
