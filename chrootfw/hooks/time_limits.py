"""Call plugins' code: isolated in a worker thread with a time limit, or in the caller's thread.

Python cannot end a call from outside. An isolated call that does not come back is left behind with
its thread, and nothing is thrown into it: an exception in the middle of it could leave a lock held
or a change half made. The thread may go on until the process ends (``has_thread_left``).
"""

from __future__ import annotations

import contextvars
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Any, TypeVar

from chrootfw.errors import ChrootfwError, Interrupted

T = TypeVar("T")

#: Seconds that a hook has for its answer: hooks decide, and touch nothing.
HOOK_TIMEOUT = 10.0

#: Seconds for a hook when an end was requested, or a stop is forced.
URGENT_TIMEOUT = 1.0

#: Seconds after which a request to end is noticed while a call runs.
_NOTICES = 0.1

#: Seconds for a thread without a call to end.
_ENDS = 1.0

#: The longest text of an exception of a plugin's, in characters.
_TEXT_MAX = 2000

#: So many lines of what a failed command printed are shown.
_OUTPUT_LINES = 20

_PACKAGE = f"{os.path.dirname(os.path.dirname(__file__))}/"
_LIBRARY = f"{os.path.dirname(os.__file__)}/"
_MISSING = object()


class HookTimeout(Exception):
    """A call did not come back in time."""


class WrongAnswer(Exception):
    """An answer is not valid; the text says why."""


class Failure(Exception):
    """An exception of a plugin's code, described where the plugin's code runs.

    Nothing of the exception itself is read afterwards: its attributes may be the plugin's code too.

    Attributes:
        text: ``ValueError: bad value``.
        details: The last frame in the plugin's own module, and what a failed command printed.
        traceback: The whole traceback, as text.
        error: The exception, if its class is Python's or chrootfw's own; else ``None``.
    """

    def __init__(
        self, text: str, details: list[str], traceback: str, error: BaseException | None
    ) -> None:
        super().__init__(text)
        self.text = self.brief = text
        self.details = details
        self.traceback = traceback
        self.error = error


def describe_failure(error: BaseException, module: str = "") -> Failure:
    """Describe an exception of a plugin's code.

    With ``CHROOTFW_DEBUG`` in the environment the details have the whole traceback.

    Args:
        error: The exception.
        module: The name of the plugin's own module.
    """
    kind = type(error)
    try:
        text = error.brief if isinstance_exactly(error, ChrootfwError) else str(error)  # type: ignore[attr-defined]  # the check says so
        text = f"{kind.__name__}: {text}" if text else kind.__name__
    except BaseException as second:
        text = f"{kind.__name__}, whose text cannot be read: {type(second).__name__}"
    try:
        details = [*find_last_frame(error, module), *_printed(error)]
    except BaseException:
        details = []
    try:
        import traceback

        whole = "".join(traceback.format_exception(error))
    except BaseException:
        whole = ""
    if os.environ.get("CHROOTFW_DEBUG"):
        details += whole.splitlines()
    return Failure(_limited(text), details, whole, error if _is_plain(kind) else None)


def isinstance_exactly(error: BaseException, kinds: type | tuple[type, ...]) -> bool:
    """Return what ``isinstance`` does, by the true class: ``__class__`` may be a plugin's code."""
    return issubclass(type(error), kinds)


def _is_plain(kind: type) -> bool:
    """Return whether an exception's class has no code of others."""
    return all(
        each.__module__ == "builtins" or each.__module__.startswith("chrootfw.")
        for each in kind.__mro__
    )


def _has_own_attributes(kind: type) -> bool:
    """Return whether what is read of every exception would run code of the plugin's."""
    return any(
        name in vars(each)
        for each in kind.__mro__
        if each.__module__ != "builtins"
        for name in ("__class__", "__cause__", "__getattribute__")
    )


def _limited(text: str) -> str:
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}…"


def _printed(error: BaseException) -> list[str]:
    """Return the end of what a failed command has printed (``subprocess.CalledProcessError``)."""
    subprocess = sys.modules.get("subprocess")
    if subprocess is None or not isinstance_exactly(error, subprocess.SubprocessError):
        return []
    printed = getattr(error, "stderr", None) or getattr(error, "output", None) or b""
    text = printed.decode("utf-8", "replace") if isinstance(printed, bytes) else str(printed)
    return [_limited(line.rstrip()) for line in text.splitlines()[-_OUTPUT_LINES:]]


