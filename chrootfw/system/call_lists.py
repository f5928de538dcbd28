"""System calls as data: a list that a child carries out without an interpreter (``runner``), or as a fork of this one."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

from chrootfw.errors import NotSupported
from chrootfw.system import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

_COLUMNS = ("x86_64", "asm-generic", "ppc64", "s390x")
if syscalls.ARCHITECTURE not in _COLUMNS:
    raise NotSupported(
        f"chrootfw does not know the numbers of the system calls of this Python ({os.uname().machine}, {struct.calcsize('P') * 8} bits)",
        hint="it knows them for 64-bit programs on x86_64, aarch64, riscv64, loongarch64, ppc64 and s390x",
    )
#: What differs between architectures; from 424 up they have the same numbers.
_BY_ARCHITECTURE = {
    "read": (0, 63, 3, 3),
    "write": (1, 64, 4, 4),
    "close": (3, 57, 6, 6),
    "rt_sigaction": (13, 134, 173, 174),
    "rt_sigprocmask": (14, 135, 174, 175),
    "ioctl": (16, 29, 54, 54),
    "nanosleep": (35, 101, 162, 162),
    "execve": (59, 221, 11, 11),
    "chdir": (80, 49, 12, 12),
    "fchdir": (81, 50, 133, 133),
    "umask": (95, 166, 60, 60),
    "setsid": (112, 157, 66, 66),
    "setgroups": (116, 159, 81, 206),
    "setresuid": (117, 147, 164, 208),
    "setresgid": (119, 149, 169, 210),
    "capset": (126, 91, 184, 185),
    "pivot_root": (155, 41, 203, 217),
    "prctl": (157, 167, 171, 172),
    "chroot": (161, 51, 61, 61),
    "mount": (165, 40, 21, 21),
    "umount2": (166, 39, 52, 52),
    "sethostname": (170, 161, 74, 74),
    "openat": (257, 56, 286, 288),
    "unshare": (272, 97, 282, 303),
    "dup3": (292, 24, 316, 326),
    "setns": (308, 268, 350, 339),
    "seccomp": (317, 277, 358, 348),
    "statx": (332, 291, 383, 379),
}
NUMBERS = {
    **{name: numbers[_COLUMNS.index(syscalls.ARCHITECTURE)] for name, numbers in _BY_ARCHITECTURE.items()},
    "fsconfig": 431,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}

_END, _COMPARE = -1, -2
#: The result of a step that was not carried out, or has not returned.
UNSET = -1 << 63
_ESTALE = 116
#: Eight bytes each: number, six arguments, errnos to ignore (a bit each, up to 62), where to go on after another failure, result.
_STEP = 80
_RESULT = 72
_EIGHT = struct.Struct("=q")
_NONE = tuple((0,) * (6 - given) for given in range(7))


def by_libc(library: ctypes.PyDLL) -> Any:
    """``syscall(2)`` with whole registers as arguments, under the interpreter's lock."""
    syscall = library["syscall"]
    syscall.restype, syscall.argtypes = ctypes.c_long, [ctypes.c_long] * 7
    return syscall


class Room:
    """Bytes for a call's answer, in memory that a fork shares with its parent: ``address``, ``data``."""

    __slots__ = ("address", "data")

    def __init__(self, size: int) -> None:
        self.data = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.data))


