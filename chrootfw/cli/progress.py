"""Print what a verb does while it runs, and what remains when it is interrupted."""

from __future__ import annotations

import sys
import threading
from collections import deque

from chrootfw.errors import ChrootfwError, Interrupted, NotFoundError, add_details

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TextIO

    from chrootfw.cli.live import LiveLine
    from chrootfw.model import Event
    from chrootfw.planning.printable import Shown
    from chrootfw.runtime import Runtime
    from chrootfw.views import InstanceInfo


def count_processes(info: InstanceInfo) -> str:
    """Return how many processes an instance has, for the end of a sentence."""
    return (
        f": {info.processes} process{'es' if info.processes != 1 else ''}" if info.processes else ""
    )


#: The stages whose steps are printed when they begin, too: they wait by their nature.
_WAITING = ("init-start", "init-stop", "kill")

#: Seconds that are shown as such; fewer are shown as milliseconds.
_IN_SECONDS = 10.0

#: Characters of a step that a terminal shows, however narrow it is.
_SHOWN_MIN = 40

#: Bytes of a script's output that wait for a slow terminal, and of one line.
_WAITS_MAX, _LINE_MAX = 1 << 18, 4096


class Progress:
    """Show events on stderr: warnings and plugin errors always, steps with ``-v``.

    Args:
        verbose: Show the steps, and what the init script prints.
        names: Whether each line names its instance, for a verb on several.
        line: Shows the steps that take long.
        stream: Where the lines go, for their colours.
        write: Prints a line; ``None`` for printing it on ``stream``.

    Attributes:
        changed: The instances of which something was done.
        steps: With ``verbose``, the steps that have ended or failed, for JSON.
    """

    def __init__(
        self,
        *,
        verbose: bool,
        names: bool = False,
        line: LiveLine | None = None,
        stream: TextIO | None = None,
        write: Callable[[Shown], object] | None = None,
    ) -> None:
        self.verbose = verbose
        self.names = names
        self.line = line
        self.changed: set[str] = set()
        self.steps: list[dict[str, Any]] = []
        self._stream = stream or sys.stderr
        self._write = write
        self._outputs: dict[str, _Output] = {}
        self._running: dict[str, Event] = {}
        self._printed: dict[str, Event] = {}
        self._lock = threading.RLock()
        if line is not None and verbose:
            line.before_tick = self._print_late

    def __call__(self, event: Event) -> None:
        if event.what == "output":
            if self.verbose:  # without a lock: a slow terminal must not hold up the script
                self._outputs.setdefault(event.instance, _Output()).add(event.output)
            return
        if event.what in ("warning", "plugin-error"):
            from chrootfw.cli import render

            text = event.error or event.does
            render.keep_warning(text, event.what, instance=event.instance, plugin=event.plugin)
            if self.names and event.instance:
                text = render.name_instance(text, event.instance)
            self._print(render.event(event.what, text, self._stream))
            return
        if self.line is not None:
            self.line.begin(event) if event.what == "begin" else self.line.end(event)
        if event.stage and event.what != "begin":
            self.changed.add(event.instance)
        if self.verbose:
            with self._lock:
                self._show_step(event)

    def _show_step(self, event: Event) -> None:
        if event.what == "begin":
            self._running[event.instance] = event
            if event.stage in _WAITING:
                self._print_begin(event)
            return
        self._running.pop(event.instance, None)
        self._print_output(event.instance, is_last=True)
        if not event.stage:  # the wait for another command
            return
        keys = ("instance", "stage", "does", "plugin", "seconds", "error")
        self.steps.append({key: getattr(event, key) for key in keys})
        mark = ("✓", "green") if event.what == "end" else ("✗", "red")
        self._print_line(mark, describe_time(event.seconds), event)

    def _print_begin(self, event: Event) -> None:
        """Print a step that goes on, once."""
        name = event.instance
        if self._running.get(name) is event and self._printed.get(name) is not event:
            self._printed[name] = event
            self._print_line(("…", "dim"), "", event)

    def _print_line(self, mark: tuple[str, str], took: str, event: Event) -> None:
        from chrootfw.cli import render

        stream = self._stream
        name = f"{event.instance}  " if self.names else ""
        text = f" {took:>10}  {name}{event.stage:<10}  {event.does}"
        by = f"  [{event.plugin}]" if event.plugin else ""
        width = render.columns(stream)
        if width and self._write is None and not event.error:  # an error is shown in full
            if 1 + len(text + by) > width:
                by = by.replace("[chrootfw_defaults.", "[", 1)
            is_default = event.plugin.startswith("chrootfw_defaults.")
            if is_default and 1 + len(text) <= width < 1 + len(text + by):
                by = ""  # a whole step says more than the name of a default
            space = width - 1 - len(by)
            text = _cut_middle(text, max(space, _SHOWN_MIN))
        failed = f": {event.error}" if event.error else ""
        self._print(
            render.join(render.paint(*mark, stream), text, render.paint(by, "dim", stream), failed)
        )

    def _print_late(self, late: Sequence[Event]) -> None:
        """Print the steps that are late when they go on, and what scripts have printed meanwhile.

        Args:
            late: The steps that are late.
        """
        with self._lock:
            for event in late:
                self._print_begin(event)
            for name in list(self._outputs):
                self._print_output(name)

    def _print_output(self, instance: str, *, is_last: bool = False) -> None:
        from chrootfw.cli import render

        output = self._outputs.get(instance)
        if output is None:
            return
        name = f"{instance}  " if self.names else ""
        bar = render.paint("│", "dim", self._stream)
        for line in output.take(is_last=is_last):
            text = line.decode("utf-8", "backslashreplace").expandtabs()
            self._print(render.join(f"{'':14}{name}{'':<10}  ", bar, f" {text}"))

    def _print(self, line: Shown) -> None:
        if self._write is not None:
            self._write(line)
        else:
            from chrootfw.cli import render

            render.show(line, self._stream)

    def close(self) -> None:
        """End what shows the steps that take long."""
        if self.line is not None:
            self.line.close()


