"""Looking into a root: nothing leaves it, and everything is where a process inside would find it."""

import os
import shutil
import tempfile
import threading

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st
from open_descriptors import none_left_open
from private_namespace import needs_root

from chrootfw.linux import syscalls
from chrootfw.linux.root import Root
from chrootfw.planning.paths import is_within

OUTSIDE = "@outside@"  # stands for the real path of what must never be reached
parts = st.sampled_from(["a", "b", "c", "d", "..", ".", "etc", "\udcff \n"])
relative = st.lists(parts, min_size=1, max_size=5).map("/".join)
looked_up = st.builds(str.__add__, st.sampled_from(["/", "", "//"]), relative)
links = looked_up | st.sampled_from(
    [
        OUTSIDE,
        "../" * 30 + OUTSIDE,
        "/",
        "..",
        "../../outside",
        "/../outside",
        "/proc/self/root",
        "/proc/self/cwd/..",
    ]
)
places = st.lists(
    st.sampled_from(["a", "b", "c", "d", "etc", "\udcff \n"]), min_size=1, max_size=3
).map("/".join)
trees = st.lists(
    st.tuples(places, st.just("dir") | st.just("file") | links), min_size=3, max_size=12
)


@st.composite
def cases(draw):
    """A tree, and paths to look up: most begin with something that is in the tree."""
    tree = draw(trees)
    known = st.sampled_from([place for place, _ in tree])
    asked = known | st.builds("/{}/{}".format, known, relative) | looked_up
    return tree, draw(st.lists(asked, min_size=1, max_size=8))


def build(base, tree):
    """``base/root`` with the tree, beside ``base/outside``; the ``Root``."""
    outside, root = f"{base}/outside", f"{base}/root"
    os.mkdir(outside)
    open(f"{outside}/secret", "w").close()
    os.mkdir(root)
    for place, kind in tree:
        path = f"{root}/{place}"
        # Never through a link: what is built must be inside.
        if os.path.lexists(path) or os.path.realpath(os.path.dirname(path)) != os.path.dirname(
            path
        ):
            continue
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if kind == "dir":
                os.mkdir(path)
            elif kind == "file":
                open(path, "w").close()
            else:
                os.symlink(kind.replace(OUTSIDE, outside), path)
        except OSError:  # something else is in the way
            continue
    return Root(root)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return os.path.realpath(tmp_path_factory.mktemp("roots"))


def in_tree(base, tree, look):
    directory = tempfile.mkdtemp(dir=base)
    try:
        return look(build(directory, tree))
    finally:
        shutil.rmtree(directory)


def attempt(function, *arguments, **how):
    """What it returns, or the number of its error."""
    try:
        return function(*arguments, **how)
    except OSError as error:
        return f"errno {error.errno}"


@given(cases())
@example(([("a", "../../outside")], ["/a/secret", "/a", "a/../.."]))
@example(([("a", OUTSIDE), ("b", "a")], ["/b/secret", "/a/../../outside"]))
@example(([("a", "b"), ("b", "a")], ["/a", "/a/.."]))
def test_what_is_opened_is_inside_and_where_resolve_says(base, case):
    tree, asked = case

    def look(root):
        for path in asked:
            reached = attempt(root.open_fd, path)
            resolved = attempt(root.resolve, path)
            if isinstance(reached, int):
                real = os.readlink(f"/proc/self/fd/{reached}")
                os.close(reached)
                assert is_within(real, root.path)
                assert real == (root.path + resolved).rstrip("/")
                event("reached")
            elif reached == "errno 40":
                assert resolved == "errno 40"
                event("a loop")
            if resolved.startswith("/"):
                assert os.path.normpath(resolved) == resolved
                inside = attempt(os.path.realpath, root.path + resolved)
                assert is_within(inside, root.path)

    in_tree(base, tree, look)


def as_inside(root, asked):
    """``(device, inode)`` or the error for each path, as a process in a chroot finds it."""
    found = []

    def look():
        syscalls.unshare(syscalls.CLONE_FS)
        os.chroot(root.path)
        os.chdir("/")
        found.extend(attempt(lambda p: os.stat(p)[1:3], path) for path in asked)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found


