"""What is mounted on the host below the writable mounts of an instance.

A mount does not bring along what is mounted below its source: the mount point is an empty directory
there. A process that removes or renames that directory detaches what is mounted on it in all other
mount namespaces, the host's too (``detach_mounts()`` since Linux 3.18). Only what the process's own
mount namespace has mounted there keeps the directory busy.
"""

from __future__ import annotations

from chrootfw.linux import mountinfo
from chrootfw.planning.paths import is_within_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from chrootfw.linux.mountinfo import MountEntry

#: Nobody removes their directories.
_FIXED = (b"proc", b"sysfs")


def exposed(root: bytes) -> list[tuple[bytes, bytes]]:
    """List the mounts of this mount namespace that processes in a root could detach.

    Paths are compared within each file system, since a directory may be mounted in many places.

    Args:
        root: The path of the root.

    Returns:
        Pairs of the path in the root below which the mount is, and the mount point on the host.
    """
    entries = list(mountinfo.entries())
    by_id = {entry.id: entry for entry in entries}
    own: list[MountEntry] = []
    others: list[MountEntry] = []
    for entry in entries:
        (own if is_within_bytes(entry.mount_point, root) else others).append(entry)
    kept = {_place(entry, by_id) for entry in own}
    found = []
    for other in others:
        place = _place(other, by_id)
        if place is None or place in kept:
            continue
        for mount in own:
            if (
                mount.dev == place[0]
                and mount.root != place[1]
                and is_within_bytes(place[1], mount.root)
                and mount.fstype not in _FIXED
                and not mount.read_only
            ):
                found.append((mount.mount_point[len(root) :] or b"/", other.mount_point))
                break
    return found


def list_writable_with(directory: bytes, root: bytes) -> list[bytes]:
    """List the writable mounts in a root that contain a directory of the host, or a part of it.

    Args:
        directory: The path of the directory, without symbolic links.
        root: The path of the root.

    Returns:
        Their paths in the root.
    """
    entries = list(mountinfo.entries())
    above = [each for each in entries if is_within_bytes(directory, each.mount_point)]
    if not above:
        return []
    # Of several on one place, the last covers the others.
    shown = max(enumerate(above), key=lambda pair: (len(pair[1].mount_point), pair[0]))[1]
    rest = directory[len(shown.mount_point.rstrip(b"/")) :]
    place = shown.root.rstrip(b"/") + rest
    return [
        mount.mount_point[len(root) :] or b"/"
        for mount in entries
        if is_within_bytes(mount.mount_point, root)
        and mount.dev == shown.dev
        and (is_within_bytes(place, mount.root) or is_within_bytes(mount.root, place))
        and not mount.read_only
    ]


def _place(entry: MountEntry, by_id: dict[int, MountEntry]) -> tuple[int, bytes] | None:
    """Return where a mount point is: the device of its file system, and the path in that."""
    parent = by_id.get(entry.parent)
    if parent is None or parent is entry:
        return None
    if not is_within_bytes(entry.mount_point, parent.mount_point):
        return None
    rest = entry.mount_point[len(parent.mount_point.rstrip(b"/")) :]
    return parent.dev, (parent.root.rstrip(b"/") + rest).rstrip(b"/") or b"/"
