"""Parse and search the mount table (proc_pid_mountinfo(5)). Paths are bytes."""

from __future__ import annotations

import os

from chrootfw.planning.paths import is_within_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


#: File systems that have a device number of their own, and not that of a block device.
ON_SEVERAL = (b"btrfs", b"bcachefs", b"zfs")

#: Bytes of a table that are read at a time; largest table in bytes that is kept for the next
#: search.
_PIECE, _KEPT_MAX = 1 << 18, 1 << 20

#: Spaces before the space that a line's mount point follows.
_FIELDS_BEFORE = 3


#: Escapes that the kernel writes. The backslash is last, so that no other replacement reads it.
_KERNELS_ESCAPES = {
    b"\\040": b" ",
    b"\\011": b"\t",
    b"\\012": b"\n",
    b"\\043": b"#",
    b"\\134": b"\\",
}

#: Fields of `MountEntry` that many mounts have in common.
_OFTEN_ALIKE = ("dev", "root", "options", "fstype", "source", "super_options")


class MountEntry:
    """One line of the mount table.

    Paths are `bytes` with the octal escapes undone; `dev` is as in `os.stat`.
    """

    __slots__ = (
        "dev",
        "fstype",
        "id",
        "mount_point",
        "optional",
        "options",
        "parent",
        "root",
        "source",
        "super_options",
    )

    def __init__(
        self,
        id: int,
        parent: int,
        dev: int,
        root: bytes,
        mount_point: bytes,
        options: bytes,
        optional: tuple[bytes, ...],
        fstype: bytes,
        source: bytes,
        super_options: bytes,
    ) -> None:
        self.id = id
        self.parent = parent
        self.dev = dev
        self.root = root
        self.mount_point = mount_point
        self.options = options
        self.optional = optional
        self.fstype = fstype
        self.source = source
        self.super_options = super_options

    @property
    def read_only(self) -> bool:
        """Whether the mount itself is read-only."""
        return b"ro" in self.options.split(b",")

    def __repr__(self) -> str:
        return f"<MountEntry {self.id} {self.mount_point!r} {self.fstype!r} {self.source!r}>"


def unescape(field: bytes) -> bytes:
    r"""Undo the kernel's octal escapes (`\040` and the like; in a source and a type `#` too)."""
    if b"\\" not in field:
        return field
    if field.count(b"\\") == sum(map(field.count, _KERNELS_ESCAPES)):
        for escaped, plain in _KERNELS_ESCAPES.items():
            field = field.replace(escaped, plain)
        return field
    first, *rest = field.split(b"\\")
    parts = [first]
    for part in rest:
        digits = part[:3]
        if len(digits) == 3 and digits.isdigit() and not digits.strip(b"01234567"):
            parts.append(bytes([int(digits, 8) & 0xFF]) + part[3:])
        else:
            parts.append(b"\\" + part)
    return b"".join(parts)


