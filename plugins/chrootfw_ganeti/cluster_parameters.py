"""Find and reset the parameters in the cluster's configuration that only chrootfw's class knows.

With Ganeti's own class, Ganeti then refuses to add an instance or to change its hypervisor
parameters. Ganeti's commands cannot reset a parameter of the cluster or of an operating system.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from chrootfw.errors import ChrootfwError
from chrootfw_ganeti import move_hook
from chrootfw_ganeti.installation import Node

#: The parameters that `hypervisor.DEFAULTS` adds to Ganeti's own.
NAMES = ("extra_config", "migration_mode")

#: Ganeti writes its configuration once for each instance.
_RESET_SECONDS = 600
_CHROOT = "chroot"
_MASTER = "/var/lib/ganeti/ssconf_master_node"
_CONFIG = "/var/lib/ganeti/config.data"

#: Run by the node's Python. It changes the configuration as Ganeti's jobs do, through wconfd, which
#: hands it to all nodes.
_PROGRAM = """
import json, os, sys
sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[1])))
from ganeti import config
from ganeti.utils import livelock

def take(parameters):
    return [name for name in names if parameters.pop(name, None) is not None]

names = json.loads(sys.argv[2])
lock = livelock.LiveLock("chrootfw")
try:
    configuration = config.GetConfig(None, lock)
    cluster = configuration.GetClusterInfo()
    levels = [cluster.hvparams, *cluster.os_hvp.values()]
    if any([take(level["chroot"]) for level in levels if "chroot" in level]):
        configuration.Update(cluster, lambda *_: None)
    for instance in configuration.GetAllInstancesInfo().values():
        if instance.hypervisor == "chroot" and take(instance.hvparams):
            configuration.Update(instance, lambda *_: None)
finally:
    lock.close()
"""


def find(node: Node) -> list[str]:
    """List the parameters, each with where it is set and its value; the master alone knows them."""
    return [text for text, _ in _list_set(_read_configuration(node))] if is_master(node) else []


def is_master(node: Node) -> bool:
    """Check that this machine is the master of its cluster; an image is not."""
    return node.root == "/" and move_hook.is_this_machine(_read_master(node))


def reset(node: Node, *, force: bool = False) -> list[str]:
    """Take the parameters away from the cluster, its operating systems and its instances.

    Args:
        node: The machine, which must be the master.
        force: Do it although instances that have one of their own are up.

    Returns:
        What was reset, in words.

    Raises:
        ChrootfwError: This machine is not the master, an instance that has one of its own is up, or
            Ganeti refuses.
    """
    if not is_master(node):
        master = _read_master(node)
        raise ChrootfwError(
            "the parameters of a cluster are reset on its master, and this is another machine",
            hint=f"run it on {master}" if master else "gnt-cluster getmaster",
        )
    found = list(_list_set(_read_configuration(node)))
    up = sorted({name for _, name in found if name} if not force else ())
    if up:
        raise ChrootfwError(
            f"{len(up)} {'instances are' if len(up) > 1 else 'instance is'} up with parameters of "
            f"chrootfw's own: {', '.join(up)}",
            hint=f"gnt-instance stop {' '.join(up)}; --force resets them all the same",
        )
    if found:
        assert node.noded is not None
        node.ask(_PROGRAM, node.noded, json.dumps(NAMES), seconds=_RESET_SECONDS)
    return [f"reset {text}" for text, _ in found]


def _read_master(node: Node) -> str:
    try:
        with open(node.path(_MASTER), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _read_configuration(node: Node) -> Mapping[str, Any]:
    try:
        with open(node.path(_CONFIG), encoding="utf-8") as file:
            found: Mapping[str, Any] = json.load(file)
    except (OSError, ValueError) as error:
        raise ChrootfwError(
            f"the cluster's configuration cannot be read: {error}",
            hint="gnt-cluster verify checks it",
        ) from error
    return found


def _list_set(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each parameter in words, with its instance's name if that is up."""
    cluster = configuration["cluster"]
    levels = [("the cluster", cluster.get("hvparams", {}), "")]
    levels += [
        (f"the operating system {name}", level, "")
        for name, level in sorted(cluster.get("os_hvp", {}).items())
    ]
    instances = (
        each for each in configuration["instances"].values() if each.get("hypervisor") == _CHROOT
    )
    levels += [
        (
            each["name"],
            {_CHROOT: each.get("hvparams", {})},
            each["name"] if each.get("admin_state") == "up" else "",
        )
        for each in sorted(instances, key=lambda each: str(each["name"]))
    ]
    for where, level, up in levels:
        for name in NAMES:
            value = level.get(_CHROOT, {}).get(name)
            if value is not None:
                yield f"{name} of {where}: {value!r}", up
