"""The system that every node of the test cluster runs: a Debian with Ganeti, made once and cached.

``python tests/ganeti/node_system.py`` does it on its own; the suite does it by itself. It lies beside the Debian of
``tests/real/prepare.py``, as squashfs images, so that a node costs a mount and no copy: one with Ganeti 3.0.2, and
a layer over it with what 3.1 changes.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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


#: Run by sh with the image in $1 and a directory in $2: what dpkg changes is then in $2/written.
_UPGRADE = f"""
cd "$2"
mkdir base written work root
mount -o loop,ro -t squashfs "$1" base
mount -t overlay -o lowerdir=base,upperdir=written,workdir=work overlay root
echo 'exit 101' > root/usr/sbin/policy-rc.d
chroot root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive \\
    sh -c 'dpkg --force-unsafe-io --install {UPGRADE}/*.deb'
"""

_SQUASH = ("-comp", "lz4", "-quiet", "-no-progress")
_QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def main() -> None:
    install_tools()
    print(*layers("3.1"), sep="\n")


def install_tools() -> None:
    """Install the packages that the harness is missing."""
    prepare.install_tools()
    prepare.install(TOOLS)


def layers(version: str) -> list[Path]:
    """Squashfs images with the system of a node, the topmost first. ``version``: of Ganeti, 3.0.2 or 3.1."""
    recipe = repr((RECIPE, prepare.SUITE, PACKAGES, _FETCH_UPGRADE, _UPGRADE))
    key = f"{prepare.SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    base = prepare.cached(f"ganeti-{key}.squashfs", _build)
    if version == "3.0.2":
        return [base]
    return [prepare.cached(f"ganeti-3.1-{key}.squashfs", lambda image: _build_upgrade(base, image)), base]


def _build(image: Path) -> None:
    archive = image.with_suffix(".tar")
    options = ["--variant=minbase", "--dpkgopt=force-unsafe-io"]
    prepare.mmdebstrap([*options, f"--include={','.join(PACKAGES)}", f"--customize-hook={_FETCH_UPGRADE}"], archive)
    with archive.open("rb") as file:
        subprocess.run(["mksquashfs", "-", str(image), "-tar", *_SQUASH], stdin=file, **_QUIET, check=True)
    archive.unlink()


def _build_upgrade(base: Path, image: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        build = ["sh", "-euc", _UPGRADE, "upgrade", str(base), scratch]
        subprocess.run(["unshare", "--mount", "--propagation=private", *build], **_QUIET, check=True)
        subprocess.run(["mksquashfs", f"{scratch}/written", str(image), *_SQUASH], **_QUIET, check=True)


if __name__ == "__main__":
    main()
