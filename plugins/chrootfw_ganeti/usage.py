"""What instances with a cgroup use, read in the fewest steps: Ganeti asks for all of them every few seconds."""

from __future__ import annotations

import os

from chrootfw.system import cgroups, mounts, store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PAGE = os.sysconf("SC_PAGE_SIZE")


def populated(run_dir: str) -> dict[str, list[str]]:
    """The cgroups of the instances that surely run; whether another one does, only ``inventory`` can say."""
    if not os.path.isdir(run_dir):
        return {}
    store.check_trusted(run_dir, what="run directory")
    top = cgroups.hierarchies(mounts.read_table)[0]
    if top is None:
        return {}
    found = cgroups.everything(cgroups.home(top, run_dir))
    return {name: paths for name, paths in found.items() if any(cgroups.is_populated(path) for path in paths)}


def memory_bytes(paths: Sequence[str]) -> int:
    """What the cgroups count; without a memory controller the resident memory of their processes."""
    counted = [count for path in paths if (count := cgroups.memory_bytes(path)) is not None]
    return sum(counted) if counted else sum(_resident(pid) for path in paths for pid in cgroups.pids(path))


def cpu_seconds(paths: Sequence[str]) -> float:
    """User and system time of everything that ran in the cgroups."""
    return sum(cgroups.cpu_seconds(path) or 0.0 for path in paths)


def _resident(pid: int) -> int:
    try:
        fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0  # it has ended
    try:
        return int(os.read(fd, 256).split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
    finally:
        os.close(fd)
