"""Where the output of instances is, and what is in it.

The directory of the logs has `NAME.log` and `NAME.log.1`, what an instance prints where `log` is
`file`, and `NAME@start.log` and `NAME@stop.log`, what its init script printed the last time. They
stay when the instance is stopped.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import attrs

from chrootfw.errors import NotFoundError
from chrootfw.linux import files, log_file
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.log_file import FILE, JOURNAL, OFF

LOG_DIR = "/var/log/chrootfw"

#: With what an init script is run.
ACTIONS = ("start", "stop")

#: Bytes that are read of a log; a larger one is read from its end.
READ_MAX = 1 << 28
#: Seconds after the end of an init script in which journald files what it printed.
_LATE = 1.0
#: Seconds between two looks at a log that is followed.
_FOLLOW = 0.2
_FIRST_LINE = re.compile(
    rb"-- chrootfw: the init script's (start|stop) from ([0-9.]{1,20}) to ([0-9.]{1,20}) "
    rb"\((journal|file|off)\): ([^\n]*)\n"
)


def file_name(name: str) -> str:
    """Return the name of the log of an instance."""
    return f"{name}.log"


def path(log_dir: str, name: str) -> str:
    """Return the path of the log of an instance."""
    return f"{log_dir}/{file_name(name)}"


def script_path(log_dir: str, name: str, action: str) -> str:
    """Return the path of the log of the last run of an init script.

    No instance has such a name: names have no `@`.
    """
    return f"{log_dir}/{name}@{action}.log"


def mode_of(params: Mapping[str, Any]) -> str:
    """Return where the output of an instance goes: `journal`, `file` or `off`."""
    from chrootfw.linux import journal

    wanted: str | None = params.get("log")
    return wanted or (JOURNAL if journal.answers() else FILE)


# -- the last run of an init script ----------------------------------------------------------------


@attrs.frozen
class ScriptRun:
    """One run of an init script.

    Attributes:
        action: `start` or `stop`.
        begun: Seconds since the epoch.
        ended_at: Seconds since the epoch.
        ended: How it ended, such as `exited with status 1`.
        mode: Where its output went.
    """

    action: str
    begun: float
    ended_at: float
    ended: str
    mode: str


def write_script(log_dir: str, name: str, run: ScriptRun, data: bytes) -> None:
    """Replace the log of the last run of an init script.

    Raises:
        OSError: It cannot be written.
    """
    os.close(log_file.open_directory(log_dir))
    line = (
        f"-- chrootfw: the init script's {run.action} from {run.begun:.6f} to {run.ended_at:.6f} "
        f"({run.mode}): {run.ended}\n"
    )
    files.write(script_path(log_dir, name, run.action), line.encode() + data, is_durable=False)


def read_script(log_dir: str, name: str, action: str) -> tuple[ScriptRun, bytes] | None:
    """Read the log of the last run of an init script.

    Returns:
        The run, and the end of what it printed; `None` if there is none.

    Raises:
        OSError: It cannot be read.
    """
    data = files.read(script_path(log_dir, name, action), READ_MAX)
    first = _FIRST_LINE.match(data or b"")
    if data is None or first is None:
        return None
    which, begun, ended_at, mode, ended = (
        each.decode("utf-8", "replace") for each in first.groups()
    )
    try:
        run = ScriptRun(which, float(begun), float(ended_at), ended, mode)
    except ValueError:
        return None  # such as 1.2.3
    return run, data[first.end() :]


# -- what was printed ------------------------------------------------------------------------------


def read_lines(
    log_dir: str,
    name: str,
    *,
    script: str | None = None,
    last: int | None = None,
    follow: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Iterator[bytes]:
    """Read what an instance printed.

    Args:
        log_dir: The directory of the logs.
        name: The instance.
        script: `start` or `stop` for the last run of the init script alone; `None` for all.
        last: How many lines, the last ones; `None` for all.
        follow: Go on with what is printed from now on, without an end.
        check: Called while nothing is printed; it may raise.

    Yields:
        The lines, without their ends.

    Raises:
        NotFoundError: Nothing was kept.
        OSError: The log cannot be read.
    """
    if script is not None:
        yield from _keep_last(_script_lines(log_dir, name, script), last)
        return
    found = read_script(log_dir, name, "start")
    mode = found[0].mode if found else FILE
    if mode == JOURNAL:
        from chrootfw.linux import journal

        yield from journal.lines(name, last=last, follow=follow)
        return
    if mode == OFF:
        raise _not_found(log_dir, name, mode)
    with Follower(log_dir, name) as follower:
        text = follower.read_all()
        if text is None and not follow:
            raise _not_found(log_dir, name, mode)
        yield from _keep_last(_split(text or b""), last)
        if follow:
            yield from _follow(follower, check)


def _follow(follower: Follower, check: Callable[[], None]) -> Iterator[bytes]:
    part = b""
    while True:
        data = follower.read()
        if data:
            *lines, part = (part + data).split(b"\n")
            yield from lines
            if len(part) > log_file.CHUNK:
                yield part
                part = b""
        else:
            check()
            time.sleep(_FOLLOW)


def _script_lines(log_dir: str, name: str, script: str) -> list[bytes]:
    found = read_script(log_dir, name, script)
    if found is None:
        hint = "chrootfw list shows the instances"
        if script == "stop" and read_script(log_dir, name, "start") is not None:
            hint = f"chrootfw logs {name} --start shows what it printed at the last start"
        raise NotFoundError(
            f"the init script of {name} was not run with {script}, or its output was not kept",
            hint=hint,
        )
    run, text = found
    if run.mode == JOURNAL:
        from chrootfw.linux import journal

        # journald files a line when it reads it, which may be later.
        text = journal.read(name, run.begun, run.ended_at + _LATE)
    return [*_split(text), f"-- chrootfw: it {run.ended}".encode()]


def _split(text: bytes) -> list[bytes]:
    """Split into lines at newlines alone: a carriage return is part of a line."""
    lines = text.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _not_found(log_dir: str, name: str, mode: str) -> NotFoundError:
    if mode == OFF:
        return NotFoundError(
            f"what {name} prints is not kept: it was started with log = 'off'",
            hint=f"chrootfw logs {name} --start shows what its init script printed",
        )
    return NotFoundError(
        f"{name} has no log in {log_dir}: it was not started, or another directory was set "
        "(CHROOTFW_LOG_DIR)",
        hint="chrootfw list shows the instances",
    )


def _keep_last(lines: list[bytes], last: int | None) -> list[bytes]:
    return lines if last is None else lines[len(lines) - min(last, len(lines)) :]


class Follower:
    """Reads the log of an instance, and then what is appended to it.

    Args:
        log_dir: The directory of the logs.
        name: The instance.
    """

    def __init__(self, log_dir: str, name: str) -> None:
        self._path = path(log_dir, name)
        self._opened = Descriptors()
        self._fd = -1

    def read_all(self) -> bytes | None:
        """Return what is in the log now, the older file first; `None` if there is no log.

        Of a large log the last 256 MiB are read.
        """
        parts = []
        for place in (f"{self._path}.1", self._path):
            self._begin(place)
            if self._fd >= 0:
                size = os.fstat(self._fd).st_size
                os.lseek(self._fd, max(0, size - READ_MAX), os.SEEK_SET)
                parts.append(os.read(self._fd, READ_MAX))
        return b"".join(parts) if parts else None

    def read(self) -> bytes:
        """Return what was appended; empty if there is nothing now."""
        while True:
            data = os.read(self._fd, log_file.CHUNK) if self._fd >= 0 else b""
            if data or self._is_in_place():
                return data
            self._begin(self._path)
            if self._fd < 0:
                return b""

    def _begin(self, place: str) -> None:
        self.close()
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
            self._fd = self._opened.open(place, flags)
        except FileNotFoundError:
            pass  # nothing was printed yet

    def _is_in_place(self) -> bool:
        try:
            return self._fd >= 0 and os.path.samestat(os.lstat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file."""
        self._opened.close_all()
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
