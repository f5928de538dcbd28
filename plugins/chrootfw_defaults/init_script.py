"""Run the instance's init script inside the root with ``start`` or ``stop``."""

from __future__ import annotations

import chrootfw
from chrootfw import NO_COMMAND, Command, Instance, Parameter
from chrootfw.model import TIMEOUT_MAX, NoCommand


def _is_time(value: float) -> str | None:
    in_range = 0 < value <= TIMEOUT_MAX
    return None if in_range else f"it must be above 0 and at most {TIMEOUT_MAX} seconds"


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [
        Parameter(
            "start_timeout",
            float,
            60,
            _is_time,
            "seconds for the init script's start; then it is killed and undone",
            unit="s",
        ),
        Parameter(
            "stop_script_timeout",
            float,
            60,
            _is_time,
            "seconds for the init script's stop; then the stop goes on",
            unit="s",
        ),
    ]


@chrootfw.hookimpl
def chrootfw_init_script(instance: Instance, action: str) -> Command | NoCommand:
    if instance.init_script is None:
        return NO_COMMAND
    seconds = instance.params["start_timeout" if action == "start" else "stop_script_timeout"]
    return Command((instance.init_script, action), timeout=seconds)
