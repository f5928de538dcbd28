"""Taking down an instance in which somebody has mounted much more after its start."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from functools import partial

import peers
from lives import output, program
from measure import Contestant, Row, at_least, at_most, interleaved, timed, times
from rows.stop import after
from world import World

import chrootfw

KEY = "sub-mounts"

#: The stage of the cleanup that unmounts, without locks, records and proofs.
STAGE = "chrootfw, the unmounting alone"
LIMIT = "C, umount2 in a loop"


class StageTimer:
    """A plugin that measures the stage ``unmount``."""

    seconds = 0.0

    @chrootfw.hookimpl(wrapper=True)
    def chrootfw_around_stage(self, stage: str) -> Generator[None, object, object]:
        began = time.perf_counter()
        result = yield
        if stage == "unmount":
            self.seconds = time.perf_counter() - began
        return result


def run(world: World, *, quick: bool) -> Iterator[Row]:
    for count in (100,) if quick else (100, 1000):
        mounts = Mounts(world, count)
        stages: list[float] = []
        contestants: dict[str, Contestant] = {
            "chrootfw": after(mounts.in_an_instance, partial(mounts.cleanup, stages)),
            LIMIT: after(mounts.alone, mounts.loop),
        }
        found, notes = peers.available(world, peers.Schroot)
        for peer in found.values():
            contestants[peer.name] = mounts.of_schroot(peer)
        samples = interleaved(contestants, rounds=3 if quick else 15)
        samples[STAGE] = stages[-len(samples["chrootfw"]) :]
        goals = [
            at_most("times the umount2 loop", times(samples, "chrootfw", LIMIT), 1.5),
            at_most(
                "times the umount2 loop, the stage unmount alone", times(samples, STAGE, LIMIT), 1.5
            ),
            at_least("times faster than schroot", times(samples, "schroot", "chrootfw"), 100),
        ]
        notes.append(
            "chrootfw takes its own seven mounts down too, proves that all is gone, and removes its record"
        )
        yield Row(f"{KEY}-{count}", f"tear down {count:,} sub-mounts", samples, goals, notes)


class Mounts:
    """The same ``count`` mounts in an instance, in a schroot session, and in a plain directory."""

    def __init__(self, world: World, count: int) -> None:
        self.world = world
        self.count = count
        self.timer = StageTimer()
        self.runtime = world.runtime(self.timer)
        self.instance = chrootfw.Instance(world.name(), disk=str(world.root()), init_script=None)
        self.directory = world.new("mounts")
        self.directory.mkdir()

    def in_an_instance(self) -> None:
        self._make(f"{self.runtime.start(self.instance).root}/mnt")

    def cleanup(self, stages: list[float]) -> float:
        began = time.perf_counter()
        self.runtime.cleanup(self.instance)
        taken = time.perf_counter() - began
        stages.append(self.timer.seconds)
        return taken

    def alone(self) -> None:
        self._make(self.directory)

    def loop(self) -> float:
        return float(output(program(self.world, "unmount"), "end", self.directory, self.count))

    def of_schroot(self, peer: peers.Peer) -> Contestant:
        name = peer.create()

        def begin() -> None:
            self.world.run(
                "schroot", "--begin-session", "--chroot", f"{name}-source", "--session-name", name
            )
            self._make(f"/run/schroot/mount/{name}/mnt")

        return after(begin, partial(timed, partial(peer.stop, name)))

    def _make(self, directory: object) -> None:
        output(program(self.world, "unmount"), "make", directory, self.count)
