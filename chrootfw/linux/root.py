"""Read an instance's root from outside, without leaving it or waiting for it for ever."""

from __future__ import annotations

import errno
import io
import os
import posixpath
import stat as modes
import struct
import sys

from chrootfw.linux import deadlines, syscalls
from chrootfw.linux.call_batch import ZEROS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO, Any

    from chrootfw.linux.call_batch import Buffer, CallBatch

#: Most symbolic links that the kernel follows in one look-up (path_resolution(7)).
_LINKS_MAX = 40
#: How often a look-up is repeated that raced with a rename (EAGAIN) or a replaced file.
RACES = 100
#: Seconds for the file system of a root to answer.
ANSWERS = 10.0

_AT_EMPTY_PATH = syscalls.AT_EMPTY_PATH
#: Name of a look-up's step in a batch.
LOOK_UP = b"look-up"
_OPEN = b"open"
#: Bytes that are read at once; number of such reads for a list of names.
_ONCE, _LISTS = 1 << 16, 64
_PATH_MAX = 4096
#: Most parts of a path that one child looks up.
_AT_ONCE = 32
#: Errnos of a path that leads to no file. The last two: it is too long or has a NUL byte, as a path
#: in a file of the root may.
LEADS_NOWHERE = (
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
)  # fmt: skip
#: Why there is nothing at a path.
_NOTHING = (errno.EINVAL, errno.ENOENT, errno.ENOTDIR)
#: Fields of struct statx: blksize, nlink, uid, gid, mode, ino, size, blocks, atime, ctime, mtime,
#: rdev, dev.
_STATX = struct.Struct("=4xI8xIIIH2xQQQ8xqI4x16xqI4xqI4xIIII")
#: Offsets in struct statx of eight bytes that identify a file and its type.
_IDENTITY = (24, 32, 136)  # gid and mode; ino; dev
_EIGHT = struct.Struct("=q")
#: The type in the eight bytes of gid and mode, and that of a regular file.
_TYPE, _REGULAR = (
    _EIGHT.unpack(struct.pack("=IH2x", 0, bits))[0] for bits in (0o170000, modes.S_IFREG)
)
#: The type of a file system in the first eight bytes of struct statfs.
_STATFS_TYPE = struct.Struct("=I4x" if syscalls.ARCHITECTURE == "s390x" else "=Q")
_STATFS_MASK = _EIGHT.unpack(_STATFS_TYPE.pack(0xFFFFFFFF))[0]
#: Types of proc and sysfs (statfs(2)), whose files are the host's in every root.
_OF_THE_KERNEL = [_EIGHT.unpack(_STATFS_TYPE.pack(each))[0] for each in (0x9FA0, 0x62656572)]
#: Fields of struct statfs: block size, blocks available, fragment size.
_STATFS = struct.Struct(
    "=4xI16xQ16x8x4xI" if syscalls.ARCHITECTURE == "s390x" else "=8xQ16xQ16x8x8xQ"
)
_NANOSECONDS = 10**9
#: What a file system answers about itself when it is damaged (EFSCORRUPTED, EFSBADCRC), or its
#: device is.
_DAMAGED = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)


