"""The class that Ganeti's node daemon and jobs use for the hypervisor ``chroot``.

Ganeti makes an object for each call, from a fork (3.0, 3.1) or a thread (3.2): nothing is kept in memory, everything is
asked from the kernel and chrootfw's run directory. Only ``HypervisorError`` is handled by the callers, so nothing
else leaves; the hotplug methods raise ``HotplugError``, which theirs handle.

This module is imported in Ganeti's processes only; chrootfw's heavy rooms are imported when a node needs them.
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

from chrootfw.errors import ChrootfwError, NotFoundError
from chrootfw_ganeti import places

if TYPE_CHECKING:
    from chrootfw.inventory import Survey
    from chrootfw.runtime import Runtime

# Ganeti has no types: here is where they end.
constants: Any = importlib.import_module("ganeti.constants")
errors: Any = importlib.import_module("ganeti.errors")
objects: Any = importlib.import_module("ganeti.objects")
utils: Any = importlib.import_module("ganeti.utils")
hv_base: Any = importlib.import_module("ganeti.hypervisor.hv_base")

F = TypeVar("F", bound=Callable[..., Any])

#: Names of hypervisor parameters that every Ganeti knows; others would be refused by its Haskell half.
EXTRA_CONFIG = "extra_config"
MIGRATION_MODE = "migration_mode"
NON_LIVE = "non-live"
#: What Ganeti's stored defaults for ``chroot`` do not have.
DEFAULTS = {EXTRA_CONFIG: "", MIGRATION_MODE: NON_LIVE}

#: name, id, memory in MiB, CPUs, state, CPU seconds. Ganeti's Haskell half takes whole numbers only.
InfoTuple = tuple[str, int, int, int, int, int]

_MIB = 1 << 20


def answers_ganeti(method: F) -> F:
    """Whatever goes wrong in the method leaves it as ``HypervisorError``, in one line."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (errors.HypervisorError, errors.HotplugError):
            raise
        except ChrootfwError as error:
            raise errors.HypervisorError(sentence(error)) from error
        except errors.GenericError as error:
            raise errors.HypervisorError(f"{method.__name__}: {error}") from error
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise errors.HypervisorError(f"{method.__name__} failed: {error.strerror or error}{where}") from error
        except Exception as error:
            logging.exception("chrootfw: %s failed in a way that it should not", method.__name__)
            raise errors.HypervisorError(
                f"{method.__name__} failed: {type(error).__name__}: {error} (an error of chrootfw: see the node's log)"
            ) from error

    return call  # type: ignore[return-value]  # the same signature, which no TypeVar can say


def sentence(error: ChrootfwError) -> str:
    """An error of chrootfw's in one line: Ganeti puts it into its own sentences."""
    text = error.brief
    details = "; ".join(line.strip() for line in error.details)
    if details:
        text += f" ({details})"
    return f"{text}. Hint: {error.hint}" if error.hint else text


def _is_non_live(value: object) -> bool:
    return value == NON_LIVE


def _told(event: Any) -> None:
    """What is of interest in the node's log; warnings and blame are there by the logger ``chrootfw``."""
    if event.what == "end" and event.stage in ("init-start", "init-stop", "kill"):
        logging.info("chrootfw: %s: %s (%.0f ms)", event.instance, event.does, event.seconds * 1000)


