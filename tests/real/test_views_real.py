"""What is shown: list, info, ps, node, verify, plan, plugins, parameters, and errors as JSON."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import roots
from driving import Chroot, Cli
from kernelview import mount_table, mounts_below, processes_of_the_tests, wait_until

import chrootfw

MakeChroot = Callable[..., Chroot]


def test_an_empty_list(cli: Cli) -> None:
    assert cli.json("list") == {"version": 1, "instances": [], "warnings": []}
    cli("list")


def test_a_list_before_the_run_directory_is_made(cli: Cli, run_dir: Path, config_dir: Path) -> None:
    run_dir.rmdir()
    config_dir.rmdir()
    assert cli.json("list")["instances"] == []
    assert not run_dir.exists()


def test_list_shows_what_is_present_and_what_is_defined(make_chroot: MakeChroot, cli: Cli) -> None:
    running, mounted, absent, undefined = (
        make_chroot(name) for name in ("running", "mounted", "absent", "undefined")
    )
    running.start()
    mounted.cli("start", "--no-init")
    undefined.start()
    undefined.definition.unlink()

    shown = {each["name"]: each["state"] for each in cli.json("list")["instances"]}

    assert shown == {
        "running": "running",
        "mounted": "mounted",
        "absent": "absent",
        "undefined": "running",
    }
    for name, state in shown.items():
        assert any(name in line and state in line for line in cli("list").stdout.splitlines())
    assert absent.calls() == []


def test_the_librarys_list_is_of_what_the_command_shows(
    make_chroot: MakeChroot, runtime: chrootfw.Runtime, cli: Cli
) -> None:
    for name in ("web1", "web2"):
        make_chroot(name).start()
    ours = [(each.name, each.state, each.processes) for each in runtime.list()]
    assert ours == [("web1", "running", 1), ("web2", "running", 1)]
    assert [
        (each["name"], each["state"], each["processes"]) for each in cli.json("list")["instances"]
    ] == ours


INSTANCE: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "state": str,
    "root": str,
    "disk": str,
    "processes": int,
    "memory_bytes": int,
    "memory_source": str,
    "cpu_seconds": (int, float),
    "started_at": str,
    "tracking": str,
}


def has_shape(value: dict[str, Any], shape: dict[str, Any]) -> bool:
    return all(
        isinstance(value[key], expected) and not isinstance(value[key], bool)
        for key, expected in shape.items()
    )


def test_what_list_says_of_one(web1: Chroot, cli: Cli, tracking: str) -> None:
    before = datetime.datetime.now(datetime.UTC)
    web1.start()
    (listed,) = cli.json("list")["instances"]
    assert has_shape(listed, INSTANCE)
    assert listed["holders"] is None
    assert (listed["name"], listed["state"], listed["tracking"]) == ("web1", "running", tracking)
    assert (listed["root"], listed["disk"], listed["processes"]) == (
        str(web1.root),
        str(web1.disk),
        1,
    )
    assert listed["memory_bytes"] > 0
    assert listed["memory_source"] in ("cgroup v2", "cgroup v1", "processes")
    started = datetime.datetime.fromisoformat(listed["started_at"])
    assert before.replace(microsecond=0) <= started <= datetime.datetime.now(datetime.UTC)


def test_what_info_says(web1: Chroot) -> None:
    web1.start()
    (info,) = web1.cli("info", "--json").json()["instances"]
    assert has_shape(info, INSTANCE)
    assert info["holders"] == []
    assert info["definition_changed"] is False
    mounts = {mount["target"]: mount for mount in info["mounts"]}
    assert {"/", "/proc", "/sys", "/dev", "/run"} <= mounts.keys()
    assert len(info["mounts"]) == len(mounts_below(web1.root))
    for mount in info["mounts"]:
        assert {"target", "source", "fstype", "options"} <= mount.keys()
    assert mounts["/proc"]["fstype"] == "proc"
    told = web1.cli("info").stdout
    for words in ("web1", "running", str(web1.root), str(web1.disk), "/proc"):
        assert words in told


def test_info_of_what_is_absent(web1: Chroot) -> None:
    (info,) = web1.cli("info", "--json").json()["instances"]
    assert (info["name"], info["state"], info["processes"]) == ("web1", "absent", 0)
    assert info["mounts"] == []
    assert "absent" in web1.cli("info").stdout


@pytest.mark.parametrize("verb", ["list", "info web1"])
def test_a_definition_that_is_not_valid_is_told_of(web1: Chroot, cli: Cli, verb: str) -> None:
    web1.definition.write_text(f'disk = "{web1.disk}"\nbinds = ["/srv:/srv\n')
    told = cli(*verb.split())
    shown = told.stderr if verb == "list" else told.stdout
    assert f"it cannot be started: the definition {web1.definition} is not valid TOML" in shown
    (info,) = cli(*verb.split(), "--json").json()["instances"]
    assert "line 2" in info["notes"][0]
    web1.define()
    assert "cannot" not in cli(*verb.split()).stderr + cli(*verb.split()).stdout


def test_ps(web1: Chroot, cli: Cli, tracking: str) -> None:
    web1.start()
    web1.runtime.run("web1", ["/bin/sh", "-c", "exec > /dev/null 2>&1; sleep 3600 &"], check=True)
    processes = web1.cli("ps", "--json").json()["processes"]
    assert {(each["command"], each["user"], each["why"]) for each in processes} == {
        ("sleep", "root", tracking)
    }
    assert {each["pid"] for each in processes} == web1.pids()
    assert len(processes) == 2
    told = web1.cli("ps").stdout
    assert all(str(pid) in told for pid in web1.pids())


def test_ps_of_what_is_absent_or_mounted(web1: Chroot) -> None:
    assert web1.cli("ps", "--json").json()["processes"] == []
    web1.cli("start", "--no-init")
    assert web1.cli("ps", "--json").json()["processes"] == []


def test_memory_and_time_are_counted(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(start="/bin/sh -c 'while :; do :; done' &"))
    web1.start()
    wait_until(lambda: (web1.runtime.info("web1").cpu_seconds or 0) > 0.05, "it used the processor")
    info = web1.runtime.info("web1")
    assert info.memory_bytes
    assert info.memory_bytes > 4096


def test_node(web1: Chroot, cli: Cli) -> None:
    web1.start()
    node = cli.json("node")
    told = json.dumps(node)
    assert "cpus" in told
    assert "memory_total_mib" in told
    assert cli("node").stdout
    info = web1.runtime.node_info()
    assert info.cpus == os.cpu_count()
    assert info.memory_total_mib > info.memory_free_mib > 0
    assert (info.instances, info.running) == (1, 1)


def test_verify(web1: Chroot, cli: Cli, tracking: str) -> None:
    web1.start()
    verified = cli.json("verify", expect=(0, 1))
    for check in verified["checks"]:
        assert {"name", "status", "detail", "hint"} <= check.keys()
        assert check["status"] in ("ok", "warning", "error")
    assert verified["checks"]
    assert not [check for check in verified["checks"] if check["status"] == "error"]
    assert any(tracking in check["detail"] for check in verified["checks"])
    assert cli("verify").stdout


def test_verify_finds_what_is_wrong(cli: Cli, run_dir: Path) -> None:
    run_dir.chmod(0o777)
    verified = cli.json("verify", expect=1)
    assert any(
        str(run_dir) in check["detail"]
        for check in verified["checks"]
        if check["status"] == "error"
    )


def test_verify_does_not_change_anything(web1: Chroot, cli: Cli, run_dir: Path) -> None:
    before = (mount_table(), sorted(run_dir.iterdir()), processes_of_the_tests())
    cli("verify", expect=(0, 1))
    assert (mount_table(), sorted(run_dir.iterdir()), processes_of_the_tests()) == before


# -- plans ----------------------------------------------------------------------------------------------


def everything(run_dir: Path, instance: Chroot) -> tuple[object, ...]:
    """Whatever a plan could touch."""
    files = (
        sorted((str(path), path.lstat().st_mtime_ns) for path in instance.root.parent.glob("*"))
        if instance.root.parent.exists()
        else []
    )
    return (
        mount_table(),
        processes_of_the_tests(),
        files,
        sorted(path.name for path in run_dir.iterdir() if path.name != ".locks"),
    )


def test_a_plan_to_start_touches_nothing(
    make_chroot: MakeChroot, image: Callable[..., Path], run_dir: Path
) -> None:
    web1 = make_chroot(disk=image())
    before = everything(run_dir, web1)
    planned = web1.cli("plan start", "--json").json()["steps"]
    told = web1.cli("plan start").stdout
    with_installed = chrootfw.Runtime(  # as the command
        discover=True, run_dir=run_dir, config_dir=web1.runtime.config_dir
    )
    assert with_installed.plan("start", "web1").describe() == told.rstrip("\n")
    assert everything(run_dir, web1) == before

    for step in planned:
        assert {"stage", "does", "plugin"} <= step.keys()
    stages = list(dict.fromkeys(step["stage"] for step in planned))
    assert stages == ["mount", "pre-start", "init-start"]
    for words in (str(web1.disk), "/proc", "/etc/chrootfw/init"):
        assert any(words in step["does"] for step in planned)
        assert words in told
    assert {step["plugin"] for step in planned} <= {
        "",
        *(plugin["name"] for plugin in web1.cli("plugins", "--json").json()["plugins"]),
    }


def test_a_plan_to_stop_touches_nothing(web1: Chroot, run_dir: Path) -> None:
    web1.start()
    before = everything(run_dir, web1)
    planned = web1.cli("plan stop", "--json").json()["steps"]
    told = web1.cli("plan stop").stdout
    assert web1.runtime.plan("stop", "web1").describe() == told.rstrip("\n")
    assert everything(run_dir, web1) == before
    assert web1.calls() == ["start"]

    stages = list(dict.fromkeys(step["stage"] for step in planned))
    assert stages == ["init-stop", "kill", "unmount"]
    assert sum(step["stage"] == "unmount" for step in planned) >= len(mounts_below(web1.root))


class Adds:
    """Add a layer, a Step and a command with line breaks."""

    @chrootfw.hookimpl
    def chrootfw_mount(self) -> list[chrootfw.MountPoint]:
        return [
            chrootfw.MountPoint("/mnt", "tmpfs", "tmpfs"),
            chrootfw.MountPoint("/", "tmpfs", "tmpfs", at="aux:layer"),
        ]

    @chrootfw.hookimpl
    def chrootfw_pre_start(self) -> list[chrootfw.Step]:
        return [chrootfw.CommandStep(["/bin/true", "a\nb"], ["/bin/true"], makes="/dev/null/no")]

    @chrootfw.hookimpl
    def chrootfw_init_script(self, action: str) -> chrootfw.Command:
        return chrootfw.Command(["/bin/sh", "-c", "sleep 100 &\n", action])


class Leaves(Adds):
    @chrootfw.hookimpl
    def chrootfw_pre_start(self) -> None:
        return None


def test_a_plan_is_what_happens_in_the_same_words_and_order(
    web1: Chroot, runtime: chrootfw.Runtime
) -> None:
    mine = runtime.with_plugins(Leaves)
    done: list[tuple[str, str]] = []

    def note(event: chrootfw.Event) -> None:
        if event.what == "begin":
            done.append((event.stage, event.does))

    mine.on_event = note
    plan = mine.plan("start", "web1")
    mine.start("web1")
    _, *planned = [(step.stage, step.does) for step in plan.steps if step.does != "will be checked"]
    assert planned == [step for step in done if step != ("pre-start", "check the root")]
    done.clear()
    plan = mine.plan("stop", "web1")
    mine.stop("web1")
    planned = [(step.stage, step.does.removesuffix(" (1 now)")) for step in plan.steps]
    assert [step for step in planned if step in done] == done


def test_a_plan_has_a_line_for_each_step_and_checks_come_before_steps(
    web1: Chroot, runtime: chrootfw.Runtime
) -> None:
    plan = runtime.with_plugins(Adds).plan("start", "web1")
    assert len(plan.describe().splitlines()) == len(plan.steps) + 1
    pre_start = [step.does for step in plan.steps if step.stage == "pre-start"]
    assert pre_start[-1].startswith("/bin/true")
    assert set(pre_start[:-1]) == {"will be checked"}


def test_a_plan_says_that_a_disk_is_missing(runtime: chrootfw.Runtime) -> None:
    plan = runtime.plan("start", chrootfw.Instance("web1", disk="/nosuch.img"))
    assert ("mount", "problem: the disk /nosuch.img does not exist") in [
        (step.stage, step.does) for step in plan.steps
    ]


def test_a_plan_to_start_what_runs_is_refused_and_one_to_stop_what_is_absent_is_empty(
    web1: Chroot,
) -> None:
    assert web1.cli("plan stop", "--json").json()["steps"] == []
    web1.start()
    web1.cli("plan start", expect=(0, 1))
    assert web1.calls() == ["start"]


def test_plugins_and_parameters(web1: Chroot, cli: Cli) -> None:
    told = cli("plugins").stdout
    assert "chrootfw_defaults" in told
    assert json.loads(cli("plugins", "--json").stdout)["version"] == 1
    web1.cli("plugins")
    told = cli("parameters").stdout
    for name in ("disk", "init_script", "grace", "holders", "binds", "min_free"):
        assert name in told
    assert cli.json("parameters")


@pytest.mark.parametrize(
    "argv", [["info", "nobody"], ["stop", "nobody"], ["ps", "nobody"], ["info", "no/name"]]
)
def test_an_error_as_json(cli: Cli, argv: list[str]) -> None:
    failed = cli(*argv, "--json", expect=(2, 3))
    error = failed.json()["error"]
    assert {"kind", "brief", "details", "hint"} <= error.keys()
    assert argv[1] in error["brief"]
    assert issubclass(getattr(chrootfw, error["kind"]), chrootfw.ChrootfwError)


def test_the_version(cli: Cli) -> None:
    assert chrootfw.__version__ in cli("--version").stdout
