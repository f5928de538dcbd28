"""What chrootfw shows: states, processes, instances, the node.

Slots classes, not attrs: ``list``, ``info`` and ``exec`` import this room and must start in a few
milliseconds (importing attrs costs 25 ms).
"""

from __future__ import annotations

from chrootfw.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class InstanceState(str):
    """In which state an instance is; compares equal to its plain name.

    ``absent``: nothing of it is mounted. ``mounted``: mounted, none of its own processes lives.
    ``running``: mounted, at least one of its own processes lives. ``held``: a stop or cleanup was
    asked for, and "stopped" is not proven.
    """

    __slots__ = ()

    ABSENT: InstanceState
    MOUNTED: InstanceState
    RUNNING: InstanceState
    HELD: InstanceState

    @property
    def value(self) -> str:
        """The plain ``str``."""
        return str.__str__(self)


InstanceState.ABSENT = InstanceState("absent")
InstanceState.MOUNTED = InstanceState("mounted")
InstanceState.RUNNING = InstanceState("running")
InstanceState.HELD = InstanceState("held")


class _View(Value):
    __slots__: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The slots by name, in order; values inside are turned likewise."""
        return {name: _plain(getattr(self, name)) for name in self.__slots__}


def _plain(value: object) -> object:
    if isinstance(value, _View):
        return value.to_dict()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class Process(_View):
    """A process that lives in an instance or holds something of it.

    ``why`` says how it is tied to the instance: ``cgroup`` or ``root`` for the instance's own;
    ``cwd``, ``fd``, ``map``, ``socket``, ``loop``, ``namespace`` for a holder. ``what`` is the path
    or object held, for people. A holder that is no process (a loop device, an overlay) has pid 0.
    """

    __slots__ = ("command", "pid", "user", "what", "why")

    def __init__(self, pid: int, command: str, user: str, why: str, what: str = "") -> None:
        self.pid = pid
        self.command = command
        self.user = user
        self.why = why
        self.what = what

    @property
    def own(self) -> bool:
        """Whether the process is the instance's own, not an outside holder."""
        return self.why in ("cgroup", "root")

    def to_dict(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "pid": self.pid,
            "command": self.command,
            "user": self.user,
            "why": self.why,
            "what": self.what,
        }

    def describe(self) -> str:
        """One line: ``pid 123 (nginx, www-data) cwd /srv``."""
        who = f"pid {self.pid} ({self.command}, {self.user})" if self.pid else self.command
        return f"{who}: {self.why}{' ' + self.what if self.what else ''}"


class InstanceInfo(_View):
    """One instance as the kernel shows it.

    ``memory_bytes`` is in bytes and ``cpu_seconds`` in seconds (``None`` where nothing counts
    them); ``memory_source`` is ``cgroup v2``, ``cgroup v1``, ``processes`` or ``none``. ``tracking``
    is ``cgroup`` or ``root`` (own processes found by their root directory). ``started_at`` is ISO
    8601 in UTC or ``None``. ``holders`` is ``None`` where it was not looked for.
    ``namespace`` is ``None``, or names the mount namespace in which the instance lives when that is
    not the caller's.
    """

    __slots__ = (
        "cpu_seconds",
        "definition_changed",
        "disk",
        "holders",
        "memory_bytes",
        "memory_source",
        "mounts",
        "name",
        "namespace",
        "notes",
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
        plugins: Sequence[str] | None = None,
        notes: Sequence[str] = (),
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
        self.plugins = plugins
        self.notes = tuple(notes)

    def to_dict(self) -> dict[str, object]:
        """The JSON form; what only ``info`` looks for is left out where it was not looked for."""
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
        if self.namespace is not None:
            shown["namespace"] = self.namespace
        if self.mounts is not None:
            shown["mounts"] = [dict(mount) for mount in self.mounts]
            shown["definition_changed"] = self.definition_changed
            shown["plugins"] = list(self.plugins or ())
        if self.notes:
            shown["notes"] = list(self.notes)
        return shown


class NodeInfo(_View):
    """The machine: memory and disk space in MiB, load averages, counts."""

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


class Check(_View):
    """One line of ``verify``: ``status`` is ``ok``, ``warning`` or ``error``."""

    __slots__ = ("detail", "hint", "name", "status")

    def __init__(self, name: str, status: str, detail: str, hint: str = "") -> None:
        self.name = name
        self.status = status
        self.detail = detail
        self.hint = hint

    def to_dict(self) -> dict[str, object]:
        """The JSON form."""
        return {"name": self.name, "status": self.status, "detail": self.detail, "hint": self.hint}
