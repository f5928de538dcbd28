"""Offer the verbs to programs: everything that can be done to instances, from Python."""

from __future__ import annotations

import builtins
import copy
import inspect
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
from itertools import chain
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

import attrs

from chrootfw import config
from chrootfw.cancellation import Cancellation
from chrootfw.errors import (
    ChrootfwError,
    InputError,
    Interrupted,
    NotFoundError,
    PluginLoadError,
    PrivilegeError,
    StepError,
)
from chrootfw.hooks.registry import PluginRecord, Registry, check_sequence
from chrootfw.hooks.time_limits import HOOK_TIMEOUT, PluginCalls
from chrootfw.lifecycle import cleanup, output, plan, reboot, start, stop
from chrootfw.lifecycle.resolve import Resolver, name_of
from chrootfw.linux.descriptors import SHORT
from chrootfw.model import Event, Instance, Parameter, Plan
from chrootfw.planning import paths, transitions
from chrootfw.planning.ids import check_seconds
from chrootfw.planning.printable import printable_text
from chrootfw.state import output_log, record, show
from chrootfw.state.snapshot import read_instance
from chrootfw.views import (
    Check,
    EffectiveParameters,
    InstanceInfo,
    InstanceState,
    NodeInfo,
    Process,
)

if TYPE_CHECKING:
    import subprocess

_log = logging.getLogger("chrootfw")

RUN_DIR = "/run/chrootfw"
CONFIG_DIR = "/etc/chrootfw"
LOG_DIR = output_log.LOG_DIR


@contextmanager
def _explain_missing_rights() -> Iterator[None]:
    """Add the missing right (capabilities(7)) to an error about a refusal of the kernel."""
    try:
        yield
    except ChrootfwError as error:
        from chrootfw.linux import capabilities

        capabilities.explain(error)
        raise


P = ParamSpec("P")
T = TypeVar("T")


def _name_os_errors(
    method: Callable[Concatenate[Runtime, P], T],
) -> Callable[Concatenate[Runtime, P], T]:
    """Decorate a verb: make a ``StepError`` of an ``OSError`` that no layer below explained.

    An example is that descriptors are used up (EMFILE).
    """

    @wraps(method)
    def named(self: Runtime, /, *args: P.args, **named: P.kwargs) -> T:
        try:
            return method(self, *args, **named)
        except OSError as error:
            verb = {"cleanup": "clean up", "logs": "read the log of"}
            what = " ".join(
                [
                    verb.get(method.__name__, method.__name__),
                    *(name_of(arg) for arg in args[:1] if isinstance(arg, Instance | str)),
                ]
            )
            where = (
                f": {os.fsdecode(error.filename)}"
                if isinstance(error.filename, str | bytes)
                else ""
            )
            hint = "run it with sudo, or as root" if _is_for_root(error) else ""
            if error.errno in SHORT:
                hint = "raise the limit of open files (ulimit -n), or end what uses so many"
            raise StepError(
                f"cannot {what.replace('_', ' ')}: {error.strerror or error}{where}",
                getattr(error, "__notes__", ()),
                hint,
            ) from error

    return named


