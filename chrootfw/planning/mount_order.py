"""Sort mounts for mounting and for unmounting, and check the order that a plugin wants.

The default plugin `chrootfw_defaults.deepest_first` answers the hook `chrootfw_unmount_ordering`
with `sort_for_unmounting`; `hooks.dispatch` checks every answer with `check_unmount_order`; and
`lifecycle.unmount` unmounts in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from chrootfw.errors import PlanError, nearest
from chrootfw.model import Mount, MountPoint, Omit
from chrootfw.planning import paths


def sort_for_mounting(points: Iterable[MountPoint]) -> list[MountPoint]:
    """Sort mount points into the order in which to mount them.

    Auxiliary layers come first, then the root's tree. Each parent comes before its children; equals
    keep their order.
    """
    return sorted(points, key=lambda p: (p.at == "root", p.at, len(paths.components(p.target))))


def merge(
    answers: Iterable[tuple[str, MountPoint | Omit]], who: Callable[[str], str] = "plugin {}".format
) -> list[tuple[str, MountPoint]]:
    """Merge the answers of plugins: the first answer for a target wins.

    Args:
        answers: Pairs of a plugin's name and its answer, in the order of the calls.
        who: Returns the description of a plugin, for errors.

    Returns:
        Pairs of a plugin's name and its mount point, parents first.

    Raises:
        PlanError: No root mount (`/`) is left, an auxiliary layer has no mount on its own top, or
            a mount would cover a device.
    """
    chosen: dict[tuple[str, str], tuple[str, MountPoint | Omit]] = {}
    for plugin, answer in answers:
        chosen.setdefault((answer.at, answer.target), (plugin, answer))
    points = {id(a): (plugin, a) for plugin, a in chosen.values() if isinstance(a, MountPoint)}
    if not any(p.at == "root" and p.target == "/" for _, p in points.values()):
        omitted = chosen.get(("root", "/"))
        if omitted:
            raise PlanError(
                f"{who(omitted[0])} leaves out the root mount (/), so there is nothing to start"
            )
        raise PlanError(
            "no plugin answered with a mount point for the root (/)",
            hint="give the instance a disk, or enable the plugin that brings one",
            has_no_root=True,
        )
    for plugin, point in points.values():
        if point.at != "root" and (point.at, "/") not in {
            (p.at, p.target) for _, p in points.values()
        }:
            raise PlanError(
                f"{who(plugin)} mounts {point.describe()}, but nothing is mounted on {point.at}/"
            )
    _check_devices(points.values(), who)
    return [points[id(point)] for point in sort_for_mounting(p for _, p in points.values())]


def find_idle(answers: Iterable[tuple[str, MountPoint | Omit]]) -> list[tuple[str, str]]:
    """Find the answers that can have no effect: a slip of a plugin, not a decision of another.

    Args:
        answers: Pairs of a plugin's name and its answer, in the order of the calls.

    Returns:
        Pairs of a plugin's name and a sentence.
    """
    answers = list(answers)
    mounted = {(each.at, each.target) for _, each in answers if isinstance(each, MountPoint)}
    places = [target for at, target in mounted if at == "root"]
    seen: set[tuple[str, str, str]] = set()
    idle = []
    for plugin, each in answers:
        place = each.target if each.at == "root" else f"{each.target} of {each.at}"
        if (plugin, each.at, each.target) in seen:
            idle.append((plugin, f"answers twice for {place}: the first answer counts"))
        elif isinstance(each, Omit) and (each.at, each.target) not in mounted:
            near = nearest(each.target, places)
            meant = f"; did it mean {near}?" if near and each.at == "root" else ""
            idle.append((plugin, f"leaves out {place}, which nobody mounts{meant}"))
        seen.add((plugin, each.at, each.target))
    return idle


def _check_devices(points: Iterable[tuple[str, MountPoint]], who: Callable[[str], str]) -> None:
    """Check that no mount covers a device that is made in the mount above.

    Raises:
        PlanError: One does.
    """
    points = list(points)
    for _, above in points:
        for node in (node for node in above.nodes if node.device is not None):
            base = above.target.rstrip("/")
            device = f"{base}/{node.path}"
            for plugin, point in points:
                is_on_it = point.at == above.at and point.target.startswith(f"{base}/")
                if is_on_it and device.startswith(f"{point.target}/"):
                    raise PlanError(
                        f"the device {device} would be covered: {who(plugin)} mounts"
                        f" {point.describe()}",
                        hint=f"take {device} out of the parameter devices",
                    )


def sort_for_unmounting(mounts: Sequence[Mount]) -> list[Mount]:
    """Sort mounts for unmounting: children before parents, then deeper targets, then newer mounts.

    A mount over a directory may hide an older mount point, and must go first. The covering mount
    has the shallower target and the same parent, so the caller repeats until nothing is left.

    Args:
        mounts: The mounts, in the order of the mount table (the newest last).
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
    """Count the given mounts between a mount and the top of its tree."""
    generation, seen = 0, {mount.id}
    while (parent := by_id.get(mount.parent)) is not None and parent.id not in seen:
        seen.add(parent.id)
        generation, mount = generation + 1, parent
    return generation


def check_unmount_order(mounts: Sequence[Mount], order: Sequence[Mount]) -> str | None:
    """Check that an order is a permutation of the given mounts, with children first.

    Args:
        mounts: The mounts that have to be unmounted.
        order: The order that a plugin answered with.

    Returns:
        What is wrong with the order, as a clause; `None` if it is valid.
    """
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
