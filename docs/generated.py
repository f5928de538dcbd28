"""What the pages take from the code, so that it cannot go stale: a Sphinx extension.

A line ``% generated: WHAT`` of a Markdown page is replaced by what one of the functions below returns.
"""

from __future__ import annotations

import argparse
import html
import inspect
import re
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path

import diagrams
import messages
import screens
import speed
from sphinx.application import Sphinx

import chrootfw
from chrootfw import config, errors
from chrootfw.cli import parser as command_parser
from chrootfw.cli import topics
from chrootfw.hooks import specs
from chrootfw.planning import transitions
from chrootfw_hardened import hardening

#: The directories that the pages speak of, whatever the environment of the build says.
_RUNTIME = chrootfw.Runtime([hardening], run_dir="/run/chrootfw", config_dir="/etc/chrootfw")


#: What the search finds, and links reach, beside Sphinx's own ``option``, ``confval`` and Python names.
_OBJECTS = {"verb": "command", "message": "message", "json-field": "JSON field"}


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _fill_in)
    for kind, name in _OBJECTS.items():
        app.add_object_type(kind, kind, f"single: %s; {name}", objname=name)
    app.connect("autodoc-process-signature", _readable)
    return {"parallel_read_safe": True}


def _fill_in(app: Sphinx, _page: str, source: list[str]) -> None:
    before = source[0]
    source[0] = re.sub(
        r"^% generated: (\w+) ?(.*)$",
        lambda line: _MAKERS[line[1]](line[2]),
        source[0],
        flags=re.MULTILINE,
    )
    if source[0] != before:
        app.env.note_reread()  # in the next build again: what is taken from the code may have changed


