"""A record with wrong content is a lost record, or one whose wrong parameters count for nothing: every verb works on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driving
import pytest


def _set(record: dict[str, Any], way: str, value: object) -> None:
    *path, last = way.split(".")
    place: Any = record
    for key in path:
        place = place[int(key) if isinstance(place, list) else key]
    place[int(last) if isinstance(place, list) else last] = value


LOST = {
    "instance.disk": "relative",
    "instance.init_script": "/a/../b",
    "instance.plugins": [1],
    "entry.method": "jail",
    "entry.user": "4294967295",
    "entry.env": {"A=B": "x"},
    "disks.0.devices": [1 << 70],
    "disks.0.path": "a\0b",
    "namespace": -1,
    "cgroups": ["x"],
    "phase": "sleeping",
}
KEPT = {"instance.later": 1, "entry.later": [1], "later": {"a": 1}, "disks.0.later": None}
MENDED = {
    "disk_timeout": "x",
    "grace": "x",
    "holders": 7,
    "stop_script_timeout": -1,
    "min_free": 1e400,
}


def _damage(web1: driving.Chroot, cli: driving.Cli, way: str, value: object) -> Path:
    web1.start()
    path = cli.run_dir / "web1/record.json"
    record = json.loads(path.read_text())
    _set(record, way, value)
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize("way", LOST)
def test_a_wrong_value(web1: driving.Chroot, cli: driving.Cli, way: str) -> None:
    _damage(web1, cli, way, LOST[way])
    cli("list")
    cli("info", "web1")
    cli("exec", "web1", "--", "/bin/true")
    cli("plan", "stop", "web1")
    stopped = cli("stop", "web1")
    assert "lost" in stopped.stderr
    assert web1.is_gone()
    web1.start()


@pytest.mark.parametrize("way", KEPT)
def test_a_key_that_a_later_version_has(web1: driving.Chroot, cli: driving.Cli, way: str) -> None:
    path = _damage(web1, cli, way, KEPT[way])
    cli("exec", "web1", "--", "/bin/true")
    stopped = cli("stop", "web1", "--keep-mounted")
    assert "lost" not in stopped.stderr
    assert '"later"' in path.read_text()
    assert "lost" not in cli("stop", "web1").stderr
    assert web1.is_gone()


@pytest.mark.parametrize("name", MENDED)
def test_a_parameter_that_no_start_could_have_written(
    web1: driving.Chroot, cli: driving.Cli, name: str
) -> None:
    _damage(web1, cli, f"instance.params.{name}", MENDED[name])
    stopped = cli("stop", "web1")
    assert f"parameter {name}" in stopped.stderr
    assert "lost" not in stopped.stderr
    assert web1.is_gone()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 4096, b"[" * 100_000, b" " * (16 << 20), b'{"a":' * 200_000],
    ids=lambda c: f"{c[:5]!r}",
)
def test_a_damaged_record(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli, content: bytes
) -> None:
    web1, web2 = make_chroot("web1"), make_chroot("web2")
    web1.start()
    web2.start()
    (cli.run_dir / "web1/record.json").write_bytes(content)
    assert [each["state"] for each in cli.json("list")["instances"]] == ["running", "running"]
    cli("reboot", "web1")
    (cli.run_dir / "web1/record.json").write_bytes(content)
    cli("stop", "web1")
    assert web1.is_gone()


def test_a_newer_version_is_refused_by_name(web1: driving.Chroot, cli: driving.Cli) -> None:
    path = _damage(web1, cli, "version", 3)
    before = path.read_bytes()
    (shown,) = cli.json("list")["instances"]
    assert shown["state"] == "running"
    for verb in ("stop", "stop --force", "reboot", "start"):
        refused = cli(*verb.split(), "web1", expect=1)
        assert refused.stderr.count("\n") <= 3
    assert "newer chrootfw" in cli("stop", "web1", expect=1).stderr
    assert path.read_bytes() == before
    (after,) = cli.json("list")["instances"]
    assert (after["state"], after["processes"]) == ("running", shown["processes"])
    _set_version(path, 2)
    cli("stop", "web1")
    assert web1.is_gone()


def _set_version(path: Path, version: int) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))


def test_the_record_of_0_1_is_read_once_more(web1: driving.Chroot, cli: driving.Cli) -> None:
    web1.start()
    path = cli.run_dir / "web1/record.json"
    _set_version(path, 1)
    path.rename(path.with_name("intent.json"))
    assert cli.json("info", "web1")["state"] == "running"
    stopped = cli("stop", "web1", "--keep-mounted")
    assert "lost" not in stopped.stderr
    assert path.exists()
    assert not path.with_name("intent.json").exists()
    cli("stop", "web1")
    assert web1.is_gone()
