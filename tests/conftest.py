"""For every suite: the packages of the tree can be imported, and the options are known."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest

_TREE = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(_TREE / "tests"))

import tiers  # noqa: E402

# A run in the background of a shell, or under nohup(1), ignores them, and so would what it starts.
for _signum, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, _handler)

for _module, _directory in (("chrootfw", _TREE), ("chrootfw_defaults", _TREE / "plugins")):
    if importlib.util.find_spec(_module) is None:
        sys.path.insert(0, str(_directory))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tracking",
        choices=("cgroup", "root"),
        default="cgroup",
        help="tests/real: how own processes are found; 'root' hides every cgroup v2 hierarchy (default: cgroup)",
    )
    parser.addoption(
        "--kernel",
        choices=("running", "5.14"),
        default="running",
        help="5.14: whatever Linux has had only since then is refused, and memory made executable, to the tests and all that they start",
    )
    parser.addoption(
        "--quick",
        action="store_true",
        help="the quick tier: what `tox` runs by default (see tests/tiers.py)",
    )
    parser.addoption(
        "--whole",
        action="store_true",
        help="tests/crash: whole campaigns, not samples of them; tests/real: all daemons, not some",
    )
    parser.addoption(
        "--release",
        choices=("bookworm", "trixie"),
        default="bookworm",
        help="tests/ganeti: the Debian of the nodes, and so the versions of Ganeti (default: bookworm)",
    )
    parser.addoption(
        "--table",
        metavar="FILE",
        help="tests/ganeti: write the table 'what works with each' to FILE",
    )
    parser.addoption(
        "--figures",
        metavar="FILE",
        help="tests/crash: put the figures into the Markdown table in FILE",
    )


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CHROOTFW_BUILD_NATIVE") == "1" and os.environ.get("CHROOTFW_NATIVE") != "0":
        from chrootfw.linux import native

        if native.MODULE is None:  # another way would be tested than that which is meant
            pytest.exit(f"chrootfw.linux._native is not used: {native.REASON}", returncode=4)
    leads = getattr(config.option, "numprocesses", None) and not hasattr(
        config, "workerinput"
    )  # pytest-xdist
    if config.getoption("--kernel") == "5.14" and not leads:
        sys.path.insert(0, str(_TREE / "tests/real"))
        import old_kernel

        config.add_cleanup(old_kernel.install())
    _forget_the_threads_of_the_tests()


@pytest.fixture(scope="session", autouse=True)
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the logs of instances where the tests' own files are, of which pytest takes the oldest away."""
    os.environ["CHROOTFW_LOG_DIR"] = str(tmp_path_factory.mktemp("logs") / "log")


def _forget_the_threads_of_the_tests() -> None:
    """Let a run where no compiler is start children as a command does, by a fork.

    pytest-xdist has threads of its own, which wait and hold no lock. With CHROOTFW_NATIVE=0, and in a test that has
    more threads, an interpreter starts each child, which takes 25 ms.
    """
    from chrootfw.linux import child, native

    if native.MODULE is None and os.environ.get("CHROOTFW_NATIVE") != "0":
        threads = len(os.listdir("/proc/self/task"))
        child._has_threads = lambda: len(os.listdir("/proc/self/task")) > threads


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        tiers.select(config, items)
    if (
        config.getoption("--tracking") == "root"
    ):  # with every hierarchy hidden there is nothing for them
        of_cgroups = [item for item in items if "hierarchy" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=of_cgroups)
        items[:] = [item for item in items if item not in of_cgroups]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.getoption("--quick"):
        tiers.report(terminalreporter)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What is skipped on CI guards nothing: there it is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
