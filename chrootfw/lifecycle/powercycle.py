"""Reset the machine at once, without stopping an instance."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from chrootfw.errors import ChrootfwError

#: Seconds for the command of the second way to end.
_COMMAND_TIMEOUT = 60


def reset_machine(
    trigger: str = "/proc/sysrq-trigger",
    switch: str = "/proc/sys/kernel/sysrq",
    command: Sequence[str] = ("reboot", "-n", "-f"),
) -> str:
    """Reset the machine by the kernel, else by a command.

    The kernel is asked by the sysrq ``b`` (sysrq.rst), as Ganeti does; the command is run where
    that cannot be written. No instance is stopped, and no file system is synced.

    Args:
        trigger: The kernel's file that takes the letter of a sysrq.
        switch: The kernel's file that permits sysrqs.
        command: The command with its arguments.

    Returns:
        What was done, in words: the reset may take a moment.

    Raises:
        ChrootfwError: Neither works.
    """
    try:
        try:
            _write(switch, "1\n")
        except OSError:
            pass  # the trigger decides: it works for root whatever the switch says
        _write(trigger, "b\n")
    except OSError as error:
        reason = f"{trigger}: {error.strerror}"
    else:
        return f"asked the kernel for a reset ({trigger})"
    shown = " ".join(command)
    try:
        subprocess.run(
            list(command), check=True, timeout=_COMMAND_TIMEOUT, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ChrootfwError(
            "cannot restart this machine",
            [reason, f"{shown}: {error}"],
            "systemctl reboot --force --force",
        ) from error
    return f"{reason}; asked {shown}"


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
