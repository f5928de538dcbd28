"""What the pages take from the code, so that it cannot go stale: a Sphinx extension.

A line ``% generated: WHAT`` of a Markdown page is replaced by what one of the functions below returns.
"""

from __future__ import annotations

import argparse
import html
import inspect
import re
import typing
from collections.abc import Callable

import diagrams
import screens
from sphinx.application import Sphinx

import chrootfw
from chrootfw import cli, config, errors, hookspecs
from chrootfw.planning import transitions
from chrootfw_hardened import hardening

#: The directories that the pages speak of, whatever the environment of the build says.
_RUNTIME = chrootfw.Runtime([hardening], run_dir="/run/chrootfw", config_dir="/etc/chrootfw")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _fill_in)
    app.connect("autodoc-process-signature", _readable)
    return {"parallel_read_safe": True}


def _fill_in(app: Sphinx, _page: str, source: list[str]) -> None:
    before = source[0]
    source[0] = re.sub(
        r"^% generated: (\w+) ?(.*)$", lambda line: _MAKERS[line[1]](line[2]), source[0], flags=re.MULTILINE
    )
    if source[0] != before:
        app.env.note_reread()  # in the next build again: what is taken from the code may have changed


def _readable(
    _app: Sphinx, _what: str, _name: str, _value: object, _options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """A signature whose defaults are Python as well."""
    if signature:
        signature = re.sub(r"<function \w+>", "...", signature).replace("NOTHING", "{}")
    return signature, returned


# -- the command line -----------------------------------------------------------------------------------


def verbs() -> dict[str, argparse.ArgumentParser]:
    """The verbs in the order of ``chrootfw --help``, each with its parser."""
    (found,) = (action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def options(parser: argparse.ArgumentParser, *, everywhere: bool) -> list[argparse.Action]:
    """The options of a parser: those that every verb has, or those that it has alone."""
    return [
        action
        for group in parser._action_groups
        for action in group._group_actions
        if action.option_strings and action.dest != "help" and (group.title == "everywhere") == everywhere
    ]


def _verb(name: str) -> str:
    """What a verb does, how it is called, and its own options."""
    parser = verbs()[name]
    formatter = _Usage(prog=f"chrootfw {name}", width=96)
    own = [*options(parser, everywhere=False), *parser._get_positional_actions()]
    groups = [group for group in parser._mutually_exclusive_groups if group._group_actions[0] in own]
    formatter.add_usage(None, own, groups, prefix="")
    lines = [str(parser.description), "", "```text", formatter.format_help().strip(), "```", ""]
    return "\n".join([*lines, *_table(options(parser, everywhere=False))])


class _Usage(argparse.HelpFormatter):
    """Shows a command and its arguments as the help calls them, and not as ``...``."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.REMAINDER:
            return str(action.metavar)
        return super()._format_args(action, default_metavar)


def _everywhere(_nothing: str) -> str:
    return "\n".join(_table(options(verbs()["list"], everywhere=True)))


def _table(found: list[argparse.Action]) -> list[str]:
    if not found:
        return []
    rows = []
    for action in found:
        value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        rows.append(
            f"| {', '.join(f'`{text}{value}`' for text in action.option_strings)} | {_literal(str(action.help))} |"
        )
    return ["| Option | Meaning |", "|---|---|", *rows]


# -- states ---------------------------------------------------------------------------------------------


def _transitions(_nothing: str) -> str:
    """Which verb fits which state, and why not."""
    states = tuple(map(chrootfw.InstanceState, ("absent", "mounted", "running", "held")))
    rows = [f"| | {' | '.join(f'`{state}`' for state in states)} |", f"|---{'|---' * len(states)}|"]
    for verb, legal in transitions._LEGAL.items():
        shown = "`exec`, `shell`" if verb == "enter" else f"`{verb}`"
        cells = ["yes" if state in legal else f"no: it {transitions._REFUSALS[verb, state][0]}" for state in states]
        if verb in ("stop", "cleanup"):
            cells[0] = "nothing to do"
        rows.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(rows)


# -- parameters -----------------------------------------------------------------------------------------


def _parameters(_nothing: str) -> str:
    rows = ["| Parameter | Type | Default | Meaning |", "|---|---|---|---|"]
    for _plugin, parameter in _RUNTIME.parameters():
        default = config.default_text(parameter)
        rows.append(
            f"| `{parameter.name}` | {config.type_text(parameter)} | "
            f"{'' if default == '-' else f'`{default}`'} | {_literal(parameter.help)} |"
        )
    return "\n".join(rows)


def _literal(text: str) -> str:
    """Options and quoted words of a help text as code, so that no typography touches them."""
    return re.sub(r'(?<!\S)--[a-z-]+|"[^"]+"', lambda found: f"`{found[0]}`", text)


# -- hooks and values -----------------------------------------------------------------------------------


def _hooks(_nothing: str) -> str:
    """Every hook: its kind is in its docstring, where this looks for it."""
    for name, kind in hookspecs.KINDS.items():
        text = str(inspect.getdoc(getattr(hookspecs, name)))
        assert f"Kind: {kind}" in text, f"the docstring of {name} does not say its kind"
    return "\n".join(_rst(*(f".. autofunction:: chrootfw.hookspecs.{name}" for name in hookspecs.KINDS)))


def _kinds(_nothing: str) -> str:
    rows = ["| Hook | Kind | The question |", "|---|---|---|"]
    for name, kind in hookspecs.KINDS.items():
        question = str(inspect.getdoc(getattr(hookspecs, name))).splitlines()[0]
        rows.append(f"| {{py:func}}`~chrootfw.hookspecs.{name}` | *{kind}* | {question} |")
    return "\n".join(rows)


def _classes(names: str) -> str:
    """The reference of exported classes."""
    return "\n".join(_rst(*(f".. autoclass:: chrootfw.{name}" for name in names.split())))


def _words(name: str) -> str:
    """The reference of an exported ``Literal``, with all its words."""
    words = ", ".join(f"``{word}``" for word in typing.get_args(getattr(chrootfw, name)))
    return "\n".join(_rst(f".. py:data:: {name}\n   :module: chrootfw\n\n   A type for type checkers, one of {words}."))


def _errors(_nothing: str) -> str:
    """The tree of errors as errors.py draws it, and each with what raises it."""
    drawing = inspect.cleandoc(str(errors.__doc__)).partition(".. code-block:: text\n\n")[2]
    tree = inspect.cleandoc(drawing.partition("\n\nThis module")[0]).replace("``", "")
    kinds = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)]
    documented = _rst(*(f".. autoexception:: chrootfw.{name}\n   :no-members:" for name in kinds))
    return "\n".join(["```text", tree, "```", "", *documented])


def _rst(*lines: str) -> list[str]:
    return ["```{eval-rst}", *(f"{line}\n" for line in lines), "```", ""]


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
        commands = ", ".join(f"`{line}`" for line in screens.LIVES[name] if not line.startswith("("))
        return f"*Here a build by root shows what {commands} says on a terminal.*"
    return _figure(screens.picture(shown, "chrootfw"), caption)


def _figure(svg: str, caption: str) -> str:
    text = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return "\n".join(["```{raw} html", f'<figure class="drawn"><div>{svg}</div>{text}</figure>', "```"])


_MAKERS: dict[str, Callable[[str], str]] = {
    "verb": _verb,
    "everywhere": _everywhere,
    "transitions": _transitions,
    "parameters": _parameters,
    "hooks": _hooks,
    "kinds": _kinds,
    "classes": _classes,
    "words": _words,
    "errors": _errors,
    "diagram": _diagram,
    "screen": _screen,
}
