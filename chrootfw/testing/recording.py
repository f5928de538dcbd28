"""A runtime that does nothing and writes down what it would have done: which steps, in which order, and what takes them back.

Plugins are asked, checked and blamed by the core itself. What it would do to the system is done to a table of mounts and a
list of processes in memory. ``tests/real/test_testing_kit.py`` holds that a recording tells what the real runtime tells.
"""

from __future__ import annotations

import copy
import errno
import os
import shutil
import signal
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from chrootfw import config, debts, intents, killing, mounting, scripts, starting, stopping, unmounting
from chrootfw.errors import ChrootfwError, StepError, SurvivorError
from chrootfw.interrupts import Interrupts
from chrootfw.jobs import Job
from chrootfw.model import Command, Escalation, Event, Instance, MountPoint, NoCommand, Stage, Step
from chrootfw.planning import kill_plan, paths, transitions
from chrootfw.plugins import Registry
from chrootfw.stages import Stages
from chrootfw.system import trees
from chrootfw.system.mounts import MountEntry
from chrootfw.testing import root_tree
from chrootfw.views import InstanceState, Process

#: What a step that was made to fail says.
INJECTED = "injected failure"

#: What ends no process unless it wants to (signal(7)).
_HARMLESS = frozenset(
    getattr(signal, f"SIG{name}") for name in ("CHLD", "CONT", "URG", "WINCH", "STOP", "TSTP", "TTIN", "TTOU")
)


class Alive:
    """A process of a recorded instance.

    ``why``: ``cgroup`` or ``root`` for one of its own, ``cwd``, ``fd`` … for an outside holder. ``ignores``: the signals that do not end it;
    with KILL among them it is in state D. ``takes``: seconds from the first signal that ends it to its end; KILL ends it at once.
    """

    def __init__(
        self,
        pid: int = 4242,
        command: str = "daemon",
        user: str = "root",
        why: str = "cgroup",
        *,
        ignores: Collection[int] = (),
        takes: float = 0.0,
    ) -> None:
        self.process = Process(pid, command, user, why)
        self.ignores = frozenset(ignores)
        self.takes = takes
        self.ends_at = float("inf")

    def __repr__(self) -> str:
        return f"Alive({self.process.describe()})"

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def born(self) -> Alive:
        """The same process, in another life of the instance."""
        ours = self.process
        return Alive(ours.pid, ours.command, ours.user, ours.why, ignores=self.ignores, takes=self.takes)

    def receive(self, signum: int, now: float) -> None:
        """Be signalled at the second ``now``."""
        if signum not in self.ignores and signum not in _HARMLESS and signum != 0:
            self.ends_at = min(self.ends_at, now + (0 if signum == signal.SIGKILL else self.takes))


@attrs.frozen
class Recorded:
    """A step that would have happened: ``stage``, what it ``does``, the ``plugin`` that answered (``""``: the core); ``undo`` is the step that takes
    it back, ``""`` where nothing need be taken back."""

    stage: str
    does: str
    plugin: str
    undo: str = ""

    def __str__(self) -> str:
        by = f"  [{self.plugin}]" if self.plugin else ""
        back = f"  (taken back by: {self.undo})" if self.undo else ""
        return f"{self.stage:<10}  {self.does}{by}{back}"


@attrs.frozen
class Sent:
    """A signal that would have been sent: its number and the process."""

    signal: int
    pid: int


