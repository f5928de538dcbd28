"""The plugin for pytest: what it costs, what it brings, and how the conformance suite looks in it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import chrootfw
import chrootfw_defaults.disk

pytest_plugins = ["pytester"]

TREE = Path(__file__).resolve().parents[2]
PLUGIN = ("-p", "chrootfw.testing.fixtures")

#: As pip makes of the entry points in pyproject.toml.
ENTRY_POINTS = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["entry-points"]


@pytest.fixture
def kit(pytester, monkeypatch):
    """pytest in a directory of its own, which finds the packages of these tests."""
    places = {
        str(Path(module.__file__).parents[1]) for module in (chrootfw, chrootfw_defaults.disk)
    }
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = -p no:cacheprovider\n")
    return pytester


def test_a_pytest_that_has_nothing_to_do_with_chrootfw_pays_nothing():
    program = (
        f"import sys\nsys.path.insert(0, {str(Path(chrootfw.__file__).parents[1])!r})\n"
        "import pytest\nbefore = set(sys.modules)\n"
        "import chrootfw.testing.fixtures\nprint(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["chrootfw", "chrootfw.testing", "chrootfw.testing.fixtures"]


@pytest.mark.parametrize(
    "arguments", [PLUGIN, (), (*PLUGIN, *PLUGIN)], ids=["named", "installed", "twice"]
)
@pytest.mark.parametrize("installed", [True, False])
def test_the_fixtures_are_there(kit, arguments, installed):
    """By name, by entry point, and by both."""
    if not installed and not arguments:
        arguments = PLUGIN
    if installed:
        information = kit.mkdir("site") / "kit_under_test-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: kit-under-test\nVersion: 1.0\n"
        )
        lines = [f"{name} = {value}" for name, value in ENTRY_POINTS["pytest11"].items()]
        (information / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines]) + "\n")
        kit.syspathinsert(kit.path / "site")
        os.environ["PYTHONPATH"] += os.pathsep + str(kit.path / "site")
    kit.makepyfile(
        """
        import chrootfw

        def test_it(recording_runtime):
            record = recording_runtime().start(chrootfw.Instance("web1", disk="/srv/web1.img"))
            assert record.steps[-1].stage == "init-start"
        """
    )
    kit.runpytest_subprocess(*arguments).assert_outcomes(passed=1)


def test_each_fixture_says_what_it_is(kit):
    said = kit.runpytest_subprocess(*PLUGIN, "--fixtures").stdout.str()
    assert "recording_runtime -- " in said
    assert "real_chroot -- " in said


BAD = """
    import chrootfw
    from chrootfw.testing import Conformance

    class Mine:
        @chrootfw.hookimpl
        def chrootfw_unmount_ordering(self, mounts):
            return mounts

        @chrootfw.hookimpl(wrapper=True)
        def chrootfw_around_stage(self):
            try:
                yield
            except Exception:
                pass

    class TestMine(Conformance):
        plugin = Mine
"""


def test_the_suite_is_a_handful_of_tests_with_telling_names(kit):
    kit.makepyfile(BAD)
    result = kit.runpytest_subprocess(*PLUGIN, "-v")
    result.assert_outcomes(passed=7, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*::TestMine::test_it_can_be_loaded PASSED*",
            "*::TestMine::test_its_answers_have_the_right_types PASSED*",
            "*::TestMine::test_its_wrappers_pass_on_what_they_wrap FAILED*",
            "*::TestMine::test_it_answers_without_waiting PASSED*",
            "*::TestMine::test_it_changes_nothing PASSED*",
            "*::TestMine::test_it_answers_the_same_twice PASSED*",
            "*::TestMine::test_its_steps_can_be_undone_by_another_process PASSED*",
            "*::TestMine::test_its_unmount_orderings_are_legal FAILED*",
            "*::TestMine::test_its_kill_strategies_are_legal PASSED*",
            "E*AssertionError: plugin Mine *chrootfw_around_stage *swallows what the stage raises*",
            "E*AssertionError: plugin Mine *chrootfw_unmount_ordering *which is mounted on it*",
        ]
    )
    assert "conformance.py" not in result.stdout.str(), "no line of the suite's own in a traceback"


def test_the_suite_itself_is_not_collected(kit):
    kit.makepyfile("from chrootfw.testing import Conformance\ndef test_other(): pass")
    kit.runpytest_subprocess(*PLUGIN).assert_outcomes(passed=1)


def test_two_suites_in_one_file(kit):
    kit.makepyfile(
        """
        import chrootfw_defaults.binds, chrootfw_defaults.disk
        from chrootfw.testing import Conformance

        class TestDisk(Conformance):
            plugin = chrootfw_defaults.disk

        class TestBinds(Conformance):
            plugin = chrootfw_defaults.binds
        """
    )
    kit.runpytest_subprocess(*PLUGIN).assert_outcomes(passed=18)


#: Run by root, and as somebody else if need be.
REAL = "def test_it(real_chroot):\n    real_chroot()\n"


def test_without_root_a_real_chroot_is_skipped_and_says_how_it_would_not_be(kit):
    kit.makepyfile(
        f"""
        import os
        import pytest
        from chrootfw.testing import real

        @pytest.fixture(autouse=True)
        def nobody(monkeypatch):
            monkeypatch.setattr(os, "geteuid", lambda: 65534)

        {REAL.replace(chr(10), chr(10) + "        ")}
        """
    )
    result = kit.runpytest_subprocess(*PLUGIN, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["*unshare --map-root-user --pid --fork --mount-proc --net python3 -m pytest*"]
    )


def test_without_a_busybox_it_says_what_to_install(kit):
    kit.makepyfile(
        f"""
        import os
        import pytest
        from chrootfw.testing import tiny_root

        @pytest.fixture(autouse=True)
        def no_busybox(monkeypatch):
            monkeypatch.setattr(os, "geteuid", lambda: 0)
            monkeypatch.setattr(tiny_root, "find_busybox", lambda: "")

        {REAL.replace(chr(10), chr(10) + "        ")}
        """
    )
    result = kit.runpytest_subprocess(*PLUGIN, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*install it: apt-get install busybox-static*"])
