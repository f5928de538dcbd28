"""A plugin object with what is different for Ganeti's instances, called before the defaults."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence

import chrootfw
from chrootfw import NO_COMMAND, Command, Escalation, Instance, Parameter, Process
from chrootfw.model import NoCommand
from chrootfw.planning import kill_plan
from chrootfw_defaults import init_script, term_then_kill

#: Plugins that come with chrootfw beside the defaults; they answer only for an instance that names
#: them.
FIRST_PARTY = ("chrootfw_hardened.hardening",)
#: Parameters with the times of a stop. Without a value of the instance's own, the caller's time
#: counts.
TIMES = frozenset({"grace", "stop_script_timeout"})
#: Seconds that a soft stop reserves for KILL and for unmounting, if it has as many.
_RESERVE = 1.0
#: A Command's timeout must be greater than 0.
_LEAST = 0.01


def plugins(policy: GanetiPolicy) -> list[object]:
    """List the plugins of a runtime for Ganeti's instances; the policy is called first.

    The plugins are named here and not discovered, because Ganeti's Python finds other entry points
    than the Python that installed this.
    """
    return [*(importlib.import_module(name) for name in FIRST_PARTY), policy]


class GanetiPolicy:
    """Share out the caller's time for a stop, and skip the script of a paused start.

    The script gets the caller's time without the grace period and the reserve, and at least half of
    it. TERM then has the rest without the reserve. `grace` and `stop_script_timeout` shorten these
    times if they are set for the instance (`--timeout` of gnt-instance(8): "how much time to wait
    before forcing the shutdown").

    Args:
        deadline: End of a stop (`time.monotonic()`); `None` for the instance's own times.
        paused: Mount only.
    """

    def __init__(self, *, deadline: float | None = None, paused: bool = False) -> None:
        self.deadline = deadline
        self.paused = paused

    @chrootfw.hookimpl
    def chrootfw_parameters(self) -> list[Parameter]:
        return [Parameter("ganeti", dict, {}, help="what Ganeti said at the start")]

    @chrootfw.hookimpl
    def chrootfw_init_script(self, instance: Instance, action: str) -> Command | NoCommand | None:
        if instance.init_script is None:
            return None
        if action == "start":
            return NO_COMMAND if self.paused else None
        if self.deadline is None:
            return None
        left = self._left()
        grace = _own_time(instance, "grace")
        grace = _default("grace") if grace is None else grace
        share = max(left - grace - _RESERVE, left / 2, _LEAST)
        limit = _own_time(instance, "stop_script_timeout")
        return Command(
            (instance.init_script, "stop"), timeout=share if limit is None else min(share, limit)
        )

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(
        self, instance: Instance, processes: Sequence[Process], force: bool
    ) -> list[Escalation] | None:
        if force or self.deadline is None:
            return None
        left = self._left()
        own = _own_time(instance, "grace")
        grace = max(left - _RESERVE, left / 2)
        if own is not None:
            grace = min(own, grace)
        holders = any(not process.own for process in processes)
        return kill_plan.make_strategy(grace=grace, force=False, holders=holders)

    def _left(self) -> float:
        assert self.deadline is not None
        return max(0.0, self.deadline - time.monotonic())


def _default(name: str) -> float:
    """Return the default of a parameter with a time, in seconds, as its plugin declares it."""
    declared = (*term_then_kill.chrootfw_parameters(), *init_script.chrootfw_parameters())
    return float(next(each.default for each in declared if each.name == name))


def _own_time(instance: Instance, name: str) -> float | None:
    """Return the seconds that are set for an instance; ``None`` where the caller's time counts."""
    seconds = float(instance.params[name])
    own = instance.params["ganeti"].get("own_times")
    if own is None:  # a start by chrootfw 0.1, which did not record what was set
        return None if seconds == _default(name) else seconds
    return seconds if name in own else None
