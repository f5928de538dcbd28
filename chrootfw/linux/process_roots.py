"""Read the root directories and the mount namespaces of processes (proc(5)).

No call waits for a file system: statx(2) answers with what the kernel has cached.
"""

from __future__ import annotations

from itertools import islice

from chrootfw.linux import procfs, statx

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

#: Threads whose root directory is read where the first thread of a process has ended.
_THREADS_MAX = 64


def read_all(pids: Sequence[int]) -> list[statx.Status | None]:
    """Read the status of the root directory of each process.

    The first thread of a process may have ended while others run; one of those answers then.

    Returns:
        A status for each pid, in their order; `None` if the process has ended.
    """
    found = statx.statx_many([b"/proc/%d/root" % pid for pid in pids])
    for index, status in enumerate(found):
        if status is None:
            base = b"/proc/%d/task" % pids[index]
            threads = islice(procfs.scan_names(base), _THREADS_MAX)
            roots = statx.statx_many([b"%b/%b/root" % (base, thread) for thread in threads])
            found[index] = next(filter(None, roots), None)
    return found


def read(pid: int) -> statx.Status | None:
    """Read the status of the root directory of a process; `None` if the process has ended."""
    return read_all([pid])[0]


def is_any_on(mount_ids: Collection[int]) -> bool:
    """Check whether a process has its root directory on one of some mounts.

    Args:
        mount_ids: The IDs of the mounts. Without any, the answer is no.
    """
    if not mount_ids:
        return False
    return any(root and root[-1] in mount_ids for root in read_all(procfs.all_pids()))


def read_namespaces(pids: Iterable[int]) -> dict[int, int]:
    """Read the inode that identifies the mount namespace of each process; 0 if it has ended."""
    pids = list(pids)
    found = statx.statx_many([b"/proc/%d/ns/mnt" % pid for pid in pids])
    return {pid: status[1] if status else 0 for pid, status in zip(pids, found, strict=True)}
