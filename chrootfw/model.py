"""Values that plugins answer with and that plans are made of.

All are frozen, equal where their fields are, and can be copied and pickled. Mappings are copied in
and out, with what is inside them: what a plugin decided cannot change behind the core's back. A
mapping has no part in a value's hash.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar, Literal

import attrs

from chrootfw.errors import InputError, StepError
from chrootfw.planning import ids, paths, privileges

#: Where the init script is when a definition does not say, inside the root.
DEFAULT_INIT_SCRIPT = "/etc/chrootfw/init"

#: The longest time-out of a command in seconds: nothing waits for ever.
TIMEOUT_MAX = 86_400

Stage = Literal["mount", "pre-start", "init-start", "init-stop", "kill", "unmount"]
EventKind = Literal["begin", "end", "fail", "output", "warning", "plugin-error"]
STAGES: tuple[Stage, ...] = ("mount", "pre-start", "init-start", "init-stop", "kill", "unmount")


def _copy(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Copy a mapping, and the lists and mappings inside."""
    try:
        return copy.deepcopy(dict(value or {}))
    except Exception as error:  # of an object that is none of TOML's
        raise InputError(f"the values of {value!r} cannot be copied: {error}") from error


def _parameters(value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f"params is {value!r}; it must be a mapping of names to values")
    for name in value or ():
        if not isinstance(name, str):
            raise InputError(f"the name of a parameter is {name!r}; it must be a string")
    return _copy(value)


def _environment(value: Mapping[str, str] | None) -> Mapping[str, str]:
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f"the environment is {value!r}; it must be a mapping of names to values")
    for key, text in (value or {}).items():
        if not _string(key) or "=" in key:
            raise InputError(f"{key!r} is not a valid name of an environment variable")
        _string(text)
    return _copy(value)


def _strings(value: Sequence[str]) -> tuple[str, ...]:
    """Return a tuple of ``str``; leave what is not a sequence to ``_check_strings``."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return value  # type: ignore[return-value]  # it is refused
    return tuple(_string(item) for item in value)


def _check_strings(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse a lone string, which would be read letter by letter. Raises ``InputError``."""
    if value is not None and not isinstance(value, tuple):
        raise InputError(
            f"{attribute.name} is the {type(value).__name__} {value!r:.200}; it must be a sequence"
            " of str"
        )


def _string(value: object) -> str:
    """Return a ``str`` that the kernel can take.

    A path-like object is turned into one, a NUL byte is refused.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise InputError(f"expected a str, found {value!r}")
    return ids.check_text(text, "the text")


def _path(value: str | os.PathLike[str] | None) -> str | None:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _init_script(value: str | os.PathLike[str] | bool | None) -> str | None:
    if value is None or value is False:
        return None
    if value is True:
        raise InputError(
            "init_script is true; it must be a path inside the root, or false for none"
        )
    return _path(value)


def _check_path(_instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None:
        paths.check_absolute(value, what=attribute.name)


def _check_name(_instance: object, _attribute: attrs.Attribute[Any], value: str) -> None:
    paths.check_name(value)


@attrs.frozen
class Instance:
    """Define one chroot instance.

    Args:
        name: ``[A-Za-z0-9][A-Za-z0-9._-]{0,199}``.
        disk: Absolute, normalised path of a block device, an image file or a directory; ``None``
            for a root that plugins make.
        init_script: Absolute, normalised path inside the root; ``None`` or ``False`` mounts only.
        params: Every other parameter by name, the core's and the plugins'.
        plugins: Names of plugins asked for by this instance alone.

    Raises:
        InputError: A bad name, path or parameter's name.
    """

    name: str = attrs.field(validator=_check_name)
    disk: str | None = attrs.field(default=None, converter=_path, validator=_check_path)
    init_script: str | None = attrs.field(
        default=DEFAULT_INIT_SCRIPT, converter=_init_script, validator=_check_path
    )
    params: Mapping[str, Any] = attrs.field(factory=dict, converter=_parameters, hash=False)
    plugins: tuple[str, ...] = attrs.field(default=(), converter=_strings, validator=_check_strings)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, as kept in the start record."""
        return {
            "name": self.name,
            "disk": self.disk,
            "init_script": self.init_script,
            "params": _copy(self.params),
            "plugins": list(self.plugins),
        }


