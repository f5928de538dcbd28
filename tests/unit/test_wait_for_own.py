"""The wait for processes that end by themselves, where none of them can be seen from here."""

from __future__ import annotations

import contextlib
import threading
import types
from pathlib import Path
from typing import cast

import pytest

from chrootfw.lifecycle import kill


class Unseen:
    """Processes of which this pid namespace shows none."""

    own: tuple[int, ...] = ()

    def __init__(self, group: Path, *, strangers: bool = False) -> None:
        self.job = types.SimpleNamespace(
            step=lambda *_about: contextlib.nullcontext(),
            cancellation=types.SimpleNamespace(check=lambda: None),
        )
        self.events = group / "cgroup.events"
        self.cgroups = (str(group),)
        self.strangers = (1,) if strangers else ()
        self.rounds = 0

    @property
    def has_own(self) -> bool:
        return "populated 1" in self.events.read_text()

    def refresh(self) -> None:
        self.rounds += 1


@pytest.mark.parametrize("strangers", [False, True])
def test_it_rests_while_it_waits(tmp_path: Path, strangers: bool) -> None:
    (tmp_path / "cgroup.events").write_text("populated 1\n")
    unseen = Unseen(tmp_path, strangers=strangers)
    kill.wait_for_own(cast("kill.Remaining", unseen), 0.6)
    assert 0 < unseen.rounds < 30


def test_it_ends_with_them(tmp_path: Path) -> None:
    events = tmp_path / "cgroup.events"
    events.write_text("populated 1\n")
    ends = threading.Timer(0.1, events.write_text, ("populated 0\n",))
    ends.start()
    unseen = Unseen(tmp_path)
    kill.wait_for_own(cast("kill.Remaining", unseen), 600)
    assert not unseen.has_own
    ends.join()
