"""Check that the root of an instance answers before it is read, and say what is wrong with it."""

from __future__ import annotations

import os

from chrootfw.errors import StepError
from chrootfw.lifecycle.context import Job
from chrootfw.linux import block_devices, deadlines, mountinfo, syscalls


def check_root_answers(job: Job) -> None:
    """Check that the file system of the root answers within the instance's `disk_timeout`.

    Raises:
        StepError: It does not answer.
    """
    try:
        deadlines.check_answers(job.root, seconds=job.disk_timeout)
    except deadlines.DeadlineExceeded as error:
        raise silent_root_error(job, error) from error


def silent_root_error(job: Job, error: deadlines.DeadlineExceeded) -> StepError:
    """Make the error for a root, or a file in it, that does not answer in time."""
    where = "" if error.filename in (None, job.root) else f" for {error.filename}"
    return StepError(
        f"the root of {job.name} does not answer{where}: {error.strerror}",
        [error.describe()],
        f"look at the device or server of its disk {job.instance.disk or ''}",
    )


def damaged_root_error(job: Job, error: OSError) -> StepError:
    """Make the error for a file of the root that cannot be read, since the disk is damaged."""
    disk = job.instance.disk or job.root
    entry = mountinfo.by_id(mountinfo.pieces(), syscalls.statx(job.root).mnt_id)
    fstype = os.fsdecode(entry.fstype) if entry is not None else None
    return StepError(
        f"cannot read {error.filename} in the root of {job.name}: {error.strerror}",
        [f"the disk of {job.name} is {disk}, and may be damaged"],
        f"dmesg may say more; {block_devices.checker(fstype, disk)} checks it",
    )
