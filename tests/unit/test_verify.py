"""Checks of the machine: what cannot be checked is a warning, never an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from chrootfw.linux import cgroups
from chrootfw.state import verify


def test_controllers_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "hierarchies", lambda _table: (str(tmp_path), None))
    monkeypatch.setattr(cgroups, "is_writable", lambda _top: True)

    check = next(check for check in verify._cgroup() if check.name == "memory accounting")

    assert check.status == "warning"
    assert f"{tmp_path}/cgroup.controllers cannot be read" in check.detail
