"""Random mount trees on the real kernel, taken down to nothing; what lies outside the root stays mounted.

Each tree is made in a mount namespace of its own.
"""

import contextlib
import errno
import itertools
import os
import subprocess

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from open_descriptors import none_left_open
from private_namespace import bind, in_private_namespace, move, needs_root, tmpfs

from chrootfw.linux import mountinfo, statmount, syscalls, umount
from chrootfw.linux.call_batch import NUMBERS, CallBatch
from chrootfw.model import Mount
from chrootfw.planning.mount_order import check_unmount_order, sort_for_unmounting

pytestmark = needs_root

AT_FDCWD, AT_REMOVEDIR = -100, 0x200
MOUNTS_MAX = 40  # recursive binds double a tree
NO_SUCH_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)

odd = st.binary(min_size=1, max_size=6).map(
    lambda raw: raw.replace(b"/", b" ").replace(b"\0", b"\n")
)
names = odd.filter(lambda name: name not in (b".", b"..")) | st.sampled_from(
    [b"web1", b"web10", b" ", b"\n", b"\\", b"\\040", b"a#b", b"a (deleted)", b"\xff", b"-"]
)
index = st.integers(0, 30)  # into what is there, modulo its length
kinds = [
    "directory",
    "symlink",
    "file",
    "tmpfs",
    "bind",
    "bind recursively",
    "move",
    "stack",
    "hide",
]
# Most trees have many steps: short ones hide and stack little. The empty one is among the examples below.
steps = st.lists(
    st.tuples(st.sampled_from([*kinds, "directory", "hide"]), index, index), min_size=8, max_size=45
)


class Ground:
    """A directory with a tmpfs of its own on it: ``root``, itself a mount, beside the witness of the outside."""

    def __init__(self, base):
        tmpfs(base)
        self.base = base
        self.root = base + b"/root"
        self.witness = base + b"/witness"
        for directory in (self.root, self.witness):
            os.mkdir(directory)
            tmpfs(directory)
        os.mkdir(self.witness + b"/below")
        tmpfs(self.witness + b"/below")
        os.mkdir(base + b"/root10")
        tmpfs(base + b"/root10")
        self.outside = self.ids_outside()

    def ids_outside(self):
        inside = {entry.id for entry in mountinfo.list_mounts_below(self.root)}
        return [
            entry.id for entry in mountinfo.list_mounts_below(self.base) if entry.id not in inside
        ]

    def visible(self, kind):
        """The directories or files that can be reached now, symlinks not followed."""
        found = [self.root] if kind == "directories" else []
        for where, directories, files in itertools.islice(os.walk(self.root), 60):
            here = directories if kind == "directories" else files
            found += [
                where + b"/" + name
                for name in sorted(here)
                if not os.path.islink(where + b"/" + name)
            ]
        return found

    def do(self, step, one, other, names):
        """Do one step; whether it was possible."""
        directories = self.visible("directories")
        target = directories[one % len(directories)]
        second = directories[other % len(directories)]
        below = mountinfo.list_mounts_below(self.root)
        # A hidden mount point is no path to use here: with a symlink in its place it could lead outside.
        points = [entry.mount_point for entry in below if entry.mount_point in directories]
        name = names[other % len(names)]
        if step == "directory":
            os.mkdir(target + b"/" + name)
        elif step == "file":
            open(target + b"/" + name, "x").close()
        elif step == "symlink":
            ends = [self.witness, b"../" * 30 + self.witness[1:], b"..", b"/", name, self.root]
            os.symlink(ends[one % len(ends)], target + b"/" + name)
        elif len(below) >= MOUNTS_MAX:
            return
        elif step == "tmpfs":
            tmpfs(target)
        elif step == "stack":
            tmpfs(points[one % len(points)])
        elif step == "hide":
            # Over a directory above an existing mount point, but below the root.
            hidden = points[one % len(points)]
            if hidden.count(b"/") > self.root.count(b"/") + 1:
                tmpfs(os.path.dirname(hidden))
        elif step == "bind" and other % 3 == 0 and (files := self.visible("files")):
            bind(files[one % len(files)], files[other % len(files)])
        elif step.startswith("bind"):
            recursive = step != "bind" and len(below) * 2 < MOUNTS_MAX
            bind(second, target, recursive=recursive)
        elif step == "move":
            try:
                move(points[one % len(points)], second)
            except OSError as error:
                if error.errno != errno.EINVAL:  # into itself, or no longer to be seen
                    raise


def build(ground, tree, names):
    for step, one, other in tree:
        try:
            ground.do(step, one, other, names)
        except OSError as error:
            if error.errno not in NO_SUCH_PLACE:
                raise


