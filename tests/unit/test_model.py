"""The values: frozen, checked when they are made, turned into JSON."""

import json
from pathlib import Path
from signal import SIGTERM

import attrs
import pytest

from chrootfw.errors import InputError
from chrootfw.model import (
    DEFAULT_INIT_SCRIPT,
    NO_COMMAND,
    Command,
    Entry,
    Escalation,
    Instance,
    MountPoint,
    Node,
    Plan,
    PlannedStep,
    Problem,
    Step,
)


@attrs.frozen
class Snapshot(Step):
    kind = "snapshot"
    volume: str

    def describe(self):
        return f"snapshot {self.volume}"


class Bare(Step):
    def __init__(self):
        self.size = 3


def test_an_instance_alone():
    web1 = Instance("web1")
    assert (web1.disk, web1.init_script, dict(web1.params), web1.plugins) == (
        None,
        DEFAULT_INIT_SCRIPT,
        {},
        (),
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [("/sbin/init", "/sbin/init"), (Path("/sbin/init"), "/sbin/init"), (None, None), (False, None)],
)
def test_init_script_forms(given, kept):
    assert Instance("web1", init_script=given).init_script == kept


def test_paths_may_be_path_objects():
    assert Instance("web1", disk=Path("/srv/web1.img")).disk == "/srv/web1.img"


@pytest.mark.parametrize(
    "wrong",
    [
        {"disk": "srv/web1.img"},
        {"disk": "/srv/../web1.img"},
        {"disk": ""},
        {"disk": b"/srv/web1.img"},
        {"init_script": True},
        {"init_script": ""},
        {"init_script": "init"},
        {"init_script": "/etc/../init"},
    ],
)
def test_an_instance_with_a_bad_path_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Instance("web1", **wrong)


def test_one_string_is_no_list_of_strings():
    for make in (lambda: Instance("web1", plugins="abc"), lambda: Command("/bin/sh"),
                 lambda: MountPoint("/", "tmpfs", options="ro")):  # fmt: skip
        with pytest.raises(InputError, match="sequence of str"):
            make()
    with pytest.raises(InputError, match="found b'-c'"):
        Command(["/bin/sh", b"-c"])


def test_what_was_decided_cannot_change():
    params = {"grace": 3, "binds": ["/a:/b"]}
    web1 = Instance("web1", params=params)
    params["grace"] = 99
    params["binds"].append("/c:/d")
    assert web1.params == {"grace": 3, "binds": ["/a:/b"]}
    web1.to_dict()["params"]["binds"].clear()
    assert web1.params["binds"] == ["/a:/b"]
    for value, field in (
        (web1, "name"),
        (MountPoint("/", "tmpfs"), "target"),
        (Escalation(SIGTERM, 1), "to"),
    ):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, field, "other")


def test_equal_values_are_equal():
    def web1():
        return Instance("web1", disk="/d", params={"grace": 3}, plugins=["a"])

    assert web1() == web1()
    assert web1() != attrs.evolve(web1(), params={"grace": 4})


def test_instance_json():
    web1 = Instance("web1", disk="/d", init_script=False, params={"grace": 3}, plugins=["a"])
    shown = {
        "name": "web1",
        "disk": "/d",
        "init_script": None,
        "params": {"grace": 3},
        "plugins": ["a"],
    }
    assert json.loads(json.dumps(web1.to_dict())) == shown
    assert Instance(**shown) == web1


@pytest.mark.parametrize("source", ["", None, b"/dev/sda", 3])
def test_a_mount_point_needs_a_source(source):
    with pytest.raises(InputError, match="the source of mount point /data"):
        MountPoint("/data", source)


def test_a_mount_points_place_is_checked():
    with pytest.raises(InputError, match="'root' or 'aux:NAME'"):
        MountPoint("/data", "tmpfs", at="elsewhere")


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (MountPoint("/", "/srv/web1.img", "ext4"), "ext4 /srv/web1.img on /"),
        (MountPoint("/proc", "proc", "proc"), "proc on /proc"),
        (MountPoint("/data", "/srv/d", options=["bind", "ro"]), "bind /srv/d on /data (bind,ro)"),
        (MountPoint("/", Snapshot("vg/web1"), "ext4"), "ext4 the result of snapshot on /"),
        (MountPoint("/x", "tmpfs", "tmpfs", at="aux:upper"), "tmpfs on aux:upper/x"),
    ],
)
def test_mount_point_describes_itself(point, words):
    assert point.describe() == words


