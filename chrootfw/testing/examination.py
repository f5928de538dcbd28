"""One plugin, asked all the questions: far more than a start and a stop would ask.

The core checks what it is answered. What it cannot see in one call is looked at here: whether a hook blocks, answers the same twice, and answers with
Steps that another process can undo.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import attrs
import pluggy

from chrootfw import config, hook_calls, installed
from chrootfw.errors import ChrootfwError, PluginError
from chrootfw.hookspecs import KINDS
from chrootfw.model import STAGES, Command, Event, Instance, MountPoint, Parameter, Step
from chrootfw.plugins import DEFAULTS, Registry
from chrootfw.stages import Stages
from chrootfw.testing import root_tree
from chrootfw.testing.comparing import plain
from chrootfw.testing.random_cases import mount_tables, process_lists

#: Seconds within which a hook must answer.
SECONDS = 5.0

_INSTANCES = (
    Instance("conformance", disk="/srv/conformance.img"),
    Instance("conformance-mounted", disk="/srv/conformance.img", init_script=None),
)


@attrs.frozen
class Question:
    """One call of a hook: its name, its arguments, and the same by way of ``Stages``."""

    hook: str
    arguments: Mapping[str, Any]
    ask: Callable[[], Any]
    about: str


@attrs.frozen
class Outcome:
    """How a call ended: ``answer``, or ``error``, or not in time (``overdue``)."""

    answer: Any = None
    error: BaseException | None = None
    overdue: bool = False


class Examination:
    """One plugin beside the defaults, and all the questions that it is asked. A context manager: it has a directory."""

    def __init__(
        self, plugin: object, instances: Sequence[Instance] = (), *, seconds: float = SECONDS, apply_steps: bool = False
    ) -> None:
        self.plugin = plugin
        self.given = tuple(instances)
        self.seconds = seconds
        self.apply_steps = apply_steps
        self.unloadable: list[str] = []
        self.unfit: list[str] = []
        self.hanging: set[str] = set()  # hooks
        self.waited: dict[str, str] = {}  # what is said of a hook that keeps its caller waiting
        self.told: list[Event] = []
        self.name = self.who = ""
        self.implementations: list[tuple[str, pluggy.HookImpl]] = []
        self.instances: list[Instance] = []

    def __enter__(self) -> Examination:
        self._directory = tempfile.TemporaryDirectory(prefix="chrootfw-conformance-")
        root_tree.make(f"{self._directory.name}/root", {}, "/etc/chrootfw/init")
        self.root = root_tree.TreeRoot(f"{self._directory.name}/root")
        try:
            self._load()
        except ChrootfwError as error:
            self.unloadable.append(_line(error))
        return self

    def __exit__(self, *_exc: object) -> None:
        self._directory.cleanup()

    def _load(self) -> None:
        # A default is registered already, under its module's name.
        is_default = isinstance(self.plugin, ModuleType) and self.plugin.__name__ in DEFAULTS
        registry = Registry([] if is_default else [self.plugin])
        registry.check_loaded()
        self.name = (
            self.plugin.__name__ if isinstance(self.plugin, ModuleType) and is_default else [*registry.records][-1]
        )
        self.who = registry.record(self.name).describe()
        self.stages = Stages(registry, self.told.append)
        for hook in KINDS:
            for implementation in getattr(registry.manager.hook, hook).get_hookimpls():
                if implementation.plugin_name == self.name:
                    self.implementations.append((hook, implementation))
        declared = self.within("chrootfw_parameters", self.stages.parameters)
        if declared.error or declared.overdue:
            return  # looked at again with the other answers
        for instance in (*_INSTANCES, *self.given):
            resolved = self.within("chrootfw_parameters", partial(config.resolve, instance, declared.answer))
            if isinstance(resolved.answer, Instance):
                self.instances.append(resolved.answer)
            elif resolved.error:
                self.unfit.append(
                    f"{self.who}: chrootfw_parameters: {instance.name} {dict(instance.params)} is refused: {_line(resolved.error)}"
                )

    # -- calling ------------------------------------------------------------------------------------

    def within(self, hook: str, call: Callable[[], Any]) -> Outcome:
        """Call in a thread, for at most ``seconds``; a hook that has been waited for once is not called again."""
        if hook in self.hanging:
            return Outcome(overdue=True)
        with _without_input() as asked:
            try:
                outcome = Outcome(hook_calls.within(self.seconds, call))
            except hook_calls.Overdue:
                self.hanging.add(hook)
                self.waited[hook] = (
                    f"{self.who or self.plugin}: {hook} did not answer within {self.seconds:g} s; expected an answer at "
                    "once: what takes time belongs into a Step"
                )
                return Outcome(overdue=True)
            except (Exception, SystemExit) as error:
                outcome = Outcome(error=error)
        if asked:
            self.waited[hook] = (
                f"{self.who}: {hook} reads standard input; expected it to ask nobody: let a parameter say it"
            )
        return outcome

    def called(self, implementation: pluggy.HookImpl, question: Question) -> Outcome:
        """The plugin's own answer, wrappers and other plugins left out."""
        known = {name: question.arguments[name] for name in implementation.kwargnames if name in question.arguments}
        arguments = [question.arguments[name] for name in implementation.argnames]
        outcome = self.within(question.hook, lambda: implementation.function(*arguments, **known))
        if inspect.iscoroutine(outcome.answer):
            outcome.answer.close()  # refused by the core
        return outcome

    def asked(self, question: Question) -> tuple[Outcome, list[str]]:
        """The answer by way of ``Stages``, and what it says against this plugin."""
        del self.told[:]
        outcome = self.within(question.hook, question.ask)
        against = [event.does for event in self.told if event.what == "blame" and event.plugin == self.name]
        if isinstance(outcome.error, PluginError):
            if outcome.error.plugin in (self.name, ""):
                against.append(_line(outcome.error))
        elif outcome.error is not None:
            line = _line(outcome.error)
            against.append(line if self.who in line else f"{self.who}: {question.hook} for {question.about}: {line}")
        return outcome, against

    # -- questions ----------------------------------------------------------------------------------

    def questions(self, hook: str) -> Iterator[Question]:
        """What a hook is asked."""
        stages = self.stages
        if hook == "chrootfw_parameters":
            yield Question(hook, {}, stages.parameters, "nothing")
        elif hook == "chrootfw_event":
            for what in ("begin", "end", "fail", "warning", "blame"):
                event = Event(what, "conformance", "mount", "mount something", error="no" if what == "fail" else "")
                yield Question(hook, {"event": event}, partial(stages.event, event), what)
        for instance in self.instances:
            yield from self._about(hook, instance)

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
                    hook, {**this, "root": root, "command": command}, ask, f"{name}, root {'given' if root else 'None'}"
                )
        elif hook == "chrootfw_init_script":
            for action in ("start", "stop"):
                ask = partial(stages.init_script, instance, action)
                yield Question(hook, {**this, "action": action}, ask, f"{name}, action {action}")
        elif hook == "chrootfw_enter":
            for command in (Command(("/etc/chrootfw/init", "start")), Command(("/bin/sh",))):
                ask = partial(stages.enter, instance, command)
                yield Question(hook, {**this, "command": command}, ask, f"{name}, command {command.argv}")
        elif hook == "chrootfw_unmount_ordering":
            for mounts in mount_tables():
                ask = partial(stages.unmount_ordering, instance, mounts)
                yield Question(hook, {**this, "mounts": mounts}, ask, name)
        elif hook == "chrootfw_kill_strategy":
            for processes, force, timeout in process_lists():
                ask = partial(stages.kill_strategy, instance, processes, force=force, timeout=timeout)
                how = {"processes": processes, "force": force, "timeout": timeout}
                yield Question(hook, {**this, **how}, ask, f"{name}, force={force}, timeout={timeout}")

    # -- what is looked at --------------------------------------------------------------------------

    def loading(self) -> list[str]:
        """Whether it can be registered."""
        return list(self.unloadable)

    def answers(self) -> list[str]:
        """What the core says against its answers, one finding for each hook."""
        special = ("chrootfw_unmount_ordering", "chrootfw_kill_strategy")  # looked at by themselves
        found = list(self.unfit)
        for hook, implementation in self.implementations:
            if not implementation.wrapper and hook not in special:
                found += self._against(hook, implementation)
        return [*found, *self._own_defaults()]

    def _against(self, hook: str, implementation: pluggy.HookImpl) -> list[str]:
        for question in self.questions(hook):
            if hook == "chrootfw_event":  # what it raises is logged only
                error = self.called(implementation, question).error
                against = [f"{self.who}: {hook} raised {_line(error)}; expected nothing of it"] if error else []
            else:
                _, against = self.asked(question)
            if against:
                return against[:1]
        return []

    def _own_defaults(self) -> list[str]:
        """A default is not checked by the core; a definition that says the same would be."""
        found = []
        for _, implementation in [i for i in self.implementations if i[0] == "chrootfw_parameters"]:
            answer = self.called(implementation, next(self.questions("chrootfw_parameters"))).answer
            for parameter in answer if isinstance(answer, list | tuple) else ():
                if not isinstance(parameter, Parameter) or parameter.default is None:
                    continue
                alone = Instance("conformance", params={parameter.name: parameter.default})
                refused = self.within("chrootfw_parameters", partial(config.resolve, alone, [(self.name, parameter)]))
                if refused.error:
                    found.append(f"{self.who}: chrootfw_parameters: its own default is refused: {_line(refused.error)}")
        return found

    def wrappers(self) -> list[str]:
        """Whether its wrappers yield once, pass on an answer, and let errors through; one finding for each."""
        found: list[str] = []
        for hook, implementation in self.implementations:
            if not implementation.wrapper:
                continue
            if hook == "chrootfw_around_stage":
                found += self._around(implementation)[:1]
            else:
                found += self._against(hook, implementation)
        return found

    def _around(self, implementation: pluggy.HookImpl) -> list[str]:
        hook = "chrootfw_around_stage"
        for instance in self.instances:
            for stage in STAGES:
                question = Question(hook, {"instance": instance, "stage": stage}, lambda: None, stage)
                for failure in (None, _StageFailed("a failure inside the stage")):
                    outcome = self.called_through(implementation, question, failure)
                    if outcome.answer:
                        return [f"{self.who}: {hook} for {instance.name}, stage {stage}: {outcome.answer}"]
                    if outcome.error:
                        error = _line(outcome.error)
                        return [f"{self.who}: {hook} for {instance.name}, stage {stage}, raised {error}"]
        return []

    def called_through(self, wrapper: pluggy.HookImpl, question: Question, failure: Exception | None) -> Outcome:
        """Go through a wrapper of a stage that ends well, or with ``failure``: what is wrong with it, or ``""``."""

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
                swallowed = "it swallows what the stage raises; expected that to go through: return (yield), in a try … finally if need be"
                return "" if failure is None else swallowed
            except BaseException as error:
                if error is failure:
                    return ""
                if failure is None:
                    raise
                return f"it turns what the stage raises into {_line(error)}; expected that to go through"
            generator.close()
            return "it yields more than once; expected exactly one yield, where the stage runs"

        return self.within(question.hook, go)

    def blocking(self) -> list[str]:
        """Hooks that made the caller wait, or read standard input."""
        for hook, implementation in self.implementations:
            if hook == "chrootfw_around_stage":
                self._around(implementation)
                continue
            for question in self.questions(hook):
                if implementation.wrapper:
                    self.asked(question)
                else:
                    self.called(implementation, question)
        return list(self.waited.values())

    def repetition(self) -> list[str]:
        """Hooks that answer two equal questions differently, or change what they are given; one finding for each."""
        found: list[str] = []
        for hook, implementation in self.implementations:
            if KINDS[hook] in ("contribute", "decide"):
                found += self._repeated(hook, implementation)
        return found

    def _repeated(self, hook: str, implementation: pluggy.HookImpl) -> list[str]:
        def ask(question: Question) -> Outcome:
            return self.asked(question)[0] if implementation.wrapper else self.called(implementation, question)

        for question in self.questions(hook):
            before = copy.deepcopy(plain(question.arguments))
            first, second = ask(question), ask(question)
            changed = [name for name, value in plain(question.arguments).items() if value != before[name]]
            if changed:
                said = f"changes its argument {changed[0]}; expected it to leave alone what it is given"
                return [f"{self.who}: {hook} for {question.about} {said}"]
            if first.error or second.error or first.overdue or second.overdue:
                continue  # told elsewhere
            if plain(first.answer) != plain(second.answer):
                said = f"answers two equal questions differently: {_shown(first.answer)}, then {_shown(second.answer)}"
                why = "expected the same: a hook is asked for plans too, and again for what is never done"
                return [f"{self.who}: {hook} for {question.about} {said}; {why}"]
        return []

    def steps(self) -> list[str]:
        """What would keep a Step from being undone by another process; one finding for each class and rule."""
        found: dict[tuple[type, str], str] = {}
        for hook, step in self._all_steps():
            for rule, text in self._step_findings(hook, step):
                found.setdefault((type(step), rule), text)
        return list(found.values())

    def _all_steps(self) -> Iterator[tuple[str, Step]]:
        for hook, implementation in self.implementations:
            if hook not in ("chrootfw_mount", "chrootfw_pre_start"):
                continue
            for question in self.questions(hook):
                answer = self.called(implementation, question).answer
                for item in answer if isinstance(answer, list | tuple) else ():
                    step = item.source if isinstance(item, MountPoint) else item
                    if isinstance(step, Step):
                        yield hook, step

    def _step_findings(self, hook: str, step: Step) -> Iterator[tuple[str, str]]:
        kind = type(step)
        who = f"{self.who}: {hook}: the Step {kind.__qualname__}"
        make: Callable[..., Step] = kind
        does = self.within(hook, step.describe)
        if does.error or not isinstance(does.answer, str) or not does.answer or "\n" in does.answer:
            what = f"raised {_line(does.error)}" if does.error else f"answered {_shown(does.answer)}"
            yield "describe", f"{who}: describe() {what}; expected a str of one line"
            return
        if does.answer.endswith("."):
            yield "stop", f"{who}: describe() says {does.answer!r}; expected a line without a full stop"
        try:
            arguments = step.arguments()
            written = json.loads(json.dumps(arguments))
        except Exception as error:
            yield "json", f"{who}: its fields are no JSON values: {_line(error)}; expected str, numbers, lists, dicts"
            return
        found = _import(kind)
        if found is not kind:
            why = "expected a class at the top of an importable module: another process undoes it"
            yield "import", f"{who} cannot be found again as {kind.__module__}:{kind.__qualname__}; {why}"
        try:
            again = make(**written)
        except Exception as error:
            yield "make", f"{who} cannot be made again from its record {written}: {_line(error)}"
            return
        if plain(again.arguments()) != plain(arguments):
            yield "fields", f"{who} has other fields when it is made again: {again.arguments()}, not {arguments}"
        if again.describe() != does.answer or step.describe() != does.answer:
            yield (
                "says",
                f"{who} describes itself differently when it is made again: {again.describe()!r}, not {does.answer!r}",
            )
        if self.apply_steps:
            yield from self._applied(hook, who, step, again, written)

    def _applied(
        self, hook: str, who: str, step: Step, again: Step, arguments: dict[str, Any]
    ) -> Iterator[tuple[str, str]]:
        record: dict[str, Any] = {
            "kind": step.kind or type(step).__name__, "arguments": arguments, "facts": None, "plugin": self.name, "version": "",
        }  # fmt: skip
        expected = "expected it to succeed when apply never ran, ran half, or was undone before"
        never = self.within(hook, partial(again.undo, record))
        if never.error:
            yield "undo", f"{who}: undo() raised {_line(never.error)} when apply never ran; {expected}"
        applied = self.within(hook, step.apply)
        if applied.error:
            yield "apply", f"{who}: apply() raised {_line(applied.error)}"
        else:
            try:
                record["facts"] = json.loads(json.dumps(dict(applied.answer or {})))
            except (TypeError, ValueError) as error:
                yield "facts", f"{who}: apply() returned {_shown(applied.answer)}: {_line(error)}; expected JSON facts"
            if hook == "chrootfw_mount" and not (record["facts"] or {}).get("source"):
                yield "source", f'{who}: apply() returned {_shown(applied.answer)}; expected {{"source": path}}'
        for times in ("once", "twice"):
            undone = self.within(hook, partial(again.undo, record))
            if undone.error:
                yield times, f"{who}: undo() raised {_line(undone.error)} when called {times}; {expected}"

    def unmount_orderings(self) -> list[str]:
        """The first mount tree for which its order is refused."""
        return self._all_legal("chrootfw_unmount_ordering")

    def kill_strategies(self) -> list[str]:
        """The first list of processes for which its escalations are refused."""
        return self._all_legal("chrootfw_kill_strategy")

    def _all_legal(self, hook: str) -> list[str]:
        for known, implementation in self.implementations:
            if known == hook and not implementation.wrapper and (against := self._against(hook, implementation)):
                return against
        return []


#: Everything that is looked at, by the name of a test.
LOOKS: dict[str, Callable[[Examination], list[str]]] = {
    "loading": Examination.loading,
    "answers": Examination.answers,
    "wrappers": Examination.wrappers,
    "blocking": Examination.blocking,
    "repetition": Examination.repetition,
    "steps": Examination.steps,
    "unmount_orderings": Examination.unmount_orderings,
    "kill_strategies": Examination.kill_strategies,
}


class _StageFailed(Exception):
    """What a stage raises here."""


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


def _import(kind: type) -> Any:
    if kind.__module__ == "__main__":
        return None  # another process has another one
    try:
        return installed.load(f"{kind.__module__}:{kind.__qualname__}")
    except (ImportError, AttributeError):
        return None


def _line(error: BaseException | None) -> str:
    return getattr(error, "brief", None) or f"{type(error).__name__}: {error}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "…"
