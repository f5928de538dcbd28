"""Test kit for plugin authors: recordings, failures at every step, a real chroot, conformance.

For pytest it is a plugin with the fixtures ``recording_runtime`` and ``real_chroot``. Modules load
when they are first used: a pytest that has nothing to do with chrootfw pays nothing for them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from chrootfw.testing.conformance import Conformance, check
    from chrootfw.testing.real import RealChroot
    from chrootfw.testing.recording import RecordingRuntime
    from chrootfw.testing.records import Alive, Record, Recorded, Sent

_HOMES = {
    "Alive": "records", "Conformance": "conformance", "RealChroot": "real", "Record": "records",
    "Recorded": "records", "RecordingRuntime": "recording", "Sent": "records",
    "check": "conformance",
}  # fmt: skip

__all__ = [
    "Alive",
    "Conformance",
    "RealChroot",
    "Record",
    "Recorded",
    "RecordingRuntime",
    "Sent",
    "check",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        import importlib

        value: object = getattr(importlib.import_module(f"chrootfw.testing.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'chrootfw.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