class Root:
    """The tree that becomes `/` for an instance's processes.

    Paths are absolute, as the processes inside write them. Every look-up is an openat2(2) with
    RESOLVE_IN_ROOT, so neither `..` nor a symlink leaves the root. No descriptor stays open between
    calls: a `Root` never keeps its mounts busy.

    A child makes the calls, since the file system may be a server that does not answer. All methods
    raise `OSError`. Its errno is ETIMEDOUT if no answer comes in time, and from then on at once.
    """

    __slots__ = ("damage", "fd", "path", "seconds", "timed_out")

    def __init__(self, path: str, *, fd: int = -1, seconds: float = ANSWERS) -> None:
        """Make the object; nothing is read.

        Args:
            path: The path of the root, on the host.
            fd: A descriptor of the root, if it is attached nowhere.
            seconds: Seconds for each call to return.
        """
        self.path = path
        self.fd = fd
        self.seconds = seconds
        self.timed_out: deadlines.DeadlineExceeded | None = None
        #: The last error that tells of a damaged file system or disk.
        self.damage: OSError | None = None

    def __repr__(self) -> str:
        return f"Root({self.path!r})"

    def look_up(
        self,
        path: str,
        flags: int = os.O_PATH,
        mode: int = 0,
        *,
        follow: bool = True,
        keep: Sequence[int] = (),
    ) -> tuple[CallBatch, int, int]:
        """Make a batch that begins with the look-up of a path.

        Args:
            path: The path inside.
            flags: Flags of open(2).
            mode: The mode of a file that is created.
            follow: Whether a symbolic link at the end is followed.
            keep: Descriptors of this process that later calls of the batch use.

        Returns:
            The batch, the child's descriptor of the file, and its next free descriptor.
        """
        _check_nul(path)
        calls, top, kept = self._make_batch(keep)
        found = deadlines.lowest_free(kept)
        flags |= os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        how_to_open = syscalls.OpenHow(flags, mode, syscalls.RESOLVE_IN_ROOT)
        calls.add("openat2", top, os.fsencode(path), how_to_open, 24, what=LOOK_UP)
        return calls, found, deadlines.lowest_free([*kept, found])

    def _make_batch(self, keep: Sequence[int]) -> tuple[CallBatch, int, list[int]]:
        """Make a batch that begins with opening the root.

        Returns:
            The batch, the child's descriptor of the root, and the descriptors that are in use.
        """
        kept = [*keep, *([self.fd] if self.fd >= 0 else [])]
        calls = deadlines.make_closing_batch(kept)
        top = self.fd
        if top < 0:
            top = deadlines.lowest_free(kept)
            kept.append(top)
            how = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            calls.add("openat", syscalls.AT_FDCWD, os.fsencode(self.path), how, 0)
        return calls, top, kept

    def carry_out(self, path: str, calls: CallBatch, *, attempts: int = RACES) -> None:
        """Carry out a batch made by `look_up` in a child.

        Args:
            path: The path, for errors.
            calls: The batch.
            attempts: How often to try. 1 for calls that must not be repeated: a look-up that raced
                with a rename is EAGAIN then.

        Raises:
            OSError: A call failed.
            DeadlineExceeded: A call has not returned in time.
        """
        if self.timed_out is not None:
            raise self.timed_out
        for attempt in range(attempts):
            try:
                deadlines.run_batch(path, calls, seconds=self.seconds)
                return
            except deadlines.DeadlineExceeded as error:
                self.timed_out = error
                raise
            except OSError as error:
                if error.errno in _DAMAGED:
                    self.damage = error
                stopped = calls.stopped_at()
                if (
                    error.errno != errno.EAGAIN
                    or not stopped
                    or stopped[0] != LOOK_UP
                    or attempt == attempts - 1
                ):
                    raise

    def open_fd(
        self, path: str, flags: int = os.O_PATH, mode: int = 0, *, follow: bool = True
    ) -> int:
        """Open a path.

        Using and closing a descriptor that is not O_PATH may wait.

        Args:
            path: The path inside.
            flags: Flags of open(2).
            mode: The mode of a file that is created.
            follow: Whether a symbolic link at the end is followed.

        Returns:
            The descriptor. The caller must close it.
        """
        with deadlines.Passage() as passage:
            calls, found, _ = self.look_up(path, flags, mode, follow=follow, keep=[passage.theirs])
            passage.add(calls, found)
            self.carry_out(path, calls)
            return passage.take()

    def open(self, path: str, mode: str = "r", **how: Any) -> IO[Any]:
        """Open a regular file for reading.

        Args:
            path: The path inside.
            mode: `r` or `rb`.
            how: Further arguments of `open`.

        Raises:
            OSError: It is not a regular file (EINVAL): opening a FIFO or a device has side effects.
                Another process has a lease on it (EAGAIN, fcntl(2)): the error names the process.
        """
        if mode not in ("r", "rt", "rb"):
            raise ValueError(f"mode {mode!r}: a Root is only read; answer with a Step to write")
        buffering = how.pop("buffering", -1)
        file = _File(self, path)
        if mode == "rb" and buffering == 0:
            return file  # type: ignore[return-value]  # as open() returns it
        buffered = io.BufferedReader(file, _ONCE)
        return buffered if mode == "rb" else io.TextIOWrapper(buffered, **how)

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result:
        """Return the status of a file, as `os.stat` does."""
        return _stat_result(self.status(path, follow=follow).data)

    def status(self, path: str, *, follow: bool = True) -> Buffer:
        """Return the status of a file as struct statx."""
        calls, found, _ = self.look_up(path, follow=follow)
        buffer = _add_statx(calls, found)
        self.carry_out(path, calls)
        return buffer

    def mount_id(self, path: str) -> int:
        """Return the ID of the mount that a path is on."""
        offset = syscalls.STATX_MNT_ID_OFFSET
        return int.from_bytes(self.status(path).data[offset : offset + 8], sys.byteorder)

    def exists(self, path: str) -> bool:
        """Check that a path leads to a file; a dangling symlink does not."""
        try:
            calls, _, _ = self.look_up(path)
            self.carry_out(path, calls)
        except OSError as error:
            if error.errno in LEADS_NOWHERE:
                return False
            raise
        return True

    def readlink(self, path: str) -> str:
        """Return the text of a symbolic link."""
        calls, found, _ = self.look_up(path, follow=False)
        buffer = calls.add_buffer(_PATH_MAX)
        length = calls.add("readlinkat", found, b"", buffer, _PATH_MAX)
        self.carry_out(path, calls)
        return os.fsdecode(buffer.read(calls.result(length)))

    def listdir(self, path: str = "/") -> list[str]:
        """List the names in a directory, sorted.

        Raises:
            OSError: It has more than some 100,000 names (EOVERFLOW).
        """
        calls, found, _ = self.look_up(path, os.O_RDONLY | os.O_DIRECTORY)
        buffer = calls.add_buffer(_LISTS * _ONCE)
        first = len(calls.names)
        for number in range(_LISTS):
            calls.add("getdents64", found, buffer.at(number * _ONCE), _ONCE)
        self.carry_out(path, calls)
        if calls.result(first + _LISTS - 1):
            raise OSError(errno.EOVERFLOW, "too many names", path)
        names: list[str] = []
        for number in range(_LISTS):
            names += _names(buffer.read(calls.result(first + number), number * _ONCE))
        return sorted(names)

    def free_bytes(self) -> int:
        """Return the bytes that an ordinary user can still write on the root's file system.

        This is `f_bavail` of statvfs(3).
        """
        calls, found, _ = self.look_up("/")
        buffer = calls.add_buffer(256)
        calls.add("fstatfs", found, buffer)
        self.carry_out("/", calls)
        size, available, fragment = _STATFS.unpack_from(buffer.data)
        return int(available) * int(fragment or size)

    def resolve(self, path: str) -> str:
        """Follow the symlinks of a path inside the root; a missing part stays as written."""
        return self._walk(path)[0]

    def on_the_way(self, path: str) -> dict[str, os.stat_result]:
        """Return the status of every directory and link that the look-up of a path passes.

        Returns:
            The status by the path inside the root, in the order of the look-up, with the file at
            its end.
        """
        return self._walk(path)[1]

    def _walk(self, path: str) -> tuple[str, dict[str, os.stat_result]]:
        _check_nul(path)
        pending = [part for part in path.split("/") if part][::-1]
        known = self._read_entries(_ahead("/", pending))
        if known["/"] is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), "/")
        found = {"/": known["/"][0]}
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
            if here not in known:
                known = self._read_entries(_ahead(here, pending))
            entry = known[here]
            if entry is None:
                done.append(part)
                continue
            status, text = entry
            found[here] = status
            if text is None:
                done.append(part)
                continue
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if text.startswith("/"):
                done.clear()
            pending.extend([piece for piece in text.split("/") if piece][::-1])
        return "/" + "/".join(done), found

    def _read_entries(
        self, paths: Sequence[str]
    ) -> dict[str, tuple[os.stat_result, str | None] | None]:
        """Return the status of each file itself, and the text if it is a symbolic link.

        Returns:
            Both by the path; `None` for a path that leads to nothing.
        """
        calls, top, kept = self._make_batch(())
        found = deadlines.lowest_free(kept)
        how = syscalls.OpenHow(
            os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, syscalls.RESOLVE_IN_ROOT
        )
        reads = []
        absent = (*_NOTHING, errno.EBADF)  # EBADF: the look-up before it has found nothing
        for path in paths:
            calls.add("openat2", top, os.fsencode(path), how, 24, what=LOOK_UP, ignore=_NOTHING)
            status = calls.add_buffer(syscalls.STATX_SIZE)
            statx = _call_statx(calls, found, status, ignore=absent)
            text = calls.add_buffer(_PATH_MAX)
            length = calls.add("readlinkat", found, b"", text, _PATH_MAX, ignore=absent)
            calls.add("close", found, ignore=(errno.EBADF,))
            reads.append((path, statx, status, length, text))
        self.carry_out(paths[-1], calls)
        return {
            path: None
            if calls.result(statx) < 0
            else (
                _stat_result(status.data),
                os.fsdecode(text.read(calls.result(length))) if calls.result(length) >= 0 else None,
            )
            for path, statx, status, length, text in reads
        }


