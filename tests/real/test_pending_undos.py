"""A Step that cannot be undone is shown until it is, or until it is given up by name: nothing is a dead end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import driving
import kernelview
import pytest
import roots

import chrootfw
from chrootfw import Instance, MountPoint, Step
from chrootfw.linux import deadlines

MakeChroot = Callable[..., driving.Chroot]


@attrs.frozen
class Stays(Step):
    """Make a directory; its undo fails, or does not return in time, while there is a file beside it."""

    kind = "stays"
    path: str

    def describe(self) -> str:
        return f"make {self.path}"

    def apply(self) -> Mapping[str, Any]:
        Path(self.path).mkdir()
        return {"source": self.path}

    def undo(self, record: Mapping[str, Any]) -> None:
        if Path(f"{self.path}.stays").exists():
            raise OSError(5, "Input/output error")
        if Path(f"{self.path}.waits").exists():
            raise deadlines.DeadlineExceeded(110, "no answer within 1 s", self.path)
        if Path(self.path).exists():
            Path(self.path).rmdir()


class Makes:
    """Apply it in one of the two stages that have Steps."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    @chrootfw.hookimpl
    def chrootfw_mount(self, instance: Instance) -> list[MountPoint]:
        source = Stays(str(self.path))
        return [MountPoint("/mnt", source, options=["bind"])] if self.stage == "mount" else []

    @chrootfw.hookimpl
    def chrootfw_pre_start(self, instance: Instance) -> list[Step]:
        return [Stays(str(self.path))] if self.stage == "pre-start" else []


STAGES = ["mount", "pre-start"]
#: Makes this file a module that the command can import.
HERE = str(Path(__file__).parent)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return tmp_path / "made"


def start(web1: driving.Chroot, made: Path, stage: str) -> None:
    web1.runtime.with_plugins(Makes(made, stage)).start("web1")


def with_plugin(cli: driving.Cli) -> dict[str, str]:
    return {"PYTHONPATH": f"{HERE}:{cli.environment()['PYTHONPATH']}"}


def is_shown(cli: driving.Cli, made: Path) -> bool:
    """Whether all three say that it is pending; all or none of them do."""
    (listed,) = cli.json("list")["instances"]
    found = [
        any("pending" in note for note in listed.get("notes", ())),
        any(str(made) in each for each in listed.get("pending_undos", ())),
        "pending" in cli("list").stdout,
        str(made) in cli("info", "web1").stdout,
        any("pending" in note for note in cli.json("info", "web1").get("notes", ())),
        any(
            str(made) in check["detail"] and "--forget" in check["hint"]
            for check in cli.json("verify", expect=(0, 1))["checks"]
            if check["name"] == "instance web1"
        ),
    ]
    assert len(set(found)) == 1, found
    return found[0]


def forget(cli: driving.Cli, made: Path) -> None:
    """Give it up, which names it."""
    given_up = cli("cleanup", "web1", "--forget")
    for words in ("stays", str(made), "Makes"):
        assert words in given_up.stderr, given_up
    assert not (cli.run_dir / "web1").exists()
    assert not is_shown(cli, made)


def change_record(cli: driving.Cli, **changes: object) -> None:
    record = cli.run_dir / "web1/record.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))


def of_another_boot(cli: driving.Cli) -> None:
    change_record(cli, boot_id=str(uuid.uuid4()))


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_whose_plugin_is_gone(
    web1: driving.Chroot, cli: driving.Cli, made: Path, stage: str
) -> None:
    start(web1, made, stage)
    assert not is_shown(cli, made), "it is to be undone at the stop, and nothing is wrong"

    planned = web1.cli("plan stop").stdout  # that process cannot import this file
    assert f"{stage} " in planned
    assert "problem: undo stays: ModuleNotFoundError" in planned
    assert "problem" not in web1.cli("plan stop", env=with_plugin(cli)).stdout

    web1.cli("stop", expect=1)
    assert web1.is_gone()
    assert is_shown(cli, made)
    for verb in ("stop", "cleanup", "start"):
        failed = web1.cli(verb, expect=1)
        assert "--forget" in failed.stderr
        assert web1.is_gone()
        assert is_shown(cli, made)

    forget(cli, made)
    assert made.exists()
    web1.cli("start")
    web1.cli("stop")


