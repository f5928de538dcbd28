"""Records: what is written is read, and what is no JSON is told as json tells it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chrootfw.system import store

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_VALUES)
def test_what_is_written_is_read(value: object) -> None:
    assert store.parse(store.dump(value)) == value


def outcome(parse, data: bytes) -> object:
    try:
        return repr(parse(data))
    except (ValueError, RecursionError) as error:
        return type(error)


@given(st.binary() | _VALUES.map(lambda value: json.dumps(value, indent=1).encode()) | st.text().map(str.encode))
@example(b"")
@example(b'{"a": 1} x\n')
@example(b'{"a": NaN, "b": -Infinity}\n')
@example(b'{"a": 1}\n\n')
@example(b'\xef\xbb\xbf{"a": 1}\n')
@example('{"a": "\ud800"}\n'.encode("utf-16", "surrogatepass"))
@example(b'"\xed\xa0\x80"\n')
@example(b"[" * 100_000)
@example(b"9" * 5000 + b"\n")
def test_it_reads_as_json_does(data: bytes) -> None:
    assert outcome(store.parse, data) == outcome(json.loads, data)


def test_damaged_in_a_process_that_has_not_imported_json() -> None:
    program = "import sys; from chrootfw.system import store; assert 'json' not in sys.modules; store.parse(b'{')"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}"],
        capture_output=True,
        text=True,
    )
    assert "json.decoder.JSONDecodeError" in done.stderr


def test_another_python_has_no_scanner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_json", None)
    assert store.parse(b'{"a": [1]}\n') == {"a": [1]}
