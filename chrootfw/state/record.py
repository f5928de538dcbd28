"""Read and write the start record: what a start wrote into the run directory.

No other module knows the keys of the file, ``RUN_DIR/NAME/record.json``, mode 0600. chrootfw 0.1
wrote version 1, into ``intent.json``. The record has the resolved definition and the undo journal
of one start. It is never a source of state: only the kernel knows whether an instance runs.
"""

from __future__ import annotations

import copy
import os

from chrootfw.errors import InputError, NotSupported, StepError
from chrootfw.linux import files, network_namespace
from chrootfw.planning import paths, privileges
from chrootfw.planning.ids import check_environment, check_text, check_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Literal, Self

VERSION = 2

_PHASES = ("starting", "started", "stopping")
_STAGES = ("mount", "pre-start", "init-start", "init-stop", "kill", "unmount")
_NETWORKS = ("host", "pinned")
_KINDS = ("block", "image", "directory")
#: The greatest number that a device or an inode has.
_NUMBER_MAX = 2**64 - 1


def directory(run_dir: str, name: str) -> str:
    """Return the path of the directory in which everything of one instance is."""
    return f"{run_dir}/{name}"


def root(run_dir: str, name: str) -> str:
    """Return the path of the mount point of an instance's root."""
    return f"{run_dir}/{name}/root"


def path(run_dir: str, name: str) -> str:
    """Return the path of an instance's record."""
    return f"{run_dir}/{name}/record.json"


def network(run_dir: str, name: str) -> str:
    """Return the path at which the network namespace of an instance is pinned."""
    return f"{run_dir}/{name}/netns"


def _old_path(run_dir: str, name: str) -> str:
    """Return the path at which chrootfw 0.1 wrote the record."""
    return f"{run_dir}/{name}/intent.json"


class _WrongError(Exception):
    """Say that no version of chrootfw wrote a value."""


class _Fields:
    """Take the values out of one JSON object, each once and with its type.

    Attributes:
        left: The values that were not taken. At the end they are those of keys that this version
            does not know.
    """

    __slots__ = ("left",)

    def __init__(self, found: object) -> None:
        if type(found) is not dict:
            raise _WrongError
        self.left: dict[str, Any] = dict(found)

    def text(self, key: str) -> str:
        return self._typed(key, str)  # type: ignore[no-any-return]

    def text_or_none(self, key: str) -> str | None:
        return self._typed(key, str, type(None))  # type: ignore[no-any-return]

    def flag(self, key: str) -> bool:
        return self._typed(key, bool)  # type: ignore[no-any-return]

    def mapping(self, key: str) -> dict[str, Any]:
        return self._typed(key, dict)  # type: ignore[no-any-return]

    def mapping_or_none(self, key: str) -> dict[str, Any] | None:
        return self._typed(key, dict, type(None))  # type: ignore[no-any-return]

    def items(self, key: str) -> list[Any]:
        return self._typed(key, list)  # type: ignore[no-any-return]

    def texts(self, key: str) -> list[str]:
        found = self.items(key)
        if any(type(each) is not str for each in found):
            raise _WrongError
        return found

    def number(self, key: str) -> int:
        return _number(self._typed(key, int))

    def numbers(self, key: str) -> list[int]:
        return [_number(each) for each in self.items(key)]

    def one_of(self, key: str, known: Iterable[str]) -> str:
        found = self.text(key)
        if found not in known:
            raise _WrongError
        return found

    def _typed(self, key: str, *types: type) -> Any:
        found = self.left.pop(key, self)
        if type(found) not in types:  # exactly: True is not a number
            raise _WrongError
        return found


def _number(found: object) -> int:
    if type(found) is not int or not 0 <= found <= _NUMBER_MAX:
        raise _WrongError
    return found


