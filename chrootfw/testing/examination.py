"""Call all hooks of one plugin in many ways: far more than a start and a stop would.

The core checks each answer. This module checks what the core cannot see in one call: whether a hook
blocks, changes something, answers the same twice, and answers with Steps that another process can
undo. A plugin may do anything: all its code runs in a thread with a time limit, where whatever it
raises is a finding.
"""

from __future__ import annotations

import contextvars
import inspect
import itertools
import json
import operator
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import attrs
import pluggy

from chrootfw import config
from chrootfw.errors import PluginError, PluginLoadError
from chrootfw.hooks import entry_points
from chrootfw.hooks.dispatch import Dispatcher
from chrootfw.hooks.registry import DEFAULTS, Registry
from chrootfw.hooks.specs import KINDS
from chrootfw.lifecycle.steps import as_lists, read_fields
from chrootfw.model import (
    STAGES,
    Command,
    Escalation,
    Event,
    Instance,
    MountPoint,
    Parameter,
    Step,
)
from chrootfw.planning import kill_plan
from chrootfw.testing import root_tree, side_effects
from chrootfw.testing.comparing import plain
from chrootfw.testing.random_cases import mount_tables, process_lists

#: Seconds within which a hook must answer.
SECONDS = 5.0

_INSTANCES = (
    Instance("conformance", disk="/srv/conformance.img"),
    Instance("conformance-mounted", disk="/srv/conformance.img", init_script=None),
)

#: The kinds of hooks that only answer; the others may do something.
_ANSWERING = ("contribute", "decide")

#: The hooks and stages that stop an instance: its record may be older than the plugin.
_STOP_HOOKS = ("chrootfw_init_script", "chrootfw_kill_strategy", "chrootfw_unmount_ordering")
_STOP_STAGES = ("init-stop", "kill", "unmount")


@attrs.frozen
class Question:
    """Hold one call of a hook: its name, its arguments, and the same call by a dispatcher."""

    hook: str
    arguments: Mapping[str, Any]
    ask: Callable[[], Any]
    about: str


@attrs.frozen
class Outcome:
    """Hold how a call ended.

    Args:
        answer: What it returned.
        error: What it raised.
        text: The same as a line.
        timed_out: It did not come back in time.
    """

    answer: Any = None
    error: BaseException | None = None
    text: str = ""
    timed_out: bool = False

    @property
    def has_answer(self) -> bool:
        """Return whether it came back with an answer."""
        return self.error is None and not self.timed_out


