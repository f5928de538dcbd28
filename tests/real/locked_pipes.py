"""Keep the kernel's lock of a pipe, as a process inside can: splice(2) from a socket that says nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kernelview

_SPLICES = """
import os, socket, sys
pipe = os.open(sys.argv[1], os.O_RDWR)
silent, other = socket.socketpair()
print("splices", flush=True)
os.splice(silent.fileno(), pipe, 65536)
"""


#: Writes to a terminal from memory that only userfaultfd(2) would fill, and nobody does.
_FAULTS = """
import ctypes, fcntl, mmap, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
faults = libc.syscall(int(sys.argv[2]), os.O_CLOEXEC)
if faults < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
fcntl.ioctl(faults, 0xC018AA3F, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(faults, 0xC020AA00, bytearray(struct.pack("QQQQ", place, mmap.PAGESIZE, 1, 0)))
terminal = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
print("splices", flush=True)
libc.write(terminal, ctypes.c_void_p(place), 10)
"""

#: userfaultfd(2).
_USERFAULTFD = {"x86_64": 323, "aarch64": 282, "riscv64": 282, "loongarch64": 282}


def locked_terminal(pid: int, number: int) -> contextlib.AbstractContextManager[int]:
    """Keep the terminal that is a process's descriptor locked."""
    return locked(pid, number, _FAULTS, str(_USERFAULTFD[os.uname().machine]))


def can_lock_terminals() -> bool:
    """Whether this machine has userfaultfd(2)."""
    number = _USERFAULTFD.get(os.uname().machine, -1)
    fd = ctypes.CDLL(None).syscall(number, os.O_CLOEXEC)
    if fd >= 0:
        os.close(fd)
    return bool(fd >= 0)


@contextlib.contextmanager
def locked(pid: int, number: int, program: str = _SPLICES, *more: str) -> Iterator[int]:
    """Keep the pipe that is a process's descriptor locked; give the pid of the process that does."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, f"/proc/{pid}/fd/{number}", *more],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"splices\n"
        kernelview.wait_until(lambda: _sleeps(process.pid), "it sleeps in its call")
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _sleeps(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"
