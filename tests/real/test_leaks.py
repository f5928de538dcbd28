"""The watch over what tests leave: it sees it, names it, and clears it away."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import kernelview
import leaks
import pytest
import roots
from driving import Chroot


def test_nothing_is_seen_where_nothing_is_left(ground: leaks.Ground) -> None:
    before = ground.snapshot()
    assert ground.snapshot().differences(before) == []


def test_a_lost_mount_is_seen(
    ground: leaks.Ground, tmp_path: Path, mounted: Callable[..., Path]
) -> None:
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
    kernelview.wait_until(
        lambda: not kernelview.loops_over(image), "the kernel let go of the image"
    )
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


@pytest.mark.parametrize("is_ours", [True, False])
def test_an_orphan_of_other_tests_is_not_blamed_on_this_one(
    ground: leaks.Ground, is_ours: bool
) -> None:
    """What a verb of theirs began in this namespace, where the verb itself was killed."""
    before = ground.snapshot()
    given = {} if is_ours else {kernelview.WORKER: "1"}
    command = ["sh", "-c", "sleep 3600 > /dev/null 2>&1 & echo $!"]
    done = subprocess.run(
        command, env={**os.environ, **given}, check=True, capture_output=True, text=True
    )
    pid = int(done.stdout)
    try:
        left = [line for line in ground.snapshot().differences(before) if f"process {pid}" in line]
        assert bool(left) == is_ours
    finally:
        os.kill(pid, signal.SIGKILL)
    kernelview.wait_until(lambda: not kernelview.is_running(pid), "it has ended")


def test_what_was_killed_and_ends_soon_is_not_left(
    ground: leaks.Ground, tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    """A write to a frozen file system hears KILL when that is thawed."""
    image = roots.make_image(tmp_path / "frozen.img", "ext4")
    place = mounted(tmp_path / "place", "-o", "loop", str(image))
    before = ground.snapshot()
    subprocess.run(["fsfreeze", "-f", str(place)], check=True)
    thaw = threading.Timer(0.5, subprocess.run, [["fsfreeze", "-u", str(place)]])
    with subprocess.Popen(["touch", place / "file"]) as writer:
        try:
            state = Path(f"/proc/{writer.pid}/stat")
            kernelview.wait_until(lambda: ") D " in state.read_text(), "the write waits")
            seen = ground.snapshot().differences(before)
            writer.kill()
            thaw.start()
            assert ground.snapshot().differences(before) == []
        finally:
            thaw.join() if thaw.ident else subprocess.run(thaw.args[0], check=False)
    assert seen == [f"left: process {writer.pid} (touch)"]
