"""In which order mounts go up and come down, and whether somebody else's order will do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from chrootfw.errors import PlanError
from chrootfw.model import Mount, MountPoint, Omit
from chrootfw.planning import paths


def parents_first(points: Iterable[MountPoint]) -> list[MountPoint]:
    """Mount points in the order in which to mount them: auxiliary layers first, then the root's tree,
    each parent before what lies below it; equals keep their order."""
    return sorted(points, key=lambda p: (p.at == "root", p.at, len(paths.components(p.target))))


def merge(
    answers: Iterable[tuple[str, MountPoint | Omit]], who: Callable[[str], str] = "plugin {}".format
) -> list[tuple[str, MountPoint]]:
    """``(plugin, answer)`` pairs, asked first first, merged by place: the first for a place wins.

    ``who`` describes a plugin, for blame. Returns ``(plugin, mount point)`` pairs, parents first. Raises ``PlanError``
    unless exactly one root (``/``) is left.
    """
    chosen: dict[tuple[str, str], tuple[str, MountPoint | Omit]] = {}
    for plugin, answer in answers:
        chosen.setdefault((answer.at, answer.target), (plugin, answer))
    points = {id(a): (plugin, a) for plugin, a in chosen.values() if isinstance(a, MountPoint)}
    if not any(p.at == "root" and p.target == "/" for _, p in points.values()):
        omitted = chosen.get(("root", "/"))
        if omitted:
            raise PlanError(f"{who(omitted[0])} leaves out the root mount (/), so there is nothing to start")
        raise PlanError(
            "no plugin answered with a mount point for the root (/)",
            hint="give the instance a disk, or enable the plugin that brings one",
        )
    for plugin, point in points.values():
        if point.at != "root" and (point.at, "/") not in {(p.at, p.target) for _, p in points.values()}:
            raise PlanError(f"{who(plugin)} mounts {point.describe()}, but nothing is mounted on {point.at}/")
    return [points[id(point)] for point in parents_first(p for _, p in points.values())]


def deepest_first(mounts: Sequence[Mount]) -> list[Mount]:
    """Children before parents; then deeper targets first; then the newest first (the last in the table).

    A mount over a directory that hides an older mount point must go before what it hides: for that the
    shallower target is newer, its parent is the same, and the caller repeats until nothing is left.
    """
    position = {mount.id: index for index, mount in enumerate(mounts)}
    by_id = {mount.id: mount for mount in mounts}
    depth = {mount.id: _generation(mount, by_id) for mount in mounts}
    return sorted(
        mounts,
        key=lambda m: (depth[m.id], len(paths.components(m.target)), position[m.id]),
        reverse=True,
    )


def _generation(mount: Mount, by_id: dict[int, Mount]) -> int:
    """How many of the given mounts lie between this one and the top of its tree."""
    generation, seen = 0, {mount.id}
    while (parent := by_id.get(mount.parent)) is not None and parent.id not in seen:
        seen.add(parent.id)
        generation, mount = generation + 1, parent
    return generation


def check_unmount_order(mounts: Sequence[Mount], order: Sequence[Mount]) -> str | None:
    """``None`` if ``order`` is a children-first permutation of ``mounts``, else what is wrong with it."""
    given = {mount.id: mount for mount in mounts}
    seen: set[int] = set()
    for mount in order:
        if (known := given.get(mount.id)) is not mount and known != mount:
            return f"it invents a mount that is not there: {mount.target} (mount ID {mount.id})"
        if mount.id in seen:
            return f"it names {mount.target} (mount ID {mount.id}) twice"
        seen.add(mount.id)
    for mount in mounts:
        if mount.id not in seen:
            return f"it drops {mount.target} (mount ID {mount.id})"
    place = {mount.id: index for index, mount in enumerate(order)}
    for mount in order:
        parent = given.get(mount.parent)
        if parent is not None and parent.id != mount.id and place[parent.id] < place[mount.id]:
            return f"it puts {parent.target} before {mount.target}, which is mounted on it"
    return None
