"""What the tests on the real kernel need from Debian: tools, and a Debian system to run.

``python tests/real/prepare.py`` does it on its own, with ``--docs`` only what building the pages needs; the suite does it by itself. What is there already is left
alone, so a second run takes no time. The Debian system is kept outside the tree, in ``chrootfw-tests`` below
XDG_CACHE_HOME (or ~/.cache), under a name that tells what is in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Debian packages with the tools that the tests call.
TOOLS = (
    "btrfs-progs",
    "busybox-static",
    "debian-archive-keyring",
    "e2fsprogs",
    "fdisk",
    "fish",
    "graphviz",
    "groff",
    "man-db",
    "mandoc",
    "mmdebstrap",
    "mount",
    "openssh-client",
    "openssh-sftp-server",
    "psmisc",
    "squashfs-tools",
    "sshfs",
    "strace",
    "util-linux",
    "xfsprogs",
    "zsh",
)

#: Those of them that draw the diagrams and the screens of the pages.
DOCS_TOOLS = ("busybox-static", "graphviz")

#: Those of them that the quick tier calls.
QUICK_TOOLS = ("busybox-static", "e2fsprogs", "fdisk", "mount", "squashfs-tools", "util-linux")

SUITE = "bookworm"

#: What the Debian system holds beside Debian's own minimal set.
SERVICES = ("cron", "haproxy", "nginx-light", "openssh-server", "postfix", "procps", "redis-server")

#: Packages of which the examples of the pages take files, without installing them.
DOWNLOADS = ("sysv-rc", "sysvinit-utils")

#: Counts the ways in which ``debian_system`` makes it; a new one makes a new cache entry.
RECIPE = 1


def main(*arguments: str) -> None:
    if arguments == ("--docs",):
        install(DOCS_TOOLS)
    else:
        require_root()
        install_tools()
        print(downloads())
        print(debian_system())


def require_root() -> None:
    """End this program with a sentence where it is not root."""
    if os.geteuid() != 0:
        sys.exit(
            "the tests on the real kernel install packages and mount file systems: run them as root\n"
            "  hint: without root: tox, which leaves those out"
        )


def install_tools() -> None:
    """Install the packages that are missing; nothing happens when none is."""
    install(TOOLS)


def install(packages: Sequence[str]) -> None:
    """Install those of ``packages`` that are missing."""
    missing = [package for package in packages if not _is_installed(package)]
    if not missing:
        return
    if os.geteuid() != 0:
        names = " ".join(missing)
        sys.exit(
            f"these Debian packages are missing: {names}\n  hint: as root: apt-get install {names}"
        )
    _cache().mkdir(parents=True, exist_ok=True)
    with _alone(_cache() / "apt.lock"):  # another environment of tox may want the same
        missing = [package for package in missing if not _is_installed(package)]
        if not missing:
            return
        command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
        if not _debian_sources() or _apt(command, check=False).returncode != 0:
            _apt(["apt-get", "update"])
            _apt(command)


def downloads() -> Path:
    """A directory with the packages DOWNLOADS as NAME.deb, from the machine's own package sources.

    A page that takes files from them is done with those of the release that its reader has.
    """
    release = platform.freedesktop_os_release()
    directory = _cache() / f"downloads-{release['ID']}-{release.get('VERSION_CODENAME', '')}"
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
            ["apt-get", "--quiet=2", "--option=APT::Sandbox::User=root", "download", package],
            cwd=scratch,
            check=True,
        )
        (file,) = Path(scratch).glob("*.deb")
        file.rename(directory / f"{package}.deb")  # whole or not at all


def debian_system(more: Iterable[str] = ()) -> Path:
    """A tar file with a Debian system, from the machine's own package sources; with ``more`` packages than SERVICES."""
    packages = (*SERVICES, *sorted(set(more) - set(SERVICES)))
    recipe = repr((RECIPE, SUITE, packages))
    name = f"{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.tar"
    return cached(
        name,
        lambda archive: mmdebstrap(
            ["--variant=minbase", f"--include={','.join(packages)}"], archive
        ),
    )


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


