"""Everything that keeps a file system busy, each as a program: ``holder_kinds.py KIND ROOT OUTSIDE DAEMON``.

It holds, prints a JSON list of what names it (``pid N``, a loop device, a mount point), and lets go when its standard
input ends. ``ROOT`` is the root of a running instance on a loop device, ``OUTSIDE`` an empty directory elsewhere,
``DAEMON`` the pid of a process in the instance's cgroup. One that the stop itself may end needs nothing released.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

#: What a stop must say of a kind. STOPPED: it is no holder, or its end is the stop's business.
NAMED, UNKNOWN, STOPPED = "named", "busy, holder unknown", "stopped"

_CLONE_FS, _CLONE_FILES, _CLONE_NEWNS = 0x200, 0x400, 0x20000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_OPEN_TREE, _FSOPEN, _FSCONFIG, _FSMOUNT, _FSPICK = 428, 430, 431, 432, 433
_IO_URING_SETUP, _IO_URING_REGISTER = 425, 427
_PR_SET_PDEATHSIG = 1
_FAN_OPEN, _FAN_MARK_ADD, _FAN_MARK_MOUNT = 0x20, 0x01, 0x10

_libc = ctypes.CDLL(None, use_errno=True)


class Place(NamedTuple):
    """Where to hold."""

    root: Path
    outside: Path
    daemon: int

    @property
    def file(self) -> Path:
        return self.root / "etc/passwd"

    @property
    def device(self) -> str:
        """The loop device that is mounted on the root."""
        return _output(
            "findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", str(self.root)
        )


class Kind(NamedTuple):
    hold: Callable[[Place], object]
    outcome: str


KINDS: dict[str, Kind] = {}


def kind(name: str, outcome: str) -> Callable[[Callable[[Place], Iterator[list[str]]]], object]:
    """Register a generator: it holds, yields what names it, and lets go."""

    def register(function: Callable[[Place], Iterator[list[str]]]) -> object:
        KINDS[name] = Kind(contextmanager(function), outcome)
        return function

    return register


def _call(number: int, *arguments: object) -> int:
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"syscall {number}: {os.strerror(code)}")
    return int(result)


def _unshare(flags: int) -> None:
    if _libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _me() -> list[str]:
    return [f"pid {os.getpid()} "]


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _child(body: Callable[[], object]) -> Iterator[int]:
    """A child that does ``body`` and then waits for its end."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready)
            _end_with_parent()
            body()
            os.write(done, b"1")
            os.close(done)
            os.closerange(0, 3)
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(done)
    if os.read(ready, 1) != b"1":
        raise RuntimeError("the child failed")
    os.close(ready)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def _thread(body: Callable[[], object]) -> Iterator[None]:
    """A thread that does ``body`` and then waits for its end."""
    ready, end = threading.Event(), threading.Event()

    def run() -> None:
        body()
        ready.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    if not ready.wait(10):
        raise RuntimeError("the thread failed")
    yield
    end.set()
    thread.join()


@contextmanager
def _mounted(place: Path, *arguments: str) -> Iterator[None]:
    _run("mount", *arguments, str(place))
    try:
        yield
    finally:
        _run("umount", str(place))


def _own_mount_namespace() -> None:
    _unshare(_CLONE_NEWNS)
    if _libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) != 0:
        raise OSError(ctypes.get_errno(), "mount")


# A process outside, with a file, a directory or a mapping.


@kind("cwd", NAMED)
def cwd(place: Place) -> Iterator[list[str]]:
    os.chdir(place.root / "srv")
    yield _me()


@kind("exe", NAMED)
def exe(place: Place) -> Iterator[list[str]]:
    with subprocess.Popen(
        [str(place.root / "bin/busybox"), "sleep", "3600"], cwd="/", preexec_fn=_end_with_parent
    ) as process:
        yield [f"pid {process.pid} "]
        process.kill()


