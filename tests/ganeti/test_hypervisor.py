"""The class that Ganeti calls: each method, on real mounts and with Ganeti's real modules."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kernelview
import pytest
from hypervisor_fixtures import *  # noqa: F403
from hypervisor_fixtures import SCRIPT, STUBBORN, Devices, calls, state_of

RUNNING, SHUTDOWN = 0, 1
WEB1 = "web1.example.com"

Make = Callable[..., tuple[Any, Devices]]


@pytest.fixture
def web1(make_instance: Make, hyper: Any) -> Any:
    """An instance that runs."""
    instance, devices = make_instance()
    hyper().StartInstance(instance, devices, False)
    return instance


def root_of(hyper: Any, name: str = WEB1) -> Path:
    return Path(hyper.run_dir) / name / "root"


# -- start, stop, cleanup, reboot ---------------------------------------------------------------------


def test_an_instance_from_start_to_stop(make_instance: Make, hyper: Any) -> None:
    instance, devices = make_instance()
    assert hyper().GetInstanceInfo(WEB1) is None
    hyper().StartInstance(instance, devices, False)
    assert hyper().ListInstances() == [WEB1]
    assert calls(hyper, WEB1) == ["start"]
    assert hyper().StopInstance(instance, timeout=120) is None
    assert hyper().GetInstanceInfo(WEB1) is None
    assert hyper().CleanupInstance(WEB1) is None  # the stop has done it all


def test_a_start_follows_the_link_to_the_disk(
    make_instance: Make, hyper: Any, tmp_path: Path
) -> None:
    instance, [(_, disk, _)] = make_instance()
    link = tmp_path / f"{WEB1}:0"
    link.symlink_to(disk)
    hyper().StartInstance(instance, [(None, str(link), None)], False)
    assert state_of(hyper, WEB1) == RUNNING


def test_a_start_without_disks_is_refused(make_instance: Make, hyper: Any, ganeti: Any) -> None:
    instance, _ = make_instance()
    with pytest.raises(ganeti.errors.HypervisorError, match="at least one disk"):
        hyper().StartInstance(instance, [], False)


def test_of_what_is_not_here_there_is_nothing_to_stop(make_instance: Make, hyper: Any) -> None:
    instance, _ = make_instance()
    assert hyper().StopInstance(instance) is None
    assert hyper().StopInstance(None, name="never.seen.example.com", force=True) is None
    assert hyper().CleanupInstance("never.seen.example.com") is None


def test_a_stop_by_name_alone(web1: Any, hyper: Any) -> None:
    hyper().StopInstance(None, name=WEB1)
    assert hyper().GetInstanceInfo(WEB1) is None


def test_a_stop_of_nothing_is_an_error(hyper: Any, ganeti: Any) -> None:
    with pytest.raises(ganeti.errors.HypervisorError, match="neither an instance nor a name"):
        hyper().StopInstance(None)


@pytest.mark.parametrize(
    ("how", "ran"), [({}, True), ({"retry": True}, False), ({"force": True}, False)]
)
def test_the_script_stops_once_and_not_by_force(
    make_instance: Make, hyper: Any, tmp_path: Path, how: dict[str, bool], ran: bool
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    instance, devices = make_instance(
        stop="echo stop >> /mnt/stopped", extra_config=f"binds:{outside}:/mnt"
    )
    hyper().StartInstance(instance, devices, False)
    hyper().StopInstance(instance, **how)
    assert hyper().GetInstanceInfo(WEB1) is None
    assert (outside / "stopped").exists() == ran


def test_a_soft_reboot(web1: Any, hyper: Any) -> None:
    before = (root_of(hyper) / "run/daemon").read_text()
    hyper().RebootInstance(web1)
    assert (root_of(hyper) / "run/daemon").read_text() != before
    assert calls(hyper, WEB1) == ["start", "stop", "start"]
    assert state_of(hyper, WEB1) == RUNNING


def test_a_reboot_of_what_is_not_here_is_an_error(
    make_instance: Make, hyper: Any, ganeti: Any
) -> None:
    instance, _ = make_instance()
    with pytest.raises(ganeti.errors.HypervisorError, match=WEB1):
        hyper().RebootInstance(instance)


def test_started_paused_it_is_mounted_only_and_counts_as_running(
    make_instance: Make, hyper: Any
) -> None:
    instance, devices = make_instance()
    hyper().StartInstance(instance, devices, True)
    assert not (root_of(hyper) / "var/calls").exists()
    assert state_of(hyper, WEB1) == RUNNING
    assert hyper().ListInstances() == [WEB1]
    hyper().RebootInstance(instance)  # lets it go
    assert calls(hyper, WEB1) == ["start"]
    subprocess.run(["kill", (root_of(hyper) / "run/daemon").read_text().strip()], check=True)
    wait_until(lambda: state_of(hyper, WEB1) == SHUTDOWN)  # paused no more: now it has died


def wait_until(holds: Callable[[], bool]) -> None:
    """For what another process does; the test's runner ends it if it never does."""
    while not holds():
        time.sleep(0.001)


