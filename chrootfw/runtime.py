"""The library: everything that can be done to instances, from Python."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import attrs

from chrootfw import config, entering, intents, inventory, log, mounting, starting, stopping
from chrootfw.errors import (
    ChrootfwError,
    DefinitionError,
    InputError,
    PluginLoadError,
    PrivilegeError,
    TrustError,
)
from chrootfw.hook_calls import HOOK_TIMEOUT
from chrootfw.interrupts import Interrupts
from chrootfw.jobs import Job
from chrootfw.model import FIELDS, Event, Instance, Parameter, Plan, PlannedStep, Stage
from chrootfw.planning import paths, transitions
from chrootfw.plugins import PluginRecord, Registry
from chrootfw.stages import Stages
from chrootfw.system import disks, store
from chrootfw.views import Check, InstanceInfo, InstanceState, NodeInfo, Process

if TYPE_CHECKING:
    import subprocess

RUN_DIR = "/run/chrootfw"
CONFIG_DIR = "/etc/chrootfw"


class Runtime:
    """chrootfw for programs.

    ``plugins``: objects, modules or classes whose hooks are asked before all others, the last one first. ``defaults``: with
    the default plugins. ``discover``: with the installed plugins (entry points ``chrootfw``). ``without``: names of plugins to leave out; with ``discover`` those of ``_node.toml`` too. ``instance_plugins``: with those that an instance names in ``plugins``.
    ``run_dir`` and ``config_dir``: absolute paths; ``CHROOTFW_RUN_DIR`` and ``CHROOTFW_CONFIG_DIR``, or ``/run/chrootfw`` and
    ``/etc/chrootfw``, when not given. ``lock_timeout``: seconds to wait for another command. ``hook_timeout``: seconds for each answer of a
    plugin that is not chrootfw's own; hooks are called in a thread of their own, which is left behind when it does not come back. ``on_event``: called with every
    ``Event``. ``interrupts``: a way to ask running verbs to end.

    Raises ``PluginLoadError`` for a plugin object that breaks the rules. A runtime keeps no state of instances; it may be used from
    several threads.
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
        lock_timeout: float = 10.0,
        hook_timeout: float = HOOK_TIMEOUT,
        on_event: Callable[[Event], None] | None = None,
        interrupts: Interrupts | None = None,
    ) -> None:
        self.run_dir = os.fspath(run_dir or os.environ.get("CHROOTFW_RUN_DIR") or RUN_DIR)
        self.config_dir = os.fspath(config_dir or os.environ.get("CHROOTFW_CONFIG_DIR") or CONFIG_DIR)
        self.lock_timeout = lock_timeout
        self.hook_timeout = hook_timeout
        self.on_event = on_event
        self.interrupts = interrupts or Interrupts()
        paths.check_absolute(self.run_dir, what="the run directory")
        paths.check_absolute(self.config_dir, what="the configuration directory")
        left_out, failures = self._left_out_here() if discover else ((), ())
        self._registry = Registry(
            plugins,
            defaults=defaults,
            discover=discover,
            without=(*without, *left_out),
            takes_named=instance_plugins,
            known_failures=failures,
        )

    def _left_out_here(self) -> tuple[tuple[str, ...], tuple[PluginLoadError, ...]]:
        """The plugins that ``_node.toml`` leaves out; that it cannot be read keeps from starting, and from nothing else."""
        try:
            return config.blocked_plugins(self.config_dir), ()
        except ChrootfwError as error:
            return (), (PluginLoadError(error.brief, error.details, error.hint),)

    def with_plugins(self, *plugins: object) -> Runtime:
        """A new runtime with more plugin objects, asked before the others."""
        old = self._registry
        return Runtime(
            (*old.objects, *plugins),
            defaults=old.defaults,
            discover=old.discover,
            without=old.without,
            instance_plugins=old.takes_named,
            run_dir=self.run_dir,
            config_dir=self.config_dir,
            lock_timeout=self.lock_timeout,
            hook_timeout=self.hook_timeout,
            on_event=self.on_event,
            interrupts=self.interrupts,
        )

    # -- the life cycle -----------------------------------------------------------------------------

    def start(self, instance: Instance | str, *, definition: str | None = None) -> InstanceInfo:
        """Mount, check, run the init script with ``start``. A name loads the definition.

        ``definition``: the text of the definition file that an ``Instance`` was made from, for telling later whether
        that has changed.

        Raises ``ChrootfwError``: ``NotFoundError``, ``InputError``, ``PluginError``, ``TransitionError``, ``DiskError``, ``PreStartError``,
        ``ScriptError`` … A start that fails has undone what it did.
        """
        _need_root("start")
        wanted, text = self._wanted(instance)
        registry = self._registry.for_instance(wanted.plugins)
        registry.check_loaded()
        job = self._job(self._resolve(wanted, registry, text), registry)
        if wanted.plugins and not registry.takes_named:
            job.warn("", f"{job.name} is started without the plugins that it names: {', '.join(wanted.plugins)}")
        store.prepare_run_dir(self.run_dir)
        with ExitStack() as locks:
            locks.enter_context(self._lock(job.name, "start"))
            job.intent = self._intent(job.name)
            survey = job.survey()
            self._check_here(job, survey)
            if job.intent and not intents.is_current(job.intent):
                self._forget_old_boot(job)
            if job.intent and job.intent["phase"] == "starting":
                job.warn("", f"an earlier start of {job.name} did not come to its end; it is undone first")
                starting.tear_down(job)
                survey = job.survey()
            state = survey.state(job.name, job.intent)
            transitions.check("start", job.name, state)
            answers = starting.ask(job)
            starting.start(
                job,
                state,
                answers,
                self._fresh_intent(job, answers, text if definition is None else definition),
                lambda disk: self._lock_disk(locks, disk, "start"),
            )
        return inventory.show(job.survey(), job.name)

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
        """Run the init script with ``stop``, end the processes, unmount, prove that nothing is left.

        ``force``: no script, KILL at once. ``timeout``: the grace period in seconds. ``run_script``: ``False`` never, ``True`` also again;
        ``None`` once. ``keep_mounted``: end the processes only. ``kill_holders``: signal outside holders too. Of what is absent: nothing to do.

        Raises ``NotFoundError``, ``HeldError``, ``SurvivorError``, ``StepError``, ``Interrupted``.
        """
        _need_root("stop")
        if timeout is not None and not 0 <= timeout <= 86_400:
            raise InputError(f"the timeout is {timeout!r}; it must be within 0 and 86400 seconds")
        with self._existing(instance, "stop") as job:
            if job is not None:
                stopping.stop(
                    job,
                    force=force,
                    timeout=timeout,
                    run_script=run_script,
                    keep_mounted=keep_mounted,
                    kill_holders=kill_holders,
                )
        return self._shown(instance)

    def cleanup(self, instance: Instance | str) -> InstanceInfo:
        """Unmount and release what is ``mounted`` or ``held``. Raises ``TransitionError`` while it runs, else as ``stop``."""
        _need_root("cleanup")
        with self._existing(instance, "cleanup") as job:
            if job is not None:
                stopping.cleanup(job)
        return self._shown(instance)

    def reboot(self, instance: Instance | str) -> InstanceInfo:
        """Stop the processes and start again; the root stays mounted, ``/run`` and ``/dev/shm`` inside are fresh."""
        _need_root("reboot")
        with self._existing(instance, "reboot") as job:
            if job is None:
                transitions.check("reboot", _name(instance), InstanceState.ABSENT)
                raise AssertionError("the line above raises")
            answers = starting.ask(job)
            if job.intent is None:
                job.intent = {
                    **self._fresh_intent(job, answers, None),
                    "disks": mounting.describe_disks(job, answers.points),
                }
            stopping.reboot(job, answers)
        return self._shown(instance)

    @contextmanager
    def running(self, instance: Instance | str) -> Iterator[Chroot]:
        """Start, hand out a ``Chroot``, and stop, whatever happens inside the ``with`` block."""
        info = self.start(instance)
        try:
            yield Chroot(self, info.name)
        except BaseException as failure:
            try:
                with self.interrupts.shield():
                    self.stop(info.name)
            except ChrootfwError as second:
                log.error("stopping %s after a failure: %s", info.name, second)
                failure.add_note(f"and stopping {info.name} failed: {second}")
            raise
        with self.interrupts.shield():
            self.stop(info.name)

    # -- looking ------------------------------------------------------------------------------------

    def list(self) -> builtins.list[InstanceInfo]:
        """Every instance, present or defined, sorted by name: one pass, however many."""
        return inventory.show_all(self.run_dir, self.config_dir)

    def info(self, name: Instance | str) -> InstanceInfo:
        """One instance in full, with its mounts and holders. Raises ``NotFoundError``."""
        return inventory.show_one(self.run_dir, self.config_dir, _name(name))

    def processes(self, name: Instance | str) -> builtins.list[Process]:
        """The instance's own processes and its holders. Raises ``NotFoundError``."""
        return inventory.all_processes(self.run_dir, self.config_dir, _name(name))

    def node_info(self) -> NodeInfo:
        """The machine: memory and disk space in MiB, CPUs, load, how many instances."""
        from chrootfw import node

        return node.info(self.run_dir, self.config_dir)

    def verify(self) -> builtins.list[Check]:
        """Whether this machine is fit for chrootfw: a line for each thing looked at."""
        from chrootfw import verify

        return verify.checks(self.run_dir, self.config_dir, self._registry)

    def plugins(self) -> builtins.list[PluginRecord]:
        """The plugins in the order of asking."""
        return builtins.list(reversed(self._registry.records.values()))

    def plugins_left_out(self) -> builtins.list[PluginRecord]:
        """The plugins that were found, and left out by name."""
        return builtins.list(self._registry.left_out)

    def plugin_failures(self) -> builtins.list[PluginLoadError]:
        """The plugins that could not be loaded, and why."""
        return builtins.list(self._registry.failures)

    def who_answers(self, instance: Instance | str) -> builtins.list[tuple[str, str, str]]:
        """``(stage, hook, plugin)``: who would answer each stage of an instance; touches nothing."""
        job = self._job_as_recorded_or_wanted(instance)
        return job.stages.who_answers(job.instance)

    def _job_as_recorded_or_wanted(self, instance: Instance | str) -> Job:
        if isinstance(instance, str):
            paths.check_name(instance)
            if intent := self._intent(instance):
                recorded = Instance(**intent["instance"])
                registry = self._registry.for_instance(recorded.plugins)
                return self._job(config.complete(recorded, self._stages(registry).parameters()), registry)
        wanted, text = self._wanted(instance)
        registry = self._registry.for_instance(wanted.plugins)
        return self._job(self._resolve(wanted, registry, text), registry)

    def parameters(self, plugins: Sequence[str] = ()) -> builtins.list[tuple[str, Parameter]]:
        """``(plugin, Parameter)`` pairs; the core's own have no plugin name. A check that goes wrong raises ``PluginError``."""
        stages = self._stages(self._registry.for_instance(plugins))
        declared = [
            (plugin, attrs.evolve(parameter, check=partial(stages.check_parameter, plugin, parameter)))
            for plugin, parameter in stages.parameters()
        ]
        return [*(("", parameter) for parameter in FIELDS), *declared]

    def plan(self, verb: Literal["start", "stop"], instance: Instance | str) -> Plan:
        """What a verb would do, and which plugin answered; touches nothing."""
        if verb not in ("start", "stop"):
            raise InputError(f"there is no plan for {verb!r}", hint="plan start or stop")
        steps = self._plan_start(instance) if verb == "start" else self._plan_stop(instance)
        return Plan(verb, _name(instance), tuple(PlannedStep(*step) for step in steps))

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
        """Run a command inside: ``subprocess.run``'s shape and exceptions.

        ``user``: a name or number of the root's own /etc/passwd. ``env``: added to the clean environment. ``cwd``: inside. Daemons that keep
        the output open are not waited for. Raises ``OSError`` when the command cannot be run, ``subprocess.TimeoutExpired``,
        ``subprocess.CalledProcessError``, ``ChrootfwError`` when the instance is not started, ``Interrupted``, the command being killed.
        """
        import subprocess

        from chrootfw.pipes import Pipes, communicate

        _need_root("run a command in an instance")
        if isinstance(args, str | bytes) or not args:
            raise InputError(f"the command is {args!r}; it must be a list of words")
        if capture_output:
            if stdout is not None or stderr is not None:
                raise ValueError("stdout and stderr arguments may not be used with capture_output.")
            stdout = stderr = subprocess.PIPE
        if input is not None:
            if stdin is not None:
                raise ValueError("stdin and input arguments may not both be used.")
            stdin = subprocess.PIPE
        as_text = bool(text or encoding or errors)
        how = (encoding or "utf-8", errors or "strict")
        data = input.encode(*how) if isinstance(input, str) else input or b""
        self.interrupts.check()
        with Pipes(stdin, stdout, stderr) as pipes:
            with entering.Inside(
                self.run_dir, self.config_dir, _name(instance), user=user, env=env or {}, cwd=cwd
            ) as inside:
                child = inside.spawn([os.fspath(word) for word in args], *pipes.childs)
            try:
                pipes.close_childs()
                ended = communicate(child, pipes.take_feed(data), pipes.collected, timeout, self.interrupts)
            finally:
                child.end()
            out, err = (bytes(found) if found is not None else None for found in pipes.outputs())
            shown = [
                part.decode(*how).replace("\r\n", "\n") if as_text and part is not None else part for part in (out, err)
            ]
        if not ended:
            raise subprocess.TimeoutExpired(args, timeout or 0.0, out, err)
        assert child.status is not None
        done: subprocess.CompletedProcess[Any] = subprocess.CompletedProcess(args, child.status, *shown)
        if check:
            done.check_returncode()
        return done

    # -- the parts ----------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        if event.what in ("warning", "blame"):
            log.warning("%s: %s", event.instance, event.error or event.does)
        else:
            log.debug("%s: %s %s: %s", event.instance, event.what, event.stage, event.does)
        if self.on_event is not None:
            try:
                self.on_event(event)
            except Exception:
                log.exception("the on_event callback failed")  # an observer cannot break the run

    def _stages(self, registry: Registry) -> Stages:
        return Stages(registry, self._tell, hook_timeout=self.hook_timeout)

    def _job(self, instance: Instance, registry: Registry) -> Job:
        stages = self._stages(registry)

        def tell(event: Event) -> None:
            self._tell(event)
            stages.event(event)

        stages.tell = tell
        return Job(os.path.realpath(self.run_dir), instance, stages, self.interrupts, tell)

    def _wanted(self, instance: Instance | str) -> tuple[Instance, str | None]:
        """The instance to start, and the text of its definition if that is where it comes from."""
        if isinstance(instance, Instance):
            return instance, None
        found = config.read_definition(self.config_dir, instance)
        if found is None:
            survey = inventory.Survey(self.run_dir)
            if survey.is_present(instance):
                intent, _ = inventory.read_intent(survey, instance)
                transitions.check("start", instance, survey.state(instance, intent))
            raise inventory.not_found(instance, self.config_dir, inventory.known_names(survey, self.config_dir))
        return found

    def instance(self, name: str, fields: Mapping[str, Any], params: Mapping[str, Any]) -> tuple[Instance, str | None]:
        """The instance as its definition says, if there is one, with some fields and parameters changed; the text of
        the definition.

        Raises ``DefinitionError``, ``InputError``, and ``NotFoundError`` with neither definition nor disk.
        """
        found = config.read_definition(self.config_dir, name)
        if found is None and "disk" not in fields and "disk" not in params:
            survey = inventory.Survey(self.run_dir)
            raise inventory.not_found(name, self.config_dir, inventory.known_names(survey, self.config_dir))
        base = found[0] if found else Instance(name)
        own = {key: value for key, value in params.items() if key in ("disk", "init_script", "plugins")}
        rest = {key: value for key, value in params.items() if key not in own}
        table = {**_table(base), **own, **{key: value or False for key, value in fields.items()}}
        changed = attrs.evolve(config.from_table(name, table), params={**base.params, **rest})
        return changed, found[1] if found else None

    def _resolve(self, instance: Instance, registry: Registry, text: str | None) -> Instance:
        try:
            stages = self._stages(registry)
            return config.resolve(instance, stages.parameters(), stages.check_parameter)
        except InputError as error:
            if text is not None and not isinstance(error, DefinitionError):
                raise config.with_place(error, self.config_dir, instance.name, text) from error
            raise

    def _intent(self, name: str) -> dict[str, Any] | None:
        return intents.load(os.path.realpath(self.run_dir), name)

    def _fresh_intent(self, job: Job, answers: starting.Answers, text: str | None) -> dict[str, Any]:
        # What comes with chrootfw and is off for this instance took no part.
        answered = {answers.entry_plugin, answers.script_plugin, *(plugin for plugin, _ in answers.points)}
        return {
            "version": intents.VERSION,
            "boot_id": store.boot_id(),
            "namespace": store.mount_namespace(),
            "instance": job.instance.to_dict(),
            "definition": text,
            "plugins": [
                {"name": r.name, "distribution": r.distribution, "version": r.version, "band": r.band}
                for r in job.stages.registry.records.values()
                if r.band != "first-party" or r.name in answered
            ],
            "phase": "starting",
            "init_ran": False,
            "stop_done": False,
            "started_at": None,
            "entry": None,
            "disks": [],
            "steps": [],
        }

    def _lock(self, name: str, verb: str) -> store.Lock:
        return store.lock(
            os.path.realpath(self.run_dir),
            f"{name}.lock",
            what=name,
            verb=f"{verb} {name}",
            seconds=self.lock_timeout,
            check=self.interrupts.check,
        )

    def _lock_disk(self, locks: ExitStack, disk: disks.Disk, verb: str) -> None:
        locks.enter_context(
            store.lock(
                os.path.realpath(self.run_dir),
                f"disk-{disk.key}",
                what=f"the disk {disk.path}",
                verb=verb,
                seconds=self.lock_timeout,
                check=self.interrupts.check,
            )
        )

    def _check_here(self, job: Job, survey: inventory.Survey) -> None:
        if pid := survey.elsewhere(job.name, job.intent):
            raise entering.elsewhere(job.name, pid)

    def _forget_old_boot(self, job: Job) -> None:
        """The intent of another boot describes nothing that is mounted; its debts are paid all the same."""
        starting.pay_old_debts(job)
        intents.remove(job.run_dir, job.name)
        job.intent = None

    @contextmanager
    def _existing(self, instance: Instance | str, verb: str) -> Iterator[Job | None]:
        """The job for something present, locked; ``None`` for what is defined but absent. Raises ``NotFoundError``."""
        name = _name(instance)
        paths.check_name(name)
        survey = inventory.Survey(self.run_dir)
        if not survey.is_present(name):
            if not isinstance(instance, Instance) and name not in inventory.defined_names(self.config_dir):
                raise inventory.not_found(name, self.config_dir, inventory.known_names(survey, self.config_dir))
            yield None
            return
        store.prepare_run_dir(self.run_dir)
        with self._lock(name, verb):
            survey = inventory.Survey(self.run_dir, survey)
            if not survey.is_present(name):  # another command has just finished it
                yield None
                return
            job = self._job_of_recorded(instance, name)
            job.surveyed = survey
            self._check_here(job, survey)
            if job.intent and not intents.is_current(job.intent) and not survey.is_mounted(name):
                self._forget_old_boot(job)
                yield None
                return
            yield job

    def _job_of_recorded(self, instance: Instance | str, name: str) -> Job:
        """The instance as it was resolved at its start; else as it is defined now; else by its name alone."""
        notes: builtins.list[str] = []
        intent = None
        try:
            intent = self._intent(name)
        except TrustError as error:
            notes.append(error.brief)
        if intent is not None:
            recorded = Instance(**intent["instance"])
        else:
            recorded, note = self._defined_now(instance, name)
            notes.append(note)
        registry = self._registry.for_instance(recorded.plugins)
        if intent is None:
            try:
                recorded = self._resolve(recorded, registry, None)
            except ChrootfwError as error:
                notes.append(error.brief)
                recorded = Instance(name, recorded.disk, None)  # the defaults stop it without parameters
        else:
            try:
                recorded = config.complete(recorded, self._stages(registry).parameters())
            except ChrootfwError as error:
                notes.append(error.brief)
        job = self._job(recorded, registry)
        job.intent = intent
        if intent is not None and registry.discover:  # who leaves all plugins out knows it
            notes += _gone(intent, registry)
        for note in notes:
            job.warn("", note)
        for failure in registry.failures:
            job.tell(Event("blame", name, "", failure.brief, plugin=failure.plugin, error=str(failure)))
        return job

    def _defined_now(self, instance: Instance | str, name: str) -> tuple[Instance, str]:
        if isinstance(instance, Instance):
            return instance, f"the record of the start of {name} is lost: going by the definition given"
        try:
            found = config.read_definition(self.config_dir, name)
        except ChrootfwError as error:
            found = None
            reason = f" ({error.brief})"
        else:
            reason = ""
        if found:
            return found[0], f"the record of the start of {name} is lost: going by its definition"
        return (
            Instance(name, None, None),
            f"the record of the start of {name} is lost, and there is no definition{reason}: no init script, default signals",
        )

    def _shown(self, instance: Instance | str) -> InstanceInfo:
        return inventory.show(inventory.Survey(self.run_dir), _name(instance))

    def _plan_start(self, instance: Instance | str) -> builtins.list[tuple[Stage, str, str]]:
        wanted, text = self._wanted(instance)
        registry = self._registry.for_instance(wanted.plugins)
        job = self._job(self._resolve(wanted, registry, text), registry)
        job.intent = self._intent(job.name)
        return builtins.list(starting.plan_steps(job, state=job.survey().state(job.name, job.intent)))

    def _plan_stop(self, instance: Instance | str) -> builtins.list[tuple[Stage, str, str]]:
        name = _name(instance)
        paths.check_name(name)
        survey = inventory.Survey(self.run_dir)
        if not survey.is_present(name):
            if not isinstance(instance, Instance) and name not in inventory.defined_names(self.config_dir):
                raise inventory.not_found(name, self.config_dir, inventory.known_names(survey, self.config_dir))
            return []
        job = self._job_of_recorded(instance, name)
        return builtins.list(stopping.plan_steps(job, state=survey.state(name, job.intent)))


