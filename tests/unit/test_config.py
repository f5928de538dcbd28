"""Definitions and settings: what is refused, and which line is named."""

from __future__ import annotations

from pathlib import Path

import pytest

import chrootfw
from chrootfw import config


def refused(tmp_path: Path, text: str) -> chrootfw.ChrootfwError:
    (tmp_path / "web1.toml").write_text(text)
    runtime = chrootfw.Runtime(run_dir=tmp_path / "run", config_dir=tmp_path)
    with pytest.raises(chrootfw.DefinitionError) as caught:
        runtime.plan("start", "web1")
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('disk = "/d"\ndsik = "x"\n', 2, "did you mean 'disk'"),
        ('\n\ngrce = 3\ndisk = "/d"\n', 3, "did you mean 'grace'"),
        ('disk = "/d"\ngrace = "x"\n', 2, "must be a number"),
        ('disk = "/d"\ngrace = true\n', 2, "must be a number"),
        ('disk = "/d"\nbinds = ["relative:/mnt"]\n', 2, "relative:/mnt"),
        ('disk = "d"\n', 1, "not an absolute path"),
        ('disk = "/d"\n"init_script" = "/a/../b"\n', 2, "not normalised"),
        ("disk = 5\n", 1, "must be a string"),
        ('disk = "/d"\nresolv_conf = "mine"\n', 2, "copy, bind, keep, off"),
    ],
)
def test_a_bad_definition_names_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    error = refused(tmp_path, text)
    assert f"web1.toml, line {line}:" in error.brief
    assert words in error.brief


def test_no_toml_at_all(tmp_path: Path) -> None:
    assert "line 1" in refused(tmp_path, "disk = \n").brief


def test_a_field_is_no_parameter() -> None:
    with pytest.raises(chrootfw.InputError, match="disk is a field"):
        config.resolve(chrootfw.Instance("web1", params={"disk": "/d"}), ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grace=3", ("grace", 3)),
        ("grace = 0.5", ("grace", 0.5)),
        ("hosts=bind", ("hosts", "bind")),
        ('binds=["/a:/b"]', ("binds", ["/a:/b"])),
    ],
)
def test_settings(text: str, expected: tuple[str, object]) -> None:
    assert config.parse_setting(text) == expected


@pytest.mark.parametrize("text", ["grace", "=3", "grace=[", "grace=a b"])
def test_bad_settings(text: str) -> None:
    with pytest.raises(chrootfw.InputError):
        config.parse_setting(text)


class Declares:
    def __init__(self, name: str) -> None:
        self.name = name

    @chrootfw.hookimpl
    def chrootfw_parameters(self) -> list[chrootfw.Parameter]:
        return [chrootfw.Parameter(self.name, str, "x")]


@pytest.mark.parametrize("name", ["disk", "require_process", "grace", "name"])
def test_a_name_that_is_taken_is_refused(name: str, tmp_path: Path) -> None:
    runtime = chrootfw.Runtime([Declares(name)], run_dir=tmp_path, config_dir=tmp_path)
    with pytest.raises(chrootfw.PluginError, match="Declares"):
        runtime.plan("start", chrootfw.Instance("web1", disk="/d"))
