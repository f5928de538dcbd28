"""A runtime that does nothing and writes down what it would have done: which steps, in which order, and what takes them back.

Plugins are asked, checked and blamed by the core itself.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chrootfw import config, starting
from chrootfw.interrupts import Interrupts
from chrootfw.model import Event, Instance
from chrootfw.planning import transitions
from chrootfw.plugins import Registry
from chrootfw.stages import Stages
from chrootfw.testing import root_tree
from chrootfw.testing.recorded_life import RecordedJob, RecordedLife
from chrootfw.testing.records import Alive, Book, Record


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
        self._present: dict[str, RecordedLife] = {}
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

    def _book(self, verb: str, instance: Instance) -> Book:
        fail_at, self._fail_at = self._fail_at, None
        return Book(verb, instance, fail_at)

    @staticmethod
    def _closed(book: Book, *, check: bool) -> Record:
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

    def _life(self, instance: Instance, book: Book) -> RecordedLife:
        """What is to be started, resolved and checked as by ``Runtime``."""
        registry = self._registry.for_instance(instance.plugins)
        registry.check_loaded()
        stages = Stages(registry, book.events.append)
        resolved = config.resolve(instance, stages.parameters(), stages.check_parameter)

        def tell(event: Event) -> None:
            job.book.events.append(event)
            stages.event(event)

        stages.tell = tell
        job = RecordedJob(self._run_dir, resolved, stages, Interrupts(), tell, book=book, apply_steps=self._apply_steps)
        book.instance = resolved
        if old := self._present.get(instance.name):
            transitions.check("start", instance.name, old.state)
            raise AssertionError(f"{instance.name} is started here already, and mounted: stop it first")
        root = self._root(resolved)
        return RecordedLife(job, root, self._processes, keeps_root=self._is_given)

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

    def _carry_out_start(self, life: RecordedLife) -> None:
        answers = starting.ask(life.job)
        life.job.intent = {"instance": life.job.instance.to_dict(), "entry": answers.entry.to_dict(), "steps": []}
        try:
            life.job.save()
            life.start(answers)
        except BaseException as error:
            life.job.book.failing = True
            life.undo(error)
            raise
