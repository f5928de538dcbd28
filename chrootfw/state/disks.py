"""Find the devices of an instance's disks, and the disks that the kernel still uses."""

from __future__ import annotations

import os

from chrootfw.linux import mountinfo
from chrootfw.state.record import RecordedDisk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from chrootfw.state.record import StartRecord


def guess_disks(entries: Sequence[mountinfo.MountEntry]) -> list[RecordedDisk]:
    """Return the disk of an instance whose record is lost, as far as the mount table tells it.

    That is a device, or a loop device, of which all is mounted on the root, and nothing outside
    the instance: a bind of the host's file system has the host's device, which is not free.

    Args:
        entries: The instance's mounts, its root first.
    """
    elsewhere = _devices_outside(entries)
    return [
        RecordedDisk("block", os.fsdecode(entry.source), (0, 0), [entry.dev])
        for entry in entries[:1]
        if entry.source.startswith(b"/dev/") and entry.root == b"/" and entry.dev not in elsewhere
    ]


def find_unreleased_disks(
    recorded: Iterable[RecordedDisk],
    *,
    settle: float,
    run_dir: str = "",
    name: str = "",
) -> list[str]:
    """Return the paths of the disks that the kernel still uses, or may use.

    Args:
        recorded: The disks, as the start record has them. Directories are never returned.
        settle: Seconds for each disk to become free.
        run_dir: The run directory, resolved; given together with ``name``.
        name: The instance. An image without a recorded loop device is free of it if other instances
            have mounted the image: the start was ended before it had a loop device that lasts.
    """
    held = []
    for disk in recorded:
        if disk.kind == "directory":
            continue
        from chrootfw.linux import block_devices

        if run_dir and disk.kind == "image" and disk.loop is None:
            owners = _instances_on(run_dir, disk.file, disk.path)
            if owners and owners.isdisjoint((name, None)):
                continue
        if not block_devices.is_released(disk.kind, disk.path, disk.file, disk.loop, settle=settle):
            held.append(disk.path)
    return held


def _instances_on(run_dir: str, file: tuple[int, int], path: str) -> set[str | None]:
    """Read in which instances the loop devices over an image are mounted.

    Args:
        run_dir: The run directory, resolved.
        file: Device and inode of the image.
        path: Its path.

    Returns:
        The names; ``None`` among them for a loop device that no instance has mounted.
    """
    from chrootfw.linux import loop
    from chrootfw.state.snapshot import name_at

    found: set[str | None] = set()
    for device in loop.find_loop_devices({file: path}):
        entries = mountinfo.of_device(mountinfo.pieces(), os.stat(device).st_rdev)
        found |= {name_at(run_dir, entry) for entry in entries} or {None}
    return found


def exclusive_devices(
    entries: Sequence[mountinfo.MountEntry], record: StartRecord | None
) -> set[int]:
    """Return the devices that only the instance uses: of its disks and in-memory file systems.

    Args:
        entries: The instance's mounts.
        record: Its start record; ``None`` if it is lost.
    """
    own = disk_devices(record.disks if record else guess_disks(entries))
    return own | ({entry.dev for entry in entries} - _devices_outside(entries))


def is_last_of(entry: mountinfo.MountEntry, entries: Iterable[mountinfo.MountEntry]) -> bool:
    """Return whether all mounts of a file system are among some mounts.

    Args:
        entry: One mount of the file system.
        entries: The mounts, with ``entry``.
    """
    return entry.dev not in _devices_outside([each for each in entries if each.dev == entry.dev])


def _devices_outside(entries: Sequence[mountinfo.MountEntry]) -> set[int]:
    """Return those devices of some mounts that other mounts have too."""
    ours = {entry.id for entry in entries}
    same = mountinfo.of_devices(mountinfo.pieces(), {entry.dev for entry in entries})
    return {entry.dev for entry in same if entry.id not in ours}


def disk_devices(recorded: Iterable[RecordedDisk]) -> set[int]:
    """Return the devices of the disks that are not free yet.

    The number of a device that was released is soon given to another one.
    """
    found: set[int] = set()
    for disk in recorded:
        if disk.kind != "directory" and disk.devices and find_unreleased_disks([disk], settle=0):
            found.update(disk.devices)
    return found
