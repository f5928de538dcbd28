"""Read and write the run directory's small files so that a crash leaves the old or the new one.

chrootfw trusts what it reads here. So it reads only files and directories that belong to root and
that no other user can write.
"""

from __future__ import annotations

import errno
import os
import stat

from chrootfw.errors import InputError, StepError, TrustError
from chrootfw.linux.descriptors import opened
from chrootfw.planning.paths import check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

LOCKS = ".locks"
#: Largest size of a file in the run directory in bytes, and deepest nesting of its lists and dicts.
SIZE_MAX, DEPTH_MAX = 1 << 20, 64
#: Most commas and opening brackets in a file, those in texts included: a list of two bytes takes
#: sixty in memory.
VALUES_MAX = 1 << 15
#: Largest size of a definition in bytes; the record contains its text.
DEFINITION_MAX = 128 << 10


def check_trusted(
    path: str, *, what: str, lstat: Callable[[str], os.stat_result] = os.lstat
) -> None:
    """Check that only root can change a path.

    No component may be a symbolic link, belong to another user, or be writable by other users. A
    sticky directory such as /tmp may be above the last component.

    Args:
        path: An absolute path.
        what: The kind of directory, for the error.
        lstat: Returns the status of a component, such as with a time limit.

    Raises:
        TrustError: A component is not trusted; the error names the component.
        OSError: A component cannot be read.
    """
    walked = ""
    parts = [part for part in path.split("/") if part]
    for number, part in enumerate(parts):
        walked += f"/{part}"
        status = lstat(walked)
        last = number == len(parts) - 1
        if stat.S_ISLNK(status.st_mode):
            raise TrustError(
                f"the {what} {path} is not used: {walked} is a symbolic link",
                hint=f"name it by its real path, {os.path.realpath(path)}",
            )
        if status.st_uid not in (0, os.geteuid()):
            raise TrustError(
                f"the {what} {path} is not used: {walked} belongs to user "
                f"{status.st_uid}, not to root",
                hint=f"chown root {walked}",
            )
        if status.st_mode & 0o022 and (last or not status.st_mode & stat.S_ISVTX):
            raise TrustError(
                f"the {what} {path} is not used: {walked} is writable by others (mode "
                f"{stat.S_IMODE(status.st_mode):04o})",
                hint=f"chmod go-w {walked}",
            )


def prepare_run_dir(path: str) -> None:
    """Make the run directory (0755) if it is missing, and check that it is trusted.

    Args:
        path: An absolute, normalised path.

    Raises:
        InputError: The path is not absolute or not normalised.
        TrustError: A user other than root can change the directory.
        StepError: The directory cannot be made or written.
    """
    if not path.startswith("/") or os.path.normpath(path) != path:
        raise InputError(f"the run directory {path!r} is not an absolute, normalised path")
    try:
        _make_directories(path)
        check_trusted(path, what="run directory")
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise StepError(f"the run directory {path} is not a directory")
        os.makedirs(f"{path}/{LOCKS}", mode=0o700, exist_ok=True)
    except OSError as error:
        raise StepError(
            f"cannot use the run directory {path}: {error.strerror}",
            hint="chrootfw verify shows what is wrong with it",
        ) from error


def _make_directories(path: str) -> None:
    if os.path.lexists(path):
        return
    _make_directories(os.path.dirname(path))
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass  # another command was faster


def write(path: str, data: bytes, *, is_durable: bool = True) -> None:
    """Replace a file (mode 0600): temporary file, fsync, rename, fsync of the directory.

    Args:
        path: The file.
        data: Its new content.
        is_durable: Whether it must survive a crash of the machine; if not, fsync(2) is left out.

    Raises:
        OSError: A step failed; the old file is unchanged.
    """
    directory = os.path.dirname(path)
    temporary = f"{path}.new"
    file = opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode=0o600)
    try:
        with file as fd:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if is_durable:
                os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    if is_durable:
        with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as directory_fd:
            os.fsync(directory_fd)


