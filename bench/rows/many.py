"""Many instances from one program: all started, all stopped; how that grows; what it keeps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import peers
from lives import resident_kib
from measure import Row, at_most, median, times
from world import ONE, World

import chrootfw

KEY = "many"

#: Instances at once, and how many of them one program starts in parallel.
COUNT, PARALLEL = 300, 50

#: The last tenth may take so many times as long as the first.
GROWTH = 1.5


def run(world: World, *, quick: bool) -> Iterator[Row]:
    count, parallel = (20, 5) if quick else (COUNT, PARALLEL)
    crun, notes = _crun(world, count)
    for kind, make in (("directories", _directories), ("images", _images)):
        yield _all(world, kind, make(world, count), crun, notes)
    yield _in_parallel(world, _directories(world, parallel), rounds=3 if quick else 7)


class Pass(NamedTuple):
    """The seconds of each start and of each stop, in order; memory in KiB; how many processes there were besides."""

    starts: list[float]
    stops: list[float]
    memory: tuple[int, int, int] = (0, 0, 0)
    others: int = 0

    @property
    def total(self) -> float:
        return sum(self.starts) + sum(self.stops)


def _all(
    world: World, kind: str, disks: Sequence[Path], crun: Pass | None, notes: Sequence[str]
) -> Row:
    ours, count = _ours(world, disks), len(disks)
    samples = {"chrootfw, a start": ours.starts, "chrootfw, a stop": ours.stops}
    if crun:
        samples |= {"crun, a start": crun.starts, "crun, a stop": crun.stops}
    goals = [
        at_most(
            "start all and stop all: times crun's", ours.total / crun.total if crun else None, 1
        )
    ]
    tenth = max(1, count // 10)
    for verb, seconds in (("start", ours.starts), ("stop", ours.stops[::-1])):
        growth = median(seconds[-tenth:]) / median(seconds[:tenth])
        goals.append(
            at_most(
                f"a {verb} beside {count - tenth} or more: times one beside up to {tenth}",
                growth,
                GROWTH,
            )
        )
    before, running, after = ours.memory
    goals += [
        at_most("MiB that the program has grown by when all run", (running - before) / 1024, 1),
        at_most("MiB that the program has grown by at the end", (after - before) / 1024, 1),
        at_most(
            "processes beside the daemons when all run: each would be resident", ours.others, 0
        ),
    ]
    totals = f"start all and stop all, one after the other: chrootfw {ours.total:.2f} s"
    totals += f", crun {crun.total:.2f} s (a directory each)" if crun else ""
    title = f"{count} instances in {kind}, one daemon each: start all, stop all"
    return Row(f"{KEY}-{kind}", title, samples, goals, [totals, *notes])


def _ours(world: World, disks: Sequence[Path]) -> Pass:
    runtime = world.runtime()
    instances = [chrootfw.Instance(world.name(), disk=str(disk)) for disk in disks]
    for _ in range(2):  # what is loaded and kept at the first times is no growth
        runtime.start(instances[0])
        runtime.stop(instances[0])
    before, there = resident_kib(os.getpid()), _processes()
    starts = [_seconds(runtime.start, i) for i in instances]
    running = resident_kib(os.getpid())
    others = len(_processes() - there) - sum(info.processes or 0 for info in runtime.list())
    stops = [_seconds(runtime.stop, i) for i in instances]
    return Pass(starts, stops, (before, running, resident_kib(os.getpid())), others)


def _in_parallel(world: World, disks: Sequence[Path], *, rounds: int) -> Row:
    runtime = world.runtime(lock_timeout=60)
    instances = [chrootfw.Instance(world.name(), disk=str(disk)) for disk in disks]
    verbs: dict[str, Callable[[Any], object]] = {"start": runtime.start, "stop": runtime.stop}
    samples: dict[str, list[float]] = {
        f"{verb} all, {way}": [] for way in ("in turn", "at once") for verb in verbs
    }
    with ThreadPoolExecutor(len(instances)) as pool:
        for _ in range(rounds):
            for name, verb in verbs.items():
                samples[f"{name} all, in turn"].append(_seconds(list, map(verb, instances)))
            for name, verb in verbs.items():
                samples[f"{name} all, at once"].append(
                    _seconds(_all_at_once, pool, verb, instances)
                )
    goals = []
    for name in verbs:
        ratio = times(samples, f"{name} all, at once", f"{name} all, in turn")
        goals.append(at_most(f"{name}: at once is so many times in turn", ratio, 1))
    title = f"{len(instances)} in parallel from one program, in {len(instances)} threads"
    return Row(f"{KEY}-parallel", title, samples, goals, [])


def _crun(world: World, count: int) -> tuple[Pass | None, list[str]]:
    found, notes = peers.available(world, peers.Crun)
    crun = found.get(peers.Crun.name)
    if crun is None:
        return None, notes
    names = [crun.create(ONE) for _ in range(count)]
    starts = [_seconds(crun.start, name) for name in names]
    return Pass(starts, [_seconds(crun.stop, name) for name in names]), notes


def _directories(world: World, count: int) -> list[Path]:
    """Roots whose programs are hard links to one another's: 300 copies of busybox would take 600 MiB."""
    first = world.root(ONE)
    copies = [world.new("root") for _ in range(count - 1)]
    for copy in copies:
        world.run("cp", "--archive", "--link", first, copy)
    return [first, *copies]


def _images(world: World, count: int) -> list[Path]:
    return [world.image(ONE, 8 << 20) for _ in range(count)]


def _processes() -> set[int]:
    return {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}


def _all_at_once(
    pool: ThreadPoolExecutor, verb: Callable[[Any], object], instances: Sequence[object]
) -> None:
    list(pool.map(verb, instances))


def _seconds(call: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began
