"""Values that chrootfw shows: states, processes, instances, the node.

Slots classes, not attrs: ``list``, ``info`` and ``exec`` import this module, and importing attrs
takes as long as a whole ``list``.
"""

from __future__ import annotations

from enum import StrEnum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn


class InstanceState(StrEnum):
    """Name the state of an instance; compares equal to its plain name.

    ``absent``: nothing of it is mounted. ``mounted``: mounted, none of its own processes is
    running. ``running``: mounted, at least one of its own processes is running. ``held``: a stop
    or cleanup was requested, and "stopped" is not proven.
    """

    ABSENT = "absent"
    MOUNTED = "mounted"
    RUNNING = "running"
    HELD = "held"


class _View:  # noqa: PLW1641  # it can change
    """Be nothing but the slots: equal where they are, and without a hash, since they can change."""

    __slots__: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return the slots by name, in order; convert values inside likewise."""
        return {name: _plain(getattr(self, name)) for name in self.__slots__}

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({shown})"


class _FrozenView(_View):
    """Be a view that cannot change: plugins are given it as it is."""

    __slots__: tuple[str, ...] = ()

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__slots__))

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __setstate__(self, state: dict[str, object]) -> None:
        self._set(**state)


def _plain(value: object) -> object:
    if isinstance(value, _View):
        return value.to_dict()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class Process(_FrozenView):
    """Show a process that runs in an instance or holds something of it.

    Args:
        pid: The process ID; 0 for a holder that is not a process (a loop device, an overlay).
        command: The name of the command.
        user: The user's name: in the root's own /etc/passwd for an own process that ``ps`` shows.
        why: How the process is tied to the instance: ``cgroup`` or ``root`` for the instance's own;
            ``cwd``, ``fd``, ``map``, ``socket``, ``loop`` for a holder; ``namespace`` for a
            process of a mount namespace that keeps the disk busy, which uses nothing; ``swap``,
            ``overlay`` or ``fanotify`` where no scan of processes explains a busy mount.
        what: The path or object held, for people.
        state: ``running``, ``sleeping``, ``waiting for a device``, ``stopped``, ``traced`` or
            ``idle``; empty where only ties are looked for, as the following are ``None`` then.
        memory_bytes: Its memory: its share of what it has in common with others (PSS); its
            resident memory where that cannot be read.
        cpu_seconds: Seconds of processor time.
        started_at: ISO 8601 in UTC.
        arguments: The words of its command line, at most 4 KiB, which the process can change.
    """

    __slots__ = (  # noqa: RUF023  # the order of the JSON
        "pid", "command", "user", "why", "what", "state", "memory_bytes", "cpu_seconds",
        "started_at", "arguments",
    )  # fmt: skip

    pid: int
    command: str
    user: str
    why: str
    what: str
    state: str
    memory_bytes: int | None
    cpu_seconds: float | None
    started_at: str | None
    arguments: tuple[str, ...] | None

    def __init__(
        self,
        pid: int,
        command: str,
        user: str,
        why: str,
        what: str = "",
        *,
        state: str = "",
        memory_bytes: int | None = None,
        cpu_seconds: float | None = None,
        started_at: str | None = None,
        arguments: Sequence[str] | None = None,
    ) -> None:
        self._set(pid=pid, command=command, user=user, why=why, what=what, state=state)
        self._set(memory_bytes=memory_bytes, cpu_seconds=cpu_seconds, started_at=started_at)
        self._set(arguments=None if arguments is None else tuple(arguments))

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form, without what only ``ps`` reads where it was not read."""
        shown = super().to_dict()
        return shown if self.state else {key: shown[key] for key in self.__slots__[:5]}

    @property
    def own(self) -> bool:
        """Return whether the process is the instance's own, not an outside holder."""
        return self.why in ("cgroup", "root")

    def describe(self) -> str:
        """Return one line, such as ``pid 123 (nginx, www-data): cwd /srv``."""
        who = f"pid {self.pid} ({self.command}, {self.user})" if self.pid else self.command
        return f"{who}: {self.why}{' ' + self.what if self.what else ''}"


