"""Stop an instance: run its script, kill its processes, unmount, prove that nothing is left.

The script is run by `init_script`, the processes are ended by `kill`, and
`teardown.unmount_and_release` does the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

from chrootfw.errors import ChrootfwError, HeldError, Interrupted, Lines, ScriptError
from chrootfw.lifecycle import init_script, kill, output, teardown, unmount
from chrootfw.lifecycle.cgroup import make_cgroup, remove_cgroups
from chrootfw.lifecycle.context import Job
from chrootfw.linux import cgroups, procfs
from chrootfw.model import Command, Entry
from chrootfw.planning import kill_plan
from chrootfw.state import holders
from chrootfw.state.snapshot import Snapshot
from chrootfw.views import Process

#: `Process.why` of the outside processes that `kill_holders` signals. The others are only named:
#: they have a copy of the mounts, or a descriptor that may be in flight.
SIGNALLED = frozenset(("root", "cwd", "fd", "map", "socket"))

#: Seconds after which a forced stop sends KILL, whatever a strategy says; less what it takes to
#: read the processes again.
_FORCED = kill_plan.KILL_GRACE - 0.3


def stop(
    job: Job,
    *,
    force: bool = False,
    timeout: float | None = None,
    run_script: bool | None = None,
    keep_mounted: bool = False,
    kill_holders: bool = False,
) -> None:
    """Run the init script with ``stop``, kill the processes, unmount, prove that nothing is left.

    Args:
        job: The instance; the caller holds its lock.
        force: Run no script, and send SIGKILL at once.
        timeout: The grace period in seconds, in place of the instance's own.
        run_script: ``False`` never, ``True`` also again, ``None`` once.
        keep_mounted: End the processes only.
        kill_holders: Signal outside holders too if they keep the instance busy.

    Raises:
        PrivilegeError: The caller may not unmount; nothing was done.
        SurvivorError: A process is still running after the last signal.
        HeldError: A mount or a disk is in use.
        StepError: Something could not be undone or removed.
        Interrupted: An end was requested; raised between two steps.
    """
    job.stages.calls.is_hurried = force
    if not keep_mounted:
        unmount.check_right(job, "stop")
    begin_stop(job)
    wait = run_stop_script(job, force=force, run_script=run_script)
    kill_own_processes(job, force=force, timeout=timeout, wait=wait, stays_mounted=keep_mounted)
    if keep_mounted:
        remove_cgroups(job)
        make_cgroup(job)  # for commands that exec runs
        job.note(phase="started")
        return
    kill_holders = kill_holders or job.instance.params.get("holders") == "kill"
    try:
        try:
            teardown.unmount_and_release(job)
        except HeldError:
            if not (kill_holders and end_holders(job, force=force, timeout=timeout)):
                raise
            teardown.unmount_and_release(job)
    except Interrupted:
        raise
    except ChrootfwError:
        job.note(phase="stopping")
        raise


def begin_stop(job: Job) -> None:
    """Record that the instance is being stopped, and thaw its cgroups.

    In a frozen cgroup the init script would never begin.
    """
    job.cancellation.check()
    job.note(phase="stopping")
    if warning := output.revive_logger(job.run_dir, job.name):  # who waits to print cannot end
        job.warn("", warning)
    for path in job.latest_snapshot().groups(job.name):
        cgroups.thaw(path)


# -- the init script -------------------------------------------------------------------------------


def run_stop_script(job: Job, *, force: bool, run_script: bool | None) -> float:
    """Run the init script with ``stop`` if it is to run.

    A script that fails or hangs is reported, and the stop goes on.

    Returns:
        Seconds for the processes to end by themselves, as the script may have asked them to.
    """
    if not wants_script(job, job.latest_snapshot(), force=force, run_script=run_script):
        return 0.0
    plugin, command = init_script.call_init_script_hook(job, "stop", report_errors=True)
    if not isinstance(command, Command):
        return 0.0
    entry = _entry_of(job, command)
    wait = 0.0

    def run() -> None:
        nonlocal wait
        description = init_script.describe_script(command)
        try:
            with job.step("init-stop", description, plugin), job.cancellation.shield():
                result = init_script.run_script(job, "stop", command, entry)
                if result.ended:
                    job.note(stop_done=True)
                if result.status != 0:
                    raise init_script.script_error(job, "stop", command, result)
            wait = float(job.instance.params["stop_wait"])
        except Interrupted:
            raise
        except ChrootfwError as error:
            report_failed_script(job, plugin, error)

    job.stages.around(job.instance, "init-stop", run, report_errors=True)
    return wait


def wants_script(job: Job, snapshot: Snapshot, *, force: bool, run_script: bool | None) -> bool:
    """Return whether a stop runs the init script; ``force`` and ``run_script`` as of ``stop``."""
    if run_script is not None:
        return run_script
    if force or not snapshot.is_mounted(job.name):
        return False
    if job.record is None:
        return job.instance.init_script is not None
    return job.record.init_ran and not job.record.stop_done


def report_failed_script(job: Job, plugin: str, error: ChrootfwError) -> None:
    """Report an init script that failed to stop the instance; the stop goes on."""
    lines = [error.brief, *(f"  {line}" for line in error.details), "  the stop goes on"]
    output = error.output if isinstance(error, ScriptError) else b""
    job.warn("init-stop", Lines(lines), plugin=plugin, output=output)


def _entry_of(job: Job, command: Command) -> Entry:
    """Return the entry that was recorded at start, else the plugins' answer of now."""
    if job.record and (fields := job.record.entry_fields()):
        return Entry(**fields)
    return job.stages.enter(job.instance, command, report_errors=True)[1]


