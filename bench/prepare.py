"""What the bench needs from Debian: the peers, and the tools of the tests' images. ``python bench/prepare.py`` installs it.

What is there already is left alone. The peers start no service that the bench would need.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0:0] = [str(HERE.parent / "tests/real"), str(HERE.parent / "tests/ganeti")]

of_the_tests = importlib.import_module(
    "prepare"
)  # tests/real/prepare.py; nobody imports this file by that name

#: Those whom chrootfw is measured beside.
PEERS = ("bubblewrap", "crun", "lxc", "podman", "runc", "schroot", "systemd-container")

#: What makes the instances, finds the holders, and compiles the limits.
TOOLS = ("busybox-static", "e2fsprogs", "gcc", "libc6-dev", "lsof", "mount", "psmisc", "util-linux")


def main() -> None:
    of_the_tests.install((*PEERS, *TOOLS))
    if sys.version_info[:2] == (3, 11):
        import ganeti_packages

        ganeti_packages.directory()


if __name__ == "__main__":
    main()