class _File(io.RawIOBase):
    """A regular file of a root.

    Each read opens the file in a child; all but the first fail if it is another file by then.
    """

    def __init__(self, root: Root, path: str) -> None:
        self.root = root
        self.path = path
        self.at = 0
        self.identity: list[int] = []
        self.read_ahead, self.size = self._fetch(_ONCE)

    def _fetch(self, count: int) -> tuple[bytes, int]:
        """Read on from where the last read ended.

        Args:
            count: Most bytes to read.

        Returns:
            The bytes, and the size of the file.
        """
        calls, found, opened = self.root.look_up(self.path)
        status = _add_statx(calls, found)
        for offset, number in zip(_IDENTITY, self.identity, strict=False):
            calls.compare(status.at(offset), number)
        # Looked at before it is opened: opening a FIFO or a device has side effects, and reading
        # /proc/kmsg takes its messages from other readers.
        is_regular = calls.compare(status.at(_IDENTITY[0]), _REGULAR, _TYPE)
        filesystem = calls.add_buffer(256)
        calls.add("fstatfs", found, filesystem)
        of_the_kernel = []
        for number in _OF_THE_KERNEL:
            differs = calls.compare(filesystem, number, _STATFS_MASK)
            of_the_kernel.append(calls.compare(ZEROS, 1))  # always fails
            calls.skip(differs, before=differs + 1)
        # Without O_NONBLOCK, open waits for a lease.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        calls.add("openat", syscalls.AT_FDCWD, b"/proc/self/fd/%d" % found, flags, 0, what=_OPEN)
        buffer = calls.add_buffer(count)
        length = calls.add("pread64", opened, buffer, count, self.at)
        try:
            self.root.carry_out(self.path, calls)
        except OSError as error:
            results = calls.results()
            if results[is_regular] == -errno.ESTALE:
                raise OSError(errno.EINVAL, "not a regular file", self.path) from None
            if any(results[each] == -errno.ESTALE for each in of_the_kernel):
                brief = "a file of the kernel's, not of the root"
                raise OSError(errno.EINVAL, brief, self.path) from None
            if error.errno == errno.EAGAIN and (calls.stopped_at() or (b"",))[0] == _OPEN:
                raise OSError(
                    errno.EAGAIN, f"it is leased by {_lessee(status.data)}", self.path
                ) from None
            raise
        known = status.data
        self.identity = [_EIGHT.unpack_from(known, offset)[0] for offset in _IDENTITY]
        return buffer.read(calls.result(length)), _STATX.unpack_from(known)[6]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data, self.read_ahead = self.read_ahead[: len(buffer)], self.read_ahead[len(buffer) :]
        # Size 0: a file of the kernel, which does not know its size.
        if not data and not (0 < self.size <= self.at):
            data, self.size = self._fetch(min(len(buffer), _ONCE))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def _add_statx(calls: CallBatch, fd: int) -> Buffer:
    buffer = calls.add_buffer(syscalls.STATX_SIZE)
    _call_statx(calls, fd, buffer)
    return buffer


