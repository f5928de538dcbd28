"""Steps that another process makes again from their record."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

import chrootfw
from chrootfw import CommandStep, Instance, MountPoint, Runtime, Step
from chrootfw.lifecycle.steps import rebuild_step
from chrootfw.state.record import StartRecord
from chrootfw.testing import RecordingRuntime


def _record_of_0_1(step: dict[str, object]) -> dict[str, object]:
    return {
        "version": 1,
        "boot_id": "b",
        "namespace": 1,
        "instance": {
            "name": "web1",
            "disk": "/srv/web1.img",
            "init_script": None,
            "params": {},
            "plugins": [],
        },
        "definition": None,
        "plugins": [],
        "phase": "started",
        "init_ran": False,
        "stop_done": False,
        "started_at": None,
        "disks": [],
        "steps": [step],
    }


def test_a_command_of_0_1_is_undone(tmp_path: Path) -> None:
    """Its class was in another module then."""
    made = tmp_path / "made"
    made.mkdir()
    found = {
        "kind": "command",
        "class": "chrootfw.steps:CommandStep",
        "arguments": {
            "command": ["mkdir", str(made)],
            "undo_command": ["rmdir", str(made)],
            "makes": str(made),
            "timeout": 60.0,
        },
        "facts": {"source": str(made)},
        "stage": "mount",
        "plugin": "mine",
        "distribution": None,
        "version": None,
    }
    record = StartRecord.from_json(_record_of_0_1(found))
    assert record is not None

    step = rebuild_step(record.steps[0])

    assert isinstance(step, CommandStep)
    step.undo(record.steps[0].to_json())
    assert not made.exists()


@pytest.mark.parametrize("reference", ["os:mkdir", "pathlib:Path"])
def test_what_is_no_step_is_not_called(tmp_path: Path, reference: str) -> None:
    """A record may name anything, and a plan makes its Steps again, too."""
    arguments = {"path": str(tmp_path / "made")} if reference == "os:mkdir" else {}
    found = {
        "kind": "mine",
        "class": reference,
        "arguments": arguments,
        "facts": {},
        "stage": "mount",
        "plugin": "mine",
        "distribution": None,
        "version": None,
    }
    (step,) = StartRecord.from_json(_record_of_0_1(found)).steps
    with pytest.raises(TypeError, match="is not a Step"):
        rebuild_step(step)
    assert not (tmp_path / "made").exists()


@attrs.frozen
class Good(Step):
    """Make a file."""

    path: str
    words: tuple[str, ...] = ()

    def describe(self) -> str:
        return f"make {self.path}"

    def apply(self) -> Mapping[str, Any]:
        Path(self.path).touch()
        return {"source": self.path}

    def undo(self, record: Mapping[str, Any]) -> None:
        Path(self.path).unlink(missing_ok=True)


@attrs.frozen
class Hidden(Good):
    """A field that is not an argument."""

    secret: str = attrs.field(default="", init=False)


@attrs.frozen
class Numbered(Good):
    """A field that is another one in JSON."""

    lines: dict[int, str] = attrs.field(factory=dict)


@attrs.frozen
class Growing(Good):
    """A field that its class changes."""

    suffix: str = attrs.field(default="", converter=lambda value: f"{value}x")


@attrs.frozen
class Rule:
    """A value with fields of its own."""

    port: int


@attrs.frozen
class Nesting(Good):
    """A field that is a mapping in JSON."""

    rule: Any = None


@attrs.frozen
class Knowing(Good):
    """The same, and its class knows how to make the value again."""

    rule: Any = attrs.field(
        default=None, converter=lambda given: Rule(**given) if isinstance(given, dict) else given
    )


@attrs.frozen
class Twice(Good):
    """Another class takes its name."""


FIRST_TWICE = Twice


@attrs.frozen
class Twice(Good):  # type: ignore[no-redef]
    """The one that has the name."""


def local(path: str) -> Step:
    @attrs.frozen
    class Local(Good):
        pass

    return Local(path)


def of_the_program(path: str) -> Step:
    return type("Script", (Good,), {"__module__": "__main__"})(path)


LOST = {
    "in a function": (local, "cannot be imported by its module and name"),
    "in the program": (of_the_program, "its class is in the program itself"),
    "another class has its name": (FIRST_TWICE, "another class has its module and name"),
    "a field is not an argument": (Hidden, "cannot be made from its recorded fields: TypeError"),
    "JSON changes a field": (lambda path: Numbered(path, (), {1: "a"}), "it has others: "),
    "a value in a value": (lambda path: Nesting(path, (), Rule(80)), "it has rule={'port': 80}"),
    "values in a list": (lambda path: Nesting(path, (), [Rule(80)]), "it has rule=[{'port': 80}]"),
    "its class changes a field": (lambda path: Growing(path, (), "a"), "it has others: "),
}


class Wants:
    """Apply a Step, as a source or before the start, and note what else was asked."""

    def __init__(self, hook: str, *steps: Step) -> None:
        self.hook, self.steps = hook, steps

    @chrootfw.hookimpl
    def chrootfw_mount(self) -> list[MountPoint]:
        sources = self.steps if self.hook == "mount" else ()
        return [MountPoint(f"/s{number}", step) for number, step in enumerate(sources)]

    @chrootfw.hookimpl
    def chrootfw_pre_start(self) -> list[Step]:
        return list(self.steps) if self.hook == "pre-start" else []


WEB1 = Instance("web1", disk="/srv/web1.img")


@pytest.mark.parametrize("hook", ["mount", "pre-start"])
@pytest.mark.parametrize("case", LOST)
def test_a_step_that_another_process_could_not_rebuild_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str, case: str
) -> None:
    make, words = LOST[case]
    good, lost = tmp_path / "good", tmp_path / "lost"
    wants = Wants(hook, Good(str(good)), make(str(lost)))
    if case == "in the program":  # it can be found there, in this process
        monkeypatch.setattr(sys.modules["__main__"], "Script", type(wants.steps[1]), raising=False)
    failed = RecordingRuntime(wants, apply_steps=True).start(WEB1, check=False)
    assert isinstance(failed.error, chrootfw.PluginError)
    assert failed.error.plugin == "Wants"
    for each in ("plugin Wants", f"{hook} for web1", words):
        assert each in failed.error.brief
    assert "top of a module" in failed.error.hint
    assert not good.exists(), "it is refused before another one is applied"
    assert not lost.exists()
    assert failed.undone
    assert bool(failed.steps) == (hook == "pre-start"), "a source is known before the mount"
    runtime = Runtime([wants], run_dir=tmp_path / "run", config_dir=tmp_path)
    with pytest.raises(chrootfw.PluginError, match="another process could not undo the step"):
        runtime.plan("start", WEB1)


@pytest.mark.parametrize("hook", ["mount", "pre-start"])
def test_a_step_of_a_module_is_applied_and_undone(tmp_path: Path, hook: str) -> None:
    good = tmp_path / "good"
    steps = Good(str(good), ("a", "b")), Knowing(str(tmp_path / "known"), (), Rule(80))
    runtime = RecordingRuntime(Wants(hook, *steps), apply_steps=True)
    runtime.start(WEB1)
    assert good.exists()
    runtime.stop("web1")
    assert not good.exists()


@attrs.frozen
class Watched(Good):
    """A Step that knows by which threads it was asked what it does."""

    def describe(self) -> str:
        THREADS.add(threading.current_thread().name)
        return f"make {self.path}"


THREADS: set[str] = set()


def test_a_step_describes_itself_where_plugins_run(tmp_path: Path) -> None:
    """The description of its mount is not another call of its code, without a time limit."""
    runtime = Runtime(
        [Wants("mount", Watched("/srv/made"))],
        run_dir=tmp_path / "run",
        config_dir=tmp_path,
        isolate_plugins=True,
    )
    plan = runtime.plan("start", WEB1).describe()
    assert "mount the result of Watched on /s0" in plan
    assert plan.count("make /srv/made") == 1
    assert THREADS == {"chrootfw-plugins"}
