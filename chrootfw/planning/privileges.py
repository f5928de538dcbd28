"""The words for what a process may be parted from: namespaces, capabilities, system calls."""

from __future__ import annotations

from chrootfw.errors import InputError

#: capabilities(7), in the order of their numbers.
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip

#: The namespaces that an entry may ask for: flag of clone3(2), unshare(2) and setns(2).
NAMESPACES = {"pid": 0x20000000, "ipc": 0x08000000, "uts": 0x04000000}


def decode_program(text: str) -> bytes:
    """A program for seccomp(2): as many bytes as ``text`` says in base64, eight to an instruction. Raises ``InputError``."""
    import binascii

    try:
        program = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii.Error, and a text that is not ASCII
        raise InputError(f"an Entry's seccomp is no base64: {error}") from error
    if len(program) % 8 or len(program) > 8 * 4096:
        raise InputError(
            f"an Entry's seccomp has {len(program)} bytes; it must be at most 4096 instructions of 8 bytes"
        )
    return program
