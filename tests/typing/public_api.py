"""Read by mypy, never run: the types of the public names are part of what is promised."""

from __future__ import annotations

import subprocess
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, assert_never, assert_type

import attrs

import chrootfw
from chrootfw import (
    Command,
    Entry,
    Escalation,
    Instance,
    Mount,
    MountPoint,
    Omit,
    Parameter,
    Problem,
    Process,
    Root,
    Step,
)


def embeds(runtime: chrootfw.Runtime) -> None:
    web1 = Instance("web1", disk="/srv/web1.img", init_script=False, params={"grace": 1})
    assert_type(web1.name, str)
    assert_type(web1.disk, str | None)
    assert_type(runtime.start(web1), chrootfw.InstanceInfo)
    assert_type(runtime.list(), list[chrootfw.InstanceInfo])
    assert_type(runtime.info("web1").state, chrootfw.InstanceState)
    assert_type(runtime.processes("web1"), list[Process])
    assert_type(runtime.run("web1", ["/bin/true"]), subprocess.CompletedProcess[Any])
    assert_type(runtime.plan("stop", "web1").describe(), str)
    assert_type(runtime.plan("stop", "web1").steps[0].stage, chrootfw.Stage)
    assert_type(runtime.verify(), list[chrootfw.Check])
    assert_type(runtime.node_info().memory_total_mib, int)
    assert_type(runtime.with_plugins(object()), chrootfw.Runtime)
    with runtime.running(web1) as chroot:
        assert_type(chroot.root, str)
    runtime.stop(
        "web1", force=True, timeout=1, run_script=False, keep_mounted=True, kill_holders=True
    )
    assert_type(runtime.cleanup("web1", forget=True).pending_undos, tuple[str, ...])
    runtime.plan("restart", "web1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # start or stop


def tells(error: chrootfw.ChrootfwError) -> tuple[str, tuple[str, ...], str]:
    return error.brief, error.details, error.hint


def shows(event: chrootfw.Event) -> str:
    """Every kind of event and every stage is known: a match that forgets one is found."""
    assert_type(event.stage, chrootfw.Stage | Literal[""])
    what: chrootfw.EventKind = event.what
    match what:
        case "begin":
            return event.does
        case "end" | "fail":
            return f"{event.does}: {event.seconds:.3f} s {event.error}"
        case "output":
            return event.output.decode()
        case "warning" | "plugin-error":
            return event.error or event.does
        case _:
            assert_never(what)


def watches() -> chrootfw.Runtime:
    chrootfw.Event("done", "web1", "mount", "")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # there is no such event
    chrootfw.Event("end", "web1", "boot", "")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # nor such a stage
    return chrootfw.Runtime(on_event=lambda event: print(shows(event)))


@attrs.frozen
class Snapshot(Step):
    kind = "snapshot"
    volume: str

    def describe(self) -> str:
        return f"snapshot {self.volume}"

    def apply(self) -> Mapping[str, Any]:
        return {"source": f"{self.volume}-snapshot"}

    def undo(self, record: Mapping[str, Any]) -> None:
        assert_type(record["facts"], Any)


class Plugin:
    @chrootfw.hookimpl
    def chrootfw_parameters(self) -> Sequence[Parameter]:
        return [Parameter("volume", str, None, help="what to take the snapshot of")]

    @chrootfw.hookimpl
    def chrootfw_mount(self, instance: Instance) -> Sequence[MountPoint | Omit]:
        return [MountPoint("/", Snapshot("/dev/vg/web1")), Omit("/sys")]

    @chrootfw.hookimpl
    def chrootfw_pre_start(self, root: Root | None) -> Sequence[Problem | Step]:
        return [Problem("no key", hint="make one")] if root and not root.exists("/etc/key") else []

    @chrootfw.hookimpl
    def chrootfw_init_script(self, action: str) -> Command:
        return Command(["/etc/rc", action], timeout=5)

    @chrootfw.hookimpl
    def chrootfw_enter(self) -> Entry:
        return Entry(user="web")

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(
        self, processes: Sequence[Process], timeout: float | None
    ) -> Sequence[Escalation]:
        return [
            Escalation(3, timeout or 5, to=[process.pid for process in processes]),
            Escalation(9, 2, to="all"),
        ]

    @chrootfw.hookimpl
    def chrootfw_unmount_ordering(self, mounts: Sequence[Mount]) -> Sequence[Mount]:
        return list(reversed(mounts))

    @chrootfw.hookimpl(wrapper=True)
    def chrootfw_around_stage(self, stage: chrootfw.Stage) -> Generator[None, Any, Any]:
        return (yield)

    @chrootfw.hookimpl
    def chrootfw_event(self, event: chrootfw.Event) -> None:
        assert_type(event.seconds, float)