def test_nodes_are_for_a_tmpfs_and_stay_in_it():
    assert (
        MountPoint("/dev", "tmpfs", "tmpfs", nodes=[Node("null", device=(1, 3))]).nodes[0].path
        == "null"
    )
    with pytest.raises(InputError, match="only a tmpfs"):
        MountPoint("/", "/srv/web1.img", "ext4", nodes=[Node("null")])
    for path in ("../x", "/x", "a/../../x", "a//b", "a\0"):
        with pytest.raises(InputError):
            Node(path)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "60", True, None])
def test_a_command_needs_a_sane_timeout(timeout):
    with pytest.raises(InputError, match="timeout"):
        Command(["/bin/true"], timeout=timeout)


def test_a_command_needs_words():
    with pytest.raises(InputError, match="NO_COMMAND"):
        Command([])
    assert repr(NO_COMMAND) == "NO_COMMAND"


def test_entry():
    assert Entry().to_dict() == {
        "method": "chroot", "user": None, "cwd": "/", "env": {}, "namespaces": [], "mount_attributes": [], "read_only": [],
        "capabilities": None, "no_new_privs": False, "seccomp": "", "masked": [],
    }  # fmt: skip
    with pytest.raises(InputError, match="cwd"):
        Entry(cwd="srv")


def test_an_escalation_takes_any_iterable_of_pids():
    assert Escalation(SIGTERM, 1, iter([7, 8])).to == (7, 8)


def test_a_step_that_says_nothing_fails_by_name():
    for method, arguments in (("describe", ()), ("apply", ()), ("undo", ({},))):
        with pytest.raises(NotImplementedError, match="Bare"):
            getattr(Bare(), method)(*arguments)


def test_the_arguments_of_a_step_are_its_fields():
    assert Snapshot("vg/web1").arguments() == {"volume": "vg/web1"}
    assert Bare().arguments() == {"size": 3}


def test_plan():
    steps = (PlannedStep("mount", "ext4 /d on /", "disk"), PlannedStep("pre-start", "look", ""))
    plan = Plan("start", "web1", steps)
    assert (
        plan.describe() == "start web1:\n  1  mount      ext4 /d on /  [disk]\n  2  pre-start  look"
    )
    assert plan.to_dict()["steps"][0] == {
        "stage": "mount",
        "does": "ext4 /d on /",
        "plugin": "disk",
    }
    assert Plan("stop", "web1", ()).describe() == "stop web1:\n  nothing to do"


def test_a_problem_is_fatal_unless_it_says_otherwise():
    assert Problem("no init script").warning is False


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "nspawn"}, "must be chroot or pivot_root"),
        ({"method": "pivot_root", "namespaces": ["net"]}, "namespace is 'net'"),
        ({"method": "pivot_root", "mount_attributes": ["noexec"]}, "mount attribute is 'noexec'"),
        ({"method": "pivot_root", "read_only": ["proc"]}, "read-only path"),
        ({"method": "pivot_root", "masked": ["keys"]}, "masked path"),
        ({"namespaces": ["pid"]}, "needs the method pivot_root"),
        ({"masked": ["/proc/keys"]}, "needs the method pivot_root"),
        ({"capabilities": ["CAP_KILL"]}, "capability is 'CAP_KILL'"),
        ({"seccomp": "AAAAAAAAAAA="}, "needs no_new_privs"),
        ({"seccomp": "AAAA", "no_new_privs": True}, "instructions of 8 bytes"),
        ({"seccomp": "no base64!", "no_new_privs": True}, "not valid base64"),
    ],
)
def test_an_entry_that_cannot_be_carried_out(fields, words):
    with pytest.raises(InputError, match=words):
        Entry(**fields)


def test_an_entry_survives_its_record():
    entry = Entry(
        "pivot_root",
        namespaces=["pid"],
        capabilities=["KILL"],
        no_new_privs=True,
        read_only=["/proc/sys"],
        masked=["/proc/keys"],
    )
    assert Entry(**entry.to_dict()) == entry


def test_a_subclass_is_its_inherited_fields_too():
    class Own(MountPoint):
        __slots__ = ()

    assert Own("/a", "tmpfs") == Own("/a", "tmpfs") != Own("/b", "tmpfs")
    assert "target='/a'" in repr(Own("/a", "tmpfs"))
    assert hash(Own("/a", "tmpfs")) == hash(Own("/a", "tmpfs"))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Instance("web1", plugins="x"), "plugins"),
        (lambda: MountPoint("/", "tmpfs", options="x"), "options"),
        (lambda: Command("x"), "argv"),
        (lambda: Entry(masked=3), "masked"),
        (lambda: Entry(capabilities="x"), "capabilities"),
    ],
)
def test_a_lone_value_in_place_of_a_sequence_is_refused_by_its_name(make, field):
    with pytest.raises(InputError, match=f"^{field} is the (str 'x'|int 3); it must be a sequence"):
        make()
