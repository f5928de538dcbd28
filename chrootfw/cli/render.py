"""How the command line shows things to people: plain tables, sizes, colours only on a terminal.

Everything that the command prints goes through ``show`` or ``show_json``; nothing else writes. Text
comes from roots, disks,
records and plugins, and may hold what a terminal obeys: ``show`` prints it as ``printable`` makes
it, one line as one line.
"""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import contextmanager

from chrootfw.cli.width import given_columns
from chrootfw.errors import (
    HeldError,
    Interrupted,
    Lines,
    PluginError,
    ScriptError,
    word_for_command,
)
from chrootfw.planning.printable import Shown, printable, printable_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, TextIO

    from chrootfw.errors import ChrootfwError
    from chrootfw.model import Parameter, Plan
    from chrootfw.views import (
        Check,
        EffectiveParameter,
        EffectiveParameters,
        InstanceInfo,
        NodeInfo,
        Process,
    )

_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
#: The colour of each state.
STATE_COLOURS = {
    "running": "green", "mounted": "cyan", "mounted (ended)": "yellow", "held": "red",
    "absent": "dim",
}  # fmt: skip
#: Characters of a command line that a table shows.
_ARGUMENTS_MAX = 120
_STATUS_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}

#: No column of a table is clipped to less.
_NARROWEST = 8
#: The columns of ``list`` that are clipped, the first one first, and the least width of each.
_CLIPS = {"DISK": 10, "NAME": _NARROWEST}

#: The longest name of a check for which the details of all are moved to the right.
_NAME_MAX = 28

#: What stands before the description in a line of a plan: its number and stage.
_PLAN_LINE = re.compile(r" *[0-9]+  [a-z-]+ +")

#: When there are colours, as ``choose_colours`` was given it.
_when = ["auto"]

#: What chrootfw prints by itself beside ASCII, and what stands for it where it cannot be written.
_ASCII = str.maketrans(
    {"✓": "+", "✗": "x", "…": "...", "→": "->", "├": "|", "└": "`", "│": "|", "─": "-"}
)

#: What may stand beside a name in a sentence.
_PUNCTUATION = str.maketrans(dict.fromkeys(":,;()", " "))


class Unwritable(Exception):
    """Standard output does not take what is to be printed.

    Args:
        error: The reason.
    """

    def __init__(self, error: OSError | ValueError) -> None:
        super().__init__(str(error))
        self.error = error


#: Called before anything is printed: takes a live line away.
before_print: list[Callable[[], None]] = []

#: The warnings that were printed while standard output was reserved, for the JSON of the answer.
_warnings: list[dict[str, str | None]] = []

#: Standard output while ``sys.stdout`` is not.
_reserved: TextIO | None = None


@contextmanager
def reserve_stdout() -> Iterator[None]:
    """Keep standard output for the JSON of the answer: what a plugin prints goes to stderr."""
    global _reserved  # noqa: PLW0603  # like sys.stdout, whose place it takes
    _reserved = before = sys.stdout
    _warnings.clear()
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        _reserved, sys.stdout = None, before


def _stdout() -> TextIO:
    return _reserved or sys.stdout


def show(text: str, stream: TextIO | None = None) -> None:
    """Print lines.

    Args:
        text: The text.
        stream: ``None`` for standard output; what another stream does not take is lost.

    Raises:
        Unwritable: Standard output does not take it.
    """
    _write(Shown("\n".join([*printable_lines(text), ""])), stream)


def keep_warning(text: str, kind: str = "warning", *, instance: str = "", plugin: str = "") -> None:
    """Keep a warning, which is printed on stderr as well, for the JSON of the answer.

    Args:
        text: The warning, one line or several.
        kind: ``warning``, or ``plugin-error``.
        instance: The instance that it is about; ``""`` for none.
        plugin: The plugin; ``""`` for none.
    """
    if _reserved is None:
        return
    lines = text.lines if isinstance(text, Lines) else (text,)
    meant = "\n".join(map(word_for_command, lines))
    warning = {"kind": kind, "instance": instance or None, "plugin": plugin, "text": meant}
    _warnings.append(warning)


def show_output_line(line: bytes) -> None:
    """Print one line that a process of an instance has printed.

    A terminal gets it escaped, everything else byte for byte. It is written out at once.

    Args:
        line: The line without its end.

    Raises:
        Unwritable: Standard output does not take it.
    """
    if sys.stdout.isatty():
        shown = line.removesuffix(b"\r")  # what a program on a terminal ends a line with
        show(shown.decode("utf-8", "backslashreplace").expandtabs())
    else:
        try:
            sys.stdout.buffer.write(line + b"\n")
        except (OSError, ValueError) as error:
            raise Unwritable(error) from error
    flush()


