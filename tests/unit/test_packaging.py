"""What the distribution says of itself."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

TREE = Path(__file__).parents[2]
DISTRIBUTION = importlib.metadata.distribution("chrootfw")
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]


def test_the_licence_is_in_the_distribution() -> None:
    assert DISTRIBUTION.metadata["License-Expression"] == "BSD-2-Clause"
    (file,) = (file for file in DISTRIBUTION.files or () if file.name == "LICENSE")
    text = (TREE / "LICENSE").read_text()
    assert file.read_text() == text
    assert "The chrootfw authors" in text


def test_each_version_of_python_has_its_classifier() -> None:
    named = [
        found[1]
        for classifier in DISTRIBUTION.metadata.get_all("Classifier")
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier))
    ]
    assert named == ["3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_the_version_is_in_the_changelog() -> None:
    release = re.match(r"\d+\.\d+\.\d+", DISTRIBUTION.version)
    assert release is not None
    text = (TREE / "CHANGELOG.md").read_text()
    assert (
        f"[{release[0]}]" in text
        or f"## [Unreleased]\n\nThe version in the making is {release[0]}" in text
    )
