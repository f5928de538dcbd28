"""Definitions and settings: what is refused, and which line is named."""

from __future__ import annotations

import os
import socket
import tracemalloc
from pathlib import Path

import pytest

import chrootfw
from chrootfw import InputError, Instance, Parameter, config


def refused(tmp_path: Path, text: str) -> chrootfw.ChrootfwError:
    (tmp_path / "web1.toml").write_text(text)
    runtime = chrootfw.Runtime(run_dir=tmp_path / "run", config_dir=tmp_path)
    with pytest.raises(chrootfw.DefinitionError) as caught:
        runtime.plan("start", "web1")
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('disk = "/d"\ndsik = "x"\n', 2, "did you mean 'disk'"),
        ('\n\ngrce = 3\ndisk = "/d"\n', 3, "did you mean 'grace'"),
        ('disk = "/d"\ngrace = "x"\n', 2, "must be a number"),
        ('disk = "/d"\ngrace = true\n', 2, "must be a number"),
        ('disk = "/d"\nbinds = ["relative:/mnt"]\n', 2, "relative:/mnt"),
        ('disk = "d"\n', 1, "not an absolute path"),
        ('disk = "/d"\n"init_script" = "/a/../b"\n', 2, "not normalised"),
        ("disk = 5\n", 1, "must be a string"),
        ('disk = "/d"\nplugins = ["a\\u0000"]\n', 2, "contains a NUL byte"),
        ('disk = "/d"\n\n[ limits ]\nnofile = "x"\n', 3, "nofile: 'x'"),
        ('disk = "/d"\nlimits.nofile = "x"\n', 2, "nofile: 'x'"),
        ('disk = "/d"\n[section]\nx = 1\n', 2, "no parameter 'section'"),
        ('disk = "/d"\nresolv_conf = "mine"\n', 2, "copy, bind, keep, off"),
    ],
)
def test_a_bad_definition_names_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    error = refused(tmp_path, text)
    assert f"web1.toml, line {line}:" in error.brief
    assert words in error.brief


def test_no_toml_at_all(tmp_path: Path) -> None:
    error = refused(tmp_path, 'disk = "/d"\nbinds = ["/a:/b\ngrace = 2\n')
    assert "line 2" in error.brief
    assert error.details == ('binds = ["/a:/b', f"{'^':>16}")
    assert error.hint.startswith("chrootfw help definition")


def test_the_fields_of_an_instance_are_those_of_its_definition() -> None:
    instance = chrootfw.Instance("web1", "/d", None, plugins=("mine",))
    assert config.from_table("web1", config.to_table(instance)) == instance


def test_a_recorded_instance_has_the_defaults_of_all_core_parameters() -> None:
    complete = config.complete(chrootfw.Instance("web1", params={"require_process": True}), ())
    wanted = {each.name: each.default for each in config.CORE_PARAMETERS} | {
        "require_process": True
    }
    fields = dict.fromkeys(config.FIELD_NAMES)
    assert complete.params == {key: wanted[key] for key in wanted.keys() - fields.keys()}


def test_a_field_is_no_parameter() -> None:
    with pytest.raises(chrootfw.InputError, match="disk is a field"):
        config.resolve(chrootfw.Instance("web1", params={"disk": "/d"}), ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grace=3", ("grace", 3)),
        ("grace = 0.5", ("grace", 0.5)),
        ("hosts=bind", ("hosts", "bind")),
        ('binds=["/a:/b"]', ("binds", ["/a:/b"])),
    ],
)
def test_settings(text: str, expected: tuple[str, object]) -> None:
    assert config.parse_setting(text) == expected


@pytest.mark.parametrize("text", ["grace", "=3", "grace=[", "grace=a b"])
def test_bad_settings(text: str) -> None:
    with pytest.raises(chrootfw.InputError):
        config.parse_setting(text)


class Declares:
    def __init__(self, name: str) -> None:
        self.name = name

    @chrootfw.hookimpl
    def chrootfw_parameters(self) -> list[chrootfw.Parameter]:
        return [chrootfw.Parameter(self.name, str, "x")]


@pytest.mark.parametrize("name", ["disk", "require_process", "grace", "name"])
def test_a_name_that_is_taken_is_refused(name: str, tmp_path: Path) -> None:
    runtime = chrootfw.Runtime([Declares(name)], run_dir=tmp_path, config_dir=tmp_path)
    with pytest.raises(chrootfw.PluginError, match="Declares"):
        runtime.plan("start", chrootfw.Instance("web1", disk="/d"))


