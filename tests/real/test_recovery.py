"""After a crash, or when the record of a start is lost, damaged or old: the kernel is believed, and a stop works."""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import roots
from driving import Chroot, Cli
from kernelview import is_running, mount_table, mounts_below, wait_until

import chrootfw
from chrootfw.linux import child as children
from chrootfw.linux import deadlines
from chrootfw.state.snapshot import read_instance, read_snapshot

MakeChroot = Callable[..., Chroot]


def records(instance: Chroot) -> list[Path]:
    """The files in an instance's directory: what was written down about its start."""
    return [path for path in instance.root.parent.iterdir() if path.is_file()]


def lose(record: Path) -> None:
    record.unlink()


def empty(record: Path) -> None:
    record.write_bytes(b"")


def fill_with_rubbish(record: Path) -> None:
    record.write_bytes(b"\x00\xff{rubbish")


def cut_short(record: Path) -> None:
    record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])


def make_another_value(record: Path) -> None:
    record.write_text('["not", "a", "record"]')


def empty_its_values(record: Path) -> None:
    try:
        record.write_text(json.dumps({key: None for key in json.loads(record.read_text())}))
    except ValueError:
        pass  # a log


def nest_it_too_deeply(record: Path) -> None:
    record.write_bytes(b"[" * 100_000)


def forge_what_is_inside(record: Path) -> None:
    try:
        value = json.loads(record.read_text())
    except ValueError:
        return  # a log
    record.write_text(
        json.dumps({**value, "disks": [{"kind": "image"}], "steps": [None], "entry": {"cwd": 1}})
    )


