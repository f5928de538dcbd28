"""Names and lexical path checks; what is refused here never reaches the kernel."""

from __future__ import annotations

from chrootfw.errors import InputError

#: Longest name of an instance, in characters.
NAME_MAX = 200
#: Longest path that the kernel takes, in bytes, the closing NUL not counted (PATH_MAX - 1).
PATH_MAX = 4095
#: Longest component of a path in bytes (NAME_MAX of the kernel).
COMPONENT_MAX = 255

_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_REST = _FIRST | frozenset("._-")


def check_name(name: object, what: str = "instance name") -> str:
    """``name`` if it is one: ``[A-Za-z0-9][A-Za-z0-9._-]{0,199}``. Raises ``InputError``."""
    if not isinstance(name, str):
        raise InputError(f"the {what} is {name!r}; it must be a string")
    shown = repr(name if len(name) <= 60 else name[:57] + "…")
    rule = "a name is 1 to 200 of A-Z a-z 0-9 . _ - and begins with a letter or digit"
    if not name:
        raise InputError(f"the {what} is empty", hint=rule)
    if len(name) > NAME_MAX:
        raise InputError(f"the {what} {shown} has {len(name)} characters, more than {NAME_MAX}", hint=rule)
    if name[0] not in _FIRST:
        raise InputError(f"the {what} {shown} begins with {name[0]!r}", hint=rule)
    for character in name:
        if character not in _REST:
            raise InputError(f"the {what} {shown} contains {character!r}", hint=rule)
    return name


def check_absolute(path: object, what: str) -> str:
    """``path`` if it is an absolute, normalised path, as Ganeti's ``IsNormAbsPath`` wants it.

    Normalised: no ``.``, ``..``, empty component or trailing slash (``/`` itself is fine). Such a path
    cannot lexically leave the directory it is taken in. Raises ``InputError``.
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
        raise InputError(f"{what} {shown} contains a lone surrogate, which no file name can hold") from None
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
    """``at`` if it is ``root`` or ``aux:NAME``. Raises ``InputError``."""
    if at == "root":
        return "root"
    if isinstance(at, str) and at.startswith("aux:"):
        check_name(at[4:], "name of an auxiliary mount")
        return at
    raise InputError(f"a mount's place is {at!r}; it must be 'root' or 'aux:NAME'")


def components(path: str) -> tuple[str, ...]:
    """The components of an absolute, normalised path; none for ``/``."""
    return tuple(part for part in path.split("/") if part)


def is_within(path: str, directory: str) -> bool:
    """Whether ``path`` is ``directory`` or below it, by component: ``/a10`` is not within ``/a1``."""
    if directory == "/":
        return path.startswith("/")
    return path == directory or path.startswith(directory + "/")


def is_within_bytes(path: bytes, directory: bytes) -> bool:
    """``is_within`` for paths of any bytes, as the mount table has them."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")
