"""Keep what an instance prints: its init script, and its processes for as long as they run.

The parameter `log` says where. `journal`: the processes print to a stream of journald's. `file`,
and `journal` for a hardened instance, which gets no socket of the host's: they print to a pipe;
while the init script runs, the verb reads it, and then, if processes still have it, a logger
(`linux/logger`). `off`: nothing is kept of what is printed after the init script
has ended; a process that goes on printing gets EAGAIN when the pipe is full.
"""

from __future__ import annotations

import os
import time
from fcntl import F_SETFL, fcntl

from chrootfw.errors import NotSupported, StepError
from chrootfw.lifecycle.context import Job
from chrootfw.linux import cgroups, files, journal, logger
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.log_file import FILE, JOURNAL, OFF, LogFile
from chrootfw.linux.pipe_workers import OutputWorker
from chrootfw.model import Event, Stage
from chrootfw.state import output_log, output_record
from chrootfw.state.output_record import OutputRecord
from chrootfw.state.snapshot import Snapshot, read_instance

#: Bytes of a script's output that an error and its own log keep: its end.
TAIL_MAX = 64 * 1024
#: Seconds for a logger to end after the last process that could print.
_LOGGER_END = 5.0
_MIB = 1 << 20


class ScriptOutput:
    """What one run of an init script prints, and where it goes.

    Attributes:
        fd: The standard output and error of the script.
        reads: What `take` reads; -1 if the script prints to the journal. The processes' own pipe is
            read by a worker alone.
    """

    def __init__(self, job: Job, action: str, script: str, *, is_isolated: bool) -> None:
        """Open the output.

        Args:
            job: The instance.
            action: `start` or `stop`.
            script: The script, for people.
            is_isolated: Whether the script gets nothing of the host's, such as journald's socket.
        """
        self._job = job
        self._action = action
        self._stage: Stage = "init-start" if action == "start" else "init-stop"
        self._does = f"run {script} {action}"
        self._begun = time.time()
        self._kept = bytearray()
        self._is_finished = False
        self._opened = Descriptors()
        self._worker: OutputWorker | None = None
        self._mode = output_log.mode_of(job.instance.params)
        self._file: LogFile | None = None
        self.fd = self.reads = -1
        self._stream = -1
        if self._mode == JOURNAL:
            self._open_journal()
        if self._stream >= 0 and action == "start" and not is_isolated:
            self.fd = self._stream
        else:
            shared = Descriptors()
            self._worker = OutputWorker(shared, *logger.make_pipe(shared))
            self.reads, self.fd = self._worker.reads, self._worker.inside
        if self._mode == FILE:
            record = _file_record(job)
            self._file = LogFile(*os.path.split(record.path), record.size)
            self._file.end_line()
        self._write(f"-- {_clock(self._begun)} chrootfw: {script} {action}\n".encode())

    def _open_journal(self) -> None:
        try:
            self._stream = journal.open_stream(self._job.name, self._opened)
        except OSError as error:
            self._mode = FILE
            self._job.warn(
                self._stage,
                f"the journal does not take the output of {self._job.name} ({error.strerror}); it"
                f" goes to {output_log.path(self._job.log_dir, self._job.name)}",
            )

    def take(self) -> bytes | None:
        """Read once; return what came, `b""` at the end, or `None` if nothing came."""
        try:
            data = os.read(self.reads, TAIL_MAX)
        except BlockingIOError:
            return None
        self._kept += data
        if (excess := len(self._kept) - TAIL_MAX) > 0:
            del self._kept[:excess]
        self._write(data)
        if data:  # the plugins do not get it: the script would wait for them
            event = Event("output", self._job.name, self._stage, self._does, output=data)
            self._job.stages.report(event)
        return data

    def _write(self, data: bytes) -> None:
        """Write to the log; the journal gets what it takes at once."""
        if self._file is not None:
            self._file.write(data)
        elif self._stream >= 0:
            try:
                journal.send(self._stream, data)
            except OSError:
                pass  # what the script prints is in its own log too

    def close(self) -> None:
        """Close the output; the processes that the script has left keep theirs.

        What a script that could not be run, or was interrupted, has printed is kept. Its pipe says
        EAGAIN when it is full.
        """
        if not self._is_finished:
            if self._worker is not None:
                self._drain(self._worker, is_last=True)
            self._keep_script("did not come to its end", time.time(), bytes(self._kept))
        self._close()

    def _drain(self, worker: OutputWorker, *, is_last: bool) -> None:
        """Read what is left in the pipe.

        Args:
            worker: The worker that reads it.
            is_last: Whether no process reads the pipe afterwards.
        """
        if is_last:
            # First not blocking, then read: what sleeps in a full pipe wakes up to EAGAIN.
            fcntl(worker.inside, F_SETFL, os.O_RDWR | os.O_NONBLOCK)
        if not worker.finish(self.take):
            self._job.warn(
                self._stage,
                f"cannot read what the init script of {self._job.name} printed last: {worker.left}",
            )

    def _close(self) -> None:
        self._is_finished = True
        if self._worker is not None:
            self._worker.close()
        self._opened.close_all()
        if self._file is not None:
            self._file.close()

    def finish(self, ended: str, *, has_failed: bool) -> bytes:
        """Read what is left, note how the script ended, and leave the pipe to a logger.

        Args:
            ended: How the script ended, such as `exited with status 1`.
            has_failed: Whether its output is wanted now, for an error.

        Returns:
            The end of what it printed; of a script that succeeded, only what was read anyway.
        """
        self._is_finished = True
        until = time.time()
        if self._worker is None:
            self._finish_journal(ended, until, is_wanted=has_failed)
            self._close()
            return bytes(self._kept)
        self._drain(self._worker, is_last=self._mode == OFF or self._action != "start")
        self._keep_script(ended, until, bytes(self._kept))
        if self._file is not None and self._file.error is not None:
            self._warn_of(self._file.error)
        if self._action == "start":
            self._record()
        self._close()
        return bytes(self._kept)

    def _finish_journal(self, ended: str, until: float, *, is_wanted: bool) -> None:
        if is_wanted:
            try:
                self._kept += journal.read(self._job.name, self._begun)[-TAIL_MAX:]
            except OSError as error:
                self._kept += f"(its output is in the journal: {error})\n".encode()
        self._keep_script(ended, until, b"")
        if self._action == "start":
            self._record()

    def _record(self) -> None:
        """Note where the output goes now; start a logger if a process still has the pipe."""
        job = self._job
        record = _file_record(job) if self._file else OutputRecord(self._mode)
        worker = self._worker
        if self._mode != OFF and worker is not None and logger.has_writers(worker.source):
            self._start_logger(record, worker.source)
        else:
            _write_record(job, record)

    def _start_logger(self, record: OutputRecord, source: int) -> None:
        job = self._job
        os.set_blocking(source, True)
        try:
            start_logger(job.run_dir, job.name, job.latest_snapshot(), source, record)
        except (OSError, NotSupported) as error:
            brief = error.brief if isinstance(error, NotSupported) else error.strerror
            job.warn(
                self._stage,
                f"cannot start the logger of {job.name}: {brief}; what its processes print is not"
                " kept",
            )
            _write_record(job, record)

    def _keep_script(self, ended: str, until: float, data: bytes) -> None:
        """Write the log of this script alone, which `chrootfw logs --start` and `--stop` show."""
        # What was read from a pipe is kept here also where the journal has it.
        mode = FILE if self._stream >= 0 and self._worker is not None else self._mode
        run = output_log.ScriptRun(self._action, self._begun, until, ended, mode)
        try:
            output_log.write_script(self._job.log_dir, self._job.name, run, data)
        except OSError as error:
            self._warn_of(error)

    def _warn_of(self, error: OSError) -> None:
        self._job.warn(
            self._stage,
            f"cannot keep the output of the init script in {self._job.log_dir}: {error.strerror}",
        )


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


