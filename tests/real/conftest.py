"""The fixtures of ``fixtures.py``, which tests/crash uses too."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("driving", "roots")

from fixtures import *  # noqa: E402, F403  # what is rewritten must be said before
