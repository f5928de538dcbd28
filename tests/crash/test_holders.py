"""Rows 7 and 8: whatever holds an instance is named, or its stop says that it does not know who; never "stopped"."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import holder_kinds
import pytest
import roots
from driving import Chroot, Cli, Result
from holder_kinds import KINDS, NAMED, STOPPED, UNKNOWN
from kernelview import is_running
from proof import Proof


class Tally:
    """What came of each kind, and how many stops were proven."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.proven = 0
        self.stops = 0


@pytest.fixture(scope="module")
def tally() -> Tally:
    return Tally()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, private_namespace: None) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("template") / "disk.img"
    yield roots.make_image(path, "ext4", roots.make_root)
    shutil.rmtree(path.parent)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize(
            "kind", list(KINDS)[:: 1 if metafunc.config.getoption("--whole") else 2]
        )


def test_a_holder_of_this_kind(
    kind: str,
    template: Path,
    tally: Tally,
    make_chroot: Callable[..., Chroot],
    cli: Cli,
    outside: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk.img"
    subprocess.run(["cp", "--sparse=always", str(template), str(disk)], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    chroot = make_chroot(disk=disk)
    chroot.start()
    own = chroot.pids()
    proof = Proof(cli.run_dir)
    holder = outside(
        sys.executable, holder_kinds.__file__, kind, str(chroot.root), str(elsewhere), str(min(own)), cwd="/",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    names = json.loads(holder.stdout.readline())
    try:
        stopped = chroot.cli("stop", "--timeout", "0.5", expect=(0, 4))
        outcome = _outcome(stopped, names)
        if outcome == STOPPED:
            proof("web1", disk, own)
        assert chroot.state == ("absent" if outcome == STOPPED else "held")
        assert not any(is_running(pid) for pid in own)
    finally:
        holder.stdin.close()
        assert holder.wait(60) == 0
    tally.stops += 1
    if outcome != STOPPED:
        chroot.cli("cleanup")
        proof("web1", disk, own)
        tally.stops += 1
    tally.proven += proof.checked
    assert outcome == KINDS[kind].outcome, stopped
    tally.outcomes[kind] = outcome


def _outcome(stopped: Result, names: list[str]) -> str:
    if stopped.status == 0:
        return STOPPED
    if names and all(each in stopped.stderr for each in names):
        return NAMED
    assert UNKNOWN in stopped.stderr, f"{names} are not named, nor is that said: {stopped}"
    return UNKNOWN


def test_the_figure(tally: Tally, figure: Callable[[int, str], None], whole: bool) -> None:
    """Last, when each kind has passed."""
    assert len(tally.outcomes) == len(KINDS if whole else list(KINDS)[::2]), (
        "not every kind was tried, or one failed"
    )
    count = Counter(tally.outcomes.values())
    figure(
        7,
        f"{len(tally.outcomes)} of {len(KINDS)} kinds of holder, each alone: {count[NAMED]} found and named, {count[UNKNOWN]} an honest "
        f'"{UNKNOWN}", {count[STOPPED]} hold nothing or were the stop\'s to end and were truly stopped; 0 false "stopped"',
    )
    figure(
        8,
        f"holders: {tally.stops} stops and cleanups; all {tally.proven} that said 0 were proven, the others said 4",
    )
