"""What is shown: states, processes, instances, and their JSON."""

import json

import pytest

from chrootfw.views import Check, InstanceInfo, InstanceState, NodeInfo, Process

NGINX = Process(12, "nginx", "www-data", "cwd", "/srv")


def node():
    return NodeInfo(
        memory_total_mib=8, memory_free_mib=4, memory_available_mib=5, memory_dom0_mib=1, cpus=2, load=(0.5, 1.0, 2.0),
        instances=2, running=1, run_dir_total_mib=100, run_dir_free_mib=50, image_disks=[{"path": "/srv"}],
    )  # fmt: skip


def test_a_state_is_its_plain_word():
    assert InstanceState.RUNNING == "running"
    assert type(InstanceState.RUNNING.value) is str
    assert json.dumps(InstanceState.HELD) == '"held"'
    assert {InstanceState.ABSENT: 1}["absent"] == 1


def test_the_json_of_list_is_the_contracts():
    info = InstanceInfo(
        "web1", InstanceState.RUNNING, "/run/chrootfw/web1/root", disk="/srv/web1.img", processes=3,
        memory_bytes=10485760, memory_source="cgroup v2", cpu_seconds=0.42, started_at="2026-11-22T12:00:00+00:00",
    )  # fmt: skip
    assert json.loads(json.dumps(info.to_dict())) == {
        "name": "web1",
        "state": "running",
        "root": "/run/chrootfw/web1/root",
        "disk": "/srv/web1.img",
        "processes": 3,
        "memory_bytes": 10485760,
        "memory_source": "cgroup v2",
        "cpu_seconds": 0.42,
        "started_at": "2026-11-22T12:00:00+00:00",
        "tracking": "cgroup",
        "holders": None,
    }
    assert type(info.to_dict()["state"]) is str


def test_info_adds_what_was_looked_for():
    mount = {"target": "/", "source": "/dev/loop0", "fstype": "ext4", "options": ["rw"]}
    info = InstanceInfo(
        "web1", InstanceState.HELD, "/r", holders=[NGINX], mounts=[mount], definition_changed=False,
        namespace="mnt:[4026532]", plugins=("disk",), notes=["a layer is left"],
    )  # fmt: skip
    shown = json.loads(json.dumps(info.to_dict()))
    assert shown["holders"] == [
        {"pid": 12, "command": "nginx", "user": "www-data", "why": "cwd", "what": "/srv"}
    ]
    assert shown["mounts"] == [mount]
    assert (shown["definition_changed"], shown["plugins"]) == (False, ["disk"])
    assert (shown["namespace"], shown["notes"]) == ("mnt:[4026532]", ["a layer is left"])


def test_looked_for_and_nobody_found_is_an_empty_list():
    assert InstanceInfo("web1", InstanceState.MOUNTED, "/r", holders=()).to_dict()["holders"] == []


@pytest.mark.parametrize(
    ("why", "own"),
    [("cgroup", True), ("root", True)]
    + [(why, False) for why in ("cwd", "fd", "map", "socket", "loop", "namespace")],
)
def test_who_is_own(why, own):
    assert Process(12, "nginx", "root", why).own is own


def test_process_describes_itself():
    assert NGINX.describe() == "pid 12 (nginx, www-data): cwd /srv"
    assert Process(12, "nginx", "root", "cgroup").describe() == "pid 12 (nginx, root): cgroup"
    assert (
        Process(0, "/dev/loop3", "", "loop", "/srv/x.img").describe()
        == "/dev/loop3: loop /srv/x.img"
    )


def test_node_and_check_json():
    assert json.loads(json.dumps(node().to_dict()))["load"] == [0.5, 1.0, 2.0]
    check = Check("run directory", "warning", "on a disk", "use a tmpfs")
    assert check.to_dict() == {
        "name": "run directory", "status": "warning", "detail": "on a disk", "hint": "use a tmpfs",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (NGINX, Process(12, "nginx", "www-data", "cwd", "/srv")),
        (
            InstanceInfo("a", InstanceState.HELD, "/r", cpu_seconds=1),
            InstanceInfo("a", "held", "/r", cpu_seconds=1.0),
        ),
        (
            InstanceInfo("a", InstanceState.HELD, "/r", mounts=[{"target": "/", "source": "x"}]),
            InstanceInfo("a", InstanceState.HELD, "/r", mounts=[{"source": "x", "target": "/"}]),
        ),
        (node(), node()),
    ],
)
def test_values_of_equal_fields_are_equal(one, other):
    assert one == other


def test_what_can_change_has_no_hash():
    assert hash(NGINX) == hash(Process(12, "nginx", "www-data", "cwd", "/srv"))
    with pytest.raises(AttributeError, match=r"Process\.pid"):
        NGINX.pid = 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(node())


def test_a_word_that_is_no_state_is_refused():
    with pytest.raises(ValueError, match="bogus"):
        InstanceState("bogus")


def test_different_values_differ():
    assert NGINX != Process(13, "nginx", "www-data", "cwd", "/srv")
    assert NGINX != NGINX.to_dict()
    assert "pid=12" in repr(NGINX)
