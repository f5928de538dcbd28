"""Scale: how far one machine goes, by which law the costs grow, and what breaks first.

Instances are the cheapest there are, directories in which nothing runs. They live in namespaces of their own, with which they
go: to stop thousands one by one would take as long as to start them.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import world as worlds
from measure import Goal, Row, interleaved, median
from world import World

import chrootfw
from chrootfw.linux import mountinfo
from chrootfw.state import snapshot as snapshots

KEY = "scale"
TITLE = "scale"

#: Seconds for starting the instances; who comes less far than the last count says so.
BUDGET = 600


def run(world: World, *, quick: bool) -> Iterator[Row]:
    yield _instances(world, quick=quick)
    yield _table(quick=quick)


# -- many instances ------------------------------------------------------------------------------------


def _instances(world: World, *, quick: bool) -> Row:
    counts = [10, 30] if quick else [100, 300, 1000, 3000, 10_000]
    directories = world.new("scale"), world.new("scale-run")
    directories[0].mkdir()
    command = [
        "unshare", "--mount", "--propagation", "private", sys.executable, "-B", "-m", "rows.scale",
        *map(str, directories), world.mark, str(20 if quick else BUDGET), *map(str, counts),
    ]  # fmt: skip
    environment = {**world.environment, "PYTHONPATH": str(worlds.HERE)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    worlds.forget_cgroups(world.mark)
    found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    samples = {
        f"{what}, {at['count']} instances": at[what]
        for what in ("start", "list", "stop")
        for at in found
    }
    per_instance = found[-1]["mounts"] / found[-1]["count"]
    most = int(Path("/proc/sys/fs/mount-max").read_text())
    notes = [
        f"{what} grows as N^{_exponent(found, what):.2f} from {found[0]['count']} to {found[-1]['count']} instances"
        for what in ("start", "list", "stop")
    ]
    notes.append(
        f"each instance has {per_instance:.1f} mounts: the kernel's limit of {most} in a mount namespace (fs.mount-max) "
        f"is reached with {most / per_instance:.0f} instances"
    )
    rss = ", ".join(f"{at['rss_kib']} KiB with {at['count']}" for at in found)
    notes.append(f"resident memory of the program after a list of its instances: {rss}")
    if found[-1].get("broke"):
        notes.append(f"what broke first: {found[-1]['broke']}")
    elif found[-1]["count"] < counts[-1]:
        notes.append(f"the time of {BUDGET} s was over at {found[-1]['count']} instances")
    reached = found[-1]["count"]
    goals = [
        Goal("instances on one node", float(reached), float(counts[-1]), reached >= counts[-1])
    ]
    return Row(f"{KEY}-instances", f"{TITLE}: many instances", samples, goals, notes)


def _exponent(found: list[dict[str, Any]], what: str) -> float:
    """Of the power law through the first and the last point."""
    first, last = found[0], found[-1]
    if first["count"] == last["count"]:
        return math.nan
    return math.log(median(last[what]) / median(first[what])) / math.log(
        last["count"] / first["count"]
    )


def _inside(place: Path, run_dir: Path, mark: str, budget: float, counts: list[int]) -> None:
    """In the namespace of its own: a line of JSON for each count that was reached."""
    runtime = chrootfw.Runtime(run_dir=run_dir, config_dir=place)
    began, count, broke = time.monotonic(), 0, ""
    for wanted in counts:
        starts: list[float] = []
        while count < wanted and not broke and time.monotonic() - began < budget:
            count += 1
            try:
                starts.append(_start(runtime, place, f"{mark}-s{count}"))
            except chrootfw.ChrootfwError as error:
                count -= 1
                broke = str(error)
        if not starts:
            break
        # The last few; those before belong to fewer instances.
        at = {
            "count": count,
            "start": starts[-9:],
            "mounts": mountinfo.read_table().count(b"\n"),
            "broke": broke,
        }
        at |= interleaved({"list": partial(_list, runtime, count)}, rounds=3)
        at["rss_kib"] = _resident()
        at["stop"] = [
            _again(runtime, place, f"{mark}-s{number}")
            for number in range(count, max(0, count - 5), -1)
        ]
        print(json.dumps(at), flush=True)
        if broke or count < wanted:
            break


def _start(runtime: chrootfw.Runtime, place: Path, name: str) -> float:
    disk = place / name
    for inside in ("proc", "sys", "dev", "run"):
        (disk / inside).mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    runtime.start(chrootfw.Instance(name, disk=str(disk), init_script=False))
    return time.perf_counter() - began


def _again(runtime: chrootfw.Runtime, place: Path, name: str) -> float:
    """Seconds for its stop; it is then started again."""
    began = time.perf_counter()
    runtime.stop(name)
    seconds = time.perf_counter() - began
    _start(runtime, place, name)
    return seconds


def _list(runtime: chrootfw.Runtime, count: int) -> None:
    assert len(runtime.list()) == count


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


# -- a large mount table --------------------------------------------------------------------------------


def _table(*, quick: bool) -> Row:
    """The parser on a table that no kernel here would hold: a hundredth of it is chrootfw's, the rest other people's."""
    counts = (1000, 3000) if quick else (10_000, 100_000, 1_000_000)
    samples: dict[str, list[float]] = {}
    notes = []
    law: dict[str, list[float]] = {}
    for count in counts:
        raw = made_up(count)
        contestants = {
            "select: the mounts below the run directory": lambda raw=raw: _ignore(
                mountinfo.select(raw, b"/run/chrootfw")
            ),
            "sort by instance": lambda raw=raw: _ignore(
                snapshots.lines_by_instance(raw, "/run/chrootfw")
            ),
            "find cgroup2": lambda raw=raw: _ignore(mountinfo.of_type(raw, b"cgroup2")),
            "parse all": lambda raw=raw: _ignore(mountinfo.parse(raw)),
        }
        for what, taken in interleaved(contestants, rounds=5, at_most=60).items():
            samples[f"{what}, {count:,} mounts"] = taken
            law.setdefault(what, []).append(median(taken))
        tracemalloc.start()
        kept = mountinfo.parse(raw)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        notes.append(
            f"{count:,} mounts: {len(raw) / 2**20:,.0f} MiB of text, {size / 2**20:,.0f} MiB ({size / len(kept):.0f} bytes each) once all are parsed"
        )
    factor = counts[-1] / counts[0]
    notes += [
        f"{what} grows as M^{math.log(taken[-1] / taken[0]) / math.log(factor):.2f}"
        for what, taken in law.items()
    ]
    notes.append(_reading())
    return Row(f"{KEY}-table", f"{TITLE}: a large mount table, made up", samples, [], notes)


def made_up(count: int) -> bytes:
    """A mount table of so many lines, ten for each instance."""
    lines = [
        b"20 1 0:20 / / rw - rootfs rootfs rw",
        b"21 20 0:21 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
    ]
    for number in range(count - len(lines)):
        place = (
            b"/run/chrootfw/i%d/root/m%d" % (number // 1000, number // 100 % 10)
            if number % 100 == 0
            else b"/srv/m%d" % number
        )
        lines.append(
            b"%d 20 0:%d / %s rw,nosuid,nodev,relatime shared:%d - tmpfs tmpfs rw,mode=755"
            % (number + 30, number % 900 + 30, place, number)
        )
    return b"\n".join(lines) + b"\n"


def _reading() -> str:
    """What the kernel takes to write its own table, for comparison with what parsing it takes."""
    lines = mountinfo.read_table().count(b"\n")
    taken = interleaved({"read": lambda: _ignore(mountinfo.read_table())}, rounds=21)["read"]
    return f"reading the table from the kernel: {median(taken) / lines * 1e6:.2f} µs a mount, in a table of {lines}"


def _ignore(_value: object) -> None:
    return None


if __name__ == "__main__":
    _place, _run_dir, _mark, _budget, *_counts = sys.argv[1:]
    _inside(Path(_place), Path(_run_dir), _mark, float(_budget), [int(word) for word in _counts])
