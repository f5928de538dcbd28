"""Starting an instance: mount, pre-start, init script; whatever fails, all of it is undone."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from chrootfw import debts, intents, killing, scripts, unmounting
from chrootfw.errors import (
    ChrootfwError,
    DiskError,
    HeldError,
    Interrupted,
    PlanError,
    PreStartError,
    ScriptError,
    StepError,
    TransitionError,
)
from chrootfw.jobs import Job
from chrootfw.model import Command, Entry, MountPoint, NoCommand, Problem, Step
from chrootfw.planning import transitions
from chrootfw.system import cgroups, disks, loops, mounts, store, syscalls, trees
from chrootfw.system.root import Root
from chrootfw.views import InstanceState


@attrs.frozen
class Answers:
    """What the plugins decided for a start, before anything is touched."""

    points: Sequence[tuple[str, MountPoint]]
    script_plugin: str
    script: Command | NoCommand
    entry_plugin: str
    entry: Entry


def ask(job: Job) -> Answers:
    """Ask the hooks that need no mounted root. Raises ``PluginError``, ``PlanError``, ``DiskError``."""
    job.stages.registry.check_loaded()
    points = job.stages.mount(job.instance)
    script_plugin, script = ask_script(job, "start")
    command = script if isinstance(script, Command) else Command(("/bin/sh",))
    entry_plugin, entry = job.stages.enter(job.instance, command)
    return Answers(points, script_plugin, script, entry_plugin, entry)


def ask_script(job: Job, action: str, *, lenient: bool = False) -> tuple[str, Command | NoCommand]:
    """The answer of ``init_script``."""
    return job.stages.init_script(job.instance, action, lenient=lenient)


def start(job: Job, answers: Answers, fresh_intent: dict[str, Any], lock_disk: Callable[[disks.Disk], None]) -> None:
    """Carry out a start. The caller holds the instance's lock; ``lock_disk`` takes a disk's.

    Raises ``ChrootfwError`` after undoing everything that this start did.
    """
    state = job.survey().state(job.name, job.intent)
    transitions.check("start", job.name, state)
    if state == InstanceState.MOUNTED:
        _start_on_mounted(job, answers, fresh_intent, lock_disk)
        return
    found = _check_disks(job, answers.points, lock_disk)
    pay_old_debts(job)
    _make_directories(job)
    job.intent = {**fresh_intent, "disks": found, "entry": answers.entry.to_dict()}
    try:
        job.save()
        job.interrupts.check()
        _make_cgroup(job)
        job.stages.around(job.instance, "mount", lambda: _mount_all(job, answers))
        _run_inside(job, answers)
    except BaseException as error:
        with job.interrupts.shield():
            _undo(job, error)
        raise


def _start_on_mounted(
    job: Job, answers: Answers, fresh_intent: dict[str, Any], lock_disk: Callable[[disks.Disk], None]
) -> None:
    """The root is mounted: it must be this disk. What is mounted in it is made afresh."""
    check_same_disk(job, lock_disk)
    before = job.intent
    steps = before["steps"] if before else []
    known = before["disks"] if before else describe_disks(job, answers.points)
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
    remove_cgroups(job)
    _make_cgroup(job)
    parts = [(plugin, point) for plugin, point in answers.points if point.at == "root" and point.target != "/"]
    top = next(point for _, point in answers.points if point.at == "root" and point.target == "/")

    def mount_parts() -> None:
        opened: list[trees.Detached] = []
        root = trees.attached_root(top, job.root, read_only=False)
        try:
            for plugin, point in parts:
                opened.append(_detach(job, plugin, point))
            with job.step("mount", f"attach {len(parts)} mounts in {job.root}"):
                trees.attach_parts(root, opened, job.made)
            _say_made(job)
        finally:
            for detached in (root, *opened):
                os.close(detached.fd)

    job.stages.around(job.instance, "mount", mount_parts)


def _run_inside(job: Job, answers: Answers) -> None:
    """Pre-start and init script, and the end of a start."""
    job.interrupts.check()
    job.stages.around(job.instance, "pre-start", lambda: _pre_start(job))
    job.interrupts.check()
    if isinstance(answers.script, Command):
        command = answers.script
        job.save(init_ran=True)
        job.stages.around(job.instance, "init-start", lambda: _init_start(job, answers, command))
        _require_process(job)
    job.interrupts.check()
    job.save(phase="started", started_at=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()))


# -- mount ------------------------------------------------------------------------------------------


def _check_disks(
    job: Job, points: Sequence[tuple[str, MountPoint]], lock_disk: Callable[[disks.Disk], None]
) -> list[dict[str, Any]]:
    """Identify, lock and check every disk in the tree; nothing is touched yet. Raises ``DiskError``."""
    found = []
    keys: dict[str, str] = {}
    for _, point in points:
        disk = disk_of(point)
        if disk is None:
            continue
        disks.check_place(disk, job.run_dir)
        if disk.key in keys:
            raise PlanError(f"{job.name} would mount one disk twice: {keys[disk.key]} and {disk.path}")
        keys[disk.key] = disk.path
        lock_disk(disk)
        users = disks.users(disk, mounts.table())
        users += [f"the root of instance {other}" for other in _instances_on(job, disk)]
        if users:
            raise DiskError(
                f"the disk {disk.path} is already in use: {name_users(job, users)}",
                hint="an image or device is mounted once only: stop or unmount its other user first",
            )
        found.append(_disk_record(disk))
    return found


def describe_disks(job: Job, points: Sequence[tuple[str, MountPoint]]) -> list[dict[str, Any]]:
    """The disks of an instance whose record is lost, with the devices that are mounted now."""
    devices = [entry.dev for entry in unmounting.root_mounts(job, job.survey().mounts(job.name))]
    found = [_disk_record(disk) for _, point in points if (disk := disk_of(point))]
    for record in found[:1]:
        record["devices"] = devices
    return found


def _disk_record(disk: disks.Disk) -> dict[str, Any]:
    return {
        "kind": disk.kind,
        "path": disk.path,
        "file": [disk.dev, disk.ino],
        "devices": [disk.rdev] if disk.kind == "block" else [],
        "loop": None,
    }


def disk_of(point: MountPoint) -> disks.Disk | None:
    """The disk behind a mount point: every image and block device, and a directory that becomes the root."""
    if not isinstance(point.source, str) or not point.source.startswith("/"):
        return None
    bound = "bind" in point.options or "rbind" in point.options
    is_root = point.target == "/"
    if not is_root and (bound or point.fstype is None):
        return None
    disk = disks.identify(point.source)
    if disk.kind == "directory" and not (is_root and point.at == "root"):
        return None
    return None if bound and disk.kind != "directory" else disk


def name_users(job: Job, users: Sequence[str]) -> str:
    """The users of a disk, mounts below the run directory by the instance's name."""
    lines = []
    for user in users:
        below = user.removeprefix(f"mounted on {job.run_dir}/")
        lines.append(user if below == user else f"{user} (instance {below.split('/', 1)[0]})")
    return "; ".join(lines)


