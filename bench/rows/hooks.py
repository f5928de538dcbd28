"""What plugins cost: the machinery that asks them, in a start; a runtime with twenty of them."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from measure import Row, at_most, interleaved, median
from world import World

import chrootfw
from chrootfw.hooks import dispatch

KEY = "hooks"
TITLE = "hook machinery"

#: The methods of Stages with which the core asks and tells.
ASKING = (
    "parameters", "mount", "pre_start", "init_script", "enter", "kill_strategy", "unmount_ordering", "around", "event",
)  # fmt: skip


def run(world: World, *, quick: bool) -> Iterator[Row]:
    yield _share(world, quick=quick)
    yield _building(world, quick=quick)


def twenty() -> list[object]:
    """Twenty plugins of a third party, each with hooks of every kind that has no say."""
    return [type(f"Plugin{number}", (_Plugin,), {})() for number in range(20)]


class _Plugin:
    @chrootfw.hookimpl
    def chrootfw_mount(self, instance: chrootfw.Instance) -> None:
        """Nothing to mount."""

    @chrootfw.hookimpl
    def chrootfw_pre_start(self, instance: chrootfw.Instance) -> None:
        """Nothing to say."""

    @chrootfw.hookimpl
    def chrootfw_init_script(self, instance: chrootfw.Instance, action: str) -> None:
        """The next one's."""


def _share(world: World, *, quick: bool) -> Row:
    """A start, taken apart: the time in ``Stages`` that is neither a plugin's nor that of a stage's body."""
    samples: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    cases = {
        "image, defaults": (world.runtime(), world.image()),
        "directory, defaults": (world.runtime(), world.root()),
        "image, 20 more plugins": (world.runtime(*twenty()), world.image()),
    }

    def start(case: str) -> None:
        runtime, disk = cases[case]
        name = world.name()
        with _taken_apart() as clock:
            runtime.start(chrootfw.Instance(name, disk=str(disk)))
        runtime.stop(name)
        for part, seconds in clock.seconds.items():
            samples.setdefault(f"{case}: {part}", []).append(seconds)
        shares.setdefault(case, []).append(clock.seconds["machinery"] / sum(clock.seconds.values()))

    interleaved(
        {case: functools.partial(start, case) for case in cases},
        rounds=5 if quick else 31,
        at_most=90,
    )
    goals = [
        at_most(
            "percent of a start of an image, with the defaults",
            100 * median(shares["image, defaults"]),
            2.0,
        )
    ]
    notes = [
        f"{case}: {100 * median(found):.1f} % of a start"
        for case, found in shares.items()
        if case != "image, defaults"
    ]
    notes.append(
        "a third party's plugin is asked in a thread of its own, since it may hang: that is most of what 20 of them cost"
    )
    return Row(f"{KEY}-share", f"{TITLE}: its share of a start", samples, goals, notes)


class _Clock:
    """Seconds by part; whatever runs belongs to one part."""

    def __init__(self) -> None:
        self.seconds = {"the rest": 0.0, "plugins": 0.0, "machinery": 0.0}
        self.part = "the rest"
        self.since = time.perf_counter()

    def switch(self, part: str) -> str:
        """The part that it was before."""
        now = time.perf_counter()
        self.seconds[self.part] += now - self.since
        self.since = now
        before, self.part = self.part, part
        return before

    def part_of(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            before = self.switch(part)
            try:
                return call(*args, **kwargs)
            finally:
                self.switch(before)

        return timed


@contextlib.contextmanager
def _taken_apart() -> Iterator[_Clock]:
    clock = _Clock()
    methods = {name: getattr(dispatch.Dispatcher, name) for name in ASKING}
    called = dispatch._called

    def around(
        self: dispatch.Dispatcher, instance: Any, stage: Any, body: Callable[[], Any], **how: Any
    ) -> Any:
        return methods["around"](self, instance, stage, clock.part_of("the rest", body), **how)

    for name, method in methods.items():
        setattr(
            dispatch.Dispatcher,
            name,
            clock.part_of("machinery", around if name == "around" else method),
        )
    dispatch._called = clock.part_of("plugins", called)
    try:
        yield clock
        clock.switch("the rest")
    finally:
        dispatch._called = called
        for name, method in methods.items():
            setattr(dispatch.Dispatcher, name, method)


def _building(world: World, *, quick: bool) -> Row:
    plugins = twenty()
    run_dir, config_dir = world.new("run"), world.new("definitions")

    def build(objects: list[object]) -> None:
        chrootfw.Runtime(objects, run_dir=run_dir, config_dir=config_dir)

    taken = interleaved(
        {"20 plugins and the defaults": lambda: build(plugins), "the defaults": lambda: build([])},
        rounds=11 if quick else 201,
    )
    goals = [
        at_most(
            "milliseconds for 20 plugins and the defaults",
            1e3 * median(taken["20 plugins and the defaults"]),
            5,
        )
    ]
    return Row(f"{KEY}-building", f"{TITLE}: a runtime is made", taken, goals, [])
