"""Limit an instance's memory through the cgroup of its start."""

from __future__ import annotations

import os

from chrootfw.errors import ChrootfwError, NotSupported, TransitionError
from chrootfw.linux import cgroups, mountinfo
from chrootfw.state import snapshot as snapshots

_MIB = 1 << 20
#: Parts of memory.stat that the kernel cannot take back without swap; see cgroup-v2.rst.
_FIXED = ("anon", "kernel", "sock", "shmem")


def require_controller(name: str) -> None:
    """Check that this node can limit the memory of an instance, before it is started.

    Args:
        name: The instance's name, for the error.

    Raises:
        NotSupported: The cgroups of instances have no memory controller here.
    """
    top = cgroups.hierarchies(mountinfo.Table)[0]
    if top is None or not cgroups.hands_down(top, "memory"):
        raise _without_controller(name)


def limit(run_dir: str, name: str, mebibytes: int) -> None:
    """Set `memory.max` of a running instance.

    A limit below the memory that the instance cannot give back is refused, because the kernel would
    kill its processes.

    Args:
        run_dir: The run directory.
        name: The instance's name.
        mebibytes: The limit in MiB.

    Raises:
        ChrootfwError: The limit is refused or cannot be set; the old limit stays.
    """
    if mebibytes <= 0:
        raise ChrootfwError(
            f"the memory of {name} cannot be limited to {mebibytes} MiB", hint="more than 0"
        )
    groups = snapshots.read_instance(run_dir, name).groups(name)
    if not groups:
        raise TransitionError(
            f"the memory of {name} cannot be limited: it has no cgroup on this node",
            hint="it must be running, on a node with a writable cgroup v2 hierarchy",
        )
    path = groups[-1]
    if not os.path.exists(f"{path}/memory.max"):
        raise _without_controller(name)
    used = _fixed(path)
    if used > mebibytes * _MIB:
        raise ChrootfwError(
            f"the memory of {name} cannot be limited to {mebibytes} MiB: {-(-used // _MIB)} MiB "
            "are in use that it cannot give back",
            hint="end some of its processes, or allow it more",
        )
    try:
        with open(f"{path}/memory.max", "w", encoding="ascii") as file:
            file.write(str(mebibytes * _MIB))
    except OSError as error:
        raise ChrootfwError(
            f"the memory of {name} cannot be limited to {mebibytes} MiB: {error.strerror} "
            f"({path}/memory.max)"
        ) from error


def _without_controller(name: str) -> NotSupported:
    return NotSupported(
        f"the memory of {name} cannot be limited: the cgroup v2 hierarchy of this node has "
        "no memory controller",
        hint="boot with systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1=memory; or leave "
        "memory out of extra_config",
    )


def _fixed(path: str) -> int:
    """Return the bytes in use by a cgroup that cannot be reclaimed."""
    with open(f"{path}/memory.stat", encoding="ascii") as file:
        counts = dict(line.split() for line in file)
    return sum(int(counts.get(key, 0)) for key in _FIXED)
