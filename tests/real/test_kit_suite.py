"""One suite of behaviours for both kernels of the test kit: the one in memory, and the real one."""

from __future__ import annotations

import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import roots

import chrootfw
from chrootfw import Event, Instance, MountPoint, Step
from chrootfw.lifecycle.context import Job
from chrootfw.testing import Alive, RecordingRuntime

pytestmark = pytest.mark.quick

#: A daemon that TERM does not end, and a stop that ends nothing.
INIT = roots.script(roots.STUBBORN, "true")

HOLDER = 4243


@attrs.frozen
class Flag(Step):
    """A file on the host, and a directory that is bound into the root."""

    kind = "flag"
    path: str
    stays: str = ""

    def describe(self) -> str:
        return f"make {Path(self.path).name}"

    def apply(self) -> Mapping[str, Any]:
        Path(self.path).mkdir()
        return {"source": self.path}

    def undo(self, record: Mapping[str, Any]) -> None:
        if self.stays and Path(self.stays).exists():
            raise OSError(16, "Device or resource busy")
        if Path(self.path).exists():
            Path(self.path).rmdir()


class Flags:
    """A mount whose source is a Step, and a Step before the init script."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @chrootfw.hookimpl
    def chrootfw_mount(self) -> list[MountPoint]:
        return [MountPoint("/data", Flag(f"{self.place}/source"), options=["bind"])]

    @chrootfw.hookimpl
    def chrootfw_pre_start(self) -> list[Step]:
        return [Flag(f"{self.place}/flag", f"{self.place}/stays")]


class Life(ABC):
    """An instance on one of the two kernels, with the events of its last verb."""

    def __init__(self, instance: Instance, run_dir: Path, flags: Path) -> None:
        self.instance = instance
        self.run_dir = run_dir
        self.flags = flags
        self.events: list[Event] = []

    @abstractmethod
    def do(self, verb: str, **how: Any) -> chrootfw.ChrootfwError | None:
        """Carry out a verb, and return its error."""

    @abstractmethod
    def state(self) -> str:
        """Return the instance's state."""

    @abstractmethod
    def lose_record(self) -> None:
        """Lose the record of its start."""

    @abstractmethod
    def fail_at(self, number: int) -> None:
        """Let a step of the next verb fail."""

    @abstractmethod
    def held(self) -> AbstractContextManager[None]:
        """Let an outside process have its working directory in the root."""

    def started(self) -> None:
        assert self.do("start") is None
        assert self.state() == "running"

    def steps(self, what: str = "end") -> list[str]:
        """The steps that ended, in words."""
        return [
            event.does.replace(str(self.run_dir), "RUN").split(" (")[0]
            for event in self.events
            if event.what == what
        ]

    def present_flags(self) -> list[str]:
        return sorted(path.name for path in self.flags.iterdir())


class InMemory(Life):
    def __init__(self, instance: Instance, run_dir: Path, flags: Path) -> None:
        super().__init__(instance, run_dir, flags)
        daemon = Alive(ignores=[signal.SIGINT, signal.SIGTERM])
        self.runtime = RecordingRuntime(
            Flags(flags),
            root=instance.disk,
            run_dir=str(run_dir),
            directory=str(run_dir.parent),
            processes=[daemon],
            apply_steps=True,
        )

    def do(self, verb: str, **how: Any) -> chrootfw.ChrootfwError | None:
        record = getattr(self.runtime, verb)(self.instance, check=False, **how)
        self.events = list(record.events)
        assert record.error is None or isinstance(record.error, chrootfw.ChrootfwError)
        return record.error

    def state(self) -> str:
        return self.runtime.state("web1")

    def lose_record(self) -> None:
        self.runtime.lose_record("web1")

    def fail_at(self, number: int) -> None:
        self.runtime.fail_at(number)

    @contextmanager
    def held(self) -> Iterator[None]:
        self.runtime.add_process("web1", Alive(HOLDER, "sleep", why="cwd"))
        yield
        self.runtime.end_process(HOLDER)


