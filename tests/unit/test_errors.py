"""The error tree, and how an error looks to people."""

import re

import pytest

import chrootfw
from chrootfw import errors


def drawn_tree():
    """``(class, parent)`` pairs as the module's docstring draws them."""
    above: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([ │├└─]*)([A-Z][A-Za-z]+)( |$)", line)
        if found:
            depth = len(found[1]) // 4
            above[depth:] = [found[2]]
            yield found[2], above[depth - 1] if depth else "Exception"


def test_the_drawing_is_the_tree():
    drawn = dict(drawn_tree())
    real = {
        name: value.__base__.__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert drawn == real


@pytest.mark.parametrize("name", [name for name, _ in drawn_tree()])
def test_every_error_is_public_and_has_the_three_parts(name):
    cls = getattr(errors, name)
    assert getattr(chrootfw, name) is cls
    assert name in chrootfw.__all__
    more = {"signum": 15} if name == "Interrupted" else {}
    error = cls("it failed", (line for line in ("first", "second")), "try again", **more)
    assert (error.brief, error.details, error.hint) == (
        "it failed",
        ("first", "second"),
        "try again",
    )
    assert error.kind == name
    assert str(error) == "it failed\n  first\n  second\n  hint: try again"


def test_a_brief_alone_is_one_line():
    error = errors.StepError("it failed")
    assert str(error) == "it failed"
    assert (error.details, error.hint) == ((), "")


def test_what_some_errors_carry():
    assert errors.ScriptError("x", output=b"last words").output == b"last words"
    assert errors.HeldError("x", holders=iter([1, 2])).holders == (1, 2)
    assert errors.Interrupted("x", signum=15).signum == 15
    blame = errors.PluginLoadError("x", plugin="snapshots", hook="chrootfw_mount")
    assert (blame.plugin, blame.hook) == ("snapshots", "chrootfw_mount")
    assert (errors.PluginError("x").plugin, errors.PluginError("x").hook) == ("", "")
