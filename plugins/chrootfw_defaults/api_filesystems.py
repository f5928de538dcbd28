"""The kernel's interfaces inside the root: /proc, /sys, a minimal /dev, and a fresh /run."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterator

import chrootfw
from chrootfw import InputError, Instance, MountPoint, Node, Parameter, Problem
from chrootfw.planning import paths

#: What ``api_filesystems`` may name.
_NAMES = ("proc", "sys", "dev", "run")
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


def _are_names(value: list[object]) -> str | None:
    unknown = [name for name in value if name not in _NAMES]
    return f"{unknown[0]!r} is none of {', '.join(_NAMES)}" if unknown else None


def _split(device: str) -> tuple[str, int | None]:
    """Return the path of a device, and the mode that it is given, if any."""
    path, *rest = paths.split_colons(device)
    try:
        paths.check_absolute(path, what="the path of a device")
    except InputError as error:
        raise ValueError(f"{device!r}: {error.brief}") from error
    if not path.startswith("/dev/"):
        raise ValueError(f"{device!r} does not begin with /dev/")
    if path[len("/dev/") :] in (node.path for node in _DEVICES):
        raise ValueError(f"{device!r}: {path} is there already")
    if len(rest) > 1 or not all(re.fullmatch("0?[0-7]{3}", mode) for mode in rest):
        raise ValueError(f"{device!r}: its mode is not an octal number, such as 0660")
    return path, int(rest[0], 8) if rest else None


def _are_devices(value: list[object]) -> str | None:
    found = set()
    for device in value:
        if not isinstance(device, str):
            return f"{device!r} is not a string PATH[:MODE]"
        path, _ = _split(device)
        if path in found:
            return f"{path} is there twice"
        found.add(path)
    return None


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [
        Parameter(
            "api_filesystems",
            list,
            list(_NAMES),
            _are_names,
            "which of proc, sys, dev and run are mounted; the others are left to the disk",
        ),
        Parameter(
            "devices",
            list,
            [],
            _are_devices,
            'more of the host\'s devices in /dev: "PATH" or "PATH:MODE"',
        ),
    ]


@chrootfw.hookimpl
def chrootfw_pre_start(instance: Instance) -> list[Problem]:
    devices = instance.params["devices"]
    if devices and "dev" not in instance.params["api_filesystems"]:
        brief = "devices are made in the instance's own /dev, which api_filesystems leaves out"
        return [Problem(brief, 'add "dev" to api_filesystems')]
    return [
        Problem(f"the host has no device {path}", f"ls -l {path}")
        for path, _ in map(_split, devices)
        if not _is_device(path)
    ]


def _is_device(path: str) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _more_nodes(devices: list[str]) -> Iterator[Node]:
    """Describe the nodes of devices, with the number and the mode that the host's have."""
    directories = {node.path for node in _DEVICES if node.device is None and node.link is None}
    for path, mode in map(_split, devices):
        if not _is_device(path):
            continue  # reported before anything runs
        name = posixpath.relpath(path, "/dev")
        parts = name.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            directory = "/".join(parts[:count])
            if directory not in directories:
                directories.add(directory)
                yield Node(directory)
        status = os.lstat(path)
        number = os.major(status.st_rdev), os.minor(status.st_rdev)
        given = stat.S_IMODE(status.st_mode) & 0o777 if mode is None else mode
        yield Node(name, given, device=number, block=stat.S_ISBLK(status.st_mode))


@chrootfw.hookimpl
def chrootfw_mount(instance: Instance) -> list[MountPoint]:
    wanted = instance.params["api_filesystems"]
    nodes = (*_DEVICES, *_more_nodes(instance.params["devices"]))
    return [point for point in _all_points(nodes) if point.target.split("/")[1] in wanted]


def _all_points(nodes: tuple[Node, ...]) -> list[MountPoint]:
    return [
        MountPoint("/proc", "proc", "proc", ("nosuid", "nodev", "noexec")),
        # Read-only by the mount, not by the file system: the host's /sys stays writable.
        MountPoint("/sys", "sysfs", "sysfs", ("ro", "nosuid", "nodev", "noexec")),
        MountPoint(
            "/dev", "tmpfs", "tmpfs", ("mode=0755", "size=1m", "nosuid", "noexec"), nodes=nodes
        ),
        # gid 5 is tty in every distribution; an own instance, so no other chroot's terminals are in
        # it.
        MountPoint(
            "/dev/pts",
            "devpts",
            "devpts",
            ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5", "nosuid", "noexec"),
        ),
        MountPoint("/dev/shm", "tmpfs", "tmpfs", ("mode=1777", "nosuid", "nodev")),
        MountPoint(
            "/run",
            "tmpfs",
            "tmpfs",
            ("mode=0755", "size=20%", "nosuid", "nodev"),
            nodes=(Node("lock", 0o1777),),
        ),
    ]
