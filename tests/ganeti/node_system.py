"""The system that every node of the test cluster runs: a Debian with Ganeti, made once and cached.

``python tests/ganeti/node_system.py`` does it on its own; the suite does it by itself. It lies beside the Debian of
``tests/real/prepare.py``, as a squashfs image, so that a node costs a mount and no copy. Ganeti 3.0.2 is installed in
it; the packages of 3.1 wait in ``UPGRADE``, to be installed by dpkg without a network.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "real"))

import prepare  # what the suites on a real kernel need from Debian

#: What a node needs beside Debian's minimal set; Debian's ganeti does without what its chroot hypervisor needs.
PACKAGES = (
    "bridge-utils", "busybox-static", "e2fsprogs", "ganeti", "iproute2", "mount", "openssh-server", "procps", "psmisc",
    "python3",
)  # fmt: skip

#: The directory, inside, with the packages of Ganeti 3.1.
UPGRADE = "/opt/ganeti-3.1"

#: Debian packages with the tools that the harness itself calls.
TOOLS = ("iproute2", "openssh-client", "squashfs-tools", "util-linux")

#: Counts the ways in which ``node_system`` makes it; a new one makes a new cache entry.
RECIPE = 1

_BACKPORTS = f"{prepare.SUITE}-backports"

#: Run by mmdebstrap with the new root in $1, where apt works and the network is there.
_FETCH_UPGRADE = "; ".join((
    "set -e",
    f"echo 'deb http://deb.debian.org/debian {_BACKPORTS} main' > \"$1/etc/apt/sources.list.d/backports.list\"",
    'chroot "$1" apt-get -qq update',
    f'chroot "$1" apt-get -qq -y --no-install-recommends -t {_BACKPORTS} --download-only install ganeti > /dev/null',
    f'mkdir "$1{UPGRADE}"',
    f'mv "$1"/var/cache/apt/archives/*.deb "$1{UPGRADE}"',
))  # fmt: skip


def main() -> None:
    install_tools()
    print(node_system())


def install_tools() -> None:
    """Install the packages that the harness is missing."""
    prepare.install_tools()
    prepare.install(TOOLS)


def node_system() -> Path:
    """A squashfs image of the system of a node, from the machine's own package sources."""
    recipe = repr((RECIPE, prepare.SUITE, PACKAGES, _FETCH_UPGRADE))
    name = f"ganeti-{prepare.SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.squashfs"
    return prepare.cached(name, _build)


def _build(image: Path) -> None:
    archive = image.with_suffix(".tar")
    options = ["--variant=minbase", "--dpkgopt=force-unsafe-io", f"--include={','.join(PACKAGES)}", f"--customize-hook={_FETCH_UPGRADE}"]
    prepare.mmdebstrap(options, archive)
    with archive.open("rb") as file:
        squash = ["mksquashfs", "-", str(image), "-tar", "-comp", "lz4", "-quiet", "-no-progress"]
        subprocess.run(squash, stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    archive.unlink()


if __name__ == "__main__":
    main()
