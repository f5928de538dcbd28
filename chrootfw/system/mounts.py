"""The mount table as values (proc_pid_mountinfo(5)): bytes in, bytes out."""

from __future__ import annotations

import os

from chrootfw.planning.paths import is_within_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


#: Spaces before the one that a line's mount point follows.
_FIELDS_BEFORE = 3


class MountEntry:
    """One line of mountinfo. Paths are ``bytes`` with the octal escapes undone; ``dev`` is as in ``os.stat``."""

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
    r"""Undo the kernel's octal escapes (``\040`` and the like; in a source and a type ``#`` too)."""
    if b"\\" not in field:
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
    """The inverse of ``unescape``, as the kernel writes a path: space, tab, newline and backslash, but not ``#``."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in field)


def parse_line(line: bytes) -> MountEntry:
    """One line without its newline. Raises ``ValueError`` for what is no mountinfo line."""
    fields = line.split(b" ")
    dash = fields.index(b"-", 6)
    major, _, minor = fields[2].partition(b":")
    try:
        device = os.makedev(int(major), int(minor))
    except OverflowError as error:
        raise ValueError(f"no device number: {fields[2]!r}") from error
    # An empty source or fstype is an empty field; an empty super_options may be missing altogether.
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


def parse(table: bytes) -> list[MountEntry]:
    """A whole table, in its order. Lines end with a newline and nothing else: names may hold any other byte."""
    return [parse_line(line) for line in table.split(b"\n") if line]


def read_table(pid: int | str = "thread-self") -> bytes:
    """The raw table of a process's mount namespace."""
    with open(f"/proc/{pid}/mountinfo", "rb", buffering=0) as file:
        chunks = []
        while chunk := file.read(1 << 20):
            chunks.append(chunk)
    return b"".join(chunks)


def table() -> list[MountEntry]:
    """The caller's mount table."""
    return parse(read_table())


def below(directory: bytes) -> list[MountEntry]:
    """The mounts on or below ``directory`` (resolved, absolute), in the table's order.

    Lines that cannot match are not parsed.
    """
    return select(read_table(), directory)


def select(raw: bytes, directory: bytes) -> list[MountEntry]:
    """``below`` for a table read before."""
    return [parse_line(line) for line, _ in lines_below(raw, directory)]


def lines_below(raw: bytes, directory: bytes) -> list[tuple[bytes, bytes]]:
    """The lines that ``select`` parses, each with what follows ``directory`` in its mount point, still escaped (``/web1/root``)."""
    found = []
    needle = b" " + escape(directory).rstrip(b"/")
    at = raw.find(needle)
    while at >= 0:
        begin = raw.rfind(b"\n", 0, at) + 1
        after = at + len(needle)
        # The mount point is the fifth field; the same text may stand in the fourth, or further on.
        if raw[after : after + 1] not in (b" ", b"/") or raw.count(b" ", begin, at) != _FIELDS_BEFORE:
            at = raw.find(needle, after)
            continue
        end = raw.find(b"\n", after)
        end = end if end >= 0 else len(raw)
        found.append((raw[begin:end], raw[after : raw.find(b" ", after)]))
        at = raw.find(needle, end)
    return found


def of_type(raw: bytes, fstype: bytes) -> list[MountEntry]:
    """The mounts of one file system type in a table read before."""
    needle = b" - " + fstype + b" "
    return [parse_line(line) for line in _lines_with(raw, needle)]


def by_id(raw: bytes, mount_id: int) -> MountEntry | None:
    """The mount of that ID in a table read before."""
    start = b"%d " % mount_id
    at = 0 if raw.startswith(start) else raw.find(b"\n" + start) + 1
    if not raw.startswith(start, at):
        return None
    end = raw.find(b"\n", at)
    return parse_line(raw[at : end if end >= 0 else len(raw)])


def of_device(raw: bytes, device: int) -> list[MountEntry]:
    """The mounts whose file system has this device number."""
    needle = b" %d:%d " % (os.major(device), os.minor(device))
    return [entry for line in _lines_with(raw, needle) if (entry := parse_line(line)).dev == device]


def of_devices(raw: bytes, devices: Iterable[int]) -> list[MountEntry]:
    """``of_device`` for several."""
    return [entry for device in devices for entry in of_device(raw, device)]


def on_several_devices(raw: bytes) -> list[MountEntry]:
    """The mounts of file systems that are on block devices without having the number of one, such as btrfs."""
    found = [parse_line(line) for line in _lines_with(raw, b" /dev/") if line.split(b" ", 3)[2].startswith(b"0:")]
    return [entry for entry in found if entry.source.startswith(b"/dev/")]


def _lines_with(raw: bytes, needle: bytes) -> Iterator[bytes]:
    """The lines in which ``needle`` stands; beside 10,000 others they are found in a hundredth of the time of a loop."""
    at = raw.find(needle)
    while at >= 0:
        end = raw.find(b"\n", at)
        end = len(raw) if end < 0 else end
        yield raw[raw.rfind(b"\n", 0, at) + 1 : end]
        at = raw.find(needle, end)


def propagation(entry: MountEntry) -> str:
    """``shared``, ``slave``, ``unbindable`` or ``private`` (mount_namespaces(7))."""
    tags = [tag.partition(b":")[0] for tag in entry.optional]
    for tag, word in ((b"shared", "shared"), (b"master", "slave"), (b"unbindable", "unbindable")):
        if tag in tags:
            return word
    return "private"


def containing(path: bytes, entries: Iterable[MountEntry]) -> MountEntry | None:
    """The mount that ``path`` (resolved) lies on: the last one in the table with the longest mount point."""
    best: MountEntry | None = None
    for entry in entries:
        if is_within_bytes(path, entry.mount_point) and (
            best is None or len(entry.mount_point) >= len(best.mount_point)
        ):
            best = entry
    return best
