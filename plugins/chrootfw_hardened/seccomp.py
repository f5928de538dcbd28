"""The filter of system calls, made by libseccomp (seccomp(2)): the library that container managers and systemd use.

A list of what is refused (EPERM): a list of what is allowed would have to know every service.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import os

from chrootfw import NotSupported

#: Refused unless the capability is kept that the kernel wants for it anyway, at which point it is meant.
REFUSED = {
    "SYS_ADMIN": (
        "mount umount umount2 pivot_root move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick mount_setattr "
        "setns unshare quotactl quotactl_fd swapon swapoff lookup_dcookie fanotify_init name_to_handle_at"
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
    "": "add_key request_key keyctl userfaultfd uselib vm86 vm86old modify_ldt io_uring_setup io_uring_enter io_uring_register",
}

_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_NO_SUCH_CALL = 0x00050000 | errno.ENOSYS
_EQUAL, _MASKED_EQUAL = 4, 7
_CLONE_NEW = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
#: What else a kernel of this machine runs: 32-bit programs (libseccomp's SCMP_ARCH_*).
_OTHER = {"x86_64": (0x40000003, 0x4000003E), "aarch64": (0x40000028,)}


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def program(capabilities: tuple[str, ...]) -> str:
    """The filter for processes that keep ``capabilities``, in base64. Raises ``NotSupported`` without libseccomp."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise NotSupported(
            "hardened needs libseccomp for its filter of system calls, and libseccomp.so.2 is missing",
            hint="install libseccomp2 (Debian) or libseccomp (Fedora), or set hardened_seccomp = false",
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ALLOW)))
    try:
        for architecture in _OTHER.get(os.uname().machine, ()):
            _check(library.seccomp_arch_add(context, ctypes.c_uint32(architecture)))
        for capability, calls in REFUSED.items():
            if capability not in capabilities:
                for call in calls.split():
                    _add(library, context, _REFUSE, call)
        if "SYS_ADMIN" not in capabilities:
            for flag in _CLONE_NEW:
                _add(library, context, _REFUSE, "clone", _Compare(0, _MASKED_EQUAL, flag, flag))
            # Its flags are in memory, which a filter cannot read: libc then takes clone.
            _add(library, context, _NO_SUCH_CALL, "clone3")
        for request in (_TIOCSTI, _TIOCLINUX):
            _add(library, context, _REFUSE, "ioctl", _Compare(1, _MASKED_EQUAL, 0xFFFFFFFF, request))
        return base64.b64encode(_export(library, context)).decode()
    finally:
        library.seccomp_release(context)


def _add(library: ctypes.CDLL, context: ctypes.c_void_p, action: int, call: str, *compares: _Compare) -> None:
    number = library.seccomp_syscall_resolve_name(call.encode())
    if number == -1:  # __NR_SCMP_ERROR: this libseccomp does not know it, or no architecture here has it
        return
    array = (_Compare * max(len(compares), 1))(*compares)
    _check(library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(compares), array))


def _export(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, fd))
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _check(result: int) -> None:
    if result < 0 and result != -errno.EEXIST:
        raise NotSupported(f"libseccomp cannot make the filter of system calls: {os.strerror(-result)}")
