"""System calls as data: a batch of operations that a child carries out.

A batch is written to one piece of memory that the child shares: a header, the bytes that the calls
read and write, and the operations. All places in it are offsets, so that it means the same wherever
it is mapped. `_native.c` and `batch_program` carry it out.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

from chrootfw.linux.syscall_numbers import NUMBERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

#: struct batch of `_native.c`: operations and their number, pointers and their number, stack and
#: its size.
_HEADER = struct.Struct("=6Q")
#: struct operation: arguments, ignored errnos, result, number, operation after a failure, kinds.
_OPERATION = struct.Struct("=6qQqii8s")
_IGNORED = struct.Struct("=48xQ24x")
_RESULT = struct.Struct("=56xq16x")
_ON_FAILURE = struct.Struct("=i")
_ON_FAILURE_OFFSET = 68
#: struct pointer: place and target.
_POINTER = struct.Struct("=2Q")
#: Kinds of arguments.
_VALUE, _ADDRESS, _RESULT_OF = b"\0", b"\1", b"\2"
_COMPARE, _END = -1, -1
_NONE = tuple((0,) * (6 - given) for given in range(7))
#: Bytes for the stack of a child that shares its parent's memory.
_STACK = 16384
#: Errnos from here on cannot be ignored.
_ERRNOS = 63

#: Result of an operation that was not carried out, or has not returned.
UNSET = -1 << 63


class Place:
    """The address of a byte in a batch's memory.

    Attributes:
        offset: Its offset from the beginning of the memory.
    """

    __slots__ = ("offset",)

    def __init__(self, offset: int) -> None:
        self.offset = offset


class Buffer(Place):
    """Bytes in a batch's memory that calls read and write; each use of the batch resets them."""

    __slots__ = ("_batch", "size")

    def __init__(self, batch: CallBatch, offset: int, size: int) -> None:
        super().__init__(offset)
        self._batch = batch
        self.size = size

    def at(self, offset: int) -> Place:
        """Return the address of one of the bytes."""
        return Place(self.offset + offset)

    def read(self, size: int | None = None, at: int = 0) -> bytes:
        """Return bytes as they are now.

        Args:
            size: How many; `None` for all that follow.
            at: The first of them.
        """
        end = self.size if size is None else at + size
        return self._batch.memory()[self.offset + at : self.offset + end]

    @property
    def data(self) -> bytes:
        """All bytes as they are now."""
        return self.read()

    def write(self, data: bytes, at: int = 0) -> None:
        """Write bytes for the calls to read, before the batch is used.

        Args:
            data: The bytes.
            at: Where the first of them goes.
        """
        self._batch.write(self.at(at), data)

    def point(self, at: int, target: Place) -> None:
        """Let eight bytes be the address of other bytes of the same batch.

        Args:
            at: The first of the eight bytes.
            target: What they point to.
        """
        self._batch.point(self.at(at), target)


class Result:
    """As an argument: the result of an earlier operation.

    Attributes:
        operation: The index of that operation.
    """

    __slots__ = ("operation",)

    def __init__(self, operation: int) -> None:
        self.operation = operation


