"""The frozen plugins, one for each minor version, and the next one, as values (frozen/README.md)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import chrootfw

PLACE = Path(__file__).with_name("frozen")


class Frozen(NamedTuple):
    """What was frozen with one minor version."""

    version: str
    directory: Path

    def module(self) -> Any:
        """The module of its plugin, under its own name: its Steps are found by that."""
        if str(self.directory) not in sys.path:
            sys.path.append(str(self.directory))
        return importlib.import_module(f"plugin_{self.directory.name}")

    def instance(self, disk: Path, **params: Any) -> chrootfw.Instance:
        """The instance with which it is tried."""
        return chrootfw.Instance("web1", disk=disk, params={**self.module().PARAMS, **params})

    def expected(self, what: str) -> list[str]:
        """The lines of ``plan`` or ``life``."""
        return (self.directory / f"{what}.txt").read_text().splitlines()


def directory_of(version: str) -> Path:
    """Where the plugin of a minor version is, or has to be."""
    return PLACE / f"v{version.replace('.', '_')}"


def _versions() -> list[Path]:
    found = PLACE.glob("v*")
    return sorted(found, key=lambda path: [int(part) for part in path.name[1:].split("_")])


ALL = [
    *(Frozen(path.name[1:].replace("_", "."), path) for path in _versions()),
    Frozen("next", PLACE / "next"),
]
