"""The resource limits of an instance's processes: names, defaults, notation (setrlimit(2))."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

UNLIMITED = -1
_MIB = 1 << 20

#: By name: soft and hard limit of a process that the caller's limits do not reach, as systemd sets
#: them. `None`: those of pid 1, which the kernel computes from the memory of the machine.
DEFAULTS: dict[str, tuple[int, int] | None] = {
    "cpu": (UNLIMITED, UNLIMITED),
    "fsize": (UNLIMITED, UNLIMITED),
    "data": (UNLIMITED, UNLIMITED),
    "stack": (8 * _MIB, UNLIMITED),
    "core": (0, UNLIMITED),
    "rss": (UNLIMITED, UNLIMITED),
    "nproc": None,
    "nofile": (1024, 524288),
    "memlock": (8 * _MIB, 8 * _MIB),
    "as": (UNLIMITED, UNLIMITED),
    "locks": (UNLIMITED, UNLIMITED),
    "sigpending": None,
    "msgqueue": (819200, 819200),
    "nice": (0, 0),
    "rtprio": (0, 0),
    "rttime": (UNLIMITED, UNLIMITED),
}
#: chrootfw's own descriptors, before the program runs.
_NOFILE_MIN = 16


def is_below(one: int, other: int) -> bool:
    """Return whether a limit is lower than another one."""
    return one != UNLIMITED and (other == UNLIMITED or one < other)


def parse_limit(value: object) -> tuple[int, int]:
    """Return the soft and the hard limit of ``N``, ``"N"``, ``"unlimited"`` or ``"SOFT:HARD"``.

    Raises:
        ValueError: It is none of these; the text says what is wrong.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError('it must be a number, or a string such as "1024:524288"')  # noqa: TRY004
    soft_text, colon, hard_text = str(value).partition(":")
    soft = _parse_one(soft_text)
    hard = _parse_one(hard_text) if colon else soft
    if is_below(hard, soft):
        raise ValueError("the soft limit is above the hard one")
    return soft, hard


def _parse_one(text: str) -> int:
    if text in ("unlimited", "infinity"):
        return UNLIMITED
    if not (text.isascii() and text.isdigit() and len(text) < 20) or int(text) >= 1 << 63:
        raise ValueError(f"{text!r} is not a number of at most 63 bits, and not unlimited")
    return int(text)


def find_wrong(limits: Mapping[str, object]) -> str | None:
    """Return what is wrong with the parameter ``limits``, or ``None``."""
    for name, value in limits.items():
        if name not in DEFAULTS:
            return f"there is no limit {name!r}, only {', '.join(DEFAULTS)}"
        try:
            soft, _ = parse_limit(value)
        except ValueError as error:
            return f"{name}: {error}"
        if name == "nofile" and is_below(soft, _NOFILE_MIN):
            return f"nofile: a process needs at least {_NOFILE_MIN}"
    return None
