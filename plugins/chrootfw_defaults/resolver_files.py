"""/etc/resolv.conf and /etc/hosts inside the root, by policy.

``keep``: the root's own file, with a warning when it is a dangling symbolic link. ``off``: not even
looked at. ``bind``: the host's file, read-only, as it is at any time. ``copy``: a copy of the
host's file, taken at start; the root's own file comes back at stop.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs

import chrootfw
from chrootfw import Instance, MountPoint, Parameter, Problem, Root, Step, StepError
from chrootfw.linux import syscalls

_FILES = {"resolv_conf": "/etc/resolv.conf", "hosts": "/etc/hosts"}
_POLICIES = ("copy", "bind", "keep", "off")
#: A resolver file that is larger than this many bytes is not a resolver file.
_SIZE_MAX = 1 << 20
#: What is added to the name of the root's own file while a copy stands in its place.
_OWN = ".chrootfw-own"
#: A full file system may refuse to remove a name too; whether it is gone is looked at afterwards.
_NO_SPACE = (errno.ENOSPC,)
#: A file system that keeps nothing has no fsync(2).
_NO_FSYNC = (errno.EINVAL,)
_AT_REMOVEDIR = 0x200


def _is_policy(value: str) -> str | None:
    return None if value in _POLICIES else f"it must be one of {', '.join(_POLICIES)}"


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [
        Parameter(
            name,
            str,
            "keep",
            _is_policy,
            f"{path} inside: copy or bind the host's, keep the root's, off",
        )
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
                answers.append(
                    CopyHostFile(
                        path, root.path if root else "", root is None or _is_known(root, path)
                    )
                )
            else:
                answers.append(Problem(f"the host has no {path} to copy", f"set {name} to keep"))
        elif policy == "keep" and root is not None:
            answers += _check_kept(root, name, instance.disk or root.path)
    return answers


def _check_kept(root: Root, name: str, disk: str) -> list[Problem | Step]:
    """Check that the root's own file, which a parameter is about, can be looked up."""
    path = _FILES[name]
    try:
        if root.exists(path):
            return []
    except OSError as error:
        if error.errno == errno.ETIMEDOUT:
            raise
        return [Problem(f"{path} of the disk {disk} cannot be read: {error.strerror}")]
    try:
        link = root.readlink(path)
    except OSError:
        return []
    brief = f"{path} is a symbolic link to {link}, which does not exist inside"
    return [Problem(brief, f"set {name} to copy or bind", warning=True)]


@attrs.frozen
class CopyHostFile(Step):
    """Put a copy of a file of the host in the root; the root's own file comes back afterwards.

    The root's own file, or symbolic link, waits beside the copy. The copy is a new file, and what
    stood in its place is renamed, never written to. A child of chrootfw does it, since the file
    system may be frozen, full or dead.

    Args:
        path: The file's path, on the host and in the root.
        root: The path of the root on the host.
        had: Whether the root had such a file. A kill between two steps leaves the root's own file
            under one name or the other, and nothing of the copy after ``undo``.
    """

    kind: ClassVar[str] = "copy-host-file"
    path: str
    root: str
    had: bool = True

    def describe(self) -> str:
        return f"copy the host's {self.path} into the root"

    def apply(self) -> Mapping[str, Any]:
        content = _read_host_file(self.path)
        root = self._mounted_root()
        directory, name = (
            os.fsencode(posixpath.dirname(self.path)),
            os.fsencode(posixpath.basename(self.path)),
        )
        is_there, is_kept = _exists(root, self.path), _exists(root, f"{self.path}{_OWN}")
        calls, etc, copy = root.look_up(os.fsdecode(directory), os.O_RDONLY | os.O_DIRECTORY)
        calls.add("umask", 0)
        if is_there and is_kept:  # of an earlier start that was not undone
            calls.add("unlinkat", etc, name, 0)
        elif is_there:
            calls.add("renameat2", etc, name, etc, name + os.fsencode(_OWN), 0)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        calls.add("openat", etc, name, flags, 0o644)
        calls.add("write", copy, content, len(content))
        status = calls.add_buffer(syscalls.STATX_SIZE)
        calls.add(
            "statx",
            copy,
            b"",
            syscalls.AT_EMPTY_PATH,
            syscalls.STATX_BASIC_AND_MNT_ID,
            status,
        )
        whole = calls.compare(status.at(syscalls.STATX_SIZE_OFFSET), len(content))
        calls.add("fsync", copy, ignore=_NO_FSYNC)
        calls.add("fsync", etc, ignore=_NO_FSYNC)
        try:
            root.carry_out(self.path, calls)
        except OSError as error:
            if error.errno == errno.ESTALE and calls.result(whole) == -errno.ESTALE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path) from None
            raise
        return {"size": len(content), "on_root": self._is_on_root(root, os.fsdecode(directory))}

    def undo(self, record: Mapping[str, Any]) -> None:
        root = self._mounted_root()
        directory, name = posixpath.split(self.path)
        facts = record["facts"]
        made = facts is not None or not self.had
        if (facts or {}).get("on_root") and not self._is_on_root(root, directory):
            raise StepError(f"another file system is mounted over {directory} of the root")
        try:
            # On a frozen file system it waits: then a child of ``apply`` may do what it has begun
            # yet.
            _change(root, directory, [("unlinkat", f"{name}.chrootfw-{os.urandom(8).hex()}", 0)])
            if _exists(root, f"{self.path}{_OWN}"):
                self._bring_back(root, directory, name)
            elif made and _exists(root, self.path):  # the root had none
                _change(root, directory, [("unlinkat", name, 0)])
                if _exists(root, self.path):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), self.path)
        except (FileNotFoundError, NotADirectoryError):
            return  # what ran inside has removed the directory, and both files with it
        except IsADirectoryError:
            return  # what ran inside has put a directory in the copy's place: the copy is gone

    def _is_on_root(self, root: Root, directory: str) -> bool:
        """Return whether a directory is of the root's own mount, uncovered, or absent."""
        try:
            return root.mount_id(directory) == syscalls.statx(self.root, follow=False).mnt_id
        except (FileNotFoundError, NotADirectoryError):
            return True

    def _bring_back(self, root: Root, directory: str, name: str) -> None:
        """Rename the root's own file to its name."""
        try:
            _change(root, directory, [("renameat2", f"{name}{_OWN}", name)])
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise
            _exchange(root, directory, name)

    def _mounted_root(self) -> Root:
        """Return the root.

        Raise ``StepError`` where it is not mounted: then nothing can be done in it, and nothing is
        undone.
        """
        try:
            is_mounted = (
                syscalls.statx(self.root, follow=False).attributes & syscalls.STATX_ATTR_MOUNT_ROOT
            )
        except OSError:
            is_mounted = 0
        if not is_mounted:
            raise StepError(f"the root {self.root} is not mounted")
        return Root(self.root, seconds=self.deadline)


