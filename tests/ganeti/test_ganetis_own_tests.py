"""Ganeti's own unit tests, with its class for chroots and with chrootfw's; tests/ganeti/README.md has the figures.

Most of them never meet the class: how many do is the last column of the page's table.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ganeti_packages
import ganetis_own_tests
import pytest
from ganetis_own_tests import CHROOTFW, STOCK, Run

PAGE = Path(__file__).resolve().parents[2] / "tests/ganeti/README.md"

#: The programs that are run: a tuple for each row of the page's table.
ROWS = (
    ("ganeti.hypervisor.hv_chroot",),
    ("ganeti.hypervisor",),
    ("ganeti.backend",),
    ("ganeti.tools.burnin",),
    ("ganeti.constants", "ganeti.objects"),
    ("cmdlib/instance_migration",),
    ("cmdlib/instance",),
    ("cmdlib/instance_storage",),
    ("cmdlib/cluster",),
)


class Known(NamedTuple):
    """``says``: a part of what the test says when it fails."""

    says: str
    because: str


#: What passes with Ganeti's class and fails with chrootfw's. What does not fail any more is taken out.
EXCEPTIONS = {
    ("ganeti.hypervisor", "TestParameters.test"): Known(
        "Hypervisor chroot: parameter extra_config defined in the hypervisor but missing a default value",
        "It wants a default in Ganeti's constants for each parameter. The class fills in those of its two; in the "
        "constants, they would get into the cluster's configuration and outlive a removal",
    ),
}


@pytest.fixture(scope="module")
def source() -> Iterator[Path]:
    if reason := ganeti_packages.why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="chrootfw-ganeti-source-") as place:
        ganetis_own_tests.unpack(Path(place))
        yield Path(place)


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_what_passes_with_ganetis_class_passes_with_chrootfws(
    row: tuple[str, ...], source: Path
) -> None:
    theirs = [ganetis_own_tests.run(STOCK, source, program) for program in row]
    ours = [ganetis_own_tests.run(CHROOTFW, source, program) for program in row]
    for program, their, our in zip(row, theirs, ours, strict=True):
        assert their.tested == "ganeti.hypervisor.hv_chroot:ChrootManager"
        assert our.tested == "chrootfw_ganeti.hypervisor:ChrootHypervisor"
        assert their.left == our.left == [], f"{program} left processes"
        assert their.passed
        worse = {test: our.failures.get(test, "not run") for test in their.passed - our.passed}
        known = {test: known for (where, test), known in EXCEPTIONS.items() if where == program}
        assert {test: said for test, said in worse.items() if test not in known} == {}
        for test, exception in known.items():
            assert exception.says in worse.get(test, "it passes"), (
                f"{program}, {test}: no such exception any more"
            )
    said = (_figure(theirs), _figure(ours), str(sum(len(our.uses) for our in ours)))
    assert _table()[row] == said, f"{PAGE.name} has other figures than the run"


def test_the_page_has_these_rows() -> None:
    assert list(_table()) == list(ROWS)


def test_every_exception_is_of_a_program_that_is_run() -> None:
    assert {program for program, _ in EXCEPTIONS} <= {program for row in ROWS for program in row}


def _figure(runs: list[Run]) -> str:
    return f"{sum(len(run.passed) for run in runs)} of {sum(len(run.tests) for run in runs)}"


def _table() -> dict[tuple[str, ...], tuple[str, ...]]:
    """The page's table: the cells of each row, by the programs in the first one."""
    (section,) = re.findall(
        r"^## The tests of Ganeti itself\n(.*?)^## ", PAGE.read_text("utf-8"), re.M | re.S
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line[:3] == "| `"
    ]
    return {tuple(re.findall(r"`([^`]+)`", first)): tuple(cells) for first, *cells in rows}
