"""``chrootfw ganeti install|remove|status``."""

from __future__ import annotations

import sys

from chrootfw import display
from chrootfw_ganeti import inspection, installation, places
from chrootfw_ganeti.installation import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> int:
    """One of the three; its exit status."""
    node = Node(options.root)
    if options.what == "status":
        return _status(node, as_json=options.json)
    change = installation.install if options.what == "install" else installation.remove
    done = change(node, force=options.force)
    if options.json:
        print(installation.as_json({"changed": done}))
        return 0
    for line in done:
        print(line)
    if not done:
        print("nothing to do: it is installed" if options.what == "install" else "nothing to do: it is not installed")
    elif options.what == "install":
        print("restart ganeti-noded on this node; do the same on all nodes")
        print(
            "once for the cluster, if instances are to be moved: gnt-cluster modify -H chroot:migration_mode=non-live"
        )
    else:
        print("restart ganeti-noded on this node")
    return 0


def _status(node: Node, *, as_json: bool) -> int:
    if not inspection.installed(node):
        if as_json:
            print(installation.as_json({"installed": False, "checks": []}))
        else:
            print(f"chrootfw is not installed for Ganeti here ({node.path(places.MARKER)} is missing)")
        return 1
    found = inspection.checks(node)
    if as_json:
        print(installation.as_json({"installed": True, **inspection.to_dict(found)}))
    else:
        print(display.checks(found, sys.stdout))
    return 1 if any(check.status == "error" for check in found) else 0
