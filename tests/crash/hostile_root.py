"""A root that does all it can to get its administrators to give it the host: a process in it, and names that are exchanged.

Names are exchanged by a process in a mount namespace of its own, where even a mount point can be renamed: as root of another instance can whose
disk is the same directory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import roots

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000
_RENAME_EXCHANGE = 2
_PR_SET_PDEATHSIG = 1

#: From wherever something is: to the top, and beyond.
UP = "/.." * 24
SYSCTL = "vm/swappiness"

#: Run as a daemon by the init script: through each link to a process that appears, and through each mount of proc, it reads and writes what
#: is not the instance's. All by the shell itself, so that it is fast.
_ATTACKER = """#!/bin/sh
exec < /dev/null > /dev/null 2>&1
take() { # LINK: to a directory or file
  { read -r word < $1{up}{canary} && echo "$word" >> /srv/loot; }
  { read -r word < $1{canary} && echo "$word" >> /srv/loot; }
  { echo written >> $1{up}{made}; }
  { echo written >> $1{made}; }
}
while :; do
  for process in /proc/[0-9]*; do
    [ $process = /proc/$$ ] && continue
    take $process/root
    take $process/cwd
    { echo '#written' >> $process/exe; }
    for fd in $process/fd/*; do
      [ -d $fd ] && take $fd
      case $fd in
        */10) ;; # its own script, which a shell has open
        *) [ -f $fd ] && { echo '#written' >> $fd; } ;;
      esac
    done
    { read -r word < $process/environ && echo "$word" >> /srv/loot; }
  done
  for proc in /proc /proc.*; do
    [ -d $proc/sys ] && { echo {value} > $proc/sys/{sysctl}; }
  done
  kill -9 {pid}
  usleep 1000
