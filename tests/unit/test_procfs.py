"""What is read of a process is true, whatever name it has given itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from chrootfw.linux import procfs

#: Takes a name (prctl(2), PR_SET_NAME), says so, and waits for its input's end.
PROGRAM = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def named() -> Iterator[Callable[[str], int]]:
    """Start a process that has a name, and return its pid."""
    begun = []

    def make(name: str) -> int:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        begun.append(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        return process.pid

    yield make
    for process in begun:
        process.communicate()


@pytest.mark.parametrize("name", [") Z\n", "\nS 1", ") Z 1 1 1", "a b", "\n", ")))"], ids=repr)
def test_a_name_hides_nothing(named: Callable[[str], int], name: str) -> None:
    pid = named(name)
    assert procfs.is_alive(pid)
    assert procfs.state(pid)[0] in "RSD"
    assert procfs.parent(pid) == os.getpid()
    assert procfs.start_time(pid) > procfs.start_time(1)
    assert procfs.command(pid) == name.replace("\n", "?")
