"""Read the width that the caller asks for."""

from __future__ import annotations

import os


def given_columns() -> int | None:
    """Return the columns of the variable COLUMNS; ``None`` without a usable one."""
    text = os.environ.get("COLUMNS", "")
    return int(text) or None if text.isdecimal() and len(text) < 6 else None
