"""Find users and groups in an instance's own /etc/passwd and /etc/group (passwd(5), group(5))."""

from __future__ import annotations

import errno
import os

from chrootfw.errors import InputError
from chrootfw.linux.root import ANSWERS, Root
from chrootfw.planning.ids import check_user, is_decimal, parse_id
from chrootfw.planning.paths import PATH_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

#: Bytes of a file, of a line, and of one read: enough for some 50,000 users.
_SIZE_MAX, _LINE_MAX, _CHUNK = 4 << 20, 1 << 20, 1 << 16
#: Longest name of a user, in bytes (LOGIN_NAME_MAX of limits.h, without the final NUL).
NAME_MAX = 255
#: Most supplementary groups, as in setgroups(2).
_GROUPS_MAX = 65_536


class User:
    """A user of the root.

    Attributes:
        name: The user's name.
        uid: The user ID.
        gid: The group ID.
        groups: The supplementary group IDs.
        home: The home directory.
        shell: The login shell.
    """

    __slots__ = ("gid", "groups", "home", "name", "shell", "uid")

    def __init__(
        self, name: str, uid: int, gid: int, groups: Sequence[int], home: str, shell: str
    ) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home
        self.shell = shell


def find(root: str, wanted: str) -> User:
    """Find a user.

    Digits are a number, even if a user has that name. A number without an entry is valid: it gets
    the group of the same number, and no home. An entry without valid IDs is ignored for numbers.

    Args:
        root: The path of the root.
        wanted: A name or a number, optionally with `:group`.

    Raises:
        InputError: The root has no such user or group, the IDs are not valid, or a file cannot be
            read.
        OSError: A file does not answer in time, or another process has a lease on it.
    """
    who, group = check_user(wanted)
    name, uid, gid, home, shell = _account(root, who)
    if group is None:
        groups = {gid, *_memberships(root, name)}
    else:
        gid = _group(root, group)
        groups = {gid}
    return User(
        os.fsdecode(name), uid, gid, sorted(groups), _path(home, "/"), _path(shell, "/bin/sh")
    )


def names(root: str, uids: Collection[int], *, seconds: float) -> dict[int, str]:
    """Find the names of users by their numbers; the first entry of a number counts.

    Args:
        root: The path of the root.
        uids: The numbers.
        seconds: Seconds for each read of the file.

    Returns:
        The names of those that the root's own /etc/passwd has; none of over `NAME_MAX` bytes.

    Raises:
        InputError: The file cannot be read.
        OSError: It does not answer in time, or another process has a lease on it.
    """
    found: dict[int, str] = {}
    for row in _rows(root, "/etc/passwd", 7, seconds):
        uid = parse_id(row[2])
        if uid is not None and uid in uids and 0 < len(row[0]) <= NAME_MAX:
            found.setdefault(uid, os.fsdecode(row[0]))
            if len(found) == len(uids):
                break
    return found


def find_root(root: str) -> User:
    """Find the root user; its entry gives only the shell, and may be missing or unreadable."""
    try:
        return find(root, "0")
    except InputError:
        return User("root", 0, 0, (0,), "/root", "/bin/sh")


def by_number(wanted: str) -> User:
    """Make a user from numbers, without reading the root's files.

    Args:
        wanted: A user ID, optionally with `:` and a group ID.

    Raises:
        InputError: The user or group is not a number.
    """
    who, group = check_user(wanted)
    if not is_decimal(who) or (group is not None and not is_decimal(group)):
        raise InputError(f"the user {wanted!r} is not a number")
    uid, gid = int(who), int(who if group is None else group)
    return User(who if uid else "root", uid, gid, (gid,), "/" if uid else "/root", "/bin/sh")


def ids(root: str, wanted: str | None) -> tuple[int, int, Sequence[int]]:
    """Return user, group and supplementary groups for `spawn`.

    Args:
        root: The path of the root.
        wanted: A user as for `find`; `None` for the root user.

    Raises:
        InputError: The user is not found.
    """
    if wanted is None:
        return 0, 0, (0,)
    user = find(root, wanted)
    return user.uid, user.gid, user.groups


def _account(root: str, who: str) -> tuple[bytes, int, int, bytes, bytes]:
    """Find name, IDs, home and shell of a user."""
    number, name = parse_id(who), os.fsencode(who)
    for row in _rows(root, "/etc/passwd", 7):
        uid, gid = parse_id(row[2]), parse_id(row[3])
        if number is not None:
            if uid == number and gid is not None and len(row[0]) <= NAME_MAX:
                return row[0], uid, gid, row[5], row[6]
        elif row[0] == name:
            if uid is None or gid is None:
                raise InputError(
                    f"the user {who!r} has no valid user and group ID in "
                    "the root's own /etc/passwd",
                    hint="correct its entry, or give a number",
                )
            return name, uid, gid, row[5], row[6]
    if number is None:
        raise InputError(
            f"there is no user {who!r} in the root's own /etc/passwd",
            hint="give a name from there, or a number",
        )
    return name, number, number, b"", b""


def _memberships(root: str, name: bytes) -> set[int]:
    """Find the groups that a user is a member of, without groups that have no valid ID."""
    found: set[int] = set()
    for row in _rows(root, "/etc/group", 4):
        if b",%s," % name in b",%s," % row[3] and (gid := parse_id(row[2])) is not None:
            found.add(gid)
            if len(found) >= _GROUPS_MAX:
                raise InputError(
                    f"the user {os.fsdecode(name)!r} is in more than "
                    f"{_GROUPS_MAX - 1} groups of the root"
                )
    return found


def _group(root: str, wanted: str) -> int:
    if is_decimal(wanted):
        return int(wanted)  # check_user has checked that it is an ID
    name = os.fsencode(wanted)
    for row in _rows(root, "/etc/group", 4):
        if row[0] == name:
            if (gid := parse_id(row[2])) is not None:
                return gid
            raise InputError(f"the group {wanted!r} has no valid ID in the root's own /etc/group")
    raise InputError(f"there is no group {wanted!r} in the root's own /etc/group")


def _rows(root: str, path: str, width: int, seconds: float = ANSWERS) -> Iterator[list[bytes]]:
    """Yield the entries of a file with at least `width` fields; none if the file does not exist."""
    left, rest = _SIZE_MAX, b""
    try:
        with Root(root, seconds=seconds).open(path, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                left -= len(chunk)
                if left < 0 or len(rest) > _LINE_MAX:
                    raise InputError(f"the root's own {path} is too large to be read")
                *lines, rest = (rest + chunk).split(b"\n")
                yield from _split(lines, width)
        yield from _split([rest], width)
    except OSError as error:
        # No answer in time, or a lease: the file may exist.
        if error.errno in (errno.ETIMEDOUT, errno.EAGAIN):
            raise
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise InputError(f"cannot read the root's own {path}: {error.strerror}") from error


def _split(lines: list[bytes], width: int) -> Iterator[list[bytes]]:
    """Split the lines that are entries.

    Shorter lines than `width` colons are skipped first, because a file may consist of empty lines.
    """
    for line in [line for line in lines if len(line) >= width]:
        row = line.split(b":", width)
        if len(row) >= width and b"\0" not in line:
            yield row


def _path(field: bytes, default: str) -> str:
    return os.fsdecode(field) if field.startswith(b"/") and len(field) <= PATH_MAX else default