class Examination:
    """Examine one plugin beside the defaults, by all the questions of this module.

    A context manager: it has a directory.
    """

    def __init__(
        self,
        plugin: object,
        instances: Sequence[Instance] = (),
        *,
        seconds: float = SECONDS,
        apply_steps: bool = False,
    ) -> None:
        self.plugin = plugin
        self.given = tuple(instances)
        self.seconds = seconds
        self.apply_steps = apply_steps
        self.unloadable: list[str] = []
        self.unfit: list[str] = []
        self.hanging: set[str] = set()  # hooks
        self.waited: dict[str, str] = {}  # findings by hook
        self.changed: dict[str, str] = {}  # findings by hook
        self.reported: list[Event] = []
        self.name = ""
        self.who = "the plugin"
        self.implementations: list[tuple[str, pluggy.HookImpl]] = []
        self.instances: list[Instance] = []
        self.older: list[Instance] = []

    def __enter__(self) -> Examination:
        self._directory = tempfile.TemporaryDirectory(
            prefix="chrootfw-conformance-", ignore_cleanup_errors=True
        )
        self._guard = side_effects.ProcessGuard()
        root_tree.make(f"{self._directory.name}/root", {}, "/etc/chrootfw/init")
        self.root = root_tree.TreeRoot(f"{self._directory.name}/root")
        loaded = self.call("loading", self._load)
        if loaded.timed_out:
            self.waited.clear()
            self.unloadable.append(
                f"{self.who} could not be loaded within {self.seconds:g} s; expected a class or "
                "module that is made at once"
            )
        elif isinstance(loaded.error, PluginLoadError):
            self.unloadable.append(loaded.text)
        elif loaded.error:
            self.unloadable.append(f"{self.who} cannot be loaded: {loaded.text}")
        else:
            self._resolve()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._guard.close()
        self._directory.cleanup()

    def run(self, check: str) -> list[str]:
        """Return the findings of one check of ``CHECKS``."""
        try:
            return CHECKS[check](self)
        except Exception as error:
            return [f"{self.who}: its {check} cannot be examined: {_line(error)}"]

    def _load(self) -> None:
        if self.plugin is None or isinstance(self.plugin, str | bytes | int):
            raise PluginLoadError(
                f"the plugin is {self.plugin!r}; expected the object, the class or the module "
                "itself"
            )
        # A default is registered already, under its module's name.
        is_default = isinstance(self.plugin, ModuleType) and self.plugin.__name__ in DEFAULTS
        registry = Registry([] if is_default else [self.plugin])
        registry.check_loaded()
        self.name = (
            self.plugin.__name__
            if isinstance(self.plugin, ModuleType) and is_default
            else [*registry.records][-1]
        )
        self.who = registry.record(self.name).describe()
        self.stages = Dispatcher(registry, self.reported.append)
        for hook in KINDS:
            for implementation in getattr(registry.manager.hook, hook).get_hookimpls():
                if implementation.plugin_name == self.name:
                    self.implementations.append((hook, implementation))
        if not self.implementations:
            raise PluginLoadError(
                f"{self.who} implements no hook; expected a function chrootfw_… that is marked "
                "with @chrootfw.hookimpl"
            )

    def _resolve(self) -> None:
        """Fill in the parameters of each instance."""
        declared = self.call("chrootfw_parameters", self.stages.parameters)
        if not declared.has_answer:
            return  # reported with the other answers
        own = {parameter.name for plugin, parameter in declared.answer if plugin == self.name}
        if self.stages.registry.record(self.name).is_first_party:
            own = set()  # the core fills in these
        for instance in (*_INSTANCES, *self.given):
            resolved = self.call(
                "chrootfw_parameters", partial(config.resolve, instance, declared.answer)
            )
            if resolved.error:
                self.unfit.append(
                    f"{self.who}: chrootfw_parameters: {instance!r} is refused: {resolved.text}"
                )
            elif isinstance(resolved.answer, Instance):
                self.instances.append(resolved.answer)
                if own:
                    kept = {k: v for k, v in resolved.answer.params.items() if k not in own}
                    self.older.append(attrs.evolve(resolved.answer, params=kept))

    # -- calling -----------------------------------------------------------------------------------

    def call(self, hook: str, call: Callable[[], Any]) -> Outcome:
        """Call in a thread, for at most ``seconds``.

        A hook that has been waited for once is not called again. What the call changes in the
        process is a finding, and is put back; so is what a hook that only answers does to the
        system.
        """
        if hook in self.hanging:
            return Outcome(timed_out=True)
        outcomes: list[Outcome] = []
        with _without_input() as asked, side_effects.record() as effects:
            changes = self._guard.compare(
                lambda: outcomes.append(_call_in_thread(self.seconds, call))
            )
        if KINDS.get(hook) in _ANSWERING:
            changes = [*effects, *changes]
        if changes:
            self.changed.setdefault(
                hook,
                f"{self.who}: {hook} {changes[0]}; expected it to answer and change nothing: "
                "what is done belongs into a Step",
            )
        if outcomes[0].timed_out:
            self.hanging.add(hook)
            self.waited[hook] = (
                f"{self.who}: {hook} did not answer within {self.seconds:g} s; expected an answer "
                "at once: what takes time belongs into a Step"
            )
        elif asked:
            self.waited[hook] = (
                f"{self.who}: {hook} reads standard input; expected it to ask nobody: "
                "let a parameter say it"
            )
        return outcomes[0]

    def call_alone(
        self,
        implementation: pluggy.HookImpl,
        question: Question,
        convert: Callable[[Any], Any] = lambda answer: answer,
    ) -> Outcome:
        """Return the plugin's own answer, without wrappers and other plugins.

        ``convert`` makes something of it, in the same thread: its values may do anything.
        """
        known = {
            name: question.arguments[name]
            for name in implementation.kwargnames
            if name in question.arguments
        }
        arguments = [question.arguments[name] for name in implementation.argnames]

        def call() -> Any:
            answer = implementation.function(*arguments, **known)
            if inspect.iscoroutine(answer):
                answer.close()  # refused by the core
            return convert(answer)

        return self.call(question.hook, call)

    def call_dispatcher(
        self, question: Question, convert: Callable[[Any], Any] = lambda answer: answer
    ) -> tuple[Outcome, list[str]]:
        """Return the dispatcher's answer, and its findings about this plugin."""
        del self.reported[:]
        outcome = self.call(question.hook, lambda: convert(question.ask()))
        against = [
            event.does
            for event in self.reported
            if event.what == "plugin-error" and event.plugin == self.name
        ]
        if isinstance(outcome.error, PluginError):
            if outcome.error.plugin in (self.name, ""):
                against.append(outcome.text)
        elif outcome.error is not None:
            line = outcome.text
            against.append(
                line
                if self.who in line
                else f"{self.who}: {question.hook} for {question.about}: {line}"
            )
        return outcome, against

    # -- questions ---------------------------------------------------------------------------------

    def questions(self, hook: str) -> Iterator[Question]:
        """Yield the calls of a hook."""
        stages = self.stages
        if hook == "chrootfw_parameters":
            yield Question(hook, {}, stages.parameters, "nothing")
        elif hook == "chrootfw_event":
            for what in ("begin", "end", "fail", "warning", "plugin-error"):
                event = Event(
                    what,
                    "conformance",
                    "mount",
                    "mount something",
                    error="no" if what == "fail" else "",
                )
                yield Question(hook, {"event": event}, partial(stages.event, event), what)
        for instance in self.instances:
            yield from self._about(hook, instance)

    def older_questions(self, hook: str) -> Iterator[Question]:
        """Yield calls in a stop, for records that have no parameter of the plugin."""
        if hook in _STOP_HOOKS:
            for instance in self.older:
                asked = self._about(hook, instance)
                yield from itertools.islice(
                    (q for q in asked if q.arguments.get("action") != "start"), 2
                )

    def _about(self, hook: str, instance: Instance) -> Iterator[Question]:
        stages, name = self.stages, instance.name
        ask: Callable[[], Any]
        this = {"instance": instance}
        if hook == "chrootfw_mount":
            yield Question(hook, this, partial(stages.mount, instance), name)
        elif hook == "chrootfw_pre_start":
            for root in (self.root, None):
                command = Command(("/etc/chrootfw/init", "start"))
                ask = partial(stages.pre_start, instance, root, command)
                yield Question(
                    hook,
                    {**this, "root": root, "command": command},
                    ask,
                    f"{name}, root {'given' if root else 'None'}",
                )
        elif hook == "chrootfw_init_script":
            for action in ("start", "stop"):
                ask = partial(stages.init_script, instance, action)
                yield Question(hook, {**this, "action": action}, ask, f"{name}, action {action}")
        elif hook == "chrootfw_enter":
            for command in (Command(("/etc/chrootfw/init", "start")), Command(("/bin/sh",))):
                ask = partial(stages.enter, instance, command)
                yield Question(
                    hook, {**this, "command": command}, ask, f"{name}, command {command.argv}"
                )
        elif hook == "chrootfw_unmount_ordering":
            for mounts in mount_tables():
                ask = partial(stages.unmount_ordering, instance, mounts)
                yield Question(hook, {**this, "mounts": mounts}, ask, name)
        elif hook == "chrootfw_kill_strategy":
            for processes, force, timeout in process_lists():
                ask = partial(
                    stages.kill_strategy, instance, processes, force=force, timeout=timeout
                )
                how = {"processes": processes, "force": force, "timeout": timeout}
                yield Question(
                    hook, {**this, **how}, ask, f"{name}, force={force}, timeout={timeout}"
                )

    # -- checks ------------------------------------------------------------------------------------

    def loading(self) -> list[str]:
        """Return what is wrong with its registration."""
        return list(self.unloadable)

    def answers(self) -> list[str]:
        """Return what the core refuses of its answers, one finding for each hook."""
        special = ("chrootfw_unmount_ordering", "chrootfw_kill_strategy")  # checked by themselves
        found = list(self.unfit)
        for hook, implementation in self.implementations:
            if implementation.wrapper:
                continue
            refused = [] if hook in special else self._find_refused(hook, implementation)
            found += refused or self._find_missing_parameters(hook)
        return [*found, *self._check_defaults()]

    def _find_refused(self, hook: str, implementation: pluggy.HookImpl) -> list[str]:
        for question in self.questions(hook):
            if hook == "chrootfw_event":  # what it raises is logged only
                outcome = self.call_alone(implementation, question)
                against = (
                    [f"{self.who}: {hook} raised {outcome.text}; expected nothing of it"]
                    if outcome.error
                    else []
                )
            else:
                against = self.call_dispatcher(question)[1]
                if hook == "chrootfw_init_script" and not against:
                    against = self._find_relative_program(implementation, question)
            if against:
                return against[:1]
        return []

    def _find_relative_program(
        self, implementation: pluggy.HookImpl, question: Question
    ) -> list[str]:
        def read_program(answer: Any) -> str:
            return str(answer.argv[0]) if isinstance(answer, Command) else "/"

        program = self.call_alone(implementation, question, read_program).answer
        if program is None or program.startswith("/"):
            return []
        where = f"{self.who}: {question.hook} for {question.about}"
        return [f"{where} answered with the program {program!r}; expected its absolute path"]

    def _find_missing_parameters(self, hook: str) -> list[str]:
        """Return the first finding about a record that is older than the plugin."""
        for question in self.older_questions(hook):
            against = self.call_dispatcher(question)[1]
            if against:
                return [f"{against[0]} {_OLDER}"]
        return []

    def _check_defaults(self) -> list[str]:
        """Return the defaults that a definition could not have.

        The core does not check a default; it would check a definition that has the same value.
        """
        found = []
        for hook, implementation in self.implementations:
            if hook != "chrootfw_parameters":
                continue
            question = next(self.questions(hook))
            for parameter in self.call_alone(implementation, question, _list).answer or ():
                if not isinstance(parameter, Parameter) or parameter.default is None:
                    continue

                def resolve(parameter: Parameter = parameter) -> None:
                    params = {parameter.name: parameter.default}
                    instance = Instance("conformance", params=params)
                    config.resolve(instance, [(self.name, parameter)])

                refused = self.call(hook, resolve)
                if refused.error:
                    found.append(f"{self.who}: {hook}: its own default is refused: {refused.text}")
        return found

    def wrappers(self) -> list[str]:
        """Return what is wrong with its wrappers, one finding for each.

        A wrapper yields once, passes on an answer, and lets errors through.
        """
        found: list[str] = []
        for hook, implementation in self.implementations:
            if not implementation.wrapper:
                continue
            if hook == "chrootfw_around_stage":
                found += self._check_around_stage(implementation)[:1]
            else:
                found += self._find_refused(hook, implementation) or self._find_missing_parameters(
                    hook
                )
        return found

    def _check_around_stage(self, implementation: pluggy.HookImpl) -> list[str]:
        hook = "chrootfw_around_stage"
        cases = [
            *((instance, stage, "") for instance in self.instances for stage in STAGES),
            *((instance, stage, _OLDER) for instance in self.older for stage in _STOP_STAGES),
        ]
        for instance, stage, note in cases:
            question = Question(hook, {"instance": instance, "stage": stage}, lambda: None, stage)
            for failure in (None, _StageFailed("a failure inside the stage")):
                outcome = self._go_through(implementation, question, failure)
                where = f"{self.who}: {hook} for {instance.name}, stage {stage}"
                end = f" {note}" if note else ""
                if outcome.answer:
                    return [f"{where}: {outcome.answer}{end}"]
                if outcome.error:
                    return [f"{where}, raised {outcome.text}{end}"]
        return []

    def _go_through(
        self, wrapper: pluggy.HookImpl, question: Question, failure: Exception | None
    ) -> Outcome:
        """Go through a wrapper of a stage that ends well, or with ``failure``.

        Return what is wrong with it, or ``""``.
        """

        def go() -> str:
            arguments = [question.arguments[name] for name in wrapper.argnames]
            wrap: Callable[..., Any] = wrapper.function
            generator = wrap(*arguments)
            try:
                next(generator)
            except StopIteration:
                return "it did not yield; expected exactly one yield, where the stage runs"
            try:
                generator.send(None) if failure is None else generator.throw(failure)
            except StopIteration:
                swallowed = (
                    "it swallows what the stage raises; expected that to go through: return "
                    "(yield), in a try … finally if need be"
                )
                return "" if failure is None else swallowed
            except BaseException as error:
                if error is failure:
                    return ""
                if failure is None:
                    raise
                return (
                    f"it turns what the stage raises into {_line(error)}; expected that to "
                    "go through"
                )
            generator.close()
            return "it yields more than once; expected exactly one yield, where the stage runs"

        return self.call(question.hook, go)

    def blocking(self) -> list[str]:
        """Return hooks that made the caller wait, or read standard input."""
        self._call_all()
        return list(self.waited.values())

    def changes(self) -> list[str]:
        """Return hooks that changed the system or the process, one finding for each."""
        self._call_all()
        for hook, step in self._find_steps():
            self.call(hook, step.describe)  # a plan calls it too
        return list(self.changed.values())

    def _call_all(self) -> None:
        for hook, implementation in self.implementations:
            if hook == "chrootfw_around_stage":
                self._check_around_stage(implementation)
                continue
            for question in self.questions(hook):
                if implementation.wrapper:
                    self.call_dispatcher(question)
                else:
                    self.call_alone(implementation, question)

    def repetition(self) -> list[str]:
        """Return hooks that answer two equal calls differently, one finding for each.

        So does a hook that changes what it is given.
        """
        found: list[str] = []
        for hook, implementation in self.implementations:
            if KINDS[hook] in _ANSWERING:
                found += self._find_different(hook, implementation)
        return found

    def _find_different(self, hook: str, implementation: pluggy.HookImpl) -> list[str]:
        def ask(question: Question) -> Outcome:
            def convert(answer: Any) -> tuple[Any, str]:
                return plain(answer), _show(answer)

            return (
                self.call_dispatcher(question, convert)[0]
                if implementation.wrapper
                else self.call_alone(implementation, question, convert)
            )

        for question in self.questions(hook):
            where = f"{self.who}: {hook} for {question.about}"
            before = plain(question.arguments)
            first, second = ask(question), ask(question)
            changed = self.call(hook, partial(_find_changed, before, question.arguments)).answer
            if changed:
                why = "expected it to leave alone what it is given"
                return [f"{where} changes its argument {changed[0]}; {why}"]
            if not first.has_answer or not second.has_answer:
                continue  # reported elsewhere
            answers = first.answer[0], second.answer[0]
            same = self.call(hook, partial(operator.eq, *answers))
            if not same.answer:
                shown = f"{first.answer[1]}, then {second.answer[1]}"
                why = (
                    "expected the same: a hook is asked for plans too, and again for what is never "
                    "done"
                )
                return [f"{where} answers two equal questions differently: {shown}; {why}"]
        return []

    def steps(self) -> list[str]:
        """Return what would keep a Step from being undone by another process.

        There is one finding for each class and rule.
        """
        found: dict[tuple[type, str], str] = {}
        for hook, step in self._find_steps():
            who = f"{self.who}: {hook}: the Step {type(step).__qualname__}"
            checked = self.call(hook, partial(_check_step, who, step))
            if checked.error:
                failed = f"{who} cannot be examined: {checked.text}"
                found.setdefault((type(step), "examined"), failed)
            for rule, text in checked.answer or ():
                found.setdefault((type(step), rule), text)
            if self.apply_steps and checked.has_answer:
                for rule, text in self._apply(hook, who, step):
                    found.setdefault((type(step), rule), text)
        return list(found.values())

    def _find_steps(self) -> Iterator[tuple[str, Step]]:
        def read_steps(answer: Any) -> list[Step]:
            items = [
                item.source if isinstance(item, MountPoint) else item for item in _list(answer)
            ]
            return [item for item in items if isinstance(item, Step)]

        for hook, implementation in self.implementations:
            if hook in ("chrootfw_mount", "chrootfw_pre_start"):
                for question in self.questions(hook):
                    for step in self.call_alone(implementation, question, read_steps).answer or ():
                        yield hook, step

    def _apply(self, hook: str, who: str, step: Step) -> Iterator[tuple[str, str]]:
        """Apply a step and undo it, and yield what is wrong with that."""

        def make_again() -> tuple[Step, dict[str, Any]]:
            arguments = json.loads(json.dumps(step.arguments()))
            return type(step)(**arguments), arguments

        made = self.call(hook, make_again)
        if not made.has_answer:
            return  # reported by _check_step
        again, arguments = made.answer
        record: dict[str, Any] = {
            "kind": step.kind or type(step).__name__, "arguments": arguments, "facts": None,
            "plugin": self.name, "version": "",
        }  # fmt: skip
        expected = "expected it to succeed when apply never ran, ran half, or was undone before"
        never = self._call_step(step, partial(again.undo, record))
        if never:
            yield "undo", f"{who}: undo() {never} when apply never ran; {expected}"
        facts: list[Any] = []

        def apply() -> None:
            answer = step.apply()
            facts.append(_show(answer))
            facts.append(json.loads(json.dumps(dict(answer or {}))))

        failed = self._call_step(step, apply)
        if failed and facts:
            yield "facts", f"{who}: apply() returned {facts[0]}: {failed}; expected JSON facts"
        elif failed:
            yield "apply", f"{who}: apply() {failed}"
        else:
            record["facts"] = facts[1]
        if facts and hook == "chrootfw_mount" and not (record["facts"] or {}).get("source"):
            yield (
                "source",
                f'{who}: apply() returned {facts[0]}; expected {{"source": path}}',
            )
        for times in ("once", "twice"):
            wrong = self._call_step(step, partial(again.undo, record))
            if wrong:
                yield times, f"{who}: undo() {wrong} when called {times}; {expected}"

    def _call_step(self, step: Step, call: Callable[[], Any]) -> str:
        """Call ``apply`` or ``undo``, and return how it failed, or ``""``."""
        seconds = step.deadline if isinstance(step.deadline, int | float) else Step.deadline
        outcome = _call_in_thread(seconds, call)
        if outcome.timed_out:
            return f"did not come back within {seconds:g} s, its deadline"
        return f"raised {outcome.text}" if outcome.error else ""

    def unmount_orderings(self) -> list[str]:
        """Return the first mount tree for which its order is refused."""
        return self._find_first_refused("chrootfw_unmount_ordering")

    def kill_strategies(self) -> list[str]:
        """Return the first list of processes for which its escalations are refused.

        So are escalations that wait before KILL though ``force`` is asked for.
        """
        hook = "chrootfw_kill_strategy"
        found = self._find_first_refused(hook)
        for known, implementation in self.implementations:
            if known == hook:
                found += self._find_ignored_force(implementation)
        return found[:1]

    def _find_first_refused(self, hook: str) -> list[str]:
        for known, implementation in self.implementations:
            if known == hook and not implementation.wrapper:
                against = self._find_refused(hook, implementation)
                if against:
                    return against
        return []

    def _find_ignored_force(self, implementation: pluggy.HookImpl) -> list[str]:
        for question in self.questions("chrootfw_kill_strategy"):
            if not question.arguments["force"]:
                continue
            waits = (
                self._ask_wrapper(implementation, question)
                if implementation.wrapper
                else self.call_alone(implementation, question, _seconds_before_kill)
            ).answer
            if waits and waits > kill_plan.KILL_GRACE:
                where = f"{self.who}: {question.hook} for {question.about}"
                why = (
                    "expected SIGKILL at once with force: answer None then, and another plugin "
                    "sends it"
                )
                return [f"{where} waits {waits:g} s before SIGKILL; {why}"]
        return []

    def _ask_wrapper(self, wrapper: pluggy.HookImpl, question: Question) -> Outcome:
        """Let a wrapper make something of the usual answer to ``force``."""

        def ask() -> float:
            arguments = [question.arguments[name] for name in wrapper.argnames]
            wrap: Callable[..., Any] = wrapper.function
            generator = wrap(*arguments)
            next(generator)
            try:
                generator.send(kill_plan.make_strategy(grace=0, force=True, holders=False))
            except StopIteration as end:
                return _seconds_before_kill(end.value)
            return 0  # it yields twice, which is reported elsewhere

        return self.call(question.hook, ask)