def _instances_on(job: Job, disk: disks.Disk) -> list[str]:
    """The other instances whose root is this very directory."""
    if disk.kind != "directory":
        return []
    found = []
    for name, entries in job.survey().entries.items():
        root = os.fsencode(intents.root(job.run_dir, name))
        if any(entry.mount_point == root and entry.dev == disk.dev for entry in entries):
            status = syscalls.statx(root)
            if name != job.name and (status.dev, status.ino) == (disk.dev, disk.ino):
                found.append(name)
    return found


def check_same_disk(job: Job, lock_disk: Callable[[disks.Disk], None]) -> None:
    """What is mounted on the root's mount point must be the instance's own disk. Raises ``DiskError``."""
    entries = unmounting.root_mounts(job, job.survey().mounts(job.name))
    if job.instance.disk is None or not entries:
        return
    disk = disks.identify(job.instance.disk)
    disks.check_place(disk, job.run_dir)
    lock_disk(disk)
    entry = entries[0]
    source = os.fsdecode(entry.source)
    status = syscalls.statx(os.fsencode(job.root))
    if disk.kind == "directory":
        same = len(entries) == 1 and (status.dev, status.ino) == (disk.dev, disk.ino)
    elif disk.kind == "image":
        same = source in loops.over({(disk.dev, disk.ino): disk.path})
    else:
        same = entry.dev == disk.rdev or (source.startswith("/dev/") and os.stat(source).st_rdev == disk.rdev)
    if not same:
        raise DiskError(
            f"something else is mounted on {job.root}: {source} ({os.fsdecode(entry.fstype)}), not the disk {disk.path}",
            hint=f"unmount it, or see what it is: findmnt {job.root}",
        )


