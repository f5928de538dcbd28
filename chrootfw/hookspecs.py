"""Every hook, in the order in which an instance meets them.

There are four kinds. *contribute*: every plugin is asked, the answers are merged. *decide*: the first answer
that is not ``None`` counts. *surround*: wrappers only. *observe*: every plugin is told, none can change or break
the run. Hooks have no side effects: what is to be done to the system is a ``Step``, applied by the core.

A plugin implements as many hooks as it likes and names only the arguments it wants. Who is asked first:
objects passed to ``Runtime`` (the last one first), then the plugins that the instance names (likewise), then
installed plugins (by name, last first), then the defaults.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
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
    from chrootfw.system.root import Root
    from chrootfw.views import Process

hookspec = pluggy.HookspecMarker("chrootfw")
hookimpl = pluggy.HookimplMarker("chrootfw")

#: The kind of each hook, by its name.
KINDS = {
    "chrootfw_parameters": "contribute",
    "chrootfw_mount": "contribute",
    "chrootfw_pre_start": "contribute",
    "chrootfw_init_script": "decide",
    "chrootfw_enter": "decide",
    "chrootfw_kill_strategy": "decide",
    "chrootfw_unmount_ordering": "decide",
    "chrootfw_around_stage": "surround",
    "chrootfw_event": "observe",
}


@hookspec
def chrootfw_parameters() -> Sequence[Parameter] | None:
    """Which parameters of an instance does the plugin bring?

    Kind: contribute. Asked before an instance's parameters are checked.

    :returns: ``Parameter`` values. A name that the core or another plugin declares is refused.

    .. versionadded:: 0.1
    """


@hookspec
def chrootfw_mount(instance: Instance) -> Sequence[MountPoint | Omit] | None:
    """What is the instance's tree made of?

    Kind: contribute, at the stage ``mount``. The answers are merged by place: of two for one place the plugin
    asked first wins, and the loser's ``Step`` never runs. Exactly one root (``/``) must be left.

    :param instance: the instance, its parameters checked and filled in.
    :returns: ``MountPoint`` values for what the plugin mounts, ``Omit`` values for what is not to be mounted.

    .. versionadded:: 0.1
    """


@hookspec
def chrootfw_pre_start(
    instance: Instance, root: Root | None, command: Command | NoCommand
) -> Sequence[Problem | Step] | None:
    """Is anything in the way of a start, and what must be prepared for it?

    Kind: contribute, at the stage ``pre-start``, when the tree is mounted. All problems are reported together.
    Steps are applied in the order in which plugins are asked, and undone when the start fails or the instance
    is stopped.

    :param instance: the instance.
    :param root: its tree, for looking into; ``None`` in a plan.
    :param command: what is going to be run to start it, as ``init_script`` was answered; ``NO_COMMAND`` for nothing.
    :returns: ``Problem`` and ``Step`` values.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def chrootfw_init_script(instance: Instance, action: str) -> Command | NoCommand | None:
    """What is run inside to start or to stop the instance?

    Kind: decide, at the stages ``init-start`` and ``init-stop``.

    :param instance: the instance; in a stop as it was resolved at its start.
    :param action: ``start`` or ``stop``.
    :returns: a ``Command``, or ``NO_COMMAND`` for nothing.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def chrootfw_enter(instance: Instance, command: Command) -> Entry | None:
    """How does a process get inside?

    Kind: decide. Asked at start; the answer is recorded and used by ``exec`` and ``shell`` too.

    :param instance: the instance.
    :param command: what is going to run.
    :returns: an ``Entry``.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def chrootfw_kill_strategy(
    instance: Instance, processes: Sequence[Process], force: bool, timeout: float | None
) -> Sequence[Escalation] | None:
    """Which signals are sent, to whom, and how long is the grace period after each?

    Kind: decide, at the stage ``kill``. The core reads again who lives before each signal, and never signals pid 1,
    itself, its ancestors or another instance's processes.

    :param instance: the instance.
    :param processes: who is alive; outside holders are among them only when they may be signalled.
    :param force: the caller wants KILL at once. Unless the answer ends with KILL, the core appends KILL 2 s.
    :param timeout: the caller's grace period in seconds, ``None`` for the instance's own.
    :returns: at least one ``Escalation``.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def chrootfw_unmount_ordering(instance: Instance, mounts: Sequence[Mount]) -> Sequence[Mount] | None:
    """In which order are the mounts taken down?

    Kind: decide, at the stage ``unmount``. Asked again, with what is left, until nothing is left. The core verifies
    that the answer holds the same mounts, each before the one that it is mounted on.

    :param instance: the instance.
    :param mounts: the mounts in the mount table's order.
    :returns: the same mounts in the order in which to unmount them.

    .. versionadded:: 0.1
    """


@hookspec
def chrootfw_around_stage(instance: Instance, stage: Stage) -> Generator[None, Any, Any]:
    """Surround a stage: code before ``return (yield)`` runs before it, code after it when it is over.

    Kind: surround; implement it with ``hookimpl(wrapper=True)``, anything else is refused.

    :param instance: the instance.
    :param stage: ``mount``, ``pre-start``, ``init-start``, ``init-stop``, ``kill`` or ``unmount``.

    .. versionadded:: 0.1
    """
    raise NotImplementedError  # a specification is never called


@hookspec
def chrootfw_event(event: Event) -> None:
    """A step begins, ends or fails, or something must be said.

    Kind: observe. What an observer raises is logged, and changes nothing.

    :param event: what happened.

    .. versionadded:: 0.1
    """
