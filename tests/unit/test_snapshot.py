"""A snapshot: what was read once stays so, whatever is asked of it, when, and in which order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from chrootfw.linux import files
from chrootfw.state import ownership, show
from chrootfw.state import record as start_records
from chrootfw.state import snapshot as snapshots
from chrootfw.state.record import StartRecord
from chrootfw.state.snapshot import Snapshot
from chrootfw.views import InstanceState

READERS = [
    pytest.param(lambda run_dir: snapshots.read_snapshot(run_dir), id="of all"),
    pytest.param(lambda run_dir: snapshots.read_instance(run_dir, "web1"), id="of one"),
]


@pytest.fixture
def run_dir(tmp_path: Path) -> str:
    """With ``web1``, of which there is a directory and a record."""
    place = tmp_path / "run"
    (place / "web1").mkdir(parents=True)
    start_records.save(str(place), StartRecord("web1", "/srv/web1", None, {}, []))
    return str(place)


@pytest.mark.parametrize("read", READERS)
def test_what_comes_and_goes_afterwards_changes_no_answer(
    run_dir: str, read: Callable[[str], Snapshot]
) -> None:
    snapshot = read(run_dir)
    shutil.rmtree(f"{run_dir}/web1")
    Path(run_dir, "db1").mkdir()
    assert snapshot.names() == {"web1"}
    assert snapshot.is_present("web1")
    assert not snapshot.is_mounted("web1")
    record = snapshot.record("web1")
    assert record is not None
    assert record.disk == "/srv/web1"
    assert read(run_dir).record("web1") is None


@pytest.mark.parametrize("read", READERS)
def test_a_record_that_is_written_afterwards_is_not_seen(
    run_dir: str, read: Callable[[str], Snapshot]
) -> None:
    shutil.rmtree(f"{run_dir}/web1")
    snapshot = read(run_dir)
    Path(run_dir, "web1").mkdir()
    start_records.save(run_dir, StartRecord("web1", "/srv/web1", None, {}, []))
    assert not snapshot.is_present("web1")
    assert snapshot.record("web1") is None


def test_a_snapshot_of_one_instance_knows_nothing_of_another(run_dir: str) -> None:
    snapshot = snapshots.read_instance(run_dir, "web1")
    with pytest.raises(KeyError):
        snapshot.is_mounted("db1")


def test_a_record_that_cannot_be_read_is_noted(run_dir: str) -> None:
    start_records_path = Path(start_records.path(run_dir, "web1"))
    start_records_path.chmod(0o666)
    for read in (
        lambda: snapshots.read_snapshot(run_dir),
        lambda: snapshots.read_instance(run_dir, "web1"),
    ):
        snapshot = read()
        assert snapshot.record("web1") is None
        assert snapshot.notes("web1") != []


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("pin", ["file", "nothing", "namespace"])
def test_a_pin_of_the_network_that_is_gone_is_noted(
    run_dir: str, read: Callable[[str], Snapshot], pin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = StartRecord("web1", "/srv/web1", None, {}, [])
    started.boot_id, started.network = files.boot_id(), "pinned"
    start_records.save(run_dir, started)
    place = Path(start_records.network(run_dir, "web1"))
    if pin == "file":
        place.touch()  # on which nothing is mounted any more
    elif pin == "namespace":
        place.symlink_to("/proc/self/ns/net")
    monkeypatch.setattr(ownership, "read_state", lambda *_, **__: InstanceState.MOUNTED)
    info = show.show(read(run_dir), "web1")
    noted = [note for note in info.notes if str(place) in note and "chrootfw stop web1" in note]
    if pin == "namespace":
        assert (info.network, noted) == (str(place), [])
    else:
        assert info.network is None
        assert len(noted) == 1
