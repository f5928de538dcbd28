"""Every public value and error survives a copy and a pickle, and what a copy's holder changes is its own."""

from __future__ import annotations

import copy
import inspect
import pickle
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chrootfw
from chrootfw import errors, model, views
from chrootfw.runtime import Runtime

_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
_WORD = _TEXT.filter(bool)
_TOML = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_PARAMS = st.dictionaries(_WORD, _TOML, max_size=3)
_ENV = st.dictionaries(_WORD.filter(lambda name: "=" not in name), _TEXT, max_size=3)
_PATH = st.sampled_from(["/srv", "/srv/a b", "/srv/ü"])
_STEP = st.builds(
    model.CommandStep, st.tuples(_WORD, _WORD), st.tuples(_WORD), makes=_PATH, timeout=st.floats(1, 9)
)  # fmt: skip
_STATE = st.sampled_from(list(views.InstanceState))
_PROCESS = st.builds(views.Process, st.integers(0, 99), _TEXT, _TEXT, _TEXT, _TEXT)
_PLANNED = st.builds(model.PlannedStep, st.sampled_from(model.STAGES), _TEXT, _TEXT)
_EFFECTIVE = st.builds(
    views.EffectiveParameter, _WORD, st.none() | _TOML, st.just("definition"), st.none() | st.integers(1), _TEXT
)  # fmt: skip
_DETAILS = st.lists(_TEXT, max_size=3)


@attrs.frozen
class WithList(model.Step):
    """A Step as plugins write them: attrs gives it no hash that works."""

    names: list[str]


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "Instance": st.builds(
        model.Instance, st.just("web1"), st.none() | _PATH, st.none() | _PATH, _PARAMS, st.lists(_WORD, max_size=2)
    ),
    "Step": st.builds(WithList, st.lists(_TEXT)),
    "Node": st.builds(model.Node, st.just("null"), st.integers(0, 0o777), device=st.none() | st.just((1, 3))),
    "MountPoint": st.builds(
        model.MountPoint, _PATH, _WORD | _STEP | st.builds(WithList, st.lists(_TEXT)), options=st.lists(_WORD, max_size=2)
    ),
    "Omit": st.builds(model.Omit, _PATH),
    "Mount": st.builds(
        model.Mount, _PATH, _TEXT, st.none() | _TEXT, st.tuples(_TEXT), st.just("root"), st.integers(), st.integers()
    ),
    "Command": st.builds(model.Command, st.lists(_WORD, min_size=1, max_size=3), _ENV, st.floats(1, 99)),
    "NoCommand": st.just(model.NO_COMMAND),
    "Entry": st.builds(
        model.Entry, user=st.none() | st.just("www"), cwd=_PATH, env=_ENV, capabilities=st.none() | st.just(["KILL"])
    ),
    "Escalation": st.builds(
        model.Escalation,
        st.sampled_from([15, signal.SIGKILL]),
        st.floats(0, 9),
        st.sampled_from(["own", "all"]) | st.lists(st.integers()),
    ),
    "Problem": st.builds(model.Problem, _TEXT, _TEXT, st.booleans()),
    "Parameter": st.builds(model.Parameter, st.just("mine"), st.just(list), st.none() | st.lists(_TOML, max_size=2)),
    "Event": st.builds(
        model.Event, st.just("warning"), _TEXT, st.sampled_from(model.STAGES), _TEXT, seconds=st.floats(0, 9), output=st.binary()
    ),
    "PlannedStep": _PLANNED,
    "Plan": st.builds(model.Plan, st.just("start"), _TEXT, st.tuples(_PLANNED)),
    "CommandStep": _STEP,
    "InstanceState": _STATE,
    "Process": _PROCESS,
    "InstanceInfo": st.builds(
        views.InstanceInfo,
        _TEXT,
        _STATE,
        _PATH,
        holders=st.none() | st.lists(_PROCESS, max_size=2),
        mounts=st.none() | st.just([{"target": "/", "options": ["ro"]}]),
        notes=_DETAILS,
    ),
    "EffectiveParameter": _EFFECTIVE,
    "EffectiveParameters": st.builds(
        views.EffectiveParameters,
        _TEXT,
        _STATE,
        definition=st.none() | _PATH,
        definition_changed=st.booleans(),
        parameters=st.lists(_EFFECTIVE, max_size=2),
    ),
    "NodeInfo": st.builds(
        views.NodeInfo,
        **{name: st.integers() for name in views.NodeInfo.__slots__},
    ),
    "Check": st.builds(views.Check, _TEXT, st.just("ok"), _TEXT, _TEXT),
}  # fmt: skip