def _readable(
    _app: Sphinx,
    _what: str,
    _name: str,
    _value: object,
    _options: object,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """A signature whose defaults are Python as well."""
    if signature:
        signature = re.sub(r"<function \w+>", "...", signature).replace("NOTHING", "{}")
    return signature, returned


# -- the command line -----------------------------------------------------------------------------------


def verbs() -> dict[str, argparse.ArgumentParser]:
    """The verbs in the order of ``chrootfw --help``, each with its parser."""
    (found,) = (
        action
        for action in command_parser.make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(found.choices)


def options(parser: argparse.ArgumentParser, *, everywhere: bool) -> list[argparse.Action]:
    """The options of a parser: those that every verb has, or those that it has alone."""
    return [
        action
        for group in parser._action_groups
        for action in group._group_actions
        if action.option_strings
        and action.dest != "help"
        and (group.title == "everywhere") == everywhere
    ]


def _verb(name: str) -> str:
    """What a verb does, how it is called, and its own options."""
    parser = verbs()[name]
    formatter = _Usage(prog=f"chrootfw {name}", width=96)
    own = [*options(parser, everywhere=False), *parser._get_positional_actions()]
    groups = [
        group for group in parser._mutually_exclusive_groups if group._group_actions[0] in own
    ]
    formatter.add_usage(None, own, groups, prefix="")
    lines = [
        f":::{{verb}} chrootfw {name}",
        *(
            str(parser.description),
            "",
            "```text",
            formatter.format_help().strip(),
            "```",
            ":::",
            "",
        ),
        f"```{{program}} chrootfw {name}\n```",
    ]
    return "\n".join([*lines, *_options(options(parser, everywhere=False))])


class _Usage(argparse.HelpFormatter):
    """Shows a command and its arguments as the help calls them, and not as ``...``."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.REMAINDER:
            return str(action.metavar)
        return super()._format_args(action, default_metavar)


def _everywhere(_nothing: str) -> str:
    shared = options(verbs()["list"], everywhere=True)
    return "\n".join(["```{program} chrootfw\n```", *_options(shared)])


def _options(found: list[argparse.Action]) -> list[str]:
    lines = []
    for action in found:
        value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        names = ", ".join(f"{text}{value}" for text in action.option_strings)
        lines += [f":::{{option}} {names}", _literal(str(action.help)), ":::", ""]
    return lines


def _environment(_nothing: str) -> str:
    return _rows("Variable", topics.ENVIRONMENT)


def _statuses(_nothing: str) -> str:
    return _rows("Status", topics.EXIT_STATUSES)


def _rows(title: str, rows: tuple[tuple[str, str], ...]) -> str:
    """A table of terms, each with its meaning."""
    lines = [f"| `{term}` | {_literal(meaning)} |" for term, meaning in rows]
    return "\n".join([f"| {title} | Meaning |", "|---|---|", *lines])


# -- states ---------------------------------------------------------------------------------------------


def _transitions(_nothing: str) -> str:
    """Which verb fits which state, and why not."""
    states = tuple(map(chrootfw.InstanceState, ("absent", "mounted", "running", "held")))
    rows = [
        f"| Verb | {' | '.join(f'`{state}`' for state in states)} |",
        f"|---{'|---' * len(states)}|",
    ]
    for verb, legal in transitions._LEGAL.items():
        shown = "`exec`, `shell`" if verb == "enter" else f"`{verb}`"
        cells = [
            "yes" if state in legal else f"no: it {transitions._REFUSALS[verb, state][0]}"
            for state in states
        ]
        if verb in ("stop", "cleanup"):
            cells[0] = "nothing to do"
        rows.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(rows)


# -- parameters -----------------------------------------------------------------------------------------


def _parameter(words: str) -> str:
    """A parameter as an object: its type, unit, default and help, and what the page adds."""
    name, _, more = words.partition(" ")
    parameter = next(each for _plugin, each in _RUNTIME.parameters() if each.name == name)
    default = config.default_text(parameter)
    unit = f" ({parameter.unit})" if parameter.unit else ""
    lines = [
        f":::{{confval}} {name}",
        f":type: {config.type_text(parameter)}{unit}",
        *([] if default == "-" else [f":default: `{default}`"]),
        "",
        f"{_literal(parameter.help[0].upper() + parameter.help[1:])}.",
        *(["", more] if more else []),
        ":::",
    ]
    return "\n".join(lines)


def _literal(text: str) -> str:
    """Options and quoted words of a help text as code, so that no typography touches them."""
    return re.sub(r'(?<!\S)--[a-z-]+|"[^"]+"', lambda found: f"`{found[0]}`", text)


# -- hooks and values -----------------------------------------------------------------------------------


def _hooks(_nothing: str) -> str:
    """Every hook: its kind is in its docstring, where this looks for it."""
    for name, kind in specs.KINDS.items():
        text = str(inspect.getdoc(getattr(specs, name)))
        assert f"Kind: {kind}" in text, f"the docstring of {name} does not say its kind"
    return "\n".join(
        _rst(*(f".. autofunction:: chrootfw.hooks.specs.{name}" for name in specs.KINDS))
    )


def _kinds(_nothing: str) -> str:
    rows = ["| Hook | Kind | What it does |", "|---|---|---|"]
    for name, kind in specs.KINDS.items():
        summary = str(inspect.getdoc(getattr(specs, name))).splitlines()[0]
        rows.append(f"| {{py:func}}`~chrootfw.hooks.specs.{name}` | *{kind}* | {summary} |")
    return "\n".join(rows)


def _classes(names: str) -> str:
    """The reference of exported classes."""
    return "\n".join(_rst(*(f".. autoclass:: chrootfw.{name}" for name in names.split())))


def _words(name: str) -> str:
    """The reference of an exported ``Literal``, with all its words."""
    words = ", ".join(f"``{word}``" for word in typing.get_args(getattr(chrootfw, name)))
    return "\n".join(
        _rst(
            f".. py:data:: {name}\n   :module: chrootfw\n\n   A type for type checkers, one of {words}."
        )
    )


def _errors(_nothing: str) -> str:
    """The tree of errors as errors.py draws it, and each with what raises it."""
    drawing = inspect.cleandoc(str(errors.__doc__)).partition(".. code-block:: text\n\n")[2]
    tree = inspect.cleandoc(drawing.partition("\n\nThis module")[0]).replace("``", "")
    kinds = [
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    documented = _rst(*(f".. autoexception:: chrootfw.{name}\n   :no-members:" for name in kinds))
    return "\n".join(["```text", tree, "```", "", *documented])


def _rst(*lines: str) -> list[str]:
    return ["```{eval-rst}", *(f"{line}\n" for line in lines), "```", ""]


# -- messages and JSON ----------------------------------------------------------------------------------


def _messages(_nothing: str) -> str:
    """Every message that Troubleshooting does not explain, by the kind of the error."""
    explained = set(messages.explained())
    found = messages.collect()
    lines = []
    for kind in sorted({message.kind for message in found}):
        lines += [f"## {kind if kind != 'warning' else 'Warnings'}", ""]
        if kind not in ("warning", "ChrootfwError"):
            about = str(inspect.getdoc(getattr(errors, kind))).split("\n\n")[0]
            lines += [f"{{py:class}}`~chrootfw.{kind}`: {' '.join(about.split())}", ""]
        known = [message for message in found if message.kind == kind]
        links = [f"- {{message}}`{each.text}`" for each in known if each.text in explained]
        lines += [
            *(
                [
                    "Explained in [What a message means](../how-to/troubleshooting.md):",
                    "",
                    *links,
                    "",
                ]
                if links
                else []
            )
        ]
        for message in known:
            if message.text not in explained:
                hint = f"Hint: `{message.hint}`" if message.hint else ""
                lines += [f":::{{message}} {message.text}", hint, ":::", ""]
    return "\n".join(lines)


def _fields(words: str) -> str:
    """The JSON fields of an object: lines of ``docs/fields.toml``."""
    table = tomllib.loads((Path(__file__).parent / "fields.toml").read_text(encoding="utf-8"))
    lines = []
    for name, meaning in table[words].items():
        lines += [f":::{{json-field}} {words}.{name}", meaning, ":::", ""]
    return "\n".join(lines)


# -- pictures -------------------------------------------------------------------------------------------


def _diagram(words: str) -> str:
    """A diagram, and a line that says what it shows."""
    name, _, caption = words.partition(" ")
    return _figure(diagrams.draw(name), caption)


def _screen(words: str) -> str:
    """Commands as they look on a terminal, run by this build; a note in their place where that takes root."""
    name, _, caption = words.partition(" ")
    shown = screens.show(name)
    if shown is None:
        commands = ", ".join(
            f"`{line}`" for line in screens.LIVES[name] if not line.startswith("(")
        )
        return f"*Here a build by root shows what {commands} says on a terminal.*"
    return _figure(screens.text(shown), caption)


def _demo(caption: str) -> str:
    """What the picture in the README shows, as text."""
    return _figure(screens.demo_text(), caption)


def _figure(drawn: str, caption: str) -> str:
    text = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return "\n".join(
        ["````{raw} html", f'<figure class="drawn"><div>{drawn}</div>{text}</figure>', "````"]
    )


_MAKERS: dict[str, Callable[[str], str]] = {
    "verb": _verb,
    "environment": _environment,
    "everywhere": _everywhere,
    "statuses": _statuses,
    "transitions": _transitions,
    "parameter": _parameter,
    "hooks": _hooks,
    "kinds": _kinds,
    "classes": _classes,
    "words": _words,
    "errors": _errors,
    "speed": speed.table,
    "speedchart": lambda caption: _figure(speed.chart(), caption),
    "messages": _messages,
    "fields": _fields,
    "diagram": _diagram,
    "screen": _screen,
    "demo": _demo,
}
