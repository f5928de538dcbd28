"""How a row is measured: contestants in turn, in one run, and goals that are held against their medians."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

#: Does the work once. Returns the seconds that it measured itself, or ``None``: then the whole call is timed.
Contestant = Callable[[], float | None]

#: So many rounds are made however long they take: fewer have no median.
LEAST_ROUNDS = 3


class Goal(NamedTuple):
    """What a row is to reach. ``value`` is ``None`` when it was not measured; ``text`` then says why."""

    text: str
    value: float | None
    limit: float
    holds: bool


class Row(NamedTuple):
    """One line of the table. ``samples``: seconds by contestant."""

    key: str
    title: str
    samples: dict[str, list[float]]
    goals: list[Goal]
    notes: list[str]


def interleaved(
    contestants: Mapping[str, Contestant], *, rounds: int, at_most: float = 60.0
) -> dict[str, list[float]]:
    """Seconds by contestant. One round before is not measured; in each round all run once, in another order.

    A machine that becomes slower or faster meanwhile does so for all of them. Ends after ``at_most`` seconds too, but never
    before three rounds.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for name in order:
        contestants[name]()
    began = time.perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - began > at_most:
            break
        random.shuffle(order)
        for name in order:
            taken[name].append(timed(contestants[name]))
    return taken


def timed(contestant: Contestant) -> float:
    """The seconds of one call, its own figure if it has one."""
    began = time.perf_counter()
    own = contestant()
    return time.perf_counter() - began if own is None else own


def median(samples: list[float]) -> float:
    return statistics.median(samples)


def at_most(text: str, value: float | None, limit: float) -> Goal:
    """``value`` shall be ``limit`` or less."""
    return Goal(text, value, limit, value is not None and value <= limit)


def at_least(text: str, value: float | None, limit: float) -> Goal:
    """``value``, such as how many times faster it is, shall be ``limit`` or more."""
    return Goal(text, value, limit, value is not None and value >= limit)


def times(samples: Mapping[str, list[float]], one: str, other: str) -> float | None:
    """How many times the median of ``other`` the median of ``one`` is; ``None`` when one of them was not measured."""
    if not samples.get(one) or not samples.get(other):
        return None
    return median(samples[one]) / median(samples[other])


def not_measured(text: str, why: str, limit: float) -> Goal:
    return Goal(f"{text} (not measured: {why})", None, limit, holds=False)
