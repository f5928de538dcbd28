"""Row 6: whatever tree of mounts is in a root, a stop takes all of it down, and nothing else."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import kernelview
import mount_trees
from proof import Proof

import chrootfw

_DIRECTORIES = ("dev", "etc", "proc", "run", "srv/a/b", "srv/c", "sys")


def _grow_from_inside(root: Path, seed: int, steps: int) -> Counter[str]:
    """A tree made by a process that has its root there, and ends."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.chroot(root)
            os.chdir("/")
            tree = mount_trees.Tree(b"", b"/outside", random.Random(seed))
            tree.grow(steps)
            os.write(theirs, json.dumps(tree.done).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        done = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, f"seed {seed}"
    return Counter(json.loads(done))


def test_every_tree_comes_down_to_nothing(
    runtime: chrootfw.Runtime,
    run_dir: Path,
    tmp_path: Path,
    mounted: Callable[..., Path],
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    trees = 1000 if whole else 60
    witness = mounted(tmp_path / "witness", "-t", "tmpfs", "witness")
    mounted(witness / "below", "-t", "tmpfs", "witness")
    neighbour = tmp_path / "neighbour"
    for directory in _DIRECTORIES:
        (neighbour / directory).mkdir(parents=True)
    with runtime.running(chrootfw.Instance("web10", str(neighbour), None)):
        proof = Proof(run_dir)
        possible: Counter[str] = Counter()
        mounts = 0
        for seed in range(trees):
            disk = tmp_path / f"disk{seed}"
            for directory in _DIRECTORIES:
                (disk / directory).mkdir(parents=True)
            before = kernelview.mount_table()
            runtime.start(chrootfw.Instance("web1", str(disk), None))
            root = run_dir / "web1/root"
            if seed % 3 == 2:
                done = _grow_from_inside(root, seed, 40)
            else:
                tree = mount_trees.Tree(
                    os.fsencode(root), os.fsencode(witness), random.Random(seed)
                )
                tree.grow(40)
                done = tree.done
            during = kernelview.mount_table()
            below = {mount.id for mount in kernelview.mounts_below(root)}
            assert {i: m for i, m in during.items() if i not in below} == before, (
                f"seed {seed}: the test went outside"
            )
            possible += done
            mounts += len(below)

            runtime.stop("web1")

            assert kernelview.mount_table() == before, f"seed {seed}"
            proof("web1", disk)
    assert proof.checked == trees
    for kind in ("plain", "stacked", "hidden", "moved", "beneath", "shared"):
        assert possible[kind] > trees / 4, f"hardly any mount is {kind}: {possible}"
    figure(
        6,
        f"{proof.checked} of {trees} random trees taken down to nothing, {mounts} mounts ({possible['stacked']} stacked, "
        f"{possible['hidden']} hiding others, {possible['moved']} moved, {possible['beneath']} put beneath, "
        f"{possible['shared']} made shared); no other mount changed",
    )
    figure(8, f"random mount trees: {proof.checked} stops that said 0, all proven")