DAMAGE = [
    nest_it_too_deeply,
    forge_what_is_inside,
    lose,
    empty,
    fill_with_rubbish,
    cut_short,
    make_another_value,
    empty_its_values,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_keeps_nobody_from_looking_or_stopping(
    make_chroot: MakeChroot, image: Callable[..., Path], cli: Cli, damage: Callable[[Path], None]
) -> None:
    web1 = make_chroot(disk=image())
    web1.start()
    pids = web1.pids()
    for record in records(web1):
        damage(record)

    assert [(each["name"], each["state"]) for each in cli.json("list")["instances"]] == [
        ("web1", "running")
    ]
    assert web1.cli("info", "--json").json()["instances"][0]["state"] == "running"
    assert {each["pid"] for each in web1.cli("ps", "--json").json()["processes"]} == pids
    web1.cli("start", expect=1, says=["web1"])
    assert web1.cli("exec", "--", "/bin/echo", "hi").stdout == "hi\n"
    web1.cli("stop")
    assert web1.is_gone()
    assert web1.state == "absent"
    roots.check_image(web1.disk, "ext4")
    web1.cli("start")


@pytest.mark.parametrize("damage", DAMAGE)
def test_without_record_and_definition_a_stop_uses_no_script_and_says_so(
    web1: Chroot, damage: Callable[[Path], None]
) -> None:
    web1.start()
    for record in records(web1):
        damage(record)
    web1.definition.unlink()

    stopped = web1.cli("stop")

    assert stopped.stderr
    assert "web1" in stopped.stderr
    assert web1.calls() == ["start"]
    assert web1.is_gone()
    web1.cli("stop", expect=3, says=["web1"])


def test_with_the_record_lost_the_current_definition_counts(web1: Chroot) -> None:
    web1.start()
    for record in records(web1):
        record.unlink()
    web1.cli("stop")
    assert web1.calls() == ["start", "stop"]
    assert web1.is_gone()


def test_with_its_whole_directory_damaged_even_reboot_works(web1: Chroot) -> None:
    web1.start()
    before = web1.pids()
    for record in records(web1):
        record.write_bytes(b"rubbish")
    web1.cli("reboot")
    assert web1.state == "running"
    assert not web1.pids() & before


def test_a_record_that_somebody_else_could_write_is_not_believed(web1: Chroot) -> None:
    web1.start()
    for record in records(web1):
        record.chmod(0o666)
    refused = web1.cli("stop", expect=(0, 1))
    if refused.status == 1:
        assert str(web1.root.parent) in refused.stderr
        for record in records(web1):
            record.chmod(0o600)
        web1.cli("stop")
    assert web1.is_gone()


def of_another_boot(web1: Chroot) -> None:
    """As it is after a power failure in a run directory that survives one: the record is there, nothing else."""
    web1.start()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept = {
        record.name: record.read_text().replace(boot, str(uuid.uuid4())) for record in records(web1)
    }
    assert any("boot_id" in text for text in kept.values())
    web1.stop(force=True)
    (web1.root).mkdir(parents=True)
    for name, text in kept.items():
        record = web1.root.parent / name
        record.write_text(text)
        record.chmod(0o600)


def test_a_record_of_another_boot_is_forgotten_by_start(web1: Chroot, cli: Cli) -> None:
    of_another_boot(web1)
    assert [(each["name"], each["state"]) for each in cli.json("list")["instances"]] == [
        ("web1", "absent")
    ]
    assert web1.state == "absent"
    web1.cli("start")
    assert web1.state == "running"
    web1.cli("stop")
    assert web1.is_gone()


@pytest.mark.parametrize("verb", ["stop", "cleanup"])
def test_a_record_of_another_boot_is_forgotten_by_stop(web1: Chroot, verb: str) -> None:
    of_another_boot(web1)
    web1.cli(verb)
    assert web1.calls() == ["start"]
    assert not web1.root.parent.exists()


# -- the command is killed ------------------------------------------------------------------------------

WAITS = "/bin/sleep 3600 & touch /srv/reached; while :; do sleep 1; done"


@pytest.mark.parametrize("verb", ["stop", "stop --force", "stop --no-script"])
def test_after_a_killed_start_a_stop_cleans_up(
    make_chroot: MakeChroot, image: Callable[..., Path], cli: Cli, verb: str
) -> None:
    web1 = make_chroot(
        disk=image(init=roots.script(start=WAITS)), start_timeout=3600, stop_script_timeout=60
    )
    before = mount_table()
    starting = cli.begin("start", "web1")
    wait_until(lambda: (web1.root / "srv/reached").exists(), "the script waits")
    starting.kill()
    starting.communicate()

    assert web1.state == "running"
    web1.cli(verb)

    assert mount_table() == before
    assert web1.is_gone()
    roots.check_image(web1.disk, "ext4")


def test_after_a_killed_start_another_one_undoes_it_first(
    make_chroot: MakeChroot, cli: Cli
) -> None:
    web1 = make_chroot(init=roots.script(start=WAITS), start_timeout=3600)
    starting = cli.begin("start", "web1")
    wait_until((web1.disk / "srv/reached").exists, "the script waits")
    starting.kill()
    starting.communicate()
    before = web1.pids()
    web1.write_init(roots.script())

    web1.cli("start")

    assert web1.pids("sleep")
    assert not web1.pids() & before
    assert not any(is_running(pid) for pid in before)
    web1.cli("stop")
    assert web1.is_gone()


def test_after_a_killed_stop_another_one_ends_it(make_chroot: MakeChroot, cli: Cli) -> None:
    web1 = make_chroot(init=roots.script(stop=WAITS), stop_script_timeout=3600)
    web1.start()
    stopping = cli.begin("stop", "web1")
    wait_until((web1.disk / "srv/reached").exists, "the script waits")
    stopping.kill()
    stopping.communicate()

    web1.cli("stop --force")
    assert web1.is_gone()


def test_after_a_killed_reboot_it_can_be_stopped(make_chroot: MakeChroot, cli: Cli) -> None:
    web1 = make_chroot(init=roots.script(stop=WAITS), stop_script_timeout=3600)
    web1.start()
    rebooting = cli.begin("reboot", "web1")
    wait_until((web1.disk / "srv/reached").exists, "the script waits")
    rebooting.kill()
    rebooting.communicate()
    assert web1.state == "running"
    web1.cli("stop --no-script", "--timeout", "0.2")
    assert web1.is_gone()


def test_a_killed_command_leaves_no_lock(make_chroot: MakeChroot, cli: Cli) -> None:
    """The daemons that it started do not keep its locks either."""
    web1 = make_chroot(init=roots.script(start=WAITS), start_timeout=3600)
    starting = cli.begin("start", "web1")
    wait_until((web1.disk / "srv/reached").exists, "the script waits")
    os.kill(starting.pid, signal.SIGKILL)
    starting.communicate()
    assert web1.pids()
    web1.cli("stop", "--force", "--lock-timeout", "0")
    assert web1.is_gone()


# -- the definition changes or goes ---------------------------------------------------------------------


def test_what_was_started_is_stopped_as_it_was_started(web1: Chroot) -> None:
    web1.start()
    assert not web1.cli("info", "--json").json()["instances"][0]["definition_changed"]
    web1.define(init_script="/no/such/script", disk="/no/such/disk")
    assert web1.cli("info", "--json").json()["instances"][0]["definition_changed"] is True
    web1.cli("stop")
    assert web1.calls() == ["start", "stop"]
    assert web1.is_gone()


@pytest.mark.parametrize(
    "definition",
    [None, "this is not TOML", 'no_such_parameter = "x"'],
    ids=["gone", "broken", "wrong"],
)
def test_every_verb_works_when_the_definition_is_gone_or_broken(
    web1: Chroot, cli: Cli, definition: str | None
) -> None:
    web1.start()
    if definition is None:
        web1.definition.unlink()
    else:
        web1.definition.write_text(definition)

    assert [(each["name"], each["state"]) for each in cli.json("list")["instances"]] == [
        ("web1", "running")
    ]
    assert web1.cli("info", "--json").json()["instances"][0]["state"] == "running"
    assert web1.cli("ps", "--json").json()["processes"]
    assert web1.cli("exec", "--", "/bin/echo", "hi").stdout == "hi\n"
    web1.cli("plan stop")
    web1.cli("reboot")
    web1.cli("stop")
    assert web1.calls() == ["start", "stop", "start", "stop"]
    assert web1.is_gone()


def test_the_disk_is_renamed_while_it_runs(
    make_chroot: MakeChroot, image: Callable[..., Path]
) -> None:
    web1 = make_chroot(disk=image())
    web1.start()
    moved = web1.disk.rename(web1.disk.with_name("moved.img"))
    web1.cli("stop")
    assert not mounts_below(web1.root)
    roots.check_image(moved, "ext4")


def test_the_image_is_deleted_while_it_runs(
    make_chroot: MakeChroot, image: Callable[..., Path]
) -> None:
    web1 = make_chroot(disk=image())
    web1.start()
    web1.disk.unlink()
    web1.cli("stop")
    assert not mounts_below(web1.root)


def test_the_directory_of_the_instance_is_removed_by_hand(web1: Chroot) -> None:
    """Everything in it but the mounted root."""
    web1.start()
    for path in web1.root.parent.iterdir():
        if path != web1.root:
            subprocess.run(["rm", "-r", str(path)], check=True)
    assert web1.state == "running"
    web1.cli("stop")
    assert web1.is_gone()


def test_unmounted_by_hand(make_chroot: MakeChroot, image: Callable[..., Path]) -> None:
    """Somebody else has done our work: what is left of it is ours."""
    web1 = make_chroot(disk=image())
    web1.start()
    for pid in web1.pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: web1.state == "mounted", "its daemon is gone")
    subprocess.run(["umount", "--recursive", str(web1.root)], check=True)
    assert web1.state == "absent"
    web1.cli("start")
    assert web1.state == "running"
    web1.cli("stop")
    assert web1.is_gone()


