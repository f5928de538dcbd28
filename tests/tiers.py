"""The quick tier: which tests belong to it, and what is left out where the machine cannot run them.

``pytest --quick`` runs every unit and property test, and the tests marked ``quick`` on the real
kernel. Where this process may not mount, those are left out: the run still succeeds, and a line at
its end names their number and the reason. With ``CI`` set, a test that is left out is a failure.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections import Counter
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent

_CLONE_NEWNS = 0x00020000

#: These directories need no right to mount.
_ALWAYS = {"unit", "property", "anybody"}


def why_no_mounts() -> str:
    """Return why this process cannot mount file systems as the tests need it; ``""`` if it can."""
    if os.geteuid() != 0:
        return "not root: run it as root for the tests that mount"
    if not _can_unshare():
        return "no CAP_SYS_ADMIN (a container?): run it on the host, or in a privileged container"
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        return "root of a user namespace only: run it as the host's root"
    return ""


def _can_unshare() -> bool:
    """Try unshare(CLONE_NEWNS) in a thread, whose mount namespace ends with it."""
    results: list[int] = []

    def attempt() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        results.append(0 if libc.unshare(_CLONE_NEWNS) == 0 else ctypes.get_errno() or errno.EPERM)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return results == [0]


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the quick tier, and skip those that this machine cannot run."""
    chosen, others = [], []
    for item in items:
        is_quick = item.get_closest_marker("quick") and not item.get_closest_marker("full")
        (chosen if _directory(item) in _ALWAYS or is_quick else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = chosen
    if reason := why_no_mounts():
        for item in chosen:
            if _directory(item) not in _ALWAYS:
                item.add_marker(pytest.mark.skip(reason=reason))


def report(reporter: pytest.TerminalReporter) -> None:
    """Print in one line what was left out, and why."""
    reasons = Counter(_reason(skipped) for skipped in reporter.stats.get("skipped", ()))
    if reasons:
        number = sum(reasons.values())
        reporter.write_line(f"left out: {number} tests ({'; '.join(dict.fromkeys(reasons))})")


def _reason(skipped: pytest.TestReport) -> str:
    longrepr = skipped.longrepr
    text = str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)
    return text.removeprefix("Skipped: ")


def _directory(item: pytest.Item) -> str:
    place = item.path.relative_to(_TESTS) if item.path.is_relative_to(_TESTS) else item.path
    return place.parts[0]
