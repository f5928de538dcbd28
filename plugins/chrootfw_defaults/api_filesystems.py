"""The kernel's interfaces inside the root: /proc, /sys, a minimal /dev, and a fresh /run."""

from __future__ import annotations

import chrootfw
from chrootfw import Instance, MountPoint, Node

_DEVICES = (
    Node("null", 0o666, device=(1, 3)),
    Node("zero", 0o666, device=(1, 5)),
    Node("full", 0o666, device=(1, 7)),
    Node("random", 0o666, device=(1, 8)),
    Node("urandom", 0o666, device=(1, 9)),
    Node("tty", 0o666, device=(5, 0)),
    Node("ptmx", link="pts/ptmx"),
    Node("fd", link="/proc/self/fd"),
    Node("stdin", link="/proc/self/fd/0"),
    Node("stdout", link="/proc/self/fd/1"),
    Node("stderr", link="/proc/self/fd/2"),
    Node("pts"),
    Node("shm"),
)


@chrootfw.hookimpl
def chrootfw_mount(instance: Instance) -> list[MountPoint]:
    return [
        MountPoint("/proc", "proc", "proc", ("nosuid", "nodev", "noexec")),
        # Read-only by the mount, not by the file system: the host's /sys stays writable.
        MountPoint("/sys", "sysfs", "sysfs", ("ro", "nosuid", "nodev", "noexec")),
        MountPoint("/dev", "tmpfs", "tmpfs", ("mode=0755", "size=1m", "nosuid", "noexec"), nodes=_DEVICES),
        # gid 5 is tty in every distribution; an own instance, so no other chroot's terminals are in it.
        MountPoint(
            "/dev/pts", "devpts", "devpts", ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5", "nosuid", "noexec")
        ),
        MountPoint("/dev/shm", "tmpfs", "tmpfs", ("mode=1777", "nosuid", "nodev")),
        MountPoint(
            "/run", "tmpfs", "tmpfs", ("mode=0755", "size=20%", "nosuid", "nodev"), nodes=(Node("lock", 0o1777),)
        ),
    ]
