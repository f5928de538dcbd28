"""What a program gives to the library: a wrong value is an ``InputError`` that says which."""

from __future__ import annotations

from typing import Any

import pytest

import chrootfw

NOT_SECONDS = [
    float("nan"),
    float("inf"),
    -float("inf"),
    -1,
    1e10,
    10**400,
    "5",
    "x",
    None,
    True,
    [5],
    b"5",
]


@pytest.mark.parametrize("value", NOT_SECONDS, ids=lambda value: f"{value!r:.20}")
@pytest.mark.parametrize("name", ["lock_timeout", "hook_timeout"])
def test_a_time_limit_of_a_runtime(name: str, value: Any) -> None:
    with pytest.raises(chrootfw.InputError, match=name):
        chrootfw.Runtime(run_dir="/nonexistent", config_dir="/nonexistent", **{name: value})


@pytest.mark.parametrize("value", NOT_SECONDS, ids=lambda value: f"{value!r:.20}")
def test_a_time_limit_of_a_command(value: Any) -> None:
    with pytest.raises(chrootfw.InputError, match="timeout"):
        chrootfw.Command(["/bin/true"], timeout=value)


@pytest.mark.parametrize("params", [{1: 2}, {None: 1}, {b"grace": 1}, 7, "x", [1]], ids=repr)
def test_parameters_are_a_mapping_of_names(params: Any) -> None:
    with pytest.raises(chrootfw.InputError, match="param"):
        chrootfw.Instance("web1", disk="/srv/x", params=params)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (chrootfw.Command, {"argv": 7}),
        (chrootfw.Command, {"argv": ["/bin/true"], "env": 7}),
        (chrootfw.Command, {"argv": ["/bin/true"], "env": {"A=B": "x"}}),
        (chrootfw.Command, {"argv": ["/bin/true"], "env": {"A": "\ud800"}}),
        (chrootfw.Entry, {"env": ["A"]}),
        (chrootfw.Entry, {"cwd": None}),
        (chrootfw.Entry, {"cwd": "relative"}),
        (chrootfw.Entry, {"namespaces": 7}),
        (chrootfw.Entry, {"user": 0}),
        (chrootfw.Entry, {"user": ""}),
        (chrootfw.Instance, {"name": "web1", "plugins": 7}),
        (chrootfw.Instance, {"name": "web1", "plugins": ["a\0b"]}),
        (chrootfw.MountPoint, {"target": "/", "source": "/srv/x", "fstype": "ext4\0x"}),
        (chrootfw.MountPoint, {"target": "/", "source": "/srv/x", "fstype": 7}),
        (chrootfw.MountPoint, {"target": "/", "source": "/srv/\ud800"}),
        (chrootfw.MountPoint, {"target": "/", "source": "/srv/x", "options": ["ro\0rw"]}),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_a_value_that_no_process_can_be_started_with(kind: Any, how: dict[str, Any]) -> None:
    with pytest.raises(chrootfw.InputError):
        kind(**how)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_parameter_is_a_number_that_there_is(value: float) -> None:
    assert not chrootfw.Parameter("x", float, 1).fits(value)
    with pytest.raises(chrootfw.InputError):
        chrootfw.Parameter("x", float, value)
