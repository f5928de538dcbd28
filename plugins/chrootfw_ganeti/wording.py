"""Write chrootfw's errors for Ganeti: in one line of ASCII, with hints in Ganeti's commands.

Ganeti's commands and jobs cannot read other text in an answer (its issues 483 and 503).
"""

from __future__ import annotations

import os
import re

from chrootfw_ganeti import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from chrootfw.errors import ChrootfwError

#: Verbs of chrootfw that an administrator of Ganeti leaves to Ganeti, which has to know of them.
_GANETIS = re.compile(r"\bchrootfw (start|stop|reboot)\b")
_COMMAND = re.compile(r"\bchrootfw ([a-z-]+)")
#: How hints name a parameter: as a definition file has it, or in words.
_ASSIGNED = re.compile(r'\b(?!disk\b)([a-z_]{3,}) = (\[[^\]]*\]|"[^"]*"|[^\s,;]+)')
_SET_TO = re.compile(r"\bset ([a-z_]+) to (?=[a-z])")
_SET = re.compile(r"\bset (fstype)\b")
#: What is not possible in Ganeti, or done there in any case, and what is there instead.
_PHRASES = (
    (" (false: mount only)", ""),
    (" (stop --kill-holders signals these processes)", ""),
)


def sentence(error: ChrootfwError) -> str:
    """Write an error in one line, for Ganeti's own sentences."""
    text = error.brief
    details = ""
    for line in filter(None, map(str.strip, error.details)):
        details += f"{' ' if details.endswith(':') else '; '}{line}" if details else line
    if details:
        text += f" ({details})"
    if error.hint:
        text += f"{'' if text.endswith(('.', '?', '!')) else '.'} Hint: {hint(error.hint)}"
    return to_ascii(text)


def hint(text: str) -> str:
    """Rewrite a hint of the stand-alone command for an administrator of Ganeti."""
    for phrase, instead in _PHRASES:
        text = text.replace(phrase, instead)
    text = _GANETIS.sub(r"gnt-instance \1", text)
    text = _COMMAND.sub(_command, text)
    text = _ASSIGNED.sub(_assignment, text)
    text = _SET_TO.sub(r"set extra_config=\1:", text)
    return _SET.sub(r"set \1 in extra_config", text)


def to_ascii(text: str) -> str:
    """Escape what is not ASCII in a text."""
    return text.replace("…", "...").encode("ascii", "backslashreplace").decode()


def _command(found: re.Match[str]) -> str:
    from chrootfw.cli.verb_table import find_verb  # only an error needs all verbs

    is_prose = find_verb(found[1]) is None  # such as "chrootfw needs Linux 5.14"
    return found[0] if is_prose else f"{os.path.basename(places.COMMAND)} {found[1]}"


def _assignment(found: re.Match[str]) -> str:
    value = re.sub(r'[\[\]"]', "", found[2]).replace(", ", " ")
    return f"extra_config={found[1]}:{value}"
