"""The machine as chrootfw sees it, and the hard way to restart it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

import psutil

from chrootfw import inventory
from chrootfw.errors import ChrootfwError
from chrootfw.system import deadlines
from chrootfw.views import InstanceState, NodeInfo

_MIB = 1 << 20
#: Seconds for a file system to say how full it is.
_DISK_ANSWERS = 5.0


def info(run_dir: str, config_dir: str) -> NodeInfo:
    """Memory, CPUs, load, instances, disk space; sizes in MiB.

    ``memory_dom0_mib`` is what the node itself uses: total less available, less what the instances use (Ganeti's
    ``memory_dom0``).
    """
    memory = psutil.virtual_memory()
    instances = inventory.show_all(run_dir, config_dir)
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
            deadlines.check_answers(shown.disk, seconds=_DISK_ANSWERS)
        except deadlines.Overdue:
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
    """Total and free MiB of the file system that ``path``, or the next directory above that exists, is on."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    usage = psutil.disk_usage(path)
    return usage.total // _MIB, usage.free // _MIB


def powercycle(
    trigger: str = "/proc/sysrq-trigger",
    switch: str = "/proc/sys/kernel/sysrq",
    reboot: Sequence[str] = ("reboot", "-n", "-f"),
) -> str:
    """Restart the machine at once, without stopping anything: what was done, in words.

    By the kernel's sysrq ``b`` (sysrq.rst), as Ganeti does; by ``reboot`` where that cannot be written. Raises ``ChrootfwError``.
    """
    try:
        try:
            _write(switch, "1\n")
        except OSError:
            pass  # a kernel that has sysrq always on takes the trigger all the same
        _write(trigger, "b\n")
    except OSError as error:
        reason = f"{trigger}: {error.strerror}"
    else:
        return f"asked the kernel for a reset ({trigger})"
    try:
        subprocess.run(list(reboot), check=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        raise ChrootfwError("cannot restart this machine", [reason, f"{' '.join(reboot)}: {error}"]) from error
    return f"{reason}; asked {' '.join(reboot)}"


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
