"""Read what instances use from their cgroups, in few steps: Ganeti asks every few seconds."""

from __future__ import annotations

import os
from typing import NamedTuple

from chrootfw.linux import cgroups
from chrootfw.state import ownership, process_details, show
from chrootfw.state import snapshot as snapshots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from chrootfw.state.snapshot import Snapshot


class Usage(NamedTuple):
    """What an instance uses.

    Attributes:
        memory_bytes: The memory that its cgroups count, in bytes; without a memory controller its
            processes' shares, summed up.
        cpu_seconds: User and system time of everything that ran in its cgroups.
    """

    memory_bytes: int
    cpu_seconds: float


def find_populated(run_dir: str) -> set[str]:
    """Find the instances that surely run, by their cgroups.

    Whether another instance runs, only `ownership.read_state` can tell.
    """
    return {name for _, name in _populated(run_dir)}


def read_all(run_dir: str) -> dict[str, Usage]:
    """Read what the instances use that surely run, by the instance's name.

    The processes of all instances have one deadline together.
    """
    found = {}
    uncounted = {}
    for snapshot, name in _populated(run_dir):
        groups = snapshot.groups(name)
        counted = show.count_memory(snapshot, name)
        if counted is None:
            uncounted[name] = [pid for path in groups for pid in cgroups.pids(path)]
        memory = counted[0] if counted else 0
        seconds = sum(cgroups.cpu_seconds(path) or 0.0 for path in groups)
        found[name] = Usage(memory, seconds)
    memory_of_each = process_details.sum_memory(list(uncounted.values()))
    for name, memory in zip(uncounted, memory_of_each, strict=True):
        found[name] = found[name]._replace(memory_bytes=memory)
    return found


def _populated(run_dir: str) -> Iterator[tuple[Snapshot, str]]:
    if not os.path.isdir(run_dir):
        return
    snapshot = snapshots.read_snapshot(run_dir, cgroups_only=True)
    for name in snapshot.cgroups:
        try:
            if not ownership.Judge(snapshot, name).read_tracked().is_populated:
                continue
        except OSError:
            continue  # read_state reports why
        yield snapshot, name
