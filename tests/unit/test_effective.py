"""What ``show`` says of parameters: the value, and the file and line, or what else it comes from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import chrootfw
from chrootfw.cli import main
from chrootfw.state import effective


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHROOTFW_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("CHROOTFW_CONFIG_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", {}),
        ('disk = "/x"\n\n# grace = 1\n  grace=2', {"disk": 1, "grace": 4}),
        ('disk = "/x"\r\ngrace = 2\r\n', {"disk": 1, "grace": 2}),
        ('"grace" = 2\nenvironment.A = "x"\nenvironment.B = "y"\n', {"grace": 1, "environment": 2}),
        ('binds = [\n  "grace = 3", # ]\n  "/a:/b",\n]\ngrace = 3\n', {"binds": 1, "grace": 5}),
        ('disk = """/x\ngrace = 1\n"""\ngrace = 2\n', {"disk": 1, "grace": 4}),
        ("disk = '''/x\n[limits]\n'''\ngrace = 2\n", {"disk": 1, "grace": 4}),
        (
            'disk = "/x"\n[environment]\nlimits = "no"\n[ limits ]\nnofile = 1\n',
            {"disk": 1, "environment": 2, "limits": 4},
        ),
        ("[environment.a]\nb = 1\n[environment.c]\n", {"environment": 1}),
        ("[[many]]\na = 1\n[[many]]\na = 2\n", {"many": 1}),
        ('disk = "/x"\ngrace = = 2\nnice = 1\n', {"disk": 1}),
    ],
)
def test_the_lines_of_keys(text: str, lines: dict[str, int]) -> None:
    assert effective.find_lines(text) == lines


def test_the_end_of_a_value_of_very_many_lines_is_given_up() -> None:
    """Each try parses the value up to there: all of them would take minutes."""
    text = "disk = '/x'\nbinds = [\n" + "[],\n" * 30_000 + "]\ngrace = 3\n"
    assert effective.find_lines(text) == {"disk": 1}


def test_a_defined_instance(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = machine / "web1.toml"
    path.write_text('disk = "/srv/web1.img"\n\ngrace = 3\nbinds = ["/srv/d:/data:ro"]\n')
    assert main.main(["show", "web1"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["PARAMETER", "VALUE", "FROM"]
    found = {name: rest for name, rest in (row.split(None, 1) for row in rows)}
    assert found["grace"].split() == ["3", f"{path}:3"]
    assert re.split("  +", found["binds"]) == ['["/srv/d:/data:ro"]', f"{path}:4"]
    assert found["nice"].split() == ["0", "default"]
    assert found["init_script"].split() == ['"/etc/chrootfw/init"', "default"]
    assert found["hardened"].split() == ["false", "default", "of", "chrootfw_hardened"]
    assert set(found) == {parameter.name for _, parameter in _discovering().parameters()}


def _discovering() -> chrootfw.Runtime:
    return chrootfw.Runtime(discover=True)


def test_the_json(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "web1.toml").write_text('disk = "/srv/web1.img"\ninit_script = false\n')
    assert main.main(["show", "web1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["name"], answer["state"]) == ("web1", "absent")
    assert answer["definition"] == str(machine / "web1.toml")
    assert answer["definition_changed"] is False
    found = {each["name"]: each for each in answer["parameters"]}
    script = {
        "name": "init_script", "value": False, "source": "definition", "line": 2, "plugin": "",
    }  # fmt: skip
    assert found["init_script"] == script
    assert (found["grace"]["source"], found["grace"]["line"]) == ("default", None)
    assert found["grace"]["plugin"]


def test_an_instance_of_a_program(machine: Path) -> None:
    instance = chrootfw.Instance("web1", disk="/srv/x", params={"grace": 2})
    shown = chrootfw.Runtime().effective_parameters(instance)
    found = {each.name: (each.value, each.source) for each in shown.parameters}
    assert shown.definition is None
    assert found["disk"] == ("/srv/x", "start")
    assert found["grace"] == (2, "start")
    assert found["nice"] == (0, "default")


def test_a_hostile_value_is_one_line(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'disk = "/srv/\\u001b[31m\\u202e\\nx"\n[environment]\n"a b" = "\\u009b"\n'
    (machine / "web1.toml").write_text(text)
    assert main.main(["show", "web1"]) == 0
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.splitlines())
    (row,) = [line for line in shown.splitlines() if line.startswith("environment ")]
    assert re.split("  +", row)[1:] == ['{ "a b" = "\\x9b" }', f"{machine}/web1.toml:2"]


def test_what_is_wrong_has_its_line_or_near_name(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine / "web1.toml").write_text('disk = "/srv/x"\ngrace = "soon"\n')
    assert main.main(["show", "web1"]) == 1
    assert "web1.toml, line 2: the parameter grace" in capsys.readouterr().err
    assert main.main(["show", "web2"]) == 3
    assert "did you mean web1?" in capsys.readouterr().err
    assert main.main(["show"]) == 2
