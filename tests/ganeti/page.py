"""The shell blocks of docs/how-to/scale-out.md. Each begins with a comment that says where it is to be run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/scale-out.md"


class Block(NamedTuple):
    """``place``: ``every node``, ``the master`` or a node's name. ``when``: what else the comment says, or ``""``."""

    place: str
    when: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(
        r"^```sh\n# on ([^,\n]*)(?:, ([^\n]*))?\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S
    )
    assert len(found) == PAGE.read_text("utf-8").count("```sh\n"), (
        "a block does not say where it is to be run"
    )
    return [Block(*each) for each in found]


def block(place: str, when: str) -> Block:
    return next(block for block in blocks() if (block.place, block.when) == (place, when))