class Step:
    """Describe something that a plugin wants done to the system, as data.

    Subclasses are frozen attrs classes whose fields are JSON values, and stand at the top of a
    module that can be imported: a step is undone by another process, from its record alone. A start
    refuses a step for which that is not so.

    The record is a mapping: ``kind``, ``arguments`` (the fields), ``facts`` (what ``apply``
    returned, or ``None`` when it never came to its end), ``plugin`` and ``version``.

    Attributes:
        kind: The name of the step in records and plans (str).
        deadline: Seconds that ``apply`` and ``undo`` have, each (float). After that the command
            goes on without them, and says so.
    """

    kind: ClassVar[str] = ""
    deadline: ClassVar[float] = 300.0

    def describe(self) -> str:
        """Return what the step does, in one line without a full stop."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it does")

    def check(self) -> None:
        """Raise if the step cannot be applied.

        Called before the step is recorded; nothing is undone then.
        """

    def apply(self) -> Mapping[str, Any] | None:
        """Do it.

        Returns:
            JSON facts that ``undo`` or the core needs, such as ``{"source": path}``, or ``None``.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be applied")

    def undo(self, record: Mapping[str, Any]) -> None:
        """Undo it.

        An undo must succeed when ``apply`` never ran, ran half, or was undone before.

        Args:
            record: The record of the step.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be undone")

    def arguments(self) -> dict[str, Any]:
        """Return the fields by name, as JSON values."""
        kind = type(self)
        return attrs.asdict(self) if attrs.has(kind) else dict(vars(self))  # type: ignore[arg-type]  # has() knows


def _name(step: Step) -> str:
    """Return the name of a Step in records, without a call of its code."""
    kind = getattr(type(step), "kind", "")
    return kind if isinstance(kind, str) and kind else type(step).__name__


@attrs.frozen
class Node:
    """Describe something to make in a new in-memory file system.

    A node is a directory, a symbolic link or a device.

    Args:
        path: Relative to the mount point.
        mode: The permissions (int).
        link: The text of a symbolic link.
        device: Major and minor number of a device.
        block: It is a block device, not a character device.
    """

    path: str = attrs.field()
    mode: int = 0o755
    link: str | None = None
    device: tuple[int, int] | None = None
    block: bool = False

    @path.validator
    def _check_path(self, _attribute: attrs.Attribute[str], value: str) -> None:
        paths.check_absolute(f"/{value}", what="the path of a node")
        if self.link is not None:
            ids.check_text(self.link, f"the link of node {value}")


def _nodes(nodes: Iterable[Node]) -> tuple[Node, ...]:
    return tuple(nodes)


@attrs.frozen
class MountPoint:
    """Describe a mount of the instance's tree.

    Args:
        target: Absolute, normalised path inside the root; ``/`` is the root itself.
        source: A block device, an image file, a directory or file to bind, a word such as
            ``tmpfs``, or a ``Step`` whose facts have ``source``. A bind's source may not lead
            through a symbolic link, unless it is the instance's disk: give ``os.path.realpath`` of
            a path that only root can change.
        fstype: ``None`` to find it, or to bind a directory.
        options: As in mount(8), among them ``ro``, ``bind``, ``rbind``; ``{aux:NAME}`` in an option
            becomes the path of that auxiliary mount.
        at: ``root``, or ``aux:NAME`` for ``RUN_DIR/INSTANCE/aux/NAME``, a layer outside the root.
        nodes: What to make in it before it is attached; tmpfs only.

    Raises:
        InputError: A bad path, source, type, option or layer.
    """

    target: str = attrs.field()
    source: str | Step = attrs.field(hash=False)  # a Step of others need not have one
    fstype: str | None = attrs.field(default=None)
    options: tuple[str, ...] = attrs.field(default=(), converter=_strings, validator=_check_strings)
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
        if not isinstance(value, Step) and (
            not isinstance(value, str) or not value or "\0" in value
        ):
            raise InputError(
                f"the source of mount point {self.target} is {value!r}, not a path, word or Step"
            )
        if isinstance(value, str):
            ids.check_text(value, f"the source of mount point {self.target}")

    @fstype.validator
    def _check_fstype(self, _attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None:
            ids.check_text(value, f"the fstype of mount point {self.target}")

    @at.validator
    def _check_at(self, _attribute: attrs.Attribute[str], value: str) -> None:
        paths.check_at(value)

    def describe(self) -> str:
        """Return one line, such as ``ext4 /srv/web1.img on /``.

        A Step is named only: what it does is a line of its own.
        """
        source = (
            self.source if isinstance(self.source, str) else f"the result of {_name(self.source)}"
        )
        kind = self.fstype or ("bind" if "bind" in self.options or "rbind" in self.options else "")
        where = self.target if self.at == "root" else f"{self.at}{self.target}"
        options = f" ({','.join(self.options)})" if self.options else ""
        return f"{kind + ' ' if kind and kind != source else ''}{source} on {where}{options}"


@attrs.frozen
class Omit:
    """Keep a place free: nothing is mounted there, whatever a plugin called later answers.

    Args:
        target: Absolute, normalised path inside the root.
        at: The layer, as in ``MountPoint``.
    """

    target: str = attrs.field()
    at: str = attrs.field(default="root")

    @target.validator
    def _check_target(self, _attribute: attrs.Attribute[str], value: str) -> None:
        paths.check_absolute(value, what="the target of an Omit")

    @at.validator
    def _check_at(self, _attribute: attrs.Attribute[str], value: str) -> None:
        paths.check_at(value)


@attrs.frozen
class Mount:
    """Show one line of the mount table that belongs to an instance, for ``unmount_ordering``.

    Args:
        target: As in ``MountPoint``; bytes that are not UTF-8 are surrogate escapes.
        source: The source, as the kernel shows it.
        fstype: The type of the file system.
        options: The mount's options.
        at: The layer, as in ``MountPoint``.
        id: The mount ID (proc_pid_mountinfo(5)), unique where targets are not: mounts may be
            stacked.
        parent: The parent's mount ID.
    """

    target: str
    source: str
    fstype: str | None
    options: tuple[str, ...]
    at: str
    id: int
    parent: int


@attrs.frozen
class Command:
    """Describe what to run inside.

    Args:
        argv: The program, an absolute path in the root, and its arguments.
        env: More environment variables.
        timeout: Seconds until it is killed (float).

    Raises:
        InputError: No program, a NUL byte, or a time limit out of range.
    """

    argv: tuple[str, ...] = attrs.field(converter=_strings, validator=_check_strings)
    env: Mapping[str, str] = attrs.field(factory=dict, converter=_environment, hash=False)
    timeout: float = attrs.field(default=60.0)

    @argv.validator
    def _check_argv(self, _attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
        if not value:
            raise InputError(
                "a Command needs at least one word in argv; NO_COMMAND says that there is none"
            )

    @timeout.validator
    def _check_timeout(self, _attribute: attrs.Attribute[Any], value: float) -> None:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value <= TIMEOUT_MAX
        ):
            raise InputError(
                f"a Command's timeout is {value!r}; it must be seconds above 0, at most "
                f"{TIMEOUT_MAX}"
            )


class NoCommand:
    """Be the type of ``NO_COMMAND``."""

    def __repr__(self) -> str:
        return "NO_COMMAND"

    def __reduce__(self) -> str:
        """Be the one that there is when copied or unpickled."""
        return "NO_COMMAND"


#: The answer of ``init_script`` when nothing is to be run.
NO_COMMAND = NoCommand()


@attrs.frozen
class Entry:
    """Describe how a process gets inside.

    ``namespaces``, ``mount_attributes``, ``read_only`` and ``masked`` need the method
    ``pivot_root``. With the namespace ``pid``, or a path below ``/proc``, a root in which no proc
    is mounted is not entered.

    Args:
        method: ``chroot``, or ``pivot_root`` for a mount namespace of its own in which nothing but
            the root is left (pivot_root(2)).
        user: A name or number that the root's own /etc/passwd knows, ``None`` for the root user.
        cwd: The working directory inside the root.
        env: More environment variables.
        namespaces: The instance's own, out of ``pid``, ``ipc``, ``uts`` and ``cgroup``, made by its
            first process and joined by the others.
        mount_attributes: For all its mounts, on the host too, out of ``nosuid`` and ``nodev``
            (which spares ``/dev``).
        read_only: Paths that cannot be written to, in so far as they exist; ``/sys`` and what is
            below ``/proc`` in each mount of sysfs and proc.
        capabilities: Those that are kept, named as in capabilities(7) without ``CAP_``; ``None``
            for all.
        no_new_privs: As in prctl(2).
        seccomp: A program for seccomp(2) in base64, as libseccomp exports it; needs
            ``no_new_privs``.
        masked: Paths that are empty, as ``read_only``; ``*`` stands for every name in a directory
            of sysfs or proc.

    Raises:
        InputError: A word that is not known, a path that is not absolute, or fields that do not go
            together.
    """

    method: str = attrs.field(default="chroot")
    user: str | None = attrs.field(default=None)
    cwd: str = attrs.field(default="/")
    env: Mapping[str, str] = attrs.field(factory=dict, converter=_environment, hash=False)
    namespaces: tuple[str, ...] = attrs.field(
        default=(), converter=_strings, validator=_check_strings
    )
    mount_attributes: tuple[str, ...] = attrs.field(
        default=(), converter=_strings, validator=_check_strings
    )
    read_only: tuple[str, ...] = attrs.field(
        default=(), converter=_strings, validator=_check_strings
    )
    capabilities: tuple[str, ...] | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(_strings),
        validator=_check_strings,
    )
    no_new_privs: bool = False
    seccomp: str = ""
    masked: tuple[str, ...] = attrs.field(default=(), converter=_strings, validator=_check_strings)

    @cwd.validator
    def _check_cwd(self, _attribute: attrs.Attribute[Any], value: object) -> None:
        paths.check_absolute(value, what="cwd")

    @user.validator
    def _check_user(self, _attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None:
            ids.check_user(value)

    @method.validator
    def _check_method(self, _attribute: attrs.Attribute[str], value: str) -> None:
        if value not in ("chroot", "pivot_root"):
            raise InputError(f"an Entry's method is {value!r}; it must be chroot or pivot_root")

    def __attrs_post_init__(self) -> None:
        for what, given, known in (
            ("namespace", self.namespaces, tuple(privileges.NAMESPACES)),
            ("mount attribute", self.mount_attributes, privileges.MOUNT_ATTRIBUTES),
            ("capability", self.capabilities or (), privileges.CAPABILITIES),
        ):
            for word in given:
                if word not in known:
                    raise InputError(
                        f"an Entry's {what} is {word!r}; it must be one of {', '.join(known)}"
                    )
        if self.method != "pivot_root" and (
            self.namespaces or self.mount_attributes or self.read_only or self.masked
        ):
            raise InputError(
                "an Entry with namespaces, mount_attributes, read_only or masked needs "
                "the method pivot_root"
            )
        for path in self.read_only:
            paths.check_absolute(path, what="an Entry's read-only path")
        for path in self.masked:
            paths.check_absolute(path, what="an Entry's masked path")
        if self.seccomp and not self.no_new_privs:
            raise InputError("an Entry with seccomp needs no_new_privs (seccomp(2))")
        privileges.decode_program(self.seccomp)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, as kept in the start record."""
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
            "masked": list(self.masked),
        }


