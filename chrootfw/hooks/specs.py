"""Every hook, in the order in which an instance meets them.

There are four kinds. *contribute*: every plugin is called, the answers are merged. *decide*: the
first answer that is not ``None`` counts. *surround*: wrappers only. *observe*: every plugin is
called, none can change or break the run. Hooks have no side effects: what is to be done to the
system is a ``Step``, applied by the core.

A plugin implements as many hooks as it likes and names only the arguments it wants. The order of
the calls: objects passed to ``Runtime`` (the last one first), then the plugins that the instance
names (likewise), then installed plugins (by name, last first), then the defaults.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
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
    """Declare the parameters of an instance that the plugin brings.

    Kind: contribute. Called before an instance's parameters are checked.

    Returns:
        ``Parameter`` values. A name that the core or another plugin declares is refused.

    .. versionadded:: 0.1
    """


@hookspec
def chrootfw_mount(instance: Instance) -> Sequence[MountPoint | Omit] | None:
    """Return what the instance's tree is made of.

    Kind: contribute, at the stage ``mount``. The answers are merged by place: of two for one place
    the plugin called first wins, and the loser's ``Step`` never runs. Exactly one root (``/``)
    must be left.

    Args:
        instance: the instance, its parameters checked and filled in.

    Returns:
        ``MountPoint`` values for what the plugin mounts, ``Omit`` values for what is not to be
        mounted.

    .. versionadded:: 0.1
    """


@hookspec
def chrootfw_pre_start(
    instance: Instance, root: Root | None, command: Command | NoCommand
) -> Sequence[Problem | Step] | None:
    """Report what blocks a start, and return what must be prepared for it.

    Kind: contribute, at the stage ``pre-start``, when the tree is mounted. All problems are
    reported together. Steps are applied in the order of the calls, and undone when the start fails
    or the instance is stopped. A reboot calls it twice: before the stop, when a problem leaves the
    instance running and no Step is applied, and after it.

    Args:
        instance: the instance.
        root: its tree, to be read; ``None`` in a plan.
        command: what is going to be run to start it, as ``init_script`` was answered;
            ``NO_COMMAND`` for nothing.

    Returns:
        ``Problem`` and ``Step`` values.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def chrootfw_init_script(instance: Instance, action: str) -> Command | NoCommand | None:
    """Choose the command that is run inside to start or to stop the instance.

    Kind: decide, at the stages ``init-start`` and ``init-stop``.

    Args:
        instance: the instance; in a stop as it was resolved at its start.
        action: ``start`` or ``stop``.

    Returns:
        A ``Command``, or ``NO_COMMAND`` for nothing.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def chrootfw_enter(instance: Instance, command: Command) -> Entry | None:
    """Choose how a process gets inside.

    Kind: decide. Called at start; the answer is recorded and used by ``exec`` and ``shell`` too.

    Args:
        instance: the instance.
        command: what is going to run.

    Returns:
        An ``Entry``.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def chrootfw_kill_strategy(
    instance: Instance, processes: Sequence[Process], force: bool, timeout: float | None
) -> Sequence[Escalation] | None:
    """Choose signals, their recipients, and the grace period after each.

    Kind: decide, at the stage ``kill``. The core reads again which processes are running before
    each signal, and never signals pid 1, itself, its ancestors or another instance's processes.

    Args:
        instance: the instance.
        processes: which processes are running; outside holders are among them only when they may be
            signalled.
        force: the caller wants KILL at once. Unless the answer ends with KILL, the core appends
            KILL 2 s. Grace periods before KILL are cut so that it is sent within two seconds.
        timeout: the caller's grace period in seconds, ``None`` for the instance's own.

    Returns:
        At least one ``Escalation``.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def chrootfw_unmount_ordering(
    instance: Instance, mounts: Sequence[Mount]
) -> Sequence[Mount] | None:
    """Choose the order in which the mounts are unmounted.

    Kind: decide, at the stage ``unmount``. Called again, with what is left, until nothing is left.
    The core verifies that the answer holds the same mounts, each before the one that it is mounted
    on.

    Args:
        instance: the instance.
        mounts: the mounts in the mount table's order.

    Returns:
        The same mounts in the order in which to unmount them.

    .. versionadded:: 0.1
    """


@hookspec
def chrootfw_around_stage(instance: Instance, stage: Stage) -> Generator[None, Any, Any]:
    """Surround a stage: code before ``return (yield)`` runs before it, other code after it.

    Kind: surround; implement it with ``hookimpl(wrapper=True)``, anything else is refused.

    Args:
        instance: the instance.
        stage: ``mount``, ``pre-start``, ``init-start``, ``init-stop``, ``kill`` or ``unmount``.

    .. versionadded:: 0.1
    """
    raise NotImplementedError  # a specification is never called


@hookspec
def chrootfw_event(event: Event) -> None:
    """Observe that a step begins, ends or fails, or a warning.

    Kind: observe. An exception of an observer is logged, and changes nothing.

    Args:
        event: what happened.

    .. versionadded:: 0.1
    """