class RecordedDisk:
    """A disk of the tree as it was when the start mounted it.

    Attributes:
        kind: ``block``, ``image`` or ``directory``.
        path: The path on the host.
        file: Device and inode of the file at that path.
        devices: The devices of its file systems; none until it is mounted.
        loop: The path of the loop device of an image.
        others: The values of unknown keys.
    """

    __slots__ = ("devices", "file", "kind", "loop", "others", "path")

    def __init__(
        self,
        kind: str,
        path: str,
        file: tuple[int, int],
        devices: Iterable[int] = (),
        loop: str | None = None,
    ) -> None:
        self.kind, self.path, self.file, self.devices, self.loop = (
            kind,
            path,
            file,
            list(devices),
            loop,
        )
        self.others: Mapping[str, Any] = {}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            **self.others,
            "kind": self.kind,
            "path": self.path,
            "file": list(self.file),
            "devices": self.devices,
            "loop": self.loop,
        }

    @classmethod
    def from_json(cls, found: object) -> RecordedDisk:
        """Read the JSON form.

        Raises:
            InputError: A path is not valid.
        """
        fields = _Fields(found)
        file = fields.numbers("file")
        if len(file) != 2:
            raise _WrongError
        disk = cls(
            fields.one_of("kind", _KINDS),
            fields.text("path"),
            (file[0], file[1]),
            fields.numbers("devices"),
            fields.text_or_none("loop"),
        )
        disk.others = fields.left
        for each in (disk.path, disk.loop):
            if each is not None:
                paths.check_absolute(each, what="the path of a disk")
        return disk


