"""Plugins written against earlier versions are registered and planned with as they were. No root is needed."""

from __future__ import annotations

import importlib.metadata
import warnings
from pathlib import Path

import frozen
import pytest

import chrootfw
from chrootfw import hookspecs
from chrootfw.deprecated import ChrootfwDeprecationWarning

each = pytest.mark.parametrize("old", frozen.ALL, ids=[old.version for old in frozen.ALL])


def minors(version: str) -> list[str]:
    """The minor versions of this major version up to this one."""
    major, minor = map(int, version.split(".")[:2])
    return [f"{major}.{number}" for number in range(0 if major else 1, minor + 1)]


def test_every_minor_version_has_its_frozen_plugin() -> None:
    missing = [version for version in minors(chrootfw.__version__) if not frozen.directory_of(version).is_dir()]
    assert not missing, f"no frozen plugin for {missing}: see {frozen.PLACE / 'README.md'}"


def test_which_versions_need_one() -> None:
    assert minors("0.1.0") == ["0.1"]
    assert minors("0.3.7") == ["0.1", "0.2", "0.3"]
    assert minors("1.1.0") == ["1.0", "1.1"]


def test_the_version_of_the_package_is_that_of_its_distribution() -> None:
    assert importlib.metadata.version("chrootfw") == chrootfw.__version__


def test_the_newest_implements_every_hook() -> None:
    plugin = frozen.ALL[-1].module().Everything("/nowhere")
    (record,) = chrootfw.Runtime([plugin], defaults=False).plugins()
    assert set(record.hooks) == set(hookspecs.KINDS)


@each
def test_it_is_registered(old: frozen.Frozen, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChrootfwDeprecationWarning)  # what is deprecated still works
        runtime = chrootfw.Runtime([old.module().Everything(str(tmp_path))])
    first = runtime.plugins()[0]
    assert (first.name, first.distribution) == ("Everything", f"plugin_{old.directory.name}")
    assert not runtime.plugin_failures()


@each
@pytest.mark.filterwarnings("ignore::chrootfw.deprecated.ChrootfwDeprecationWarning")
def test_a_plan_is_what_it_was(old: frozen.Frozen, tmp_path: Path) -> None:
    plugin = old.module().Everything(str(tmp_path))
    runtime = chrootfw.Runtime([plugin], run_dir=tmp_path / "run", config_dir=tmp_path)
    plan = runtime.plan("start", old.instance(tmp_path))
    assert [*(f"{step.stage} {step.plugin}" for step in plan.steps if step.plugin == "Everything"), *plugin.said] == [
        line.replace("@DISK@", tmp_path.name) for line in old.expected("plan")
    ]
    for step in (old.module().Layer(f"{tmp_path}/layer"), old.module().Marker(f"{tmp_path}/marker", ["ice"])):
        assert step.describe() in plan.describe()
    assert list(tmp_path.iterdir()) == []
