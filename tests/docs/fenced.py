"""The fenced blocks of a Markdown page, as values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

#: Where the tutorial's beginning ends, with which the examples of every other page go on.
MARK = "% The examples of the other pages go on from here."

#: What lies between these two, the other pages do without.
ASIDE = ("% The examples of the other pages leave this out.", "% They go on here.")


class Block(NamedTuple):
    """A fenced block. ``language``: the first word of its info string. ``caption``: the file that it shows, or ``""``."""

    page: Path
    line: int
    language: str
    caption: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}, line {self.line}"


def blocks(page: Path, *, until: str = "") -> list[Block]:
    """The blocks of a page in order; with ``until`` those before the line that is this text."""
    source = page.read_text(encoding="utf-8")
    if until:
        before, mark, _ = source.partition(f"\n{until}\n")
        assert mark, f"{page} has no line {until!r}"
        first, begin, rest = before.partition(f"\n{ASIDE[0]}\n")
        aside, end, last = rest.partition(f"\n{ASIDE[1]}\n")
        assert not begin or end, f"{page} has no line {ASIDE[1]!r}"
        source = first + "\n" * (aside.count("\n") + 4 if begin else 0) + last
    found = []
    for token in MarkdownIt("commonmark").parse(source):
        if token.type == "fence" and token.map:
            found.append(_block(page, token.map[0] + 1, token.info.strip(), token.content))
    return found


def _block(page: Path, line: int, info: str, text: str) -> Block:
    """A plain block, or the code of a MyST directive: ``{code-block} toml`` with a caption."""
    directive = re.fullmatch(r"\{code-block\} (\S+)", info)
    if not directive:
        return Block(page, line, info.partition(" ")[0], "", text)
    options = re.match(r"((?::[a-z-]+:.*\n)*)\n?", text)
    assert options is not None
    caption = re.search(r"^:caption: (.*)$", options[1], re.MULTILINE)
    return Block(
        page, line, directive[1], caption[1].strip("` ") if caption else "", text[options.end() :]
    )


class Shown(NamedTuple):
    """A command of a console block and the output that the page shows for it."""

    line: int
    command: str
    output: list[str]


def commands(block: Block) -> list[Shown]:
    """The commands of a console block: ``$ `` begins one, ``> `` goes on with it, anything else is output."""
    found: list[Shown] = []
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ "):
            found.append(Shown(number, line[2:], []))
        elif line.startswith("> ") and found and not found[-1].output:
            found[-1] = found[-1]._replace(command=f"{found[-1].command}\n{line[2:]}")
        else:
            assert found, f"{block}: a console block begins with a command"
            found[-1].output.append(line)
    return found


def is_as_shown(shown: list[str], said: str) -> bool:
    """Whether a command said what the page shows.

    ``…`` stands for anything in a line, the spaces around it included, and for any lines on a line of its own. How wide
    the columns of a table are depends on what is in them: two spaces are as good as more.
    """
    pattern = ""
    for line in map(_narrowed, shown):
        if line.strip() in ("…", "..."):
            pattern += r"(?:.*\n)*?"
        else:
            pattern += re.sub(r"(?:\\ )*(?:…|\\\.\\\.\\\.)(?:\\ )*", ".*", re.escape(line)) + r"\n"
    lines = [_narrowed(line) for line in said.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None


def _narrowed(line: str) -> str:
    return re.sub(r" {2,}", "  ", line.rstrip())
