"""Steps: recorded before they are applied, undone from the record alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from chrootfw import installed
from chrootfw.errors import ChrootfwError, PluginError, StepError
from chrootfw.hook_calls import Overdue, where, within
from chrootfw.jobs import Job
from chrootfw.model import Stage, Step

T = TypeVar("T")


def as_data(job: Job, stage: Stage, plugin: str, step: Step) -> tuple[str, dict[str, Any]]:
    """What a step does, and its fields, for a plan or a record. Raises ``PluginError``."""

    def ask() -> tuple[str, dict[str, Any]]:
        does, arguments = step.describe(), step.arguments()
        json.dumps(arguments)
        return does, arguments

    who = job.stages.registry.record(plugin)
    try:
        return _within(job, plugin, step, ask)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{who.describe()}: {stage} for {job.name}: the step {type(step).__name__} is not plain data: {_text(error)}",
            where(error),
            "describe() returns a line, and the fields are JSON values",
            plugin=plugin,
        ) from error


def apply(job: Job, stage: Stage, plugin: str, step: Step, *, place: str = "") -> Mapping[str, Any]:
    """Check, record, apply, record the facts, which are returned. Raises ``StepError`` with blame.

    ``place``: where the mount goes whose source it is, ``AT:TARGET``.
    """
    who = job.stages.registry.record(plugin)
    does, arguments = as_data(job, stage, plugin, step)
    try:
        _within(job, plugin, step, partial(job.check_step, step))
    except ChrootfwError:
        raise
    except (Exception, SystemExit) as error:
        raise StepError(
            f"{who.describe()}: {stage} for {job.name}: cannot {does}: {_text(error)}", where(error)
        ) from error
    record: dict[str, Any] = {
        "kind": step.kind or type(step).__name__,
        "class": f"{type(step).__module__}:{type(step).__qualname__}",
        "arguments": arguments,
        "facts": None,
        "stage": stage,
        "place": place,
        "plugin": plugin,
        "distribution": who.distribution,
        "version": who.version,
    }
    assert job.intent is not None
    job.save(steps=[*job.intent["steps"], record])
    with job.step(stage, does, plugin):
        try:
            facts = _within(job, plugin, step, partial(job.apply_step, step)) or {}
            json.dumps(facts)
            record["facts"] = dict(facts)
            job.save()
        except Overdue as error:
            job.unreturned.append(record)
            raise StepError(
                f"{who.describe()}: {stage} for {job.name}: cannot {does}: it {error}",
                ["it may go on until this process ends, and is not undone before"],
                f"chrootfw cleanup {job.name} undoes it later; a Step's class says how long it may take (deadline)",
            ) from None
        except ChrootfwError:
            raise
        except (Exception, SystemExit) as error:
            raise StepError(
                f"{who.describe()}: {stage} for {job.name}: cannot {does}: {_text(error)}",
                where(error),
                "what it had done is undone",
            ) from error
    return record["facts"]  # type: ignore[no-any-return]  # just made a dict of it


def pay(job: Job, stages: tuple[Stage, ...], *, parts_only: bool = False) -> list[str]:
    """Undo the recorded steps of ``stages``, the last first. What cannot be undone stays recorded; a line for each.

    ``parts_only``: of the steps that make sources, those of mounts in the root, which a reboot makes afresh.
    """
    failures: list[str] = []
    if job.intent is None:
        return failures
    for record in reversed(list(job.intent["steps"])):
        if record["stage"] not in stages:
            continue
        place = record.get("place", "")
        if parts_only and record["stage"] == "mount" and (not place.startswith("root:") or place == "root:/"):
            continue
        who = " ".join(filter(None, (record["plugin"], record["distribution"], record["version"])))
        if record in job.unreturned:
            failures.append(f"{record['kind']} {record['arguments']} of plugin {who}: it is still being applied")
            continue
        try:
            step = restore(record)
            with job.step(record["stage"], undo_does(record), record["plugin"]):
                _within(job, record["plugin"], step, partial(job.undo_step, step, record))
        except (Exception, SystemExit) as error:  # whatever a plugin may raise: the others are paid all the same
            failures.append(f"{record['kind']} {record['arguments']} of plugin {who}: {_text(error)}")
            continue
        job.intent["steps"].remove(record)
        job.note()
    return failures


def _within(job: Job, plugin: str, step: Step, call: Callable[[], T]) -> T:
    """A call of a step's, with its deadline unless it is chrootfw's own. Raises ``Overdue``."""
    return call() if job.stages.registry.record(plugin).ours else within(step.deadline, call)


def undo_does(record: Mapping[str, Any]) -> str:
    """What the undoing of a recorded step does, in words."""
    return f"undo {record['kind']}"


def unpaid(name: str, failures: list[str]) -> StepError:
    """The error for steps that could not be undone."""
    return StepError(
        f"{name} is unmounted, but {len(failures)} of its steps could not be undone",
        failures,
        f"see to what it says (is the plugin still installed?), then: chrootfw cleanup {name}",
    )


def restore(record: Mapping[str, Any]) -> Step:
    """The step of a record: its class by module and name, or as a class that is defined in this process."""
    try:
        found: Any = installed.load(record["class"])
    except (ImportError, AttributeError):
        module, _, qualname = record["class"].partition(":")
        here = [k for k in _subclasses(Step) if (k.__module__, k.__qualname__) == (module, qualname)]
        if not here:
            raise
        found = here[-1]  # attrs makes a class twice; the last is the whole one
    step = found(**record["arguments"])
    if not isinstance(step, Step):
        raise TypeError(f"{record['class']} is no Step")
    return step


def _subclasses(kind: type[Step]) -> Iterator[type[Step]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _text(error: BaseException) -> str:
    return getattr(error, "brief", None) or f"{type(error).__name__}: {error}"
