"""chrootfw as it is cloned, without being installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chrootfw

PACKAGE = Path(chrootfw.__file__).parent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "a clone"
    shutil.copytree(PACKAGE, made / "chrootfw", ignore=shutil.ignore_patterns("__pycache__"))
    (made / "plugins/chrootfw_defaults").mkdir(parents=True)
    return made


@pytest.fixture(params=["with the dependencies", "without them"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A PYTHONPATH with chrootfw's dependencies and nothing else, or an empty one."""
    if request.param == "without them":
        return ""
    place = tmp_path / "dependencies"
    place.mkdir()
    for name in ("attr", "attrs", "pluggy", "psutil"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        (place / name).symlink_to(Path(spec.origin).parent)
    return str(place)


def run(tree: Path, path: str, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "CHROOTFW_RUN_DIR": f"{tree}/run",
    }
    command = [sys.executable, "-S", "-m", "chrootfw", *argv]
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)


VERBS = [
    "demo",
    "verify",
    "list",
    "plugins",
    "parameters",
    "start web1",
    "stop web1",
    "ps web1",
    "plan stop web1",
]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_so_in_one_sentence(tree: Path, path: str, verb: str) -> None:
    done = run(tree, path, *verb.split())
    assert done.returncode == 1
    assert done.stdout == ""
    sentence, hint = done.stderr.splitlines()
    assert sentence == "chrootfw: chrootfw is run from its source tree without being installed"
    assert "pip install" in hint
    assert str(tree) in hint


def test_in_json_and_in_exec(tree: Path, path: str) -> None:
    done = run(tree, path, "list", "--json")
    assert "source tree" in json.loads(done.stdout)["error"]["brief"]
    assert run(tree, path, "exec", "web1", "--", "true").returncode == 125


def test_what_needs_no_plugin_is_answered(tree: Path, path: str) -> None:
    assert run(tree, path, "--version").stdout == f"chrootfw {chrootfw.__version__}\n"
    assert "demo" in run(tree, path, "--help").stdout


@pytest.mark.parametrize("path", ["with the dependencies"], indirect=True)
def test_without_the_default_plugins_one_of_them_is_not_blamed(tree: Path, path: str) -> None:
    shutil.rmtree(tree / "plugins")
    done = run(tree, path, "parameters")
    program = "import chrootfw; print(*(f.brief for f in chrootfw.Runtime().plugin_failures()), sep='\\n')"
    env = {**os.environ, "PYTHONPATH": f"{path}:{tree}", "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run(
        [sys.executable, "-S", "-c", program], env=env, capture_output=True, text=True, cwd="/"
    )
    assert len(said.stdout.splitlines()) == 1, said.stdout + said.stderr
    assert "chrootfw_defaults" in said.stdout
    assert "Traceback" not in done.stderr
