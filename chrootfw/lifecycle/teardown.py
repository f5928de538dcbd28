"""Take an instance down: undo its steps, unmount, prove that its disks are free, remove its record.

`unmount_and_release` is the end of a stop, a cleanup and the undo of a start. The mounts themselves
are unmounted by `unmount.unmount_in_order`, and the copies that other mount namespaces have of them
by `linux.mount_copies`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

from chrootfw.errors import HeldError, TransitionError
from chrootfw.lifecycle import kill, output, root_check, steps, unmount
from chrootfw.lifecycle.cgroup import remove_cgroups
from chrootfw.lifecycle.context import Job
from chrootfw.linux import block_devices, child, mount_copies, mountinfo
from chrootfw.state import copies, disks, holders, record
from chrootfw.state.record import RecordedDisk
from chrootfw.views import InstanceState, Process

#: Seconds for a disk to become free before other mount namespaces are entered for it.
_FIRST_SETTLE = 0.05

#: Seconds for which mount namespaces that are made meanwhile are entered too.
_NAMESPACES_SETTLE = 5.0


def kill_and_release(job: Job) -> None:
    """Send KILL to all own processes, then unmount and release as a stop does.

    This undoes a start that has come to its end, or has not.

    Raises:
        SurvivorError: A process is still running after SIGKILL.
        HeldError: A mount or a disk is in use.
        StepError: A Step could not be undone, or a file not removed; it stays recorded.
    """
    kill.kill_at_once(job)
    unmount_and_release(job)


def unmount_and_release(job: Job) -> None:
    """Undo the steps, unmount, prove that the disks are free, remove the record.

    The caller has ended the instance's own processes.

    Raises:
        HeldError: A mount or a disk is in use.
        StepError: A Step could not be undone, or a file not removed; it stays recorded.
        Interrupted: An end was requested; raised between two steps.
    """
    before = job.read_mounts()
    if before and has_pre_start_steps(job):
        root_check.check_root_answers(job)
        check_root_writable(job, before)
    failures, has_unmounted = undo_pre_start_steps(job, before)
    if failures and before and not job.gives_up:
        _keep_for_retry(job, failures)
    mounts = job.read_mounts() if has_unmounted else before
    job.stages.around(
        job.instance, "unmount", lambda: _unmount_with_retry(job, mounts), report_errors=True
    )
    try:
        prove_released(job, before)
    except HeldError as error:
        error.details = (*error.details, *failures)
        raise
    failures += steps.undo_steps(job, ("mount",))
    output.end_logger(job)
    remove_cgroups(job)
    if failures and job.gives_up:
        steps.give_up(job, failures)
    elif failures:
        job.note(phase="stopping")  # in an undo the record still says "starting"
        raise steps.undo_error(job.name, failures)
    with job.step("unmount", describe_removal(job)):
        record.remove(job.run_dir, job.name)
    job.record = None


def describe_removal(job: Job) -> str:
    """Return the description of the last step of a stop."""
    return f"remove {record.directory(job.run_dir, job.name)}"


# -- undo ------------------------------------------------------------------------------------------


def has_pre_start_steps(job: Job) -> bool:
    """Return whether Steps of the stage pre-start are still to be undone."""
    return job.record is not None and any(step.stage == "pre-start" for step in job.record.steps)


def check_root_writable(
    job: Job, mounts: Sequence[mountinfo.MountEntry], *, verb: str = "cleanup"
) -> None:
    """Check that the root's file system is not frozen, before Steps are undone in it.

    Args:
        job: The instance.
        mounts: Its mounts.
        verb: The verb that goes on when it is thawed.

    Raises:
        HeldError: It is frozen.
    """
    on_root = unmount.list_root_mounts(job, mounts)
    unmount.check_thawed(job, on_root, is_written=True, verb=verb)


def undo_pre_start_steps(
    job: Job, mounts: Sequence[mountinfo.MountEntry]
) -> tuple[list[str], bool]:
    """Undo the Steps that were applied in the root.

    If another mount covers the root, or a Step cannot be undone, all mounts but the root are
    unmounted first, and the rest is undone in the bare root.

    Args:
        job: The instance.
        mounts: Its mounts.

    Returns:
        A line for each Step that could not be undone; whether mounts were unmounted.
    """
    if not has_pre_start_steps(job):
        return [], False
    on_root = unmount.list_root_mounts(job, mounts)
    is_covered = len(on_root) > 1
    failures = [] if is_covered else steps.undo_steps(job, ("pre-start",))
    if not on_root or not (is_covered or failures):
        return failures, False
    unmount.unmount_in_order(job, keep_root=True)
    return steps.undo_steps(job, ("pre-start",)), True


def _keep_for_retry(job: Job, failures: list[str]) -> None:
    """Keep the root mounted once for another attempt to undo a Step of a first-party plugin.

    Args:
        job: The instance.
        failures: A line for each Step that could not be undone.

    Raises:
        StepError: The root is kept. The next attempt unmounts it even if its undo fails too.
    """
    if job.may_retry and job.record and not job.record.undo_failed:
        job.record.undo_failed = True
        job.note()
        raise steps.kept_mounted_error(job.name, failures)


def describe_failed_undo(error: Exception) -> list[str]:
    """Return the details about a failed undo, for the error that caused the undo."""
    brief = getattr(error, "brief", None) or f"{type(error).__name__}: {error}"
    return [f"and undoing it failed: {brief}", *getattr(error, "details", ())]


# -- what an earlier start or stop left ------------------------------------------------------------


def finish_held_stop(job: Job) -> InstanceState:
    """Finish an earlier stop that was held after it had unmounted everything.

    A disk that only copies in other mount namespaces use does not block a start: the start mounts
    the same superblock again.

    Returns:
        The state from which the instance can be started.

    Raises:
        HeldError: A disk is in use in another way.
    """
    try:
        unmount_and_release(job)
    except HeldError as error:
        if not error.only_copies:
            raise
    return InstanceState.ABSENT


def undo_leftovers(job: Job) -> None:
    """Undo the rest of an earlier start, of this boot or another, of an instance that is absent.

    Steps that can be undone only in the mounted root are put into `job.carried`.

    Raises:
        TransitionError: Processes of the earlier start are still running.
        StepError: A Step could not be undone, or a cgroup not removed.
    """
    if job.record is None:
        snapshot = job.read_snapshot()
        if not snapshot.groups(job.name) and not snapshot.leftovers(job.name):
            return
    if kill.Remaining(job, None).has_own:
        raise TransitionError(
            f"cannot start {job.name}: processes of an earlier start are still running",
            hint=f"chrootfw stop {job.name}",
        )
    inside = steps.undo_steps(job, ("pre-start",))
    failures = steps.undo_steps(job, ("mount",))
    if job.gives_up:
        steps.give_up(job, [*inside, *failures])
    elif failures:
        raise steps.undo_error(job.name, failures)
    if job.record is not None:
        job.carried = [step for step in job.record.steps if step.stage == "pre-start"]
    remove_cgroups(job)


def forget_old_boot(job: Job) -> None:
    """Undo the Steps in a record of another boot, and remove that record.

    Its mounts ended with that boot. Steps that can be undone only in the mounted root wait for the
    next start.

    Raises:
        TransitionError: Processes of the instance are still running.
        StepError: A Step could not be undone, or a file not removed.
    """
    undo_leftovers(job)
    for step in job.carried:
        job.warn(
            "",
            f"the undo of {step.describe()} waits for the next start of {job.name} on its disk:"
            f" its root is not mounted ({steps.describe_forget(job.name)})",
        )
    if not job.carried:
        record.remove(job.run_dir, job.name)
        job.record = None


# -- unmount and proof -----------------------------------------------------------------------------


def _unmount_with_retry(job: Job, mounts: Sequence[mountinfo.MountEntry]) -> None:
    """Unmount all mounts; retry once after a kill if own processes kept one of them busy."""
    try:
        unmount.unmount_in_order(job, mounts=mounts)
    except HeldError:
        if not kill.kill_stragglers(job):
            raise
        unmount.unmount_in_order(job)


def prove_released(job: Job, mounts: Sequence[mountinfo.MountEntry]) -> None:
    """Prove that the disks are free; unmount copies of the mounts in other mount namespaces.

    Args:
        job: The instance, whose own mounts are unmounted.
        mounts: Its mounts as they were before.

    Raises:
        HeldError: A disk is in use.
    """
    recorded = job.record.disks if job.record else disks.guess_disks(mounts)
    paths = _wait_for_release(job, recorded)
    if paths:
        raise _used_disks_error(job, recorded, paths)


def _wait_for_release(job: Job, recorded: Sequence[RecordedDisk]) -> Sequence[str]:
    """Wait until the disks are free; unmount copies in other mount namespaces meanwhile.

    Returns:
        The disks that are still in use; `job.stay` has the copies that could not be unmounted.
    """
    began = time.monotonic()
    settle = _FIRST_SETTLE
    while True:
        copies_about = child.copies_are_about()
        used = disks.find_unreleased_disks(
            recorded, settle=settle, run_dir=job.run_dir, name=job.name
        )
        if not used:
            return used
        stay, has_unmounted = _unmount_copies(job, recorded, all_of_them=settle != _FIRST_SETTLE)
        passed = time.monotonic() - began
        if has_unmounted and passed < _NAMESPACES_SETTLE:  # perhaps one was made meanwhile
            settle = _FIRST_SETTLE
        elif settle == _FIRST_SETTLE:
            settle = block_devices.SETTLE
        elif not copies_about or passed >= unmount.COPIES_SETTLE:
            job.stay = stay
            return used


def _used_disks_error(
    job: Job, recorded: Sequence[RecordedDisk], paths: Sequence[str]
) -> HeldError:
    """Find the holders of disks that are in use though all is unmounted, and make the error."""
    # Without the devices of in-memory file systems: the kernel reuses those numbers.
    devices = disks.disk_devices(recorded)
    found = holders.scan(
        holders.Target((), job.root, devices, [each.entry.id for each in job.stay if each.entry])
    )
    mounted = [
        Process(
            0,
            f"a mount on {os.fsdecode(entry.mount_point)}",
            "root",
            "namespace",
            "outside the instance",
        )
        for entry in mountinfo.entries()
        if entry.dev in devices
    ]
    spaces = copies.list_namespaces(job.stay, found)
    if not (mounted or found or spaces):
        unmount.check_thawed_below(job, recorded)
    only_copies = not mounted and any(each.entry for each in job.stay)
    brief = f"{job.name} is held: its mounts are gone, but the disk {', '.join(paths)} is in use"
    if not spaces:
        all_holders = holders.Holders([*mounted, *found], found.unexamined, found.target)
        return unmount.held_error(brief, job.name, all_holders, only_copies=only_copies)
    processes = (*mounted, *found, *spaces)
    return HeldError(
        brief,
        [*(process.describe() for process in processes), *found.describe_unexamined()],
        _advise(job, only_copies=only_copies),
        holders=processes,
        only_copies=only_copies,
    )


def _advise(job: Job, *, only_copies: bool) -> str:
    """Return the hint for disks that copies of the mounts keep in use."""
    remedy = next((each.remedy for each in job.stay if each.remedy), "")
    if remedy:
        return f"{remedy}; then chrootfw cleanup {job.name}"
    start = f"chrootfw start {job.name} works all the same; " if only_copies else ""
    return f"{start}when that has ended: chrootfw cleanup {job.name}"


def _unmount_copies(
    job: Job, recorded: Sequence[RecordedDisk], *, all_of_them: bool
) -> tuple[list[mount_copies.Stay], bool]:
    """Unmount the copies of the instance's mounts in other mount namespaces.

    Args:
        job: The instance.
        recorded: Its disks.
        all_of_them: Search mount namespaces without a process too.

    Returns:
        The copies that stay; whether any was unmounted.
    """
    with contextlib.ExitStack() as pinned:
        for disk in recorded:  # an open device keeps its number
            if device := disk.loop or (disk.kind == "block" and disk.path):
                with contextlib.suppress(OSError):  # removed: then no copy is mounted by it
                    pinned.callback(
                        os.close, os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                    )
        wanted = copies.select_wanted(job.name, recorded)
        return _unmount_copies_of(job, wanted, all_of_them=all_of_them)


def _unmount_copies_of(
    job: Job, wanted: mount_copies.Wanted, *, all_of_them: bool
) -> tuple[list[mount_copies.Stay], bool]:
    stay: list[mount_copies.Stay] = []
    has_unmounted = False
    spaces = mount_copies.with_processes()
    for space in spaces:
        with unmount.UnmountSteps(job, f" in {space.describe()}") as observer:
            taken, stays = mount_copies.unmount(
                space, wanted, seconds=job.disk_timeout, observer=observer
            )
        has_unmounted = has_unmounted or bool(taken)
        stay += stays
        job.cancellation.check()
    if all_of_them:
        stay += copies.find_kept_copies(wanted, [space.number for space in spaces])
    return stay, has_unmounted
