"""The compiled module, see `_native.c`. `native` decides whether it is used."""

from array import array
from mmap import mmap

#: To be compared with `native.VERSION`.
VERSION: int

#: The numbers of system calls, by name, as the C library's headers have them.
NUMBERS: dict[str, int]

#: Whether a child can share its parent's memory on this processor.
CAN_SHARE: int

def start(memory: mmap, pidfd: array[int], flags: int, cgroup: int, shares: bool, /) -> int:
    """Start a child that carries out a batch, and exits.

    The caller blocks all signals.

    Args:
        memory: What `CallBatch.prepare` returned. It must stay mapped until the child has exited.
        pidfd: Its first element gets the pidfd.
        flags: Flags of clone3(2) for new namespaces.
        cgroup: A descriptor of the cgroup v2 directory to start in; -1 for the caller's.
        shares: Whether the child may share the caller's memory.

    Returns:
        The pid.

    Raises:
        OSError: The kernel refused to create the process.
    """

def statx_many(
    paths: list[bytes], flags: int, mask: int, /
) -> list[tuple[int, int, int, int, int, int] | None]:
    """Call statx(2) for each path.

    Returns:
        Mode, inode, device of a device file and device (major | minor << 32), attributes, mount ID;
        `None` if the call failed.
    """
