"""The class that Ganeti's node daemon and jobs use for the hypervisor `chroot`.

Ganeti makes an object for each call, from a fork (3.0, 3.1) or a thread (3.2). So nothing is kept
in memory: every answer is read from the kernel and chrootfw's run directory. The callers handle
only `HypervisorError`, so no method raises another error. The hotplug methods raise `HotplugError`,
which their callers handle.

Only Ganeti's processes import this module. chrootfw's heavy modules are imported when they are
used.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from chrootfw.errors import ChrootfwError, InputError, NotFoundError
from chrootfw_ganeti import places, wording

if TYPE_CHECKING:
    from chrootfw.runtime import Runtime
    from chrootfw.state.ownership import OwnProcesses
    from chrootfw.state.record import StartRecord
    from chrootfw.state.snapshot import Snapshot

# Ganeti has no types, so values from it are `Any`.
constants: Any = importlib.import_module("ganeti.constants")
errors: Any = importlib.import_module("ganeti.errors")
objects: Any = importlib.import_module("ganeti.objects")
utils: Any = importlib.import_module("ganeti.utils")
hv_base: Any = importlib.import_module("ganeti.hypervisor.hv_base")

F = TypeVar("F", bound=Callable[..., Any])

#: Hypervisor parameters that every Ganeti knows; its Haskell half would refuse others.
EXTRA_CONFIG = "extra_config"
MIGRATION_MODE = "migration_mode"
NON_LIVE = "non-live"
#: Parameters that Ganeti's stored defaults for `chroot` lack.
DEFAULTS = {EXTRA_CONFIG: "", MIGRATION_MODE: NON_LIVE}

#: Name, ID, memory in MiB, CPUs, state, CPU seconds. Ganeti's Haskell half takes whole numbers
#: only.
InfoTuple = tuple[str, int, int, int, int, int]

_MIB = 1 << 20


def answers_ganeti(method: F) -> F:
    """Make a method raise every error as `HypervisorError`, in one line of ASCII."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (errors.HypervisorError, errors.HotplugError) as error:
            if str(error).isascii():
                raise
            raise type(error)(wording.to_ascii(str(error))) from error
        except ChrootfwError as error:
            raise errors.HypervisorError(wording.sentence(error)) from error
        except errors.GenericError as error:
            cause: Exception = error
            text = f"{method.__name__}: {error}"
        except OSError as error:
            cause = error
            where = f" ({error.filename})" if error.filename else ""
            text = f"{method.__name__} failed: {error.strerror or error}{where}"
        except Exception as error:
            cause = error
            logging.exception("chrootfw: %s failed in a way that it should not", method.__name__)
            text = (
                f"{method.__name__} failed: {type(error).__name__}: {error} (an error of "
                "chrootfw: see the node's log)"
            )
        raise errors.HypervisorError(wording.to_ascii(text)) from cause

    return call  # type: ignore[return-value]  # the same signature, which no TypeVar can say


def _is_non_live(value: object) -> bool:
    return value == NON_LIVE


def _log_event(event: Any) -> None:
    """Log the events that matter to a node.

    The logger `chrootfw` logs warnings and plugin errors already.
    """
    if event.what == "end" and event.stage in ("init-start", "init-stop", "kill"):
        logging.info("chrootfw: %s: %s (%.0f ms)", event.instance, event.does, event.seconds * 1000)


