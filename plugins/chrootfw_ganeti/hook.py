"""Replace Ganeti's own class by chrootfw's when a process imports `ganeti.hypervisor`.

This module is installed beside the `.pth` file that imports it in every Python process of the node,
so it imports nothing before it has to. The packages that it needs are in a directory that is on no
search path. Only the names listed below are found there, and only in Ganeti's processes. If the
installation is broken, no chroot starts by accident with Ganeti's own class.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

MARKER = "/etc/chrootfw/ganeti-hypervisor"
PACKAGES = "/usr/local/lib/chrootfw-ganeti/current"
TARGET = "ganeti.hypervisor"


class _Packages:
    """Find chrootfw's packages in their own directory, and no others."""

    place = ""
    names: frozenset[str] = frozenset()

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        if path is not None or name not in cls.names:
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [cls.place])


class _Replacer:
    """Load `ganeti.hypervisor` as usual, then replace its entry for `chroot`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        if name != TARGET:
            return None
        import importlib.util

        sys.meta_path.remove(_Replacer)  # the next line calls all finders
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, _Replacer)
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            _replace(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one object
        return spec


def _replace(module: Any) -> None:
    try:
        found = _load()
    except BaseException as error:
        found = _broken(module, error)
    module._HYPERVISOR_MAP[module.constants.HT_CHROOT] = found


def _load() -> Any:
    import importlib
    import os
    import stat

    status = os.stat(MARKER)
    if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RuntimeError(MARKER + " can be written by others than root")
    with open(MARKER, encoding="utf-8") as file:
        module, _, name = file.read().strip().partition(":")
    _Packages.place = os.path.realpath(PACKAGES)  # a later installation is for the next process
    _Packages.names = frozenset(entry.partition(".")[0] for entry in os.listdir(_Packages.place))
    sys.meta_path.insert(0, _Packages)
    found = getattr(importlib.import_module(module), name)
    if os.path.basename(sys.argv[0] if sys.argv else "") == "ganeti-noded":
        getattr(importlib.import_module(found.__module__), "warm_up", lambda: None)()
    return found


def _broken(module: Any, error: BaseException) -> Any:
    """Return a class that reports why chrootfw's class cannot be used.

    Every use of the class raises the reason, and noded logs it at each request.
    """
    import logging

    base: Any = module.hv_chroot.hv_base.BaseHypervisor
    why = (
        "No chroot can be managed on this node: chrootfw's class for Ganeti cannot be loaded "
        f"({type(error).__name__}: {ascii(str(error))[1:-1]})."
        " Repair it with 'chrootfw ganeti install', or go back to Ganeti's own class with "
        "'chrootfw ganeti remove'; then"
        " restart ganeti-noded: /usr/lib/ganeti/daemon-util stop ganeti-noded;"
        " /usr/lib/ganeti/daemon-util start ganeti-noded"
    )

    def refuse() -> None:
        logging.error("chrootfw: %s", why)
        raise module.errors.HypervisorError(why)

    class BrokenChrootHypervisor(base):  # type: ignore[misc]  # Ganeti is untyped
        PARAMETERS = module._HYPERVISOR_MAP[module.constants.HT_CHROOT].PARAMETERS
        reason = why

        def __init__(self) -> None:
            refuse()

        @classmethod
        def CheckParameterSyntax(cls, hvparams: Any) -> None:
            refuse()

        @classmethod
        def ValidateParameters(cls, hvparams: Any) -> None:
            refuse()

        @classmethod
        def GetInstanceConsole(cls, *args: Any, **kwargs: Any) -> None:
            refuse()

        @classmethod
        def PowercycleNode(cls, *args: Any, **kwargs: Any) -> None:
            refuse()

    return BrokenChrootHypervisor


sys.meta_path.insert(0, _Replacer)
