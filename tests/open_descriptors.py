"""For every suite: what a test opens is closed at its end.

Only what is open *more* than before counts, by its number and by what it leads to: an object that an
earlier test has left to the collector may close its own in the meantime.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


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
    assert open_descriptors().items() - before == set()