def _recipients(to: str | Iterable[int]) -> str | tuple[int, ...]:
    return to if isinstance(to, str) else tuple(to)


@attrs.frozen
class Escalation:
    """Send a signal, then wait.

    Args:
        signal: A number or ``signal.Signals``.
        grace: Seconds to wait at most (float).
        to: ``own`` (the instance's own processes), ``all`` (also the outside holders that were
            given), or pids out of those that were given.
    """

    signal: int
    grace: float
    to: str | tuple[int, ...] = attrs.field(default="own", converter=_recipients)


@attrs.frozen
class Problem:
    """Report something that blocks a start.

    Args:
        brief: One sentence.
        hint: What to do about it.
        warning: Report it, and let the start go on.
    """

    brief: str
    hint: str = ""
    warning: bool = False


def always_right(_value: Any) -> None:
    """Accept every value: the check of a parameter that has none."""


#: The types that a value in TOML may have.
_TYPES = (str, bool, int, float, list, dict)
_Type = type  # inside Parameter, "type" is its field


@attrs.frozen
class Parameter:
    """Declare a parameter of an instance: a key of its definition.

    Args:
        name: ``[a-z][a-z0-9_]*``.
        type: The type of the value in TOML (``str``, ``bool``, ``int``, ``float``, ``list``,
            ``dict``), or a tuple of them; ``int`` is taken for ``float``.
        default: Of that type, or ``None``.
        check: Called with the value; returns ``None``, or a sentence that says what is wrong. It
            may raise ``ValueError`` instead.
        help: One line.
        unit: The unit of a number, such as ``s`` or ``MiB``.

    Raises:
        InputError: Anything else.
    """

    name: str = attrs.field()
    type: type | tuple[type, ...] = attrs.field()
    default: Any = attrs.field(default=None, hash=False)
    check: Callable[[Any], str | None] = attrs.field(default=always_right)
    help: str = attrs.field(default="")
    unit: str = attrs.field(default="", kw_only=True)

    @property
    def types(self) -> tuple[_Type, ...]:
        """Return the types as a tuple."""
        return self.type if isinstance(self.type, tuple) else (self.type,)

    def fits(self, value: object) -> bool:
        """Return whether a value is of the type.

        ``True``, ``False``, nan and inf are not numbers.
        """
        if isinstance(value, bool):
            return bool in self.types
        if isinstance(value, float) and not isfinite(value):
            return False
        return (
            isinstance(value, self.types)
            or (float in self.types and isinstance(value, int))
            or (list in self.types and isinstance(value, tuple))
        )

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise InputError(
                f"a Parameter's name is {self.name!r}; it must be lower-case letters, digits and _"
            )
        for kind in self.types:
            if kind not in _TYPES:
                known = ", ".join(known.__name__ for known in _TYPES)
                raise InputError(
                    f"the type of parameter {self.name} is {kind!r}; it must be out of {known}"
                )
        if not callable(self.check):
            raise InputError(
                f"the check of parameter {self.name} is {self.check!r}, not a function"
            )
        if self.default is not None and not self.fits(self.default):
            raise InputError(
                f"the default of parameter {self.name} is {self.default!r}, which is not "
                "of its type"
            )


