"""The table "what works with each": written from a run, and read again to be compared with one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import hypervisors

TABLE = Path(__file__).resolve().parents[2] / "docs/reference/ganeti-table.md"


class Outcome(NamedTuple):
    """What became of a row. ``reason``: why it failed, or ``""``."""

    works: bool
    reason: str
    seconds: float


Results = dict[tuple[str, str, str], Outcome]  # by title, version, kind

_COLUMNS = (hypervisors.STOCK, hypervisors.CHROOTFW)
_NO = "**no**"


def markdown(results: Mapping[tuple[str, str, str], Outcome], versions: Sequence[str]) -> str:
    """The table as Markdown, and below it why a row failed."""
    columns = [(version, kind) for version in versions for kind in _COLUMNS]
    titles = list(dict.fromkeys(title for title, _, _ in results))
    lines = [
        "| Measured | " + " | ".join(f"{version}, {kind}" for version, kind in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    notes: dict[str, int] = {}
    for title in titles:
        cells = []
        for version, kind in columns:
            outcome = results.get((title, version, kind))
            if outcome is None:
                cells.append("not run")
            elif outcome.works:
                cells.append(f"{outcome.seconds:.1f} s")
            else:
                cells.append(f"{_NO} ({notes.setdefault(_plain(outcome.reason), len(notes) + 1)})")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", "Why not:", ""]
    lines += [f"{number}. {reason}" for reason, number in notes.items()]
    return "\n".join(lines) + "\n"


def works(text: str) -> dict[tuple[str, str, str], bool]:
    """What a table says: by title, version and kind, whether it works."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    head = [tuple(cell.strip().split(", ", 1)) for cell in rows[0][1:]]
    return {
        (cells[0].strip(), version, kind): not cell.strip().startswith(_NO)
        for cells in rows[1:]
        for (version, kind), cell in zip(head, cells[1:], strict=True)
    }


def _plain(reason: str) -> str:
    """Without what differs from run to run."""
    reason = re.sub(r"\b(pid|process(?:es)?) \d+", r"\1 N", reason)
    reason = re.sub(r"/dev/loop\d+", "/dev/loopN", reason)
    return reason.replace("<", "&lt;").replace("|", "\\|")
