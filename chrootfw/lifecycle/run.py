"""Run a command inside an instance for a program, in the shape of `subprocess.run`."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from chrootfw.cancellation import Cancellation
from chrootfw.errors import InputError
from chrootfw.lifecycle.exec import Inside
from chrootfw.lifecycle.pipes import Pipes, communicate
from chrootfw.linux import child, deadlines
from chrootfw.planning.ids import check_seconds
from chrootfw.planning.printable import printable_text

#: The longest time limit of a command in seconds: poll(2) takes no more milliseconds.
_RUN_MAX = 2_000_000

_log = logging.getLogger("chrootfw")


def _warn(text: str) -> None:
    """Log what does not keep the command from starting."""
    _log.warning("%s", printable_text(text))


def run(
    run_dir: str,
    config_dir: str,
    name: str,
    args: Sequence[str],
    *,
    cancellation: Cancellation,
    input: str | bytes | None,
    stdin: Any,
    stdout: Any,
    stderr: Any,
    capture_output: bool,
    timeout: float | None,
    check: bool,
    text: bool | None,
    encoding: str | None,
    errors: str | None,
    user: str | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
) -> subprocess.CompletedProcess[Any]:
    """Run a command inside an instance and wait for it; `Runtime.run` describes the arguments.

    Raises:
        OSError: The command cannot be run.
        subprocess.TimeoutExpired: It has not exited within `timeout`; it is killed.
        subprocess.CalledProcessError: With `check`, its status is not 0.
        ValueError: Two arguments exclude each other, as those of `subprocess.run`.
        ChrootfwError: The instance is not started, or an argument is not valid.
        Interrupted: An end was requested; the command is killed.
    """
    words = _check_words(args)
    if timeout is not None:
        check_seconds(timeout, "the timeout", most=_RUN_MAX)
    if capture_output:
        if stdout is not None or stderr is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        stdout = stderr = subprocess.PIPE
    if input is not None:
        if stdin is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        stdin = subprocess.PIPE
    is_text = bool(text or encoding or errors)
    codec = (encoding or "utf-8", errors or "strict")
    data = input.encode(*codec) if isinstance(input, str) else input or b""
    cancellation.check()
    with Pipes(stdin, stdout, stderr) as pipes:
        with (
            deadlines.Waiting(cancellation.check),
            Inside(
                run_dir, config_dir, name, user=user, env=env or {}, cwd=cwd, warn=_warn
            ) as inside,
        ):
            if not inside.isolation.is_plain:
                pipes.relay(stdin_is_inherited=stdin is None)
            started = inside.spawn(words, *pipes.childs)
        try:
            pipes.close_childs()
            pipes.begin_relaying(started)
            has_ended = communicate(started, pipes, data, timeout, cancellation)
        finally:
            started.end()
            pipes.end_relaying()
        out, err = (bytes(found) if found is not None else None for found in pipes.outputs())
        shown = [_decode(part, codec) if is_text else part for part in (out, err)]
    for worker in pipes.left:
        _warn(f"cannot use a pipe of {args[0]} in {name}: {worker}")
    if not has_ended:
        raise subprocess.TimeoutExpired(args, timeout or 0.0, out, err)
    status = child.known_status(started, f"{os.fspath(args[0])} in {name}")
    done: subprocess.CompletedProcess[Any] = subprocess.CompletedProcess(args, status, *shown)
    if check:
        done.check_returncode()
    return done


def _check_words(args: Sequence[str]) -> list[str]:
    """Return the words of a command.

    Raises:
        InputError: They are not a list of words.
    """
    if isinstance(args, str | bytes) or not args:
        raise InputError(f"the command is {args!r}; it must be a list of words")
    try:
        return [os.fsdecode(word) for word in args]
    except TypeError as error:
        raise InputError(f"the command is {args!r}; it must be a list of words") from error


def _decode(output: bytes | None, codec: tuple[str, str]) -> str | None:
    """Decode an output, with a line feed at the end of each line."""
    if output is None:
        return None
    return output.decode(*codec).replace("\r\n", "\n").replace("\r", "\n")
