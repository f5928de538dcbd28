"""Finding who keeps a busy mount: how long it takes beside many processes, and who is found."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from lives import Ours, output, program
from measure import Contestant, Row, at_least, at_most, interleaved, times
from world import ONE, TREE, World

from chrootfw.state import holders
from chrootfw.state import snapshot as snapshots

sys.path.append(str(TREE / "tests/crash"))
import holder_kinds

KEY = "holders"

LIMIT = "C, the same system calls"
NAMES = ("chrootfw", "fuser -m", "lsof")


def run(world: World, *, quick: bool) -> Iterator[Row]:
    ours = Ours(world, ONE)
    ours.start()
    try:
        busy = Busy(world, ours)
        for count in (100,) if quick else (100, 1000, 5000):
            with world.others(count), _holder(world, busy.root):
                yield _beside(busy, count, rounds=3 if quick else 15)
        yield _who_is_found(world, busy)
    finally:
        ours.stop(0)


class Busy:
    """Three ways to ask who uses the mounts of a running instance. Each returns the pids that it names."""

    def __init__(self, world: World, ours: Ours) -> None:
        self.world = world
        self.run_dir = ours.runtime.run_dir
        self.name = ours.instance.name
        self.root = ours.info.root
        self.daemon = ours.pids()[0]

    def chrootfw(self) -> set[int]:
        snapshot = snapshots.read_instance(self.run_dir, self.name)
        record = snapshot.record(self.name)
        found = holders.find_holders(snapshot.read_mounts(self.name), self.root, record, ())
        return {process.pid for process in found}

    def fuser(self) -> set[int]:
        return self._pids("fuser", "-m", self.root)

    def lsof(self) -> set[int]:
        return self._pids("lsof", "-w", "-t", self.root)

    def limit(self) -> float:
        seconds, *pids = output(program(self.world, "holders"), self.root).split()
        assert self.daemon in map(int, pids), "C does not find what chrootfw finds"
        return float(seconds)

    def _pids(self, *command: str) -> set[int]:
        done = self.world.run(*command, check=False, stdout=subprocess.PIPE, text=True)
        return {int(word) for word in done.stdout.split()}


def _beside(busy: Busy, count: int, *, rounds: int) -> Row:
    contestants: dict[str, Contestant] = {
        "chrootfw": partial(_asked, busy.chrootfw),
        LIMIT: busy.limit,
        "fuser -m": partial(_asked, busy.fuser),
        "lsof": partial(_asked, busy.lsof),
    }
    samples = interleaved(contestants, rounds=rounds, at_most=120)
    goals = [at_most("times the C limit", times(samples, "chrootfw", LIMIT), 1.6)]
    for other in ("fuser -m", "lsof"):
        goals.append(at_least(f"times faster than {other}", times(samples, other, "chrootfw"), 1))
    return Row(
        f"{KEY}-{count}", f"holders of a busy mount, beside {count:,} processes", samples, goals, []
    )


def _asked(ask: Callable[[], set[int]]) -> None:
    assert ask(), "nobody is found, and there is somebody"


def _holder(world: World, root: str) -> subprocess.Popen[bytes]:
    """A process with its working directory inside; it ends with its standard input."""
    return subprocess.Popen(
        ["/bin/busybox", "cat"],
        cwd=f"{root}/srv",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=world.environment,
    )


# -- who is found -----------------------------------------------------------------------------------


def _who_is_found(world: World, busy: Busy) -> Row:
    """Every kind of holder that is a process and that a look at processes can see (tests/crash/holder_kinds.py), each alone."""
    missed: dict[str, list[str]] = {name: [] for name in NAMES}
    samples: dict[str, list[float]] = {name: [] for name in NAMES}
    outside = world.new("outside")
    outside.mkdir()
    kinds = [
        name for name, kind in holder_kinds.KINDS.items() if kind.outcome == holder_kinds.NAMED
    ]
    asked = 0
    for kind in kinds:
        with _holding(world, kind, busy, str(outside)) as pid:
            if not pid:
                continue
            asked += 1
            for name, ask in zip(NAMES, (busy.chrootfw, busy.fuser, busy.lsof), strict=True):
                began = time.perf_counter()
                named = ask()
                samples[name].append(time.perf_counter() - began)
                if pid not in named:
                    missed[name].append(kind)
        _tidy(busy.root)
    goals = [at_most("kinds of holder that chrootfw misses", len(missed["chrootfw"]), 0)]
    for other in ("fuser -m", "lsof"):
        goals.append(at_least(f"kinds that {other} misses", len(missed[other]), 1))
    notes = [f"{asked} kinds of holder, each alone on a loop device with ext4"]
    notes += [f"{name} misses: {'; '.join(kinds) or 'none'}" for name, kinds in missed.items()]
    return Row(f"{KEY}-complete", "holders of a busy mount: who is found", samples, goals, notes)


def _tidy(root: str) -> None:
    """Take away what some kinds leave: sockets and FIFOs, a mount."""
    if os.path.ismount(f"{root}/mnt"):
        subprocess.run(["umount", f"{root}/mnt"], check=True)
    for entry in os.scandir(f"{root}/srv"):
        os.unlink(entry.path)


@contextlib.contextmanager
def _holding(world: World, kind: str, busy: Busy, outside: str) -> Iterator[int]:
    """The pid of what holds, or 0 for what no pid names."""
    command = [
        sys.executable,
        "-B",
        str(TREE / "tests/crash/holder_kinds.py"),
        kind,
        busy.root,
        outside,
        str(busy.daemon),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=world.environment
    ) as process:
        assert process.stdout is not None
        names = json.loads(process.stdout.readline())
        try:
            yield next((int(name.split()[1]) for name in names if name.startswith("pid ")), 0)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