class OnTheRealKernel(Life):
    def __init__(
        self, instance: Instance, run_dir: Path, flags: Path, patch: pytest.MonkeyPatch
    ) -> None:
        super().__init__(instance, run_dir, flags)
        self.patch = patch
        self.runtime = chrootfw.Runtime(
            [Flags(flags)],
            run_dir=run_dir,
            config_dir=run_dir.parent / "definitions",
            on_event=lambda event: self.events.append(event),
        )

    def do(self, verb: str, **how: Any) -> chrootfw.ChrootfwError | None:
        self.events = []
        try:
            getattr(self.runtime, verb)(self.instance, **how)
        except chrootfw.ChrootfwError as error:
            return error
        finally:
            self.patch.undo()
        return None

    def state(self) -> str:
        found = [each.state for each in self.runtime.list() if each.name == "web1"]
        return found[0] if found else "absent"

    def lose_record(self) -> None:
        (self.run_dir / "web1/record.json").unlink()

    def fail_at(self, number: int) -> None:
        real, begun = Job.step, iter(range(1, 1000))

        @contextmanager
        def step(job: Job, stage: Any, does: str, plugin: str = "", **how: Any) -> Iterator[Any]:
            is_due = next(begun) == number
            with real(job, stage, does, plugin, **how) as took:
                if is_due and stage != "init-start":
                    raise chrootfw.StepError(f"cannot {does}: injected failure")
                yield took
                if is_due:  # the script has run, and left its daemon
                    raise chrootfw.StepError(f"cannot {does}: injected failure")

        self.patch.setattr(Job, "step", step)

    @contextmanager
    def held(self) -> Iterator[None]:
        with subprocess.Popen(["/bin/sleep", "3600"], cwd=self.run_dir / "web1/root") as holder:
            yield
            holder.kill()


@pytest.fixture(params=["recorded", "real"])
def life(
    request: pytest.FixtureRequest,
    make_root: Callable[..., Path],
    run_dir: Path,
    config_dir: Path,
    tmp_path: Path,
) -> Life:
    disk = make_root("web1", INIT)
    instance = Instance("web1", disk=disk, params={"grace": 0.2})
    flags = tmp_path / "flags"
    flags.mkdir()
    if request.param == "recorded":
        return InMemory(instance, run_dir, flags)
    return OnTheRealKernel(instance, run_dir, flags, pytest.MonkeyPatch())


MOUNTED = ["/proc", "/sys", "/dev", "/run", "/dev/pts", "/dev/shm"]
STARTED = [
    "make source",
    "attach the tree of 8 mounts on RUN/web1/root",
    "check the root",
    "make flag",
    "run /etc/chrootfw/init start",
]


def test_a_start(life: Life) -> None:
    life.started()
    steps = life.steps()
    assert [step for step in steps if not step.startswith("mount ")] == STARTED
    places = [step.rpartition(" on ")[2] for step in steps if step.startswith("mount ")]
    assert sorted(places) == sorted(["/", "/data", *MOUNTED])
    assert life.present_flags() == ["flag", "source"]
    error = life.do("start")
    assert isinstance(error, chrootfw.TransitionError)
    assert life.state() == "running"
    assert life.do("stop", force=True) is None


def test_a_stop(life: Life) -> None:
    life.started()
    assert life.do("stop") is None
    assert life.state() == "absent"
    steps = life.steps()
    assert steps[:4] == [
        "run /etc/chrootfw/init stop",
        "SIGTERM to the own processes, then wait at most 0.2 s",
        "SIGKILL to the own processes, then wait at most 2 s",
        "undo flag",
    ]
    assert steps[-3:] == ["unmount RUN/web1/root", "undo flag", "remove RUN/web1"]
    unmounted = [step.removeprefix("unmount RUN/web1/root") for step in steps if "unmount" in step]
    assert sorted(unmounted) == sorted(["", "/data", *MOUNTED])
    assert life.present_flags() == []
    assert life.do("stop") is None
    assert life.steps() == [], "nothing is there any more"


def test_a_stop_by_force(life: Life) -> None:
    life.started()
    assert life.do("stop", force=True) is None
    assert life.steps()[0] == "SIGKILL to the own processes, then wait at most 2 s"
    assert life.state() == "absent"


def test_a_reboot(life: Life) -> None:
    life.started()
    assert life.do("reboot") is None
    assert life.state() == "running"
    steps = life.steps()
    assert "unmount RUN/web1/root" not in steps
    assert "unmount RUN/web1/root/run" in steps
    assert steps[-1] == "run /etc/chrootfw/init start"
    assert life.present_flags() == ["flag", "source"]
    assert life.do("stop", force=True) is None
    assert isinstance(life.do("reboot"), chrootfw.ChrootfwError)
    assert life.state() == "absent"


