"""The few figures of the page Performance, out of the tables of bench/figures.md, and their chart."""

from __future__ import annotations

import html
import math
import re
from functools import lru_cache
from pathlib import Path

_TABLES = Path(__file__).resolve().parents[1] / "bench/figures.md"

_COMMANDS = "start and stop, whole process: image, 3 daemons"
_LIST = "chrootfw list, whole process: 300 instances"

#: What the table of the page shows: the words, the section of the tables, who, and beside whom.
_FIGURES = (
    ("`chrootfw start`, an image with three daemons", _COMMANDS, "chrootfw start", "podman start"),
    ("`chrootfw stop` of the same", _COMMANDS, "chrootfw stop", "podman stop"),
    ("the same start in a Python program", _COMMANDS, "chrootfw start, in process", "crun start"),
    ("the same stop in a Python program", _COMMANDS, "chrootfw stop, in process", "crun stop"),
    ("`chrootfw list`, 300 instances", _LIST, "chrootfw list", "podman"),
    ("`chrootfw exec NAME -- true`", "--version, info, exec true, whole process", "chrootfw exec true", "podman exec true"),
)  # fmt: skip

_UNITS = {"µs": 0.001, "ms": 1.0, "s": 1000.0}


@lru_cache
def read() -> dict[str, dict[str, float]]:
    """Return the medians in milliseconds, by section and by who."""
    found: dict[str, dict[str, float]] = {}
    section: dict[str, float] = {}
    for line in _TABLES.read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            section = found.setdefault(line[4:], {})
        row = re.match(r"\| ([^|]+) \| ([\d.,]+) (µs|ms|s) \|", line)
        if row:
            section[row[1]] = float(row[2].replace(",", "")) * _UNITS[row[3]]
    return found


def table(_nothing: str) -> str:
    """The six figures, each beside a peer's."""
    rows = ["| What | chrootfw | Beside |", "|---|---|---|"]
    for words, section, who, peer in _FIGURES:
        medians = read()[section]
        name = peer.partition(" ")[0]
        rows.append(f"| {words} | {_shown(medians[who])} | {name}: {_shown(medians[peer])} |")
    return "\n".join(rows)


def _shown(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.2g} s"
    return f"{milliseconds:.0f} ms"


_LEFT, _WIDTH, _RIGHT, _BAR = 100, 460, 70, 16


def chart() -> str:
    """Starts and stops by command, as bars on one logarithmic axis."""
    medians = read()[_COMMANDS]
    bars, y = [], 30
    for verb in ("start", "stop"):
        bars.append(f'<text class="head" x="0" y="{y}">{verb}</text>')
        y += 12
        for who in sorted((f"{name} {verb}" for name in ("chrootfw", "crun", "runc", "podman", "schroot")), key=medians.__getitem__):  # fmt: skip
            name, value = who.partition(" ")[0], medians[who]
            own = ' class="own"' if name == "chrootfw" else ""
            bars.append(
                f'<text text-anchor="end" x="{_LEFT - 8}" y="{y + 12}">{html.escape(name)}</text>'
                f'<rect{own} x="{_LEFT}" y="{y}" width="{_place(value):.0f}" height="{_BAR}"/>'
                f'<text x="{_LEFT + _place(value) + 6:.0f}" y="{y + 12}">{_shown(value)}</text>'
            )
            y += _BAR + 6
        y += 22
    bottom = y - 22
    axis = "".join(
        f'<line x1="{x:.0f}" x2="{x:.0f}" y1="20" y2="{bottom}"/><text text-anchor="middle" x="{x:.0f}" y="{bottom + 16}">{_shown(tick)}</text>'
        for tick in (10, 100, 1000, 10_000)
        for x in [_LEFT + _place(tick)]
    )
    title = "Time of a start and a stop by command, logarithmic scale"
    label = f'<text text-anchor="middle" x="{_LEFT + _WIDTH / 2:.0f}" y="{bottom + 36}">time, logarithmic</text>'
    width = _LEFT + _WIDTH + _RIGHT
    return (
        f'<svg class="chart" role="img" aria-label="{title}" viewBox="0 0 {width} {bottom + 44}" width="{width}">'
        f"{axis}{label}{''.join(bars)}</svg>"
    )


def _place(milliseconds: float) -> float:
    """Where a time is on the axis, which begins at 5 ms."""
    return _WIDTH * math.log(milliseconds / 5) / math.log(10_000 / 5)
