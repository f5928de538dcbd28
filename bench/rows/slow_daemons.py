"""A stop that has to wait: for a daemon that needs a while, for daemons that no TERM ends."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import peers
from lives import Limit, Ours
from measure import Contestant, Row, at_least, at_most, interleaved, median, not_measured, times
from rows.stop import LIMIT_OVER, OVER, after, stop_of
from world import FOURTEEN, SLOW, STUBBORN, Daemons, World

KEY = "slow-daemons"

#: Seconds until KILL.
GRACE = 1.0


class Case(NamedTuple):
    """``wait``: seconds that nobody can save. ``over``: the goal, in milliseconds over that."""

    key: str
    title: str
    daemons: Daemons
    wait: float
    over: float


CASES = (
    Case("slow", "one daemon needs 0.3 s", SLOW, 0.3, 10),
    Case("stubborn", "one daemon ignores TERM, limit 1 s", STUBBORN, GRACE, 20),
    Case("fourteen", "14 daemons, two ignore TERM, limit 1 s", FOURTEEN, GRACE, 20),
)


def run(world: World, *, quick: bool) -> Iterator[Row]:
    for case in CASES:
        ours, limit = Ours(world, case.daemons), Limit(world, case.daemons)
        contestants: dict[str, Contestant] = {
            "chrootfw": after(ours.start, partial(ours.stop_watched, GRACE)),
            "C": after(limit.start, partial(limit.stop, GRACE)),
        }
        found, notes = peers.available(world, *(() if quick else (peers.Schroot,)))
        for peer in () if quick else found.values():
            contestants[peer.name] = stop_of(peer, case.daemons)
        samples = interleaved(contestants, rounds=3 if quick else 11, at_most=90)
        count = len(samples["chrootfw"])
        samples[OVER], samples[LIMIT_OVER] = ours.last_exits[-count:], limit.last_exits[-count:]
        over, least = (1000 * (median(samples[name]) - case.wait) for name in ("chrootfw", "C"))
        goals = [at_most(f"ms over {case.wait:g} s", over, case.over)]
        if quick:
            goals.append(not_measured("times faster than schroot", "it takes up to 24 s", 1))
        else:
            goals.append(
                at_least("times faster than schroot", times(samples, "schroot", "chrootfw"), 1)
            )
        notes = [] if quick else notes
        notes.append(
            f"C is {least:.1f} ms over {case.wait:g} s: the run of the script, and what the daemon itself takes"
        )
        yield Row(f"{KEY}-{case.key}", f"stop, {case.title}", samples, goals, notes)
