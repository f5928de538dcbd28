"""Binds what ``binds`` lists into the root: ``SRC:DST`` or ``SRC:DST:ro``."""

from __future__ import annotations

import chrootfw
from chrootfw import InputError, Instance, MountPoint, Parameter
from chrootfw.planning import paths


def _split(bind: str) -> tuple[str, str, tuple[str, ...]]:
    source, colon, rest = bind.partition(":")
    target, mode_colon, mode = rest.partition(":")
    if not colon or (mode_colon and mode not in ("ro", "rw")):
        raise ValueError(f"{bind!r} is not SRC:DST or SRC:DST:ro")
    for path, what in ((source, "source"), (target, "target")):
        try:
            paths.check_absolute(path, what=f"its {what}")
        except InputError as error:
            raise ValueError(f"{bind!r}: {error.brief}") from error
    if target == "/":
        raise ValueError(f"{bind!r} would cover the root itself")
    return source, target, ("bind", "ro") if mode == "ro" else ("bind",)


def _are_binds(value: list[object]) -> str | None:
    targets = set()
    for bind in value:
        if not isinstance(bind, str):
            return f"{bind!r} is not a string SRC:DST[:ro]"
        _, target, _ = _split(bind)
        if target in targets:
            return f"two of them have the target {target}"
        targets.add(target)
    return None


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [Parameter("binds", list, [], _are_binds, 'host files and directories to bind: "SRC:DST" or "SRC:DST:ro"')]


@chrootfw.hookimpl
def chrootfw_mount(instance: Instance) -> list[MountPoint]:
    return [
        MountPoint(target, source, None, options) for source, target, options in map(_split, instance.params["binds"])
    ]
