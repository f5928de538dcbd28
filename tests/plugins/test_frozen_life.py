"""Plugins and records of earlier versions in a real life."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driving
import frozen
import kernelview
import pytest
from fixtures import *  # noqa: F403  # here and not in conftest.py, which speaks for modules that need no root, too

import chrootfw
from chrootfw.linux import files

each = pytest.mark.parametrize("old", frozen.ALL, ids=[old.version for old in frozen.ALL])
pytestmark = pytest.mark.filterwarnings(
    "ignore::chrootfw.hooks.deprecations.ChrootfwDeprecationWarning"
)


@each
def test_a_life_is_what_it_was(
    old: frozen.Frozen, runtime: chrootfw.Runtime, make_root: Callable[..., Path], tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    disk = make_root("disk")
    plugin = old.module().Everything(str(place))
    mine = runtime.with_plugins(plugin)
    try:
        mine.start(old.instance(disk))
        assert (disk / "var/frozen").read_text() == "ice 2\n"
        root = Path(mine.info("web1").root)
        assert kernelview.mount_on(root / "mnt") is not None
        assert kernelview.mount_on(root / "sys") is None
        assert sorted(os.listdir(root.parent / "aux/frozen")) == ["inside", "link"]
        inside = mine.run(
            "web1", ["/bin/sh", "-c", "echo $FROZEN $PWD"], capture_output=True, text=True
        )
        assert inside.stdout == "ice /var\n"
        assert (place / "marker").read_text() == "ice"
    finally:
        mine.stop("web1")
    assert plugin.said == [line.replace("@DISK@", disk.name) for line in old.expected("life")]
    assert sorted(os.listdir(place)) == ["marker.undone"]
    assert json.loads((place / "marker.undone").read_text()) == {
        "kind": "frozen-marker", "facts": {"size": 3}, "plugin": "Everything", "arguments": ["path", "words"],
    }  # fmt: skip


def _frozen_record(old: frozen.Frozen, place: Path, disk: Path) -> dict[str, Any]:
    """The record as the old version wrote it, with the numbers of this machine and this boot."""
    text = (old.directory / "record.json").read_text()
    for name, value in {
        "@BOOT_ID@": files.boot_id(),
        "@PLACE@/disk": disk,
        "@PLACE@": place,
    }.items():
        text = text.replace(name, str(value))
    record: dict[str, Any] = json.loads(text)
    status = disk.stat()
    record["namespace"] = files.mount_namespace()
    record["disks"][0] |= {"file": [status.st_dev, status.st_ino], "devices": [status.st_dev]}
    return record


@each
def test_a_record_is_still_understood_by_what_stops_it(
    old: frozen.Frozen, runtime: chrootfw.Runtime, cli: driving.Cli, run_dir: Path, make_root: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    place = tmp_path / "place"
    place.mkdir()
    disk = make_root("disk")
    with_its_steps = {"PYTHONPATH": f"{cli.environment()['PYTHONPATH']}:{old.directory}"}
    try:
        runtime.with_plugins(old.module().Everything(str(place))).start(
            old.instance(disk, frozen_word="water")
        )
        record = run_dir / "web1/record.json"
        record.write_text(json.dumps(_frozen_record(old, place, disk)))
        assert cli("exec", "web1", "--", "/bin/sh", "-c", "echo $FROZEN").stdout == "ice\n"
        (shown,) = cli.json("info", "web1")["instances"]
        assert f"Everything {old.module().__version__}" in shown["plugins"]
        assert not shown.get("notes")
    finally:
        stopped = cli("stop", "web1", "--no-script", env=with_its_steps)
    assert stopped.stderr == "", "it had something to say about the record"
    assert not kernelview.mounts_below(run_dir)
    assert sorted(os.listdir(place)) == ["marker.undone"]
    assert json.loads((place / "marker.undone").read_text())["facts"] == {"size": 3}, (
        "the record's, and not this start's"
    )
