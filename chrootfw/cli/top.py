"""Show a live list of the instances, with the processor time of the last interval."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase

import attrs

from chrootfw.cancellation import Cancellation, from_signals
from chrootfw.cli import render
from chrootfw.cli.natural_order import natural_key
from chrootfw.errors import InputError
from chrootfw.planning.printable import Shown
from chrootfw.state import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from chrootfw.views import InstanceInfo

#: Reading the instances takes at most one part in so many of the time.
_SHARE = 4
#: Seconds between two readings at least.
_SHORTEST = 0.1

#: What the keys sort by; the first letter is the key.
SORTS = ("cpu", "memory", "processes", "name")


@attrs.frozen
class Row:
    """An instance, and its share of one processor since the reading before."""

    info: InstanceInfo
    cpu_percent: float | None

    def cells(self) -> list[str]:
        """Return what the table shows."""
        info = self.info
        percent = "-" if self.cpu_percent is None else f"{self.cpu_percent:.1f}"
        return [
            info.name,
            render.describe_state(info),
            str(info.processes) if info.state == "running" else "-",
            percent,
            render.size(info.memory_bytes),
            info.disk or "-",
        ]


class Readings:
    """Compare each reading of the instances with the one before.

    Args:
        read: Reads the instances.
    """

    def __init__(self, read: Callable[[], Sequence[InstanceInfo]]) -> None:
        self._read = read
        self._before: dict[tuple[str, str | None], tuple[float, float]] = {}

    def take(self, patterns: Sequence[str], sort: str) -> tuple[list[Row], str]:
        """Read the instances.

        Args:
            patterns: Of the names; empty for all.
            sort: One of ``SORTS``; the largest first.

        Returns:
            Those that are present, in their order, and a total of all.
        """
        found = self._read()
        now = time.monotonic()
        if patterns:
            found = [i for i in found if any(fnmatchcase(i.name, each) for each in patterns)]
        rows, known = [], {}
        for info in found:
            percent = None
            if info.cpu_seconds is not None:
                key = (info.name, info.started_at)
                known[key] = (now, info.cpu_seconds)
                if before := self._before.get(key):
                    spent = max(0.0, info.cpu_seconds - before[1])
                    percent = 100 * spent / max(now - before[0], 0.001)
            if info.state != "absent":
                rows.append(Row(info, percent))
        self._before = known
        rows.sort(key=lambda row: natural_key(row.info.name))
        if sort == "cpu":
            rows.sort(key=lambda row: row.cpu_percent or 0.0, reverse=True)
        elif sort == "memory":
            rows.sort(key=lambda row: row.info.memory_bytes or 0, reverse=True)
        elif sort == "processes":
            rows.sort(key=lambda row: row.info.processes, reverse=True)
        return rows, render.total(found)


def draw(rows: Sequence[Row], total: str, sort: str, lines: int) -> list[Shown]:
    """Return the lines of one screen.

    Args:
        rows: The instances.
        total: A total of all.
        sort: What they are sorted by.
        lines: How many lines the terminal has.
    """
    stream = sys.stdout
    width = (render.columns(stream) or 80) - 1
    space = max(1, lines - 3)
    shown = rows if len(rows) <= space else rows[: space - 1]
    head = f"{time.strftime('%H:%M:%S')}  {total}"
    keys = f"by {sort}; keys: c, m, p, n sort, q ends"
    table = render.table(
        ("NAME", "STATE", "PROCS", "CPU %", "MEMORY", "DISK"),
        [row.cells() for row in shown],
        stream,
        {1: render.STATE_COLOURS},
        clips={5: 10, 0: 8},  # the disk, then the name
        numbers=[2, 3, 4],
    )
    found = [
        render.clip(Shown(head), width),
        render.paint(render.clip(Shown(keys), width), "dim", stream),
        *map(Shown, table.split("\n")),
    ]
    if len(shown) < len(rows):
        found.append(render.paint(f"and {len(rows) - len(shown)} more", "dim", stream))
    return found


def run(
    run_dir: str, config_dir: str, *, patterns: Sequence[str], sort: str, interval: float
) -> int:
    """Show the instances until ``q`` or a signal ends it.

    Args:
        run_dir: The run directory.
        config_dir: The directory of the definitions.
        patterns: Names or patterns; empty for all.
        sort: What they are sorted by at first.
        interval: Seconds between two readings.

    Returns:
        The exit status.

    Raises:
        InputError: Standard output is not a terminal that can move its cursor.
    """
    if not render.is_terminal(sys.stdout) or os.environ.get("TERM") in (None, "", "dumb"):
        raise InputError(
            "top needs a terminal that can move its cursor as its standard output",
            hint="chrootfw list",
        )
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    cancellation = Cancellation()
    readings = Readings(lambda: show.show_all(run_dir, config_dir))
    with from_signals(cancellation), _keys() as keys:
        rows, total = readings.take(patterns, sort)  # an error is printed as of list
        live = Live(
            console=Console(file=sys.stdout, highlight=False),
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        pause = interval
        with live:
            while True:
                lines = draw(rows, total, sort, shutil.get_terminal_size().lines)
                text = Text.from_ansi("\n".join(lines), no_wrap=True, overflow="ellipsis")
                live.update(text, refresh=True)
                key = _wait(keys, cancellation, max(pause, _SHORTEST))
                if cancellation.signum == signal.SIGINT or key in ("q", "Q"):
                    return 0
                if cancellation.signum:
                    return 128 + cancellation.signum
                sort = next((each for each in SORTS if each[0] == key.lower()), sort)
                began = time.monotonic()
                rows, total = readings.take(patterns, sort)
                pause = max(interval, (time.monotonic() - began) * (_SHARE - 1))


@contextmanager
def _keys() -> Iterator[int]:
    """Let single keys be read from standard input, if that is a terminal.

    Ctrl-Z is ignored: the shell would get the terminal as it is now.

    Yields:
        The descriptor; -1 if standard input is not a terminal.
    """
    before = None
    try:
        before = termios.tcgetattr(0)
    except termios.error:
        yield -1
        return
    stop = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        tty.setcbreak(0)
        yield 0
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(0, termios.TCSANOW, before)
        signal.signal(signal.SIGTSTP, stop)


def _wait(keys: int, cancellation: Cancellation, seconds: float) -> str:
    """Wait for a key, a request to end, or the end of the interval; return the key, or ``""``."""
    poller = select.poll()
    poller.register(cancellation.fd, select.POLLIN)
    if keys >= 0:
        poller.register(keys, select.POLLIN)
    ready = dict(poller.poll(seconds * 1000))
    if keys not in ready or cancellation.fd in ready:
        return ""
    try:
        data = os.read(keys, 64)
    except OSError:  # the terminal is gone
        data = b""
    return data[:1].decode("ascii", "replace") or "q"