def show_json(value: dict[str, Any]) -> None:
    """Print the JSON form of an answer.

    Args:
        value: The answer's keys, without the version.

    Raises:
        Unwritable: Standard output does not take it.
    """
    import json

    answer = {"version": 1, **value, "warnings": _warnings[:]}
    _warnings.clear()  # a program may call "main" again
    _write(Shown(json.dumps(answer, indent=2, default=str) + "\n"), None)


def flush() -> None:
    """Write out standard output.

    Raises:
        Unwritable: Standard output does not take it.
    """
    try:
        _stdout().flush()
    except (OSError, ValueError) as error:
        raise Unwritable(error) from error


def _write(text: Shown, stream: TextIO | None) -> None:
    into = _stdout() if stream is None else stream
    for call in tuple(before_print):
        call()
    try:
        if not text.isascii() and not _is_unicode(into):
            text = Shown(text.translate(_ASCII))
        into.write(text)
        if into is not _stdout():
            into.flush()
    except (OSError, ValueError) as error:  # nobody reads it, it is full, it is closed
        if into is _stdout():
            raise Unwritable(error) from error


def _is_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "utf-8").lower().replace("-", "") == "utf8"


def join(*parts: str) -> Shown:
    """Put parts into one line, colours and all."""
    return Shown("".join(map(printable, parts)))


def _joined(lines: Iterable[str]) -> Shown:
    return Shown("\n".join(map(printable, lines)))


def choose_colours(when: str) -> None:
    """Decide when there are colours.

    Args:
        when: ``always``, ``never``, or ``auto``.
    """
    _when[:] = [when]


def has_colours(stream: TextIO) -> bool:
    """Return whether what is printed on a stream has colours.

    With ``auto``: on a terminal that knows colours, unless NO_COLOR is set and not empty.
    """
    if _when[0] != "auto":
        return _when[0] == "always"
    return (
        not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and is_terminal(stream)
    )


