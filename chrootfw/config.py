"""The core's parameters, and instances of definition files and options.

Definitions are read, checked against the declared parameters, and filled in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import attrs

from chrootfw.errors import DefinitionError, Hint, InputError, nearest
from chrootfw.linux import files
from chrootfw.linux.log_file import MODES
from chrootfw.model import DEFAULT_INIT_SCRIPT, TIMEOUT_MAX, Instance, Parameter
from chrootfw.planning import paths
from chrootfw.planning.ids import check_environment
from chrootfw.planning.limits import find_wrong

#: So many keys and lists a definition may have, each part of a dotted key counted.
_KEYS_MAX = 4096
#: Text of TOML up to the next sign that may end a key or begin one; a string with such signs is
#: several.
_STRETCH = re.compile(r"([^=,{}\[\]#\n]*)([=,{}\[\]#\n]|\Z)")

#: Smallest and largest size of a log file, in MiB.
LOG_SIZE_MIN, LOG_SIZE_MAX = 0.0625, 1048576.0

#: The file with the settings of the machine, which are about all its instances.
NODE_FILE = "_node.toml"


class _LargeNumberError(ValueError):
    """Refuse a whole number of more than 64 bits."""

    def __init__(self) -> None:
        super().__init__("it has a number of more than 64 bits")


def _is_time_limit(value: float) -> str | None:
    return (
        None if 0 < value <= TIMEOUT_MAX else f"it must be above 0, at most {TIMEOUT_MAX} seconds"
    )


def _is_wait(value: float) -> str | None:
    return None if 0 <= value <= TIMEOUT_MAX else f"it must be 0 to {TIMEOUT_MAX} seconds"


def _is_environment(value: Mapping[str, object]) -> str | None:
    for name, each in value.items():
        if name.startswith("CHROOTFW_"):
            return f"{name} is set by chrootfw itself"
        if not isinstance(each, str):
            return f"the value of {name} must be a string"
    try:
        check_environment(cast("Mapping[str, str]", value))
    except InputError as error:
        return error.brief
    return None


def _is_environment_file(value: str) -> str | None:
    try:
        paths.check_absolute(value, what="the environment file")
    except InputError as error:
        return error.brief
    return None


def _is_nice(value: int) -> str | None:
    return None if -20 <= value <= 19 else "it must be -20 to 19"


def _is_oom_score_adj(value: int) -> str | None:
    return None if -1000 <= value <= 1000 else "it must be -1000 to 1000"


def _is_log(value: str) -> str | None:
    return None if value in MODES else f"it must be one of {', '.join(MODES)}"


def _is_log_size(value: float) -> str | None:
    return (
        None
        if LOG_SIZE_MIN <= value <= LOG_SIZE_MAX
        else (f"it must be {LOG_SIZE_MIN:g} to {LOG_SIZE_MAX:.0f} MiB")
    )


#: The core's parameters: the only place that knows their names, types, defaults, units and help.
#: No plugin may declare one of them.
CORE_PARAMETERS = (
    Parameter(
        "disk", str, None, help="block device, image file or directory (bound, not recursively)"
    ),
    Parameter(
        "init_script",
        (str, bool),
        DEFAULT_INIT_SCRIPT,
        help="path inside the root, used for start and stop; false: mount only",
    ),
    Parameter(
        "plugins", list, (), help="plugins for this instance alone, by name or module:attribute"
    ),
    Parameter(
        "require_process",
        bool,
        False,
        help="a start whose init script leaves no process alive is an error",
    ),
    Parameter(
        "disk_timeout",
        float,
        60.0,
        _is_time_limit,
        "seconds for the disk to answer, in one mount or unmount; then it is left alone "
        "and reported",
        unit="s",
    ),
    Parameter(
        "stop_wait",
        float,
        0.0,
        _is_wait,
        "seconds for the processes to end by themselves after the stop script's end, before TERM",
        unit="s",
    ),
    Parameter(
        "limits",
        dict,
        {},
        find_wrong,
        'resource limits by name, as N or "SOFT:HARD", in place of the defaults',
    ),
    Parameter(
        "environment",
        dict,
        {},
        _is_environment,
        "environment variables of its processes, as a table of strings",
    ),
    Parameter(
        "environment_file",
        str,
        None,
        _is_environment_file,
        "path on the host of a file of lines NAME=VALUE, read at the start",
    ),
    Parameter("nice", int, 0, _is_nice, "nice value of its processes"),
    Parameter(
        "oom_score_adj",
        int,
        0,
        _is_oom_score_adj,
        "how soon the kernel kills its processes when memory is short: -1000 never, 1000 first",
    ),
    Parameter(
        "log",
        str,
        None,
        _is_log,
        "where the output of its processes goes: journal, file or off; by default journal if "
        "journald answers, else file",
    ),
    Parameter(
        "log_size",
        float,
        1.0,
        _is_log_size,
        "size at which a new log file is begun; one old file is kept",
        unit="MiB",
    ),
)

#: Those of them that are fields of an ``Instance``; the others are in its ``params``.
FIELD_NAMES = tuple(
    each.name for each in CORE_PARAMETERS if each.name in attrs.fields_dict(Instance)
)
_IN_PARAMS = tuple(each for each in CORE_PARAMETERS if each.name not in FIELD_NAMES)
#: No key of ``params``, and no name for a plugin's parameter.
_RESERVED = ("name", *FIELD_NAMES)
#: Names that a plugin cannot declare.
OWN_NAMES = frozenset(("name", *(each.name for each in CORE_PARAMETERS)))


def read_definition(config_dir: str, name: str) -> tuple[Instance, str] | None:
    """Read the definition file of an instance; its parameters are not checked yet.

    Args:
        config_dir: The directory of the definitions.
        name: The instance's name.

    Returns:
        The instance and the file's text, or ``None`` without a file.

    Raises:
        DefinitionError: The file cannot be read or is not valid; names file and line.
        TrustError: Others than the root user could have changed the file.
    """
    paths.check_name(name)
    path = f"{config_dir}/{name}.toml"
    try:
        data = files.read(path, files.DEFINITION_MAX)
        if data is None:
            return None
        files.check_trusted(path, what="definition")
    except OSError as error:
        raise DefinitionError(f"cannot read the definition {path}: {error.strerror}") from error
    text = data.decode("utf-8", "surrogateescape")
    try:
        table = parse_toml(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DefinitionError(
            f"the definition {path} is not valid UTF-8: {error.reason} at byte {error.start}"
        ) from error
    except ValueError as error:
        raise _not_toml(f"the definition {path}", text, error) from error
    try:
        return from_table(name, table), text
    except InputError as error:
        raise _placed(error, path, text) from error


def blocked_plugins(config_dir: str) -> tuple[str, ...]:
    """Read the names in ``without = […]`` of ``_node.toml``.

    These are installed plugins that this machine leaves out. No instance has that name.

    Args:
        config_dir: The directory of the definitions.

    Raises:
        DefinitionError: The file cannot be read or is not valid.
        TrustError: Others than the root user could have changed the file.
    """
    path = f"{config_dir}/{NODE_FILE}"
    try:
        data = files.read(path, files.DEFINITION_MAX)
        if data is None:
            return ()
        files.check_trusted(path, what="file")
    except OSError as error:
        raise DefinitionError(f"cannot read {path}: {error.strerror}") from error
    try:
        table = parse_toml(data.decode("utf-8"))
    except ValueError as error:
        raise _not_toml(path, data.decode("utf-8", "surrogateescape"), error) from error
    names = table.pop("without", [])
    if table:
        raise DefinitionError(
            f"{path}: there is no key {next(iter(table))!r}", hint="it may have: without"
        )
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DefinitionError(f"{path}: the key without is {names!r}; it must be a list of strings")
    return tuple(names)


def _check_keys(text: str) -> None:
    """Refuse keys that cost tomllib gigabytes.

    The memory for a dotted key grows with the square of its parts. The text before ``=`` or ``]``
    is taken for a key. Raises ``ValueError``.
    """
    count = 0
    for stretch, end in (found.groups() for found in _STRETCH.finditer(text)):
        if end in ("=", "]"):
            parts = stretch.count(".") + 1
            count += parts
            if parts > files.DEPTH_MAX:
                raise ValueError(f"it has a key of more than {files.DEPTH_MAX} parts")
            if count > _KEYS_MAX:
                raise ValueError(f"it has more than {_KEYS_MAX} keys and lists")


def parse_toml(text: str) -> dict[str, Any]:
    """Read TOML.

    Raises ``ValueError``, also where tomllib fails in other ways: a number of 5,000 digits, 1,000
    lists in each other.
    """
    import tomllib

    _check_keys(text)
    try:
        table = tomllib.loads(text)
    except RecursionError:
        table = None
    if table is None or files.is_deeper(table, files.DEPTH_MAX):
        raise ValueError(f"its values are nested more than {files.DEPTH_MAX} deep")
    if _has_large_number(table):
        raise _LargeNumberError
    return table


def _has_large_number(value: Any) -> bool:
    """Return whether there is a whole number of more than 64 bits.

    TOML has none, and Python refuses to print very long ones.
    """
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, int) and not -(1 << 63) <= each < 1 << 63:
            return True
        waiting += (
            each.values()
            if isinstance(each, dict)
            else each
            if isinstance(each, list | tuple)
            else ()
        )
    return False


def from_table(name: str, table: Mapping[str, Any]) -> Instance:
    """Make an instance of flat keys.

    Args:
        name: The instance's name.
        table: The keys of a definition.

    Raises:
        InputError: A field has a value of a wrong type.
    """
    fields = {key: table[key] for key in FIELD_NAMES if key in table}
    if "name" in table and table["name"] != name:
        raise InputError(
            f"the key name is {table['name']!r}; the instance's name is the file's, {name}",
            parameter="name",
        )
    for key in ("disk", "init_script"):
        if (
            key in fields
            and not isinstance(fields[key], str)
            and not (key == "init_script" and fields[key] is False)
        ):
            raise InputError(
                f"the parameter {key} is {fields[key]!r}; it must be a string", parameter=key
            )
    plugins = fields.get("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(item, str) for item in plugins):
        raise InputError(
            f"the parameter plugins is {plugins!r}; it must be a list of strings",
            hint=f"plugins = [{value_text(plugins)}]"
            if isinstance(plugins, str)
            else "chrootfw plugins lists their names",
            parameter="plugins",
        )
    for key, value in fields.items():
        try:
            Instance(name, **{key: value})
        except InputError as error:
            error.parameter = key
            raise
    params = {key: value for key, value in table.items() if key not in _RESERVED}
    return Instance(name, **fields, params=params)


def to_table(instance: Instance) -> dict[str, Any]:
    """Return an instance's fields as the flat keys of a definition, without its ``params``."""
    fields = {key: getattr(instance, key) for key in FIELD_NAMES}
    fields["init_script"] = instance.init_script or False
    fields["plugins"] = list(instance.plugins)
    return {key: value for key, value in fields.items() if value is not None}