def test_a_cleanup(life: Life) -> None:
    life.started()
    assert isinstance(life.do("cleanup"), chrootfw.TransitionError)
    assert life.do("stop", keep_mounted=True) is None
    assert life.state() == "mounted"
    assert not any("unmount" in step for step in life.steps())
    assert life.do("cleanup") is None
    assert life.state() == "absent"
    assert life.present_flags() == []


def test_a_start_on_what_is_mounted(life: Life) -> None:
    life.started()
    assert life.do("stop", keep_mounted=True) is None
    life.started()
    assert "unmount RUN/web1/root/run" in life.steps()
    assert life.do("stop") is None


def test_an_instance_that_is_held(life: Life) -> None:
    life.started()
    with life.held():
        error = life.do("stop")
        assert isinstance(error, chrootfw.HeldError)
        assert [(holder.command, holder.why) for holder in error.holders] == [("sleep", "cwd")]
        assert error.brief.replace(str(life.run_dir), "RUN") == (
            "web1 is held: RUN/web1/root is busy"
        )
        assert life.state() == "held"
    assert life.do("cleanup") is None
    assert life.state() == "absent"
    assert life.present_flags() == []


def test_holders_are_killed_when_that_is_asked_for(life: Life) -> None:
    life.started()
    with life.held():
        assert life.do("stop", kill_holders=True) is None
        assert life.state() == "absent"
        assert [step.partition(" ")[0] for step in life.steps() if "SIG" in step] == [
            "SIGTERM",
            "SIGKILL",
            "SIGTERM",
        ]


def test_a_record_that_is_lost(life: Life) -> None:
    life.started()
    life.lose_record()
    assert life.do("stop") is None
    assert life.state() == "absent"
    assert "run /etc/chrootfw/init stop" in life.steps()
    assert life.present_flags() == ["flag", "source"], "only the record knew of them"
    for flag in life.flags.iterdir():
        flag.rmdir()


def test_a_step_that_cannot_be_undone_at_first(life: Life) -> None:
    life.started()
    (life.flags / "stays").touch()
    error = life.do("stop")
    assert isinstance(error, chrootfw.StepError)
    assert "could not be undone" in error.brief
    assert "undo flag" in life.steps("fail")
    (life.flags / "stays").unlink()
    assert life.do("cleanup") is None
    assert life.state() == "absent"
    assert life.present_flags() == []


def test_a_failure_at_every_step(life: Life) -> None:
    """What was done is undone, the last first, and the next start succeeds."""
    life.started()
    whole = life.steps()
    assert life.do("stop", force=True) is None
    for number, step in enumerate(whole, 1):
        life.fail_at(number)
        error = life.do("start")
        assert error is not None, step
        assert "injected failure" in str(error)
        assert life.steps("fail") == [step]
        assert life.state() == "absent", step
        assert life.present_flags() == [], step
        done = life.steps()
        assert done[: number - 1] == whole[: number - 1]
        undone = done[number - 1 :]
        assert undone[-1] == "remove RUN/web1"
        assert ("SIGKILL to the own processes" in undone) == (step == whole[-1])
        expected = [f"make {flag}" for flag in ("source", "flag")]
        tried = [each for each in whole[:number] if each in expected]
        assert undone.count("undo flag") == len(tried), step
        is_attached = any(each.startswith("attach") for each in whole[: number - 1])
        assert ("unmount RUN/web1/root" in undone) == is_attached
    life.started()
    assert life.do("stop", force=True) is None


def test_a_failure_at_every_step_of_a_reboot(life: Life) -> None:
    """Whatever fails, a stop leads back to nothing."""
    life.started()
    assert life.do("reboot") is None
    whole = life.steps()
    assert life.do("stop", force=True) is None
    for number, step in enumerate(whole, 1):
        if "undo" in step or "unmount" in step:
            continue  # what fails there is what the kernel says, not what a step says
        life.started()
        life.fail_at(number)
        life.do("reboot")
        assert life.state() in ("running", "mounted", "held"), step
        assert life.do("stop", force=True) is None, step
        assert life.state() == "absent"
        assert life.present_flags() == [], step
