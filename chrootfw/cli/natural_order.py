"""Order names as people do: node2 before node10."""

from __future__ import annotations

import re

_NUMBER = re.compile("([0-9]+)")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key to sort names by, with each number in a name as a number.

    Args:
        name: The name.
    """
    parts = _NUMBER.split(name)
    return tuple((0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts if part)
