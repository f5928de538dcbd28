"""A third party's plugin: written by ``new-plugin``, built, installed beside the built chrootfw, used, uninstalled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import driving
import kernelview
import pytest
from fixtures import *  # noqa: F403  # here and not in conftest.py, which speaks for modules that need no root, too

ROOT = Path(__file__).resolve().parents[2]

#: Ends on QUIT alone, and tells it. The loop's own commands are short, and another signal would be told as well.
TELLS_QUIT = """
trap 'echo QUIT >> /var/told; exit 0' QUIT
trap 'echo TERM >> /var/told; exit 0' TERM
echo ready
while :; do sleep 0.1; done
"""


def run(*argv: str | Path, **how: Any) -> str:
    """Run a command to its end, without what these tests have put into the environment for Python."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, argv)), env={**environment, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, **{"cwd": "/", **how},
    )  # fmt: skip
    assert done.returncode == 0, (
        f"{' '.join(map(str, argv))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


class Installation(NamedTuple):
    """A virtual environment with chrootfw, and the project of the plugin."""

    environment: Path
    project: Path
    wheels: Path

    @property
    def python(self) -> Path:
        return self.environment / "bin/python"

    @property
    def chrootfw(self) -> Path:
        return self.environment / "bin/chrootfw"

    def pip(self, *argv: str | Path) -> str:
        """The pip of these tests for that environment: Debian's venv module may have none to put into it."""
        return run(sys.executable, "-m", "pip", "--python", self.python, *argv, "--quiet")


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The built chrootfw in a clean environment, and the built plugin that its ``new-plugin`` wrote beside it."""
    base = tmp_path_factory.mktemp("installation")
    made = Installation(base / "venv", base / "chrootfw-quit-first", base / "wheels")
    run(sys.executable, "-m", "venv", "--without-pip", made.environment)
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        made.wheels,
        ROOT,
    )
    made.pip("install", *made.wheels.glob("chrootfw-*.whl"), "pytest>=8")
    run(made.chrootfw, "new-plugin", "quit-first", cwd=base)
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        made.wheels,
        made.project,
    )
    made.pip("install", *made.wheels.glob("chrootfw_quit_first-*.whl"))
    yield made
    shutil.rmtree(base)


def make_wheel(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build chrootfw on a machine whose C compiler fails."""
    return subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT],
        env={**os.environ, "CC": "/bin/false", **environment}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip


def test_an_installation_without_a_compiler_succeeds(tmp_path: Path) -> None:
    """Its wheel is pure by its name too, and none that a machine with a compiler made."""
    done = make_wheel(tmp_path, CHROOTFW_BUILD_NATIVE="auto")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".so", ".c"))]


def test_an_installation_that_requires_the_compiled_module_fails_without_it(tmp_path: Path) -> None:
    done = make_wheel(tmp_path, CHROOTFW_BUILD_NATIVE="1")
    assert done.returncode != 0
    assert not list(tmp_path.iterdir())


class Installed(driving.Cli):
    """The installed ``chrootfw`` as a command."""

    def __init__(self, installation: Installation, *how: Any) -> None:
        super().__init__(*how)
        self.bin = installation.environment / "bin"

    def begin(self, *argv: str, **how: Any) -> subprocess.Popen[str]:
        streams = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        return subprocess.Popen(
            ["chrootfw", *argv], env=self.environment(), text=True, cwd="/", **streams
        )

    def environment(self) -> dict[str, str]:
        inherited = super().environment().items()
        plain = {key: value for key, value in inherited if not key.startswith("PYTHON")}
        return {**plain, "PATH": f"{self.bin}:{plain['PATH']}"}


def test_the_plugin_is_found_beside_the_installed_chrootfw(installation: Installation) -> None:
    told = json.loads(run(installation.chrootfw, "plugins", "--json"))
    (plugin,) = [each for each in told["plugins"] if each["band"] == "installed"]
    assert plugin == {
        "name": "quit_first", "band": "installed", "distribution": "chrootfw-quit-first", "version": "0.1.0",
        "hooks": ["chrootfw_kill_strategy", "chrootfw_parameters"],
    }  # fmt: skip
    assert told["failures"] == []
    where = run(
        installation.python,
        "-c",
        "import chrootfw, chrootfw_quit_first as p; print(chrootfw.__file__, p.__file__)",
    )
    assert all(Path(file).is_relative_to(installation.environment) for file in where.split())


def test_its_own_tests_pass_against_what_is_installed(
    installation: Installation, tmp_path: Path
) -> None:
    shutil.copytree(
        installation.project / "tests", tmp_path / "tests"
    )  # away from the module of the project
    said = run(
        installation.python,
        "-P",
        "-m",
        "pytest",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        tmp_path / "tests",
    )
    assert " passed" in said


def test_it_overrides_a_stage_of_a_real_instance_and_is_missed_when_it_is_gone(
    installation: Installation, make_chroot: Callable[..., driving.Chroot], run_dir: Path, config_dir: Path,
    ground: Any,
) -> None:  # fmt: skip
    command = Installed(installation, run_dir, config_dir, ground)
    web1 = make_chroot("web1", init_script=False)

    def live(*settings: str) -> None:
        """Start, and leave one process that tells its signals."""
        (web1.disk / "var/told").unlink(missing_ok=True)
        command("start", "web1", *settings)
        inside = command.begin("exec", "web1", "--", "/bin/sh", "-c", TELLS_QUIT)
        processes.append(inside)
        assert inside.stdout is not None
        assert inside.stdout.readline() == "ready\n"

    processes: list[subprocess.Popen[str]] = []
    try:
        live("--set", "quit_first=true")
        planned = [
            step
            for step in command.json("plan", "stop", "web1")["steps"]
            if step["stage"] == "kill"
        ]
        assert [step["does"].split()[0] for step in planned] == ["SIGQUIT", "SIGTERM", "SIGKILL"]
        assert {step["plugin"] for step in planned} == {"quit_first"}
        stopped = command("stop", "web1", "-v")
        assert "SIGQUIT to the own processes, then wait at most 5 s  [quit_first]" in stopped.stderr
        assert (web1.disk / "var/told").read_text() == "QUIT\n"
        assert web1.is_gone()

        live()  # it is as silent as it says
        command("stop", "web1")
        assert (web1.disk / "var/told").read_text() == "TERM\n"

        live("--set", "quit_first=true")
        installation.pip("uninstall", "--yes", "chrootfw-quit-first")
        stopped = command("stop", "web1", "-v")
        assert "plugin quit_first (chrootfw-quit-first 0.1.0)" in stopped.stderr
        assert "SIGTERM" in stopped.stderr
        assert "[chrootfw_defaults.term_then_kill]" in stopped.stderr
        assert (web1.disk / "var/told").read_text() == "TERM\n"
        assert web1.is_gone()
        refused = command(
            "start", "web1", "--set", "quit_first=true", expect=2, says=["quit_first"]
        )
        assert not kernelview.mounts_below(web1.root), refused
    finally:
        for process in processes:
            process.communicate()
        installation.pip("install", *installation.wheels.glob("chrootfw_quit_first-*.whl"))
