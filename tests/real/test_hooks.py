"""Plugins on the real thing: each stage overridden, blamed when wrong, undone when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import driving
import kernelview
import pytest
import roots

import chrootfw
from chrootfw import Command, Escalation, Instance, MountPoint, Problem, Step

pytestmark = pytest.mark.quick


@attrs.frozen
class MakeFile(Step):
    """A step with an effect that the tests can see: a file on the host."""

    kind = "make-file"
    path: str
    fail: bool = False

    def describe(self) -> str:
        return f"make {self.path}"

    def apply(self) -> Mapping[str, Any]:
        Path(self.path).write_text("made")
        if self.fail:
            raise OSError(28, "No space left on device")
        return {"size": 4}

    def undo(self, record: Mapping[str, Any]) -> None:
        Path(self.path).unlink(missing_ok=True)


class Everything:
    """All five stages by one object, for one instance only."""

    def __init__(self, name: str, extra: str) -> None:
        self.name = name
        self.extra = extra
        self.stages: list[str] = []
        self.unmounted: list[str] = []

    def mine(self, instance: Instance) -> bool:
        return instance.name == self.name

    @chrootfw.hookimpl
    def chrootfw_mount(self, instance: Instance) -> list[MountPoint] | None:
        return [MountPoint("/mnt", "tmpfs", "tmpfs", ("size=1m",))] if self.mine(instance) else None

    @chrootfw.hookimpl
    def chrootfw_pre_start(
        self, instance: Instance, root: chrootfw.Root | None
    ) -> list[Step] | None:
        return [MakeFile(self.extra)] if self.mine(instance) else None

    @chrootfw.hookimpl
    def chrootfw_init_script(self, instance: Instance, action: str) -> Command | None:
        return (
            Command(("/bin/sh", "-c", f"{roots.STUBBORN}" if action == "start" else "true"))
            if self.mine(instance)
            else None
        )

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(self, instance: Instance) -> list[Escalation] | None:
        return [Escalation(signal.SIGKILL, 5)] if self.mine(instance) else None

    @chrootfw.hookimpl
    def chrootfw_unmount_ordering(
        self, instance: Instance, mounts: list[chrootfw.Mount]
    ) -> list[chrootfw.Mount] | None:
        if not self.mine(instance):
            return None
        order = list(reversed(mounts))
        self.unmounted += [mount.target for mount in order]
        return order

    @chrootfw.hookimpl(wrapper=True)
    def chrootfw_around_stage(self, instance: Instance, stage: str) -> Any:
        self.stages.append(f"{instance.name} {stage}")
        return (yield)


def test_one_object_overrides_all_five_stages_for_one_instance(
    make_chroot: Callable[..., driving.Chroot], runtime: chrootfw.Runtime, tmp_path: Path
) -> None:
    special, plain = make_chroot("special"), make_chroot("plain")
    plugin = Everything("special", str(tmp_path / "prepared"))
    events: list[chrootfw.Event] = []
    mine = runtime.with_plugins(plugin)
    mine.on_event = events.append
    for chroot in (special, plain):
        mine.start(chroot.name)
    assert kernelview.mount_on(special.root / "mnt") is not None
    assert kernelview.mount_on(plain.root / "mnt") is None
    assert (tmp_path / "prepared").exists()
    assert special.calls() == []
    assert plain.calls() == ["start"]
    plans = {name: mine.plan("stop", name).describe() for name in ("special", "plain")}
    assert "[Everything]" in plans["special"]
    assert "[Everything]" not in plans["plain"]
    for chroot in (special, plain):
        mine.stop(chroot.name)
    assert not (tmp_path / "prepared").exists(), "the step was not undone at the stop"
    assert "/mnt" in plugin.unmounted
    assert plugin.stages == [
        f"{name} {stage}"
        for names, stages in ((("special", "plain"), ("mount", "pre-start", "init-start")), (("special", "plain"), ("init-stop", "kill", "unmount")))
        for name in names
        for stage in stages
    ]  # fmt: skip
    kills = [
        event.does
        for event in events
        if event.stage == "kill" and event.instance == "special" and event.what == "end"
    ]
    assert len(kills) == 1
    assert kills[0].startswith("SIGKILL"), "the default strategy was used"


class BadOrder:
    """Parents before children: would unmount nothing at all."""

    @chrootfw.hookimpl
    def chrootfw_unmount_ordering(self, mounts: list[chrootfw.Mount]) -> list[chrootfw.Mount]:
        return list(mounts)


def test_an_illegal_unmount_ordering_is_refused_by_name_and_the_stop_goes_on(
    web1: driving.Chroot, runtime: chrootfw.Runtime
) -> None:
    events: list[chrootfw.Event] = []
    bad = runtime.with_plugins(BadOrder())
    bad.on_event = events.append
    bad.start("web1")
    bad.stop("web1")
    assert web1.is_gone()
    blame = [event for event in events if event.what == "plugin-error"]
    assert blame
    assert blame[0].plugin == "BadOrder"
    assert "/proc" in blame[0].does or "/dev" in blame[0].does


class Raises:
    """A plugin that breaks everywhere."""

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(self) -> Any:
        raise ZeroDivisionError("division by zero")

    @chrootfw.hookimpl
    def chrootfw_unmount_ordering(self) -> Any:
        return "deepest first"

    @chrootfw.hookimpl
    def chrootfw_event(self, event: chrootfw.Event) -> None:
        raise RuntimeError("I observe nothing")


@pytest.mark.filterwarnings("ignore")
def test_a_plugin_that_raises_never_keeps_anyone_from_stopping(
    web1: driving.Chroot, runtime: chrootfw.Runtime
) -> None:
    events: list[chrootfw.Event] = []
    bad = runtime.with_plugins(Raises())
    bad.on_event = events.append
    bad.start("web1")
    bad.stop("web1")
    assert web1.is_gone()
    assert {event.plugin for event in events if event.what == "plugin-error"} == {"Raises"}


class Refuses:
    """Two problems at once, beside those of the defaults."""

    @chrootfw.hookimpl
    def chrootfw_pre_start(self) -> list[Problem]:
        return [Problem("the moon is full"), Problem("it is Friday", "wait for Monday")]


def test_all_problems_are_reported_together_and_nothing_is_left(
    web1: driving.Chroot, runtime: chrootfw.Runtime
) -> None:
    (web1.disk / roots.INIT).chmod(0o644)
    with pytest.raises(chrootfw.PreStartError) as caught:
        runtime.with_plugins(Refuses()).start("web1")
    text = str(caught.value)
    for words in ("the moon is full", "it is Friday", "wait for Monday", "not executable"):
        assert words in text
    assert web1.is_gone()


class Prepares:
    """Two steps, the second of which may fail."""

    def __init__(self, directory: Path, *, fail: bool) -> None:
        self.directory = directory
        self.fail = fail

    @chrootfw.hookimpl
    def chrootfw_pre_start(self) -> list[Step]:
        return [
            MakeFile(str(self.directory / "first")),
            MakeFile(str(self.directory / "second"), self.fail),
        ]


def test_steps_are_undone_when_one_of_them_fails(
    web1: driving.Chroot, runtime: chrootfw.Runtime, tmp_path: Path
) -> None:
    with pytest.raises(chrootfw.StepError, match="No space left"):
        runtime.with_plugins(Prepares(tmp_path, fail=True)).start("web1")
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "second").exists()
    assert web1.is_gone()


_KILLED_BETWEEN_STEPS = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import chrootfw, test_hooks
from pathlib import Path

class Kills(test_hooks.Prepares):
    @chrootfw.hookimpl
    def chrootfw_event(self, event):
        if event.what == sys.argv[3] and event.does.endswith(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)

runtime = chrootfw.Runtime([Kills(Path(sys.argv[2]), fail=False)])
runtime.start("web1")
"""


