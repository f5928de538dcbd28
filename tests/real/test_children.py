"""The processes that chrootfw makes for itself: none outlives its use, whoever ends what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import psutil
import pytest
from kernelview import is_running, wait_until

import chrootfw
from chrootfw.system import deadlines, spawn, umount

IGNORES_TERM = """#!/bin/sh
[ "$1" = start ] && { trap '' TERM; sleep 1000 >/dev/null 2>&1 </dev/null & }
exit 0
"""


class OnlyTerm:
    """A kill strategy that gives up too early."""

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(self) -> list[chrootfw.Escalation]:
        return [chrootfw.Escalation(signal.SIGTERM, 0.05)]


def children() -> Collection[psutil.Process]:
    """What this process has as children, zombies too."""
    return psutil.Process().children()


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[deadlines.Caller]:
    """The children that were made in advance for an unmount."""
    made: list[deadlines.Caller] = []
    prepare = umount.prepare

    def instead(*mount: object) -> deadlines.Caller:
        made.append(prepare(*mount))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(umount, "prepare", instead)
    return made


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[deadlines.Caller]:
    """The children that were told to make their call, in order."""
    told: list[deadlines.Caller] = []
    call = deadlines.Caller.call

    def instead(self: deadlines.Caller, what: str, *, seconds: float, patience: float) -> int | None:
        told.append(self)
        return call(self, what, seconds=seconds, patience=patience)

    monkeypatch.setattr(deadlines.Caller, "call", instead)
    return told


def test_the_unmount_is_prepared_while_the_script_runs(
    runtime: chrootfw.Runtime,
    image: Callable[..., Path],
    prepared: list[deadlines.Caller],
    used: list[deadlines.Caller],
) -> None:
    before = children()
    runtime.start(chrootfw.Instance("web1", disk=str(image())))
    assert children() == before
    runtime.stop("web1")
    assert len(prepared) == 1
    assert used[-1] is prepared[0]
    assert children() == before


def test_one_that_is_killed_before_it_is_needed_is_replaced(
    runtime: chrootfw.Runtime,
    image: Callable[..., Path],
    used: list[deadlines.Caller],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare = umount.prepare

    def dies(*mount: object) -> deadlines.Caller:
        caller = prepare(*mount)  # type: ignore[arg-type]
        caller.child.kill()
        caller.child.wait(10)
        return caller

    monkeypatch.setattr(umount, "prepare", dies)
    before = children()
    runtime.start(chrootfw.Instance("web1", disk=str(image())))
    used.clear()
    assert runtime.stop("web1").state == "absent"
    assert len(used) == 2
    assert children() == before


def test_that_it_cannot_be_made_in_advance_stops_nothing(
    runtime: chrootfw.Runtime, image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_mount: object) -> deadlines.Caller:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(umount, "prepare", fails)
    runtime.start(chrootfw.Instance("web1", disk=str(image())))
    assert runtime.stop("web1").state == "absent"


def test_a_stop_that_ends_before_its_unmount_dismisses_it(
    runtime: chrootfw.Runtime, image: Callable[..., Path], prepared: list[deadlines.Caller]
) -> None:
    before = children()
    runtime.start(chrootfw.Instance("web1", disk=str(image(init=IGNORES_TERM))))
    with pytest.raises(chrootfw.SurvivorError):
        runtime.with_plugins(OnlyTerm()).stop("web1")
    assert len(prepared) == 1
    assert children() == before
    runtime.stop("web1", force=True)
    assert children() == before


def test_a_stop_that_keeps_the_root_mounted_prepares_no_unmount(
    runtime: chrootfw.Runtime, image: Callable[..., Path], prepared: list[deadlines.Caller]
) -> None:
    before = children()
    runtime.start(chrootfw.Instance("web1", disk=str(image())))
    runtime.stop("web1", keep_mounted=True)
    assert not prepared
    assert children() == before
    runtime.stop("web1")


def test_it_ends_when_its_parent_is_killed() -> None:
    program = (
        "import os, time\n"
        "from chrootfw.system import deadlines\n"
        "caller = deadlines.Caller(lambda: 0)\n"
        "print(caller.child.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    wait_until(lambda: not is_running(pid), "the child is gone")


def test_a_child_whose_answer_is_there_has_nothing_open(tmp_path: Path) -> None:
    """The file system that it made can be unmounted at once, whatever it takes to end."""
    fd = os.open(tmp_path, os.O_RDONLY)
    seen: list[str] = []
    result = deadlines.begin_call("something", lambda: 7, seconds=10, keep=[fd])
    seen += [os.readlink(path) for path in Path(f"/proc/{spawn._ending[-1].pid}/fd").glob("*")]
    spawn.see_ended()
    os.close(fd)
    assert result == 7
    assert str(tmp_path) not in seen
    assert not spawn._ending


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
