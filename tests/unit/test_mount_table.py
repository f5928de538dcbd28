"""Reading lines of the mount table that are already there."""

import os

import pytest

from chrootfw.linux import mountinfo

LINE = rb"36 35 98:2 /mnt1 /mnt2 rw,noatime shared:7 master:1 - ext3 /dev/root rw,errors=continue"


def test_the_example_of_the_manual_page():
    entry = mountinfo.parse_line(LINE)
    assert (entry.id, entry.parent, entry.dev) == (36, 35, os.makedev(98, 2))
    assert (entry.root, entry.mount_point) == (b"/mnt1", b"/mnt2")
    assert (entry.options, entry.optional) == (b"rw,noatime", (b"shared:7", b"master:1"))
    assert (entry.fstype, entry.source, entry.super_options) == (
        b"ext3",
        b"/dev/root",
        b"rw,errors=continue",
    )
    assert entry.read_only is False
    assert "/mnt2" in repr(entry)


@pytest.mark.parametrize(
    ("options", "read_only"),
    [(b"ro", True), (b"ro,nosuid", True), (b"rw,errors=ro", False), (b"rw,rofs", False)],
)
def test_read_only_is_a_whole_option(options, read_only):
    assert mountinfo.parse_line(LINE.replace(b"rw,noatime", options)).read_only is read_only


@pytest.mark.parametrize(
    ("line", "source", "super_options"),
    [
        (b"1 0 0:1 / / rw - tmpfs  rw", b"", b"rw"),
        (b"1 0 0:1 / / rw - tmpfs none", b"none", b""),
        (b"1 0 0:1 / / rw - tmpfs none ", b"none", b""),
        (rb"1 0 0:1 / / rw - tmpfs a\040b\043c rw", b"a b#c", b"rw"),
    ],
)
def test_empty_and_escaped_fields(line, source, super_options):
    entry = mountinfo.parse_line(line)
    assert (entry.optional, entry.fstype) == ((), b"tmpfs")
    assert (entry.source, entry.super_options) == (source, super_options)


@pytest.mark.parametrize("line", [b"", b"garbage", b"1 0 0:1 / / rw tmpfs none rw", b"x 0 0:1 / / rw - tmpfs none rw",
                                  b"1 0 0-1 / / rw - tmpfs none rw"])  # fmt: skip
def test_what_is_no_line_is_a_value_error(line):
    with pytest.raises(ValueError):
        mountinfo.parse_line(line)


@pytest.mark.parametrize(
    ("field", "plain"),
    [
        (rb"a\040b", b"a b"),
        (rb"a\134040b", rb"a\040b"),
        (rb"\012\011\134\043", b"\n\t\\#"),
        (rb"a\04", rb"a\04"),
        (rb"a\089", rb"a\089"),
        (b"a\\", b"a\\"),
        (rb"\0401", b" 1"),
    ],
)
def test_unescape(field, plain):
    assert mountinfo.unescape(field) == plain


def line(id, target, fstype=b"tmpfs"):
    return b"%d 1 0:1 / %s rw - %s none rw" % (id, mountinfo.escape(target), fstype)


def test_select_takes_what_is_on_or_below_and_no_neighbour():
    targets = [
        b"/",
        b"/r",
        b"/r/web1",
        b"/r/web1/a b",
        b"/r/web10",
        b"/r/web1#x",
        b"/other/r/web1",
        b"/r/web1/c\\d",
    ]
    table = b"".join(line(n, target) + b"\n" for n, target in enumerate(targets))
    assert [e.mount_point for e in mountinfo.select(table, b"/r/web1")] == [
        b"/r/web1",
        b"/r/web1/a b",
        b"/r/web1/c\\d",
    ]
    assert [e.mount_point for e in mountinfo.select(table, b"/r/web1#x")] == [b"/r/web1#x"]
    assert len(mountinfo.select(table, b"/")) == len(targets)
    assert mountinfo.select(table, b"/nowhere") == []


def test_alike_mounts_are_parsed_as_each_alone():
    lines = [
        line(1, b"/a"),
        line(2, b"/b"),
        line(3, b"/b", b"proc"),
        line(4, b"/d", b"proc"),
        line(5, b"/a"),
    ]
    assert list(map(repr, mountinfo.parse_alike(lines))) == [
        repr(mountinfo.parse_line(each)) for each in lines
    ]
    fields = mountinfo.MountEntry.__slots__
    alike, alone = (
        [[getattr(e, f) for f in fields] for e in es]
        for es in (mountinfo.parse_alike(lines), map(mountinfo.parse_line, lines))
    )
    assert alike == alone


def test_of_type():
    table = b"\n".join(
        [line(1, b"/a", b"cgroup2"), line(2, b"/cgroup2", b"cgroup"), line(3, b"/b", b"cgroup2")]
    )
    assert [entry.id for entry in mountinfo.of_type(table, b"cgroup2")] == [1, 3]


@pytest.mark.parametrize(
    ("optional", "word"),
    [
        (b"", "private"),
        (b"shared:5 ", "shared"),
        (b"master:5 ", "slave"),
        (b"shared:5 master:6 ", "shared"),
        (b"unbindable ", "unbindable"),
        (b"propagate_from:3 ", "private"),
    ],
)
def test_propagation(optional, word):
    assert (
        mountinfo.propagation(mountinfo.parse_line(b"1 0 0:1 / / rw %s- tmpfs none rw" % optional))
        == word
    )


@pytest.mark.parametrize(
    ("path", "id"),
    [
        (b"/x", 1),
        (b"/r", 2),
        (b"/r/web1", 4),
        (b"/r/web1/a", 4),
        (b"/r/web10", 2),
        (b"relative", None),
    ],
)
def test_containing_takes_the_longest_and_of_a_stack_the_top(path, id):
    table = [
        mountinfo.parse_line(line(n, target))
        for n, target in ((1, b"/"), (2, b"/r"), (3, b"/r/web1"), (4, b"/r/web1"))
    ]
    found = mountinfo.containing(path, table)
    assert (found.id if found else None) == id


def test_a_device_number_out_of_range_is_no_line():
    with pytest.raises(ValueError):
        mountinfo.parse_line(b"1 0 0:99999999999 / / rw - tmpfs none rw")
