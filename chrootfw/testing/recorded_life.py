"""The life of an instance in memory: the way of ``starting`` and ``stopping`` once more, with their own words, questions, checks and records.

It has no way to the system: what the core would do there is done to a table of mounts and a list of processes.
``tests/real/test_testing_kit.py`` holds that it tells what the core tells.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from chrootfw import debts, intents, killing, mounting, scripts, starting, stopping, unmounting
from chrootfw.errors import ChrootfwError, StepError, SurvivorError
from chrootfw.jobs import Job
from chrootfw.model import Command, Escalation, MountPoint, NoCommand, Stage, Step
from chrootfw.planning import kill_plan, paths
from chrootfw.system import trees
from chrootfw.system.mounts import MountEntry
from chrootfw.testing import root_tree
from chrootfw.testing.records import Alive, Book, Recorded, Sent
from chrootfw.views import InstanceState

#: What a step that was made to fail says.
INJECTED = "injected failure"


@attrs.define
class RecordedJob(Job):
    """A verb on an instance that is in memory only."""

    book: Book = attrs.field(kw_only=True)
    apply_steps: bool = attrs.field(kw_only=True)
    due: bool = attrs.field(default=False, init=False)

    def survey(self) -> Any:
        """Never asked for."""
        raise AssertionError("a recording does not look at the kernel")

    def save(self, **changes: Any) -> None:
        """The intent must be JSON, as if it were written."""
        if self.intent is not None:
            self.intent.update(changes)
            intents.dump(self.name, self.intent)

    @contextmanager
    def step(self, stage: Stage, does: str, plugin: str = "") -> Iterator[None]:
        """Tell of it as the core does, and write it down."""
        book = self.book
        book.number += 1
        book.takes_back = ""
        try:
            with Job.step(self, stage, does, plugin):
                self.due = book.is_due(book.number, does)
                yield
        except BaseException:
            book.failed = book.failed or Recorded(stage, does, plugin)
            raise
        finally:
            self.due = False
        (book.undo if book.failing else book.steps).append(Recorded(stage, does, plugin, book.takes_back))

    def check_step(self, step: Step) -> None:
        """With ``apply_steps`` only: what is on this machine is not what the recording is about."""
        if self.apply_steps:
            step.check()

    def apply_step(self, step: Step) -> Mapping[str, Any] | None:
        """Likewise; else a source is made up."""
        assert self.intent is not None
        self.book.takes_back = debts.undo_does(self.intent["steps"][-1])
        if self.due:
            raise OSError(errno.EIO, INJECTED)
        return step.apply() if self.apply_steps else {"source": "/dev/recorded"}

    def undo_step(self, step: Step, record: Mapping[str, Any]) -> None:
        """Likewise."""
        if self.due:
            raise OSError(errno.EIO, INJECTED)
        if self.apply_steps:
            step.undo(record)

    def fail_if_due(self, does: str) -> None:
        """Where a step touches the system. Raises ``StepError`` when it is to fail."""
        if self.due:
            raise StepError(f"cannot {does}: {INJECTED}")


class RecordedLife:
    """An instance in memory: its mount table, its processes, the Steps that are owed."""

    def __init__(
        self, job: RecordedJob, root: root_tree.TreeRoot, processes: Sequence[Alive], *, keeps_root: bool
    ) -> None:
        self.job = job
        self.root = root
        self.born = processes
        self.keeps_root = keeps_root
        self.table: list[MountEntry] = []
        self.alive: list[Alive] = []
        self.ids = iter(range(2, 1 << 30))  # 1: the mount that the run directory lies in
        self.now = 0.0

    @property
    def state(self) -> InstanceState:
        """What the kernel would show."""
        if self.own:
            return InstanceState.RUNNING
        if self.job.intent and self.job.intent.get("phase") == "stopping":
            return InstanceState.HELD
        return InstanceState.MOUNTED

    @property
    def own(self) -> list[Alive]:
        """Its own processes that live."""
        return [alive for alive in self.alive if alive.process.own]

    # -- start --------------------------------------------------------------------------------------

    def start(self, answers: starting.Answers) -> None:
        """As ``starting.start`` of something absent."""
        job = self.job
        job.stages.around(job.instance, "mount", lambda: self._mount_tree(answers.points))
        job.stages.around(job.instance, "pre-start", lambda: self._pre_start(answers.script))
        if isinstance(answers.script, Command):
            command = answers.script
            job.save(init_ran=True)
            job.stages.around(
                job.instance, "init-start", lambda: self._run_script("init-start", command, answers.script_plugin)
            )
            starting.require_process(job, has_own=bool(self.own))
        job.save(phase="started")

    def _mount_tree(self, points: mounting.Points) -> None:
        """As ``mounting.mount_tree``."""
        job = self.job
        layers, tree = mounting.parted(points)
        for plugin, point in layers:
            entry = self._detach(plugin, point)
            base = f"{intents.directory(job.run_dir, job.name)}/aux/{point.at[4:]}"
            self._attach(entry, base if point.target == "/" else base + point.target)
        opened = [(point, self._detach(plugin, point)) for plugin, point in tree]
        with job.step("mount", does := mounting.attach_does(job, len(opened))):
            self._make_mount_points([point for point, _ in opened])
            job.fail_if_due(does)
            for point, entry in opened:
                self._attach(entry, self._place(point))
        mounting.say_made(job)

    def _place(self, point: MountPoint) -> str:
        target = self.root.resolve(point.target)
        return self.job.root if target == "/" else self.job.root + target

    def _detach(self, plugin: str, point: MountPoint) -> MountEntry:
        job = self.job
        source = mounting.source_of(job, plugin, point)
        with job.step("mount", does := mounting.mount_does(point), plugin):
            options = mounting.options_of(job, point)
            trees.check_options(point, options)
            job.fail_if_due(does)
            place = self._place(point) if point.at == "root" else f"{job.run_dir}/{job.name}/aux/{point.at[4:]}"
            job.book.takes_back = (
                f"unmount {place if point.at == 'root' or point.target == '/' else place + point.target}"
            )
        shown = [
            "ro" if "ro" in options else "rw",
            *(o for o in options if o in trees.ATTRIBUTES and o != "ro"),
            "relatime",
        ]
        return MountEntry(
            id=next(self.ids),
            parent=1,
            dev=0,
            root=b"/",
            mount_point=b"",
            options=",".join(shown).encode(),
            optional=(),
            fstype=(point.fstype or "ext4").encode(),
            source=os.fsencode(source),
            super_options=b"",
        )

    def _attach(self, entry: MountEntry, place: str) -> None:
        entry.mount_point = os.fsencode(place)
        for other in self.table:  # the last that holds it is the one that it lies in
            if paths.is_within_bytes(entry.mount_point, other.mount_point):
                entry.parent = other.id
        self.table.append(entry)

    def _make_mount_points(self, points: Sequence[MountPoint]) -> None:
        """As ``trees.assemble``: what is missing of a mount point on the root's own mount is made, and known as made."""
        read_only = any(point.target == "/" and "ro" in point.options for point in points)
        covered: list[str] = []
        for point in points:
            target = self.root.resolve(point.target)
            if target == "/" or any(paths.is_within(target, other) for other in covered):
                covered += [target] if target != "/" else []
                continue
            covered.append(target)
            if self.root.exists(target):
                continue
            if read_only:
                raise trees.missing_on_read_only(point, is_directory=not os.path.isfile(str(point.source)))
            parts = paths.components(target)
            for number in range(1, len(parts) + 1):
                path = "/" + "/".join(parts[:number])
                if not self.root.exists(path) and path not in self.job.made:
                    self.job.made.append(path)
            if not self.keeps_root:
                root_tree.make_mount_point(self.root.path, target, is_file=os.path.isfile(str(point.source)))

    def _pre_start(self, command: Command | NoCommand) -> None:
        def look(job: Job) -> None:
            self.job.fail_if_due(f"check the root of {job.name}")

        starting.pre_start(self.job, command, self.root, look)

    def _run_script(self, stage: Stage, command: Command, plugin: str) -> None:
        job = self.job
        action = stage.removeprefix("init-")
        with job.step(stage, starting.script_does(command), plugin):
            if action == "start":
                self.alive = [alive.born() for alive in self.born]
                job.book.takes_back = killing.KILL_DOES if self.own else ""
            failed = job.due
            if not failed and action == "stop":
                job.note(stop_done=True)
            if failed:
                raise starting.script_error(job, action, command, scripts.Result(1, INJECTED.encode()))

    # -- undo and the end of a stop -----------------------------------------------------------------

    def undo(self, error: BaseException) -> None:
        """As the undo of ``starting.start``."""
        job = self.job
        try:
            self._kill_at_once()
            if job.made:
                debts.pay(job, ("pre-start",))
                self._take_down(keep_root=True)
            self.finish()
        except Exception as second:
            starting.add_details(error, starting.told(second))
            job.note(phase="stopping")
        job.book.left = self._left()

    def _left(self) -> list[str]:
        steps = self.job.intent["steps"] if self.job.intent else []
        return [
            *(f"pid {alive.pid} ({alive.process.command})" for alive in self.own),
            *(f"the mount on {os.fsdecode(entry.mount_point)}" for entry in self.table),
            *(f"the step {record['kind']} {record['arguments']} of plugin {record['plugin']}" for record in steps),
        ]

    def finish(self) -> None:
        """As ``starting.finish``."""
        job = self.job
        failures = debts.pay(job, ("pre-start",))
        job.stages.around(job.instance, "unmount", self._take_down, lenient=True)
        failures += debts.pay(job, ("mount",))
        if failures:
            raise debts.unpaid(job.name, failures)
        with job.step("unmount", does := starting.removal_does(job)):
            job.fail_if_due(does)
        job.intent = None

    def _take_down(self, *, keep_root: bool = False) -> None:
        """As ``unmounting.take_down`` where every unmount succeeds, or the one that is to fail is busy."""
        job = self.job
        entries = list(self.table)
        if keep_root:
            inside = os.fsencode(f"{job.root}/")
            entries = [entry for entry in entries if entry.mount_point.startswith(inside)]
        if not entries:
            return
        plugin, order = job.stages.unmount_ordering(job.instance, unmounting.values(job, entries))
        by_id = {entry.id: entry for entry in entries}
        for entry in (by_id[mount.id] for mount in order):
            does = unmounting.unmount_does(entry)
            if job.book.is_due(job.book.number + 1, does):
                job.book.failed = Recorded("unmount", does, plugin)
                raise unmounting.held_by(job, [entry], [a.process for a in self.alive if not a.process.own])
            self.table.remove(entry)
            with job.step("unmount", does, plugin):
                pass

    # -- stop ---------------------------------------------------------------------------------------

    def end_processes(self, *, force: bool, timeout: float | None, run_script: bool | None, kill_holders: bool) -> None:
        """As ``stopping.end_processes``."""
        job = self.job
        job.note(phase="stopping")
        wanted = not force and bool(job.intent and job.intent.get("init_ran") and not job.intent.get("stop_done"))
        if wanted if run_script is None else run_script:
            self._init_stop()
        kill_holders = kill_holders or job.instance.params.get("holders") == "kill"
        job.stages.around(
            job.instance, "kill", lambda: self._kill(force=force, timeout=timeout, holders=kill_holders), lenient=True
        )

    def _init_stop(self) -> None:
        job = self.job
        plugin, command = starting.ask_script(job, "stop", lenient=True)
        if not isinstance(command, Command):
            return

        def call() -> None:
            try:
                self._run_script("init-stop", command, plugin)
            except ChrootfwError as error:
                stopping.say_script_failed(job, plugin, error)

        job.stages.around(job.instance, "init-stop", call, lenient=True)

    def _kill(self, *, force: bool, timeout: float | None, holders: bool) -> None:
        """As ``killing.carry_out``."""
        job = self.job
        living = [alive for alive in self.alive if alive.process.own or holders]
        if not living:
            return
        given = sorted((alive.process for alive in living), key=lambda process: not process.own)
        plugin, escalations = job.stages.kill_strategy(job.instance, given, force=force, timeout=timeout)
        for step in escalations:
            if not [alive for alive in self.alive if alive.process.own or holders]:
                return
            with job.step("kill", does := kill_plan.describe(step), plugin):
                job.fail_if_due(does)
                self._escalate(step, holders=holders)
        if self.own:
            raise self._survived()

    def _escalate(self, step: Escalation, *, holders: bool) -> None:
        """Send one signal; the clock goes on until its targets are gone, or the grace period is over."""
        outside = [alive.pid for alive in self.alive if not alive.process.own] if holders else []
        pids = kill_plan.targets(step, [alive.pid for alive in self.own], outside, spared=())
        began, last = self.now, self.now
        for alive in [a for a in self.alive if a.pid in pids]:
            self.job.book.sent.append(Sent(step.signal, alive.pid))
            alive.receive(step.signal, self.now)
            last = max(last, alive.ends_at)
        self.now = min(last, self.now + step.grace)
        self.job.book.seconds += self.now - began
        self.alive = [alive for alive in self.alive if alive.ends_at > self.now]

    def _kill_at_once(self) -> None:
        """As ``killing.kill_at_once``."""
        if not self.own:
            return
        with self.job.step("kill", killing.KILL_DOES):
            self._escalate(Escalation(signal.SIGKILL, kill_plan.KILL_GRACE), holders=False)
        if self.own:
            raise self._survived()

    def _survived(self) -> SurvivorError:
        return killing.survived(self.job.name, [f"pid {a.pid} ({a.process.command})" for a in self.own])
