"""The only caller of hooks: asks, checks every answer, and names the guilty plugin.

In a start a bad answer is fatal (``PluginError``). In what stops an instance it is reported with blame, and the next
implementation is asked, down to the defaults: a bad plugin never keeps anyone from stopping.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from chrootfw import log
from chrootfw.errors import InputError, Interrupted, PluginError
from chrootfw.hook_calls import HOOK_TIMEOUT, Overdue, where, within
from chrootfw.model import (
    FIELDS,
    Command,
    Entry,
    Escalation,
    Event,
    Instance,
    Mount,
    MountPoint,
    NoCommand,
    Omit,
    Parameter,
    Problem,
    Stage,
    Step,
    always_right,
)
from chrootfw.planning import kill_plan, mount_order
from chrootfw.plugins import PluginRecord, Registry

if TYPE_CHECKING:
    from chrootfw.system.root import Root
    from chrootfw.views import Process

T = TypeVar("T")
#: What each hook is expected to answer, for blame.
EXPECTED = {
    "chrootfw_parameters": "a list of Parameter, or None",
    "chrootfw_mount": "a list of MountPoint or Omit, or None",
    "chrootfw_pre_start": "a list of Problem or Step, or None",
    "chrootfw_init_script": "a Command, NO_COMMAND or None",
    "chrootfw_enter": "an Entry or None",
    "chrootfw_kill_strategy": "a list of Escalation, or None",
    "chrootfw_unmount_ordering": "the mounts in a list, children first, or None",
    "chrootfw_around_stage": "a wrapper that ends with return (yield)",
    "chrootfw_event": "nothing",
}
_EXPECTED_OF_CHECK = "None, or a sentence that says what is wrong"
_OWN_PARAMETERS = {"name", *(parameter.name for parameter in FIELDS)}


class Stages:
    """The hooks of one registry, typed, for one verb. ``tell`` receives ``Event`` values (the blame).

    ``hook_timeout``: seconds for each answer of a plugin that is not chrootfw's own. One that once took longer is not
    asked again.
    """

    def __init__(
        self, registry: Registry, tell: Callable[[Event], None], *, hook_timeout: float = HOOK_TIMEOUT
    ) -> None:
        self.registry = registry
        self.tell = tell
        self.hook_timeout = hook_timeout
        self._overdue: set[str] = set()

    # -- contribute ---------------------------------------------------------------------------------

    def parameters(self) -> list[tuple[str, Parameter]]:
        """``(plugin, Parameter)`` pairs; a name that is taken is refused."""
        hook = "chrootfw_parameters"
        declared: dict[str, tuple[str, Parameter]] = {}
        for plugin, answer in reversed(self._contributed(hook, {}, Parameter, None)):
            taken = "which is chrootfw's own" if answer.name in _OWN_PARAMETERS else ""
            if answer.name in declared:
                taken = f"which {self._who(declared[answer.name][0])} declares too"
            if taken:
                raise self._error(plugin, hook, None, f"declares the parameter {answer.name!r}, {taken}")
            declared[answer.name] = (plugin, answer)
        return list(declared.values())

    def check_parameter(self, plugin: str, parameter: Parameter, value: Any) -> str | None:
        """What the check of a plugin's parameter says of a value; called like a hook."""
        if parameter.check is always_right:
            return None

        def check() -> str | None:
            try:
                return parameter.check(value)
            except ValueError as error:
                return str(error)
            except InputError as error:
                return error.brief

        what = f"the check of parameter {parameter.name}"
        wrong = self._call(plugin, what, None, check)
        if wrong is not None and not isinstance(wrong, str):
            raise self._error(plugin, what, None, f"answered {_shown(wrong)}; expected {_EXPECTED_OF_CHECK}")
        return wrong

    def mount(self, instance: Instance) -> list[tuple[str, MountPoint]]:
        """``(plugin, MountPoint)`` pairs, merged, parents first. Raises ``PlanError`` without one root."""
        answers = self._contributed("chrootfw_mount", {"instance": instance}, (MountPoint, Omit), instance)
        return mount_order.merge(answers, lambda plugin: f"{self._who(plugin)}: chrootfw_mount for {instance.name}")

    def pre_start(
        self, instance: Instance, root: Root | None, command: Command | NoCommand
    ) -> list[tuple[str, Problem | Step]]:
        """``(plugin, Problem or Step)`` pairs in the order of asking."""
        arguments = {"instance": instance, "root": root, "command": command}
        return self._contributed("chrootfw_pre_start", arguments, (Problem, Step), instance)

    def who_checks(self) -> list[str]:
        """The plugins that are asked before a start, in order."""
        return [plugin for plugin, _ in self._calls("chrootfw_pre_start", {})]

    def _contributed(
        self, hook: str, arguments: Mapping[str, Any], types: type | tuple[type, ...], instance: Instance | None
    ) -> list[tuple[str, Any]]:
        answers: list[tuple[str, Any]] = []
        for plugin, call in self._calls(hook, arguments):
            answer = self._call(plugin, hook, instance, call)
            if answer is None:
                continue
            if not isinstance(answer, list | tuple):
                raise self._error(
                    plugin, hook, instance, f"answered {_shown(answer)}; expected a list of {_names(types)}, or None"
                )
            for item in answer:
                if not isinstance(item, types):
                    raise self._error(
                        plugin, hook, instance, f"answered with {_shown(item)} in its list; expected {_names(types)}"
                    )
                answers.append((plugin, item))
        return answers

    # -- decide -------------------------------------------------------------------------------------

    def init_script(self, instance: Instance, action: str, *, lenient: bool = False) -> tuple[str, Command | NoCommand]:
        """Who answered, and the command for ``start`` or ``stop``."""

        def check(answer: Any) -> str | None:
            return None if isinstance(answer, Command | NoCommand) else "expected a Command or NO_COMMAND"

        return self._decided("chrootfw_init_script", {"instance": instance, "action": action}, check, instance, lenient)

    def enter(self, instance: Instance, command: Command, *, lenient: bool = False) -> tuple[str, Entry]:
        """Who answered, and how a process gets inside."""

        def check(answer: Any) -> str | None:
            return None if isinstance(answer, Entry) else "expected an Entry"

        return self._decided("chrootfw_enter", {"instance": instance, "command": command}, check, instance, lenient)

    def kill_strategy(
        self, instance: Instance, processes: Sequence[Process], *, force: bool, timeout: float | None
    ) -> tuple[str, list[Escalation]]:
        """Who answered, and the escalations to carry out; with ``force`` KILL is the last. Never fatal."""

        def check(answer: Any) -> str | None:
            return kill_plan.check(answer, [process.pid for process in processes])

        plugin, answer = self._decided(
            "chrootfw_kill_strategy",
            {"instance": instance, "processes": tuple(processes), "force": force, "timeout": timeout},
            check, instance, True,
        )  # fmt: skip
        return plugin, kill_plan.complete(answer, force=force)

    def unmount_ordering(self, instance: Instance, mounts: Sequence[Mount]) -> tuple[str, list[Mount]]:
        """Who answered, and a children-first permutation of ``mounts``. Never fatal."""

        def check(answer: Any) -> str | None:
            if not isinstance(answer, list | tuple):
                return "expected the mounts in a list"
            for item in answer:
                if not isinstance(item, Mount):
                    return f"expected Mount values, found {_shown(item)}"
            return mount_order.check_unmount_order(mounts, answer)

        plugin, answer = self._decided(
            "chrootfw_unmount_ordering", {"instance": instance, "mounts": tuple(mounts)}, check, instance, True
        )
        return plugin, list(answer)

    def _decided(
        self,
        hook: str,
        arguments: Mapping[str, Any],
        check: Callable[[Any], str | None],
        instance: Instance,
        lenient: bool,
    ) -> tuple[str, Any]:
        """The first answer that is not ``None`` and right. ``lenient``: a wrong one is blamed, the next is asked."""
        guilty: set[str] = set()
        while True:
            plugin, answer = "", None
            try:
                for plugin, call in self._calls(hook, arguments):
                    if plugin in guilty:
                        continue
                    answer = self._call(plugin, hook, instance, call)
                    if answer is not None:
                        break
                if answer is not None:
                    self._checked(plugin, hook, instance, answer, check)
                plugin, answer = self._wrapped(hook, arguments, plugin, answer, instance, check, guilty)
                if answer is None:
                    raise PluginError(
                        f"no plugin answered {hook} for {instance.name}; expected {_expected(hook)}",
                        hint="the defaults answer it; are they disabled?",
                        hook=hook,
                    )
                return plugin, answer
            except PluginError as error:
                if not lenient or not error.plugin or error.plugin in guilty:
                    raise
                self.blame(error, instance)
                guilty.add(error.plugin)

    def _checked(
        self, plugin: str, hook: str, instance: Instance, answer: Any, check: Callable[[Any], str | None]
    ) -> None:
        wrong = self._call(plugin, hook, instance, lambda: check(answer))
        if wrong is not None:
            raise self._error(plugin, hook, instance, f"answered {_shown(answer)}: {wrong}")

    def _wrapped(
        self,
        hook: str,
        arguments: Mapping[str, Any],
        plugin: str,
        answer: Any,
        instance: Instance,
        check: Callable[[Any], str | None],
        guilty: set[str],
    ) -> tuple[str, Any]:
        """Let the wrappers of a *decide* hook see, and perhaps replace, the answer: the innermost first.

        Each gets a copy and is checked alone, so that its mistake is never blamed on who answered.
        """
        for name, wrap in reversed(self._calls(hook, arguments, wrappers=True)):
            if name in guilty:
                continue
            given = list(answer) if isinstance(answer, list) else answer
            replaced = self._call(name, hook, instance, partial(_through, wrap, given))
            if replaced is given and replaced == answer:
                continue
            if replaced is None:
                raise self._error(
                    name, hook, instance, "turned the answer into None; a wrapper ends with return (yield)"
                )
            self._checked(name, hook, instance, replaced, check)
            plugin, answer = name, replaced
        return plugin, answer

    def who_answers(self, instance: Instance) -> list[tuple[str, str, str]]:
        """``(stage, hook, plugin)``: who would answer each stage of an instance."""
        rows = [("mount", f"mount {point.target}", plugin) for plugin, point in self.mount(instance)]
        rows += [("pre-start", "pre_start", plugin) for plugin in self.who_checks()]
        for action in ("start", "stop"):
            rows.append((f"init-{action}", "init_script", self.init_script(instance, action)[0]))
        rows.append(("enter", "enter", self.enter(instance, Command(("/bin/sh",)))[0]))
        rows.append(("kill", "kill_strategy", self.kill_strategy(instance, (), force=False, timeout=None)[0]))
        rows.append(("unmount", "unmount_ordering", self.unmount_ordering(instance, ())[0]))
        return rows

    # -- surround, observe --------------------------------------------------------------------------

    def around(self, instance: Instance, stage: Stage, body: Callable[[], T], *, lenient: bool = False) -> T:
        """Run ``body`` inside the wrappers of ``around_stage``; their result does not count, the body's does.

        ``lenient``: a wrapper that fails is blamed, and the body runs all the same, once.
        """
        hook = "chrootfw_around_stage"
        entered: list[tuple[str, Generator[None, Any, Any]]] = []
        results: list[T] = []
        failure: BaseException | None = None
        try:
            for plugin, wrap in self._calls(hook, {"instance": instance, "stage": stage}, wrappers=True):
                generator = wrap()
                try:
                    self._call(plugin, hook, instance, partial(_enter, generator))
                except PluginError as error:
                    if not lenient:
                        raise
                    self.blame(error, instance)
                else:
                    entered.append((plugin, generator))
            results.append(body())
        except BaseException as error:
            failure = error
        for plugin, generator in reversed(entered):
            try:
                self._call(plugin, hook, instance, partial(_leave, generator, failure))
            except PluginError as error:
                if lenient or failure is not None:
                    self.blame(error, instance)
                else:
                    failure = error
            except BaseException as error:
                failure = failure or error
        try:
            if failure is not None:
                raise failure  # a wrapper may have swallowed it: a failed stage stays failed
            return results[0]
        finally:
            failure = None  # no cycle with its traceback

    def event(self, event: Event) -> None:
        """Tell every observer; what one raises is logged with blame."""
        for plugin, call in self._calls("chrootfw_event", {"event": event}):
            try:
                self._call(plugin, "chrootfw_event", None, call)
            except PluginError as error:  # an observer cannot break the run
                log.warning("%s", error)
            except Interrupted as error:
                log.warning("%s", self._raised(plugin, "chrootfw_event", None, error))

    def blame(self, error: PluginError, instance: Instance) -> None:
        """Say that a plugin did wrong and that the run goes on without it."""
        self.tell(Event("blame", instance.name, "", error.brief, plugin=error.plugin, error=str(error)))

    # -- calling ------------------------------------------------------------------------------------

    def _calls(
        self, hook: str, arguments: Mapping[str, Any], *, wrappers: bool = False
    ) -> list[tuple[str, Callable[[], Any]]]:
        """``(plugin name, call)`` in the order of asking, of the implementations, or of the wrappers: the outermost first.

        pluggy itself does not say who answered, and stops at the first exception; hence one by one.
        """
        found = reversed(getattr(self.registry.manager.hook, hook).get_hookimpls())
        return [
            (i.plugin_name, partial(_called, i, arguments))
            for i in found
            if i.wrapper == wrappers and i.plugin_name not in self._overdue
        ]

    def _call(self, plugin: str, hook: str, instance: Instance | None, call: Callable[[], Any]) -> Any:
        try:
            answer = call() if self.registry.record(plugin).ours else within(self.hook_timeout, call)
        except Interrupted:
            raise
        except Overdue as error:
            self._overdue.add(plugin)
            raise self._error(
                plugin,
                hook,
                instance,
                f"{error}, and is not asked again; expected {_expected(hook)}",
            ) from None
        except (Exception, SystemExit) as error:
            raise self._raised(plugin, hook, instance, error) from error
        if inspect.iscoroutine(answer):
            answer.close()
            raise self._error(
                plugin,
                hook,
                instance,
                f"answered with a coroutine; hooks are plain functions; expected {_expected(hook)}",
            )
        return answer

    def _who(self, plugin: str) -> str:
        return self.registry.record(plugin).describe() if plugin else "a plugin"

    def _raised(self, plugin: str, hook: str, instance: Instance | None, error: BaseException) -> PluginError:
        brief = f"{type(error).__name__}: {getattr(error, 'brief', error)}"
        return self._error(
            plugin,
            hook,
            instance,
            f"raised {brief.rstrip('.')}; expected {_expected(hook)}",
            where(error),
        )

    def _error(
        self, plugin: str, hook: str, instance: Instance | None, what: str, details: Collection[str] = ()
    ) -> PluginError:
        where = f" for {instance.name}" if instance is not None else ""
        return PluginError(
            f"{self._who(plugin)}: {hook}{where} {what}",
            details,
            f"report it to the plugin's author; --without {plugin} leaves it out",
            plugin=plugin,
            hook=hook,
        )


