"""Check names and paths by their text, before the kernel gets them."""

from __future__ import annotations

import re

from chrootfw.errors import InputError

#: Longest name of an instance, in characters.
NAME_MAX = 200
#: Longest path that the kernel takes, in bytes without the final NUL (PATH_MAX - 1).
PATH_MAX = 4095
#: Longest component of a path, in bytes (the kernel's NAME_MAX).
COMPONENT_MAX = 255

_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_REST = _FIRST | frozenset("._-")


def check_name(name: object, what: str = "instance name") -> str:
    """Check that a value is a name: `[A-Za-z0-9][A-Za-z0-9._-]{0,199}`.

    Args:
        name: The value to check.
        what: The kind of name, for the error.

    Returns:
        The name.

    Raises:
        InputError: The value is not a valid name.
    """
    if not isinstance(name, str):
        raise InputError(f"the {what} is {name!r}; it must be a string")
    shown = repr(name if len(name) <= 60 else name[:57] + "…")
    rule = "a name is 1 to 200 of A-Z a-z 0-9 . _ - and begins with a letter or digit"
    if not name:
        raise InputError(f"the {what} is empty", hint=rule)
    if len(name) > NAME_MAX:
        raise InputError(
            f"the {what} {shown} has {len(name)} characters, more than {NAME_MAX}", hint=rule
        )
    if name[0] not in _FIRST:
        raise InputError(f"the {what} {shown} begins with {name[0]!r}", hint=rule)
    for character in name:
        if character not in _REST:
            raise InputError(f"the {what} {shown} contains {character!r}", hint=rule)
    return name


def check_absolute(path: object, what: str) -> str:
    """Check that a path is absolute and normalised, as Ganeti's `IsNormAbsPath` does.

    A normalised path has no `.`, `..`, empty component or trailing slash (`/` itself is valid). By
    its text, such a path cannot leave the directory in which it is used.

    Args:
        path: The value to check.
        what: The path's name, for the error.

    Returns:
        The path.

    Raises:
        InputError: The value is not such a path, or the kernel could not take it.
    """
    if not isinstance(path, str):
        raise InputError(f"{what} is {path!r}; it must be an absolute path")
    shown = repr(path if len(path) <= 120 else path[:117] + "…")
    if not path:
        raise InputError(f"{what} is empty; it must be an absolute path")
    if "\0" in path:
        raise InputError(f"{what} {shown} contains a NUL byte")
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InputError(
            f"{what} {shown} contains a lone surrogate, which no file name can hold"
        ) from None
    if not path.startswith("/"):
        raise InputError(f"{what} {shown} is not an absolute path", hint="begin it with /")
    if len(raw) > PATH_MAX:
        raise InputError(f"{what} {shown} is longer than {PATH_MAX} bytes")
    if path == "/":
        return path
    for component in path[1:].split("/"):
        if component in ("", ".", ".."):
            raise InputError(
                f"{what} {shown} is not normalised",
                hint="write it without '.', '..', double or trailing slashes",
            )
        if len(component.encode("utf-8", "surrogateescape")) > COMPONENT_MAX:
            raise InputError(f"{what} {shown} has a component longer than {COMPONENT_MAX} bytes")
    return path


def check_at(at: object) -> str:
    """Check that a mount's place is `root` or `aux:NAME`.

    Returns:
        The place.

    Raises:
        InputError: The value is neither.
    """
    if at == "root":
        return "root"
    if isinstance(at, str) and at.startswith("aux:"):
        check_name(at[4:], "name of an auxiliary mount")
        return at
    raise InputError(f"a mount's place is {at!r}; it must be 'root' or 'aux:NAME'")


def components(path: str) -> tuple[str, ...]:
    """Split an absolute, normalised path into its components; `/` has none."""
    return tuple(part for part in path.split("/") if part)


def escape_colons(path: str) -> str:
    r"""Write a path as a part of a bind: `\:` for a colon, `\\` for a backslash."""
    return path.replace("\\", "\\\\").replace(":", "\\:")


def split_colons(text: str) -> list[str]:
    r"""Split a text at its colons; `\:` is a colon, `\\` a backslash, each as a character."""
    parts = [""]
    for piece in re.findall(r"\\[:\\]|.", text, re.DOTALL):
        if piece == ":":
            parts.append("")
        else:
            parts[-1] += piece[-1]
    return parts


def is_within(path: str, directory: str) -> bool:
    """Check by components that a path is a directory or below it: `/a10` is not within `/a1`."""
    if directory == "/":
        return path.startswith("/")
    return path == directory or path.startswith(directory + "/")


def is_within_bytes(path: bytes, directory: bytes) -> bool:
    """Check the same as `is_within` for paths of any bytes, as in the mount table."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")
