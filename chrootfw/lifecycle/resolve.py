"""Resolve the instance that a verb is about: by its definition, its start record, or its name.

Each verb of `runtime` begins here. The result is the `Job` of the instance. The Steps that an
earlier boot has left are undone on the way, so this module is in the layer of the lifecycle.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs

from chrootfw import config
from chrootfw.cancellation import Cancellation
from chrootfw.errors import (
    ChrootfwError,
    DefinitionError,
    InputError,
    NotFoundError,
    PrivilegeError,
    StepError,
    TrustError,
    add_details,
)
from chrootfw.hooks.dispatch import Dispatcher
from chrootfw.hooks.registry import PluginRecord, Registry
from chrootfw.hooks.time_limits import PluginCalls
from chrootfw.lifecycle import teardown
from chrootfw.lifecycle.cgroup import remove_leftovers
from chrootfw.lifecycle.context import Job
from chrootfw.lifecycle.exec import elsewhere_error
from chrootfw.lifecycle.start import LockDisk
from chrootfw.linux import block_devices, deadlines, files, locks
from chrootfw.model import Event, Instance, Parameter
from chrootfw.planning import transitions
from chrootfw.planning.paths import check_name
from chrootfw.state import effective, ownership, record, show
from chrootfw.state.record import StartRecord
from chrootfw.state.snapshot import Snapshot, read_instance
from chrootfw.views import EffectiveParameters, InstanceState


@attrs.frozen
class WantedStart:
    """An instance that is to be started, while its lock is held.

    Attributes:
        job: The instance.
        definition: The text of its definition; `None` if the caller passed the instance.
        lock_disk: Takes the lock of a disk.
    """

    job: Job
    definition: str | None
    lock_disk: LockDisk


@attrs.frozen
class Resolver:
    """Make the `Job` of an instance for one verb.

    Attributes:
        run_dir: The run directory, as it was given.
        config_dir: The configuration directory.
        registry: The plugins.
        lock_timeout: Seconds to wait for another command.
        hook_timeout: Seconds for each answer of a plugin that is not first-party.
        cancellation: Reports whether an end was requested.
        report: Receives events, before the plugins do.
        calls: Calls the plugins' code for this verb.
    """

    run_dir: str
    config_dir: str
    log_dir: str
    registry: Registry
    lock_timeout: float
    hook_timeout: float
    cancellation: Cancellation
    report: Callable[[Event], None]
    calls: PluginCalls

    # -- for the verbs -----------------------------------------------------------------------------

    @contextmanager
    def lock_wanted(self, instance: Instance | str) -> Iterator[WantedStart]:
        """Resolve an instance that is to be started, and lock it.

        Raises:
            NotFoundError: The name has no definition.
            InputError: The definition, or a parameter, is not valid.
            PluginError: A plugin that the instance needs failed.
            LockError: Another command holds the lock.
            TransitionError: The instance runs in another mount namespace.
        """
        wanted, definition = self.find_wanted(instance)
        registry = self.registry.for_instance(wanted.plugins, self.calls)
        registry.check_loaded()
        job = self.make_job(self._with_parameters(wanted, registry, definition), registry)
        if wanted.plugins and not registry.takes_named:
            names = ", ".join(wanted.plugins)
            job.warn("", f"{job.name} is started without the plugins that it names: {names}")
        files.prepare_run_dir(self.run_dir)
        with deadlines.Waiting(self.cancellation.check), ExitStack() as held:
            held.enter_context(self.lock(job.name, "start"))
            job.record = self.load_record(job.name)
            _check_namespace(job, job.read_snapshot())

            def lock_disk(disk: block_devices.Disk) -> None:
                held.enter_context(self._lock_disk(disk, f"start {job.name}"))

            yield WantedStart(job, definition, lock_disk)

    @contextmanager
    def lock_present(
        self, instance: Instance | str, verb: str, *, gives_up: bool = False
    ) -> Iterator[Job | None]:
        """Resolve an instance that is present, and lock it.

        Args:
            instance: The instance, or its name.
            verb: The verb, which the error of a waiting command names.
            gives_up: Steps that cannot be undone are named and given up.

        Yields:
            Its job; `None` for an instance that is defined, but not present.

        Raises:
            NotFoundError: The instance is neither present nor defined.
            LockError: Another command holds the lock.
            TransitionError: The instance runs in another mount namespace.
        """
        name = name_of(instance)
        check_name(name)
        snapshot = read_instance(self.run_dir, name)
        if not snapshot.is_present(name):
            self._check_defined(instance)
            if snapshot.leftovers(name):
                self._remove_leftovers(name, verb)
            yield None
            return
        files.prepare_run_dir(self.run_dir)
        with self.lock(name, verb), deadlines.Waiting(self.cancellation.check):
            snapshot = read_instance(self.run_dir, name, locations=snapshot.locations)
            if not snapshot.is_present(name):  # another command has just finished it
                yield None
                return
            job = self._make_job_of_present(instance, starts=verb == "reboot")
            job.last_snapshot = snapshot
            job.gives_up = gives_up
            _check_namespace(job, snapshot)
            if job.record and not job.record.is_of_this_boot() and not snapshot.is_mounted(name):
                teardown.forget_old_boot(job)
                yield None
                return
            yield job

    def plan_wanted(self, instance: Instance | str) -> Job:
        """Resolve an instance that is to be started, without its lock.

        Raises:
            NotFoundError: The name has no definition.
            InputError: The definition, or a parameter, is not valid.
        """
        job = self._make_job_of_wanted(instance)
        job.record = self.load_record(job.name)
        return job

    def plan_present(self, instance: Instance | str) -> tuple[Job, Snapshot] | None:
        """Resolve an instance that is present, without its lock.

        Returns:
            Its job, and the snapshot that shows it; `None` for an instance that is defined, but not
            present.

        Raises:
            NotFoundError: The instance is neither present nor defined.
        """
        name = name_of(instance)
        check_name(name)
        snapshot = read_instance(self.run_dir, name)
        if not snapshot.is_present(name):
            self._check_defined(instance)
            return None
        return self._make_job_of_present(instance), snapshot

    def find(self, instance: Instance | str) -> Job:
        """Resolve an instance as it was recorded at its start, else as it is to be started.

        Raises:
            NotFoundError: The name has neither a record nor a definition.
            InputError: The definition, or a parameter, is not valid.
        """
        if isinstance(instance, str):
            check_name(instance)
            if found := self.load_record(instance):
                recorded = Instance(**found.instance_fields())
                registry = self.registry.for_instance(recorded.plugins, self.calls)
                declared = self.make_dispatcher(registry).parameters()
                return self.make_job(_complete(recorded, registry, declared)[0], registry)
        return self._make_job_of_wanted(instance)

    def explain_parameters(self, instance: Instance | str) -> EffectiveParameters:
        """Describe the parameters of an instance: as it was started, else as it is to be started.

        Raises:
            NotFoundError: The name is neither present nor defined.
            InputError: The definition, or a parameter, is not valid.
        """
        name = name_of(instance)
        check_name(name)
        snapshot = read_instance(self.run_dir, name)
        state = ownership.read_state(snapshot, name)
        recorded = None
        if state == InstanceState.ABSENT:
            wanted, text = self.find_wanted(instance)
            registry = self.registry.for_instance(wanted.plugins, self.calls)
            job = self.make_job(self._with_parameters(wanted, registry, text), registry)
        else:
            job = self._make_job_of_present(instance)
            recorded = job.record
            text = recorded.definition if recorded else self._read_text(instance)
        try:
            declared = job.stages.parameters()
        except ChrootfwError:  # of an instance that is present; it was reported
            declared = job.stages.first_party_parameters()
        core = [("", parameter) for parameter in config.CORE_PARAMETERS]
        return EffectiveParameters(
            name,
            state,
            definition=None if text is None else f"{self.config_dir}/{name}.toml",
            definition_changed=show.is_definition_changed(recorded, self.config_dir, name),
            parameters=effective.describe(job.instance, [*core, *declared], text),
        )

    def _read_text(self, instance: Instance | str) -> str | None:
        """Read the definition of an instance whose record is lost; `None` without a valid one."""
        if isinstance(instance, Instance):
            return None
        try:
            found = config.read_definition(self.config_dir, instance)
        except ChrootfwError:  # it was reported
            return None
        return found[1] if found else None

    # -- by definition -----------------------------------------------------------------------------

    def find_wanted(self, instance: Instance | str) -> tuple[Instance, str | None]:
        """Return the instance to start, and the text of its definition if it comes from one.

        Raises:
            NotFoundError: The name has no definition.
            TransitionError: The name has none, and is present in a state that fits no start.
            DefinitionError: The definition is not valid.
        """
        if isinstance(instance, Instance):
            return instance, None
        found = config.read_definition(self.config_dir, instance)
        if found is None:
            snapshot = read_instance(self.run_dir, instance)
            if snapshot.is_present(instance):
                transitions.check("start", instance, ownership.read_state(snapshot, instance))
            raise self._not_found(instance)
        return found

    def change_definition(
        self, name: str, fields: Mapping[str, Any], params: Mapping[str, Any]
    ) -> tuple[Instance, str | None]:
        """Return an instance as defined, with some fields and parameters changed.

        Args:
            name: The instance.
            fields: New values of its fields.
            params: New values of its parameters, and of fields that are given as such.

        Returns:
            The instance; the text of its definition, `None` if there is none.

        Raises:
            DefinitionError: The definition is not valid.
            InputError: A field or parameter is not valid.
            NotFoundError: There is neither a definition nor a disk.
        """
        found = config.read_definition(self.config_dir, name)
        if found is None and "disk" not in fields and "disk" not in params:
            raise self._not_found(name)
        base = found[0] if found else Instance(name)
        own = {key: value for key, value in params.items() if key in config.FIELD_NAMES}
        rest = {key: value for key, value in params.items() if key not in own}
        changes = {key: False if value is None else value for key, value in fields.items()}
        table = {**config.to_table(base), **own, **changes}
        changed = attrs.evolve(config.from_table(name, table), params={**base.params, **rest})
        return changed, found[1] if found else None

    def _with_parameters(
        self, instance: Instance, registry: Registry, definition: str | None
    ) -> Instance:
        """Check an instance's parameters, and fill in the defaults.

        Raises:
            InputError: A parameter is not valid; the error names the line of the definition.
        """
        stages = self.make_dispatcher(registry)
        declared: Sequence[tuple[str, Parameter]] = ()
        try:
            declared = stages.parameters()
            return config.resolve(instance, declared, stages.check_parameter)
        except InputError as error:
            for plugin, parameter in declared:
                record = registry.record(plugin)
                if parameter.name == error.parameter and not record.is_first_party:
                    add_details(error, [f"{record.describe()} declares it"])
            if definition is not None and not isinstance(error, DefinitionError):
                raise config.with_place(
                    error, self.config_dir, instance.name, definition
                ) from error
            raise

    def _make_job_of_wanted(self, instance: Instance | str) -> Job:
        wanted, definition = self.find_wanted(instance)
        registry = self.registry.for_instance(wanted.plugins, self.calls)
        return self.make_job(self._with_parameters(wanted, registry, definition), registry)

    def _check_defined(self, instance: Instance | str) -> None:
        """Check that an instance that is not present is defined.

        Raises:
            NotFoundError: It is not.
        """
        if not isinstance(instance, Instance) and instance not in show.defined_names(
            self.config_dir
        ):
            raise self._not_found(instance)

    def _not_found(self, name: str) -> NotFoundError:
        known = show.known_names(self.run_dir, self.config_dir)
        return show.not_found(name, self.config_dir, known)

    # -- by record ---------------------------------------------------------------------------------

    def load_record(self, name: str) -> StartRecord | None:
        """Load the start record of an instance.

        Raises:
            PrivilegeError: This user cannot read it.
            StepError: It cannot be read.
            TrustError: A user other than root could have written it.
        """
        try:
            return record.load(os.path.realpath(self.run_dir), name)
        except PermissionError as error:
            raise PrivilegeError(
                f"cannot read the record of {name}: {error.strerror}",
                hint="run it with sudo, or as root",
            ) from error
        except OSError as error:
            raise StepError(
                f"cannot read the record of the start of {name}: {error.strerror}"
            ) from error

    def _make_job_of_present(self, instance: Instance | str, *, starts: bool = False) -> Job:
        """Resolve a present instance: as at its start, else as defined now, else by its name.

        A wrong record or parameter is a warning: the instance can be stopped all the same.

        Args:
            instance: The instance, or its name.
            starts: The verb starts it too, so a wrong definition or plugin is an error.
        """
        name = name_of(instance)
        notes: list[str] = []
        found = None
        try:
            found = self.load_record(name)
        except (TrustError, StepError) as error:
            notes.append(error.brief)
        if found is not None:
            resolved, registry, more = self._resolve_recorded(found, starts=starts)
        else:
            resolved, registry, more = self._resolve_lost(instance, starts=starts)
        job = self.make_job(resolved, registry)
        job.record = found
        for note in [*notes, *more]:
            job.warn("", note)
        for failure in registry.failures:
            job.report(
                Event(
                    "plugin-error",
                    name,
                    "",
                    failure.brief,
                    plugin=failure.plugin,
                    error=str(failure),
                )
            )
        return job

    def _resolve_recorded(
        self, found: StartRecord, *, starts: bool
    ) -> tuple[Instance, Registry, list[str]]:
        """Return the instance as it was started, its plugins, and the warnings."""
        recorded = Instance(**found.instance_fields())
        registry = self.registry.for_instance(recorded.plugins, self.calls)
        dispatcher = self.make_dispatcher(registry)
        notes = []
        try:
            declared = dispatcher.parameters()
        except ChrootfwError as error:
            if starts:
                raise
            notes = [error.brief]
            declared = dispatcher.first_party_parameters()
        recorded, wrong = _complete(recorded, registry, declared)
        notes += wrong
        if registry.discover:  # a caller that leaves all plugins out needs no warning
            notes += _describe_missing_plugins(found, registry)
        return recorded, registry, notes

    def _resolve_lost(
        self, instance: Instance | str, *, starts: bool
    ) -> tuple[Instance, Registry, list[str]]:
        """Return the same as `_resolve_recorded`, for an instance whose record is lost."""
        defined, note = self._find_defined(instance, starts=starts)
        registry = self.registry.for_instance(defined.plugins, self.calls)
        try:
            return self._with_parameters(defined, registry, None), registry, [note]
        except ChrootfwError as error:
            if starts:
                raise
            # the default plugins stop it, with the defaults of their parameters
            declared = self.make_dispatcher(registry).first_party_parameters()
            bare = config.complete(Instance(defined.name, defined.disk, None), declared)
            return bare, registry, [note, error.brief]

    def _find_defined(self, instance: Instance | str, *, starts: bool) -> tuple[Instance, str]:
        """Return the instance as it is defined now, and the warning that it is so resolved."""
        lost = f"the record of the start of {name_of(instance)} is lost"
        if isinstance(instance, Instance):
            return instance, f"{lost}: going by the definition given"
        reason = ""
        try:
            found = config.read_definition(self.config_dir, instance)
        except ChrootfwError as error:
            if starts:
                raise
            found = None
            reason = f" ({error.brief})"
        if found:
            return found[0], f"{lost}: going by its definition"
        return (
            Instance(instance, None, None),
            f"{lost}, and it has no definition{reason}: no init script, default signals",
        )

    # -- jobs and locks ----------------------------------------------------------------------------

    def make_dispatcher(self, registry: Registry) -> Dispatcher:
        """Make the dispatcher, which calls the hooks of some plugins."""
        return Dispatcher(registry, self.report, hook_timeout=self.hook_timeout, calls=self.calls)

    def make_job(self, instance: Instance, registry: Registry) -> Job:
        """Make the job of a resolved instance, whose events the plugins receive too."""
        stages = self.make_dispatcher(registry)
        return Job(
            os.path.realpath(self.run_dir),
            instance,
            stages,
            self.cancellation,
            stages.report_all,
            log_dir=self.log_dir,
        )

    def lock(self, name: str, verb: str) -> locks.Lock:
        """Take the lock of an instance.

        Raises:
            LockError: Another command holds it for longer than `lock_timeout`.
        """
        return self._take_lock(f"{name}.lock", name, f"{verb} {name}")

    def _lock_disk(self, disk: block_devices.Disk, verb: str) -> locks.Lock:
        return self._take_lock(f"disk-{disk.key}", f"the disk {disk.path}", verb)

    def _take_lock(self, file: str, what: str, verb: str) -> locks.Lock:
        waited: list[Event] = []

        def report(holder: str) -> None:
            does = f"wait for {holder}, at most {self.lock_timeout:g} s"
            waited.append(Event("begin", verb.partition(" ")[2], "", does))
            self.report(waited[0])

        try:
            return locks.lock(
                os.path.realpath(self.run_dir),
                file,
                what=what,
                verb=verb,
                seconds=self.lock_timeout,
                check=self.cancellation.check,
                report=report,
            )
        finally:
            for event in waited:
                self.report(attrs.evolve(event, what="end"))

    def _remove_leftovers(self, name: str, verb: str) -> None:
        """Remove the empty cgroups that have the name of an instance that is not present."""
        files.prepare_run_dir(self.run_dir)
        with self.lock(name, verb):
            snapshot = read_instance(self.run_dir, name)
            if not snapshot.is_present(name):
                remove_leftovers(snapshot.leftovers(name))


def name_of(instance: Instance | str) -> str:
    """Return the name of an instance that is passed as such, or by its name."""
    return instance.name if isinstance(instance, Instance) else instance


def _check_namespace(job: Job, snapshot: Snapshot) -> None:
    """Check that an instance does not run in another mount namespace.

    Raises:
        TransitionError: It does.
    """
    elsewhere = snapshot.find_elsewhere(job.name)
    if elsewhere.is_mounted:
        raise elsewhere_error(job.name, elsewhere.pid)


def _complete(
    recorded: Instance, registry: Registry, declared: Sequence[tuple[str, Parameter]]
) -> tuple[Instance, list[str]]:
    """Complete the parameters of a recorded instance; return it, and a line for each wrong one."""
    right, notes = config.without_misfits(
        recorded, declared, lambda plugin: registry.record(plugin).is_first_party
    )
    return config.complete(right, declared), notes


def _describe_missing_plugins(found: StartRecord, registry: Registry) -> Iterator[str]:
    """Describe the installed plugins that took part in the start and are not installed now.

    Yields:
        A sentence for each distribution.
    """
    known = {
        *registry.records,
        *registry.without,
        *(failure.plugin for failure in registry.failures),
    }
    missing: dict[tuple[str, str], list[str]] = {}
    for each in found.plugins:
        if each.origin == "installed" and each.name not in known:
            origin = each.distribution or "", each.version or ""
            missing.setdefault(origin, []).append(each.name)
    for origin, names in missing.items():
        who = PluginRecord(", ".join(names), "installed", *origin).describe()
        if len(names) == 1:
            yield (
                f"{who} was installed when {found.name} was started and is not now: it is not asked"
            )
        else:
            yield (
                f"plugins{who.removeprefix('plugin')} were installed when {found.name} was started"
                " and are not now: they are not asked"
            )