def mmdebstrap(options: Sequence[str], archive: Path, suite: str = SUITE) -> None:
    """Make a Debian of the suite, as a tar file, from the machine's own package sources."""
    command = ["mmdebstrap", "--quiet", *options, suite, str(archive), "-"]
    subprocess.run(command, input=_sources_of_the_suite(suite), text=True, check=True)


def download_of_the_suite(packages: Sequence[str], directory: Path) -> None:
    """Fetch packages of the suite as files, whatever the machine's own release is."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for name in ("lists/partial", "cache/archives/partial", "parts", "trusted"):
            (place / name).mkdir(parents=True)
        (place / "sources.list").write_text(_sources_of_the_suite())
        for key in [
            Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
            *Path("/etc/apt/trusted.gpg.d").glob("*"),
        ]:
            if key.is_file():
                (place / "trusted" / key.name).symlink_to(key)
        settings = {
            "APT::Sandbox::User": "root", "Dir::Etc::SourceList": place / "sources.list",
            "Dir::Etc::SourceParts": place / "parts", "Dir::Etc::PreferencesParts": place / "parts",
            "Dir::Etc::TrustedParts": place / "trusted", "Dir::State::Lists": place / "lists",
            "Dir::State::Status": "/dev/null", "Dir::Cache": place / "cache",
        }  # fmt: skip
        apt = [
            "apt-get",
            "--quiet=2",
            *(f"--option={name}={value}" for name, value in settings.items()),
        ]
        subprocess.run(
            [*apt, "update"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True
        )
        subprocess.run(
            [*apt, "download", *packages],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
        )


def from_mirror(path: str, sha256: str, file: Path) -> None:
    """Fetch what lies at ``path`` on the machine's own mirror of Debian, by apt's rules; refused with another checksum."""
    mirror = (mirrors() or ["http://deb.debian.org/debian"])[0]
    command = ["/usr/lib/apt/apt-helper", "--option=APT::Sandbox::User=root", "download-file"]
    subprocess.run(
        [*command, f"{mirror.rstrip('/')}/{path}", str(file), f"SHA256:{sha256}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip


def mirrors() -> list[str]:
    """Return the addresses from which this machine takes Debian's own packages, security updates aside."""
    if not _targets():
        update()
    return list(dict.fromkeys(line.split()[2] for line in _targets() if "-" not in line.split()[3]))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chrootfw-tests"


def update() -> None:
    """``apt-get update``, one at a time."""
    _cache().mkdir(parents=True, exist_ok=True)
    with _alone(_cache() / "apt.lock"):
        _apt(["apt-get", "update"])


def _sources_of_the_suite(suite: str = SUITE) -> str:
    """A sources.list with the machine's own sources of the suite, or with the suite on the mirror of its release."""
    if not _targets():
        update()
    mirror = (mirrors() or ["http://deb.debian.org/debian"])[
        0
    ]  # a machine of another distribution has none
    return "".join(f"{line}\n" for line in _debian_sources(suite) or [f"deb {mirror} {suite} main"])


def _debian_sources(suite: str = SUITE) -> list[str]:
    """The machine's sources of the suite, as lines of sources.list; none before its first ``apt-get update``."""
    lines = set()
    for line in _targets():
        codename, _, source = line.partition(" ")
        if codename in (suite, f"{suite}-updates", f"{suite}-security"):
            lines.add(source)
    return sorted(lines)


def _targets() -> list[str]:
    """The machine's package sources: a codename and a line of sources.list each."""
    return subprocess.run(
        [
            "apt-get", "indextargets", "--format", "$(CODENAME) deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages", "Origin: Debian",
        ],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip


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
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=check
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One at a time, over all processes."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main(*sys.argv[1:])
