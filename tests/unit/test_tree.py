"""How ``tree`` draws mounts and processes: what is below what, one line each, within a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest

import chrootfw
from chrootfw.cli import render, tree


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _mount(id: int, parent: int, target: str, fstype: str = "tmpfs") -> dict[str, Any]:
    return {"id": id, "parent": parent, "target": target, "fstype": fstype, "source": "none"}


def _info(**more: object) -> chrootfw.InstanceInfo:
    state = chrootfw.InstanceState.RUNNING
    return chrootfw.InstanceInfo("web1", state, "/run/web1/root", **more)


def _lines(
    mounts: Sequence[dict[str, Any]],
    processes: Sequence[chrootfw.Process] = (),
    stream: io.StringIO | None = None,
    **more: object,
) -> list[str]:
    info = _info(**{"holders": [], **more})
    return tree.draw(info, mounts, processes, stream or io.StringIO()).split("\n")


def test_mounts_stand_below_their_parents() -> None:
    """The parent is that of the kernel: /mnt was mounted over what is still below it by name."""
    mounts = [
        _mount(10, 1, "/", "ext4"),
        _mount(11, 10, "/dev"),
        _mount(14, 10, "/mnt/a"),
        _mount(12, 11, "/dev/pts"),
        _mount(13, 12, "/dev/pts"),
        _mount(15, 10, "/mnt"),
    ]
    header, *drawn = _lines(mounts, disk="/srv/web1.img")
    assert header == "web1: running"
    assert drawn == [
        "disk /srv/web1.img",
        "mounts",
        "└── /  ext4 none",
        "    ├── /dev  tmpfs none",
        "    │   └── /dev/pts  tmpfs none",
        "    │       └── /dev/pts  tmpfs none",
        "    ├── /mnt/a  tmpfs none",
        "    └── /mnt  tmpfs none",
    ]


def test_processes_and_holders() -> None:
    own = [
        chrootfw.Process(
            71, "httpd", "www", "cgroup", state="sleeping", arguments=["httpd", "-p 1"]
        )
    ]
    holder = chrootfw.Process(99, "sleep", "root", "fd", "/run/web1/root/bin/sh")
    assert _lines([], [*own, holder])[1:] == [
        "processes",
        "└── 71 www  httpd -p 1",
        "outside holders",
        "└── pid 99 (sleep, root): fd /run/web1/root/bin/sh",
    ]
    assert (
        _lines([], own, holders=None)[-1] == "outside holders: only the root user can look for them"
    )


def test_a_hostile_name_is_escaped_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "\x1b[31m\u202e\n" + "x" * 300
    own = [chrootfw.Process(71, name, "root", "cgroup", state="sleeping", arguments=[name])]
    holder = chrootfw.Process(99, name, "root", "fd", f"/run/web1/root/{name}")
    mounts = [_mount(10, 1, "/"), _mount(11, 10, f"/{name}", name)]
    for stream in (io.StringIO(), _Terminal()):
        lines = _lines(mounts, [*own, holder], stream)
        assert all(
            line.replace("\x1b[1m", "").replace("\x1b[0m", "").isprintable() for line in lines
        )
        assert len(lines) == 8
    assert max(len(line) for line in lines) <= 80 + len("\x1b[1m\x1b[0m")


def test_a_very_deep_tree_is_drawn() -> None:
    deep = [_mount(number, number - 1, "/" + "a/" * number) for number in range(10, 3000)]
    assert len(_lines(deep)) == len(deep) + 2


def test_signs_where_the_locale_has_no_others() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    mounts = [_mount(10, 1, "/"), _mount(11, 10, "/a"), _mount(12, 11, "/b"), _mount(13, 10, "/c")]
    render.show(tree.draw(_info(holders=[]), mounts, [], stream), stream)
    assert stream.buffer.getvalue().decode("ascii").splitlines()[2:] == [  # type: ignore[attr-defined]
        "`-- /  tmpfs none",
        "    |-- /a  tmpfs none",
        "    |   `-- /b  tmpfs none",
        "    `-- /c  tmpfs none",
    ]


def test_a_mount_that_is_read_only_says_so() -> None:
    mounts = [{**_mount(10, 1, "/", "ext4"), "options": ["ro", "nodev"]}]
    assert _lines(mounts)[-1] == "└── /  ext4 none (ro)"
