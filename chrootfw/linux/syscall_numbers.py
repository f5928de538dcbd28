"""The numbers of system calls: those of the C library's headers (`_native`), or of a table."""

from __future__ import annotations

import os
import struct

from chrootfw.errors import NotSupported
from chrootfw.linux import native, syscalls

_COLUMNS = ("x86_64", "asm-generic", "ppc64", "s390x")
#: For a chrootfw without `_native`. From 424 up, all architectures have the same numbers.
_BY_ARCHITECTURE = {
    "capset": (126, 91, 184, 185),
    "chdir": (80, 49, 12, 12),
    "chroot": (161, 51, 61, 61),
    "clock_gettime": (228, 113, 246, 260),
    "clone": (56, 220, 120, 120),
    "close": (3, 57, 6, 6),
    "dup3": (292, 24, 316, 326),
    "execve": (59, 221, 11, 11),
    "exit_group": (231, 94, 234, 248),
    "fchdir": (81, 50, 133, 133),
    "fstatfs": (138, 44, 100, 100),
    "fsync": (74, 82, 118, 118),
    "getcwd": (79, 17, 182, 183),
    "getdents64": (217, 61, 202, 220),
    "ioctl": (16, 29, 54, 54),
    "ioprio_set": (251, 30, 273, 282),
    "kcmp": (312, 272, 354, 343),
    "keyctl": (250, 219, 271, 280),
    "mkdirat": (258, 34, 287, 289),
    "mount": (165, 40, 21, 21),
    "nanosleep": (35, 101, 162, 162),
    "openat": (257, 56, 286, 288),
    "pivot_root": (155, 41, 203, 217),
    "ppoll": (271, 73, 281, 302),
    "prctl": (157, 167, 171, 172),
    "prlimit64": (302, 261, 325, 334),
    "pread64": (17, 67, 179, 180),
    "read": (0, 63, 3, 3),
    "readlinkat": (267, 78, 296, 298),
    "removexattr": (197, 14, 218, 233),
    "renameat2": (316, 276, 357, 347),
    "rt_sigaction": (13, 134, 173, 174),
    "rt_sigprocmask": (14, 135, 174, 175),
    "sched_setaffinity": (203, 122, 222, 239),
    "sched_setscheduler": (144, 119, 156, 156),
    "seccomp": (317, 277, 358, 348),
    "sendmsg": (46, 211, 341, 370),
    "setgroups": (116, 159, 81, 206),
    "sethostname": (170, 161, 74, 74),
    "setns": (308, 268, 350, 339),
    "setpriority": (141, 140, 97, 97),
    "setresgid": (119, 149, 169, 210),
    "setresuid": (117, 147, 164, 208),
    "setsid": (112, 157, 66, 66),
    "statx": (332, 291, 383, 379),
    "umask": (95, 166, 60, 60),
    "umount2": (166, 39, 52, 52),
    "unlinkat": (263, 35, 292, 294),
    "unshare": (272, 97, 282, 303),
    "write": (1, 64, 4, 4),
}
_EVERYWHERE = {
    "open_tree": 428,
    "move_mount": 429,
    "fsconfig": 431,
    "fspick": 433,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}


def _from_table() -> dict[str, int]:
    if syscalls.ARCHITECTURE not in _COLUMNS:
        raise NotSupported(
            "chrootfw does not know the numbers of the system calls of this Python "
            f"({os.uname().machine}, {struct.calcsize('P') * 8} bits)",
            hint="it knows them for 64-bit programs on x86_64, aarch64, riscv64, loongarch64, "
            "ppc64 and s390x; on others, install chrootfw with a C compiler",
        )
    column = _COLUMNS.index(syscalls.ARCHITECTURE)
    return {name: row[column] for name, row in _BY_ARCHITECTURE.items()} | _EVERYWHERE


#: The numbers by name.
NUMBERS: dict[str, int] = native.MODULE.NUMBERS if native.MODULE else _from_table()
