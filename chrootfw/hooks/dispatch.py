"""Call every hook, check every answer, and attribute each error to its plugin.

In a start a bad answer is fatal (``PluginError``). In what stops an instance it is reported as a
plugin error, and the next
implementation is asked, down to the defaults: a bad plugin never keeps anyone from stopping.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from chrootfw import config
from chrootfw.errors import InputError, Interrupted, PluginError
from chrootfw.hooks.registry import PluginRecord, Registry, leave_out
from chrootfw.hooks.time_limits import (
    HOOK_TIMEOUT,
    Failure,
    HookTimeout,
    PluginCalls,
    WrongAnswer,
    describe_failure,
)
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
    always_right,
)
from chrootfw.planning import kill_plan, mount_order

if TYPE_CHECKING:
    from chrootfw.linux.root import Root
    from chrootfw.views import Process

T = TypeVar("T")
#: What each hook is expected to answer, for errors.
EXPECTED_ANSWERS = {
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
#: The stage of each hook whose answer a wrapper may replace.
_WRAPPED = (
    ("mount", "mount"),
    ("pre-start", "pre_start"),
    ("init-start", "init_script"),
    ("init-stop", "init_script"),
    ("enter", "enter"),
    ("kill", "kill_strategy"),
    ("unmount", "unmount_ordering"),
)
_EXPECTED_OF_CHECK = "None, or a sentence that says what is wrong"

#: Wrappers of plugins whose code was left behind: Python would run their clean-up, without a time
#: limit, as soon as nothing refers to them.
_abandoned: list[Generator[None, Any, Any]] = []


class Dispatcher:
    """Call the hooks of one registry, typed, for one verb.

    Args:
        registry: The plugins.
        report: Receives ``Event`` values (plugin errors).
        hook_timeout: Seconds for each answer of a plugin that is not chrootfw's own (float).
            Isolated, a plugin that once took longer is not called again.
        calls: Calls the plugins' code; ``None`` for that of the registry.
    """

    def __init__(
        self,
        registry: Registry,
        report: Callable[[Event], None],
        *,
        hook_timeout: float = HOOK_TIMEOUT,
        calls: PluginCalls | None = None,
    ) -> None:
        self.registry = registry
        self.report = report
        self.hook_timeout = hook_timeout
        self.calls = calls or registry.calls
        self._reported: set[str] = set()

    # -- contribute --------------------------------------------------------------------------------

    def parameters(self) -> list[tuple[str, Parameter]]:
        """Return ``(plugin, Parameter)`` pairs.

        Raises:
            PluginError: A plugin declares a name that is taken.
        """
        hook = "chrootfw_parameters"
        declared: dict[str, tuple[str, Parameter]] = {}
        for plugin, answer in reversed(self._contributed(hook, {}, Parameter, None)):
            taken = "which is chrootfw's own" if answer.name in config.OWN_NAMES else ""
            if answer.name in declared:
                taken = f"which {self._who(declared[answer.name][0])} declares too"
            if taken:
                raise self._error(
                    plugin, hook, None, f"declares the parameter {answer.name!r}, {taken}"
                )
            declared[answer.name] = (plugin, answer)
        return list(declared.values())

    def first_party_parameters(self) -> list[tuple[str, Parameter]]:
        """Return the ``(plugin, Parameter)`` pairs of chrootfw's own plugins; call no other."""
        return [
            (plugin, parameter)
            for plugin, call in self._calls("chrootfw_parameters", {})
            if self.registry.record(plugin).is_first_party
            for parameter in call()
        ]

    def check_parameter(self, plugin: str, parameter: Parameter, value: Any) -> str | None:
        """Call the check of a plugin's parameter like a hook.

        Args:
            plugin: The plugin's name.
            parameter: The parameter.
            value: A value of it.

        Returns:
            A sentence that says what is wrong, or ``None``.

        Raises:
            PluginError: The check fails, or answers with something else.
        """
        if parameter.check is always_right:
            return None

        def check() -> str | None:
            try:
                return parameter.check(value)
            except ValueError as error:
                return str(error)
            except InputError as error:
                return error.brief

        def examine(answer: Any) -> str | None:
            if answer is None or isinstance(answer, str):
                return answer
            raise WrongAnswer(f"answered {_shown(answer)}; expected {_EXPECTED_OF_CHECK}")

        wrong: str | None = self._call(
            plugin, f"the check of parameter {parameter.name}", None, check, examine
        )
        return wrong

    def mount(self, instance: Instance) -> list[tuple[str, MountPoint]]:
        """Return ``(plugin, MountPoint)`` pairs, merged, parents first.

        Answers that can have no effect are warned of.

        Raises:
            PlanError: There is not one root.
            PluginError: An answer is not valid.
        """
        answers = self._contributed(
            "chrootfw_mount", {"instance": instance}, (MountPoint, Omit), instance
        )
        points = mount_order.merge(
            answers, lambda plugin: f"{self._who(plugin)}: chrootfw_mount for {instance.name}"
        )
        for plugin, text in mount_order.find_idle(answers):
            warning = f"{self._who(plugin)} {text}"
            self.report(Event("warning", instance.name, "mount", warning, plugin=plugin))
        return points

    def pre_start(
        self, instance: Instance, root: Root | None, command: Command | NoCommand
    ) -> list[tuple[str, Problem | Step]]:
        """Return ``(plugin, Problem or Step)`` pairs in the order of the calls.

        Raises:
            PluginError: An answer is not valid.
        """
        arguments = {"instance": instance, "root": root, "command": command}
        return self._contributed("chrootfw_pre_start", arguments, (Problem, Step), instance)

    def who_checks(self) -> list[str]:
        """List the plugins that check the root before a start, in order.

        A first-party implementation that does not name ``root`` has answered a plan already.
        """
        found = reversed(self.registry.manager.hook.chrootfw_pre_start.get_hookimpls())
        return [
            each.plugin_name
            for each in found
            if each.plugin_name not in self.calls.timed_out
            and (
                "root" in each.argnames or not self.registry.record(each.plugin_name).is_first_party
            )
        ]

    def _contributed(
        self,
        hook: str,
        arguments: Mapping[str, Any],
        types: type | tuple[type, ...],
        instance: Instance | None,
    ) -> list[tuple[str, Any]]:
        def examine(answer: Any) -> list[Any]:
            if answer is None:
                return []
            if not isinstance(answer, list | tuple):
                raise WrongAnswer(
                    f"answered {_shown(answer)}; expected a list of {_names(types)}, or None"
                )
            for item in answer:
                if not isinstance(item, types):
                    raise WrongAnswer(
                        f"answered with {_shown(item)} in its list; expected {_names(types)}"
                    )
            return list(answer)

        return [
            (plugin, item)
            for plugin, call in self._calls(hook, arguments)
            for item in self._call(plugin, hook, instance, call, examine)
        ]

    # -- decide ------------------------------------------------------------------------------------

    def init_script(
        self, instance: Instance, action: str, *, report_errors: bool = False
    ) -> tuple[str, Command | NoCommand]:
        """Return the plugin that answered, and the command for ``start`` or ``stop``.

        Raises:
            PluginError: No answer is valid.
        """

        def check(answer: Any) -> str | None:
            if not isinstance(answer, Command | NoCommand):
                return "expected a Command or NO_COMMAND"
            if isinstance(answer, Command) and not answer.argv[0].startswith("/"):
                return (
                    f"it has the program {answer.argv[0]!r}; expected its absolute path in the root"
                )
            return None

        return self._decided(
            "chrootfw_init_script",
            {"instance": instance, "action": action},
            check,
            instance,
            report_errors,
        )

    def enter(
        self, instance: Instance, command: Command, *, report_errors: bool = False
    ) -> tuple[str, Entry]:
        """Return the plugin that answered, and how a process gets inside.

        Raises:
            PluginError: No answer is valid.
        """

        def check(answer: Any) -> str | None:
            return None if isinstance(answer, Entry) else "expected an Entry"

        return self._decided(
            "chrootfw_enter",
            {"instance": instance, "command": command},
            check,
            instance,
            report_errors,
        )

    def kill_strategy(
        self,
        instance: Instance,
        processes: Sequence[Process],
        *,
        force: bool,
        timeout: float | None,
    ) -> tuple[str, list[Escalation]]:
        """Return the plugin that answered, and its escalations; with ``force`` KILL is the last.

        A wrong answer is reported, and the next plugin is called.
        """

        def check(answer: Any) -> str | None:
            return kill_plan.check(answer, [process.pid for process in processes])

        plugin, answer = self._decided(
            "chrootfw_kill_strategy",
            {
                "instance": instance,
                "processes": tuple(processes),
                "force": force,
                "timeout": timeout,
            },
            check,
            instance,
            True,
        )
        return plugin, kill_plan.complete(answer, force=force)

    def unmount_ordering(
        self, instance: Instance, mounts: Sequence[Mount]
    ) -> tuple[str, list[Mount]]:
        """Return the plugin that answered, and ``mounts`` with children first.

        A wrong answer is reported, and the next plugin is called.
        """

        def check(answer: Any) -> str | None:
            if not isinstance(answer, list | tuple):
                return "expected the mounts in a list"
            for item in answer:
                if not isinstance(item, Mount):
                    return f"expected Mount values, found {_shown(item)}"
            return mount_order.check_unmount_order(mounts, answer)

        plugin, answer = self._decided(
            "chrootfw_unmount_ordering",
            {"instance": instance, "mounts": tuple(mounts)},
            check,
            instance,
            True,
        )
        return plugin, list(answer)

    def _decided(
        self,
        hook: str,
        arguments: Mapping[str, Any],
        check: Callable[[Any], str | None],
        instance: Instance,
        report_errors: bool,
    ) -> tuple[str, Any]:
        """Return the first answer that is not ``None`` and right.

        ``report_errors``: a wrong one is reported, the next plugin is called.
        """
        failed_plugins: set[str] = set()
        examine = partial(_examine, check)
        while True:
            plugin, answer = "", None
            try:
                for plugin, call in self._calls(hook, arguments):
                    if plugin in failed_plugins:
                        continue
                    answer = self._call(plugin, hook, instance, call, examine)
                    if answer is not None:
                        break
                plugin, answer = self._wrapped(
                    hook, arguments, plugin, answer, instance, check, failed_plugins
                )
                if answer is None:
                    raise PluginError(
                        f"no plugin answered {hook} for {instance.name}; expected "
                        f"{_expected(hook)}",
                        hint="the defaults answer it; are they disabled?",
                        hook=hook,
                    )
                return plugin, answer
            except PluginError as error:
                if not report_errors or not error.plugin or error.plugin in failed_plugins:
                    raise
                self.report_plugin_error(error, instance)
                failed_plugins.add(error.plugin)

    def _wrapped(
        self,
        hook: str,
        arguments: Mapping[str, Any],
        plugin: str,
        answer: Any,
        instance: Instance,
        check: Callable[[Any], str | None],
        failed_plugins: set[str],
    ) -> tuple[str, Any]:
        """Let wrappers of a *decide* hook, the innermost first, see and perhaps replace the answer.

        Each gets a copy and is checked alone, so that its mistake is never attributed to the
        plugin that answered.
        """
        for name, wrap in reversed(self._calls(hook, arguments, wrappers=True)):
            if name in failed_plugins:
                continue
            changed = self._call(
                name, hook, instance, partial(_through, wrap, answer), partial(_replaced, check)
            )
            if changed is not None:
                plugin, answer = name, changed
        return plugin, answer

    def who_answers(self, instance: Instance) -> list[tuple[str, str, str]]:
        """``(stage, hook, plugin)``: who would answer each stage of an instance."""
        rows = [
            ("mount", f"mount {point.target}", plugin) for plugin, point in self.mount(instance)
        ]
        rows += [("pre-start", "pre_start", plugin) for plugin in self.who_checks()]
        for action in ("start", "stop"):
            rows.append((f"init-{action}", "init_script", self.init_script(instance, action)[0]))
        rows.append(("enter", "enter", self.enter(instance, Command(("/bin/sh",)))[0]))
        rows.append(
            (
                "kill",
                "kill_strategy",
                self.kill_strategy(instance, (), force=False, timeout=None)[0],
            )
        )
        rows.append(("unmount", "unmount_ordering", self.unmount_ordering(instance, ())[0]))
        return [*rows, *self._who_surrounds()]

    def _who_surrounds(self) -> list[tuple[str, str, str]]:
        """``(stage, hook, plugin)`` of wrappers, which see an answer, and of observers."""
        rows = [
            (stage, f"{hook} (wrapper)", plugin)
            for stage, hook in _WRAPPED
            for plugin, _ in self._calls(f"chrootfw_{hook}", {}, wrappers=True)
        ]
        around = self._calls("chrootfw_around_stage", {}, wrappers=True)
        rows += [("every", "around_stage", plugin) for plugin, _ in around]
        return rows + [
            ("every", "event", plugin) for plugin, _ in self._calls("chrootfw_event", {})
        ]

    # -- surround, observe -------------------------------------------------------------------------

    def around(
        self,
        instance: Instance,
        stage: Stage,
        body: Callable[[], T],
        *,
        report_errors: bool = False,
    ) -> T:
        """Run a stage inside the wrappers of ``around_stage``.

        Args:
            instance: The instance.
            stage: The stage's name.
            body: The stage.
            report_errors: Report a wrapper that fails; the body runs all the same, once.

        Returns:
            The result of ``body``; those of the wrappers do not count.

        Raises:
            PluginError: A wrapper fails, unless errors are reported.
        """
        hook = "chrootfw_around_stage"
        entered: list[tuple[str, Generator[None, Any, Any]]] = []
        results: list[T] = []
        failure: BaseException | None = None
        try:
            for plugin, wrap in self._calls(
                hook, {"instance": instance, "stage": stage}, wrappers=True
            ):
                generator = wrap()
                try:
                    self._call(plugin, hook, instance, partial(_enter, generator))
                except PluginError as error:
                    if not report_errors:
                        raise
                    self.report_plugin_error(error, instance)
                else:
                    entered.append((plugin, generator))
            results.append(body())
        except BaseException as error:
            failure = error
        for plugin, generator in reversed(entered):
            if plugin in self.calls.timed_out:
                _abandoned.append(generator)
                continue
            try:
                self._call(plugin, hook, instance, partial(_leave, generator, failure))
            except PluginError as error:
                if report_errors or failure is not None:
                    self.report_plugin_error(error, instance)
                else:
                    failure = error
            except BaseException as error:  # KeyboardInterrupt, or a request to end
                failure = failure or error
        try:
            if failure is not None:
                raise failure  # a wrapper may have swallowed it: a failed stage stays failed
            return results[0]
        finally:
            failure = None  # no cycle with its traceback

    def event(self, event: Event) -> None:
        """Report to every observer.

        The first that one raises in a verb is reported, but not to the observers. A
        KeyboardInterrupt in the caller's thread is raised when all of them were called.
        """
        interrupt: KeyboardInterrupt | None = None
        for plugin, call in self._calls("chrootfw_event", {"event": event}):
            try:
                self._call(plugin, "chrootfw_event", None, call)
            except PluginError as error:  # an observer cannot break the run
                self._report_observer(error, event)
            except Interrupted:
                pass  # the core itself checks for a request
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _report_observer(self, error: PluginError, event: Event) -> None:
        if error.plugin not in self._reported:
            self._reported.add(error.plugin)
            self.report(_plugin_error_event(error, event.instance))

    def report_all(self, event: Event) -> None:
        """Report an event, then to every observer."""
        self.report(event)
        self.event(event)

    def report_plugin_error(self, error: PluginError, instance: Instance) -> None:
        """Say that a plugin did wrong and that the run goes on without it."""
        self.report_all(_plugin_error_event(error, instance.name))

    # -- calling -----------------------------------------------------------------------------------

    def _calls(
        self, hook: str, arguments: Mapping[str, Any], *, wrappers: bool = False
    ) -> list[tuple[str, Callable[[], Any]]]:
        """Return ``(plugin name, call)`` of implementations or wrappers, in order.

        The outermost wrapper is the first. pluggy itself does not say which plugin answered, and
        stops at the first exception; hence one by one.
        """
        found = reversed(getattr(self.registry.manager.hook, hook).get_hookimpls())
        return [
            (i.plugin_name, partial(_called, i, arguments, self._gets_copies(i.plugin_name)))
            for i in found
            if i.wrapper == wrappers and i.plugin_name not in self.calls.timed_out
        ]

    def _gets_copies(self, plugin: str) -> bool:
        return not self.registry.record(plugin).is_first_party

    def _call(
        self,
        plugin: str,
        hook: str,
        instance: Instance | None,
        call: Callable[[], Any],
        examine: Callable[[Any], Any] = lambda answer: answer,
    ) -> Any:
        """Call a plugin, and return what ``examine`` makes of its answer.

        What examines an answer runs where the plugin's code runs: to look at an answer may be to
        run code of the plugin's.
        """

        def ask() -> Any:
            answer = call()
            if inspect.iscoroutine(answer):
                answer.close()
                raise WrongAnswer(
                    "answered with a coroutine; hooks are plain functions; expected "
                    f"{_expected(hook)}"
                )
            return examine(answer)

        try:
            if self.registry.record(plugin).is_first_party:
                return ask()
            return self.calls.call(
                plugin,
                hook,
                ask,
                seconds=self.calls.limit(self.hook_timeout),
                module=self.registry.module(plugin),
            )
        except WrongAnswer as error:
            raise self._error(plugin, hook, instance, str(error)) from None
        except HookTimeout as error:
            raise self._error(
                plugin,
                hook,
                instance,
                f"{error}, and is not asked again; expected {_expected(hook)}",
            ) from None
        except Failure as failure:
            raise self._failed(plugin, hook, instance, failure) from failure.error
        except (KeyboardInterrupt, Interrupted) as error:
            if not self.calls.is_isolated and not self.registry.record(plugin).is_first_party:
                self._attribute(plugin, hook, instance, error)
            raise
        except (Exception, SystemExit) as error:
            raise self._raised(plugin, hook, instance, error) from error

    def _attribute(
        self, plugin: str, hook: str, instance: Instance | None, error: BaseException
    ) -> None:
        """Name the plugin in whose code an interrupt was raised, which may be the user's."""
        found = self._raised(plugin, hook, instance, error)
        error.add_note(found.brief)
        self.report(_plugin_error_event(found, instance.name if instance else ""))

    def _who(self, plugin: str) -> str:
        return self.registry.record(plugin).describe() if plugin else "a plugin"

    def _raised(
        self, plugin: str, hook: str, instance: Instance | None, error: BaseException
    ) -> PluginError:
        failure = describe_failure(error, self.registry.module(plugin))
        return self._failed(plugin, hook, instance, failure)

    def _failed(
        self, plugin: str, hook: str, instance: Instance | None, failure: Failure
    ) -> PluginError:
        error = self._error(
            plugin,
            hook,
            instance,
            f"raised {failure.text.rstrip('.')}; expected {_expected(hook)}",
            failure.details,
        )
        error.traceback = failure.traceback
        return error

    def _error(
        self,
        plugin: str,
        hook: str,
        instance: Instance | None,
        what: str,
        details: Collection[str] = (),
    ) -> PluginError:
        where = f" for {instance.name}" if instance is not None else ""
        return PluginError(
            f"{self._who(plugin)}: {hook}{where} {what}",
            details,
            leave_out(plugin, "report it to the plugin's author; "),
            plugin=plugin,
            hook=hook,
        )


