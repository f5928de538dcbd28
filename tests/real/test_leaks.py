"""The watch over what tests leave: it sees it, names it, and clears it away."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import kernelview
import leaks
import roots
from driving import Chroot


def test_nothing_is_seen_where_nothing_is_left(ground: leaks.Ground) -> None:
    before = ground.snapshot()
    assert ground.snapshot().differences(before) == []


def test_a_lost_mount_is_seen(ground: leaks.Ground, tmp_path: Path, mounted: Callable[..., Path]) -> None:
    place = mounted(tmp_path / "place", "-t", "tmpfs", "tmpfs")
    before = ground.snapshot()
    subprocess.run(["umount", str(place)], check=True)
    (lost,) = ground.snapshot().differences(before)
    assert lost.startswith("lost: mount")
    assert str(place) in lost


def test_what_is_left_is_named_and_cleared_away(ground: leaks.Ground, tmp_path: Path) -> None:
    before = ground.snapshot()
    place = tmp_path / "place"
    place.mkdir()
    image = roots.make_image(tmp_path / "left.img", "ext4")
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    with subprocess.Popen(["sleep", "3600"], cwd=place) as process:
        after = ground.snapshot()
        left = "\n".join(after.differences(before))
        assert f"on {str(place)!r}" in left
        assert f"over {image}" in left
        assert f"process {process.pid} (sleep)" in left

        after.clear(before)
        assert process.wait() == -9
    kernelview.wait_until(lambda: not kernelview.loops_over(image), "the kernel let go of the image")
    assert ground.snapshot().differences(before) == []


def test_a_whole_instance_that_is_left_is_named_and_cleared_away(
    ground: leaks.Ground, web1: Chroot, tracking: str
) -> None:
    before = ground.snapshot()
    web1.start()
    after = ground.snapshot()
    left = "\n".join(after.differences(before))
    assert f"on {str(web1.root)!r}" in left
    assert f"directory {web1.root.parent}" in left
    assert "(sleep)" in left
    assert (f"cgroup {kernelview.cgroup_hierarchy()}/chrootfw/" in left) == (tracking == "cgroup")

    after.clear(before)

    assert ground.snapshot().differences(before) == []