def _read_host_file(path: str) -> bytes:
    """Read a file of the host without waiting.

    Raise ``StepError`` for a file that is not regular, or too large: half a file would say
    something else.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StepError(f"{path} of the host is not a regular file", hint=f"ls -lL {path}")
        content = file.read(_SIZE_MAX + 1)
    if len(content) > _SIZE_MAX:
        raise StepError(
            f"{path} of the host is larger than {_SIZE_MAX} bytes", hint=f"ls -lL {path}"
        )
    return content


def _change(root: Root, directory: str, changes: Sequence[tuple[Any, ...]]) -> None:
    """Have a child rename and remove names in a directory of the root, in that order."""
    calls, found, _ = root.look_up(directory, os.O_RDONLY | os.O_DIRECTORY)
    for call, name, *more in changes:
        if call == "renameat2":
            calls.add(call, found, os.fsencode(name), found, os.fsencode(more[0]), 0)
        else:
            calls.add(
                call,
                found,
                os.fsencode(name),
                *more,
                ignore=(errno.ENOENT, errno.EROFS, *_NO_SPACE),
            )
    calls.add("fsync", found, ignore=_NO_FSYNC)
    root.carry_out(directory, calls)


def _exchange(root: Root, directory: str, name: str) -> None:
    """Rename the root's own file to its name, from which something else is taken away.

    One batch does it in one directory, whatever its path leads to meanwhile. A directory that is
    not empty stays under a name of its own: what ran inside has made it.
    """
    calls, found, _ = root.look_up(directory, os.O_RDONLY | os.O_DIRECTORY)
    own, wanted = os.fsencode(f"{name}{_OWN}"), os.fsencode(name)
    aside = wanted + b".chrootfw-" + os.urandom(8).hex().encode()
    calls.add("renameat2", found, wanted, found, aside, 0)
    renamed = calls.add("renameat2", found, own, found, wanted, 0)
    calls.skip(renamed)  # what is aside is removed all the same
    gone = (errno.ENOENT, *_NO_SPACE)
    calls.add("unlinkat", found, aside, 0, ignore=(errno.EISDIR, *gone))
    kept = (errno.ENOTEMPTY, errno.EEXIST)
    calls.add("unlinkat", found, aside, _AT_REMOVEDIR, ignore=(errno.ENOTDIR, *kept, *gone))
    calls.add("fsync", found, ignore=_NO_FSYNC)
    root.carry_out(directory, calls)
    if calls.result(renamed) < 0:
        code = -calls.result(renamed)
        raise OSError(code, os.strerror(code), f"{directory}/{name}")


def _is_known(root: Root, path: str) -> bool:
    """Return ``_exists``, before the start; the copy itself reports what blocks it."""
    try:
        return _exists(root, path)
    except OSError as error:
        if error.errno == errno.ETIMEDOUT:
            raise
        return True


def _exists(root: Root, path: str) -> bool:
    """Return whether the root has something of that name, also a dangling symbolic link."""
    try:
        root.stat(path, follow=False)
    except FileNotFoundError:
        return False
    return True
