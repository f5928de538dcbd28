"""A small tree of files for ``pre_start`` hooks: it satisfies the default checks.

It does so whichever user made it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from chrootfw.linux.root import Root

#: What a root file system has in any case.
_DIRECTORIES = ("bin", "dev", "etc", "mnt", "proc", "root", "run", "srv", "sys", "tmp", "var")

#: So much of an ELF header says for which machine the program is; zeros after it: it needs no
#: dynamic loader.
_MACHINE_END, _HEADER_END = 20, 64

#: Where ``os.stat_result`` has the user and the group.
_UID, _GID = 4, 5


class TreeRoot(Root):
    """Be a ``Root`` over a test's directory.

    What belongs to the user of the test belongs to the root user in there, as in an image.
    """

    __slots__ = ()

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result:
        """Return the status of a path, as ``os.stat``."""
        return _of_root(super().stat(path, follow=follow))

    def on_the_way(self, path: str) -> dict[str, os.stat_result]:
        """Return the status of each directory on the way, as ``Root.on_the_way``."""
        return {place: _of_root(found) for place, found in super().on_the_way(path).items()}


def _of_root(found: os.stat_result) -> os.stat_result:
    fields = list(found)
    fields[_UID] = 0 if found.st_uid == os.geteuid() else found.st_uid
    fields[_GID] = 0 if found.st_gid == os.getegid() else found.st_gid
    # Python 3.14 takes no name for what is in ``fields`` already.
    names = {name for name in dir(found) if name.startswith("st_")}.difference(
        os.stat_result.__match_args__
    )
    return os.stat_result(fields, {name: getattr(found, name) for name in names})


def make(directory: str, files: Mapping[str, str | bytes | None], init_script: str | None) -> None:
    """Make the tree: what a default start needs, with ``files`` over it.

    What begins with ``#!`` and what is in ``bin`` can be executed.

    Args:
        directory: Where.
        files: Contents by path relative to the root; ``None``: there is no such file.
        init_script: The path of the init script inside.
    """
    wanted: dict[str, str | bytes | None] = {"bin/sh": _program()}
    if init_script is not None:
        wanted[init_script.lstrip("/")] = "#!/bin/sh\n"
    wanted.update({path.lstrip("/"): content for path, content in files.items()})
    for name in ("", *_DIRECTORIES):
        _make_directory(f"{directory}/{name}")
    for path, content in wanted.items():
        if content is not None:
            _write(directory, path, content.encode() if isinstance(content, str) else content)


def make_mount_point(directory: str, path: str, *, is_file: bool) -> None:
    """Make what is missing of a path in the tree, as a mount makes its mount point."""
    if is_file:
        _write(directory, path.lstrip("/"), b"")
    else:
        _make_directories(directory, path)


def _make_directories(directory: str, path: str) -> None:
    parts = path.strip("/").split("/")
    for number in range(1, len(parts) + 1):
        _make_directory(f"{directory}/{'/'.join(parts[:number])}")


def _write(directory: str, path: str, content: bytes) -> None:
    if "/" in path:
        _make_directories(directory, os.path.dirname(path))
    with open(f"{directory}/{path}", "wb") as file:
        file.write(content)
        os.fchmod(
            file.fileno(), 0o755 if content.startswith(b"#!") or path.startswith("bin/") else 0o644
        )


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        return
    os.chmod(path, 0o755)  # whatever the umask is


def _program() -> bytes:
    """Return the beginning of a static program for this machine."""
    with open("/proc/self/exe", "rb") as file:
        return file.read(_MACHINE_END) + bytes(_HEADER_END - _MACHINE_END)
