"""Row 5: while others swap the mount points and what is above them with symbolic links, nothing is mounted or
unmounted outside the root."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import kernelview
import pytest
import symlink_swapper
from proof import Proof

import chrootfw
from chrootfw.errors import StepError
from chrootfw.linux import mount_tree, mountinfo, umount
from chrootfw.model import MountPoint


@pytest.fixture
def outside_tree(tmp_path: Path, mounted: Callable[..., Path]) -> Path:
    """Where the links lead: the same directories, a mount on each of them that must stay, and stay alone."""
    top = mounted(tmp_path / "outside", "-t", "tmpfs", "witness")
    symlink_swapper.make_tree(top)
    for path in symlink_swapper.LEAVES:
        mounted(top / path, "-t", "tmpfs", "witness")
    return top


@pytest.fixture
def disk(tmp_path: Path, mounted: Callable[..., Path]) -> Path:
    """The tree that is attacked."""
    top = mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "mode=755", "disk")
    for path in ("dev", "etc", "proc", "run", "srv", "sys"):
        (top / path).mkdir()
    symlink_swapper.make_tree(top)
    return top


def _detached() -> list[mount_tree.Detached]:
    return [
        mount_tree.detach(MountPoint(f"/{path}", "tmpfs", "tmpfs"), "tmpfs", (), seconds=60)
        for path in symlink_swapper.LEAVES
    ]


def _only_inside(root: Path, before: dict[int, kernelview.Mounted]) -> int:
    """Fail if anything outside the root has changed; how many mounts are below it."""
    __tracebackhide__ = True
    top = os.fsencode(root) + b"/"
    now = kernelview.mount_table()
    inside = {mount for mount, entry in now.items() if entry.target.startswith(top)}
    escaped = [
        str(entry) for mount, entry in now.items() if mount not in inside and mount not in before
    ]
    lost = [str(entry) for mount, entry in before.items() if mount not in now]
    assert not escaped, f"escaped: {escaped}"
    assert not lost, f"unmounted outside: {lost}"
    return len(inside)


def test_no_sub_mount_is_made_or_unmounted_outside(
    disk: Path,
    outside_tree: Path,
    mounted: Callable[..., Path],
    tmp_path: Path,
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    """By what start and stop use: ``attach_parts`` and ``unmount``."""
    wanted = 100_000 if whole else 5_000
    root = mounted(tmp_path / "root", "--bind", str(disk))
    raw = os.fsencode(root)
    before = kernelview.mount_table()
    made = unmounted = refused = elsewhere = 0
    with symlink_swapper.swapping(disk, outside_tree) as swaps:
        while made < wanted:
            top = mount_tree.attached_root(MountPoint("/", "disk"), str(root))
            parts = _detached()
            for part in parts:
                try:
                    mount_tree.attach_parts(top, [part], [], seconds=60)
                    made += 1
                except StepError:
                    refused += 1
            for opened in (top, *parts):
                os.close(opened.fd)
            left = _only_inside(root, before)
            deadline = time.monotonic() + 30
            while left:
                below = mountinfo.list_mounts_below(raw)[:0:-1]
                outcomes, _ = umount.unmount(os.path.dirname(raw), below, seconds=60)
                unmounted += outcomes.count(0)
                elsewhere += len(below) - outcomes.count(0)
                left = _only_inside(root, before)
                assert time.monotonic() < deadline, f"{left} mounts cannot be unmounted"
        swapped = swaps()
    assert made == unmounted
    assert elsewhere, "the race was never met"
    assert swapped > made
    figure(
        5,
        f"{made} mounts and {unmounted} unmounts of sub-mounts during {swapped} swaps of mount points and their parents "
        f"with links to the outside: 0 escapes, no outside mount lost ({refused} mounts refused, {elsewhere} unmounts put off)",
    )


def test_no_start_or_stop_reaches_outside(
    disk: Path,
    outside_tree: Path,
    runtime: chrootfw.Runtime,
    run_dir: Path,
    tmp_path: Path,
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    """The same by whole starts, second starts on the mounted root, and stops."""
    source = tmp_path / "source"
    source.mkdir()
    binds = [f"{source}:/{path}" for path in symlink_swapper.LEAVES]
    web1 = chrootfw.Instance("web1", str(disk), None, {"binds": binds})
    before = kernelview.mount_table()
    proof = Proof(run_dir)
    rounds = 1000 if whole else 25
    started = again = 0
    with symlink_swapper.swapping(disk, outside_tree):
        for _ in range(rounds):
            for attempt in ("first", "again"):
                try:
                    runtime.start(web1)
                except StepError:
                    _only_inside(run_dir, before)
                    break
                started += attempt == "first"
                again += attempt == "again"
                _only_inside(run_dir, before)
            runtime.stop(web1)
            assert _only_inside(run_dir, before) == 0
            proof("web1", disk)
    assert started > rounds / 10, f"hardly any start came through: {started}"
    figure(
        5,
        f"{started} starts, {again} more on the mounted root, and {proof.checked} stops of an instance whose 8 binds and "
        f"their parents were swapped all the time: 0 escapes, no outside mount lost",
    )
    figure(8, f"swapped mount points: {proof.checked} stops that said 0, all proven")
