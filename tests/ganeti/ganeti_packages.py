"""Debian 12's own Ganeti, unpacked into the cache and not installed: its modules for tests and benchmarks.

Its compiled dependencies are made for Python 3.11, so the tests that import it run on that one alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "real"))

import prepare

PACKAGES = (
    "ganeti", "ganeti-3.0", "python3-bcrypt", "python3-bitarray", "python3-cffi-backend", "python3-cryptography",
    "python3-mock", "python3-nacl", "python3-openssl", "python3-paramiko", "python3-psutil", "python3-pycurl",
    "python3-pyinotify", "python3-pyparsing", "python3-simplejson", "python3-six",
)  # fmt: skip

#: Counts the ways in which the directory is made.
RECIPE = 2


def directory() -> Path:
    """A tree of files with the packages in it; made at the first call."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chrootfw-tests"
    place = cache / f"ganeti-bookworm-{RECIPE}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "ganeti.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            unfinished = cache / f"{place.name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            _unpack(unfinished)
            unfinished.rename(place)
    return place


def _unpack(place: Path) -> None:
    debs = place / "debs"
    debs.mkdir(parents=True)
    prepare.download_of_the_suite(PACKAGES, debs)
    for deb in sorted(debs.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", str(deb), str(place)], check=True)
    shutil.rmtree(debs)
    # What the package's postinst makes.
    etc = place / "etc/ganeti"
    shutil.rmtree(etc, ignore_errors=True)
    etc.mkdir(parents=True)
    (etc / "lib").symlink_to("/usr/lib/ganeti/3.0")
    (etc / "share").symlink_to("/usr/share/ganeti/3.0")


def why_not() -> str:
    """Why Ganeti's modules cannot be used in this process; ``""`` if they can."""
    version = sys.version_info[:2]
    return (
        ""
        if version == (3, 11)
        else f"Debian 12's Ganeti runs on Python 3.11, and this is {version[0]}.{version[1]}"
    )


def use() -> Path:
    """Make ``import ganeti`` find it in this process; its dependencies come before those of the test environment."""
    assert not why_not(), why_not()
    place = directory()
    for path in (place / "usr/lib/python3/dist-packages", place / "usr/share/ganeti/3.0"):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    return place