@kind("regular file", NAMED)
def regular_file(place: Place) -> Iterator[list[str]]:
    with place.file.open():
        yield _me()


@kind("flock", NAMED)
def flock(place: Place) -> Iterator[list[str]]:
    with place.file.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield _me()


def _map(file: Path) -> None:
    """Map a file and close it; Python's own mmap keeps a descriptor."""
    fd = os.open(file, os.O_RDONLY)
    _libc.mmap.restype = ctypes.c_void_p
    if (
        _libc.mmap(None, ctypes.c_size_t(1), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
        == 2**64 - 1
    ):
        raise OSError(ctypes.get_errno(), "mmap")
    os.close(fd)


@kind("mapping only", NAMED)
def mapping_only(place: Place) -> Iterator[list[str]]:
    _map(place.file)
    yield _me()


@kind("mapping of a deleted file", NAMED)
def mapping_of_a_deleted_file(place: Place) -> Iterator[list[str]]:
    file = place.root / "srv/mapped"
    file.write_bytes(bytes(4096))
    _map(file)
    file.unlink()
    yield _me()


@kind("stopped process", NAMED)
def stopped_process(place: Place) -> Iterator[list[str]]:
    with _child(lambda: os.chdir(place.root)) as pid:
        os.kill(pid, signal.SIGSTOP)
        yield [f"pid {pid} "]


@kind("directory", NAMED)
def directory(place: Place) -> Iterator[list[str]]:
    os.open(place.root / "srv", os.O_RDONLY | os.O_DIRECTORY)
    yield _me()


@kind("O_PATH descriptor", NAMED)
def path_descriptor(place: Place) -> Iterator[list[str]]:
    os.open(place.root / "srv", os.O_PATH)
    yield _me()


@kind("deleted file", NAMED)
def deleted_file(place: Place) -> Iterator[list[str]]:
    with (place.root / "srv/deleted").open("w"):
        (place.root / "srv/deleted").unlink()
        yield _me()


@kind("FIFO", NAMED)
def fifo(place: Place) -> Iterator[list[str]]:
    os.mkfifo(place.root / "srv/fifo")
    os.open(place.root / "srv/fifo", os.O_RDWR)
    yield _me()


@kind("device node", NAMED)
def device_node(place: Place) -> Iterator[list[str]]:
    os.open(place.root / "dev/null", os.O_RDWR)
    yield _me()


@kind("in a nested mount", NAMED)
def in_a_nested_mount(place: Place) -> Iterator[list[str]]:
    _run("mount", "-t", "tmpfs", "nested", str(place.root / "mnt"))
    os.chdir(place.root / "mnt")
    yield _me()


@kind("in another pid namespace", NAMED)
def in_another_pid_namespace(place: Place) -> Iterator[list[str]]:
    _unshare(_CLONE_NEWPID)
    with _child(lambda: os.chdir(place.root)) as pid:
        yield [f"pid {pid} "]


# Unix sockets.


def _bind(path: str) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(path)
    bound.listen()
    return bound


@kind("unix socket, absolute path", NAMED)
def unix_socket(place: Place) -> Iterator[list[str]]:
    with _bind(str(place.root / "srv/socket")):
        yield _me()


@kind("unix socket, relative path", NAMED)
def unix_socket_relative(place: Place) -> Iterator[list[str]]:
    os.chdir(place.root / "srv")
    with _bind("socket"):
        os.chdir("/")
        yield _me()


@kind("unix socket, unlinked", NAMED)
def unix_socket_unlinked(place: Place) -> Iterator[list[str]]:
    with _bind(str(place.root / "srv/socket")):
        (place.root / "srv/socket").unlink()
        yield _me()


@kind("unix socket of another network namespace", UNKNOWN)
def unix_socket_elsewhere(place: Place) -> Iterator[list[str]]:
    _unshare(_CLONE_NEWNET)
    with _bind(str(place.root / "srv/socket")):
        yield _me()


# Threads.


@kind("a thread's own cwd", NAMED)
def thread_cwd(place: Place) -> Iterator[list[str]]:
    def body() -> None:
        _unshare(_CLONE_FS)
        os.chdir(place.root / "srv")

    with _thread(body):
        yield _me()


@kind("a thread's own descriptors", NAMED)
def thread_descriptors(place: Place) -> Iterator[list[str]]:
    def body() -> None:
        _unshare(_CLONE_FILES)
        os.open(place.file, os.O_RDONLY)

    with _thread(body):
        yield _me()


@kind("a thread whose process's first thread ended", NAMED)
def first_thread_ended(place: Place) -> Iterator[list[str]]:
    program = (
        "import ctypes, os, sys, threading, time; os.open(sys.argv[1], os.O_RDONLY);"
        "threading.Thread(target=time.sleep, args=(3600,)).start(); ctypes.CDLL(None).syscall(60, 0)"
    )
    argv = [sys.executable, "-S", "-c", program, str(place.file)]
    with subprocess.Popen(argv, cwd="/", preexec_fn=_end_with_parent) as process:
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            os.sched_yield()
        yield [f"pid {process.pid} "]
        process.kill()


# Held without a descriptor that anybody could see.


@kind("descriptor in flight (SCM_RIGHTS)", UNKNOWN)
def descriptor_in_flight(place: Place) -> Iterator[list[str]]:
    here, there = socket.socketpair()
    with place.file.open() as file:
        socket.send_fds(here, [b"x"], [file.fileno()])
    yield _me()
    there.close()
    here.close()


@kind("io_uring fixed file", UNKNOWN)
def io_uring(place: Place) -> Iterator[list[str]]:
    ring = _call(_IO_URING_SETUP, 1, ctypes.create_string_buffer(120))
    with place.file.open() as file:
        _call(_IO_URING_REGISTER, ring, 2, (ctypes.c_int * 1)(file.fileno()), 1)
    yield _me()
    os.close(ring)


@kind("swap file", NAMED)
def swap_file(place: Place) -> Iterator[list[str]]:
    file = place.root / "srv/swap"
    file.write_bytes(bytes(1 << 20))
    file.chmod(0o600)
    _run("mkswap", str(file))
    _run("swapon", "--priority", "0", str(file))
    try:
        yield [str(file)]
    finally:
        _run("swapoff", str(file))


@kind("binfmt_misc interpreter", UNKNOWN)
def binfmt_misc(place: Place) -> Iterator[list[str]]:
    name = f"chrootfw-{os.getpid()}"
    with _mounted(place.outside, "-t", "binfmt_misc", "binfmt_misc"):
        rule = f":{name}:E::{name}::{place.root / 'bin/busybox'}:F"
        (place.outside / "register").write_text(rule)
        try:
            yield [name]
        finally:
            (place.outside / name).write_text("-1")


@kind("loop device over a file inside", NAMED)
def loop_device(place: Place) -> Iterator[list[str]]:
    file = place.root / "srv/inner.img"
    file.write_bytes(bytes(1 << 20))
    device = _output("losetup", "--find", "--show", str(file))
    yield [device]
    _run("losetup", "--detach", device)


@kind("unread fanotify events", NAMED)
def fanotify_events(place: Place) -> Iterator[list[str]]:
    fd = _fanotify(place.root, _FAN_MARK_ADD | _FAN_MARK_MOUNT)
    place.file.read_bytes()  # the event keeps the file until somebody reads it
    yield _me()
    os.close(fd)


def _fanotify(path: Path, mark: int) -> int:
    """A descriptor that is told of each open."""
    fd = int(_libc.fanotify_init(0, os.O_RDONLY))
    if (
        fd < 0
        or _libc.fanotify_mark(fd, mark, ctypes.c_uint64(_FAN_OPEN), -100, os.fsencode(path)) < 0
    ):
        raise OSError(ctypes.get_errno(), "fanotify_mark")
    return fd


# The file system is held, its mount in the root is not.


@kind("file through a bind mount elsewhere", NAMED)
def file_through_a_bind(place: Place) -> Iterator[list[str]]:
    with (
        _mounted(place.outside, "--bind", str(place.root / "etc")),
        (place.outside / "passwd").open(),
    ):
        yield [*_me(), str(place.outside)]


@kind("bind mount elsewhere", NAMED)
def bind_elsewhere(place: Place) -> Iterator[list[str]]:
    with _mounted(place.outside, "--bind", str(place.root / "srv")):
        yield [str(place.outside)]


@kind("the device mounted elsewhere too", NAMED)
def mounted_elsewhere(place: Place) -> Iterator[list[str]]:
    with _mounted(place.outside, "-t", "ext4", place.device):
        yield [str(place.outside)]


@kind("overlay that uses it as its lower layer", NAMED)
def overlay(place: Place) -> Iterator[list[str]]:
    with _mounted(place.outside, "-t", "tmpfs", "layers"):
        for name in ("upper", "work", "merged"):
            (place.outside / name).mkdir()
        options = f"lowerdir={place.root / 'srv'},upperdir={place.outside}/upper,workdir={place.outside}/work"
        with _mounted(place.outside / "merged", "-t", "overlay", "-o", options, "overlay"):
            yield [str(place.outside / "merged")]


@kind("cwd in another mount namespace", NAMED)
def cwd_in_another_namespace(place: Place) -> Iterator[list[str]]:
    def body() -> None:
        _own_mount_namespace()
        os.chdir(place.root / "srv")

    with _child(body) as pid:
        yield [f"pid {pid} "]


@kind("copy of the mount namespace", STOPPED)
def copy_of_the_namespace(place: Place) -> Iterator[list[str]]:
    with _child(_own_mount_namespace) as pid:
        yield [f"pid {pid} "]


@kind("copy of the mount namespace, user namespace too", NAMED)
def copy_with_user_namespace(place: Place) -> Iterator[list[str]]:
    with _child(lambda: _unshare(_CLONE_NEWUSER | _CLONE_NEWNS)) as pid:
        yield [f"pid {pid} "]


@kind("mount namespace that only a descriptor keeps", NAMED)
def namespace_by_descriptor(place: Place) -> Iterator[list[str]]:
    with _child(_own_mount_namespace) as pid:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    yield _me()
    os.close(fd)


@kind("detached copy of the mount (open_tree)", NAMED)
def detached_copy(place: Place) -> Iterator[list[str]]:
    fd = _call(_OPEN_TREE, -100, os.fsencode(place.root), 1)
    yield _me()
    os.close(fd)


@kind("detached mount of the device (fsmount)", NAMED)
def detached_mount(place: Place) -> Iterator[list[str]]:
    context = _call(_FSOPEN, b"ext4", 1)
    _call(_FSCONFIG, context, 1, b"source", place.device.encode(), 0)
    _call(_FSCONFIG, context, 6, None, None, 0)
    fd = _call(_FSMOUNT, context, 1, 0)
    os.close(context)
    yield _me()
    os.close(fd)


@kind("configuration context (fspick)", UNKNOWN)
def configuration_context(place: Place) -> Iterator[list[str]]:
    fd = _call(_FSPICK, -100, os.fsencode(place.root), 1)
    yield _me()
    os.close(fd)


@kind("the loop device itself, opened", NAMED)
def opened_device(place: Place) -> Iterator[list[str]]:
    with open(place.device, "rb"):
        yield _me()


# What keeps nothing busy.


@kind("inotify watch", STOPPED)
def inotify(place: Place) -> Iterator[list[str]]:
    fd = _libc.inotify_init()
    if _libc.inotify_add_watch(fd, os.fsencode(place.file), 0xFFF) < 0:
        raise OSError(ctypes.get_errno(), "inotify_add_watch")
    yield _me()


@kind("fanotify mark", STOPPED)
def fanotify_mark(place: Place) -> Iterator[list[str]]:
    _fanotify(place.file, _FAN_MARK_ADD)
    yield _me()


@kind("process accounting to a file inside", STOPPED)
def accounting(place: Place) -> Iterator[list[str]]:
    (place.root / "srv/acct").touch()

    def body() -> None:  # accounting is a pid namespace's own
        if _libc.acct(os.fsencode(place.root / "srv/acct")) != 0:
            raise OSError(ctypes.get_errno(), "acct")

    _unshare(_CLONE_NEWPID)
    with _child(body):
        yield _me()


# Processes that are the instance's own, however they hide.


def _cgroup_of(pid: int) -> Path:
    top = _output(
        "findmnt", "--noheadings", "--first-only", "--types", "cgroup2", "--output", "TARGET"
    )
    (line,) = [
        x for x in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if x.startswith("0::")
    ]
    return Path(top + line[3:])


def _enter(place: Place, pid: int = 0) -> None:
    """Become one of the instance's own, by cgroup and root."""
    (_cgroup_of(place.daemon) / "cgroup.procs").write_text(str(pid))
    os.chroot(place.root)
    os.chdir("/")


def _leave_cgroup(pid: int) -> None:
    top = _cgroup_of(pid)
    while (top.parent / "cgroup.procs").exists():
        top = top.parent
    (top / "cgroup.procs").write_text(str(pid))


@kind("host process that is chrooted into it", STOPPED)
def host_process_chrooted(place: Place) -> Iterator[list[str]]:
    with _child(lambda: os.chroot(place.root)) as pid:
        yield [f"pid {pid} "]


@kind("own process, frozen", STOPPED)
def own_frozen(place: Place) -> Iterator[list[str]]:
    with _child(lambda: _enter(place)) as pid:
        (_cgroup_of(pid) / "cgroup.freeze").write_text("1")
        yield [f"pid {pid} "]


@kind("own process, stopped by a signal", STOPPED)
def own_stopped(place: Place) -> Iterator[list[str]]:
    with _child(lambda: _enter(place)) as pid:
        os.kill(pid, signal.SIGSTOP)
        yield [f"pid {pid} "]


@kind("own process that left the cgroup", STOPPED)
def own_left_the_cgroup(place: Place) -> Iterator[list[str]]:
    with _child(lambda: _enter(place)) as pid:
        _leave_cgroup(pid)
        yield [f"pid {pid} "]


@kind("own process in a deeper chroot, out of the cgroup", STOPPED)
def own_deeper(place: Place) -> Iterator[list[str]]:
    def body() -> None:
        _enter(place)
        os.chroot("/srv")

    with _child(body) as pid:
        _leave_cgroup(pid)
        yield [f"pid {pid} "]


@kind("own process in its own mount namespace, out of the cgroup", STOPPED)
def own_namespace(place: Place) -> Iterator[list[str]]:
    def body() -> None:
        _own_mount_namespace()
        _enter(place)

    with _child(body) as pid:
        _leave_cgroup(pid)
        yield [f"pid {pid} "]


@kind("own process that left the cgroup and the root", NAMED)
def own_escaped(place: Place) -> Iterator[list[str]]:
    def body() -> None:
        outside = os.open("/", os.O_RDONLY)
        _enter(place)
        os.fchdir(outside)
        os.chroot(".")
        os.close(outside)
        os.chdir(place.root / "srv")

    with _child(body) as pid:
        _leave_cgroup(pid)
        yield [f"pid {pid} "]


def main() -> None:
    name, root, outside, daemon = sys.argv[1:]
    with KINDS[name].hold(Place(Path(root), Path(outside), int(daemon))) as names:
        print(json.dumps(names), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
