"""Find words that the glossary (docs/reference/glossary.md) has replaced.

``python tools/words.py [--identifiers] [PATH...]``. Prose is comments, docstrings, messages and
pages. A string without a space is a key or a name, not a message; text between backticks, and the
blocks of a page, are code. Identifiers are searched with ``--identifiers`` alone.
"""

from __future__ import annotations

import ast
import io
import os
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: A pattern, and what to write instead. Only what has no other meaning in plain English.
WORDS = {
    r"intents?": "record",
    r"debts?|owed|unpaid": "pending undo, undo journal",
    r"survey(?:s|ed)?": "snapshot",
    r"blam(?:e|es|ed|ing)|guilty|culprits?": "attributed to the plugin, plugin error",
    r"patience|overdue": "time limit, deadline, timed out",
    r"keepers?": "helper process, init",
    r"runners?": "worker",
    r"deeds?": "run, execution",
    r"floors?|houses?": "layer, package",
    r"rooms?": "module, space, buffer",
    r"foreign": "third-party, another",
    r"parted": "isolated, split",
    r"born": "started in, created in",
}
#: The same for prose alone.
PHRASES = {
    r"who(?:m|mso)?ever": "a process that, a caller that, you",
    r"(?:process(?:es)?|instances?|it|who|that|which|them) (?:still )?lives?|lives (?:in|on)": "runs, is running",
    r"mend(?:s|ed)?": "fix",
    r"anew": "again",
    r"child(?:ren)? of ours": "helper process, worker",
    r"(?<!there )(?<!where )(?:is|are) no (?!longer\b|more\b|other\b)\w+": "is not a valid X, is not an X",
}
#: The same for the words that an identifier is made of.
PARTS = {
    r"bands?": "origin",
    r"look(?:s|ed)?": "read, scan, check, refresh",
    r"told": "reported, logged",
}
#: No name of a function, which is a verb.
NO_VERB = {"above", "alone", "apart", "below", "beside", "beyond", "inside",
           "on", "outside", "over", "under", "where", "within"}  # fmt: skip
#: Names that another project has given.
NAMES_OF_OTHERS = {"DnsOnlyRunner"}  # Ganeti's
SUFFIXES = (".py", ".md", ".in")
AREAS = ("chrootfw", "plugins", "docs", "README.md", "CONTRIBUTING.md")


def find_prose(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the word and the advice for each retired word in the prose of a file."""
    for line, prose in _read_python(text) if path.suffix == ".py" else _read_page(text):
        plain = re.sub(
            r"``.*?``|`[^`]*`", lambda code: re.sub(r"[^\n]", " ", code[0]), prose, flags=re.DOTALL
        )
        for pattern, advice in {**WORDS, **PHRASES}.items():
            for hit in re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", plain, re.IGNORECASE):
                yield line + plain.count("\n", 0, hit.start()), hit[0], advice


def find_identifiers(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the name and the advice for each identifier made of a retired word."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string not in NAMES_OF_OTHERS:
            name = re.sub(r"look_?up", "", token.string, flags=re.IGNORECASE)
            for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name):
                for pattern, advice in {**WORDS, **PARTS}.items():
                    if re.fullmatch(pattern, part, re.IGNORECASE):
                        yield token.start[0], token.string, advice
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name.strip("_") in NO_VERB
        ):
            yield node.lineno, node.name, "a verb"


def _read_python(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.search(r"\s", node.value.strip())
        ):
            yield node.lineno, node.value


def _read_page(text: str) -> Iterator[tuple[int, str]]:
    blank = re.sub(
        r"^( *)```.*?^ *```",
        lambda code: "\n" * code[0].count("\n"),
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    yield 1, re.sub(r"\]\([^)\n]*\)", "]", blank)


def main(arguments: list[str]) -> int:
    """Print each retired word with its place, and return the exit status."""
    given = [Path(argument).resolve() for argument in arguments if not argument.startswith("-")]
    found = 0
    for area in given or [ROOT / area for area in AREAS]:
        for path in sorted(area.rglob("*")) if area.is_dir() else [area]:
            if path.suffix not in SUFFIXES or "_build" in path.parts:
                continue
            text = path.read_text(encoding="utf-8")
            hits = list(find_prose(path, text))
            if "--identifiers" in arguments and path.suffix == ".py":
                hits += find_identifiers(text)
            for line, word, advice in sorted(hits):
                print(f"{os.path.relpath(path, ROOT)}:{line}: {word!r} is retired; say: {advice}")
            found += len(hits)
    return found > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