def test_a_directory_in_the_place_of_the_record(web1: Chroot) -> None:
    web1.start()
    (record,) = (path for path in records(web1) if path.name == "record.json")
    record.unlink()
    record.mkdir()
    web1.cli("stop", expect=1, says=[str(record)])
    assert web1.is_gone()
    record.rmdir()
    web1.cli("cleanup")
    assert not web1.root.parent.exists()


def test_a_start_whose_look_into_the_root_fails_leaves_no_directory(
    runtime: chrootfw.Runtime,
    image: Callable[..., Path],
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listdir, root = os.listdir, str(run_dir / "web1" / "root")

    def fails(path: str = ".") -> list[str]:
        if path == root:
            raise OSError(5, "Input/output error", path)
        return listdir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fails)
        with pytest.raises(chrootfw.ChrootfwError, match="Input/output error"):
            runtime.start(chrootfw.Instance("web1", disk=str(image())))
    assert not (run_dir / "web1").exists()


def test_a_directory_that_a_failed_start_cannot_remove_is_told(
    runtime: chrootfw.Runtime,
    image: Callable[..., Path],
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, disk = str(run_dir / "web1" / "root"), str(image())

    def fails_there(real: Callable[..., Any]) -> Callable[..., Any]:
        def instead(path: Any = ".", **how: Any) -> Any:
            if path == root:
                raise OSError(5, "Input/output error", path)
            return real(path, **how)

        return instead

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fails_there(os.listdir))
        patch.setattr(os, "rmdir", fails_there(os.rmdir))
        with pytest.raises(chrootfw.ChrootfwError, match="cannot read the directory") as caught:
            runtime.start(chrootfw.Instance("web1", disk=disk))
    assert f"and the directory {root} stays: Input/output error" in caught.value.details
    runtime.stop("web1")
    assert not (run_dir / "web1").exists()


