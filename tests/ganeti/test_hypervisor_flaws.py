"""What is wrong with Ganeti's own class, each shown on it where that harms nobody else, and what ours does instead."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypervisor_fixtures import *  # noqa: F403
from hypervisor_fixtures import DAEMON, STUBBORN, Devices, calls, kernelview, roots, state_of

WEB1 = "web1.example.com"
RUNNING = 0

Make = Callable[..., tuple[Any, Devices]]


def root_of(hyper: Any, name: str = WEB1) -> Path:
    return Path(hyper.run_dir) / name / "root"


def test_a_normal_stop_is_a_type_error(make_instance: Make, hyper: Any, stocks: Any) -> None:
    instance, devices = make_instance()
    stocks.released().StartInstance(instance, devices, False)
    with pytest.raises(TypeError):
        stocks.released().StopInstance(instance, timeout=120)
    stocks.repaired().StopInstance(instance, timeout=120)
    stocks.repaired().CleanupInstance(WEB1)

    hyper().StartInstance(instance, devices, False)
    hyper().StopInstance(instance, timeout=120)
    assert state_of(hyper, WEB1) is None


def test_the_shutdown_loop_costs_five_seconds_or_what_the_daemon_needs(
    make_instance: Make, hyper: Any, stocks: Any, ganeti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "trap 'sleep 0.3; exit' TERM; : >/ready; while :; do sleep 0.01; done"
    daemon = f'rm -f /ready; sh -c "{slow}" </dev/null >/dev/null 2>&1 &'
    instance, devices = make_instance(
        start=f"{daemon} while [ ! -e /ready ]; do sleep 0.01; done", stop=":"
    )
    taken = {}
    for kind in (stocks.repaired, hyper):
        monkeypatch.setitem(ganeti.hypervisor._HYPERVISOR_MAP, "chroot", kind)
        kind().StartInstance(instance, devices, False)
        began = time.monotonic()
        ganeti.backend.InstanceShutdown(instance, 120, [], store_reason=False)
        taken[kind] = time.monotonic() - began
        assert kind().GetInstanceInfo(WEB1) is None
    assert taken[stocks.repaired] >= 5
    assert 0.3 <= taken[hyper] < taken[stocks.repaired]


def test_a_stop_ignores_init_script(make_instance: Make, hyper: Any, stocks: Any) -> None:
    instance, devices = make_instance()
    with_other_name(devices, "/opt/rc")
    instance.hvparams["init_script"] = "/opt/rc"
    stocks.repaired().StartInstance(instance, devices, False)
    root = stocks.place / WEB1
    with pytest.raises(Exception, match="/ganeti-chroot"):
        stocks.repaired().StopInstance(instance, timeout=10)
    stocks.repaired().StopInstance(instance, retry=True)
    wait_until(lambda: not stocks.repaired._IsDirLive(str(root)))
    stocks.repaired().CleanupInstance(WEB1)

    hyper().StartInstance(instance, devices, False)
    hyper().RebootInstance(instance)
    assert calls(hyper, WEB1)[-3:] == ["start", "stop", "start"]


def with_other_name(devices: Devices, name: str) -> None:
    """The script under another path."""
    disk = Path(devices[0][1])
    place = disk.with_suffix(".mnt")
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=True)
    try:
        (place / name[1:]).parent.mkdir(exist_ok=True)
        (place / "ganeti-chroot").rename(place / name[1:])
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.001)


def test_a_stop_script_that_fails_keeps_everything_alive(
    make_instance: Make, hyper: Any, stocks: Any
) -> None:
    instance, devices = make_instance(stop="exit 1")
    stocks.repaired().StartInstance(instance, devices, False)
    with pytest.raises(Exception, match="Can't run the chroot stop script"):
        stocks.repaired().StopInstance(instance, timeout=10)
    assert (
        stocks.repaired().GetInstanceInfo(WEB1) is not None
    )  # nobody was signalled, and Ganeti goes no further
    stocks.repaired().StopInstance(instance, force=True)
    stocks.repaired().CleanupInstance(WEB1)

    hyper().StartInstance(instance, devices, False)
    hyper().StopInstance(instance, timeout=10)
    assert state_of(hyper, WEB1) is None


def test_a_stop_script_that_hangs_is_left_behind(make_instance: Make, hyper: Any) -> None:
    instance, devices = make_instance(stop="sleep 3600", extra_config="stop_script_timeout:0.2")
    hyper().StartInstance(instance, devices, False)
    hyper().StopInstance(instance, timeout=120)
    assert state_of(hyper, WEB1) is None


def test_an_outsiders_open_file_counts_as_running(
    make_instance: Make, hyper: Any, stocks: Any, outside: Callable[..., Any], ganeti: Any
) -> None:
    instance, devices = make_instance()
    stocks.repaired().StartInstance(instance, devices, False)
    holder = outside("sleep", "3600", cwd=str(stocks.place / WEB1 / "srv"))
    stocks.repaired().StopInstance  # noqa: B018  # its fuser would end the holder: only its own script is run here
    subprocess.run(["chroot", str(stocks.place / WEB1), "/ganeti-chroot", "stop"], check=True)
    assert stocks.repaired().GetInstanceInfo(WEB1) is not None
    holder.kill()
    holder.wait()
    wait_until(lambda: not stocks.repaired().GetInstanceInfo(WEB1))
    stocks.repaired().CleanupInstance(WEB1)

    hyper().StartInstance(instance, devices, False)
    outside("sleep", "3600", cwd=str(root_of(hyper) / "srv"))
    subprocess.run(["kill", (root_of(hyper) / "run/daemon").read_text().strip()], check=True)
    wait_until(lambda: state_of(hyper, WEB1) != RUNNING)
    assert hyper().ListInstances() == []


def test_kill_reaches_all_users_of_the_mounts_and_nobody_else(
    make_instance: Make, hyper: Any, outside: Callable[..., Any], tmp_path: Path
) -> None:
    """Ganeti's semantics; but never by a path that may be another mount by now."""
    instance, devices = make_instance(start=STUBBORN, stop=":", extra_config="grace:0.1")
    other, its_devices = make_instance("web10.example.com")
    hyper().StartInstance(instance, devices, False)
    hyper().StartInstance(other, its_devices, False)
    user = outside("sleep", "3600", cwd=str(root_of(hyper) / "srv"))
    stranger = outside("sleep", "3600", cwd=str(tmp_path))
    neighbour = outside("sleep", "3600", cwd=str(root_of(hyper, other.name) / "srv"))
    hyper().StopInstance(instance, timeout=120)
    assert user.wait() < 0
    assert stranger.poll() is None
    assert neighbour.poll() is None
    assert hyper().ListInstances() == [other.name]