@attrs.frozen
class Record:
    """What a verb would have done.

    ``steps``: those that came to their end, in order. ``failed``: the step that failed. ``undo``: the steps that took back what a
    failed start had done. ``left``: what is not taken back after that, a line each. ``signals`` and ``seconds``: what was sent, and how
    long all grace periods took. ``events``: all that an observer is told. ``error``: what the verb raised.
    """

    verb: str
    instance: Instance = attrs.field(repr=False)
    steps: tuple[Recorded, ...]
    failed: Recorded | None
    undo: tuple[Recorded, ...]
    left: tuple[str, ...]
    signals: tuple[Sent, ...]
    seconds: float
    events: tuple[Event, ...] = attrs.field(repr=False)
    error: Exception | None

    @property
    def undone(self) -> bool:
        """Whether nothing is left of what was done before a failure."""
        return not self.left

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was told besides, blame on plugins included."""
        return tuple(event.does for event in self.events if event.what in ("warning", "blame"))

    def describe(self) -> str:
        """The record for people: a line for each step."""
        lines = [f"{self.verb} {self.instance.name}:", *(f"  {step}" for step in self.steps)]
        if self.failed:
            lines.append(f"  {self.failed}: FAILED")
        lines += [f"undo: {step}" for step in self.undo]
        lines += [f"left: {line}" for line in self.left]
        return "\n".join(lines)


class RecordingRuntime:
    """Records what ``Runtime`` would do; needs no root and touches nothing but a directory of its own.

    ``plugins``: as for ``Runtime``. ``root``: what a ``pre_start`` hook finds inside: contents of files by path, put over a tree that satisfies the
    default checks (``None``: no such file), or a directory, which is only read. ``processes``: who lives from the start of the init script on (one daemon that every signal ends, if not said);
    no script of a stop ends them. ``apply_steps``: call ``apply`` and ``undo`` of Steps, which are only recorded otherwise. ``run_dir``: the
    run directory in the steps' words. All others: as for ``Runtime``.

    Raises ``PluginLoadError`` as ``Runtime`` does.
    """

    def __init__(
        self,
        *plugins: object,
        root: Mapping[str, str | bytes | None] | str | os.PathLike[str] | None = None,
        processes: Sequence[Alive] | None = None,
        apply_steps: bool = False,
        run_dir: str = "/run/chrootfw",
        directory: str | None = None,
        **registry: Any,
    ) -> None:
        self._registry = Registry(plugins, **registry)
        self._tree = root
        self._processes = (Alive(),) if processes is None else tuple(processes)
        self._apply_steps = apply_steps
        self._run_dir = run_dir
        if directory is None:
            directory = tempfile.mkdtemp(prefix="chrootfw-recording-")
            weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        self._directory = directory
        self._trees = 0
        self._present: dict[str, _Life] = {}
        self._fail_at: int | str | None = None

    # -- verbs --------------------------------------------------------------------------------------

    def fail_at(self, step: int | str) -> None:
        """Let a step of the next verb fail: by number, the first being 1, or the first whose words contain a text.

        The verb raises ``AssertionError`` when it comes to no such step.
        """
        self._fail_at = step

    def start(self, instance: Instance, *, check: bool = True) -> Record:
        """What a start would do. ``check``: raise as the real one does; else the error is in the record."""
        book = self._book("start", instance)
        try:
            life = self._life(instance, book)
            self._carry_out_start(life)
            self._present[instance.name] = life
        except Exception as error:
            book.error = error
        return self._closed(book, check=check)

    def stop(
        self,
        instance: Instance | str,
        *,
        force: bool = False,
        timeout: float | None = None,
        run_script: bool | None = None,
        keep_mounted: bool = False,
        kill_holders: bool = False,
        check: bool = True,
    ) -> Record:
        """What a stop of what was started here would do; the arguments are those of ``Runtime.stop``."""
        name = instance if isinstance(instance, str) else instance.name
        life = self._present.get(name)
        book = self._book("stop", life.job.instance if life else Instance(name))
        if life is not None:
            life.job.book = book
            try:
                life.end_processes(force=force, timeout=timeout, run_script=run_script, kill_holders=kill_holders)
                if not keep_mounted:
                    life.finish()
                    del self._present[name]
            except Exception as error:
                life.job.note(phase="stopping")
                book.error = error
        return self._closed(book, check=check)

    def each_failure(self, instance: Instance) -> Iterator[Record]:
        """The same start again and again, with a failure at each of its steps in turn: the record of each.

        Nothing of an earlier one is there at the next. Raises as ``start`` when the start fails by itself.
        """
        whole = self._fresh()
        steps = whole.start(instance).steps
        whole.stop(instance, force=True)  # with apply_steps its Steps are there
        for number in range(1, len(steps) + 1):
            fresh = self._fresh()
            fresh.fail_at(number)
            yield fresh.start(instance, check=False)

    # -- the parts ----------------------------------------------------------------------------------

    def _fresh(self) -> RecordingRuntime:
        """This runtime, with nothing started."""
        other = copy.copy(self)
        other._present = {}  # noqa: SLF001  # it is one of us
        return other

    def _book(self, verb: str, instance: Instance) -> _Book:
        fail_at, self._fail_at = self._fail_at, None
        return _Book(verb, instance, fail_at)

    @staticmethod
    def _closed(book: _Book, *, check: bool) -> Record:
        record = book.record()
        if book.fail_at is not None and not book.has_failed:
            steps = "\n".join(f"{number:>4}  {step.does}" for number, step in enumerate(record.steps, 1))
            raise AssertionError(
                f"the {book.verb} came to no step {book.fail_at!r} that could fail; its steps:\n{steps}"
            ) from book.error
        error, book.error = book.error, None  # its traceback leads to the book: no cycle keeps all this alive
        if not check or error is None:
            return record
        try:
            raise error
        finally:
            del error, record

    def _life(self, instance: Instance, book: _Book) -> _Life:
        """What is to be started, resolved and checked as by ``Runtime``."""
        registry = self._registry.for_instance(instance.plugins)
        registry.check_loaded()
        stages = Stages(registry, book.events.append)
        resolved = config.resolve(instance, stages.parameters())

        def tell(event: Event) -> None:
            job.book.events.append(event)
            stages.event(event)

        stages.tell = tell
        job = _Job(self._run_dir, resolved, stages, Interrupts(), tell, book=book)
        book.instance = resolved
        if old := self._present.get(instance.name):
            transitions.check("start", instance.name, old.state)
            raise AssertionError(f"{instance.name} is started here already, and mounted: stop it first")
        root = self._root(resolved)
        return _Life(job, root, self._processes, apply_steps=self._apply_steps, keeps_root=self._is_given)

    @property
    def _is_given(self) -> bool:
        """Whether the tree is a directory of the author's, which is only read."""
        return isinstance(self._tree, str | os.PathLike)

    def _root(self, instance: Instance) -> root_tree.TreeRoot:
        if isinstance(self._tree, str | os.PathLike):
            return root_tree.TreeRoot(os.path.realpath(self._tree))
        while True:
            self._trees += 1
            directory = f"{self._directory}/{self._trees}"
            if not os.path.exists(directory):
                break
        root_tree.make(directory, self._tree or {}, instance.init_script)
        return root_tree.TreeRoot(directory)

    def _carry_out_start(self, life: _Life) -> None:
        answers = starting.ask(life.job)
        life.job.intent = {"instance": life.job.instance.to_dict(), "entry": answers.entry.to_dict(), "steps": []}
        try:
            life.job.save()
            life.start(answers)
        except BaseException as error:
            life.job.book.failing = True
            life.undo(error)
            raise


