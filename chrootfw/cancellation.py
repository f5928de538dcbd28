"""A request to end, noticed at the next step and by every wait.

The CLI turns SIGINT, SIGTERM and SIGHUP into one; an embedding program may make its own and call
``request`` from any thread.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from chrootfw.errors import InputError, Interrupted
from chrootfw.linux.descriptors import Descriptors


def _name(signum: int) -> str:
    """Return the name of a signal, or its number for those that have none."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


class Cancellation:
    """Hold a request to end.

    ``request`` makes it, ``check`` raises ``Interrupted``.

    Attributes:
        fd: A descriptor that becomes readable with a request, for poll(2).
        signum: The number of the signal that was requested, 0 for none.
    """

    fd = -1  # until there is one

    def __init__(self) -> None:
        self.signum = 0
        self._shields = threading.local()
        self._opened = Descriptors()
        self.fd = self._opened.take(os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        _all.add(self)

    def __del__(self) -> None:
        if self.fd >= 0:
            try:
                self._opened.close_all()
            except OSError:
                pass  # Linux has closed it all the same (close(2)), and nobody could be told

    def renew(self) -> None:
        """Give a fork its own event: the one that it has inherited is its parent's too.

        Raises:
            OSError: There is no descriptor left.
        """
        self._opened.close_all()  # first, so that there is a number for the new one
        self.fd = -1
        self.fd = self._opened.take(
            os.eventfd, 1 if self.signum else 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK
        )

    def clear(self) -> None:
        """Forget a request, for a program that goes on with its runtime."""
        self.signum = 0
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass

    def request(self, signum: int = signal.SIGINT) -> None:
        """Request an end; a second request changes nothing.

        Args:
            signum: The number of the signal that stands for it.

        Raises:
            InputError: It is not the number of a signal.
        """
        if (
            isinstance(signum, bool)
            or not isinstance(signum, int)
            or signum not in range(1, signal.NSIG)
        ):
            raise InputError(f"{signum!r} is not the number of a signal")
        if not self.signum:
            self.signum = signum
            os.eventfd_write(self.fd, 1)

    def check(self) -> None:
        """Raise if an end was requested and nothing shields from it.

        Raises:
            Interrupted: An end was requested.
        """
        if self.signum and self.wakes:
            raise Interrupted(f"interrupted by {_name(self.signum)}", signum=self.signum)

    def answer(self) -> None:
        """Check, after ``fd`` became readable; take back a wake-up that no request goes with.

        Raises:
            Interrupted: An end was requested.
        """
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass  # by another thread
        if self.signum:
            os.eventfd_write(self.fd, 1)  # the other threads are to be woken too
        self.check()

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Let requests wait while this thread undoes something."""
        self._shields.depth = getattr(self._shields, "depth", 0) + 1
        try:
            yield
        finally:
            self._shields.depth -= 1

    @property
    def wakes(self) -> bool:
        """Return whether a wait of this thread should watch ``fd``."""
        return not getattr(self._shields, "depth", 0)


#: Those that there are, for a fork of the program.
_all: WeakSet[Cancellation] = WeakSet()


def _renew_all() -> None:
    for cancellation in list(_all):
        cancellation.renew()


os.register_at_fork(after_in_child=_renew_all)


@contextmanager
def from_signals(cancellation: Cancellation) -> Iterator[None]:
    """Turn INT, TERM and HUP into requests to end.

    For the main thread only. A signal that is ignored stays ignored: nohup(1), or a job in the
    background. So does a handler of C code, which Python could not restore.

    Args:
        cancellation: What takes the requests.
    """
    before = {}
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) not in (signal.SIG_IGN, None):
            before[signum] = signal.signal(
                signum, lambda number, _frame: cancellation.request(number)
            )
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
