"""Row 2: every system call of start and stop fails once. The answer is right, or an error that says what is the matter."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import must_succeed
import pytest
import syscall_walk
from syscall_walk import Point, World, check_words, in_parallel, sample
from zygote import TIMEOUT

in_memory, worlds = syscall_walk.in_memory, syscall_walk.worlds  # fixtures

ERRORS = ("EIO", "EBUSY", "ENOMEM", "EINTR", "ENOSPC")

#: Of a sample, beside the first and the last call of every name, and as many before the first effect, with one error each.
MORE = 20

#: No kernel fails these with such an error: libc would take it for a number or an address, or ends the process (futex).
NEVER_FAIL = (
    "brk",
    "exit_group",
    "futex",
    "rt_sigreturn",
    "getpid",
    "gettid",
    "getppid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
)


class Task(NamedTuple):
    point: Point
    child: bool
    error: str


class Outcome(NamedTuple):
    hit: bool
    succeeded: bool


def strike(world: World, verb: str, task: Task) -> Outcome:
    where = f"{task.error} at {task.point}{' in the child' if task.child else ''} of {verb}"
    if verb == "stop":
        world.run("start", after=f"before {where}")
    ended, hit = world.strike(verb, task.point, f"error={task.error}", child=task.child)
    where = f"{where} ({hit})"
    if not task.child and (why := must_succeed.reason(hit, task.error, task.point.count)):
        assert ended.status == 0, f"{where}: {ended}, but {why}"
    assert ended.status in (0, 1, 4), f"{where}: {ended}"
    assert "Traceback" not in ended.stderr, f"{where}: {ended}"
    check_words(ended)
    if ended.status == 0:
        if verb == "start":
            assert world.is_running(), f"{where}: {ended}, but {world.left()}"
        else:
            world.check_nothing_left(f"{where}: {ended}")
    elif verb == "start" and "undoing it failed" not in ended.stderr and world.left():
        assert world.is_running(), (
            f"{where}: {ended}, but {world.left()}"
        )  # the error was in saying so
    world.run("stop", after=f"after {where}: {ended}")
    world.check_nothing_left(where)
    return Outcome(bool(hit), ended.status == 0)


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_every_syscall_fails_once(
    worlds: list[World], verb: str, whole: bool, figure: Callable[[int, str], None]
) -> None:
    world = worlds[0]
    walks: dict[bool, list[Point]] = {}
    for child in (False, True):
        if verb == "stop":
            world.run("start")
        walks[child] = [
            point for point in world.reference(verb, child=child) if point.name not in NEVER_FAIL
        ]
        world.run("stop")
    world.check_nothing_left("two references")

    tasks: list[Task] = []
    for child, walk in walks.items():
        chosen = (
            walk
            if whole
            else sample(walk, 0 if child else MORE, f"errors of {verb}", early=0 if child else MORE)
        )
        for number, point in enumerate(chosen):
            errors = ERRORS if whole else [ERRORS[number % len(ERRORS)]]
            tasks += [Task(point, child, error) for error in errors]
    outcomes = in_parallel(worlds, tasks, lambda world, task: strike(world, verb, task))

    hits = [outcome for outcome in outcomes if outcome.hit]
    assert len(hits) >= 0.85 * len(tasks), f"only {len(hits)} of {len(tasks)} errors were injected"
    total = sum(len(walk) for walk in walks.values()) * len(ERRORS)
    right = sum(outcome.succeeded for outcome in hits)
    figure(
        2,
        f"{len(hits)} of {total} errors ({', '.join(ERRORS)} at {total // len(ERRORS)} system calls of {verb}): "
        f"{right} right results, {len(hits) - right} named errors; clean after each, by e2fsck too",
    )


def _spread(walk: list[Point], name: str, most: int) -> list[Point]:
    """The first, the last and some between of the calls of one name."""
    found = [point for point in walk if point.name == name]
    return (
        [found[number * (len(found) - 1) // max(1, most - 1)] for number in range(most)]
        if found
        else []
    )


def test_errors_that_a_command_must_succeed_with(
    worlds: list[World], whole: bool, figure: Callable[[int, str], None]
) -> None:
    world = worlds[0]
    struck: dict[must_succeed.Rule, int] = dict.fromkeys(must_succeed.RULES, 0)
    for verb in ("start", "stop"):
        if verb == "stop":
            world.run("start")
        walk = world.reference(verb)
        world.run("stop")
        tasks: list[tuple[must_succeed.Rule, Task]] = []
        for rule in must_succeed.RULES:
            for name in rule.names:
                chosen = dict.fromkeys(_spread(walk, name, 40 if whole else 3))
                points = [point for point in chosen if point.count == 1 or not rule.first_only]
                errors = rule.errors if whole else rule.errors[:1]
                tasks += [(rule, Task(point, False, error)) for point in points for error in errors]
        outcomes = in_parallel(
            worlds, tasks, lambda world, each: (each[0], strike(world, verb, each[1]))
        )  # noqa: B023  # at once
        for rule, outcome in outcomes:
            struck[rule] += outcome.hit and outcome.succeeded
    missed = [rule for rule, count in struck.items() if not count]
    assert not missed, (
        f"no start and no stop makes these calls, or strace does not know them: {missed}"
    )
    figure(
        2,
        f"{sum(struck.values())} errors of {len(struck)} kinds with which start and stop must succeed: they did",
    )


def test_that_a_command_must_succeed_can_go_red(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a rule that is false: a record that is not on the disk does not count as written."""
    world = worlds[0]
    walk = world.reference("start")
    world.run("stop")
    false = must_succeed.Rule(("fsync",), ("EIO",), "it is not true")
    monkeypatch.setattr(must_succeed, "RULES", (false,))
    point = next(point for point in walk if point.name == "fsync")
    with pytest.raises(AssertionError, match="it is not true"):
        strike(world, "start", Task(point, False, "EIO"))
    world.run("stop")


@pytest.mark.parametrize("directory", ["run_dir", "config_dir"])
def test_what_the_kernel_refuses_is_not_the_callers_mistake(
    worlds: list[World], directory: str
) -> None:
    """Status 2 says that a command was wrongly given. Each look at a directory fails once, by any call."""
    world = worlds[0]
    calls = "%%stat,access,faccessat,faccessat2,open,openat,openat2"
    for verb in ("list", "info", "start", "stop"):
        for look in itertools.count(1):
            ended = subprocess.run(
                ["strace", "-o", world.place / "trace", "-P", getattr(world, directory), "-e"]
                + [f"inject={calls}:error={ERRORS[look % len(ERRORS)]}:when={look}"]
                + [sys.executable, "-m", "chrootfw", verb, *([world.name] * (verb != "list"))],
                env=world.env, capture_output=True, text=True, timeout=TIMEOUT, check=False,
            )  # fmt: skip
            said = f"{verb}, look {look}: {ended}"
            assert ended.returncode in (0, 1, 3, 4), said
            assert "Traceback" not in ended.stderr and "not a directory" not in ended.stderr, said
            if "INJECTED" not in (world.place / "trace").read_text():
                break
        assert look > 1, f"{verb} does not look at {directory}?"
        world.run("stop")
    world.check_nothing_left(directory)
