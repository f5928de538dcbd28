"""Looking into an instance's root from outside, without ever leaving it."""

from __future__ import annotations

import errno
import os
import stat as modes

from chrootfw.system import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

#: As many symbolic links as the kernel follows in one look-up (path_resolution(7)).
_LINKS_MAX = 40


class Root:
    """The tree that becomes ``/`` for an instance's processes.

    Paths are absolute, as the processes inside would write them; every look-up is an
    openat2(RESOLVE_IN_ROOT), so neither ``..`` nor a symlink leaves the root. Nothing is kept open
    between calls: a ``Root`` never makes its mounts busy. All methods raise ``OSError``.
    """

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Root({self.path!r})"

    def open_fd(self, path: str, flags: int = os.O_PATH, mode: int = 0, *, follow: bool = True) -> int:
        """A file descriptor for ``path``; O_PATH unless ``flags`` says otherwise."""
        _check_nul(path)
        flags |= 0 if follow else os.O_NOFOLLOW
        root_fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return syscalls.openat2(root_fd, path, flags, syscalls.RESOLVE_IN_ROOT, mode)
        finally:
            os.close(root_fd)

    def open(self, path: str, mode: str = "r", **how: Any) -> IO[Any]:
        """A regular file, opened for reading; ``mode`` is ``r`` or ``rb``, ``how`` as in ``open``.

        Raises ``OSError`` (EINVAL) for what is no regular file: opening a FIFO or a device has side effects.
        """
        if mode not in ("r", "rt", "rb"):
            raise ValueError(f"mode {mode!r}: a Root is only read; answer with a Step to write")
        fd = self.open_fd(path)
        try:
            if not modes.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            return open(f"/proc/thread-self/fd/{fd}", mode, **how)
        finally:
            os.close(fd)

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result:
        """As ``os.stat``."""
        fd = self.open_fd(path, follow=follow)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def exists(self, path: str) -> bool:
        """Whether ``path`` leads to something; a dangling symlink does not exist."""
        try:
            os.close(self.open_fd(path))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise
        return True

    def readlink(self, path: str) -> str:
        """The text of the symbolic link ``path``."""
        fd = self.open_fd(path, follow=False)
        try:
            return os.readlink("", dir_fd=fd)
        finally:
            os.close(fd)

    def listdir(self, path: str = "/") -> list[str]:
        """The names in a directory, sorted."""
        fd = self.open_fd(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def free_bytes(self) -> int:
        """What an ordinary user can still write on the root's file system, in bytes (statvfs(3))."""
        space = os.statvfs(self.path)
        return space.f_bavail * space.f_frsize

    def resolve(self, path: str) -> str:
        """Where ``path`` leads inside the root, symlinks followed; what does not exist is taken as written."""
        _check_nul(path)
        pending = [part for part in path.split("/") if part][::-1]
        done: list[str] = []
        links = 0
        while pending:
            part = pending.pop()
            if part == ".":
                continue
            if part == "..":
                del done[-1:]
                continue
            here = "/" + "/".join([*done, part])
            try:
                text = self.readlink(here)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                    raise
                done.append(part)
                continue
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if text.startswith("/"):
                done.clear()
            pending.extend([piece for piece in text.split("/") if piece][::-1])
        return "/" + "/".join(done)


def _check_nul(path: str) -> None:
    """Refuse a path of which the kernel would read only the beginning."""
    if "\0" in path:
        raise OSError(errno.EINVAL, "a NUL byte in the path", path)
