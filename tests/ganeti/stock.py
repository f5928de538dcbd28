"""Ganeti's own class, to compare with: as it is, and with the one line repaired that keeps it from stopping anything."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: The line that passes ``None`` to ``RunCmd``, and what 3.1 mended.
STOP = ('timeout_cmd.extend(["chroot", root_dir,', 'timeout_cmd + (["chroot", root_dir,')
INFO = ('raise HypervisorError("Instance %s is not running" % instance_name)', "return None")


def as_released(root_dir: Path) -> Any:
    """Ganeti's ``ChrootManager`` as 3.1 and newer have it; it mounts below ``root_dir``."""
    return _make(root_dir, (INFO,), "chroot_as_released")


def repaired(root_dir: Path) -> Any:
    """The same, able to stop."""
    return _make(root_dir, (INFO, STOP), "chroot_repaired")


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
    module.utils = _GuardedUtils(module.utils)  # type: ignore[attr-defined]
    found = module.ChrootManager
    found._ROOT_DIR = str(root_dir)
    return found


class _GuardedUtils:
    """``ganeti.utils``, but ``fuser -k`` on what is no mount point is not run: it would end the users of the machine's root."""

    def __init__(self, utils: Any) -> None:
        self._utils = utils

    def __getattr__(self, name: str) -> Any:
        return getattr(self._utils, name)

    def RunCmd(self, command: Sequence[str], **how: Any) -> Any:
        if command and command[0] == "fuser" and "-k" in command:
            assert os.path.ismount(command[-1]), f"{command} would kill processes of the machine"
        return self._utils.RunCmd(command, **how)
