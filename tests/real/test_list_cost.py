"""What list costs: one pass over /proc however many instances, and none where cgroups tell."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import driving
import pytest

import chrootfw

COUNT = 100


@pytest.fixture
def hundred(runtime: chrootfw.Runtime, tmp_path: Path) -> Iterator[list[str]]:
    """A hundred instances, mounted only."""
    names = [f"i{number}" for number in range(COUNT)]
    for name in names:
        disk = tmp_path / f"{name}.root"
        disk.mkdir()
        runtime.start(chrootfw.Instance(name, disk=str(disk), init_script=False))
    yield names
    for name in names:
        runtime.stop(name)


def _passes(cli: driving.Cli, tmp_path: Path, state: str, count: int) -> int:
    """How often ``list`` opens the directory /proc itself."""
    trace = tmp_path / "trace"
    command = [
        "strace",
        "-f",
        "-o",
        str(trace),
        "-e",
        "trace=openat",
        sys.executable,
        "-m",
        "chrootfw",
        "list",
    ]
    done = subprocess.run(
        command, env=cli.environment(), check=True, capture_output=True, text=True
    )
    assert done.stdout.count(f" {state} ") == count
    return len(re.findall(r'"/proc", [A-Z_|]*O_DIRECTORY', trace.read_text()))


def test_a_hundred_mounted_instances_cost_one_pass(
    hundred: list[str], cli: driving.Cli, tmp_path: Path
) -> None:
    assert _passes(cli, tmp_path, "mounted", COUNT) == 1


def test_running_instances_with_a_cgroup_cost_none(
    web1: driving.Chroot, cli: driving.Cli, tmp_path: Path, tracking: str
) -> None:
    web1.start()
    assert _passes(cli, tmp_path, "running", 1) == (0 if tracking == "cgroup" else 1)
