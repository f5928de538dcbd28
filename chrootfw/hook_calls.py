"""Calls of plugins' code with a deadline: a hook that never answers must not keep anyone from stopping.

Python cannot end a call from outside. So it is made in a thread of its own, which is left behind when the time is over:
an endless loop of Python code in it is ended, a system call in it may go on until the process ends.
"""

from __future__ import annotations

import contextvars
import ctypes
import importlib
import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds that a hook has for its answer: hooks decide, and touch nothing.
HOOK_TIMEOUT = 10.0

#: Frames that are nobody's fault: chrootfw's, the import's, and what has no file.
_NOT_TOLD = (os.path.dirname(__file__) + "/", os.path.dirname(importlib.__file__) + "/", "<")


class Overdue(Exception):
    """A call did not come back in time."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """What ``call`` returns or raises. Raises ``Overdue`` after ``seconds``; the call is then left to itself.

    The call finds the context variables (PEP 567) of its caller, and another thread.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    ending = threading.Lock()  # who holds it knows that the thread is there: its number may be another's afterwards
    ended: list[bool] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # all of it is the caller's
            errors.append(error)
        with ending:
            ended.append(True)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True, name="chrootfw-hook")
    thread.start()
    try:
        thread.join(seconds)
    finally:
        with ending:
            if not ended and thread.ident is not None:
                _end_loop(thread.ident)
    if errors:
        raise errors.pop()  # kept, it would be a cycle with its traceback
    if not results:
        raise Overdue(f"did not come back within {seconds:g} s")
    return results[0]


def _end_loop(thread: int) -> None:
    """Raise ``SystemExit`` in a thread, as soon as it executes Python code again."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(SystemExit))


def where(error: BaseException) -> list[str]:
    """The last line of code outside chrootfw that an exception came through, in a list, or ``[]``."""
    import traceback

    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_NOT_TOLD):
            return [f"{frame.filename}, line {frame.lineno}, in {frame.name}: {frame.line}"]
    return []