def read(path: str, most: int) -> bytes | None:
    """Read a trusted file.

    Args:
        path: The file.
        most: Largest size in bytes.

    Returns:
        The content; `None` if the file does not exist.

    Raises:
        TrustError: A user other than root can write the file, or it is not a regular file.
        OSError: The file cannot be read, or is larger than `most` (EFBIG).
    """
    try:
        # Checked before the open, which has side effects on a device.
        check_file(path, os.lstat(path))
        file = opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    with file as fd:
        check_file(path, os.fstat(fd))
        return read_all(fd, most, path)


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def check_file(path: str, status: os.stat_result) -> None:
    """Check that a file is regular, and that only root can write it.

    Raises:
        TrustError: It is not.
    """
    if not stat.S_ISREG(status.st_mode):
        from shlex import quote

        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise TrustError(
            f"{path} is not used: it is {kind}, not a regular file",
            hint=f"mv {quote(path)} {quote(path)}.old, and write a file in its place",
        )
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise TrustError(
            f"{path} is not used: it is not a file that only root can write",
            hint=f"look at it; if it is yours: chown root {path} && chmod 0600 {path}",
        )


def read_all(fd: int, most: int, path: str) -> bytes:
    """Read an open file to its end.

    Args:
        fd: The descriptor.
        most: Largest size in bytes.
        path: The file's name, for the error.

    Raises:
        OSError: The file cannot be read, or is larger than `most` (EFBIG).
    """
    chunks = []
    left = most
    while chunk := os.read(fd, min(1 << 16, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise OSError(errno.EFBIG, f"it has more than {most >> 10} KiB", path)
        chunks.append(chunk)
    return b"".join(chunks)


def remove(path: str) -> None:
    """Remove a file if it exists."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def is_directory(path: str) -> bool:
    """Check that a path leads to a directory, as `os.path.isdir`, which takes any error for no.

    Raises:
        OSError: The kernel does not say.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def instances(run_dir: str) -> Iterator[str]:
    """Yield the instance names that have a directory in the run directory, sorted."""
    try:
        names = os.listdir(run_dir)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in sorted(names):
        try:
            check_name(name)
        except InputError:
            continue  # lost+found and the like, which are not valid names
        if is_directory(f"{run_dir}/{name}"):
            yield name


def boot_id() -> str:
    """Return the ID of this boot (random(4)), read once.

    A record of another boot describes no mount that still exists.
    """
    if not _this_boot:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            _this_boot.append(file.read().strip())
    return _this_boot[0]


_this_boot: list[str] = []


def mount_namespace(pid: int | str = "thread-self") -> int:
    """Return the inode that identifies a process's mount namespace (namespaces(7))."""
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def dump(value: Any) -> bytes:
    """Encode a value as JSON for the run directory.

    Raises:
        TypeError: The value has no JSON form.
        ValueError: The value is too large or too deep for `load`.
    """
    import json

    if is_deeper(value, DEPTH_MAX):
        raise ValueError(f"it is nested more than {DEPTH_MAX} deep")
    # With an indent, Python's own encoder would be used and not that in C.
    data = json.dumps(value).encode() + b"\n"
    if len(data) > SIZE_MAX:
        raise ValueError(f"it has more than {SIZE_MAX >> 20} MiB")
    if _values(data) > VALUES_MAX:
        raise ValueError(f"it has more than {VALUES_MAX} values")
    return data


def _values(data: bytes) -> int:
    """Count the most values that a JSON text may have."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def load(path: str) -> Any | None:
    """Read a JSON file as `dump` writes it.

    Returns:
        The value; `None` if the file is missing, damaged, or too large.

    Raises:
        TrustError: A user other than root can write the file.
        OSError: The file cannot be read.
    """
    try:
        data = read(path, SIZE_MAX)
    except OSError as error:
        if error.errno == errno.EFBIG:
            return None
        raise
    if data is None or _values(data) > VALUES_MAX:
        return None
    import json

    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    # A record has fewer brackets than a value that is too deep, and need not be walked through.
    brackets = data.count(b"[") + data.count(b"{")
    return None if brackets > DEPTH_MAX and is_deeper(value, DEPTH_MAX) else value


def is_deeper(value: Any, most: int) -> bool:
    """Check whether lists and dicts are nested more than `most` deep, without recursion."""
    level = [value]
    for _ in range(most):
        inside: list[Any] = []
        for each in level:
            inside += (
                each.values()
                if isinstance(each, dict)
                else each
                if isinstance(each, list | tuple)
                else ()
            )
        if not inside:
            return False
        level = inside
    return any(isinstance(each, dict | list | tuple) for each in level)
