"""Records and definitions of any content: what is wrong in a record makes it a lost one, what is wrong in a definition is named."""

from __future__ import annotations

import copy
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import chrootfw
from chrootfw import config
from chrootfw.linux import files
from chrootfw.state import record as start_records

#: A record with everything that one may have.
RECORD: dict[str, Any] = {
    "version": 2,
    "boot_id": "b",
    "namespace": 4026531841,
    "instance": {
        "name": "web1",
        "disk": "/srv/web1.img",
        "init_script": "/etc/chrootfw/init",
        "params": {"grace": 1, "binds": ["/srv:/srv"], "disk_timeout": 60.0},
        "plugins": ["mine"],
    },
    "definition": "disk = '/srv/web1.img'\n",
    "plugins": [{"name": "chrootfw_defaults.disk", "distribution": "chrootfw", "version": "1", "band": "default"}],
    "phase": "started",
    "init_ran": True,
    "left_process": True,
    "stop_done": False,
    "started_at": "2026-11-22T12:00:00+00:00",
    "entry": chrootfw.Entry(
        method="pivot_root", user="1000:1000", env={"A": "b"}, namespaces=("pid",), mount_attributes=("nosuid",),
        read_only=("/sys",), capabilities=("KILL",), no_new_privs=True, masked=("/proc/keys",),
    ).to_dict(),
    "cgroups": [77],
    "network": "pinned",
    "disks": [{"kind": "image", "path": "/srv/web1.img", "file": [1, 2], "devices": [1793], "loop": "/dev/loop0"}],
    "steps": [
        {
            "kind": "copy", "class": "a:B", "arguments": {"path": "/x"}, "facts": {"size": 1}, "stage": "pre-start",
            "place": "", "plugin": "mine", "distribution": None, "version": None,
        }
    ],
    "undo_failed": False,
}  # fmt: skip

#: What 0.1 did not write in the first place.
_LATER: dict[str, tuple[str, ...]] = {
    "": ("cgroups", "network", "undo_failed", "entry", "left_process"), "plugins": ("band",), "disks": ("loop",), "steps": ("place", "facts"),
}  # fmt: skip


def _of_version_1() -> dict[str, Any]:
    """A record as the first 0.1 wrote it."""
    old = copy.deepcopy(RECORD)
    old["version"] = 1
    for place, keys in _LATER.items():
        for found in old[place] if place else [old]:
            for key in keys:
                del found[key]
    return old