def as_mount(root, entry):
    target = os.fsdecode(entry.mount_point[len(root) :]) or "/"
    return Mount(
        target, os.fsdecode(entry.source), entry.fstype.decode(), (), "root", entry.id, entry.parent
    )


def fields(entries):
    return [
        (e.id, e.parent, e.dev, e.root, e.mount_point, e.options, e.fstype, e.source)
        for e in entries
    ]


def check_listed(ground):
    """What the kernel lists for a mount point is what stands in the mount table."""
    if syscalls.kernel() < (6, 13):
        assert statmount.list_mounts_on([os.fsdecode(ground.root)]) is None
        return
    inside = [mountinfo.list_mounts_below(top) for top in (ground.witness, ground.root)]
    for top, entries in zip((ground.witness, ground.root), inside, strict=True):
        assert fields(statmount.list_mounts_on([os.fsdecode(top)])) == fields(entries)
    both = statmount.list_mounts_on([os.fsdecode(ground.root), os.fsdecode(ground.witness)])
    there = {entry.id for entries in inside for entry in entries}
    assert fields(both) == fields(entry for entry in mountinfo.table() if entry.id in there)


def one_round(root):
    """Unmount once what is there; the numbers of mounts before and of those taken down."""
    entries = {entry.id: entry for entry in mountinfo.list_mounts_below(root)}
    order = sort_for_unmounting([as_mount(root, entry) for entry in entries.values()])
    assert check_unmount_order([as_mount(root, entry) for entry in entries.values()], order) is None
    if not entries:
        return 0, 0
    outcomes, overdue = umount.unmount(
        os.path.dirname(root), [entries[mount.id] for mount in order], seconds=60
    )
    assert overdue is None
    assert set(outcomes) <= {0, None, errno.EBUSY}
    return len(entries), outcomes.count(0)


def unmount(root, entry):
    """The outcome for one mount."""
    (outcome,), overdue = umount.unmount(os.path.dirname(root), [entry], seconds=60)
    assert overdue is None
    return outcome