# -- the logger ------------------------------------------------------------------------------------


def _file_record(job: Job) -> OutputRecord:
    path = output_log.path(job.log_dir, job.name)
    return OutputRecord(FILE, path, int(job.instance.params["log_size"] * _MIB))


def _write_record(job: Job, record: OutputRecord) -> None:
    try:
        output_record.write(job.run_dir, job.name, record)
    except OSError as error:
        path = output_record.path(job.run_dir, job.name)
        job.warn("init-start", f"cannot write {path}: {error.strerror}")


def start_logger(
    run_dir: str, name: str, snapshot: Snapshot, pipe: int | logger.PipeOf, record: OutputRecord
) -> None:
    """Start the logger of an instance, and record it.

    Args:
        run_dir: The run directory.
        name: The instance.
        snapshot: Where its cgroups are.
        pipe: The end of the pipe that is read, or a process that has the pipe.
        record: Where the log is.

    Raises:
        OSError: The logger cannot be started, or not be recorded; then it is ended.
        NotSupported: This process has no interpreter that it could execute.
    """
    cgroup = _logger_cgroup(run_dir, name, snapshot)
    if record.path:
        arguments = (*os.path.split(record.path), str(record.size))
        found = logger.start(pipe, arguments, cgroup)
    else:
        with Descriptors() as opened:
            stream = journal.open_stream(name, opened)
            found = logger.start(pipe, (), cgroup, stream=stream)
    try:
        record = OutputRecord(
            record.mode,
            record.path,
            record.size,
            pipe=logger.identity(pipe) if isinstance(pipe, int) else pipe.inode,
            pid=found.pid,
            start_time=found.start_time,
        )
        output_record.write(run_dir, name, record)
    except BaseException:
        found.kill()
        raise