def _expected(hook: str) -> str:
    return EXPECTED.get(hook, _EXPECTED_OF_CHECK)


def _called(implementation: pluggy.HookImpl, arguments: Mapping[str, Any]) -> Any:
    """Call an implementation as pluggy does: with the arguments that it names, those with a default by keyword."""
    named = {name: arguments[name] for name in implementation.kwargnames if name in arguments}
    return implementation.function(*(arguments[name] for name in implementation.argnames), **named)


def _through(wrap: Callable[[], Generator[None, Any, Any]], answer: Any) -> Any:
    """What one wrapper makes of an answer."""
    generator = wrap()
    _enter(generator)
    try:
        generator.send(answer)
    except StopIteration as end:
        return end.value
    generator.close()
    raise RuntimeError("the wrapper yields more than once")


def _enter(generator: Generator[None, Any, Any]) -> None:
    try:
        next(generator)
    except StopIteration:
        raise RuntimeError("the wrapper did not yield") from None


def _leave(generator: Generator[None, Any, Any], failure: BaseException | None) -> None:
    """Let a wrapper see the end of what it surrounds; that it passes ``failure`` on, or swallows it, is all the same."""
    try:
        if failure is None:
            generator.send(None)
        else:
            generator.throw(failure)
    except StopIteration:
        return
    except BaseException as error:
        if error is failure:
            return
        raise
    finally:
        failure = None  # no cycle with its traceback, which this frame is in
    generator.close()
    raise RuntimeError("the wrapper yields more than once")


def _shown(value: object) -> str:
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mount) for item in value):
        return f"[{', '.join(item.target for item in value)}]"
    try:
        text = repr(value)
    except Exception:  # blame must be told whatever the answer is
        text = object.__repr__(value)
    return text if len(text) <= 200 else text[:197] + "…"


def _names(types: type | tuple[type, ...]) -> str:
    return " or ".join(t.__name__ for t in (types if isinstance(types, tuple) else (types,)))


__all__ = ["PluginRecord", "Stages"]
