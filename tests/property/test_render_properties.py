"""Text from outside: whatever the strings of values, errors, events and plans hold, a terminal is told nothing by them.

Control characters, line breaks and bidi controls come out escaped, and every line stays one line.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import chrootfw
from chrootfw import errors, views
from chrootfw.cli import progress as progress_module
from chrootfw.cli import render
from chrootfw.model import Event, Plan, PlannedStep
from chrootfw.planning.printable import printable, printable_text

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
CONTROLS = "".join(map(chr, [*range(32), *range(127, 160)]))
ALL = f"a{CONTROLS}{BREAKS}{BIDI}\x1b[2J\x1b]0;x\x07\x9b31m\udc9bz"

_TEXTS = st.text(st.sampled_from(f"{CONTROLS}{BREAKS}{BIDI}") | st.characters(), max_size=20)


def _check(printed: str, like: str) -> None:
    """As many lines as ``like`` has, and nothing in them that is not seen."""
    assert printed.count("\n") == like.count("\n"), (printed, like)
    for line in printed.split("\n"):
        for character in line:
            assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"), repr(line)
    assert len(printed.splitlines()) == len(like.splitlines())


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return False


def _shown(text: str) -> str:
    stream = io.StringIO()
    render.show(text, stream)
    return stream.getvalue()


def _process(text: str) -> views.Process:
    return views.Process(7, text, text, text, text)


def _info(text: str) -> views.InstanceInfo:
    return views.InstanceInfo(
        text, views.InstanceState.RUNNING, text, disk=text, memory_source=text, started_at=text, tracking=text,
        holders=[_process(text)], namespace=text, plugins=[text], notes=[text], processes=2, definition_changed=True,
        mounts=[{"target": text, "source": text, "fstype": text, "options": [text, "ro"]}],
    )  # fmt: skip


def _node(text: str) -> views.NodeInfo:
    return views.NodeInfo(
        memory_total_mib=1, memory_free_mib=1, memory_available_mib=1, memory_dom0_mib=1, cpus=1, load=(0, 0, 0),
        instances=1, running=1, run_dir_total_mib=1, run_dir_free_mib=1,
        image_disks=[{"path": text, "total_mib": None, "free_mib": None}, {"path": text, "total_mib": 1, "free_mib": 1}],
    )  # fmt: skip


def _errors(text: str) -> Iterator[errors.ChrootfwError]:
    kinds = [chrootfw.ChrootfwError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        more = {"signum": 15} if kind.__name__ == "Interrupted" else {}
        if kind.__module__ == "chrootfw.errors":
            yield kind(text, [text, f"  {text}"], text, **more)


def _plan(text: str) -> Plan:
    return Plan(text, text, (PlannedStep(text, text, text), PlannedStep("mount", text, "")))  # type: ignore[arg-type]


def answers(text: str) -> Iterator[str]:
    """What the verbs print of values that are made of ``text``."""
    stream = _Terminal()
    yield _shown(render.instances([_info(text), _info("web2")], stream))
    yield _shown(render.instance(_info(text), stream))
    yield _shown(render.process_table([(text, _process(text)), ("", _process("x"))], stream))
    yield _shown(render.node(_node(text)))
    parameter = chrootfw.Parameter("x", str, text, help="".join(text.split())[:40])
    yield _shown(render.parameters({text: [parameter]}, stream))
    yield _shown(
        render.checks(
            [views.Check(text, s, text, text) for s in ("ok", "warning", "error")], stream
        )
    )
    yield _shown(render.plan(_plan(text), io.StringIO()))
    yield _shown(render.table([text, "B"], [[text, text], ["a", text]], stream, {1: {"b": "red"}}))
    yield _shown(text)
    yield _shown(errors.Lines([text, text]))
    for error in _errors(text):
        yield _shown(render.error(error, stream))
        yield _shown(render.event("plugin-error", str(error), stream))
    yield _shown(render.event("warning", text, stream))


@given(text=_TEXTS)
@example(ALL)
@example("a\n1      root  cgroup  init")
def test_no_answer_has_control_characters_or_more_lines(text: str) -> None:
    for printed, like in zip(answers(f"x{text}"), answers("x"), strict=True):
        _check(printed, like)


def _events(text: str) -> list[Event]:
    made = [
        Event(what, text, "mount", text, plugin=text, error=error)
        for what in ("begin", "end", "fail", "warning", "plugin-error")
        for error in (text, "")
    ]
    return [
        *made,
        Event("plugin-error", text, "", text, error=str(chrootfw.StepError(text, [text], text))),
    ]


@given(text=_TEXTS)
@example(ALL)
def test_no_event_has_control_characters_or_more_lines(text: str) -> None:
    def printed(each: str) -> str:
        stream, progress = io.StringIO(), progress_module.Progress(verbose=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stderr", stream)
            for event in _events(each):
                progress(event)
        return stream.getvalue()

    _check(printed(f"x{text}"), printed("x"))


@given(text=_TEXTS)
@example(ALL)
def test_no_log_line_has_control_characters_or_more_lines(text: str) -> None:
    def logged(each: str) -> str:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        logger = logging.getLogger("chrootfw")
        level, propagate = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        try:
            runtime = chrootfw.Runtime(run_dir="/nonexistent", config_dir="/nonexistent")
            for event in _events(each):
                runtime._report(event)
            logger.error("%s", printable_text(chrootfw.StepError(each, [each], each)))
            logger.warning("%s", printable_text(errors.Lines([each, each])))
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        return stream.getvalue()

    _check(logged(f"x{text}"), logged("x"))


@given(text=_TEXTS)
def test_what_can_be_seen_stays_as_it_is(text: str) -> None:
    assert printable("Zürich → 東京 ✓ a\\n") == "Zürich → 東京 ✓ a\\n"
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_colours_are_the_commands_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Colours(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = _shown(render.instance(_info(ALL), Colours()))
    assert shown.count("\x1b") == 4
    assert "\x1b[2J" not in shown


@given(text=_TEXTS)
@example(ALL)
def test_json_is_what_it_was(text: str) -> None:
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        render.show_json({"instances": [_info(text).to_dict()]})
    assert json.loads(stream.getvalue())["instances"][0]["disk"] == text


def _writes(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node
        elif isinstance(node.func, ast.Attribute) and node.func.attr in ("write", "writelines"):
            of = node.func.value
            if isinstance(of, ast.Attribute) and of.attr in ("stdout", "stderr", "stream"):
                yield node


def test_nothing_else_prints() -> None:
    tree = Path(chrootfw.__file__).parent
    found = []
    for directory in (tree, tree.parent / "plugins"):
        for file in directory.rglob("*.py"):
            if "testing" not in file.parts and file.name != "render.py":
                found += [
                    f"{file.name}:{call.lineno}" for call in _writes(ast.parse(file.read_text()))
                ]
    # Where render cannot be loaded; and a hook of Ganeti's, which has an output of its own.
    allowed = {"main.py", "move_hook.py"}
    assert [place for place in found if place.partition(":")[0] not in allowed] == []