@pytest.mark.parametrize(
    ("what", "step"), [("begin", "first"), ("end", "first"), ("begin", "second"), ("end", "second")]
)
@pytest.mark.parametrize("verb", ["stop", "cleanup", "start"])
def test_a_start_killed_between_two_steps_is_undone_from_its_record_by_another_process(
    web1: driving.Chroot, cli: driving.Cli, tmp_path: Path, what: str, step: str, verb: str
) -> None:
    here = str(Path(__file__).parent)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_BETWEEN_STEPS, here, str(tmp_path), what, step],
        env={**cli.environment(), "PYTHONPATH": f"{here}:{cli.environment()['PYTHONPATH']}"}, check=False, capture_output=True,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    record = json.loads((cli.run_dir / "web1/record.json").read_text())
    assert record["steps"], "a step is recorded before it is applied"
    web1.cli(verb, env={"PYTHONPATH": f"{here}:{cli.environment()['PYTHONPATH']}"})
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "second").exists()
    web1.cli("stop")
    assert web1.is_gone()


def test_a_step_whose_plugin_is_gone_is_kept_and_named(
    web1: driving.Chroot, runtime: chrootfw.Runtime, cli: driving.Cli, tmp_path: Path
) -> None:
    runtime.with_plugins(Prepares(tmp_path, fail=False)).start("web1")
    failed = web1.cli("stop", expect=1)  # that process cannot import this file
    assert web1.is_gone()
    assert "Prepares" in failed.stderr
    assert "make-file" in failed.stderr
    again = {"PYTHONPATH": f"{Path(__file__).parent}:{cli.environment()['PYTHONPATH']}"}
    web1.cli("cleanup", env=again)
    assert not (tmp_path / "first").exists()
    assert not (cli.run_dir / "web1").exists()


