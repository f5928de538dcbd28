"""The exit statuses of the command."""

from __future__ import annotations

from chrootfw.errors import (
    ChrootfwError,
    DefinitionError,
    HeldError,
    InputError,
    Interrupted,
    NotFoundError,
)

DONE, FAILED, USAGE, NOT_FOUND, HELD = 0, 1, 2, 3, 4

#: What exec and shell answer when chrootfw itself fails, and as env(1) and chroot(1) do for the
#: command.
EXEC_FAILED, EXEC_NOT_EXECUTABLE, EXEC_MISSING = 125, 126, 127


def of_error(error: ChrootfwError, *, inside: bool = False) -> int:
    """Return the exit status that an error leads to.

    Args:
        error: The error.
        inside: Whether the verb is ``exec`` or ``shell``, whose statuses are the command's.
    """
    if isinstance(error, Interrupted):
        return 128 + error.signum
    if inside:
        return EXEC_FAILED
    if isinstance(error, HeldError):
        return HELD
    if isinstance(error, NotFoundError):
        return NOT_FOUND
    if isinstance(error, InputError) and not isinstance(error, DefinitionError):
        return USAGE
    return FAILED
