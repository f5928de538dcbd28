"""From Ganeti's parameters to chrootfw's: ``extra_config`` is ``key:value;key:value``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from chrootfw import config
from chrootfw.errors import InputError
from chrootfw.model import Instance, Parameter
from chrootfw.plugins import Registry
from chrootfw.runtime import Runtime
from chrootfw_ganeti.policy import GanetiPolicy, plugins

#: As Ganeti's own class does it: all users of the mounts are signalled. And a start that leaves nothing running is none.
_GANETIS = {"holders": "kill", "require_process": True}
#: Given by Ganeti in other ways.
_NOT_HERE = {"disk", "init_script", "ganeti"}
_UNITS = {"": 1, "M": 1, "G": 1024}
#: The word for an instance's own ``maxmem``.
_MAXMEM = "maxmem"


def instance(
    name: str, device: str, hvparams: Mapping[str, Any], beparams: Mapping[str, Any], *, paused: bool
) -> Instance:
    """The instance to start. Raises ``InputError``."""
    given = _parse(hvparams["extra_config"])
    named = tuple(given.pop("plugins", ()))
    memory = given.pop("memory", None)
    said = {
        "vcpus": int(beparams.get("vcpus") or 0),
        "maxmem": int(beparams.get("maxmem") or 0),
        "memory": None if memory is None else _mebibytes(memory, beparams),
        "paused": paused,
    }
    params = {**_GANETIS, **given, "ganeti": said}
    return Instance(name, device, hvparams["init_script"], params, named)


def check(extra_config: str) -> None:
    """Raise ``InputError`` for what is no parameter, or has a value that its parameter does not take."""
    given = _parse(extra_config)
    named = given.pop("plugins", [])
    given.pop("memory", None)
    Registry(named=named).check_loaded()
    base = Instance("check", "/dev/null", None, {**_GANETIS, **given}, named)
    declared = _runtime().parameters(named)
    config.resolve(base, [(plugin, parameter) for plugin, parameter in declared if plugin])


def memory_limit(said: Mapping[str, Any]) -> int | None:
    """The limit in MiB that ``extra_config`` asked for, out of what Ganeti said (``params["ganeti"]``)."""
    limit = said.get("memory")
    return limit if isinstance(limit, int) else None


def _runtime() -> Runtime:
    return Runtime(plugins(GanetiPolicy()))


def _parse(extra_config: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    words: dict[str, str] = {}
    for part in str(extra_config or "").split(";"):
        if not part.strip():
            continue
        key, colon, value = part.partition(":")
        key = key.strip()
        if not colon or not key:
            raise InputError(f"extra_config: {part.strip()!r} is not key:value", hint="key:value;key:value …")
        if key in words:
            raise InputError(f"extra_config: {key} is given twice")
        words[key] = value.strip()
    named = words.pop("plugins", "").split()
    known = {p.name: p for _, p in _runtime().parameters(named) if p.name not in _NOT_HERE} if words else {}
    for key, value in words.items():
        if key == "memory":
            _mebibytes(value, {_MAXMEM: 1})
            given[key] = value
        elif key in known:
            given[key] = _value(known[key], value)
        else:
            names = sorted({*known, "memory", "plugins"})
            near = difflib.get_close_matches(key, names, 1)
            raise InputError(
                f"extra_config: there is no parameter {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                hint=f"it may have: {', '.join(names)}",
            )
    if named:
        given["plugins"] = named
    return given


def _value(parameter: Parameter, text: str) -> Any:
    """A value of the parameter's type: lists are separated by blanks."""
    wrong = InputError(f"extra_config: {parameter.name} is {text!r}", hint=parameter.help)
    kinds = parameter.types
    if bool in kinds and text.lower() in ("true", "false", "yes", "no"):
        return text.lower() in ("true", "yes")
    if list in kinds:
        return text.split()
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    if str in kinds:
        return text
    raise wrong


def _mebibytes(text: str, beparams: Mapping[str, Any]) -> int:
    if text == _MAXMEM:
        return int(beparams[_MAXMEM])
    digits = text.rstrip("MG")
    unit = text[len(digits) :]
    if not digits.isdigit() or unit not in _UNITS or not int(digits):
        raise InputError(
            f"extra_config: memory is {text!r}", hint="write a number of MiB, 64M, 2G, or maxmem for the instance's own"
        )
    return int(digits) * _UNITS[unit]


__all__ = ["check", "instance", "memory_limit"]
