"""The command line's own business: usage, closed streams, errors as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chrootfw import cli


def chrootfw(tmp_path: Path, *argv: str, shell: str = '"$@"') -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "CHROOTFW_RUN_DIR": str(tmp_path / "run"), "CHROOTFW_CONFIG_DIR": str(tmp_path / "etc")}
    command = ["sh", "-c", shell, "sh", sys.executable, "-m", "chrootfw", *argv]
    done = subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["bogus"], 2),
        (["list", "--bogus"], 2),
        (["start"], 2),
        (["stop", "nothing"], 3),
        (["info", "nothing"], 3),
        (["exec", "--bogus"], 125),
        (["exec", "nothing", "--", "true"], 125),
        (["exec", "nothing", "grep", "--", "x"], 125),
        (["shell", "nothing"], 125),
        (["stop", "nothing", "--timeout", "-1"], 2),
        (["start", "web1", "--disk", "relative"], 2),
        (["plan", "restart", "web1"], 2),
    ],
)
def test_an_error_is_one_sentence_and_a_status_and_the_same_in_json(
    tmp_path: Path, argv: list[str], status: int
) -> None:
    plain = chrootfw(tmp_path, *argv)
    assert plain.returncode == status
    assert plain.stderr.startswith("chrootfw: ")
    assert plain.stdout == ""
    verb, *rest = argv
    told = chrootfw(tmp_path, verb, "--json", *rest)
    assert told.returncode == status
    answer = json.loads(told.stdout)
    assert answer["version"] == 1
    assert set(answer["error"]) == {"kind", "brief", "details", "hint"}
    assert answer["error"]["brief"] in plain.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(tmp_path: Path, closed: str) -> None:
    assert chrootfw(tmp_path, "list", shell=f'"$@" {closed}').returncode == 0


def test_a_reader_that_has_gone_is_no_traceback(tmp_path: Path) -> None:
    chrootfw(tmp_path, "parameters", shell='"$@" | true')


def test_a_directory_of_ours_must_be_absolute(tmp_path: Path) -> None:
    done = chrootfw(tmp_path, "list", shell='CHROOTFW_RUN_DIR=relative "$@"')
    assert done.returncode == 2
    assert "relative" in done.stderr


@pytest.mark.parametrize("module", ["json", "chrootfw.display", "chrootfw.inventory"])
def test_a_module_that_cannot_be_loaded_is_no_traceback(tmp_path: Path, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    done = chrootfw(tmp_path, "list", "--json", shell=f'PYTHONPATH={tmp_path}:$PYTHONPATH "$@"')
    assert done.returncode == 1
    assert done.stderr.startswith("chrootfw: a part of chrootfw could not be loaded: ")


def test_streams_that_cannot_be_opened_are_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise OSError(5, "Input/output error", "/dev/null")

    monkeypatch.setattr(cli, "_have_stdio", fails)
    assert cli.main(["list"]) == 1
    assert capsys.readouterr().err == "chrootfw: Input/output error: /dev/null\n"


_WORDS = st.sampled_from(
    [*cli._NAMED, "web1", "", "-1", "--", "--json", "--force", "-v", "--", "/bin/true", "plan", "-h"]
)


def _answered(options: object) -> dict[str, object]:
    """What the verbs may look at; a list that nothing was added to is empty, whatever its type."""
    found = {name: getattr(options, name) for name in dir(options) if not name.startswith("_")}
    return {name: list(value) if isinstance(value, list | tuple) else value for name, value in found.items()}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (["--no-plugins"], {"no_plugins": True}),
        (["--without", "one"], {"without": ["one"]}),
        (["--lock-timeout", "3"], {"lock_timeout": 3}),
        (["-v"], {"verbose": True}),
        (["--json"], {"json": True}),
    ],
)
def test_what_goes_everywhere_goes_before_the_verb_too(option: list[str], value: dict[str, object]) -> None:
    defaults = {"no_plugins": False, "without": [], "lock_timeout": 10.0, "verbose": False, "json": False}
    assert defaults.items() <= _answered(cli._parse(["stop", "web1"])).items()
    for words in ([*option, "stop", "web1"], ["stop", *option, "web1"], ["stop", "web1", *option]):
        assert {**defaults, **value}.items() <= _answered(cli._parse(words)).items()


def test_plugins_are_left_out_before_and_after_the_verb() -> None:
    assert cli._parse(["--without", "one", "stop", "--without", "two", "web1"]).without == ["one", "two"]
    assert cli._parse(["stop", "web1"]).without == []


@given(st.lists(_WORDS, max_size=5))
@example(["--json", "start", "start"])
def test_plain_words_are_what_argparse_makes_of_them(words: list[str]) -> None:
    plain = cli._plain(words)
    if plain is not None:
        shown, made = _answered(plain), _answered(cli._parse(words))
        assert made == {name: shown[name] for name in made}


@pytest.mark.parametrize("verb", cli._NAMED)
def test_a_verb_and_a_name_are_plain_words(verb: str) -> None:
    words = [verb, *["web1"] * cli._NAMED[verb][1], *(["--", "sh", "-c", "--json"] if verb == "exec" else [])]
    for argv in (words, [verb, "--json", *words[1:]]):
        plain, made = _answered(cli._plain(argv)), _answered(cli._parse(argv))
        assert made == {name: plain[name] for name in made}
    assert cli._plain([*words[:1], "--verbose", *words[1:]]) is None
