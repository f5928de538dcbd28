"""Enter the root by chroot(2), as the root user; by pivot_root(2) if it has namespaces."""

from __future__ import annotations

import chrootfw
from chrootfw import Entry, Instance, Parameter

#: Without a pid namespace, which needs what `hardened` does to /proc.
_NAMESPACES = ("ipc", "uts", "cgroup")


def _are_namespaces(value: list[object]) -> str | None:
    unknown = [word for word in value if word not in _NAMESPACES]
    if not unknown:
        return None
    return f"{unknown[0]!r} is not one of {', '.join(_NAMESPACES)}; hardened has a pid namespace"


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [
        Parameter(
            "namespaces",
            list,
            [],
            _are_namespaces,
            "the instance's own namespaces beside that of mounts, of ipc, uts and cgroup; with "
            "ipc, System V shared memory, semaphores and queues end with its last process",
        )
    ]


@chrootfw.hookimpl
def chrootfw_enter(instance: Instance) -> Entry:
    namespaces = tuple(dict.fromkeys(instance.params.get("namespaces", ())))
    return Entry(method="pivot_root", namespaces=namespaces) if namespaces else Entry()
