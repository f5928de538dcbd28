"""Starting an instance: mount, pre-start, init script; whatever fails, all of it is undone."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from chrootfw import debts, intents, killing, mounting, scripts, unmounting
from chrootfw.errors import (
    ChrootfwError,
    HeldError,
    Interrupted,
    PlanError,
    PreStartError,
    ScriptError,
    StepError,
    TransitionError,
)
from chrootfw.inventory import Survey
from chrootfw.jobs import Job
from chrootfw.model import Command, Entry, MountPoint, NoCommand, Problem, Stage, Step
from chrootfw.planning import transitions
from chrootfw.system import cgroups, deadlines, disks, store
from chrootfw.system.isolation import Isolation
from chrootfw.system.root import Root
from chrootfw.values import Value
from chrootfw.views import InstanceState


@attrs.frozen(eq=False, repr=False)
class Answers(Value):
    """What the plugins decided for a start, before anything is touched."""

    points: Sequence[tuple[str, MountPoint]]
    script_plugin: str
    script: Command | NoCommand
    entry_plugin: str
    entry: Entry


def ask(job: Job) -> Answers:
    """Ask the hooks that need no mounted root. Raises ``PluginError``, ``PlanError``, ``DiskError``."""
    job.stages.registry.check_loaded()
    try:
        points = job.stages.mount(job.instance)
    except PlanError as error:
        if job.instance.disk is None and "no plugin answered" in error.brief:
            raise PlanError(
                f"{job.name} has no disk, and no plugin brings a root for it",
                hint='give it one: disk = "/path" in its definition, or --disk',
            ) from error
        raise
    script_plugin, script = ask_script(job, "start")
    command = script if isinstance(script, Command) else Command(("/bin/sh",))
    entry_plugin, entry = job.stages.enter(job.instance, command)
    return Answers(points, script_plugin, script, entry_plugin, entry)


def ask_script(job: Job, action: str, *, lenient: bool = False) -> tuple[str, Command | NoCommand]:
    """The answer of ``init_script``."""
    return job.stages.init_script(job.instance, action, lenient=lenient)


def start(
    job: Job,
    state: InstanceState,
    answers: Answers,
    fresh_intent: dict[str, Any],
    lock_disk: Callable[[disks.Disk], None],
) -> None:
    """Carry out a start of what is ``absent`` or ``mounted``. The caller holds the instance's lock; ``lock_disk`` takes a disk's.

    Raises ``ChrootfwError`` after undoing everything that this start did.
    """
    if state == InstanceState.MOUNTED:
        _start_on_mounted(job, answers, fresh_intent, lock_disk)
        return
    found = mounting.check_disks(job, answers.points, lock_disk)
    pay_old_debts(job)
    _make_directories(job)
    job.intent = {**fresh_intent, "disks": found, "entry": answers.entry.to_dict()}
    try:
        job.save()
        job.interrupts.check()
        _make_cgroup(job)
        job.stages.around(job.instance, "mount", lambda: mounting.mount_tree(job, answers.points))
        _run_inside(job, answers)
    except BaseException as error:
        with job.interrupts.shield():
            _undo(job, error)
        raise


def _start_on_mounted(
    job: Job, answers: Answers, fresh_intent: dict[str, Any], lock_disk: Callable[[disks.Disk], None]
) -> None:
    """The root is mounted: it must be this disk. What is mounted in it is made afresh."""
    mounting.check_same_disk(job, answers.points, lock_disk)
    before = job.intent
    steps = before["steps"] if before else []
    known = before["disks"] if before else mounting.describe_disks(job, answers.points)
    job.intent = {**fresh_intent, "disks": known, "entry": answers.entry.to_dict(), "steps": list(steps)}
    try:
        job.save()
        renew(job, answers)
        _run_inside(job, answers)
    except BaseException as error:
        with job.interrupts.shield():
            _undo_on_mounted(job, before, error)
        raise


def start_again(job: Job, answers: Answers) -> None:
    """The second half of a reboot: everything but the root afresh, then a start with the same resolved instance."""
    assert job.intent is not None
    before = {**job.intent, "phase": "started", "init_ran": False, "started_at": None}
    job.save(phase="starting", init_ran=False, stop_done=False, entry=answers.entry.to_dict())
    try:
        renew(job, answers)
        _run_inside(job, answers)
    except HeldError:
        job.note(phase="stopping")
        raise
    except BaseException as error:
        with job.interrupts.shield():
            _undo_on_mounted(job, before, error)
        raise


def renew(job: Job, answers: Answers) -> None:
    """Take down everything but the root, and mount it again: ``/run`` and ``/dev/shm`` inside are fresh."""
    job.interrupts.check()
    failures = debts.pay(job, ("pre-start",))
    if failures:
        raise debts.unpaid(job.name, failures)
    unmounting.take_down(job, keep_root=True)
    failures = debts.pay(job, ("mount",), parts_only=True)
    if failures:
        raise debts.unpaid(job.name, failures)
    remove_cgroups(job)
    _make_cgroup(job)
    job.stages.around(job.instance, "mount", lambda: mounting.mount_parts(job, answers.points))


def _run_inside(job: Job, answers: Answers) -> None:
    """Pre-start and init script, and the end of a start."""
    job.interrupts.check()
    job.stages.around(
        job.instance, "pre-start", lambda: pre_start(job, answers.script, Root(job.root), check_root_answers)
    )
    job.interrupts.check()
    if isinstance(answers.script, Command):
        command = answers.script
        job.save(init_ran=True)
        job.stages.around(job.instance, "init-start", lambda: _init_start(job, answers, command))
        require_process(job, has_own=killing.any_lives(job))
    job.interrupts.check()
    job.save(phase="started", started_at=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()))


# -- directories and cgroups --------------------------------------------------------------------------


def _make_directories(job: Job) -> None:
    base = intents.directory(job.run_dir, job.name)
    try:
        _make_directory_pair(base, job.root)
    except BaseException as error:
        for path in (job.root, base):
            try:
                os.rmdir(path)
            except OSError as second:
                if second.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY):  # not made, or not by us
                    add_details(error, [f"and the directory {path} stays: {second.strerror}"])
        raise


def _make_directory_pair(base: str, root: str) -> None:
    for path in (base, root):
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            status = os.lstat(path)
            if not os.path.isdir(path) or os.path.islink(path):
                raise StepError(
                    f"cannot make the directory {path}: something else is in its place",
                    hint="look at it and move it away",
                ) from None
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                raise StepError(
                    f"the directory {path} is not root's alone", hint=f"chown root {path}; chmod go-w {path}"
                ) from None
        except OSError as error:
            raise StepError(
                f"cannot make the directory {path}: {error.strerror}", hint="chrootfw verify checks the run directory"
            ) from error
    try:
        found = os.listdir(root)
    except OSError as error:
        raise StepError(f"cannot look into the directory {root}: {error.strerror}") from error
    if found:
        raise StepError(
            f"the directory {root} is not empty: something else is in the root's place",
            hint="look at it and move it away",
        )


def _make_cgroup(job: Job) -> None:
    """A cgroup of its own for this start: v2 where it can be written, else v1 for its memory figure alone."""
    survey = job.survey()
    try:
        if survey.tracking == "cgroup" and survey.top:
            cgroups.create(cgroups.home(survey.top, job.run_dir), job.name, ("memory",))
        elif survey.v1 and cgroups.is_writable(survey.v1):
            cgroups.create(cgroups.home(survey.v1, job.run_dir), job.name)
    except OSError as error:
        raise StepError(f"cannot make a cgroup for {job.name}: {error.strerror} ({error.filename})") from error


def remove_cgroups(job: Job) -> None:
    """Remove the instance's empty cgroups, and those above if they are empty too. Raises ``StepError``."""
    survey = job.survey()
    try:
        for path in (*survey.cgroups.get(job.name, ()), *survey.v1_groups.get(job.name, ())):
            cgroups.remove(path)
        for top in filter(None, (survey.top, survey.v1)):
            if cgroups.is_writable(top):
                cgroups.prune(cgroups.home(top, job.run_dir))
    except OSError as error:
        raise StepError(f"cannot remove the cgroup {error.filename}: {error.strerror}") from error


