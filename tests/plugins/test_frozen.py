"""Plugins written against earlier versions are registered and planned with as they were. No root is needed."""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from pathlib import Path

import frozen
import pytest

import chrootfw
from chrootfw.hooks import specs
from chrootfw.hooks.deprecations import ChrootfwDeprecationWarning

each = pytest.mark.parametrize("old", frozen.ALL, ids=[old.version for old in frozen.ALL])


def minors(version: str) -> list[str]:
    """List the minor versions of this major version up to this one, from 0.2, which was the first.

    Without its own before its first release.
    """
    major, minor = map(int, version.split(".")[:2])
    end = minor + 1 if re.fullmatch(r"[\d.]+", version) else minor
    return [f"{major}.{number}" for number in range(0 if major else 2, end)]


def test_every_minor_version_has_its_frozen_plugin() -> None:
    missing = [
        version
        for version in minors(chrootfw.__version__)
        if not frozen.directory_of(version).is_dir()
    ]
    assert not missing, f"no frozen plugin for {missing}: see {frozen.PLACE / 'README.md'}"


def test_which_versions_need_one() -> None:
    assert minors("0.2.0") == ["0.2"]
    assert minors("0.3.7") == ["0.2", "0.3"]
    assert minors("1.1.0") == ["1.0", "1.1"]
    assert minors("0.2.0.dev0") == []
    assert minors("1.0.0rc1") == []


def test_the_version_of_the_package_is_that_of_its_distribution() -> None:
    assert importlib.metadata.version("chrootfw") == chrootfw.__version__


def test_the_newest_implements_every_hook() -> None:
    plugin = frozen.ALL[-1].module().Everything("/nowhere")
    (record,) = chrootfw.Runtime([plugin], defaults=False).plugins()
    assert set(record.hooks) == set(specs.KINDS)


@each
def test_it_is_registered(old: frozen.Frozen, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ChrootfwDeprecationWarning
        )  # what is deprecated still works
        runtime = chrootfw.Runtime([old.module().Everything(str(tmp_path))])
    first = runtime.plugins()[0]
    assert (first.name, first.distribution) == ("Everything", f"plugin_{old.directory.name}")
    assert not runtime.plugin_failures()


@each
@pytest.mark.filterwarnings("ignore::chrootfw.hooks.deprecations.ChrootfwDeprecationWarning")
def test_a_plan_is_what_it_was(old: frozen.Frozen, tmp_path: Path) -> None:
    plugin = old.module().Everything(str(tmp_path))
    runtime = chrootfw.Runtime([plugin], run_dir=tmp_path / "run", config_dir=tmp_path)
    plan = runtime.plan("start", old.instance(tmp_path))
    assert [
        *(f"{step.stage} {step.plugin}" for step in plan.steps if step.plugin == "Everything"),
        *plugin.said,
    ] == [line.replace("@DISK@", tmp_path.name) for line in old.expected("plan")]
    for step in (
        old.module().Layer(f"{tmp_path}/layer"),
        old.module().Marker(f"{tmp_path}/marker", ["ice"]),
    ):
        assert step.describe() in plan.describe()
    assert list(tmp_path.iterdir()) == []
