"""The intent: what was wanted when an instance was started, and what is owed for it.

Never a source of state: whether an instance runs, the kernel alone knows. ``RUN_DIR/NAME/intent.json``, mode 0600::

    version      1
    boot_id      the boot in which it was written
    namespace    the mount namespace in which the instance was started (an inode)
    instance     the resolved instance (Instance.to_dict)
    definition   the text of the definition file used, or null
    plugins      [{"name", "distribution", "version", "band"}] as started; "band" may be missing
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


_NONE = type(None)
#: The record's shape: types; a list of whatever fits its one entry; a dict of what its keys must hold.
_SHAPE: dict[str, Any] = {
    "boot_id": (str,),
    "namespace": (int,),
    "instance": {
        "name": (str,),
        "disk": (str, _NONE),
        "init_script": (str, _NONE),
        "params": (dict,),
        "plugins": [(str,)],
    },
    "definition": (str, _NONE),
    "plugins": [{"name": (str,), "distribution": (str, _NONE), "version": (str, _NONE)}],
    "phase": (str,),
    "init_ran": (bool,),
    "stop_done": (bool,),
    "started_at": (str, _NONE),
    "disks": [{"kind": (str,), "path": (str,), "file": [(int,)], "devices": [(int,)]}],
    "steps": [
        {
            "kind": (str,),
            "class": (str,),
            "arguments": (dict,),
            "stage": (str,),
            "plugin": (str,),
            "distribution": (str, _NONE),
            "version": (str, _NONE),
        }
    ],
}
_ENTRY = {
    "method": (str,),
    "user": (str, _NONE),
    "cwd": (str,),
    "env": (dict,),
    "namespaces": [(str,)],
    "mount_attributes": [(str,)],
    "read_only": [(str,)],
    "no_new_privs": (bool,),
    "seccomp": (str,),
}


def _fits(value: Any, shape: Any) -> bool:
    # Plain loops, and no call for a leaf: a list of hundreds of instances is here for a fifth of its time.
    if isinstance(shape, list):
        if not isinstance(value, list):
            return False
        inner = shape[0]
        for each in value:  # noqa: SIM110
            if not (isinstance(each, inner) if type(inner) is tuple else _fits(each, inner)):
                return False
        return True
    if not isinstance(value, dict):
        return False
    for key, inner in shape.items():
        if key not in value:
            return False
        each = value[key]
        if not (isinstance(each, inner) if type(inner) is tuple else _fits(each, inner)):
            return False
    return True


def _is_record(found: dict[str, Any]) -> bool:
    """Whether every value that is used is of its type: a damaged record is a lost one."""
    if not _fits(found, _SHAPE) or found["phase"] not in ("starting", "started", "stopping"):
        return False
    entry = found.get("entry")
    if entry is not None:
        if not (_fits(entry, _ENTRY) and _fits([*entry["env"].values()], [(str,)])):
            return False
        if entry.get("capabilities") is not None and not _fits(entry["capabilities"], [(str,)]):
            return False
    return all(len(disk["file"]) == 2 and isinstance(disk.get("loop"), (str, _NONE)) for disk in found["disks"])


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
    if version != VERSION or not _is_record(found):
        return None
    return found if found["instance"].get("name") == name else None


def save(run_dir: str, name: str, intent: dict[str, Any]) -> None:
    """Replace it. Raises ``StepError``; the old one then stands."""
    data = dump(name, intent)
    try:
        store.write(path(run_dir, name), data)
    except OSError as error:
        raise StepError(
            f"cannot write the record of {name} into the run directory {run_dir}: {error.strerror}",
            hint=f"see that {run_dir} is writable and has space (df {run_dir})",
        ) from error


def dump(name: str, intent: dict[str, Any]) -> bytes:
    """The record as it is kept. Raises ``StepError`` for what is no JSON."""
    try:
        return store.dump(intent)
    except TypeError as error:
        raise StepError(f"cannot write the record of {name}: {error}", hint="parameters must be JSON values") from error


def is_current(intent: dict[str, Any]) -> bool:
    """Whether it was written in this boot."""
    return bool(intent.get("boot_id") == store.boot_id())


def remove(run_dir: str, name: str) -> None:
    """Remove the instance's directory: our own files by name, directories only when they are empty."""
    base = directory(run_dir, name)
    for file in ("intent.json", "init-start.log", "init-stop.log"):
        for name_or_half in (file, f"{file}.new"):  # what store.write leaves when it is killed
            try:
                store.remove(f"{base}/{name_or_half}")
            except OSError as error:
                raise _cannot_remove(f"the file {base}/{name_or_half}", error) from error
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
            raise _cannot_remove(f"the directory {place}", error) from error


def _cannot_remove(what: str, error: OSError) -> StepError:
    return StepError(
        f"cannot remove {what}: {error.strerror}",
        hint="something else was put there; look at it and remove it by hand",
    )
