"""The run directory: locks, and small files written so that a crash leaves the old or the new one.

What is read here is believed: only files and directories of root's that nobody else can write are taken.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from chrootfw.errors import InputError, LockError, StepError, TrustError
from chrootfw.planning.paths import check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, ClassVar

LOCKS = ".locks"


def check_trusted(path: str, *, what: str) -> None:
    """Every component of ``path`` belongs to root, is writable by nobody else, and is no symlink.

    A sticky directory such as /tmp may stand above. Raises ``TrustError`` naming the component, or ``OSError``.
    """
    walked = ""
    parts = [part for part in path.split("/") if part]
    for number, part in enumerate(parts):
        walked += f"/{part}"
        status = os.lstat(walked)
        last = number == len(parts) - 1
        if stat.S_ISLNK(status.st_mode):
            raise TrustError(
                f"the {what} {path} is not used: {walked} is a symbolic link",
                hint=f"name it by its real path, {os.path.realpath(path)}",
            )
        if status.st_uid not in (0, os.geteuid()):
            raise TrustError(
                f"the {what} {path} is not used: {walked} belongs to user {status.st_uid}, not to root",
                hint=f"chown root {walked}",
            )
        if status.st_mode & 0o022 and (last or not status.st_mode & stat.S_ISVTX):
            raise TrustError(
                f"the {what} {path} is not used: {walked} is writable by others (mode {stat.S_IMODE(status.st_mode):04o})",
                hint=f"chmod go-w {walked}",
            )


def prepare_run_dir(path: str) -> None:
    """Make the run directory (0755) if it is missing, and see that it can be trusted.

    Raises ``TrustError``, or ``StepError`` when it cannot be made or written.
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
        pass  # a second command was quicker


class Lock:
    """An flock(2) on a file in ``RUN_DIR/.locks``. The file is never unlinked (two could then hold "the" lock),
    says who holds it, and is never inherited."""

    __slots__ = ("fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    def release(self) -> None:
        """Give it back."""
        os.close(self.fd)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()


def lock(
    run_dir: str, name: str, *, what: str, verb: str, seconds: float, check: Callable[[], None] = lambda: None
) -> Lock:
    """The lock ``name``, waiting at most ``seconds`` for it. Raises ``LockError`` saying who holds it.

    ``check`` is called while waiting; what it raises ends the wait.
    """
    path = f"{run_dir}/{LOCKS}/{name}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StepError(
            f"cannot open the lock {path}: {error.strerror}", hint="chrootfw verify checks the run directory"
        ) from error
    deadline = time.monotonic() + seconds
    pause = 0.001
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            check()
            left = deadline - time.monotonic()
            if left <= 0:
                holder = os.pread(fd, 256, 0).decode("utf-8", "replace").strip()
                raise LockError(
                    f"{what} is locked by {holder or 'another command'}",
                    [f"waited {seconds:g} s for {path}"],
                    "wait for it to end, or give a longer --lock-timeout",
                )
            time.sleep(min(pause, left))  # flock(2) has no time-out
            pause = min(pause * 2, 0.05)
    except OSError as error:
        os.close(fd)
        raise StepError(f"cannot lock {what} ({path}): {error.strerror}") from error
    except BaseException:
        os.close(fd)
        raise
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"pid {os.getpid()} (chrootfw {verb})\n".encode(), 0)
    except OSError:
        pass  # a full run directory must not keep anyone from stopping; only the holder's name is lost
    return Lock(path, fd)


def write(path: str, data: bytes) -> None:
    """Replace ``path`` (mode 0600): temporary file, fsync, rename, fsync of the directory. Raises ``OSError``."""
    directory = os.path.dirname(path)
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)


def read(path: str) -> bytes | None:
    """The file's bytes, or ``None`` when there is none. Raises ``TrustError`` when somebody else could write it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TrustError(f"{path} is not used: it is a symbolic link") from error
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise TrustError(
                f"{path} is not used: it is not a regular file that only root can write",
                hint=f"look at it; if it is yours: chown root {path} && chmod 0600 {path}",
            )
        chunks = []
        while chunk := os.read(fd, 1 << 16):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """Remove a file if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def instances(run_dir: str) -> Iterator[str]:
    """The names that have a directory in the run directory."""
    try:
        names = os.listdir(run_dir)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in sorted(names):
        try:
            check_name(name)
        except InputError:
            continue  # lost+found and the like: no instance has such a name
        if os.path.isdir(f"{run_dir}/{name}"):
            yield name


def boot_id() -> str:
    """This boot's id (random(4)): an intent from another boot describes nothing that is still mounted. Read once."""
    if not _this_boot:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            _this_boot.append(file.read().strip())
    return _this_boot[0]


_this_boot: list[str] = []


def mount_namespace(pid: int | str = "thread-self") -> int:
    """The inode that names a process's mount namespace (namespaces(7))."""
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def dump(value: Any) -> bytes:
    """JSON as it is kept in the run directory."""
    import json

    return json.dumps(value).encode() + b"\n"  # with an indent Python's own encoder would be used, not that in C


def load(path: str) -> Any | None:
    """The JSON value in a file; ``None`` when the file is missing, or is no JSON (a lost or damaged file)."""
    data = read(path)
    if data is None:
        return None
    try:
        return parse(data)
    except (ValueError, RecursionError):
        return None


class _Decoder:
    """What json's scanner asks its decoder for, as ``json.loads`` has it."""

    strict, object_hook, object_pairs_hook = True, None, None
    parse_float, parse_int, parse_constant = float, int, float
    memo: ClassVar[dict[str, str]] = {}


def parse(data: bytes) -> Any:
    """``json.loads``. What ``dump`` wrote is given to CPython's scanner itself: the package around it imports ``re``, which
    takes as long as a whole list."""
    try:
        from _json import make_scanner

        text = data.decode()
        value, end = make_scanner(_Decoder)(text, 0)  # type: ignore[arg-type]  # it asks for attributes only
        if text[end:] == "\n":
            return value
    except (ImportError, StopIteration, ValueError, SystemError):
        pass  # another Python, or not as dump writes it (a SystemError where json is not imported): json says what is wrong
    import json

    return json.loads(data)
