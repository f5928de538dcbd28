"""The processes that chrootfw makes for itself: none outlives its use."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import chrootfw
from chrootfw import unmounting
from chrootfw.system import children, mounts


def test_no_verb_leaves_a_child(runtime: chrootfw.Runtime, image: Callable[..., Path]) -> None:
    """No zombie either: a program that lives for months would collect them."""
    before = psutil.Process().children()
    web1 = chrootfw.Instance("web1", disk=str(image()))
    for verb in (runtime.start, runtime.info, runtime.reboot, runtime.stop):
        verb(web1)
        assert psutil.Process().children() == before, verb


@pytest.mark.parametrize("what", ["the root", "the device"])
def test_a_child_on_its_way_to_its_execve_is_waited_for(
    runtime: chrootfw.Runtime, image: Callable[..., Path], what: str
) -> None:
    """Another thread's: it has a copy of every descriptor, and fifty of them share the processors for seconds."""
    web1 = chrootfw.Instance("web1", disk=str(image()))
    root = runtime.start(web1).root
    device = next(entry.source for entry in mounts.below(os.fsencode(root)))
    fd = os.open(root if what == "the root" else device, os.O_RDONLY | os.O_CLOEXEC)
    child = children.clone(lambda: children.CALLS.usleep(2_000_000))
    os.close(fd)
    waiting = threading.Thread(target=child.wait, args=(60,))
    waiting.start()
    try:
        assert runtime.stop(web1).state == "absent"
    finally:
        waiting.join()
        child.close()
    assert not children.copies_are_about()


@pytest.mark.parametrize("attempt", ["_one_round", "inventory.unreleased"])
def test_a_child_that_ends_right_after_it_was_in_the_way_was_in_the_way(
    runtime: chrootfw.Runtime, image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, attempt: str
) -> None:
    """It is gone when the failure is looked at; the next attempt succeeds, and nobody is told to be holding anything."""
    web1 = chrootfw.Instance("web1", disk=str(image()))
    root = runtime.start(web1).root
    device = next(entry.source for entry in mounts.below(os.fsencode(root)))
    fd = os.open(root if attempt == "_one_round" else device, os.O_RDONLY | os.O_CLOEXEC)
    child = children.clone(lambda: children.CALLS.usleep(60_000_000))
    os.close(fd)
    place, name = (unmounting.inventory, "unreleased") if "." in attempt else (unmounting, attempt)
    real = getattr(place, name)

    def then_it_ends(*args: object, **kwargs: object) -> object:
        result = real(*args, **kwargs)
        if child.status is None and (result[0] == 0 if attempt == "_one_round" else result):
            child.kill()
            child.wait(60)
        return result

    monkeypatch.setattr(place, name, then_it_ends)
    monkeypatch.setattr(unmounting, "_BUSY_SETTLE", 0.0)
    try:
        assert runtime.stop(web1).state == "absent"
        assert child.status is not None
    finally:
        child.end()


def test_two_threads_that_look_at_once_close_a_child_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second close would be that of a stranger's descriptor."""
    closed: list[object] = []

    class Ended(children.Child):
        def wait(self, seconds: float | None) -> int | None:  # noqa: ARG002
            children.reap()  # what another thread does at this very moment
            return 0

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(children, "_left", [])
    children.leave(Ended(1, -1))
    assert len(closed) == 1
    assert not children._left
