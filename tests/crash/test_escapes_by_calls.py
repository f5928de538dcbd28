"""A hostile root in a hardened instance who has Python: what descriptors, marks and system calls on other processes give away.

Some is tried without the filter of system calls, which is not all that holds.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from driving import Chroot, Cli

import chrootfw
from chrootfw_hardened import hardening

MakeChroot = Callable[..., Chroot]

BINDS = [
    f"{place}:{place}:ro" for place in dict.fromkeys(("/usr", os.path.realpath(sys.base_prefix)))
]
PYTHON = os.path.realpath(sys.executable)


@pytest.fixture
def runtime(run_dir: Path, config_dir: Path) -> chrootfw.Runtime:
    return chrootfw.Runtime([hardening], run_dir=str(run_dir), config_dir=str(config_dir))


@pytest.fixture
def make_python_chroot(make_chroot: MakeChroot, make_root: Callable[..., Path]) -> MakeChroot:
    """A factory of hardened instances, started, in which this Python runs."""

    def make(**params: object) -> Chroot:
        root = make_root()
        for directory in ("lib", "lib64"):
            (root / directory).symlink_to(f"usr/{directory}")
        web1 = make_chroot(disk=root, **{"binds": BINDS, "hardened": True, **params})
        web1.start()
        return web1

    return make


def python(web1: Chroot, code: str, *arguments: str) -> str:
    """What a program of root's inside prints."""
    return web1.cli("exec", "--", PYTHON, "-I", "-c", textwrap.dedent(code), *arguments).stdout


@pytest.mark.parametrize("hardened", [False, True], ids=["plain", "hardened"])
def test_a_suid_program_makes_nobody_root(make_python_chroot: MakeChroot, hardened: bool) -> None:
    """In a plain instance it does, as anywhere. A node of a device is made in neither place of a hardened one."""
    web1 = make_python_chroot(hardened=hardened)
    for place in ("/srv", "/tmp", "/dev/shm", "/run"):
        make = f"cp /usr/bin/id {place}/id && chmod 6755 {place}/id; mknod {place}/disk b 7 0 || echo refused"
        said = web1.cli("exec", "--", "/bin/sh", "-c", make).stdout
        assert ("refused" in said) == hardened
        if place in ("/srv", "/tmp"):  # the others are nosuid anyway
            done = web1.cli("exec", "--user", "web", "--", f"{place}/id", "-u")
            assert done.stdout == ("1000\n" if hardened else "0\n")
    web1.stop()


_SEND = """
import os, socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
connection.connect("\\0" + sys.argv[1])
socket.send_fds(connection, [b"x"], [os.open("/", os.O_PATH), os.open("/srv/id", os.O_PATH)])
"""


def test_a_descriptor_that_is_sent_out_makes_nobody_root(
    make_python_chroot: MakeChroot, tmp_path: Path
) -> None:
    """To an accomplice outside, an ordinary user of the host: the root, and a program that is suid (SCM_RIGHTS)."""
    web1 = make_python_chroot()
    program = web1.disk / "srv/id"
    program.write_bytes((web1.disk / "bin/busybox").read_bytes())
    program.chmod(0o6755)
    canary = tmp_path / "canary"
    canary.write_text("canary-of-the-host\n")
    name = f"\0chrootfw-test-{os.getpid()}"
    ours, theirs = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        accomplice = os.fork()
        if accomplice == 0:
            _be_the_accomplice(listener, theirs, canary)
        os.close(theirs)
        python(web1, _SEND, name[1:])
    os.waitpid(accomplice, 0)
    with open(ours) as file:
        said = file.read().split("\n")
    assert said[0] == "65534", said
    assert said[1].startswith("refused"), said
    web1.stop()


def _be_the_accomplice(listener: socket.socket, output: int, canary: Path) -> None:
    """The rest of a process that was forked."""
    try:
        for place in (1, 2):
            os.dup2(output, place)
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        connection, _ = listener.accept()
        _, (root, program), _, _ = socket.recv_fds(connection, 1, 2)
        if os.fork() == 0:
            os.execve(program, ["id", "-u"], {})
        os.wait()
        try:
            os.stat("../" * 32 + str(canary).lstrip("/"), dir_fd=root)
            os.write(1, b"reached")
        except OSError as error:
            os.write(1, b"refused: " + str(error).encode())
    finally:
        os._exit(0)


