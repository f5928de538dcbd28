"""The notation of an environment file: a subset of that of systemd's `EnvironmentFile=`.

A line is `NAME=VALUE`, empty, or a comment that begins with `#` or `;`. What systemd would read in
another way than a shell, or over several lines, is refused.
"""

from __future__ import annotations

import re

#: `NAME=VALUE`, with blanks around both.
_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*(.*?)[ \t]*\Z")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"\Z')
_ESCAPED = re.compile(r'\\(["\\`$])')


def parse(data: bytes) -> dict[str, str]:
    """Return the variables of an environment file; of two lines with one name, the last counts.

    Raises:
        ValueError: A line is not valid. The text has its number, and nothing of its value, which
            may be a secret.
    """
    found: dict[str, str] = {}
    for number, raw in enumerate(data.split(b"\n"), 1):
        try:
            line = raw.decode("utf-8").strip(" \t\r")
            if line and line[0] not in "#;":
                name, value = _parse_line(line)
                found[name] = value
        except UnicodeDecodeError:
            raise ValueError(f"line {number} is not UTF-8 text") from None
        except ValueError as error:
            raise ValueError(f"line {number} {error}") from None
    return found


def _parse_line(line: str) -> tuple[str, str]:
    if any((character < " " and character != "\t") or character == "\x7f" for character in line):
        raise ValueError("has a control character")
    matched = _LINE.match(line)
    if not matched:
        raise ValueError("is not NAME=VALUE")
    name, value = matched[1], matched[2]
    if value[:1] == "'":
        if len(value) < 2 or value.find("'", 1) != len(value) - 1:
            raise ValueError("has a single quote that is not closed at its end")
        return name, value[1:-1]
    if value[:1] == '"':
        quoted = _DOUBLE.match(value)
        if not quoted:
            raise ValueError("has a double quote that is not closed at its end")
        return name, _ESCAPED.sub(r"\1", quoted[1])
    if "\\" in value:
        raise ValueError("has a backslash outside of quotes")
    return name, value