def _plugin_error_event(error: PluginError, instance: str) -> Event:
    return Event("plugin-error", instance, "", error.brief, plugin=error.plugin, error=str(error))


def _expected(hook: str) -> str:
    return EXPECTED_ANSWERS.get(hook, _EXPECTED_OF_CHECK)


def _called(
    implementation: pluggy.HookImpl, arguments: Mapping[str, Any], gets_copies: bool
) -> Any:
    """Call an implementation as pluggy does: arguments with a default by keyword.

    A plugin of others gets copies of what it could change, for itself alone.
    """

    def given(name: str) -> Any:
        value = arguments[name]
        if gets_copies and isinstance(value, Instance | Command):
            return copy.deepcopy(value)
        return value

    named = {name: given(name) for name in implementation.kwargnames if name in arguments}
    return implementation.function(*(given(name) for name in implementation.argnames), **named)


def _examine(check: Callable[[Any], str | None], answer: Any) -> Any:
    """Return a *decide* hook's answer, a list as a copy. Raises ``WrongAnswer``."""
    if answer is None:
        return None
    wrong = check(answer)
    if wrong is not None:
        raise WrongAnswer(f"answered {_shown(answer)}: {wrong}")
    return list(answer) if isinstance(answer, list | tuple) else answer


def _replaced(check: Callable[[Any], str | None], ends: tuple[Any, Any, Any]) -> Any | None:
    """Return what a wrapper made of an answer, ``None`` if it left it as it was.

    Raises ``WrongAnswer``.
    """
    before, given, after = ends
    if after is given and after == before:
        return None
    if after is None:
        raise WrongAnswer("turned the answer into None; a wrapper ends with return (yield)")
    return _examine(check, after)


def _through(wrap: Callable[[], Generator[None, Any, Any]], answer: Any) -> tuple[Any, Any, Any]:
    """Return an answer, the copy of it that a wrapper is given, and what it makes of that."""
    given = list(answer) if isinstance(answer, list) else answer
    generator = wrap()
    _enter(generator)
    try:
        generator.send(given)
    except StopIteration as end:
        return answer, given, end.value
    generator.close()
    raise RuntimeError("the wrapper yields more than once")


def _enter(generator: Generator[None, Any, Any]) -> None:
    try:
        next(generator)
    except StopIteration:
        raise RuntimeError("the wrapper did not yield") from None


def _leave(generator: Generator[None, Any, Any], failure: BaseException | None) -> None:
    """Let a wrapper see the end of what it surrounds.

    Whether the wrapper passes ``failure`` on or swallows it makes no difference.
    """
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
    except BaseException:  # the error must be reported whatever the answer is
        text = object.__repr__(value)
    return text if len(text) <= 200 else text[:197] + "…"


def _names(types: type | tuple[type, ...]) -> str:
    return " or ".join(t.__name__ for t in (types if isinstance(types, tuple) else (types,)))


__all__ = ["Dispatcher", "PluginRecord"]
