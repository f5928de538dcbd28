"""Put a plain file where Ganeti's own class would mount a running instance.

After an upgrade of the node's Python, Ganeti finds its own class until chrootfw is installed again.
Its watcher would then mount the disk a second time. A file at the mount point makes that mount
fail. The directory is on a tmpfs, so a boot removes the file.
"""

from __future__ import annotations

import os
import stat

from chrootfw.errors import ChrootfwError
from chrootfw_ganeti import places

_DIRECTORY_MODE = 0o755


def put_up(directory: str, name: str) -> None:
    """Keep Ganeti's own class from mounting an instance.

    Args:
        directory: The directory in which that class mounts its instances.
        name: The name of the instance.

    Raises:
        ChrootfwError: Ganeti's own class already uses the mount point.
    """
    os.makedirs(directory, _DIRECTORY_MODE, exist_ok=True)
    path = f"{directory}/{name}"
    try:
        os.rmdir(path)  # that class leaves its empty mount points
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        if is_guard(path):
            return
        raise _taken(name, path) from None
    except OSError:
        raise _taken(name, path) from None
    text = (
        f"{places.GUARD}{name} is up on this node; Ganeti's own class must not mount it: "
        f"chrootfw-ganeti info {name}\n"
    )
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)


def take_down(directory: str, name: str) -> None:
    """Remove the guard file of an instance; do nothing if there is none.

    Args:
        directory: The directory in which Ganeti's own class mounts its instances.
        name: The name of the instance.
    """
    path = f"{directory}/{name}"
    if is_guard(path):
        os.unlink(path)


def is_guard(path: str) -> bool:
    """Check that a path is a file made by `put_up`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        start = places.GUARD.encode()
        return stat.S_ISREG(os.fstat(fd).st_mode) and os.read(fd, len(start)) == start
    finally:
        os.close(fd)


def _taken(name: str, path: str) -> ChrootfwError:
    return ChrootfwError(
        f"Ganeti's own class may have {name} mounted on this node: {path} is in use",
        hint=f"findmnt -R {path} shows it; umount -R {path}, once nothing runs there",
    )
