"""Escape what a terminal would obey, for the screen and for logs.

Text comes from roots, disks, records and plugins. It is printed and logged by these rules alone.
"""

from __future__ import annotations

from chrootfw.errors import Lines

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Shown(str):
    """Be text that is fit for a terminal.

    It is made by ``printable``, with line breaks and colours of chrootfw's own.
    """

    __slots__ = ()


def printable(text: str) -> Shown:
    """Escape what a terminal would obey or a reader not see.

    These are control characters, line breaks, bidi controls and odd spaces.
    """
    if isinstance(text, Shown):
        return text
    if text.isprintable():
        return Shown(text)
    return Shown("".join(c if c.isprintable() else _escape(c) for c in text))


def _escape(character: str) -> str:
    """Write a character as Python would, without the codec for that, a module of its own."""
    number = ord(character)
    if character in _ESCAPES:
        return _ESCAPES[character]
    return (
        f"\\x{number:02x}"
        if number < 0x100
        else f"\\u{number:04x}"
        if number < 0x10000
        else f"\\U{number:08x}"
    )


def printable_lines(text: str) -> list[Shown]:
    """Escape each line of ``Lines``, and any other text as one line."""
    return [printable(line) for line in (text.lines if isinstance(text, Lines) else (text,))]


def printable_text(value: object) -> str:
    """Return the text of an error or of any other value, line by line, for a log."""
    text = value if isinstance(value, str) else str(value)  # Lines stay lines
    return "\n".join(printable_lines(text))
