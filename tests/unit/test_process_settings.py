"""Scheduling of an instance's processes, which the real kernel shows in tests/real/test_inherited.py."""

from __future__ import annotations

import errno
import os

import pytest

from chrootfw.linux import child
from chrootfw.linux.call_batch import CallBatch, Result
from chrootfw.linux.process_settings import ProcessSettings

#: Of /proc/PID/stat, counted from the state: see proc_pid_stat(5).
_POLICY = 41 - 3


def test_it_is_set_where_the_c_library_does_not_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As musl's, which answers ENOSYS."""

    def fails(_pid: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "sched_getscheduler", fails)
    calls = CallBatch()
    ProcessSettings({}).add_priorities(calls)
    stat = calls.add_buffer(1024)
    opened = calls.add("openat", -100, b"/proc/self/stat", os.O_RDONLY)
    calls.add("read", Result(opened), stat, stat.size)
    made = child.begin(calls)
    assert made.wait_for_end(60)
    made.close()
    assert calls.stopped_at() is None
    assert int(bytes(stat.data).rpartition(b") ")[2].split()[_POLICY]) == os.SCHED_OTHER
