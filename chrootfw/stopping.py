"""Stopping, cleaning up and rebooting an instance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chrootfw import inventory, killing, mounting, starting, unmounting
from chrootfw.errors import ChrootfwError, Interrupted, ScriptError
from chrootfw.inventory import Survey
from chrootfw.jobs import Job
from chrootfw.model import Command, Entry, Stage
from chrootfw.planning import transitions
from chrootfw.starting import Answers
from chrootfw.system import cgroups, processes
from chrootfw.views import InstanceState, Process


def stop(
    job: Job,
    *,
    force: bool = False,
    timeout: float | None = None,
    run_script: bool | None = None,
    keep_mounted: bool = False,
    kill_holders: bool = False,
) -> None:
    """Init script, kill strategy, unmount to nothing, proof. The caller holds the lock.

    Raises ``SurvivorError``, ``HeldError``, ``StepError``, or ``Interrupted`` between two steps.
    """
    end_processes(
        job, force=force, timeout=timeout, run_script=run_script, kill_holders=kill_holders, stays_mounted=keep_mounted
    )
    if keep_mounted:
        starting.remove_cgroups(job)
        job.note(phase="started")
        return
    try:
        starting.finish(job)
    except Interrupted:
        raise
    except ChrootfwError:
        job.note(phase="stopping")
        raise


def end_processes(
    job: Job,
    *,
    force: bool,
    timeout: float | None,
    run_script: bool | None,
    kill_holders: bool,
    stays_mounted: bool,
) -> None:
    """The first half of a stop: the init script's ``stop``, then the kill strategy."""
    job.interrupts.check()
    job.note(phase="stopping")
    survey = job.surveyed or job.survey()
    for path in survey.cgroups.get(job.name, ()):
        cgroups.thaw(path)  # the script is born in the cgroup: in a frozen one it would never begin
    if _wants_script(job, survey, force=force, run_script=run_script):
        _init_stop(job)
    job.interrupts.check()
    kill_holders = kill_holders or job.instance.params.get("holders") == "kill"

    def holders(survey: Survey, only: Iterable[int] | None) -> list[Process]:
        return outside_holders(job, survey, only)

    def kill() -> None:
        living = killing.Living(job, holders if kill_holders else None, stays_mounted=stays_mounted)
        if not living.has_own and not living.holders:
            return
        given = [*living.survey.own_processes(job.name), *living.holders.values()]
        plugin, escalations = job.stages.kill_strategy(job.instance, given, force=force, timeout=timeout)
        killing.carry_out(living, plugin, escalations)

    job.stages.around(job.instance, "kill", kill, lenient=True)


def outside_holders(job: Job, survey: Survey, only: Iterable[int] | None = None) -> list[Process]:
    """The processes that use the instance's mounts or devices without being its own, among ``only``; never the caller."""
    own = set(survey.own(job.name))
    spared = processes.self_and_ancestors()
    mounts = survey.mounts(job.name)
    found = inventory.find_holders(mounts, job.root, job.intent, own, only, devices_too=False)
    return [p for p in found if p.pid not in own and p.pid not in spared]


def _wants_script(job: Job, survey: Survey, *, force: bool, run_script: bool | None) -> bool:
    if run_script is not None:
        return run_script
    if force or not survey.is_mounted(job.name):
        return False
    if job.intent is None:
        return job.instance.init_script is not None
    return bool(job.intent.get("init_ran")) and not job.intent.get("stop_done")


def _init_stop(job: Job) -> None:
    """Call the init script with ``stop``. That it fails or hangs is told, and stops nothing."""
    plugin, command = starting.ask_script(job, "stop", lenient=True)
    if not isinstance(command, Command):
        return
    entry = entry_of(job, command)

    def call() -> None:
        does = starting.script_does(command)
        try:
            with job.step("init-stop", does, plugin), job.interrupts.shield():
                result = starting.run_script(job, "stop", command, entry)
                if result.status is not None:
                    job.note(stop_done=True)
                if result.status != 0:
                    raise starting.script_error(job, "stop", command, result)
        except ChrootfwError as error:
            if isinstance(error, Interrupted):
                raise
            say_script_failed(job, plugin, error)

    job.stages.around(job.instance, "init-stop", call, lenient=True)


def say_script_failed(job: Job, plugin: str, error: ChrootfwError) -> None:
    """A script that fails to stop an instance is told, and stops nothing."""
    lines = "\n".join([error.brief, *(f"  {line}" for line in error.details)])
    output = error.output if isinstance(error, ScriptError) else b""
    job.warn("init-stop", f"{lines}\n  the stop goes on", plugin=plugin, output=output)


def entry_of(job: Job, command: Command) -> Entry:
    """How a process gets inside: as recorded at start, else as the plugins say now."""
    recorded = (job.intent or {}).get("entry")
    if recorded:
        return Entry(**recorded)
    return job.stages.enter(job.instance, command, lenient=True)[1]


def cleanup(job: Job) -> None:
    """Unmount and release what is mounted or held. Raises ``TransitionError`` while it runs."""
    state = job.survey().state(job.name, job.intent)
    transitions.check("cleanup", job.name, state)
    job.note(phase="stopping")
    starting.finish(job)


def reboot(job: Job, answers: Answers) -> None:
    """Script stop, kill, everything but the root mounted afresh, start. The root stays mounted.

    A start that fails leaves the instance ``mounted``.
    """
    state = job.survey().state(job.name, job.intent)
    transitions.check("reboot", job.name, state)
    mounting.check_same_disk(job, answers.points, lambda _disk: None)
    end_processes(job, force=False, timeout=None, run_script=None, kill_holders=False, stays_mounted=True)
    starting.start_again(job, answers)


def plan_steps(job: Job, *, state: InstanceState) -> Sequence[tuple[Stage, str, str]]:
    """What a stop would do now: ``(stage, does, plugin)``."""
    from chrootfw.planning import kill_plan

    steps: list[tuple[Stage, str, str]] = []
    survey = job.survey()
    if _wants_script(job, survey, force=False, run_script=None):
        plugin, command = starting.ask_script(job, "stop", lenient=True)
        if isinstance(command, Command):
            steps.append(("init-stop", starting.script_does(command), plugin))
    own = survey.own_processes(job.name)
    if state == InstanceState.RUNNING:
        given = [*own, *(outside_holders(job, survey) if job.instance.params.get("holders") == "kill" else ())]
        plugin, escalations = job.stages.kill_strategy(job.instance, given, force=False, timeout=None)
        for step in escalations:
            steps.append(("kill", f"{kill_plan.describe(step)} ({len(given)} now)", plugin))
    debts = list(reversed((job.intent or {}).get("steps", [])))
    steps += [("pre-start", f"undo {d['kind']}", d["plugin"]) for d in debts if d["stage"] == "pre-start"]
    entries = survey.mounts(job.name)
    if entries:
        plugin, order = job.stages.unmount_ordering(job.instance, unmounting.values(job, entries))
        by_id = {entry.id: entry for entry in entries}
        for mount in order:
            steps.append(("unmount", f"unmount {by_id[mount.id].mount_point.decode('utf-8', 'replace')}", plugin))
    steps += [("mount", f"undo {d['kind']}", d["plugin"]) for d in debts if d["stage"] == "mount"]
    if entries or job.intent:
        steps.append(("unmount", f"remove {job.run_dir}/{job.name}, prove that the disk is free", ""))
    return steps