def _call_statx(calls: CallBatch, fd: int, buffer: Buffer, ignore: Sequence[int] = ()) -> int:
    wanted = syscalls.STATX_BASIC_AND_MNT_ID
    return calls.add("statx", fd, b"", _AT_EMPTY_PATH, wanted, buffer, ignore=ignore)


def _ahead(here: str, pending: Sequence[str]) -> list[str]:
    """Return the paths that a look-up passes from here on if none of them is a link.

    Args:
        here: The first of them.
        pending: The parts that follow, the next one last.
    """
    paths = [here]
    for part in reversed(pending[-_AT_ONCE:]):
        if part in (".", ".."):
            break
        paths.append(posixpath.join(paths[-1], part))
    return paths


def _stat_result(status: Any) -> os.stat_result:
    blksize, nlink, uid, gid, mode, ino, size, blocks, *rest = _STATX.unpack_from(status)
    times, devices = [rest[number : number + 2] for number in (0, 4, 2)], rest[6:]
    fields = [
        mode,
        ino,
        os.makedev(*devices[2:]),
        nlink,
        uid,
        gid,
        size,
        *(seconds for seconds, _ in times),
    ]
    more: dict[str, Any] = {
        "st_blksize": blksize,
        "st_blocks": blocks,
        "st_rdev": os.makedev(*devices[:2]),
    }
    for name, (seconds, nanoseconds) in zip(("atime", "mtime", "ctime"), times, strict=True):
        more[f"st_{name}"] = seconds + nanoseconds / _NANOSECONDS
        more[f"st_{name}_ns"] = seconds * _NANOSECONDS + nanoseconds
    return os.stat_result(fields, more)


def _names(entries: bytes) -> list[str]:
    """Extract the names from an array of struct linux_dirent64."""
    found = []
    at = 0
    while at < len(entries):
        length = int.from_bytes(entries[at + 16 : at + 18], sys.byteorder)
        name = entries[at + 19 : at + length].partition(b"\0")[0]
        if name not in (b".", b".."):
            found.append(os.fsdecode(name))
        at += length
    return found


def _lessee(status: Any) -> str:
    """Describe the process that has a lease on a file: `pid N` (proc_locks(5))."""
    *_, major, minor = _STATX.unpack_from(status)
    place = f"{major:02x}:{minor:02x}:{_STATX.unpack_from(status)[5]}"
    with open("/proc/locks", encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if "LEASE" in words[1:3] and place in words:
                return f"pid {words[words.index(place) - 1]}"
    return "another process"


def _check_nul(path: str) -> None:
    """Refuse a path with a NUL byte, of which the kernel would read only the beginning."""
    if "\0" in path:
        raise OSError(errno.EINVAL, "a NUL byte in the path", path)
