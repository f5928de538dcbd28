"""Enters the root by chroot(2), as root."""

from __future__ import annotations

import chrootfw
from chrootfw import Entry


@chrootfw.hookimpl
def chrootfw_enter() -> Entry:
    return Entry(method="chroot")
