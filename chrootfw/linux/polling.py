"""Wait with poll(2) in a thread that also has to run Python's signal handlers."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select

#: Seconds. Python runs a handler in the main thread when its system call returns. A signal that
#: arrives just before the call, or in another thread, does not interrupt the call (signal(3),
#: "Execution of Python signal handlers").
_TURN = 1.0


def poll(poller: select.poll, seconds: float | None) -> list[tuple[int, int]]:
    """Wait for events, for at most a second.

    The list may be empty before `seconds` have passed, so the caller checks its clock.

    Args:
        poller: The object with the registered descriptors.
        seconds: Seconds to wait; `None` for no limit.

    Returns:
        The pairs of `select.poll.poll`.
    """
    return poller.poll(max(0.0, _TURN if seconds is None else min(seconds, _TURN)) * 1000)


def is_ready(poller: select.poll, seconds: float | None) -> bool:
    """Wait until an event comes.

    Args:
        poller: The object with the registered descriptors.
        seconds: Seconds to wait; `None` for no limit.

    Returns:
        Whether an event came in time.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    while not poll(poller, None if deadline is None else deadline - time.monotonic()):
        if deadline is not None and time.monotonic() >= deadline:
            return False
    return True
