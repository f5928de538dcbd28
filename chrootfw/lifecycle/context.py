"""Hold the state that the modules share while they carry out one verb on one instance."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import attrs

from chrootfw.cancellation import Cancellation
from chrootfw.errors import ChrootfwError, InputError, StepError, add_details
from chrootfw.hooks.dispatch import Dispatcher
from chrootfw.linux.block_devices import Disk
from chrootfw.linux.mount_copies import Stay
from chrootfw.linux.mountinfo import MountEntry
from chrootfw.model import Event, Instance, Stage, Step
from chrootfw.state import output_log, ownership, record
from chrootfw.state import snapshot as snapshots
from chrootfw.state.ownership import OwnProcesses
from chrootfw.state.record import RecordedStep, StartRecord
from chrootfw.state.snapshot import Snapshot
from chrootfw.views import InstanceState


class StepTime:
    """How long a step took.

    Attributes:
        seconds: What another process has measured; `None` for the time between the step's two
            events.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: float | None = None


@attrs.define(eq=False, repr=False)
class Job:
    """One verb on one instance, while it is carried out.

    Attributes:
        run_dir: The run directory, without symbolic links.
        instance: The instance as resolved.
        stages: Calls the hooks.
        cancellation: Reports whether an end was requested.
        report: Receives events.
        record: The start record as last written; `None` if it is lost, or was never made.
        made: The mount points that were missing in the disk, and were made.
        unreturned: The records of Steps whose `apply` has not returned.
        last_snapshot: The last snapshot.
        is_hurried: An undo after a failure is going on, in which no wait is long.
        may_retry: The undo of a Step of a first-party plugin failed, and may succeed the next time.
        carried: The Steps of an earlier start that can be undone only when the root is mounted
            again.
        disks: The disks that were identified and locked, by path.
        stay: The copies of its mounts that other mount namespaces keep after the unmount.
        gives_up: Steps that cannot be undone are named and given up.
        proven: The processes that were shown to be its own, as `Judge` keeps them.
        log_dir: The directory of the logs.
    """

    run_dir: str
    instance: Instance
    stages: Dispatcher
    cancellation: Cancellation
    report: Callable[[Event], None]
    record: StartRecord | None = None
    made: list[str] = attrs.field(factory=list)
    unreturned: list[RecordedStep] = attrs.field(factory=list)
    last_snapshot: Snapshot | None = None
    is_hurried: bool = False
    may_retry: bool = False
    carried: list[RecordedStep] = attrs.field(factory=list)
    disks: dict[str, Disk] = attrs.field(factory=dict)
    stay: Sequence[Stay] = ()
    gives_up: bool = False
    proven: set[tuple[int, int]] = attrs.field(factory=set)
    log_dir: str = output_log.LOG_DIR

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.instance.name

    @property
    def root(self) -> str:
        """The mount point of its root."""
        return record.root(self.run_dir, self.name)

    @property
    def disk_timeout(self) -> float:
        """Seconds for the disk to answer in one mount or unmount."""
        return float(self.instance.params["disk_timeout"])

    def latest_snapshot(self) -> Snapshot:
        """Return the last snapshot of this verb; read one if there was none."""
        return self.last_snapshot or self.read_snapshot()

    def read_snapshot(self) -> Snapshot:
        """Read the state of the instance from the kernel now."""
        known = self.last_snapshot.locations if self.last_snapshot else None
        self.last_snapshot = snapshots.read_instance(
            self.run_dir, self.name, locations=known, record=copy.copy(self.record)
        )
        return self.last_snapshot

    def read_mounts(self) -> list[MountEntry]:
        """Read the mounts of the instance now."""
        return self.read_snapshot().read_mounts(self.name)

    def judge(self, snapshot: Snapshot) -> ownership.Judge:
        """Return the judge of which processes of a snapshot are the instance's own."""
        return ownership.Judge(snapshot, self.name, self.proven)

    def read_own(self, snapshot: Snapshot) -> OwnProcesses:
        """Read all own processes of the instance, with the mounts and cgroups of a snapshot."""
        return self.judge(snapshot).read_own()

    def read_state(self, snapshot: Snapshot) -> InstanceState:
        """Read the state of the instance, with the mounts and cgroups of a snapshot."""
        own = self.judge(snapshot).read_running()
        return ownership.read_state(snapshot, self.name, own=own)

    def save(self, **changes: Any) -> None:
        """Change the start record and write it; do nothing if there is none.

        Args:
            changes: New values of the record's fields.

        Raises:
            StepError: The record cannot be written.
        """
        if self.record is not None:
            for key, value in changes.items():
                setattr(self.record, key, value)
            self.write_record(self.record)

    def write_record(self, written: StartRecord) -> None:
        """Write the start record into the run directory; raise as `save`."""
        record.save(self.run_dir, written)

    def check_step(self, step: Step) -> None:
        """Check that a plugin's Step can be applied.

        The test kit overrides this method and the next two: it records the Steps.
        """
        step.check()

    def apply_step(self, step: Step) -> Mapping[str, Any] | None:
        """Apply a plugin's Step; return its facts."""
        return step.apply()

    def undo_step(self, step: Step, recorded: RecordedStep) -> None:
        """Undo a plugin's Step."""
        step.undo(recorded.to_json())

    def note(self, **changes: Any) -> None:
        """Save as `save` does, but warn if the record cannot be written.

        A full run directory must not keep an instance from being stopped.
        """
        try:
            self.save(**changes)
        except Exception as error:
            self.warn("", getattr(error, "brief", None) or f"{type(error).__name__}: {error}")

    def warn(
        self, stage: Stage | Literal[""], text: str, *, plugin: str = "", output: bytes = b""
    ) -> None:
        """Warn of a problem that does not end the verb.

        Args:
            stage: The stage; "" outside of all stages.
            text: The sentence.
            plugin: The plugin that the problem is attributed to; "" for none.
            output: The output of an init script.
        """
        self.report(Event("warning", self.name, stage, text, plugin=plugin, output=output))

    @contextmanager
    def step(
        self, stage: Stage, does: str, plugin: str = "", *, limit: float = 0.0
    ) -> Iterator[StepTime]:
        """Report that a step begins, and that it ends or fails.

        Args:
            stage: The stage.
            does: The description of the step.
            plugin: The plugin that decided it; "" for none.
            limit: Seconds that it may take at most, where the description does not say so.

        Yields:
            The time that the step takes, for a caller that has it measured elsewhere.
        """
        took = StepTime()
        began = time.monotonic()
        self.report(Event("begin", self.name, stage, does, plugin=plugin, limit=limit))
        try:
            with self.attribution(plugin if stage == "mount" else ""):
                yield took
        except BaseException as error:
            text = getattr(error, "brief", None) or f"{type(error).__name__}: {error}"
            self.report(
                Event(
                    "fail",
                    self.name,
                    stage,
                    does,
                    plugin=plugin,
                    error=text,
                    seconds=time.monotonic() - began,
                )
            )
            raise
        seconds = time.monotonic() - began if took.seconds is None else took.seconds
        self.report(Event("end", self.name, stage, does, plugin=plugin, seconds=seconds))

    @contextmanager
    def attribution(self, plugin: str) -> Iterator[None]:
        """Let an error name the plugin whose answer it carries out, unless that is chrootfw's own.

        The answer is well formed: what is wrong with it shows only when the kernel, or the root, is
        asked.
        """
        try:
            yield
        except (StepError, InputError) as error:
            self.attribute(error, plugin)
            raise

    def attribute(self, error: ChrootfwError, plugin: str) -> None:
        """Name a plugin in an error that does not name it yet."""
        if not plugin or self.stages.registry.record(plugin).is_first_party:
            return
        who = self.stages.registry.record(plugin).describe()
        if who not in str(error):
            add_details(error, [f"this is what {who} answered"])