def current_cgroup(job: Job) -> tuple[str | None, list[str]]:
    """Where the next process is born: the path of a v2 cgroup, and ``cgroup.procs`` files to join."""
    survey = job.survey()
    paths = survey.cgroups.get(job.name, [])
    joins = [f"{path}/cgroup.procs" for path in survey.v1_groups.get(job.name, [])[-1:]] if not paths else []
    return (paths[-1] if paths else None), joins


# -- pre-start and init script ----------------------------------------------------------------------


def pre_start(job: Job, command: Command | NoCommand, root: Root, look: Callable[[Job], None]) -> None:
    """Ask what is in the way of ``command``, and have the steps applied. ``look``: whether the root answers.

    Raises ``PreStartError``, ``StepError``, ``PluginError``.
    """
    with job.step("pre-start", "check the root"):
        look(job)
        answers = job.stages.pre_start(job.instance, root, command)
        problems = [problem for _, problem in answers if isinstance(problem, Problem)]
        fatal = [problem for problem in problems if not problem.warning]
        if fatal:
            first = fatal[0]
            if len(fatal) == 1:
                raise PreStartError(f"cannot start {job.name}: {first.brief}", hint=first.hint)
            lines = [f"{p.brief}{f' (hint: {p.hint})' if p.hint else ''}" for p in fatal]
            raise PreStartError(f"cannot start {job.name}: {len(fatal)} problems were found", lines)
    for problem in problems:
        job.warn("pre-start", problem.brief + (f" ({problem.hint})" if problem.hint else ""))
    for plugin, answer in answers:
        if isinstance(answer, Step):
            job.interrupts.check()
            debts.apply(job, "pre-start", plugin, answer)


