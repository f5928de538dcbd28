"""Which way of starting children is used, and that it is said."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import chrootfw.linux
from chrootfw.linux import native

_SHOW = "from chrootfw.linux import native; print(native.MODULE is not None, native.REASON)"


def shown(wanted: str | None) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "CHROOTFW_NATIVE"}
    if wanted is not None:
        env["CHROOTFW_NATIVE"] = wanted
    return subprocess.run(
        [sys.executable, "-c", _SHOW],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_0_never_uses_it() -> None:
    assert shown("0").stdout == "False CHROOTFW_NATIVE=0\n"


def test_it_is_used_where_it_can_be_imported() -> None:
    """The suites run with CHROOTFW_NATIVE=1 where it was to be built."""
    required = shown("1")
    assert shown(None).stdout.startswith("True" if required.returncode == 0 else "False")


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A compiled module of another version, in place of the real one."""
    module = types.ModuleType("chrootfw.linux._native")
    module.__file__ = "/somewhere/_native.abi3.so"
    module.VERSION = native.VERSION + 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chrootfw.linux._native", module)
    monkeypatch.setattr(chrootfw.linux, "_native", module, raising=False)
    return module


@pytest.mark.usefixtures("extension")
def test_one_of_another_version_is_named_and_not_used() -> None:
    module, reason = native._load("")
    assert module is None
    assert "/somewhere/_native.abi3.so has version" in reason
    with pytest.raises(ImportError, match="has version"):
        native._load("1")


def test_one_that_is_missing_is_an_error_if_it_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "chrootfw.linux._native", None)
    monkeypatch.delattr(chrootfw.linux, "_native", raising=False)
    assert native._load("")[0] is None
    with pytest.raises(ImportError, match="CHROOTFW_NATIVE=1"):
        native._load("1")


@pytest.mark.parametrize("wanted", ["0", None])
def test_verify_says_which_way_is_used(wanted: str | None, tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != "CHROOTFW_NATIVE"}
    if wanted is not None:
        env["CHROOTFW_NATIVE"] = wanted
    done = subprocess.run(
        [sys.executable, "-m", "chrootfw", "verify"],
        env={**env, "CHROOTFW_RUN_DIR": str(tmp_path), "CHROOTFW_CONFIG_DIR": str(tmp_path)},
        cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if "native helper" in line]
    assert len(lines) == 1, done.stderr
    is_used = shown(wanted).stdout.startswith("True")
    assert ("not in use" in lines[0]) != is_used
