"""The cluster is built once for each version of Ganeti; each class for chroots then has it as it was when it was new.

A test with the mark ``row`` is a row of the table "what works with each" in docs/reference/ganeti-table.md. It is run with both
classes. chrootfw's must pass it; what becomes of it with Ganeti's own must be what the table says.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent

sys.path[:0] = [str(HERE), str(HERE.parent / "real")]

pytest.register_assert_rewrite("chroots", "cluster")

import hypervisors
import kernelview
import node_system
import table
from chroots import Site
from cluster import Cluster, Failed
from table import Outcome, Results

VERSIONS = node_system.RELEASES["bookworm"]  # of every release, in order


_results = pytest.StashKey[Results]()  # the rows of this process
_untold = pytest.StashKey[
    list[tuple[str, Any]]
]()  # what the next report of this process is to carry
_summary = pytest.StashKey["Summary"]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(title): a row of the table 'what works with each'")
    config.addinivalue_line("markers", "version(number): only with this version of Ganeti")
    config.addinivalue_line("markers", "first_version: only with the release's first Ganeti")
    config.stash[_results] = {}
    config.stash[_untold] = []
    config.stash[_summary] = summary = Summary()
    config.pluginmanager.register(summary)


# -- the cluster --------------------------------------------------------------------------------------------


class Machine:
    """What the tests could leave on the machine, outside the cluster's own namespaces."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.pid_namespaces: list[int] = []  # open descriptors, so that their numbers stay theirs
        self.cards = set(os.listdir("/sys/class/net"))
        self.mounts = set(kernelview.mount_table())
        self.layers: set[tuple[str, str]] = (
            set()
        )  # loop devices over the nodes' system, with their files
        self.disks: set[int] = (
            set()
        )  # the devices of the file systems that the instances' files were on
        self.run_dirs: set[str] = (
            set()
        )  # of chrootfw on the nodes, as kernelview.identity names them

    def left(self) -> list[str]:
        """What is there of the cluster, a line each."""
        cards = set(os.listdir("/sys/class/net")) - self.cards
        found = [
            f"network card {card}"
            for card in cards
            if card.startswith(("port", "switch", "eth", "xen-br"))
        ]
        found += [
            f"{mount}"
            for number, mount in kernelview.mount_table().items()
            if number not in self.mounts and os.fsdecode(mount.target).startswith(str(self.scratch))
        ]
        for (
            loop,
            file,
        ) in kernelview.loop_devices().items():  # the other cluster's files have the same names
            of_file = kernelview.file_of_loop(loop)
            if (of_file and of_file[0] in self.disks) or (
                (loop, file) in self.layers
                and not _is_mounted_somewhere(loop)  # the other cluster's, too
            ):
                found.append(f"{loop} over {file}")
        found += [
            f"cgroup {path}" for run_dir in self.run_dirs for path in kernelview.cgroups_of(run_dir)
        ]
        found += [str(path) for path in self.scratch.iterdir()]
        spaces = {os.fstat(descriptor).st_ino for descriptor in self.pid_namespaces}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.stat(f"/proc/{pid}/ns/pid").st_ino in spaces:
                    found.append(f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})")
            except OSError:
                continue
        return found