class CallList:
    """System calls in order. The first that fails is the last, unless its errno is one to be ignored, or ``skip`` says otherwise.

    ``closes``: the index of the step after which the child has no copies of its parent's descriptors; -1 for none but an execve.
    """

    __slots__ = ("_kept", "_table", "_words", "closes", "names")

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.closes = -1
        self._words: list[int] = []
        self._kept: list[Any] = []
        self._table: mmap.mmap | None = None

    def add(self, name: str, *arguments: Any, ignore: Iterable[int] = (), what: bytes = b"") -> int:
        """One call more: the index of its step. ``arguments``: numbers, ``bytes``, what ctypes has made, or ``None``.

        ``ignore``: errnos (below 63) that are no failure; ``what``: what the call is called in an error.
        """
        words = [argument if type(argument) is int else self._address(argument) for argument in arguments]
        mask = 0
        for number in ignore:
            mask |= 1 << number
        self._words += (NUMBERS[name], *words, *_NONE[len(words)], mask, 0, UNSET)
        self.names.append(what or name.encode())
        return len(self.names) - 1

    def repeat(self, count: int, *steps: tuple[str, Sequence[tuple[int, int]]]) -> range:
        """The same steps so many times: where those of each time begin. Whichever of them fails, the next time comes.

        Each step is a name, and for each argument a number and by how much it grows from one time to the next.
        """
        begin, each = len(self.names), len(steps)
        words: list[int] = []
        for name, arguments in steps:
            words += (NUMBERS[name], *(first for first, _ in arguments), *_NONE[len(arguments)], 0, 0, UNSET)
        words *= count
        for number, (_, arguments) in enumerate(steps):
            words[number * 10 + 8 :: each * 10] = range(begin + each, begin + each * (count + 1), each)
            for place, (first, more) in enumerate(arguments, number * 10 + 1):
                if more:
                    words[place :: each * 10] = range(first, first + more * count, more)
        self.extend(words, [name.encode() for name, _ in steps] * count)
        return range(begin, begin + each * count, each)

    def compare(self, address: int, number: int) -> int:
        """A step that fails (ESTALE) unless the eight bytes there are ``number``."""
        self._words += (_COMPARE, address, number, *_NONE[2], 0, 0, UNSET)
        self.names.append(b"compare")
        return len(self.names) - 1

    def extend(self, words: Sequence[int], names: Sequence[bytes]) -> None:
        """Steps that another list has (``words``)."""
        self._words += words
        self.names += names

    @property
    def words(self) -> Sequence[int]:
        """The steps, for ``extend``; whoever takes them keeps this list."""
        return tuple(self._words)

    def skip(self, first: int, before: int | None = None) -> None:
        """If one of the steps from ``first`` on fails (of those ``before`` another), go on with the step that is added next."""
        for index in range(first, len(self.names) if before is None else before):
            self._words[index * 10 + 8] = len(self.names)

    def room(self, size: int) -> Room:
        """Room for an answer."""
        room = Room(size)
        self._kept.append(room)
        return room

    def _address(self, argument: Any) -> int:
        if argument is None:
            return 0
        if isinstance(argument, bytes):
            argument = ctypes.create_string_buffer(argument)
        self._kept.append(argument)
        return ctypes.addressof(argument)

    def prepare(self) -> int:
        """Write the steps into memory that a fork shares: the address of the first. What they returned when they were carried out before is forgotten."""
        self._table = mmap.mmap(-1, (len(self.names) + 1) * _STEP)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._table))
        words = [*self._words, _END]
        for index in range(8, len(words), 10):
            if words[index]:
                words[index] = address + words[index] * _STEP
        struct.pack_into(f"={len(words)}q", self._table, 0, *words)
        return address

    def result(self, index: int) -> int:
        """What a step returned, or a negative errno; ``UNSET`` if it has not returned."""
        assert self._table is not None
        found: int = _EIGHT.unpack_from(self._table, index * _STEP + _RESULT)[0]
        return found

    def results(self) -> list[int]:
        """``result`` of each step."""
        if self._table is None:
            return [UNSET] * len(self.names)
        words = memoryview(self._table).cast("q")
        found = words[9 : len(self.names) * 10 : 10].tolist()
        words.release()
        return found

    def stopped_at(self) -> tuple[bytes, int] | None:
        """The call at which it stopped and its errno, 0 for one that has not returned; ``None`` if it came to its end."""
        results = self.results()
        index = 0
        while index < len(results):
            result = results[index]
            if result == UNSET:
                return self.names[index], 0
            index = index + 1 if result >= 0 else self._after(index, -result)
            if index < 0:
                return self.names[~index], -result
        return None

    def _after(self, index: int, code: int) -> int:
        """The step that follows on an errno; ``~index`` when there is none."""
        ignored, otherwise = self._words[index * 10 + 7 : index * 10 + 9]
        if code < 63 and ignored >> code & 1:
            return index + 1
        return otherwise or ~index

    def carry_out(self, syscall: Any, errno_of: Any) -> None:
        """What ``runner`` does, by the interpreter: in a fork. ``syscall``: as ``by_libc`` makes it; ``errno_of``: ``ctypes.get_errno``."""
        index = 0
        while index < len(self.names):
            number, *arguments = self._words[index * 10 : index * 10 + 7]
            if number == _COMPARE:
                (there,) = _EIGHT.unpack(ctypes.string_at(arguments[0], 8))
                result = 0 if there == arguments[1] else -_ESTALE
            else:
                result = syscall(number, *arguments)
                result = -errno_of() if result == -1 else result
            assert self._table is not None
            _EIGHT.pack_into(self._table, index * _STEP + _RESULT, result)
            index = index + 1 if result >= 0 else self._after(index, -result)
            if index < 0:
                return