def test_with_the_root_unmounted_nobody_is_killed(
    make_instance: Make, hyper: Any, outside: Callable[..., Any], tmp_path: Path
) -> None:
    """Ganeti's ``fuser -k -m`` then ends everybody on the file system below: never run here."""
    instance, devices = make_instance()
    hyper().StartInstance(instance, devices, False)
    strangers = [outside("sleep", "3600", cwd=str(tmp_path)) for _ in range(5)]
    root = root_of(hyper)
    subprocess.run(["umount", "--recursive", "--lazy", str(root)], check=True)
    hyper().StopInstance(instance, timeout=10)
    assert [stranger.poll() for stranger in strangers] == [None] * 5


def test_a_mount_in_the_root_is_left_and_the_failure_hidden(
    make_instance: Make, hyper: Any, stocks: Any
) -> None:
    """Ganeti looks below /var/run, the mount table says /run: no mount below a root is ever found."""
    instance, devices = make_instance(start=f"mkdir -p /mnt/a; mount -t tmpfs t /mnt/a; {DAEMON}")
    real = stocks.place
    link = real.with_name("by-link")
    link.symlink_to(real)
    stocks.repaired._ROOT_DIR = str(link)
    stocks.repaired().StartInstance(instance, devices, False)
    stocks.repaired().StopInstance(instance, timeout=10)
    wait_until(lambda: not stocks.repaired().GetInstanceInfo(WEB1))
    with pytest.raises(Exception, match="Can't umount"):  # for Ganeti's backend a warning
        stocks.repaired().CleanupInstance(WEB1)
    assert kernelview.mounts_below(real)
    subprocess.run(["umount", "--recursive", str(real / WEB1)], check=True)

    hyper().StartInstance(instance, devices, False)
    hyper().StopInstance(instance, timeout=10)
    assert not kernelview.mounts_below(root_of(hyper))
    assert state_of(hyper, WEB1) is None


