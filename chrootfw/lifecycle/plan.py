"""List what a verb would do, and which plugin decided it; touch nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator

from chrootfw.errors import DefinitionError, DiskError, TrustError
from chrootfw.lifecycle import init_script, mount, steps, teardown, unmount
from chrootfw.lifecycle.context import Job
from chrootfw.lifecycle.environment import read_environment
from chrootfw.lifecycle.start import Answers, call_hooks
from chrootfw.lifecycle.stop import SIGNALLED, wants_script
from chrootfw.linux.mountinfo import MountEntry
from chrootfw.model import Command, PlannedStep, Problem, Stage, Step
from chrootfw.planning import kill_plan, transitions
from chrootfw.state import holders
from chrootfw.state.snapshot import Snapshot
from chrootfw.views import InstanceState


def plan_start(job: Job) -> list[PlannedStep]:
    """Return what a start would do now.

    Raises:
        TransitionError: The instance cannot be started in its state.
        ChrootfwError: As `start.call_hooks` raises.
    """
    state = job.read_state(job.read_snapshot())
    transitions.check("start", job.name, state)
    problems = list(_plan_environment(job))
    answers = call_hooks(job)
    return [
        *problems,
        *_plan_problems(job, answers),
        *_plan_mounts(job, answers, is_mounted=state == InstanceState.MOUNTED),
        *_plan_pre_start(job, answers),
        *_plan_init_start(answers),
    ]


def _plan_environment(job: Job) -> Iterator[PlannedStep]:
    """Say that the environment file cannot be used: the start would fail."""
    try:
        read_environment(job)
    except (DefinitionError, TrustError) as error:
        yield PlannedStep("mount", f"problem: {error.brief}", "")


def _plan_mounts(job: Job, answers: Answers, *, is_mounted: bool) -> Iterator[PlannedStep]:
    if is_mounted:
        first = f"keep what is mounted on {job.root}, unmount what is in it"
    else:
        first = f"make {job.root}"
    yield PlannedStep("mount", first, "")
    layers, tree = mount.split_layers(answers.points)
    if is_mounted:
        layers, tree = [], [(plugin, point) for plugin, point in tree if point.target != "/"]
    for plugin, point in (*layers, *tree):
        if isinstance(point.source, Step):
            yield _plan_step(job, "mount", plugin, point.source)
        yield PlannedStep("mount", mount.describe_mount(point), plugin)
    if is_mounted:
        yield PlannedStep("mount", mount.describe_attach_parts(job, len(tree)), "")
    else:
        yield PlannedStep("mount", mount.describe_attach(job, len(tree)), "")


def _plan_problems(job: Job, answers: Answers) -> Iterator[PlannedStep]:
    """Say which disks are missing or not valid: the start would fail."""
    for plugin, point in answers.points:
        try:
            mount.find_disk(job, point)
        except DiskError as error:
            yield PlannedStep("mount", f"problem: {error.brief}", plugin)


def _plan_pre_start(job: Job, answers: Answers) -> Iterator[PlannedStep]:
    found = job.stages.pre_start(job.instance, None, answers.script)
    for plugin in job.stages.who_checks():
        yield PlannedStep("pre-start", "will be checked", plugin)
    for plugin, answer in found:
        if isinstance(answer, Problem):
            yield PlannedStep("pre-start", f"problem: {answer.brief}", plugin)
    for plugin, answer in found:
        if isinstance(answer, Step):
            yield _plan_step(job, "pre-start", plugin, answer)


def _plan_step(job: Job, stage: Stage, plugin: str, step: Step) -> PlannedStep:
    return PlannedStep(stage, steps.step_as_data(job, stage, plugin, step)[0], plugin)


def _plan_init_start(answers: Answers) -> Iterator[PlannedStep]:
    if isinstance(answers.script, Command):
        description = init_script.describe_script(answers.script)
        yield PlannedStep("init-start", description, answers.script_plugin)


def plan_stop(
    job: Job,
    snapshot: Snapshot,
    *,
    force: bool = False,
    timeout: float | None = None,
    run_script: bool | None = None,
    keep_mounted: bool = False,
    kill_holders: bool = False,
) -> list[PlannedStep]:
    """Return what a stop would do now, and which outside processes would block it.

    Args:
        job: The instance, which is present.
        snapshot: The snapshot that shows it. Mounts and processes are read again.
        force: As of `stop.stop`, as are the following.
        timeout: The grace period in seconds, in place of the instance's own.
        run_script: `False` never, `True` also again, `None` once.
        keep_mounted: End the processes only.
        kill_holders: Signal outside holders too.
    """
    state = job.read_state(snapshot)
    snapshot = job.read_snapshot()
    runs_script = wants_script(job, snapshot, force=force, run_script=run_script)
    ended = [
        *(_plan_init_stop(job) if runs_script else ()),
        *_plan_wait(job, state, runs_script=runs_script),
        *_plan_kill(job, snapshot, state, force=force, timeout=timeout),
    ]
    if keep_mounted:
        return ended
    kill_holders = kill_holders or job.instance.params.get("holders") == "kill"
    return [
        *ended,
        *_plan_holders(job, snapshot, force=force, timeout=timeout, is_killed=kill_holders),
        *_plan_release(job, snapshot),
    ]


def plan_cleanup(job: Job, snapshot: Snapshot) -> list[PlannedStep]:
    """Return what a cleanup would do now; arguments as of `plan_stop`.

    Raises:
        TransitionError: The instance is running.
    """
    transitions.check("cleanup", job.name, job.read_state(snapshot))
    snapshot = job.read_snapshot()
    return [
        *_plan_holders(job, snapshot, force=False, timeout=None, is_killed=False),
        *_plan_release(job, snapshot),
    ]


def plan_reboot(job: Job, snapshot: Snapshot) -> list[PlannedStep]:
    """Return what a reboot would do now; arguments as of `plan_stop`.

    Raises:
        TransitionError: The instance is neither running nor mounted.
        ChrootfwError: As `start.call_hooks` raises.
    """
    answers = call_hooks(job)
    state = job.read_state(snapshot)
    transitions.check("reboot", job.name, state)
    snapshot = job.read_snapshot()
    runs_script = wants_script(job, snapshot, force=False, run_script=None)
    return [
        *(_plan_init_stop(job) if runs_script else ()),
        *_plan_wait(job, state, runs_script=runs_script),
        *_plan_kill(job, snapshot, state, force=False, timeout=None),
        *_plan_mounts(job, answers, is_mounted=True),
        *_plan_pre_start(job, answers),
        *_plan_init_start(answers),
    ]


def _plan_release(job: Job, snapshot: Snapshot) -> list[PlannedStep]:
    mounts = snapshot.read_mounts(job.name)
    return [
        *_plan_undo(job, "pre-start"),
        *_plan_unmounts(job, mounts),
        *_plan_undo(job, "mount"),
        *_plan_proof(job, is_mounted=bool(mounts)),
    ]


def _plan_init_stop(job: Job) -> Iterator[PlannedStep]:
    plugin, command = init_script.call_init_script_hook(job, "stop", report_errors=True)
    if isinstance(command, Command):
        yield PlannedStep("init-stop", init_script.describe_script(command), plugin)


def _plan_wait(job: Job, state: InstanceState, *, runs_script: bool) -> Iterator[PlannedStep]:
    seconds = job.instance.params["stop_wait"]
    if seconds and runs_script and state == InstanceState.RUNNING:
        yield PlannedStep("kill", kill_plan.describe_wait(seconds), "")


def _plan_kill(
    job: Job, snapshot: Snapshot, state: InstanceState, *, force: bool, timeout: float | None
) -> Iterator[PlannedStep]:
    if state != InstanceState.RUNNING:
        return
    own = job.read_own(snapshot).describe()
    plugin, escalations = job.stages.kill_strategy(job.instance, own, force=force, timeout=timeout)
    for escalation in escalations:
        yield PlannedStep("kill", f"{kill_plan.describe(escalation)} ({len(own)} now)", plugin)


def _plan_holders(
    job: Job, snapshot: Snapshot, *, force: bool, timeout: float | None, is_killed: bool
) -> Iterator[PlannedStep]:
    """Name the outside holders; only root sees them.

    With ``is_killed`` those that can be signalled are, the others block the stop.
    """
    if os.geteuid() != 0:
        return
    own = set(job.read_own(snapshot).pids)
    entries = snapshot.read_mounts(job.name)
    found = holders.find_holders(entries, job.root, job.record, own)
    others = [each for each in found if each.pid not in own]
    signalled = [each for each in others if is_killed and each.why in SIGNALLED]
    if signalled:
        plugin, escalations = job.stages.kill_strategy(
            job.instance, signalled, force=force, timeout=timeout
        )
        names = ", ".join(each.describe() for each in signalled)
        for escalation in escalations:
            yield PlannedStep(
                "kill", f"{kill_plan.describe(escalation)} (holders: {names})", plugin
            )
    for each in others:
        if each not in signalled:
            text = f"problem: held by {each.describe()}: this would end with status 4"
            yield PlannedStep("unmount", text, "")


def _plan_undo(job: Job, stage: Stage) -> Iterator[PlannedStep]:
    for recorded in reversed(job.record.steps if job.record else ()):
        if recorded.stage == stage:
            yield PlannedStep(stage, steps.describe_undo(recorded), recorded.plugin)
            if why := steps.find_obstacle(job, recorded):
                text = f"problem: {steps.describe_undo(recorded)}: {why}"
                yield PlannedStep(stage, text, recorded.plugin)


def _plan_unmounts(job: Job, entries: list[MountEntry]) -> Iterator[PlannedStep]:
    if not entries:
        return
    plugin, order = job.stages.unmount_ordering(job.instance, unmount.as_model_mounts(job, entries))
    mount_points = {entry.id: entry.mount_point for entry in entries}
    for each in order:
        path = mount_points[each.id].decode("utf-8", "replace")
        yield PlannedStep("unmount", f"unmount {path}", plugin)


def _plan_proof(job: Job, *, is_mounted: bool) -> Iterator[PlannedStep]:
    if is_mounted or job.record:
        yield PlannedStep("unmount", teardown.describe_removal(job), "")
