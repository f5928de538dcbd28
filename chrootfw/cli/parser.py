"""The parser of the command line, made of the table of verbs; near words for what it refuses."""

from __future__ import annotations

import os

import chrootfw
from chrootfw.cli.verb_table import (
    BY_NAME,
    DEFINITION,
    EVERYWHERE,
    GROUPS,
    STOP,
    VERBS,
    Argument,
    OneOf,
    Verb,
    find_verb,
    list_options,
)
from chrootfw.cli.width import given_columns
from chrootfw.errors import InputError, Lines, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from typing import Any, NoReturn


#: The help is folded to no fewer columns.
_NARROWEST = 20

#: What other tools call it.
_ELSEWHERE = {
    "enter": "shell",
    "login": "shell",
    "ls": "list",
    "restart": "reboot",
    "rm": "cleanup",
    "run": "exec",
    "status": "info",
    "umount": "cleanup",
}


def is_option(word: str, option: str) -> bool:
    """Return whether a word is an option, or as much of its name as argparse takes for it.

    Args:
        word: A word of the command line (str).
        option: The option's whole name (str).
    """
    name = word.partition("=")[0]
    return name == option or (len(name) > 2 and name.startswith("--") and option.startswith(name))


#: The options with a value that may stand before the command of a verb that runs one.
_WITH_VALUE = tuple(
    argument.names[-1]
    for argument in (
        *EVERYWHERE,
        *(each for verb in VERBS if verb.runs_command for each in verb.arguments),
    )
    if isinstance(argument, Argument) and argument.takes_value
)


def split_arguments(arguments: list[str]) -> tuple[str, list[str], list[str]]:
    """Split a command line into the verb, chrootfw's own words, and the command of ``exec``.

    What stands behind NAME or ``--`` is the command's alone, whatever it looks like. The command
    may come with or without a ``--`` before it.

    Args:
        arguments: The words behind ``chrootfw`` (list of str).

    Returns:
        The verb (``""`` if there is none), chrootfw's own words with the verb, and the command's.
    """
    verb, names = "", 0
    value = False
    for at, word in enumerate(arguments):
        if value:
            value = False
        elif word == "--" and verb:
            return verb, arguments[:at], arguments[at + 1 :]
        elif len(word) > 1 and word.startswith("-"):
            value = "=" not in word and any(is_option(word, option) for option in _WITH_VALUE)
        elif not verb:
            verb = word
        elif names == 1 and verb in BY_NAME and BY_NAME[verb].runs_command:
            return verb, arguments[:at], arguments[at:]
        else:
            names += 1
    return verb, arguments, []


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line.

    Args:
        arguments: The words behind ``chrootfw`` (list of str).

    Returns:
        The options; ``verb`` is the verb's name, ``command`` the command of ``exec``.

    Raises:
        InputError: The words are not a valid command.
        SystemExit: ``--help`` or ``--version`` has been printed.
    """
    import argparse

    options = argparse.Namespace(
        **{
            each.names[-1].lstrip("-").replace("-", "_"): each.how.get("default", False)
            for each in EVERYWHERE
        }
    )
    name, own, command = split_arguments(arguments)
    verb = find_verb(name)
    if not arguments:
        arguments = own = ["help"]
    elif name and verb is None and not any(map(_ends_early, own)):
        raise unknown_verb(name)
    if not name and own and own[0].startswith("-") and not any(map(_ends_early, own)):
        known = [part for each in EVERYWHERE for part in each.names]
        if not any(is_option(own[0], option) for option in known):
            raise InputError(f"chrootfw has no option {own[0]}", hint="chrootfw --help")
    # Where the verb comes first, no other verb's help or options are needed.
    only = verb if arguments[:1] == [name] else None
    has_help = only is None or any(map(_ends_early, own))
    runs_command = verb is not None and verb.runs_command
    words = own if runs_command else arguments
    _, unknown = make_parser(only, has_help=has_help).parse_known_args(words, options)
    if unknown:
        raise _unknown_word(BY_NAME[options.verb], unknown[0], arguments)
    if runs_command:
        options.command = command  # argparse saw nothing of it
    return options


def _ends_early(word: str) -> bool:
    """Return whether a word has the help or the version printed, whatever else there is."""
    return word in ("-h", "-V") or is_option(word, "--help") or is_option(word, "--version")


def unknown_verb(name: str) -> InputError:
    """Return the error for a word that is not a verb; its hint is a verb that is near."""
    near = _ELSEWHERE.get(name) or nearest(name, BY_NAME)
    return InputError(f"{name} is not a verb", hint=f"chrootfw {near or 'help'}")


def unknown_topic(name: str, topics: Iterable[str]) -> InputError:
    """Return the error for a word that has no help; its hint is a verb or topic that is near."""
    near = _ELSEWHERE.get(name) or nearest(name, (*BY_NAME, *topics))
    return InputError(
        f"there is no help for {name}", hint=f"chrootfw help {near}" if near else "chrootfw help"
    )


def given_options(options: argparse.Namespace) -> list[str]:
    """Return the options of ``plan`` that were given, of those that not every verb has."""
    found = []
    for each in (*DEFINITION, *STOP):
        for argument in each.arguments if isinstance(each, OneOf) else (each,):
            value = getattr(options, argument.names[-1].lstrip("-").replace("-", "_"))
            if not (value is None or value is False or value == []):
                found.append(argument.names[-1])
    return found


def _unknown_word(verb: Verb, word: str, arguments: list[str]) -> InputError:
    """Return the error for a word that a verb does not take.

    Its hint is the same command line with the option that is near.
    """
    hint = f"chrootfw {verb.name} --help"
    if not word.startswith("-"):
        return InputError(f"{verb.name} takes no further word: {word}", hint=hint)
    option, equals, value = word.partition("=")
    names = {name.lstrip("-"): name for name in list_options(verb)}
    if near := names.get(nearest(option.lstrip("-"), names)):
        import shlex

        meant = list(arguments)
        meant[meant.index(word)] = f"{near}{equals}{value}"
        hint = f"chrootfw {shlex.join(meant)}"
    return InputError(f"{verb.name} has no option {option}", hint=hint)


def _rephrase(message: str, prog: str) -> InputError:
    """Return the error for what argparse has found wrong, in chrootfw's words."""
    import re

    hint = f"{prog} --help"
    if found := re.fullmatch("the following arguments are required: (.+)", message):
        return InputError(f"{prog.removeprefix('chrootfw ')} needs {found[1]}", hint=hint)
    if found := re.fullmatch("argument (.+): expected one argument", message):
        return InputError(f"{found[1]} needs a value", hint=hint)
    pattern = r"argument (.+): invalid choice: '(.*)' \(choose from (.+)\)"
    if found := re.fullmatch(pattern, message, re.DOTALL):
        choices = found[3].replace("'", "").split(", ")
        near = _ELSEWHERE.get(found[2])
        if near := near if near in choices else nearest(found[2], choices):
            option = f" {found[1].rpartition('/')[2]}" if found[1].startswith("-") else ""
            hint = f"{prog}{option} {near}"
        if found[1] == "VERB" and not found[2]:
            return unknown_verb("''")
        return InputError(f"{found[2]} is not one of {', '.join(choices)}", hint=hint)
    return InputError(message, hint=hint)