def _gone(intent: Mapping[str, Any], registry: Registry) -> Iterator[str]:
    """A sentence for each installed plugin that was there at the start and is not now."""
    known = {*registry.records, *registry.without, *(failure.plugin for failure in registry.failures)}
    for each in intent["plugins"]:
        if each.get("band") == "installed" and each["name"] not in known:
            who = PluginRecord(each["name"], "installed", each["distribution"] or "", each["version"] or "").describe()
            yield f"{who} was installed when {intent['instance']['name']} was started and is not now: it is not asked"


def _table(instance: Instance) -> dict[str, Any]:
    """An instance's fields as a definition would have them."""
    fields: dict[str, Any] = {"init_script": instance.init_script or False, "plugins": list(instance.plugins)}
    return {**fields, **({"disk": instance.disk} if instance.disk is not None else {})}


class Chroot:
    """A started instance inside ``Runtime.running``."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self.runtime = runtime
        self.name = name

    @property
    def root(self) -> str:
        """The path of its root on the host."""
        return intents.root(os.path.realpath(self.runtime.run_dir), self.name)

    def run(self, args: Sequence[str], **how: Any) -> subprocess.CompletedProcess[Any]:
        """``Runtime.run`` in this instance."""
        return self.runtime.run(self.name, args, **how)

    def info(self) -> InstanceInfo:
        """``Runtime.info`` of this instance."""
        return self.runtime.info(self.name)


def _name(instance: Instance | str) -> str:
    return instance.name if isinstance(instance, Instance) else instance


def _need_root(verb: str) -> None:
    if os.geteuid() != 0:
        raise PrivilegeError(
            f"only root can {verb}: chrootfw mounts file systems and signals processes",
            hint="run it with sudo, or as root",
        )
