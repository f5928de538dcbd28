"""Write the completion of bash, zsh and fish from the table of verbs."""

from __future__ import annotations

import shlex

from chrootfw.cli import verb_table
from chrootfw.cli.topics import TOPICS

#: Names of instances and parameters are asked of the command itself.
_NAMES, _PARAMETERS = "chrootfw list -q 2>/dev/null", "chrootfw parameters -q 2>/dev/null"

_BASH = """\
# bash completion of chrootfw: source <(chrootfw completion bash)
_chrootfw() {
    local cur=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} verb= before= word i
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $before in OPTIONS_WITH_VALUE) before=; continue ;; esac
        before=$word
        case $word in -*) ;; *) verb=$word; break ;; esac
    done
    COMPREPLY=()
    case $verb:$previous in
        *:--disk|*:--run-dir|*:--config-dir|*:--directory|*:--root)
            COMPREPLY=($(compgen -f -- "$cur")); return ;;
        start:--set|plan:--set)
            COMPREPLY=($(compgen -S = -W "$(PARAMETERS)" -- "$cur"))
            compopt -o nospace 2>/dev/null; return ;;
VALUES
        BEHIND_OPTION) return ;;
    esac
    case $verb in
        "") COMPREPLY=($(compgen -W "VERBS EVERYWHERE" -- "$cur")) ;;
CASES
    esac
}
complete -F _chrootfw chrootfw
"""

#: Found below share/zsh/site-functions, the file is read when its function is first called.
_ZSH_FIRST = """\
if [[ ${funcstack[1]} == _chrootfw ]]; then _bash_complete -F _chrootfw; fi
"""


def write(shell: str) -> str:
    """Return the completion of a shell.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.
    """
    if shell == "fish":
        return _write_fish()
    text = _write_bash()
    if shell == "bash":
        return text
    return (
        "#compdef chrootfw\n"
        "# zsh completion of chrootfw: source <(chrootfw completion zsh), behind compinit\n"
        "autoload -U +X bashcompinit && bashcompinit\n" + text.partition("\n")[2] + _ZSH_FIRST
    )


def _options(*arguments: verb_table.Argument | verb_table.OneOf) -> list[verb_table.Argument]:
    """Return those arguments that are options, out of their groups."""
    found: list[verb_table.Argument] = []
    for each in arguments:
        found += each.arguments if isinstance(each, verb_table.OneOf) else (each,)
    return [each for each in found if each.names[0].startswith("-")]


def _words(verb: verb_table.Verb) -> tuple[list[str], str]:
    """Return the words that a verb takes, and the command that lists further ones."""
    words: list[str] = []
    command = ""
    for each in verb.arguments:
        if isinstance(each, verb_table.OneOf) or each.names[0].startswith("-"):
            continue
        words += each.how.get("choices", ())
        if each.names[0] in ("name", "names", "patterns"):
            command = _NAMES
        if each.names[0] == "parameters":
            command = _PARAMETERS
        if each.names[0] == "topic":
            words += [*(verb.name for verb in verb_table.VERBS), *TOPICS]
    return words, command


def _names_of(options: list[verb_table.Argument]) -> str:
    return " ".join(name for each in options for name in each.names if name.startswith("--"))


def _write_bash() -> str:
    everywhere = _options(*verb_table.EVERYWHERE)
    all_options = [
        *everywhere,
        *(each for verb in verb_table.VERBS for each in _options(*verb.arguments)),
    ]
    with_value = dict.fromkeys(
        name for each in all_options if each.takes_value for name in each.names
    )
    values = [
        f"        {verb}:{each.names[-1]})"
        f' COMPREPLY=($(compgen -W "{" ".join(each.how["choices"])}" -- "$cur")); return ;;'
        for verb, options in [
            ("*", everywhere),
            *((verb.name, _options(*verb.arguments)) for verb in verb_table.VERBS),
        ]
        for each in options
        if "choices" in each.how
    ]
    cases = []
    for verb in verb_table.VERBS:
        words, command = _words(verb)
        options = _names_of([*_options(*verb.arguments), *everywhere])
        listed = " ".join([*words, *([f"$({command})"] if command else [])])
        cases.append(
            f'        {verb.name}) if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W "{options}"'
            f' -- "$cur")); else COMPREPLY=($(compgen -W "{listed}" -- "$cur")); fi ;;'
        )
    filled = {
        "OPTIONS_WITH_VALUE": "|".join(with_value),
        "BEHIND_OPTION": "|".join(f"*:{name}" for name in with_value),
        "PARAMETERS": _PARAMETERS,
        "VALUES": "\n".join(values),
        "VERBS": " ".join(verb.name for verb in verb_table.VERBS),
        "EVERYWHERE": _names_of(everywhere),
        "CASES": "\n".join(cases),
    }
    text = _BASH
    for key, value in filled.items():
        text = text.replace(key, value)
    return text


def _write_fish() -> str:
    lines = [
        "# fish completion of chrootfw: chrootfw completion fish | source",
        "complete -c chrootfw -f",
    ]
    for verb in verb_table.VERBS:
        lines.append(
            "complete -c chrootfw -n __fish_use_subcommand"
            f" -a {verb.name} -d {shlex.quote(verb.help)}"
        )
    for each in _options(*verb_table.EVERYWHERE):
        lines.append(f"complete -c chrootfw{_fish_option(each)}")
    for verb in verb_table.VERBS:
        seen = f"complete -c chrootfw -n '__fish_seen_subcommand_from {verb.name}'"
        lines += [f"{seen}{_fish_option(each)}" for each in _options(*verb.arguments)]
        words, command = _words(verb)
        listed = " ".join([*words, *([f"({command})"] if command else [])])
        if listed:
            lines.append(f"{seen} -a {shlex.quote(listed)}")
    return "\n".join([*lines, ""])


def _fish_option(option: verb_table.Argument) -> str:
    long = "".join(f" -l {name[2:]}" for name in option.names if name.startswith("--"))
    short = "".join(f" -s {name[1:]}" for name in option.names if not name.startswith("--"))
    value = ""
    if option.takes_value:
        listed = " ".join(option.how.get("choices", ()))
        if option.names[-1] == "--set":
            listed = f"({_PARAMETERS})"
        is_path = option.how.get("type") == "path" or option.names[-1] in ("--directory", "--root")
        value = " -r -F" if is_path else f" -x -a {shlex.quote(listed)}" if listed else " -x"
    return f"{short}{long}{value} -d {shlex.quote(option.how.get('help', ''))}"
