"""Python as a program is found, also where it is not what runs this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from open_descriptors import none_left_open

from chrootfw.errors import NotSupported
from chrootfw.linux import child, interpreter, native
from chrootfw.linux.call_batch import CallBatch


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    interpreter.path.cache_clear()
    yield
    interpreter.path.cache_clear()


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_that_which_runs_this_process() -> None:
    assert interpreter.path() == sys.executable


@pytest.mark.parametrize("executable", ["", "/nowhere/python3", "another program"])
def test_that_of_the_prefix_in_an_embedding_program(
    executable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a program is not run to see what it is: it might be a server."""
    was_run = tmp_path / "was-run"
    if executable == "another program":
        executable = program(tmp_path / "uwsgi", f"touch {was_run}")
    monkeypatch.setattr(sys, "executable", executable)
    found = interpreter.path()
    assert os.path.samefile(os.path.realpath(found), "/proc/self/exe")
    assert not was_run.exists()


def test_an_interpreter_of_another_version_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = program(tmp_path / "python3", "echo cpython-27")
    monkeypatch.setattr(sys, "executable", other)
    assert interpreter.path() != other


def test_a_program_without_one_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(NotSupported, match="no Python .* interpreter was found"):
        interpreter.path()


def test_a_program_with_threads_and_without_both_starts_no_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "MODULE", None)
    monkeypatch.setattr(child, "_has_threads", lambda: True)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    calls = CallBatch()
    calls.add("umask", 0o022)
    with none_left_open():
        with pytest.raises(NotSupported, match="interpreter"):
            child.begin(calls)
        del calls


def test_an_interpreter_that_ends_early_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "MODULE", None)
    monkeypatch.setattr(child, "_has_threads", lambda: True)
    broken = program(tmp_path / "python3", "exit 1")
    monkeypatch.setattr(interpreter, "path", lambda: broken)
    with pytest.raises(OSError, match="has ended"):
        child.begin(CallBatch())