_CHANGE = """
import fcntl, os
for fd in range(3):
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND | os.O_ASYNC)
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
"""


def test_what_is_set_on_a_stream_is_not_set_on_the_hosts(
    make_python_chroot: MakeChroot, cli: Cli
) -> None:
    """Flags and sizes belong to what all who have a pipe share (fcntl(2)): the host's next command would fail with EAGAIN."""
    web1 = make_python_chroot()
    pipes = [os.pipe() for _ in range(3)]
    given = [pipes[0][0], pipes[1][1], pipes[2][1]]

    def state() -> list[tuple[int, ...]]:
        asked = (fcntl.F_GETFL, fcntl.F_GETOWN, fcntl.F_GETPIPE_SZ)
        return [tuple(fcntl.fcntl(fd, what) for what in asked) for fd in given]

    before = state()
    subprocess.run(
        [sys.executable, "-m", "chrootfw", "exec", "web1", "--", PYTHON, "-I", "-c", _CHANGE],
        stdin=given[0], stdout=given[1], stderr=given[2], env=cli.environment(), timeout=60, check=True,
    )  # fmt: skip
    assert state() == before
    web1.runtime.run(
        "web1",
        [PYTHON, "-I", "-c", _CHANGE],
        stdin=given[0],
        stdout=given[1],
        stderr=given[2],
        check=True,
    )
    assert state() == before
    for fd in [fd for ends in pipes for fd in ends]:
        os.close(fd)
    web1.stop()


_REQUESTS = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
root, room = os.open("/", os.O_RDONLY), ctypes.create_string_buffer(8192)

def code(request):
    return errno.errorcode[ctypes.get_errno()] if libc.ioctl(root, ctypes.c_ulong(request), room) < 0 else "done"

BTRFS = (1, 14, 15, 18, 23, 24, 26, 60, 61, 62, 63)
FAMILIES = [0x9400 | number for number in BTRFS] + [0xbc10, 0xbc11, 0x6617, 0x6618, 0x6619]
print(*{code(0x50000000 | family) for family in FAMILIES} | {code(0x80080000 | family) for family in FAMILIES})
print(*{code(request) for request in (0x40049409, 0x4020940d, 0xc0189436)})
try:
    print(socket.socket(38, socket.SOCK_SEQPACKET) and "opened")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("hardened", [False, True], ids=["plain", "hardened"])
def test_no_request_reaches_a_file_system_beyond_the_root(
    make_python_chroot: MakeChroot, hardened: bool
) -> None:
    """Subvolumes of btrfs and bcachefs, keys of fscrypt, ciphers with the host's keys. What copies within files is as it was."""
    web1 = make_python_chroot(hardened=hardened)
    refused, copies, ciphers = python(web1, _REQUESTS).split("\n")[:3]
    assert (refused == "EPERM") == hardened
    assert "EPERM" not in copies
    if hardened:
        assert ciphers == "EAFNOSUPPORT"
    web1.stop()


_MARK = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
NOTIFY, REPORT_FID, ADD, MOUNT, FILESYSTEM, OPEN = 0, 0x200, 1, 0x10, 0x100, 0x20
for kind in (NOTIFY, NOTIFY | REPORT_FID):
    group = libc.fanotify_init(kind, os.O_RDONLY)
    for what in (MOUNT, FILESYSTEM):
        made = group >= 0 and libc.fanotify_mark(group, ADD | what, ctypes.c_uint64(OPEN), -100, b"/") == 0
        print("marked" if made else "refused")
"""


@pytest.mark.parametrize("seccomp", [True, False], ids=["filter", "no filter"])
def test_no_mark_shows_what_the_host_does(make_python_chroot: MakeChroot, seccomp: bool) -> None:
    """fanotify(7): the file system of a directory is the host's."""
    web1 = make_python_chroot(hardened_seccomp=seccomp)
    assert python(web1, _MARK).split() == ["refused"] * 4
    web1.stop()


