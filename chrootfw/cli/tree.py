"""Draw the mounts, processes and outside holders of an instance, for ``tree``."""

from __future__ import annotations

from chrootfw.cli.render import clip, columns, describe_state, paint
from chrootfw.planning.printable import Shown, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, TextIO

    from chrootfw.views import InstanceInfo, Process

#: The end of a line is not clipped to less; a line that is still too long is clipped as a whole.
_NARROWEST = 12


def draw(
    info: InstanceInfo,
    mounts: Sequence[dict[str, Any]],
    processes: Sequence[Process],
    stream: TextIO,
) -> Shown:
    """Return the answer of ``tree``, within the columns of a terminal.

    Args:
        info: The instance in full.
        mounts: Its mounts, each with its ``id`` and ``parent`` (``state.show.read_tree``).
        processes: Its own processes and its outside holders.
        stream: Where the tree is going to be printed.
    """
    width = columns(stream)
    own = [each for each in processes if each.own]
    others = [each for each in processes if not each.own]
    lines: list[str] = [_fit(f"{info.name}: {describe_state(info)}", "", width, stream)]
    if info.disk:
        lines.append(_fit("disk ", info.disk, width, stream))
    if mounts:
        lines.append(paint("mounts", "bold", stream))
    for branch, mount in _branches(mounts):
        text = f"{branch}{printable(mount['target'])}  {printable(mount['fstype'])} "
        read_only = " (ro)" if "ro" in mount.get("options", ()) else ""
        lines.append(_fit(text, mount["source"] + read_only, width, stream))
    if own:
        lines.append(paint("processes", "bold", stream))
    for branch, process in _leaves(own):
        words = " ".join(process.arguments or ()) or process.command
        lines.append(_fit(f"{branch}{process.pid or '-'} {process.user}  ", words, width, stream))
    if others:
        lines.append(paint("outside holders", "bold", stream))
    for branch, process in _leaves(others):
        who = f"pid {process.pid} ({process.command}, {process.user})"
        text = f"{branch}{who if process.pid else process.command}: {process.why} "
        lines.append(_fit(text, process.what, width, stream))
    if info.holders is None and info.state != "absent":
        lines.append(
            _fit("outside holders: only the root user can look for them", "", width, stream)
        )
    return Shown("\n".join(lines))


def _fit(text: str, end: str, width: int | None, stream: TextIO) -> Shown:
    """Put a line together, its end clipped first."""
    text, end = printable(text), printable(end)
    if width is None:
        return Shown((text + end).rstrip())
    end = clip(end, max(width - len(text), _NARROWEST), stream)
    line = Shown((text + end).rstrip())
    return clip(line, width, stream)


def _leaves(found: Sequence[Process]) -> Iterator[tuple[str, Process]]:
    for number, each in enumerate(found, 1):
        yield "└── " if number == len(found) else "├── ", each


def _branches(mounts: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk the mounts from the top, each with the lines that lead to it.

    What has no parent among them stands at the top.
    """
    known = {mount["id"] for mount in mounts}
    below: dict[int | None, list[dict[str, Any]]] = {}
    for mount in mounts:
        parent = mount["parent"] if mount["parent"] in known else None
        below.setdefault(parent, []).append(mount)
    waiting = [("", mount, number == 0) for number, mount in enumerate(below.get(None, [])[::-1])]
    while waiting:
        indent, mount, is_last = waiting.pop()
        yield indent + ("└── " if is_last else "├── "), mount
        indent += "    " if is_last else "│   "
        children = below.get(mount["id"], [])[::-1]
        waiting += [(indent, child, number == 0) for number, child in enumerate(children)]