class RecordedStep:
    """A Step that was applied, or was about to be: enough to undo it in another process.

    Attributes:
        kind: A word for people.
        reference: The class, as ``module:qualname``.
        arguments: The fields of the Step.
        facts: What ``apply`` returned; ``None`` until it has returned.
        stage: The stage in which the Step was applied.
        place: ``AT:TARGET`` of the mount whose source the Step makes, or empty.
        plugin: The name of the plugin that answered with the Step.
        distribution: The distribution of that plugin.
        version: The version of that distribution.
        others: The values of unknown keys.
    """

    __slots__ = (
        "arguments", "distribution", "facts", "kind", "others", "place", "plugin", "reference",
        "stage", "version",
    )  # fmt: skip

    def __init__(
        self,
        kind: str,
        reference: str,
        arguments: dict[str, Any],
        *,
        stage: str,
        plugin: str,
        distribution: str | None,
        version: str | None,
        place: str = "",
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.kind, self.reference, self.arguments = kind, reference, arguments
        self.stage, self.place, self.facts = stage, place, facts
        self.plugin, self.distribution, self.version = plugin, distribution, version
        self.others: Mapping[str, Any] = {}

    def describe(self) -> str:
        """Return the kind, the arguments and the plugin, for a message."""
        who = " ".join(filter(None, (self.plugin, self.distribution, self.version)))
        return f"{self.kind} {self.arguments} of plugin {who}"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, from which another process makes the Step again."""
        return {
            **self.others,
            "kind": self.kind,
            "class": self.reference,
            "arguments": self.arguments,
            "facts": self.facts,
            "stage": self.stage,
            "place": self.place,
            "plugin": self.plugin,
            "distribution": self.distribution,
            "version": self.version,
        }

    @classmethod
    def from_json(cls, found: object) -> RecordedStep:
        """Read the JSON form."""
        fields = _Fields(found)
        step = cls(
            fields.text("kind"),
            fields.text("class"),
            fields.mapping("arguments"),
            stage=fields.one_of("stage", _STAGES),
            plugin=fields.text("plugin"),
            distribution=fields.text_or_none("distribution"),
            version=fields.text_or_none("version"),
            place=fields.text("place"),
            facts=fields.mapping_or_none("facts"),
        )
        step.others = fields.left
        return step


class RecordedPlugin:
    """A plugin that was loaded at the start.

    Attributes:
        name: The name.
        distribution: The distribution that it is installed with, if any.
        version: The version of that distribution.
        origin: Where it came from; empty if that is not known.
        others: The values of unknown keys.
    """

    __slots__ = ("distribution", "name", "origin", "others", "version")

    def __init__(
        self, name: str, distribution: str | None, version: str | None, origin: str = ""
    ) -> None:
        self.name, self.distribution, self.version, self.origin = (
            name,
            distribution,
            version,
            origin,
        )
        self.others: Mapping[str, Any] = {}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            **self.others,
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "band": self.origin,
        }

    @classmethod
    def from_json(cls, found: object) -> RecordedPlugin:
        """Read the JSON form."""
        fields = _Fields(found)
        plugin = cls(
            fields.text("name"),
            fields.text_or_none("distribution"),
            fields.text_or_none("version"),
            fields.text("band"),
        )
        plugin.others = fields.left
        return plugin


class StartRecord:
    """The resolved definition and the undo journal of one start.

    Attributes:
        boot_id: The boot in which the record was written.
        namespace: The inode of the mount namespace in which the instance was started.
        name: The instance's name.
        disk: Its disk.
        init_script: The path of its init script inside the root; ``None`` for none.
        params: Its parameters, defaults included.
        extra_plugins: The plugins for this instance alone.
        definition: The text of the definition file that was used, or ``None``.
        plugins: The plugins that were loaded at the start.
        phase: ``starting``, ``started`` or ``stopping``.
        init_ran: Whether the init script was called with ``start``.
        left_process: Whether an own process was running when the start was done; ``False`` too in
            records that do not have it.
        stop_done: Whether the init script was called with ``stop`` and came to its end.
        started_at: ISO 8601, UTC; ``None`` until the start is done.
        entry: The answer of ``enter`` (``Entry.to_dict``), or ``None``.
        cgroups: The inodes of the cgroups of this start; ``None`` in records that do not have them.
        network: The network namespace of this start, ``host`` or ``pinned`` (``network``); ``None``
            in records that do not have it.
        disks: The disks of the tree, the root's first.
        steps: The undo journal, in order of application.
        undo_failed: Whether a Step could not be undone in the mounted root, which stayed mounted
            for a second attempt.
        others: The values of unknown keys.
        others_of_instance: The values of unknown keys among the instance's fields.
    """

    __slots__ = (
        "boot_id", "cgroups", "definition", "disk", "disks", "entry", "extra_plugins", "init_ran",
        "init_script", "left_process", "name", "namespace", "network", "others",
        "others_of_instance", "params", "phase", "plugins", "started_at", "steps", "stop_done",
        "undo_failed",
    )  # fmt: skip

    boot_id: str
    namespace: int
    definition: str | None
    plugins: list[RecordedPlugin]
    phase: Literal["starting", "started", "stopping"]
    init_ran: bool
    left_process: bool
    stop_done: bool
    started_at: str | None
    entry: dict[str, Any] | None
    cgroups: list[int] | None
    network: Literal["host", "pinned"] | None
    disks: list[RecordedDisk]
    steps: list[RecordedStep]
    undo_failed: bool

    def __init__(
        self,
        name: str,
        disk: str | None,
        init_script: str | None,
        params: dict[str, Any],
        extra_plugins: Iterable[str],
    ) -> None:
        self.name, self.disk, self.init_script = name, disk, init_script
        self.params, self.extra_plugins = params, list(extra_plugins)
        self.boot_id, self.namespace = "", 0
        self.definition = self.started_at = self.entry = self.cgroups = self.network = None
        self.plugins, self.disks, self.steps = [], [], []
        self.phase = "starting"
        self.init_ran = self.left_process = self.stop_done = self.undo_failed = False
        self.others: Mapping[str, Any] = {}
        self.others_of_instance: Mapping[str, Any] = {}

    def is_of_this_boot(self) -> bool:
        """Return whether the record was written in this boot."""
        return self.boot_id == files.boot_id()

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other attributes.

        The lists are copied; the objects in them are shared.
        """
        other = copy.copy(self)
        other.plugins, other.disks, other.steps = (
            list(self.plugins),
            list(self.disks),
            list(self.steps),
        )
        for key, value in changes.items():
            setattr(other, key, value)
        return other

    def instance_fields(self) -> dict[str, Any]:
        """Return the arguments of ``Instance``."""
        return {
            "name": self.name,
            "disk": self.disk,
            "init_script": self.init_script,
            "params": self.params,
            "plugins": self.extra_plugins,
        }

    def entry_fields(self) -> dict[str, Any] | None:
        """Return the arguments of ``Entry``, without unknown keys; ``None`` without an entry."""
        return self.entry and {key: self.entry[key] for key in _ENTRY if key in self.entry}

    @property
    def mount_attributes(self) -> list[str]:
        """The attributes that the entry wants for each mount of the instance."""
        return self.entry["mount_attributes"] if self.entry else []

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            **self.others,
            "version": VERSION,
            "boot_id": self.boot_id,
            "namespace": self.namespace,
            "instance": {**self.others_of_instance, **self.instance_fields()},
            "definition": self.definition,
            "plugins": [plugin.to_json() for plugin in self.plugins],
            "phase": self.phase,
            "init_ran": self.init_ran,
            "left_process": self.left_process,
            "stop_done": self.stop_done,
            "started_at": self.started_at,
            "entry": self.entry,
            "cgroups": self.cgroups,
            "network": self.network,
            "disks": [disk.to_json() for disk in self.disks],
            "steps": [step.to_json() for step in self.steps],
            "undo_failed": self.undo_failed,
        }

    @classmethod
    def from_json(cls, found: object) -> StartRecord | None:
        """Read the JSON form of this version or an earlier one.

        Returns:
            The record; ``None`` if no version of chrootfw wrote such a value.
        """
        try:
            return cls._read(_Fields(found))
        except (_WrongError, InputError):
            return None

    @classmethod
    def _read(cls, fields: _Fields) -> StartRecord:
        version = fields.number("version")
        if version == 1:
            _migrate(fields.left)
        elif version != VERSION:
            raise _WrongError
        instance = _Fields(fields.mapping("instance"))
        record = cls(
            instance.text("name"),
            instance.text_or_none("disk"),
            instance.text_or_none("init_script"),
            instance.mapping("params"),
            instance.texts("plugins"),
        )
        record.others_of_instance = instance.left
        for each, what in ((record.disk, "disk"), (record.init_script, "init_script")):
            if each is not None:
                paths.check_absolute(each, what=what)
        for name in record.extra_plugins:
            check_text(name, "a plugin's name")
        record.boot_id = fields.text("boot_id")
        record.namespace = fields.number("namespace")
        record.definition = fields.text_or_none("definition")
        record.plugins = [RecordedPlugin.from_json(each) for each in fields.items("plugins")]
        record.phase = fields.one_of("phase", _PHASES)  # type: ignore[assignment]
        record.init_ran = fields.flag("init_ran")
        if "left_process" in fields.left:
            record.left_process = fields.flag("left_process")
        record.stop_done = fields.flag("stop_done")
        record.started_at = fields.text_or_none("started_at")
        record.entry = fields.mapping_or_none("entry")
        if record.entry is not None:
            _check_entry(record.entry)
        if fields.left.get("cgroups", record) is None:
            del fields.left["cgroups"]
        else:
            record.cgroups = fields.numbers("cgroups")
        if fields.left.get("network") is None:  # a record of before it was kept
            fields.left.pop("network", None)
        else:
            record.network = fields.one_of("network", _NETWORKS)  # type: ignore[assignment]
        record.disks = [RecordedDisk.from_json(each) for each in fields.items("disks")]
        record.steps = [RecordedStep.from_json(each) for each in fields.items("steps")]
        record.undo_failed = fields.flag("undo_failed")
        record.others = fields.left
        return record


