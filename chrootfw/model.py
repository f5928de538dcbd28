"""The values that plugins answer with and that plans are made of.

All are frozen: a plugin decides, and what it decided cannot change behind the core's back.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import attrs

from chrootfw.errors import InputError
from chrootfw.planning import paths, privileges
from chrootfw.values import Value

#: Where the init script is when a definition does not say, inside the root.
DEFAULT_INIT_SCRIPT = "/etc/chrootfw/init"

#: The longest time-out of a command in seconds: nothing waits for ever.
TIMEOUT_MAX = 86_400

#: How long a disk may need for one mount or unmount unless a definition says otherwise, in seconds.
DISK_TIMEOUT = 60.0

Stage = Literal["mount", "pre-start", "init-start", "init-stop", "kill", "unmount"]
EventKind = Literal["begin", "end", "fail", "warning", "blame"]
STAGES: tuple[Stage, ...] = ("mount", "pre-start", "init-start", "init-stop", "kill", "unmount")


def _frozen_mapping(value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return MappingProxyType(dict(value or {}))


def _environment(value: Mapping[str, str] | None) -> Mapping[str, str]:
    for key, text in (value or {}).items():
        if not _string(key) or "=" in key:
            raise InputError(f"{key!r} is no name of an environment variable")
        _string(text)
    return _frozen_mapping(value)


def _strings(value: Sequence[str]) -> tuple[str, ...]:
    """A tuple of ``str``; a lone string is a mistake that would be read letter by letter."""
    if isinstance(value, str | bytes):
        raise InputError(f"expected a sequence of str, not the {type(value).__name__} {value!r}")
    return tuple(_string(item) for item in value)


def _string(value: object) -> str:
    """A ``str`` that the kernel can take: a path-like object is turned into one, a NUL byte is refused."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise InputError(f"expected a str, found {value!r}")
    if "\0" in text:
        raise InputError(f"{text!r} contains a NUL byte")
    return text


def _path(value: str | os.PathLike[str] | None) -> str | None:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _init_script(value: str | os.PathLike[str] | bool | None) -> str | None:
    if value is None or value is False:
        return None
    if value is True:
        raise InputError("init_script is true; it must be a path inside the root, or false for none")
    return _path(value)


def _check_path(_instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None:
        paths.check_absolute(value, what=attribute.name)


def _check_name(_instance: object, _attribute: attrs.Attribute[Any], value: str) -> None:
    paths.check_name(value)


@attrs.frozen(eq=False, repr=False)
class Instance(Value):
    """One chroot instance, as defined.

    ``name``: ``[A-Za-z0-9][A-Za-z0-9._-]{0,199}``. ``disk``: absolute, normalised path of a block
    device, an image file or a directory. ``init_script``: absolute, normalised path inside the
    root; ``None`` or ``False`` mounts only. ``params``: every other parameter by name, the core's and
    the plugins'. ``plugins``: names of plugins asked for by this instance alone.

    Raises ``InputError`` for a bad name or path.
    """

    name: str = attrs.field(validator=_check_name)
    disk: str | None = attrs.field(default=None, converter=_path, validator=_check_path)
    init_script: str | None = attrs.field(default=DEFAULT_INIT_SCRIPT, converter=_init_script, validator=_check_path)
    params: Mapping[str, Any] = attrs.field(factory=dict, converter=_frozen_mapping)
    plugins: tuple[str, ...] = attrs.field(default=(), converter=_strings)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as kept in the intent file."""
        return {
            "name": self.name,
            "disk": self.disk,
            "init_script": self.init_script,
            "params": dict(self.params),
            "plugins": list(self.plugins),
        }


class Step:
    """Something that a plugin wants done to the system, as data.

    Subclasses are frozen attrs classes whose fields are JSON values, and must be importable by module
    and name: a step is undone by another process, from its record alone. ``kind`` names the step in
    records and plans.

    The record is a mapping: ``kind``, ``arguments`` (the fields), ``facts`` (what ``apply`` returned,
    or ``None`` when it never came to its end), ``plugin`` and ``version``.

    ``deadline``: seconds that ``apply`` and ``undo`` have, each; after that the command goes on without them, and says so.
    """

    kind: ClassVar[str] = ""
    deadline: ClassVar[float] = 300.0

    def describe(self) -> str:
        """What the step does, in one line without a full stop."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it does")

    def check(self) -> None:
        """Called before the step is recorded: raises when it cannot be applied. Nothing is undone then."""

    def apply(self) -> Mapping[str, Any] | None:
        """Do it. Returns JSON facts that ``undo`` or the core needs, such as ``{"source": path}``."""
        raise NotImplementedError(f"{type(self).__name__} cannot be applied")

    def undo(self, record: Mapping[str, Any]) -> None:
        """Take it back. Must succeed when ``apply`` never ran, ran half, or was undone before."""
        raise NotImplementedError(f"{type(self).__name__} cannot be undone")

    def arguments(self) -> dict[str, Any]:
        """The fields by name, as JSON values."""
        kind = type(self)
        return attrs.asdict(self) if attrs.has(kind) else dict(vars(self))  # type: ignore[arg-type]  # has() knows


