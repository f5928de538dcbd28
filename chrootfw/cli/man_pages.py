"""Write the manual pages chrootfw(8) and chrootfw.toml(5).

They are made of the table of verbs, the declared parameters, and the tables of ``chrootfw help``.
``share/`` in the source tree holds what this writes, for the wheel; a test compares them.
"""

from __future__ import annotations

import textwrap

import chrootfw
from chrootfw import config
from chrootfw.cli import topics, verb_table
from chrootfw.cli.verb_table import OneOf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from chrootfw.cli.verb_table import Argument, Verb
    from chrootfw.model import Parameter

#: The day of the version's text, for the foot of the pages: the same in every build.
_DATE = "2026-11-30"

_FILES = (
    ("/etc/chrootfw/NAME.toml", "the definition of an instance, chrootfw.toml(5)"),
    (
        "/etc/chrootfw/_node.toml",
        "settings of the machine: without, a list of plugins to leave out",
    ),
    ("/run/chrootfw/NAME/root", "the root of a started instance"),
    ("/run/chrootfw/NAME/record.json", "what its start wrote down; read by root only"),
    (
        "/var/log/chrootfw",
        "what instances and their init scripts printed, unless the journal has it",
    ),
)

_EXAMPLE = (
    "# /etc/chrootfw/web1.toml",
    *(setting for setting, _ in topics.DEFINITION[:3]),
    'binds = ["/srv/data:/data:ro"]',
    "",
    "[environment]",
    'TZ = "Europe/Berlin"',
)


def write(page: str) -> str:
    """Return a manual page, in the man(7) macros, without its last line's end.

    Args:
        page: ``chrootfw`` or ``chrootfw.toml``.
    """
    lines = _write_command() if page == "chrootfw" else _write_definition()
    return "\n".join(lines)


def _text(text: str) -> str:
    """Return text as roff shows it as it is, with ``-`` as typed."""
    text = text.replace("\\", "\\e").replace("…", "...").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _paragraph(*sentences: str) -> list[str]:
    """Return the lines of a paragraph; roff fills them again."""
    folded = textwrap.wrap(" ".join(sentences), 72, break_on_hyphens=False)
    return [_text(line) for line in folded]


def _bold(text: str) -> str:
    return f"\\fB{_text(text)}\\fR"


def _see(*pages: str) -> str:
    """Return a reference to pages, given as ``name(section)``."""
    return ", ".join(f"{_bold(page[:-3])}{page[-3:]}" for page in pages)


def _title(page: str, section: int) -> str:
    version = f"chrootfw {chrootfw.__version__}"
    # Neither hyphens nor wide gaps: names are to be searched for and copied.
    return f'.TH {_text(page)} {section} {_DATE} "{version}" "System administration"\n.nh\n.ad l'


