"""What is different for an instance that Ganeti manages: a plugin object, asked before the defaults."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence

import chrootfw
from chrootfw import NO_COMMAND, Command, Escalation, Instance, Parameter, Process
from chrootfw.model import NoCommand
from chrootfw.planning import kill_plan

#: What comes with chrootfw beside the defaults; silent for an instance that does not ask for it.
FIRST_PARTY = ("chrootfw_hardened.hardening",)
#: Seconds that a soft stop keeps of its time for KILL and for unmounting, if it has as many.
_RESERVE = 1.0
#: A Command's timeout must be above 0.
_LEAST = 0.01


def plugins(policy: GanetiPolicy) -> list[object]:
    """The plugins of a runtime for Ganeti's instances, the policy asked first.

    Named here and not discovered: Ganeti's Python finds other entry points than the one that installed this.
    """
    return [*(importlib.import_module(name) for name in FIRST_PARTY), policy]


class GanetiPolicy:
    """``deadline``: when a stop must be over (``time.monotonic()``), ``None`` for its own times. ``paused``: mount only.

    The time is shared out: the script gets at most what the grace period and the reserve leave of it, and at least half;
    TERM then has the rest but the reserve.
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
        share = max(left - float(instance.params.get("grace", 0)) - _RESERVE, left / 2, _LEAST)
        return Command((instance.init_script, "stop"), timeout=min(share, instance.params["stop_script_timeout"]))

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(
        self, instance: Instance, processes: Sequence[Process], force: bool
    ) -> list[Escalation] | None:
        if force or self.deadline is None:
            return None
        left = self._left()
        grace = min(float(instance.params.get("grace", 10)), max(left - _RESERVE, left / 2))
        holders = any(not process.own for process in processes)
        return kill_plan.term_then_kill(grace=grace, force=False, holders=holders)

    def _left(self) -> float:
        assert self.deadline is not None
        return max(0.0, self.deadline - time.monotonic())
