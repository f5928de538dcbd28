"""Users and groups as an instance's own /etc/passwd and /etc/group know them (passwd(5), group(5))."""

from __future__ import annotations

from chrootfw.errors import InputError
from chrootfw.system.root import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class User:
    """``name``, ``uid``, ``gid``, supplementary ``groups``, ``home`` and ``shell``."""

    __slots__ = ("gid", "groups", "home", "name", "shell", "uid")

    def __init__(self, name: str, uid: int, gid: int, groups: Sequence[int], home: str, shell: str) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home
        self.shell = shell


def find(root: str, wanted: str) -> User:
    """The user ``wanted``, a name or a number, optionally with ``:group``. Raises ``InputError``.

    A number without an entry is taken as it is, with the group of the same number and no home of its own.
    """
    who, colon, group = wanted.partition(":")
    entry = next((f for f in _table(root, "/etc/passwd", 7) if who in (f[0], f[2])), None)
    if entry is None and not who.isdigit():
        raise InputError(
            f"there is no user {who!r} in the root's own /etc/passwd", hint="give a name from there, or a number"
        )
    name, uid, gid, home, shell = (
        (entry[0], int(entry[2]), int(entry[3]), entry[5], entry[6])
        if entry
        else (who, int(who), int(who), "/", "/bin/sh")
    )
    groups = [int(f[2]) for f in _table(root, "/etc/group", 4) if name in f[3].split(",")]
    if colon:
        gid = _group(root, group)
        groups = []
    return User(name, uid, gid, sorted({gid, *groups}), home or "/", shell or "/bin/sh")


def ids(root: str, wanted: str | None) -> tuple[int, int, Sequence[int]]:
    """User, group and supplementary groups for ``spawn``; root's without a name. Raises ``InputError``."""
    if wanted is None:
        return 0, 0, (0,)
    user = find(root, wanted)
    return user.uid, user.gid, user.groups


def _group(root: str, wanted: str) -> int:
    entry = next((f for f in _table(root, "/etc/group", 4) if wanted in (f[0], f[2])), None)
    if entry is None and not wanted.isdigit():
        raise InputError(f"there is no group {wanted!r} in the root's own /etc/group")
    return int(entry[2]) if entry else int(wanted)


def _table(root: str, path: str, width: int) -> list[list[str]]:
    try:
        with Root(root).open(path, encoding="utf-8", errors="surrogateescape") as file:
            rows = [line.rstrip("\n").split(":") for line in file]
    except OSError:
        return []
    return [row for row in rows if len(row) >= width and row[2].isdigit()]
