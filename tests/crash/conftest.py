"""The campaigns: each tries to break one promise by force, and prints the figure that it reached.

``pytest tests/crash`` runs a sample of each, ``pytest --whole tests/crash`` all of them. Every test is watched by
``leaks`` as those of tests/real are: what it leaves on the machine fails it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "real"))

pytest.register_assert_rewrite("driving", "roots")

from fixtures import *  # noqa: E402, F403  # what is rewritten must be said before

_figures = pytest.StashKey[list[tuple[int, str]]]()


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether the whole campaign is run, and not a sample of it."""
    return bool(request.config.getoption("--whole"))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[int, str], None]:
    """``figure(row, text)``: what was reached, for one row of docs/explanation/reliability.md. Called when it is sure."""

    def note(row: int, text: str) -> None:
        request.config.stash.setdefault(_figures, []).append((row, text))

    return note


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    figures = sorted(config.stash.get(_figures, []), key=lambda each: each[0])
    if not figures:
        return
    terminalreporter.section(
        "figures of the whole campaigns" if config.getoption("--whole") else "figures of a sample"
    )
    for row, text in figures:
        terminalreporter.write_line(f"{row:2}  {text}")
    if target := config.getoption("--figures"):
        _write(Path(target), figures)


def _write(file: Path, figures: list[tuple[int, str]]) -> None:
    """A Markdown table; rows that were not measured now stay as they are."""
    rows: list[tuple[int, str]] = []
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines()[2:]:
            row, _, text = line.removeprefix("| ").removesuffix(" |").partition(" | ")
            rows.append((int(row), text))
    measured = {row for row, _ in figures}
    rows = sorted(
        [*(each for each in rows if each[0] not in measured), *figures], key=lambda each: each[0]
    )
    lines = ["| # | Figure |", "|---|---|", *(f"| {row} | {text} |" for row, text in rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
