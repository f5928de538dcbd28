"""The filter of system calls, made by libseccomp (seccomp(2)).

That is the library that container managers and systemd use. The filter lists what is refused
(EPERM): a list of what is allowed would have to know every service.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import os
import struct

from chrootfw import NotSupported

#: Refused unless the capability is kept that the kernel wants for it anyway, at which point it is
#: meant.
REFUSED = {
    "SYS_ADMIN": (
        "mount umount umount2 pivot_root move_mount open_tree open_tree_attr fsopen "
        "fsconfig fsmount fspick mount_setattr "
        "setns unshare quotactl quotactl_fd swapon swapoff lookup_dcookie fanotify_init "
        "name_to_handle_at"
    ),
    "SYS_CHROOT": "chroot",
    "SYS_PTRACE": "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise",
    "SYS_MODULE": "init_module finit_module delete_module create_module",
    "SYS_BOOT": "reboot kexec_load kexec_file_load",
    "SYS_RAWIO": "iopl ioperm pciconfig_read pciconfig_write pciconfig_iobase",
    "SYS_TIME": "settimeofday clock_settime clock_adjtime adjtimex stime",
    "SYS_PACCT": "acct",
    "SYS_TTY_CONFIG": "vhangup",
    "SYSLOG": "syslog",
    "DAC_READ_SEARCH": "open_by_handle_at",
    "BPF": "bpf",
    "PERFMON": "perf_event_open",
    "": (
        "userfaultfd uselib vm86 vm86old modify_ldt "
        "io_uring_setup io_uring_enter io_uring_register "
        # Linux 6.17: what FS_IOC_FSSETXATTR does.
        "file_setattr"
    ),
}

#: Refused in any case: the host's root has its keys there (keyrings(7)), and a process inside has
#: the same user ID.
KEYS = "add_key request_key keyctl"

#: The protocols of netlink(7) that daemons use. libc reads addresses and routes by ROUTE, and tools
#: sockets by SOCK_DIAG; both belong to the network namespace. The others report on or change what
#: is the host's: its processes (CONNECTOR), devices (KOBJECT_UEVENT), ACPI and quotas (groups of
#: GENERIC), audit log; or they reach programs of the host (USERSOCK).
_NETLINK = frozenset({0, 4})
#: Which more a capability is meant for: IPsec, packet filters and generic families; the audit log.
_NETLINK_OF = {
    "NET_ADMIN": frozenset({6, 12, 16}),
    "AUDIT_CONTROL": frozenset({9}),
    "AUDIT_READ": frozenset({9}),
}
#: The kernel has fewer (MAX_LINKS), and refuses the numbers from there on.
_NETLINK_PROTOCOLS = range(32)

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_REFUSE = _ERRNO | errno.EPERM
_NO_SUCH_CALL = _ERRNO | errno.ENOSYS
#: The kernel's own answer where it was built without: libaudit and PAM go on then.
_NO_SUCH_PROTOCOL = _ERRNO | errno.EPROTONOSUPPORT
#: The kernel's own answer for a file system without leases, and where it was built without dnotify.
_NOT_SUPPORTED = _ERRNO | errno.EINVAL
#: The kernel's own answer where it was built without a family of sockets.
_NO_SUCH_FAMILY = _ERRNO | errno.EAFNOSUPPORT
_MASKED_EQUAL = 7
_CLONE_NEW = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_CLONE_NEWUSER = 0x10000000
#: The child is one of the manager's then, which is outside and waits for its children.
_CLONE_PARENT = 0x8000
#: F_SETLEASE, F_NOTIFY, F_SETDELEG (Linux 6.19). A lease on a file that is open for reading alone
#: makes an open for writing wait, on the host too, for /proc/sys/fs/lease-break-time.
_LEASES = (1024, 1026, 1040)
_INT = 0xFFFFFFFF
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
#: The sockets of a virtual machine's host: they belong to no network namespace, and what listens
#: there takes this machine for the caller.
_AF_VSOCK = 40
_AF_NETLINK = 16
#: The kernel's ciphers: ALG_SET_KEY_BY_KEY_SERIAL uses a key of the host's root by its number.
_AF_ALG = 38
#: Requests of ioctl(2) by which root without a capability acts on a file system outside its own
#: tree, by type and number (the low 16 bits; the others are the size): btrfs subvolumes and
#: snapshots, by ID or with all that is in them, and paths by inode; bcachefs's; fscrypt's keys,
#: which belong to a file system and a user ID; FS_IOC_FSSETXATTR, which sets a project's number, by
#: whose quota another instance's files are limited. Not FICLONE, FICLONERANGE and FIDEDUPERANGE.
_FILE_SYSTEM_REQUESTS = {
    0x94: (1, 14, 15, 18, 23, 24, 26, 60, 61, 62, 63),
    0xBC: (16, 17),
    0x66: (23, 24, 25),
    0x58: (32,),
}
_REQUEST = 0xFFFF
#: Refused calls that an older libseccomp does not know, with the number that they have in all
#: tables of the machines in `_OTHER`.
_NEW_CALLS = {"open_tree_attr": 467, "file_setattr": 469}
#: struct sock_filter, and instructions of a filter (linux/filter.h).
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _AND, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
#: x32 sets it in the number of a call.
_X32 = 0x40000000
#: What else a kernel of this machine runs: 32-bit programs (libseccomp's SCMP_ARCH_*).
_OTHER = {"x86_64": (0x40000003, 0x4000003E), "aarch64": (0x40000028,)}


class _Compare(ctypes.Structure):
    """Describe ``struct scmp_arg_cmp`` of libseccomp to ctypes."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def program(capabilities: tuple[str, ...], *, whole: bool = True) -> str:
    """Make the filter for processes that keep some capabilities.

    Args:
        capabilities: Names without ``CAP_``.
        whole: ``False`` for as much as the other rules need. In a user namespace a process has
            every capability: it mounts the host's cgroups, writable, and what a kernel does not
            check for such a process is open to it.

    Returns:
        The filter in base64.

    Raises:
        NotSupported: libseccomp is missing.
    """
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise NotSupported(
            "hardened needs libseccomp for its filter of system calls, and "
            "libseccomp.so.2 is missing",
            hint="install libseccomp2 (Debian) or libseccomp (Fedora)",
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ALLOW)))
    try:
        for architecture in _OTHER.get(os.uname().machine, ()):
            _check(library.seccomp_arch_add(context, ctypes.c_uint32(architecture)))
        for call in KEYS.split():
            _add(library, context, _REFUSE, call)
        if "SYS_ADMIN" not in capabilities:
            _refuse_namespaces(library, context, _CLONE_NEW if whole else (_CLONE_NEWUSER,))
        if whole:
            _refuse_the_rest(library, context, capabilities)
        instructions = _export(library, context)
        if whole and os.uname().machine in _OTHER:
            instructions = _refuse_new_calls(library, capabilities) + instructions
        return base64.b64encode(instructions).decode()
    finally:
        library.seccomp_release(context)


