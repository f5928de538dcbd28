"""The house: each room imports only lower ones, and the quick verbs import little."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import chrootfw

PACKAGE = Path(chrootfw.__file__).parent

#: From the ground up. A room may import rooms of a lower floor, and of its own floor those named before it.
FLOORS = (
    ("errors", "log", "planning", "planning.paths", "planning.privileges", "values", "views"),
    ("model",),
    ("planning.mount_order", "planning.kill_plan", "planning.transitions"),
    (
        "system",
        "system.mounts",
        "system.syscalls",
        "system.listmount",
        "system.runner",
        "system.call_lists",
        "system.children",
        "system.isolation",
        "system.spawn",
        "system.deadlines",
        "system.keeper",
        "system.namespaces",
    ),
    ("system.root", "system.cgroups", "system.terminal"),
    (
        "system.loops",
        "system.disks",
        "system.store",
        "system.sock_diag",
        "system.umount",
        "system.processes",
        "system.statuses",
        "system.holders",
        "system.users",
        "system.trees",
    ),
    ("installed", "hookspecs", "typed", "hook_calls", "deprecated", "plugins", "stages", "steps", "interrupts"),
    ("intents", "inventory", "entering", "config"),
    ("jobs", "pipes", "scripts", "killing", "unmounting", "debts", "mounting", "starting", "stopping"),
    ("node", "verify", "runtime"),
    (
        "testing",
        "testing.root_tree",
        "testing.records",
        "testing.recorded_life",
        "testing.recording",
        "testing.real",
        "testing.random_cases",
        "testing.comparing",
        "testing.examination",
        "testing.conformance",
        "testing.fixtures",
    ),
    ("display", "demo_files", "demo", "scaffold", "cli", "__main__"),
)
RANK = {room: number for number, room in enumerate(room for floor in FLOORS for room in floor)}

#: What a lean room must not import when it is imported: each costs milliseconds.
HEAVY = {
    "attr", "attrs", "pluggy", "psutil", "typing", "subprocess", "importlib.metadata", "logging", "dataclasses", "pathlib",
    "contextlib", "chrootfw.model", "chrootfw.plugins", "chrootfw.stages", "chrootfw.runtime",
}  # fmt: skip


def rooms() -> list[str]:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            found.append(name)
    return found


def imported(room: str) -> set[str]:
    """The rooms that a room imports at run time, at its top or when a function is called."""
    path = PACKAGE / Path(*room.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "chrootfw":
            base = (node.module or "").removeprefix("chrootfw").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                found.add(inner if inner in RANK else base)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text()))
    return found - {""}


def test_every_room_has_its_floor() -> None:
    assert set(rooms()) == set(RANK)


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_lower_ones(room: str) -> None:
    above = {other for other in imported(room) if RANK[other] >= RANK[room]}
    assert not above, f"{room} imports {above}, which stand above it"


def test_planning_cannot_touch_the_system() -> None:
    for file in (PACKAGE / "planning").glob("*.py"):
        modules = {
            name
            for node in ast.walk(ast.parse(file.read_text()))
            for name in (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
            )
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert not modules & {"os", "psutil", "pluggy", "subprocess", "pathlib", "shutil"}, file.name


def test_no_codec_is_loaded_late() -> None:
    """The interpreter has loaded UTF-8 at its start. Any other is imported by the first open(), and that can fail."""
    for room in rooms():
        path = PACKAGE / Path(*room.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "encoding" and isinstance(node.value, ast.Constant):
                assert node.value.value == "utf-8", f"{file}:{node.lineno}"


@pytest.mark.parametrize(
    ("verb", "more"),
    [
        (["--version"], {"argparse", "ctypes", "json", "re"}),
        (["list"], set()),
        (["list", "--json"], set()),
        (["info", "nothing"], set()),
        (["ps", "nothing"], set()),
        (["exec", "nothing", "--", "/bin/true"], set()),
    ],
)
def test_a_quick_verb_imports_nothing_heavy(verb: list[str], more: set[str], tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from chrootfw import cli\n"
        f"cli.main({verb!r})\n"
        "print(*sorted(set(sys.modules) - before), sep='\\n')"
    )
    env = {**os.environ, "CHROOTFW_RUN_DIR": str(tmp_path / "run"), "CHROOTFW_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", _with_path(program)], env=env, capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.split())
    assert "chrootfw.cli" in modules
    assert not modules & (HEAVY | more)


def _with_path(program: str) -> str:
    """Without ``site``, whose .pth files import what they like."""
    return f"import sys\nsys.path.insert(0, {str(PACKAGE.parent)!r})\n{program}"
