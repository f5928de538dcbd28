"""Describe the parameters of an instance: the value of each, and where the value comes from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any

from chrootfw import config
from chrootfw.model import Instance, Parameter
from chrootfw.views import EffectiveParameter

#: So often the end of one value is looked for: a list of very many lines has no quicker parser.
_ENDS_MAX = 200
#: What a line has that may end a value of several lines.
_END = re.compile(r"""\]|\"{3}|'{3}""")


def describe(
    instance: Instance, declared: Sequence[tuple[str, Parameter]], definition: str | None
) -> list[EffectiveParameter]:
    """Describe each parameter of an instance.

    Args:
        instance: The instance, with the values that apply.
        declared: Pairs of a plugin's name and a parameter that it declares; the core's have an
            empty name.
        definition: The text of the definition that those values come from, or ``None``.

    Returns:
        The parameters in the order of ``declared``; then those that no plugin declares now.
    """
    defined, lines = _read(definition or "")
    values = {**instance.params, **config.to_table(instance)}
    known = {parameter.name: (plugin, parameter) for plugin, parameter in declared}
    found = []
    for name in dict.fromkeys((*known, *values)):
        plugin, parameter = known.get(name, ("", None))
        value, line = values.get(name), None
        if name in defined and value == defined[name]:
            source, line = "definition", lines.get(name)
        elif parameter is None:
            source = "unknown"
        else:
            source = "default" if _is_default(parameter, value) else "start"
        found.append(EffectiveParameter(name, value, source, line, plugin))
    return found


def _is_default(parameter: Parameter, value: Any) -> bool:
    default = parameter.default
    return bool(value == (list(default) if isinstance(default, tuple) else default))


def _read(text: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the keys of a definition and their lines; none of a text that is not valid TOML."""
    try:
        return config.parse_toml(text), find_lines(text)
    except ValueError:  # of a record that another program has written
        return {}, {}


def find_lines(text: str) -> dict[str, int]:
    """Find the line of each key at the top of a TOML text; the first, where it has several.

    Each statement is parsed for itself, since a line that looks like a key may be part of a value.

    Args:
        text: The text.

    Returns:
        The lines by key, counted from 1; without what follows a statement that is not valid, or a
        value of very many lines.
    """
    found: dict[str, int] = {}
    lines = text.replace("\r\n", "\n").split("\n")
    at, is_in_table = 0, False
    while at < len(lines):
        statement = _find_statement(lines, at)
        if statement is None:
            return found
        table, length = statement
        is_header = lines[at].lstrip().startswith("[")
        is_in_table = is_in_table or is_header
        if is_header or not is_in_table:
            for key in table:
                found.setdefault(key, at + 1)
        at += length
    return found


def _find_statement(lines: Sequence[str], at: int) -> tuple[dict[str, Any], int] | None:
    """Return the statement that begins at a line, as a table, and the number of its lines."""
    tries = 0
    for end in range(at, len(lines)):
        if end > at and not _END.search(lines[end]):
            continue
        try:
            return tomllib.loads("\n".join(lines[at : end + 1])), end + 1 - at
        except (ValueError, RecursionError):
            tries += 1
            if tries > _ENDS_MAX:
                return None
    return None
