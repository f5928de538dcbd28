"""Reboot an instance: stop and start it, while its disk stays mounted.

Everything that can be checked is checked before anything is stopped. A reboot that is refused
leaves the service running.
"""

from __future__ import annotations

import os
import time

from chrootfw.errors import HeldError
from chrootfw.lifecycle import mount, start, stop, teardown, unmount
from chrootfw.lifecycle.context import Job
from chrootfw.lifecycle.pre_start import check_root
from chrootfw.linux import passwd
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.root import Root
from chrootfw.planning import transitions
from chrootfw.state import holders, network

#: Seconds for a holder of what is mounted in the root to go on: many use a file for a moment only.
_HELD_MAX = 1.0


def reboot(job: Job) -> None:
    """Run the init script with `stop`, kill, mount everything but the root afresh, start.

    A start that fails leaves the instance `mounted`.

    Raises:
        TransitionError: The instance cannot be rebooted in its state.
        ChrootfwError: As `start.start` and `stop.stop` raise. If a check finds the reason, nothing
            was stopped.
    """
    answers = start.call_hooks(job)
    is_lost = job.record is None
    if job.record is None:
        job.record = start.make_record(job, answers, None)
        job.record.disks = mount.describe_disks(job, answers.points)
    state = job.read_state(job.read_snapshot())
    transitions.check("reboot", job.name, state)
    unmount.check_right(job, "reboot")
    mount.check_mounted_disk(job, answers.points, is_lost=is_lost)
    _check_start(job, answers)
    _check_mounts_free(job)
    if not is_lost:
        job.save()  # a record that cannot be written now could not be written after the stop either
    stop.begin_stop(job)
    wait = stop.run_stop_script(job, force=False, run_script=None)
    stop.kill_own_processes(job, force=False, timeout=None, wait=wait, stays_mounted=True)
    start.start_again(job, answers)


def _check_start(job: Job, answers: start.Answers) -> None:
    """Check what the start will need: sources of mounts, the root, the script, the user.

    Raises:
        ChrootfwError: The start would fail.
    """
    mount.check_parts(job, answers.points)
    if not _has_other_mounts(job, answers):
        check_root(job, answers.script, Root(job.root, seconds=job.disk_timeout))
        passwd.ids(job.root, answers.entry.user)
    with Descriptors() as held:
        network.open_network(job.run_dir, job.name, job.record, held)


def _has_other_mounts(job: Job, answers: start.Answers) -> bool:
    """Return whether something else than the start's own mounts is mounted in the root.

    It covers files that the next start will find there, since the reboot unmounts it: what they are
    is checked by that start alone.
    """
    root = os.fsencode(job.root)
    own = {point.target for _, point in answers.points if point.at == "root"}
    entries = [entry for entry in job.read_mounts() if entry.mount_point != root]
    return any(os.fsdecode(entry.mount_point[len(root) :]) not in own for entry in entries)


def _check_mounts_free(job: Job) -> None:
    """Check that everything but the root can be unmounted when the own processes have exited.

    Raises:
        HeldError: A file system is frozen, or an outside process uses a mount.
    """
    entries = job.read_mounts()
    on_root = {entry.id for entry in unmount.list_root_mounts(job, entries)}
    parts = [entry for entry in entries if entry.id not in on_root]
    unmount.check_thawed(job, parts, verb="reboot")
    if teardown.has_pre_start_steps(job):
        teardown.check_root_writable(job, entries, verb="reboot")
    deadline = time.monotonic() + _HELD_MAX
    while found := holders.find_users(parts, job.root, job.read_own(job.latest_snapshot()).pids):
        if time.monotonic() > deadline:
            raise HeldError(
                f"cannot reboot {job.name}: other processes use what is mounted in {job.root}",
                [*(process.describe() for process in found), *found.describe_unexamined()],
                f"end what they do, then chrootfw reboot {job.name}",
                holders=found,
            )
        time.sleep(0.05)
