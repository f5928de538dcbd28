"""The only caller of hooks: asks, checks every answer, and names the guilty plugin.

In a start a bad answer is fatal (``PluginError``). In what stops an instance it is reported with blame, and the next
implementation is asked, down to the defaults: a bad plugin never keeps anyone from stopping.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from chrootfw.errors import Interrupted, PluginError
from chrootfw.model import (
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
)
from chrootfw.planning import kill_plan, mount_order
from chrootfw.plugins import PluginRecord, Registry, blamed

if TYPE_CHECKING:
    from chrootfw.system.root import Root
    from chrootfw.views import Process

T = TypeVar("T")
log = logging.getLogger("chrootfw")


class Stages:
    """The hooks of one registry, typed. ``tell`` receives ``Event`` values (the blame)."""

    def __init__(self, registry: Registry, tell: Callable[[Event], None]) -> None:
        self.registry = registry
        self.tell = tell

    # -- contribute ---------------------------------------------------------------------------------

    def parameters(self) -> list[tuple[str, Parameter]]:
        """``(plugin, Parameter)`` pairs; a name declared twice is refused."""
        declared: dict[str, tuple[str, Parameter]] = {}
        for plugin, answer in reversed(self._contributed("chrootfw_parameters", {}, Parameter, None)):
            if answer.name in declared:
                raise self._error(
                    plugin, "chrootfw_parameters", None,
                    f"declares the parameter {answer.name!r}, which {self._who(declared[answer.name][0])} declares too",
                )  # fmt: skip
            declared[answer.name] = (plugin, answer)
        return list(declared.values())

    def mount(self, instance: Instance) -> list[tuple[str, MountPoint]]:
        """``(plugin, MountPoint)`` pairs, merged, parents first. Raises ``PlanError`` without one root."""
        answers = self._contributed("chrootfw_mount", {"instance": instance}, (MountPoint, Omit), instance)
        return mount_order.merge(answers)

    def pre_start(self, instance: Instance, root: Root | None) -> list[tuple[str, Problem | Step]]:
        """``(plugin, Problem or Step)`` pairs in the order of asking."""
        return self._contributed("chrootfw_pre_start", {"instance": instance, "root": root}, (Problem, Step), instance)

    def _contributed(
        self, hook: str, arguments: Mapping[str, Any], types: type | tuple[type, ...], instance: Instance | None
    ) -> list[tuple[str, Any]]:
        answers: list[tuple[str, Any]] = []
        for plugin, call in self._implementations(hook, arguments):
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
                for plugin, call in self._implementations(hook, arguments):
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
                        f"no plugin answered {hook} for {instance.name}",
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
        for wrapper in getattr(self.registry.manager.hook, hook).get_hookimpls():
            if not wrapper.wrapper or wrapper.plugin_name in guilty:
                continue
            name = wrapper.plugin_name
            given = list(answer) if isinstance(answer, list) else answer
            replaced = self._call(name, hook, instance, partial(_through, wrapper, arguments, given))
            if replaced is given and replaced == answer:
                continue
            if replaced is None:
                raise self._error(
                    name, hook, instance, "turned the answer into None; a wrapper ends with return (yield)"
                )
            self._checked(name, hook, instance, replaced, check)
            plugin, answer = name, replaced
        return plugin, answer

    # -- surround, observe --------------------------------------------------------------------------

    def around(self, instance: Instance, stage: Stage, body: Callable[[], T], *, lenient: bool = False) -> T:
        """Run ``body`` inside the wrappers of ``around_stage``; their result does not count, the body's does.

        ``lenient``: a wrapper that fails is blamed, and the body runs all the same, once.
        """
        caller = self.registry.manager.hook.chrootfw_around_stage
        if not caller.get_hookimpls():
            return body()
        results: list[T] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                results.append(body())
            except BaseException as error:
                failures.append(error)
                raise

        try:
            caller.call_extra([run], {"instance": instance, "stage": stage})
        except BaseException as error:
            if failures:
                raise failures[0]  # noqa: B904  # whatever the wrappers made of it; its own cause stays
            if not isinstance(error, Exception | SystemExit) or isinstance(error, Interrupted):
                raise
            blame = self._raised(blamed(error, self.registry), "chrootfw_around_stage", instance, error)
            if not lenient:
                raise blame from error
            self.blame(blame, instance)
        if failures:
            raise failures[0]  # a wrapper swallowed it: a failed stage stays failed
        if not results:
            if not lenient:
                raise PluginError(
                    f"a wrapper kept stage {stage} of {instance.name} from running", hook="chrootfw_around_stage"
                )
            return body()
        return results[0]

    def event(self, event: Event) -> None:
        """Tell every observer; what one raises is logged with blame."""
        for plugin, call in self._implementations("chrootfw_event", {"event": event}):
            try:
                call()
            except (Exception, SystemExit) as error:  # an observer can not break the run
                log.warning("%s: chrootfw_event raised %s: %s", self._who(plugin), type(error).__name__, error)

    def blame(self, error: PluginError, instance: Instance) -> None:
        """Say that a plugin did wrong and that the run goes on without it."""
        self.tell(Event("blame", instance.name, "", error.brief, plugin=error.plugin, error=str(error)))

    # -- calling ------------------------------------------------------------------------------------

    def _implementations(self, hook: str, arguments: Mapping[str, Any]) -> list[tuple[str, Callable[[], Any]]]:
        """``(plugin name, call)`` in the order of asking, wrappers left out.

        pluggy itself does not say who answered, and stops at the first exception; hence one by one.
        """
        caller = getattr(self.registry.manager.hook, hook)
        return [
            (i.plugin_name, partial(_called, i, arguments)) for i in reversed(caller.get_hookimpls()) if not i.wrapper
        ]

    def _call(self, plugin: str, hook: str, instance: Instance | None, call: Callable[[], Any]) -> Any:
        try:
            answer = call()
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:
            raise self._raised(plugin, hook, instance, error) from error
        if inspect.iscoroutine(answer):
            answer.close()
            raise self._error(plugin, hook, instance, "answered with a coroutine; hooks are plain functions")
        return answer

    def _who(self, plugin: str) -> str:
        return self.registry.record(plugin).describe() if plugin else "a plugin"

    def _raised(self, plugin: str, hook: str, instance: Instance | None, error: BaseException) -> PluginError:
        brief = getattr(error, "brief", None) or f"{type(error).__name__}: {error}"
        return self._error(plugin, hook, instance, f"raised {brief}")

    def _error(self, plugin: str, hook: str, instance: Instance | None, what: str) -> PluginError:
        where = f" for {instance.name}" if instance is not None else ""
        return PluginError(
            f"{self._who(plugin)}: {hook}{where} {what}",
            hint=f"report it to the plugin's author; --without {plugin} leaves it out" if plugin else "",
            plugin=plugin,
            hook=hook,
        )


def _called(implementation: pluggy.HookImpl, arguments: Mapping[str, Any]) -> Any:
    """Call an implementation as pluggy does: with the arguments that it names, those with a default by keyword."""
    named = {name: arguments[name] for name in implementation.kwargnames if name in arguments}
    return implementation.function(*(arguments[name] for name in implementation.argnames), **named)


def _through(wrapper: pluggy.HookImpl, arguments: Mapping[str, Any], answer: Any) -> Any:
    """What one wrapper makes of an answer."""
    generator = _called(wrapper, arguments)
    try:
        next(generator)
    except StopIteration:
        raise RuntimeError("the wrapper did not yield") from None
    try:
        generator.send(answer)
    except StopIteration as end:
        return end.value
    generator.close()
    raise RuntimeError("the wrapper yields more than once")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # blame must be told whatever the answer is
        text = object.__repr__(value)
    return text if len(text) <= 200 else text[:197] + "…"


def _names(types: type | tuple[type, ...]) -> str:
    return " or ".join(t.__name__ for t in (types if isinstance(types, tuple) else (types,)))


__all__ = ["PluginRecord", "Stages"]