def paint(text: str, colour: str, stream: TextIO) -> Shown:
    """Colour ``text`` if what is printed on ``stream`` has colours."""
    shown = printable(text)
    if not shown or not has_colours(stream):
        return shown
    return Shown(f"\033[{_COLOURS[colour]}m{shown}\033[0m")


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal."""
    try:
        return stream.isatty()
    except (OSError, ValueError):  # it is closed
        return False


def size(count: int | None) -> str:
    """Return bytes for people, such as ``10.0 MiB``."""
    if count is None:
        return "-"
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return ""


def columns(stream: TextIO) -> int | None:
    """Return the columns of a terminal; ``None`` for what is not a terminal."""
    if not is_terminal(stream):
        return None
    if given := given_columns():
        return given
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    stream: TextIO,
    colours: dict[int, dict[str, str]],
    *,
    clips: Mapping[int, int] = {},
    numbers: Sequence[int] = (),
    folds_last: bool = False,
) -> Shown:
    """Arrange columns under a header.

    Args:
        header: The titles.
        rows: The cells.
        stream: Where they are going to be printed.
        colours: For a column's number the colour of each word that it may show.
        clips: The columns that are clipped where a terminal is too narrow for the table, each to
            its least width before the next one.
        numbers: The columns whose cells stand at the right, on a terminal.
        folds_last: Whether the last column is folded where a terminal is too narrow for it.
    """
    cells = [[printable(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    available = columns(stream)
    excess = sum(widths) + 2 * len(widths) - 2 - available if available else 0
    for index, least in clips.items():
        less = min(max(excess, 0), max(widths[index] - least, 0))
        widths[index] -= less
        excess -= less

    def line(row: Sequence[Shown]) -> Shown:
        parts: list[str] = []
        for index, whole in enumerate(row):
            if folds_last and index == len(widths) - 1:
                before = sum(widths[:-1]) + 2 * len(widths) - 2
                parts.append(Shown(f"\n{' ' * before}".join(fold(whole, before, stream))))
                continue
            cell = clip(whole, widths[index], stream)
            pad = " " * (widths[index] - len(cell))
            colour = colours.get(index, {}).get(cell)
            painted = paint(cell, colour, stream) if colour else cell
            parts.append(pad + painted if available and index in numbers else painted + pad)
        return Shown("  ".join(parts).rstrip())

    first, *others = map(line, cells)
    return _joined([paint(first, "bold", stream), *others])


def clip(text: Shown, width: int, stream: TextIO | None = None) -> Shown:
    """Return the end of a path, or the beginning of another text, that has a width."""
    if len(text) <= width:
        return text
    # Where "…" cannot be written, "..." is made of it later, which is wider.
    more = "…" if _is_unicode(stream or _stdout()) else "..."
    left = width - len(more)
    return Shown(more + text[-left:] if text.startswith("/") else text[:left] + more)


def describe_state(info: InstanceInfo) -> str:
    """Return the state for people: a service that has ended is not as one that was never run."""
    return f"{info.state.value} (ended)" if info.ended else info.state.value


#: The columns of ``list``, in order, each with how it shows an instance.
LIST_COLUMNS: dict[str, Callable[[InstanceInfo], str]] = {
    "NAME": lambda info: info.name,
    "STATE": describe_state,
    "PROCS": lambda info: str(info.processes) if info.state == "running" else "-",
    "MEMORY": lambda info: size(info.memory_bytes),
    "CPU": lambda info: f"{info.cpu_seconds:.1f} s" if info.cpu_seconds is not None else "-",
    "STARTED": lambda info: _moment(info.started_at),
    "DISK": lambda info: (
        (info.disk or "-")
        + (f"  ({info.namespace})" if info.namespace else "")
        + (f"  (pending undos: {len(info.pending_undos)})" if info.pending_undos else "")
    ),
}


def _moment(text: str | None) -> str:
    """Return a moment for people: UTC, to the second."""
    return (text or "-").replace("T", " ").replace("+00:00", "Z")


def instances(
    found: Sequence[InstanceInfo], stream: TextIO, names: Sequence[str] = tuple(LIST_COLUMNS)
) -> Shown:
    """Return the answer of ``list``.

    On a terminal the table fits its width, and a total stands below.

    Args:
        found: The instances.
        stream: Where they are going to be printed.
        names: The columns, of ``LIST_COLUMNS``.
    """
    rows = [[LIST_COLUMNS[name](info) for name in names] for info in found]
    at = {name: index for index, name in enumerate(names)}
    shown = table(
        names,
        rows,
        stream,
        {at["STATE"]: STATE_COLOURS} if "STATE" in at else {},
        clips={at[name]: least for name, least in _CLIPS.items() if name in at},
        numbers=[at[name] for name in ("PROCS", "MEMORY", "CPU") if name in at],
    )
    if not is_terminal(stream):
        return shown
    return _joined([shown, paint(total(found), "dim", stream)])


def total(found: Sequence[InstanceInfo]) -> str:
    """Return how many instances there are in each state."""
    counts: dict[str, int] = {}
    for info in found:
        counts[info.state.value] = counts.get(info.state.value, 0) + 1
    parts = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return f"{len(found)} instance{'s' * (len(found) != 1)}" + (f": {parts}" if parts else "")


def instance(info: InstanceInfo, stream: TextIO) -> Shown:
    """Return the answer of ``info``."""
    state = paint(describe_state(info), STATE_COLOURS[describe_state(info)], stream)
    lines = [
        join(paint(info.name, "bold", stream), ": ", state),
        f"  disk        {info.disk or '-'}",
    ]
    if info.state != "absent":
        ways = {"cgroup": "their cgroup", "root": "the root that they run in"}
        lines += [
            f"  root        {info.root}",
            f"  started     {_moment(info.started_at)}",
            f"  processes   {info.processes} (found by {ways.get(info.tracking, info.tracking)})",
        ]
    if info.memory_bytes is not None:
        lines.append(f"  memory      {size(info.memory_bytes)} ({info.memory_source})")
    if info.cpu_seconds is not None:
        lines.append(f"  CPU time    {info.cpu_seconds:.2f} s")
    if info.plugins:
        third = [name for name in info.plugins if not name.startswith("chrootfw_defaults.")]
        lines.append(f"  plugins     {', '.join(third) or 'the defaults'}")
    if info.network:
        lines.append(f"  network     a namespace of its own, pinned at {info.network}")
    if info.log:
        logger = f", written by the logger {info.log['logger']}" if info.log["logger"] else ""
        where = {"off": "off", "journal": f"the journal (journalctl -t {info.name})"}
        lines.append(f"  log         {where.get(str(info.log['mode']), info.log['path'])}{logger}")
        if info.log.get("written_at"):
            lines.append(f"  printed     last at {_moment(str(info.log['written_at']))}")
    if info.definition_changed:
        lines.append("  definition  changed since the start; the next start takes it up")
    for number, mount in enumerate(info.mounts or ()):
        label = "mounts" if number == 0 else ""
        options = mount["options"]
        read_only = " (ro)" if isinstance(options, list) and "ro" in options else ""
        lines.append(
            f"  {label:<10}  {mount['target']}  {mount['fstype']} {mount['source']}{read_only}"
        )
    for number, holder in enumerate(info.holders or ()):
        lines.append(f"  {'holders' if number == 0 else '':<10}  {holder.describe()}")
    for number, pending in enumerate(info.pending_undos):
        lines.append(f"  {'to undo' if number == 0 else '':<10}  {pending}")
    if info.ended:
        lines.append(
            "  note        all the processes that its start left have ended, without a stop:"
            f" chrootfw logs {info.name}"
        )
    lines.extend(f"  note        {note}" for note in info.notes)
    if info.namespace:
        lines.append(f"  runs in     {info.namespace}")
    return _joined(lines)


def parameters(groups: Mapping[str, Sequence[Parameter]], stream: TextIO) -> Shown:
    """Return the answer of ``parameters``: each with its meaning below, folded to the width.

    Args:
        groups: The parameters of each subject; those of installed plugins, by the plugin.
        stream: Where they are going to be printed.
    """
    import textwrap

    from chrootfw import config

    width = columns(stream) or 80
    lines: list[str] = []
    for subject, declared in groups.items():
        lines += [*([""] if lines else []), paint(f"{subject}:", "bold", stream)]
        for each in declared:
            name = paint(each.name, "cyan", stream)
            kind = f"({config.type_text(each)}{', in ' + each.unit if each.unit else ''})"
            lines.append(join("  ", name, f" = {config.default_text(each)}  {kind}"))
            lines += textwrap.wrap(
                each.help, width, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return _joined(lines)


def effective(found: EffectiveParameters, origins: Mapping[str, str], stream: TextIO) -> Shown:
    """Return the answer of ``show``.

    Args:
        found: The parameters of an instance.
        origins: The origin of each plugin.
        stream: Where they are going to be printed.
    """
    from chrootfw import config

    def describe_source(each: EffectiveParameter) -> str:
        if each.source == "definition":
            return f"{found.definition}{f':{each.line}' if each.line else ''}"
        if each.source == "start":
            return "the start"
        if each.source == "unknown":
            return "a plugin that is not loaded"
        is_default = origins.get(each.plugin, "default") == "default"
        return "default" if is_default else f"default of {each.plugin}"

    rows = [
        [each.name, config.value_text(each.value), describe_source(each)]
        for each in found.parameters
    ]
    clips = {1: _NARROWEST, 2: _NARROWEST}
    return table(["PARAMETER", "VALUE", "FROM"], rows, stream, {}, clips=clips)


def process_table(
    found: Sequence[tuple[str, Process]], stream: TextIO, *, has_names: bool = False
) -> Shown:
    """Return the answer of ``ps``.

    Args:
        found: The processes, each with the name of its instance.
        stream: Where they are going to be printed.
        has_names: Whether to show the names.
    """
    if not found:
        return printable("no processes")
    now = time.time()
    rows = [
        [
            *([name] if has_names else []),
            str(process.pid or "-"),
            process.user,
            process.why,
            process.state or "-",
            size(process.memory_bytes),
            "-" if process.cpu_seconds is None else f"{process.cpu_seconds:.1f} s",
            _age(process.started_at, now),
            process.command,
            process.what or _shortened(" ".join(process.arguments or ())),
        ]
        for name, process in found
    ]
    header = [
        *(["NAME"] if has_names else []),
        "PID",
        "USER",
        "WHY",
        "STATE",
        "MEMORY",
        "CPU",
        "AGE",
        "COMMAND",
    ]
    last = len(header)
    clips = dict.fromkeys((last, last - 1, 0) if has_names else (last, last - 1), _NARROWEST)
    return table([*header, "ARGUMENTS, OR WHAT IS USED"], rows, stream, {}, clips=clips)


def _age(started_at: str | None, now: float) -> str:
    """Return how long ago a moment was, in its largest unit."""
    if started_at is None:
        return "-"
    from datetime import datetime

    seconds = max(0, int(now - datetime.fromisoformat(started_at).timestamp()))
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _shortened(text: str) -> str:
    return text if len(text) <= _ARGUMENTS_MAX else f"{text[:_ARGUMENTS_MAX]}…"


def node(info: NodeInfo) -> Shown:
    """Return the answer of ``node``."""
    lines = [
        (
            f"memory     {info.memory_total_mib} MiB, {info.memory_available_mib} available, "
            f"{info.memory_free_mib} free"
        ),
        f"node       {info.memory_dom0_mib} MiB used by the node itself",
        f"CPUs       {info.cpus}, load {' '.join(f'{load:.2f}' for load in info.load)}",
        f"instances  {info.instances} present, {info.running} running",
        f"run dir    {info.run_dir_free_mib} of {info.run_dir_total_mib} MiB free",
    ]
    for disk in info.image_disks:
        if disk["total_mib"] is None:
            lines.append(f"images     {disk['path']} does not answer")
        else:
            lines.append(
                f"images     {disk['free_mib']} of {disk['total_mib']} MiB free in {disk['path']}"
            )
    return _joined(lines)


def checks(found: Sequence[Check], stream: TextIO) -> Shown:
    """Return the answer of ``verify``."""
    names = [printable(check.name) for check in found]
    # One long name must not widen the column of all.
    width = max((len(name) for name in names if len(name) <= _NAME_MAX), default=0)
    indent = " " * (7 + 2 + width + 2)
    lines: list[Shown] = []
    for name, check in zip(names, found, strict=True):
        first = join(
            paint(f"{check.status:<7}", _STATUS_COLOURS[check.status], stream),
            f"  {name:<{width}}  ",
        )
        detail = fold(check.detail, len(indent), stream)
        if len(name) > width and columns(stream):
            lines.append(Shown(first.rstrip()))
            first = Shown(indent)
        lines.append(join(first, detail[0]))
        if check.hint and check.status != "ok":
            detail += [
                paint(line, "dim", stream)
                for line in fold("→ " + word_for_command(check.hint), len(indent), stream)
            ]
        lines += [join(indent, line) for line in detail[1:]]
    return _joined(lines)


def fold(text: str, indent: int, stream: TextIO) -> list[Shown]:
    """Return the lines of a text that stands behind an indent; one, unless on a terminal.

    Args:
        text: The text.
        indent: The columns before each line.
        stream: Where they are going to be printed.
    """
    shown = printable(text)
    width = (columns(stream) or 0) - indent
    if width < _NARROWEST or len(shown) <= width:
        return [shown]
    import textwrap

    folded = textwrap.wrap(shown, width, break_long_words=False, break_on_hyphens=False)
    return [Shown(line) for line in folded] or [shown]


def plan(planned: Plan, stream: TextIO) -> Shown:
    """Return the answer of ``plan``."""
    lines: list[str] = []
    for line in planned.lines():
        found = _PLAN_LINE.match(line)
        first, *others = fold(line[found.end() :], found.end(), stream) if found else (line,)
        lines.append(f"{found[0] if found else ''}{first}")
        lines += [" " * (found.end() if found else 0) + other for other in others]
    return _joined(lines)


def name_instance(text: str, name: str) -> str:
    """Return a text whose first line names an instance; one that does so stays as it is."""
    first, *others = text.lines if isinstance(text, Lines) else (text,)
    if name in first.translate(_PUNCTUATION).split():
        return text
    return Lines([f"{name}: {first}", *others])


def event(what: str, text: str, stream: TextIO) -> Shown:
    """Return a ``warning`` or ``plugin-error``, its first line behind chrootfw's name."""
    said = text.lines if isinstance(text, Lines) else (text,)
    first, *others = (printable(word_for_command(line)) for line in said)
    label = "warning: " if what == "warning" else "" if first.startswith("plugin ") else "plugin: "
    return _joined([join("chrootfw: ", paint(label, "yellow", stream), first), *others])


