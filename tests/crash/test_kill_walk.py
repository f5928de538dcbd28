"""Row 1: the manager is killed at every system call of start, stop and reboot; what comes next finds nothing to trip over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import syscall_walk
import zygote
from syscall_walk import Point, World, check_words, in_parallel, points, sample

in_memory, worlds = syscall_walk.in_memory, syscall_walk.worlds  # fixtures

#: Of a sample, beside the first and the last call of every name.
MORE = 20

#: The sample of reboot, which is a stop and a start.
OF_REBOOT = 20

#: Kills before the first effect, after which the instance is looked at once.
BATCH = 25


class Task(NamedTuple):
    point: Point
    child: bool
    restart: bool


class Outcome(NamedTuple):
    """``hit``: the process died; the last call of a name may not come, when there is less to look at in /proc. ``there``: something of the instance existed then. ``restarted``: a start came next, and
    went well."""

    task: Task
    hit: bool
    there: bool
    restarted: bool


def prepare(world: World, verb: str) -> None:
    if verb != "start":
        world.run("start", after=f"before a {verb}")


def strike(world: World, verb: str, task: Task) -> Outcome:
    where = f"KILL at {task.point}{' in the child' if task.child else ''} of {verb}"
    prepare(world, verb)
    ended, hit = world.strike(verb, task.point, "signal=KILL", child=task.child)
    there = bool(world.left())
    check_words(ended)
    if task.child:  # the manager lives, unless it made the same call after the clone
        assert ended.status in (0, 1, -signal.SIGKILL), f"{where}: {ended}"
    else:
        assert ended.status == (-signal.SIGKILL if hit else 0), f"{where}: {ended}, {hit!r}"
    restarted = False
    if task.restart:
        started = world.run("start", expect=(0, 1), after=where)
        restarted = started.status == 0
        if restarted or "already running" in started.stderr:
            world_runs = world.is_running() if restarted else bool(world.processes())
            assert world_runs, f"{where}: {started}, but {world.left()}"
        else:
            assert there, f"{where}: nothing was there, and yet {started}"
            assert "is held: an earlier stop is not finished" in started.stderr, (
                f"{where}: {started}"
            )
    world.run("stop", after=where)
    world.check_nothing_left(where)
    return Outcome(task, bool(hit), there, restarted)


@pytest.mark.parametrize("verb", ["start", "stop", "reboot"])
def test_kill_at_every_syscall_after_the_first_effect(
    worlds: list[World], verb: str, whole: bool, figure: Callable[[int, str], None]
) -> None:
    world = worlds[0]
    walks: dict[bool, list[Point]] = {}
    for child in (
        (False, True) if verb != "reboot" else (False,)
    ):  # its children are those of stop and start
        prepare(world, verb)
        walks[child] = world.reference(verb, child=child)
        world.run("stop")
    world.check_nothing_left("two references")

    tasks: list[Task] = []
    for child, walk in walks.items():
        late = [point for point in walk if point.late]
        if whole:
            chosen = late
        elif verb == "reboot":
            chosen = random.Random(verb).sample(late, OF_REBOOT)
        else:
            chosen = sample(late, 0 if child else MORE, verb)
        for number, point in enumerate(chosen):
            tasks += [
                Task(point, child, restart)
                for restart in (False, True)
                if whole or restart == bool(number % 2)
            ]
    outcomes = in_parallel(worlds, tasks, lambda world, task: strike(world, verb, task))

    hits = [outcome for outcome in outcomes if outcome.hit]
    total = sum(point.late for walk in walks.values() for point in walk)
    assert len(hits) >= 0.85 * len(tasks), f"only {len(hits)} of {len(tasks)} kills hit"
    assert sum(outcome.there for outcome in hits) > len(hits) / 3
    points_hit = {(outcome.task.point, outcome.task.child) for outcome in hits}
    children = (
        f" ({len(walks[True])} of them in the init script's process before its execve)"
        if True in walks
        else ""
    )
    stops = sum(not outcome.task.restart for outcome in hits)
    figure(
        1,
        f"KILL at {len(points_hit)} of {total} system calls of {verb} after its first effect{children}, "
        f"{sum(outcome.there for outcome in hits)} of {len(hits)} times with something of the instance there: nothing left "
        f"after one stop ({stops} times) or start and stop ({len(hits) - stops} times), e2fsck clean",
    )


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_kill_at_every_syscall_before_the_first_effect(
    worlds: list[World], verb: str, whole: bool, figure: Callable[[int, str], None]
) -> None:
    """From the interpreter's start to the lock file, each time a whole new process: nothing is changed by any of them."""
    world = worlds[0]
    prepare(world, verb)
    struck(world, verb, [])  # the modules are compiled
    world.run("stop")
    prepare(world, verb)
    status, trace = struck(world, verb, [])
    assert status == 0, trace
    world.run("stop")
    walk = [p for p in points(trace, str(world.run_dir)) if not p.late and p.name != "execve"]
    chosen = walk if whole else random.Random(verb).sample(walk, 10)

    def batch(world: World, batch: list[Point]) -> None:
        prepare(world, verb)
        before = world.left()
        for point in batch:
            inject = [
                "-e",
                f"trace={point.name}",
                "-e",
                f"inject={point.name}:signal=KILL:when={point.count}",
            ]
            status, trace = struck(world, verb, inject)
            assert status == -signal.SIGKILL, (
                f"{verb} lived on after {point}: status {status}, {trace}"
            )
        assert world.left() == before, f"one of {batch} changed something"
        if verb == "start":
            assert not before
        else:
            assert world.is_running()
            world.run("stop")
        world.check_nothing_left(f"after {batch}")

    size = BATCH if whole else 5
    in_parallel(worlds, [chosen[i : i + size] for i in range(0, len(chosen), size)], batch)
    figure(
        1,
        f"KILL at {len(chosen)} of {len(walk)} system calls of {verb} before its first effect, the interpreter's own "
        "included: nothing changed",
    )


def struck(world: World, verb: str, more: list[str]) -> tuple[int, list[str]]:
    """Run the command as a process of its own under strace: its exit status, and what strace wrote."""
    output = world.place / "trace"
    python = os.path.realpath(sys.executable)
    env = {**world.env, "PYTHONPYCACHEPREFIX": str(world.place / "bytecode")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        ["strace", "-o", str(output), *more, python, "-m", "chrootfw", verb, world.name],
        env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        timeout=zygote.TIMEOUT, check=False,
    )  # fmt: skip
    return done.returncode, output.read_text(errors="replace").splitlines()