def _list_verbs() -> str:
    """Return the verbs for the help, by group."""
    import textwrap

    width, indent = _columns(), max(len(verb.name) for verb in VERBS) + 4
    lines = []
    for group in GROUPS:
        lines += ["", f"{group}:"]
        for verb in VERBS:
            if verb.group == group:
                text = f"  {verb.name}".ljust(indent) + verb.help
                lines += textwrap.wrap(text, width, subsequent_indent=" " * indent)
    return "\n".join(lines)


def _make_absolute(path: str) -> str:
    """Return a path of the host as seen from the caller's directory, before that is left.

    A ``..`` behind a name stays, and is refused: behind a symbolic link it is another directory
    than its text says.
    """
    if path.startswith("/") or not path:
        return path.rstrip("/") or path[:1]  # the slash that a shell's completion adds
    parts = [part for part in path.split("/") if part not in ("", ".")]
    try:
        where = os.getcwd()
    except OSError as error:
        import argparse

        text = f"the directory from which {path} is seen cannot be found: {error.strerror}"
        raise argparse.ArgumentTypeError(text) from error
    while parts[:1] == [".."]:
        where = os.path.dirname(where)
        parts.pop(0)
    return "/".join([where.rstrip("/"), *parts]) or "/"


def _columns() -> int:
    """Return the columns of a help, as argparse does by shutil, which takes 3 ms to import."""
    columns = given_columns()
    if columns is None:
        try:
            columns = os.get_terminal_size(1).columns or 80
        except OSError:  # no terminal
            columns = 80
    return max(columns, _NARROWEST) - 2


