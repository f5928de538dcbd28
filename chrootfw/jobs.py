"""One verb on one instance: what the rooms that carry it out share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import attrs

from chrootfw import intents
from chrootfw.interrupts import Interrupts
from chrootfw.inventory import Survey
from chrootfw.model import DISK_TIMEOUT, Event, Instance, Stage, Step
from chrootfw.stages import Stages


@attrs.define(eq=False, repr=False)
class Job:
    """``instance`` as resolved; ``intent`` as last written (``None``: lost, or never made); ``tell`` receives events; ``made``: the mount
    points that were missing in the disk; ``unreturned``: the records of steps whose ``apply`` has not come back;
    ``surveyed``: the last look."""

    run_dir: str
    instance: Instance
    stages: Stages
    interrupts: Interrupts
    tell: Callable[[Event], None]
    intent: dict[str, Any] | None = None
    made: list[str] = attrs.field(factory=list)
    unreturned: list[dict[str, Any]] = attrs.field(factory=list)
    surveyed: Survey | None = None

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.instance.name

    @property
    def root(self) -> str:
        """The mount point of its root."""
        return intents.root(self.run_dir, self.name)

    @property
    def disk_timeout(self) -> float:
        """Seconds for the disk to answer, in one mount or unmount."""
        return float(self.instance.params.get("disk_timeout", DISK_TIMEOUT))

    def survey(self) -> Survey:
        """A new look at the kernel."""
        self.surveyed = Survey(self.run_dir, self.surveyed)
        return self.surveyed

    def save(self, **changes: Any) -> None:
        """Change the intent and write it; nothing where there is none. Raises ``StepError``."""
        if self.intent is not None:
            self.intent.update(changes)
            intents.save(self.run_dir, self.name, self.intent)

    def check_step(self, step: Step) -> None:
        """Ask whether it can be done. The test kit's job asks and does nothing of all this; it writes it down."""
        step.check()

    def apply_step(self, step: Step) -> Mapping[str, Any] | None:
        """Do what a plugin wants done."""
        return step.apply()

    def undo_step(self, step: Step, record: Mapping[str, Any]) -> None:
        """Take it back."""
        step.undo(record)

    def note(self, **changes: Any) -> None:
        """As ``save`` in what stops an instance: a full run directory is told, and stops nobody from stopping."""
        try:
            self.save(**changes)
        except Exception as error:
            self.warn("", getattr(error, "brief", None) or str(error))

    def warn(self, stage: Stage | Literal[""], text: str, *, plugin: str = "", output: bytes = b"") -> None:
        """Tell of something that does not end the run."""
        self.tell(Event("warning", self.name, stage, text, plugin=plugin, output=output))

    @contextmanager
    def step(self, stage: Stage, does: str, plugin: str = "") -> Iterator[None]:
        """Tell that a step begins, ends or fails."""
        began = time.monotonic()
        self.tell(Event("begin", self.name, stage, does, plugin=plugin))
        try:
            yield
        except BaseException as error:
            text = getattr(error, "brief", None) or f"{type(error).__name__}: {error}"
            self.tell(
                Event("fail", self.name, stage, does, plugin=plugin, error=text, seconds=time.monotonic() - began)
            )
            raise
        self.tell(Event("end", self.name, stage, does, plugin=plugin, seconds=time.monotonic() - began))
