"""Cgroups of instances by their names; plain directories stand for the hierarchy."""

import os

import pytest

from chrootfw.system import cgroups


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
    one, two, link = (cgroups.home("/sys/fs/cgroup", str(tmp_path / name)) for name in ("one", "two", "link"))
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


@pytest.mark.parametrize(("text", "populated"), [("populated 0\nfrozen 0\n", False), ("populated 1\nfrozen 0\n", True)])
def test_populated(tmp_path, text, populated):
    (tmp_path / "cgroup.events").write_text(text)
    assert cgroups.is_populated(str(tmp_path)) is populated


def test_a_hierarchy_that_has_moved_is_looked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "_found_last", [])
    v2, v1, other = (tmp_path / name for name in ("v2", "v1", "other"))
    for directory in (v2, v1, other):
        directory.mkdir()
    read = []

    def table():
        read.append(1)
        memory = other if not v1.exists() else v1
        return (f"1 0 0:1 / {v2} rw - cgroup2 cgroup rw\n2 0 0:2 / {memory} rw - cgroup cgroup rw,memory\n").encode()

    for _ in range(2):
        assert cgroups.hierarchies(table) == (str(v2), str(v1))
    assert len(read) == 1
    v1.rmdir()
    assert cgroups.hierarchies(table) == (str(v2), str(other))
    assert len(read) == 2
