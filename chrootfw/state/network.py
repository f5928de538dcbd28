"""Pin the network namespace of an instance at its start, and find it again.

It is pinned on the file ``RUN_DIR/NAME/netns`` where it is not the host's. The start record says
which of the two it is; ``record.remove`` takes the pin away.
"""

from __future__ import annotations

import os

from chrootfw.errors import StepError
from chrootfw.linux import network_namespace
from chrootfw.state import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from chrootfw.linux.descriptors import Descriptors
    from chrootfw.state.record import StartRecord


def pin_network(run_dir: str, started: StartRecord) -> None:
    """Pin the caller's network namespace for a start if it is not the host's.

    The pin of an earlier start is taken away.

    Args:
        run_dir: The run directory.
        started: The record of the start, which the caller saves.

    Raises:
        StepError: The kernel refused it.
    """
    path = record.network(run_dir, started.name)
    try:
        network_namespace.unpin(path)
        is_host = network_namespace.is_host()
        if not is_host:
            network_namespace.pin(path)
    except OSError as error:
        raise StepError(
            f"cannot keep the network namespace of {started.name} at {path}: {error.strerror}",
            hint="chrootfw verify checks the run directory and privileges",
        ) from error
    started.network = "host" if is_host else "pinned"


def open_network(run_dir: str, name: str, started: StartRecord | None, held: Descriptors) -> int:
    """Open the network namespace of an instance.

    Args:
        run_dir: The run directory.
        name: The instance.
        started: Its start record; ``None`` if that is lost.
        held: Owns the descriptor.

    Returns:
        The descriptor; -1 if it is the caller's, or nothing says which it is.

    Raises:
        StepError: It cannot be entered: its pin is gone, or the caller is not in the host's.
    """
    path = record.network(run_dir, name)
    known = started.network if started else None
    try:
        if known == "pinned" or (known is None and os.path.lexists(path)):
            return network_namespace.open_pin(path, held)
        if known == "host" and not network_namespace.is_host():
            return network_namespace.open_host(held)
    except OSError as error:
        what = "host's" if known == "host" else "instance's"
        raise StepError(
            f"cannot enter the network of {name}: the {what} network namespace is not found at"
            f" {error.filename}: {error.strerror}",
            hint="run the command in the host's network namespace"
            if known == "host"
            else f"chrootfw stop {name}, then start it again",
        ) from error
    return -1
