"""Whole commands: what the shell's user waits for, the interpreter included."""

from __future__ import annotations

import functools
import resource
import time
from collections.abc import Callable, Iterator
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
from world import CLEAN, ONE, World

import chrootfw

KEY = "commands"
TITLE = "whole process"

#: The ones whose list or exec is a command; lxc and crun cannot be beaten by what starts an interpreter, and are shown.
BESIDE = (peers.Schroot, peers.Runc, peers.Crun, peers.Lxc, peers.Podman)

#: The budget of the quick verbs, in place of lists of what they may import: so many times the processor time of an empty
#: console script, with one instance.
BUDGET = {"--version": 3.0, "list": 3.0, "info": 4.0, "ps": 4.0, "exec true": 4.0}

#: At which goal a peer's list must be slower than chrootfw's, in instances.
SLOWER_FROM = {"schroot": 100, "runc": 100, "podman": 1}


def run(world: World, *, quick: bool) -> Iterator[Row]:
    installed = world.python()
    runtime = world.runtime()
    world.environment |= {
        "CHROOTFW_RUN_DIR": runtime.run_dir,
        "CHROOTFW_CONFIG_DIR": runtime.config_dir,
        "CHROOTFW_LOG_DIR": runtime.log_dir,
    }
    try:
        yield from _lists(world, runtime, installed, quick=quick)
        yield from _quick_verbs(world, runtime, installed, quick=quick)
        yield _budget(world, runtime, installed, quick=quick)
        yield _start_and_stop(world, runtime, installed, quick=quick)
    finally:
        world.stop_all(runtime)


def _command(world: World, *words: str | Path) -> Contestant:
    def run() -> None:
        world.run(*words)

    return run


