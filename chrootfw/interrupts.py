"""A request to end, noticed at the next step and by every wait.

The CLI turns SIGINT, SIGTERM and SIGHUP into one; an embedding program may make its own and call ``request`` from
any thread.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from chrootfw.errors import Interrupted


class Interrupts:
    """``request`` asks to end; ``check`` raises ``Interrupted``; ``fd`` becomes readable for poll(2)."""

    fd = -1  # until there is one

    def __init__(self) -> None:
        self.signum = 0
        self._shields = threading.local()
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self) -> None:
        if self.fd >= 0:
            try:
                os.close(self.fd)
            except OSError:
                pass  # Linux has closed it all the same (close(2)), and nobody could be told

    def clear(self) -> None:
        """Forget a request, for a program that goes on with its runtime."""
        self.signum = 0
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass

    def request(self, signum: int = signal.SIGINT) -> None:
        """Ask to end; a second request changes nothing."""
        if not self.signum:
            self.signum = signum
            os.eventfd_write(self.fd, 1)

    def check(self) -> None:
        """Raise ``Interrupted`` if an end was asked for and nothing shields from it."""
        if self.signum and self.wakes:
            raise Interrupted(f"interrupted by {signal.Signals(self.signum).name}", signum=self.signum)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """While this thread undoes something, requests wait."""
        self._shields.depth = getattr(self._shields, "depth", 0) + 1
        try:
            yield
        finally:
            self._shields.depth -= 1

    @property
    def wakes(self) -> bool:
        """Whether a wait of this thread should watch ``fd``."""
        return not getattr(self._shields, "depth", 0)


@contextmanager
def from_signals(interrupts: Interrupts) -> Iterator[None]:
    """INT, TERM and HUP ask to end, instead of ending the process in the middle of a step; main thread only.

    One that is ignored stays so: nohup(1), or a job in the background.
    """
    before = {}
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:
            before[signum] = signal.signal(signum, lambda number, _frame: interrupts.request(number))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
