"""The system that every node of the test cluster runs: a Debian with Ganeti, made once and cached.

``python tests/ganeti/node_system.py [RELEASE]`` does it on its own; the suite does it by itself. It lies beside the Debian
of ``tests/real/prepare.py``, as squashfs images, so that a node costs a mount and no copy: bookworm with Ganeti 3.0.2, and
a layer over it with what 3.1 of its backports changes; or trixie with its 3.1.
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

#: The versions of Ganeti that each release of Debian has, its backports included; the first is its own.
RELEASES = {"bookworm": ("3.0.2", "3.1"), "trixie": ("3.1",)}

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

_BACKPORTS = "bookworm-backports"

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


def main(release: str = "bookworm") -> None:
    prepare.require_root()
    install_tools()
    print(*layers(release, RELEASES[release][-1]), sep="\n")


def install_tools() -> None:
    """Install the packages that the harness is missing."""
    prepare.install_tools()
    prepare.install(TOOLS)


def layers(release: str, version: str) -> list[Path]:
    """Squashfs images with the system of a node, the topmost first. ``version``: of Ganeti, one of the release's."""
    assert version in RELEASES[release], f"Debian {release} has no Ganeti {version}"
    recipe = (RECIPE, release, PACKAGES)
    if len(RELEASES[release]) == 1:
        key = f"{release}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]}"
        return [prepare.cached(f"ganeti-{key}.squashfs", lambda image: _build(image, release))]
    recipe += (_FETCH_UPGRADE, _UPGRADE)
    key = f"{release}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]}"
    fetch = f"--customize-hook={_FETCH_UPGRADE}"
    base = prepare.cached(f"ganeti-{key}.squashfs", lambda image: _build(image, release, fetch))
    if version == RELEASES[release][0]:
        return [base]
    return [
        prepare.cached(f"ganeti-3.1-{key}.squashfs", lambda image: _build_upgrade(base, image)),
        base,
    ]


def _build(image: Path, release: str, *more: str) -> None:
    archive = image.with_suffix(".tar")
    options = ["--variant=minbase", "--dpkgopt=force-unsafe-io", f"--include={','.join(PACKAGES)}"]
    prepare.mmdebstrap([*options, *more], archive, release)
    with archive.open("rb") as file:
        subprocess.run(
            ["mksquashfs", "-", str(image), "-tar", *_SQUASH], stdin=file, **_QUIET, check=True
        )
    archive.unlink()


def _build_upgrade(base: Path, image: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        build = ["sh", "-euc", _UPGRADE, "upgrade", str(base), scratch]
        subprocess.run(
            ["unshare", "--mount", "--propagation=private", *build], **_QUIET, check=True
        )
        subprocess.run(
            ["mksquashfs", f"{scratch}/written", str(image), *_SQUASH], **_QUIET, check=True
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
