"""End the command's process, also when a thread of a plugin does not end."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import Thread

#: Seconds for threads, and again for atexit's handlers, to end.
_SECONDS = 10.0


def end(status: int) -> int:
    """Return the exit status, or end the process if it has other threads.

    A thread that a plugin has left behind could keep Python from ending, or break it: a daemon
    thread that prints at that moment aborts the process. So where there are threads, Python's own
    end is carried out up to the handlers of atexit, each part with a time limit. Then the process
    exits.

    Args:
        status: The exit status.
    """
    threading = sys.modules.get("threading")
    if threading is None or threading.active_count() == 1:
        return status
    _start_watchdog(status)
    # What Python does at its end (Py_FinalizeEx) has no public name.
    threading._shutdown()  # noqa: SLF001  # joins the threads that are not daemons, ends pools
    _run_handlers()
    _exit(status)
    raise AssertionError("the process has ended")


def _start_watchdog(status: int) -> None:
    """Start a thread that ends the process after the time limit, whatever is still going on."""
    import threading
    import time

    others = [each for each in threading.enumerate() if each is not threading.main_thread()]

    def watch() -> None:
        time.sleep(_SECONDS)
        kept = [each.name for each in others if each.is_alive() and not each.daemon]
        if kept:
            _print(f"a thread has not ended in {_SECONDS:g} s, and is left: {', '.join(kept)}")
            handlers = threading.Thread(target=_run_handlers, daemon=True)
            handlers.start()
            handlers.join(_SECONDS)
        else:
            _print(f"what was to be done at the end (atexit) did not end in {_SECONDS:g} s")
        _exit(status)

    watchdog: Thread = threading.Thread(target=watch, name="chrootfw-end", daemon=True)
    watchdog.start()


def _run_handlers() -> None:
    import atexit

    atexit._run_exitfuncs()  # noqa: SLF001  # Python's own end is not to be reached


def _print(text: str) -> None:
    from chrootfw.cli import render

    render.show(f"chrootfw: warning: {text}", sys.stderr)


def _exit(status: int) -> None:
    from chrootfw.cli.main import write_out

    write_out()
    os._exit(status)
