"""Choose and order what ``list`` shows."""

from __future__ import annotations

from chrootfw.cli import several
from chrootfw.cli.natural_order import natural_key
from chrootfw.cli.render import LIST_COLUMNS
from chrootfw.errors import InputError, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from chrootfw.views import InstanceInfo

#: What ``--sort`` goes by, beside the name: the largest, or latest, first.
_KEYS = {
    "processes": lambda info: info.processes,
    "memory": lambda info: info.memory_bytes or 0,
    "cpu": lambda info: info.cpu_seconds or 0.0,
    "started": lambda info: info.started_at or "",
}


def choose(found: Iterable[InstanceInfo], options: argparse.Namespace) -> list[InstanceInfo]:
    """Return the instances that fit the patterns and states of the options, in their order.

    Raises:
        InputError: A word is neither the name of an instance nor a pattern of names.
    """
    several.check_words(options.patterns)
    chosen = [info for info in found if not options.state or info.state.value in options.state]
    if options.patterns:
        from fnmatch import fnmatchcase

        chosen = [
            info
            for info in chosen
            if any(fnmatchcase(info.name, pattern) for pattern in options.patterns)
        ]
    chosen.sort(key=lambda info: natural_key(info.name))
    if options.sort == "state":
        chosen.sort(key=lambda info: info.state.value)
    elif options.sort != "name":
        chosen.sort(key=_KEYS[options.sort], reverse=True)
    return chosen


def parse_columns(text: str | None) -> tuple[str, ...]:
    """Return the columns that a comma-separated text names; all for ``None``.

    Raises:
        InputError: There is no such column.
    """
    if text is None:
        return tuple(LIST_COLUMNS)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name.upper() not in LIST_COLUMNS:
            near = nearest(name.upper(), LIST_COLUMNS)
            raise InputError(
                f"list has no column {name!r}",
                hint=f"chrootfw list --columns {near or ','.join(LIST_COLUMNS)}",
            )
    return tuple(map(str.upper, names))
