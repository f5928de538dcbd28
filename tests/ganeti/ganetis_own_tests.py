"""Ganeti's own unit tests, from the source of Debian 12, each program of them in a Python of its own.

This file is also what that Python runs: ``python ganetis_own_tests.py KIND SOURCE NAME RESULT``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, NamedTuple

import ganeti_packages

VERSION = "3.0.2"
SHA256 = "66864ffe105931b2344a562cedc7476a23e3dd2f3a20565388363e7f5aa95761"

STOCK = "stock"
CHROOTFW = "chrootfw"

_PLUGINS = ("chrootfw", "chrootfw_defaults", "chrootfw_ganeti")


class Run(NamedTuple):
    """What became of a program's tests. ``failures``: why, of each that did not pass."""

    tested: str  # the class that Ganeti had for ``chroot`` at the end
    tests: list[str]
    failures: dict[str, str]
    uses: list[str]  # the tests that asked that class for anything, or made an object of it
    left: list[str]  # processes

    @property
    def passed(self) -> set[str]:
        return set(self.tests) - set(self.failures)


def archive() -> Path:
    """Ganeti's source, in the cache."""
    import prepare  # not to be found by the Python that runs Ganeti's tests

    path = f"pool/main/g/ganeti/ganeti_{VERSION}.orig.tar.gz"
    file = prepare.cached(Path(path).name, lambda file: prepare.from_mirror(path, SHA256, file))
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA256, (
        f"{file} is not Ganeti's source: remove it"
    )
    return file


def unpack(place: Path) -> None:
    """Ganeti's tests, and the data that they read."""
    only = f"ganeti-{VERSION}/test"
    subprocess.run(
        [
            "tar",
            "--extract",
            f"--file={archive()}",
            f"--directory={place}",
            "--strip-components=1",
            only,
        ],
        check=True,
    )


def run(kind: str, source: Path, name: str) -> Run:
    """Run the program ``test/py/NAME_unittest.py`` with one of the classes, in a directory of its own for temporary files."""
    cache = ganeti_packages.directory().parent.parent
    with tempfile.TemporaryDirectory(prefix="chrootfw-ganeti-tests-") as scratch:
        result = Path(scratch) / "result"
        (temporary := Path(scratch) / "tmp").mkdir()
        environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(temporary),
            "TMPDIR": str(temporary),
            "XDG_CACHE_HOME": str(cache),
            "TOP_SRCDIR": str(source),
            "PYTHONPATH": os.pathsep.join(_places()),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-W", "ignore", __file__, kind, str(source), name, str(result)]
        with (Path(scratch) / "output").open(
            "w+"
        ) as output:  # no pipe, which a process that is left would hold
            program = subprocess.Popen(
                command, cwd=source, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
            status = program.wait()
            output.seek(0)
            assert status == 0, f"{name} could not be run with {kind}:\n{output.read()}"
        return Run(**json.loads(result.read_text()), left=_session(program.pid))


def _places() -> list[str]:
    """Where the chrootfw is that is tested here."""
    places = []
    for package in _PLUGINS:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        places.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(places))


def _session(leader: int) -> list[str]:
    """The processes of a session, a line each."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        name, _, fields = stat.partition("(")[2].rpartition(")")
        if int(fields.split()[3]) == leader:
            found.append(f"process {pid} ({name})")
    return found


# -- in the Python of its own -------------------------------------------------------------------------------


_used: set[str] = set()  # the tests that use the class
_running: list[str] = []  # the test that runs; none while modules are imported


class _Watched(type):
    """The type of a class that tells when it is used."""

    def __getattribute__(cls, name: str) -> Any:
        _used.update(_running)
        return super().__getattribute__(name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        _used.update(_running)
        return super().__call__(*args, **kwargs)


class _Result(unittest.TestResult):
    """Which tests were run, and what was said of those that did not pass."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = module
        self.tests: list[str] = []
        self.bad: dict[str, str] = {}

    def name(self, test: unittest.TestCase) -> str:
        return test.id().removeprefix(f"{self.module}.")

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.tests.append(self.name(test))
        _running.append(self.name(test))

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        _running.clear()

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.bad[self.name(test)] = f"{err[0].__name__}: {err[1]}"

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.bad[self.name(test)] = f"{err[0].__name__}: {err[1]}"

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.bad[self.name(test)] = f"{err[0].__name__}: {err[1]}"

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.bad[self.name(test)] = f"skipped: {reason}"

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self.bad[self.name(test)] = "failed, as its author knew"

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self.bad[self.name(test)] = "passed, which its author did not expect"


def _main(kind: str, source: str, name: str, result: str) -> None:
    del sys.path[0]  # none of the modules beside this one is to be taken for Ganeti's
    ganeti_packages.use()
    if kind == CHROOTFW:
        _hook()
    hypervisor = importlib.import_module("ganeti.hypervisor")
    classes, chroot = hypervisor._HYPERVISOR_MAP, hypervisor.constants.HT_CHROOT
    watched = _Watched(
        classes[chroot].__name__, (classes[chroot],), {"__module__": classes[chroot].__module__}
    )
    classes[chroot] = hypervisor.hv_chroot.ChrootManager = watched  # a test calls it by that name

    program = Path(source) / f"test/py/{name}_unittest.py"
    sys.argv = [str(program)]
    sys.path[:0] = [str(program.parent), str(Path(source) / "test/py")]
    importlib.import_module("testutils")._SetupLogging(verbose=False)  # as Ganeti's runner does
    module_name = program.stem.replace(".", "_")
    spec = importlib.util.spec_from_file_location(module_name, program)
    assert spec is not None and spec.loader is not None
    sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    outcome = _Result(module_name)
    unittest.defaultTestLoader.loadTestsFromModule(module).run(outcome)

    assert len(set(outcome.tests)) == outcome.testsRun, "two tests have the same name"
    said = {
        "tested": f"{classes[chroot].__module__}:{classes[chroot].__name__}",
        "tests": list(
            dict.fromkeys([*outcome.tests, *outcome.bad])
        ),  # a setUpClass that fails was no test
        "failures": outcome.bad,
        "uses": sorted(_used),
    }
    Path(result).write_text(json.dumps(said))


def _hook() -> None:
    """What an installation does to a process: its hook, but for the files that it reads on a node."""
    from chrootfw_ganeti import hook

    hook._load = lambda: importlib.import_module("chrootfw_ganeti.hypervisor").ChrootHypervisor


if __name__ == "__main__":
    _main(*sys.argv[1:])
