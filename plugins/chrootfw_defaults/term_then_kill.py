"""Send TERM, wait for a grace period, then send KILL to whatever is left."""

from __future__ import annotations

from collections.abc import Sequence

import chrootfw
from chrootfw import Escalation, Instance, Parameter, Process
from chrootfw.planning import kill_plan


def _is_grace(value: float) -> str | None:
    return (
        None
        if 0 <= value <= kill_plan.GRACE_MAX
        else f"it must be within 0 and {kill_plan.GRACE_MAX:.0f} seconds"
    )


def _is_policy(value: str) -> str | None:
    return None if value in ("name", "kill") else "it must be name or kill"


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [
        Parameter(
            "grace",
            float,
            10,
            _is_grace,
            "seconds between TERM and KILL; the timeout of a stop overrides it",
            unit="s",
        ),
        Parameter(
            "holders",
            str,
            "name",
            _is_policy,
            "outside processes that use the mounts: name them, or kill them too",
        ),
    ]


@chrootfw.hookimpl
def chrootfw_kill_strategy(
    instance: Instance, processes: Sequence[Process], force: bool, timeout: float | None
) -> list[Escalation]:
    grace = instance.params["grace"] if timeout is None else timeout
    holders = any(not process.own for process in processes)
    return kill_plan.make_strategy(grace=grace, force=force, holders=holders)