def _not_toml(what: str, text: str, error: ValueError) -> DefinitionError:
    """Return the error for a file that is not TOML, with the line that is wrong."""
    place = re.fullmatch(r"(.*) \(at line ([0-9]+), column ([0-9]+)\)", str(error), re.DOTALL)
    lines = text.split("\n")
    details = []
    if place and int(place[2]) <= len(lines):
        details = [lines[int(place[2]) - 1], f"{'^':>{int(place[3])}}"]
    hint = "chrootfw help definition shows how one is written"
    return DefinitionError(f"{what} is not valid TOML: {error}", details, hint)


def _placed(error: InputError, path: str, text: str) -> DefinitionError:
    """Return the error with the file, and the line of the wrong parameter or its table."""
    for number, line in enumerate(text.splitlines(), 1):
        key = re.match(r"""\s*\[?\s*["']?([A-Za-z0-9_-]+)["']?\s*[=.\]]""", line)
        if key and key[1] == error.parameter:
            return DefinitionError(
                f"{path}, line {number}: {error.brief}", error.details, error.hint
            )
    return DefinitionError(f"{path}: {error.brief}", error.details, error.hint)


def with_place(error: InputError, config_dir: str, name: str, text: str) -> DefinitionError:
    """Return an error of a check of parameters, with the definition's file and line.

    Args:
        error: The error.
        config_dir: The directory of the definitions.
        name: The instance's name.
        text: The definition's text.
    """
    return _placed(error, f"{config_dir}/{name}.toml", text)


