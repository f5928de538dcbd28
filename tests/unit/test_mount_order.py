"""Merging what plugins mount, and judging their unmount order."""

import pytest

from chrootfw.errors import PlanError
from chrootfw.model import Mount, MountPoint, Node, Omit
from chrootfw.planning.mount_order import (
    check_unmount_order,
    find_idle,
    merge,
    sort_for_mounting,
    sort_for_unmounting,
)

ROOT = ("disk", MountPoint("/", "/srv/web1.img"))


def mount(target, id, parent=0):
    return Mount(target, "tmpfs", "tmpfs", (), "root", id, parent)


def merged(*answers):
    return [(plugin, point.at, point.target) for plugin, point in merge(answers)]


def test_of_two_for_one_place_the_one_asked_first_wins():
    mine, theirs = MountPoint("/", "/srv/snapshot.img"), MountPoint("/", "/srv/web1.img")
    assert merge([("snapshots", mine), ("disk", theirs)]) == [("snapshots", mine)]


def test_answers_without_effect():
    api = ("api", MountPoint("/sys", "sysfs", "sysfs"))
    assert find_idle([("slip", Omit("/sis")), ROOT, api]) == [
        ("slip", "leaves out /sis, which nobody mounts; did it mean /sys?")
    ]
    assert find_idle([ROOT, ("slip", Omit("/", at="aux:upper"))]) == [
        ("slip", "leaves out / of aux:upper, which nobody mounts")
    ]
    assert find_idle([ROOT, api, ("api", MountPoint("/sys", "tmpfs", "tmpfs"))]) == [
        ("api", "answers twice for /sys: the first answer counts")
    ]


def test_what_loses_to_another_plugin_is_not_without_effect():
    mine = ("snapshots", MountPoint("/", "/srv/snapshot.img"))
    no_sys = ("no-sys", Omit("/sys"))
    sysfs = ("api", MountPoint("/sys", "sysfs", "sysfs"))
    assert find_idle([mine, no_sys, ("and-so", Omit("/sys")), ROOT, sysfs]) == []


def test_omit_beats_what_is_asked_later_only():
    proc = MountPoint("/proc", "proc", "proc")
    assert merged(("no-proc", Omit("/proc")), ROOT, ("api", proc)) == [("disk", "root", "/")]
    assert merged(ROOT, ("api", proc), ("no-proc", Omit("/proc"))) == [
        ("disk", "root", "/"),
        ("api", "root", "/proc"),
    ]


def test_the_same_target_elsewhere_is_another_place():
    lower = MountPoint("/", "/srv/base.img", at="aux:lower")
    assert merged(ROOT, ("layers", lower), ("x", Omit("/", at="aux:upper"))) == [
        ("layers", "aux:lower", "/"),
        ("disk", "root", "/"),
    ]


def test_one_object_for_two_plugins_is_mounted_once():
    assert merged(ROOT, ("other", ROOT[1])) == [("disk", "root", "/")]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([], "no plugin answered with a mount point for the root"),
        (
            [("api", MountPoint("/proc", "proc"))],
            "no plugin answered with a mount point for the root",
        ),
        (
            [("layers", MountPoint("/", "/b.img", at="aux:lower"))],
            "no plugin answered with a mount point for the root",
        ),
        ([("no-root", Omit("/")), ROOT], "plugin no-root leaves out the root mount"),
        (
            [ROOT, ("l", MountPoint("/x", "tmpfs", at="aux:lower"))],
            "plugin l mounts tmpfs on aux:lower/x, but nothing",
        ),
    ],
)
def test_without_one_root_there_is_no_plan(answers, words):
    with pytest.raises(PlanError) as caught:
        merge(answers)
    assert words in caught.value.brief


def test_parents_come_first_and_equals_keep_their_order():
    targets = ["/dev/shm", "/web10", "/dev", "/", "/web1", "/web1/a", "/proc"]
    points = [MountPoint(target, "tmpfs") for target in targets] + [
        MountPoint("/", "/b.img", at="aux:lower")
    ]
    assert [(p.at, p.target) for p in sort_for_mounting(points)] == [
        ("aux:lower", "/"),
        *(
            ("root", target)
            for target in ("/", "/web10", "/dev", "/web1", "/proc", "/dev/shm", "/web1/a")
        ),
    ]


def test_unmounting_order_takes_a_stack_from_its_top():
    lower, upper = mount("/data", 5, 1), mount("/data", 3, 5)
    assert sort_for_unmounting([mount("/", 1), lower, upper]) == [upper, lower, mount("/", 1)]


def test_unmounting_order_of_one_generation_takes_the_deeper_target():
    root, deep, shallow = mount("/", 1), mount("/a/b", 2, 1), mount("/c", 3, 1)
    assert sort_for_unmounting([root, deep, shallow]) == [deep, shallow, root]


def test_unmounting_order_of_equals_takes_the_newest():
    root, first, second = mount("/", 1), mount("/b", 9, 1), mount("/a", 4, 1)
    assert sort_for_unmounting([root, first, second]) == [second, first, root]


A, B = mount("/", 1), mount("/proc", 2, 1)


@pytest.mark.parametrize(
    ("order", "wrong"),
    [
        ([B, A], None),
        ([A, B], "it puts / before /proc, which is mounted on it"),
        ([B], "it drops / (mount ID 1)"),
        ([], "it drops / (mount ID 1)"),
        ([B, B, A], "it names /proc (mount ID 2) twice"),
        ([B, A, mount("/sys", 3, 1)], "it invents a mount that is not there: /sys (mount ID 3)"),
        ([mount("/etc", 2, 1), A], "it invents a mount that is not there: /etc (mount ID 2)"),
    ],
)
def test_check_unmount_order(order, wrong):
    assert check_unmount_order([A, B], order) == wrong


def test_a_mount_that_is_its_own_parent_is_no_trap():
    top = mount("/", 1, 1)
    assert sort_for_unmounting([top]) == [top]
    assert check_unmount_order([top], [top]) is None


@pytest.mark.parametrize("over", ["/dev/pts", "/dev/net"])
def test_a_device_that_a_mount_would_cover_is_refused(over):
    dev = MountPoint(
        "/dev",
        "tmpfs",
        "tmpfs",
        nodes=(Node("net/tun", device=(10, 200)), Node("pts/7", device=(136, 7))),
    )
    with pytest.raises(PlanError, match=rf"/dev/[a-z]+/[a-z0-9]+ .* {over}\b"):
        merge([ROOT, ("api", dev), ("binds", MountPoint(over, "devpts", "devpts"))])


def test_a_bind_on_a_device_itself_replaces_it():
    dev = MountPoint("/dev", "tmpfs", "tmpfs", nodes=(Node("null", device=(1, 3)), Node("pts")))
    bind = MountPoint("/dev/null", "/srv/null", None, ("bind",))
    pts = MountPoint("/dev/pts", "devpts", "devpts")
    assert len(merge([ROOT, ("api", dev), ("binds", bind), ("api", pts)])) == 4
