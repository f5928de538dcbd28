"""Files of the run directory: what is written is read, and what is not valid JSON is lost."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chrootfw.errors import LockError
from chrootfw.linux import files, locks

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture(scope="module")
def record_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "record.json"


def load(file: Path, data: bytes) -> object:
    file.touch(0o600)
    file.write_bytes(data)
    return files.load(str(file))


@given(_VALUES)
def test_what_is_written_is_read(record_file: Path, value: object) -> None:
    assert load(record_file, files.dump(value)) == value


@given(
    st.binary()
    | _VALUES.map(lambda value: json.dumps(value, indent=1).encode())
    | st.text().map(str.encode)
)
@example('{"a": "\ud800"}\n'.encode("utf-16", "surrogatepass"))
def test_any_bytes_are_a_value_or_lost(record_file: Path, data: bytes) -> None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    assert repr(load(record_file, data)) == repr(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a": 1} x\n',
        b'"\xed\xa0\x80',
        b"[" * 30_000,
        b'{"a":' * 30_000,
        b"[" * 65 + b"]" * 65,
        b"9" * 5000 + b"\n",
        b'"' + b"a" * files.SIZE_MAX + b'"',
    ],
    ids=lambda data: data[:12].decode("ascii", "replace"),
)
def test_damaged_deep_or_huge_is_lost(record_file: Path, data: bytes) -> None:
    assert load(record_file, data) is None


# -- locks -------------------------------------------------------------------------------------------


@contextmanager
def a_fork() -> Iterator[int]:
    """A fork of the program that lives on, as a worker of multiprocessing's does."""
    said, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(tell)
        os.read(said, 1)
        os._exit(0)
    os.close(said)
    try:
        yield pid
    finally:
        os.close(tell)
        os.waitpid(pid, 0)


def take(run_dir: Path, seconds: float = 0) -> locks.Lock:
    return locks.lock(str(run_dir), "web1.lock", what="web1", verb="start web1", seconds=seconds)


@pytest.fixture
def lock_dir(tmp_path: Path) -> Path:
    (tmp_path / files.LOCKS).mkdir()
    return tmp_path


def test_a_lock_ends_with_its_block_although_a_fork_has_a_copy(lock_dir: Path) -> None:
    held = take(lock_dir)
    with a_fork():
        held.release()
        take(lock_dir).release()


def test_a_lock_that_nobody_got_to_release_ends_with_its_object(lock_dir: Path) -> None:
    held = take(lock_dir)
    with a_fork():
        del held
        take(lock_dir).release()


def test_a_wait_that_is_given_up_leaves_no_lock_in_a_fork(lock_dir: Path) -> None:
    def ends() -> None:
        raise KeyboardInterrupt

    with take(lock_dir), pytest.raises(KeyboardInterrupt):
        locks.lock(str(lock_dir), "web1.lock", what="web1", verb="stop", seconds=9, check=ends)
    take(lock_dir).release()


def test_a_fork_does_not_release_its_parents_lock(lock_dir: Path) -> None:
    with take(lock_dir) as held:
        pid = os.fork()
        if pid == 0:
            held.release()
            os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(LockError):
            take(lock_dir)


def test_a_lock_is_released_once(lock_dir: Path) -> None:
    held = take(lock_dir)
    held.release()
    os.dup2(0, held.fd, inheritable=False)  # the number is another file's now
    held.release()
    os.fstat(held.fd)
    os.close(held.fd)


def test_a_lock_is_waited_for(lock_dir: Path) -> None:
    with take(lock_dir):
        began = time.monotonic()
        with pytest.raises(LockError, match="start web1"):
            take(lock_dir, 0.2)
        assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize(
    "text",
    [
        "[" + "[]," * 340_000 + "[]]",
        "[" + "{}," * 340_000 + "{}]",
        "[" + "1," * 500_000 + "1]",
        '["' + "," * 1_000_000 + '"]',
    ],
    ids=lambda text: text[:4],
)
def test_what_has_too_many_values_is_lost_and_costs_no_memory(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record"
    path.write_text(f"{text}\n")
    path.chmod(0o600)
    tracemalloc.start()
    try:
        assert files.load(str(path)) is None
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "value", [[[]] * 40_000, [","] * 40_000, {str(number): 1 for number in range(40_000)}]
)
def test_what_would_be_lost_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match="values"):
        files.dump(value)