@attrs.frozen(eq=False, repr=False)
class Node(Value):
    """Something made in a new in-memory file system: a directory, or with ``link`` a symbolic link to that
    text, or with ``device`` (major, minor) a character device. ``path`` is relative to the mount point."""

    path: str = attrs.field()
    mode: int = 0o755
    link: str | None = None
    device: tuple[int, int] | None = None

    @path.validator
    def _check_path(self, _attribute: attrs.Attribute[str], value: str) -> None:
        paths.check_absolute(f"/{value}", what="the path of a node")


def _nodes(nodes: Iterable[Node]) -> tuple[Node, ...]:
    return tuple(nodes)


@attrs.frozen(eq=False, repr=False)
class MountPoint(Value):
    """A mount of the instance's tree.

    ``target``: absolute, normalised path inside the root; ``/`` is the root itself. ``source``: a block
    device, an image file, a directory or file to bind, a word such as ``tmpfs``, or a ``Step`` whose
    facts have ``source``. ``fstype``: ``None`` to find it, or to bind a directory. ``options``: as in
    mount(8), among them ``ro``, ``bind``, ``rbind``; ``{aux:NAME}`` in an option becomes the path of that
    auxiliary mount. ``at``: ``root``, or ``aux:NAME`` for ``RUN_DIR/INSTANCE/aux/NAME``, a layer outside the root.
    ``nodes``: what to make in it before it is attached; tmpfs only.
    """

    target: str = attrs.field()
    source: str | Step = attrs.field()
    fstype: str | None = None
    options: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    at: str = attrs.field(default="root")
    nodes: tuple[Node, ...] = attrs.field(default=(), converter=_nodes)

    @target.validator
    def _check_target(self, _attribute: attrs.Attribute[str], value: str) -> None:
        paths.check_absolute(value, what="the target of a mount point")

    @nodes.validator
    def _check_nodes(self, _attribute: attrs.Attribute[Any], value: tuple[Node, ...]) -> None:
        if value and self.fstype != "tmpfs":
            raise InputError(f"mount point {self.target} has nodes; only a tmpfs may have them")

    @source.validator
    def _check_source(self, _attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, Step) and (not isinstance(value, str) or not value or "\0" in value):
            raise InputError(f"the source of mount point {self.target} is {value!r}, not a path, word or Step")

    @at.validator
    def _check_at(self, _attribute: attrs.Attribute[str], value: str) -> None:
        paths.check_at(value)

    def describe(self) -> str:
        """``ext4 /srv/web1.img on /``."""
        source = self.source.describe() if isinstance(self.source, Step) else self.source
        kind = self.fstype or ("bind" if "bind" in self.options or "rbind" in self.options else "")
        where = self.target if self.at == "root" else f"{self.at}{self.target}"
        options = f" ({','.join(self.options)})" if self.options else ""
        return f"{kind + ' ' if kind and kind != source else ''}{source} on {where}{options}"


@attrs.frozen(eq=False, repr=False)
class Omit(Value):
    """Nothing is to be mounted on ``target``, whatever a plugin asked later says."""

    target: str = attrs.field()
    at: str = attrs.field(default="root")

    @target.validator
    def _check_target(self, _attribute: attrs.Attribute[str], value: str) -> None:
        paths.check_absolute(value, what="the target of an Omit")

    @at.validator
    def _check_at(self, _attribute: attrs.Attribute[str], value: str) -> None:
        paths.check_at(value)


@attrs.frozen(eq=False, repr=False)
class Mount(Value):
    """One line of the mount table that belongs to an instance; what ``unmount_ordering`` orders.

    ``target`` and ``at`` as in ``MountPoint``, bytes that are no UTF-8 as surrogate escapes. ``id`` and
    ``parent`` are mount IDs (proc_pid_mountinfo(5)), unique where targets are not: mounts may be stacked.
    """

    target: str
    source: str
    fstype: str | None
    options: tuple[str, ...]
    at: str
    id: int
    parent: int