@pytest.mark.parametrize("stage", STAGES)
def test_an_undo_that_always_fails(
    web1: driving.Chroot, cli: driving.Cli, made: Path, stage: str
) -> None:
    start(web1, made, stage)
    made.with_suffix(".stays").touch()
    with pytest.raises(chrootfw.StepError, match="could not be undone"):
        web1.stop()
    with pytest.raises(chrootfw.StepError, match="could not be undone"):
        web1.runtime.cleanup("web1")
    assert is_shown(cli, made)
    events: list[chrootfw.Event] = []
    runtime = chrootfw.Runtime(
        run_dir=web1.runtime.run_dir, config_dir=web1.runtime.config_dir, on_event=events.append
    )

    info = runtime.cleanup("web1", forget=True)

    assert (info.state, info.notes) == ("absent", ())
    (said,) = [event.does for event in events if event.what == "warning"]
    for words in ("stays", str(made), "Makes", "Input/output error"):
        assert words in said
    assert not is_shown(cli, made)


def test_an_undo_in_the_root_that_never_returns(
    web1: driving.Chroot, cli: driving.Cli, made: Path
) -> None:
    """The root stays mounted for it, until it is given up."""
    start(web1, made, "pre-start")
    made.with_suffix(".waits").touch()
    for verb in ("stop", "cleanup"):
        held = web1.cli(verb, expect=4, env=with_plugin(cli))
        assert "cleanup web1 --forget" in held.stderr
        assert web1.state == "held"
    assert is_shown(cli, made)

    given_up = web1.cli("cleanup --forget", env=with_plugin(cli))

    assert str(made) in given_up.stderr
    assert "no answer within 1 s" in given_up.stderr
    assert web1.is_gone()
    assert not is_shown(cli, made)


@pytest.mark.parametrize("stage", STAGES)
def test_a_start_that_was_ended_and_cannot_be_undone(
    web1: driving.Chroot, cli: driving.Cli, made: Path, stage: str
) -> None:
    start(web1, made, stage)
    change_record(cli, phase="starting")
    assert not is_shown(cli, made), "it looks as if the start is under way"
    web1.cli("start", expect=1)  # that process cannot import this file
    assert web1.is_gone()
    assert is_shown(cli, made)
    forget(cli, made)


@pytest.mark.parametrize("stage", STAGES)
def test_what_can_be_undone_is_undone_and_not_given_up(
    web1: driving.Chroot, cli: driving.Cli, made: Path, stage: str
) -> None:
    start(web1, made, stage)
    web1.cli("stop", expect=1)
    again = web1.cli("cleanup --forget", env=with_plugin(cli))
    assert not again.stderr
    assert not made.exists()
    assert not (cli.run_dir / "web1").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_record_of_another_boot(
    web1: driving.Chroot, cli: driving.Cli, made: Path, stage: str
) -> None:
    start(web1, made, stage)
    web1.cli("stop", expect=1)
    of_another_boot(cli)
    assert is_shown(cli, made)
    failed = web1.cli("cleanup", expect=(0, 1))
    assert "--forget" in failed.stderr
    assert is_shown(cli, made)
    forget(cli, made)


def test_a_start_on_another_disk_does_not_drop_it(
    make_chroot: MakeChroot, cli: driving.Cli, image: Callable[..., Path], made: Path
) -> None:
    web1 = make_chroot(disk=image())
    start(web1, made, "pre-start")
    web1.cli("stop", expect=1)
    web1.define(disk=str(roots.make_image(made.with_name("other.img"), "ext4", roots.make_root)))

    refused = web1.cli("start", expect=1, says=["web1", str(web1.disk)])

    for words in ("stays", str(made), "cleanup web1 --forget"):
        assert words in refused.stderr
    assert web1.is_gone()
    assert is_shown(cli, made)
    forget(cli, made)
    web1.cli("start")
    web1.cli("stop")