#: Every check, by the name of a test.
CHECKS: dict[str, Callable[[Examination], list[str]]] = {
    "loading": Examination.loading,
    "answers": Examination.answers,
    "wrappers": Examination.wrappers,
    "blocking": Examination.blocking,
    "changes": Examination.changes,
    "repetition": Examination.repetition,
    "steps": Examination.steps,
    "unmount_orderings": Examination.unmount_orderings,
    "kill_strategies": Examination.kill_strategies,
}

_OLDER = (
    "(the record of this instance is older than the plugin and has no parameter of it; expected "
    "params.get)"
)


class _StageFailed(Exception):
    """Be what a stage raises here."""


class _NoInput:
    """In the place of ``sys.stdin``: it notes that somebody reads."""

    def __init__(self, asked: list[bool]) -> None:
        self.asked = asked

    def __getattr__(self, name: str) -> Any:
        self.asked.append(True)
        raise EOFError("a hook has no standard input")


@contextmanager
def _without_input() -> Iterator[list[bool]]:
    asked: list[bool] = []
    before = sys.stdin
    sys.stdin = _NoInput(asked)
    try:
        yield asked
    finally:
        sys.stdin = before


def _call_in_thread(seconds: float, call: Callable[[], Any]) -> Outcome:
    """Call in a thread, and leave it behind when it has not come back in time.

    Whatever it raises is the plugin's, KeyboardInterrupt and pytest.fail included: the user's own
    interrupt goes to the main thread.
    """
    outcomes: list[Outcome] = []

    def run() -> None:
        side_effects.keep_process()
        try:
            outcome = Outcome(call())
        except BaseException as error:
            outcome = Outcome(error=error, text=_line(error))
        outcomes.append(outcome)

    thread = threading.Thread(
        target=contextvars.copy_context().run,
        args=(run,),
        daemon=True,
        name="chrootfw-conformance",
    )
    thread.start()
    thread.join(seconds)
    return outcomes[0] if outcomes else Outcome(timed_out=True)


