"""The intent: what was wanted when an instance was started, and what is owed for it.

Never a source of state: whether an instance runs, the kernel alone knows. ``RUN_DIR/NAME/intent.json``, mode 0600::

    version      1
    boot_id      the boot in which it was written
    namespace    the mount namespace in which the instance was started (an inode)
    instance     the resolved instance (Instance.to_dict)
    definition   the text of the definition file used, or null
    plugins      [{"name", "distribution", "version"}] as started
    phase        "starting", "started" or "stopping"
    init_ran     whether the init script was called with "start"
    stop_done    whether it was called with "stop" and came to its end
    started_at   ISO 8601, UTC, or null
    entry        the answer of enter (Entry.to_dict)
    disks        [{"kind", "path", "file": [dev, inode], "devices": [dev], "loop"}], the root's first
    steps        records of Steps, in order of application
"""

from __future__ import annotations

import os

from chrootfw.errors import NotSupported, StepError
from chrootfw.system import store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1


def directory(run_dir: str, name: str) -> str:
    """Where everything of one instance is."""
    return f"{run_dir}/{name}"


def root(run_dir: str, name: str) -> str:
    """The mount point of its root."""
    return f"{run_dir}/{name}/root"


def path(run_dir: str, name: str) -> str:
    """Where the intent is."""
    return f"{run_dir}/{name}/intent.json"


_SHAPE: dict[str, tuple[type, ...]] = {
    "boot_id": (str,),
    "namespace": (int,),
    "instance": (dict,),
    "definition": (str, type(None)),
    "plugins": (list,),
    "phase": (str,),
    "init_ran": (bool,),
    "stop_done": (bool,),
    "started_at": (str, type(None)),
    "entry": (dict, type(None)),
    "disks": (list,),
    "steps": (list,),
}


def load(run_dir: str, name: str) -> dict[str, Any] | None:
    """The intent, or ``None`` when it is lost or damaged.

    Raises ``TrustError``, and ``NotSupported`` for one that a newer chrootfw wrote: what it owes is not known here.
    """
    found = store.load(path(run_dir, name))
    if not isinstance(found, dict):
        return None
    version = found.get("version")
    if isinstance(version, int) and version > VERSION:
        raise NotSupported(
            f"{name} was started by a newer chrootfw (record version {version})", hint="use that one to stop it"
        )
    if version != VERSION or not all(isinstance(found.get(key), types) for key, types in _SHAPE.items()):
        return None
    return found if found["instance"].get("name") == name else None


def save(run_dir: str, name: str, intent: dict[str, Any]) -> None:
    """Replace it. Raises ``StepError``; the old one then stands."""
    try:
        store.write(path(run_dir, name), store.dump(intent))
    except TypeError as error:
        raise StepError(f"cannot write the record of {name}: {error}", hint="parameters must be JSON values") from error
    except OSError as error:
        raise StepError(
            f"cannot write the record of {name} into the run directory {run_dir}: {error.strerror}",
            hint=f"see that {run_dir} is writable and has space (df {run_dir})",
        ) from error


def is_current(intent: dict[str, Any]) -> bool:
    """Whether it was written in this boot."""
    return bool(intent.get("boot_id") == store.boot_id())


def remove(run_dir: str, name: str) -> None:
    """Remove the instance's directory: our own files by name, directories only when they are empty."""
    base = directory(run_dir, name)
    for file in ("intent.json", "init-start.log", "init-stop.log"):
        for name_or_half in (file, f"{file}.new"):  # what store.write leaves when it is killed
            store.remove(f"{base}/{name_or_half}")
    try:
        aux = sorted(os.listdir(f"{base}/aux"))
    except FileNotFoundError:
        aux = []
    for place in (*(f"{base}/aux/{name}" for name in aux), f"{base}/aux", f"{base}/root", base):
        try:
            os.rmdir(place)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StepError(
                f"cannot remove the directory {place}: {error.strerror}",
                hint="something else was put there; look at it and remove it by hand",
            ) from error