@attrs.frozen(eq=False, repr=False)
class Command(Value):
    """What to run inside: ``argv`` (``argv[0]`` an absolute path in the root), more environment
    variables, and a time-out in seconds."""

    argv: tuple[str, ...] = attrs.field(converter=_strings)
    env: Mapping[str, str] = attrs.field(factory=dict, converter=_environment)
    timeout: float = attrs.field(default=60.0)

    @argv.validator
    def _check_argv(self, _attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
        if not value:
            raise InputError("a Command needs at least one word in argv; NO_COMMAND says that there is none")

    @timeout.validator
    def _check_timeout(self, _attribute: attrs.Attribute[Any], value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= TIMEOUT_MAX:
            raise InputError(f"a Command's timeout is {value!r}; it must be seconds above 0, at most {TIMEOUT_MAX}")


class NoCommand:
    """The type of ``NO_COMMAND``."""

    def __repr__(self) -> str:
        return "NO_COMMAND"


#: The answer of ``init_script`` when nothing is to be run.
NO_COMMAND = NoCommand()


@attrs.frozen(eq=False, repr=False)
class Entry(Value):
    """How a process gets inside.

    ``method``: ``chroot``, or ``pivot_root`` for a mount namespace of its own in which nothing but the root is left
    (pivot_root(2)). ``user``: a name or number that the root's own
    /etc/passwd knows, ``None`` for root. ``cwd``: inside the root. ``env``: more environment variables.

    With ``pivot_root``: ``namespaces`` of the instance's own, out of ``pid``, ``ipc`` and ``uts``, made by its first process and joined by
    the others; ``mount_attributes`` for all its mounts, out of ``nosuid`` and ``nodev`` (which spares ``/dev``); ``read_only``: paths that
    cannot be written to, in so far as they exist.

    ``capabilities``: those that are kept, named as in capabilities(7) without ``CAP_``; ``None`` for all. ``no_new_privs``: prctl(2). ``seccomp``: a
    program for seccomp(2) in base64, as libseccomp exports it; it needs ``no_new_privs``.
    """

    method: str = attrs.field(default="chroot")
    user: str | None = None
    cwd: str = attrs.field(default="/", validator=_check_path)
    env: Mapping[str, str] = attrs.field(factory=dict, converter=_environment)
    namespaces: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    mount_attributes: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    read_only: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    capabilities: tuple[str, ...] | None = attrs.field(default=None, converter=attrs.converters.optional(_strings))
    no_new_privs: bool = False
    seccomp: str = ""

    @method.validator
    def _check_method(self, _attribute: attrs.Attribute[str], value: str) -> None:
        if value not in ("chroot", "pivot_root"):
            raise InputError(f"an Entry's method is {value!r}; it must be chroot or pivot_root")

    def __attrs_post_init__(self) -> None:
        for what, given, known in (
            ("namespace", self.namespaces, tuple(privileges.NAMESPACES)),
            ("mount attribute", self.mount_attributes, ("nosuid", "nodev")),
            ("capability", self.capabilities or (), privileges.CAPABILITIES),
        ):
            for word in given:
                if word not in known:
                    raise InputError(f"an Entry's {what} is {word!r}; it must be one of {', '.join(known)}")
        if self.method != "pivot_root" and (self.namespaces or self.mount_attributes or self.read_only):
            raise InputError("an Entry with namespaces, mount_attributes or read_only needs the method pivot_root")
        for path in self.read_only:
            paths.check_absolute(path, what="an Entry's read-only path")
        if self.seccomp and not self.no_new_privs:
            raise InputError("an Entry with seccomp needs no_new_privs (seccomp(2))")
        privileges.decode_program(self.seccomp)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as kept in the intent file."""
        return {
            "method": self.method,
            "user": self.user,
            "cwd": self.cwd,
            "env": dict(self.env),
            "namespaces": list(self.namespaces),
            "mount_attributes": list(self.mount_attributes),
            "read_only": list(self.read_only),
            "capabilities": None if self.capabilities is None else list(self.capabilities),
            "no_new_privs": self.no_new_privs,
            "seccomp": self.seccomp,
        }


def _recipients(to: str | Iterable[int]) -> str | tuple[int, ...]:
    return to if isinstance(to, str) else tuple(to)


@attrs.frozen(eq=False, repr=False)
class Escalation(Value):
    """Send ``signal`` (a number or ``signal.Signals``), then wait at most ``grace`` seconds.

    ``to``: ``own`` (the instance's own processes), ``all`` (also the outside holders that were given), or pids
    out of those that were given.
    """

    signal: int
    grace: float
    to: str | tuple[int, ...] = attrs.field(default="own", converter=_recipients)


@attrs.frozen(eq=False, repr=False)
class Problem(Value):
    """Something that stands in the way of a start: one sentence, and what to do about it.

    With ``warning`` it is told, and the start goes on.
    """

    brief: str
    hint: str = ""
    warning: bool = False


def always_right(_value: Any) -> None:
    """The check of a parameter that has none."""


#: The types that a value in TOML may have.
_TYPES = (str, bool, int, float, list, dict)
_Type = type  # inside Parameter, "type" is its field


@attrs.frozen(eq=False, repr=False)
class Parameter(Value):
    """A parameter of an instance: a key of its definition.

    ``name``: ``[a-z][a-z0-9_]*``. ``type``: the type of the value in TOML (``str``, ``bool``, ``int``, ``float``, ``list``, ``dict``), or a
    tuple of them; ``int`` is taken for ``float``. ``default``: of that type, or ``None``. ``check``: called with the value; returns ``None``, or a
    sentence that says what is wrong (it may raise ``ValueError`` instead). ``help``: one line.

    Raises ``InputError`` for anything else.
    """

    name: str = attrs.field()
    type: type | tuple[type, ...] = attrs.field()
    default: Any = attrs.field(default=None)
    check: Callable[[Any], str | None] = attrs.field(default=always_right)
    help: str = attrs.field(default="")

    @property
    def types(self) -> tuple[_Type, ...]:
        """The types as a tuple."""
        return self.type if isinstance(self.type, tuple) else (self.type,)

    def fits(self, value: object) -> bool:
        """Whether a value is of the type; ``True`` and ``False`` are no numbers."""
        if isinstance(value, bool):
            return bool in self.types
        return (
            isinstance(value, self.types)
            or (float in self.types and isinstance(value, int))
            or (list in self.types and isinstance(value, tuple))
        )

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise InputError(f"a Parameter's name is {self.name!r}; it must be lower-case letters, digits and _")
        for kind in self.types:
            if kind not in _TYPES:
                known = ", ".join(known.__name__ for known in _TYPES)
                raise InputError(f"the type of parameter {self.name} is {kind!r}; it must be out of {known}")
        if not callable(self.check):
            raise InputError(f"the check of parameter {self.name} is {self.check!r}, not a function")
        if self.default is not None and not self.fits(self.default):
            raise InputError(f"the default of parameter {self.name} is {self.default!r}, which is not of its type")


#: What an ``Instance`` has as fields, as parameters: shown by ``chrootfw parameters``, and no plugin's to declare.
FIELDS = (
    Parameter("disk", str, None, help="block device, image file or directory (bound, not recursively)"),
    Parameter(
        "init_script",
        (str, bool),
        DEFAULT_INIT_SCRIPT,
        help="path inside the root, used for start and stop; false: mount only",
    ),
    Parameter("plugins", list, (), help="plugins for this instance alone, by name or module:attribute"),
    Parameter("require_process", bool, False, help="a start whose init script leaves no process alive is an error"),
    Parameter(
        "disk_timeout",
        float,
        DISK_TIMEOUT,
        lambda value: None if 0 < value <= TIMEOUT_MAX else f"it must be above 0, at most {TIMEOUT_MAX} seconds",
        help="seconds for the disk to answer, in one mount or unmount; then it is left alone and told",
    ),
)


@attrs.frozen(eq=False, repr=False)
class Event(Value):
    """What an observer is told: a step begins, ends or fails, or something must be said.

    ``what``: ``begin``, ``end`` or ``fail`` of the step that ``does`` describes; ``warning``, with the sentence in ``does``; or
    ``blame`` for the ``plugin``, in full in ``error``. ``stage``: ``""`` for what belongs to none. ``seconds``: how long a step took,
    at its end. ``output``: at most 64 KiB of an init script's output (bytes).
    """

    what: EventKind
    instance: str
    stage: Stage | Literal[""]
    does: str
    plugin: str = ""
    error: str = ""
    seconds: float = 0.0
    output: bytes = b""


@attrs.frozen(eq=False, repr=False)
class PlannedStep(Value):
    """One line of a plan: ``stage``, what it ``does``, and the name of the ``plugin`` that answered."""

    stage: Stage
    does: str
    plugin: str


@attrs.frozen(eq=False, repr=False)
class Plan(Value):
    """What a verb would do; nothing has been touched."""

    verb: str
    instance: str
    steps: tuple[PlannedStep, ...]

    def describe(self) -> str:
        """The plan for people: a line for each step, grouped by stage."""
        lines = [f"{self.verb} {self.instance}:"]
        width = max((len(step.stage) for step in self.steps), default=0)
        number_width = len(str(len(self.steps)))
        for number, step in enumerate(self.steps, 1):
            by = f"  [{step.plugin}]" if step.plugin else ""
            lines.append(f"  {number:>{number_width}}  {step.stage:<{width}}  {step.does}{by}")
        if not self.steps:
            lines.append("  nothing to do")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"steps": [attrs.asdict(step) for step in self.steps]}