def check_root_answers(job: Job) -> None:
    """Before the root is looked into. Raises ``StepError`` when its file system does not answer."""
    try:
        deadlines.check_answers(job.root, seconds=job.disk_timeout)
    except deadlines.Overdue as error:
        raise StepError(
            f"the root of {job.name} does not answer: {error.strerror}",
            [error.describe()],
            f"look at the device or server of its disk {job.instance.disk or ''}",
        ) from error


def run_script(job: Job, action: str, command: Command, entry: Entry) -> scripts.Result:
    """Run the init script inside the instance's cgroup, and keep the end of its output in a file."""
    cgroup, joins = current_cgroup(job)
    result = scripts.run(
        command,
        entry,
        root=job.root,
        env=scripts.environment(job.instance, action, command),
        cgroup=cgroup,
        joins=joins,
        isolation=Isolation(entry.to_dict(), job.name),
        own=job.survey().own(job.name) if entry.namespaces else (),
        answers=job.disk_timeout,
        interrupts=job.interrupts,
    )
    try:
        store.write(f"{intents.directory(job.run_dir, job.name)}/init-{action}.log", result.output)
    except OSError as error:
        job.warn(
            "init-start" if action == "start" else "init-stop",
            f"cannot keep the output of the init script: {error.strerror}",
        )
    return result


def script_error(job: Job, action: str, command: Command, result: scripts.Result) -> ScriptError:
    """The error for a script that failed, with the end of what it said."""
    said = scripts.shown(result.output)
    return ScriptError(
        f"the init script {command.argv[0]} {action} of {job.name} {result.describe(command.timeout)}",
        ["its last output:", *(f"  {line}" for line in said)] if said else ["it printed nothing"],
        output=result.output,
    )


def script_does(command: Command) -> str:
    """What the step of an init script does, in words."""
    return f"run {' '.join(command.argv)} (at most {command.timeout:g} s)"


def _init_start(job: Job, answers: Answers, command: Command) -> None:
    with job.step("init-start", script_does(command), answers.script_plugin):
        result = run_script(job, "start", command, answers.entry)
        if result.status != 0:
            raise script_error(job, "start", command, result)


def require_process(job: Job, *, has_own: bool) -> None:
    """After the init script: an instance without a process is told, or refused. Raises ``ScriptError``."""
    if has_own:
        return
    text = f"the init script of {job.name} succeeded, but left no process alive"
    if job.instance.params.get("require_process"):
        raise ScriptError(text, hint="set require_process = false if that is as it should be")
    job.warn("init-start", f"{text}; its state is mounted")


# -- undo -------------------------------------------------------------------------------------------


def _undo(job: Job, error: BaseException) -> None:
    """Take back everything of a start that failed; what cannot be taken back is added to the error."""
    try:
        killing.kill_at_once(job)
        mounting.remove_made(job)
        finish(job)
        if isinstance(error, Interrupted):
            add_details(error, [f"what the start of {job.name} had done is undone"])
    except Exception as second:
        add_details(error, told(second))
        job.note(phase="stopping")


def _undo_on_mounted(job: Job, before: dict[str, Any] | None, error: BaseException) -> None:
    """Take back a start on a root that was mounted before: the root stays."""
    try:
        killing.kill_at_once(job)
        failures = debts.pay(job, ("pre-start",))
        if failures:
            raise debts.unpaid(job.name, failures)
        remove_cgroups(job)
    except Exception as second:
        add_details(error, told(second))
    if before is not None:
        job.intent = {**before, "steps": job.intent["steps"] if job.intent else []}
        job.note()
    else:
        job.note(phase="started")


