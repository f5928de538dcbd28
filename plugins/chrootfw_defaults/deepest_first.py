"""Unmount the deepest mount point first."""

from __future__ import annotations

from collections.abc import Sequence

import chrootfw
from chrootfw import Mount
from chrootfw.planning import mount_order


@chrootfw.hookimpl
def chrootfw_unmount_ordering(mounts: Sequence[Mount]) -> list[Mount]:
    root = [mount for mount in mounts if mount.at == "root"]
    layers = [mount for mount in mounts if mount.at != "root"]
    return [*mount_order.sort_for_unmounting(root), *mount_order.sort_for_unmounting(layers)]
