"""Row 18: two instances on one image, or two verbs on one instance, begun at the same moment."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import at_once
import kernelview
from proof import Proof

import chrootfw


def _own_runtime(run_dir: Path, config_dir: Path) -> chrootfw.Runtime:
    return chrootfw.Runtime(run_dir=str(run_dir), config_dir=str(config_dir), lock_timeout=60)


def test_two_instances_never_share_an_image(
    image: Callable[..., Path],
    run_dir: Path,
    config_dir: Path,
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    disk = image()
    rounds = 1000 if whole else 60
    proof = Proof(run_dir)
    won: Counter[str] = Counter()

    def start(name: str) -> str:
        runtime = _own_runtime(run_dir, config_dir)
        return str(runtime.start(chrootfw.Instance(name, str(disk), None)).state)

    workers = {name: at_once.Worker(start) for name in ("web1", "web2")}
    try:
        for number in range(rounds):
            names = list(workers)[:: 1 if number % 2 else -1]
            for name in names:
                workers[name].begin(name)
            answers = {name: workers[name].end() for name in names}
            loops = kernelview.loops_over(disk)
            places = [m.target for m in kernelview.mount_table().values() if m.source in loops]
            assert len(loops) == 1, f"{loops} over one image, {answers}"
            (winner,) = [
                name for name, answer in answers.items() if not isinstance(answer, at_once.Failed)
            ]
            (loser,) = set(names) - {winner}
            assert places == [os.fsencode(run_dir / winner / "root")], f"{places}, {answers}"
            assert answers[winner] == "mounted"
            assert (
                answers[loser].kind == "DiskError" and f"instance {winner}" in answers[loser].brief
            ), answers
            runtime = _own_runtime(run_dir, config_dir)
            runtime.stop(winner)
            for name in names:
                proof(name, disk)
            won[winner] += 1
    finally:
        for worker in workers.values():
            worker.close()
    figure(
        18,
        f"two instances on one image started at once {rounds} times: one started ({won['web1']} and {won['web2']} times), "
        f"the other was told whose the image is, {rounds} of {rounds}; never both",
    )
    figure(8, f"two instances on one image: {rounds} stops that said 0, all proven")


def test_a_cleanup_and_a_start_leave_no_mount_without_an_owner(
    make_root: Callable[..., Path],
    run_dir: Path,
    config_dir: Path,
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    disk = make_root()
    instance = chrootfw.Instance("web1", str(disk), None)
    rounds = 1000 if whole else 60
    proof = Proof(run_dir)
    dice = random.Random(18)
    came: Counter[str] = Counter()
    looked = 0
    (config_dir / "web1.toml").write_text(f'disk = "{disk}"\ninit_script = false\n')

    def do(verb: str) -> str:
        runtime = _own_runtime(run_dir, config_dir)
        return str((runtime.start if verb == "start" else runtime.cleanup)(instance).state)

    def watch(times: int) -> list[int]:
        """Look as long as the others work: how often, and how often it was mounted; what is wrong is raised."""
        runtime = _own_runtime(run_dir, config_dir)
        seen = 0
        for _ in range(times):
            seen += _look(runtime, run_dir)
        return [times, seen]

    workers = {verb: at_once.Worker(do) for verb in ("start", "cleanup")}
    watcher = at_once.Worker(watch)
    runtime = _own_runtime(run_dir, config_dir)
    mounted = 0
    try:
        for number in range(rounds):
            if dice.random() < 0.5:
                runtime.start(instance)
            watcher.begin(12)
            verbs = list(workers)[:: 1 if number % 2 else -1]
            for verb in verbs:
                workers[verb].begin(verb)
            answers = {verb: workers[verb].end() for verb in verbs}
            times, seen = watcher.end()
            looked += times
            mounted += seen
            for answer in answers.values():
                assert not isinstance(answer, at_once.Failed), answers
            if kernelview.mounts_below(run_dir / "web1"):
                assert _record(run_dir)["phase"] == "started", answers
                assert str(runtime.info("web1").state) == "mounted", answers
                came["mounted"] += 1
            else:
                proof("web1", disk)
                assert str(runtime.info("web1").state) == "absent", answers
                came["absent"] += 1
            runtime.stop("web1")
            proof("web1", disk)
    finally:
        for worker in (*workers.values(), watcher):
            worker.close()
    assert came["mounted"] and came["absent"], f"no race: {came}"
    assert 0 < mounted < looked
    figure(
        18,
        f"a cleanup and a start of one instance at once {rounds} times: {came['mounted']} times mounted and recorded, "
        f"{came['absent']} times nothing left; {looked} looks meanwhile, {mounted} at a mounted root: never without its "
        f"record, never called absent",
    )
    figure(8, f"cleanup against start: {proof.checked} stops and cleanups that said 0, all proven")


def _record(run_dir: Path) -> dict[str, object]:
    return dict(json.loads((run_dir / "web1/record.json").read_text()))


def _look(runtime: chrootfw.Runtime, run_dir: Path) -> bool:
    """Whether it is mounted; fails if it was so all the time, and had no record or was called absent."""
    root = run_dir / "web1/root"
    before = kernelview.mount_on(root)
    recorded = (run_dir / "web1/record.json").exists()
    answers = {info.name: str(info.state) for info in runtime.list()}
    after = kernelview.mount_on(root)
    if before is None or after is None or before.id != after.id:
        return False
    assert recorded, "mounted, and there is no record"
    assert answers["web1"] != "absent", "mounted, and called absent"
    return True