def find_last_frame(error: BaseException, module: str = "") -> list[str]:
    """Return the last line of code of a plugin that an exception came through.

    Args:
        error: The exception.
        module: The name of the plugin's own module. Without it, and where no frame is in it or in
            its package, the last frame outside of Python's library and chrootfw is taken.

    Returns:
        The line in a list, or ``[]``. A syntax error has the place that it names.
    """
    if isinstance_exactly(error, SyntaxError):
        where = getattr(error, "filename", None)
        return [f"{where}, line {getattr(error, 'lineno', 0)}"] if isinstance(where, str) else []
    frames = list(_walk(error.__traceback__))
    found = _choose([frame for frame, _ in frames], module)
    line = next((line for frame, line in reversed(frames) if frame is found), 0)
    return [_describe_frame(found, line)] if found is not None else []


def _walk(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _choose(frames: list[FrameType], module: str) -> FrameType | None:
    """Choose the last frame of a module, else of its package, else of neither library."""
    names = [(frame.f_globals.get("__name__"), frame) for frame in reversed(frames)]
    package = module.partition(".")[0]
    for name, frame in names:
        if module and name == module:
            return frame
    for name, frame in names:
        if package and isinstance(name, str) and f"{name}.".startswith(f"{package}."):
            return frame
    for _, frame in names:
        file = frame.f_code.co_filename
        is_library = file.startswith(_LIBRARY) and "/site-packages/" not in file
        if not file.startswith((_PACKAGE, "<")) and not is_library:
            return frame
    return None


def _describe_frame(frame: FrameType, number: int) -> str:
    import linecache

    file = frame.f_code.co_filename
    line = linecache.getline(file, number, frame.f_globals).strip()
    return f"{file}, line {number}, in {frame.f_code.co_name}{f': {line}' if line else ''}"


# -- workers ---------------------------------------------------------------------------------------


class _Call:
    """One call in a worker: what it returned or raised, when ``done`` can be acquired."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function: Callable[[], Any] | None = function
        self.done = threading.Lock()
        self.done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None

    def make(self) -> None:
        function, self._function = self._function, None
        try:
            assert function is not None
            self.result = function()
        except BaseException as error:  # all of it is the caller's
            self.error = error
        finally:
            self.done.release()


class _WorkerThread(threading.Thread):
    """A daemon: Python does not wait for it. Threads that are started in it are not daemons.

    A thread inherits ``daemon`` of the one that starts it, and a plugin's threads are to be as they
    are elsewhere.
    """

    _is_running = False

    @property
    def daemon(self) -> bool:  # type: ignore[override]  # read once when it is started
        """Return what it is itself until it runs, and then what its threads inherit."""
        return not self._is_running

    def run(self) -> None:
        """Make the calls."""
        self._is_running = True
        super().run()


class _Worker:
    """A thread that makes one call after the other."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self.thread = _WorkerThread(
            target=_work, args=(self._calls,), daemon=True, name="chrootfw-plugins"
        )
        self.thread.start()

    def begin(self, function: Callable[[], Any]) -> _Call:
        call = _Call(function)
        self._calls.put(call)
        return call

    def end(self) -> None:
        """End the thread when its call is over."""
        self._calls.put(None)


