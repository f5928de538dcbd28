"""File descriptors that an object owns and closes once.

A signal handler may raise (`KeyboardInterrupt`) after any call in Python code, also between
`os.open` and the assignment of its result. That descriptor would stay open for ever. So a
descriptor enters its owner's list, and leaves it, within one call of C code, which no handler
cancellation.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from itertools import chain

#: Errnos about this process and not about the file: descriptors or memory are used up.
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable
    from typing import Any, Self


def close_last(fds: list[int] | array[int]) -> None:
    """Remove the last descriptor from a list and close it; do nothing if the list is empty."""
    try:
        for _ in map(os.close, map(fds.pop, (-1,))):
            pass
    except IndexError:
        pass  # another thread was faster
    except InterruptedError:
        pass  # it is closed all the same (close(2))


class Descriptors(list[int]):
    """A list of open descriptors.

    The end of a `with` block, or of the object, closes those that are left.
    """

    __slots__ = ()  # a list, because a list is made in one call too

    def take(self, call: Callable[..., int], *arguments: Any) -> int:
        """Call a function that opens a descriptor, such as `os.open`, and own its result.

        Args:
            call: The function.
            arguments: Its arguments.

        Returns:
            The descriptor.
        """
        self.extend(map(call, *[(argument,) for argument in arguments]))
        return self[-1]

    def open(self, path: str | bytes, flags: int) -> int:
        """Open a file as `os.open` does, close-on-exec."""
        return self.take(os.open, path, flags | os.O_CLOEXEC)

    def pipe(self) -> tuple[int, int]:
        """Make a pipe (pipe2(2)), close-on-exec.

        Returns:
            The end to read from, and the end to write to.
        """
        self.extend(chain.from_iterable(map(os.pipe2, (os.O_CLOEXEC,))))
        return self[-2], self[-1]

    def move(self, fd: int, owner: Descriptors) -> int:
        """Give a descriptor to another owner."""
        owner.extend(map(self.pop, (self.index(fd),)))
        return fd

    def close(self, fd: int) -> None:
        """Close a descriptor; do nothing if it is not in the list."""
        if fd in self:
            place = self.index(fd)
            self[place], self[-1] = self[-1], self[place]
            close_last(self)

    def close_all(self) -> None:
        """Close all descriptors, even if closing one of them fails."""
        try:
            while self:
                close_last(self)
        finally:
            while self:
                close_last(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close_all()

    def __del__(self) -> None:
        self.close_all()


class opened(Descriptors):  # noqa: N801  # reads like a function
    """A context manager that opens a file as `os.open` does, close-on-exec, and closes it."""

    __slots__ = ()

    def __init__(
        self, path: str | bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> None:
        super().__init__()
        self.take(partial(os.open, dir_fd=dir_fd), path, flags | os.O_CLOEXEC, mode)

    def __enter__(self) -> int:  # type: ignore[override]  # its only descriptor
        return self[-1]
