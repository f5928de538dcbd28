"""Ganeti's own class, to compare with: as it is, and with the one line repaired that keeps it from stopping anything."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

#: What is wrong, and what it is to be. The second is mended in 3.1.
REPAIRS = (
    ('timeout_cmd.extend(["chroot", root_dir,', 'timeout_cmd + (["chroot", root_dir,'),
    ('raise HypervisorError("Instance %s is not running" % instance_name)', "return None"),
)


def as_released(root_dir: Path) -> Any:
    """Ganeti's ``ChrootManager`` as its newest release has it; it mounts below ``root_dir``."""
    return _make(root_dir, REPAIRS[1:], "chroot_as_released")


def repaired(root_dir: Path) -> Any:
    """The same, able to stop."""
    return _make(root_dir, REPAIRS, "chroot_repaired")


def _make(root_dir: Path, repairs: tuple[tuple[str, str], ...], name: str) -> Any:
    original = importlib.import_module("ganeti.hypervisor.hv_chroot")
    assert original.__file__
    source = Path(original.__file__).read_text()
    for wrong, right in repairs:
        assert source.count(wrong) == 1, wrong
        source = source.replace(wrong, right)
    module = types.ModuleType(f"ganeti.hypervisor.{name}")
    sys.modules[module.__name__] = module
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    found = module.ChrootManager
    found._ROOT_DIR = str(root_dir)
    return found
