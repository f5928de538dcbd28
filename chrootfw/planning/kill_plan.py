"""Escalations: whether an answer will do, and what is added to it."""

from __future__ import annotations

import signal as signals
from collections.abc import Iterable, Sequence

from chrootfw.model import Escalation

#: Seconds that KILL gets (Ganeti's hv_chroot: "KILL gets two seconds at most").
KILL_GRACE = 2.0
#: Longest grace period in seconds: nothing waits for ever.
GRACE_MAX = 86_400.0


def check(escalations: object, given: Iterable[int]) -> str | None:
    """``None`` if ``escalations`` is a kill strategy for the pids ``given``, else what is wrong with it."""
    if not isinstance(escalations, list | tuple):
        return f"expected a list of Escalation, not {type(escalations).__name__}"
    if not escalations:
        return "expected at least one Escalation, found none"
    pids = set(given)
    for number, step in enumerate(escalations, 1):
        if not isinstance(step, Escalation):
            return f"answer {number} is {step!r}, not an Escalation"
        if isinstance(step.signal, bool) or not isinstance(step.signal, int):
            return f"escalation {number}: the signal is {step.signal!r}, not a number or signal.Signals"
        if step.signal not in signals.valid_signals():
            return f"escalation {number}: {step.signal} is no signal of this system"
        if isinstance(step.grace, bool) or not isinstance(step.grace, int | float):
            return f"escalation {number}: the grace is {step.grace!r}, not a number of seconds"
        if not 0 <= step.grace <= GRACE_MAX:
            return f"escalation {number}: the grace is {step.grace} s, not within 0 and {GRACE_MAX:.0f}"
        if isinstance(step.to, str):
            if step.to not in ("own", "all"):
                return f"escalation {number}: to is {step.to!r}, not 'own', 'all' or pids"
            continue
        for pid in step.to:
            if isinstance(pid, bool) or not isinstance(pid, int) or pid <= 1 or pid not in pids:
                return f"escalation {number}: to names pid {pid!r}, which it was not given"
    return None


def complete(escalations: Sequence[Escalation], *, force: bool) -> list[Escalation]:
    """The escalations to carry out: with ``force``, KILL of the own processes comes last in any case."""
    done = list(escalations)
    if force and not (done[-1].signal == signals.SIGKILL and done[-1].to in ("own", "all")):
        done.append(Escalation(signals.SIGKILL, KILL_GRACE))
    return done


def term_then_kill(*, grace: float, force: bool, holders: bool) -> list[Escalation]:
    """TERM, ``grace`` seconds, KILL; KILL at once with ``force``. ``holders``: outside holders too."""
    to = "all" if holders else "own"
    kill = Escalation(signals.SIGKILL, KILL_GRACE, to)
    return [kill] if force else [Escalation(signals.SIGTERM, grace, to), kill]


def targets(step: Escalation, own: Iterable[int], holders: Iterable[int], spared: Iterable[int]) -> list[int]:
    """The pids that ``step`` signals now, each once: never pid ≤ 1, never one that is ``spared``.

    ``own`` and ``holders`` are who lives at this moment; ``spared`` are the caller, its ancestors and other
    instances' processes.
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


def describe(step: Escalation) -> str:
    """``SIGTERM to the own processes, then at most 10 s``."""
    try:
        name = signals.Signals(step.signal).name
    except ValueError:
        name = f"signal {step.signal}"  # a real-time signal
    whom = {"own": "the own processes", "all": "the own processes and the holders"}
    to = whom[step.to] if isinstance(step.to, str) else "pid " + ", ".join(map(str, step.to))
    return f"{name} to {to}, then wait at most {step.grace:g} s"
