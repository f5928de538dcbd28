"""Row 15: the mountinfo parser against libmount, and against rubbish; the name checks against their definition."""

from __future__ import annotations

import ctypes
import os
import random
import string
from collections.abc import Callable
from pathlib import Path

import pytest

from chrootfw.errors import InputError
from chrootfw.linux import mountinfo
from chrootfw.planning.paths import check_name
from chrootfw.state.snapshot import lines_by_instance

_BATCH = 1000

#: Pieces of which names are made: what is escaped, what must not be taken for it, what ends lines elsewhere.
_PIECES = [
    b" ", b"\t", b"\n", b"\\", b"\\040", b"#", b"\r", b"\x0b", b"\x0c", b"\x1c", b"\x85", "\u2028".encode(), b"\xff", b"-", b" - ",
    b"040", b"\\1", b"'", b'"', b"web1", b"web10", b"root", b"aux", b"run", b"..", b".", b"(deleted", b"\x01", b"\x7f", b"a",
]  # fmt: skip


def _name(dice: random.Random) -> bytes:
    return b"".join(dice.choice(_PIECES) for _ in range(dice.randint(1, 4))).replace(b"/", b"_")


def _path(dice: random.Random) -> bytes:
    if dice.random() < 0.4:
        tail = dice.choice(
            [
                b"web1",
                b"web10",
                b"web1\n",
                b"web",
                b"web1/root",
                b"web10/root",
                b"web1/rootx",
                b"web1/root/a b",
                b"web1/aux/x",
            ]
        )
        return b"/run/chrootfw" + dice.choice([b"", b"x", b" "]) + b"/" + tail
    return b"/" + b"/".join(_name(dice) for _ in range(dice.randint(0, 4)))


def _kernel_escape(text: bytes, more: bytes = b"") -> bytes:
    """mangle() of fs/proc_namespace.c, written anew."""
    out = bytearray()
    for byte in text:
        if byte in b" \t\n\\" + more:
            out += b"\\" + oct(byte)[2:].rjust(3, "0").encode()
        else:
            out.append(byte)
    return bytes(out)


class _Line:
    """A line as the kernel writes it, and what it says."""

    def __init__(self, dice: random.Random) -> None:
        self.id, self.parent = dice.randrange(1 << 31), dice.randrange(1 << 31)
        self.dev = dice.randrange(1 << 12), dice.randrange(1 << 20)
        self.root, self.target = _path(dice), _path(dice)
        self.options = dice.choice([b"rw", b"ro,nosuid", b"rw,relatime,noexec"])
        tags = [
            b"shared:%d" % dice.randrange(1 << 31),
            b"master:7",
            b"propagate_from:3",
            b"unbindable",
        ]
        self.optional = tuple(dice.sample(tags, dice.randint(0, 3)))
        self.fstype = dice.choice([b"ext4", b"tmpfs", b"fuse.x", b"nfs4", b"cgroup2"])
        self.source = (
            dice.choice(
                [b"/dev/loop0", b"none", b"tmpfs", _path(dice), _name(dice).replace(b"#", b"")]
            )
            or b"none"
        )
        self.text = b" ".join(
            [
                b"%d %d %d:%d" % (self.id, self.parent, *self.dev), _kernel_escape(self.root), _kernel_escape(self.target),
                self.options, *self.optional, b"-", self.fstype, _kernel_escape(self.source, b"#"), b"rw,size=4k",
            ]
        )  # fmt: skip


