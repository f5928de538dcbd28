"""Write to systemd's journal, and read from it.

A stream of journald's (systemd-journald.service(8), `/run/systemd/journal/stdout`) takes what a
process prints, line by line, for as long as the process runs: nothing of chrootfw's stays.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Iterator

from chrootfw.linux.descriptors import Descriptors

SOCKET = "/run/systemd/journal/stdout"

#: The priority of what has no own (LOG_INFO, syslog(3)).
_INFO = 6
#: Seconds for journalctl(1) to answer.
_ANSWERS = 10.0
#: Bytes that are read of journalctl's answer.
_READ_MAX = 1 << 24


def open_stream(identifier: str, opened: Descriptors) -> int:
    """Open a stream of the journal.

    Args:
        identifier: What the lines are filed under (`SYSLOG_IDENTIFIER`).
        opened: Owns the descriptor.

    Returns:
        The descriptor, a socket.

    Raises:
        OSError: No journald answers.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as stream:
        stream.setblocking(False)  # a journald that does not accept is none
        stream.connect(SOCKET)
        # identifier, unit, priority, whether lines begin with a priority, and whether they go to
        # syslog, to the kernel's log and to the console too
        stream.sendall(f"{identifier}\n\n{_INFO}\n0\n0\n0\n0\n".encode())
        stream.shutdown(socket.SHUT_RD)
        stream.setblocking(True)
        return opened.take(os.dup, stream.fileno())


def send(stream: int, data: bytes) -> None:
    """Write to a stream as much as it takes at once.

    Raises:
        OSError: It takes nothing now, or not any more.
    """
    with socket.socket(fileno=os.dup(stream)) as copy:
        copy.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def answers() -> bool:
    """Check that a journald takes streams."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as stream:
            stream.setblocking(False)
            stream.connect(SOCKET)
    except OSError:
        return False
    return True


def lines(identifier: str, *, last: int | None, follow: bool) -> Iterator[bytes]:
    """Read what was printed under an identifier.

    Args:
        identifier: The identifier.
        last: How many lines, the last ones; `None` for all.
        follow: Go on with what is printed from now on, without an end.

    Yields:
        The lines, without their ends.

    Raises:
        OSError: journalctl(1) cannot be run, or fails.
    """
    options = [f"--lines={'all' if last is None else last}", *(["--follow"] if follow else [])]
    with subprocess.Popen(
        _command(identifier, "--output=cat", *options), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            for line in child.stdout:
                yield line.rstrip(b"\n")
            words = child.stderr.read().decode("utf-8", "replace").strip()
            if child.wait():
                raise _failed(words, child.returncode)
        finally:
            child.kill()


def _failed(words: str, status: int) -> OSError:
    said = words.splitlines()[-1:] or [f"status {status}"]
    return OSError(errno.EIO, f"journalctl: {said[0]}")


def _command(identifier: str, *options: str) -> list[str]:
    """Return the command of journalctl(1) that shows what was printed under an identifier."""
    return [
        "journalctl", "--quiet", "--no-pager", *options, f"--identifier={identifier}",
        "_TRANSPORT=stdout",
    ]  # fmt: skip


def read(identifier: str, since: float, until: float | None = None) -> bytes:
    """Read what was printed under an identifier.

    Args:
        identifier: The identifier.
        since: Seconds since the epoch.
        until: Seconds since the epoch; `None` for now.

    Returns:
        The lines; at most 16 MiB.

    Raises:
        OSError: journalctl(1) cannot be run, fails, or does not answer in time.
    """
    limits = [f"--since=@{since:.6f}"]
    if until is not None:
        limits.append(f"--until=@{until:.6f}")
    try:
        if until is None:  # what was printed just now is in it
            subprocess.run(
                ["journalctl", "--sync"], stdin=subprocess.DEVNULL, capture_output=True,
                timeout=_ANSWERS, check=False,
            )  # fmt: skip
        found = subprocess.run(
            _command(identifier, "--output=cat", *limits), stdin=subprocess.DEVNULL,
            capture_output=True, timeout=_ANSWERS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise OSError(
            errno.ETIMEDOUT, f"journalctl did not answer within {_ANSWERS:g} s"
        ) from error
    if found.returncode:
        raise _failed(found.stderr.decode("utf-8", "replace").strip(), found.returncode)
    return found.stdout[-_READ_MAX:]