class ChrootHypervisor(hv_base.BaseHypervisor):  # type: ignore[misc]  # Ganeti's base class is untyped
    """Ganeti's hypervisor `chroot`, implemented by chrootfw.

    As with Ganeti's own class, the system on the first disk must bring a script (`init_script`).
    The script takes `start` and `stop`, and ends its daemons cleanly on `stop`. The daemons should
    bind to the instance's own address only.

    An instance that is mounted without a process, or whose disk was not released, is *shut down* to
    Ganeti, and not gone. While this node has the disk, a shutdown that cannot free it fails, and no
    failover continues.
    """

    PARAMETERS: ClassVar[dict[str, Any]] = {
        constants.HV_INIT_SCRIPT: (
            True,
            utils.IsNormAbsPath,
            "must be an absolute normalized path",
            None,
            None,
        ),
        EXTRA_CONFIG: (False, None, None, None, None),
        MIGRATION_MODE: (True, _is_non_live, f"a chroot can only be moved {NON_LIVE}", None, None),
    }
    CAN_MIGRATE = True
    #: `gnt-cluster verify` reports a node that does not have the file, or another one.
    ANCILLARY_FILES: ClassVar[list[str]] = [places.MARKER]
    ANCILLARY_FILES_OPT: ClassVar[list[str]] = [places.MARKER]

    #: Overridden by tests.
    stock_dir = places.STOCK_DIR
    run_dir = places.RUN_DIR
    config_dir = places.CONFIG_DIR

    def __init__(self) -> None:
        hv_base.BaseHypervisor.__init__(self)

    # -- start and stop ----------------------------------------------------------------------------

    @answers_ganeti
    def StartInstance(
        self, instance: Any, block_devices: Sequence[Any], startup_paused: bool
    ) -> None:
        """Mount the first disk and run the init script with `start`.

        A start that fails is undone as a whole. A start that leaves no process is an error, unless
        `extra_config` has `require_process:false`.

        Args:
            instance: Ganeti's instance object.
            block_devices: Tuples `(disk, link, uri)`; the first is mounted.
            startup_paused: Mount only. A reboot, or a start after a stop, runs the script.
        """
        from chrootfw_ganeti import guard, memory, settings

        if not block_devices or not block_devices[0][1]:
            raise errors.HypervisorError(
                f"Cannot start {instance.name}: a chroot needs at least one disk, with a device "
                "on this node"
            )
        if len(block_devices) > 1:
            logging.warning(
                "chrootfw: %s has %d disks, the first alone is mounted",
                instance.name,
                len(block_devices),
            )
        device = os.path.realpath(block_devices[0][1])
        wanted = settings.instance(
            instance.name,
            device,
            self._filled(instance.hvparams),
            instance.beparams,
            paused=bool(startup_paused),
        )
        limit = settings.memory_limit(wanted.params["ganeti"])
        if limit is not None:
            memory.require_controller(instance.name)
        self.before_mount(instance, device)
        guard.put_up(self.stock_dir, instance.name)
        try:
            self._runtime(paused=bool(startup_paused)).start(wanted)
            if limit is not None:
                try:
                    self._limit_memory(instance.name, limit)
                except ChrootfwError:
                    self._runtime().stop(instance.name, force=True)
                    raise
        except BaseException:
            if not self._is_here(instance.name):
                guard.take_down(self.stock_dir, instance.name)
            raise

    @answers_ganeti
    def StopInstance(
        self,
        instance: Any,
        force: bool = False,
        retry: bool = False,
        name: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Stop an instance, unmount it and prove that its disk is free.

        The init script runs once with `stop`, and not with `retry` or `force`. Then all processes
        that use the mounts are ended. If nothing of the instance is on this node, nothing is done.

        Args:
            instance: Ganeti's instance object; `None` if `name` is given.
            force: Send KILL at once.
            retry: Whether this call repeats an earlier one.
            name: The instance's name, instead of `instance`.
            timeout: Seconds for the script and TERM together; `None` for the instance's own times.
        """
        if name is None:
            if instance is None:
                raise errors.HypervisorError(
                    "StopInstance was given neither an instance nor a name"
                )
            name = instance.name
        if not self._is_here(name):
            self._let_go(name)
            return
        runtime = self._runtime(seconds=None if force else timeout)
        try:
            runtime.stop(name, force=bool(force), run_script=False if retry or force else None)
        except NotFoundError:
            return
        self._let_go(name)
        self.after_release(name)

    @answers_ganeti
    def CleanupInstance(self, instance_name: str) -> None:
        """Unmount and release what a stop may have left; do nothing if it left nothing."""
        if not self._is_here(instance_name):
            self._let_go(instance_name)
            return
        try:
            self._runtime().cleanup(instance_name)
        except NotFoundError:
            return
        self._let_go(instance_name)
        self.after_release(instance_name)

    @answers_ganeti
    def RebootInstance(self, instance: Any) -> None:
        """Run the script with `stop`, end the processes, and run the script with `start`.

        The disk stays mounted, and the parameters of the last start stay in effect. Changed
        parameters take effect with the next hard or full reboot.
        """
        from chrootfw.state.snapshot import read_instance
        from chrootfw_ganeti import settings

        limit = settings.memory_limit(
            _said(read_instance(self.run_dir, instance.name).record(instance.name))
        )
        self._runtime().reboot(instance.name)
        if limit is not None:
            self._limit_memory(instance.name, limit)

    @answers_ganeti
    def VerifyInstance(self, instance: Any) -> bool:
        """Return true: no setting of a running chroot can be out of date."""
        return True

    @answers_ganeti
    def RestoreInstance(self, instance: Any, block_devices: Sequence[Any]) -> None:
        """Do nothing, as there is nothing that `VerifyInstance` reports."""

    # -- queries -----------------------------------------------------------------------------------

    @answers_ganeti
    def ListInstances(self, hvparams: Mapping[str, Any] | None = None) -> list[str]:
        """List the instances that run here, or whose disk this node could not release."""
        from chrootfw.linux import files
        from chrootfw.state import ownership
        from chrootfw.state.snapshot import read_snapshot
        from chrootfw_ganeti import usage

        found = usage.find_populated(self.run_dir)
        if any(name not in found for name in files.instances(self.run_dir)):
            snapshot = read_snapshot(self.run_dir)
            for name, own in ownership.read_all(snapshot, snapshot.names() - found).items():
                if isinstance(own, Exception):
                    raise own
                state = ownership.read_state(snapshot, name, own=own)
                if state in ("running", "held") or _is_paused(state, snapshot.record(name)):
                    found.add(name)
        return sorted(found)

    @answers_ganeti
    def GetInstanceInfo(
        self, instance_name: str, hvparams: Mapping[str, Any] | None = None
    ) -> InfoTuple | None:
        """Describe one instance.

        Returns:
            Name, 0, memory in MiB, CPUs, state, CPU seconds; `None` if nothing of the instance is
            on this node.
        """
        from chrootfw.state.snapshot import read_instance

        if not _can_start(instance_name):
            return None
        snapshot = read_instance(self.run_dir, instance_name)
        return self._info(snapshot, instance_name)

    @answers_ganeti
    def GetAllInstancesInfo(self, hvparams: Mapping[str, Any] | None = None) -> list[InfoTuple]:
        """Describe every instance as `GetInstanceInfo` does, from one snapshot.

        Where a user may shut an instance down from inside, Ganeti takes what is shut down for that,
        and its watcher leaves it down. So an instance whose processes have all ended is then left
        out, for the watcher to start it again. A stop asks `GetInstanceInfo`, which has it.
        """
        from chrootfw.linux import files
        from chrootfw.state import ownership
        from chrootfw.state.record import load
        from chrootfw.state.snapshot import read_snapshot
        from chrootfw_ganeti import usage

        found = {}
        for name, used in usage.read_all(self.run_dir).items():
            try:
                record = load(self.run_dir, name)
            except (OSError, ChrootfwError):
                record = None  # as for a lost record: the other instances are still listed
            found[name] = _tuple(name, True, record, used.memory_bytes, used.cpu_seconds)
        if any(name not in found for name in files.instances(self.run_dir)):
            snapshot = read_snapshot(self.run_dir)
            others = snapshot.names() - set(found)
            for name, own in ownership.read_all(snapshot, others).items():
                if isinstance(own, Exception):
                    raise own
                info = self._info(snapshot, name, own)
                if info is not None and not (
                    info[4] == hv_base.HvInstanceState.SHUTDOWN
                    and ownership.read_state(snapshot, name, own=own) == "mounted"
                    and self.allows_user_shutdown()
                ):
                    found[name] = info
        return [found[name] for name in sorted(found)]

    @answers_ganeti
    def GetNodeInfo(self, hvparams: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Report memory in MiB and CPUs; `memory_dom0` is what the node itself uses."""
        info = self._runtime().node_info()
        return {
            **self.GetLinuxNodeInfo(),
            "memory_total": info.memory_total_mib,
            "memory_free": info.memory_available_mib,
            "memory_dom0": info.memory_dom0_mib,
        }

    @answers_ganeti
    def Verify(self, hvparams: Mapping[str, Any] | None = None) -> str | None:
        """Describe what keeps this node from running chroots; `None` if nothing does."""
        wrong = [check for check in self._runtime().verify() if check.status == "error"]
        if not wrong:
            return None
        return wording.to_ascii(
            "; ".join(
                f"{check.name}: {check.detail}"
                + (f" ({wording.hint(check.hint)})" if check.hint else "")
                for check in wrong
            )
        )

    @classmethod
    @answers_ganeti
    def GetInstanceConsole(
        cls,
        instance: Any,
        primary_node: Any,
        node_group: Any,
        hvparams: Any,
        beparams: Any,
        root_dir: str | None = None,
    ) -> Any:
        """Return the command that opens a shell in the instance on its node, by ssh.

        The master calls this too, where nothing of the instance is mounted. The shell itself
        reports an instance that is not started.
        """
        return objects.InstanceConsole(
            instance=instance.name,
            kind=constants.CONS_SSH,
            host=primary_node.name,
            port=node_group.FillND(primary_node).get(constants.ND_SSH_PORT),
            user=constants.SSH_CONSOLE_USER,
            command=[places.COMMAND, "shell", instance.name],
        )

    @classmethod
    @answers_ganeti
    def PowercycleNode(cls, hvparams: Mapping[str, Any] | None = None) -> None:
        """Reset this machine at once, with Linux's own means."""
        from chrootfw.lifecycle import powercycle

        logging.warning("chrootfw: %s", powercycle.reset_machine())

    # -- memory ------------------------------------------------------------------------------------

    @answers_ganeti
    def BalloonInstanceMemory(self, instance: Any, mem: int) -> None:
        """Limit the memory of the instance's cgroup to `mem` MiB, until its next start."""
        self._limit_memory(instance.name, int(mem))

    def _limit_memory(self, name: str, mebibytes: int) -> None:
        from chrootfw_ganeti import memory

        memory.limit(self.run_dir, name, mebibytes)

    # -- moving to another node, cold --------------------------------------------------------------

    @answers_ganeti
    def MigrationInfo(self, instance: Any) -> str:
        """Return what the target node needs to know, as JSON."""
        import chrootfw

        return json.dumps(
            {"version": 1, "from": os.uname().nodename, "chrootfw": chrootfw.__version__}
        )

    @answers_ganeti
    def AcceptInstance(self, instance: Any, info: str, target: str) -> None:
        """Check on the target node that a start can succeed; the source is still running."""
        if self.GetInstanceInfo(instance.name) is not None:
            raise errors.HypervisorError(
                f"{instance.name} is on this node already: stop it here first"
            )
        if wrong := self.Verify():
            raise errors.HypervisorError(f"This node cannot run {instance.name}: {wrong}")
        if not getattr(instance, "disks_info", None):
            raise errors.HypervisorError(f"{instance.name} has no disk that could be mounted here")
        self.ValidateParameters(instance.hvparams)

    @answers_ganeti
    def MigrateInstance(self, cluster_name: str, instance: Any, target: str, live: bool) -> None:
        """Stop the instance on the source node and prove that its disk is free.

        The target node then starts it (`FinalizeMigrationDst`).
        """
        if live:
            raise errors.HypervisorError(
                f"{instance.name} cannot be moved live, a chroot's processes stay on their node: "
                "use --non-live"
            )
        self.StopInstance(instance)
        self.CleanupInstance(instance.name)

    @answers_ganeti
    def GetMigrationStatus(self, instance: Any) -> Any:
        """Return "completed" if nothing of it is left on the source node, else "failed"."""
        gone = self.GetInstanceInfo(instance.name) is None
        status = constants.HV_MIGRATION_COMPLETED if gone else constants.HV_MIGRATION_FAILED
        return objects.MigrationStatus(status=status)

    @answers_ganeti
    def FinalizeMigrationDst(self, instance: Any, info: str, success: bool) -> None:
        """Start the instance on the target node; after a failure, remove its remains."""
        if success:
            self.StartInstance(instance, self._block_devices(instance), False)
        else:
            self.StopInstance(instance, force=True)

    @answers_ganeti
    def FinalizeMigrationSource(self, instance: Any, success: bool, live: bool) -> None:
        """Start the instance on the source node again, after a failed move."""
        if not success and self.GetInstanceInfo(instance.name) is None:
            self.StartInstance(instance, self._block_devices(instance), False)

    @staticmethod
    def VersionsSafeForMigration(src: Any, target: Any) -> bool:
        """Return true: a cold move carries no state of the program."""
        return True

    @staticmethod
    def _block_devices(instance: Any) -> Sequence[Any]:
        # Imported here, since it imports ganeti.hypervisor; Ganeti has no public function for this.
        backend: Any = importlib.import_module("ganeti.backend")
        devices: Sequence[Any] = backend._GatherAndLinkBlockDevs(instance)  # noqa: SLF001
        return devices

    # -- parameters --------------------------------------------------------------------------------

    @classmethod
    @answers_ganeti
    def CheckParameterSyntax(cls, hvparams: Mapping[str, Any]) -> None:
        """Check the parameters on the master: known names, valid values in `extra_config`."""
        from chrootfw_ganeti import settings

        full = cls._filled(hvparams)
        super().CheckParameterSyntax(full)
        settings.check(full[EXTRA_CONFIG])

    @classmethod
    @answers_ganeti
    def ValidateParameters(cls, hvparams: Mapping[str, Any]) -> None:
        """Check the same on the nodes: one may lack a plugin, or not be able to limit memory."""
        from chrootfw_ganeti import settings

        full = cls._filled(hvparams)
        super().ValidateParameters(full)
        settings.check(full[EXTRA_CONFIG], on_node=True)

    @classmethod
    def AssessParameters(cls, hvparams: Mapping[str, Any]) -> list[str]:
        """Return no warnings; Ganeti 3.1 and later call this. Every valid value is good."""
        return []

    @staticmethod
    def _filled(hvparams: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**DEFAULTS, **(hvparams or {})}

    # -- extension points for a disk that several nodes see ----------------------------------------

    def before_mount(self, instance: Any, device: str) -> None:
        """Override to refuse a mount: called before anything of a device is mounted.

        Args:
            instance: Ganeti's instance object.
            device: The path of the device.

        Raises:
            HypervisorError: The device must not be mounted; a `ChrootfwError` has the same effect.
        """

    def after_release(self, name: str) -> None:
        """Override to release a disk: called when nothing of the instance is mounted any more."""

    @staticmethod
    def allows_user_shutdown() -> bool:
        """Check that the cluster has `gnt-cluster modify --user-shutdown yes`."""
        ssconf: Any = importlib.import_module("ganeti.ssconf")
        try:
            return bool(ssconf.SimpleStore().GetEnabledUserShutdown())
        except errors.ConfigurationError:
            return False  # this node is in no cluster

    # -- helpers -----------------------------------------------------------------------------------

    def _runtime(self, *, seconds: float | None = None, paused: bool = False) -> Runtime:
        """Make a runtime for Ganeti's instances.

        Args:
            seconds: Seconds that a stop may take; `None` for the instance's own times.
            paused: Whether a start runs no script.
        """
        from chrootfw.runtime import Runtime
        from chrootfw_ganeti.policy import GanetiPolicy, plugins

        deadline = None if seconds is None else time.monotonic() + seconds
        return Runtime(
            plugins(GanetiPolicy(deadline=deadline, paused=paused)),
            run_dir=self.run_dir,
            config_dir=self.config_dir,
            lock_timeout=places.LOCK_TIMEOUT
            if seconds is None
            else max(0, min(places.LOCK_TIMEOUT, seconds)),
            on_event=_log_event,
            isolate_plugins=True,
        )

    def _let_go(self, name: str) -> None:
        """Let Ganeti's own class mount an instance that is no longer here."""
        from chrootfw_ganeti import guard

        if _can_start(name):
            guard.take_down(self.stock_dir, name)

    def _is_here(self, name: str) -> bool:
        """Check that anything of the instance is here, before a plugin is loaded for it."""
        from chrootfw.state.snapshot import read_instance

        return _can_start(name) and read_instance(self.run_dir, name).is_present(name)

    def _info(
        self, snapshot: Snapshot, name: str, own: OwnProcesses | None = None
    ) -> InfoTuple | None:
        from chrootfw.state import show

        record = snapshot.record(name)
        info = show.show(snapshot, name, own)
        if info.state == "absent":
            return None
        runs = info.state == "running" or _is_paused(info.state, record)
        return _tuple(name, runs, record, info.memory_bytes or 0, info.cpu_seconds or 0)


def _can_start(name: str) -> bool:
    """Check that chrootfw takes the name; an instance with another one was never started."""
    from chrootfw.planning import paths

    try:
        paths.check_name(name)
    except InputError:
        return False
    return True


def _tuple(
    name: str, runs: bool, record: StartRecord | None, memory_bytes: int, cpu_seconds: float
) -> InfoTuple:
    state = hv_base.HvInstanceState.RUNNING if runs else hv_base.HvInstanceState.SHUTDOWN
    vcpus = _said(record).get("vcpus")
    return (
        name,
        0,
        -(-memory_bytes // _MIB),
        vcpus if isinstance(vcpus, int) else 0,
        state,
        int(cpu_seconds),
    )


def _said(record: StartRecord | None) -> dict[str, Any]:
    """Return what Ganeti passed at the start (`settings.instance`); empty if the record is lost."""
    said = record.params.get("ganeti") if record else None
    return said if isinstance(said, dict) else {}


def _is_paused(state: str, record: StartRecord | None) -> bool:
    """Check that the instance was started paused, and that no script has run since."""
    return (
        state == "mounted"
        and bool(_said(record).get("paused"))
        and record is not None
        and not record.init_ran
    )


def warm_up() -> None:
    """Import the modules that requests need once, before noded forks for the requests."""
    for module in (
        "runtime",
        "lifecycle.powercycle",
        "state.node",
        "state.snapshot",
        "state.verify",
    ):
        importlib.import_module(f"chrootfw.{module}")
    importlib.import_module("chrootfw_ganeti.policy")
    settings: Any = importlib.import_module("chrootfw_ganeti.settings")
    settings.check("")  # makes a runtime, which imports all plugins