class _Book:
    """What is written down in one verb."""

    def __init__(self, verb: str, instance: Instance, fail_at: int | str | None) -> None:
        self.verb = verb
        self.instance = instance
        self.fail_at = fail_at
        self.has_failed = False
        self.failing = False
        self.number = 0
        self.steps: list[Recorded] = []
        self.undo: list[Recorded] = []
        self.failed: Recorded | None = None
        self.left: list[str] = []
        self.sent: list[Sent] = []
        self.seconds = 0.0
        self.events: list[Event] = []
        self.error: Exception | None = None
        self.takes_back = ""

    def is_due(self, number: int, does: str) -> bool:
        """Whether this step is the one that is to fail."""
        if self.fail_at is None or self.has_failed or self.failing:
            return False
        due = self.fail_at in does if isinstance(self.fail_at, str) else self.fail_at == number
        self.has_failed = due
        return due

    def record(self) -> Record:
        return Record(
            self.verb,
            self.instance,
            tuple(self.steps),
            self.failed,
            tuple(self.undo),
            tuple(self.left),
            tuple(self.sent),
            self.seconds,
            tuple(self.events),
            self.error,
        )


@attrs.define
class _Job(Job):
    """A verb on an instance that is in memory only."""

    book: _Book = attrs.field(kw_only=True)
    due: bool = attrs.field(default=False, init=False)

    def survey(self) -> Any:
        raise AssertionError("a recording does not look at the kernel")

    def save(self, **changes: Any) -> None:
        if self.intent is not None:
            self.intent.update(changes)
            intents.dump(self.name, self.intent)

    @contextmanager
    def step(self, stage: Stage, does: str, plugin: str = "") -> Iterator[None]:
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

    def fail_if_due(self, does: str) -> None:
        """Where a step touches the system. Raises ``StepError`` when it is to fail."""
        if self.due:
            raise StepError(f"cannot {does}: {INJECTED}")


class _Life:
    """An instance in memory: its mount table, its processes, the Steps that are owed."""

    def __init__(
        self, job: _Job, root: root_tree.TreeRoot, processes: Sequence[Alive], *, apply_steps: bool, keeps_root: bool
    ) -> None:
        self.job = job
        self.root = root
        self.born = processes
        self.apply_steps = apply_steps
        self.keeps_root = keeps_root
        self.table: list[MountEntry] = []
        self.alive: list[Alive] = []
        self.ids = iter(range(2, 1 << 30))  # 1: the mount that the run directory lies in
        self.now = 0.0

    @property
    def state(self) -> InstanceState:
        if self.own:
            return InstanceState.RUNNING
        if self.job.intent and self.job.intent.get("phase") == "stopping":
            return InstanceState.HELD
        return InstanceState.MOUNTED

    @property
    def own(self) -> list[Alive]:
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
        source = mounting.source_of(job, plugin, point, self._apply)
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

    def _apply(self, step: Step) -> Mapping[str, Any] | None:
        """In the place of ``Step.apply``."""
        assert self.job.intent is not None
        self.job.book.takes_back = debts.undo_does(self.job.intent["steps"][-1])
        if self.job.due:
            raise OSError(errno.EIO, INJECTED)
        return step.apply() if self.apply_steps else {"source": "/dev/recorded"}

    def _take_back(self, step: Step, record: Mapping[str, Any]) -> None:
        """In the place of ``Step.undo``."""
        if self.job.due:
            raise OSError(errno.EIO, INJECTED)
        if self.apply_steps:
            step.undo(record)

    def _pre_start(self, command: Command | NoCommand) -> None:
        def look(job: Job) -> None:
            self.job.fail_if_due(f"check the root of {job.name}")

        starting.pre_start(self.job, command, self.root, look, self._apply)

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
                debts.pay(job, ("pre-start",), self._take_back)
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
        failures = debts.pay(job, ("pre-start",), self._take_back)
        job.stages.around(job.instance, "unmount", self._take_down, lenient=True)
        failures += debts.pay(job, ("mount",), self._take_back)
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