def escape(field: bytes) -> bytes:
    """Escape a path as the kernel does: space, tab, newline and backslash, but not `#`."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in field)


def parse_line(line: bytes) -> MountEntry:
    """Parse one line without its newline.

    Raises:
        ValueError: The line is not a line of a mount table.
    """
    fields = line.split(b" ")
    dash = fields.index(b"-", 6)
    major, _, minor = fields[2].partition(b":")
    try:
        device = os.makedev(int(major), int(minor))
    except OverflowError as error:
        raise ValueError(f"no device number: {fields[2]!r}") from error
    # An empty source or fstype is an empty field; an empty super_options may be missing.
    tail = [*fields[dash + 1 :], b"", b"", b""]
    return MountEntry(
        int(fields[0]),
        int(fields[1]),
        device,
        unescape(fields[3]),
        unescape(fields[4]),
        fields[5],
        tuple(fields[6:dash]),
        unescape(tail[0]),
        unescape(tail[1]),
        tail[2],
    )


def parse_alike(lines: Iterable[bytes]) -> list[MountEntry]:
    """Parse lines, and keep only one copy of texts that are equal in consecutive lines.

    This saves memory: an instance may have very many mounts.
    """
    found: list[MountEntry] = []
    for line in lines:
        entry = parse_line(line)
        if found:
            for field in _OFTEN_ALIKE:
                before = getattr(found[-1], field)
                if getattr(entry, field) == before:
                    setattr(entry, field, before)
        found.append(entry)
    return found


def parse(table: bytes) -> list[MountEntry]:
    """Parse a whole table, in its order.

    Lines end with a newline and nothing else, since names may contain any other byte.
    """
    return [parse_line(line) for line in table.split(b"\n") if line]


def read_table(pid: int | str = "thread-self") -> bytes:
    """Read the raw table of a process's mount namespace.

    Raises:
        OSError: The process is gone.
    """
    with open(f"/proc/{pid}/mountinfo", "rb", buffering=0) as file:
        chunks = []
        while chunk := file.read(1 << 20):
            chunks.append(chunk)
    return b"".join(chunks)


def pieces(pid: int | str = "thread-self") -> Iterator[bytes]:
    """Read the raw table piece by piece, so that a large table is never in memory as a whole.

    Yields:
        Pieces of whole lines.

    Raises:
        OSError: The process is gone.
    """
    with open(f"/proc/{pid}/mountinfo", "rb", buffering=0) as file:
        rest = b""
        while chunk := file.read(_PIECE):
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                yield whole + newline
        if rest:
            yield rest


class Table:
    """The caller's mount table, for the search functions of this module.

    A table of ordinary size is read once and kept. A larger one is read again for each search:
    other programs may make a hundred thousand mounts with paths of 4096 bytes.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: bytes | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over pieces of whole lines.

        Raises:
            OSError: The table cannot be read.
        """
        if self._kept is not None:
            yield self._kept
            return
        first: list[bytes] | None = []
        size = 0
        for piece in pieces():
            size += len(piece)
            if first is not None:
                first.append(piece)
                if size <= _KEPT_MAX:
                    continue
                yield from first
                first = None
            else:
                yield piece
        if first is not None:
            self._kept = b"".join(first)
            yield self._kept


def lines_of(pid: int) -> Iterator[MountEntry]:
    """Yield the mounts of a process's table one by one; none if the process is gone.

    The table is read only as far as the caller iterates.
    """
    try:
        with open(f"/proc/{pid}/mountinfo", "rb", buffering=1 << 14) as file:
            for line in file:
                yield parse_line(line[:-1])
    except OSError:
        return


def table() -> list[MountEntry]:
    """Return the caller's mount table."""
    return list(entries())


def entries() -> Iterator[MountEntry]:
    """Yield the mounts of the caller's mount table one by one."""
    for piece in pieces():
        for line in piece.split(b"\n"):
            if line:
                yield parse_line(line)


def list_mounts_below(directory: bytes) -> list[MountEntry]:
    """List the mounts on or below a directory, in the table's order.

    Args:
        directory: A resolved, absolute path.
    """
    return select(pieces(), directory)


def select(raw: bytes | Iterable[bytes], directory: bytes) -> list[MountEntry]:
    """List the mounts of a table on or below a directory.

    Lines that cannot match are not parsed.

    Args:
        raw: The table as bytes, or as pieces of whole lines.
        directory: A resolved, absolute path.
    """
    return [parse_line(line) for line, _ in lines_below(raw, directory)]