def test_web1_is_not_web10(make_instance: Make, hyper: Any, stocks: Any) -> None:
    """Ganeti takes a path that begins alike for one that lies below."""
    one, devices = make_instance("web1")
    ten, its_devices = make_instance(
        "web10", start=f"mkdir -p /mnt/a; mount -t tmpfs t /mnt/a; {DAEMON}"
    )
    stocks.repaired().StartInstance(one, devices, False)
    stocks.repaired().StartInstance(ten, its_devices, False)
    assert str(stocks.place / "web10/mnt/a") in stocks.repaired._GetMountSubdirs(
        str(stocks.place / "web1")
    )
    subprocess.run(["umount", str(stocks.place / "web10/mnt/a")], check=True)
    for instance in (one, ten):
        stocks.repaired().StopInstance(instance, force=True)
        stocks.repaired().CleanupInstance(instance.name)

    hyper().StartInstance(one, devices, False)
    hyper().StartInstance(ten, its_devices, False)
    hyper().StopInstance(one)
    assert kernelview.mount_on(root_of(hyper, "web10") / "mnt/a")
    assert hyper().ListInstances() == ["web10"]


def test_a_mount_point_with_a_blank(make_instance: Make, hyper: Any) -> None:
    r"""Ganeti hands ``\040`` to umount(8)."""
    instance, devices = make_instance(
        start=f"mkdir -p '/mnt/a b'; mount -t tmpfs t '/mnt/a b'; {DAEMON}"
    )
    hyper().StartInstance(instance, devices, False)
    hyper().StopInstance(instance)
    assert state_of(hyper, WEB1) is None


def test_the_directory_of_an_instance_is_left(make_instance: Make, hyper: Any, stocks: Any) -> None:
    instance, devices = make_instance()
    stocks.repaired().StartInstance(instance, devices, False)
    stocks.repaired().StopInstance(instance, force=True)
    stocks.repaired().CleanupInstance(WEB1)
    assert (stocks.place / WEB1).is_dir()

    hyper().StartInstance(instance, devices, False)
    hyper().StopInstance(instance)
    assert not (Path(hyper.run_dir) / WEB1).exists()


def test_a_start_that_fails_leaves_the_mount(
    make_instance: Make, hyper: Any, stocks: Any, ganeti: Any
) -> None:
    instance, devices = make_instance(start="exit 3")
    with pytest.raises(ganeti.errors.HypervisorError):
        stocks.repaired().StartInstance(instance, devices, False)
    assert kernelview.mount_on(stocks.place / WEB1)
    subprocess.run(["umount", str(stocks.place / WEB1)], check=True)

    with pytest.raises(ganeti.errors.HypervisorError, match="exit"):
        hyper().StartInstance(instance, devices, False)
    assert not (Path(hyper.run_dir) / WEB1).exists()


def test_a_start_that_leaves_no_process_succeeds(
    make_instance: Make, hyper: Any, stocks: Any, ganeti: Any
) -> None:
    instance, devices = make_instance(start="true")
    stocks.repaired().StartInstance(instance, devices, False)
    assert stocks.repaired().GetInstanceInfo(WEB1) is None
    stocks.repaired().CleanupInstance(WEB1)

    with pytest.raises(ganeti.errors.HypervisorError, match="left no process alive"):
        hyper().StartInstance(instance, devices, False)
    assert hyper().GetInstanceInfo(WEB1) is None
    instance.hvparams["extra_config"] = "require_process:false"
    hyper().StartInstance(instance, devices, False)


def test_another_disk_for_a_mounted_root_is_ignored(
    make_instance: Make, hyper: Any, stocks: Any, ganeti: Any
) -> None:
    instance, devices = make_instance(start="true", extra_config="require_process:false")
    other = Path(devices[0][1]).with_name("other.img")
    roots.make_image(other, "ext4", None, 8 << 20)
    second: Devices = [(None, str(other), None)]
    stocks.repaired().StartInstance(instance, devices, False)
    stocks.repaired().StartInstance(instance, second, False)  # "succeeds", on the first
    stocks.repaired().CleanupInstance(WEB1)

    hyper().StartInstance(instance, devices, False)
    with pytest.raises(ganeti.errors.HypervisorError, match="something else is mounted"):
        hyper().StartInstance(instance, second, False)


