"""The hooks as methods of a class, so that a type checker finds a plugin's wrong signature.

A plugin may derive from ``Hooks``; it need not. While a program runs the class is empty.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from typing import Any

    from chrootfw.linux.root import Root
    from chrootfw.model import (
        Command,
        Entry,
        Escalation,
        Event,
        Instance,
        Mount,
        MountPoint,
        NoCommand,
        Omit,
        Parameter,
        Problem,
        Stage,
        Step,
    )
    from chrootfw.views import Process

    class Hooks:
        """Declare what a plugin may implement, see ``chrootfw.hooks.specs``.

        A *decide* hook may be a wrapper, and then a generator. The methods of a derived class take
        all arguments of their hook, wanted or not: that is how overriding is checked.
        """

        def chrootfw_parameters(self) -> Sequence[Parameter] | None: ...

        def chrootfw_mount(self, instance: Instance) -> Sequence[MountPoint | Omit] | None: ...

        def chrootfw_pre_start(
            self, instance: Instance, root: Root | None, command: Command | NoCommand
        ) -> Sequence[Problem | Step] | None: ...

        def chrootfw_init_script(
            self, instance: Instance, action: str
        ) -> (
            Command | NoCommand | Generator[None, Command | NoCommand, Command | NoCommand] | None
        ): ...

        def chrootfw_enter(
            self, instance: Instance, command: Command
        ) -> Entry | Generator[None, Entry, Entry] | None: ...

        def chrootfw_kill_strategy(
            self,
            instance: Instance,
            processes: Sequence[Process],
            force: bool,
            timeout: float | None,
        ) -> (
            Sequence[Escalation]
            | Generator[None, Sequence[Escalation], Sequence[Escalation]]
            | None
        ): ...

        def chrootfw_unmount_ordering(
            self, instance: Instance, mounts: Sequence[Mount]
        ) -> Sequence[Mount] | Generator[None, Sequence[Mount], Sequence[Mount]] | None: ...

        def chrootfw_around_stage(
            self, instance: Instance, stage: Stage
        ) -> Generator[None, Any, Any]: ...

        def chrootfw_event(self, event: Event) -> None: ...

else:

    class Hooks:
        """What a plugin may derive from, for type checkers; empty while a program runs."""
