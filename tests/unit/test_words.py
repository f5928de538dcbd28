"""The lint of words: it finds a retired word in prose and leaves keys, code and other names alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/words.py"


def run(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *options, str(path)], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ('"""Read the intent."""\n', 1, "intent"),
        ('def f():\n    """Read.\n\n    All debts are read.\n    """\n', 4, "debts"),
        ("x = 1  # what is owed\n", 1, "owed"),
        ('x = f"{1} is the culprit of {2}"\n', 1, "culprit"),
        ('x = f"{1!r} is no name for a plugin"\n', 1, "is no name"),
        ('x = "the file is gone; install it anew"\n', 1, "anew"),
        ('x = "a child of ours"\n', 1, "child of ours"),
    ],
)
def test_a_retired_word_is_found_with_its_line(
    tmp_path: Path, text: str, line: int, word: str
) -> None:
    path = tmp_path / "module.py"
    path.write_text(text)
    done = run(path)
    assert done.returncode == 1
    assert f"module.py:{line}: {word!r}" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        'x = {"band": 1, "intent.json": 2, "blame": 3}\n',
        '"""See ``Survey`` and ``intent.json``."""\n',
        "def survey(intent): return intent\n",
        'x = "there is no name, and it is no longer asked for"\n',
    ],
)
def test_keys_code_and_plain_english_are_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(text)
    assert run(path).stdout == ""


def test_a_page_is_read_without_its_blocks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```console\n$ blame\n```\n\n[a](intent.md) and `debts`\n\nThe keeper ends.\n"
    )
    done = run(page)
    assert done.stdout.count("retired") == 1
    assert "page.md:9: 'keeper'" in done.stdout


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("def open_intents(): ...\n", "open_intents"),
        ("class MountSurvey: ...\n", "MountSurvey"),
        ("def within(x): ...\n", "within"),
        ("def _alone(x): ...\n", "_alone"),
    ],
)
def test_identifiers_are_held_when_asked(tmp_path: Path, text: str, name: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(text)
    assert run(path).returncode == 0
    assert repr(name) in run(path, "--identifiers").stdout
