"""Mount tables and lists of processes for a plugin's orderings and strategies.

They are the same ones each time.
"""

from __future__ import annotations

import random

from chrootfw.model import Mount
from chrootfw.views import Process

_TREES, _LISTS, _SEED = 40, 24, 8


def mount_tables() -> list[tuple[Mount, ...]]:
    """Return mount tables of instances, in the table's order and in none.

    They are deep and flat, with stacked mounts and auxiliary layers.
    """
    chance = random.Random(_SEED)  # noqa: S311  # the same trees each time
    found = []
    for number in range(_TREES):
        table: list[Mount] = []
        for at in ("aux:low", "aux:new", "root")[chance.randrange(3) :]:
            first = Mount("/", "/dev/vda", "ext4", ("rw", "relatime"), at, 100 + len(table), 1)
            table.append(first)
            for _ in range(chance.randrange(10)):
                _grow(table, at, chance)
        if number % 2:
            chance.shuffle(table)
        found.append(tuple(table))
    return found


def _grow(table: list[Mount], at: str, chance: random.Random) -> None:
    """One more mount, on what is visible at its target, as in mount(2)."""
    below = chance.choice([mount for mount in table if mount.at == at])
    parts = [
        chance.choice(("a", "b", "data", "database", "proc", "run"))
        for _ in range(chance.randrange(3))
    ]
    target = "/".join([below.target.rstrip("/"), *parts]) or "/"
    holding = [
        m
        for m in table
        if m.at == at and (m.target == "/" or f"{target}/".startswith(f"{m.target}/"))
    ]
    parent = max(holding, key=lambda mount: (len(mount.target), mount.id))
    table.append(Mount(target, "tmpfs", "tmpfs", ("rw", "nosuid"), at, 100 + len(table), parent.id))


def process_lists() -> list[tuple[tuple[Process, ...], bool, float | None]]:
    """Return running processes, with ``force`` and ``timeout`` as a caller may give them."""
    chance = random.Random(_SEED)  # noqa: S311  # the same processes each time
    found = []
    for number in range(_LISTS):
        pids = chance.sample(range(2, 1 << 22), chance.randrange(6))
        processes = tuple(
            Process(pid, "daemon", "root", chance.choice(("cgroup", "root", "cwd", "fd", "map")))
            for pid in pids
        )
        found.append((processes, number % 2 == 1, chance.choice((None, 0, 0.5, 30, 86_400.0))))
    return found