def _seconds_before_kill(answer: Any) -> float:
    """Return how long the processes are waited for before the first KILL."""
    seconds = 0.0
    for step in _list(answer):
        if not isinstance(step, Escalation) or step.signal == signal.SIGKILL:
            break
        seconds += step.grace
    return seconds


def _check_step(who: str, step: Step) -> list[tuple[str, str]]:
    return list(_find_lost(who, step))


def _find_lost(who: str, step: Step) -> Iterator[tuple[str, str]]:
    """Yield what would keep a step from being undone by another process: a rule and a finding."""
    kind = type(step)
    make: Callable[..., Step] = kind
    try:
        does: Any = step.describe()
        wrong = (
            "" if isinstance(does, str) and does and "\n" not in does else f"answered {_show(does)}"
        )
    except BaseException as error:
        does, wrong = "", f"raised {_line(error)}"
    if wrong:
        yield "describe", f"{who}: describe() {wrong}; expected a str of one line"
        return
    if does.endswith("."):
        yield (
            "stop",
            f"{who}: describe() says {does!r}; expected a line without a full stop",
        )
    try:
        arguments = step.arguments()
        written = json.loads(json.dumps(arguments))
    except Exception as error:
        why = "expected str, numbers, lists, dicts"
        yield "json", f"{who}: its fields are not JSON values: {_line(error)}; {why}"
        return
    if _import(kind) is not kind:
        why = "expected a class at the top of an importable module: another process undoes it"
        yield (
            "import",
            f"{who} cannot be found again as {kind.__module__}:{kind.__qualname__}; {why}",
        )
    try:
        again = make(**written)
    except Exception as error:
        yield "make", f"{who} cannot be made again from its record {written}: {_line(error)}"
        return
    fields, same = read_fields(step), read_fields(again)
    lost = [name for name, value in fields.items() if name not in same or same[name] != value]
    if lost or again.arguments() != as_lists(arguments):
        name = next(iter(lost), "")
        shown = (
            f"{name}={_show(same.get(name))}, not {_show(fields[name])}"
            if name
            else f"{_show(again.arguments())}, not {_show(arguments)}"
        )
        why = "expected what JSON keeps: str, numbers, lists, dicts with str as keys"
        yield (
            "fields",
            f"{who} has other fields when it is made again from its record: {shown}; {why}",
        )
    try:
        described = [again.describe(), step.describe()]
    except Exception as error:
        yield "says", f"{who}: describe() raised {_line(error)} when it is made again"
        return
    if described != [does, does]:
        shown = f"{described[0]!r}, not {does!r}"
        yield "says", f"{who} describes itself differently when it is made again: {shown}"


def _find_changed(before: dict[str, Any], arguments: Mapping[str, Any]) -> list[str]:
    return [name for name, value in plain(arguments).items() if value != before[name]]


def _import(kind: type) -> Any:
    if kind.__module__ == "__main__":
        return None  # another process has another one
    try:
        return entry_points.load(f"{kind.__module__}:{kind.__qualname__}")
    except (ImportError, AttributeError):
        return None


def _list(answer: Any) -> list[Any]:
    return list(answer) if isinstance(answer, list | tuple) else []


def _line(error: BaseException | None) -> str:
    try:
        return str(getattr(error, "brief", None) or f"{type(error).__name__}: {error}")
    except BaseException:  # its own str() fails
        return type(error).__name__


def _show(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        text = object.__repr__(value)
    return text if len(text) <= 200 else text[:197] + "…"