def tear_down(root):
    """Rounds until nothing is left; how many it took."""
    for rounds in itertools.count():
        before, done = one_round(root)
        if not before:
            return rounds
        assert done, [entry.mount_point for entry in mountinfo.list_mounts_below(root)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return os.fsencode(os.path.realpath(tmp_path_factory.mktemp("trees")))


@settings(max_examples=300)
@given(steps, st.lists(names, min_size=1, max_size=4))
@example([], [b"a"])
@example([("directory", 0, 0), ("directory", 1, 0), ("tmpfs", 2, 0), ("hide", 1, 0)], [b"a"])
@example(
    [("directory", 0, 0), ("tmpfs", 1, 0), ("stack", 1, 0), ("stack", 0, 0), ("tmpfs", 0, 0)],
    [b"\n"],
)
@example(
    [("directory", 0, 0), ("directory", 1, 0), ("tmpfs", 2, 0), ("hide", 1, 0), ("symlink", 1, 0)],
    [b"w"],
)
def test_every_tree_comes_down_and_nothing_else(base, tree, names):
    def life():
        ground = Ground(base)
        build(ground, tree, names)
        assert ground.ids_outside() == ground.outside, "the test itself went outside"
        count = len(mountinfo.list_mounts_below(ground.root))
        check_listed(ground)
        rounds = tear_down(ground.root)
        assert ground.ids_outside() == ground.outside
        assert os.path.ismount(ground.witness + b"/below")
        return count, rounds

    count, rounds = in_private_namespace(life)
    assert mountinfo.list_mounts_below(base) == []
    event(f"mounts: {'1 to 5' if count < 6 else '6 to 15' if count < 16 else 'more'}")
    event(f"rounds: {rounds}")


plain = st.lists(st.tuples(st.sampled_from(["child", "stack"]), index, names), max_size=15)


@given(plain)
def test_a_tree_that_hides_nothing_comes_down_in_one_round(base, tree):
    """Each mount on a leaf of the tree, or on top of another."""

    def life():
        ground = Ground(base)
        tops = [ground.root]
        for kind, where, name in tree:
            target = tops[where % len(tops)]
            if kind == "stack":
                if any(other.startswith(target + b"/") for other in tops):
                    continue
            else:
                target += b"/" + name
                if os.path.lexists(target):
                    continue
                os.mkdir(target)
                tops.append(target)
            tmpfs(target)
        before, done = one_round(ground.root)
        assert done == before
        assert mountinfo.list_mounts_below(ground.root) == []
        assert ground.ids_outside() == ground.outside

    in_private_namespace(life)


# Single traps.


def on_ground(base, test):
    in_private_namespace(lambda: test(Ground(base)))


def entry_of(point):
    """The newest mount on a path."""
    return [entry for entry in mountinfo.table() if entry.mount_point == point][-1]


@pytest.mark.parametrize("where", [b"", b"/a", b"/a/b"])
def test_a_busy_mount_is_an_error_and_stays(base, where):
    """A lazy unmount would not notice."""

    def test(ground):
        point = ground.root + where
        os.makedirs(point, exist_ok=True)
        if where:
            tmpfs(point)
        fd = os.open(point, os.O_RDONLY)
        try:
            assert unmount(ground.root, entry_of(point)) == errno.EBUSY
            entry_of(point)
        finally:
            os.close(fd)
        assert unmount(ground.root, entry_of(point)) == 0
        assert mountinfo.list_mounts_below(point) == []

    on_ground(base, test)


@pytest.mark.parametrize("parent", [b"", b"/in"])
def test_of_mounts_in_one_directory_each_has_its_own_outcome(base, parent):
    """The directory is opened once for all of them."""

    def test(ground):
        def mounted(path):
            point = ground.root + path
            os.makedirs(point, exist_ok=True)
            tmpfs(point)
            return entry_of(point)

        first, busy, replaced, last = (
            mounted(parent + b"/" + name) for name in (b"a", b"b", b"c", b"d")
        )
        gone = mounted(b"/gone/a")
        move(gone.mount_point, ground.witness)
        os.rmdir(gone.mount_point)
        os.rmdir(os.path.dirname(gone.mount_point))
        mounted(parent + b"/c")  # over the other
        order = [first, busy, gone, gone, replaced, last]
        fd = os.open(busy.mount_point, os.O_RDONLY)
        try:
            outcomes, overdue = umount.unmount(os.path.dirname(ground.root), order, seconds=60)
        finally:
            os.close(fd)
        assert (outcomes, overdue) == ([0, errno.EBUSY, None, None, None, 0], None)
        assert [entry.id for entry in mountinfo.list_mounts_below(ground.root + parent)[-3:]][
            :2
        ] == [
            busy.id,
            replaced.id,
        ]
        umount.unmount(
            os.path.dirname(ground.witness), [entry_of(ground.witness)], seconds=60
        )  # what was moved there

    on_ground(base, test)


@pytest.mark.parametrize("over", ["", "a", "a/b"])
@pytest.mark.parametrize(
    "then", ["nothing", "directory", "mount", "symlink", "symlink above", "file above"]
)
def test_a_path_that_leads_elsewhere_now_is_left_alone(base, over, then):
    """``a/b/c`` is hidden by a mount over a directory above, and something else has its name there."""

    def test(ground):
        point = ground.root + b"/a/b/c"
        os.makedirs(point)
        tmpfs(point)
        hidden = entry_of(point)
        tmpfs(ground.root + (b"/" + over.encode() if over else b""))
        os.makedirs(os.path.dirname(point), exist_ok=True)
        if then in ("directory", "mount"):
            os.mkdir(point)
        if then == "mount":
            tmpfs(point)
        if then == "symlink":
            os.symlink(ground.witness + b"/below", point)
        if then in ("symlink above", "file above") and over != "a/b":
            os.rmdir(ground.root + b"/a/b")
            if then == "file above":
                open(ground.root + b"/a/b", "x").close()
            else:
                os.mkdir(ground.witness + b"/c")
                tmpfs(ground.witness + b"/c")
                os.symlink(ground.witness, ground.root + b"/a/b")
        before = {entry.id for entry in mountinfo.table()}
        assert unmount(ground.root, hidden) is None
        assert {entry.id for entry in mountinfo.table()} == before
        tear_down(ground.root)
        assert os.path.ismount(ground.witness + b"/below")

    on_ground(base, test)


def test_a_stacked_root_is_taken_from_its_top(base):
    def test(ground):
        lower = entry_of(ground.root)
        tmpfs(ground.root)
        assert unmount(ground.root, lower) is None
        assert unmount(ground.root, entry_of(ground.root)) == 0
        assert unmount(ground.root, lower) == 0
        assert mountinfo.list_mounts_below(ground.root) == []

    on_ground(base, test)


@pytest.mark.parametrize("moment", ["before", "after the look"])
def test_a_symlink_put_in_the_mounts_place_leads_nowhere(base, moment, monkeypatch):
    """The race that cost others a host mount: whoever owns the tree swaps the directory for a symlink."""

    def test(ground):
        point = ground.root + b"/a/data"
        os.makedirs(point)
        tmpfs(point)
        entry = entry_of(point)
        swap = [("umount2", point, 0), ("unlinkat", AT_FDCWD, point, AT_REMOVEDIR)]
        swap.append(("symlinkat", ground.witness + b"/below", AT_FDCWD, point))
        with swapped_by_the_child(monkeypatch, "fchdir" if moment == "before" else "umount2", swap):
            assert unmount(ground.root, entry) == (None if moment == "before" else errno.EINVAL)
        assert os.path.islink(point)
        assert os.path.ismount(ground.witness + b"/below")

    on_ground(base, test)


@contextlib.contextmanager
def swapped_by_the_child(monkeypatch, call, steps):
    """The child itself does ``steps`` right before its call of that name: no other could meet the race each time."""
    machine = os.uname().machine
    add = CallBatch.add

    def swap_and_add(calls, name, *arguments, **how):
        if name == call:
            for step in steps:
                add(calls, *step)
        return add(calls, name, *arguments, **how)

    with monkeypatch.context() as patch:
        for name, (number, elsewhere) in {
            "unlinkat": (263, 35),
            "symlinkat": (266, 36),
            "renameat2": (316, 276),
        }.items():
            patch.setitem(NUMBERS, name, number if machine == "x86_64" else elsewhere)
        patch.setattr(CallBatch, "add", swap_and_add)
        yield


@pytest.mark.parametrize("moment", ["openat2", "fchdir", "statx", "umount2"])
def test_a_parent_swapped_while_we_work_leads_nowhere(base, moment, monkeypatch):
    def test(ground):
        point = ground.root + b"/a/below"
        os.makedirs(point)
        tmpfs(point)
        entry = entry_of(point)
        swap = [("renameat2", AT_FDCWD, ground.root + b"/a", AT_FDCWD, ground.root + b"/b", 0)]
        swap.append(("symlinkat", ground.witness, AT_FDCWD, ground.root + b"/a"))
        with swapped_by_the_child(monkeypatch, moment, swap):
            assert unmount(ground.root, entry) == (None if moment == "openat2" else 0)
        assert os.path.ismount(ground.root + b"/b/below") == (moment == "openat2")
        assert os.path.ismount(ground.witness + b"/below")

    on_ground(base, test)


def test_a_path_through_a_symlink_is_not_taken(base):
    """The table tells the place without symlinks; another look at it tells the new one."""

    def test(ground):
        point = ground.root + b"/a/data"
        os.makedirs(point)
        tmpfs(point)
        before = entry_of(point)
        os.rename(ground.root + b"/a", ground.root + b"/b")
        os.symlink(b"b", ground.root + b"/a")
        assert unmount(ground.root, before) is None
        (now,) = [
            entry for entry in mountinfo.list_mounts_below(ground.root) if entry.id == before.id
        ]
        assert now.mount_point == ground.root + b"/b/data"
        assert unmount(ground.root, now) == 0

    on_ground(base, test)


def test_unmounting_keeps_no_file_open(base):
    def test(ground):
        with none_left_open():
            os.mkdir(ground.root + b"/a")
            tmpfs(ground.root + b"/a")
            first = entry_of(ground.root + b"/a")
            tmpfs(ground.root + b"/a")
            unmount(ground.root, first)
            tear_down(ground.root)

    on_ground(base, test)


@pytest.mark.parametrize(
    ("fstype", "source", "options"),
    [
        ("tmpfs", "", "rw"),
        ("tmpfs", "a b#c\\d\n", "ro,nosuid,nodev,noexec"),
        ("tmpfs", "x" * 3000, "noatime,nodiratime"),
        ("tmpfs", "none", "strictatime,nosymfollow"),
        ("proc", "proc", "nosuid,nodev,noexec,relatime"),
        ("overlay", "overlay", f"lowerdir={'/' * 900}usr:/etc"),
    ],
)
def test_the_kernel_lists_a_mount_as_the_table_has_it(base, fstype, source, options):
    def test(ground):
        command = ["mount", "-t", fstype, "-o", options, source, ground.root]
        # By fsconfig(2), which util-linux uses from 2.39 on, no text is longer than 255 bytes.
        subprocess.run(command, check=True, env={**os.environ, "LIBMOUNT_FORCE_MOUNT2": "always"})
        if source:
            check_listed(ground)
        else:  # it does not say that there is none
            assert statmount.list_mounts_on([os.fsdecode(ground.root)]) is None

    on_ground(base, test)