def test_a_step_that_needs_its_disk_waits_for_it(
    make_chroot: MakeChroot, cli: driving.Cli, image: Callable[..., Path], made: Path
) -> None:
    """Its undo fails without the root, and would be wrong in another one."""
    web1 = make_chroot(disk=image(), resolv_conf="copy")
    web1.start()
    for pid in web1.pids():
        os.kill(pid, signal.SIGKILL)
    kernelview.wait_until(lambda: not web1.pids(), "its daemon has exited")
    subprocess.run(["umount", "--recursive", str(web1.root)], check=True)
    of_another_boot(cli)
    other = roots.make_image(made.with_name("other.img"), "ext4", roots.make_root)
    web1.define(disk=str(other))

    refused = web1.cli("start", expect=1, says=["web1", str(web1.disk)])

    assert "copy-host-file" in refused.stderr
    assert "cleanup web1 --forget" in refused.stderr
    (listed,) = cli.json("list")["instances"]
    assert any("copy-host-file" in each for each in listed["pending_undos"])
    web1.define(resolv_conf="keep")
    web1.cli("start")
    assert not (web1.root / "etc/resolv.conf.chrootfw-own").exists()
    web1.cli("stop")
    web1.define(disk=str(other))
    web1.cli("start")
    web1.cli("stop")


def test_a_start_on_a_root_that_is_mounted_does_not_drop_it(
    web1: driving.Chroot, cli: driving.Cli, made: Path
) -> None:
    """The record is of another boot, and yet something is mounted."""
    start(web1, made, "pre-start")
    web1.cli("stop", "--keep-mounted")
    of_another_boot(cli)
    web1.cli("start", expect=1)  # that process cannot import this file
    assert json.loads((cli.run_dir / "web1/record.json").read_text())["steps"]
    web1.cli("start", env=with_plugin(cli))
    assert not made.exists()
    web1.cli("stop")
    assert not (cli.run_dir / "web1").exists()


def test_nothing_is_given_up_while_it_runs(
    web1: driving.Chroot, cli: driving.Cli, made: Path
) -> None:
    start(web1, made, "pre-start")
    before = (cli.run_dir / "web1/record.json").read_bytes()
    web1.cli("cleanup --forget", expect=1, says=["it is running"])
    assert web1.state == "running"
    assert (cli.run_dir / "web1/record.json").read_bytes() == before
    web1.cli("stop", env=with_plugin(cli))


def test_what_is_held_is_not_given_up(web1: driving.Chroot, cli: driving.Cli, made: Path) -> None:
    start(web1, made, "mount")
    process = subprocess.Popen(["sleep", "1000"], cwd=web1.root)
    try:
        web1.cli("stop", expect=4)
        held = web1.cli("cleanup --forget", expect=4)
        assert str(process.pid) in held.stderr
        assert kernelview.mount_on(web1.root)
        assert is_shown(cli, made)
    finally:
        process.kill()
        process.wait()
    forget(cli, made)


def test_without_anything_pending_it_is_a_cleanup(web1: driving.Chroot, cli: driving.Cli) -> None:
    web1.start()
    web1.cli("stop", "--keep-mounted")
    cleaned = web1.cli("cleanup --forget")
    assert not cleaned.stderr
    assert cleaned.stdout == "web1 is cleaned up\n"
    assert web1.is_gone()
    assert web1.cli("cleanup --forget").stdout == "web1 is already clean\n"


def test_plugins_that_are_not_installed_any_more_are_named_together(
    web1: driving.Chroot, cli: driving.Cli
) -> None:
    """Those of one distribution went together, and most of them had nothing to do with web1."""
    web1.cli("start")
    installed = [
        {"name": name, "distribution": "acme", "version": "1.0", "band": "installed"}
        for name in ("disks", "ports")
    ]
    other = {"name": "lone", "distribution": "other", "version": "2", "band": "installed"}
    change_record(cli, plugins=[*installed, other])
    stopped = web1.cli("stop", "--json")
    warned = stopped.stderr.splitlines()
    assert [line for line in warned if "not now" in line] == [
        "chrootfw: warning: plugins disks, ports (acme 1.0) were installed when web1 was started and"
        " are not now: they are not asked",
        "chrootfw: warning: plugin lone (other 2) was installed when web1 was started and is not"
        " now: it is not asked",
    ]
    answered = [each for each in stopped.json()["warnings"] if "not now" in each["text"]]
    assert [each["instance"] for each in answered] == ["web1", "web1"]
    assert all(f"chrootfw: warning: {each['text']}" in warned for each in answered)
