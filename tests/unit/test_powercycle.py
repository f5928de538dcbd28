"""Power-cycling, with the files and the command replaced: never for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import chrootfw
from chrootfw.lifecycle import powercycle


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    trigger, switch = tmp_path / "sysrq-trigger", tmp_path / "sysrq"
    trigger.touch()
    switch.touch()
    return trigger, switch


def test_it_asks_the_kernel(files: tuple[Path, Path]) -> None:
    trigger, switch = files
    said = powercycle.reset_machine(str(trigger), str(switch), ("false",))
    assert trigger.read_text() == "b\n"
    assert switch.read_text() == "1\n"
    assert str(trigger) in said


def test_it_falls_back_to_reboot_when_the_kernel_cannot_be_asked(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    mark = tmp_path / "rebooted"
    said = powercycle.reset_machine(str(tmp_path / "missing"), str(files[1]), ("touch", str(mark)))
    assert mark.exists()
    assert "touch" in said


def test_it_says_when_neither_works(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(chrootfw.ChrootfwError) as caught:
        powercycle.reset_machine(str(tmp_path / "missing"), str(files[1]), ("false",))
    assert len(caught.value.details) == 2
    assert caught.value.hint.startswith("systemctl reboot")


def test_the_command_line_wants_a_confirmation() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chrootfw", "powercycle"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "--yes-really" in done.stderr