def told(second: Exception) -> list[str]:
    """The lines for an undo that failed."""
    brief = getattr(second, "brief", None) or f"{type(second).__name__}: {second}"
    return [f"and undoing it failed: {brief}", *getattr(second, "details", ())]


def add_details(error: BaseException, lines: Sequence[str]) -> None:
    """Say more about an error that is being raised."""
    if isinstance(error, ChrootfwError):
        error.details = (*error.details, *lines)
    else:
        for line in lines:
            error.add_note(line)


def tear_down(job: Job) -> None:
    """Kill at once, unmount to nothing, pay all debts, release all: what undoes a start, finished or not.

    Raises ``SurvivorError``, ``HeldError`` or ``StepError``; what is left stays recorded.
    """
    killing.kill_at_once(job)
    finish(job)


def removal_does(job: Job) -> str:
    """What the last step of a stop does, in words."""
    return f"remove {intents.directory(job.run_dir, job.name)}"


def finish(job: Job) -> None:
    """The end of a stop, when no own process lives: unmount, pay, prove, release."""
    before = job.surveyed
    survey = job.survey()
    if before and before.is_mounted(job.name) and survey.is_mounted(job.name):
        survey = before  # its mounts have been listed
    lost = survey.mounts(job.name) if job.intent is None else ()
    steps = job.intent["steps"] if job.intent else ()
    if any(record["stage"] == "pre-start" for record in steps) and survey.is_mounted(job.name):
        check_root_answers(job)  # they are undone in there
    failures = debts.pay(job, ("pre-start",))
    job.stages.around(job.instance, "unmount", lambda: _take_down(job, survey), lenient=True)
    try:
        unmounting.prove_released(job, lost)
    except HeldError as error:
        error.details = (*error.details, *failures)
        raise
    failures += debts.pay(job, ("mount",))
    remove_cgroups(job)
    if failures:
        raise debts.unpaid(job.name, failures)
    with job.step("unmount", removal_does(job)):
        intents.remove(job.run_dir, job.name)
    job.intent = None


def _take_down(job: Job, survey: Survey) -> None:
    """Unmount to nothing; once more if processes that nobody had seen kept it busy."""
    try:
        unmounting.take_down(job, survey=survey)
    except HeldError:
        if not killing.hunt(job):
            raise
        unmounting.take_down(job)


def pay_old_debts(job: Job) -> None:
    """Before a start of something absent: what an earlier one, of this boot or another, left behind."""
    if job.intent is None and not job.survey().cgroups.get(job.name):
        return
    if killing.Living(job, None).has_own:
        raise TransitionError(
            f"cannot start {job.name}: processes of an earlier start live", hint=f"chrootfw stop {job.name}"
        )
    failures = debts.pay(job, ("pre-start",)) + debts.pay(job, ("mount",))
    if failures:
        raise debts.unpaid(job.name, failures)
    remove_cgroups(job)


def plan_steps(job: Job, *, state: InstanceState) -> Sequence[tuple[Stage, str, str]]:
    """What a start would do now: ``(stage, does, plugin)``. Raises as ``ask``, and ``TransitionError``."""
    transitions.check("start", job.name, state)
    answers = ask(job)
    mounted = state == InstanceState.MOUNTED
    first = f"keep what is mounted on {job.root}, unmount what is in it" if mounted else f"make {job.root}"
    steps: list[tuple[Stage, str, str]] = [("mount", first, "")]
    for plugin, point in answers.points:
        if mounted and (point.target == "/" or point.at != "root"):
            continue
        if isinstance(point.source, Step):
            steps.append(("mount", debts.as_data(job, "mount", plugin, point.source)[0], plugin))
        steps.append(("mount", mounting.mount_does(point), plugin))
    if not mounted:
        steps.append(("mount", f"attach the tree on {job.root} in one step", ""))
    for plugin, answer in job.stages.pre_start(job.instance, None, answers.script):
        if isinstance(answer, Step):
            steps.append(("pre-start", debts.as_data(job, "pre-start", plugin, answer)[0], plugin))
        else:
            steps.append(("pre-start", f"problem: {answer.brief}", plugin))
    steps += [("pre-start", "will be checked", plugin) for plugin in job.stages.who_checks()]
    if isinstance(answers.script, Command):
        steps.append(("init-start", f"{script_does(answers.script)}, by {answers.entry.method}", answers.script_plugin))
    return steps
