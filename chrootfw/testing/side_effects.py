"""Record what a hook does to the system or to the process, where it should only answer.

CPython reports most of it to audit hooks (sys.addaudithook). What a C library does by itself is not
seen.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

#: The audit events that are recorded, and the number of paths that each begins with.
_PATH_EVENTS = {
    "os.chmod": ("changes the mode of", 1),
    "os.chown": ("changes the owner of", 1),
    "os.link": ("links", 2),
    "os.mkdir": ("makes the directory", 1),
    "os.remove": ("removes", 1),
    "os.removexattr": ("removes an attribute of", 1),
    "os.rename": ("renames", 2),
    "os.rmdir": ("removes the directory", 1),
    "os.setxattr": ("sets an attribute of", 1),
    "os.symlink": ("makes a symbolic link,", 2),
    "os.truncate": ("truncates", 1),
    "os.utime": ("changes the times of", 1),
}
_PROCESS_EVENTS = {
    "os.exec": "replaces this process by",
    "os.fork": "forks",
    "os.forkpty": "forks",
    "os.posix_spawn": "runs",
    "os.system": "runs",
    "resource.setrlimit": "changes a limit of this process:",
    "subprocess.Popen": "runs",
}
#: Modules whose effects are those of starting a child.
_CHILDREN = ("chrootfw.linux.call_batch", "chrootfw.linux.child", "chrootfw.linux.interpreter")
#: What the kernel does nothing with by default, as far as a process that runs is concerned.
_HARMLESS = (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)
_SIGNAL_EVENTS = ("os.kill", "os.killpg")


class ProcessEnd(BaseException):
    """Be raised where a plugin's code would end this process, or replace it."""


#: The threads in which a plugin's code may not end the process, and the process of each.
_guarded: weakref.WeakKeyDictionary[threading.Thread, int] = weakref.WeakKeyDictionary()


def keep_process() -> None:
    """Raise ``ProcessEnd`` from now on where this thread would end its process or replace it.

    That is `os._exit`, `os.abort`, an exec and `os.kill`; a C library can still end it. The plugin
    is not called in a process of its own: what measures coverage, a debugger and the test's own
    doubles would not see it, and a fork beside other threads may hang.
    """
    _install()
    _guarded[threading.current_thread()] = os.getpid()


def _refuse(what: str) -> None:
    """Raise ``ProcessEnd`` in a guarded thread; do nothing elsewhere, and in a fork of it."""
    if _guarded.get(threading.current_thread()) == os.getpid():
        if _recorder is not None:
            _recorder.found.append(f"ends this process by {what}")
        raise ProcessEnd(f"{what} ends this process")


def _is_fatal(to: Any, signum: Any) -> bool:
    """Return whether a signal (signal(7)) would end, stop or interrupt this process."""
    if to not in (os.getpid(), os.getpgrp(), 0, -1) or not signum or signum in _HARMLESS:
        return False
    return signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler)


def _guard(name: str) -> None:
    """Let a function of `os` that ends the process raise in guarded threads."""
    ends = getattr(os, name)

    @functools.wraps(ends)
    def end(*arguments: Any, **named: Any) -> Any:
        _refuse(f"os.{name}")
        return ends(*arguments, **named)

    setattr(os, name, end)


class _Recorder:
    """Collect effects of every thread but those that were running before."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._others = {
            thread.ident
            for thread in threading.enumerate()
            if thread is not threading.current_thread()
        }

    def receive(self, event: str, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() not in self._others:
            effect = describe(event, arguments)
            if effect and not _starts_child():  # which is an audit event itself
                self.found.append(effect)


def _starts_child() -> bool:
    """Check that the event belongs to starting a child by which chrootfw reads a file.

    Without the compiled module, the memory that it shares with the child is such an event.
    """
    frame = sys._getframe(1)  # noqa: SLF001  # the stack of the event
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") in _CHILDREN:
            return True
    return False


_recorder: _Recorder | None = None


def describe(event: str, arguments: tuple[Any, ...]) -> str:
    """Return what an audit event does to the system, as a clause, or ``""`` for nothing."""
    if event == "open":
        path, _mode, flags = arguments
        if isinstance(path, int) or not isinstance(flags, int) or not flags & _WRITES:
            return ""
        shown = _show(path)
        return "" if shown == os.devnull else f"opens {shown} for writing"
    if event in _PATH_EVENTS:
        verb, count = _PATH_EVENTS[event]
        return f"{verb} {' and '.join(map(_show, arguments[:count]))}"
    if event in _PROCESS_EVENTS:
        return " ".join([_PROCESS_EVENTS[event], *map(_show, arguments[:1])])
    if event in _SIGNAL_EVENTS and arguments[1]:  # signal 0 only asks
        return f"sends signal {arguments[1]} to process {arguments[0]}"
    return ""


def _show(value: object) -> str:
    return os.fsdecode(value) if isinstance(value, str | bytes | os.PathLike) else repr(value)


def _receive(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.exec" or (event in _SIGNAL_EVENTS and _is_fatal(*arguments[:2])):
        _refuse(event)
    if _recorder is not None:
        try:
            _recorder.receive(event, arguments)
        except Exception:  # a strange argument: what is done goes on all the same
            return


@functools.cache
def _install() -> None:
    sys.addaudithook(_receive)  # for ever: an audit hook cannot be removed
    for name in ("_exit", "abort"):  # for ever: a thread that was left behind may call them
        _guard(name)


@contextmanager
def record() -> Iterator[list[str]]:
    """Collect what this thread, and those that are started meanwhile, do to the system.

    The byte code of a module that is imported meanwhile is not written.

    Yields:
        The effects, a clause each; the list grows.
    """
    global _recorder  # noqa: PLW0603  # audit events come without a context
    _install()
    before, bytecode = _recorder, sys.dont_write_bytecode
    recorder = _recorder = _Recorder()
    sys.dont_write_bytecode = True
    try:
        yield recorder.found
    finally:
        _recorder, sys.dont_write_bytecode = before, bytecode


@attrs.frozen
class ProcessState:
    """Hold what a hook may not change in its process.

    Args:
        directory: The working directory.
        umask: The file mode creation mask, in octal.
        environment: The environment variables.
    """

    directory: str
    umask: str
    environment: Mapping[str, str]

    @classmethod
    def read(cls) -> ProcessState:
        """Read it from this process."""
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            umask = next((line.split()[1] for line in file if line.startswith("Umask:")), "0022")
        return cls(os.readlink("/proc/self/cwd"), umask, dict(os.environ))

    def changes(self, now: ProcessState) -> list[str]:
        """Return how another state differs, a clause each."""
        found = []
        if now.directory != self.directory:
            found.append(f"changes the working directory to {now.directory}")
        if now.umask != self.umask:
            found.append(f"changes the umask to {now.umask}")
        names = {
            name
            for name in {*self.environment, *now.environment}
            if self.environment.get(name) != now.environment.get(name)
        }
        if names:
            found.append(f"changes the environment variable {', '.join(sorted(names))}")
        return found


class ProcessGuard:
    """Put back what a call changed in the process."""

    def __init__(self) -> None:
        self._directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the descriptor of the working directory."""
        os.close(self._directory)

    def compare(self, call: Callable[[], None]) -> list[str]:
        """Make a call and return what it changed in the process, which is put back."""
        before = ProcessState.read()
        call()
        now = ProcessState.read()
        found = before.changes(now)
        if now.directory != before.directory:
            os.fchdir(self._directory)
        if now.umask != before.umask:
            os.umask(int(before.umask, 8))
        if now.environment != before.environment:
            os.environ.clear()
            os.environ.update(before.environment)
        return found
