"""The processes that chrootfw makes for itself: none outlives its use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import chrootfw
from chrootfw.system import spawn


def test_no_verb_leaves_a_child(runtime: chrootfw.Runtime, image: Callable[..., Path]) -> None:
    """No zombie either: a program that lives for months would collect them."""
    before = psutil.Process().children()
    web1 = chrootfw.Instance("web1", disk=str(image()))
    for verb in (runtime.start, runtime.info, runtime.reboot, runtime.stop):
        verb(web1)
        assert psutil.Process().children() == before, verb


def test_two_threads_that_look_at_once_close_a_child_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second close would be that of a stranger's descriptor."""
    closed: list[object] = []

    class Ended(spawn.Child):
        def wait(self, seconds: float | None) -> int | None:  # noqa: ARG002
            spawn.reap()  # what another thread does at this very moment
            return 0

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(spawn, "_left", [])
    spawn.leave(Ended(1, -1))
    assert len(closed) == 1
    assert not spawn._left