@attrs.frozen
class Event:
    """Report to an observer that a step begins, ends or fails, or a warning.

    Args:
        what: ``begin``, ``end`` or ``fail`` of the step that ``does`` describes; ``output``, what
            an init script prints while it runs (only ``on_event`` gets it, no plugin);
            ``warning``, with the sentence in ``does``; or ``plugin-error`` for the ``plugin``, in
            full in ``error``.
        instance: The instance's name.
        stage: The stage, ``""`` for what belongs to none.
        does: The description.
        plugin: The plugin's name, or ``""``.
        error: What failed, or ``""``.
        seconds: How long a step took, at its end.
        limit: Seconds that a step may take at most; 0 if it has no limit, or ``does`` names it.
        output: At most 64 KiB of an init script's output.
    """

    what: EventKind
    instance: str
    stage: Stage | Literal[""]
    does: str
    plugin: str = ""
    error: str = ""
    seconds: float = 0.0
    output: bytes = b""
    limit: float = 0.0


@attrs.frozen
class PlannedStep:
    """Be one line of a plan.

    Args:
        stage: The stage.
        does: The description.
        plugin: The name of the plugin that answered.
    """

    stage: Stage
    does: str
    plugin: str


@attrs.frozen
class Plan:
    """Describe what a verb would do; nothing has been touched.

    Args:
        verb: ``start`` or ``stop``.
        instance: The instance's name.
        steps: The steps, in order.
    """

    verb: str
    instance: str
    steps: tuple[PlannedStep, ...]

    def describe(self) -> str:
        """Return the plan for people: a line for each step, grouped by stage."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the lines of ``describe``."""
        lines = [f"{self.verb} {self.instance}:"]
        width = max((len(step.stage) for step in self.steps), default=0)
        number_width = len(str(len(self.steps)))
        for number, step in enumerate(self.steps, 1):
            by = f"  [{step.plugin}]" if step.plugin else ""
            lines.append(f"  {number:>{number_width}}  {step.stage:<{width}}  {step.does}{by}")
        if not self.steps:
            lines.append("  nothing to do")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"steps": [attrs.asdict(step) for step in self.steps]}