@needs_root
@given(cases())
def test_a_root_finds_what_a_process_inside_finds(base, case):
    tree, asked = case

    def look(root):
        for path, expected in zip(asked, as_inside(root, asked), strict=True):
            assert attempt(lambda p: root.stat(p)[1:3], path) == expected
            assert root.exists(path) is isinstance(expected, tuple)

    in_tree(base, tree, look)


@pytest.mark.parametrize(("links", "follows"), [(1, True), (40, True), (41, False)])
def test_as_many_links_as_the_kernel_follows(tmp_path, links, follows):
    (tmp_path / "0").write_text("end")
    for n in range(links):
        (tmp_path / str(n + 1)).symlink_to(str(n))
    root = Root(str(tmp_path))
    # A mount anywhere on the machine makes the kernel look again, and it goes on counting (fs/namei.c, seen on 6.18:
    # 0.7 % of such look-ups beside a loop of mounts): at the limit, one refusal says nothing.
    assert any(root.exists(f"/{links}") for _ in range(50)) is follows
    assert any(attempt(root.resolve, f"/{links}") == "/0" for _ in range(50)) is follows


@pytest.fixture
def root(tmp_path):
    (tmp_path / "outside").write_text("secret")
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    (inside / "etc/passwd").write_text("root:x:0:0\n")
    (inside / "etc/users").symlink_to("/etc/passwd")
    (inside / "abs").symlink_to("/etc/passwd")
    (inside / "out").symlink_to("../outside")
    (inside / "dangling").symlink_to("/nowhere/at/all")
    os.mkfifo(inside / "pipe")
    return Root(str(inside))


def test_reading(root):
    with root.open("/abs") as file:
        assert file.read() == "root:x:0:0\n"
    with root.open("/etc/passwd", "rb") as file:
        assert file.read() == b"root:x:0:0\n"
    assert root.listdir() == ["abs", "dangling", "etc", "out", "pipe"]
    assert root.listdir("/etc/../etc") == ["passwd", "users"]
    assert root.readlink("/abs") == "/etc/passwd"
    assert root.stat("/abs").st_size == 11
    assert root.stat("/abs", follow=False).st_size == len("/etc/passwd")
    assert root.free_bytes() > 0
    assert "root" in repr(root)


@pytest.mark.parametrize(
    ("path", "where"),
    [("/", "/"), ("", "/"), ("/abs", "/etc/passwd"), ("/etc/users", "/etc/passwd"), ("/out", "/outside"), ("/dangling", "/nowhere/at/all"),
     ("/dangling/../x", "/nowhere/at/x"), ("/../../etc/./passwd", "/etc/passwd"), ("/etc/passwd/x", "/etc/passwd/x")],
)  # fmt: skip
def test_resolve(root, path, where):
    assert root.resolve(path) == where


@pytest.mark.parametrize("path", ["/out", "/dangling", "/nothing", "/etc/passwd/x", ""])
def test_what_does_not_exist(root, path):
    assert root.exists(path) is False
    with pytest.raises(OSError):
        root.open(path)


@pytest.mark.parametrize("path", ["/pipe", "/etc", "/"])
def test_only_regular_files_are_opened(root, path):
    """Opening a FIFO for reading would wait for a writer for ever."""
    assert attempt(root.open, path) == "errno 22"


@pytest.mark.parametrize(
    "look", [Root.open_fd, Root.open, Root.stat, Root.readlink, Root.listdir, Root.resolve]
)
def test_a_nul_byte_does_not_end_a_path(root, look):
    with pytest.raises(OSError, match="NUL"):
        look(root, "/etc\0/nothing")
    assert not root.exists("/etc\0/nothing")


@pytest.mark.parametrize("mode", ["w", "a", "r+", "rb+", "x"])
def test_a_root_is_only_read(root, mode):
    with pytest.raises(ValueError, match="only read"):
        root.open("/etc/passwd", mode)


def test_a_root_keeps_nothing_open(root):
    with none_left_open():
        for path in ("/abs", "/nothing", "/pipe", "/etc"):
            attempt(root.stat, path)
            attempt(root.readlink, path)
            attempt(root.listdir, path)
            attempt(lambda p: root.open(p).close(), path)


def test_a_root_that_is_a_link_is_refused(root):
    os.symlink("root", root.path + ".link")
    assert attempt(Root(root.path + ".link").stat, "/etc") == "errno 20"
