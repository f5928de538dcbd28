"""Append output to a log file of limited size; as a program, do that for whatever a pipe brings.

`python -I -S log_file.py [--again INODE] [DIRECTORY NAME SIZE]` is the logger (`logger`): its
standard input is the pipe that an instance's processes print to. With --again it is their end of
that pipe, which is opened again. Without a directory the logger copies to its standard output, a
stream of the journal. It runs as long as one of them can print, and never keeps one waiting: what
cannot be written is left out, and the log says how much that was.

This module imports nothing of chrootfw's, so that the logger stays small.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import time

#: Where the output of an instance may go: the parameter `log`.
JOURNAL, FILE, OFF = "journal", "file", "off"
MODES = (JOURNAL, FILE, OFF)

#: The name of the logger in ps(1); 15 characters are the most.
COMMAND = "chrootfw-logger"

#: The word before the inode of a pipe that the logger opens again.
AGAIN = "--again"

#: Bytes that are read of the pipe at once.
CHUNK = 1 << 16
#: Seconds between two attempts to open a log that could not be opened or written.
_RETRY = 1.0
_FILE_MODE = 0o640
_DIRECTORY_MODE = 0o755
_OTHERS_WRITE = 0o022


def open_directory(path: str) -> int:
    """Open the directory of the logs; make it if it does not exist.

    Args:
        path: An absolute path.

    Returns:
        A descriptor, close-on-exec.

    Raises:
        OSError: It cannot be made or opened, or others than its owner may write to it.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        try:
            os.mkdir(path, _DIRECTORY_MODE)
        except FileExistsError:
            pass  # another command has just made it
        fd = os.open(path, flags)
    status = os.fstat(fd)
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & _OTHERS_WRITE:
        os.close(fd)
        raise PermissionError(1, "others may write to it", path)
    return fd


class LogFile:
    """A log of at most two files: `NAME`, and `NAME.1` with what was before.

    Args:
        directory: The path of the directory of the logs.
        name: The name of the file.
        size: The size in bytes at which a new file is begun.

    Attributes:
        left_out: Bytes that could not be written since the last ones that could.
        error: Why the last bytes could not be written; `None` if they were.
    """

    def __init__(self, directory: str, name: str, size: int) -> None:
        self._path = directory
        self._name = name
        self._size = size
        self._directory = -1
        self._fd = -1
        self._retry_at = 0.0
        self.left_out = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> None:
        """Append bytes; count them as left out if that is not possible now."""
        if self.error is not None and time.monotonic() < self._retry_at:
            self.left_out += len(data)
            return
        written = 0
        try:
            self._open(len(data))
            if self.left_out:
                self._append(b"\n-- chrootfw: %d bytes were left out here\n" % self.left_out)
                self.left_out = 0
            while written < len(data):
                written += self._append(data[written:])
            self.error = None
        except OSError as error:  # such as ENOSPC
            self.close()
            self.error = error
            self._retry_at = time.monotonic() + _RETRY
            self.left_out += len(data) - written

    def end_line(self) -> None:
        """Write a newline if the last line has none, so that the next one is a line of its own."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            fd = os.open(f"{self._path}/{self._name}", flags)
        except OSError:
            return  # nothing was written yet
        try:
            status = os.fstat(fd)
            is_regular = stat.S_ISREG(status.st_mode) and status.st_size > 0
            is_ended = not is_regular or os.pread(fd, 1, status.st_size - 1) == b"\n"
        except OSError:
            return
        finally:
            os.close(fd)
        if not is_ended:
            self.write(b"\n")

    def close(self) -> None:
        """Close what is open; a later `write` opens it again."""
        for fd in (self._fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self._fd = self._directory = -1

    def _append(self, data: bytes) -> int:
        return os.write(self._fd, data)

    def _open(self, more: int) -> None:
        """Open the file; begin a new one if it would become too large, or was moved away."""
        if self._fd >= 0 and not self._is_in_place():
            self.close()
        if self._fd < 0:
            self._open_file()
        length = os.fstat(self._fd).st_size
        if length and length + more > self._size:
            place = self._directory
            os.rename(self._name, f"{self._name}.1", src_dir_fd=place, dst_dir_fd=place)
            self.close()
            self._open_file()

    def _is_in_place(self) -> bool:
        try:
            there = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._fd))

    def _open_file(self) -> None:
        if self._directory < 0:
            self._directory = open_directory(self._path)
        # Not blocking, in case a FIFO is in its place.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = os.open(self._name, flags | os.O_CLOEXEC, _FILE_MODE, dir_fd=self._directory)
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", self._name)
        if status.st_size == 0 and status.st_mode & 0o777 != _FILE_MODE:
            os.fchmod(self._fd, _FILE_MODE)  # despite the umask


def _write_to_journal(data: bytes) -> None:
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError:
        pass  # journald has ended: the output is lost, and who prints goes on


def _open_again(inode: str) -> None:
    """Open the pipe that is the standard input again, for reading alone; exit if it is another.

    Its end for the instance's processes is open for writing too, and would never come to its end.
    """
    if os.readlink("/proc/self/fd/0") != f"pipe:[{inode}]":
        os._exit(1)
    again = os.open("/proc/self/fd/0", os.O_RDONLY)
    os.dup2(again, 0)
    os.close(again)


def main() -> None:
    """Be the logger: copy standard input to the log until no process can write to it any more."""
    # When the machine is shut down, TERM reaches the daemons too, and their last words matter.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with open("/proc/self/comm", "w", encoding="utf-8") as comm:
        comm.write(COMMAND)
    words = sys.argv[1:]
    if words[:1] == [AGAIN]:
        _open_again(words[1])
        words = words[2:]
    if words:
        directory, name, size = words
        write = LogFile(directory, name, int(size)).write
    else:
        write = _write_to_journal
    while data := os.read(0, CHUNK):
        write(data)
    os._exit(0)  # a stop waits for it, and the interpreter has nothing more to do


if __name__ == "__main__":
    main()
