"""Plugins as third parties make them: installed, old, and in a real life.

Tests on the real kernel take the fixtures of tests/real by ``from fixtures import *`` in their own module, so that those
of the other modules need no root.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "real"))

pytest.register_assert_rewrite("driving", "roots")

from fixtures import pytest_runtest_makereport  # noqa: E402, F401  # a hook, which pytest looks for here only
