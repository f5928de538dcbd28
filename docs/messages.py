"""The messages of chrootfw, read from its code: what an error or a warning says, and its hint.

``…`` stands for what is filled in: a name, a path, the kernel's reason.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import chrootfw
import chrootfw_defaults
from chrootfw.planning import transitions

#: The packages whose messages the pages list. Ganeti's and the test kit's readers have pages of their own.
_PACKAGES = [Path(package.__path__[0]) for package in (chrootfw, chrootfw_defaults)]
_PACKAGES.append(_PACKAGES[1].parent / "chrootfw_hardened")

_LEFT_OUT = {"testing", "new_plugin.py", "demo.py", "demo_files.py"}

_KINDS = re.compile(r"[A-Z]\w*Error|NotSupported|Interrupted|Problem|warn|held_error")


class Message(NamedTuple):
    """What is printed, the class of the error (or ``warning``), and the hint or ``""``."""

    text: str
    kind: str
    hint: str


def collect() -> list[Message]:
    """Return every message once, in the order of the code."""
    found: dict[str, Message] = {}
    for package in _PACKAGES:
        for file in sorted(package.rglob("*.py")):
            if not _LEFT_OUT.intersection(file.relative_to(package).parts):
                for message in _in_file(file):
                    kept = found.setdefault(message.text, message)
                    if message.hint and not kept.hint:
                        found[message.text] = message
    for (verb, _state), (reason, hint) in transitions._REFUSALS.items():
        text = f"cannot {verb} …: it {reason}"
        found[text] = Message(text, "TransitionError", re.sub(r"\{\w+\}", "…", hint))
    return [*found.values()]


def _in_file(file: Path) -> Iterator[Message]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for scope in ast.walk(tree):
        if isinstance(scope, ast.FunctionDef):
            yield from _in_function(scope)


def _in_function(function: ast.FunctionDef) -> Iterator[Message]:
    for call in ast.walk(function):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        if not _KINDS.fullmatch(name) or hasattr(builtins, name) or name == "ArgumentTypeError":
            continue
        at = 1 if name == "warn" else 0
        if len(call.args) <= at or (name == "warn" and not _is_reporter(call)):
            continue
        kind = {"Problem": "PreStartError", "warn": "warning", "held_error": "HeldError"}.get(
            name, name
        )
        for text in _texts(call.args[at], function):
            if len(re.findall(r"[a-z]{2,}", text)) > 2:
                yield Message(text, kind, _hint(call, name, function))


def _is_reporter(call: ast.Call) -> bool:
    """Whether a call of ``warn`` is of a job's or a runtime's, not of the module warnings."""
    return getattr(getattr(call.func, "value", None), "id", "") != "warnings"


def _hint(call: ast.Call, name: str, function: ast.FunctionDef) -> str:
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    place = 1 if name == "Problem" else 2
    given = named.get("hint") or (call.args[place] if len(call.args) > place else None)
    texts = [] if given is None else [text for text in _texts(given, function) if text != "…"]
    return texts[0] if texts else ""


def _texts(node: ast.expr, function: ast.FunctionDef) -> list[str]:
    """Return the texts that an expression may be, as far as the code shows them."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        parts = ("…" if isinstance(each, ast.FormattedValue) else str(each.value) for each in node.values)  # type: ignore[attr-defined]  # fmt: skip
        return ["".join(parts)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in _texts(node.left, function) for b in _texts(node.right, function)]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, function), *_texts(node.orelse, function)]
    if isinstance(node, ast.Name):
        found = [
            text
            for each in ast.walk(function)
            if isinstance(each, ast.Assign)
            and any(getattr(target, "id", "") == node.id for target in each.targets)
            for text in _texts(each.value, _EMPTY)
        ]
        return found or ["…"]
    return ["…"]


_EMPTY = ast.FunctionDef("_", ast.arguments([], [], None, [], [], None, []), [], [])


def explained() -> list[str]:
    """Return the messages that the page Troubleshooting explains, as it quotes them."""
    page = Path(__file__).parent / "how-to/troubleshooting.md"
    return re.findall(r"^:{3,}\{message\} (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
