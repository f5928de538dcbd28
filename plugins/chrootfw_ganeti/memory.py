"""A limit on an instance's memory, by the cgroup of its start."""

from __future__ import annotations

import os

from chrootfw.errors import ChrootfwError, NotSupported, TransitionError
from chrootfw.inventory import Survey

_MIB = 1 << 20
#: Parts of memory.stat that the kernel cannot take back without swap; see cgroup-v2.rst.
_FIXED = ("anon", "kernel", "sock", "shmem")


def limit(run_dir: str, name: str, mebibytes: int) -> None:
    """Set ``memory.max`` of a running instance. Raises ``ChrootfwError``; the limit is then as before.

    A limit below what the instance cannot give back is refused: the kernel would kill its processes.
    """
    if mebibytes <= 0:
        raise ChrootfwError(f"the memory of {name} cannot be limited to {mebibytes} MiB", hint="more than 0")
    groups = Survey(run_dir).cgroups.get(name, [])
    if not groups:
        raise TransitionError(
            f"the memory of {name} cannot be limited: it has no cgroup on this node",
            hint="it must be running, on a node with a writable cgroup v2 hierarchy",
        )
    path = groups[-1]
    if not os.path.exists(f"{path}/memory.max"):
        raise NotSupported(
            f"the memory of {name} cannot be limited: the cgroup v2 hierarchy of this node has no memory controller",
            hint="boot with systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1=memory",
        )
    used = _fixed(path)
    if used > mebibytes * _MIB:
        raise ChrootfwError(
            f"the memory of {name} cannot be limited to {mebibytes} MiB: {-(-used // _MIB)} MiB are in use that it cannot "
            "give back",
            hint="end some of its processes, or allow it more",
        )
    try:
        with open(f"{path}/memory.max", "w", encoding="ascii") as file:
            file.write(str(mebibytes * _MIB))
    except OSError as error:
        raise ChrootfwError(
            f"the memory of {name} cannot be limited to {mebibytes} MiB: {error.strerror} ({path}/memory.max)"
        ) from error


def _fixed(path: str) -> int:
    """Bytes that the cgroup uses and that cannot be reclaimed."""
    with open(f"{path}/memory.stat", encoding="ascii") as file:
        counts = dict(line.split() for line in file)
    return sum(int(counts.get(key, 0)) for key in _FIXED)