class _Output:
    """What a script has printed, and is not yet shown; a bounded number of bytes."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._left_out = 0
        self._rest = b""

    def add(self, data: bytes) -> None:
        """Add what was read; without a wait."""
        if self._size + len(data) > _WAITS_MAX:
            self._left_out += len(data)
            return
        self._size += len(data)
        self._chunks.append(data)

    def take(self, *, is_last: bool) -> list[bytes]:
        """Return the lines that are whole; with ``is_last``, the rest too."""
        parts = [self._rest]
        while self._chunks:
            parts.append(self._chunks.popleft())
        *lines, self._rest = b"".join(parts).split(b"\n")
        self._size = 0
        if len(self._rest) > _LINE_MAX or (is_last and self._rest):
            lines.append(self._rest)
            self._rest = b""
        if self._left_out:
            lines.append(b"(%d bytes more, which chrootfw logs shows)" % self._left_out)
            self._left_out = 0
        return [line.removesuffix(b"\r")[:_LINE_MAX] for line in lines]


def _cut_middle(text: str, space: int) -> str:
    """Shorten a step to a number of columns; a path's end says more than its middle."""
    if len(text) <= space:
        return text
    end = (space - 1) // 3
    return f"{text[: space - 1 - end]}…{text[-end:]}"


def describe_time(seconds: float) -> str:
    """Return how long a step took, for people."""
    if seconds >= _IN_SECONDS:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.{1 if seconds >= 0.001 else 2}f} ms"


class ReportOfRemains:
    """Add to the error of an interrupted stop, reboot or cleanup what remains."""

    def __init__(self, runtime: Runtime, verb: str, name: str) -> None:
        self.runtime = runtime
        self.verb = verb
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if not isinstance(error, Interrupted):
            return
        try:
            info = self.runtime.info(self.name)
        except NotFoundError:
            return  # it has no definition, and nothing of it remains
        except ChrootfwError as second:
            add_details(error, [f"what remains of {self.name} is not known: {second.brief}"])
            return
        mounts = f"{len(info.mounts or ())} mounts remain"
        add_details(error, [f"{info.name} is {info.state}{count_processes(info)}; {mounts}"])
        error.hint = f"chrootfw {self.verb} {info.name} goes on where this one ended"
