"""Instances from definition files and options: read, checked against the declared parameters, filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from chrootfw.errors import DefinitionError, InputError, nearest
from chrootfw.model import FIELDS, Instance, Parameter
from chrootfw.planning import paths
from chrootfw.system import store

#: What a machine says about all its instances.
NODE_FILE = "_node.toml"


def read_definition(config_dir: str, name: str) -> tuple[Instance, str] | None:
    """The instance as its definition file says, unchecked parameters and all, and the file's text; ``None`` without a file.

    Raises ``DefinitionError`` naming file and line, ``TrustError``.
    """
    paths.check_name(name)
    path = f"{config_dir}/{name}.toml"
    try:
        data = store.read(path)
        if data is None:
            return None
        store.check_trusted(path, what="definition")
    except OSError as error:
        raise DefinitionError(f"cannot read the definition {path}: {error.strerror}") from error
    import tomllib

    text = data.decode("utf-8", "surrogateescape")
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DefinitionError(f"the definition {path} is no UTF-8: {error.reason} at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise DefinitionError(f"the definition {path} is no TOML: {error}", hint="see https://toml.io") from error
    try:
        return from_table(name, table), text
    except InputError as error:
        raise _placed(error, path, text) from error


def blocked_plugins(config_dir: str) -> tuple[str, ...]:
    """The names in ``without = […]`` of ``_node.toml``: installed plugins that this machine leaves out.

    No instance has that name. Raises ``DefinitionError``, ``TrustError``.
    """
    path = f"{config_dir}/{NODE_FILE}"
    try:
        data = store.read(path)
        if data is None:
            return ()
        store.check_trusted(path, what="file")
    except OSError as error:
        raise DefinitionError(f"cannot read {path}: {error.strerror}") from error
    import tomllib

    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DefinitionError(f"{path} is no TOML: {error}", hint="see https://toml.io") from error
    names = table.pop("without", [])
    if table:
        raise DefinitionError(f"{path}: there is no key {next(iter(table))!r}", hint="it may have: without")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DefinitionError(f"{path}: the key without is {names!r}; it must be a list of strings")
    return tuple(names)


def from_table(name: str, table: Mapping[str, Any]) -> Instance:
    """An instance from flat keys. Raises ``InputError``."""
    fields = {key: table[key] for key in ("disk", "init_script", "plugins") if key in table}
    if "name" in table and table["name"] != name:
        raise InputError(f"the key name is {table['name']!r}; the instance's name is the file's, {name}")
    for key in ("disk", "init_script"):
        if key in fields and not isinstance(fields[key], str) and not (key == "init_script" and fields[key] is False):
            raise InputError(f"the parameter {key} is {fields[key]!r}; it must be a string")
    plugins = fields.get("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(item, str) for item in plugins):
        raise InputError(f"the parameter plugins is {plugins!r}; it must be a list of strings")
    params = {key: value for key, value in table.items() if key not in ("name", "disk", "init_script", "plugins")}
    return Instance(name, **fields, params=params)


def _placed(error: InputError, path: str, text: str) -> DefinitionError:
    """The error with the file, and the line of the first key that it names."""
    named = re.search(r"(?:the|no) (?:parameter|key) '?([A-Za-z0-9_-]+)", error.brief) or re.match(
        r"([a-z_]+) ", error.brief
    )
    for number, line in enumerate(text.splitlines(), 1):
        key = re.match(r"""\s*["']?([A-Za-z0-9_-]+)["']?\s*=""", line)
        if key and named and key[1] == named[1]:
            return DefinitionError(f"{path}, line {number}: {error.brief}", error.details, error.hint)
    return DefinitionError(f"{path}: {error.brief}", error.details, error.hint)


def with_place(error: InputError, config_dir: str, name: str, text: str) -> DefinitionError:
    """An error found when the parameters were checked, with the definition's file and line."""
    return _placed(error, f"{config_dir}/{name}.toml", text)


def _by_itself(_plugin: str, parameter: Parameter, value: Any) -> str | None:
    return parameter.check(value)


def resolve(
    instance: Instance,
    declared: Sequence[tuple[str, Parameter]],
    check: Callable[[str, Parameter, Any], str | None] = _by_itself,
) -> Instance:
    """The instance with every parameter checked, and defaults filled in. Raises ``InputError``, and what ``check`` raises, which calls a
    plugin's check of a value."""
    own = [("", parameter) for parameter in FIELDS if parameter.name in ("require_process", "disk_timeout")]
    known = {parameter.name: (plugin, parameter) for plugin, parameter in (*declared, *own)}
    filled: dict[str, Any] = {}
    for key, value in instance.params.items():
        if key in ("disk", "init_script", "plugins", "name"):
            raise InputError(f"{key} is a field of the instance, not one of its params", hint=f"Instance(…, {key}=…)")
        if key not in known:
            near = nearest(key, [*known, *(p.name for p in FIELDS)])
            raise InputError(
                f"there is no parameter {key!r}" + (f"; did you mean {near!r}?" if near else ""),
                hint="chrootfw parameters lists those that there are",
            )
        plugin, parameter = known[key]
        filled[key] = _checked(parameter, value, partial(check if plugin else _by_itself, plugin, parameter))
    return _with_defaults(instance, filled, [parameter for _, parameter in known.values()])


def complete(instance: Instance, declared: Sequence[tuple[str, Parameter]]) -> Instance:
    """A recorded instance with the defaults of parameters that were not known at its start: of a plugin installed since."""
    return _with_defaults(instance, dict(instance.params), [parameter for _, parameter in declared])


def _with_defaults(instance: Instance, params: dict[str, Any], known: Sequence[Parameter]) -> Instance:
    for parameter in known:
        default = parameter.default
        params.setdefault(parameter.name, list(default) if isinstance(default, list | tuple) else default)
    return Instance(instance.name, instance.disk, instance.init_script, params, instance.plugins)


def _checked(parameter: Parameter, value: Any, check: Callable[[Any], str | None]) -> Any:
    if not parameter.fits(value):
        wanted = " or ".join(_TYPE_NAMES[kind] for kind in parameter.types)
        raise InputError(f"the parameter {parameter.name} is {value!r}; it must be {wanted}", hint=parameter.help)
    if wrong := check(value):
        raise InputError(f"the parameter {parameter.name} is {value!r}: {wrong}", hint=parameter.help)
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
    """``PARAM=TOML-VALUE`` as ``(name, value)``; a word that is no TOML value is taken as a string. Raises ``InputError``."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--set {text!r} is not PARAM=VALUE")
    import tomllib

    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        if re.fullmatch(r"[A-Za-z0-9_./:+-]+", value):
            return key, value
        raise InputError(
            f"--set {key}: {value!r} is no TOML value: {error}",
            hint=f"""quote it for TOML and for the shell: --set '{key}="…"'""",
        ) from error


def type_text(parameter: Parameter) -> str:
    """The type of a parameter as people read it."""
    return " or ".join(kind.__name__ for kind in parameter.types)


def default_text(parameter: Parameter) -> str:
    """The default as TOML would have it."""
    if parameter.default is None:
        return "-"
    if isinstance(parameter.default, bool):
        return str(parameter.default).lower()
    if isinstance(parameter.default, list | tuple):
        return str(list(parameter.default))
    return f'"{parameter.default}"' if isinstance(parameter.default, str) else str(parameter.default)
