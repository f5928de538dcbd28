"""Cgroups of instances by their names; plain directories stand for the hierarchy."""

import os
import time

import pytest

from chrootfw.errors import PrivilegeError
from chrootfw.linux import cgroups


@pytest.fixture
def home(tmp_path):
    return cgroups.home(str(tmp_path / "hierarchy"), str(tmp_path))


@pytest.fixture
def hierarchy(tmp_path):
    (tmp_path / "hierarchy").mkdir()
    return tmp_path / "hierarchy"


def test_two_run_directories_never_meet(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("one")
    one, two, link = (
        cgroups.home("/sys/fs/cgroup", str(tmp_path / name)) for name in ("one", "two", "link")
    )
    assert one != two
    assert one == link
    assert one.startswith("/sys/fs/cgroup/chrootfw/")


def test_a_cgroup_is_never_used_again_while_it_is_there(hierarchy, home):
    made = [cgroups.create(home, "web1") for _ in range(11)]
    assert [os.path.basename(path) for path in made] == [f"web1@{n}" for n in range(1, 12)]
    assert cgroups.of_instance(home, "web1") == made
    cgroups.create(home, "web10")
    assert [os.path.basename(p) for p in cgroups.of_instance(home, "web10")] == ["web10@1"]


def test_the_kernels_own_files_are_no_instances(hierarchy, home):
    os.makedirs(home)
    for name in ("cgroup.procs", "cgroup.events@x", "@7", "memory.stat"):
        open(f"{home}/{name}", "w").close()
    assert {name for name in cgroups.everything(home) if name} == set()


def test_the_last_one_removes_the_directories_above(hierarchy, home):
    first, second = cgroups.create(home, "web1"), cgroups.create(home, "web2")
    os.mkdir(f"{first}/system.slice")
    cgroups.remove(first)
    assert os.path.isdir(second)
    cgroups.remove(second)
    assert os.listdir(hierarchy) == []
    cgroups.remove(second)


def test_what_is_not_there_is_empty(home):
    assert cgroups.everything(home) == {}
    assert cgroups.of_instance(home, "web1") == []
    assert cgroups.is_populated(f"{home}/web1@1") is False
    assert cgroups.pids(f"{home}/web1@1") == []
    assert cgroups.memory_bytes(home) is None
    assert cgroups.cpu_seconds(home) is None
    assert cgroups.path_of(2**22 + 1, "/x") is None


def test_figures(tmp_path):
    (tmp_path / "cpu.stat").write_text("user_usec 1\nusage_usec 2500000\n")
    (tmp_path / "memory.usage_in_bytes").write_text("4096\n")
    assert cgroups.cpu_seconds(str(tmp_path)) == 2.5
    assert cgroups.memory_bytes(str(tmp_path)) == 4096
    (tmp_path / "memory.current").write_text("8192\n")
    assert cgroups.memory_bytes(str(tmp_path)) == 8192


def test_pids_of_the_cgroup_and_those_below(tmp_path):
    (tmp_path / "cgroup.procs").write_text("7\n0\n")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "cgroup.procs").write_text("8\n")
    assert cgroups.pids(str(tmp_path)) == [7, 0, 8]


@pytest.mark.parametrize(
    ("text", "populated"), [("populated 0\nfrozen 0\n", False), ("populated 1\nfrozen 0\n", True)]
)
def test_populated(tmp_path, text, populated):
    (tmp_path / "cgroup.events").write_text(text)
    assert cgroups.is_populated(str(tmp_path)) is populated


def escaped(path):
    """As mount tables write it."""
    return str(path).replace(" ", "\\040")


def test_a_hierarchy_that_has_moved_is_looked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "_found_last", [])
    monkeypatch.setattr(
        cgroups, "_mount_id", lambda path: {"v2": 1, "v1": 2, "other": 2}[os.path.basename(path)]
    )
    v2, v1, other = (tmp_path / name for name in ("v2", "v1", "other"))
    for directory in (v2, v1, other):
        directory.mkdir()
    read = []

    def table():
        read.append(1)
        memory = other if not v1.exists() else v1
        return (
            f"1 0 0:1 / {escaped(v2)} rw - cgroup2 cgroup rw\n2 0 0:2 / {escaped(memory)} rw - cgroup cgroup rw,memory\n"
        ).encode()

    for _ in range(2):
        assert cgroups.hierarchies(table) == (str(v2), str(v1))
    assert len(read) == 1
    v1.rmdir()
    assert cgroups.hierarchies(table) == (str(v2), str(other))
    assert len(read) == 2


