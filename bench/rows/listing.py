"""List, in process: how it grows with instances, and with processes that have nothing to do with them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import peers
from measure import (
    Contestant,
    Goal,
    Row,
    at_least,
    at_most,
    interleaved,
    median,
    not_measured,
    times,
)
from world import ONE, World

import chrootfw
from chrootfw.linux import cgroups, mountinfo

KEY = "listing"
TITLE = "list, in process"
LIMIT = Path(__file__).resolve().parent.parent / "limits/list.c"

#: hv_chroot's at more would take an hour.
GANETI_AT_MOST = 300


def run(world: World, *, quick: bool) -> Iterator[Row]:
    counts = (1, 10) if quick else (1, 10, 100, 300, 1000)
    around = (0, 50) if quick else (0, 2000)
    samples: dict[tuple[int, int], dict[str, list[float]]] = {}
    runtime = world.runtime()
    try:
        started = 0
        for count in counts:
            fill(world, runtime, count - started)
            started = count
            contestants = ours(world, runtime, count)
            for others in (
                *around,
                *around,
            ):  # twice: a machine that becomes slower does so for both
                with world.others(others):
                    taken = interleaved(contestants, rounds=3 if quick else 21, at_most=20)
                known = samples.setdefault((count, others), {name: [] for name in taken})
                for name, seconds in taken.items():
                    known[name] += seconds
    finally:
        world.stop_all(runtime)
    # Afterwards, not in turn with them: its processes would be chrootfw's other processes, and chrootfw's its own.
    ganeti = peers.Ganeti(world)
    why = ganeti.available()
    if not why:
        _ganeti(world, ganeti, samples, quick=quick)
    flat = median(samples[counts[-1], around[-1]]["chrootfw"]) / median(
        samples[counts[-1], 0]["chrootfw"]
    )
    for (count, others), taken in samples.items():
        goals: list[Goal] = [
            at_most("times C that reads the same files", times(taken, "chrootfw", "C"), 2.0)
        ]
        notes = []
        if others == around[-1] and count == counts[-1]:
            goals.append(
                at_most(f"beside {others} other processes, times as long as beside none", flat, 1.1)
            )
        if others == around[-1] and count == (GANETI_AT_MOST if not quick else counts[-1]):
            text = "times faster than GetAllInstancesInfo"
            faster = times(taken, "hv_chroot", "chrootfw")
            goals.append(not_measured(text, why, 1000) if why else at_least(text, faster, 1000))
        if count > GANETI_AT_MOST:
            notes.append(f"hv_chroot is measured up to {GANETI_AT_MOST} instances")
        yield Row(
            f"{KEY}-{count}-{others}",
            f"{TITLE}: {count} instances, {others} other processes",
            taken,
            goals,
            notes,
        )


def fill(world: World, runtime: chrootfw.Runtime, count: int) -> None:
    """Start so many instances with one daemon each, in directories."""
    for _ in range(count):
        runtime.start(chrootfw.Instance(world.name(), disk=str(world.root(ONE, linked=True))))


def ours(world: World, runtime: chrootfw.Runtime, count: int) -> dict[str, Contestant]:
    run_dir = runtime.run_dir
    v2, v1 = (
        top and cgroups.home(top, run_dir) for top in cgroups.hierarchies(mountinfo.read_table)
    )
    assert v2, "without a v2 hierarchy list has to look at every process"
    program = [
        str(world.compiled(LIMIT)),
        run_dir,
        v2,
        v1 if v1 and Path(v1).is_dir() else "-",
        "5",
    ]

    def listed() -> None:
        found = runtime.list()
        assert sum(info.state == "running" for info in found) == count, found

    def limit() -> float:
        return float(
            subprocess.run(program, check=True, capture_output=True, text=True).stdout.split()[0]
        )

    return {"chrootfw": listed, "C": limit}


def _ganeti(
    world: World,
    ganeti: peers.Ganeti,
    samples: dict[tuple[int, int], dict[str, list[float]]],
    *,
    quick: bool,
) -> None:
    names: list[str] = []
    try:
        for count, others in samples:
            if count > GANETI_AT_MOST:
                continue
            while len(names) < count:
                names.append(ganeti.create(ONE))
                ganeti.start(names[-1])
            with world.others(others):
                samples[count, others] |= interleaved(
                    {"hv_chroot": ganeti.listing}, rounds=3 if quick else 7, at_most=10
                )
            assert len(ganeti.hypervisor.ListInstances()) == count
    finally:
        for name in names:
            ganeti.stop(name)