class _Libmount:
    """libmount's own parser: the field's word on what a line says."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libmount.so.1")
        for name in ("mnt_new_table", "mnt_new_iter"):
            getattr(self.lib, name).restype = ctypes.c_void_p
        for name in ("root", "target", "fstype", "source", "vfs_options", "optional_fields"):
            function = getattr(self.lib, f"mnt_fs_get_{name}")
            function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        self.lib.mnt_fs_get_devno.restype = ctypes.c_uint64

    def parse(self, file: Path) -> list[tuple[object, ...]]:
        table, step = (
            ctypes.c_void_p(self.lib.mnt_new_table()),
            ctypes.c_void_p(self.lib.mnt_new_iter(0)),
        )
        assert self.lib.mnt_table_parse_file(table, os.fsencode(file)) == 0
        found, fs = [], ctypes.c_void_p()
        while self.lib.mnt_table_next_fs(table, step, ctypes.byref(fs)) == 0:
            optional = self.lib.mnt_fs_get_optional_fields(fs) or b""
            found.append(
                (
                    self.lib.mnt_fs_get_id(fs), self.lib.mnt_fs_get_parent_id(fs), self.lib.mnt_fs_get_devno(fs),
                    self.lib.mnt_fs_get_root(fs), self.lib.mnt_fs_get_target(fs), self.lib.mnt_fs_get_vfs_options(fs),
                    tuple(optional.split()), self.lib.mnt_fs_get_fstype(fs), self.lib.mnt_fs_get_source(fs),
                )
            )  # fmt: skip
        self.lib.mnt_free_iter(step)
        self.lib.mnt_unref_table(table)
        return found


def test_valid_lines_say_what_libmount_says(
    tmp_path: Path, whole: bool, figure: Callable[[int, str], None]
) -> None:
    count = 500_000 if whole else 25_000
    dice = random.Random(5)
    libmount = _Libmount()
    file = tmp_path / "mountinfo"
    agreed = matched = 0
    while agreed < count:
        lines = [_Line(dice) for _ in range(_BATCH)]
        raw = b"".join(line.text + b"\n" for line in lines)
        file.write_bytes(raw)
        entries = mountinfo.parse(raw)
        theirs = libmount.parse(file)
        assert len(entries) == len(theirs) == _BATCH
        for line, entry, their in zip(lines, entries, theirs, strict=True):
            ours = (
                entry.id, entry.parent, entry.dev, entry.root, entry.mount_point, entry.options, entry.optional, entry.fstype,
                entry.source,
            )  # fmt: skip
            wanted = (
                line.id, line.parent, os.makedev(*line.dev), line.root, line.target, line.options, line.optional, line.fstype,
                line.source,
            )  # fmt: skip
            assert ours == wanted, line.text
            assert ours == their, line.text
            agreed += 1
        for name in ("web1", "web10"):
            top = b"/run/chrootfw/" + name.encode()
            below = {
                line.id
                for line in lines
                if line.target == top or line.target.startswith(top + b"/")
            }
            assert {entry.id for entry in mountinfo.select(raw, top)} == below
            matched += len(below)
        for name, texts in lines_by_instance(raw, "/run/chrootfw").items():
            for entry in map(mountinfo.parse_line, texts):
                wanted_parts = entry.mount_point.split(b"/")
                assert wanted_parts[:3] == [b"", b"run", b"chrootfw"], entry
                assert os.fsdecode(wanted_parts[3]) == name, entry
                assert wanted_parts[4] in (b"root", b"aux"), entry
    assert matched
    figure(
        15,
        f"{agreed} of {agreed} random mountinfo lines are read as libmount reads them; {matched} matches, none wrong (web1, web10)",
    )


def test_rubbish_is_refused_or_matches_nothing_wrong(
    whole: bool, figure: Callable[[int, str], None]
) -> None:
    count = 700_000 if whole else 30_000
    dice = random.Random(6)
    top = b"/run/chrootfw/web1"
    refused = parsed = 0
    for _ in range(count):
        line = bytearray(_Line(dice).text)
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(line) + 1)
            how = dice.randrange(5)
            if how == 0:
                line[place:place] = dice.choice(_PIECES)
            elif how == 1:
                del line[place : place + dice.randint(1, 12)]
            elif how == 2:
                line[place:place] = line[place : place + dice.randint(1, 30)]
            elif how == 3 and place < len(line):
                line[place] = dice.randrange(256)
            else:
                line[place:] = b""
        raw = bytes(line).replace(b"\n", b"")
        try:
            entry = mountinfo.parse_line(raw)
        except (ValueError, IndexError, OverflowError) as error:
            assert isinstance(error, ValueError), (raw, error)
            refused += 1
        else:
            fields = raw.split(b" ")
            assert (entry.id, entry.parent) == (int(fields[0]), int(fields[1])), raw
            assert (
                b"\\" not in fields[4]
                or entry.mount_point != fields[4]
                or _kernel_escape(entry.mount_point) != fields[4]
            ), raw
            parsed += 1
        try:
            found = mountinfo.select(raw, top)
        except ValueError:
            continue
        for entry in found:
            assert entry.mount_point == top or entry.mount_point.startswith(top + b"/"), raw
    figure(
        15,
        f"{count} damaged mountinfo lines: {refused} refused with ValueError, {parsed} read; no other error, no wrong match",
    )


_FIRST, _REST = (
    frozenset(string.ascii_letters + string.digits),
    frozenset(string.ascii_letters + string.digits + "._-"),
)


def test_names(whole: bool, figure: Callable[[int, str], None]) -> None:
    count = 300_000 if whole else 20_000
    dice = random.Random(7)
    alphabet = [
        *sorted(_REST),
        "\n",
        "\r",
        " ",
        "/",
        "\0",
        "@",
        "\u2028",
        "é",
        "１",
        "\udc80",
        "ſ",
        "K",
    ]
    accepted = 0
    for number in range(count):
        text = "".join(
            dice.choice(alphabet if dice.random() < 0.3 else sorted(_FIRST))
            for _ in range(dice.choice([0, 1, 2, 3, 8, 200, 201]))
        )
        if number % 5 == 0:
            text = f"web1{dice.choice(alphabet)}"
        valid = 1 <= len(text) <= 200 and text[0] in _FIRST and set(text) <= _REST
        if valid:
            check_name(text)
            accepted += 1
        else:
            with pytest.raises(InputError):
                check_name(text)
    figure(15, f"{count} of {count} names judged as defined, {accepted} of them accepted")
