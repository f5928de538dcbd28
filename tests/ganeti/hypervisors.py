"""Puts a class for chroots on every node of a cluster: Ganeti's own, that one repaired, or chrootfw's.

chrootfw comes to a node as to any machine, as a Python environment with the packages of these tests, and is then
installed by its own command.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

from cluster import Cluster, Node

STOCK = "Ganeti's own"
REPAIRED = "Ganeti's own, repaired"
CHROOTFW = "chrootfw"

#: Where chrootfw is on a node before it is installed for Ganeti.
ENVIRONMENT = "/opt/chrootfw"

_PACKAGES = (
    "chrootfw",
    "chrootfw_defaults",
    "chrootfw_ganeti",
    "chrootfw_hardened",
    "attr",
    "attrs",
    "pluggy",
    "psutil",
)
_DISTRIBUTIONS = ("chrootfw", "attrs", "pluggy", "psutil")
_REPAIR = Path(__file__).with_name("repaired.py")


def install(cluster: Cluster, kind: str) -> None:
    for node in cluster.nodes:
        if kind == CHROOTFW:
            _bring_chrootfw(node)
            node.run("chrootfw", "ganeti", "install")
        elif kind == REPAIRED:
            place = f"/usr/local/lib/python{node.python}/dist-packages"
            node.write(f"{place}/repaired.py", _REPAIR.read_text())
            node.write(f"{place}/repaired.pth", "import repaired\n")
        if kind != STOCK:
            node.restart_noded()
    if kind == CHROOTFW:
        cluster.gnt(
            "gnt-cluster", "modify", "--hypervisor-parameters=chroot:migration_mode=non-live"
        )


def _bring_chrootfw(node: Node) -> None:
    node.run("python3", "-m", "venv", "--without-pip", ENVIRONMENT)
    place = node.path(f"{ENVIRONMENT}/lib/python{node.python}/site-packages")
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None, f"{package} is not installed"
        unwanted = shutil.ignore_patterns("__pycache__", "tests")
        shutil.copytree(Path(spec.origin).parent, place / package, ignore=unwanted)
    for name in _DISTRIBUTIONS:  # who it is, and the entry points of its plugins
        distribution = importlib.metadata.distribution(name)
        metadata = Path(
            str(distribution.locate_file(f"{distribution.name}-{distribution.version}.dist-info"))
        )
        shutil.copytree(metadata, place / metadata.name)
    node.write(
        "/usr/local/bin/chrootfw",
        f'#!/bin/sh\nexec {ENVIRONMENT}/bin/python -m chrootfw "$@"\n',
        0o755,
    )
