"""What an interpreter between host and instance tells is text, whoever wrote it."""

from __future__ import annotations

import errno
import marshal

import pytest

from chrootfw.linux import isolated_child
from chrootfw.linux.call_batch import CallBatch


def hear(told: bytes) -> tuple[str, int]:
    return isolated_child.Begun(None, CallBatch(), -1, None).failure(told)  # type: ignore[arg-type]


def test_what_failed_is_told() -> None:
    assert hear(b"!2 execve") == ("execve", errno.ENOENT)
    assert hear(b"!0 no proc is mounted") == ("no proc is mounted", 0)
    assert hear(b"+!13 execve") == ("execve", errno.EACCES)


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"x",
        b"-1 x",
        b"99999999999999999999 x",
        b"\xff\xfe x",
        marshal.dumps(("execve", 2)),
        b"\xdb\xff\xff\xff\x7f",
    ],
)
def test_what_is_not_understood_is_no_error_of_its_own(words: bytes) -> None:
    """A process of the instance's can write to the pipe, by a race with the end of the interpreter (marshal is not safe to read then)."""
    assert hear(b"!" + words) == ("the interpreter before it", errno.ECHILD)


def test_what_is_told_in_no_ascii_is_shown() -> None:
    assert hear(b"!5 \xff\x1b") == ("\\xff\x1b", errno.EIO)
