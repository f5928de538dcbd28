"""/etc/resolv.conf and /etc/hosts inside the root, by policy.

``keep``: the root's own file, with a warning when it is a dangling symbolic link. ``off``: not even looked at. ``bind``: the host's
file, read-only, as it is at any time. ``copy``: a copy of the host's file, taken at start; the root's own content comes back at stop.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

import chrootfw
from chrootfw import Instance, MountPoint, Parameter, Problem, Root, Step

_FILES = {"resolv_conf": "/etc/resolv.conf", "hosts": "/etc/hosts"}
_POLICIES = ("copy", "bind", "keep", "off")
#: A resolver file that is larger than this many bytes is no resolver file.
_SIZE_MAX = 1 << 20


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
    """Write the host's ``path`` over the root's; the undo brings the root's own content back, if nobody changed it since."""

    kind: ClassVar[str] = "copy-host-file"
    path: str
    root: str

    def describe(self) -> str:
        return f"copy the host's {self.path} into the root"

    def apply(self) -> Mapping[str, Any]:
        root = Root(self.root)
        with open(self.path, "rb") as file:
            content = file.read(_SIZE_MAX)
        target = root.resolve(self.path)
        try:
            with root.open(target, "rb") as file:
                before: str | None = base64.b64encode(file.read(_SIZE_MAX)).decode()
        except FileNotFoundError:
            before = None
        self._write(root, target, content)
        return {"target": target, "before": before, "written": base64.b64encode(content).decode()}

    def undo(self, record: Mapping[str, Any]) -> None:
        facts = record["facts"]
        root = Root(self.root)
        if not facts:
            return
        try:
            with root.open(facts["target"], "rb") as file:
                now = base64.b64encode(file.read(_SIZE_MAX)).decode()
        except (FileNotFoundError, NotADirectoryError):
            return  # not mounted any more, or removed inside
        if now != facts["written"]:
            return
        if facts["before"] is None:
            directory, _, name = facts["target"].rpartition("/")
            directory_fd = root.open_fd(directory or "/", os.O_PATH | os.O_DIRECTORY)
            try:
                os.unlink(name, dir_fd=directory_fd)
            finally:
                os.close(directory_fd)
        else:
            self._write(root, facts["target"], base64.b64decode(facts["before"]))

    @staticmethod
    def _write(root: Root, target: str, content: bytes) -> None:
        fd = root.open_fd(target, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o644, follow=False)
        try:
            os.ftruncate(fd, 0)
            os.write(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