def _terms(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return a list of terms, each with its meaning."""
    return [line for term, text in rows for line in (".TP", _bold(term), *_paragraph(text))]


def _block(lines: Iterable[str]) -> list[str]:
    return [".nf", *map(_text, lines), ".fi"]


def _arguments(verb: Verb) -> list[Argument]:
    return [
        argument
        for each in verb.arguments
        for argument in (each.arguments if isinstance(each, OneOf) else (each,))
    ]


def _option(argument: Argument) -> list[str]:
    value = f" \\fI{_text(str(argument.how['metavar']))}\\fR" if argument.takes_value else ""
    names = ", ".join(_bold(name) + value for name in argument.names)
    return [".TP", names, *_paragraph(str(argument.how["help"]))]


def _usage(verb: Verb) -> str:
    """Return how a verb is called: its options in one word, then its other arguments."""
    arguments = _arguments(verb)
    own = " [\\fIOPTIONS\\fR]" if any(each.is_option for each in arguments) else ""
    words = [_bold(verb.name) + own]
    for each in arguments:
        if each.is_option:
            continue
        default = "|".join(each.how.get("choices", ())) or each.names[0].upper()
        name = f"\\fI{_text(each.how.get('metavar', default))}\\fR"
        shape = {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} [{name} ...]"}
        if verb.needs_command and each.names == ("command",):
            words.append(f"{name} ...")  # argparse sees nothing of it, and takes it as optional
        else:
            words.append(shape.get(each.how.get("nargs", ""), name))
    return " ".join(words)


def _write_command() -> list[str]:
    lines = [
        _title("CHROOTFW", 8),
        ".SH NAME",
        _text("chrootfw") + " \\- " + _text("manage long-running chroots"),
        ".SH SYNOPSIS",
        f"{_bold('chrootfw')} [\\fIOPTIONS\\fR] \\fIVERB\\fR ...",
        ".SH DESCRIPTION",
        *_paragraph(
            "chrootfw starts a service in a chroot of its own disk, keeps track of its processes,",
            "and stops it: an instance is reported as stopped only after the kernel has shown that",
            "no process, mount or loop device of it is left.",
            "Every stage is a hook of a plugin.",
        ),
        ".PP",
        "Each instance has a definition,",
        f"{_see('chrootfw.toml(5)')}. What changes something needs the root user.",
        ".SH OPTIONS",
        "Every verb takes these, before or behind it.",
        *(
            line
            for each in verb_table.EVERYWHERE
            if not isinstance(each, OneOf)
            for line in _option(each)
        ),
        *(".TP", f"{_bold('-h')}, {_bold('--help')}", "show the verbs, or the options of one"),
        *(".TP", f"{_bold('-V')}, {_bold('--version')}", "show the version"),
        ".SH VERBS",
    ]
    for group in verb_table.GROUPS:
        lines.append(f".SS {_text(group.capitalize())}")
        for verb in verb_table.VERBS:
            if verb.group != group:
                continue
            lines += [".TP", _usage(verb), *_paragraph(f"{verb.help[0].upper()}{verb.help[1:]}.")]
            if options := [each for each in _arguments(verb) if each.is_option]:
                lines += [".RS", *(line for each in options for line in _option(each)), ".RE"]
    lines += [
        ".SH EXIT STATUS",
        *_terms(topics.EXIT_STATUSES),
        ".PP",
        "For several instances it is the highest of theirs.",
        "Of",
        f"{_bold('exec')} and {_bold('shell')} it is that of the command inside,",
        "128+n if signal n ended it, or:",
        *_terms(topics.INSIDE_STATUSES),
        ".SH ENVIRONMENT",
        *_terms(topics.ENVIRONMENT),
        ".SH FILES",
        *_terms(_FILES),
        ".SH EXAMPLES",
        *_terms(
            (f"chrootfw {command}", meaning)
            for verb in verb_table.VERBS
            for command, meaning in verb.examples
        ),
        ".SH SEE ALSO",
        _see("chrootfw.toml(5)", "chroot(2)", "mount(8)", "losetup(8)", "cgroups(7)"),
    ]
    return lines


def _write_definition() -> list[str]:
    lines = [
        _title("CHROOTFW.TOML", 5),
        ".SH NAME",
        _text("chrootfw.toml") + " \\- " + _text("definition of an instance of chrootfw"),
        ".SH SYNOPSIS",
        "/etc/chrootfw/\\fINAME\\fR.toml",
        ".SH DESCRIPTION",
        *_paragraph(
            "A definition is a file in TOML whose keys are parameters of the instance NAME.",
            "It and its directories belong to root and are not writable by others.",
            "The directory is another with CHROOTFW_CONFIG_DIR or --config-dir.",
        ),
        ".PP",
        *_paragraph(
            "NAME has 1 to 200 letters of ASCII, digits, dots, hyphens and underscores; it begins",
            "with a letter or digit. A key that no loaded plugin declares is an error.",
            "A started instance keeps what it was started with.",
        ),
        ".SH PARAMETERS",
        f"{_bold('chrootfw parameters')} lists those of other plugins, too.",
    ]
    for title, declared in _parameters().items():
        lines.append(f".SS {title}")
        for each in declared:
            default = config.default_text(each)
            kind = f"{config.type_text(each)}{', in ' + each.unit if each.unit else ''}"
            after = "" if default == "-" else f"; by default {default}"
            lines += [
                ".TP",
                f"{_bold(each.name)} ({_text(kind + after)})",
                *_paragraph(f"{each.help[0].upper()}{each.help[1:]}."),
            ]
    return [
        *lines,
        ".SH FILES",
        *_terms(_FILES[:2]),
        ".SH EXAMPLES",
        *_block(_EXAMPLE),
        ".SH SEE ALSO",
        _see("chrootfw(8)"),
    ]


def _parameters() -> dict[str, list[Parameter]]:
    """Return the parameters of chrootfw and of the plugins that come with it, by their heading."""
    from chrootfw_hardened import hardening

    runtime = chrootfw.Runtime([hardening], run_dir="/run/chrootfw", config_dir="/etc/chrootfw")
    found: dict[str, list[Parameter]] = {"Of every instance": [], "Of a hardened instance": []}
    of_hardened = {each.name for each in hardening.chrootfw_parameters()}
    for _plugin, parameter in runtime.parameters():
        hardened = parameter.name in of_hardened
        found["Of a hardened instance" if hardened else "Of every instance"].append(parameter)
    return found
