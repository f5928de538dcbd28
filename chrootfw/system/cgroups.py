"""One cgroup for each start: track, kill, freeze, account (cgroups(7), the kernel's cgroup-v2.rst).

Instances live in ``chrootfw/DEV-INO/NAME@N`` at the top of the v2 hierarchy. ``DEV-INO`` is the run directory's
device and inode: two run directories never meet, whatever they are called. ``N`` counts the starts: a cgroup
that was killed once kills what is cloned into it later (seen on 6.18), so it is never used again. The ``@``
keeps names apart from the kernel's own files. Only tracking happens here; the limits of the hierarchy's
root are systemd's business.
"""

from __future__ import annotations

import errno
import os

from chrootfw.system import mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TOP = "chrootfw"


def hierarchies(table: Callable[[], bytes]) -> tuple[str | None, str | None]:
    """Where the v2 hierarchy and the v1 memory controller are mounted, or ``None``; found in the mount table, never assumed.

    What is still where it was found last is not looked for again: ``table`` is called otherwise.
    """
    for known, places in _found_last:
        if known == [_identity(place) for place in places]:
            return places
    raw = table()
    v2 = next((entry.mount_point for entry in mounts.of_type(raw, b"cgroup2")), None)
    v1 = (entry for entry in mounts.of_type(raw, b"cgroup") if b"memory" in entry.super_options.split(b","))
    memory = next((entry.mount_point for entry in v1), None)
    places = (os.fsdecode(v2) if v2 else None, os.fsdecode(memory) if memory else None)
    if places[0]:
        _found_last[:] = [([_identity(place) for place in places], places)]
    return places


#: The root directories of both, as (device, inode), and what ``hierarchies`` said.
_found_last: list[tuple[list[tuple[int, int] | None], tuple[str | None, str | None]]] = []


def _identity(path: str | None) -> tuple[int, int] | None:
    try:
        status = os.stat(path or "")
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_writable(path: str) -> bool:
    """Whether cgroups can be made under ``path`` (False too on a read-only mount)."""
    return os.access(path, os.W_OK)


def home(top: str, run_dir: str) -> str:
    """The directory of one run directory's cgroups, whether it exists or not."""
    status = os.stat(run_dir)
    return f"{top}/{TOP}/{os.major(status.st_dev)}:{os.minor(status.st_dev)}-{status.st_ino}"


def create(home: str, name: str, controllers: Sequence[str] = ()) -> str:
    """A new, empty cgroup for one start of ``name``: its path. Raises ``OSError``.

    ``controllers`` (such as ``memory``) are turned on where the hierarchy offers them, in our own
    directories only.
    """
    top = os.path.dirname(home)
    number = max((_number(path) for path in of_instance(home, name)), default=0)
    while True:
        number += 1
        path = f"{home}/{name}@{number}"
        try:
            for directory in (top, home):
                _make(directory)
                _enable(directory, controllers)
            os.mkdir(path, 0o755)
        except FileExistsError:
            continue
        except FileNotFoundError:
            continue  # another instance's end has just removed the empty directory above
        return path


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass


def _enable(path: str, controllers: Sequence[str]) -> None:
    for controller in controllers:
        try:
            offered = _read(f"{path}/cgroup.controllers").split()
            enabled = _read(f"{path}/cgroup.subtree_control").split()
            if controller.encode() in offered and controller.encode() not in enabled:
                _write(f"{path}/cgroup.subtree_control", f"+{controller}")
        except OSError:
            pass  # accounting is a service, not a condition: info then sums up by process


def hands_down(path: str, controller: str) -> bool:
    """Whether the cgroups below have a controller's files."""
    try:
        return controller.encode() in _read(f"{path}/cgroup.subtree_control").split()
    except OSError:
        return False  # the memory of each process is summed up then


def _number(path: str) -> int:
    digits = path.rpartition("@")[2]
    return int(digits) if digits.isdigit() else 0


def of_instance(home: str, name: str) -> list[str]:
    """The cgroups of ``name``, oldest first; more than one only after a crash."""
    return list(Groups(home).get(name))


def everything(home: str) -> dict[str, list[str]]:
    """All cgroups of one run directory by instance, oldest first."""
    groups = Groups(home)
    return {name: list(groups.get(name)) for name in groups}