class CallBatch:
    """Operations in order, most of them system calls; the first failure ends the batch.

    An operation may ignore some errnos (`add`), or continue elsewhere after a failure (`skip`).

    Attributes:
        names: The name of each operation, for errors.
        uses: The descriptors of this process that the calls use.
        closes: Index of the operation after which the child has no copies of its parent's
            descriptors; -1 if only an execve closes them.
    """

    __slots__ = (
        "_contents",
        "_memory",
        "_operations",
        "_pointers",
        "_size",
        "_texts",
        "closes",
        "names",
        "uses",
    )

    def __init__(self, uses: Iterable[int] = ()) -> None:
        self.names: list[bytes] = []
        self.uses = frozenset(uses)
        self.closes = -1
        self._operations = bytearray()
        self._size = _HEADER.size + ZEROS.size  # without the operations
        self._contents: list[tuple[int, bytes]] = []
        self._texts: dict[bytes, int] = {}
        self._pointers: list[tuple[int, int]] = []
        self._memory: mmap.mmap | None = None

    def add(self, name: str, *arguments: Any, ignore: Iterable[int] = (), what: bytes = b"") -> int:
        """Append a call.

        Args:
            name: The system call's name.
            arguments: Numbers, bytes of the batch (`Buffer`, `Place`), the `Result` of an earlier
                operation, or `None`; `bytes` and ctypes objects are copied, and only read. At most
                six.
            ignore: Errnos below 63 that are not a failure.
            what: The name of the operation in errors; empty for the system call's name.

        Returns:
            The index of the operation.
        """
        ignored = 0
        for number in ignore:
            ignored |= 1 << number
        return self._append(NUMBERS[name], arguments, ignored, what or name.encode())

    def compare(self, place: Place, number: int, mask: int = -1) -> int:
        """Append an operation that fails (ESTALE) unless eight bytes in memory equal a number.

        Args:
            place: The address of the bytes.
            number: The expected number, of which the bytes are what the machine makes.
            mask: The bits of the bytes that count; the others count as 0.

        Returns:
            The index of the operation.
        """
        return self._append(_COMPARE, (place, number, mask), 0, b"compare")

    def _append(self, number: int, arguments: Sequence[Any], ignored: int, name: bytes) -> int:
        values: list[int] = []
        kinds = b""
        for argument in arguments:
            if type(argument) is int:
                values.append(argument)
            else:
                value, kind = self._encode(argument)
                kinds = kinds.ljust(len(values), _VALUE) + kind
                values.append(value)
        self._operations += _OPERATION.pack(
            *values, *_NONE[len(values)], ignored, UNSET, number, _END, kinds
        )
        self.names.append(name)
        return len(self.names) - 1

    def _encode(self, argument: Any) -> tuple[int, bytes]:
        """Return the value and kind of an argument that is not a number."""
        if type(argument) is bytes:
            offset = self._texts.get(argument)
            if offset is None:
                offset = self._texts[argument] = self._copy(argument + b"\0")
            return offset, _ADDRESS
        if isinstance(argument, Place):
            return argument.offset, _ADDRESS
        if argument is None or isinstance(argument, int):
            return int(argument or 0), _VALUE
        if isinstance(argument, Result):
            return argument.operation, _RESULT_OF
        return self._copy(bytes(argument)), _ADDRESS

    def _copy(self, content: bytes) -> int:
        return self.add_buffer(len(content), content).offset

    def extend(self, other: CallBatch) -> None:
        """Append the operations of a batch that has no bytes of its own but `ZEROS`."""
        assert other._size == _HEADER.size + ZEROS.size
        self._operations += other._operations
        self.names += other.names

    def skip(self, first: int, before: int | None = None) -> None:
        """Continue with the next added operation if an earlier one fails.

        Args:
            first: Index of the first operation that may fail.
            before: Index after the last such operation; `None` for all up to now.
        """
        following = len(self.names)
        for index in range(first, following if before is None else before):
            self._continue_at(index, following)

    def repeat(self, last: int, first: int) -> None:
        """Continue with an earlier operation if a later one fails: the batch may never end.

        Args:
            last: Index of the operation that may fail.
            first: Index of the operation that follows then.
        """
        self._continue_at(last, first)

    def _continue_at(self, index: int, following: int) -> None:
        place = index * _OPERATION.size + _ON_FAILURE_OFFSET
        _ON_FAILURE.pack_into(self._operations, place, following)

    def add_buffer(self, size: int, content: bytes = b"") -> Buffer:
        """Reserve bytes in the batch's memory, which are zero at first.

        Args:
            size: How many.
            content: What the first of them are instead.
        """
        buffer = Buffer(self, self._size, size)
        self._size += size + -size % 16
        if content:
            self._contents.append((buffer.offset, content))
        return buffer

    def add_strings(self, words: Iterable[str]) -> Buffer:
        """Write words as execve(2) takes arguments and environment: an array of pointers."""
        texts = [os.fsencode(word) + b"\0" for word in words]
        pointers = self.add_buffer(8 * (len(texts) + 1))
        for number, text in enumerate(texts):
            pointers.point(8 * number, self.add_buffer(len(text), text))
        return pointers

    def write(self, place: Place, data: bytes) -> None:
        """Write bytes, before the batch is used."""
        self._contents.append((place.offset, data))

    def point(self, place: Place, target: Place) -> None:
        """Let eight bytes be the address of other bytes."""
        self._pointers.append((place.offset, target.offset))

    def prepare(self, fd: int = -1) -> mmap.mmap:
        """Write the batch into memory that a child shares, and reset all results.

        Args:
            fd: A file for the memory, which another program can map; -1 for none.

        Returns:
            The memory.
        """
        pointers = self._size + len(self._operations)
        stack = pointers + len(self._pointers) * _POINTER.size
        stack += -stack % mmap.PAGESIZE
        if fd >= 0:
            os.ftruncate(fd, stack + _STACK)
        memory = mmap.mmap(fd, stack + _STACK)
        _HEADER.pack_into(
            memory, 0,
            self._size, len(self.names), pointers, len(self._pointers), stack, _STACK,
        )  # fmt: skip
        for offset, content in self._contents:
            memory[offset : offset + len(content)] = content
        memory[self._size : pointers] = self._operations
        memory[pointers : pointers + len(self._pointers) * _POINTER.size] = b"".join(
            [_POINTER.pack(*each) for each in self._pointers]
        )
        self._memory = memory
        return memory

    def memory(self) -> mmap.mmap:
        """Return the memory of the last use."""
        assert self._memory is not None
        return self._memory

    def result(self, index: int) -> int:
        """Return an operation's result.

        Returns:
            A negative errno if it failed, `UNSET` if it has not returned.
        """
        found: int = _RESULT.unpack_from(self.memory(), self._size + index * _OPERATION.size)[0]
        return found

    def results(self) -> list[int]:
        """Return the result of each operation, as `result` does."""
        if self._memory is None:
            return [UNSET] * len(self.names)
        operations = self._memory[self._size : self._size + len(self._operations)]
        return [result for (result,) in _RESULT.iter_unpack(operations)]

    def stopped_at(self) -> tuple[bytes, int] | None:
        """Find the operation that ended the batch early.

        Returns:
            Its name and errno, which is 0 for a call that has not returned; `None` if the batch
            came to its end.
        """
        results = self.results()
        index = 0
        while index < len(results):
            result = results[index]
            if result == UNSET:
                return self.names[index], 0
            following = index + 1 if result >= 0 else self._after(index, -result)
            if following == _END:
                return self.names[index], -result
            index = following
        return None

    def _after(self, index: int, code: int) -> int:
        """Return the operation that follows a failure, or `_END`."""
        begin = index * _OPERATION.size
        (ignored,) = _IGNORED.unpack_from(self._operations, begin)
        if code < _ERRNOS and ignored >> code & 1:
            return index + 1
        following: int = _ON_FAILURE.unpack_from(self._operations, begin + _ON_FAILURE_OFFSET)[0]
        return following


class _Zeros(Place):
    """Zero bytes that every batch has: an empty set of signals, the default action."""

    __slots__ = ()
    size = 64


ZEROS = _Zeros(_HEADER.size)

assert _OPERATION.size == 80 and ctypes.sizeof(ctypes.c_void_p) == 8  # noqa: PT018