def _words(command: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    if isinstance(command, str) or not command:
        raise InputError(f"expected a command as a sequence of words, not {command!r}")
    return tuple(os.fspath(word) for word in command)


@attrs.frozen
class CommandStep(Step):
    """Run a command of the host, and another one to undo it.

    The commands are run by the root user as they are, without a shell.

    Args:
        command: The argument vector.
        undo_command: The argument vector of the undo; runs only while ``makes`` is there.
        makes: The path of what ``command`` makes. It must not be there before: a step never takes
            over what somebody else made. It is the step's ``source``.
        timeout: Seconds for either command (float).
    """

    kind: ClassVar[str] = "command"
    command: tuple[str, ...] = attrs.field(converter=_words)
    undo_command: tuple[str, ...] = attrs.field(converter=_words)
    makes: str = attrs.field(kw_only=True, converter=os.fspath)
    timeout: float = attrs.field(default=60.0, kw_only=True)

    def describe(self) -> str:
        """Return the command, as a shell would be given it."""
        return shlex.join(self.command)

    def check(self) -> None:
        """Refuse what is there already.

        Raises:
            StepError: There is a file at ``makes``.
        """
        if os.path.lexists(self.makes):
            raise StepError(
                f"cannot run {self.describe()}: {self.makes} is there already",
                hint="see whose it is; what an interrupted start left is removed by hand",
            )

    def apply(self) -> Mapping[str, Any]:
        """Run the command.

        Returns:
            ``source``: the path of what it made.

        Raises:
            StepError: It fails, or does not make what it should.
        """
        self._run(self.command)
        if not os.path.lexists(self.makes):
            raise StepError(f"{self.describe()} succeeded, but there is no {self.makes}")
        return {"source": self.makes}

    def undo(self, record: Mapping[str, Any]) -> None:  # noqa: ARG002  # what is there tells
        """Run the other command, if there is anything to undo.

        Raises:
            StepError: It fails.
        """
        if os.path.lexists(self.makes):
            self._run(self.undo_command)

    def _run(self, command: Sequence[str]) -> None:
        import subprocess

        brief = f"cannot run {shlex.join(command)}"
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=self.timeout,
                check=False,
            )
        except OSError as error:
            raise StepError(
                f"{brief}: {error.strerror}", hint="is the program installed?"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise StepError(f"{brief}: it did not end within {self.timeout:g} s") from error
        if done.returncode != 0:
            said = done.stdout.decode("utf-8", "replace").splitlines()
            raise StepError(
                f"{brief}: it exited with status {done.returncode}",
                [line.rstrip() for line in said[-20:]],
            )
