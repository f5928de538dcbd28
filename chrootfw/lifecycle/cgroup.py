"""Make, find and remove the cgroup of an instance (cgroups(7)); `linux.cgroups` does the work."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable

from chrootfw.errors import StepError
from chrootfw.lifecycle import kill
from chrootfw.lifecycle.context import Job
from chrootfw.linux import cgroups


def make_cgroup(job: Job) -> None:
    """Make a cgroup for this start, and name it in the record, which the caller saves.

    It is of cgroup v2 where that can be written, else of v1, for the memory figure alone.

    Raises:
        StepError: The kernel refused it, or a cgroup above it is frozen.
    """
    snapshot = job.read_snapshot()
    made: list[str] = []
    try:
        if snapshot.tracking == "cgroup" and snapshot.top:
            made.append(
                cgroups.create(cgroups.home(snapshot.top, job.run_dir), job.name, ("memory",))
            )
        elif snapshot.v1 and cgroups.is_writable(snapshot.v1):
            made.append(cgroups.create(cgroups.home(snapshot.v1, job.run_dir), job.name))
    except OSError as error:
        raise StepError(
            f"cannot make a cgroup for {job.name}: {error.strerror} ({error.filename})"
        ) from error
    if job.record is not None:
        job.record.cgroups = [cgroups.identity(path) for path in made]
    for path in made:
        if frozen := cgroups.frozen_by(path):
            raise StepError(
                f"the cgroup {frozen} is frozen, so nothing would run in {job.name}",
                hint=f"echo 0 > {frozen}/cgroup.freeze",
            )


def remove_cgroups(job: Job) -> None:
    """Remove the instance's cgroups, and chrootfw's own directories above if they are empty too.

    A leftover, which has the instance's name but is not its own, is removed if it is empty.

    Raises:
        StepError: A cgroup could not be removed.
    """
    snapshot = job.read_snapshot()
    own = job.judge(snapshot).read_tracked()
    if kill.move_strangers_out(job, own.strangers):
        snapshot = job.read_snapshot()
        own = job.judge(snapshot).read_tracked()
    leftovers = snapshot.leftovers(job.name)
    try:
        for path in (*snapshot.groups(job.name), *snapshot.memory_groups(job.name)):
            try:
                cgroups.remove(path)
            except OSError as error:
                if error.errno != errno.EBUSY or not own.strangers or own.tracked:
                    raise
                # Only strangers are in it: `move_strangers_out` has warned of each.
        remove_leftovers(leftovers)
        for top in filter(None, (snapshot.top, snapshot.v1)):
            if cgroups.is_writable(top):
                cgroups.prune(cgroups.home(top, job.run_dir))
    except OSError as error:
        raise StepError(f"cannot remove the cgroup {error.filename}: {error.strerror}") from error


def remove_leftovers(paths: Iterable[str]) -> None:
    """Remove those cgroups that are empty, for `cgroups.WALK_MAX` seconds at most.

    Root inside can make thousands of them, which must not delay other verbs.
    """
    ends = time.monotonic() + cgroups.WALK_MAX
    for path in paths:
        if time.monotonic() > ends:
            return
        try:
            cgroups.remove(path)
        except OSError:
            continue  # a process runs in it; verify names the cgroup


def current_cgroup(job: Job) -> tuple[str | None, list[str]]:
    """Return where to create the instance's next process.

    Returns:
        The path of its v2 cgroup, `None` without one; the `cgroup.procs` files that it joins.
    """
    snapshot = job.read_snapshot()
    paths = snapshot.groups(job.name)
    joins = (
        [f"{path}/cgroup.procs" for path in snapshot.memory_groups(job.name)[-1:]]
        if not paths
        else []
    )
    return (paths[-1] if paths else None), joins
