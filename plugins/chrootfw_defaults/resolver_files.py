"""/etc/resolv.conf and /etc/hosts inside the root, by policy.

``keep``: the root's own file, with a warning when it is a dangling symbolic link. ``off``: not even looked at. ``bind``: the host's
file, read-only, as it is at any time. ``copy``: a copy of the host's file, taken at start; the root's own file comes back at stop.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

import chrootfw
from chrootfw import Instance, MountPoint, Parameter, Problem, Root, Step

_FILES = {"resolv_conf": "/etc/resolv.conf", "hosts": "/etc/hosts"}
_POLICIES = ("copy", "bind", "keep", "off")
#: A resolver file that is larger than this many bytes is no resolver file.
_SIZE_MAX = 1 << 20
#: What the root's own file is called while a copy stands in its place, and the copy until it is whole.
_OWN, _NEW = ".chrootfw-own", ".chrootfw-new"


def _is_policy(value: str) -> str | None:
    return None if value in _POLICIES else f"it must be one of {', '.join(_POLICIES)}"


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [
        Parameter(name, str, "keep", _is_policy, f"{path} inside: copy or bind the host's, keep the root's, off")
        for name, path in _FILES.items()
    ]


@chrootfw.hookimpl
def chrootfw_mount(instance: Instance) -> list[MountPoint]:
    return [
        # The host's file may be a symbolic link into /run; what is bound is the file.
        MountPoint(path, os.path.realpath(path), None, ("bind", "ro"))
        for name, path in _FILES.items()
        if instance.params[name] == "bind"
    ]


@chrootfw.hookimpl
def chrootfw_pre_start(instance: Instance, root: Root | None) -> list[Problem | Step]:
    answers: list[Problem | Step] = []
    for name, path in _FILES.items():
        policy = instance.params[name]
        if policy == "copy":
            if os.path.exists(path):
                answers.append(CopyHostFile(path, root.path if root else ""))
            else:
                answers.append(Problem(f"the host has no {path} to copy", f"set {name} to keep"))
        elif policy == "keep" and root is not None and not root.exists(path):
            try:
                link = root.readlink(path)
            except OSError:
                continue
            hint = f"set {name} to copy or bind"
            answers.append(
                Problem(f"{path} is a symbolic link to {link}, which does not exist inside", hint, warning=True)
            )
    return answers


@attrs.frozen
class CopyHostFile(Step):
    """Put a copy of the host's ``path`` in the root's place; the root's own file, or symbolic link, waits beside it,
    and comes back.

    Each change is one rename(2): a kill between two of them leaves the root's own file under one name or the other.
    """

    kind: ClassVar[str] = "copy-host-file"
    path: str
    root: str

    def describe(self) -> str:
        return f"copy the host's {self.path} into the root"

    def apply(self) -> Mapping[str, Any]:
        root = Root(self.root)
        with open(self.path, "rb") as file:
            content = file.read(_SIZE_MAX)
        directory, name = posixpath.split(self.path)
        directory_fd = root.open_fd(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _write(directory_fd, f"{name}{_NEW}", content)
            if _exists(directory_fd, name) and not _exists(directory_fd, f"{name}{_OWN}"):
                os.rename(name, f"{name}{_OWN}", src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
            os.rename(f"{name}{_NEW}", name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
            os.fsync(directory_fd)
        finally:
            os.close(directory_fd)
        return {"size": len(content)}

    def undo(self, record: Mapping[str, Any]) -> None:
        root = Root(self.root)
        directory, name = posixpath.split(self.path)
        try:
            directory_fd = root.open_fd(directory, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return  # not mounted any more
        try:
            if _exists(directory_fd, f"{name}{_OWN}"):
                os.rename(f"{name}{_OWN}", name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
            elif record["facts"] is not None and _exists(directory_fd, name):
                os.unlink(name, dir_fd=directory_fd)  # the root had none
            if _exists(directory_fd, f"{name}{_NEW}"):
                os.unlink(f"{name}{_NEW}", dir_fd=directory_fd)
        finally:
            os.close(directory_fd)


def _exists(directory_fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write(directory_fd: int, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, 0o644, dir_fd=directory_fd), "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
