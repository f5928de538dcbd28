"""The manual pages and completions in the wheel: current, and of plain ASCII."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from chrootfw import config
from chrootfw.cli import main, man_pages, topics, verb_table

TREE = Path(__file__).parents[2]
#: Each file, and the command that writes it.
WRITTEN = {
    "share/man/man8/chrootfw.8": "man chrootfw",
    "share/man/man5/chrootfw.toml.5": "man chrootfw.toml",
    "share/bash-completion/completions/chrootfw": "completion bash",
    "share/zsh/site-functions/_chrootfw": "completion zsh",
    "share/fish/vendor_completions.d/chrootfw.fish": "completion fish",
}


@pytest.mark.parametrize("file", WRITTEN)
def test_a_file_is_what_its_command_writes(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(WRITTEN[file].split()) == 0
    written = capsys.readouterr().out
    assert (TREE / file).read_text() == written, f"chrootfw {WRITTEN[file]} > {file}"
    assert written.isascii()


def test_the_installation_has_them() -> None:
    installed = importlib.metadata.distribution("chrootfw").files or ()
    for file in WRITTEN:
        assert [each for each in installed if str(each).endswith(file)], file


def _shown(page: str) -> str:
    return man_pages.write(page).replace("\\-", "-").replace("\\fB", "").replace("\\fR", "")


def test_the_page_of_the_command_has_every_verb_option_status_and_variable() -> None:
    lines = _shown("chrootfw").split("\n")
    for verb in verb_table.VERBS:
        assert [line for line in lines if line.split(" ")[0] == verb.name], verb.name
        for option in verb_table.list_options(verb):
            assert [line for line in lines if option in line], option
        for command, _ in verb.examples:
            assert f"chrootfw {command}" in lines
    for term, _ in (*topics.EXIT_STATUSES, *topics.INSIDE_STATUSES, *topics.ENVIRONMENT):
        assert term in lines


def test_the_page_of_definitions_has_every_parameter() -> None:
    text = _shown("chrootfw.toml")
    for parameter in config.CORE_PARAMETERS:
        assert f"\n{parameter.name} (" in text
    assert "\ngrace (float, in s; by default 10)" in text
    assert "\nhardened (bool; by default false)" in text


def test_a_manual_page_has_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["man", "--json"]) == 2
    assert "a manual page has no JSON" in capsys.readouterr().out