def error(failure: ChrootfwError, stream: TextIO, *, name: str = "") -> Shown:
    """Return an error: one sentence, details, a hint.

    Args:
        failure: The error.
        stream: Where it is going to be printed.
        name: The instance that its sentence has to name; ``""`` for none.
    """
    brief = name_instance(failure.brief, name) if name else failure.brief
    lines = [join(paint("chrootfw:", "red", stream), " ", brief)]
    lines.extend(join("  ", line) for line in failure.details if line)
    if failure.hint:
        hint = word_for_command(failure.hint)
        lines.append(join("  ", paint("hint:", "bold", stream), " ", hint))
    return _joined(lines)


def error_dict(failure: ChrootfwError) -> dict[str, Any]:
    """Return the JSON form of an error, with the fields that its class has beside the text."""
    more: dict[str, Any] = {}
    if isinstance(failure, HeldError):
        more["holders"] = [each.to_dict() for each in failure.holders if hasattr(each, "to_dict")]
    elif isinstance(failure, PluginError):
        more = {"plugin": failure.plugin, "hook": failure.hook}
    elif isinstance(failure, ScriptError):
        more["output"] = failure.output.decode("utf-8", "replace")
    elif isinstance(failure, Interrupted):
        more["signum"] = failure.signum
    return {
        "kind": failure.kind,
        "brief": failure.brief,
        "details": list(failure.details),
        "hint": word_for_command(failure.hint),
        **more,
    }
