"""How the command line shows things to people: plain tables, sizes, colours only on a terminal."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from chrootfw.errors import ChrootfwError
    from chrootfw.views import Check, InstanceInfo, NodeInfo, Process

_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_STATE_COLOURS = {"running": "green", "mounted": "cyan", "held": "red", "absent": "dim"}
_STATUS_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def paint(text: str, colour: str, stream: TextIO) -> str:
    """``text`` in a colour if ``stream`` is a terminal and NO_COLOR is not set."""
    if not text or "NO_COLOR" in os.environ or not stream.isatty():
        return text
    return f"\033[{_COLOURS[colour]}m{text}\033[0m"


def size(count: int | None) -> str:
    """Bytes for people: ``10.0 MiB``."""
    if count is None:
        return "-"
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return ""


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO, colours: dict[int, dict[str, str]]
) -> str:
    """Columns under a header; ``colours`` maps a column to the colour of each word that it may show."""
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = []
        for index, cell in enumerate(row):
            pad = " " * (widths[index] - len(cell)) if index < len(row) - 1 else ""
            colour = colours.get(index, {}).get(cell)
            cells.append((paint(cell, colour, stream) if colour else cell) + pad)
        return "  ".join(cells).rstrip()

    return "\n".join([paint(line(header), "bold", stream), *(line(row) for row in rows)])


def instances(found: Sequence[InstanceInfo], stream: TextIO) -> str:
    """The answer of ``list``."""
    rows = [
        [
            info.name,
            info.state.value,
            str(info.processes) if info.state == "running" else "-",
            size(info.memory_bytes),
            f"{info.cpu_seconds:.1f} s" if info.cpu_seconds is not None else "-",
            (info.started_at or "-").replace("T", " ").replace("+00:00", "Z"),
            (info.disk or "-") + (f"  ({info.namespace})" if info.namespace else ""),
        ]
        for info in found
    ]
    if not rows:
        return "no instances: none is present, none is defined"
    return table(["NAME", "STATE", "PROCS", "MEMORY", "CPU", "STARTED", "DISK"], rows, stream, {1: _STATE_COLOURS})


def instance(info: InstanceInfo, stream: TextIO) -> str:
    """The answer of ``info``."""
    lines = [
        f"{paint(info.name, 'bold', stream)}: {paint(info.state.value, _STATE_COLOURS[info.state.value], stream)}",
        f"  disk        {info.disk or '-'}",
        f"  root        {info.root}",
        f"  started     {info.started_at or '-'}",
        f"  processes   {info.processes} (tracked by {info.tracking})",
        f"  memory      {size(info.memory_bytes)} ({info.memory_source})",
        f"  CPU time    {f'{info.cpu_seconds:.2f} s' if info.cpu_seconds is not None else '-'}",
    ]
    if info.plugins:
        third = [name for name in info.plugins if not name.startswith("chrootfw_defaults.")]
        lines.append(f"  plugins     {', '.join(third) or 'the defaults'}")
    if info.definition_changed:
        lines.append("  definition  changed since the start; the next start takes it up")
    for number, mount in enumerate(info.mounts or ()):
        label = "mounts" if number == 0 else ""
        options = mount["options"]
        read_only = " (ro)" if isinstance(options, list) and "ro" in options else ""
        lines.append(f"  {label:<10}  {mount['target']}  {mount['fstype']} {mount['source']}{read_only}")
    for number, holder in enumerate(info.holders or ()):
        lines.append(f"  {'holders' if number == 0 else '':<10}  {holder.describe()}")
    lines.extend(f"  note        {note}" for note in info.notes)
    if info.namespace:
        lines.append(f"  lives in    {info.namespace}")
    return "\n".join(lines)


def process_table(found: Sequence[Process], stream: TextIO) -> str:
    """The answer of ``ps``."""
    if not found:
        return "no processes"
    rows = [[str(p.pid or "-"), p.user, p.why, p.command, p.what] for p in found]
    return table(["PID", "USER", "WHY", "COMMAND", "WHAT"], rows, stream, {})


def node(info: NodeInfo) -> str:
    """The answer of ``node``."""
    lines = [
        f"memory     {info.memory_total_mib} MiB, {info.memory_available_mib} available, {info.memory_free_mib} free",
        f"node       {info.memory_dom0_mib} MiB used by the node itself",
        f"CPUs       {info.cpus}, load {' '.join(f'{load:.2f}' for load in info.load)}",
        f"instances  {info.instances} present, {info.running} running",
        f"run dir    {info.run_dir_free_mib} of {info.run_dir_total_mib} MiB free",
    ]
    for disk in info.image_disks:
        if disk["total_mib"] is None:
            lines.append(f"images     {disk['path']} does not answer")
        else:
            lines.append(f"images     {disk['free_mib']} of {disk['total_mib']} MiB free in {disk['path']}")
    return "\n".join(lines)


def checks(found: Sequence[Check], stream: TextIO) -> str:
    """The answer of ``verify``."""
    width = max(len(check.name) for check in found)
    lines = []
    for check in found:
        status = paint(f"{check.status:<7}", _STATUS_COLOURS[check.status], stream)
        lines.append(f"{status}  {check.name:<{width}}  {check.detail}")
        if check.hint and check.status != "ok":
            lines.append(f"{'':7}  {'':<{width}}  {paint('→ ' + check.hint, 'dim', stream)}")
    return "\n".join(lines)


def error(failure: ChrootfwError, stream: TextIO) -> str:
    """One sentence, then details, then what to do."""
    lines = [f"{paint('chrootfw:', 'red', stream)} {failure.brief}"]
    lines.extend(f"  {line}" for detail in failure.details for line in detail.splitlines())
    if failure.hint:
        lines.append(f"  {paint('hint:', 'bold', stream)} {failure.hint}")
    return "\n".join(lines)
