"""Find the right to mount that this process lacks, for errors of a mount (capabilities(7))."""

from __future__ import annotations

import errno
import os

from chrootfw.errors import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from chrootfw.errors import ChrootfwError

_CAP_SYS_ADMIN = 21
#: Inode of the first user namespace, the same on every machine (PROC_USER_INIT_INO).
_FIRST_USER_NAMESPACE = 0xEFFFFFFD
#: In a user namespace, open_tree(2) and mount(2) refuse with EINVAL to uncover a mount.
_REFUSALS = (errno.EPERM, errno.EACCES, errno.EINVAL)

HINT = "run chrootfw on the host as its root user, or give the container --privileged"


def may_administer() -> bool:
    """Check that this process has CAP_SYS_ADMIN, at least in its own user namespace.

    Returns:
        Whether it has; true if that is unknown.
    """
    return is_effective(_CAP_SYS_ADMIN)


def is_effective(capability: int) -> bool:
    """Check that this process has a capability, as `may_administer` does."""
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            effective = next((line.split()[1] for line in file if line.startswith("CapEff:")), "")
        return not effective or bool(int(effective, 16) >> capability & 1)
    except OSError:
        return True  # /proc is not mounted


def missing() -> str:
    """Describe the right to mount that this process lacks, as a clause; empty if it lacks none."""
    if not may_administer():
        return "this process lacks CAP_SYS_ADMIN, without which the kernel refuses every mount"
    if is_first_user_namespace():
        return ""
    return (
        "this process is the root user of a user namespace only, to which the kernel refuses "
        "disks and other mounts"
    )


def is_first_user_namespace() -> bool:
    """Check that this process is in the host's user namespace; true if that is unknown."""
    try:
        return os.stat("/proc/self/ns/user").st_ino == _FIRST_USER_NAMESPACE
    except OSError:
        return True


def explain(error: ChrootfwError) -> None:
    """Add the missing right to the error of a step that the kernel refused."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno in _REFUSALS):
        cause = cause.__cause__
    if cause is None or not isinstance(error, StepError):
        return
    if reason := missing():
        error.details = (*error.details, reason)
        error.hint = HINT