def _by_itself(_plugin: str, parameter: Parameter, value: Any) -> str | None:
    return parameter.check(value)


def resolve(
    instance: Instance,
    declared: Sequence[tuple[str, Parameter]],
    check: Callable[[str, Parameter, Any], str | None] = _by_itself,
) -> Instance:
    """Check every parameter of an instance, and fill in defaults.

    Args:
        instance: The instance as defined.
        declared: Pairs of a plugin's name and a parameter that it declares.
        check: Calls a parameter's own check and returns what is wrong, or ``None``; what it raises
            is not caught.

    Returns:
        The instance with all parameters.

    Raises:
        InputError: A parameter is not known, or has a wrong value.
    """
    own = [("", parameter) for parameter in _IN_PARAMS]
    known = {parameter.name: (plugin, parameter) for plugin, parameter in (*declared, *own)}
    filled: dict[str, Any] = {}
    for key, value in instance.params.items():
        if key in _RESERVED:
            raise InputError(
                f"{key} is a field of the instance, not one of its params",
                hint=f"Instance(…, {key}=…)",
                parameter=key,
            )
        if key not in known:
            near = nearest(key, [*known, *FIELD_NAMES])
            raise InputError(
                f"there is no parameter {key!r}" + (f"; did you mean {near!r}?" if near else ""),
                hint="chrootfw parameters lists those that there are",
                parameter=key,
            )
        plugin, parameter = known[key]
        filled[key] = _checked(
            parameter, value, partial(check if plugin else _by_itself, plugin, parameter)
        )
    return _with_defaults(instance, filled, [parameter for _, parameter in known.values()])