class ChrootHypervisor(hv_base.BaseHypervisor):  # type: ignore[misc]  # Ganeti's base class is untyped
    """Ganeti's hypervisor ``chroot``, by chrootfw.

    What the operating system inside has to bring, as with Ganeti's own class: a script (``init_script``) in the root
    of the first disk, which takes ``start`` and ``stop``; on ``stop`` it ends its daemons cleanly. They should bind to the
    instance's own address only.

    An instance that is mounted without a process, or whose disk could not be released, is *shut down* to Ganeti and not
    gone: as long as this node has the disk, a shutdown that cannot free it fails, and no failover goes on.
    """

    PARAMETERS: ClassVar[dict[str, Any]] = {
        constants.HV_INIT_SCRIPT: (True, utils.IsNormAbsPath, "must be an absolute normalized path", None, None),
        EXTRA_CONFIG: (False, None, None, None, None),
        MIGRATION_MODE: (True, _is_non_live, f"a chroot can only be moved {NON_LIVE}", None, None),
    }
    CAN_MIGRATE = True
    ANCILLARY_FILES: ClassVar[list[str]] = []
    ANCILLARY_FILES_OPT: ClassVar[list[str]] = []

    #: Overridden by tests.
    run_dir = places.RUN_DIR
    config_dir = places.CONFIG_DIR

    def __init__(self) -> None:
        hv_base.BaseHypervisor.__init__(self)

    # -- the life of an instance --------------------------------------------------------------------

    @answers_ganeti
    def StartInstance(self, instance: Any, block_devices: Sequence[Any], startup_paused: bool) -> None:
        """Mount the first disk and run the init script with ``start``; undone as a whole if anything fails.

        ``block_devices``: ``(disk, link, uri)``. ``startup_paused``: mounted only; a reboot, or a start after a stop,
        runs the script. A start that leaves no process is an error (``extra_config=require_process:false``).
        """
        from chrootfw_ganeti import settings

        if not block_devices or not block_devices[0][1]:
            raise errors.HypervisorError(
                f"Cannot start {instance.name}: a chroot needs at least one disk, with a device on this node"
            )
        if len(block_devices) > 1:
            logging.warning("chrootfw: %s has %d disks, the first alone is mounted", instance.name, len(block_devices))
        device = os.path.realpath(block_devices[0][1])
        wanted = settings.instance(
            instance.name, device, self._filled(instance.hvparams), instance.beparams, paused=bool(startup_paused)
        )
        limit = settings.memory_limit(wanted.params["ganeti"])
        self.before_mount(instance, device)
        self._runtime(paused=bool(startup_paused)).start(wanted)
        if limit is not None:
            try:
                self._limit_memory(instance.name, limit)
            except ChrootfwError:
                self._runtime().stop(instance.name, force=True)
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
        """Run the init script with ``stop`` (once, and not with ``retry`` or ``force``), end all users of the mounts, unmount,
        prove that the disk is free.

        ``force``: KILL at once. ``timeout``: seconds for all of the soft part. Of what is not here there is nothing to stop.
        """
        if name is None:
            if instance is None:
                raise errors.HypervisorError("StopInstance was given neither an instance nor a name")
            name = instance.name
        if not self._is_here(name):
            return
        runtime = self._runtime(seconds=None if force else timeout)
        try:
            runtime.stop(name, force=bool(force), run_script=False if retry or force else None)
        except NotFoundError:
            return
        self.after_release(name)

    @answers_ganeti
    def CleanupInstance(self, instance_name: str) -> None:
        """Unmount and release what a stop may have left; nothing to do after a stop that did it all."""
        if not self._is_here(instance_name):
            return
        try:
            self._runtime().cleanup(instance_name)
        except NotFoundError:
            return
        self.after_release(instance_name)

    @answers_ganeti
    def RebootInstance(self, instance: Any) -> None:
        """A soft reboot: script ``stop``, end the processes, script ``start``; the disk stays mounted.

        With what was resolved at the start: changed parameters count from the next hard or full reboot.
        """
        from chrootfw import inventory
        from chrootfw_ganeti import settings

        limit = settings.memory_limit(_said(inventory.read_intent(inventory.Survey(self.run_dir), instance.name)[0]))
        self._runtime().reboot(instance.name)
        if limit is not None:
            self._limit_memory(instance.name, limit)

    @answers_ganeti
    def VerifyInstance(self, instance: Any) -> bool:
        """Whether a running instance is as it should be: a chroot has nothing that could be out of date."""
        return True

    @answers_ganeti
    def RestoreInstance(self, instance: Any, block_devices: Sequence[Any]) -> None:
        """Nothing to do: see ``VerifyInstance``."""

    # -- looking ------------------------------------------------------------------------------------

    @answers_ganeti
    def ListInstances(self, hvparams: Mapping[str, Any] | None = None) -> list[str]:
        """The names of the instances that run here, or whose disk this node could not let go."""
        from chrootfw import inventory
        from chrootfw.system import store
        from chrootfw_ganeti import usage

        found = set(usage.populated(self.run_dir))
        if any(name not in found for name in store.instances(self.run_dir)):
            survey = inventory.Survey(self.run_dir)
            for name in survey.names() - found:
                intent, _ = inventory.read_intent(survey, name)
                state = survey.state(name, intent)
                if state in ("running", "held") or _is_paused(state, intent):
                    found.add(name)
        return sorted(found)

    @answers_ganeti
    def GetInstanceInfo(self, instance_name: str, hvparams: Mapping[str, Any] | None = None) -> InfoTuple | None:
        """``(name, 0, memory in MiB, CPUs, state, CPU seconds)``, or ``None`` when nothing of it is here."""
        from chrootfw import inventory
        from chrootfw.planning import paths

        paths.check_name(instance_name)
        return self._info(inventory.Survey(self.run_dir), instance_name)

    @answers_ganeti
    def GetAllInstancesInfo(self, hvparams: Mapping[str, Any] | None = None) -> list[InfoTuple]:
        """``GetInstanceInfo`` of every instance, by one look at the kernel."""
        from chrootfw import intents, inventory
        from chrootfw.system import store
        from chrootfw_ganeti import usage

        found = {}
        for name, groups in usage.populated(self.run_dir).items():
            intent = store.load(intents.path(self.run_dir, name))  # its shape does not matter for a number of CPUs
            found[name] = _tuple(name, True, intent, usage.memory_bytes(groups), usage.cpu_seconds(groups))
        if any(name not in found for name in store.instances(self.run_dir)):
            survey = inventory.Survey(self.run_dir)
            for name in survey.names() - set(found):
                if (info := self._info(survey, name)) is not None:
                    found[name] = info
        return [found[name] for name in sorted(found)]

    @answers_ganeti
    def GetNodeInfo(self, hvparams: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Memory in MiB (``memory_dom0``: what the node uses apart from its instances), and CPUs."""
        info = self._runtime().node_info()
        return {
            **self.GetLinuxNodeInfo(),
            "memory_total": info.memory_total_mib,
            "memory_free": info.memory_available_mib,
            "memory_dom0": info.memory_dom0_mib,
        }

    @answers_ganeti
    def Verify(self, hvparams: Mapping[str, Any] | None = None) -> str | None:
        """``None``, or what is wrong with this node for chroots."""
        wrong = [check for check in self._runtime().verify() if check.status == "error"]
        if not wrong:
            return None
        return "; ".join(
            f"{check.name}: {check.detail}" + (f" ({check.hint})" if check.hint else "") for check in wrong
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
        """How to open a shell in the instance on its node, by ssh.

        Asked on the master too, where nothing of the instance is mounted; the shell itself says when it is not started.
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
        """Reset this machine at once, as Linux does it."""
        from chrootfw import node

        logging.warning("chrootfw: %s", node.powercycle())

    # -- memory -------------------------------------------------------------------------------------

    @answers_ganeti
    def BalloonInstanceMemory(self, instance: Any, mem: int) -> None:
        """Limit the instance's memory to ``mem`` MiB, by its cgroup; until its next start."""
        self._limit_memory(instance.name, int(mem))

    def _limit_memory(self, name: str, mebibytes: int) -> None:
        from chrootfw_ganeti import memory

        memory.limit(self.run_dir, name, mebibytes)

    # -- moving to another node, cold ---------------------------------------------------------------

    @answers_ganeti
    def MigrationInfo(self, instance: Any) -> str:
        """What the target node wants to know, as JSON."""
        import chrootfw

        return json.dumps({"version": 1, "from": os.uname().nodename, "chrootfw": chrootfw.__version__})

    @answers_ganeti
    def AcceptInstance(self, instance: Any, info: str, target: str) -> None:
        """Asked on the target node before the source stops anything: whether a start here has a chance."""
        if self.GetInstanceInfo(instance.name) is not None:
            raise errors.HypervisorError(f"{instance.name} is on this node already: stop it here first")
        if wrong := self.Verify():
            raise errors.HypervisorError(f"This node cannot run {instance.name}: {wrong}")
        if not getattr(instance, "disks_info", None):
            raise errors.HypervisorError(f"{instance.name} has no disk that could be mounted here")

    @answers_ganeti
    def MigrateInstance(self, cluster_name: str, instance: Any, target: str, live: bool) -> None:
        """On the source node: stop it and prove that its disk is free. The target starts it."""
        if live:
            raise errors.HypervisorError(
                f"{instance.name} cannot be moved live, a chroot's processes stay on their node: use --non-live"
            )
        self.StopInstance(instance)
        self.CleanupInstance(instance.name)

    @answers_ganeti
    def GetMigrationStatus(self, instance: Any) -> Any:
        """Completed when nothing of it is left on the source node, else failed."""
        gone = self.GetInstanceInfo(instance.name) is None
        status = constants.HV_MIGRATION_COMPLETED if gone else constants.HV_MIGRATION_FAILED
        return objects.MigrationStatus(status=status)

    @answers_ganeti
    def FinalizeMigrationDst(self, instance: Any, info: str, success: bool) -> None:
        """On the target node: start it; after a failure, see that nothing of it is here."""
        if success:
            self.StartInstance(instance, self._block_devices(instance), False)
        else:
            self.StopInstance(instance, force=True)

    @answers_ganeti
    def FinalizeMigrationSource(self, instance: Any, success: bool, live: bool) -> None:
        """On the source node: after a failure, start again what the move had stopped."""
        if not success and self.GetInstanceInfo(instance.name) is None:
            self.StartInstance(instance, self._block_devices(instance), False)

    @staticmethod
    def VersionsSafeForMigration(src: Any, target: Any) -> bool:
        """A cold move carries no state of the program."""
        return True

    @staticmethod
    def _block_devices(instance: Any) -> Sequence[Any]:
        backend: Any = importlib.import_module("ganeti.backend")  # which imports ganeti.hypervisor
        devices: Sequence[Any] = backend._GatherAndLinkBlockDevs(instance)  # noqa: SLF001  # Ganeti has no public one
        return devices

    # -- parameters ---------------------------------------------------------------------------------

    @classmethod
    @answers_ganeti
    def CheckParameterSyntax(cls, hvparams: Mapping[str, Any]) -> None:
        """On the master: known names, and ``extra_config`` made of chrootfw's own parameters."""
        from chrootfw_ganeti import settings

        full = cls._filled(hvparams)
        super().CheckParameterSyntax(full)
        settings.check(full[EXTRA_CONFIG])

    @classmethod
    @answers_ganeti
    def ValidateParameters(cls, hvparams: Mapping[str, Any]) -> None:
        """On the nodes: the same, for a plugin that ``extra_config`` names may be on one node only."""
        from chrootfw_ganeti import settings

        full = cls._filled(hvparams)
        super().ValidateParameters(full)
        settings.check(full[EXTRA_CONFIG])

    @classmethod
    def AssessParameters(cls, hvparams: Mapping[str, Any]) -> list[str]:
        """Nothing that is allowed is a bad choice. Asked by 3.1 and newer."""
        return []

    @staticmethod
    def _filled(hvparams: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**DEFAULTS, **(hvparams or {})}

    # -- for those who guard a disk that several nodes see -----------------------------------------

    def before_mount(self, instance: Any, device: str) -> None:
        """Called before anything of ``device`` is mounted; ``HypervisorError`` or ``ChrootfwError`` refuses it."""

    def after_release(self, name: str) -> None:
        """Called when it is proven that this node has nothing of the instance mounted any more."""

    # -- the parts ----------------------------------------------------------------------------------

    def _runtime(self, *, seconds: float | None = None, paused: bool = False) -> Runtime:
        """``seconds``: how long a stop may take. ``paused``: a start runs no script."""
        from chrootfw.runtime import Runtime
        from chrootfw_ganeti.policy import GanetiPolicy, plugins

        deadline = None if seconds is None else time.monotonic() + seconds
        return Runtime(
            plugins(GanetiPolicy(deadline=deadline, paused=paused)),
            run_dir=self.run_dir,
            config_dir=self.config_dir,
            lock_timeout=places.LOCK_TIMEOUT if seconds is None else min(places.LOCK_TIMEOUT, seconds),
            on_event=_told,
        )

    def _is_here(self, name: str) -> bool:
        """Whether there is anything of it, for which a plugin would be loaded."""
        from chrootfw import inventory
        from chrootfw.planning import paths

        return inventory.Survey(self.run_dir).is_present(paths.check_name(name))

    def _info(self, survey: Survey, name: str) -> InfoTuple | None:
        from chrootfw import inventory

        intent, notes = inventory.read_intent(survey, name)
        info = inventory.show_with(survey, name, intent, notes)
        if info.state == "absent":
            return None
        runs = info.state == "running" or _is_paused(info.state, intent)
        return _tuple(name, runs, intent, info.memory_bytes or 0, info.cpu_seconds or 0)


def _tuple(name: str, runs: bool, intent: Any, memory_bytes: int, cpu_seconds: float) -> InfoTuple:
    state = hv_base.HvInstanceState.RUNNING if runs else hv_base.HvInstanceState.SHUTDOWN
    vcpus = _said(intent).get("vcpus")
    return (name, 0, -(-memory_bytes // _MIB), vcpus if isinstance(vcpus, int) else 0, state, int(cpu_seconds))


def _said(intent: Any) -> dict[str, Any]:
    """What Ganeti said at the start (``settings.instance``); empty where that is lost."""
    try:
        said = intent["instance"]["params"]["ganeti"]
    except (TypeError, KeyError):
        return {}
    return said if isinstance(said, dict) else {}


def _is_paused(state: str, intent: dict[str, Any] | None) -> bool:
    """Whether it was started to be mounted only, and no script has run since."""
    return state == "mounted" and bool(_said(intent).get("paused")) and not (intent or {}).get("init_ran")


def warm_up() -> None:
    """Import what a node's requests need, once, before noded forks for them."""
    for module in ("runtime", "node", "verify", "inventory"):
        importlib.import_module(f"chrootfw.{module}")
    importlib.import_module("chrootfw_ganeti.policy")
    settings: Any = importlib.import_module("chrootfw_ganeti.settings")
    settings.check("")  # makes a runtime, and so imports all plugins
