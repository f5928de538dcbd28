"""Show on one line what a verb waits for, when it takes longer than a second."""

from __future__ import annotations

import sys
import threading
import time

from chrootfw.cli import render
from chrootfw.planning.printable import Shown, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.live import Live

    from chrootfw.model import Event

#: Seconds after which a step is shown while it goes on, and between two updates of the line.
DELAY, _TICK = 1.0, 0.1
#: Columns for the spinner, and for the ^C that the terminal echoes: folded, it would stay.
_BESIDES = 2 + 3
#: Characters of the step that are shown, however narrow the terminal is.
_SHOWN_MIN = 20
#: Seconds for the thread that draws the line to end.
_END = 5.0

#: What Ctrl-C does meanwhile.
_INTERRUPT = {"start": "Ctrl-C undoes it"}


class LiveLine:
    """Show the steps that are under way.

    On a terminal there is one line, which is gone at the end; rich draws it, and is loaded with the
    first line.

    Args:
        verb: The verb.
        is_terminal: Whether standard error is a terminal that can move its cursor.

    Attributes:
        before_tick: Called every tenth of a second with the steps that are late, for printing.
    """

    def __init__(self, verb: str, *, is_terminal: bool) -> None:
        self.verb = verb
        self.is_terminal = is_terminal
        self.before_tick: Callable[[Sequence[Event]], object] | None = None
        self._steps: dict[str, tuple[float, Event]] = {}
        self._lock = threading.RLock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None
        self._hidden_until = 0.0

    def begin(self, event: Event) -> None:
        """Take up a step that begins."""
        with self._lock:
            self._steps[event.instance] = (time.monotonic(), event)
            if self._thread is None:
                render.before_print.append(self.hide)
                self._thread = threading.Thread(
                    target=self._draw, name="chrootfw-live-line", daemon=True
                )
                self._thread.start()

    def end(self, event: Event) -> None:
        """Forget the step of an instance: it is over."""
        with self._lock:
            self._steps.pop(event.instance, None)

    def hide(self) -> None:
        """Take the line away; it comes back if the step goes on."""
        with self._lock:
            self._hidden_until = time.monotonic() + _TICK
            if self._live is not None:
                self._live.stop()
                self._live = None

    def close(self) -> None:
        """Take the line away for good, and end the thread."""
        self._end.set()
        self.hide()
        if self._thread is not None:
            self._thread.join(_END)
            render.before_print.remove(self.hide)

    def _draw(self) -> None:
        while not self._end.wait(_TICK):
            if self.before_tick is not None:
                # It prints, which takes the line away: not with the lock, which others wait for.
                self.before_tick([event for _, event in self._find_late(DELAY)])
            with self._lock:
                now = time.monotonic()
                late = self._find_late(DELAY)
                if not late:
                    if self._live is not None:
                        self.hide()
                elif self.is_terminal and now >= self._hidden_until and not self._end.is_set():
                    began, event = late[0]
                    self._show(event, now - began, len(late) - 1)

    def _find_late(self, seconds: float) -> list[tuple[float, Event]]:
        """Return the steps that go on for longer, the longest first, each with its beginning."""
        latest = time.monotonic() - seconds
        with self._lock:
            found = [each for each in self._steps.values() if each[0] <= latest]
        return sorted(found, key=lambda each: (each[0], each[1].instance))

    def _show(self, event: Event, seconds: float, more: int) -> None:
        from typing import cast

        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        if self._live is None:
            console = Console(file=sys.stderr, highlight=False)
            self._spinner = Spinner("dots" if console.encoding.startswith("utf") else "line")
            self._live = Live(
                console=console,
                transient=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        others = f" (and {more} more)" if more else ""
        interrupt = _INTERRUPT.get(self.verb, "Ctrl-C ends after this")
        if not event.stage:  # it waits for another command, or for the kernel
            interrupt = "Ctrl-C ends the wait"
        limit = f" (at most {event.limit:g} s)" if event.limit else ""
        tail = f"{limit}, {seconds:.0f} s{others}  {interrupt}"
        text = printable(f"{event.instance}: {event.does}")
        space = max(self._live.console.width - _BESIDES - len(tail), _SHOWN_MIN)
        text = Shown((text if len(text) <= space else f"{text[: space - 1]}…") + tail)
        frame = cast("Text", self._spinner.render(time.monotonic()))
        # The spinner's own text would be folded where the terminal is too narrow for it.
        line = Text.assemble(frame, " ", text, no_wrap=True, overflow="ellipsis")
        self._live.update(line, refresh=True)