class Runtime:
    """chrootfw for programs.

    A runtime keeps no state of instances; it may be used from several threads.

    Args:
        plugins: Objects, modules or classes whose hooks are called before all others, the last one
            first.
        defaults: Use the default plugins.
        discover: Use the installed plugins (entry points ``chrootfw``).
        without: Names of plugins to leave out; with ``discover`` those of ``_node.toml`` too.
        instance_plugins: Use the plugins that an instance names in ``plugins``.
        run_dir: An absolute path; ``CHROOTFW_RUN_DIR`` or ``/run/chrootfw`` when not given.
        config_dir: An absolute path; ``CHROOTFW_CONFIG_DIR`` or ``/etc/chrootfw`` when not given.
        log_dir: An absolute path; ``CHROOTFW_LOG_DIR`` or ``/var/log/chrootfw`` when not given.
        lock_timeout: Seconds to wait for another command.
        hook_timeout: Seconds for each answer of a plugin that is not chrootfw's own. With
            ``isolate_plugins`` the limit, else the moment of a warning.
        on_event: Called with every ``Event``.
        cancellation: A way to ask running verbs to end.
        isolate_plugins: Call the code of plugins (imports, classes, hooks, checks, Steps) in a
            worker thread, which is left behind when a call does not come back in time. Otherwise it
            is called in the caller's thread and context, as pluggy does.

    Raises:
        PluginLoadError: A plugin object breaks the rules.
        InputError: An argument is not valid.
    """

    def __init__(
        self,
        plugins: Sequence[object] = (),
        *,
        defaults: bool = True,
        discover: bool = False,
        without: Iterable[str] = (),
        instance_plugins: bool = True,
        run_dir: str | os.PathLike[str] | None = None,
        config_dir: str | os.PathLike[str] | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        lock_timeout: float = 10.0,
        hook_timeout: float = HOOK_TIMEOUT,
        on_event: Callable[[Event], None] | None = None,
        cancellation: Cancellation | None = None,
        isolate_plugins: bool = False,
    ) -> None:
        self.run_dir = os.fspath(run_dir or os.environ.get("CHROOTFW_RUN_DIR") or RUN_DIR)
        self.config_dir = os.fspath(
            config_dir or os.environ.get("CHROOTFW_CONFIG_DIR") or CONFIG_DIR
        )
        self.log_dir = os.fspath(log_dir or os.environ.get("CHROOTFW_LOG_DIR") or LOG_DIR)
        self.lock_timeout = check_seconds(lock_timeout, "lock_timeout")
        self.hook_timeout = check_seconds(hook_timeout, "hook_timeout", least=0.001)
        self.on_event = _check_callback(on_event)
        self.cancellation = _check_cancellation(cancellation)
        self.isolate_plugins = isolate_plugins
        paths.check_absolute(self.run_dir, what="the run directory")
        paths.check_absolute(self.config_dir, what="the configuration directory")
        paths.check_absolute(self.log_dir, what="the directory of the logs")
        self._spare_calls: builtins.list[PluginCalls] = []
        self._stuck_modules: set[str] = set()
        left_out, failures = self._left_out_here() if discover else ((), ())
        self._registry = Registry(
            plugins,
            defaults=defaults,
            discover=discover,
            without=(*check_sequence(without, "without", "names of plugins"), *left_out),
            takes_named=instance_plugins,
            known_failures=failures,
            calls=self._make_calls(),
            timeout=self.hook_timeout,
        )
        calls, self._registry.calls = self._registry.calls, self._make_calls()
        if isolate_plugins:
            # The first verb goes on in the thread in which the plugins were made.
            self._spare_calls.append(calls)
        del calls  # ends its thread
        for text in (*self._registry.warnings, *self._registry.find_unknown_names()):
            self._report(Event("warning", "", "", text))

    def _left_out_here(self) -> tuple[tuple[str, ...], tuple[PluginLoadError, ...]]:
        """Return the plugins that ``_node.toml`` leaves out, and the failure to read that file.

        A failure blocks a start, but no other verb.
        """
        try:
            return config.blocked_plugins(self.config_dir), ()
        except ChrootfwError as error:
            return (), (PluginLoadError(error.brief, error.details, error.hint),)

    def with_plugins(self, *plugins: object) -> Runtime:
        """Return a new runtime with more plugin objects, which are called before the others."""
        old = self._registry
        return Runtime(
            (*old.objects, *plugins),
            defaults=old.defaults,
            discover=old.discover,
            without=old.without,
            instance_plugins=old.takes_named,
            run_dir=self.run_dir,
            config_dir=self.config_dir,
            log_dir=self.log_dir,
            lock_timeout=self.lock_timeout,
            hook_timeout=self.hook_timeout,
            on_event=self.on_event,
            cancellation=self.cancellation,
            isolate_plugins=self.isolate_plugins,
        )

    def with_options(
        self,
        *,
        on_event: Callable[[Event], None] | None = None,
        cancellation: Cancellation | None = None,
    ) -> Runtime:
        """Return this runtime for one call, with what belongs to that call alone.

        It has the same plugins and settings, and costs next to nothing.

        Args:
            on_event: Called with every ``Event``, in place of this runtime's.
            cancellation: Asks its verbs to end, in place of this runtime's.

        Raises:
            InputError: An argument is not valid.
        """
        one = copy.copy(self)
        if on_event is not None:
            one.on_event = _check_callback(on_event)
        if cancellation is not None:
            one.cancellation = _check_cancellation(cancellation)
        one._spare_calls = []  # noqa: SLF001  # those report to this runtime, and heed its cancellation
        return one

    # -- the life cycle ----------------------------------------------------------------------------

    @_name_os_errors
    @_explain_missing_rights()
    def start(self, instance: Instance | str, *, definition: str | None = None) -> InstanceInfo:
        """Mount, check the root, run the init script with ``start``.

        Args:
            instance: What to start; a name loads its definition.
            definition: The text of the definition that an ``Instance`` was made from; ``info`` says
                later whether that has changed.

        Raises:
            ChrootfwError: ``NotFoundError``, ``InputError``, ``PluginError``, ``TransitionError``,
                ``DiskError``, ``PreStartError``, ``ScriptError`` … A start that fails has undone
                what it did.
        """
        _need_root("start")
        with self._resolver.lock_wanted(instance) as wanted:
            start.start(
                wanted.job,
                definition=wanted.definition if definition is None else definition,
                lock_disk=wanted.lock_disk,
            )
        return show.show(wanted.job.read_snapshot(), wanted.job.name)

    @_name_os_errors
    @_explain_missing_rights()
    def stop(
        self,
        instance: Instance | str,
        *,
        force: bool = False,
        timeout: float | None = None,
        run_script: bool | None = None,
        keep_mounted: bool = False,
        kill_holders: bool = False,
    ) -> InstanceInfo:
        """Run the init script with ``stop``, kill, unmount, prove that nothing is left.

        Do nothing if the instance is not present.

        Args:
            instance: What to stop.
            force: Run no script, and send SIGKILL at once.
            timeout: The grace period in seconds, in place of the instance's own.
            run_script: ``False`` never, ``True`` also again, ``None`` once.
            keep_mounted: End the processes only.
            kill_holders: Signal outside holders too if they keep the instance busy.

        Raises:
            NotFoundError: The name is neither present nor defined.
            SurvivorError: A process is still running after the last signal.
            HeldError: A mount or a disk is in use.
            StepError: Something could not be undone or removed.
            Interrupted: An end was requested.
        """
        _need_root("stop")
        if timeout is not None:
            check_seconds(timeout, "the timeout")
        with self._resolver.lock_present(instance, "stop") as job:
            if job is not None:
                stop.stop(
                    job,
                    force=force,
                    timeout=timeout,
                    run_script=run_script,
                    keep_mounted=keep_mounted,
                    kill_holders=kill_holders,
                )
        return self._shown(instance)

    @_name_os_errors
    @_explain_missing_rights()
    def cleanup(self, instance: Instance | str, *, forget: bool = False) -> InstanceInfo:
        """Unmount and release an instance that is ``mounted`` or ``held``.

        Args:
            instance: The instance, or its name.
            forget: Give up the Steps that cannot be undone, with a warning for each that names
                what is left. What is still mounted or in use is not given up.

        Returns:
            The instance as it is afterwards.

        Raises:
            TransitionError: The instance is running.
            ChrootfwError: As ``stop`` raises.
        """
        _need_root("clean up")
        with self._resolver.lock_present(instance, "cleanup", gives_up=forget) as job:
            if job is not None:
                cleanup.cleanup(job)
        return self._shown(instance)

    @_name_os_errors
    @_explain_missing_rights()
    def reboot(self, instance: Instance | str) -> InstanceInfo:
        """End the processes and start again; the root stays mounted.

        ``/run`` and ``/dev/shm`` inside are fresh. What can be checked is checked first.

        Raises:
            TransitionError: The instance is neither running nor mounted.
            ChrootfwError: As ``start`` and ``stop`` raise. If a check finds the reason, the
                service is still running.
        """
        _need_root("reboot")
        with self._resolver.lock_present(instance, "reboot") as job:
            if job is None:
                transitions.check("reboot", name_of(instance), InstanceState.ABSENT)
                raise AssertionError("the line above raises")
            reboot.reboot(job)
        return self._shown(instance)

    @contextmanager
    def running(self, instance: Instance | str) -> Iterator[Chroot]:
        """Start, yield a ``Chroot``, and stop at the end of the ``with`` block, error or not.

        An instance that was stopped meanwhile stays so.

        Raises:
            ChrootfwError: As ``start`` and ``stop`` raise. If the block raises, the failure of the
                stop is logged and added to that exception as a note.
        """
        info = self.start(instance)
        try:
            yield Chroot(self, info.name)
        except BaseException as failure:
            try:
                self._stop_if_known(info.name)
            except ChrootfwError as second:
                _log.error("stopping %s after a failure: %s", info.name, printable_text(second))
                failure.add_note(f"and stopping {info.name} failed: {second}")
            raise
        self._stop_if_known(info.name)

    def _stop_if_known(self, name: str) -> None:
        """Stop an instance; do nothing if it was stopped, and has no definition."""
        with self.cancellation.shield(), suppress(NotFoundError):
            self.stop(name)

    # -- what there is -----------------------------------------------------------------------------

    @_name_os_errors
    def list(self) -> builtins.list[InstanceInfo]:
        """Return every instance, present or defined, sorted by name, in one pass."""
        return show.show_all(self.run_dir, self.config_dir)

    @_name_os_errors
    def info(self, name: Instance | str) -> InstanceInfo:
        """Return one instance in full, with its mounts and holders.

        Raises:
            NotFoundError: The name is neither present nor defined.
        """
        self._revive_logger(name_of(name))
        return show.show_one(self.run_dir, self.config_dir, name_of(name))

    @_name_os_errors
    @_explain_missing_rights()
    def logs(
        self,
        name: Instance | str,
        *,
        script: Literal["start", "stop"] | None = None,
        lines: int | None = None,
        follow: bool = False,
    ) -> Iterator[bytes]:
        """Read what an instance printed; it need not exist any more.

        A logger that was killed is started again first.

        Args:
            name: The instance, or its name.
            script: ``start`` or ``stop`` for the last run of the init script alone.
            lines: How many lines, the last ones; ``None`` for all.
            follow: Go on with what is printed from now on, without an end.

        Returns:
            The lines, without their ends. They are what processes of the instance wrote, byte for
            byte: escape them before a terminal gets them.

        Raises:
            NotFoundError: Nothing was kept.
            InputError: An argument is not valid.
            StepError: The log cannot be read.
        """
        name = name_of(name)
        paths.check_name(name)
        if script not in (None, *output_log.ACTIONS):
            raise InputError(f"script is {script!r}; it must be start or stop")
        if script is not None and follow:
            raise InputError("the output of one run of the init script has no more to come")
        if lines is not None and (type(lines) is not int or lines < 0):
            raise InputError(f"lines is {lines!r}; it must be a whole number, 0 or more")
        self._revive_logger(name)
        found = _explain_unread(name, output_log.read_lines(
            self.log_dir, name, script=script, last=lines, follow=follow,
            check=self.cancellation.check,
        ))  # fmt: skip
        first = next(found, None)  # an error is raised here, not when the lines are wanted
        return found if first is None else chain((first,), found)

    @_name_os_errors
    def processes(self, name: Instance | str) -> builtins.list[Process]:
        """Return the instance's own processes and its holders.

        Raises:
            NotFoundError: The name is neither present nor defined.
        """
        return show.all_processes(self.run_dir, self.config_dir, name_of(name))

    @_name_os_errors
    def node_info(self) -> NodeInfo:
        """Describe the machine: memory and disk space in MiB, CPUs, load, number of instances."""
        from chrootfw.state import node

        return node.info(self.run_dir, self.config_dir)

    def verify(self) -> builtins.list[Check]:
        """Check whether this machine is fit for chrootfw: a line for each check."""
        from chrootfw.state import verify

        return verify.checks(self.run_dir, self.config_dir, self._registry)

    def plugins(self) -> builtins.list[PluginRecord]:
        """Return the plugins in the order in which they are called."""
        return builtins.list(reversed(self._registry.records.values()))

    def plugins_left_out(self) -> builtins.list[PluginRecord]:
        """Return the plugins that were found, and left out by name."""
        return builtins.list(self._registry.left_out)

    def plugin_failures(self) -> builtins.list[PluginLoadError]:
        """Return the plugins that could not be loaded, and why."""
        return builtins.list(self._registry.failures)

    def who_answers(self, instance: Instance | str) -> builtins.list[tuple[str, str, str]]:
        """Return ``(stage, hook, plugin)`` for each plugin that would answer; touch nothing."""
        job = self._resolver.find(instance)
        return job.stages.who_answers(job.instance)

    def parameters(self, plugins: Sequence[str] = ()) -> builtins.list[tuple[str, Parameter]]:
        """Return ``(plugin, Parameter)`` pairs; the core's own have no plugin name.

        A parameter's check raises ``PluginError`` if it fails.
        """
        stages = self._resolver.make_dispatcher(self._registry.for_instance(plugins))
        declared = [
            (
                plugin,
                attrs.evolve(parameter, check=partial(stages.check_parameter, plugin, parameter)),
            )
            for plugin, parameter in stages.parameters()
        ]
        return [*(("", parameter) for parameter in config.CORE_PARAMETERS), *declared]

    @_name_os_errors
    def effective_parameters(self, instance: Instance | str) -> EffectiveParameters:
        """Return the parameters of an instance, and where the value of each comes from.

        They are those that it was started with, else those that a start would take; touch nothing.

        Raises:
            NotFoundError: The name is neither present nor defined.
            InputError: The definition, or a parameter, is not valid.
        """
        return self._resolver.explain_parameters(instance)

    def plan(
        self,
        verb: Literal["start", "stop", "reboot", "cleanup"],
        instance: Instance | str,
        **options: Any,
    ) -> Plan:
        """Return what a verb would do, and which plugin answered; touch nothing.

        Args:
            verb: The verb.
            instance: The instance; a name loads its definition for a start.
            options: For ``stop``: those of ``stop``.

        Raises:
            InputError: The verb cannot be planned, or does not have such an option.
            ChrootfwError: As the verb raises before it touches anything.
        """
        if verb not in ("start", "stop", "reboot", "cleanup"):
            raise InputError(
                f"{verb!r} cannot be planned", hint="plan start, stop, reboot or cleanup"
            )
        known = inspect.signature(Runtime.stop).parameters if verb == "stop" else ()
        for option in options:
            if option in ("self", "instance") or option not in known:
                raise InputError(f"a plan of {verb} has no option {option!r}")
        if options.get("timeout") is not None:
            check_seconds(options["timeout"], "the timeout")
        if verb == "start":
            steps = plan.plan_start(self._resolver.plan_wanted(instance))
        elif (present := self._resolver.plan_present(instance)) is None:
            transitions.check(verb, name_of(instance), InstanceState.ABSENT)
            steps = []
        elif verb == "stop":
            steps = plan.plan_stop(*present, **options)
        else:
            steps = (plan.plan_reboot if verb == "reboot" else plan.plan_cleanup)(*present)
        return Plan(verb, name_of(instance), tuple(steps))

    def run(
        self,
        instance: Instance | str,
        args: Sequence[str],
        *,
        input: str | bytes | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command inside, with the arguments and exceptions of ``subprocess.run``.

        Daemons that keep the output open are not waited for.

        Args:
            instance: Where to run it.
            args: The command, a list of words.
            input: As of ``subprocess.run``, like those up to ``errors``.
            stdin: A file, a descriptor, ``PIPE`` or ``DEVNULL``.
            stdout: Likewise.
            stderr: Likewise, or ``STDOUT``.
            capture_output: Return what the command writes.
            timeout: Seconds after which the command is killed.
            check: Raise ``CalledProcessError`` for a status that is not 0.
            text: Take and return ``str`` in place of ``bytes``.
            encoding: The encoding of text.
            errors: What to do with bytes that the encoding does not have.
            user: A name or number of the root's own /etc/passwd.
            env: Added to the clean environment.
            cwd: The working directory inside.

        Raises:
            OSError: The command cannot be run.
            subprocess.TimeoutExpired: It has not exited within ``timeout``; it is killed.
            subprocess.CalledProcessError: With ``check``, its status is not 0.
            ChrootfwError: The instance is not started, or an argument is not valid.
            Interrupted: An end was requested; the command is killed.
        """
        from chrootfw.lifecycle import run

        _need_root("run a command in an instance")
        return run.run(
            self.run_dir,
            self.config_dir,
            name_of(instance),
            args,
            cancellation=self.cancellation,
            input=input,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            capture_output=capture_output,
            timeout=timeout,
            check=check,
            text=text,
            encoding=encoding,
            errors=errors,
            user=user,
            env=env,
            cwd=cwd,
        )

    def instance(
        self, name: str, fields: Mapping[str, Any], params: Mapping[str, Any]
    ) -> tuple[Instance, str | None]:
        """Return an instance as defined, with some fields and parameters changed.

        Args:
            name: Its name.
            fields: New values of its disk, init script and plugins.
            params: New values of its parameters.

        Returns:
            The instance; the text of its definition, ``None`` where there is none.

        Raises:
            DefinitionError: The definition is not valid.
            InputError: A field or parameter is not valid.
            NotFoundError: There is neither a definition nor a disk.
        """
        return self._resolver.change_definition(name, fields, params)

    # -- the parts ---------------------------------------------------------------------------------

    @property
    def _resolver(self) -> Resolver:
        """The resolver of instances, with the settings as they are now."""
        return Resolver(
            run_dir=self.run_dir,
            config_dir=self.config_dir,
            log_dir=self.log_dir,
            registry=self._registry,
            lock_timeout=self.lock_timeout,
            hook_timeout=self.hook_timeout,
            cancellation=self.cancellation,
            report=self._report,
            calls=self._make_calls(),
        )

    def _revive_logger(self, name: str) -> None:
        paths.check_name(name)
        if warning := output.revive_logger(self.run_dir, name):
            self._report(Event("warning", name, "", warning))

    def _make_calls(self) -> PluginCalls:
        """Make what calls plugins' code for one verb."""
        try:
            return self._spare_calls.pop()
        except IndexError:
            pass
        calls = PluginCalls(
            is_isolated=self.isolate_plugins,
            check=self.cancellation.check,
            is_urgent=partial(_is_requested, self.cancellation),
            report_slow=partial(_report_slow, weakref.ref(self)),
        )
        calls.stuck_modules = self._stuck_modules
        return calls

    def _report(self, event: Event) -> None:
        """Log an event, and call ``on_event`` with it."""
        if event.what in ("warning", "plugin-error"):
            text = printable_text(event.error or event.does)
            about = f"{printable_text(event.instance)}: " if event.instance else ""
            _log.warning("%s%s", about, text)
        elif _log.isEnabledFor(logging.DEBUG):
            words = (event.instance, event.what, event.stage, event.does)
            _log.debug("%s: %s %s: %s", *map(printable_text, words))
        if self.on_event is not None:
            try:
                self.on_event(event)
            except (KeyboardInterrupt, Interrupted):  # they may be the user's
                raise
            except BaseException:
                _log.exception("the on_event callback failed")  # an observer cannot break a verb

    def _shown(self, instance: Instance | str) -> InstanceInfo:
        name = name_of(instance)
        return show.show(read_instance(self.run_dir, name), name)


class Chroot:
    """A started instance inside ``Runtime.running``."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self.runtime = runtime
        self.name = name

    @property
    def root(self) -> str:
        """The path of the instance's root on the host."""
        return record.root(os.path.realpath(self.runtime.run_dir), self.name)

    def run(self, args: Sequence[str], **how: Any) -> subprocess.CompletedProcess[Any]:
        """Run a command as ``Runtime.run`` does."""
        return self.runtime.run(self.name, args, **how)

    def info(self) -> InstanceInfo:
        """Return what ``Runtime.info`` does."""
        return self.runtime.info(self.name)


def _check_callback(
    on_event: Callable[[Event], None] | None,
) -> Callable[[Event], None] | None:
    """Return ``on_event``. Raises ``InputError`` if it cannot be called with an event."""
    if on_event is not None and not callable(on_event):
        raise InputError(f"on_event is {on_event!r:.60}; it must be a function, or None")
    method = getattr(type(on_event), "__call__", None)  # noqa: B004  # of an object
    if inspect.iscoroutinefunction(on_event) or inspect.iscoroutinefunction(method):
        raise InputError(
            "on_event is a coroutine function, which nothing awaits; it must be a plain function"
        )
    return on_event


def _check_cancellation(cancellation: Cancellation | None) -> Cancellation:
    """Return the cancellation, or a new one. Raises ``InputError``."""
    if cancellation is None:
        return Cancellation()
    if not isinstance(cancellation, Cancellation):
        raise InputError(
            f"cancellation is {cancellation!r:.60}; it must be a chrootfw.cancellation.Cancellation"
        )
    return cancellation


def _report_slow(runtime: weakref.ref[Runtime], plugin: str, what: str, clause: str) -> None:
    """Warn of a call of a plugin's code that takes long; called in another thread."""
    reporting = runtime()
    if reporting is not None:
        text = f"plugin {plugin}: {what} {clause}"
        reporting._report(Event("warning", "", "", text, plugin=plugin))  # noqa: SLF001


def _explain_unread(name: str, lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines of a log, which may be replaced while it is followed."""
    try:
        yield from lines
    except OSError as error:
        hint = "run it with sudo, or as root" if _is_for_root(error) else ""
        text = f"cannot read the log of {name}: {error.strerror or error}"
        raise StepError(text, hint=hint) from error


def _is_for_root(error: OSError) -> bool:
    return isinstance(error, PermissionError) and os.geteuid() != 0


def _is_requested(cancellation: Cancellation) -> bool:
    """Return whether an end was requested, whatever shields from it."""
    return cancellation.signum != 0


def _need_root(verb: str) -> None:
    if os.geteuid() != 0:
        raise PrivilegeError(
            f"only the root user can {verb}: chrootfw mounts file systems and signals processes",
            hint="run it with sudo, or as root",
        )
