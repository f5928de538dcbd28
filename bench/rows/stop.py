"""A stop and what belongs to it, in process, of daemons that end at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import peers
from lives import Limit, Ours
from measure import Contestant, Row, at_least, at_most, interleaved, median, timed, times
from world import Daemons, World

KEY = "stop"
TITLE = "stop + cleanup in process, clean daemons"

#: Others that stop something comparable.
PEERS = (peers.Schroot, peers.Ganeti, peers.Crun, peers.Lxc, peers.Nspawn)

#: So many other processes make whoever looks at all of them slow.
CROWD = 2000

OVER = "chrootfw, over the last exit"
LIMIT_OVER = "C, over the last exit"


def run(world: World, *, quick: bool) -> Iterator[Row]:
    ours, limit = Ours(world), Limit(world)
    contestants: dict[str, Contestant] = {
        "chrootfw": after(ours.start, ours.stop_watched),
        "C": after(limit.start, limit.stop),
    }
    found, notes = peers.available(world, *PEERS)
    for peer in found.values():
        contestants[peer.name] = stop_of(peer)
    samples = interleaved(contestants, rounds=3 if quick else 25, at_most=180)
    count = len(samples["chrootfw"])
    samples[OVER], samples[LIMIT_OVER] = ours.last_exits[-count:], limit.last_exits[-count:]
    goals = [
        at_most("ms over the last exit", 1000 * median(samples[OVER]), 5),
        at_least("times faster than schroot", times(samples, "schroot", "chrootfw"), 100),
        at_least("times faster than hv_chroot", times(samples, "hv_chroot", "chrootfw"), 2),
    ]
    ratio = (times(samples, "chrootfw", "C") or 0, times(samples, OVER, LIMIT_OVER) or 0)
    notes.append(
        f"{ratio[0]:.1f} × C as a whole, {ratio[1]:.1f} × over the last exit; the script's run is in both"
    )
    yield Row(KEY, TITLE, samples, goals, notes)
    yield _beside_a_crowd(world, 100 if quick else CROWD, rounds=3 if quick else 7)


def _beside_a_crowd(world: World, count: int, *, rounds: int) -> Row:
    ours = Ours(world)
    contestants: dict[str, Contestant] = {"chrootfw": after(ours.start, ours.stop_watched)}
    found, notes = peers.available(world, peers.Ganeti)
    for peer in found.values():
        contestants[peer.name] = stop_of(peer)
    with world.others(count):
        samples = interleaved(contestants, rounds=rounds)
    samples[OVER] = ours.last_exits[-len(samples["chrootfw"]) :]
    goals = [
        at_least("times faster than hv_chroot", times(samples, "hv_chroot", "chrootfw"), 100),
        at_most("ms over the last exit", 1000 * median(samples[OVER]), 5),
    ]
    return Row(f"{KEY}-crowd", f"{TITLE}, beside {count:,} processes", samples, goals, notes)


def stop_of(peer: peers.Peer, *daemons: Daemons, limit: float = 10.0) -> Contestant:
    """Start a peer's instance, and measure its stop."""
    name = peer.create(*daemons)
    return after(partial(peer.start, name), partial(timed, partial(peer.stop, name, limit)))


def after(prepare: Callable[[], object], measured: Contestant) -> Contestant:
    """Prepare unmeasured, and measure what follows."""

    def contestant() -> float | None:
        prepare()
        return measured()

    return contestant
