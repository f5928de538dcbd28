"""Make, check, complete and describe the escalations that end an instance's processes.

A kill strategy is a list of escalations. Plugins answer with one, `hooks.dispatch` checks and
completes it, and `lifecycle.kill` carries it out.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Iterable, Sequence

from chrootfw.model import Escalation

#: Seconds that KILL gets (Ganeti's hv_chroot: "KILL gets two seconds at most").
KILL_GRACE = 2.0
#: Longest grace period in seconds: no wait is endless.
GRACE_MAX = 86_400.0


def check(escalations: object, given: Iterable[int]) -> str | None:
    """Check that an answer is a kill strategy.

    Args:
        escalations: The answer of a plugin, of any type.
        given: The pids that the plugin was given; it may name no other.

    Returns:
        What is wrong with the answer, as a clause; `None` if it is valid.
    """
    if not isinstance(escalations, list | tuple):
        return f"expected a list of Escalation, not {type(escalations).__name__}"
    if not escalations:
        return "expected at least one Escalation, found none"
    pids = set(given)
    for number, step in enumerate(escalations, 1):
        if not isinstance(step, Escalation):
            return f"answer {number} is {step!r}, not an Escalation"
        if isinstance(step.signal, bool) or not isinstance(step.signal, int):
            return (
                f"escalation {number}: the signal is {step.signal!r}, not a number or "
                "signal.Signals"
            )
        if step.signal not in signals.valid_signals():
            return f"escalation {number}: {step.signal} is not a signal of this system"
        if isinstance(step.grace, bool) or not isinstance(step.grace, int | float):
            return f"escalation {number}: the grace is {step.grace!r}, not a number of seconds"
        if not 0 <= step.grace <= GRACE_MAX:
            return (
                f"escalation {number}: the grace is {step.grace} s, not within 0 and "
                f"{GRACE_MAX:.0f}"
            )
        if isinstance(step.to, str):
            if step.to not in ("own", "all"):
                return f"escalation {number}: to is {step.to!r}, not 'own', 'all' or pids"
            continue
        for pid in step.to:
            if isinstance(pid, bool) or not isinstance(pid, int) or pid <= 1 or pid not in pids:
                return f"escalation {number}: to names pid {pid!r}, which it was not given"
    return None


def complete(escalations: Sequence[Escalation], *, force: bool) -> list[Escalation]:
    """Append KILL of the own processes if a forced stop does not end with KILL.

    Args:
        escalations: A valid, non-empty strategy.
        force: Whether KILL must come last.

    Returns:
        The escalations to carry out.
    """
    done = list(escalations)
    if force and not _kills_all(done[-1]):
        done.append(Escalation(signals.SIGKILL, KILL_GRACE))
    return done


def cut_graces(escalations: Sequence[Escalation], seconds: float) -> list[Escalation]:
    """Cut the grace periods before the first KILL of all processes.

    Args:
        escalations: A valid strategy.
        seconds: Seconds that these grace periods may take together.

    Returns:
        The escalations to carry out.
    """
    done: list[Escalation] = []
    left = max(0.0, seconds)
    for step in escalations:
        if _kills_all(step):
            return [*done, *escalations[len(done) :]]
        grace = min(step.grace, left)
        left -= grace
        done.append(Escalation(step.signal, grace, step.to))
    return done


def _kills_all(step: Escalation) -> bool:
    return step.signal == signals.SIGKILL and step.to in ("own", "all")


def make_strategy(*, grace: float, force: bool, holders: bool) -> list[Escalation]:
    """Make the usual kill strategy: TERM, a grace period, KILL.

    The default plugin `chrootfw_defaults.term_then_kill` answers with it.

    Args:
        grace: Seconds between TERM and KILL.
        force: Send KILL at once, without TERM.
        holders: Signal outside holders too.

    Returns:
        The escalations, the first to carry out first.
    """
    to = "all" if holders else "own"
    kill = Escalation(signals.SIGKILL, KILL_GRACE, to)
    return [kill] if force else [Escalation(signals.SIGTERM, grace, to), kill]


def list_targets(
    step: Escalation, own: Iterable[int], holders: Iterable[int], spared: Iterable[int]
) -> list[int]:
    """List the pids that one escalation signals, each once.

    Args:
        step: The escalation.
        own: The instance's own processes that are running now.
        holders: The outside holders that are running now.
        spared: Pids that are never signalled: the caller, its ancestors, other instances'
            processes.

    Returns:
        The pids, all greater than 1.
    """
    own, holders, never = list(own), list(holders), {*spared, 0, 1}
    if step.to == "own":
        candidates = own
    elif step.to == "all":
        candidates = own + holders
    else:
        alive = {*own, *holders}
        candidates = [pid for pid in step.to if isinstance(pid, int) and pid in alive]
    return [pid for pid in dict.fromkeys(candidates) if pid > 1 and pid not in never]


def describe_wait(seconds: float) -> str:
    """Describe the wait before the first escalation."""
    return f"wait at most {seconds:g} s for the own processes to end by themselves"


def describe(step: Escalation) -> str:
    """Describe an escalation: `SIGTERM to the own processes, then wait at most 10 s`."""
    try:
        name = signals.Signals(step.signal).name
    except ValueError:
        name = f"signal {step.signal}"  # a real-time signal
    targets = {"own": "the own processes", "all": "the own processes and the holders"}
    to = targets[step.to] if isinstance(step.to, str) else "pid " + ", ".join(map(str, step.to))
    return f"{name} to {to}, then wait at most {step.grace:g} s"
