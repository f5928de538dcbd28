"""The page Install is typed into a new, minimal Debian, line by line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fenced
import pytest

ROOT = Path(__file__).resolve().parents[2]
#: The blocks of the page's first way; with ``--whole`` all are typed.
SAMPLE = 5


def test_each_command_of_the_page_works_in_a_new_debian(
    machine: dict[str, str], request: pytest.FixtureRequest
) -> None:
    typed = [
        block.text
        for block in fenced.blocks(ROOT / "docs/how-to/install.md")
        if block.language == "sh"
    ]
    assert len(typed) > SAMPLE
    if not request.config.getoption("--whole"):
        del typed[SAMPLE:]
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/minimal_root.py", "bookworm", "\n".join(["set -x", *typed])],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
