"""Where the output of an instance goes since its start, and the logger that writes it.

`RUN_DIR/NAME/output.json`, mode 0600. It is read by every command that enters or shows an instance,
so this module imports little.
"""

from __future__ import annotations

import os
import time

from chrootfw.errors import TrustError
from chrootfw.linux import files, procfs
from chrootfw.linux.log_file import MODES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from chrootfw.linux.logger import PipeOf
    from chrootfw.state.snapshot import Snapshot

_NUMBERS = ("size", "pipe", "pid", "start_time")
_NUMBER_MAX = 2**63


class OutputRecord:
    """Where the output of an instance goes.

    Attributes:
        mode: `journal`, `file` or `off`.
        path: The path of the log; empty without one.
        size: The size in bytes at which a new log is begun.
        pipe: The inode of the pipe that its logger reads; 0 without one.
        pid: The process ID of the logger; 0 without one.
        start_time: When the logger was started, in clock ticks since the boot.
    """

    __slots__ = ("mode", "path", *_NUMBERS)

    def __init__(
        self,
        mode: str,
        path: str = "",
        size: int = 0,
        *,
        pipe: int = 0,
        pid: int = 0,
        start_time: int = 0,
    ) -> None:
        self.mode, self.path, self.size = mode, path, size
        self.pipe, self.pid, self.start_time = pipe, pid, start_time

    def has_lost_logger(self) -> bool:
        """Check that there was a logger, and that it does not run any more."""
        return self.pid > 0 and not self._is_logger_running()

    def _is_logger_running(self) -> bool:
        is_there = procfs.start_time(self.pid) == self.start_time
        return is_there and procfs.is_alive(self.pid)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: getattr(self, name) for name in self.__slots__}

    def to_dict(self) -> dict[str, Any]:
        """Return what `info` shows."""
        runs = self.pid > 0 and self._is_logger_running()
        return {
            "mode": self.mode,
            "path": self.path or None,
            "logger": self.pid if runs else None,
            "written_at": self._read_written_at(),
        }

    def _read_written_at(self) -> str | None:
        """Read when the log was last written, in ISO 8601; `None` without a file."""
        try:
            seconds = os.stat(self.path, follow_symlinks=False).st_mtime if self.path else None
        except OSError:
            return None  # nothing was printed yet, or the file was taken away
        if seconds is None:
            return None
        return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(seconds))


def path(run_dir: str, name: str) -> str:
    """Return the path of the record."""
    return f"{run_dir}/{name}/output.json"


def write(run_dir: str, name: str, record: OutputRecord) -> None:
    """Write the record.

    Raises:
        OSError: It cannot be written.
    """
    files.write(path(run_dir, name), files.dump(record.to_json()))


def read(run_dir: str, name: str) -> OutputRecord | None:
    """Read the record; `None` if there is none, or it cannot be read, or it is damaged."""
    try:
        found = files.load(path(run_dir, name))
    except (OSError, TrustError):
        return None  # what is not known is not shown; only root can read it
    if not isinstance(found, dict) or set(found) != set(OutputRecord.__slots__):
        return None
    numbers = [found[key] for key in _NUMBERS]
    if not all(type(number) is int and 0 <= number < _NUMBER_MAX for number in numbers):
        return None
    if found["mode"] not in MODES or not isinstance(found["path"], str):
        return None
    return OutputRecord(**found)


def find_pipe(snapshot: Snapshot, name: str, record: OutputRecord) -> PipeOf | None:
    """Find an own process that can print to the pipe of a logger which has ended.

    Where there is none, as for daemons that have closed their output, no logger is needed again.

    Args:
        snapshot: The state of the instance.
        name: The instance.
        record: Which pipe it is.
    """
    from chrootfw.linux import logger
    from chrootfw.state import ownership

    return logger.find_pipe(ownership.Judge(snapshot, name).read_own().pids, record.pipe)