done
"""
#: What an administrator's command finds itself: it takes what its working directory and its descriptors lead to.
_TOOL = """#!/bin/sh
for place in . /proc/self/fd/* /proc/self/root /proc/self/cwd; do
  cat $place{up}{canary}
  echo x > $place{up}{made}
done 2> /dev/null
exit 0
"""
#: Run by the instance's dynamic linker with the executable that it was run for: the host's interpreter, where a link has led to that. That it is
#: being run keeps a file from being written to, but not its mode from being changed.
_EVIL = """
echo reached >> /srv/reached
( for i in 1 2 3 4 5 6 7 8 9 10; do
  for fd in /proc/self/fd/[3-9]; do
    chmod 4777 $fd && echo written >> /srv/said
    { echo '#written from inside' >> $fd; } && echo written >> /srv/said
  done
  usleep 100000
done ) > /dev/null 2>&1 < /dev/null &
"""


class Outside:
    """What there is outside that must stay as it is, and where links lead."""

    def __init__(self, top: Path, pid: int, value: str) -> None:
        """``pid``: a process of the host. ``value``: what is written to the sysctl where that succeeds."""
        self.top, self.pid, self.value = top, pid, value
        self.canary, self.made = top / "canary", top / "made"
        for name in ("proc", "sys", "dev", "run", "mnt", "etc/chrootfw", "bin", "root", "tmp"):
            (top / name).mkdir(parents=True)
        self.secret = f"of-the-host-{os.urandom(8).hex()}"
        for name in ("canary", "etc/passwd", "etc/resolv.conf", "etc/hosts"):
            (top / name).write_text(f"{self.secret}\n")
            (top / name).chmod(0o600)
        roots.write_init(top, roots.script(), name="etc/chrootfw/init")

    def fill(self, text: str) -> str:
        """A script in which ``{canary}`` and the like stand for what they are here."""
        words = {
            "up": UP, "canary": self.canary, "made": self.made, "value": self.value, "sysctl": SYSCTL, "pid": self.pid,
        }  # fmt: skip
        for name, word in words.items():
            text = text.replace(f"{{{name}}}", str(word))
        return text

    def look(self) -> dict[str, tuple[int, int, int, int, bytes]]:
        """All files: mode, owner, group, device, contents."""
        found = {}
        for place, directories, files in os.walk(self.top):
            for name in (".", *directories, *files):
                path = os.path.join(place, name)
                status = os.lstat(path)
                contents = Path(path).read_bytes() if name in files else b""
                found[path] = status.st_mode, status.st_uid, status.st_gid, status.st_dev, contents
        return found


#: The names that are exchanged.
NAMES = (
    "proc", "sys", "dev", "run", "etc", "bin", "tmp", "mnt", "root", "srv/www", "etc/chrootfw/init", "srv/tool", "bin/sh", "etc/passwd",
    "etc/resolv.conf", "etc/hosts", "mnt/bind", "etc/chrootfw",
)  # fmt: skip


def make(root: Path, outside: Outside) -> None:
    """Make a small root hostile."""
    for directory in ("srv/www", "mnt/bind"):
        (root / directory).mkdir()
    roots.write_init(root, outside.fill(_ATTACKER), name="srv/attacker")
    roots.write_init(root, outside.fill(_TOOL), name="srv/tool")
    (root / "srv/evil").write_text(_EVIL)
    roots.write_init(root, roots.script("/srv/attacker &", "true"))


def _pairs(outside: Path) -> list[tuple[str, str]]:
    """Which name is exchanged with a link to what, or, where it begins with ``#!``, with a script."""
    relative = f"{UP[1:]}{outside}"
    own_links = [
        *(f"/proc/self/fd/{number}" for number in range(3, 10)),
        "/proc/self/cwd",
        "/proc/self/root",
        "/proc/1/root",
    ]
    programs = [
        "/proc/self/exe",
        "/proc/thread-self/exe",
        "#!/proc/self/exe\n",
        f"{relative}/etc/chrootfw/init",
    ]
    return [
        *((name, target) for name in ("proc", "sys", "dev", "run") for target in ("/", f"{relative}/{name}", "/proc/self/fd/3")),
        *((name, target) for name in ("etc", "bin", "tmp", "mnt") for target in (f"{outside}/{name}", f"{relative}/{name}")),
        *((name, target) for name in ("root", "srv/www") for target in own_links),
        *((name, target) for name in ("etc/chrootfw/init", "srv/tool", "bin/sh") for target in programs),
        *(("etc/passwd", target) for target in (f"{outside}/canary", f"{relative}/canary", "/proc/self/fd/3")),
        *((f"etc/{name}", f"{top}/etc/{name}") for name in ("resolv.conf", "hosts") for top in (outside, relative)),
        *((name, target) for name in ("mnt/bind", "etc/chrootfw") for target in (f"{outside}/{name}", f"{relative}/{name}")),
    ]  # fmt: skip


@contextmanager
def exchanging(root: Path, outside: Path, seed: int) -> Iterator[Callable[[Sequence[str]], None]]:
    """While the block runs one name after the other is exchanged for a moment, and then is what it was again.

    Yields ``aim(names)``: from then on it is most often one of ``names``, always the same; one that is there twice is as likely again.
    """
    pairs = []
    aimed, chance = mmap.mmap(-1, 8), random.Random(seed + 1)

    def aim(names: Sequence[str]) -> None:
        wanted = chance.choice(names)
        fitting = [place for place, (name, _) in enumerate(_pairs(outside)) if name == wanted]
        aimed[:8] = chance.choice(fitting).to_bytes(8, "little")

    for number, (name, target) in enumerate(_pairs(outside)):
        other = root / f"{name}.{number}"
        if target.startswith("#!"):
            other.write_text(target)
            other.chmod(0o755)
        else:
            other.symlink_to(target)
        (root / name).touch()
        pairs.append((os.path.dirname(name), os.path.basename(name), other.name))
    pid = _exchanger(root, pairs, aimed, seed)
    try:
        yield aim
    finally:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "nothing was exchanged"
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def _exchanger(root: Path, pairs: list[tuple[str, str, str]], aimed: mmap.mmap, seed: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        ended: list[int] = []
        signal.signal(
            signal.SIGTERM, lambda number, frame: ended.append(number)
        )  # it puts back what it has exchanged
        if libc.unshare(_CLONE_NEWNS) or libc.mount(
            None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None
        ):
            os._exit(1)
        opened = {place: os.open(root / place, os.O_PATH | os.O_DIRECTORY) for place, _, _ in pairs}
        chance = random.Random(seed)
        while not ended:
            pair = (
                chance.randrange(len(pairs))
                if chance.random() < 0.2
                else int.from_bytes(aimed[:8], "little")
            )
            place, name, other = pairs[pair]
            words = opened[place], name.encode(), opened[place], other.encode(), _RENAME_EXCHANGE
            for _ in range(chance.choice((1, 8))):
                libc.renameat2(*words)
                _wait(chance.random() ** 3 * 0.02)
                libc.renameat2(*words)
                _wait(chance.random() ** 3 * 0.02)
    finally:
        os._exit(0)


def _wait(seconds: float) -> None:
    """So short a time that sleeping would be longer is spent awake."""
    if seconds > 0.0005:
        time.sleep(seconds)
        return
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