def _make_directories(job: Job) -> None:
    base = intents.directory(job.run_dir, job.name)
    try:
        _make_directory_pair(base, job.root)
    except BaseException:
        try:
            os.rmdir(base)
        except OSError:
            pass  # not made, or something is in it
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
    if os.listdir(root):
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


def _mount_all(job: Job, answers: Answers) -> None:
    for plugin, point in answers.points:
        if point.at != "root":
            _mount_aux(job, plugin, point)
    tree = [(plugin, point) for plugin, point in answers.points if point.at == "root"]
    opened: list[trees.Detached] = []
    tree_fd = -1
    try:
        for plugin, point in tree:
            job.interrupts.check()
            opened.append(_detach(job, plugin, point))
        root, *parts = opened
        _record_device(job, root)
        with job.step("mount", f"attach the tree of {len(opened)} mounts on {job.root}"):
            tree_fd = trees.assemble(root, parts, job.root, job.made)
            try:
                trees.attach(tree_fd, job.root)
            except OSError as error:
                raise StepError(f"cannot attach the tree on {job.root}: {error.strerror}") from error
        _say_made(job)
    finally:
        for fd in (tree_fd, *(detached.fd for detached in opened)):
            if fd >= 0:
                os.close(fd)


def _mount_aux(job: Job, plugin: str, point: MountPoint) -> None:
    """An auxiliary layer: attached at once, since others name it by its path."""
    base = f"{intents.directory(job.run_dir, job.name)}/aux"
    place = f"{base}/{point.at[4:]}"
    for path in (base, place):
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            pass
    detached = _detach(job, plugin, point)
    try:
        _record_device(job, detached)
        if point.target == "/":
            trees.attach(detached.fd, place)
        else:
            layer = trees.attached_root(point, place, read_only=False)
            try:
                trees.attach_parts(layer, [detached], [])
            finally:
                os.close(layer.fd)
    except OSError as error:
        raise StepError(f"cannot attach {point.describe()} on {place}: {error.strerror}") from error
    finally:
        os.close(detached.fd)


def _detach(job: Job, plugin: str, point: MountPoint) -> trees.Detached:
    """Apply the step that makes the source, if there is one, and make the mount."""
    source = point.source
    if isinstance(source, Step):
        facts: Mapping[str, Any] = debts.apply(job, "mount", plugin, source)
        made = facts.get("source")
        if not isinstance(made, str) or not made:
            raise StepError(
                f"{job.stages.registry.record(plugin).describe()}: the step {source.describe()} says no source for {point.target}",
                hint='apply() of a source step returns {"source": path}',
            )
        source = made
    base = f"{intents.directory(job.run_dir, job.name)}/aux"
    options = [option.replace("{aux:", "{").replace("{", f"{base}/").replace("}", "") if "{aux:" in option else option
               for option in point.options]  # fmt: skip
    with job.step("mount", f"mount {point.describe()}", plugin):
        return trees.detach(point, source, options)


