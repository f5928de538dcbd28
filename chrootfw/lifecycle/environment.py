"""Read the environment file of an instance when it is started."""

from __future__ import annotations

import errno
from functools import partial

from chrootfw.errors import DefinitionError
from chrootfw.lifecycle.context import Job
from chrootfw.linux import deadlines, files
from chrootfw.linux.root import Root
from chrootfw.model import Instance
from chrootfw.planning import environment_file

#: Largest size of an environment file in bytes: the record of the start keeps what it says.
SIZE_MAX = 16 << 10


def read_environment(job: Job) -> None:
    """Add the variables of the instance's environment file to its parameter `environment`.

    So the record of the start has them, and `exec`, `shell`, `reboot` and the stop go by what was
    read at the start.

    Raises:
        DefinitionError: The file is missing, cannot be read, or is not valid.
        TrustError: Others than the root user could have changed it.
    """
    params = dict(job.instance.params)
    path = params.get("environment_file")
    if not path:
        return
    what = f"the environment file {path} of {job.name}"
    try:
        data = _read(path, job.disk_timeout)
    except OSError as error:
        waits = [error.describe()] if isinstance(error, deadlines.DeadlineExceeded) else []
        raise DefinitionError(f"cannot read {what}: {error.strerror}", waits) from error
    try:
        found = environment_file.parse(data)
        _check_own_names(found)
    except ValueError as error:
        raise DefinitionError(
            f"{what} is not valid: {error}", hint="each line is NAME=VALUE, or a comment with #"
        ) from error
    params["environment"] = {**found, **params.get("environment", {})}
    known = job.instance
    job.instance = Instance(known.name, known.disk, known.init_script, params, known.plugins)


def _read(path: str, seconds: float) -> bytes:
    """Read a file that only the root user can change, by children: a server may fall silent.

    Args:
        path: The file.
        seconds: Seconds for each call to return.

    Raises:
        OSError: It does not exist, cannot be read, or is too large.
        TrustError: Others than the root user could have changed it.
    """
    host = Root("/", seconds=seconds)
    lstat = partial(host.stat, follow=False)
    files.check_trusted(path, what="environment file", lstat=lstat)
    files.check_file(path, lstat(path))
    with host.open(path, "rb") as file:
        data: bytes = file.read(SIZE_MAX + 1)
    if len(data) > SIZE_MAX:
        raise OSError(errno.EFBIG, f"it has more than {SIZE_MAX >> 10} KiB", path)
    return data


def _check_own_names(found: dict[str, str]) -> None:
    for name in found:
        if name.startswith("CHROOTFW_"):
            raise ValueError(f"{name} is set by chrootfw itself")
