"""The schema of the JSON: it allows what the command answers, and nothing beside."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import attrs
import json_schema
import jsonschema
import pytest

import chrootfw
from chrootfw import errors, model
from chrootfw.cli import main, progress, render, verb_table, verbs
from chrootfw.hooks.registry import PluginRecord
from chrootfw.state import holders, show

TREE = Path(__file__).parents[2]
#: They answer in text only, and with --json in errors.
TEXT_ONLY = {"completion", "demo", "exec", "help", "man", "metrics", "powercycle", "shell", "top"}
PROCESS = chrootfw.Process(
    7, "nginx", "root", "cgroup", "", state="sleeping", memory_bytes=1, cpu_seconds=0.5,
    started_at="2026-11-22T12:00:00+00:00", arguments=["nginx"],
)  # fmt: skip
HOLDER = chrootfw.Process(0, "/dev/loop3", "", "loop", "/srv/x.img")
INSTANCE = chrootfw.InstanceInfo(
    "web1", chrootfw.InstanceState.MOUNTED, "/r", disk="/srv/web1.img", holders=[HOLDER], namespace="mnt", network="/n",
    mounts=[{"target": "/", "source": "/dev/loop0", "fstype": "ext4", "options": ["rw"]}], definition_changed=False,
    notes=["a"], pending_undos=["b"], ended=True,
    log={"mode": "file", "path": "/l", "logger": None, "written_at": "2026-11-22T12:00:00+00:00"},
)  # fmt: skip
NODE = chrootfw.NodeInfo(
    memory_total_mib=8, memory_free_mib=4, memory_available_mib=5, memory_dom0_mib=1, cpus=2, load=(0.5, 1.0, 2.0),
    instances=2, running=1, run_dir_total_mib=100, run_dir_free_mib=50,
    image_disks=[{"path": "/srv", "total_mib": None, "free_mib": None}],
)  # fmt: skip
ERRORS = [
    errors.NotFoundError("no such instance", ["a"], "chrootfw list"),
    errors.HeldError("it is held", holders=[PROCESS, HOLDER]),
    errors.PluginError("it broke the rules", plugin="a", hook="chrootfw_mount"),
    errors.PluginLoadError("it cannot be imported"),
    errors.ScriptError("it failed", output=b"\xff"),
    errors.Interrupted("a signal", signum=15),
]

#: Each object of the schema that has a table on the page, as the code makes it with all its keys.
MADE: dict[str, dict[str, Any]] = {
    "instance": INSTANCE.to_dict(),
    "process": {"instance": "web1"} | PROCESS.to_dict(),
    "node": NODE.to_dict(),
    "effective": chrootfw.EffectiveParameter("grace", 2, "definition", 3, "").to_dict(),
    "check": chrootfw.Check("a", "ok", "b").to_dict(),
    "step": attrs.asdict(model.PlannedStep("mount", "a", "b")),
    "plugin": verbs._plugin_to_dict(PluginRecord("a", "installed")),
    "warning": {"kind": "warning", "instance": None, "plugin": "", "text": "a"},
    "error": {"instance": "web1"}
    | {key: value for each in ERRORS for key, value in render.error_dict(each).items()},
}


def answers(**how: Any) -> dict[str, Any]:
    """Keys of an answer as a reader has them."""
    answer: dict[str, Any] = json.loads(json.dumps({"version": 1, "warnings": [], **how}))
    return answer


def test_it_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema.SCHEMA)
    assert json_schema.SCHEMA["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]


def test_each_verb_with_json_has_its_definition() -> None:
    named = {name.removesuffix("-answer") for name in json_schema.DEFINITIONS if "-answer" in name}
    assert named - {"error"} == {verb.name for verb in verb_table.VERBS} - TEXT_ONLY


@pytest.mark.parametrize("name", MADE)
def test_an_object_has_the_keys_that_the_code_makes(name: str) -> None:
    assert set(json_schema.DEFINITIONS[name]["properties"]) == set(MADE[name])


def test_the_page_explains_each_key_and_no_other() -> None:
    explained = tomllib.loads((TREE / "docs/fields.toml").read_text(encoding="utf-8"))
    del explained["answer"]
    assert {name: set(keys) for name, keys in explained.items()} == {
        name: set(json_schema.DEFINITIONS[name]["properties"]) for name in explained
    }
    assert set(explained) == {*MADE, "parameter"}


def test_words_are_those_of_the_code() -> None:
    objects = {name: shape.get("properties") for name, shape in json_schema.DEFINITIONS.items()}
    assert json_schema.DEFINITIONS["state"]["enum"] == [
        str(state) for state in chrootfw.InstanceState
    ]
    assert objects["step"]["stage"]["enum"] == list(get_args(model.Stage))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.kind)
def test_an_error_is_allowed_alone_and_among_several(error: errors.ChrootfwError) -> None:
    shown = render.error_dict(error)
    json_schema.check(["stop", "web1"], answers(error=shown))
    several = answers(instances=[], errors=[{"instance": "web1", **shown}])
    json_schema.check(["stop", "--all"], several)
    assert json_schema.refused("error-answer", answers(error={"instance": "web1", **shown}))
    assert json_schema.refused("stop-answer", answers(instances=[], errors=[shown]))


@pytest.mark.parametrize("error", ERRORS[1:], ids=lambda error: error.kind)
def test_an_error_without_a_field_of_its_class_is_refused(error: errors.ChrootfwError) -> None:
    shown = render.error_dict(error)
    for name in set(shown) - {"kind"}:
        less = {key: value for key, value in shown.items() if key != name}
        assert json_schema.refused("error-answer", answers(error=less)), name


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for key, each in value.items():
            if key not in ("default", "value"):  # a parameter's, of whatever keys
                yield from objects(each)
    if isinstance(value, list):
        for each in value:
            yield from objects(each)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("run", "etc", "disk"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("CHROOTFW_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("CHROOTFW_CONFIG_DIR", str(tmp_path / "etc"))
    (tmp_path / "etc/web1.toml").write_text(
        f'disk = "{tmp_path}/disk"\nenvironment = {{A = "b"}}\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        "list", "info web1", "info web1 w*", "ps web1", "ps w*", "node", "verify", "plugins", "plugins web1", "parameters", "plan start web1",
        "plan stop web1", "logs web1", "show web1", "tree web1", "start", "stop web1 web2", "cleanup --all", "reboot web1",
        "new-plugin quit-first", "ganeti status --root /nowhere", "metrics", "help", "exec web1 true", "nonsense",
    ],
)  # fmt: skip
def test_an_answer_is_allowed_and_no_key_beside(
    machine: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--json", *words.split()]
    main.main(argv)
    answer = json.loads(capsys.readouterr().out)
    json_schema.check(argv, answer)
    jsonschema.Draft202012Validator(json_schema.SCHEMA).validate(answer)
    changed = copy.deepcopy(answer)
    for each in objects(changed):
        each["undocumented"] = 1
        with pytest.raises(jsonschema.ValidationError):
            json_schema.check(argv, changed)
        del each["undocumented"]


def _shown_twice(printed: Any) -> Any:
    answer = json.loads(printed.out)
    for each in answer["warnings"]:
        assert each["text"].split("\n")[0] in printed.err
    return answer["warnings"]


def test_the_warnings_of_a_verb_that_looks_are_in_its_answer(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = holders.Holders()
    found.unexamined = [7]
    monkeypatch.setattr(show, "all_processes", lambda *_: found)
    for _ in range(2):  # those of the first answer are not in the second
        assert main.main(["ps", "web1", "--json"]) == 0
        printed = capsys.readouterr()
        json_schema.check(["ps"], json.loads(printed.out))
        (warning,) = _shown_twice(printed)
        assert (warning["kind"], warning["instance"]) == ("warning", "web1")


def test_the_warnings_before_an_error_are_in_its_answer(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(options: Any) -> int:
        told = progress.Progress(verbose=False, names=True)
        told(chrootfw.Event("warning", "web1", "", errors.Lines(["a", errors.Hint("b", "c")])))
        told(chrootfw.Event("plugin-error", "", "", "x", plugin="quit", error="quit broke a rule"))
        raise errors.NotFoundError("there is no instance")

    monkeypatch.setattr(verb_table.find_verb("stop"), "run", fails)
    assert main.main(["stop", "web1", "--json"]) == 3
    printed = capsys.readouterr()
    json_schema.check(["stop"], json.loads(printed.out))
    assert _shown_twice(printed) == [
        {"kind": "warning", "instance": "web1", "plugin": "", "text": "a\nc"},
        {"kind": "plugin-error", "instance": None, "plugin": "quit", "text": "quit broke a rule"},
    ]
    assert main.main(["stop", "--json", "--nothing"]) == 2
    assert json.loads(capsys.readouterr().out)["warnings"] == []
