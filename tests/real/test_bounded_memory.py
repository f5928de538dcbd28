"""What the mounts of others, and an instance's own, cost a command in memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import driving
import kernelview
import pytest

from chrootfw.linux import syscalls

#: What a command may need in addition, in KiB.
GROWTH_MAX = 8 << 10

#: What a mount of the instance's own may need, in KiB; its path alone has most of one.
OWN_MAX = 5

#: Mounts, and the bytes of each name on the way to them: the table has some 9 MiB more.
COUNT, NAME = 10_000, 240

#: Runs a command, and writes how much memory that or one of its children had at most (KiB). A process
#: begins with the peak of the one that made it: the tests' own would hide everything.
_WATCH = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""


@pytest.fixture
def peak(cli: driving.Cli, tmp_path: Path) -> Callable[..., int]:
    """``peak(verb, …)`` runs the command and gives its largest resident size in KiB."""

    def measure(*argv: str) -> int:
        file = tmp_path / "peak"
        cli(*argv, prefix=[sys.executable, "-I", "-S", "-c", _WATCH, str(file)])
        return int(file.read_text())

    return measure


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """A factory of many mounts: ``crowd(directory)`` makes them in there."""
    pattern = tmp_path / "pattern"
    made = [pattern]

    def mount(directory: Path) -> None:
        if not kernelview.mount_on(pattern):
            _make_pattern(pattern)
        made.append(directory)
        _bind(directory, directory)
        for number in range(COUNT // 100):
            copy = directory / f"{number:0{NAME}}"
            copy.mkdir()
            _bind(pattern, copy)

    yield mount
    for place in reversed(made):
        if kernelview.mount_on(place):
            syscalls.umount2(str(place), 2)  # MNT_DETACH: with all that is below


def _make_pattern(pattern: Path) -> None:
    """A file system with a hundred mounts in it."""
    pattern.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "many", str(pattern)], check=True)
    source = pattern / ("s" * NAME)
    source.mkdir()
    for number in range(99):
        place = pattern / ("d" * NAME) / f"{number:0{NAME}}"
        place.mkdir(parents=True)
        _bind(source, place)


def _bind(source: Path, target: Path) -> None:
    flags = ctypes.c_ulong(0x1000 | 0x4000)  # MS_BIND | MS_REC
    if syscalls.CALLS.mount(os.fsencode(source), os.fsencode(target), None, flags, None):
        raise OSError(ctypes.get_errno(), "mount", str(target))


def test_mounts_of_an_instance_take_little_memory_for_each(
    web1: driving.Chroot, peak: Callable[..., int], crowd: Callable[[Path], None]
) -> None:
    verbs = [("list",), ("ps", "web1"), ("stop", "web1")]
    web1.start()
    before = [peak(*verb) for verb in verbs]
    web1.start()
    place = web1.root / "many"
    place.mkdir()
    crowd(place)
    grown = {
        verb[0]: (peak(*verb) - than) / COUNT for verb, than in zip(verbs, before, strict=True)
    }
    assert max(grown.values()) <= OWN_MAX, grown
    assert web1.is_gone()


def test_mounts_outside_an_instance_cost_no_memory(
    web1: driving.Chroot, peak: Callable[..., int], crowd: Callable[[Path], None], tmp_path: Path
) -> None:
    verbs = [("list",), ("info", "web1"), ("ps", "web1"), ("stop", "web1")]
    place = tmp_path / "outside"
    place.mkdir()
    web1.start()
    before = [peak(*verb) for verb in verbs]
    web1.start()
    crowd(place)
    grown = {verb[0]: peak(*verb) - than for verb, than in zip(verbs, before, strict=True)}
    assert max(grown.values()) <= GROWTH_MAX, grown