def without_misfits(
    instance: Instance, declared: Sequence[tuple[str, Parameter]], is_own: Callable[[str], bool]
) -> tuple[Instance, list[str]]:
    """Leave out the parameters of a record that no start could have written.

    Every type is checked, and the values of parameters whose plugin ``is_own``: what another
    plugin's check says now need not be what it said at the start.

    Args:
        instance: The instance as recorded.
        declared: Pairs of a plugin's name and a parameter that it declares.
        is_own: Returns whether a plugin comes with chrootfw.

    Returns:
        The instance, and a sentence for each parameter that was left out.
    """
    own = [("", parameter) for parameter in CORE_PARAMETERS]
    params = dict(instance.params)
    notes = []
    for plugin, parameter in (*declared, *own):
        if parameter.name not in params:
            continue
        value = params[parameter.name]
        try:
            is_right = value == parameter.default or parameter.fits(value)
            if is_right and (not plugin or is_own(plugin)) and value != parameter.default:
                is_right = not parameter.check(value)
        except Exception:
            is_right = False
        if not is_right:
            del params[parameter.name]
            notes.append(
                f"the record of the start of {instance.name} has {value!r:.60} as the "
                f"parameter {parameter.name}: "
                "its default is used"
            )
    return Instance(
        instance.name, instance.disk, instance.init_script, params, instance.plugins
    ), notes


def complete(instance: Instance, declared: Sequence[tuple[str, Parameter]]) -> Instance:
    """Fill in the defaults of parameters that a recorded instance does not have.

    These are parameters of a plugin that was installed after the start.

    Args:
        instance: The instance as recorded.
        declared: Pairs of a plugin's name and a parameter that it declares.
    """
    known = [*_IN_PARAMS, *(parameter for _, parameter in declared)]
    return _with_defaults(instance, dict(instance.params), known)


def _with_defaults(
    instance: Instance, params: dict[str, Any], known: Sequence[Parameter]
) -> Instance:
    for parameter in known:
        default = parameter.default
        params.setdefault(
            parameter.name, list(default) if isinstance(default, list | tuple) else default
        )
    return Instance(instance.name, instance.disk, instance.init_script, params, instance.plugins)


def _checked(parameter: Parameter, value: Any, check: Callable[[Any], str | None]) -> Any:
    if not files.is_deeper(value, files.DEPTH_MAX) and _has_large_number(value):
        raise InputError(
            f"the parameter {parameter.name} is not valid: {_LargeNumberError()}",
            hint=parameter.help,
            parameter=parameter.name,
        )
    if not parameter.fits(value):
        wanted = " or ".join(_TYPE_NAMES[kind] for kind in parameter.types)
        raise InputError(
            f"the parameter {parameter.name} is {value!r}; it must be {wanted}",
            hint=parameter.help,
            parameter=parameter.name,
        )
    if wrong := check(value):
        raise InputError(
            f"the parameter {parameter.name} is {value!r}: {wrong}",
            hint=parameter.help,
            parameter=parameter.name,
        )
    return list(value) if isinstance(value, tuple) else value


_TYPE_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse ``PARAM=TOML-VALUE``; a word that is not a valid TOML value is taken as a string.

    Args:
        text: The setting.

    Returns:
        The parameter's name and its value.

    Raises:
        InputError: It is not such a setting.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"the setting {text!r} is not PARAM=VALUE")
    try:
        table = parse_toml(f"value = {value}")
        if len(table) != 1:
            raise ValueError("it is more than one value")
        return key, table["value"]
    except ValueError as error:
        is_word = re.fullmatch(r"[A-Za-z0-9_./:+-]+", value)
        if is_word and not isinstance(error, _LargeNumberError):
            return key, value
        raise InputError(
            f"the setting of {key}: {value!r} is not a valid TOML value: {error}",
            hint=Hint(
                f'quote it for TOML: {key}="…"',
                f"""quote it for TOML and for the shell: --set '{key}="…"'""",
            ),
        ) from error


def type_text(parameter: Parameter) -> str:
    """Return the type of a parameter as people read it."""
    return " or ".join(kind.__name__ for kind in parameter.types)


def default_text(parameter: Parameter) -> str:
    """Return the default of a parameter as TOML would have it."""
    return value_text(parameter.default)


def value_text(value: object) -> str:
    """Return a value as TOML would have it, on one line; ``-`` for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, Mapping):
        pairs = [f"{_key_text(key)} = {value_text(each)}" for key, each in value.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    return str(value).removesuffix(".0")  # 60 s, whether a plugin wrote 60 or 60.0


def _key_text(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else value_text(key)