@attrs.frozen
class MakeDirectory(Step):
    """A source that is made at start and removed at stop, as a snapshot would be."""

    kind = "make-directory"
    path: str
    model: str

    def describe(self) -> str:
        return f"copy {self.model} to {self.path}"

    def apply(self) -> Mapping[str, Any]:
        subprocess.run(["cp", "--archive", self.model, self.path], check=True)
        return {"source": self.path}

    def undo(self, record: Mapping[str, Any]) -> None:
        if os.path.lexists(self.path):
            assert not kernelview.mounts_below(Path(self.path))
            subprocess.run(["rm", "--recursive", "--one-file-system", self.path], check=True)


class Copies:
    """The root is a copy, made by a step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @chrootfw.hookimpl
    def chrootfw_mount(self, instance: Instance) -> list[MountPoint]:
        return [MountPoint("/", MakeDirectory(str(self.path), str(instance.disk)))]


def test_the_source_of_the_root_may_be_a_step(
    web1: driving.Chroot, runtime: chrootfw.Runtime, tmp_path: Path
) -> None:
    mine = runtime.with_plugins(Copies(tmp_path / "copy"))
    mine.start("web1")
    mine.run("web1", ["/bin/touch", "/var/only-in-the-copy"], check=True)
    assert (tmp_path / "copy/var/only-in-the-copy").exists()
    assert not (web1.disk / "var/only-in-the-copy").exists()
    mine.stop("web1")
    assert not (tmp_path / "copy").exists()


def test_a_source_whose_plugin_is_gone_is_unmounted_kept_and_named(
    web1: driving.Chroot, runtime: chrootfw.Runtime, cli: driving.Cli, tmp_path: Path
) -> None:
    runtime.with_plugins(Copies(tmp_path / "copy")).start("web1")
    failed = web1.cli("stop", expect=1)  # that process cannot import this file
    assert web1.is_gone()
    for words in ("Copies", "test_hooks", "make-directory", str(tmp_path / "copy"), "cleanup web1"):
        assert words in failed.stderr
    assert (tmp_path / "copy").exists()
    assert [info.name for info in runtime.list()] == ["web1"]
    web1.cli(
        "cleanup", env={"PYTHONPATH": f"{Path(__file__).parent}:{cli.environment()['PYTHONPATH']}"}
    )
    assert not (tmp_path / "copy").exists()


class MakesByCommand:
    """A step of two commands before the start, and perhaps a script that fails."""

    def __init__(self, path: Path, script: str = "true") -> None:
        self.path = path
        self.script = script

    @chrootfw.hookimpl
    def chrootfw_pre_start(self) -> list[Step]:
        return [
            chrootfw.CommandStep(["mkdir", self.path], ["rm", "-r", self.path], makes=self.path)
        ]

    @chrootfw.hookimpl
    def chrootfw_init_script(self) -> Command:
        return Command(["/bin/sh", "-c", self.script])


def test_a_step_of_two_commands_is_undone_by_a_stop_and_by_a_start_that_fails(
    web1: driving.Chroot, runtime: chrootfw.Runtime, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    mine = runtime.with_plugins(MakesByCommand(made))
    mine.start("web1")
    assert made.is_dir()
    (made / "something").touch()
    mine.stop("web1")
    assert not made.exists()
    with pytest.raises(chrootfw.ScriptError):
        runtime.with_plugins(MakesByCommand(made, "false")).start("web1")
    assert not made.exists()
    assert web1.is_gone()


def test_a_step_that_refuses_what_is_there_undoes_nothing(
    web1: driving.Chroot, runtime: chrootfw.Runtime, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made/somebody's").touch()
    with pytest.raises(chrootfw.StepError, match="is there already"):
        runtime.with_plugins(MakesByCommand(tmp_path / "made")).start("web1")
    assert (tmp_path / "made/somebody's").exists()
    assert web1.is_gone()


#: The parent of the shell is chrootfw.
_KILLED_BY_ITS_STEP = """
import chrootfw

