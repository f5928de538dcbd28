"""One cgroup for each start: track, kill, freeze, account (cgroups(7), the kernel's cgroup-v2.rst).

Instances run in `chrootfw/DEV-INO/NAME@N` at the top of the v2 hierarchy. `DEV-INO` is device and
inode of the run directory, so two run directories never share cgroups. `N` counts the starts. A
cgroup that was killed once kills what is cloned into it later (seen on 6.18), so a cgroup is never
used twice. The `@` separates names from the kernel's own files. chrootfw only tracks processes;
systemd manages the limits of the hierarchy's top.

The root user of an instance that has mounted the hierarchy can create, rename and fill cgroups. So
names are checked like untrusted names, control files are read up to a limit, and trees are walked
with one descriptor at a time and a time limit. The start record names the instance's cgroup
(`identity`).
"""

from __future__ import annotations

import errno
import os
import time
from functools import partial
from itertools import islice

from chrootfw.errors import InputError, PrivilegeError
from chrootfw.linux import mountinfo
from chrootfw.linux.descriptors import SHORT, Descriptors, opened
from chrootfw.planning.ids import is_decimal
from chrootfw.planning.paths import check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

TOP = "chrootfw"

#: Levels and cgroups that an instance may create below its cgroup (`cgroup.max.depth`,
#: `cgroup.max.descendants`).
DEPTH_MAX, DESCENDANTS_MAX = 64, 4096

#: Seconds for reading the cgroups below an instance's cgroup, which may be a hundred thousand.
WALK_MAX = 0.25

#: Bytes that are read of a control file; `cgroup.procs` is read in pieces of this size.
_READ_MAX = 1 << 16

#: Names that are read in a run directory's directory, and in one cgroup. chrootfw makes fewer.
_HOME_MAX, _BELOW_MAX = 200_000, 10_000

#: Digits of a start's number. chrootfw makes no longer ones: with the longest name, the next number
#: would not fit.
_DIGITS_MAX = 9

#: Seconds between two attempts to remove a cgroup.
_AGAIN = 0.002

#: How often a start tries to make its cgroup while other starts make and remove theirs.
_ATTEMPTS = 100

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: What follows the instance's name in the name of its logger's cgroup.
_OF_LOGGER = "@log"
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)


def hierarchies(table: Callable[[], Iterable[bytes]]) -> tuple[str | None, str | None]:
    """Find the mount points of the host's v2 hierarchy and v1 memory controller.

    A mount that an instance made in its root does not count, nor a mount that another mount covers.
    The previous result is returned without reading the mount table if both mounts are still there.

    Args:
        table: Returns the mount table in pieces of whole lines.

    Returns:
        The mount points, each `None` if it is not mounted.
    """
    for known, places in _found_last:
        if known == [_identity(place) for place in places]:
            return places
    raw = table()
    v1 = (
        entry
        for entry in mountinfo.of_type(raw, b"cgroup")
        if b"memory" in entry.super_options.split(b",")
    )
    places = (_first_of_the_host(mountinfo.of_type(raw, b"cgroup2")), _first_of_the_host(v1))
    if places[0]:
        _found_last[:] = [([_identity(place) for place in places], places)]
    return places


def _first_of_the_host(entries: Iterable[mountinfo.MountEntry]) -> str | None:
    """Return the first mount point that is the host's and is not covered by another mount."""
    for entry in entries:
        path = os.fsdecode(entry.mount_point)
        if not _is_in_a_run_directory(path) and _mount_id(path) == entry.id:
            return path
    return None


def _is_in_a_run_directory(path: str) -> bool:
    """Check that a path is below the root or an auxiliary layer of any instance."""
    parts = path.split("/")
    return any(
        parts[at + 1] in ("root", "aux") and os.path.lexists(f"{'/'.join(parts[:at])}/.locks")
        for at in range(1, len(parts) - 1)
    )


