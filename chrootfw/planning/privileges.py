"""Names for what a process is isolated from: namespaces, capabilities, system calls."""

from __future__ import annotations

from chrootfw.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: All of capabilities(7), in the order of their numbers.
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip

#: The namespaces that an entry may ask for: the flags of clone3(2), unshare(2) and setns(2).
NAMESPACES = {"pid": 0x20000000, "ipc": 0x08000000, "uts": 0x04000000, "cgroup": 0x02000000}

#: The attributes that an entry may ask for, for all mounts of the instance.
MOUNT_ATTRIBUTES = ("nosuid", "nodev")


#: What programs print of EPERM, in the C library's words.
REFUSAL = b"Operation not permitted"


class RefusalWatch:
    """Finds `REFUSAL` in output that comes in pieces.

    Attributes:
        has_seen: Whether it was in what has come so far.
    """

    __slots__ = ("_end", "has_seen")

    def __init__(self) -> None:
        self.has_seen = False
        self._end = b""

    def __call__(self, data: bytes) -> None:
        """Take the next piece."""
        if not self.has_seen:
            text = self._end + data
            self.has_seen = REFUSAL in text
            self._end = text[1 - len(REFUSAL) :]


def describe_refusal(name: str, entry: Mapping[str, Any] | None) -> str:
    """Return the hint for a program that printed `REFUSAL` and failed.

    Args:
        name: The instance.
        entry: The recorded entry.

    Returns:
        What may have refused it, and how to find out; empty if the entry drops nothing.
    """
    kept, is_filtered = entry and entry.get("capabilities"), entry and entry.get("seccomp")
    reasons = [f"it keeps {len(kept)} of {len(CAPABILITIES)} capabilities"] if kept else []
    reasons += ["system calls are filtered"] if is_filtered else []
    if not reasons:
        return ""
    return (
        f"{name} is hardened ({', '.join(reasons)}), which may be what is not permitted:"
        " hardened_seccomp = false shows whether it is the filter, hardened_capabilities gives a"
        " capability back"
    )


def decode_program(text: str) -> bytes:
    """Decode a program for seccomp(2) from base64.

    Args:
        text: The base64 text.

    Returns:
        The program, 8 bytes for each instruction.

    Raises:
        InputError: The text is not base64, or not a program of at most 4096 instructions.
    """
    import binascii

    try:
        program = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii.Error, and a text that is not ASCII
        raise InputError(f"an Entry's seccomp is not valid base64: {error}") from error
    if len(program) % 8 or len(program) > 8 * 4096:
        raise InputError(
            f"an Entry's seccomp has {len(program)} bytes; it must be at most "
            "4096 instructions of 8 bytes"
        )
    return program
