"""The command `chrootfw ganeti install|remove|status`."""

from __future__ import annotations

import sys

from chrootfw.cli import render
from chrootfw.errors import ChrootfwError, InputError
from chrootfw_ganeti import cluster_parameters, inspection, installation, places
from chrootfw_ganeti.installation import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> int:
    """Run one of the three actions.

    Returns:
        The exit status.
    """
    if options.cluster and options.what != "remove":
        raise InputError("--cluster belongs to remove", hint="chrootfw ganeti remove --cluster")
    node = Node(options.root)
    if options.what == "status":
        return _status(node, as_json=options.json)
    if options.what == "install":
        done = installation.install(node, force=options.force)
    else:
        done = _remove(node, force=options.force, of_cluster=options.cluster)
    if options.json:
        render.show_json({"changed": done})
        return 0
    for line in done:
        render.show(line)
    if not done:
        render.show(
            "nothing to do: it is installed"
            if options.what == "install"
            else "nothing to do: it is not installed"
        )
    elif options.what == "install":
        render.show(f"restart ganeti-noded: {places.RESTART}; do the same on all nodes")
        render.show(
            "once for the cluster, if instances are to be moved: gnt-cluster modify -H "
            "chroot:migration_mode=non-live"
        )
    else:
        render.show(f"restart ganeti-noded: {places.RESTART}")
    return 0


def _remove(node: Node, *, force: bool, of_cluster: bool) -> list[str]:
    """Remove chrootfw from a node, and its parameters from the cluster.

    Raises:
        ChrootfwError: The removal is refused, such as on a master whose cluster has parameters that
            Ganeti's own class would not know.
    """
    installation.check_removal(node, force=force)
    if of_cluster:
        reset = cluster_parameters.reset(node, force=force)
    elif not force and (found := cluster_parameters.find(node)):
        raise ChrootfwError(
            "the cluster has parameters that Ganeti's own class refuses",
            found,
            "chrootfw ganeti remove --cluster resets them; --force leaves them",
        )
    else:
        reset = []
    return reset + installation.remove(node, force=force)


def _status(node: Node, *, as_json: bool) -> int:
    if not inspection.installed(node):
        if as_json:
            render.show_json({"installed": False, "checks": []})
        else:
            render.show(
                f"chrootfw is not installed for Ganeti here ({node.path(places.MARKER)} is missing)"
            )
        return 1
    found = inspection.checks(node)
    if as_json:
        render.show_json({"installed": True, **inspection.to_dict(found)})
    else:
        render.show(render.checks(found, sys.stdout))
    return 1 if any(check.status == "error" for check in found) else 0