def _work(calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        call.make()
        del call


#: The threads that were left behind in a call.
_left_behind: list[threading.Thread] = []


def has_thread_left() -> bool:
    """Return whether a thread that was left behind in a plugin's code still runs.

    Python waits for no such thread at the end of the process, but its code could still run while
    the interpreter is taken down: end the process by ``os._exit``, after the ``atexit`` handlers.
    """
    _left_behind[:] = [thread for thread in _left_behind if thread.is_alive()]
    return bool(_left_behind)


def _until(deadline: float) -> float:
    """Return how long to wait at once: until the deadline, or the next check."""
    return max(0.0, min(_NOTICES, deadline - time.monotonic()))


def _wait(worker: _Worker, call: _Call, seconds: float, check: Callable[[], object]) -> None:
    """Wait for a call, ``check``-ing meanwhile. Else it is left behind with its thread.

    Raises:
        HookTimeout: The time limit has passed.
        BaseException: What ``check`` raised.
    """
    deadline = time.monotonic() + seconds
    is_done = False
    try:
        while not (is_done := call.done.acquire(timeout=_until(deadline))):
            check()
            if time.monotonic() >= deadline:
                raise HookTimeout(f"did not come back within {seconds:g} s")
    finally:
        if not is_done:
            worker.end()
            _left_behind.append(worker.thread)


def call_with_time_limit(seconds: float, call: Callable[[], T]) -> T:
    """Call a function in a thread of its own, and do not wait longer than a time limit for it.

    Args:
        seconds: The time limit (float).
        call: The function. It finds a copy of the caller's context variables.

    Returns:
        What ``call`` returns.

    Raises:
        HookTimeout: The time limit has passed; the call is left behind.
        BaseException: What ``call`` raises.
    """
    context = contextvars.copy_context()
    worker = _Worker()
    begun = worker.begin(lambda: context.run(call))
    _wait(worker, begun, seconds, lambda: None)
    worker.end()
    if begun.error is not None:
        error, begun.error = begun.error, None  # kept, it would be a cycle with its traceback
        raise error
    result: T = begun.result
    return result


class _Variables:
    """The context variables that all plugins share in one verb.

    A context in which a call hangs cannot be entered again, and a Token is valid only in the
    context in which it was made. So each plugin has a context of its own for the whole verb, in
    which the others' changes are set before each of its calls.
    """

    def __init__(self) -> None:
        self.values: dict[contextvars.ContextVar[Any], Any] = dict(contextvars.copy_context())
        self._contexts: dict[
            str, tuple[contextvars.Context, dict[contextvars.ContextVar[Any], Any]]
        ] = {}

    def run(
        self, plugin: str, function: Callable[[], T]
    ) -> tuple[T | Failure, dict[contextvars.ContextVar[Any], Any]]:
        """Run a function in a plugin's context; return its result, and the variables after it."""
        context, tokens = self._contexts.setdefault(plugin, (contextvars.Context(), {}))
        return context.run(self._run, context, tokens, function)

    def forget(self, plugin: str) -> None:
        """Forget the context of a plugin whose call was left behind: it cannot be entered."""
        self._contexts.pop(plugin, None)

    def _run(
        self,
        context: contextvars.Context,
        tokens: dict[contextvars.ContextVar[Any], Any],
        function: Callable[[], T],
    ) -> tuple[T | Failure, dict[contextvars.ContextVar[Any], Any]]:
        before = dict(context)
        for variable, value in self.values.items():
            if before.get(variable, _MISSING) is not value:
                token = variable.set(value)
                if variable not in before:
                    tokens[variable] = token
        for variable in before:
            if variable not in self.values and variable in tokens:
                variable.reset(tokens.pop(variable))
        return function(), dict(context)


class _Watchdog:
    """A thread that reports a call in the caller's thread that takes long."""

    def __init__(self, report: Callable[[str, str, str], None]) -> None:
        self._report = report
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._running: tuple[float, str, str, int, float, str] | None = None

    def watch(self, plugin: str, what: str, seconds: float, module: str) -> Any:
        """Say that a call of this thread begins; return what was watched before."""
        before = self._running
        due = time.monotonic() + seconds
        self._running = (due, plugin, what, threading.get_ident(), seconds, module)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._work, args=(seconds,), daemon=True, name="chrootfw-watchdog"
            )
            self._thread.start()
        return before

    def go_back(self, before: Any) -> None:
        """Say that the call is over; ``before``: what ``watch`` returned."""
        self._running = before

    def end(self) -> None:
        """End the thread, and wait for that: setns(2) refuses where another thread is."""
        self._end.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_ENDS)

    def _work(self, seconds: float) -> None:
        reported = None
        wait = seconds
        while not self._end.wait(wait):
            running = self._running
            wait = seconds
            if running is None or running is reported:
                continue
            due, plugin, what, ident, limit, module = running
            if (left := due - time.monotonic()) > 0:
                wait = min(left, seconds)
                continue
            reported = running
            where = _where_is(ident, module)
            try:
                self._report(plugin, what, f"has not come back after {limit:g} s{where}")
            except Exception:
                return  # the interpreter is being taken down


