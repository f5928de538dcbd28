"""Which verb fits which state."""

from __future__ import annotations

from chrootfw.errors import TransitionError
from chrootfw.views import InstanceState

_LEGAL = {
    "start": (InstanceState.ABSENT, InstanceState.MOUNTED),
    "stop": (InstanceState.ABSENT, InstanceState.MOUNTED, InstanceState.RUNNING, InstanceState.HELD),
    "cleanup": (InstanceState.ABSENT, InstanceState.MOUNTED, InstanceState.HELD),
    "reboot": (InstanceState.MOUNTED, InstanceState.RUNNING),
    "enter": (InstanceState.MOUNTED, InstanceState.RUNNING),
}

_REFUSALS = {
    ("start", InstanceState.RUNNING): ("is already running", "chrootfw stop {0}, or chrootfw reboot {0}"),
    ("start", InstanceState.HELD): ("is held: an earlier stop is not finished", "chrootfw cleanup {0}"),
    ("cleanup", InstanceState.RUNNING): ("is running", "chrootfw stop {0} stops it and cleans up"),
    ("reboot", InstanceState.ABSENT): ("is not started", "chrootfw start {0}"),
    ("reboot", InstanceState.HELD): ("is held: an earlier stop is not finished", "chrootfw cleanup {0}"),
    ("enter", InstanceState.ABSENT): ("is not started", "chrootfw start {0}"),
    ("enter", InstanceState.HELD): ("is held: it is being stopped", "chrootfw cleanup {0}"),
}


def check(verb: str, name: str, state: InstanceState) -> None:
    """Return if ``verb`` may be done to an instance in ``state``. Raises ``TransitionError``."""
    if state in _LEGAL[verb]:
        return
    reason, hint = _REFUSALS[verb, state]
    raise TransitionError(f"cannot {verb} {name}: it {reason}", hint=hint.format(name))