def lines_below(raw: bytes | Iterable[bytes], directory: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the lines of a table that `select` parses.

    Yields:
        The line, and the part of its mount point after `directory`, still escaped (`/web1/root`).
    """
    needle = b" " + escape(directory).rstrip(b"/")
    for piece in _in_pieces(raw):
        yield from _below_in(piece, needle)


def _below_in(piece: bytes, needle: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = piece.find(needle)
    while at >= 0:
        begin = piece.rfind(b"\n", 0, at) + 1
        after = at + len(needle)
        # The mount point is the fifth field; the same text may be in the fourth, or further on.
        if (
            piece[after : after + 1] not in (b" ", b"/")
            or piece.count(b" ", begin, at) != _FIELDS_BEFORE
        ):
            at = piece.find(needle, after)
            continue
        end = piece.find(b"\n", after)
        end = end if end >= 0 else len(piece)
        yield piece[begin:end], piece[after : piece.find(b" ", after)]
        at = piece.find(needle, end)


def of_type(raw: bytes | Iterable[bytes], fstype: bytes) -> Iterator[MountEntry]:
    """Yield the mounts of a table with one file system type."""
    needle = b" - " + fstype + b" "
    return (parse_line(line) for line in _lines_with(raw, needle))


def by_id(raw: bytes | Iterable[bytes], mount_id: int) -> MountEntry | None:
    """Return the mount of a table with one ID, or `None`."""
    start = b"%d " % mount_id
    for piece in _in_pieces(raw):
        at = 0 if piece.startswith(start) else piece.find(b"\n" + start) + 1
        if piece.startswith(start, at):
            end = piece.find(b"\n", at)
            return parse_line(piece[at : end if end >= 0 else len(piece)])
    return None


def of_device(raw: bytes | Iterable[bytes], device: int) -> Iterator[MountEntry]:
    """Yield the mounts of a table whose file system has one device number."""
    return of_devices(raw, (device,))


def of_devices(raw: bytes | Iterable[bytes], devices: Iterable[int]) -> Iterator[MountEntry]:
    """Yield the mounts of a table whose file system has one of several device numbers."""
    needles = [(device, b" %d:%d " % (os.major(device), os.minor(device))) for device in devices]
    for piece in _in_pieces(raw):
        for device, needle in needles:
            for line in _lines_with(piece, needle):
                if (entry := parse_line(line)).dev == device:
                    yield entry


def on_several_devices(raw: bytes | Iterable[bytes]) -> Iterator[MountEntry]:
    """Yield the mounts of file systems on block devices without a block device's number (btrfs)."""
    for line in _lines_with(raw, b" /dev/"):
        if line.split(b" ", 3)[2].startswith(b"0:") and (
            entry := parse_line(line)
        ).source.startswith(b"/dev/"):
            yield entry


def _in_pieces(raw: bytes | Iterable[bytes]) -> Iterable[bytes]:
    return (raw,) if isinstance(raw, bytes) else raw


def _lines_with(raw: bytes | Iterable[bytes], needle: bytes) -> Iterator[bytes]:
    """Yield the lines that contain a text.

    Beside 10,000 other lines, this takes a hundredth of the time of a loop.
    """
    for piece in _in_pieces(raw):
        at = piece.find(needle)
        while at >= 0:
            end = piece.find(b"\n", at)
            end = len(piece) if end < 0 else end
            yield piece[piece.rfind(b"\n", 0, at) + 1 : end]
            at = piece.find(needle, end)


def propagation(entry: MountEntry) -> str:
    """Return `shared`, `slave`, `unbindable` or `private` (mount_namespaces(7))."""
    tags = [tag.partition(b":")[0] for tag in entry.optional]
    for tag, word in ((b"shared", "shared"), (b"master", "slave"), (b"unbindable", "unbindable")):
        if tag in tags:
            return word
    return "private"


def containing(path: bytes, entries: Iterable[MountEntry]) -> MountEntry | None:
    """Return the mount that a resolved path is on.

    This is the last mount in the table with the longest mount point above the path.
    """
    best: MountEntry | None = None
    for entry in entries:
        if is_within_bytes(path, entry.mount_point) and (
            best is None or len(entry.mount_point) >= len(best.mount_point)
        ):
            best = entry
    return best


def cover(entry: MountEntry, entries: Iterable[MountEntry]) -> MountEntry | None:
    """Return the mount that hides another mount, or `None`.

    It is mounted on the way to the other mount, and is not its ancestor in the tree of mounts.
    """
    by_id = {each.id: each for each in entries}
    above = set()
    at: int | None = entry.id
    while at is not None and at not in above:
        above.add(at)
        at = by_id[at].parent if at in by_id else None
    covers = [
        each
        for each in by_id.values()
        if each.id not in above
        and is_within_bytes(entry.mount_point, each.mount_point)
        and each.parent in above
    ]
    return max(covers, key=lambda each: len(each.mount_point), default=None)