def _where_is(thread: int, module: str) -> str:
    """Return where a thread is in a plugin's code."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001  # the documented way
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    found = _choose(frames[::-1], module)
    return f": {_describe_frame(found, found.f_lineno)}" if found is not None else ""


class PluginCalls:
    """Call plugins' code for one verb, isolated or in the caller's thread.

    Args:
        is_isolated: Whether plugins' code runs in a worker thread, one for the whole verb. When a
            call does not come back, the thread is left behind and another one takes its place.
        check: Raises when an end was requested; called while an isolated call runs.
        is_urgent: Returns whether an end was requested, from which nothing shields.
        report_slow: Called in another thread with a plugin's name, what is called, and a clause,
            when a call in the caller's thread takes longer than its time limit.

    Attributes:
        timed_out: The names of plugins whose code was left behind; they are called no more.
        stuck_modules: The names of packages in which an import was left behind.
        is_hurried: Whether no hook has more than ``URGENT_TIMEOUT``.
    """

    def __init__(
        self,
        *,
        is_isolated: bool = False,
        check: Callable[[], object] = lambda: None,
        is_urgent: Callable[[], bool] = lambda: False,
        report_slow: Callable[[str, str, str], None] | None = None,
    ) -> None:
        self.is_isolated = is_isolated
        self.check = check
        self.is_urgent = is_urgent
        self.timed_out: set[str] = set()
        self.stuck_modules: set[str] = set()
        self.is_hurried = False
        self._variables = _Variables() if is_isolated else None
        self._worker: _Worker | None = None
        self._watchdog = _Watchdog(report_slow) if report_slow and not is_isolated else None

    def __del__(self) -> None:
        if watchdog := getattr(self, "_watchdog", None):
            watchdog.end()
        if worker := getattr(self, "_worker", None):
            worker.end()
            if worker.thread is not threading.current_thread():
                worker.thread.join(_ENDS)  # it has no call to make

    def limit(self, seconds: float) -> float:
        """Return the time limit of a hook now."""
        return min(seconds, URGENT_TIMEOUT) if self.is_hurried or self.is_urgent() else seconds

    def call(
        self,
        plugin: str,
        what: str,
        function: Callable[[], T],
        *,
        seconds: float,
        module: str = "",
        is_interruptible: bool = True,
    ) -> T:
        """Call a plugin's code.

        Args:
            plugin: The plugin's name.
            what: What is called, such as ``chrootfw_mount``.
            function: The code.
            seconds: The time limit (float).
            module: The name of the plugin's own module.
            is_interruptible: Whether a request to end ends the wait, for isolated code.

        Returns:
            What it returns.

        Raises:
            HookTimeout: It did not come back; its thread is left behind.
            WrongAnswer: As raised by the function.
            Failure: It raised anything else.
            KeyboardInterrupt: It raised that in the caller's thread, or the user did.
            Interrupted: Likewise; or an end was requested.
        """
        if self.is_isolated:
            return self._call_isolated(plugin, function, seconds, module, is_interruptible)
        before = self._watchdog and self._watchdog.watch(plugin, what, seconds, module)
        try:
            return function()
        except (WrongAnswer, KeyboardInterrupt, Interrupted):
            raise
        except BaseException as error:
            failure = describe_failure(error, module)
            if not _has_own_attributes(type(error)):
                failure.error = error  # it was raised in the caller's own thread
            raise failure from failure.error
        finally:
            if self._watchdog:
                self._watchdog.go_back(before)

    def _call_isolated(
        self,
        plugin: str,
        function: Callable[[], T],
        seconds: float,
        module: str,
        is_interruptible: bool,
    ) -> T:
        variables = self._variables
        assert variables is not None

        def guarded() -> T | Failure | WrongAnswer:
            try:
                return function()
            except WrongAnswer as error:
                return WrongAnswer(*error.args)
            except BaseException as error:
                return describe_failure(error, module)

        worker, self._worker = self._worker, None
        if worker is None or not worker.thread.is_alive():  # in a fork no thread goes on
            worker = _Worker()
        call = worker.begin(lambda: variables.run(plugin, guarded))
        try:
            _wait(worker, call, seconds, self.check if is_interruptible else lambda: None)
        except BaseException:
            self.timed_out.add(plugin)
            variables.forget(plugin)
            raise
        if self._worker is None:
            self._worker = worker
        else:
            worker.end()  # two threads of the program call at once
        if call.error is not None:
            error, call.error = call.error, None
            raise error
        result, variables.values = call.result
        if isinstance_exactly(result, (Failure, WrongAnswer)):
            if is_interruptible:
                self.check()  # what it raised may be because of a request to end
            raise result from getattr(result, "error", None)
        returned: T = result
        return returned
