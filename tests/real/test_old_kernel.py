"""What ``--kernel=5.14`` promises to the other tests: nothing that is newer works, and all else does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Makes the raw calls; prints a line for each: its name, and the error's name or ``ok``.
PROBE = """
import ctypes, errno, mmap, os, sys

sys.path[:0] = sys.argv[1:]
import old_kernel
from chrootfw.linux import syscalls

def errors_of(what):
    try:
        result = what()
        return "ok" if result is None or result >= 0 else errno.errorcode[ctypes.get_errno()]
    except OSError as error:
        return errno.errorcode[error.errno]

libc = ctypes.CDLL(None, use_errno=True)
call = lambda *arguments: lambda: libc.syscall(*arguments)
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.make_all_slave()
trees = [syscalls.new_filesystem("tmpfs", [], 0) for _ in range(3)]
for tree in trees:
    os.mkdir("x", dir_fd=tree)
detached = os.open("x", os.O_PATH, dir_fd=trees[0])
print("listmount", errors_of(call(458, None, None, 0, 0)))
print("statmount", errors_of(call(457, None, None, 0, 0)))
print("cachestat", errors_of(call(451, -1, None, None, 0)))
print("newest", errors_of(call(old_kernel.LAST_NEWER)))
print("attach-to-detached", errors_of(lambda: syscalls.move_mount(trees[1], detached)))
print("attach-to-detached-by-name", errors_of(call(429, trees[1], b"", trees[0], b"x", 4)))
print("copy-of-detached", errors_of(lambda: syscalls.open_tree(trees[0], "")))
print("copy-of-attached", errors_of(lambda: syscalls.open_tree(-100, "/")))
place = os.open(sys.argv[3], os.O_PATH)
print("attach", errors_of(lambda: syscalls.move_mount(trees[0], place)))
inside = os.open(sys.argv[3] + "/x", os.O_PATH)
print("attach-in-attached", errors_of(lambda: syscalls.move_mount(trees[1], inside)))
print("attach-by-path", errors_of(call(429, trees[2], b"", -100, (sys.argv[3] + "/x/x").encode(), 4)))
print("beneath", errors_of(call(429, trees[2], b"", inside, b"", 0x244)))
pidfd = os.pidfd_open(os.getpid())
print("pidfd", errors_of(call(424, pidfd, 0, None, 0)))
print("pidfd-of-thread", errors_of(call(434, os.getpid(), 0x80)))
memory = mmap.mmap(-1, 4096)
page = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
print("executable", errors_of(lambda: libc.mprotect(page, 4096, mmap.PROT_READ | mmap.PROT_EXEC)))
print("pidfd-signal-flag", errors_of(call(424, pidfd, 0, None, 1)))
"""

REFUSED = {
    "listmount": "ENOSYS", "statmount": "ENOSYS", "cachestat": "ENOSYS", "newest": "ENOSYS",
    "attach-to-detached": "EINVAL", "attach-to-detached-by-name": "EINVAL", "copy-of-detached": "EINVAL",
    "beneath": "EINVAL", "pidfd-of-thread": "EINVAL", "pidfd-signal-flag": "EINVAL", "executable": "EACCES",
}  # fmt: skip
ALLOWED = ("copy-of-attached", "attach", "attach-in-attached", "attach-by-path", "pidfd")


def test_what_is_newer_is_refused_and_nothing_else(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    here = Path(__file__).parent
    begin = "" if request.config.getoption("--kernel") == "5.14" else "end = old_kernel.install()\n"
    script = PROBE.replace("\n\ndef errors_of", f"\n{begin}\ndef errors_of", 1)
    done = subprocess.run(
        [sys.executable, "-c", script, str(here), str(here.parent.parent), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found == {**REFUSED, **dict.fromkeys(ALLOWED, "ok")}


def test_a_tracer_inside_can_still_inject(tmp_path: Path) -> None:
    """strace(1) says "do not run this call" with the number -1, which must not be taken for a newer call."""
    trace = [
        "strace",
        "-qq",
        "-o",
        str(tmp_path / "trace"),
        "-e",
        "inject=unlink,unlinkat:error=EBUSY",
        "rm",
        "x",
    ]
    (tmp_path / "x").touch()
    done = subprocess.run(trace, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert os.strerror(16) in done.stderr
    assert (tmp_path / "x").exists()
