"""What the tests need of Debian, where they may not get it: one sentence, and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_REAL = Path(__file__).resolve().parents[1] / "real"

#: Modules first: the tree may be root's alone.
_AS_A_USER = """
import os, sys
sys.path[:0] = [sys.argv[1]]
import prepare
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
prepare.DOCS_TOOLS = ("no-such-package",)
prepare.main(*sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((), "run them as root"), (("--docs",), "these Debian packages are missing: no-such-package")],
)
def test_an_ordinary_user_is_asked_to_be_root(arguments: tuple[str, ...], says: str) -> None:
    command = [sys.executable, "-c", _AS_A_USER, str(_REAL), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "  hint: " in done.stderr
