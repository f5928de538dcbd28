"""Steps of two commands: done, refused, undone whatever came between."""

from __future__ import annotations

import json

import pytest

from chrootfw import CommandStep, InputError, StepError


def step(path, command=("mkdir",), undo=("rm", "-r")):
    return CommandStep([*command, path], [*undo, path], makes=path)


def test_it_is_done_and_undone_by_an_object_made_from_its_record(tmp_path):
    made = tmp_path / "made"
    assert step(made).apply() == {"source": str(made)}
    assert made.is_dir()
    again = CommandStep(**json.loads(json.dumps(step(made).arguments())))
    assert again == step(made)
    again.undo({})
    again.undo({})
    assert not made.exists()


def test_its_description_is_the_command(tmp_path):
    assert step("/a b").describe() == "mkdir '/a b'"


@pytest.mark.parametrize("there", ["a file", "a link that leads nowhere"])
def test_what_is_there_is_refused(tmp_path, there):
    made = tmp_path / "made"
    if there == "a file":
        made.touch()
    else:
        made.symlink_to("nowhere")
    with pytest.raises(StepError, match="is there already"):
        step(made).check()


def test_nothing_in_the_way_is_no_reason(tmp_path):
    assert step(tmp_path / "made").check() is None


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["/nowhere/mkdir"], "No such file"),
        (["true"], "there is no"),
        (["sleep", "600"], "did not end within"),
        (["sh", "-c", "echo why; exit 3"], "exited with status 3"),
    ],
)
def test_a_command_that_fails_says_how(tmp_path, command, says):
    with pytest.raises(StepError, match=says) as caught:
        CommandStep(
            command, ["true"], makes=tmp_path / "made", timeout=0.2 if "sleep" in command else 60
        ).apply()
    assert caught.value.details == (("why",) if "echo why; exit 3" in command else ())


def test_an_undo_that_fails_is_told(tmp_path):
    with pytest.raises(StepError, match="false"):
        CommandStep(["true"], ["false"], makes=tmp_path).undo({})


@pytest.mark.parametrize("wrong", ["mkdir /x", [], ()])
def test_a_command_is_a_sequence_of_words(wrong):
    with pytest.raises(InputError, match="sequence of words"):
        CommandStep(wrong, ["true"], makes="/x")
