"""Mount the instance's disk as its root: a block device, an image file, or a directory (bound)."""

from __future__ import annotations

import chrootfw
from chrootfw import Instance, MountPoint, Parameter, Root
from chrootfw_defaults import submounts


def _is_type(value: str) -> str | None:
    return (
        None
        if value.isidentifier() or value.replace(".", "").isalnum()
        else "it is not a file system type"
    )


def _are_options(value: list[object]) -> str | None:
    if not all(isinstance(option, str) and option and "," not in option for option in value):
        return "each option is a string of its own"
    return None


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [
        Parameter(
            "fstype", str, None, _is_type, "file system type of the disk; found on it by default"
        ),
        Parameter(
            "mount_options", list, [], _are_options, "options for mounting the disk, as in mount(8)"
        ),
        Parameter("read_only", bool, False, help="mount the disk read-only"),
    ]


@chrootfw.hookimpl
def chrootfw_mount(instance: Instance) -> list[MountPoint] | None:
    if instance.disk is None:
        return None
    options = [*instance.params["mount_options"], *(["ro"] if instance.params["read_only"] else [])]
    if "rbind" not in options:
        return [MountPoint("/", instance.disk, instance.params["fstype"], options)]
    options = ["bind", *(option for option in options if option not in ("bind", "rbind"))]
    root = MountPoint("/", instance.disk, instance.params["fstype"], options)
    try:
        directory = Root("/", seconds=instance.params["disk_timeout"]).resolve(instance.disk)
    except OSError:
        return [root]  # the disk does not answer: that is reported before anything is mounted
    return [root, *submounts.bind_below(directory, "/", options)]
