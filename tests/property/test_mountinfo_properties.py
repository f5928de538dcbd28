"""The mount table's text: every byte there and back, and agreement with the kernel and with findmnt(8)."""

import os
import re
import shutil
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from private_namespace import in_private_namespace, mount, needs_root, tmpfs

from chrootfw.linux import mountinfo

names = st.binary(min_size=1, max_size=8).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
)
# What a parser could stumble over: separators of lines and fields, escapes, things that look like fields.
nasty = st.sampled_from(
    [b" ", b"\n", b"\t", b"\r", b"\x0b\x0c", b"\x1c\x1d\x1e\x85", b"\\", b"#", b"\\040", b"\\134", b"-", b" - ",
     b"\xe2\x80\xa8", b"\xff", b"a (deleted)", b"\\x20"]
)  # fmt: skip
odd_names = nasty | names | st.builds(bytes.__add__, names, nasty)
targets = st.lists(odd_names, max_size=4).map(lambda parts: b"/" + b"/".join(parts))
# Options are not escaped, and contain no white space.
words = (
    st.binary(min_size=1, max_size=6)
    .map(lambda raw: raw.translate(None, b" \t\n\\#\0"))
    .filter(bool)
)
tags = st.sampled_from([b"shared:1", b"master:2", b"propagate_from:3", b"unbindable"])
sources = st.binary(max_size=8).map(lambda raw: raw.replace(b"\0", b""))


def escape_source(field):
    return mountinfo.escape(field).replace(b"#", rb"\043")


def test_every_byte_there_and_back():
    every = bytes(range(256))
    assert mountinfo.unescape(mountinfo.escape(every)) == every
    assert mountinfo.unescape(b"".join(b"\\%03o" % byte for byte in every)) == every


@given(st.binary())
@example(rb"\040")
@example(rb"\1340")
def test_escaping_is_undone_and_leaves_no_separator(raw):
    escaped = mountinfo.escape(raw)
    assert mountinfo.unescape(escaped) == raw
    assert not set(escaped) & set(b" \t\n")


lines = st.tuples(
    st.integers(0, 2**31), st.integers(0, 2**31), st.integers(0, 4095), st.integers(0, 2**20 - 1), targets, targets, words,
    st.lists(tags, max_size=3), words, sources, words,
)  # fmt: skip


def written(values):
    """A line as the kernel writes it."""
    id, parent, major, minor, root, target, options, optional, fstype, source, super_options = (
        values
    )
    fields = [
        b"%d %d %d:%d" % (id, parent, major, minor),
        mountinfo.escape(root),
        mountinfo.escape(target),
        options,
    ]
    return b" ".join(
        [*fields, *optional, b"-", escape_source(fstype), escape_source(source), super_options]
    )


@given(lines)
def test_a_line_is_read_back(values):
    id, parent, major, minor, root, target, options, optional, fstype, source, super_options = (
        values
    )
    entry = mountinfo.parse_line(written(values))
    assert (entry.id, entry.parent, entry.dev) == (id, parent, os.makedev(major, minor))
    assert (entry.root, entry.mount_point) == (root, target)
    assert (entry.options, entry.optional) == (options, tuple(optional))
    assert (entry.fstype, entry.source, entry.super_options) == (fstype, source, super_options)


@given(st.lists(lines, max_size=5))
def test_a_table_is_split_on_newlines_alone(many):
    table = b"".join(written(values) + b"\n" for values in many)
    assert [entry.mount_point for entry in mountinfo.parse(table)] == [values[5] for values in many]


@given(st.lists(lines, max_size=6), targets)
def test_select_is_parse_and_compare(many, directory):
    many = [(*values[:5], directory + values[5] if n % 2 and directory != b"/" else values[5], *values[6:])
            for n, values in enumerate(many)]  # fmt: skip
    table = b"".join(written(values) + b"\n" for values in many)
    parts = [part for part in directory.split(b"/") if part]
    expected = [
        v[5] for v in many if [part for part in v[5].split(b"/") if part][: len(parts)] == parts
    ]
    assert [entry.mount_point for entry in mountinfo.select(table, directory)] == expected


