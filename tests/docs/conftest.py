"""The pages are built, and their examples done, by processes that find the packages of these tests."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

sys.path[:0] = [str(ROOT / "tests/real"), str(ROOT / "docs")]

import prepare  # noqa: E402  # installs what the examples call


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of a process that imports chrootfw as these tests do."""
    places = {
        str(Path(_origin(name)).parent.parent): None for name in ("chrootfw", "chrootfw_defaults")
    }
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "LC_ALL": "C.UTF-8"}


def _origin(package: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return spec.origin


@pytest.fixture(scope="session")
def machine() -> dict[str, str]:
    """A machine on which the examples can be done; what they must find in their environment."""
    assert os.geteuid() == 0, "the examples mount file systems and must be done as root"
    prepare.install_tools()
    return {"CHROOTFW_TESTS_DOWNLOADS": str(prepare.downloads())}


@pytest.fixture(scope="session")
def html(
    machine: None, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Path:
    """The directory of the built pages."""
    built = tmp_path_factory.mktemp("html")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        f"{built}.doctrees",
    ]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(built)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"the pages have mistakes:\n{done.stdout}{done.stderr}"
    return built
