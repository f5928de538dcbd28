"""Apply the Steps of plugins, each recorded before it is applied; undo them from the record alone.

A call that does not return in time is left behind (`hooks.time_limits`): while it may still run, no
other call is made for the same Step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import attrs

from chrootfw.errors import (
    ChrootfwError,
    HeldError,
    Interrupted,
    PluginError,
    StepError,
)
from chrootfw.hooks import entry_points
from chrootfw.hooks.time_limits import (
    Failure,
    HookTimeout,
    describe_failure,
    isinstance_exactly,
)
from chrootfw.lifecycle.context import Job
from chrootfw.linux import deadlines
from chrootfw.model import Stage, Step
from chrootfw.planning.ids import check_seconds
from chrootfw.planning.printable import printable
from chrootfw.state.record import RecordedStep

T = TypeVar("T")

#: Seconds for each call of an undo after a failure or a request to end: the root may be what does
#: not answer.
_AFTER_FAILURE = 1.0


class _Call:
    """A call of a Step's `apply` or `undo`, which may be left behind when its time is over.

    Attributes:
        key: The Step's record, as `_key` returns it.
        what: `applied` or `undone`.
        is_over: Whether the call has returned or raised.
        has_succeeded: Whether it has returned.
    """

    def __init__(self, job: Job, what: str, record: RecordedStep) -> None:
        self.key = _key(job, record)
        self.what = what
        self.is_over = self.has_succeeded = False

    def make(self, call: Callable[[], T]) -> T:
        """Make the call, and keep how it ends."""
        try:
            result = call()
            self.has_succeeded = True
            return result
        finally:
            self.is_over = True


#: The calls that were left behind by all verbs of this process.
_left_behind: list[_Call] = []


def _key(job: Job, record: RecordedStep) -> tuple[int, str, str, str]:
    """Return the key of a record: equal records are undone in the same way.

    It has the pid, because a fork of this process does not have the threads of the calls.
    """
    return os.getpid(), job.run_dir, job.name, json.dumps(record.to_json(), sort_keys=True)


def _earlier_call(job: Job, record: RecordedStep) -> _Call | None:
    """Return the call that was left behind for a record.

    Returns:
        A call that may still run, or an undo that has succeeded after its time; else `None`.
    """
    key = _key(job, record)
    for call in [call for call in _left_behind if call.key == key]:
        if not call.is_over:
            return call
        _left_behind.remove(call)
        if call.what == "undone" and call.has_succeeded:
            return call
    return None


def step_as_data(job: Job, stage: Stage, plugin: str, step: Step) -> tuple[str, dict[str, Any]]:
    """Return the description of a Step, and its fields, for a plan or a record.

    Args:
        job: The instance.
        stage: The stage in which the Step is applied.
        plugin: The plugin that wants it.
        step: The Step.

    Raises:
        PluginError: The Step is not plain data, or another process could not rebuild it to undo it.
    """

    def read() -> tuple[str, dict[str, Any], str]:
        does, arguments = step.describe(), step.arguments()
        if not isinstance(does, str):
            raise TypeError(f"describe() returned {does!r:.60}, which is not a str")
        return (
            printable(does),
            arguments,
            _why_lost(step, arguments, json.loads(json.dumps(arguments))),
        )

    who = job.stages.registry.record(plugin)
    kind = type(step)
    try:
        does, arguments, why = _call_step(job, plugin, kind.__module__, "describe", read)
    except Interrupted:
        raise
    except (Failure, HookTimeout, ChrootfwError, deadlines.DeadlineExceeded) as error:
        raise PluginError(
            f"{who.describe()}: {stage} for {job.name}: the step {kind.__name__} is not plain data:"
            f" {_text(error)}",
            error.details if isinstance(error, Failure) else (),
            "describe() returns a line, and the fields are JSON values",
            plugin=plugin,
        ) from error
    if why:
        raise PluginError(
            f"{who.describe()}: {stage} for {job.name}: another process could not undo the step"
            f" {kind.__name__}: {why}",
            [f"its record would have {kind.__module__}:{kind.__qualname__} {arguments}"],
            "define its class at the top of a module that can be imported, not in a function or a"
            " script, with its fields as the arguments of the class",
            plugin=plugin,
        )
    return does, arguments


def _why_lost(step: Step, arguments: dict[str, Any], recorded: dict[str, Any]) -> str:
    """Return why a Step cannot be rebuilt from its class and its recorded fields; "" if it can."""
    kind = type(step)
    if kind.__module__ == "__main__":
        return "its class is in the program itself (__main__)"
    try:
        found = entry_points.load(_reference(kind))
    except (ImportError, AttributeError):
        return "its class cannot be imported by its module and name"
    if found is not kind:
        return "another class has its module and name"
    try:
        again: Step = found(**recorded)
        fields = again.arguments()
        values, values_again = read_fields(step), read_fields(again)
    except Exception as error:
        return f"it cannot be made from its recorded fields: {_text(error)}"
    if as_lists(fields) != as_lists(arguments):
        return f"made from its recorded fields it has others: {fields}"
    for name, value in values.items():
        if name not in values_again or values_again[name] != value:
            return (
                f"made from its recorded fields it has {name}={values_again.get(name)!r:.100}, not"
                f" {value!r:.100}"
            )
    return ""


def _reference(kind: type[Step]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def read_fields(step: Step) -> dict[str, Any]:
    """Return the fields of a Step as they are, with tuples as lists, which JSON makes of them.

    A value with fields of its own stays what it is: in the record it is a mapping.
    """
    kind: Any = type(step)
    names = [field.name for field in attrs.fields(kind)] if attrs.has(kind) else [*vars(step)]
    return {name: as_lists(getattr(step, name)) for name in names}


def as_lists(value: Any) -> Any:
    """Return a value with its tuples as lists, which JSON makes of them."""
    if isinstance(value, dict):
        return {key: as_lists(each) for key, each in value.items()}
    return [as_lists(each) for each in value] if isinstance(value, list | tuple) else value


def apply_step(
    job: Job, stage: Stage, plugin: str, step: Step, *, place: str = ""
) -> Mapping[str, Any]:
    """Check a Step, record it, apply it, and record its facts.

    Args:
        job: The instance.
        stage: The stage.
        plugin: The plugin that wants the Step; errors are attributed to it.
        step: The Step.
        place: `AT:TARGET` of the mount whose source the Step makes; empty for another Step.

    Returns:
        The facts that `apply` returned.

    Raises:
        StepError: The Step could not be checked or applied.
        PluginError: The Step is not plain data.
    """
    who = job.stages.registry.record(plugin)
    does, arguments = step_as_data(job, stage, plugin, step)
    module = type(step).__module__
    prefix = f"{who.describe()}: {stage} for {job.name}: cannot {does}: "
    try:
        kind, seconds = _call_step(job, plugin, module, "deadline", partial(_limits_of, step))
        _call_step(job, plugin, module, "check", partial(job.check_step, step), seconds=seconds)
    except (Failure, HookTimeout) as error:
        raise _step_error(prefix, error) from error
    except ChrootfwError as error:
        _attribute(job, plugin, error)
        raise
    record = RecordedStep(
        kind,
        _reference(type(step)),
        arguments,
        stage=stage,
        place=place,
        plugin=plugin,
        distribution=who.distribution,
        version=who.version,
    )
    assert job.record is not None
    job.save(steps=[*job.record.steps, record])
    with job.step(stage, does, plugin):
        return _apply_recorded(job, step, record, does, seconds)


def _apply_recorded(
    job: Job, step: Step, record: RecordedStep, does: str, seconds: float
) -> Mapping[str, Any]:
    """Apply a Step that is recorded, and record its facts; return and raise as `apply_step`."""
    plugin = record.plugin
    where = f"{record.stage} for {job.name}: cannot {does}"
    prefix = f"{job.stages.registry.record(plugin).describe()}: {where}: "
    noted = _Call(job, "applied", record)
    apply = partial(_apply, job, step)
    module = type(step).__module__
    try:
        with deadlines.Waiting(most=job.disk_timeout):
            record.facts = _call_step(
                job, plugin, module, "apply", apply, seconds=seconds, noted=noted
            )
        job.save()
        return record.facts
    except HookTimeout as error:
        raise StepError(
            f"{prefix}it {error}",
            ["it may go on until this process ends, and is not undone before"],
            f"chrootfw cleanup {job.name} undoes it later; a Step's class says how long it may"
            " take (deadline)",
        ) from None
    except ChrootfwError as error:
        _attribute(job, plugin, error)
        raise
    except deadlines.DeadlineExceeded as error:
        job.unreturned.append(record)
        raise StepError(
            f"{where}: {error.filename}: {error.strerror}",
            [error.describe()],
            "look at the device or server of its disk; is it frozen (fsfreeze -u)? then:"
            f" chrootfw cleanup {job.name}",
        ) from error
    except Failure as error:
        raise _step_error(prefix, error, "what it had done is undone") from error


def _limits_of(step: Step) -> tuple[str, float]:
    """Return the name of a step in records, and the seconds that each of its calls has."""
    kind, seconds = step.kind or type(step).__name__, step.deadline
    if not isinstance(kind, str):
        raise TypeError(f"kind is {kind!r:.60}, which is not a str")
    return kind, check_seconds(seconds, "deadline", least=0.001)


def _apply(job: Job, step: Step) -> dict[str, Any]:
    """Apply a step; return its facts as JSON has them."""
    facts: dict[str, Any] = json.loads(json.dumps(dict(job.apply_step(step) or {})))
    return facts


def _step_error(prefix: str, error: Failure | HookTimeout, hint: str = "") -> StepError:
    """Make the error for a step that failed."""
    if isinstance(error, HookTimeout):
        return StepError(f"{prefix}it {error}", hint=hint)
    return StepError(f"{prefix}{error.text}", error.details, hint)


def _attribute(job: Job, plugin: str, error: ChrootfwError) -> None:
    """Name the plugin in an error that its Step raised itself."""
    if not isinstance(error, Interrupted):
        job.attribute(error, plugin)


def undo_steps(job: Job, stages: tuple[Stage, ...], *, parts_only: bool = False) -> list[str]:
    """Undo the recorded Steps of some stages, the last one first.

    A Step that cannot be undone stays recorded, and the others are undone all the same.

    Args:
        job: The instance.
        stages: The stages.
        parts_only: Leave out Steps that make the sources of the root and of auxiliary layers: a
            reboot makes only the mounts in the root afresh.

    Returns:
        A line for each Step that could not be undone.

    Raises:
        HeldError: An undo waits for the root, which it keeps busy.
        Interrupted: An end was requested.
    """
    failures: list[str] = []
    if job.record is None:
        return failures
    for record in reversed(list(job.record.steps)):
        if record.stage not in stages or (parts_only and _stays_in_reboot(record)):
            continue
        failure = _undo_recorded(job, record.stage, record)
        if failure:
            failures.append(f"{record.describe()}: {failure}")
        else:
            job.record.steps.remove(record)
            job.note()
    return failures


def _stays_in_reboot(record: RecordedStep) -> bool:
    """Return whether a Step makes the source of the root or of an auxiliary layer."""
    return record.stage == "mount" and (
        not record.place.startswith("root:") or record.place == "root:/"
    )


def _undo_recorded(job: Job, stage: Stage, record: RecordedStep) -> str:
    """Undo one recorded Step.

    Returns:
        Why it could not be undone; "" if it was undone.

    Raises:
        HeldError: As `undo_steps`.
        Interrupted: As `undo_steps`.
    """
    if record in job.unreturned:
        return "it is still being applied"
    earlier = _earlier_call(job, record)
    if earlier is not None:  # one that is over was undone after its time
        return "" if earlier.is_over else f"it is still being {earlier.what}"
    noted = _Call(job, "undone", record)
    plugin, module = record.plugin, record.reference.partition(":")[0]
    try:
        step, seconds = _call_step(job, plugin, module, "its import", partial(_rebuild, record))
        undo = partial(job.undo_step, step, record)
        most = _AFTER_FAILURE if job.is_hurried else job.disk_timeout
        with (
            job.step(stage, describe_undo(record), record.plugin),
            deadlines.Waiting(most=most),
        ):
            _call_step(job, plugin, module, "undo", undo, seconds=seconds, noted=noted)
    except Interrupted:
        raise
    except deadlines.DeadlineExceeded as error:
        # The call that waits is in the root, and would keep it busy.
        if not job.gives_up:
            raise _waiting_error(job, record, error) from error
        return f"it has not returned: {error.strerror}"
    except (Failure, HookTimeout, ChrootfwError) as error:
        job.may_retry |= job.stages.registry.record(record.plugin).is_first_party
        return _text(error)
    return ""


def find_obstacle(job: Job, record: RecordedStep) -> str:
    """Return why a recorded Step could not be undone now, as far as its class says; "" if it can.

    Raises:
        Interrupted: An end was requested.
    """
    module = record.reference.partition(":")[0]
    try:
        _call_step(job, record.plugin, module, "its import", partial(_rebuild, record))
    except Interrupted:
        raise
    except (Failure, HookTimeout, ChrootfwError) as error:
        return _text(error)
    return ""


def _waiting_error(job: Job, record: RecordedStep, error: deadlines.DeadlineExceeded) -> HeldError:
    return HeldError(
        f"{job.name} is held: {describe_undo(record)} has not returned: {error.strerror}",
        [error.describe()],
        f"its device or server is slow, dead or frozen (fsfreeze -u {job.root}); when it answers:"
        f" chrootfw cleanup {job.name}; {describe_forget(job.name)}",
    )


def _call_step(
    job: Job,
    plugin: str,
    module: str,
    what: str,
    call: Callable[[], T],
    *,
    seconds: float | None = None,
    noted: _Call | None = None,
) -> T:
    """Call a step's code as the code of a plugin is called, unless the step is chrootfw's own.

    Args:
        job: The instance.
        plugin: The plugin whose step it is.
        module: The name of the module of the step's class.
        what: What is called.
        call: Calls it.
        seconds: The time limit; ``None`` for that of a hook.
        noted: An ``apply`` or ``undo``. While it goes on, no other is made beside it, and a request
            to end waits for it.

    Raises:
        HookTimeout: It has not come back in time.
        ChrootfwError: It raised that.
        DeadlineExceeded: Likewise.
        Failure: It raised anything else.
    """
    calls = job.stages.calls
    is_first_party = job.stages.registry.record(plugin).is_first_party
    try:
        if is_first_party:
            return call()
        if module.partition(".")[0] in calls.stuck_modules:
            raise HookTimeout("needs a module whose import has not come back")
        return calls.call(
            plugin,
            what,
            partial(noted.make, call) if noted else call,
            seconds=calls.limit(job.stages.hook_timeout) if seconds is None else seconds,
            module=module,
            is_interruptible=noted is None,
        )
    except Failure as failure:
        error = failure.error
        if error is None or not isinstance_exactly(
            error, (ChrootfwError, deadlines.DeadlineExceeded)
        ):
            raise
        if isinstance_exactly(error, Interrupted):
            job.cancellation.check()  # else it was the plugin's own
            raise
        raise error from None
    except (ChrootfwError, deadlines.DeadlineExceeded, HookTimeout):
        raise
    except (Exception, SystemExit) as error:  # of a first-party step
        raise describe_failure(error, module) from error
    finally:
        if (
            noted and not noted.is_over and not is_first_party
        ):  # the time limit, or KeyboardInterrupt
            _left_behind.append(noted)


def _rebuild(record: RecordedStep) -> tuple[Step, float]:
    """Make the step of a record again; return the seconds that its undo has too."""
    step = rebuild_step(record)
    return step, _limits_of(step)[1]


def describe_undo(record: RecordedStep) -> str:
    """Return the description of the undo of a recorded Step."""
    return f"undo {record.kind}"


def give_up(job: Job, failures: list[str]) -> None:
    """Remove the pending undos from the record, and warn of each.

    Args:
        job: The instance.
        failures: A line for each Step that could not be undone.
    """
    for failure in failures:
        job.warn("", f"given up, and left as it is: {failure}")
    if job.record is not None:
        job.record.steps.clear()


def describe_forget(name: str) -> str:
    """Return the part of a hint that says how to give up the pending undos of an instance."""
    return f"to give up what cannot be undone: chrootfw cleanup {name} --forget"


def undo_error(name: str, failures: list[str]) -> StepError:
    """Make the error for Steps that could not be undone: `failures` has a line for each."""
    return StepError(
        f"{name} is unmounted, but {len(failures)} of its steps could not be undone",
        failures,
        f"fix what it reports (is the plugin still installed?), then: chrootfw cleanup {name};"
        f" what needs the root is undone by the next start on the same disk: chrootfw start {name};"
        f" {describe_forget(name)}",
    )


def kept_mounted_error(name: str, failures: list[str]) -> StepError:
    """Make the error for Steps that could not be undone, while the root stays mounted for a retry.

    Args:
        name: The instance.
        failures: A line for each Step.
    """
    return StepError(
        f"{name} has no process left, but {len(failures)} of its steps could not be undone; its"
        " disk stays mounted",
        failures,
        f"chrootfw cleanup {name} undoes them, and unmounts the disk also if they fail again",
    )


def rebuild_step(record: RecordedStep) -> Step:
    """Rebuild a Step from its class and its fields in the record.

    Raises:
        TypeError: The recorded class is not a Step.
        Exception: As the import or the class raises.
    """
    found: Any = entry_points.load(record.reference)
    if not (isinstance(found, type) and issubclass(found, Step)):
        raise TypeError(f"{record.reference} is not a Step")  # before it is called
    return found(**record.arguments)


def _text(error: BaseException) -> str:
    if isinstance(error, HookTimeout):
        return f"it {error}"
    return getattr(error, "brief", None) or f"{type(error).__name__}: {error}"