def _refuse_namespaces(
    library: ctypes.CDLL, context: ctypes.c_void_p, flags: tuple[int, ...]
) -> None:
    """Refuse new namespaces, and children of a process outside."""
    place = 1 if os.uname().machine == "s390x" else 0  # clone(2)
    for flag in flags:
        _add(library, context, _REFUSE, "clone", _Compare(place, _MASKED_EQUAL, flag, flag))
        _add(library, context, _REFUSE, "unshare", _Compare(0, _MASKED_EQUAL, flag, flag))
    _add(
        library,
        context,
        _REFUSE,
        "clone",
        _Compare(place, _MASKED_EQUAL, _CLONE_PARENT, _CLONE_PARENT),
    )
    # Its flags are in memory, which a filter cannot read: libc then takes clone.
    _add(library, context, _NO_SUCH_CALL, "clone3")


def _refuse_the_rest(
    library: ctypes.CDLL, context: ctypes.c_void_p, capabilities: tuple[str, ...]
) -> None:
    for capability, calls in REFUSED.items():
        if capability not in capabilities:
            for call in calls.split():
                _add(library, context, _REFUSE, call)
    for request in (_TIOCSTI, _TIOCLINUX):
        _add(library, context, _REFUSE, "ioctl", _Compare(1, _MASKED_EQUAL, _INT, request))
    for kind, numbers in _FILE_SYSTEM_REQUESTS.items():
        for word in numbers:
            compared = _Compare(1, _MASKED_EQUAL, _REQUEST, kind << 8 | word)
            _add(library, context, _REFUSE, "ioctl", compared)
    # The kernel takes ints: what stands in the upper half of a register is not compared.
    for call in ("fcntl", "fcntl64"):
        for command in _LEASES:
            _add(library, context, _NOT_SUPPORTED, call, _Compare(1, _MASKED_EQUAL, _INT, command))
    _add(library, context, _REFUSE, "socket", _Compare(0, _MASKED_EQUAL, _INT, _AF_VSOCK))
    _add(library, context, _NO_SUCH_FAMILY, "socket", _Compare(0, _MASKED_EQUAL, _INT, _AF_ALG))
    allowed = _NETLINK.union(*(_NETLINK_OF.get(word, ()) for word in capabilities))
    for protocol in _NETLINK_PROTOCOLS:
        if protocol not in allowed:
            family = _Compare(0, _MASKED_EQUAL, _INT, _AF_NETLINK)
            number = _Compare(2, _MASKED_EQUAL, _INT, protocol)
            _add(library, context, _NO_SUCH_PROTOCOL, "socket", family, number)


def _refuse_new_calls(library: ctypes.CDLL, capabilities: tuple[str, ...]) -> bytes:
    """Make the instructions that refuse what is newer than libseccomp; they go before its own."""
    refused = " ".join(calls for word, calls in REFUSED.items() if word not in capabilities).split()
    numbers = [
        number
        for call, number in _NEW_CALLS.items()
        if call in refused and library.seccomp_syscall_resolve_name(call.encode()) == -1
    ]
    if not numbers:
        return b""
    made = _INSTRUCTION.pack(_LOAD, 0, 0, 0)  # seccomp_data.nr
    made += _INSTRUCTION.pack(_AND, 0, 0, 0xFFFFFFFF & ~_X32)
    for number in numbers:
        made += _INSTRUCTION.pack(_JUMP_IF_EQUAL, 0, 1, number)
        made += _INSTRUCTION.pack(_RETURN, 0, 0, _REFUSE)
    return made


def _add(
    library: ctypes.CDLL, context: ctypes.c_void_p, action: int, call: str, *compares: _Compare
) -> None:
    number = library.seccomp_syscall_resolve_name(call.encode())
    if (
        number == -1
    ):  # __NR_SCMP_ERROR: this libseccomp does not know it, or no architecture here has it
        return
    array = (_Compare * max(len(compares), 1))(*compares)
    _check(
        library.seccomp_rule_add_array(
            context, ctypes.c_uint32(action), number, len(compares), array
        )
    )


def _export(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, fd))
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _check(result: int) -> None:
    if result < 0 and result != -errno.EEXIST:
        raise NotSupported(
            f"libseccomp cannot make the filter of system calls: {os.strerror(-result)}"
        )
