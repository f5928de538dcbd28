"""What a run shows: Markdown for the pages, JSON with every sample, a plot of the medians."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import peers
from measure import Goal, Row, median
from world import TREE, World


def machine(world: World, *, quick: bool) -> dict[str, Any]:
    """Where and with what it was measured."""
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )  # fmt: skip
    commit = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(TREE), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    found, notes = peers.available(world)
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "quick": quick,
        "commit": commit,
        "linux": os.uname().release,
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "distributions": {name: metadata.version(name) for name in ("attrs", "pluggy", "psutil")},
        "peers": {name: peer.version() for name, peer in found.items()},
        "notes": notes,
    }


def heading(machine: dict[str, Any]) -> str:
    where = (
        f"{machine['date']}, commit {machine['commit'] or 'unknown'}: Linux {machine['linux']}, {machine['cpus']} CPUs ({machine['cpu']}), "
        f"{machine['memory_mib']} MiB, Python {machine['python']}, load at the beginning {machine['load'][0]:.1f}."
    )
    lines = [
        where,
        "",
        "Peers: " + "; ".join(f"{k} ({v})" for k, v in machine["peers"].items()) + ".",
    ]
    lines += [f"{note}." for note in machine["notes"]]
    if machine["quick"]:
        lines.append(
            "**A quick run: it shows that everything works, and its figures mean nothing.**"
        )
    return "\n".join(lines)


def row(row: Row) -> str:
    """One row: who took how long, which goals hold, and what else is to be said."""
    lines = [f"\n### {row.title}\n"]
    if row.samples:
        lines += ["| Who | median | min | max | rounds |", "|---|---|---|---|---|"]
        for name, taken in row.samples.items():
            lines.append(
                f"| {name} | {time(median(taken))} | {time(min(taken))} | {time(max(taken))} | {len(taken)} |"
            )
        lines.append("")
    lines += [f"- {_verdict(goal)}: {goal.text}{_value(goal)}" for goal in row.goals]
    lines += [f"- {note}" for note in row.notes]
    return "\n".join(lines)


def goals(rows: Sequence[Row]) -> str:
    """The table of all goals."""
    lines = ["\n| Row | Goal | Value | Limit | |", "|---|---|---|---|---|"]
    for each in rows:
        for goal in each.goals:
            value = "–" if goal.value is None else _number(goal.value)
            lines.append(
                f"| {each.title} | {goal.text} | {value} | {_number(goal.limit)} | {_verdict(goal)} |"
            )
    return "\n".join(lines)


def markdown(machine: dict[str, Any], rows: Sequence[Row], plot: str | None) -> str:
    """Everything, for a page. ``plot``: where the page finds it."""
    shown = [f"\n![Medians of every row, on a logarithmic scale]({plot})"] if plot else []
    return "\n".join([heading(machine), goals(rows), *shown, *(row(each) for each in rows), ""])


def write_json(file: Path, machine: dict[str, Any], rows: Sequence[Row]) -> None:
    shown = [{**each._asdict(), "goals": [goal._asdict() for goal in each.goals]} for each in rows]
    file.write_text(json.dumps({"version": 1, "machine": machine, "rows": shown}, indent=1) + "\n")


def time(seconds: float) -> str:
    """Seconds for people, with three digits that count."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{_number(seconds * factor)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _value(goal: Goal) -> str:
    return "" if goal.value is None else f" (measured: {_number(goal.value)})"


def _verdict(goal: Goal) -> str:
    if goal.value is None:
        return "open"
    return "reached" if goal.holds else "**missed**"


# -- the plot ---------------------------------------------------------------------------------------

_BAR, _LABEL, _WIDTH = 14, 250, 900


def write_plot(file: Path, rows: Sequence[Row]) -> None:
    """Bars of the medians of every row, from the quickest to the slowest, on a logarithmic scale of its own each.

    Written by hand: a library for plots would be the bench's largest dependency, for some rectangles.
    """
    parts: list[str] = []
    y = 0
    for each in rows:
        ordered = sorted(
            ((median(taken), name) for name, taken in each.samples.items() if taken),
            key=lambda pair: pair[0],
        )
        if not ordered:
            continue
        y += 30
        parts.append(f'<text x="0" y="{y}" class="title">{escape(each.title)}</text>')
        low = 10 ** math.floor(math.log10(ordered[0][0] * 0.8))
        high = max(ordered[-1][0], low * 10)
        for seconds, name in ordered:
            y += _BAR + 4
            width = (_WIDTH - _LABEL - 80) * math.log10(seconds / low) / math.log10(high / low)
            kind = "ours" if "chrootfw" in name else "limit" if name.startswith("C") else "peer"
            parts.append(f'<text x="{_LABEL - 6}" y="{y}" class="name">{escape(name)}</text>')
            parts.append(
                f'<rect x="{_LABEL}" y="{y - _BAR + 3}" width="{max(1, width):.1f}" height="{_BAR}" class="{kind}"/>'
            )
            parts.append(
                f'<text x="{_LABEL + max(1, width) + 6:.1f}" y="{y}">{time(seconds)}</text>'
            )
        y += 12
    style = (
        "text{font:12px sans-serif;fill:#444}.title{font-weight:bold;font-size:13px}.name{text-anchor:end}"
        ".ours{fill:#2a7}.limit{fill:#999}.peer{fill:#69b}"
        "@media(prefers-color-scheme:dark){text{fill:#ccc}}"
    )
    file.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 10}" role="img">'
        f"<title>Medians of the bench, logarithmic scale</title><style>{style}</style>{''.join(parts)}</svg>\n"
    )