@pytest.fixture(scope="session", autouse=True)
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine as it was: after all tests, nothing of the cluster is left on it."""
    assert os.geteuid() == 0, (
        "these tests make namespaces and mount file systems: they must run as root"
    )
    node_system.install_tools()
    machine = Machine(tmp_path_factory.mktemp("cluster"))
    yield machine
    left = machine.left()
    for descriptor in machine.pid_namespaces:
        os.close(descriptor)
    assert not left, "the tests left something:\n  " + "\n  ".join(left)


def _is_mounted_somewhere(loop: str) -> bool:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if any(mount.source == loop for mount in kernelview.mount_table(pid).values()):
                return True
        except OSError:
            continue
    return False


class Clusters:
    """One cluster at a time: the one of the version last asked for."""

    def __init__(self, machine: Machine, release: str, note: Callable[[str], None]) -> None:
        self.machine = machine
        self.release = release
        self.note = note
        self.cluster: Cluster | None = None
        self.fresh = False

    def get(self, version: str, kind: str) -> Cluster:
        if self.cluster is None or self.cluster.version != version:
            self.close()
            self._build(version)
        assert self.cluster is not None
        if not self.fresh:
            with self._timed(f"{version}: restored for {kind}"):
                self.cluster.restore()
        self.fresh = False
        with self._timed(f"{version}: {kind} installed"):
            hypervisors.install(self.cluster, kind)
        return self.cluster

    def _build(self, version: str) -> None:
        with self._timed("the nodes' system made, or found in the cache"):
            node_system.layers(self.release, version)
        self.cluster = cluster = Cluster(self.machine.scratch, version, self.release)
        with self._timed(f"{version}: three nodes booted"):
            cluster.boot()
        with self._timed(f"{version}: made a cluster"):
            cluster.initialise()
        with self._timed(f"{version}: saved"):
            cluster.save()
        self.fresh = True

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.note(f"{time.monotonic() - begin:6.1f} s  {what}")

    def close(self) -> None:
        if self.cluster is not None:
            for node in self.cluster.nodes:
                node.power_off()
                self.machine.run_dirs |= node.run_dirs
            self.machine.pid_namespaces += self.cluster.ground.pid_namespaces
            self.machine.disks.add(self.cluster.ground.files.stat().st_dev)
            self.machine.layers |= self.cluster.layer_loops()
            self.cluster.close()
            self.cluster = None
            try:  # the kernel takes a namespace's cards and loop devices a moment later
                kernelview.wait_until(
                    lambda: not self.machine.left(), "nothing of the cluster is left", seconds=30
                )
            except TimeoutError:
                assert not self.machine.left(), "the cluster left something:\n  " + "\n  ".join(
                    self.machine.left()
                )


@pytest.fixture(scope="session")
def clusters(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Clusters]:
    untold = request.config.stash[_untold]
    release = request.config.getoption("--release")
    clusters = Clusters(machine, release, lambda text: untold.append(("the cluster", text)))
    yield clusters
    clusters.close()


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest, clusters: Clusters) -> Site:
    """A cluster with one class; the parameter is ``(version, kind)``, see ``pytest_generate_tests``."""
    version, kind = request.param
    return Site(clusters.get(version, kind), kind)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "site" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("row")
    kinds = mark.kwargs.get("kinds") if mark else (hypervisors.CHROOTFW,)
    kinds = kinds or (hypervisors.STOCK, hypervisors.CHROOTFW)
    versions = node_system.RELEASES[metafunc.config.getoption("--release")]
    if only := metafunc.definition.get_closest_marker("version"):
        versions = only.args
    if metafunc.definition.get_closest_marker("first_version"):
        versions = versions[:1]
    sites = [(version, kind) for version in versions for kind in _ORDER if kind in kinds]
    metafunc.parametrize(
        "site", sites, indirect=True, scope="session", ids=lambda site: f"{site[0]}-{_IDS[site[1]]}"
    )


_ORDER = (hypervisors.STOCK, hypervisors.REPAIRED, hypervisors.CHROOTFW)
_IDS = {
    hypervisors.STOCK: "stock",
    hypervisors.REPAIRED: "repaired",
    hypervisors.CHROOTFW: "chrootfw",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Site after site, and in each in the order of the file; what has no site comes last."""

    def key(item: pytest.Item) -> tuple[int, int]:
        site = getattr(item, "callspec", None) and item.callspec.params.get("site")
        return (VERSIONS.index(site[0]), _ORDER.index(site[1])) if site else (len(VERSIONS), 0)

    ours = [item for item in items if item.path.is_relative_to(HERE)]
    items[:] = [item for item in items if item not in ours] + sorted(ours, key=key)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side are the versions, each with a cluster of its own, and what needs none. (pytest-xdist's own groups, by mark, are
    lost on pytest 9.2: pytest-xdist#1386.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByVersion(LoadScopeScheduling):  # type: ignore[misc]  # untyped
        def _split_scope(self, nodeid: str) -> str:
            return next((version for version in VERSIONS if f"[{version}-" in nodeid), "the class")

    return ByVersion(config, log)


# -- the table ----------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    mark, site = pyfuncitem.get_closest_marker("row"), pyfuncitem.funcargs.get("site")
    if mark is None or site is None:
        return (yield)
    site.seconds, begin = None, time.monotonic()
    failure: Exception | None = None
    try:
        yield
    except (
        Failed,
        AssertionError,
        TimeoutError,
    ) as error:  # anything else is a mistake of these tests
        failure = error
    seconds = time.monotonic() - begin if site.seconds is None else site.seconds
    outcome = Outcome(failure is None, _reason(failure), seconds)
    key = (mark.args[0], site.cluster.version, site.kind)
    pyfuncitem.config.stash[_results][key] = outcome
    pyfuncitem.user_properties.append(
        ("row", [list(key), list(outcome)])
    )  # plain: it goes from process to process
    if failure is not None and site.kind == hypervisors.CHROOTFW:
        raise failure
    return True


def _reason(error: Exception | None) -> str:
    """The sentence of an error, without what is around it."""
    if error is None:
        return ""
    if not isinstance(error, Failed):
        return str(error).split("\n", 1)[0].removesuffix(".")
    lines = [line.strip() for line in error.output.splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if "rror" in line or "ailed" in line or "ould not" in line or "an't" in line
    ]
    return (telling or lines or [f"status {error.status}"])[-1]


@pytest.fixture
def results(request: pytest.FixtureRequest) -> Results:
    """The rows so far, of this process."""
    return request.config.stash[_results]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """``figure(text)``: something that was measured, for the summary."""
    return lambda text: record_property("figures", text)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    untold = item.config.stash[_untold]
    item.user_properties.extend(untold)
    untold.clear()


class Summary:
    """What the tests' reports carry, put together where the run is led from: with pytest-xdist not where they run."""

    def __init__(self) -> None:
        self.rows: Results = {}
        self.sections: dict[str, list[str]] = {"figures": [], "the cluster": []}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":
            return
        for name, value in report.user_properties:
            if name == "row":
                key, outcome = value
                self.rows[tuple(key)] = Outcome(*outcome)
            elif name in self.sections:
                self.sections[name].append(str(value))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    summary = config.stash[_summary]
    rows = dict(
        sorted(summary.rows.items(), key=lambda row: VERSIONS.index(row[0][1]))
    )  # else in the order of the file
    if rows:
        terminalreporter.section("what works with each")
        for (title, version, kind), outcome in rows.items():
            said = f"{outcome.seconds:6.2f} s" if outcome.works else f"NO: {outcome.reason[:200]}"
            terminalreporter.write_line(f"{version:6} {kind:24} {title:60} {said}")
    for title, lines in summary.sections.items():
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(line)
    if target := config.getoption("--table"):
        versions = node_system.RELEASES[config.getoption("--release")]
        Path(target).write_text(table.markdown(rows, versions), encoding="utf-8")
