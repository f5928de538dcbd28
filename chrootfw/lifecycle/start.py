"""Start an instance: mount, pre-start, init script; if anything fails, undo all of it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence

import attrs

from chrootfw.errors import (
    HeldError,
    Hint,
    Interrupted,
    PlanError,
    PreStartError,
    ScriptError,
    StepError,
    add_details,
)
from chrootfw.lifecycle import kill, mount, steps, teardown, unmount
from chrootfw.lifecycle.cgroup import make_cgroup, remove_cgroups
from chrootfw.lifecycle.context import Job
from chrootfw.lifecycle.environment import read_environment
from chrootfw.lifecycle.init_script import (
    call_init_script_hook,
    describe_script,
    run_script,
    script_error,
)
from chrootfw.lifecycle.pre_start import pre_start
from chrootfw.linux import block_devices, deadlines, files, network_namespace
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.root import Root
from chrootfw.model import Command, Entry, MountPoint, NoCommand, Step
from chrootfw.planning import transitions
from chrootfw.state import network, record
from chrootfw.state.record import RecordedDisk, RecordedPlugin, StartRecord
from chrootfw.views import InstanceState

#: Takes the lock of a disk, and keeps it until the verb ends.
LockDisk = Callable[[block_devices.Disk], None]


@attrs.frozen
class Answers:
    """The plugins' answers for a start, which are collected before anything is changed.

    Attributes:
        points: The mount points with their plugins, parents first.
        script_plugin: The plugin that answered with `script`.
        script: The init script.
        entry_plugin: The plugin that answered with `entry`.
        entry: How a process gets inside.
    """

    points: Sequence[tuple[str, MountPoint]]
    script_plugin: str
    script: Command | NoCommand
    entry_plugin: str
    entry: Entry


def start(job: Job, *, definition: str | None, lock_disk: LockDisk) -> None:
    """Mount the instance, check its root, run its init script with `start`.

    Args:
        job: The instance; the caller holds its lock.
        definition: The text of the definition that it is started by, for the record.
        lock_disk: Takes the lock of a disk.

    Raises:
        ChrootfwError: The instance could not be started. Everything that this start did is undone,
            or the error's details say what is not.
    """
    state = settle_earlier_start(job)
    transitions.check("start", job.name, state)
    read_environment(job)
    answers = call_hooks(job)
    fresh = make_record(job, answers, definition)
    if state == InstanceState.MOUNTED:
        _start_on_mounted(job, answers, fresh, lock_disk)
    else:
        _start_on_absent(job, answers, fresh, lock_disk)


def settle_earlier_start(job: Job) -> InstanceState:
    """Undo an earlier start that did not come to its end, or was in another boot.

    Returns:
        The state from which the instance is started.

    Raises:
        ChrootfwError: The earlier start could not be undone, or its processes are still running.
    """
    snapshot = job.latest_snapshot()
    if job.record and not job.record.is_of_this_boot():
        if snapshot.is_mounted(job.name):
            teardown.forget_old_boot(job)
        else:
            teardown.undo_leftovers(job)
    elif job.record and job.record.phase == "starting":
        job.warn("", f"an earlier start of {job.name} did not come to its end; it is undone first")
        teardown.kill_and_release(job)
        snapshot = job.read_snapshot()
    state = job.read_state(snapshot)
    if state == InstanceState.HELD and not snapshot.is_mounted(job.name):
        return teardown.finish_held_stop(job)
    return state


def call_hooks(job: Job) -> Answers:
    """Call the hooks that need no mounted root.

    Raises:
        PluginError: A plugin failed, or its answer is not valid.
        PlanError: No plugin mounts a root, or the mount points do not fit together.
        DiskError: A plugin refuses the disk.
    """
    job.stages.registry.check_loaded()
    try:
        points = job.stages.mount(job.instance)
    except PlanError as error:
        if job.instance.disk is None and error.has_no_root:
            raise PlanError(
                f"{job.name} has no disk, and no plugin brings a root for it",
                hint=Hint(
                    'give it one: disk = "/path" in its definition, or Instance(…, disk="/path")',
                    'give it one: disk = "/path" in its definition, or --disk',
                ),
            ) from error
        raise
    for plugin, point in points:
        if isinstance(point.source, Step):
            steps.step_as_data(job, "mount", plugin, point.source)
    script_plugin, script = call_init_script_hook(job, "start")
    command = script if isinstance(script, Command) else Command(("/bin/sh",))
    entry_plugin, entry = job.stages.enter(job.instance, command)
    return Answers(points, script_plugin, script, entry_plugin, entry)


def make_record(job: Job, answers: Answers, definition: str | None) -> StartRecord:
    """Make the record of a start that is about to begin.

    Args:
        job: The instance.
        answers: The plugins' answers.
        definition: The text of the definition; `None` if the caller passed the instance.
    """
    # A first-party plugin that is off for this instance took no part.
    answered = {
        answers.entry_plugin,
        answers.script_plugin,
        *(plugin for plugin, _ in answers.points),
    }
    wanted = job.instance
    fresh = StartRecord(
        wanted.name, wanted.disk, wanted.init_script, dict(wanted.params), wanted.plugins
    )
    fresh.boot_id, fresh.namespace = files.boot_id(), files.mount_namespace()
    fresh.definition = definition
    fresh.plugins = [
        RecordedPlugin(each.name, each.distribution, each.version, each.origin)
        for each in job.stages.registry.records.values()
        if each.origin != "first-party" or each.name in answered
    ]
    return fresh


def _start_on_absent(job: Job, answers: Answers, fresh: StartRecord, lock_disk: LockDisk) -> None:
    """Start an instance without a mount; if it fails, undo everything."""
    found = mount.check_disks(job, answers.points, lock_disk)
    before = job.record.disks if job.record else []
    for space in {each.space.number: each.space for each in job.stay}.values():
        job.warn(
            "mount",
            f"the disk of {job.name} is still mounted in {space.describe()}: what is there is used"
            " again",
        )
    teardown.undo_leftovers(job)
    _check_carried(job, before, found)
    _make_directories(job)
    job.record = fresh.replace(disks=found, entry=answers.entry.to_dict(), steps=list(job.carried))
    try:
        make_cgroup(job)
        network.pin_network(job.run_dir, job.record)
        job.save()
        job.cancellation.check()
        job.stages.around(job.instance, "mount", lambda: mount.mount_all(job, answers.points))
        _undo_carried(job)
        _run_inside(job, answers)
    except BaseException as error:
        with job.cancellation.shield():
            _undo(job, error)
        raise


def _start_on_mounted(job: Job, answers: Answers, fresh: StartRecord, lock_disk: LockDisk) -> None:
    """Start an instance whose root is mounted already; if it fails, the root stays mounted.

    The root must be this instance's disk. Everything else is mounted afresh.
    """
    mount.check_same_disk(job, answers.points, lock_disk)
    known = job.record
    before = known if known and known.is_of_this_boot() else None
    disks = before.disks if before else mount.describe_disks(job, answers.points)
    _check_carried(job, known.disks if known else (), disks)
    job.record = fresh.replace(
        disks=disks,
        entry=answers.entry.to_dict(),
        steps=list(known.steps) if known else [],
        cgroups=before.cgroups if before else None,
    )
    try:
        try:
            network.pin_network(job.run_dir, job.record)
        finally:  # the earlier pin may be removed although there is no new one
            if before is not None:
                before = before.replace(network=job.record.network)
        job.save()
        _renew_mounts(job, answers, before)
        _run_inside(job, answers)
    except BaseException as error:
        with job.cancellation.shield():
            _undo_on_mounted(job, before, error)
        raise


def start_again(job: Job, answers: Answers) -> None:
    """Start as the second half of a reboot: the root and the resolved instance stay.

    Args:
        job: The instance, whose own processes have exited.
        answers: The plugins' answers.

    Raises:
        ChrootfwError: The instance could not be started; its state is `mounted`.
    """
    assert job.record is not None
    before = job.record.replace(phase="started", init_ran=False, started_at=None)
    job.save(phase="starting", init_ran=False, stop_done=False, entry=answers.entry.to_dict())
    try:
        _renew_mounts(job, answers, before)
        _run_inside(job, answers)
    except HeldError:
        job.note(phase="stopping")
        raise
    except BaseException as error:
        with job.cancellation.shield():
            _undo_on_mounted(job, before, error)
        raise


def _renew_mounts(job: Job, answers: Answers, before: StartRecord | None) -> None:
    """Unmount everything but the root, and mount it again: `/run` and `/dev/shm` are fresh.

    Args:
        job: The instance.
        answers: The plugins' answers.
        before: The record before this start; `None` if it was lost.
    """
    earlier = before.mount_attributes if before else ()
    job.cancellation.check()
    mounts = job.read_mounts()
    if teardown.has_pre_start_steps(job):
        teardown.check_root_writable(job, mounts)
    failures, _ = teardown.undo_pre_start_steps(job, mounts)
    _check_undone(job, failures)
    unmount.unmount_in_order(job, keep_root=True)
    _check_undone(job, steps.undo_steps(job, ("mount",), parts_only=True))
    remove_cgroups(job)
    make_cgroup(job)
    job.save()
    job.stages.around(job.instance, "mount", lambda: _mount_parts(job, answers, earlier))


def _mount_parts(job: Job, answers: Answers, earlier: Sequence[str]) -> None:
    """Mount everything but the root; sysfs shows the network that it is mounted in."""
    with Descriptors() as held:
        fd = network.open_network(job.run_dir, job.name, job.record, held)
        with network_namespace.entered(fd):
            mount.mount_parts(job, answers.points, earlier)


def _run_inside(job: Job, answers: Answers) -> None:
    """Run pre-start and the init script, and record that the instance is started."""
    job.cancellation.check()
    _check_tracking(job, answers.entry)
    root = Root(job.root, seconds=job.disk_timeout)
    try:
        job.stages.around(
            job.instance,
            "pre-start",
            lambda: pre_start(job, answers.script, root),
        )
    except PreStartError as error:
        if isinstance(answers.script, Command) and answers.script.argv[0] in str(error):
            job.attribute(error, answers.script_plugin)
        raise
    job.cancellation.check()
    has_own = False
    if isinstance(answers.script, Command):
        command = answers.script
        job.save(init_ran=True)
        job.stages.around(job.instance, "init-start", lambda: _init_start(job, answers, command))
        has_own = kill.has_own_process(job)
        require_process(job, has_own=has_own)
    job.cancellation.check()
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    job.save(phase="started", started_at=now, left_process=has_own)


def _check_tracking(job: Job, entry: Entry) -> None:
    """Refuse a mount namespace of its own where nothing would tell the processes in it.

    Without a cgroup they are told by the copy of the root that they see. The host may have the same
    directory mounted elsewhere: then others may see a copy of that.

    Raises:
        StepError: It is so.
    """
    if entry.method == "chroot":
        return
    snapshot = job.read_snapshot()
    if snapshot.tracking != "cgroup" and not job.judge(snapshot).is_found_by_its_root():
        raise StepError(
            f"the root of {job.name} is mounted elsewhere, too, and without a cgroup nothing would"
            " tell its processes from those of others",
            hint=f"mount cgroup2, or unmount the other one: findmnt --target {job.instance.disk}",
        )


# -- directories -----------------------------------------------------------------------------------


def _make_directories(job: Job) -> None:
    """Make the instance's own directory and the root's mount point; remove them if one fails.

    Raises:
        StepError: A directory cannot be made, or is not safe to use.
    """
    base = record.directory(job.run_dir, job.name)
    try:
        # Only root may pass: the files below have the instance's user IDs and suid programs.
        _make_directory(base, 0o700, is_changed=True)
        _make_directory(job.root, 0o755, is_changed=False)
        _check_empty(job.root)
    except BaseException as error:
        for path in (job.root, base):
            try:
                os.rmdir(path)
            except OSError as second:
                # With these it is absent, not a directory, or has files of another start.
                if second.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY):
                    add_details(error, [f"and the directory {path} stays: {second.strerror}"])
        raise


def _make_directory(path: str, mode: int, *, is_changed: bool) -> None:
    """Make a directory.

    Args:
        path: The path.
        mode: Its mode.
        is_changed: A directory that exists gets the mode too: an earlier version made it wider.

    Raises:
        StepError: It cannot be made, or others than root can change it.
    """
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        status = os.lstat(path)
        if not os.path.isdir(path) or os.path.islink(path):
            raise StepError(
                f"cannot make the directory {path}: something else is in its place",
                hint="look at it and move it away",
            ) from None
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise StepError(
                f"the directory {path} is not root's alone",
                hint=f"chown root {path}; chmod go-w {path}",
            ) from None
        if is_changed:
            os.chmod(path, mode)
    except OSError as error:
        raise StepError(
            f"cannot make the directory {path}: {error.strerror}",
            hint="chrootfw verify checks the run directory",
        ) from error


def _check_empty(root: str) -> None:
    """Check that the root's mount point is empty.

    Raises:
        StepError: It is not empty, or cannot be read.
    """
    try:
        found = os.listdir(root)
    except OSError as error:
        raise StepError(f"cannot read the directory {root}: {error.strerror}") from error
    if found:
        raise StepError(
            f"the directory {root} is not empty: something else is in the root's place",
            hint="look at it and move it away",
        )


# -- the init script -------------------------------------------------------------------------------


def _init_start(job: Job, answers: Answers, command: Command) -> None:
    with job.step("init-start", describe_script(command), answers.script_plugin):
        try:
            result = run_script(job, "start", command, answers.entry)
        except ScriptError as error:
            for plugin in (answers.script_plugin, answers.entry_plugin):
                job.attribute(error, plugin)
            raise
        if result.status != 0:
            raise script_error(job, "start", command, result)


def require_process(job: Job, *, has_own: bool) -> None:
    """Warn if the init script left no process running.

    Args:
        job: The instance.
        has_own: Whether an own process is running.

    Raises:
        ScriptError: The instance's parameter `require_process` demands one.
    """
    if has_own:
        return
    text = f"the init script of {job.name} succeeded, but left no process alive"
    if job.instance.params["require_process"]:
        raise ScriptError(text, hint="set require_process = false if that is as it should be")
    job.warn("init-start", f"{text}; its state is mounted")


# -- undo ------------------------------------------------------------------------------------------


def _check_undone(job: Job, failures: list[str]) -> None:
    """Check that all Steps were undone.

    Args:
        job: The instance.
        failures: A line for each Step that could not be undone.

    Raises:
        StepError: There is such a line.
    """
    if failures:
        raise steps.undo_error(job.name, failures)


def _must_hurry(error: BaseException | None) -> bool:
    """Return whether an undo must not wait long.

    It must not if an end was requested, or if the error is that a disk did not answer.
    """
    while error is not None:
        if isinstance(error, (Interrupted, deadlines.DeadlineExceeded)):
            return True
        error = error.__cause__
    return False


def _undo(job: Job, error: BaseException) -> None:
    """Undo everything that a failed start did; add what could not be undone to its error."""
    job.is_hurried = _must_hurry(error)
    try:
        kill.kill_at_once(job)
        mount.remove_made(job)
        teardown.unmount_and_release(job)
        if isinstance(error, Interrupted):
            add_details(error, [f"what the start of {job.name} had done is undone"])
    except Exception as second:
        add_details(error, teardown.describe_failed_undo(second))
        job.note(phase="stopping")


def _undo_on_mounted(job: Job, before: StartRecord | None, error: BaseException) -> None:
    """Undo a failed start on a root that was mounted before: the root stays mounted.

    Args:
        job: The instance.
        before: The record before this start; `None` if it was lost.
        error: The error of the start, which gets what could not be undone.
    """
    job.is_hurried = _must_hurry(error)
    try:
        kill.kill_at_once(job)
        _check_undone(job, steps.undo_steps(job, ("pre-start",)))
        remove_cgroups(job)
    except Exception as second:
        add_details(error, teardown.describe_failed_undo(second))
    if before is not None:
        job.record = before.replace(steps=job.record.steps if job.record else [])
        job.note()
    else:
        job.note(phase="started")


def _undo_carried(job: Job) -> None:
    """Undo the carried Steps of an earlier start, in the root that is mounted again.

    Raises:
        StepError: One could not be undone.
    """
    if job.carried:
        _check_undone(job, steps.undo_steps(job, ("pre-start",)))


def _check_carried(job: Job, before: Sequence[RecordedDisk], found: Sequence[RecordedDisk]) -> None:
    """Check that the disk is the one on which the carried Steps were applied.

    In another root their undo would change files that they did not make.

    Args:
        job: The instance.
        before: The disks of the earlier start.
        found: The disks of this one.

    Raises:
        StepError: It is another disk.
    """
    same = any(
        old.path == new.path or old.file == new.file for old in before[:1] for new in found[:1]
    )
    if same or not job.carried:
        return
    old_path = before[0].path if before else "an earlier disk"
    raise StepError(
        f"cannot start {job.name} on another disk: {len(job.carried)} steps of an earlier start"
        f" can only be undone on {old_path}",
        [step.describe() for step in job.carried],
        f"start it with disk = {old_path} once; {steps.describe_forget(job.name)}",
    )