# -- the kill strategy -----------------------------------------------------------------------------


def kill_own_processes(
    job: Job, *, force: bool, timeout: float | None, wait: float, stays_mounted: bool
) -> None:
    """Wait for the instance's own processes, then carry out the kill strategy for those left.

    Args:
        job: The instance.
        force: As of ``stop``.
        timeout: As of ``stop``.
        wait: Seconds for them to end by themselves.
        stays_mounted: Nothing is unmounted afterwards.

    Raises:
        SurvivorError: A process is still running after the last signal.
    """
    job.cancellation.check()

    def kill_all() -> None:
        remaining = kill.Remaining(job, None, stays_mounted=stays_mounted)
        if kill.move_strangers_out(job, remaining.strangers):
            remaining.refresh()
        if wait and remaining.has_own:
            kill.wait_for_own(remaining, wait)
        if remaining.has_own:
            _carry_out_strategy(job, remaining, force=force, timeout=timeout)

    job.stages.around(job.instance, "kill", kill_all, report_errors=True)


def end_holders(job: Job, *, force: bool, timeout: float | None) -> bool:
    """Carry out the kill strategy for the outside processes that keep the instance busy.

    Called only after a mount or the disk was busy: until then they block nothing.

    Returns:
        Whether there were any.
    """
    has_holders = False

    def kill_all() -> None:
        nonlocal has_holders
        remaining = kill.Remaining(job, partial(find_signalled_holders, job))
        has_holders = bool(remaining.holders)
        if has_holders:
            _carry_out_strategy(job, remaining, force=force, timeout=timeout)

    job.stages.around(job.instance, "kill", kill_all, report_errors=True)
    return has_holders


def _carry_out_strategy(
    job: Job, remaining: kill.Remaining, *, force: bool, timeout: float | None
) -> None:
    """Call the hook for the kill strategy of own processes and holders, and carry it out."""
    began = time.monotonic()
    given = [*remaining.describe_own(), *remaining.holders.values()]
    plugin, escalations = job.stages.kill_strategy(
        job.instance, given, force=force, timeout=timeout
    )
    if force:
        left = _FORCED - (time.monotonic() - began)
        escalations = kill_plan.cut_graces(escalations, left)
    kill.execute_escalations(remaining, plugin, escalations)


def find_signalled_holders(
    job: Job, snapshot: Snapshot, own: Iterable[int], only: Iterable[int] | None = None
) -> list[Process]:
    """Find the outside processes that ``kill_holders`` signals.

    They use the instance's mounts or devices, and not only by a copy of its mounts in their mount
    namespace. Own processes, the caller and its ancestors are left out.

    Args:
        job: The instance.
        snapshot: The snapshot that has the instance's mounts.
        own: The pids of the own processes.
        only: The pids to judge; ``None`` for all.
    """
    own = set(own)
    spared = procfs.self_and_ancestors()
    found = holders.find_holders(
        snapshot.read_mounts(job.name), job.root, job.record, own, only, devices_too=False
    )
    return [
        process
        for process in found
        if process.why in SIGNALLED and process.pid not in own and process.pid not in spared
    ]