def _mount_id(path: str) -> int:
    """Return the ID of the mount that a path is on; 0 if it cannot be opened.

    The ID is read from the descriptor (proc_pid_fdinfo(5)).
    """
    try:
        file = opened(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in SHORT:
            raise  # this says nothing about the hierarchy
        return 0
    with file as fd:
        for line in _read(f"/proc/thread-self/fdinfo/{fd}").split(b"\n"):
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    return 0


#: Device and inode of both root directories, and the result of `hierarchies`.
_found_last: list[tuple[list[tuple[int, int] | None], tuple[str | None, str | None]]] = []


def _identity(path: str | None) -> tuple[int, int] | None:
    try:
        status = os.stat(path or "")
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_writable(path: str) -> bool:
    """Check that cgroups can be created below a path; a read-only mount is not writable."""
    return os.access(path, os.W_OK)


def home(top: str, run_dir: str) -> str:
    """Return the directory of a run directory's cgroups, which need not exist.

    Args:
        top: The mount point of the hierarchy.
        run_dir: The run directory, which must exist.
    """
    status = os.stat(run_dir)
    return f"{top}/{TOP}/{os.major(status.st_dev)}:{os.minor(status.st_dev)}-{status.st_ino}"


def identity(path: str) -> int:
    """Return the inode of a cgroup, which no other cgroup gets in this boot; 0 if it is gone.

    Start records contain this number.
    """
    try:
        return os.stat(path, follow_symlinks=False).st_ino
    except OSError:
        return 0


def create(home: str, name: str, controllers: Sequence[str] = ()) -> str:
    """Create a new, empty cgroup for one start of an instance.

    Args:
        home: The directory of the run directory's cgroups (`home`).
        name: The instance's name.
        controllers: Controllers such as `memory`. They are enabled if the hierarchy offers them, in
            chrootfw's own directories only.

    Returns:
        The path of the cgroup.

    Raises:
        OSError: The cgroup cannot be created.
    """
    top = os.path.dirname(home)
    taken = {number(path) for path in of_instance(home, name)}
    next_number = max(taken, default=0) + 1
    if len(str(next_number)) > _DIGITS_MAX:  # a name that imitates chrootfw's names
        next_number = next(each for each in range(1, len(taken) + 2) if each not in taken)
    for attempt in range(_ATTEMPTS):
        path = f"{home}/{name}@{next_number}"
        try:
            for directory in (top, home):
                _make(directory)
                _enable(directory, controllers)
            _make(path, new=True)
        except (FileExistsError, FileNotFoundError) as error:
            if attempt + 1 == _ATTEMPTS:
                raise
            if isinstance(error, FileExistsError):
                next_number += 1
            else:  # another instance's end has just removed the empty parent directory
                time.sleep(0.0001 * attempt)
            continue
        for file, limit in (
            ("cgroup.max.depth", DEPTH_MAX),
            ("cgroup.max.descendants", DESCENDANTS_MAX),
        ):
            try:
                _write(f"{path}/{file}", str(limit))
            except OSError:
                # version 1 has no such limit; walks through an instance's cgroups have a time limit
                # anyway
                pass
        _make_usable(path)
        return path
    raise AssertionError("the last attempt returns or raises")


def _make_usable(path: str) -> None:
    """Let processes into a new cgroup beside one that an instance has made threaded.

    The kernel wants all cgroups at that level to be threaded then.
    """
    try:
        if _read(f"{path}/cgroup.type").strip() == b"domain invalid":
            _write(f"{path}/cgroup.type", "threaded")
    except OSError:
        # version 1 has no types; otherwise the first process reports that it cannot be created
        # there
        pass


def _make(path: str, *, new: bool = False) -> None:
    """Make a directory that all users can read, despite the umask.

    Args:
        path: The directory.
        new: Fail if the directory exists.
    """
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        if new:
            raise
    with opened(path, _DIRECTORY) as fd:
        status = os.fstat(fd)
        if status.st_mode & 0o777 != 0o755 and status.st_uid == os.geteuid():
            os.fchmod(fd, 0o755)


def _enable(path: str, controllers: Sequence[str]) -> None:
    for controller in controllers:
        try:
            offered = _read(f"{path}/cgroup.controllers").split()
            enabled = _read(f"{path}/cgroup.subtree_control").split()
            if controller.encode() in offered and controller.encode() not in enabled:
                _write(f"{path}/cgroup.subtree_control", f"+{controller}")
        except OSError:
            pass  # accounting is optional: without it, `info` sums up by process


def hands_down(path: str, controller: str) -> bool:
    """Check that a controller is enabled for the cgroups below a cgroup."""
    try:
        return controller.encode() in _read(f"{path}/cgroup.subtree_control").split()
    except OSError:
        return False  # then the memory of each process is summed up


def parse(entry: str) -> tuple[str, int] | None:
    """Split the name of a cgroup into the instance's name and the number of the start.

    Returns:
        Both; `None` for a name that chrootfw does not make.
    """
    name, at, digits = entry.rpartition("@")
    if not at or not is_decimal(digits) or len(digits) > _DIGITS_MAX or digits[0] == "0":
        return None
    try:
        return check_name(name), int(digits)
    except InputError:
        return None


def of_logger(home: str, name: str) -> str:
    """Return the path of the cgroup of an instance's logger."""
    return f"{home}/{name}{_OF_LOGGER}"


def of_all_loggers(home: str) -> list[str]:
    """List the cgroups of all loggers of a run directory."""
    try:
        return [f"{home}/{name}" for name in _directories_in(home) if name.endswith(_OF_LOGGER)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def create_for_logger(home: str, name: str) -> str:
    """Create the cgroup of an instance's logger if it does not exist.

    Returns:
        Its path.

    Raises:
        OSError: It cannot be created.
    """
    path = of_logger(home, name)
    for directory in (os.path.dirname(home), home, path):
        _make(directory)
    _make_usable(path)
    return path


def number(path: str) -> int:
    """Return the number of the start that a cgroup is for; 0 if the name has none."""
    parsed = parse(os.path.basename(path))
    return parsed[1] if parsed else 0


def of_instance(home: str, name: str) -> list[str]:
    """List the cgroups with an instance's name, oldest first; several only after a crash."""
    return list(Groups(home, only=name).get(name))


def everything(home: str) -> dict[str, list[str]]:
    """List all cgroups of a run directory by the instance's name, oldest first."""
    groups = Groups(home)
    return {name: list(groups.get(name)) for name in groups}


class Groups:
    """The cgroups of one run directory by the instance's name, at one moment.

    Other programs may have made some of these cgroups: the name proves neither an instance nor its
    cgroup (`identity`).
    """

    __slots__ = ("_by_name", "_denied", "_home", "_inodes")

    def __init__(self, home: str, *, is_own: bool = True, only: str | None = None) -> None:
        """Read the directory.

        Args:
            home: The directory of the run directory's cgroups (`home`); empty if there is none.
            is_own: Whether the run directory is the caller's own. Then an unreadable directory
                counts as empty.
            only: The one instance whose cgroups are wanted; `None` for all instances.
        """
        self._home = home
        self._denied: PrivilegeError | None = None
        self._inodes: dict[str, int] = {}
        try:
            self._inodes = _directories_in(home) if home else {}
        except (FileNotFoundError, NotADirectoryError):
            pass
        except PermissionError as error:
            if not is_own:
                self._denied = PrivilegeError(
                    f"cannot read the cgroups of the run directory: {error.strerror}",
                    [home],
                    "run it with sudo, or as root",
                )
                self._denied.__cause__ = error
        self._by_name: dict[str, list[str]] = {}
        start = "" if only is None else f"{only}@"
        for entry in self._inodes:
            if entry.startswith(start) and (parsed := parse(entry)):
                self._by_name.setdefault(parsed[0], []).append(f"{home}/{entry}")
        for paths in self._by_name.values():
            if len(paths) > 1:
                paths.sort(key=number)

    def _check(self) -> None:
        if self._denied is not None:
            raise self._denied

    def others(self) -> list[str]:
        """List the paths of cgroups whose names chrootfw does not make.

        Raises:
            PrivilegeError: The directory cannot be read.
        """
        self._check()
        return [
            f"{self._home}/{entry}"
            for entry in self._inodes
            if not parse(entry) and not entry.endswith(_OF_LOGGER)
        ]

    def identity(self, path: str) -> int:
        """Return the inode of a cgroup of this run directory; 0 if it was not there."""
        return self._inodes.get(os.path.basename(path), 0)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of instances that have a cgroup.

        Raises:
            PrivilegeError: The directory cannot be read.
        """
        self._check()
        return iter(self._by_name)

    def get(self, name: str, default: Sequence[str] = ()) -> Sequence[str]:
        """List the paths of an instance's cgroups, oldest first.

        Raises:
            PrivilegeError: The directory cannot be read.
        """
        self._check()
        return self._by_name.get(name, default)

    def __contains__(self, name: str) -> bool:
        return bool(self.get(name))


def _directories_in(home: str) -> dict[str, int]:
    """Read the names of the cgroups in a directory, with their inodes."""
    with os.scandir(home) as entries:
        inside = (entry for entry in entries if entry.is_dir(follow_symlinks=False))
        return {entry.name: entry.inode() for entry in islice(inside, _HOME_MAX)}


def is_populated(path: str) -> bool:
    """Check that any running process is in a cgroup or below; false if the cgroup does not exist.

    `cgroup.events` is read, and not `cgroup.procs`, which hides processes of other pid namespaces.
    """
    try:
        return b"populated 1" in _read(f"{path}/cgroup.events")
    except FileNotFoundError:
        return False


def pids(path: str, *, seconds: float = WALK_MAX) -> list[int]:
    """List the processes in a cgroup and below.

    Cgroups in which no process runs are skipped.

    Args:
        path: The cgroup.
        seconds: Time limit; pids that are not read by then are left out.

    Returns:
        The pids; 0 stands for a process that this pid namespace cannot see.
    """
    found: dict[int, None] = {}

    def enter(fd: int) -> bool:
        try:
            found.update(dict.fromkeys(_numbers_in("cgroup.procs", fd)))
        except OSError as error:
            # Removed meanwhile, or a threaded cgroup, whose domain lists its processes.
            if error.errno not in (*_GONE, errno.EOPNOTSUPP):
                raise
            # The instance made its own cgroup threaded: only threads are listed.
            if error.errno == errno.EOPNOTSUPP and not found:
                found.update(dict.fromkeys(_processes_of(_threads_in(fd))))
        return True

    _walk(path, enter, deadline=time.monotonic() + seconds)
    return list(found)


def _threads_in(fd: int) -> Iterator[int]:
    try:
        yield from _numbers_in("cgroup.threads", fd)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _processes_of(threads: Iterable[int]) -> Iterator[int]:
    """Yield the processes that threads belong to."""
    for thread in threads:
        try:
            status = _read(f"/proc/{thread}/status") if thread else b"Tgid:\t0"
        except OSError:
            continue  # it has exited
        yield from (int(line[5:]) for line in status.split(b"\n") if line.startswith(b"Tgid:"))


def kill(path: str) -> bool:
    """Send KILL to all processes in a cgroup and below, forks in flight included.

    Uses `cgroup.kill` (Linux 5.14).

    Returns:
        Whether the kernel did it; false for a threaded cgroup, and for one that is gone.
    """
    try:
        _write(f"{path}/cgroup.kill", "1")
    except OSError as error:
        if error.errno in (*_GONE, errno.EOPNOTSUPP):
            return False
        raise
    return True


def thaw(path: str) -> None:
    """Undo a freeze in a cgroup and below: a frozen process keeps a handled TERM pending."""

    def enter(fd: int) -> bool:
        try:
            if b"1" in _read("cgroup.freeze", fd):
                _write("cgroup.freeze", "0", fd)
        except OSError as error:
            if error.errno not in _GONE:
                raise
        return True

    _walk(path, enter, deadline=time.monotonic() + WALK_MAX)
    home = os.path.dirname(path)
    # A freeze of these directories freezes this cgroup too.
    for directory in (home, os.path.dirname(home)):
        try:
            if TOP in home.rsplit("/", 2)[1:] and b"1" in _read(f"{directory}/cgroup.freeze"):
                _write(f"{directory}/cgroup.freeze", "0")
        except OSError as error:
            if error.errno not in _GONE:
                raise


def frozen_by(path: str) -> str:
    """Find the directory whose freeze holds the processes of a cgroup v2.

    Returns:
        The cgroup itself or one above; empty if nothing freezes it.
    """
    try:
        if b"frozen 1" not in _read(f"{path}/cgroup.events"):
            return ""
        while b"1" not in _read(f"{path}/cgroup.freeze"):
            path = os.path.dirname(path)
    except FileNotFoundError:
        return ""  # version 1, or thawed meanwhile: the top of a hierarchy has no such file
    return path


def move_out(pid: int, top: str) -> bool:
    """Move a process to the top of the hierarchy.

    Args:
        pid: The process.
        top: The mount point of the hierarchy.

    Returns:
        Whether the process was moved or has exited.
    """
    try:
        _write(f"{top}/cgroup.procs", str(pid))
    except ProcessLookupError:
        return True
    except OSError:
        return False  # the top is itself a cgroup with controllers (in a container)
    return True


def remove(path: str) -> None:
    """Remove an empty cgroup and the cgroups below, then chrootfw's own directories if empty.

    Raises:
        OSError: A process is in the cgroup (EBUSY), or the removal fails.
    """
    for _ in range(_ATTEMPTS):
        _walk(path, lambda _fd: True, leave=_remove_in)
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno == errno.EBUSY and not is_populated(path) and _has_below(path):
                continue  # a process that has exited since made it meanwhile
            raise
        break
    prune(os.path.dirname(path))


def remove_when_empty(path: str, seconds: float) -> None:
    """Remove a cgroup whose last process is about to end; do nothing if it does not exist.

    Linux 6.18 takes a process out of its cgroup after its exit was reported.

    Args:
        path: The cgroup.
        seconds: Seconds to wait for the process.

    Raises:
        OSError: A process is still in it (EBUSY), or the removal fails.
    """
    deadline = time.monotonic() + seconds
    while os.path.isdir(path):
        try:
            remove(path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN)


def _remove_in(parent_fd: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=parent_fd)
    except FileNotFoundError:
        pass


def _has_below(path: str) -> bool:
    try:
        return os.stat(path).st_nlink > _NO_MORE
    except FileNotFoundError:
        return False


def prune(home: str) -> None:
    """Remove the run directory's own cgroup directories if they are empty.

    Raises:
        OSError: A directory cannot be removed.
    """
    for directory in (home, os.path.dirname(home)):
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return  # other instances run there
            raise


def events_fd(path: str) -> int:
    """Open `cgroup.events` for poll(2), where POLLPRI reports a change. The caller closes it."""
    return os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)


def read_populated(fd: int) -> bool:
    """Check the same as `is_populated` through an open `cgroup.events`; false if it was removed."""
    try:
        return b"populated 1" in os.pread(fd, 256, 0)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise


def memory_bytes(path: str) -> int | None:
    """Return the memory that a cgroup uses, in bytes.

    Returns:
        `memory.current` (v2) or `memory.usage_in_bytes` (v1); `None` without the controller.
    """
    for file in ("memory.current", "memory.usage_in_bytes"):
        try:
            return int(_read(f"{path}/{file}"))
        except FileNotFoundError:
            continue
    return None


def cpu_seconds(path: str) -> float | None:
    """Return user and system time of everything that ever ran in a cgroup, in seconds.

    Returns:
        `usage_usec` of `cpu.stat`; `None` if it is not available.
    """
    try:
        for line in _read(f"{path}/cpu.stat").split(b"\n"):
            if line.startswith(b"usage_usec "):
                return int(line[11:]) / 1_000_000
    except FileNotFoundError:
        pass
    return None


def path_of(pid: int | str, top: str) -> str | None:
    """Return the path of a process's v2 cgroup.

    Args:
        pid: The process.
        top: The mount point of the hierarchy.

    Returns:
        The path; `None` if the process is gone, or the path is too long for the kernel to print.
    """
    try:
        for line in _read(f"/proc/{pid}/cgroup").split(b"\n"):
            if line.startswith(b"0::"):
                return top + os.fsdecode(line[3:]).rstrip("/")
    except (FileNotFoundError, ProcessLookupError):
        pass
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
    return None


#: Links of a cgroup's directory without cgroups below; kernfs counts directories.
_NO_MORE = 2


def _walk(
    path: str,
    enter: Callable[[int], bool],
    leave: Callable[[int, str], None] = lambda _fd, _name: None,
    *,
    deadline: float | None = None,
) -> None:
    """Walk through a cgroup and the cgroups below, at any depth, with one descriptor at a time.

    Args:
        path: The cgroup; nothing happens if it does not exist.
        enter: Called with the open directory of each cgroup, before those below. False skips those
            below.
        leave: Called with the parent's descriptor and the name, after those below; not called for
            `path` itself.
        deadline: When to end (`time.monotonic`). With a deadline, cgroups without processes are
            skipped.
    """
    names: list[str] = []
    waiting: list[list[str]] = []
    with Descriptors() as owner:
        fd = _open(owner, path, names)
        while fd >= 0:
            if len(waiting) <= len(names):  # just entered
                waiting.append(_list_children(fd) if enter(fd) else [])
            if waiting[-1]:
                if deadline is not None and time.monotonic() > deadline:
                    return
                name, populated = waiting[-1].pop(), deadline is not None
                child = _open_in(owner, fd, name, names, populated=populated)
                if child >= 0:
                    owner.close(fd)
                    fd = child
                continue
            waiting.pop()
            if not names:
                return
            name = names.pop()
            above = _open_above(owner, fd, path, names)
            owner.close(fd)
            fd = above
            while fd < 0 and names:  # the parents are gone too
                name = names.pop()
                waiting.pop()
                fd = _open(owner, path, names)
            if fd >= 0:
                leave(fd, name)


def _open_directory(owner: Descriptors, name: str, above: int) -> int:
    """Open a directory, below the descriptor `above` unless that is -1."""
    return owner.take(partial(os.open, dir_fd=above if above >= 0 else None), name, _DIRECTORY)


def _open(owner: Descriptors, path: str, names: Sequence[str]) -> int:
    """Open a directory below a path, one name at a time: the whole path may be too long.

    Returns:
        The descriptor; -1 if the directory is gone.
    """
    fd = -1
    for name in (path, *names):
        above = fd
        try:
            fd = _open_directory(owner, name, above)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return -1
        finally:
            if above >= 0:
                owner.close(above)
    return fd


def _open_in(owner: Descriptors, fd: int, name: str, names: list[str], *, populated: bool) -> int:
    """Open a directory and append its name to `names`.

    Returns:
        The descriptor; -1 if the directory is gone, or is skipped because no process is in it.
    """
    try:
        if populated and _is_empty(name, fd):
            return -1
        child = _open_directory(owner, name, fd)
    except OSError as error:
        if error.errno in _GONE:
            return -1
        raise
    names.append(name)
    return child


def _is_empty(name: str, fd: int) -> bool:
    try:
        return b"populated 0" in _read(f"{name}/cgroup.events", fd)
    except FileNotFoundError:
        return False  # version 1 does not say


def _open_above(owner: Descriptors, fd: int, path: str, names: Sequence[str]) -> int:
    """Open the parent directory of `fd`, which is `names` below `path`."""
    try:
        return _open_directory(owner, "..", fd)
    except OSError:  # it was removed meanwhile, and has no parent
        return _open(owner, path, names)


def _list_children(fd: int) -> list[str]:
    if os.fstat(fd).st_nlink == _NO_MORE:
        return []
    try:
        with os.scandir(fd) as entries:
            found = (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            return list(islice(found, _BELOW_MAX))
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise


def _numbers_in(file: str, fd: int) -> Iterator[int]:
    """Yield the numbers in a control file, which may be long."""
    rest = b""
    for chunk in _chunks(file, fd):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from map(int, filter(None, lines))
    if rest:
        yield int(rest)


def _read(path: str, dir_fd: int | None = None) -> bytes:
    """Read a short control file, or the beginning of a long one."""
    found = b""
    for chunk in _chunks(path, dir_fd):
        found += chunk
        if len(found) >= _READ_MAX:
            break
    return found


def _chunks(path: str, dir_fd: int | None = None) -> Iterator[bytes]:
    with opened(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=dir_fd) as fd:
        try:
            while chunk := os.read(fd, _READ_MAX):
                yield chunk
        except OSError as error:
            if error.errno == errno.ENODEV:  # removed between open and read
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
            raise


def _write(path: str, text: str, dir_fd: int | None = None) -> None:
    with opened(path, os.O_WRONLY | os.O_NOFOLLOW, dir_fd=dir_fd) as fd:
        os.write(fd, text.encode())