@pytest.mark.parametrize(
    "entry",
    ["v1@²", "v1@٣", "v1@0", "v1@01", "v1@-1", "v1@+1", "v1@ 1", "v1@1_0", "v1@", "v1@x", "v1@" + "9" * 240, "v1@1234567890",
     "@1", "a b@1", "../x@1", "..@1", "\033[2Kbank@1", "v1\n@1", "-x@1", "a@b@1", "é@1", "\udcff@1", "x" * 201 + "@1"],
)  # fmt: skip
def test_a_name_that_others_made_is_no_instances(hierarchy, home, entry):
    os.makedirs(home)
    if "/" not in entry and len(os.fsencode(entry)) < 256:
        os.mkdir(f"{home}/{entry}")
    assert cgroups.parse(entry) is None
    assert cgroups.everything(home) == {}
    assert cgroups.of_instance(home, "v1") == []
    assert cgroups.create(home, "v1") == f"{home}/v1@1"


@pytest.mark.parametrize("number", [999_999_998, 999_999_999])
def test_a_start_has_a_number_whatever_others_count_to(hierarchy, home, number):
    os.makedirs(f"{home}/v1@{number}")
    os.makedirs(f"{home}/v1@1")
    made = {cgroups.create(home, "v1") for _ in range(3)}
    assert len(made) == 3
    assert set(cgroups.of_instance(home, "v1")) == {*made, f"{home}/v1@1", f"{home}/v1@{number}"}


def test_a_hierarchy_that_is_gone_is_an_error_soon(tmp_path):
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        cgroups.create(f"{tmp_path}/gone/chrootfw/0:0-0", "v1")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("umask", [0o077, 0o777, 0o002])
def test_the_directories_can_be_read_by_everybody_whatever_the_umask(hierarchy, home, umask):
    before = os.umask(umask)
    try:
        path = cgroups.create(home, "v1")
    finally:
        os.umask(before)
    assert {oct(os.stat(each).st_mode & 0o777) for each in (path, home, os.path.dirname(home))} == {
        "0o755"
    }


def test_a_directory_that_an_earlier_umask_has_shut_is_opened(hierarchy, home):
    os.mkdir(os.path.dirname(home), 0o700)
    cgroups.create(home, "v1")
    assert os.stat(os.path.dirname(home)).st_mode & 0o777 == 0o755


def test_what_cannot_be_read_is_no_obstacle_for_a_run_directory_of_ones_own(home, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list(cgroups.Groups(home, is_own=True)) == []
    with pytest.raises(PrivilegeError) as error:
        cgroups.Groups(home, is_own=False).get("v1")
    assert "sudo" in error.value.hint


@pytest.mark.parametrize("depth", [1_100, 40])
def test_a_tree_is_walked_however_deep_its_paths_are(tmp_path, depth):
    """Deeper than Python's recursion, longer than a path can be."""
    (tmp_path / "cgroup.procs").write_text("7\n")
    fd = os.open(tmp_path, os.O_RDONLY)
    for level in range(depth):
        os.mkdir("d" * 200, dir_fd=fd)
        os.mkdir("other", dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        file = os.open("cgroup.procs", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=fd)
        os.write(file, b"%d\n" % (level + 100))
        os.close(file)
    os.close(fd)
    assert sorted(cgroups.pids(str(tmp_path), seconds=60)) == [7, *range(100, 100 + depth)]
    cgroups.thaw(str(tmp_path))

    def unlink(fd):
        os.unlink("cgroup.procs", dir_fd=fd) if "cgroup.procs" in os.listdir(fd) else None
        return True

    cgroups._walk(str(tmp_path), unlink)
    cgroups.remove(str(tmp_path))
    assert not tmp_path.exists()


def test_reading_a_tree_ends_in_time(tmp_path):
    for number in range(200):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cgroup.procs").write_text("8\n")
    (tmp_path / "cgroup.procs").write_text("7\n")
    assert cgroups.pids(str(tmp_path), seconds=-1) == [7]


def test_a_line_of_a_list_may_be_cut_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "_READ_MAX", 3)
    (tmp_path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in range(1000, 1100)))
    assert cgroups.pids(str(tmp_path)) == list(range(1000, 1100))


def test_the_hierarchy_is_the_hosts(tmp_path, monkeypatch):
    """Not one that an instance has mounted in its root, nor one that another mount covers."""
    monkeypatch.setattr(cgroups, "_found_last", [])
    inside, host = tmp_path / "run/w1/root/mnt/cg", tmp_path / "root/cg"
    for each in (inside, host, tmp_path / "run/.locks"):
        each.mkdir(parents=True)
    ids = {str(inside): 1, str(host): 3}
    monkeypatch.setattr(cgroups, "_mount_id", ids.__getitem__)
    table = "".join(
        f"{number} 0 0:1 / {place} rw - cgroup2 none rw\n"
        for number, place in ((1, inside), (2, host), (3, host))
    )
    assert cgroups.hierarchies(table.encode) == (str(host), None)
    monkeypatch.setattr(cgroups, "_found_last", [])
    assert cgroups.hierarchies(table[: table.index("\n") + 1].encode) == (None, None)
