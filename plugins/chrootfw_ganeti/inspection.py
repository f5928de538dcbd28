"""Check an installation for `chrootfw ganeti status`, and which class the node daemon uses."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from chrootfw.errors import ChrootfwError
from chrootfw.views import Check
from chrootfw_ganeti import installation, places
from chrootfw_ganeti.installation import Node

#: Precision of a process's start time, in seconds.
_TICK = 1 / os.sysconf("SC_CLK_TCK")

#: Run in the node daemon's environment: its Python, its name, its directory first on the path.
_PROBE = """
import json, sys
sys.argv = ["ganeti-noded"]
sys.path[0] = DIRECTORY
from ganeti import constants, hypervisor
found = hypervisor.GetHypervisorClass(constants.HT_CHROOT)
module = sys.modules.get(found.__module__)
print(json.dumps({
    "class": found.__module__ + ":" + found.__name__,
    "file": getattr(module, "__file__", None),
    "reason": getattr(found, "reason", None),
    "ganeti": constants.RELEASE_VERSION,
}))
"""


def checks(node: Node) -> list[Check]:
    """Check every part of an installation.

    Returns:
        One result for each part. The status `error` means that Ganeti's chroots would not be
        chrootfw's.
    """
    return [*_files(node), _packages(node), *_daemon(node)]


def installed(node: Node) -> bool:
    """Check whether anything of an installation exists."""
    return any(os.path.lexists(node.path(path)) for path in (*node.files.values(), places.PACKAGES))


def _files(node: Node) -> list[Check]:
    found = []
    for name, path in node.files.items():
        if os.path.exists(node.path(path)):
            detail = path
            if name == "marker":
                with open(node.path(path), encoding="utf-8", errors="replace") as file:
                    detail = f"{path}: {file.read().strip()}"
            found.append(Check(name, "ok", detail))
        else:
            found.append(Check(name, "error", f"{path} is missing", "chrootfw ganeti install"))
    return found


def _packages(node: Node) -> Check:
    link = node.path(f"{places.PACKAGES}/{places.CURRENT}")
    if not os.path.islink(link):
        return Check(
            "packages",
            "error",
            f"{places.PACKAGES}/{places.CURRENT} is missing",
            "chrootfw ganeti install",
        )
    place = f"{places.PACKAGES}/{os.readlink(link)}"
    wrong = installation.damage(node.path(place))
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return Check(
            "packages",
            "error",
            f"{place}: changed: {', '.join(wrong[:3])}{more}",
            "chrootfw ganeti install",
        )
    return Check("packages", "ok", place)


def _daemon(node: Node) -> list[Check]:
    if node.noded is None:
        return [
            Check(
                "ganeti-noded",
                "error",
                "Ganeti's node daemon is not installed",
                "install Ganeti first",
            )
        ]
    directory = os.path.dirname(node.resolve_in_node(node.noded))
    try:
        fresh = json.loads(node.ask(_PROBE.replace("DIRECTORY", repr(directory))))
    except ChrootfwError as error:
        detail = f"ganeti-noded would not start: {(error.details or (error.brief,))[-1]}"
        return [Check("class", "error", detail, "chrootfw ganeti install")]
    uses = f"Ganeti {fresh['ganeti']} uses {fresh['class']}"
    if fresh["reason"]:
        return [
            Check(
                "class", "error", f"Ganeti {fresh['ganeti']} starts no chroot: {fresh['reason']}"
            ),
            *_running(node),
        ]
    ours = (fresh["file"] or "").startswith(places.PACKAGES + "/")
    hint = (
        ""
        if ours
        else "chrootfw ganeti install; or the class of the marker is another one on purpose"
    )
    return [
        Check("class", "ok" if ours else "warning", f"{uses}, from {fresh['file']}", hint),
        *_running(node),
    ]


def _running(node: Node) -> list[Check]:
    """Check that the running node daemon was started after the last change."""
    changed = max(
        (os.lstat(path).st_ctime for path in _dated(node) if os.path.lexists(path)), default=0.0
    )
    found = []
    for pid, started in _nodeds(node):
        if started + _TICK < changed:
            found.append(
                Check(
                    "running",
                    "warning",
                    f"ganeti-noded (pid {pid}) was started before the last "
                    "change, and does not know of it",
                    places.RESTART,
                )
            )
        else:
            found.append(
                Check(
                    "running", "ok", f"ganeti-noded (pid {pid}) was started after the last change"
                )
            )
    return found or [Check("running", "warning", "ganeti-noded does not run", places.START)]


def _dated(node: Node) -> list[str]:
    names = (node.files["marker"], node.files["pth"], node.files["hook"])
    return [node.path(path) for path in (*names, f"{places.PACKAGES}/{places.CURRENT}")]


def _nodeds(node: Node) -> list[tuple[int, float]]:
    """List the node daemons that run in this root, without their children.

    Returns:
        Pairs of the pid and the start time in seconds since the epoch.
    """
    home = os.stat(node.root)
    found: dict[int, tuple[int, float]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            root = os.stat(f"/proc/{entry}/root")
            with open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        is_noded = any(os.path.basename(word) == b"ganeti-noded" for word in words[:3])
        if is_noded and (root.st_dev, root.st_ino) == (home.st_dev, home.st_ino):
            found[int(entry)] = (int(fields[1]), _boot_time() + int(fields[19]) * _TICK)
    return sorted((pid, started) for pid, (parent, started) in found.items() if parent not in found)


def _boot_time() -> float:
    """Return the boot time in seconds since the epoch; /proc/stat has whole seconds only."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def to_dict(found: list[Check]) -> dict[str, Any]:
    """Convert the results to their JSON form."""
    return {"checks": [check.to_dict() for check in found]}
