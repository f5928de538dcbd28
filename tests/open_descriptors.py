"""For every suite: what a test opens is closed at its end.

Only what is open *more* than before counts, by its number and by what it leads to: an object that an
earlier test has left to the collector may close its own in the meantime. A child that was killed keeps
its pidfd until the kernel has let it go.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from chrootfw.linux import child


def open_descriptors() -> dict[int, str]:
    """Return what each open descriptor of the process leads to."""
    gc.collect()  # what earlier tests have left to it
    leads_to = {}
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that listed them
            leads_to[int(number)] = os.readlink(f"/proc/self/fd/{number}")
    return leads_to


@contextmanager
def none_left_open() -> Iterator[None]:
    """Check that what is opened inside is closed at the end."""
    before = open_descriptors().items()
    yield
    deadline = time.monotonic() + 10
    while (left := open_descriptors().items() - before) and time.monotonic() < deadline:
        child.reap()
        time.sleep(0.01)
    assert left == set()