#: The Step classes of chrootfw's own that are elsewhere since version 1.
_MOVED = {"chrootfw.steps:CommandStep": "chrootfw.model:CommandStep"}


def _migrate(found: dict[str, Any]) -> None:
    """Add what records of version 1 may lack, and name the classes that have moved since."""
    for key, value in (("entry", None), ("cgroups", None), ("undo_failed", False)):
        found.setdefault(key, value)
    for key, missing in (
        ("plugins", {"band": ""}),
        ("disks", {"loop": None}),
        ("steps", {"place": "", "facts": None}),
    ):
        each_list = found.get(key)
        if type(each_list) is list:
            found[key] = [{**missing, **each} if type(each) is dict else each for each in each_list]
    for step in found["steps"] if type(found.get("steps")) is list else ():
        if type(step) is dict and type(step.get("class")) is str:
            step["class"] = _MOVED.get(step["class"], step["class"])


#: The keys of an entry; the last two were not in the first records.
_ENTRY = (
    "method", "user", "cwd", "env", "namespaces", "mount_attributes", "read_only", "no_new_privs",
    "seccomp",
    "capabilities", "masked",
)  # fmt: skip


def _check_entry(entry: dict[str, Any]) -> None:
    """Check what ``Entry`` checks, whose module takes too long to import.

    Raises:
        InputError: A path, a user or the environment is not valid.
        _WrongError: Another value is.
    """
    fields = _Fields(entry)
    method = fields.one_of("method", ("chroot", "pivot_root"))
    user, cwd = fields.text_or_none("user"), fields.text("cwd")
    namespaces, attributes = fields.texts("namespaces"), fields.texts("mount_attributes")
    read_only, seccomp = fields.texts("read_only"), fields.text("seccomp")
    masked = fields.texts("masked") if "masked" in entry else []  # an older record has none
    check_environment(fields.mapping("env"))
    no_new_privs = fields.flag("no_new_privs")
    capabilities = fields.texts("capabilities") if entry.get("capabilities") is not None else []
    for given, known in (
        (namespaces, privileges.NAMESPACES),
        (attributes, privileges.MOUNT_ATTRIBUTES),
        (capabilities, privileges.CAPABILITIES),
    ):
        if any(word not in known for word in given):
            raise _WrongError
    if method == "chroot" and (namespaces or attributes or read_only or masked):
        raise _WrongError
    if seccomp and not no_new_privs:
        raise _WrongError
    for each in (cwd, *read_only, *masked):
        paths.check_absolute(each, what="a path of an entry")
    if user is not None:
        check_user(user)
    privileges.decode_program(seccomp)


