"""The completion of bash, zsh and fish, asked of the shells themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chrootfw.cli import completion, verb_table

EVERY = [verb.name for verb in verb_table.VERBS]

ASKED = [
    ("chrootfw sta", ["start"]),
    ("chrootfw stop we", ["web1", "web2"]),
    ("chrootfw --run-dir /x info d", ["db"]),
    ("chrootfw stop --kee", ["--keep-mounted"]),
    ("chrootfw list --sort me", ["memory"]),
    ("chrootfw plan re", ["reboot"]),
    ("chrootfw help exi", ["exit-status"]),
    ("chrootfw start --set gra", ["grace="]),
    ("chrootfw stop --timeout we", []),
    ("chrootfw logs -n we", []),
]


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``chrootfw`` is found and knows three instances."""
    for name in ("web1", "web2", "db"):
        (tmp_path / f"{name}.toml").write_text("")
    program = tmp_path / "chrootfw"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m chrootfw "$@"\n')
    program.chmod(0o755)
    for shell in ("bash", "zsh", "fish"):
        (tmp_path / shell).write_text(completion.write(shell))
    return {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CHROOTFW_CONFIG_DIR": str(tmp_path),
        "CHROOTFW_RUN_DIR": str(tmp_path / "run"),
    }


def _run(machine: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=machine, capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@pytest.mark.parametrize(("line", "found"), ASKED)
def test_bash(machine: dict[str, str], line: str, found: list[str]) -> None:
    script = f"""
        source {machine["HOME"]}/bash
        COMP_WORDS=({line}) COMP_CWORD={len(line.split()) - 1}
        _chrootfw
        printf "%s\\n" "${{COMPREPLY[@]}}"
    """
    assert sorted(_run(machine, "bash", "--norc", "-c", script).split()) == found


def test_bash_completes_the_verb(machine: dict[str, str]) -> None:
    script = f"source {machine['HOME']}/bash; COMP_WORDS=(chrootfw '') COMP_CWORD=1; _chrootfw"
    script += '; printf "%s\\n" "${COMPREPLY[@]}"'
    assert set(EVERY) <= set(_run(machine, "bash", "--norc", "-c", script).split())


@pytest.mark.parametrize(("line", "found"), ASKED)
def test_fish(machine: dict[str, str], line: str, found: list[str]) -> None:
    script = f"source {machine['HOME']}/fish; complete -C {line!r}"
    lines = _run(machine, "fish", "--no-config", "-c", script).splitlines()
    words = sorted(each.partition("\t")[0] for each in lines)
    assert words == [word.removesuffix("=") for word in found]


def test_zsh_loads_it(machine: dict[str, str]) -> None:
    script = f"autoload -U compinit && compinit -u -D; source {machine['HOME']}/zsh"
    assert _run(machine, "zsh", "-f", "-c", f"{script}; whence -w _chrootfw") == (
        "_chrootfw: function\n"
    )


#: Types a line into an interactive zsh that has a directory in its fpath, and prints what TAB makes of it.
ZSH_TYPES = r"""
zmodload zsh/zpty
zpty shell 'TERM=dumb PS1= zsh -f -i'
zpty -w shell 'fpath=('$1' $fpath); autoload -U compinit && compinit -u -D; echo rea""dy'
zpty -r shell shown '*ready*'
zpty -w -n shell $'chrootfw completion zs\t'
zpty -r shell shown '*completion zsh*'
print -r -- "${shown##*chrootfw }"
zpty -d shell
"""


def test_zsh_finds_it_below_share_at_the_first_tab(machine: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "types.zsh"
    script.write_text(ZSH_TYPES)
    functions = str(Path(__file__).parents[2] / "share/zsh/site-functions")
    command = ["timeout", "120", "zsh", "-f", str(script), functions]
    assert _run(machine, *command).strip() == "completion zsh"
