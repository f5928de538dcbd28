"""Record what a runtime would do, without doing it: its steps in order, and their undo.

The life cycle is the real one, over a kernel that is in memory only.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chrootfw import config
from chrootfw.cancellation import Cancellation
from chrootfw.hooks.dispatch import Dispatcher
from chrootfw.hooks.registry import Registry
from chrootfw.lifecycle import cleanup, reboot, start, stop
from chrootfw.model import Event, Instance, Parameter
from chrootfw.planning import transitions
from chrootfw.testing import root_tree
from chrootfw.testing.fake_kernel import FakeKernel, RecordedJob, event_in_words, put_in_words
from chrootfw.testing.records import Alive, Book, Record
from chrootfw.views import InstanceState


class RecordingRuntime:
    """Record what ``Runtime`` would do.

    It needs no root privileges and touches nothing but a directory of its own.

    Args:
        plugins: As for ``Runtime``.
        root: What a ``pre_start`` hook finds inside: contents of files by path, put over a tree
            that satisfies the default checks (``None``: no such file), or a directory, which is
            only read.
        processes: What is running from the start of the init script on (one daemon that every
            signal ends, if not said); no script of a stop ends them.
        apply_steps: Call ``apply`` and ``undo`` of Steps, which are only recorded otherwise.
        run_dir: The run directory in the steps' words.
        directory: Where it works; ``None`` for a temporary directory of its own.
        registry: Further arguments, as for ``Runtime``.

    Raises:
        PluginLoadError: As ``Runtime`` does.
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
        self._place = self._make_place()
        self._kernels: dict[str, FakeKernel] = {}
        self._fail_at: int | str | None = None

    # -- verbs -------------------------------------------------------------------------------------

    def fail_at(self, step: int | str) -> None:
        """Let a step of the next verb fail.

        The verb raises ``AssertionError`` when it comes to no such step.

        Args:
            step: The step's number, the first being 1, or a text: then the first step whose words
                contain it.
        """
        self._fail_at = step

    def start(self, instance: Instance, *, check: bool = True) -> Record:
        """Record what a start would do.

        Args:
            instance: The instance.
            check: Raise as the real one does; else the error is in the record, without a traceback.
        """
        return self._record("start", instance, _start, check=check)

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
        """Record what a stop of what was started here would do.

        The arguments are those of ``Runtime.stop``, and ``check`` as for ``start``.
        """

        def carry_out(job: RecordedJob) -> None:
            stop.stop(
                job,
                force=force,
                timeout=timeout,
                run_script=run_script,
                keep_mounted=keep_mounted,
                kill_holders=kill_holders,
            )

        return self._record("stop", instance, carry_out, check=check)

    def cleanup(self, instance: Instance | str, *, check: bool = True) -> Record:
        """Record what a cleanup of what was started here would do; ``check`` as for ``start``."""
        return self._record("cleanup", instance, cleanup.cleanup, check=check)

    def reboot(self, instance: Instance | str, *, check: bool = True) -> Record:
        """Record what a reboot of what was started here would do; ``check`` as for ``start``."""
        return self._record("reboot", instance, reboot.reboot, check=check)

    def state(self, instance: Instance | str) -> InstanceState:
        """Return the state in which the verbs so far have left an instance."""
        kernel = self._kernels.get(_name(instance))
        return kernel.state if kernel is not None else InstanceState.ABSENT

    def lose_record(self, instance: Instance | str) -> None:
        """Let the record of the start be lost, as when the run directory was emptied."""
        self._kernels[_name(instance)].record = None

    def add_process(self, instance: Instance | str, process: Alive) -> None:
        """Let a process be there, of an instance that is present, or an outside holder of it."""
        self._kernels[_name(instance)].alive.append(process.copy())

    def end_process(self, pid: int) -> None:
        """Let a process exit by itself."""
        for kernel in self._kernels.values():
            kernel.alive = [alive for alive in kernel.alive if alive.pid != pid]

    def each_failure(self, instance: Instance) -> Iterator[Record]:
        """Repeat the same start, with a failure at each of its steps in turn.

        Nothing of an earlier start is there at the next.

        Args:
            instance: The instance.

        Yields:
            The record of each start.

        Raises:
            ChrootfwError: The start fails by itself.
        """
        whole = self._fresh()
        steps = whole.start(instance).steps
        whole.stop(instance, force=True)  # with apply_steps its Steps are there
        for number in range(1, len(steps) + 1):
            fresh = self._fresh()
            fresh.fail_at(number)
            yield fresh.start(instance, check=False)

    # -- the parts ---------------------------------------------------------------------------------

    def _fresh(self) -> RecordingRuntime:
        """Return this runtime, with nothing started."""
        other = copy.copy(self)
        other._kernels = {}  # noqa: SLF001  # it is one of us
        other._place = self._make_place()  # noqa: SLF001
        return other

    @staticmethod
    def _closed(book: Book, *, check: bool) -> Record:
        record = book.record()
        if book.fail_at is not None and not book.has_failed:
            steps = "\n".join(
                f"{number:>4}  {step.does}" for number, step in enumerate(record.steps, 1)
            )
            raise AssertionError(
                f"the {book.verb} came to no step {book.fail_at!r} that could fail; its "
                f"steps:\n{steps}"
            ) from book.error
        error, book.error = (
            book.error,
            None,
        )  # its traceback leads to the book: no cycle keeps all this alive
        if error is None:
            return record
        if not check:
            _drop_frames(error)
            return record
        try:
            raise error
        finally:
            del error, record

    def _record(
        self,
        verb: str,
        instance: Instance | str,
        carry_out: Callable[[RecordedJob], None],
        *,
        check: bool,
    ) -> Record:
        """Carry out a verb on an instance in memory."""
        fail_at, self._fail_at = self._fail_at, None
        kernel = self._kernels.get(_name(instance))
        known = kernel.instance if kernel else None
        if isinstance(instance, str):
            instance = known or Instance(instance)
        book = Book(verb, known or instance, fail_at)
        try:
            if verb == "start":
                job = self._prepare(instance, book)
            elif kernel is not None and kernel.is_present:
                job = self._job(kernel, self._dispatcher(kernel.instance, book)[0], book)
            elif verb == "stop":  # of what is absent
                return self._closed(book, check=check)
            else:
                transitions.check(verb, instance.name, InstanceState.ABSENT)
                return self._closed(book, check=check)
            with job.kernel.carry_out(job):
                carry_out(job)
        except Exception as error:
            if found := self._kernels.get(_name(instance)):
                put_in_words(error, found)
            book.error = error
        if found := self._kernels.get(_name(instance)):
            book.left = found.describe_rest() if book.error else []
        return self._closed(book, check=check)

    def _dispatcher(
        self, instance: Instance, book: Book
    ) -> tuple[Dispatcher, list[tuple[str, Parameter]]]:
        registry = self._registry.for_instance(instance.plugins)
        registry.check_loaded()
        stages = Dispatcher(registry, book.events.append)
        return stages, stages.parameters()

    def _prepare(self, instance: Instance, book: Book) -> RecordedJob:
        """Return the start of an instance, resolved and checked as by ``Runtime``."""
        stages, declared = self._dispatcher(instance, book)
        resolved = config.resolve(instance, declared, stages.check_parameter)
        book.instance = resolved
        kernel = self._kernels.get(instance.name)
        if kernel is None or not kernel.is_present:
            kernel = self._kernels[instance.name] = FakeKernel(
                resolved,
                self._place,
                self._run_dir,
                self._root(resolved),
                self._processes,
                keeps_root=self._is_given,
            )
        kernel.instance = resolved
        return self._job(kernel, stages, book)

    def _job(self, kernel: FakeKernel, stages: Dispatcher, book: Book) -> RecordedJob:
        def report(event: Event) -> None:
            shown = event_in_words(event, kernel)
            book.events.append(shown)
            stages.event(shown)

        stages.report = lambda event: book.events.append(event_in_words(event, kernel))
        return RecordedJob(
            self._place,
            kernel.instance,
            stages,
            Cancellation(),
            report,
            record=kernel.record,
            kernel=kernel,
            book=book,
            apply_steps=self._apply_steps,
        )

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

    def _make_place(self) -> str:
        """Make the directory that stands for the run directory."""
        place = tempfile.mkdtemp(prefix="run-", dir=os.path.realpath(self._directory))
        os.chmod(place, 0o755)  # whatever the umask is
        return place


def _start(job: RecordedJob) -> None:
    start.start(job, definition=None, lock_disk=lambda _disk: None)


def _name(instance: Instance | str) -> str:
    return instance if isinstance(instance, str) else instance.name


def _drop_frames(error: BaseException) -> None:
    """Forget through which calls an error came.

    Their frames lead to the caller's, where the record is: a cycle that would keep the runtime and
    its directory.
    """
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.__traceback__ = None
        pending += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions
