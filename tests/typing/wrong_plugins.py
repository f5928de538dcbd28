"""Read by mypy and pyright, never run: each line that is excused is a mistake that they find in a plugin.

An excuse that is not needed is an error: should a mistake not be found any more, the check of types fails.
"""

# fmt: off
from __future__ import annotations

from collections.abc import Generator, Sequence

import chrootfw
from chrootfw import (
    Command,
    Entry,
    Escalation,
    Event,
    Hooks,
    Instance,
    Mount,
    MountPoint,
    NoCommand,
    Omit,
    Process,
    Root,
    Step,
    hookimpl,
)


class Right(Hooks):
    """All of it as it should be, some of it as wrappers."""

    @hookimpl
    def chrootfw_mount(self, instance: Instance) -> list[MountPoint]:
        return [MountPoint("/", instance.disk or "/srv/empty")]

    @hookimpl(wrapper=True)
    def chrootfw_unmount_ordering(
        self, instance: Instance, mounts: Sequence[Mount]
    ) -> Generator[None, Sequence[Mount], list[Mount]]:
        order = yield
        return sorted(order, key=lambda mount: mount.fstype != "nfs")

    @hookimpl
    def chrootfw_kill_strategy(
        self, instance: Instance, processes: Sequence[Process], force: bool, timeout: float | None
    ) -> list[Escalation] | None:
        return None if force else [Escalation(15, timeout or 5), Escalation(9, 2)]


class WrongAnswers(Hooks):
    @hookimpl
    def chrootfw_mount(self, instance: Instance) -> MountPoint:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return MountPoint("/", "/srv")

    @hookimpl
    def chrootfw_init_script(self, instance: Instance, action: str) -> list[str]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return ["/sbin/init", action]

    @hookimpl
    def chrootfw_enter(self, instance: Instance, command: Command) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return "chroot"

    @hookimpl
    def chrootfw_event(self, event: Event) -> bool:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return True


class WrongArguments(Hooks):
    @hookimpl
    def chrootfw_mount(self, instance: Instance, disk: str) -> Sequence[MountPoint | Omit]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return [MountPoint("/", disk)]

    @hookimpl
    def chrootfw_pre_start(self, instance: str, root: Root | None, command: Command | NoCommand) -> list[Step]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return []

    @hookimpl
    async def chrootfw_unmount_ordering(self, instance: Instance, mounts: Sequence[Mount]) -> Sequence[Mount]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return mounts


def wrong_values(runtime: chrootfw.Runtime) -> None:
    Command("/sbin/init")  # no word list: found when it is made, not by types: str is a Sequence[str]
    Entry(method=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    MountPoint("/", 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Escalation("TERM", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    runtime.stop("web1", timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
