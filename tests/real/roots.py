"""Small root file systems made of one busybox, and images that hold them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from chrootfw.testing import tiny_root

#: Where an instance's init script is unless it says otherwise.
INIT = "etc/chrootfw/init"

#: What a start script does when a test does not care: leave one daemon.
DAEMON = "/bin/sleep 3600 & echo $! > /run/daemon"

#: … and its counterpart.
END_DAEMON = "kill $(cat /run/daemon)"

#: A daemon that no TERM ends.
STUBBORN = f"trap '' TERM; {DAEMON}"

_USERS = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001:Web:/srv:/bin/sh\n"
_GROUPS = "root:x:0:\nweb:x:1001:\npictures:x:1002:web\n"

#: By type of file system: how to make one, how large its file is here, how to check it without writing to it.
MAKERS: Mapping[str, tuple[str, ...]] = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
SIZES: Mapping[str, int] = {"ext4": 24 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}
CHECKERS: Mapping[str, tuple[str, ...]] = {
    "ext4": ("e2fsck", "-f", "-n"),
    "xfs": ("xfs_repair", "-n"),
    "btrfs": ("btrfs", "check", "--readonly"),
}


def script(start: str = DAEMON, stop: str = END_DAEMON) -> str:
    """An init script. It notes in /var/calls each time what it was called with."""
    return f"#!/bin/sh\necho $1 >> /var/calls\ncase $1 in\nstart)\n{start}\n;;\nstop)\n{stop}\n;;\nesac\n"


def make_root(path: Path, init: str | bytes | None = None) -> Path:
    """A root file system in the directory ``path``. ``init``: the init script's text; ``None`` for the plain one."""
    tiny_root.make(path, {"etc/passwd": _USERS, "etc/group": _GROUPS})
    write_init(path, script() if init is None else init)
    return path


def write_init(root: Path, text: str | bytes, *, name: str = INIT) -> None:
    """Put an executable script into a root file system."""
    file = root / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    file.chmod(0o755)


def make_image(
    path: Path, fstype: str, fill: Callable[[Path], object] | None = None, size: int | None = None
) -> Path:
    """A sparse file with a file system; ``fill`` is called with the directory where its contents are to be put."""
    place = path.with_name(f"{path.name}.contents")
    if fstype == "squashfs":
        assert fill is not None
        fill(place)
        _run("mksquashfs", str(place), str(path), "-quiet", "-no-progress")
        shutil.rmtree(place)
        return path
    with path.open("xb") as file:
        file.truncate(size or SIZES[fstype])
    _run(*MAKERS[fstype], str(path))
    if fill is not None:
        place.mkdir()
        _run("mount", "-o", "loop", str(path), str(place))
        try:
            fill(place)
        finally:
            _run("umount", str(place))
            place.rmdir()
    return path


def copy(template: Path, directory: Path) -> None:
    """A copy of a root file system, as it is."""
    _run("cp", "--archive", "--no-target-directory", str(template), str(directory))


def extract(archive: Path, directory: Path) -> None:
    """Unpack a tar file of a whole system."""
    _run("tar", "--extract", "--numeric-owner", f"--file={archive}", f"--directory={directory}")


def check_image(image: Path, fstype: str) -> None:
    """Fail unless the file system in an image is clean, to the word of its own checker."""
    done = subprocess.run(
        [*CHECKERS[fstype], str(image)], capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{fstype} in {image} is not clean:\n{said}"
    assert "journal recovery" not in said, f"{fstype} in {image} was not unmounted:\n{said}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
