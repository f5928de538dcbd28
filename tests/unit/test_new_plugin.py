"""``chrootfw new-plugin``: a whole project or nothing, beside whatever is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import chrootfw
from chrootfw.cli import new_plugin
from chrootfw.hooks import registry

PACKAGE = Path(chrootfw.__file__).parent
FILES = [
    ".gitignore",
    "README.md",
    "chrootfw_quit_first.py",
    "pyproject.toml",
    "tests/test_quit_first.py",
]


def run(cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    places = {
        str(Path(sys.modules[name].__file__).parent.parent)
        for name in ("chrootfw", "chrootfw_defaults")
    }
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done


def tree(directory: Path) -> list[str]:
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
    )


@pytest.fixture(autouse=True)
def _defaults() -> None:
    import chrootfw_defaults  # noqa: F401  # where it is


def test_it_writes_beside_the_caller_and_says_what(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "chrootfw", "new-plugin", "quit-first")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "chrootfw-quit-first") == FILES
    assert [line.strip() for line in done.stdout.splitlines()[1:6]] == FILES
    assert str(tmp_path / "chrootfw-quit-first") in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["chrootfw-quit-first"]


def test_what_it_writes_passes_its_own_tests(tmp_path: Path) -> None:
    directory, _ = new_plugin.write("quit-first", str(tmp_path / "project"))
    done = run(Path(directory), "-m", "pytest", "-p", "no:cacheprovider", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    module = Path(directory, "chrootfw_quit_first.py")
    assert len(module.read_text().splitlines()) <= 40
    module.write_text(
        module.read_text().replace("SIGQUIT,", "SIGHUP,").replace("(SIGQUIT", "(SIGHUP")
    )
    assert run(Path(directory), "-m", "pytest", "-p", "no:cacheprovider", "-q").returncode == 1


def test_its_packaging_names_the_plugin_and_this_version(tmp_path: Path) -> None:
    directory, _ = new_plugin.write("x", str(tmp_path / "project"))
    project = tomllib.loads(Path(directory, "pyproject.toml").read_text())["project"]
    assert project["name"] == "chrootfw-x"
    assert project["dependencies"] == [f"chrootfw>={new_plugin.oldest(chrootfw.__version__)}"]
    assert project["entry-points"] == {registry.GROUP: {"x": "chrootfw_x"}}


@pytest.mark.parametrize(
    ("version", "oldest"),
    [("0.2.0", "0.2"), ("1.4.7", "1.4"), ("0.2.0.dev0", "0.2.0.dev0"), ("0.3.0rc1", "0.3.0rc1")],
)
def test_an_unreleased_version_is_enough_for_its_own_plugins(version: str, oldest: str) -> None:
    assert new_plugin.oldest(version) == oldest
    assert SpecifierSet(f">={oldest}").contains(version)


def test_an_empty_directory_is_filled_and_stays_the_one_it_was(tmp_path: Path) -> None:
    before = tmp_path.stat().st_ino
    done = run(tmp_path, "-m", "chrootfw", "new-plugin", "quit-first", "--directory", ".", "--json")
    answer = json.loads(done.stdout)
    assert (answer["directory"], answer["files"]) == (str(tmp_path), FILES)
    assert tree(tmp_path) == FILES
    assert tmp_path.stat().st_ino == before
    assert {path.name for path in tmp_path.iterdir()} == {name.partition("/")[0] for name in FILES}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("", "quit-first"),
        ("Quit_First", "perhaps quit-first"),
        ("chrootfw-quit", "perhaps quit"),
        ("../etc", "perhaps etc"),
        ("a--b", "perhaps a-b"),
        ("a-", "perhaps a"),
        ("a\n", "perhaps a"),
        ("9lives", "quit-first"),
        ("é", "quit-first"),
        ("a" * 61, "a" * 60),
        ("class", "what the plugin does"),
        ("import", "what the plugin does"),
        ("grace", "parameters"),
        ("hardened-seccomp", "parameters"),
        ("chrootfw", "parameters"),
    ],
)  # fmt: skip
def test_a_bad_name_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, hint: str
) -> None:
    with pytest.raises(chrootfw.InputError) as caught:
        new_plugin.write(name, str(tmp_path / "project"))
    assert hint in caught.value.hint
    assert list(tmp_path.iterdir()) == []


ROOMS = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
OURS = {
    path.name.removeprefix("chrootfw_") for path in (PACKAGE.parent / "plugins").glob("chrootfw_*")
}


@pytest.mark.parametrize("name", sorted(ROOMS | OURS))
def test_no_name_is_one_of_ours(name: str) -> None:
    with pytest.raises(chrootfw.InputError, match="of chrootfw's own"):
        new_plugin.check_name(name.replace("_", "-"))


def test_a_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "chrootfw-quit-first").mkdir()
    (tmp_path / "chrootfw-quit-first/mine").write_text("mine")
    done = run(tmp_path, "-m", "chrootfw", "new-plugin", "quit-first")
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert tree(tmp_path) == ["chrootfw-quit-first/mine"]


def test_a_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    with pytest.raises(chrootfw.ChrootfwError, match="is not a directory"):
        new_plugin.write("quit-first", str(tmp_path / "there"))
    assert (tmp_path / "there").read_text() == "mine"


def test_a_missing_parent_is_told(tmp_path: Path) -> None:
    with pytest.raises(chrootfw.ChrootfwError, match="No such file or directory"):
        new_plugin.write("quit-first", str(tmp_path / "no/project"))


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("call", ["open", "rename"])
def test_a_failure_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, call: str
) -> None:
    target = tmp_path / "project"
    if exists:
        target.mkdir()
    calls = []

    def fails(real):
        def instead(*arguments, **how):
            calls.append(arguments)
            if len(calls) == (3 if call == "open" or exists else 1):
                raise OSError(28, "No space left on device")
            return real(*arguments, **how)

        return instead

    if call == "open":
        monkeypatch.setattr(new_plugin, "open", fails(open), raising=False)
    else:
        monkeypatch.setattr(os, "rename", fails(os.rename))
    with pytest.raises(chrootfw.ChrootfwError, match="No space left"):
        new_plugin.write("quit-first", str(target))
    monkeypatch.undo()
    assert list(tmp_path.rglob("*")) == ([target] if exists else [])
    new_plugin.write("quit-first", str(target))
    assert tree(target) == FILES


def test_what_a_failure_leaves_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_how: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(new_plugin, "open", full, raising=False)
    monkeypatch.setattr(new_plugin.shutil, "rmtree", full)
    with pytest.raises(chrootfw.ChrootfwError, match="No space left") as caught:
        new_plugin.write("quit-first", str(tmp_path / "project"))
    assert [detail.rpartition("/")[2] for detail in caught.value.details] == [
        f".chrootfw-new-{os.getpid()} stays: No space left on device"
    ]
    assert "nothing was written" not in caught.value.hint
