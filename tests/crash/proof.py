"""What "stopped" means, asked of the kernel without the product's code."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import kernelview
import roots


class Proof:
    """Checks after a stop that said so: nothing of the instance is left. ``checked`` counts them."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.checked = 0

    def __call__(
        self, name: str, disk: Path, pids: set[int] | frozenset[int] = frozenset()
    ) -> None:
        """Mounts gone, cgroup gone, processes gone, directory gone; loop device released and image clean."""
        __tracebackhide__ = True
        base = self.run_dir / name
        assert not (left := kernelview.mounts_below(base)), (
            f"false stop of {name}: {[str(mount) for mount in left]}"
        )
        left_cgroups = [
            p for p in kernelview.cgroups_of(kernelview.identity(self.run_dir)) if _is_of(p, name)
        ]
        assert not left_cgroups, f"false stop of {name}: cgroups {left_cgroups}"
        assert not (alive := {pid for pid in pids if kernelview.is_running(pid)}), (
            f"false stop of {name}: {alive} live"
        )
        assert not base.exists(), f"false stop of {name}: {os.listdir(base)} in its directory"
        if disk.is_file():
            assert not (loops := kernelview.loops_over(disk)), (
                f"false stop of {name}: {loops} over its image"
            )
            assert is_unused(disk), f"false stop of {name}: its image is open somewhere"
            roots.check_image(disk, "ext4")
        self.checked += 1


def is_unused(file: Path) -> bool:
    """Whether nobody in the kernel has a file open: then alone a write lease is granted (fcntl(2), F_SETLEASE)."""
    fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _is_of(cgroup: Path, name: str) -> bool:
    return cgroup.name.rpartition("@")[0] == name