@pytest.mark.skipif(os.geteuid() != 0, reason="makes device files")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("socket", "a socket"),
        ("FIFO", "a FIFO"),
        ("directory", "a directory"),
        ("link", "a symbolic link"),
        ("device", "a device"),
    ],
)
@pytest.mark.parametrize("name", ["web1.toml", "_node.toml"])
def test_a_definition_that_is_not_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, words: str
) -> None:
    """It is named as what it is, and a device is not opened."""
    path = tmp_path / name
    match kind:
        case "socket":
            monkeypatch.chdir(tmp_path)
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(name)
        case "FIFO":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to("/dev/null")
        case "device":
            os.mknod(path, 0o020600, os.makedev(1, 3))
    with pytest.raises(chrootfw.TrustError, match=f"{name} is not used: it is {words}") as caught:
        config.read_definition(
            str(tmp_path), "web1"
        ) if name == "web1.toml" else config.blocked_plugins(str(tmp_path))
    assert caught.value.hint.startswith(f"mv {path} ")


@pytest.mark.parametrize(
    "value",
    ["0x8000000000000000", f"0x{'f' * 6000}", f"-{1 << 64}", f"[[0b{'1' * 20000}]]"],
    ids=lambda value: value[:6],
)
@pytest.mark.parametrize(
    "key", ["grace", "min_free", "mount_options", "fstype", "disk", "init_script", "plugins"]
)
def test_a_number_of_more_than_64_bits_is_refused(tmp_path: Path, key: str, value: str) -> None:
    """Python refuses to print very long ones, in an error's text too."""
    disk = "" if key == "disk" else 'disk = "/d"\n'
    assert "64 bits" in refused(tmp_path, f"{disk}{key} = {value}\n").brief
    with pytest.raises(chrootfw.InputError, match="64 bits"):
        config.parse_setting(f"{key}={value}")


@pytest.mark.parametrize(
    "value",
    [1 << 20000, [1 << 20000], {"a": (1 << 20000,)}],
    ids=["itself", "in a list", "in a dict"],
)
@pytest.mark.parametrize("name", ["grace", "min_free", "binds", "holders"])
def test_a_programs_number_of_more_than_64_bits_is_refused(
    tmp_path: Path, name: str, value: object
) -> None:
    runtime = chrootfw.Runtime(run_dir=tmp_path / "run", config_dir=tmp_path)
    with pytest.raises(chrootfw.InputError, match=f"{name} .*64 bits"):
        runtime.plan("start", chrootfw.Instance("web1", disk="/d", params={name: value}))


@pytest.mark.parametrize(
    "text",
    [
        ".".join(["a"] * 1000) + " = 1\n",
        "[" + ".".join(['"a"'] * 1000) + "]\n",
        "x = {" + " . ".join(["'='"] + ["a"] * 1000) + " = 1}\n",
        "x = [{" + ".".join(["a"] * 1000) + " = 1}]\n",
        "".join(f"[{number:x}]\n" for number in range(10_000)),
        "".join(f"{number:x}.a.b.c.d=1\n" for number in range(5_000)),
        "x = [" + "[]," * 10_000 + "]\n",
    ],
    ids=lambda text: text[:20],
)
def test_keys_that_would_cost_much_memory_are_refused(tmp_path: Path, text: str) -> None:
    tracemalloc.start()
    try:
        error = refused(tmp_path, text)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert "keys" in error.brief or "parts" in error.brief


def test_values_with_many_dots_and_comments_are_no_keys(tmp_path: Path) -> None:
    dots = "." * 200
    text = f'# {dots}\ndisk = "/{dots}"  # {dots}\nmount_options = ["{dots}", "x"]\n'
    (tmp_path / "web1.toml").write_text(text)
    found = config.read_definition(str(tmp_path), "web1")
    assert found is not None
    assert found[0].disk == f"/{dots}"


class Speed:
    @chrootfw.hookimpl
    def chrootfw_parameters(self):
        return [Parameter("speed", int, 1, check=lambda value: "too slow" if value < 1 else None)]


@pytest.mark.parametrize("value", ["fast", 0])
@pytest.mark.parametrize("is_defined", [True, False])
def test_a_wrong_parameter_names_the_plugin_that_declares_it(tmp_path, value, is_defined):
    runtime = chrootfw.Runtime([Speed], run_dir=tmp_path / "run", config_dir=tmp_path)
    (tmp_path / "web1.toml").write_text(f'disk = "/srv/web1.img"\nspeed = {value!r}\n')
    web1 = "web1" if is_defined else Instance("web1", disk="/x", params={"speed": value})
    with pytest.raises(InputError) as caught:
        runtime.plan("start", web1)
    assert "plugin Speed (test_config) declares it" in caught.value.details
    with pytest.raises(InputError) as caught:
        runtime.plan("start", Instance("web1", disk="/x", params={"grace": "x"}))
    assert not caught.value.details


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('plugins = "gently:Gently"', 'plugins = ["gently:Gently"]'),
        ("plugins = 5", "chrootfw plugins lists their names"),
    ],
)
def test_plugins_that_are_no_list_have_a_hint(tmp_path: Path, text: str, hint: str) -> None:
    error = refused(tmp_path, f'disk = "/d"\n{text}\n')
    assert "must be a list of strings" in error.brief
    assert error.hint == hint
