"""What the guest runs: pytest, without a look for the Debian packages that tests of the guest do not use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "real"))

import prepare  # noqa: E402

if __name__ == "__main__":
    prepare.TOOLS = prepare.QUICK_TOOLS
    sys.exit(
        pytest.main(
            [
                "-p",
                "no:cacheprovider",
                "-rfE",
                "--color=no",
                "-p",
                "no:hypothesispytest",
                *sys.argv[1:],
            ]
        )
    )