def make_parser(only: Verb | None = None, *, has_help: bool = True) -> argparse.ArgumentParser:
    """Make the parser from the table of verbs.

    Args:
        only: Make it for this verb alone, which is quicker.
        has_help: Whether it can print its help; without, it is made in half the time.
    """
    import argparse
    from functools import partial

    def seconds(text: str) -> float:
        value = float(text if text.isascii() else "nan")
        if not 0 <= value <= 86_400:
            raise argparse.ArgumentTypeError(f"{text} is not within 0 and 86400 seconds")
        return value

    def count(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 to 999999999")
        return int(text)

    class Colour(argparse.Action):
        """Choose the colours at once, for the help and for errors too."""

        def __call__(
            self, _parser: object, options: argparse.Namespace, value: Any, _option: object = None
        ) -> None:
            from chrootfw.cli import render

            render.choose_colours(value)
            setattr(options, self.dest, value)

    seconds.__name__ = "number"  # argparse prints it: "invalid number value"

    formatter = partial(argparse.HelpFormatter, width=_columns())

    class Parser(argparse.ArgumentParser):
        def __init__(self, **how: Any) -> None:
            super().__init__(**{"formatter_class": formatter, **how})

        def error(self, message: str) -> NoReturn:
            raise _rephrase(message, self.prog)

        def _print_message(self, message: str, file: Any = None) -> None:
            from chrootfw.cli import render

            render.show(Lines(message.rstrip("\n").split("\n")), file)

    left_out: list[str] = []

    class AppendEverywhere(argparse.Action):
        """Keep what stands before the verb: ``append`` begins again after it."""

        def __call__(
            self, _parser: object, options: argparse.Namespace, value: Any, _option: object = None
        ) -> None:
            left_out.append(value)
            setattr(options, self.dest, left_out)

    def add(to: argparse._ActionsContainer, argument: Argument | OneOf) -> None:
        if isinstance(argument, OneOf):
            group = to.add_mutually_exclusive_group()
            for each in argument.arguments:
                add(group, each)
            return
        how = dict(argument.how)
        kinds = {"seconds": seconds, "count": count, "path": _make_absolute}
        actions = {"append_everywhere": AppendEverywhere, "colour": Colour}
        if "type" in how:
            how["type"] = kinds[how["type"]]
        if how.get("action") in actions:
            how["action"] = actions[how["action"]]
        to.add_argument(*argument.names, **how)

    # A parser's own defaults would become those of the verbs' parsers, which undo what stands
    # before the verb; "parse" sets those of EVERYWHERE.
    def add_everywhere(to: argparse.ArgumentParser, verb: Verb) -> None:
        group = to.add_argument_group("everywhere")
        for each in EVERYWHERE:
            how = {**each.how, "default": argparse.SUPPRESS}
            if each.names == ("--json",) and not verb.has_json:
                how["help"] = argparse.SUPPRESS  # taken all the same, for the JSON of an error
            add(group, Argument(*each.names, **how))

    class WholeHelp(argparse.RawDescriptionHelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, width=_columns())

    parser = Parser(
        prog="chrootfw",
        usage="chrootfw [OPTIONS] VERB …",
        formatter_class=WholeHelp,
        add_help=False,
    )
    for each in (
        Argument("-h", "--help", action="help"),
        Argument("-V", "--version", action="version", version=f"chrootfw {chrootfw.__version__}"),
        *EVERYWHERE,
    ):
        how = {**each.how, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        add(parser, Argument(*each.names, **how))
    if only is None:
        parser.description = (
            "Manages long-running chroots; every stage of a chroot's life is a plugin hook.\n"
            + _list_verbs()
        )
        parser.epilog = (
            "chrootfw help VERB shows its options, with examples. Topics of help:\n"
            "exit-status, environment, definition, json. The version: chrootfw --version."
        )
    parsers = parser.add_subparsers(
        dest="verb", metavar="VERB", required=True, help=argparse.SUPPRESS, prog="chrootfw"
    )
    for verb in VERBS if only is None else (only,):
        added = parsers.add_parser(
            verb.name,
            help=verb.help,
            formatter_class=WholeHelp,
        )
        for argument in verb.arguments:
            add(added, argument)
        if has_help:
            _describe(added, verb)
        add_everywhere(added, verb)
    return parser


def _describe(parser: argparse.ArgumentParser, verb: Verb) -> None:
    """Give the parser of a verb the texts of its help, before it has the options everywhere.

    Those have their own heading, and are not repeated in each usage.
    """
    parser.description = _fold(f"{verb.help[0].upper()}{verb.help[1:]}.")
    parser.epilog = _show_examples(verb)
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    if verb.needs_command:  # argparse sees nothing of it, and takes it as optional
        usage = usage.replace("[-- CMD ...]", "-- CMD ...")
    parser.usage = usage.replace("%", "%%").replace("[-h]", "[OPTIONS]", 1)


def _fold(text: str) -> str:
    import textwrap

    return textwrap.fill(text, _columns())


def _show_examples(verb: Verb) -> str | None:
    """Return the examples of a verb for its help; ``None`` without any."""
    if not verb.examples:
        return None
    commands = [f"  chrootfw {command}" for command, _ in verb.examples]
    width = max(map(len, commands))
    lines = [
        f"{command:<{width}}  {meaning}"
        for command, (_, meaning) in zip(commands, verb.examples, strict=True)
    ]
    return "\n".join(["examples:", *lines])
