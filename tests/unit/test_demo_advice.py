"""What the demo advises to a user who is not root: a command that works as it stands."""

from __future__ import annotations

import shlex
import shutil
import site
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chrootfw.cli import demo


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without PYTHONPATH, with a sudo, and with the packages of the user elsewhere."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name, *_, **__: f"/usr/bin/{name}")
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path / "user"))
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    def make(place: str) -> Path:
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return path

    return make


def test_the_program_of_an_environment(
    program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program("v/bin/chrootfw")
    monkeypatch.setattr(sys, "argv", [str(path), "demo"])
    assert demo.as_root() == (f"sudo {path} demo", "")


def test_a_relative_path_becomes_absolute(
    program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program("a clone/.venv/bin/chrootfw")
    monkeypatch.chdir(path.parents[2])
    monkeypatch.setattr(sys, "argv", [".venv/bin/chrootfw", "demo"])
    assert shlex.split(demo.as_root()[0]) == ["sudo", str(path), "demo"]


@pytest.mark.parametrize("called", ["/somewhere/chrootfw/__main__.py", "-c", ""])
def test_the_module_of_an_interpreter(called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr(sys, "executable", "/a b/.venv/bin/python")
    assert shlex.split(demo.as_root()[0]) == [
        "sudo",
        "/a b/.venv/bin/python",
        "-P",
        "-m",
        "chrootfw",
        "demo",
    ]


def test_a_path_that_sudo_does_not_pass_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "here:/srv/plugins")
    monkeypatch.setattr(sys, "argv", ["/x/chrootfw/__main__.py"])
    command, unseen = demo.as_root()
    assert shlex.split(command)[:3] == ["sudo", "env", f"PYTHONPATH={tmp_path}/here:/srv/plugins"]
    assert unseen == ""


def test_what_is_installed_for_one_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(Path(demo.__file__).parents[1])
    monkeypatch.setattr(site, "getusersitepackages", lambda: place)
    command, unseen = demo.as_root()
    assert shlex.split(command)[:3] == ["sudo", "env", f"PYTHONPATH={place}"]
    assert "one user" in unseen
    assert place in unseen


def test_where_there_is_no_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["/x/chrootfw/__main__.py"])
    monkeypatch.setattr(sys, "executable", "/a b/python")
    first, option, command = shlex.split(demo.as_root()[0])
    assert (first, option) == ("su", "-c")
    assert shlex.split(command) == ["/a b/python", "-P", "-m", "chrootfw", "demo"]