def _record_device(job: Job, detached: trees.Detached) -> None:
    """Remember the device of a disk's mount: when a stop finds it busy, its holders are looked for by it."""
    if job.intent is None:
        return
    device = syscalls.statx("", detached.fd).dev
    for record in job.intent["disks"]:
        if record["path"] == detached.point.source:
            record["devices"] = sorted({*record["devices"], device})
            record["loop"] = detached.loop
            job.save()


def _say_made(job: Job) -> None:
    for path in job.made:
        if any(other.startswith(f"{path}/") for other in job.made):
            continue  # what is below it says it all
        job.warn("mount", f"made the mount point {path} in the root: it was missing")


# -- pre-start and init script ----------------------------------------------------------------------


def _pre_start(job: Job) -> None:
    with job.step("pre-start", "check the root"):
        answers = job.stages.pre_start(job.instance, Root(job.root))
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
        interrupts=job.interrupts,
    )
    try:
        store.write(f"{intents.directory(job.run_dir, job.name)}/init-{action}.log", result.output)
    except OSError as error:
        job.warn(f"init-{action}", f"cannot keep the output of the init script: {error.strerror}")
    return result


def script_error(job: Job, action: str, command: Command, result: scripts.Result) -> ScriptError:
    """The error for a script that failed, with the end of what it said."""
    said = scripts.shown(result.output)
    return ScriptError(
        f"the init script {command.argv[0]} {action} of {job.name} {result.describe(command.timeout)}",
        ["its last output:", *(f"  {line}" for line in said)] if said else ["it printed nothing"],
        output=result.output,
    )


def _init_start(job: Job, answers: Answers, command: Command) -> None:
    with job.step("init-start", f"run {' '.join(command.argv)} (at most {command.timeout:g} s)", answers.script_plugin):
        result = run_script(job, "start", command, answers.entry)
        if result.status != 0:
            raise script_error(job, "start", command, result)


def _require_process(job: Job) -> None:
    if killing.Living(job, None).has_own:
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
        _remove_made(job)
        finish(job)
        if isinstance(error, Interrupted):
            _add_details(error, [f"what the start of {job.name} had done is undone"])
    except Exception as second:
        _add_details(error, _told(second))
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
        _add_details(error, _told(second))
    if before is not None:
        job.intent = {**before, "steps": job.intent["steps"] if job.intent else []}
        job.note()
    else:
        job.note(phase="started")


def _told(second: Exception) -> list[str]:
    brief = getattr(second, "brief", None) or f"{type(second).__name__}: {second}"
    return [f"and undoing it failed: {brief}", *getattr(second, "details", ())]


def _remove_made(job: Job) -> None:
    """Take the mount points that a failed start made in the disk away again, as far as they are still empty."""
    if not job.made:
        return
    debts.pay(job, ("pre-start",))
    unmounting.take_down(job, keep_root=True)
    inside = Root(job.root)
    for path in reversed(job.made):
        directory, _, name = path.rpartition("/")
        try:
            parent_fd = inside.open_fd(directory or "/", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
                os.rmdir(name, dir_fd=parent_fd)
            elif not os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_size:
                os.unlink(name, dir_fd=parent_fd)
        except OSError:
            pass  # something uses it now
        finally:
            os.close(parent_fd)


def _add_details(error: BaseException, lines: Sequence[str]) -> None:
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


def finish(job: Job) -> None:
    """The end of a stop, when no own process lives: unmount, pay, prove, release."""
    entries = job.survey().mounts(job.name)
    failures = debts.pay(job, ("pre-start",))
    job.stages.around(job.instance, "unmount", lambda: unmounting.take_down(job), lenient=True)
    try:
        unmounting.prove_released(job, entries)
    except HeldError as error:
        error.details = (*error.details, *failures)
        raise
    failures += debts.pay(job, ("mount",))
    remove_cgroups(job)
    if failures:
        raise debts.unpaid(job.name, failures)
    with job.step("unmount", f"remove {intents.directory(job.run_dir, job.name)}"):
        intents.remove(job.run_dir, job.name)
    job.intent = None


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
