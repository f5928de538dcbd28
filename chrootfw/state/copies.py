"""Find the copies of an instance's mounts that other mount namespaces have. Nothing is changed."""

from __future__ import annotations

import errno

from chrootfw.linux import mount_copies, mountinfo, procfs
from chrootfw.state.disks import disk_devices
from chrootfw.views import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from chrootfw.state.record import RecordedDisk, StartRecord


def select_wanted(name: str, recorded: Iterable[RecordedDisk]) -> mount_copies.Wanted:
    """Return what to search for in other mount namespaces: mounts of the disks that are in use.

    Args:
        name: The instance.
        recorded: Its disks, as the start record has them.
    """
    busy = [disk for disk in recorded if disk.devices and disk_devices([disk])]
    return mount_copies.Wanted(
        name,
        {device for disk in busy for device in disk.devices},
        {disk.loop or disk.path for disk in busy},
    )


def find_copies(name: str, record: StartRecord) -> list[mount_copies.Stay]:
    """Find the mounts in other mount namespaces that keep an instance's disks busy.

    Args:
        name: The instance. It has no mounts of its own any more.
        record: Its start record.
    """
    wanted = select_wanted(name, record.disks)
    spaces = mount_copies.with_processes()
    found = [each for space in spaces for each in mount_copies.list_stays(space, wanted)]
    return found + find_kept_copies(wanted, [space.number for space in spaces])


def find_kept_copies(
    wanted: mount_copies.Wanted, known: Collection[int]
) -> list[mount_copies.Stay]:
    """Find the mounts of an instance's disks in mount namespaces that have no process.

    Args:
        wanted: What to search for.
        known: The inodes of the mount namespaces that were searched before.

    Returns:
        The lowest copy in each namespace; for one that cannot be entered, why.
    """
    found: list[mount_copies.Stay] = []
    for space in mount_copies.without_processes(known, mountinfo.pieces()):
        try:
            order = mount_copies.trees(mount_copies.read_mounts(space, wanted), wanted)
        except OSError as error:
            found += mount_copies.describe_unknown(space, error)
            continue
        found += [mount_copies.kept(space, order[-1])] if order else []
    return found


def list_namespaces(stays: Iterable[mount_copies.Stay], users: Iterable[Process]) -> list[Process]:
    """Return the mount namespaces that keep a disk busy, each once, as holders.

    Args:
        stays: The mounts of the disk in these namespaces.
        users: The processes that use the disk. A namespace whose processes are among them is left
            out: they are named already.
    """
    named = {process.pid for process in users}
    found: dict[int, Process] = {}
    for each in stays:
        space = each.space
        if space.number in found or (each.code == errno.EBUSY and not named.isdisjoint(space.pids)):
            continue
        pid = space.pid
        who = (
            (procfs.command(pid), procfs.user(pid))
            if pid
            else (f"mount namespace {space.number}", "root")
        )
        found[space.number] = Process(pid, *who, "namespace", each.what)
    return list(found.values())
