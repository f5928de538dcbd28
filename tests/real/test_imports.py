"""What each verb imports of chrootfw and of Python, with an instance that runs: all of it is written down here."""

from __future__ import annotations

import subprocess
import sys

import driving
import pytest

#: What every verb takes.
_ALWAYS = {"chrootfw", "errors", "planning", "planning.paths", "cli"}
_LOOKING = _ALWAYS | {
    "intents", "inventory", "system", "system.cgroups", "system.mounts", "system.processes", "system.store", "values", "views",
}  # fmt: skip
_CALLS = {"system.call_lists", "system.children", "system.deadlines", "system.runner", "system.syscalls"}
_SPAWNING = {"planning.privileges", "system.isolation", "system.spawn"}
_ENTERING = {"entering", "system.root", "system.users"}
_VERB = _LOOKING | _CALLS | _SPAWNING | _ENTERING | {
    "config", "debts", "deprecated", "hook_calls", "hookspecs", "installed", "interrupts", "jobs", "killing", "log", "model",
    "mounting", "planning.kill_plan", "planning.mount_order", "planning.transitions", "plugins", "runtime", "scripts",
    "stages", "starting", "system.keeper", "system.listmount", "system.namespaces", "stopping", "system.disks", "system.holders", "system.statuses", "system.loops", "system.trees", "system.umount",
    "unmounting",
}  # fmt: skip

#: Of chrootfw, by the command line.
EXPECTED = {
    "--version": _ALWAYS,
    "list": _LOOKING | {"display"},
    "info web1": _LOOKING
    | _CALLS
    | {"display", "system.disks", "system.holders", "system.loops", "system.sock_diag", "system.statuses"},
    "ps web1": _LOOKING
    | _CALLS
    | {
        "display",
        "system.disks",
        "system.holders",
        "system.listmount",
        "system.loops",
        "system.sock_diag",
        "system.statuses",
    },
    "exec web1 -- /bin/true": _LOOKING | _CALLS | _SPAWNING | _ENTERING,
    "stop web1": _VERB,
    "start web1": _VERB,
}

#: Of Python, each worth milliseconds; what all verbs do without, and what those do without that ask no plugin.
NEVER = {"argparse", "importlib.metadata", "logging", "datetime", "difflib", "psutil", "asyncio", "email", "pathlib"}
NOT_QUICKLY = {
    "attr",
    "pluggy",
    "enum",
    "re",
    "json",
    "functools",
    "collections",
    "typing",
    "signal",
    "socket",
    "inspect",
}


@pytest.mark.parametrize("verb", EXPECTED)
def test_a_verb_imports_what_it_needs(verb: str, web1: driving.Chroot, cli: driving.Cli, tracking: str) -> None:
    if verb != "start web1":
        web1.start()
    program = (
        "import sys\n"
        "from chrootfw import cli\n"
        f"status = cli.main({verb.split()!r})\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", _with_packages(program)],
        env=cli.environment(), check=True, capture_output=True, text=True,
    )  # fmt: skip
    modules = set(done.stderr.split())
    ours = {name.removeprefix("chrootfw.") for name in modules if name.partition(".")[0] == "chrootfw"}
    expected = EXPECTED[verb]
    if tracking == "root" and "inventory" in expected:  # own processes are found by their root directory: statx(2)
        expected = expected | {
            "system.holders",
            "system.syscalls",
            "system.statuses",
            "system.runner",
            "system.call_lists",
        }
    assert ours - expected == set()
    unneeded = NEVER | (NOT_QUICKLY if "chrootfw.plugins" not in modules else set())
    assert modules & (unneeded - ({"datetime"} if "tomllib" in modules else set())) == set()
    assert ("ctypes" in modules) == ("chrootfw.system.syscalls" in modules)


def _with_packages(program: str) -> str:
    """Without ``site``, whose .pth files import what they like, but with where the packages are."""
    return f"import sys\nsys.path[:] = {sys.path!r}\n{program}"
