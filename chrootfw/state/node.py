"""Describe the machine: memory, CPUs, load, instances, disk space."""

from __future__ import annotations

import os

import psutil

from chrootfw.linux import deadlines
from chrootfw.state import show
from chrootfw.views import InstanceState, NodeInfo

_MIB = 1 << 20
#: Seconds for a file system to answer.
_ANSWER_TIMEOUT = 5.0


def info(run_dir: str, config_dir: str) -> NodeInfo:
    """Read memory, CPUs, load and disk space of the machine, and count its instances.

    ``memory_dom0_mib`` is what the machine itself uses, as Ganeti's ``memory_dom0``: the total less
    what is available and what the instances use.

    Args:
        run_dir: The run directory.
        config_dir: The directory of the definitions.

    Returns:
        The figures, sizes in MiB. An image's directory that does not answer in time has none.

    Raises:
        TrustError: A user other than root can change the run directory.
        PrivilegeError: The caller may not read the instances.
    """
    memory = psutil.virtual_memory()
    instances = show.show_all(run_dir, config_dir)
    present = [shown for shown in instances if shown.state != InstanceState.ABSENT]
    used = sum(shown.memory_bytes or 0 for shown in present)
    total, free = _space(run_dir)
    disks: dict[str, dict[str, object]] = {}
    for shown in present:
        if not shown.disk or shown.disk.startswith("/dev/"):
            continue
        place = os.path.dirname(shown.disk)
        if place in disks:
            continue
        try:
            deadlines.check_answers(shown.disk, seconds=_ANSWER_TIMEOUT)
        except deadlines.DeadlineExceeded:
            disks[place] = {"path": place, "total_mib": None, "free_mib": None}
            continue
        if os.path.exists(shown.disk):
            disk_total, disk_free = _space(place)
            disks[place] = {"path": place, "total_mib": disk_total, "free_mib": disk_free}
    return NodeInfo(
        memory_total_mib=memory.total // _MIB,
        memory_free_mib=memory.free // _MIB,
        memory_available_mib=memory.available // _MIB,
        memory_dom0_mib=max(0, memory.total - memory.available - used) // _MIB,
        cpus=psutil.cpu_count() or 1,
        load=os.getloadavg(),
        instances=len(present),
        running=sum(shown.state == InstanceState.RUNNING for shown in present),
        run_dir_total_mib=total,
        run_dir_free_mib=free,
        image_disks=list(disks.values()),
    )


def _space(path: str) -> tuple[int, int]:
    """Read the size of a file system, and the free space, in MiB.

    Args:
        path: A path on the file system. Where it does not exist, the next directory above that
            exists is taken.
    """
    while not os.path.exists(path):
        path = os.path.dirname(path)
    usage = psutil.disk_usage(path)
    return usage.total // _MIB, usage.free // _MIB