def load(run_dir: str, name: str) -> StartRecord | None:
    """Read the record of an instance.

    Args:
        run_dir: The run directory.
        name: The instance.

    Returns:
        The record; ``None`` if it is lost: the file is missing, or no version of chrootfw wrote it.

    Raises:
        TrustError: A user other than root can write the file.
        NotSupported: A newer chrootfw wrote it. This one does not know what there is to undo.
        OSError: The file cannot be read.
    """
    found = files.load(path(run_dir, name))
    if found is None and not os.path.lexists(path(run_dir, name)):
        found = files.load(_old_path(run_dir, name))
    version = found.get("version") if isinstance(found, dict) else None
    if type(version) is int and VERSION < version <= _NUMBER_MAX:
        raise NotSupported(
            f"{name} was started by a newer chrootfw (record version {version})",
            hint="use that one to stop it",
        )
    record = StartRecord.from_json(found)
    return record if record is not None and record.name == name else None


def save(run_dir: str, record: StartRecord) -> None:
    """Write a record, in place of the one before.

    Raises:
        StepError: It cannot be written; the one before stays.
    """
    data = dump(record)
    try:
        files.write(path(run_dir, record.name), data)
        files.remove(_old_path(run_dir, record.name))
    except OSError as error:
        raise StepError(
            f"cannot write the record of {record.name} into the run directory {run_dir}:"
            f" {error.strerror}",
            hint=f"see that {run_dir} is writable and has space (df {run_dir})",
        ) from error


def dump(record: StartRecord) -> bytes:
    """Return a record as the file has it.

    Raises:
        StepError: JSON cannot express it, or it is too large.
    """
    try:
        return files.dump(record.to_json())
    except (TypeError, ValueError) as error:
        raise StepError(
            f"cannot write the record of {record.name}: {error}",
            hint="parameters must be JSON values",
        ) from error


def remove(run_dir: str, name: str) -> None:
    """Remove an instance's directory: chrootfw's files by name, directories only if empty.

    Raises:
        StepError: Something else is in there, or cannot be removed.
    """
    base = directory(run_dir, name)
    try:
        network_namespace.unpin(network(run_dir, name))
    except OSError as error:
        raise _cannot_remove(f"the mount {base}/netns", error) from error
    for file in ("intent.json", "record.json", "output.json", "init-start.log", "init-stop.log"):
        for name_or_half in (file, f"{file}.new"):  # what files.write leaves when it is killed
            try:
                files.remove(f"{base}/{name_or_half}")
            except OSError as error:
                raise _cannot_remove(f"the file {base}/{name_or_half}", error) from error
    try:
        aux = sorted(os.listdir(f"{base}/aux"))
    except FileNotFoundError:
        aux = []  # most instances have no auxiliary layer
    for place in (*(f"{base}/aux/{name}" for name in aux), f"{base}/aux", f"{base}/root", base):
        try:
            os.rmdir(place)
        except FileNotFoundError:
            pass  # an earlier cleanup was interrupted here
        except OSError as error:
            raise _cannot_remove(f"the directory {place}", error) from error


def _cannot_remove(what: str, error: OSError) -> StepError:
    return StepError(
        f"cannot remove {what}: {error.strerror}",
        hint="something else was put there; look at it and remove it by hand",
    )