_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([2**64, -1, "/", "relative", "/a/../b", "a\0b", "\ud800", "jail", "9" * 5000, "4294967295", "A=B"])
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def _ways(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, each in inside:
        yield (*here, key)
        yield from _ways(each, (*here, key))


_WAYS = list(_ways(RECORD))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    (path / "web1").mkdir()
    return path


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(data)


def _load(run_dir: Path, data: bytes) -> start_records.StartRecord | None:
    _write(run_dir / "web1/record.json", data)
    return start_records.load(str(run_dir), "web1")


def _record(**changes: object) -> start_records.StartRecord:
    record = start_records.StartRecord.from_json({**copy.deepcopy(RECORD), **changes})
    assert record is not None
    return record


def _use(record: start_records.StartRecord) -> None:
    """What every verb makes of a record."""
    instance = chrootfw.Instance(**record.instance_fields())
    assert instance.name == "web1"
    assert all(isinstance(number, int) for number in record.cgroups or ())
    if (fields := record.entry_fields()) is not None:
        chrootfw.Entry(**fields)
    parameters = [("own", parameter) for parameter in (*_declared(), *config.CORE_PARAMETERS)]
    right, notes = config.without_misfits(instance, parameters, lambda _plugin: True)
    assert all(isinstance(note, str) for note in notes)
    complete = config.complete(right, parameters)
    assert float(complete.params["grace"]) >= 0
    assert 0 < float(complete.params["disk_timeout"]) <= 86_400
    json.loads(start_records.dump(record))


def _declared() -> list[chrootfw.Parameter]:
    return [
        chrootfw.Parameter(
            "grace", float, 10, lambda value: None if value >= 0 else "it must not be negative"
        ),
        chrootfw.Parameter("binds", list, []),
    ]


def test_a_good_record_is_taken_whole(run_dir: Path) -> None:
    record = _load(run_dir, files.dump(RECORD))
    assert record is not None
    assert record.to_json() == RECORD
    _use(record)


def test_a_record_of_version_1_is_migrated(run_dir: Path) -> None:
    for old in (_of_version_1(), {**RECORD, "version": 1}):
        (run_dir / "web1/record.json").unlink(missing_ok=True)
        _write(run_dir / "web1/intent.json", files.dump(old))
        record = start_records.load(str(run_dir), "web1")
        assert record is not None
        _use(record)
        assert {**RECORD, **record.to_json()} == record.to_json()
        assert record.steps[0].arguments == {"path": "/x"}
        start_records.save(str(run_dir), record)
        assert not (run_dir / "web1/intent.json").exists()
        again = start_records.load(str(run_dir), "web1")
        assert again is not None
        assert again.to_json() == record.to_json()


@pytest.mark.parametrize("version", [True, 0, -1, 1.0, "2", None, [2], 2**64, 10**4000])
def test_a_version_that_nobody_wrote(run_dir: Path, version: object) -> None:
    assert _load(run_dir, json.dumps({**RECORD, "version": version}).encode()) is None


@pytest.mark.parametrize("version", [3, 2**64 - 1])
def test_a_newer_version_is_refused_by_name(run_dir: Path, version: int) -> None:
    for later in ({**RECORD, "version": version}, {"version": version}):
        with pytest.raises(chrootfw.NotSupported, match=rf"web1 .*newer chrootfw.*{version}"):
            _load(run_dir, json.dumps(later).encode())


@given(changes=st.lists(st.tuples(st.sampled_from(_WAYS), _VALUES), min_size=1, max_size=2))
@example(changes=[(("instance", "disk"), "relative")])
@example(changes=[(("entry", "method"), "jail")])
@example(changes=[(("instance", "params", "disk_timeout"), "x")])
@example(changes=[(("instance", "params", "grace"), float("nan"))])
@example(changes=[(("disks", 0, "devices", 0), 2**70)])
@settings(max_examples=600)
def test_a_wrong_value_makes_a_lost_record(
    run_dir: Path, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    value = copy.deepcopy(RECORD)
    for (*way, last), change in changes:
        place = value
        try:
            for key in way:
                place = place[key]
            place[last] = change
        except (KeyError, TypeError, IndexError):
            continue
    try:
        record = _load(run_dir, json.dumps(value).encode())
    except chrootfw.NotSupported as error:
        assert "newer" in error.brief
        return
    if record is not None:
        _use(record)


@given(way=st.sampled_from([(), *(way for way in _WAYS)]), value=_VALUES)
def test_a_key_that_is_not_known_is_kept(
    run_dir: Path, way: tuple[Any, ...], value: object
) -> None:
    made = copy.deepcopy(RECORD)
    place = made
    for key in way:
        place = place[key]
    if not isinstance(place, dict) or way[-1:] == ("env",):
        return
    place["later"] = value
    record = _load(run_dir, json.dumps(made).encode())
    assert record is not None
    assert json.dumps(record.to_json(), sort_keys=True) == json.dumps(made, sort_keys=True)
    _use(record)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{}", b"[" * 1_000_000, b'{"a":' * 300_000, b"9" * 5000, b" " * (8 << 20), b"\xff\xfe",
        json.dumps(RECORD).encode()[:-5], json.dumps({**RECORD, "later": [[[]]] * 40_000, "x": "y" * (4 << 20)}).encode(),
    ],
    ids=lambda data: f"{data[:6]!r}-{len(data)}",
)  # fmt: skip
def test_what_is_not_a_record_at_all(run_dir: Path, data: bytes) -> None:
    tracemalloc.start()
    try:
        assert _load(run_dir, data) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_deep_record_is_a_lost_one(run_dir: Path) -> None:
    deep: Any = 1
    for _ in range(200):
        deep = {"a": [deep]}
    value = copy.deepcopy(RECORD)
    value["instance"]["params"]["deep"] = deep
    assert _load(run_dir, json.dumps(value).encode()) is None
    with pytest.raises(ValueError, match="deep"):
        files.dump(value)


def test_a_record_that_would_not_be_taken_back_is_not_written() -> None:
    with pytest.raises(chrootfw.StepError):
        start_records.dump(_record(later="x" * (64 << 20)))


# -- definitions ----------------------------------------------------------------------------------------

_TOML = st.sampled_from(
    [
        "disk = '/srv/x'", "disk = 7", "disk = ['x']", "init_script = true", "init_script = ''", "plugins = 'x'",
        "plugins = [1]", "grace = nan", "grace = inf", "grace = -inf", "grace = 1e400", "grace = 1e10", "grace = '²'",
        f"grace = {'9' * 5000}", f"disk_timeout = {'9' * 400}", "disk_timeout = 0", "disk_timeout = nan",
        "binds = [2020-01-01]", "binds = [[[]]]", "a.b.c = 1", "[grace]", "[[binds]]", "name = 'x\\u0000'",
        "disk = '/\\u001b[2J'", 'disk = "/\\u001b[2J"', "require_process = 1", "x" * 50, "= 1", "grace = 1\ngrace = 2",
    ]
)  # fmt: skip


def _definition(directory: Path, data: bytes) -> chrootfw.Instance | None:
    _write(directory / "web1.toml", data)
    try:
        found = config.read_definition(str(directory), "web1")
        assert found is not None
        resolved = config.resolve(found[0], [("own", parameter) for parameter in _declared()])
    except chrootfw.InputError as error:
        assert len(error.brief) < 20_000
        return None
    assert 0 < resolved.params["disk_timeout"] <= 86_400
    assert 0 <= resolved.params["grace"] < float("inf")
    return resolved


@given(lines=st.lists(_TOML, max_size=3), rest=st.binary(max_size=12))
@settings(max_examples=300)
def test_a_definition_of_any_content(run_dir: Path, lines: list[str], rest: bytes) -> None:
    _definition(run_dir, "\n".join(lines).encode() + b"\n" + rest)


@pytest.mark.parametrize(
    "data",
    [
        b"grace = " + b"[" * 50_000, b"grace = " + b"{a = " * 2000, b"a" + b".a" * 5000 + b" = 1",
        b"[" + b"a." * 5000 + b"a]\n", b"grace = [" * 900 + b"]" * 900, b"#" * (8 << 20), b"\0" * 4096,
        b"grace = " + b"9" * 5000,
    ],
    ids=lambda data: f"{data[:10]!r}-{len(data)}",
)  # fmt: skip
def test_a_definition_that_no_parser_ends(run_dir: Path, data: bytes) -> None:
    assert _definition(run_dir, data) is None


@given(
    value=st.lists(
        _TOML.map(lambda line: line.partition("=")[2].strip()), min_size=1, max_size=2
    ).map("\n".join)
)
@example("1\nread_only = true")
@example("1\n[x]")
@example("1 # \n")
@example("[" * 5000)
@example("9" * 5000)
def test_a_setting_is_one_value(value: str) -> None:
    try:
        name, found = config.parse_setting(f"grace={value}")
    except chrootfw.InputError:
        return
    assert name == "grace"
    assert not isinstance(found, dict)


def test_a_setting_sets_nothing_else() -> None:
    for text in ("grace=1\nread_only=true", "grace=1\n[table]\nx=1", 'grace="""\n"""\nx=1'):
        with pytest.raises(chrootfw.InputError, match="grace"):
            config.parse_setting(text)
    assert config.parse_setting("binds=[\n'/a:/a',\n]") == ("binds", ["/a:/a"])