class Killed:
    @chrootfw.hookimpl
    def chrootfw_mount(self):
        make = ["sh", "-c", "mkdir {path}; kill -KILL $PPID"]
        step = chrootfw.CommandStep(make, ["rm", "-r", "{path}"], makes="{path}")
        return [chrootfw.MountPoint("/mnt", step)]
"""


@pytest.mark.parametrize("verb", ["start", "stop", "cleanup"])
def test_a_start_killed_while_the_command_of_a_step_runs_is_undone_by_the_next_verb(
    web1: driving.Chroot, tmp_path: Path, verb: str
) -> None:
    made = tmp_path / "made"
    (tmp_path / "killed.py").write_text(_KILLED_BY_ITS_STEP.replace("{path}", str(made)))
    path = {"PYTHONPATH": f"{tmp_path}:{web1._cli.environment()['PYTHONPATH']}"}
    web1.define(plugins=["killed:Killed"])
    web1.cli("start", env=path, expect=-signal.SIGKILL)
    assert made.exists()
    web1.define()
    web1.cli(verb)  # the plugin need not be there: the step is the core's
    assert not made.exists()
    web1.cli("stop")
    assert web1.is_gone()


class Overlay:
    """An overlay whose lower layer lies outside the root."""

    @chrootfw.hookimpl
    def chrootfw_mount(self, instance: Instance) -> list[MountPoint]:
        return [
            MountPoint("/", str(instance.disk), None, ("bind", "ro"), at="aux:lower"),
            MountPoint("/", "tmpfs", "tmpfs", at="aux:upper", nodes=(chrootfw.Node("up"), chrootfw.Node("work"))),
            MountPoint("/", "overlay", "overlay", ("lowerdir={aux:lower}", "upperdir={aux:upper}/up", "workdir={aux:upper}/work")),
        ]  # fmt: skip


def test_an_overlay_with_layers_outside_the_root(
    web1: driving.Chroot, runtime: chrootfw.Runtime
) -> None:
    mine = runtime.with_plugins(Overlay())
    mine.start("web1")
    mine.run("web1", ["/bin/touch", "/var/thrown-away"], check=True)
    assert (web1.root / "var/thrown-away").exists()
    assert web1.calls() == ["start"]
    mine.stop("web1")
    assert web1.calls() == []
    assert not (web1.disk / "var/thrown-away").exists()
    assert web1.is_gone()


@pytest.mark.parametrize("plugin", [Overlay, Copies], ids=["an overlay", "a step"])
def test_a_root_that_a_plugin_makes_stays_in_a_reboot_and_in_a_start_on_what_is_mounted(
    web1: driving.Chroot, runtime: chrootfw.Runtime, tmp_path: Path, plugin: Callable[..., object]
) -> None:
    mine = runtime.with_plugins(Copies(tmp_path / "copy") if plugin is Copies else plugin())
    mine.start("web1")
    mine.run("web1", ["/bin/touch", "/var/mine"], check=True)
    mine.reboot("web1")
    assert (web1.root / "var/mine").exists()
    mine.stop("web1", keep_mounted=True)
    assert mine.start("web1").state == chrootfw.InstanceState.RUNNING
    assert (web1.root / "var/mine").exists()
    mine.stop("web1")
    assert not (tmp_path / "copy").exists()
    assert web1.is_gone()


def test_a_plugin_named_in_one_definition_is_for_that_instance_alone(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    plugin, plain = make_chroot("plugin", plugins=["test_hooks:BadOrder"]), make_chroot("plain")
    env = {"PYTHONPATH": f"{Path(__file__).parent}:{cli.environment()['PYTHONPATH']}"}
    said = {}
    for chroot in (plugin, plain):
        chroot.cli("start", env=env)
        said[chroot.name] = chroot.cli("stop", env=env).stderr
    assert "BadOrder" in said["plugin"]
    assert "BadOrder" not in said["plain"]


def test_a_plugin_that_cannot_be_loaded_stops_the_start_and_nothing_else(
    make_chroot: Callable[..., driving.Chroot], cli: driving.Cli
) -> None:
    chroot = make_chroot("web1", plugins=["no_such_module:Plugin"])
    chroot.cli("start", expect=1, says=["no_such_module"])
    chroot.define()
    chroot.cli("start")
    chroot.define(plugins=["no_such_module:Plugin"])
    cli("list")
    chroot.cli("info")
    chroot.cli("stop")


class PartByCommand:
    """A part of the tree whose source a step makes, and a script of its own."""

    def __init__(self, path: Path, script: str = "/bin/sh") -> None:
        self.path = path
        self.script = script

    @chrootfw.hookimpl
    def chrootfw_mount(self) -> list[MountPoint]:
        step = chrootfw.CommandStep(["mkdir", self.path], ["rm", "-r", self.path], makes=self.path)
        return [MountPoint("/mnt", step, options=["bind"])]

    @chrootfw.hookimpl
    def chrootfw_init_script(self, action: str) -> Command:
        return Command([self.script, "-c", roots.DAEMON if action == "start" else "true"])


def test_a_reboot_makes_the_sources_of_parts_afresh(
    web1: driving.Chroot, runtime: chrootfw.Runtime, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    mine = runtime.with_plugins(PartByCommand(made))
    mine.start("web1")
    (made / "old").touch()
    mine.reboot("web1")
    assert made.is_dir()
    assert not (made / "old").exists()
    assert mine.info("web1").state == "running"
    mine.stop("web1")
    assert not made.exists()
    assert web1.is_gone()


def test_what_is_checked_before_a_start_is_the_command_that_will_run(
    web1: driving.Chroot, runtime: chrootfw.Runtime, tmp_path: Path
) -> None:
    (web1.disk / roots.INIT).unlink()
    mine = runtime.with_plugins(PartByCommand(tmp_path / "made"))
    mine.start("web1")
    mine.stop("web1")
    with pytest.raises(chrootfw.PreStartError, match="the init script /bin/nothing does not exist"):
        runtime.with_plugins(PartByCommand(tmp_path / "made", "/bin/nothing")).start("web1")
    assert web1.is_gone()


@attrs.frozen
class Slow(Step):
    """A step whose undo, and perhaps its apply, takes longer than it may; each says when it begins and ends."""

    kind = "slow"
    deadline = 0.3
    diary: str
    applies: float
    undoes: float
    fails: bool

    def describe(self) -> str:
        return "do it slowly"

    def _write(self, word: str) -> None:
        with open(self.diary, "a", encoding="utf-8") as file:
            file.write(f"{word}\n")

    def apply(self) -> None:
        self._write("apply")
        time.sleep(self.applies)
        self._write("applied")

    def undo(self, record: Mapping[str, Any]) -> None:  # noqa: ARG002
        self._write("undo")
        time.sleep(self.undoes)
        if self.fails and Path(self.diary).read_text().count("undo\n") == 1:
            self._write("failed")
            raise RuntimeError("not at the first time")
        self._write("undone")


class Slowly:
    def __init__(self, step: Slow) -> None:
        self.step = step

    @chrootfw.hookimpl
    def chrootfw_pre_start(self) -> list[Step]:
        return [self.step]


def _has(diary: Path, word: str) -> Callable[[], bool]:
    return lambda: diary.exists() and word in diary.read_text().split()


@pytest.fixture
def isolating(run_dir: Path, config_dir: Path) -> chrootfw.Runtime:
    """A runtime that leaves behind what does not come back, as the command does."""
    return chrootfw.Runtime(run_dir=run_dir, config_dir=config_dir, isolate_plugins=True)


@pytest.mark.parametrize("fails", [False, True])
def test_an_undo_that_goes_on_is_not_begun_beside_itself(
    web1: driving.Chroot, isolating: chrootfw.Runtime, tmp_path: Path, fails: bool
) -> None:
    diary = tmp_path / "diary"
    mine = isolating.with_plugins(Slowly(Slow(str(diary), 0, 2, fails)))
    mine.start("web1")
    for _ in range(3):
        with pytest.raises(chrootfw.StepError) as caught:
            mine.stop("web1")
        said = " ".join(caught.value.details)
        assert "did not come back" in said or "still being undone" in said, said
    kernelview.wait_until(_has(diary, "failed" if fails else "undone"), "the undo comes to its end")
    if fails:
        with pytest.raises(chrootfw.StepError, match="could not be undone"):
            mine.stop("web1")  # it has begun again
        kernelview.wait_until(_has(diary, "undone"), "the second undo comes to its end")
    time.sleep(0.1)
    mine.stop("web1")
    expected = ["apply", "applied", "undo", *(["failed", "undo"] if fails else []), "undone"]
    assert diary.read_text().split() == expected
    assert web1.is_gone()


def test_what_is_still_being_applied_is_not_undone_beside_it(
    web1: driving.Chroot, isolating: chrootfw.Runtime, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    mine = isolating.with_plugins(Slowly(Slow(str(diary), 2, 0, False)))
    with pytest.raises(chrootfw.StepError, match="did not come back"):
        mine.start("web1")
    with pytest.raises(chrootfw.StepError) as caught:
        mine.cleanup("web1")
    assert any("still being applied" in line for line in caught.value.details)
    kernelview.wait_until(_has(diary, "applied"), "the apply comes to its end")
    time.sleep(0.1)
    mine.cleanup("web1")
    assert diary.read_text().split() == ["apply", "applied", "undo", "undone"]
    assert web1.is_gone()


class StubbornStrategy:
    """Leave a process that ignores TERM alone for an hour, also in a forced stop."""

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(self) -> list[chrootfw.Escalation]:
        return [chrootfw.Escalation(signal.SIGTERM, 3600), chrootfw.Escalation(signal.SIGKILL, 2)]


class NoStrategy:
    """Think for an hour."""

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(self) -> None:
        time.sleep(3600)


@pytest.mark.parametrize("plugin", [StubbornStrategy, NoStrategy])
def test_a_forced_stop_kills_within_two_seconds_whatever_a_strategy_says(
    make_chroot: Callable[..., driving.Chroot], isolating: chrootfw.Runtime, plugin: type
) -> None:
    web1 = make_chroot(init=roots.script(roots.STUBBORN))
    mine = isolating.with_plugins(plugin)
    mine.start("web1")
    killed: list[float] = []

    def note(event: chrootfw.Event) -> None:
        if event.what == "begin" and "SIGKILL" in event.does:
            killed.append(time.monotonic())

    mine.on_event = note
    began = time.monotonic()
    mine.stop("web1", force=True)
    assert killed[0] - began < 4  # two seconds, where nothing else runs
    assert web1.is_gone()


# What is well formed, and does not work.


@attrs.frozen
class Failing(Step):
    kind = "failing"
    is_own: bool

    def describe(self) -> str:
        return "fail"

    def apply(self) -> None:
        if self.is_own:
            raise chrootfw.StepError("it is not today")
        subprocess.run(
            ["/bin/sh", "-c", "echo the real reason >&2; exit 2"], check=True, capture_output=True
        )

    def undo(self, record: Mapping[str, Any]) -> None:
        pass


_UNFIT: dict[str, tuple[str, Any, str]] = {
    "an option": ("mount", [MountPoint("/mnt", "tmpfs", "tmpfs", ("no=1",))], "no=1"),
    "a type": ("mount", [MountPoint("/mnt", "x", "nosuchfs")], "no file system nosuchfs"),
    "a source": (
        "mount",
        [MountPoint("/mnt", "/nosuch", None, ("bind",))],
        "/nosuch does not exist",
    ),
    "an image": ("mount", [MountPoint("/mnt", "/nosuch.img", "ext4")], "does not exist"),
    "a layer": (
        "mount",
        [MountPoint("/mnt", "overlay", "overlay", ("lowerdir={aux:nope}",))],
        "aux/nope",
    ),
    "a relative command": ("init_script", chrootfw.Command(["true"]), "absolute path"),
    "a missing command": ("init_script", chrootfw.Command(["/nosuch"]), "does not exist"),
    "a user": ("enter", chrootfw.Entry(user="nosuch"), "there is no user 'nosuch'"),
    "a Step's own error": ("pre_start", [Failing(True)], "it is not today"),
    "a Step's command": ("pre_start", [Failing(False)], "the real reason"),
}


@pytest.mark.parametrize("unfit", _UNFIT)
def test_the_plugin_is_named_where_its_well_formed_answer_does_not_work(
    unfit: str, web1: driving.Chroot, runtime: chrootfw.Runtime
) -> None:
    hook, answer, words = _UNFIT[unfit]

    class Unfit:
        __qualname__ = "Unfit"
        exec(f"@chrootfw.hookimpl\ndef chrootfw_{hook}(self): return ANSWER", {**globals(), "ANSWER": answer}, locals())  # fmt: skip

    with pytest.raises(chrootfw.ChrootfwError) as caught:
        runtime.with_plugins(Unfit).start("web1")
    assert words in str(caught.value)
    assert "plugin Unfit (test_hooks)" in str(caught.value)
    assert web1.is_gone()


class Breaks:
    @chrootfw.hookimpl
    def chrootfw_init_script(self) -> None:
        json.loads("{")


def test_an_error_names_the_line_of_the_plugin_not_of_pythons_library(
    web1: driving.Chroot, runtime: chrootfw.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = runtime.with_plugins(Breaks)
    with pytest.raises(chrootfw.PluginError) as caught:
        mine.start("web1")
    (line,) = caught.value.details
    assert line.startswith(f"{__file__}, line ")
    assert line.endswith('in chrootfw_init_script: json.loads("{")')
    assert "decoder.py" in caught.value.traceback
    monkeypatch.setenv("CHROOTFW_DEBUG", "1")
    with pytest.raises(chrootfw.PluginError) as caught:
        mine.start("web1")
    assert any("decoder.py" in line for line in caught.value.details)
