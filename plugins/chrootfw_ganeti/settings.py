"""Convert Ganeti's parameters to chrootfw's; `extra_config` is `key:value;key:value`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from chrootfw import config
from chrootfw.errors import InputError
from chrootfw.hooks.registry import Registry
from chrootfw.hooks.time_limits import PluginCalls
from chrootfw.model import Instance, Parameter
from chrootfw.planning.ids import is_decimal
from chrootfw.runtime import Runtime
from chrootfw_ganeti import memory
from chrootfw_ganeti.policy import TIMES, GanetiPolicy, plugins

#: As in Ganeti's own class, all processes that use the mounts are signalled, and a start must leave
#: a process.
_GANETIS = {"holders": "kill", "require_process": True}
#: Parameters that Ganeti passes in other ways; its time limit is one for the whole stop.
_NOT_HERE = {*config.FIELD_NAMES, "ganeti", "stop_wait"}
_UNITS = {"": 1, "M": 1, "G": 1024}
#: Stands for the instance's own `maxmem`.
_MAXMEM = "maxmem"


def instance(
    name: str,
    device: str,
    hvparams: Mapping[str, Any],
    beparams: Mapping[str, Any],
    *,
    paused: bool,
) -> Instance:
    """Build the instance to start from Ganeti's parameters.

    Args:
        name: The instance's name.
        device: The path of its first disk.
        hvparams: Ganeti's hypervisor parameters.
        beparams: Ganeti's backend parameters (`vcpus`; `maxmem` in MiB).
        paused: Whether the start runs no script.

    Raises:
        InputError: `extra_config` is not valid.
    """
    given = _parse(hvparams["extra_config"])
    named = tuple(given.pop("plugins", ()))
    limit = given.pop("memory", None)
    said = {
        "vcpus": int(beparams.get("vcpus") or 0),
        "maxmem": int(beparams.get("maxmem") or 0),
        "memory": None if limit is None else _mebibytes(limit, beparams),
        "own_times": sorted(TIMES & given.keys()),
        "paused": paused,
    }
    params = {**_GANETIS, **given, "ganeti": said}
    return Instance(name, device, hvparams["init_script"], params, named)


def check(extra_config: str, *, on_node: bool = False) -> None:
    """Check the names and values in `extra_config`.

    Args:
        extra_config: The hypervisor parameter.
        on_node: Check also that this node can limit memory, if that is wanted.

    Raises:
        InputError: A name is not a parameter, or a parameter does not take its value.
        NotSupported: This node cannot limit memory.
    """
    given = _parse(extra_config)
    named = given.pop("plugins", [])
    if given.pop("memory", None) is not None and on_node:
        memory.require_controller("a chroot")
    Registry(named=named, calls=PluginCalls(is_isolated=True)).check_loaded()
    base = Instance("check", "/dev/null", None, {**_GANETIS, **given}, named)
    declared = _runtime().parameters(named)
    config.resolve(base, [(plugin, parameter) for plugin, parameter in declared if plugin])


def memory_limit(said: Mapping[str, Any]) -> int | None:
    """Return the limit in MiB that `extra_config` asked for, or `None`.

    Args:
        said: What Ganeti passed at the start (`params["ganeti"]`).
    """
    limit = said.get("memory")
    return limit if isinstance(limit, int) else None


def _runtime() -> Runtime:
    return Runtime(plugins(GanetiPolicy()), isolate_plugins=True)


def _parse(extra_config: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    words: dict[str, str] = {}
    for part in str(extra_config or "").split(";"):
        if not part.strip():
            continue
        key, colon, value = part.partition(":")
        key = key.strip()
        if not colon or not key:
            raise InputError(
                f"extra_config: {part.strip()!r} is not key:value", hint="write key:value;key:value"
            )
        if key in words:
            raise InputError(f"extra_config: {key} is given twice")
        words[key] = value.strip()
    named = words.pop("plugins", "").split()
    known = (
        {p.name: p for _, p in _runtime().parameters(named) if p.name not in _NOT_HERE}
        if words
        else {}
    )
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
                f"extra_config: there is no parameter {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else ""),
                hint=f"it may have: {', '.join(names)}",
            )
    if named:
        given["plugins"] = named
    return given


def _value(parameter: Parameter, text: str) -> Any:
    """Convert a text to the parameter's type; the items of a list are separated by blanks."""
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
    if not is_decimal(digits) or len(digits) > 12 or unit not in _UNITS or not int(digits):
        raise InputError(
            f"extra_config: memory is {text!r}",
            hint="write a number of MiB, 64M, 2G, or maxmem for the instance's own",
        )
    return int(digits) * _UNITS[unit]


__all__ = ["check", "instance", "memory_limit"]
