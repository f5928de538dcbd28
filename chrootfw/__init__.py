"""chrootfw manages long-running chroots on Linux; every stage of a chroot's life is a plugin hook.

The public names load when they are first used: ``import chrootfw`` alone costs nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from chrootfw.deprecated import ChrootfwDeprecationWarning
    from chrootfw.errors import (
        ChrootfwError,
        DefinitionError,
        DiskError,
        HeldError,
        InputError,
        Interrupted,
        LockError,
        NotFoundError,
        NotSupported,
        PlanError,
        PluginError,
        PluginLoadError,
        PreStartError,
        PrivilegeError,
        ScriptError,
        StepError,
        SurvivorError,
        TransitionError,
        TrustError,
    )
    from chrootfw.hookspecs import hookimpl
    from chrootfw.interrupts import Interrupts
    from chrootfw.model import (
        NO_COMMAND,
        Command,
        Entry,
        Escalation,
        Event,
        EventKind,
        Instance,
        Mount,
        MountPoint,
        NoCommand,
        Node,
        Omit,
        Parameter,
        Plan,
        Problem,
        Stage,
        Step,
    )
    from chrootfw.runtime import Runtime
    from chrootfw.steps import CommandStep
    from chrootfw.system.root import Root
    from chrootfw.typed import Hooks
    from chrootfw.views import Check, InstanceInfo, InstanceState, NodeInfo, Process

_HOMES = {
    "chrootfw.deprecated": ("ChrootfwDeprecationWarning",),
    "chrootfw.errors": (
        "ChrootfwError", "DefinitionError", "DiskError", "HeldError", "InputError", "Interrupted", "LockError",
        "NotFoundError", "NotSupported", "PlanError", "PluginError", "PluginLoadError", "PreStartError", "PrivilegeError",
        "ScriptError", "StepError", "SurvivorError", "TransitionError", "TrustError",
    ),
    "chrootfw.hookspecs": ("hookimpl",),
    "chrootfw.interrupts": ("Interrupts",),
    "chrootfw.model": (
        "NO_COMMAND", "Command", "Entry", "Escalation", "Event", "EventKind", "Instance", "Mount", "MountPoint", "NoCommand",
        "Node", "Omit", "Parameter", "Plan", "Problem", "Stage", "Step",
    ),
    "chrootfw.runtime": ("Runtime",),
    "chrootfw.steps": ("CommandStep",),
    "chrootfw.system.root": ("Root",),
    "chrootfw.typed": ("Hooks",),
    "chrootfw.views": ("Check", "InstanceInfo", "InstanceState", "NodeInfo", "Process"),
}  # fmt: skip

__all__ = [
    "NO_COMMAND", "Check", "ChrootfwDeprecationWarning", "ChrootfwError", "Command", "CommandStep", "DefinitionError",
    "DiskError", "Entry", "Escalation", "Event", "EventKind", "HeldError", "Hooks", "InputError", "Instance", "InstanceInfo",
    "InstanceState", "Interrupted", "Interrupts", "LockError", "Mount", "MountPoint", "NoCommand", "Node", "NodeInfo", "NotFoundError",
    "NotSupported", "Omit", "Parameter", "Plan", "PlanError", "PluginError", "PluginLoadError", "PreStartError",
    "PrivilegeError", "Problem", "Process", "Root", "Runtime", "ScriptError", "Stage", "Step", "StepError", "SurvivorError",
    "TransitionError", "TrustError", "hookimpl",
]  # fmt: skip


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            import importlib

            value: object = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'chrootfw' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