def _processor_time(world: World, *words: str | Path) -> Contestant:
    """The processor time of a command and its children, which other work on the machine changes less than the time that passes."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def run() -> float:
        before = used()
        world.run(*words)
        return used() - before

    return run


# -- list -------------------------------------------------------------------------------------------


def _lists(
    world: World, runtime: chrootfw.Runtime, installed: Path, *, quick: bool
) -> Iterator[Row]:
    counts = (1, 3) if quick else (1, 10, 100, 300)
    beside, notes = peers.available(world, *BESIDE)
    names: dict[str, list[str]] = {name: [] for name in beside}
    failed: dict[str, peers.Peer] = {}
    started = 0
    try:
        for count in counts:
            for name, peer in list(beside.items()):
                try:
                    peer.fill(count - started, names[name])
                except (
                    RuntimeError,
                    TimeoutError,
                ) as error:  # some have limits that a machine's settings give
                    notes.append(
                        f"{name} is not measured with {count} instances, it failed to start them: {error}"
                    )
                    failed[name] = beside.pop(name)
            _fill(world, runtime, count - started)
            started = count
            contestants = {
                "chrootfw list": _command(world, installed / "chrootfw", "list"),
                "empty console script": _command(world, installed / "empty"),
                **{peer.name: peer.listing for peer in beside.values()},
            }
            taken = interleaved(contestants, rounds=5 if quick else 31, at_most=60)
            goals: list[Goal] = []
            for name, least in SLOWER_FROM.items():
                if count >= least or quick:
                    text, faster = f"times faster than {name}", times(taken, name, "chrootfw list")
                    why = next((note for note in notes if note.startswith(name)), "")
                    goals.append(
                        not_measured(text, why, 1.0) if why else at_least(text, faster, 1.0)
                    )
            yield Row(
                f"{KEY}-list-{count}",
                f"chrootfw list, {TITLE}: {count} instances",
                taken,
                goals,
                notes,
            )
    finally:
        for name, peer in (beside | failed).items():
            peer.clear(names[name])
    world.stop_all(runtime)
    yield _list_beside_ganeti(world, runtime, installed, quick=quick)


def _list_beside_ganeti(
    world: World, runtime: chrootfw.Runtime, installed: Path, *, quick: bool
) -> Row:
    """Ganeti reads all by one process that runs anyway; no interpreter is counted for it."""
    count, others = (3, 10) if quick else (100, 200)
    text = "times faster than Ganeti's way"
    title = (
        f"chrootfw list, {TITLE}: {count} instances, {others} other processes, beside Ganeti's way"
    )
    ganeti = peers.Ganeti(world)
    if why := ganeti.available():
        return Row(f"{KEY}-list-ganeti", title, {}, [not_measured(text, why, 150)], [])
    names: list[str] = []
    try:
        ganeti.fill(count, names)
        _fill(world, runtime, count)
        with world.others(others):
            contestants = {
                "chrootfw list": _command(world, installed / "chrootfw", "list"),
                "hv_chroot, in process": ganeti.listing,
            }
            taken = interleaved(contestants, rounds=3 if quick else 9)
    finally:
        world.stop_all(runtime)
        ganeti.clear(names)
    faster = times(taken, "hv_chroot, in process", "chrootfw list")
    return Row(f"{KEY}-list-ganeti", title, taken, [at_least(text, faster, 150)], [])


def _fill(world: World, runtime: chrootfw.Runtime, count: int) -> None:
    for _ in range(count):
        runtime.start(chrootfw.Instance(world.name(), disk=str(world.root(ONE, linked=True))))


# -- --version, info, exec ----------------------------------------------------------------------------


def _quick_verbs(
    world: World, runtime: chrootfw.Runtime, installed: Path, *, quick: bool
) -> Iterator[Row]:
    name = world.name()
    runtime.start(chrootfw.Instance(name, disk=str(world.root())))
    beside, notes = peers.available(world, *BESIDE)
    theirs: dict[str, list[str]] = {kind: [] for kind in beside}
    shown = _quick_words(name, "--version", "info", "exec true")
    command = installed / "chrootfw"
    contestants: dict[str, Contestant] = {
        "empty console script": _command(world, installed / "empty"),
        **{f"chrootfw {title}": _command(world, command, *words) for title, words in shown.items()},
        "chroot true": _command(world, "chroot", f"{runtime.run_dir}/{name}/root", "/bin/true"),
    }
    try:
        for kind, peer in beside.items():
            peer.fill(1, theirs[kind])
            contestants[f"{kind} exec true"] = functools.partial(
                peer.run, theirs[kind][0], "/bin/true"
            )
        taken = interleaved(contestants, rounds=5 if quick else 41, at_most=90)
    finally:
        for kind, peer in beside.items():
            peer.clear(theirs[kind])
        runtime.stop(name, force=True)
    yield Row(f"{KEY}-quick", f"--version, info, exec true, {TITLE}", taken, [], notes)


def _quick_words(name: str, *titles: str) -> dict[str, list[str]]:
    words = {
        "--version": ["--version"],
        "list": ["list"],
        "info": ["info", name],
        "ps": ["ps", name],
        "exec true": ["exec", name, "--", "/bin/true"],
    }
    return {title: words[title] for title in titles}


def _budget(world: World, runtime: chrootfw.Runtime, installed: Path, *, quick: bool) -> Row:
    name = world.name()
    runtime.start(chrootfw.Instance(name, disk=str(world.root())))
    contestants = {"empty console script": _processor_time(world, installed / "empty")}
    for title, words in _quick_words(name, *BUDGET).items():
        contestants[f"chrootfw {title}"] = _processor_time(world, installed / "chrootfw", *words)
    try:
        taken = interleaved(contestants, rounds=5 if quick else 41, at_most=90)
    finally:
        runtime.stop(name, force=True)
    goals = [
        at_most(
            f"{title}: times an empty console script",
            times(taken, f"chrootfw {title}", "empty console script"),
            limit,
        )
        for title, limit in BUDGET.items()
    ]
    return Row(f"{KEY}-budget", "quick verbs, processor time", taken, goals, [])


# -- start and stop -----------------------------------------------------------------------------------


def _start_and_stop(
    world: World, runtime: chrootfw.Runtime, installed: Path, *, quick: bool
) -> Row:
    """The same start and stop in process tell what the work itself takes."""
    name, disk, command = world.name(), world.image(CLEAN), installed / "chrootfw"
    Path(runtime.config_dir, f"{name}.toml").write_text(f'disk = "{disk}"\n')
    beside, notes = peers.available(world, peers.Crun, peers.Runc, peers.Podman, peers.Schroot)
    theirs = {kind: peer.create() for kind, peer in beside.items()}

    def cli_start() -> float:
        seconds = _timed(lambda: world.run(command, "start", name))
        runtime.stop(name)
        return seconds

    def cli_stop() -> float:
        runtime.start(name)
        return _timed(lambda: world.run(command, "stop", name))

    def start() -> float:
        seconds = _timed(lambda: runtime.start(name))
        runtime.stop(name)
        return seconds

    def stop() -> float:
        runtime.start(name)
        return _timed(lambda: runtime.stop(name))

    contestants: dict[str, Contestant] = {
        "empty console script": _command(world, installed / "empty"),
        "a script that imports pluggy, attrs, argparse": _command(world, installed / "imports"),
        "chrootfw start": cli_start,
        "chrootfw stop": cli_stop,
        "chrootfw start, in process": start,
        "chrootfw stop, in process": stop,
    }
    samples: dict[str, list[float]] = {
        f"{kind} {what}": [] for kind in beside for what in ("start", "stop")
    }

    def life(kind: str) -> None:
        samples[f"{kind} start"].append(_timed(lambda: beside[kind].start(theirs[kind])))
        samples[f"{kind} stop"].append(_timed(lambda: beside[kind].stop(theirs[kind])))

    for kind in beside:
        contestants[kind] = functools.partial(life, kind)
    taken = interleaved(contestants, rounds=3 if quick else 21, at_most=180)
    taken = {who: seconds for who, seconds in taken.items() if who not in beside}
    taken |= {who: seconds[1:] for who, seconds in samples.items()}  # the first is the warm-up
    goals: list[Goal] = []
    imports = median(taken["a script that imports pluggy, attrs, argparse"])
    for verb in ("start", "stop"):
        rest = median(taken[f"chrootfw {verb}"]) - median(taken[f"chrootfw {verb}, in process"])
        goals.append(
            at_most(
                f"{verb} without the work itself: times the script that only imports",
                rest / imports,
                1.3,
            )
        )
    return Row(f"{KEY}-life", f"start and stop, {TITLE}: image, 3 daemons", taken, goals, notes)


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
