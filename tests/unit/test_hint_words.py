"""A hint of the library names the library's arguments, and the command's hint its options."""

from __future__ import annotations

import ast
import copy
import io
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import chrootfw
from chrootfw.cli import main, parser, render
from chrootfw.cli.progress import Progress
from chrootfw.errors import ChrootfwError, Hint, Lines

SOURCE = Path(chrootfw.__file__).parent
#: Options of whole commands, which an administrator runs beside a program, and of other programs.
COMMANDS = re.compile(r"chrootfw [a-z]+ .*--|chrootfw --help|systemctl")
OPTIONS = re.findall(r"--[a-z][a-z-]+", Path(parser.__file__).read_text(encoding="utf-8"))
OPTION = re.compile(rf"(?<![\w-])(?:{'|'.join(sorted(set(OPTIONS)))})(?![\w-])")


class Raises:
    @chrootfw.hookimpl
    def chrootfw_mount(self) -> None:
        raise ValueError("bad value")


def test_an_error_has_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = chrootfw.Runtime([Raises], run_dir=tmp_path / "run", config_dir=tmp_path)
    with pytest.raises(chrootfw.PluginError) as caught:
        runtime.plan("start", chrootfw.Instance("web1", disk="/srv/web1.img"))
    error = caught.value
    for found in (error, pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert "Runtime(without=['Raises']) leaves it out" in found.hint
        assert "Runtime(without=['Raises']) leaves it out" in str(found)
        assert "--without" not in str(found)
        shown = render.error(found, io.StringIO())
        assert "--without Raises leaves it out" in shown
        assert "Runtime(" not in shown
        main._fail(found, as_json=True, inside=False)
        assert "--without" in json.loads(capsys.readouterr().out)["error"]["hint"]


def test_an_event_has_both(capsys: pytest.CaptureFixture[str]) -> None:
    error = str(ChrootfwError("it failed", ["a\nb"], Hint("lock_timeout=…", "--lock-timeout …")))
    assert error == "it failed\n  a\nb\n  hint: lock_timeout=…"
    for text in (error, pickle.loads(pickle.dumps(error))):
        assert isinstance(text, Lines)
        Progress(verbose=False)(chrootfw.Event("plugin-error", "web1", "", "it failed", error=text))
        assert capsys.readouterr().err == (
            "chrootfw: plugin: it failed\n  a\\nb\n  hint: --lock-timeout …\n"
        )


def test_an_event_of_several_instances_names_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for text, shown in (
        (str(ChrootfwError("it failed", ["a\nb"])), "web1: it failed\n  a\\nb"),
        ("web1 failed", "web1 failed"),
        ("web1: failed", "web1: failed"),
        ("/srv/web1.img is not web10's", "web1: /srv/web1.img is not web10's"),
    ):
        event = chrootfw.Event("warning", "web1", "", "", error=text)
        Progress(verbose=False, names=True)(event)
        assert capsys.readouterr().err == f"chrootfw: warning: {shown}\n"


def test_a_check_has_both() -> None:
    check = chrootfw.views.Check("plugin", "error", "bad", Hint("without=…", "--without …"))
    assert check.hint == "without=…"
    assert "→ --without …" in render.checks([check], io.StringIO())


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The sentences of a module, but for docstrings and the command's words of a `Hint`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            left_out.add(node.value)  # a docstring
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Hint":
            left_out.update(ast.walk(node.args[1]))
        if isinstance(node, ast.JoinedStr) and node not in left_out:
            left_out.update(node.values)
            parts = [each.value if isinstance(each, ast.Constant) else "X" for each in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node not in left_out:
                yield node.lineno, node.value


@pytest.mark.parametrize(
    "path",
    [
        path
        for area in (SOURCE, SOURCE.parent / "plugins" / "chrootfw_defaults")
        for path in area.rglob("*.py")
        if SOURCE / "cli" not in path.parents
    ],
    ids=str,
)
def test_no_sentence_of_the_library_names_an_option_of_the_command(path: Path) -> None:
    named = [
        (line, text)
        for line, text in texts(path)
        if " " in text and OPTION.search(text) and not COMMANDS.search(text)
    ]
    assert not named, "a Hint has both words"