def test_a_call_that_is_given_up_is_not_killed_in_its_middle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An ext4 whose mount(2) is killed is left marked as to be recovered, which nobody undoes."""
    said, tell = os.pipe()
    wait = children.Child.wait_for_end
    waited: list[float | None] = []

    def fails(child: children.Child, seconds: float | None) -> bool:
        waited.append(seconds)
        if len(waited) == 1:
            raise OSError(28, "No space left on device")
        return wait(child, seconds)

    calls = deadlines.make_closing_batch([tell])
    calls.add("nanosleep", struct.pack("=qq", 0, 100_000_000), None)
    calls.add("write", tell, b"done", 4)
    monkeypatch.setattr(children.Child, "wait_for_end", fails)
    with pytest.raises(OSError, match="No space left"):
        deadlines.run_batch("something", calls, seconds=10)
    os.close(tell)
    assert os.read(said, 16) == b"done"
    os.close(said)


@pytest.mark.parametrize("where", ["the run directory", "the instance's directory"])
def test_what_is_mounted_over_a_directory_of_ours_hides_no_mount(
    web1: Chroot, run_dir: Path, mounted: Callable[..., Path], where: str
) -> None:
    web1.start()
    assert read_instance(str(run_dir), "web1").is_mounted("web1")
    mounted(
        run_dir if where == "the run directory" else run_dir / "web1",
        "-t",
        "tmpfs",
        "-o",
        "mode=755",
        "tmpfs",
    )
    for snapshot in (read_instance(str(run_dir), "web1"), read_snapshot(str(run_dir))):
        assert snapshot.is_mounted("web1")
        assert snapshot.is_present("web1")


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ECHILD, errno.EMFILE])
def test_an_unmount_for_which_there_is_no_child_is_an_error_that_says_so(
    web1: Chroot, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    web1.start()
    carry_out = deadlines.run_batch

    def fail(what: str, *arguments: Any, **how: Any) -> None:
        if what == "unmount":
            raise OSError(code, os.strerror(code))
        carry_out(what, *arguments, **how)

    with monkeypatch.context() as patched:
        patched.setattr(deadlines, "run_batch", fail)
        with pytest.raises(chrootfw.StepError, match=f"web1: {os.strerror(code)}"):
            web1.runtime.stop("web1")
    web1.cli("cleanup")
    assert web1.is_gone()


def test_a_start_that_was_killed_before_it_had_its_disk_keeps_nobody_from_it(
    make_chroot: MakeChroot, image: Callable[..., Path], cli: Cli
) -> None:
    """Its record names the image, which another instance has mounted since."""
    disk = image()
    web1, web2 = make_chroot("web1", disk=disk), make_chroot("web2", disk=disk)
    program = (
        "import os, chrootfw\n"
        "from chrootfw.lifecycle import mount as mounting\n"
        "mounting._record_device = lambda *_: os._exit(9)\n"
        "chrootfw.Runtime().start('web1')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=cli.environment(), check=False)
    assert done.returncode == 9
    assert records(web1)
    web2.cli("start")
    web1.cli("cleanup")
    assert not web1.root.parent.exists()
    assert web2.state == "running"
    web2.cli("stop")
    roots.check_image(disk, "ext4")
