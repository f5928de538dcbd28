"""What modules import: planning touches nothing, and no codec is loaded late."""

from __future__ import annotations

import ast
from pathlib import Path

import chrootfw

PACKAGE = Path(chrootfw.__file__).parent


def modules() -> list[str]:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            found.append(name)
    return found


def test_planning_cannot_touch_the_system() -> None:
    for file in (PACKAGE / "planning").glob("*.py"):
        modules = {
            name
            for node in ast.walk(ast.parse(file.read_text()))
            for name in (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [getattr(node, "module", None)]
            )
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert not modules & {"os", "psutil", "pluggy", "subprocess", "pathlib", "shutil"}, (
            file.name
        )


def test_no_codec_is_loaded_late() -> None:
    """The interpreter has loaded UTF-8 at its start. Any other is imported by the first open(), and that can fail."""
    for module in modules():
        path = PACKAGE / Path(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.keyword)
                and node.arg == "encoding"
                and isinstance(node.value, ast.Constant)
            ):
                assert node.value.value == "utf-8", f"{file}:{node.lineno}"
