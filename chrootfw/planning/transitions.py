"""Check which verb fits which state of an instance."""

from __future__ import annotations

from chrootfw.errors import TransitionError
from chrootfw.views import InstanceState

_LEGAL = {
    "start": (InstanceState.ABSENT, InstanceState.MOUNTED),
    "stop": (
        InstanceState.ABSENT,
        InstanceState.MOUNTED,
        InstanceState.RUNNING,
        InstanceState.HELD,
    ),
    "cleanup": (InstanceState.ABSENT, InstanceState.MOUNTED, InstanceState.HELD),
    "reboot": (InstanceState.MOUNTED, InstanceState.RUNNING),
    "enter": (InstanceState.MOUNTED, InstanceState.RUNNING),
}

_REFUSALS = {
    ("start", InstanceState.RUNNING): (
        "is already running",
        "chrootfw stop {0}, or chrootfw reboot {0}",
    ),
    ("start", InstanceState.HELD): (
        "is held: an earlier stop is not finished",
        "chrootfw cleanup {0}",
    ),
    ("cleanup", InstanceState.RUNNING): ("is running", "chrootfw stop {0} stops it and cleans up"),
    ("reboot", InstanceState.ABSENT): ("is not started", "chrootfw start {0}"),
    ("reboot", InstanceState.HELD): (
        "is held: an earlier stop is not finished",
        "chrootfw cleanup {0}",
    ),
    ("enter", InstanceState.ABSENT): ("is not started", "chrootfw start {0}"),
    ("enter", InstanceState.HELD): ("is held: it is being stopped", "chrootfw cleanup {0}"),
}


def check(verb: str, name: str, state: InstanceState) -> None:
    """Check that a verb may be applied to an instance in its present state.

    Args:
        verb: The verb, such as `start`.
        name: The instance's name, for the error.
        state: The instance's state.

    Raises:
        TransitionError: The verb does not fit the state.
    """
    if state in _LEGAL[verb]:
        return
    reason, hint = _REFUSALS[verb, state]
    raise TransitionError(f"cannot {verb} {name}: it {reason}", hint=hint.format(name))
