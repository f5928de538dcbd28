"""What the command line makes of words that are nearly right."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

import chrootfw
from chrootfw.cli import main, man_pages, parser
from chrootfw.cli.progress import Progress
from chrootfw.cli.verb_table import find_verb
from chrootfw.lifecycle.exec import Inside


@pytest.mark.parametrize(
    ("given", "taken"), [("/srv/web1/", "/srv/web1"), ("/srv/web1//", "/srv/web1"), ("/", "/")]
)
def test_a_path_may_end_with_a_slash(given: str, taken: str) -> None:
    assert parser.parse(["start", "web1", "--disk", given]).disk == taken


def test_an_empty_command_is_refused_before_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["exec", "there-is-none", "--", ""]) == 125
    shown = capsys.readouterr().err
    assert "command is empty" in shown
    assert "hint: chrootfw exec" in shown


@pytest.mark.parametrize("verb", ["list", "metrics", "verify"])
def test_a_file_is_not_a_directory_of_definitions(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "web1.toml"
    file.touch()
    assert main.main([verb, "--config-dir", str(file)]) == 2
    assert f"{file} is not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "is_needed"), [("exec", True), ("shell", False)])
def test_the_usage_shows_whether_a_command_is_needed(
    verb: str, is_needed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse([verb, "--help"])
    assert ("[-- CMD" in capsys.readouterr().out) is not is_needed
    found = find_verb(verb)
    assert found is not None
    assert man_pages._usage(found).endswith("]") is not is_needed


@pytest.mark.parametrize(("mode", "is_named"), [(0o644, True), (0o755, False)])
def test_a_program_without_the_permission_to_run_is_named(
    tmp_path: Path, mode: int, is_named: bool
) -> None:
    file = tmp_path / "script"
    file.write_text("#!/script\n")
    file.chmod(mode)
    inside = Inside.__new__(Inside)
    inside.root, inside.name, inside.env = str(tmp_path), "web1", {}
    notes = inside._find_reasons("/script")
    assert ("hint: chrootfw exec web1 -- chmod +x /script" in notes) is is_named
    assert any("not executable" in note for note in notes) is is_named


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_step_that_fits_without_the_name_of_a_default_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = _Terminal()
    text = "mount proc on /proc (nosuid,nodev,noexec)"
    event = chrootfw.Event("end", "web1", "mount", text, plugin="chrootfw_defaults.api_filesystems")
    Progress(verbose=True, stream=stream)(event)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert plain.rstrip().endswith(text)


def test_a_long_step_keeps_the_end_of_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = _Terminal()
    text = f"mount /srv/{'long/' * 20}web1.img on /"
    event = chrootfw.Event("end", "web1", "mount", text, plugin="chrootfw_defaults.disk")
    Progress(verbose=True, stream=stream)(event)
    shown = stream.getvalue().rstrip("\n")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert plain.endswith("web1.img on /  [disk]")
    assert "…" in plain
    assert len(plain) <= 80
