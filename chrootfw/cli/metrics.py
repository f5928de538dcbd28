"""Show the instances in Prometheus' text format."""

from __future__ import annotations

from datetime import datetime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chrootfw.views import InstanceInfo

_STATES = ("absent", "mounted", "running", "held")

#: Each metric of an instance: its name, type, help, and value; ``None`` leaves the instance out.
_METRICS: tuple[tuple[str, str, str, Callable[[InstanceInfo], float | None]], ...] = (
    (
        "processes",
        "gauge",
        "Own processes of the instance.",
        lambda info: info.processes if info.state == "running" else None,
    ),
    (
        "memory_bytes",
        "gauge",
        "Memory of all own processes.",
        lambda info: info.memory_bytes,
    ),
    (
        "cpu_seconds_total",
        "counter",
        "Processor time of all own processes since the start.",
        lambda info: info.cpu_seconds,
    ),
    (
        "start_time_seconds",
        "gauge",
        "When the instance was started, in seconds since 1970.",
        lambda info: (
            datetime.fromisoformat(info.started_at).timestamp() if info.started_at else None
        ),
    ),
    (
        "pending_undos",
        "gauge",
        "Steps that a stop, a cleanup or an earlier boot could not undo.",
        lambda info: len(info.pending_undos),
    ),
    (
        "notes",
        "gauge",
        "Notes that chrootfw info shows, such as a definition that is not valid.",
        lambda info: len(info.notes),
    ),
)


def lines(found: Sequence[InstanceInfo]) -> list[str]:
    """Return the lines of the text format.

    Args:
        found: The instances.
    """
    text = _head("chrootfw_instances", "gauge", "Instances in a state.")
    for state in _STATES:
        count = sum(info.state == state for info in found)
        text.append(f'chrootfw_instances{{state="{state}"}} {count}')
    text += _head("chrootfw_instance_state", "gauge", "1 for the state of the instance, else 0.")
    for info in found:
        for state in _STATES:
            labels = f'name="{info.name}",state="{state}"'
            text.append(f"chrootfw_instance_state{{{labels}}} {int(info.state == state)}")
    for name, kind, help_text, value_of in _METRICS:
        text += _head(f"chrootfw_instance_{name}", kind, help_text)
        for info in found:
            value = value_of(info)
            if value is not None:
                text.append(f'chrootfw_instance_{name}{{name="{info.name}"}} {value}')
    return text


def _head(name: str, kind: str, help_text: str) -> list[str]:
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
