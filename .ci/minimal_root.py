"""Run a shell command in a new, minimal Debian of a given release, as a newcomer's machine has it.

``python3 .ci/minimal_root.py SUITE COMMAND`` clones the commit that is checked out here into the
root, and runs the command in the clone. The root is real root on this machine's kernel, with a
mount namespace of its own; it inherits this machine's settings for package sources and nothing
else. The bare root is cached as a tar file in ``chrootfw-tests`` below XDG_CACHE_HOME.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(TREE / "tests/real"))

import prepare  # noqa: E402

INCLUDE = "python3,python3-pip,git,ca-certificates"

#: Where the certificates of this machine's package sources lie in the root.
CERTIFICATES = "/etc/ssl/chrootfw-ci.pem"

#: pip's settings that say where packages come from, and how to reach it.
PIP_SETTINGS = (
    "index-url",
    "extra-index-url",
    "timeout",
    "retries",
    "proxy",
    "trusted-host",
    "client-cert",
)

#: Run in a mount namespace of its own, with the root as $1 and the tree as $2.
ENTER = """
mount --bind "$1" "$1"
mount --rbind /dev "$1/dev"
mount --rbind /sys "$1/sys"
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=0755 tmpfs "$1/run"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
mount --bind "$2" "$1/mnt"
cd "$1"
mkdir root/outside
pivot_root . root/outside
umount --lazy /root/outside
git -c advice.detachedHead=false clone --quiet /mnt /srv/chrootfw
umount /mnt
cd /srv/chrootfw
exec bash -euo pipefail -c "$3"
"""


def main(suite: str, command: str) -> int:
    """Run the command in a new root of the suite; return its exit status."""
    prepare.install(("mmdebstrap", "debian-archive-keyring"))
    archive = prepare.cached(f"minbase-{suite}.tar", lambda target: make(suite, target))
    root = Path(tempfile.mkdtemp(prefix=f"chrootfw-{suite}-"))
    try:
        prepare_root(root, archive, suite)
        unshare = ["unshare", "--mount", "--propagation", "private", "bash", "-euc", ENTER, "bash"]
        done = subprocess.run(
            [*unshare, str(root), str(TREE), command],
            env=environment(),
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return done.returncode
    finally:
        shutil.rmtree(root)  # nothing is mounted here: the namespace ended with its processes


def make(suite: str, target: Path) -> None:
    """Make the bare root of a suite, as a tar file."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as settings:
        settings.write(apt_settings())
        settings.flush()
        subprocess.run(
            [
                "mmdebstrap", "--quiet", "--variant=minbase", f"--include={INCLUDE}", f"--aptopt={settings.name}",
                suite, str(target), *source(suite),
            ],
            stdin=subprocess.DEVNULL, check=True,
        )  # fmt: skip


def prepare_root(root: Path, archive: Path, suite: str) -> None:
    """Unpack a bare root, and give it this machine's way to the package sources."""
    subprocess.run(
        ["tar", "--extract", "--file", str(archive), "--directory", str(root)], check=True
    )
    (root / "etc/apt/apt.conf.d/90ci").write_text(apt_settings())
    if lines := source(suite):
        (root / "etc/apt/sources.list").write_text("\n".join(lines) + "\n")
    for place in ("auth.conf", "auth.conf.d"):
        own = Path("/etc/apt") / place
        if own.is_dir():
            shutil.copytree(own, root / "etc/apt" / place, dirs_exist_ok=True)
        elif own.exists():
            shutil.copy(own, root / "etc/apt" / place)
    (root / "etc/pip.conf").write_text(pip_settings())
    if bundle := certificates():
        shutil.copy(bundle, root / CERTIFICATES.lstrip("/"))
    for name in ("resolv.conf", "hosts"):
        shutil.copy(Path("/etc") / name, root / "etc" / name)


def source(suite: str) -> list[str]:
    """Return the line of sources.list for a suite, on this machine's own mirror of Debian."""
    return [f"deb {mirror} {suite} main" for mirror in prepare.mirrors()[:1]]


def apt_settings() -> str:
    """Return how this machine's apt fetches packages, as the text of an apt.conf."""
    shown = subprocess.run(
        ["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True
    ).stdout
    return "".join(f"{line}\n" for line in shown.splitlines() if not line.endswith('"";'))


def pip_settings() -> str:
    """Return where this machine's pip finds packages, as the text of a pip.conf."""
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    chosen = {}
    for line in shown.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.partition(".")
        places = [place for place in value.strip("'").split() if not place.startswith("file:")]
        if section == "global" and key in PIP_SETTINGS and places:
            chosen[key] = " ".join(places)
    return "[global]\n" + "".join(f"{key} = {value}\n" for key, value in chosen.items())


def certificates() -> str | None:
    """Return the file with the certificates that this machine's environment names."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE"):
        if Path(os.environ.get(name, "/nonexistent")).is_file():
            return os.environ[name]
    return None


def environment() -> dict[str, str]:
    """Return the environment of a newcomer's root shell, with this machine's way to the package sources."""
    chosen = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
    }
    chosen["LANG"] = "C.UTF-8"
    chosen |= {
        name: value
        for name, value in os.environ.items()
        if name.lower().endswith("_proxy") or name.startswith("CHROOTFW_CI")
    }
    for name in ("CI", "TERM"):
        if name in os.environ:
            chosen[name] = os.environ[name]
    if certificates():
        chosen |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"), CERTIFICATES)
    return chosen


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
