"""The fixtures of tests/real, for tests that want more rights than some machines give: see boot.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "real"))

pytest.register_assert_rewrite("driving", "roots")

from fixtures import *  # noqa: E402, F403  # what is rewritten must be said before