few_numbers = st.tuples(
    st.integers(0, 300), st.integers(0, 3), st.integers(0, 12), st.integers(0, 12), targets, targets, words,
    st.lists(tags, max_size=3), words, st.just(b"/dev/vda") | sources, words,
)  # fmt: skip


@given(
    st.lists(few_numbers, max_size=8), st.integers(0, 300), st.integers(0, 12), st.integers(0, 12)
)
def test_a_search_in_the_table_is_parse_and_compare(many, mount_id, major, minor):
    table = b"".join(written(values) + b"\n" for values in many)
    entries = mountinfo.parse(table)
    device = os.makedev(major, minor)
    by_id = mountinfo.by_id(table, mount_id)
    expected = [entry for entry in entries if entry.id == mount_id][:1]
    assert [repr(by_id)] == list(map(repr, expected)) if expected else by_id is None
    found = mountinfo.of_device(table, device)
    assert list(map(repr, found)) == [repr(entry) for entry in entries if entry.dev == device]
    several = [e for e in entries if os.major(e.dev) == 0 and e.source.startswith(b"/dev/")]
    assert list(map(repr, mountinfo.on_several_devices(table))) == list(map(repr, several))


@given(
    st.lists(few_numbers, max_size=8),
    st.integers(0, 300),
    st.integers(0, 12),
    st.integers(0, 12),
    targets,
)
def test_a_search_in_pieces_finds_what_one_in_the_whole_table_finds(
    many, mount_id, major, minor, directory
):
    pieces = [written(values) + b"\n" for values in many]
    table, device = b"".join(pieces), os.makedev(major, minor)
    for search in (
        lambda raw: [mountinfo.by_id(raw, mount_id)],
        lambda raw: mountinfo.of_device(raw, device),
        lambda raw: mountinfo.select(raw, directory),
        mountinfo.on_several_devices,
        lambda raw: mountinfo.of_type(raw, many[0][8] if many else b"tmpfs"),
    ):
        assert list(map(repr, search(pieces))) == list(map(repr, search(table)))


def findmnt():
    """``{mount ID: (parent, target, type)}`` by libmount; ``--raw`` writes odd bytes as ``\\xNN``."""
    command = ["findmnt", "--raw", "--noheadings", "--output", "ID,PARENT,FSTYPE,TARGET"]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    found = {}
    for line in output.split(b"\n"):
        if line:
            id, parent, fstype, target = line.split(b" ")
            plain = re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), target)
            found[int(id)] = (int(parent), plain, fstype)
    return found


@needs_root
@pytest.mark.skipif(shutil.which("findmnt") is None, reason="findmnt is not installed")
@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(odd_names, sources.filter(bool)),
        min_size=1,
        max_size=6,
        unique_by=lambda pair: pair[0],
    )
)
def test_the_kernel_and_findmnt_agree(tmp_path_factory, pairs):
    """An empty source is left out: findmnt gives up on it."""
    base = os.path.realpath(os.fsencode(tmp_path_factory.getbasetemp()))

    def look():
        tmpfs(base)
        made = {}
        for name, source in pairs:
            os.mkdir(base + b"/" + name)
            mount(source, base + b"/" + name, b"tmpfs")
            made[base + b"/" + name] = source
        for target in made:
            assert [entry.mount_point for entry in mountinfo.list_mounts_below(target)] == [target]
        return made, mountinfo.table(), mountinfo.list_mounts_below(base), findmnt()

    made, table, below, by_findmnt = in_private_namespace(look)
    assert {e.mount_point: e.source for e in below if e.mount_point != base} == made
    assert {e.id: (e.parent, e.mount_point, e.fstype) for e in table} == by_findmnt
