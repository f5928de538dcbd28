"""Random mount trees: plain, stacked, hidden, moved, beneath, shared; made with mount(2) and move_mount(2) alone."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import random
from collections import Counter

_MS_BIND, _MS_MOVE, _MS_REC = 0x1000, 0x2000, 0x4000
_PROPAGATIONS = {"shared": 1 << 20, "slave": 1 << 19, "private": 1 << 18, "unbindable": 1 << 17}
_FSOPEN, _FSCONFIG, _FSMOUNT, _MOVE_MOUNT = 430, 431, 432, 429
_F_EMPTY_PATH, _BENEATH = 0x04, 0x200
_CONFIG_CREATE = 6

#: Recursive binds double a tree.
_MOUNTS_MAX = 60

_NAMES = [
    b"a",
    b"b",
    b"c",
    b"web1",
    b"web10",
    b" ",
    b"\n",
    b"\\040",
    b"x (deleted)",
    b"#",
    b"\xff",
    b"root",
]

#: What a step does, and how often.
_STEPS = {
    "directory": 6, "file": 1, "symlink": 2, "plain": 3, "bind": 3, "bind recursively": 1, "bind of a file": 1,
    "stacked": 3, "hidden": 3, "moved": 3, "beneath": 3, "shared": 2, "other propagation": 1,
}  # fmt: skip

#: What the kernel says of a step that is not possible here: no such place, a loop in the tree, unbindable …
_NOT_POSSIBLE = (
    errno.EACCES, errno.EBUSY, errno.EEXIST, errno.EINVAL, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EPERM,
    errno.EROFS,
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def mount(source: bytes, target: bytes, fstype: bytes | None = None, flags: int = 0) -> None:
    _check(_libc.mount(source, target, fstype, ctypes.c_ulong(flags), None))


def mount_beneath(target: bytes) -> None:
    """A new tmpfs below the topmost mount on ``target`` (Linux 6.5)."""
    context = _check(_libc.syscall(_FSOPEN, b"tmpfs", 1))
    try:
        _check(_libc.syscall(_FSCONFIG, context, _CONFIG_CREATE, None, None, 0))
        made = _check(_libc.syscall(_FSMOUNT, context, 1, 0))
    finally:
        os.close(context)
    try:
        _check(_libc.syscall(_MOVE_MOUNT, made, b"", -100, target, _F_EMPTY_PATH | _BENEATH))
    finally:
        os.close(made)


class Tree:
    """A tree in the making below ``top``. ``done`` counts the steps of each kind that were possible."""

    def __init__(self, top: bytes, outside: bytes, dice: random.Random) -> None:
        self.top = top
        self.outside = outside
        self.dice = dice
        self.done: Counter[str] = Counter()
        self.points = [top + b"/" + name for name in (b"dev", b"run", b"proc", b"sys", b"dev/shm")]

    def grow(self, steps: int) -> None:
        for kind in self.dice.choices(list(_STEPS), list(_STEPS.values()), k=steps):
            if kind not in ("directory", "file", "symlink") and self._count() > _MOUNTS_MAX:
                continue
            try:
                if self._do(kind):
                    self.done[kind] += 1
            except OSError as error:
                if error.errno not in _NOT_POSSIBLE:
                    raise

    def _count(self) -> int:
        """The mounts on and below the top; seen from inside, those that can be reached."""
        with open("/proc/self/mountinfo", "rb") as file:
            return sum((line.split(b" ")[4] + b"/").startswith(self.top + b"/") for line in file)

    def _visible(self) -> tuple[list[bytes], list[bytes]]:
        """Directories and files that can be reached now; the insides of /proc and /sys are left alone."""
        directories, files = [self.top or b"/"], []
        kernels = (self.top + b"/proc", self.top + b"/sys")
        for where, below, names in itertools.islice(os.walk(self.top or b"/"), 50):
            here = where.rstrip(b"/")
            below[:] = [
                n
                for n in sorted(below)
                if here + b"/" + n not in kernels and not os.path.islink(here + b"/" + n)
            ]
            directories += [here + b"/" + name for name in below]
            files += [here + b"/" + name for name in names if os.path.isfile(here + b"/" + name)]
        return directories, files

    def _do(self, kind: str) -> bool:
        directories, files = self._visible()
        target, second = self.dice.choices(directories, k=2)
        # A mount point that something hides is no path to use: a symlink in its place could lead outside.
        points = [point for point in self.points if point in directories]
        name = self.dice.choice(_NAMES)
        if kind == "directory":
            os.mkdir(target + b"/" + name)
        elif kind == "file":
            open(target + b"/" + name, "x").close()
        elif kind == "symlink":
            ends = [self.outside, b"../" * 30 + self.outside[1:], b"..", b"/", name]
            os.symlink(self.dice.choice(ends), target + b"/" + name)
        elif kind == "plain":
            mount(b"tree", target, b"tmpfs")
            self.points.append(target)
        elif kind == "bind of a file":
            if not files:
                return False
            mount(self.dice.choice(files), self.dice.choice(files), None, _MS_BIND)
        elif kind.startswith("bind"):
            if kind == "bind recursively" and self._count() * 2 > _MOUNTS_MAX:
                return False
            mount(second, target, None, _MS_BIND | (_MS_REC if kind == "bind recursively" else 0))
            self.points.append(target)
        elif not points:
            return False
        elif kind == "stacked":
            mount(b"tree", self.dice.choice([*points, self.top or b"/"]), b"tmpfs")
        elif kind == "hidden":
            hidden = os.path.dirname(self.dice.choice(points))
            if len(hidden) <= len(self.top):
                return False
            mount(b"tree", hidden, b"tmpfs")
            self.points.append(hidden)
        elif kind == "moved":
            mount(self.dice.choice(points), second, None, _MS_MOVE)
            self.points.append(second)
        elif kind == "beneath":
            mount_beneath(self.dice.choice([*points, self.top or b"/"]))
        else:
            word = "shared" if kind == "shared" else self.dice.choice(list(_PROPAGATIONS))
            point = self.dice.choice(points)
            mount(b"none", point, None, _PROPAGATIONS[word] | self.dice.choice([0, _MS_REC]))
        return True
