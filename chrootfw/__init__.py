"""chrootfw manages long-running chroots on Linux; every stage of a chroot's life is a plugin hook.

The public names load when they are first used: ``import chrootfw`` alone costs nothing.
"""

from __future__ import annotations

__version__ = "0.2.0.dev0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from chrootfw.cancellation import Cancellation
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
    from chrootfw.hooks.deprecations import ChrootfwDeprecationWarning
    from chrootfw.hooks.hook_types import Hooks
    from chrootfw.hooks.registry import PluginRecord
    from chrootfw.hooks.specs import hookimpl
    from chrootfw.linux.root import Root
    from chrootfw.model import (
        NO_COMMAND,
        Command,
        CommandStep,
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
        PlannedStep,
        Problem,
        Stage,
        Step,
    )
    from chrootfw.runtime import Chroot, Runtime
    from chrootfw.views import (
        Check,
        EffectiveParameter,
        EffectiveParameters,
        InstanceInfo,
        InstanceState,
        NodeInfo,
        Process,
    )

_HOMES = {
    "chrootfw.hooks.deprecations": ("ChrootfwDeprecationWarning",),
    "chrootfw.errors": (
        "ChrootfwError", "DefinitionError", "DiskError", "HeldError", "InputError", "Interrupted",
        "LockError", "NotFoundError", "NotSupported", "PlanError", "PluginError", "PluginLoadError",
        "PreStartError", "PrivilegeError", "ScriptError", "StepError", "SurvivorError",
        "TransitionError", "TrustError",
    ),
    "chrootfw.hooks.registry": ("PluginRecord",),
    "chrootfw.hooks.specs": ("hookimpl",),
    "chrootfw.cancellation": ("Cancellation",),
    "chrootfw.model": (
        "NO_COMMAND", "Command", "CommandStep", "Entry", "Escalation", "Event", "EventKind",
        "Instance", "Mount", "MountPoint", "NoCommand", "Node", "Omit", "Parameter", "Plan",
        "PlannedStep", "Problem", "Stage", "Step",
    ),
    "chrootfw.runtime": ("Chroot", "Runtime"),
    "chrootfw.linux.root": ("Root",),
    "chrootfw.hooks.hook_types": ("Hooks",),
    "chrootfw.views": (
        "Check",
        "EffectiveParameter",
        "EffectiveParameters",
        "InstanceInfo",
        "InstanceState",
        "NodeInfo",
        "Process",
    ),
}  # fmt: skip

__all__ = [
    "NO_COMMAND",
    "Cancellation",
    "Check",
    "Chroot",
    "ChrootfwDeprecationWarning",
    "ChrootfwError",
    "Command",
    "CommandStep",
    "DefinitionError",
    "DiskError",
    "EffectiveParameter",
    "EffectiveParameters",
    "Entry",
    "Escalation",
    "Event",
    "EventKind",
    "HeldError",
    "Hooks",
    "InputError",
    "Instance",
    "InstanceInfo",
    "InstanceState",
    "Interrupted",
    "LockError",
    "Mount",
    "MountPoint",
    "NoCommand",
    "Node",
    "NodeInfo",
    "NotFoundError",
    "NotSupported",
    "Omit",
    "Parameter",
    "Plan",
    "PlanError",
    "PlannedStep",
    "PluginError",
    "PluginLoadError",
    "PluginRecord",
    "PreStartError",
    "PrivilegeError",
    "Problem",
    "Process",
    "Root",
    "Runtime",
    "ScriptError",
    "Stage",
    "Step",
    "StepError",
    "SurvivorError",
    "TransitionError",
    "TrustError",
    "hookimpl",
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
