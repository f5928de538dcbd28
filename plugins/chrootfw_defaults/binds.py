"""Bind what ``binds`` lists into the root: ``SRC:DST`` or ``SRC:DST:OPTIONS``."""

from __future__ import annotations

from collections.abc import Iterator

import chrootfw
from chrootfw import InputError, Instance, MountPoint, Parameter
from chrootfw.planning import paths
from chrootfw_defaults import submounts

#: The options that a bind may have.
_OPTIONS = ("ro", "rw", "rbind", "suid", "nosuid", "dev", "nodev", "exec", "noexec")


def _split(bind: str) -> tuple[str, str, tuple[str, ...]]:
    parts = paths.split_colons(bind)
    if len(parts) not in (2, 3):
        raise ValueError(f"{bind!r} is not SRC:DST or SRC:DST:OPTIONS; a colon in a path is \\:")
    source, target = parts[:2]
    options = parts[2].split(",") if len(parts) == 3 else []
    for option in options:
        if option not in _OPTIONS:
            raise ValueError(
                f"{bind!r}: {option!r} is not an option of a bind; there are {', '.join(_OPTIONS)}"
            )
    for path, what in ((source, "source"), (target, "target")):
        try:
            paths.check_absolute(path, what=f"its {what}")
        except InputError as error:
            raise ValueError(f"{bind!r}: {error.brief}") from error
    if target == "/":
        raise ValueError(f"{bind!r} would cover the root itself")
    return source, target, tuple(options)


def _are_binds(value: list[object]) -> str | None:
    targets = set()
    for bind in value:
        if not isinstance(bind, str):
            return f"{bind!r} is not a string SRC:DST[:OPTIONS]"
        _, target, _ = _split(bind)
        if target in targets:
            return f"two of them have the target {target}"
        targets.add(target)
    return None


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [
        Parameter(
            "binds",
            list,
            [],
            _are_binds,
            'host files and directories to bind: "SRC:DST" or "SRC:DST:OPTIONS"',
        )
    ]


@chrootfw.hookimpl
def chrootfw_mount(instance: Instance) -> list[MountPoint]:
    return [point for bind in instance.params["binds"] for point in _make_points(bind)]


def _make_points(bind: str) -> Iterator[MountPoint]:
    source, target, words = _split(bind)
    options = ("bind", *(word for word in words if word not in ("rbind", "rw")))
    yield MountPoint(target, source, None, options)
    if "rbind" in words:
        yield from submounts.bind_below(source, target, options)