def test_a_changed_parameter_counts_from_the_next_start(make_instance: Make, hyper: Any) -> None:
    instance, devices = make_instance()
    hyper().StartInstance(instance, devices, False)
    instance.hvparams["init_script"] = "/not/there"
    assert hyper().VerifyInstance(instance) is True
    assert hyper().RestoreInstance(instance, devices) is None
    hyper().RebootInstance(instance)
    assert calls(hyper, WEB1) == ["start", "stop", "start"]
    hyper().StopInstance(instance)
    with pytest.raises(Exception, match="/not/there does not exist inside the root"):
        hyper().StartInstance(instance, devices, False)


# -- times --------------------------------------------------------------------------------------------


def test_a_stop_ends_when_its_last_process_does(make_instance: Make, hyper: Any) -> None:
    slow = "trap 'sleep 0.3; exit' TERM; while :; do sleep 0.01; done"
    instance, devices = make_instance(
        start=f'sh -c "{slow}" </dev/null >/dev/null 2>&1 &', stop=":"
    )
    hyper().StartInstance(instance, devices, False)
    hyper().StopInstance(instance, timeout=120)  # TERM alone: nothing was killed
    assert hyper().GetInstanceInfo(WEB1) is None


def escalations(
    hyper: Any, instance: Any, monkeypatch: pytest.MonkeyPatch, **how: Any
) -> list[tuple[str, float]]:
    """What a stop would signal, and how long it would wait; and how long its script may take."""
    from chrootfw.lifecycle import init_script, kill

    found: list[tuple[str, float]] = []
    run, carry_out = init_script.run, kill.execute_escalations

    def noting_run(command: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(("script", command.timeout))
        return run(command, *args, **kwargs)

    def noting_carry_out(own_processes: Any, plugin: str, steps: Any) -> None:
        found.extend((signal.Signals(step.signal).name, step.grace) for step in steps)
        carry_out(own_processes, plugin, steps)

    monkeypatch.setattr("chrootfw.lifecycle.init_script.run", noting_run)
    monkeypatch.setattr("chrootfw.lifecycle.kill.execute_escalations", noting_carry_out)
    hyper().StopInstance(instance, **how)
    return found


@pytest.mark.parametrize(
    ("timeout", "script", "grace"),
    [
        (120, 117, 2),  # the script has no time of its own
        (30, 27, 2),  # the script gets what grace and reserve leave
        (2, 1, 1),  # a part each
        (0, 0.01, 0),
    ],
)
def test_a_stop_shares_out_the_callers_time(
    make_instance: Make,
    hyper: Any,
    monkeypatch: pytest.MonkeyPatch,
    timeout: int,
    script: float,
    grace: float,
) -> None:
    instance, devices = make_instance(stop=":", extra_config="grace:2")
    hyper().StartInstance(instance, devices, False)
    found = dict(escalations(hyper, instance, monkeypatch, timeout=timeout))
    assert script - 0.5 <= found["script"] <= script
    assert grace - 1 <= found["SIGTERM"] <= grace
    assert found["script"] + found["SIGTERM"] <= max(timeout, 0.01)


@pytest.mark.parametrize(
    ("timeout", "extra", "script", "grace"),
    [
        (300, "", 289, 299),  # nothing set: the caller's time is the instance's
        (120, "", 109, 119),
        (2, "", 1, 1),
        (300, "grace:20", 279, 20),
        (300, "stop_script_timeout:30", 30, 299),
        (300, "grace:10;stop_script_timeout:60", 60, 10),  # set to what the defaults are
    ],
)
def test_times_that_are_not_set_are_the_callers(
    make_instance: Make,
    hyper: Any,
    monkeypatch: pytest.MonkeyPatch,
    timeout: int,
    extra: str,
    script: float,
    grace: float,
) -> None:
    instance, devices = make_instance(stop=":", extra_config=extra)
    hyper().StartInstance(instance, devices, False)
    found = dict(escalations(hyper, instance, monkeypatch, timeout=timeout))
    assert script - 0.5 <= found["script"] <= script
    assert grace - 1 <= found["SIGTERM"] <= grace


def test_without_a_callers_time_the_instances_own_counts(
    make_instance: Make, hyper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, devices = make_instance(stop=":")
    hyper().StartInstance(instance, devices, False)
    found = dict(escalations(hyper, instance, monkeypatch))
    assert found["script"] == 60
    assert found["SIGTERM"] == 10


@pytest.mark.parametrize("moment", ["running", "after a start that failed", "after a stop"])
def test_while_it_is_up_ganetis_own_class_cannot_mount_its_disk(
    make_instance: Make, hyper: Any, ganeti: Any, stocks: Any, moment: str
) -> None:
    """As after an upgrade of the node's Python, when Ganeti finds its own class again."""
    start = "exit 3" if "failed" in moment else None
    instance, devices = make_instance(**({"start": start} if start else {}))
    own = stocks.released()
    hyper.stock_dir = own._ROOT_DIR
    if start:
        with pytest.raises(ganeti.errors.HypervisorError):
            hyper().StartInstance(instance, devices, False)
    else:
        hyper().StartInstance(instance, devices, False)
    if moment == "after a stop":
        hyper().StopInstance(instance, timeout=30)
    place = Path(own._ROOT_DIR) / instance.name
    if moment != "running":
        assert not place.exists()
        return
    assert "chrootfw" in place.read_text()
    with pytest.raises(Exception, match="."):
        own.StartInstance(instance, devices, False)
    assert not kernelview.mounts_below(own._ROOT_DIR)
    assert len(kernelview.loops_over(devices[0][1])) == 1
    assert state_of(hyper, instance.name) is not None


def test_what_ganetis_own_class_has_mounted_is_not_started_a_second_time(
    make_instance: Make, hyper: Any, ganeti: Any, mounted: Callable[..., Path], tmp_path: Path
) -> None:
    instance, devices = make_instance()
    hyper.stock_dir = str(tmp_path / "own")
    (tmp_path / "own").mkdir()
    mounted(tmp_path / "own" / instance.name, "-t", "tmpfs", "own")
    with pytest.raises(ganeti.errors.HypervisorError, match=f"Ganeti's own class.*{instance.name}"):
        hyper().StartInstance(instance, devices, False)
    assert hyper().GetInstanceInfo(instance.name) is None


def test_an_empty_directory_of_ganetis_own_class_is_no_obstacle(
    make_instance: Make, hyper: Any
) -> None:
    instance, devices = make_instance()
    (Path(hyper.stock_dir) / instance.name).mkdir(parents=True)
    hyper().StartInstance(instance, devices, False)
    assert (Path(hyper.stock_dir) / instance.name).is_file()


def test_a_stubborn_daemon_costs_its_grace_period_and_is_killed(
    make_instance: Make, hyper: Any
) -> None:
    instance, devices = make_instance(start=STUBBORN, stop=":", extra_config="grace:0.2")
    hyper().StartInstance(instance, devices, False)
    began = time.monotonic()
    hyper().StopInstance(instance, timeout=120)
    assert time.monotonic() - began >= 0.2
    assert hyper().GetInstanceInfo(WEB1) is None


def test_ganetis_shutdown_needs_one_stop(
    make_instance: Make, hyper: Any, ganeti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, devices = make_instance(start=STUBBORN, stop=":", extra_config="grace:0.1")
    stops = []

    class Counting(hyper):  # type: ignore[misc]
        def StopInstance(self, *args: Any, **how: Any) -> None:
            stops.append(how)
            super().StopInstance(*args, **how)

    monkeypatch.setitem(ganeti.hypervisor._HYPERVISOR_MAP, "chroot", Counting)
    hyper().StartInstance(instance, devices, False)
    ganeti.backend.InstanceShutdown(instance, 120, [], store_reason=False)
    assert stops == [{"retry": False, "timeout": 120}]
    assert hyper().GetInstanceInfo(WEB1) is None


# -- looking ------------------------------------------------------------------------------------------


def test_info_has_memory_and_cpus(web1: Any, hyper: Any) -> None:
    name, number, memory, vcpus, state, times = hyper().GetInstanceInfo(WEB1)
    assert (name, number, vcpus, state) == (WEB1, 0, 3, RUNNING)
    assert memory >= 1
    assert all(
        type(value) is int for value in (memory, vcpus, state, times)
    )  # Ganeti's Haskell half takes no others
    assert hyper().GetAllInstancesInfo() == [hyper().GetInstanceInfo(WEB1)]


def test_ganetis_backend_understands_the_infos(
    web1: Any, hyper: Any, ganeti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ganeti.hypervisor._HYPERVISOR_MAP, "chroot", hyper)
    one = ganeti.backend.GetInstanceInfo(WEB1, "chroot")
    assert one["vcpus"] == 3
    assert one["state"] == RUNNING
    assert ganeti.backend.GetAllInstancesInfo(["chroot"], {"chroot": {}})[WEB1]["vcpus"] == 3
    assert ganeti.backend.GetInstanceInfo("other.example.com", "chroot") == {}
    json.dumps(one)


def test_an_instance_that_died_is_shut_down_and_not_gone(web1: Any, hyper: Any) -> None:
    subprocess.run(["kill", (root_of(hyper) / "run/daemon").read_text().strip()], check=True)
    wait_until(lambda: hyper().ListInstances() == [])
    assert (
        state_of(hyper, WEB1) == SHUTDOWN
    )  # so that a shutdown goes through StopInstance, which can fail
    hyper().StopInstance(web1)
    assert hyper().GetInstanceInfo(WEB1) is None


def test_an_instance_that_died_starts_again(
    make_instance: Make, hyper: Any, ganeti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ganeti's watcher has it done."""
    instance, devices = make_instance()
    hyper().StartInstance(instance, devices, False)
    subprocess.run(["kill", (root_of(hyper) / "run/daemon").read_text().strip()], check=True)
    wait_until(lambda: state_of(hyper, WEB1) == SHUTDOWN)
    monkeypatch.setitem(ganeti.hypervisor._HYPERVISOR_MAP, "chroot", hyper)
    monkeypatch.setattr(ganeti.backend, "_GatherAndLinkBlockDevs", lambda _instance: devices)
    ganeti.backend.StartInstance(instance, False, [], store_reason=False)
    assert state_of(hyper, WEB1) == RUNNING


def test_as_long_as_the_disk_is_not_free_a_shutdown_fails(
    make_instance: Make,
    hyper: Any,
    ganeti: Any,
    monkeypatch: pytest.MonkeyPatch,
    outside: Callable[..., Any],
) -> None:
    """A failover mounts the image elsewhere when the shutdown here says that it succeeded."""
    instance, devices = make_instance(extra_config="holders:name")
    hyper().StartInstance(instance, devices, False)
    monkeypatch.setitem(ganeti.hypervisor._HYPERVISOR_MAP, "chroot", hyper)
    holder = outside("sleep", "3600", cwd=str(root_of(hyper) / "srv"))
    with pytest.raises(ganeti.backend.RPCFail, match=f"pid {holder.pid}"):
        ganeti.backend.InstanceShutdown(instance, 120, [], store_reason=False)
    assert state_of(hyper, WEB1) == SHUTDOWN
    assert hyper().ListInstances() == [WEB1]  # gnt-cluster verify sees it, wherever it ought to be
    with pytest.raises(ganeti.backend.RPCFail, match=f"pid {holder.pid}"):
        ganeti.backend.InstanceShutdown(
            instance, 120, [], store_reason=False
        )  # again, with nothing alive
    holder.kill()
    holder.wait()
    ganeti.backend.InstanceShutdown(instance, 120, [], store_reason=False)
    assert hyper().GetInstanceInfo(WEB1) is None


def test_node_info_is_in_mebibytes(hyper: Any) -> None:
    info = hyper().GetNodeInfo()
    total = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    assert info["memory_total"] == total
    assert 0 < info["memory_free"] <= total
    assert 0 <= info["memory_dom0"] <= total
    assert info["cpu_total"] == os.cpu_count()
    assert {"cpu_nodes", "cpu_sockets", "cpu_dom0"} <= set(info)


def test_verify_finds_nothing_or_says_it(hyper: Any, run_dir: Path) -> None:
    assert hyper().Verify({}) is None
    run_dir.chmod(0o777)
    assert f"{run_dir} is writable by others" in hyper().Verify({})
    run_dir.chmod(0o755)


def test_the_console_is_asked_for_on_another_node(
    make_instance: Make, hyper: Any, ganeti: Any
) -> None:
    instance, _ = make_instance()  # nothing of it is mounted here
    node = ganeti.objects.Node(name="node2", uuid="u2", ndparams={})
    group = ganeti.objects.NodeGroup(name="group", ndparams={})
    console = hyper.GetInstanceConsole(instance, node, group, {}, {})
    assert console.Validate() is None
    assert (console.kind, console.host) == ("ssh", "node2")
    assert console.command == ["/usr/local/sbin/chrootfw-ganeti", "shell", WEB1]


def test_powercycle_asks_the_node_for_it(
    hyper: Any, ganeti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chrootfw.errors import ChrootfwError
    from chrootfw.lifecycle import powercycle

    asked = []
    monkeypatch.setattr(powercycle, "reset_machine", lambda: asked.append("reset") or "asked")
    hyper.PowercycleNode({})
    assert asked == ["reset"]

    def fail() -> str:
        raise ChrootfwError("cannot restart this machine")

    monkeypatch.setattr(powercycle, "reset_machine", fail)
    with pytest.raises(ganeti.errors.HypervisorError, match="cannot restart"):
        hyper.PowercycleNode({})


# -- memory -------------------------------------------------------------------------------------------


def test_ballooning_without_a_memory_controller_says_so(web1: Any, hyper: Any, ganeti: Any) -> None:
    group = cgroup_of(hyper)
    if (group / "memory.max").exists():
        hyper().BalloonInstanceMemory(web1, 64)
        assert (group / "memory.max").read_text().strip() == str(64 << 20)
        return
    with pytest.raises(ganeti.errors.HypervisorError, match="no memory controller"):
        hyper().BalloonInstanceMemory(web1, 64)


def cgroup_of(hyper: Any) -> Path:
    from chrootfw.state.snapshot import read_instance

    return Path(read_instance(hyper.run_dir, WEB1).groups(WEB1)[-1])


@pytest.fixture
def controlled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cgroup with a memory controller, as files: this machine's may have none."""
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.stat").write_text(f"anon {20 << 20}\nfile {99 << 20}\nkernel {2 << 20}\n")

    class Seen:
        def groups(self, name: str) -> list[str]:
            return [str(group)] if name == WEB1 else []

    seen = types.SimpleNamespace(read_instance=lambda _run_dir, _name: Seen())
    monkeypatch.setattr("chrootfw_ganeti.memory.snapshots", seen)
    monkeypatch.setattr("chrootfw_ganeti.memory.require_controller", lambda _name: None)
    return group


def test_ballooning_writes_the_limit(make_instance: Make, hyper: Any, controlled: Path) -> None:
    instance, devices = make_instance()
    hyper().BalloonInstanceMemory(instance, 64)
    assert (controlled / "memory.max").read_text() == str(64 << 20)


def test_ballooning_kills_nobody(
    make_instance: Make, hyper: Any, ganeti: Any, controlled: Path
) -> None:
    instance, devices = make_instance()
    with pytest.raises(
        ganeti.errors.HypervisorError, match="22 MiB are in use that it cannot give back"
    ):
        hyper().BalloonInstanceMemory(instance, 21)
    assert (controlled / "memory.max").read_text() == "max\n"


@pytest.mark.parametrize(
    ("wanted", "mebibytes"), [("48M", 48), ("1G", 1024), ("maxmem", 128), ("77", 77)]
)
def test_a_limit_from_the_start_on(
    make_instance: Make, hyper: Any, controlled: Path, wanted: str, mebibytes: int
) -> None:
    instance, devices = make_instance(extra_config=f"memory:{wanted}")
    hyper().StartInstance(instance, devices, False)
    assert (controlled / "memory.max").read_text() == str(mebibytes << 20)
    (controlled / "memory.max").write_text("max\n")
    hyper().RebootInstance(instance)
    assert (controlled / "memory.max").read_text() == str(mebibytes << 20)


def test_a_start_whose_limit_cannot_be_set_is_undone(
    make_instance: Make, hyper: Any, ganeti: Any, controlled: Path
) -> None:
    instance, devices = make_instance(extra_config="memory:21")
    with pytest.raises(ganeti.errors.HypervisorError, match="cannot be limited to 21 MiB"):
        hyper().StartInstance(instance, devices, False)
    assert hyper().GetInstanceInfo(WEB1) is None


# -- moving -------------------------------------------------------------------------------------------


def test_a_cold_migration(
    make_instance: Make, hyper: Any, ganeti: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_dir: Path,
    ground: Any,
) -> None:  # fmt: skip
    """Two nodes on one machine, each with a run directory of its own, in the order of Ganeti's job."""
    instance, devices = make_instance()
    instance.disks_info = ["the disk"]
    monkeypatch.setattr(ganeti.backend, "_GatherAndLinkBlockDevs", lambda _instance: devices)

    class Target(hyper):  # type: ignore[misc]
        run_dir = str(tmp_path / "target")

    Path(Target.run_dir).mkdir()
    ground.know_run_dir(Path(Target.run_dir))
    hyper().StartInstance(instance, devices, False)
    info = hyper().MigrationInfo(instance)
    assert isinstance(info, str)
    Target().AcceptInstance(instance, info, "192.0.2.2")
    assert (
        hyper().GetMigrationStatus(instance).status == ganeti.constants.HV_MIGRATION_FAILED
    )  # not yet
    hyper().MigrateInstance("cluster", instance, "192.0.2.2", False)
    assert hyper().GetMigrationStatus(instance).status == ganeti.constants.HV_MIGRATION_COMPLETED
    hyper().FinalizeMigrationSource(instance, True, False)
    Target().FinalizeMigrationDst(instance, info, True)
    assert (state_of(hyper, WEB1), state_of(Target, WEB1)) == (None, RUNNING)
    Target().FinalizeMigrationDst(instance, info, False)  # an abort takes it down again
    assert state_of(Target, WEB1) is None


def test_a_live_migration_is_refused_and_stops_nothing(web1: Any, hyper: Any, ganeti: Any) -> None:
    with pytest.raises(ganeti.errors.HypervisorError, match="--non-live"):
        hyper().MigrateInstance("cluster", web1, "192.0.2.2", True)
    hyper().FinalizeMigrationSource(web1, False, True)
    assert state_of(hyper, WEB1) == RUNNING
    assert calls(hyper, WEB1) == ["start"]


def test_an_aborted_migration_starts_on_the_source_again(
    make_instance: Make, hyper: Any, ganeti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, devices = make_instance()
    monkeypatch.setattr(ganeti.backend, "_GatherAndLinkBlockDevs", lambda _instance: devices)
    hyper().StartInstance(instance, devices, False)
    hyper().MigrateInstance("cluster", instance, "192.0.2.2", False)
    hyper().FinalizeMigrationSource(instance, False, False)
    assert state_of(hyper, WEB1) == RUNNING


def test_a_node_does_not_accept_what_it_has(web1: Any, hyper: Any, ganeti: Any) -> None:
    with pytest.raises(ganeti.errors.HypervisorError, match="on this node already"):
        hyper().AcceptInstance(web1, "", "192.0.2.1")


def test_versions_never_forbid_a_cold_move(hyper: Any) -> None:
    assert hyper.VersionsSafeForMigration("0.1.0", "9.0")
    assert hyper.CAN_MIGRATE


# -- parameters ---------------------------------------------------------------------------------------


def test_ganetis_stored_defaults_are_complete(hyper: Any) -> None:
    hyper.CheckParameterSyntax({"init_script": SCRIPT})  # all that Ganeti knows by itself
    hyper.ValidateParameters({"init_script": SCRIPT})
    assert hyper.AssessParameters({"init_script": SCRIPT}) == []


@pytest.mark.parametrize(
    ("hvparams", "says"),
    [
        ({"init_script": "relative"}, "must be an absolute normalized path"),
        ({"init_script": ""}, "required"),
        ({"kernel_path": "/x"}, "not supported"),
        ({"migration_mode": "live"}, "a chroot can only be moved non-live"),
        ({"extra_config": "grcae:3"}, "did you mean 'grace'"),
        ({"extra_config": "grace"}, "is not key:value"),
        ({"extra_config": "grace:1;grace:2"}, "given twice"),
        ({"extra_config": "grace:-1"}, "it must be within 0 and"),
        ({"extra_config": "holders:some"}, "it must be name or kill"),
        ({"extra_config": "memory:lots"}, "write a number of MiB"),
        ({"extra_config": "require_process:maybe"}, "require_process"),
        ({"extra_config": "disk:/dev/sda"}, "no parameter 'disk'"),
        ({"extra_config": "plugins:nobody"}, "no plugin 'nobody'"),
    ],
)
def test_a_wrong_parameter_is_refused_on_the_master(
    hyper: Any, ganeti: Any, hvparams: dict[str, str], says: str
) -> None:
    with pytest.raises(ganeti.errors.HypervisorError, match=says):
        hyper.CheckParameterSyntax({"init_script": SCRIPT, **hvparams})


def test_our_own_parameters_reach_the_start(
    make_instance: Make, hyper: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    instance, devices = make_instance(
        extra_config=f"binds:{data}:/srv:ro ; grace:1.5 ; read_only:false"
    )
    hyper.CheckParameterSyntax(instance.hvparams)
    hyper().StartInstance(instance, devices, False)
    record = json.loads((Path(hyper.run_dir) / WEB1 / "record.json").read_text())
    params = record["instance"]["params"]
    assert params["grace"] == 1.5
    assert params["binds"] == [f"{data}:/srv:ro"]
    assert params["holders"] == "kill"
    assert params["require_process"] is True


def test_each_own_parameter_has_a_name_that_ganeti_knows(hyper: Any, ganeti: Any) -> None:
    assert set(hyper.PARAMETERS) <= set(ganeti.constants.HVS_PARAMETERS)


@pytest.mark.parametrize("what", ["HotAddDevice", "HotDelDevice", "HotModDevice"])
def test_hotplug_is_refused_as_its_callers_expect(
    make_instance: Make, hyper: Any, ganeti: Any, what: str
) -> None:
    instance, _ = make_instance()
    with pytest.raises(ganeti.errors.HotplugError):
        getattr(hyper(), what)(instance, "disk", None, None, 0)
    with pytest.raises(ganeti.errors.HotplugError):
        hyper().HotplugSupported(instance)


# -- for all of them ----------------------------------------------------------------------------------


def test_every_method_of_the_interface_is_there(hyper: Any, ganeti: Any) -> None:
    """Each public method of Ganeti's base class that raises NotImplementedError is answered by ours."""
    import inspect

    base = ganeti.hv_base.BaseHypervisor
    bare = [
        name for name, member in inspect.getmembers(base, callable)
        if name[0].isupper() and "NotImplementedError" in inspect.getsource(member)
    ]  # fmt: skip
    assert len(bare) > 10
    for name in bare:
        assert getattr(hyper, name) is not getattr(base, name)
        ours = list(inspect.signature(getattr(hyper, name)).parameters)
        theirs = list(inspect.signature(getattr(base, name)).parameters)
        assert ours[: len(theirs)] == theirs, name


def test_nothing_but_a_hypervisor_error_leaves_it(
    make_instance: Make, hyper: Any, ganeti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, devices = make_instance()
    for failure in (
        RuntimeError("a surprise"),
        OSError(28, "No space left on device", "/run/x"),
        KeyError("x"),
    ):

        def fail(*_args: Any, failure: Exception = failure, **_how: Any) -> None:
            raise failure

        monkeypatch.setattr("chrootfw.runtime.Runtime.start", fail)
        with pytest.raises(ganeti.errors.HypervisorError) as caught:
            hyper().StartInstance(instance, devices, False)
        assert "StartInstance failed" in str(caught.value)


def test_an_error_is_one_line_with_a_hint(make_instance: Make, hyper: Any, ganeti: Any) -> None:
    instance, devices = make_instance(start="echo the reason; exit 7")
    with pytest.raises(ganeti.errors.HypervisorError) as caught:
        hyper().StartInstance(instance, devices, False)
    text = str(caught.value)
    assert "\n" not in text
    assert WEB1 in text
    assert "the reason" in text


def test_the_guards_of_a_shared_disk_are_asked(
    make_instance: Make, hyper: Any, ganeti: Any
) -> None:
    instance, devices = make_instance()
    seen = []

    class Guarded(hyper):  # type: ignore[misc]
        def before_mount(self, instance: Any, device: str) -> None:
            seen.append(("before", instance.name, device))
            if len(seen) > 1:
                raise ganeti.errors.HypervisorError("another node has it")

        def after_release(self, name: str) -> None:
            seen.append(("after", name))

    Guarded().StartInstance(instance, devices, False)
    Guarded().StopInstance(instance)
    assert seen == [("before", WEB1, devices[0][1]), ("after", WEB1)]
    with pytest.raises(ganeti.errors.HypervisorError, match="another node has it"):
        Guarded().StartInstance(instance, devices, False)
    assert hyper().GetInstanceInfo(WEB1) is None


def test_threads_of_one_daemon_do_not_disturb_each_other(make_instance: Make, hyper: Any) -> None:
    """As Ganeti 3.2 calls it, from a pool."""
    made = [make_instance(f"web{number}.example.com") for number in range(4)]
    failures: list[BaseException] = []

    def live(instance: Any, devices: Devices) -> None:
        try:
            for _ in range(2):
                hyper().StartInstance(instance, devices, False)
                assert instance.name in hyper().ListInstances()
                assert state_of(hyper, instance.name) == RUNNING
                hyper().StopInstance(instance, timeout=120)
                assert hyper().GetInstanceInfo(instance.name) is None
        except BaseException as error:
            failures.append(error)

    cwd, umask = os.getcwd(), os.umask(0o027)
    threads = [threading.Thread(target=live, args=one) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert (os.getcwd(), os.umask(umask)) == (cwd, 0o027)