def test_an_image_that_is_mounted_is_mounted_again(
    make_instance: Make, hyper: Any, stocks: Any, ganeti: Any
) -> None:
    """Two instances, one disk: on Ganeti's class both write to it."""
    instance, devices = make_instance()
    twin = ganeti.objects.Instance(
        name="twin.example.com", hvparams=instance.hvparams, beparams=instance.beparams
    )
    stocks.repaired().StartInstance(instance, devices, False)
    with pytest.raises(ganeti.errors.HypervisorError, match="already in use"):
        hyper().StartInstance(twin, devices, False)
    stocks.repaired().StopInstance(instance, force=True)
    stocks.repaired().CleanupInstance(WEB1)
    hyper().StartInstance(instance, devices, False)
    with pytest.raises(ganeti.errors.HypervisorError, match="already in use"):
        hyper().StartInstance(twin, devices, False)


def test_the_daemons_environment_leaks(
    make_instance: Make, hyper: Any, stocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_OF_THE_NODE", "s3cret")
    instance, devices = make_instance(start=f"env > /var/env; {DAEMON}")
    stocks.repaired().StartInstance(instance, devices, False)
    assert "s3cret" in (stocks.place / WEB1 / "var/env").read_text()
    stocks.repaired().StopInstance(instance, force=True)
    stocks.repaired().CleanupInstance(WEB1)

    hyper().StartInstance(instance, devices, False)
    said = (root_of(hyper) / "var/env").read_text()
    assert "s3cret" not in said
    assert f"CHROOTFW_INSTANCE={WEB1}" in said


def test_a_start_waits_for_daemons_that_hold_the_pipe(make_instance: Make, hyper: Any) -> None:
    """Ganeti's own would come back after an hour."""
    instance, devices = make_instance(start="sleep 3600 & echo $! > /run/daemon")
    hyper().StartInstance(instance, devices, False)
    assert state_of(hyper, WEB1) == RUNNING


def test_soft_reboot_and_balloon(make_instance: Make, hyper: Any, stocks: Any, ganeti: Any) -> None:
    instance, devices = make_instance()
    with pytest.raises(ganeti.errors.HypervisorError, match="doesn't implement"):
        stocks.repaired().RebootInstance(instance)
    assert stocks.repaired().BalloonInstanceMemory(instance, 1) is None  # says success
    assert stocks.repaired.CAN_MIGRATE is False
    hyper().StartInstance(instance, devices, False)
    hyper().RebootInstance(instance)
    assert calls(hyper, WEB1) == ["start", "stop", "start"]


def test_a_stop_by_name_alone_is_an_attribute_error(
    make_instance: Make, hyper: Any, stocks: Any
) -> None:
    with pytest.raises(AttributeError):
        stocks.repaired().StopInstance(None)
    with pytest.raises(Exception, match="neither an instance nor a name"):
        hyper().StopInstance(None)


def test_the_console_looks_for_the_mount_on_the_master(
    make_instance: Make, hyper: Any, stocks: Any, ganeti: Any
) -> None:
    instance, _ = make_instance()
    node = ganeti.objects.Node(name="node2", uuid="u2", ndparams={})
    group = ganeti.objects.NodeGroup(name="group", ndparams={})
    with pytest.raises(ganeti.errors.HypervisorError, match="is not running"):
        stocks.repaired.GetInstanceConsole(instance, node, group, {}, {})
    assert hyper.GetInstanceConsole(instance, node, group, {}, {}).host == "node2"


def test_lists_do_not_look_at_proc_for_each_instance(
    make_instance: Make, hyper: Any, stocks: Any, monkeypatch: pytest.MonkeyPatch, tracking: str
) -> None:
    """Ganeti's: one fuser, and so one scan of /proc, for each."""
    looks = 0
    listdir = os.listdir

    def counting(path: Any = ".") -> list[Any]:
        nonlocal looks
        looks += os.fspath(path) in ("/proc", b"/proc")
        return listdir(path)

    for number in range(5):
        instance, devices = make_instance(f"web{number}.example.com")
        hyper().StartInstance(instance, devices, False)
    monkeypatch.setattr(os, "listdir", counting)
    assert len(hyper().GetAllInstancesInfo()) == 5
    assert len(hyper().ListInstances()) == 5
    assert looks <= (0 if tracking == "cgroup" else 2)


def test_an_error_is_text_that_ganeti_can_read(make_instance: Make, hyper: Any) -> None:
    """Ganeti's commands and jobs end with a UnicodeDecodeError at text that is not ASCII (its issues 483 and 503)."""
    instance, devices = make_instance(start="echo 'Ger\u00e4t belegt\u2026'; exit 3")
    with pytest.raises(Exception, match="exited with status 3") as failed:
        hyper().StartInstance(instance, devices, False)
    assert str(failed.value).isascii()
    assert "belegt..." in str(failed.value)
