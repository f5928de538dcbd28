"""For every suite: the packages of the tree can be imported, and the options are known."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

_TREE = Path(__file__).resolve().parent.parent

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
    parser.addoption("--whole", action="store_true", help="tests/crash: whole campaigns, not samples of them")
    parser.addoption("--table", metavar="FILE", help="tests/ganeti: write the table 'what works with each' to FILE")
    parser.addoption("--figures", metavar="FILE", help="tests/crash: put the figures into the Markdown table in FILE")


def pytest_configure(config: pytest.Config) -> None:
    leads = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")  # pytest-xdist
    if config.getoption("--kernel") == "5.14" and not leads:
        sys.path.insert(0, str(_TREE / "tests/real"))
        import old_kernel

        config.add_cleanup(old_kernel.install())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What is skipped on CI guards nothing: there it is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