#: What an error has beside its brief, details and hint.
OWN_FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "ScriptError": {"output": st.binary()},
    "HeldError": {"holders": st.lists(_PROCESS, max_size=2), "only_copies": st.booleans()},
    "PluginError": {"plugin": _TEXT, "hook": _TEXT},
    "PluginLoadError": {"plugin": _TEXT, "hook": _TEXT},
    "Interrupted": {"signum": st.integers(1, 64)},
}
ERRORS = sorted(
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.ChrootfwError)
)  # fmt: skip

COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    **{
        f"pickle {number}": lambda value, number=number: pickle.loads(pickle.dumps(value, number))
        for number in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
}


def test_every_public_class_is_here() -> None:
    public = {
        name
        for module in (model, views)
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and kind.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public == VALUES.keys()


@pytest.mark.parametrize("name", VALUES)
@settings(max_examples=20)
@given(data=st.data())
def test_a_copy_is_equal_and_has_the_same_hash(name: str, data: st.DataObject) -> None:
    value = data.draw(VALUES[name])
    for make in COPIES.values():
        made = make(value)
        assert made == value
        assert type(made) is type(value)
        assert repr(made) == repr(value)
        if type(value).__hash__ and name != "Step":  # the others can change
            assert hash(made) == hash(value)


@pytest.mark.parametrize("name", ERRORS)
@settings(max_examples=10)
@given(data=st.data())
def test_an_error_keeps_every_field(name: str, data: st.DataObject) -> None:
    own = {field: data.draw(values) for field, values in OWN_FIELDS.get(name, {}).items()}
    error = getattr(errors, name)(data.draw(_TEXT), data.draw(_DETAILS), data.draw(_TEXT), **own)
    error.add_note("while the test ran")
    for make in COPIES.values():
        made = make(error)
        assert type(made) is type(error)
        assert vars(made) == vars(error)
        assert str(made) == str(error)
        assert made.args == error.args


def _is_interrupted() -> None:
    raise errors.Interrupted("interrupted by SIGTERM", signum=15)


def test_an_error_comes_back_from_another_process() -> None:
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        pytest.raises(errors.Interrupted) as caught,
    ):
        pool.submit(_is_interrupted).result(timeout=60)
    assert caught.value.signum == 15


# -- changing --------------------------------------------------------------------------------------


@given(_PARAMS)
def test_what_a_program_changes_later_is_not_the_instances(params: dict[str, Any]) -> None:
    params["binds"] = ["/a:/b"]
    expected = copy.deepcopy(params)
    instance = model.Instance("web1", params=params)
    params["binds"].append("/c:/d")
    assert instance.params == expected
    instance.to_dict()["params"]["binds"].append("/e:/f")
    assert instance.params == expected


class Changes:
    """Changes whatever it is given."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def spoil(self, value: Any, name: str, new: object) -> None:
        try:
            setattr(value, name, new)
        except AttributeError:
            self.refused.append(name)

    @chrootfw.hookimpl
    def chrootfw_mount(self, instance: chrootfw.Instance) -> None:
        instance.params["binds"].append("/evil:/evil")
        instance.params["hosts"] = "off"
        self.spoil(instance, "disk", "/evil")

    @chrootfw.hookimpl
    def chrootfw_enter(self, instance: chrootfw.Instance, command: chrootfw.Command) -> None:
        command.env["LD_PRELOAD"] = "/evil"
        self.spoil(command, "argv", ("/evil",))
        instance.params.clear()

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(self, processes: tuple[chrootfw.Process, ...]) -> None:
        for process in processes:
            self.spoil(process, "pid", 1)


class Notes:
    """Is called behind it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @chrootfw.hookimpl
    def chrootfw_mount(self, instance: chrootfw.Instance) -> None:
        self.seen.append(copy.deepcopy(instance))

    @chrootfw.hookimpl
    def chrootfw_enter(self, command: chrootfw.Command) -> None:
        self.seen.append(copy.deepcopy(command))

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(self, processes: tuple[chrootfw.Process, ...]) -> None:
        self.seen.append(processes)


def test_a_plugin_changes_nothing_of_anybodys() -> None:
    changes, notes = Changes(), Notes()
    runtime = Runtime([notes, changes])
    instance = model.Instance("web1", disk="/srv/d", params={"binds": ["/a:/b"]})
    before = copy.deepcopy(instance)
    runtime.who_answers(instance)  # calls the hooks of every stage
    assert instance == before
    mounted = next(each for each in notes.seen if isinstance(each, model.Instance))
    assert mounted.params["binds"] == ["/a:/b"]
    assert mounted.params["hosts"] != "off"
    commands = [each for each in notes.seen if isinstance(each, model.Command)]
    assert commands
    assert all(not command.env for command in commands)
    assert {"disk", "argv"} <= set(changes.refused)
    process = views.Process(7, "sh", "root", "root")
    changes.chrootfw_kill_strategy((process,))
    assert process.pid == 7
