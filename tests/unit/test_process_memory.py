"""The memory of processes that do not let it be read, beside that of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chrootfw.errors import ChrootfwError, NotSupported
from chrootfw.state import process_details, show
from chrootfw.views import InstanceInfo, InstanceState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def test_an_instance_that_does_not_answer_leaves_the_others_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Processes 1 to 9 do not answer, each of the others has 4 KiB."""
    asked: set[str] = set()

    def read_part(paths: Sequence[str], found: dict[str, bytes], _: float) -> tuple[int, bool]:
        for number, path in enumerate(paths):
            asked.add(path)
            if len(path.split("/")[2]) == 1:
                return number, True
            found[path] = b"0-1 [rollup]\nRss: 8 kB\nPss:                   4 kB\n"
        return len(paths), False

    monkeypatch.setattr(process_details, "_read_part", read_part)
    monkeypatch.setattr(process_details, "_resident", lambda _pid: 10)
    memory = process_details.sum_memory([range(1, 10), [11, 12], [], [13, -1, 13]])
    assert memory == [90, 8192, 0, 4096]
    assert sum(len(path.split("/")[2]) == 1 for path in asked) == 3


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), NotSupported("no Python")])
def test_an_instance_is_listed_without_memory_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | ChrootfwError
) -> None:
    def show_running(
        _snapshot: object,
        name: str,
        _own: object,
        uncounted: list[tuple[InstanceInfo, Sequence[int]]],
    ) -> InstanceInfo:
        info = InstanceInfo(name, InstanceState.RUNNING, "/root")
        uncounted.append((info, [1]))
        return info

    def fail(_instances: object) -> list[int]:
        raise error

    (tmp_path / "web1.toml").write_text("")
    monkeypatch.setattr(show, "show_anyway", show_running)
    monkeypatch.setattr(process_details, "sum_memory", fail)
    (info,) = show.show_all(str(tmp_path / "run"), str(tmp_path))
    assert (info.state, info.memory_bytes) == ("running", None)
    assert "not all of it can be read" in info.notes[0]