def _logger_cgroup(run_dir: str, name: str, snapshot: Snapshot) -> str | None:
    """Make the cgroup of the logger; `None` where there is none for it."""
    if snapshot.tracking != "cgroup" or not snapshot.top:
        return None
    try:
        return cgroups.create_for_logger(cgroups.home(snapshot.top, run_dir), name)
    except OSError:
        return None  # then it is in the caller's, as where there are no cgroups


def revive_logger(run_dir: str, name: str) -> str | None:
    """Start the logger of an instance again if it was killed; do nothing without the rights.

    Args:
        run_dir: The run directory.
        name: The instance.

    Returns:
        Why it cannot be started; `None` if it runs, or none is needed.
    """
    record = output_record.read(run_dir, name) if os.geteuid() == 0 else None
    if record is None or not record.has_lost_logger():
        return None
    snapshot = read_instance(run_dir, name)
    try:
        if pipe := output_record.find_pipe(snapshot, name, record):
            start_logger(run_dir, name, snapshot, pipe, record)
    except (OSError, NotSupported) as error:
        brief = error.brief if isinstance(error, NotSupported) else error.strerror
        return f"cannot start the logger of {name} again: {brief}"
    return None


def end_logger(job: Job) -> None:
    """Wait for the logger of an instance that has no process any more, and remove its cgroup.

    A logger that has not ended in time, since a process outside has the pipe, is killed.

    Raises:
        StepError: The cgroup cannot be removed.
    """
    record = output_record.read(job.run_dir, job.name)
    found = logger.Logger(record.pid, record.start_time) if record and record.pid else None
    if found is not None and not found.wait_for_end(_LOGGER_END):
        found.kill()
        if not found.wait_for_end(_LOGGER_END):
            job.warn("unmount", f"the logger of {job.name}, pid {found.pid}, does not end")
            return
    top = job.latest_snapshot().top
    if top:
        path = cgroups.of_logger(cgroups.home(top, job.run_dir), job.name)
        try:
            cgroups.remove_when_empty(path, _LOGGER_END)
        except OSError as error:
            raise StepError(f"cannot remove the cgroup {path}: {error.strerror}") from error
    files.remove(output_record.path(job.run_dir, job.name))
