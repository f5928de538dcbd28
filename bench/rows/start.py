"""A start in process: loop device, ext4, the kernel's file systems, and an init script that leaves three daemons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import peers
from lives import Limit, Ours
from measure import Contestant, Row, at_least, at_most, interleaved, timed, times
from world import World

KEY = "start"
TITLE = "start in process: loop + ext4 + API file systems + init script with 3 daemons"

#: Those who start something comparable.
PEERS = (peers.Crun, peers.Lxc, peers.Nspawn, peers.Ganeti)


def run(world: World, *, quick: bool) -> Iterator[Row]:
    ours, limit = Ours(world), Limit(world)
    contestants: dict[str, Contestant] = {
        "chrootfw": then(ours.start, ours.stop),
        "C": then(limit.start, limit.stop),
    }
    found, notes = peers.available(world, *PEERS)
    for peer in found.values():
        name = peer.create()
        contestants[peer.name] = then(
            partial(timed, partial(peer.start, name)), partial(peer.stop, name)
        )
    samples = interleaved(contestants, rounds=5 if quick else 40)
    goals = [at_most("times the C limit", times(samples, "chrootfw", "C"), 1.3)]
    for kind in PEERS:
        goals.append(
            at_least(f"times faster than {kind.name}", times(samples, kind.name, "chrootfw"), 1)
        )
    notes.append("crun, lxc and systemd-nspawn start in a directory: they mount no image")
    yield Row(KEY, TITLE, samples, goals, notes)


def then(measured: Contestant, undo: Callable[[], object]) -> Contestant:
    """Measure one, and take it back unmeasured."""

    def contestant() -> float | None:
        taken = measured()
        undo()
        return taken

    return contestant
