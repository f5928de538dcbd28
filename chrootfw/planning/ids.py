"""Check user and group IDs, seconds, and the words of a command before the kernel gets them."""

from __future__ import annotations

from chrootfw.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The greatest user or group ID. One more means "leave it as it is" to setresuid(2), and two more
#: is 0 to the kernel.
ID_MAX = 2**32 - 2


def is_decimal(text: str | bytes) -> bool:
    """Check that a text is ASCII digits and nothing else (`str.isdigit` accepts `²` too)."""
    return text.isascii() and text.isdigit()


def parse_id(text: str | bytes) -> int | None:
    """Read a user or group ID.

    Returns:
        The ID, from 0 to `ID_MAX`; `None` if the text is not ASCII digits, or is too large.
    """
    if not is_decimal(text) or len(text) > 10:
        return None
    number = int(text)
    return number if number <= ID_MAX else None


def is_id(number: object) -> bool:
    """Check that a value is an `int` from 0 to `ID_MAX`."""
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= ID_MAX


def check_seconds(value: object, what: str, *, least: float = 0, most: float = 86_400) -> float:
    """Check that a value is a number of seconds within its limits.

    Args:
        value: The value to check.
        what: The value's name, for the error.
        least: The smallest valid number of seconds.
        most: The largest valid number of seconds.

    Returns:
        The value.

    Raises:
        InputError: The value is not a number, or is outside the limits.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InputError(
            f"{what} is {value!r:.60}; it must be a number of seconds from {least:g} to {most:g}"
        )
    return value


def check_user(wanted: object) -> tuple[str, str | None]:
    """Split `USER` or `USER:GROUP` into user and group.

    Args:
        wanted: The text. Each part is a name or a number.

    Returns:
        The user, and the group or `None` if there is none.

    Raises:
        InputError: The value is not a string, a part is empty, or a number is not a valid ID.
    """
    if not isinstance(wanted, str):
        raise InputError(f"the user is {wanted!r}; it must be a string: a name or a number")
    user, colon, group = check_text(wanted, "the user").partition(":")
    for part, what in ((user, "user"), *([(group, "group")] if colon else [])):
        if not part:
            raise InputError(
                f"the {what} in {wanted!r} is empty", hint=f"give a {what}'s name or number"
            )
        if is_decimal(part) and parse_id(part) is None:
            shown = part if len(part) <= 40 else f"{part[:40]}…"
            raise InputError(
                f"{shown} is not a valid {what} ID", hint=f"an ID is a number from 0 to {ID_MAX}"
            )
    return user, group if colon else None


def check_text(text: object, what: str) -> str:
    """Check that a value is a string that execve(2) takes whole.

    Args:
        text: The value to check.
        what: The value's name, for the error.

    Returns:
        The value.

    Raises:
        InputError: The value is not a `str`, contains a NUL byte, or has a lone surrogate that
            stands for no byte.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} is {text!r}; it must be a string")
    if "\0" in text:
        raise InputError(f"{what} {text!r} contains a NUL byte")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InputError(f"{what} {text!r} contains a lone surrogate") from None
    return text


def check_words(words: Iterable[object]) -> list[str]:
    """Check every word of a command with `check_text`.

    Returns:
        The words, as a list.

    Raises:
        InputError: A word is not valid.
    """
    return [check_text(word, "the word of the command") for word in words]


def check_environment(env: Mapping[str, str]) -> Mapping[str, str]:
    """Check the names and values of environment variables.

    Returns:
        The same mapping.

    Raises:
        InputError: A name is empty or contains `=`, or `check_text` refuses a name or a value.
    """
    for name, value in env.items():
        if not check_text(name, "the name of an environment variable") or "=" in name:
            raise InputError(f"{name!r} is not a valid name of an environment variable")
        check_text(value, f"the value of the environment variable {name}")
    return env
