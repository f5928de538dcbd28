"""The manual pages, as man shows them and as mandoc and groff judge them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[2] / "share/man").glob("man?/*"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.parametrize(
    "command", ["mandoc -T lint -W all", "groff -ww -z -man -Tutf8"], ids=["mandoc", "groff"]
)
def test_a_page_is_without_a_warning(page: Path, command: str) -> None:
    done = subprocess.run([*command.split(), page], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_page_is_found_below_an_installation() -> None:
    command = ["man", "-M", PAGES[0].parents[1], "-P", "cat", "chrootfw"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "manage long-running chroots" in done.stdout, done.stderr