_ATTACK = """
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
PTRACE_SEIZE = 0x4206
READV, PIDFD_OPEN, PIDFD_GETFD = (int(word) for word in sys.argv[1:4])
own = {int(name) for name in os.listdir("/proc") if name.isdigit()} - {1}
seen, wins = set(), []

class Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

def is_shown(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""

def attempts(pid):
    for name in ("environ", "maps", "mem", "auxv", "fd/3", "fd/4", "fd/5", "fd/6"):
        try:
            os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_NONBLOCK))
            yield name
        except OSError:
            pass
    for name in ("root", "cwd", "exe", "fd/0", "fd/3"):
        try:
            os.readlink(f"/proc/{pid}/{name}")
            yield name
        except OSError:
            pass
    pidfd = libc.syscall(PIDFD_OPEN, pid, 0)
    for number in range(8):
        got = libc.syscall(PIDFD_GETFD, pidfd, number, 0)
        if got >= 0:
            yield f"pidfd_getfd {number}"
            os.close(got)
    if pidfd >= 0:
        os.close(pidfd)
    room = ctypes.create_string_buffer(8)
    for address in (0x400000, 0x555555554000):
        one, other = Vector(ctypes.addressof(room), 8), Vector(address, 8)
        if libc.syscall(READV, pid, ctypes.byref(one), 1, ctypes.byref(other), 1, 0) == 8 or ctypes.get_errno() == errno.EFAULT:
            yield "process_vm_readv"
    tracer = os.fork()  # with its end it lets go
    if tracer == 0:
        os._exit(libc.ptrace(PTRACE_SEIZE, pid, None, None) != 0)
    own.add(tracer)
    if os.waitpid(tracer, 0)[1] == 0:
        yield "ptrace"

print("tries", flush=True)
while not os.path.exists("/srv/enough"):
    for pid in {int(name) for name in os.listdir("/proc") if name.isdigit()} - own:
        if is_shown(pid):
            continue  # a program of the instance's, by now
        seen.add(pid)
        ctypes.set_errno(0)
        found = list(attempts(pid))
        try:
            with open(f"/proc/{pid}/comm") as file:
                name = file.read().strip()
        except OSError:
            continue
        if found and name != "true":  # that one has run, and ends
            wins.append((pid, name, found))
print(json.dumps({"seen": sorted(seen), "wins": wins}))
"""
#: process_vm_readv, pidfd_open, pidfd_getfd.
_NUMBERS = {"x86_64": (310, 434, 438), "aarch64": (270, 434, 438)}


@pytest.mark.skipif(
    os.uname().machine not in _NUMBERS, reason="the numbers of its system calls are not known here"
)
def test_what_enters_is_not_taken_over(
    make_python_chroot: MakeChroot, cli: Cli, whole: bool
) -> None:
    """By a process of root's that waits for it, without the filter: its memory, its descriptors, its links in /proc."""
    web1 = make_python_chroot(hardened_seccomp=False)
    attacker = cli.begin(
        "exec", "web1", "--", PYTHON, "-I", "-c", _ATTACK, *map(str, _NUMBERS[os.uname().machine])
    )
    assert attacker.stdout is not None
    assert attacker.stdout.readline() == "tries\n"
    for _ in range(300 if whole else 12):
        web1.cli("exec", "--", "/bin/true")
    (web1.disk / "srv/enough").touch()
    result = json.loads(cli.end(attacker).stdout)
    assert not result["wins"], result
    assert len(result["seen"]) > 1, "it saw none but the first process"
    web1.stop()


def test_a_user_without_processes_left_keeps_nobody_out(make_chroot: MakeChroot, cli: Cli) -> None:
    """As many processes as the user may have: what enters as that user is refused at once; root enters, and the stop is whole."""
    web1 = make_chroot(hardened=True)
    web1.start()
    bomb = "n=0; while [ $n -lt 60 ]; do sleep 3600 > /dev/null 2>&1 & n=$((n + 1)); done; true"
    web1.cli(
        "exec",
        "--user",
        "web",
        "--",
        "/bin/sh",
        "-c",
        bomb,
        prefix=["prlimit", "--nproc=40"],
        expect=range(256),
    )
    assert len(web1.pids("sleep")) > 30
    refused = web1.cli(
        "exec",
        "--user",
        "web",
        "--",
        "/bin/true",
        prefix=["prlimit", "--nproc=20"],
        expect=range(1, 256),
    )
    assert "Resource temporarily unavailable" in refused.stderr
    assert web1.cli("exec", "--", "/bin/echo", "here").stdout == "here\n"
    web1.cli("stop")
    assert web1.is_gone()