class InstanceInfo(_View):
    """Show one instance as the kernel does.

    Args:
        name: The instance's name.
        state: Its state.
        root: The path of its root on the host.
        disk: The path of its disk.
        processes: How many own processes are running.
        memory_bytes: Bytes, ``None`` where nothing counts them.
        memory_source: ``cgroup v2``, ``cgroup v1``, ``processes`` or ``none``.
        cpu_seconds: Seconds, ``None`` where nothing counts them.
        started_at: ISO 8601 in UTC, or ``None``.
        tracking: ``cgroup`` or ``root`` (own processes found by their root directory).
        holders: The outside holders, ``None`` where nothing searched for them.
        mounts: Its mounts, ``None`` except in ``info``.
        definition_changed: Whether its definition is another than at its start.
        namespace: The mount namespace in which it runs, ``None`` for the caller's.
        network: The path at which its network namespace is pinned, ``None`` for the host's.
        plugins: The plugins of its start.
        notes: Sentences for people.
        pending_undos: The Steps that a stop, a cleanup or an earlier boot could not undo, each by
            its kind, arguments and plugin.
        log: Where its output goes: ``mode``, ``path``, ``logger``, the logger's pid, and
            ``written_at``, when the file was last written; ``None`` except in ``info`` of an
            instance that has printed something.
        ended: Whether the processes that its start has left have all ended: it is mounted, and
            something ended it without a stop.
    """

    __slots__ = (
        "cpu_seconds",
        "definition_changed",
        "disk",
        "ended",
        "holders",
        "log",
        "memory_bytes",
        "memory_source",
        "mounts",
        "name",
        "namespace",
        "network",
        "notes",
        "pending_undos",
        "plugins",
        "processes",
        "root",
        "started_at",
        "state",
        "tracking",
    )

    def __init__(
        self,
        name: str,
        state: InstanceState,
        root: str,
        *,
        disk: str | None = None,
        processes: int = 0,
        memory_bytes: int | None = None,
        memory_source: str = "none",
        cpu_seconds: float | None = None,
        started_at: str | None = None,
        tracking: str = "cgroup",
        holders: Sequence[Process] | None = None,
        mounts: Sequence[Mapping[str, object]] | None = None,
        definition_changed: bool | None = None,
        namespace: str | None = None,
        network: str | None = None,
        plugins: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        pending_undos: Sequence[str] = (),
        log: Mapping[str, object] | None = None,
        ended: bool = False,
    ) -> None:
        self.name = name
        self.state = state
        self.root = root
        self.disk = disk
        self.processes = processes
        self.memory_bytes = memory_bytes
        self.memory_source = memory_source
        self.cpu_seconds = cpu_seconds
        self.started_at = started_at
        self.tracking = tracking
        self.holders = holders
        self.mounts = mounts
        self.definition_changed = definition_changed
        self.namespace = namespace
        self.network = network
        self.plugins = plugins
        self.notes = tuple(notes)
        self.pending_undos = tuple(pending_undos)
        self.log = log
        self.ended = ended

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form, without what only ``info`` reads where it was not read."""
        shown: dict[str, object] = {
            "name": self.name,
            "state": self.state.value,
            "root": self.root,
            "disk": self.disk,
            "processes": self.processes,
            "memory_bytes": self.memory_bytes,
            "memory_source": self.memory_source,
            "cpu_seconds": self.cpu_seconds,
            "started_at": self.started_at,
            "tracking": self.tracking,
            "holders": _plain(self.holders),
        }
        if self.ended:
            shown["ended"] = True
        if self.namespace is not None:
            shown["namespace"] = self.namespace
        if self.network is not None:
            shown["network"] = self.network
        if self.mounts is not None:
            shown["mounts"] = [dict(mount) for mount in self.mounts]
            shown["definition_changed"] = self.definition_changed
            shown["plugins"] = list(self.plugins or ())
        if self.log is not None:
            shown["log"] = dict(self.log)
        if self.notes:
            shown["notes"] = list(self.notes)
        if self.pending_undos:
            shown["pending_undos"] = list(self.pending_undos)
        return shown


class EffectiveParameter(_View):
    """Show a parameter of an instance: its value, and where that comes from.

    Args:
        name: The parameter's name.
        value: Its value; a list or a table as TOML has it, ``None`` for none.
        source: ``definition``; ``default``; ``start`` for what is neither, so an option of the
            start, or a program's; ``unknown`` where no plugin declares the parameter now.
        line: The line of the definition, from 1; ``None`` for another source.
        plugin: The plugin that declares it; empty for the core's own.
    """

    __slots__ = ("name", "value", "source", "line", "plugin")  # noqa: RUF023  # the order of the JSON

    def __init__(
        self, name: str, value: object, source: str, line: int | None, plugin: str
    ) -> None:
        self.name = name
        self.value = value
        self.source = source
        self.line = line
        self.plugin = plugin


class EffectiveParameters(_View):
    """Show the parameters of an instance: those of its start, else those that it is defined with.

    Args:
        name: The instance's name.
        state: Its state.
        definition: The path of the definition that the lines are about; ``None`` where there was
            none.
        definition_changed: Whether that file has changed since the start.
        parameters: The parameters.
    """

    __slots__ = (  # noqa: RUF023  # the order of the JSON
        "name", "state", "definition", "definition_changed", "parameters",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        state: InstanceState,
        *,
        definition: str | None,
        definition_changed: bool,
        parameters: Sequence[EffectiveParameter],
    ) -> None:
        self.name = name
        self.state = state
        self.definition = definition
        self.definition_changed = definition_changed
        self.parameters = parameters


class NodeInfo(_View):
    """Show the machine.

    Args:
        memory_total_mib: MiB of memory.
        memory_free_mib: MiB that nothing uses.
        memory_available_mib: MiB that a new process could have.
        memory_dom0_mib: MiB that the host itself uses, without instances.
        cpus: How many CPUs.
        load: Load averages over 1, 5 and 15 minutes.
        instances: How many instances are present.
        running: How many of them are running.
        run_dir_total_mib: MiB of the run directory's file system.
        run_dir_free_mib: MiB that are free there.
        image_disks: The image files, each with its sizes.
    """

    __slots__ = (
        "cpus",
        "image_disks",
        "instances",
        "load",
        "memory_available_mib",
        "memory_dom0_mib",
        "memory_free_mib",
        "memory_total_mib",
        "run_dir_free_mib",
        "run_dir_total_mib",
        "running",
    )

    def __init__(
        self,
        *,
        memory_total_mib: int,
        memory_free_mib: int,
        memory_available_mib: int,
        memory_dom0_mib: int,
        cpus: int,
        load: tuple[float, float, float],
        instances: int,
        running: int,
        run_dir_total_mib: int,
        run_dir_free_mib: int,
        image_disks: Sequence[Mapping[str, object]],
    ) -> None:
        self.memory_total_mib = memory_total_mib
        self.memory_free_mib = memory_free_mib
        self.memory_available_mib = memory_available_mib
        self.memory_dom0_mib = memory_dom0_mib
        self.cpus = cpus
        self.load = load
        self.instances = instances
        self.running = running
        self.run_dir_total_mib = run_dir_total_mib
        self.run_dir_free_mib = run_dir_free_mib
        self.image_disks = image_disks


class Check(_FrozenView):
    """Be one line of ``verify``.

    Args:
        name: What is checked.
        status: ``ok``, ``warning`` or ``error``.
        detail: What was found.
        hint: What to do about it, or ``""``.
    """

    __slots__ = ("name", "status", "detail", "hint")  # noqa: RUF023  # the order of the JSON

    name: str
    status: str
    detail: str
    hint: str

    def __init__(self, name: str, status: str, detail: str, hint: str = "") -> None:
        self._set(name=name, status=status, detail=detail, hint=hint)
