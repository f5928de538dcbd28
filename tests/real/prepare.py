"""What the tests on the real kernel need from Debian: tools, and a Debian system to run.

``python tests/real/prepare.py`` does it on its own, with ``--docs`` only what building the pages needs; the suite does it by itself. What is there already is left
alone, so a second run takes no time. The Debian system is kept outside the tree, in ``chrootfw-tests`` below
XDG_CACHE_HOME (or ~/.cache), under a name that tells what is in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Debian packages with the tools that the tests call.
TOOLS = (
    "btrfs-progs",
    "busybox-static",
    "debian-archive-keyring",
    "e2fsprogs",
    "fdisk",
    "graphviz",
    "mmdebstrap",
    "mount",
    "openssh-sftp-server",
    "psmisc",
    "squashfs-tools",
    "sshfs",
    "strace",
    "util-linux",
    "xfsprogs",
)

#: Those of them that draw the diagrams and the screens of the pages.
DOCS_TOOLS = ("busybox-static", "graphviz")

SUITE = "bookworm"

#: What the Debian system holds beside Debian's own minimal set.
SERVICES = ("cron", "nginx-light", "procps", "redis-server")

#: Packages of which the examples of the pages take files, without installing them.
DOWNLOADS = ("sysv-rc", "sysvinit-utils")

#: Counts the ways in which ``debian_system`` makes it; a new one makes a new cache entry.
RECIPE = 1


def main(*arguments: str) -> None:
    if arguments == ("--docs",):
        install(DOCS_TOOLS)
    else:
        install_tools()
        print(downloads())
        print(debian_system())


def install_tools() -> None:
    """Install the packages that are missing; nothing happens when none is."""
    install(TOOLS)


def install(packages: Sequence[str]) -> None:
    """Install those of ``packages`` that are missing."""
    _cache().mkdir(parents=True, exist_ok=True)
    with _alone(_cache() / "apt.lock"):  # another environment of tox may want the same
        missing = [package for package in packages if not _is_installed(package)]
        if not missing:
            return
        command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
        if not _debian_sources() or _apt(command, check=False).returncode != 0:
            _apt(["apt-get", "update"])
            _apt(command)


def downloads() -> Path:
    """A directory with the packages DOWNLOADS as NAME.deb, from the machine's own package sources."""
    directory = _cache() / "downloads"
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory / "lock"):
        for package in DOWNLOADS:
            if not (directory / f"{package}.deb").exists():
                if not _debian_sources():
                    update()
                _download(package, directory)
    return directory


def _download(package: str, directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        subprocess.run(
            ["apt-get", "--quiet=2", "--option=APT::Sandbox::User=root", "download", package], cwd=scratch, check=True
        )
        (file,) = Path(scratch).glob("*.deb")
        file.rename(directory / f"{package}.deb")  # whole or not at all


def debian_system() -> Path:
    """A tar file with a Debian system, from the machine's own package sources."""
    recipe = repr((RECIPE, SUITE, SERVICES))
    name = f"{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.tar"
    return cached(name, lambda archive: mmdebstrap(["--variant=minbase", f"--include={','.join(SERVICES)}"], archive))


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The file ``name`` of the cache; ``build`` is called with the path at which to make it if it is not there."""
    cache = _cache()
    file = cache / name
    if file.exists():
        return file
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / "lock"):
        if not file.exists():
            unfinished = file.with_suffix(f".unfinished{file.suffix}")
            unfinished.unlink(missing_ok=True)
            build(unfinished)
            unfinished.rename(file)  # whole or not at all, whenever this is killed
    return file


def mmdebstrap(options: Sequence[str], archive: Path) -> None:
    """Make a Debian of the suite, as a tar file, from the machine's own package sources."""
    command = ["mmdebstrap", "--quiet", *options, SUITE, str(archive)]
    sources = _debian_sources()
    if not sources:
        update()
        sources = _debian_sources()
    if sources:
        subprocess.run([*command, "-"], input="\n".join(sources) + "\n", text=True, check=True)
    else:  # a machine of another distribution: mmdebstrap knows where Debian is
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True)


def from_mirror(path: str, sha256: str, file: Path) -> None:
    """Fetch what lies at ``path`` on the machine's own mirror of Debian, by apt's rules; refused with another checksum."""
    if not _debian_sources():
        update()
    mirrors = [line.split()[1] for line in _debian_sources() if line.split()[2] == SUITE]
    mirror = mirrors[0] if mirrors else "http://deb.debian.org/debian"
    command = ["/usr/lib/apt/apt-helper", "--option=APT::Sandbox::User=root", "download-file"]
    subprocess.run(
        [*command, f"{mirror.rstrip('/')}/{path}", str(file), f"SHA256:{sha256}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chrootfw-tests"


def update() -> None:
    """``apt-get update``, one at a time."""
    _cache().mkdir(parents=True, exist_ok=True)
    with _alone(_cache() / "apt.lock"):
        _apt(["apt-get", "update"])


def _debian_sources() -> list[str]:
    """The machine's sources of the suite, as lines of sources.list; none before its first ``apt-get update``."""
    shown = subprocess.run(
        [
            "apt-get", "indextargets", "--format", "$(CODENAME) deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages", "Origin: Debian",
        ],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = set()
    for line in shown.splitlines():
        codename, _, source = line.partition(" ")
        if codename in (SUITE, f"{SUITE}-updates", f"{SUITE}-security"):
            lines.add(source)
    return sorted(lines)


def _is_installed(package: str) -> bool:
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package],
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout == "installed"


def _apt(command: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=check)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One at a time, over all processes."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main(*sys.argv[1:])