class Groups:
    """The cgroups of one run directory by instance, as they are at the first question. Who asks for one instance does not have the others sorted."""

    __slots__ = ("_by_name", "_entries", "_home")

    def __init__(self, home: str) -> None:
        """``home``: as the function of that name, or empty for none."""
        self._home = home
        self._entries: Sequence[str] | None = None if home else ()
        self._by_name: dict[str, list[str]] | None = None

    def _names(self) -> Sequence[str]:
        if self._entries is None:
            try:
                self._entries = os.listdir(self._home)
            except (FileNotFoundError, NotADirectoryError):
                self._entries = ()
        return self._entries

    def __iter__(self) -> Iterator[str]:
        """The instances that have one."""
        if self._by_name is None:
            self._by_name = {}
            for entry in self._names():
                instance, at, digits = entry.rpartition("@")
                if at and digits.isdigit():
                    self._by_name.setdefault(instance, []).append(f"{self._home}/{entry}")
            for paths in self._by_name.values():
                paths.sort(key=_number)
        return iter(self._by_name)

    def get(self, name: str, default: Sequence[str] = ()) -> Sequence[str]:
        """Their paths, oldest first."""
        if self._by_name is not None:
            return self._by_name.get(name, default)
        start = f"{name}@"
        found = [f"{self._home}/{entry}" for entry in self._names() if entry.startswith(start)]
        return sorted((path for path in found if path.rpartition("@")[2].isdigit()), key=_number) or default

    def __contains__(self, name: str) -> bool:
        return bool(self.get(name))


def is_populated(path: str) -> bool:
    """Whether any live process is in the cgroup or below; ``False`` when it does not exist.

    ``cgroup.events``, not an empty ``cgroup.procs``: the latter hides processes of other pid namespaces.
    """
    try:
        return b"populated 1" in _read(f"{path}/cgroup.events")
    except FileNotFoundError:
        return False


def pids(path: str) -> list[int]:
    """The processes in the cgroup and below; ``0`` stands for one that this pid namespace cannot see."""
    found: list[int] = []
    for directory in _tree(path):
        try:
            found.extend(int(line) for line in _read(f"{directory}/cgroup.procs").split())
        except OSError as error:
            # Removed meanwhile; or a threaded cgroup, whose domain above lists its processes.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                raise
    return found


def kill(path: str) -> None:
    """``cgroup.kill``: KILL to everything in the cgroup and below, forks in flight included (Linux 5.14)."""
    _write(f"{path}/cgroup.kill", "1")


def thaw(path: str) -> None:
    """Undo a freeze in the cgroup and below: a frozen process keeps a handled TERM pending."""
    for directory in _tree(path):
        try:
            if b"1" in _read(f"{directory}/cgroup.freeze"):
                _write(f"{directory}/cgroup.freeze", "0")
        except FileNotFoundError:
            pass


def remove(path: str) -> None:
    """Remove an empty cgroup and those below it, then our directories above if they are empty too.

    Raises ``OSError`` (EBUSY) while a process lives in it.
    """
    for directory in reversed(list(_tree(path))):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
    prune(os.path.dirname(path))


def prune(home: str) -> None:
    """Remove the run directory's own cgroup directories if nothing is in them. Raises ``OSError``."""
    for directory in (home, os.path.dirname(home)):
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return  # other instances live there
            raise


def events_fd(path: str) -> int:
    """``cgroup.events`` opened for poll(2): POLLPRI tells of a change. The caller closes it."""
    return os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)


def says_populated(fd: int) -> bool:
    """``is_populated`` for an open ``cgroup.events``; ``False`` when the cgroup is removed."""
    try:
        return b"populated 1" in os.pread(fd, 256, 0)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise


def memory_bytes(path: str) -> int | None:
    """``memory.current`` (v2) or ``memory.usage_in_bytes`` (v1), or ``None`` without the controller."""
    for file in ("memory.current", "memory.usage_in_bytes"):
        try:
            return int(_read(f"{path}/{file}"))
        except FileNotFoundError:
            continue
    return None


def cpu_seconds(path: str) -> float | None:
    """User and system time of everything that ever ran in the cgroup: ``cpu.stat``'s ``usage_usec``."""
    try:
        for line in _read(f"{path}/cpu.stat").split(b"\n"):
            if line.startswith(b"usage_usec "):
                return int(line[11:]) / 1_000_000
    except FileNotFoundError:
        pass
    return None


def path_of(pid: int | str, top: str) -> str | None:
    """The path of a process's v2 cgroup under the mount ``top``, or ``None`` when it is gone."""
    try:
        for line in _read(f"/proc/{pid}/cgroup").split(b"\n"):
            if line.startswith(b"0::"):
                return top + os.fsdecode(line[3:]).rstrip("/")
    except (FileNotFoundError, ProcessLookupError):
        pass
    return None


def _tree(path: str) -> Iterator[str]:
    """The cgroup and those below it, each before its children."""
    try:
        links = os.stat(path).st_nlink
    except FileNotFoundError:
        return
    yield path
    if links == 2:  # kernfs counts the directories below
        return
    try:
        with os.scandir(path) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for directory in below:
        yield from _tree(directory)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 1 << 16):
            chunks.append(chunk)
        return b"".join(chunks)
    except OSError as error:
        if error.errno == errno.ENODEV:  # removed between open and read
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        raise
    finally:
        os.close(fd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
