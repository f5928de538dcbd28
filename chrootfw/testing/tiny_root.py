"""Make a tiny root file system of one static busybox."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping

_DIRECTORIES = (
    "bin",
    "dev",
    "etc/chrootfw",
    "mnt",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "tmp",
    "var",
)

_FILES = {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"}


def find_busybox() -> str:
    """Return the path of a busybox that needs no library, or ``""``."""
    for path in filter(
        None, (shutil.which("busybox"), shutil.which("busybox-static"), "/bin/busybox")
    ):
        try:
            with open(path, "rb") as file:
                head = file.read(4096)
        except OSError:
            continue
        if (
            head.startswith(b"\x7fELF") and b"/ld-" not in head
        ):  # no dynamic loader is asked for (PT_INTERP)
            return path
    return ""


def make(directory: str | os.PathLike[str], files: Mapping[str, str | bytes]) -> None:
    """Make the root in a directory, which may exist.

    Args:
        directory: The directory.
        files: Contents of more files by path; one that begins with ``#!`` can be executed.
    """
    top = os.fspath(directory)
    for name in ("", *_DIRECTORIES):
        os.makedirs(f"{top}/{name}", exist_ok=True)
        # whatever the umask is
        os.chmod(f"{top}/{name}", 0o1777 if name == "tmp" else 0o755)
    busybox = f"{top}/bin/busybox"
    if not os.path.exists(busybox):
        shutil.copy(find_busybox(), busybox)
        for applet in _list_applets(find_busybox()):
            if applet != "busybox":
                os.symlink("busybox", f"{top}/bin/{applet}")
    for path, content in {**_FILES, **files}.items():
        write(f"{top}/{path.lstrip('/')}", content)


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file of a root; one that begins with ``#!`` can be executed.

    Args:
        path: Its path on the host; directories that are missing are made.
        content: Its contents.
    """
    data = content.encode() if isinstance(content, str) else content
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), 0o755 if data.startswith(b"#!") else 0o644)


@functools.cache
def _list_applets(busybox: str) -> tuple[str, ...]:
    import subprocess

    done = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    return tuple(done.stdout.split())
