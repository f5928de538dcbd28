"""What is deprecated is told once, to whom it concerns, with what to use instead."""

from __future__ import annotations

import inspect
import sys
import types
import warnings

import pytest

import chrootfw
from chrootfw import hookimpl
from chrootfw.hooks import deprecations, specs
from chrootfw.hooks.deprecations import Deprecation
from chrootfw.hooks.registry import Registry

HOOK = Deprecation("chrootfw_enter", "", "0.3", "0.5", "chrootfw_init_script")
ARGUMENT = Deprecation("chrootfw_kill_strategy", "force", "0.3", "0.5", "timeout=0")


def plugin(**hooks):
    module = types.ModuleType("old_habits")
    module.__version__ = "1.2"
    for name, function in hooks.items():
        setattr(module, f"chrootfw_{name}", hookimpl(function))
    return module


def told(*plugins_: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Registry(plugins_)
    assert all(issubclass(each.category, chrootfw.ChrootfwDeprecationWarning) for each in caught)
    return [str(each.message) for each in caught]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecations, "DEPRECATED", (HOOK, ARGUMENT))
    monkeypatch.setattr("chrootfw.hooks.registry.DEFAULTS", ())


@pytest.mark.parametrize(
    "strategy",
    [
        lambda instance, force: None,
        lambda force=False: None,
    ],
)
def test_an_argument_is_told_once_with_plugin_and_version(table: None, strategy: object) -> None:
    (text,) = told(plugin(kill_strategy=strategy))
    assert text == (
        "plugin old_habits (old_habits 1.2) uses the argument force of chrootfw_kill_strategy "
        "(deprecated since 0.3, removed in 0.5); use timeout=0"
    )


def test_a_hook_is_told_whatever_arguments_it_takes(table: None) -> None:
    (text,) = told(plugin(enter=lambda: None))
    assert "uses the hook chrootfw_enter (deprecated" in text
    assert text.endswith("use chrootfw_init_script")


def test_who_does_not_use_it_is_not_told(table: None) -> None:
    assert told(plugin(kill_strategy=lambda instance, timeout: None, mount=lambda: None)) == []


def test_each_plugin_is_told_for_itself(table: None) -> None:
    class Other:
        @hookimpl(specname="chrootfw_enter")
        def inside(self, command):
            return None

    found = told(
        plugin(enter=lambda: None), Other(), plugin_without_hooks := types.ModuleType("nothing")
    )
    assert plugin_without_hooks.__name__ not in " ".join(found)
    assert [text.split()[1] for text in found] == ["old_habits", Other.__qualname__]


def test_an_installed_plugin_still_works_and_is_told(
    table: None, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "chrootfw_habits-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chrootfw-habits\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[chrootfw]\nhabits = chrootfw_habits_test\n")
    (tmp_path / "chrootfw_habits_test.py").write_text(
        "import chrootfw\n@chrootfw.hookimpl\ndef chrootfw_enter(command): pass\n"
    )
    try:
        with pytest.warns(
            chrootfw.ChrootfwDeprecationWarning,
            match=r"plugin habits \(chrootfw-habits 2\.0\) uses the hook",
        ):
            registry = Registry(discover=True, without=["chrootfw_hardened"])
    finally:
        sys.modules.pop("chrootfw_habits_test", None)
    assert registry.records["habits"].hooks == ("chrootfw_enter",)


def test_nothing_of_ours_uses_what_is_deprecated() -> None:
    from chrootfw_hardened import hardening

    assert told(hardening) == []


def number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def is_well_formed(entry: Deprecation) -> bool:
    specification = getattr(specs, entry.hook, None)
    if entry.hook not in specs.KINDS or specification is None or not entry.instead:
        return False
    if entry.argument and entry.argument not in inspect.signature(specification).parameters:
        return False
    since, removed = number(entry.since), number(entry.removed)
    return since[0] == removed[0] and removed[1] - since[1] >= 2


def test_the_table_is_well_formed_and_what_is_due_is_gone() -> None:
    now = number(chrootfw.__version__)
    for entry in deprecations.DEPRECATED:
        assert is_well_formed(entry), entry
        assert number(entry.since) <= now < number(entry.removed), entry


@pytest.mark.parametrize(
    ("entry", "right"),
    [
        (HOOK, True),
        (ARGUMENT, True),
        (Deprecation("chrootfw_leave", "", "0.3", "0.5", "x"), False),
        (Deprecation("chrootfw_enter", "speed", "0.3", "0.5", "x"), False),
        (Deprecation("chrootfw_enter", "", "0.3", "0.4", "x"), False),
        (Deprecation("chrootfw_enter", "", "0.3", "0.5", ""), False),
    ],
)
def test_what_well_formed_means(entry: Deprecation, right: bool) -> None:
    assert is_well_formed(entry) is right
