"""A real, tiny instance for a test: made of one busybox, in a mount namespace that the test's thread enters and leaves again."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import chrootfw
from chrootfw import ChrootfwError, Event, Instance, InstanceInfo, MountPoint, Node, Runtime, TrustError
from chrootfw.runtime import Chroot
from chrootfw.system import cgroups, loops, mounts, processes, store, syscalls

#: How to have these tests run without being root. A user namespace alone does not do: /proc may be mounted by who owns the pid
#: namespace, /sys by who owns the network namespace.
COMMAND = "unshare --map-root-user --pid --fork --mount-proc --net python3 -m pytest"

#: What the init script of an instance does unless the test brings one: one daemon, that a stop ends.
INIT = """#!/bin/sh
case $1 in
start) sleep 3600 & echo $! > /run/daemon ;;
stop) kill $(cat /run/daemon) ;;
esac
"""

_DIRECTORIES = ("bin", "dev", "etc/chrootfw", "mnt", "proc", "root", "run", "srv", "sys", "tmp", "var")
_FILES = {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"}

#: Where the run directory goes if the test's own directory cannot be trusted: in a user namespace whatever stands above it belongs to nobody.
_PLACES = ("/mnt", "/media", "/srv", "/opt")

_LOOP_CLR_FD = 0x4C01
#: Seconds for a process to end after KILL.
_KILL_MAX = 10.0


def missing() -> str:
    """Why no instance can be started here and what to do about it, or ``""``."""
    if os.geteuid() != 0:
        return f"real_chroot mounts file systems; run as root, or without root: {COMMAND}"
    if not _busybox():
        return "real_chroot needs a static busybox for its root; install it: apt-get install busybox-static"
    failures: list[OSError] = []

    def attempt() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            for fstype in ("proc", "sysfs", "tmpfs"):
                os.close(syscalls.new_filesystem(fstype, [], 0))
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=attempt)  # its mount namespace ends with it
    thread.start()
    thread.join()
    if failures:
        return f"real_chroot cannot mount /proc and /sys here ({failures[0].strerror}); this may help: {COMMAND}"
    return ""


class RealChroot(Chroot):
    """A started instance: ``name``, ``runtime``, ``disk`` (the directory that is its root), ``events`` (all that was told);
    ``root`` is the path of its root while it is mounted."""

    def __init__(self, runtime: Runtime, instance: Instance, events: list[Event]) -> None:
        super().__init__(runtime, instance.name)
        self.instance = instance
        self.disk = instance.disk or ""
        self.events = events

    def start(self) -> InstanceInfo:
        """Start it again after a ``stop``."""
        return self.runtime.start(self.instance)

    def stop(self, **how: Any) -> InstanceInfo:
        """``Runtime.stop`` of it."""
        return self.runtime.stop(self.instance, **how)


class Ground:
    """A mount namespace, entered by the calling thread with ``with``, and the instances in it.

    ``left``: what a test left, a line each, when it is over; it is cleared away. Other threads that live already do not enter.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.left: list[str] = []
        self.run_dir = ""
        self._chroots: list[RealChroot] = []
        self._way = _apart()

    def __enter__(self) -> Ground:
        self._way.__enter__()
        try:
            self.run_dir = _run_dir(self.directory)
            self._mounts = {entry.id for entry in mounts.table()}
            self._loops = set(_loops(self.directory))
            tops = filter(None, cgroups.hierarchies(mounts.read_table))
            self._cgroup_homes = [cgroups.home(top, self.run_dir) for top in tops]
        except BaseException:
            self._way.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        try:
            for chroot in self._chroots:
                try:
                    chroot.stop(force=True)
                except ChrootfwError as error:
                    self.left.append(str(error))
            self._clear()
        finally:
            self._way.__exit__(None, None, None)

    def start(
        self,
        *plugins: object,
        init: str | bool | None = None,
        params: Mapping[str, Any] | None = None,
        root: Mapping[str, str] | None = None,
        name: str = "real",
        **runtime: Any,
    ) -> RealChroot:
        """Make an instance and start it.

        ``plugins``: as for ``Runtime``. ``init``: the text of its init script; ``None`` for one that leaves a daemon, ``False`` for none. ``params``: as
        for ``Instance``. ``root``: texts of more files in its root, by path. ``runtime``: further arguments of ``Runtime``. Raises what ``Runtime.start`` raises.
        """
        disk = f"{self.directory}/{name}.disk"
        _make_root(disk, {"etc/chrootfw/init": INIT if init is None or init is True else init or "", **(root or {})})
        how: dict[str, Any] = {"init_script": None} if init is False else {}
        instance = Instance(name, disk=disk, params=params or {}, **how)
        events: list[Event] = []
        helpers = [] if _is_initial_user_namespace() else [ForUserNamespaces]
        made = Runtime(
            [*helpers, *plugins],
            run_dir=self.run_dir,
            config_dir=f"{self.directory}/definitions",
            on_event=events.append,
            **runtime,
        )
        chroot = RealChroot(made, instance, events)
        self._chroots.append(chroot)
        chroot.start()
        return chroot

    def _clear(self) -> None:
        """Tell what is left, and take it away: processes, then mounts, then loop devices, then cgroups."""
        for pid in _processes_here():
            self.left.append(f"process {pid} ({processes.command(pid)})")
            _kill(pid)
        for entry in reversed(mounts.table()):
            if entry.id not in self._mounts:
                self.left.append(f"the mount on {os.fsdecode(entry.mount_point)}")
                syscalls.umount2(entry.mount_point, syscalls.MNT_DETACH)
        for device, file in _loops(self.directory).items():
            if device not in self._loops:
                self.left.append(f"{device} over {file}")
                _detach(device)
        for home in self._cgroup_homes:
            for path in (path for paths in cgroups.everything(home).values() for path in paths):
                self.left.append(f"the cgroup {path}")
                try:
                    cgroups.remove(path)
                except OSError:
                    pass  # a process that could not be killed is in it, and was told


class ForUserNamespaces:
    """What the root of a user namespace may do in the place of the defaults: bind device nodes instead of making them, and leave
    the terminals to the one group that there is."""

    @chrootfw.hookimpl
    def chrootfw_mount(self) -> list[MountPoint]:  # noqa: D102  # the hook's specification documents it
        names = ("null", "zero", "full", "random", "urandom", "tty")
        links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd"} | {
            name: f"/proc/self/fd/{number}" for number, name in enumerate(("stdin", "stdout", "stderr"))
        }
        nodes = [Node("pts"), Node("shm"), *(Node(name, link=link) for name, link in links.items())]
        return [
            MountPoint("/dev", "tmpfs", "tmpfs", ("mode=0755", "size=1m", "nosuid", "noexec"), nodes=nodes),
            *(MountPoint(f"/dev/{name}", f"/dev/{name}", options=("bind",)) for name in names),
            MountPoint(
                "/dev/pts", "devpts", "devpts", ("newinstance", "ptmxmode=0666", "mode=0620", "nosuid", "noexec")
            ),
        ]


@contextmanager
def _apart() -> Iterator[None]:
    """The calling thread in a mount namespace of its own, of which the machine hears nothing; then back to where it was."""
    kept = [
        os.open(path, flags | os.O_CLOEXEC)
        for path, flags in (("/proc/thread-self/ns/mnt", os.O_RDONLY), ("/", os.O_PATH), (".", os.O_PATH))
    ]
    space, top, here = kept
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        try:
            # Slaves, not private: what the host unmounts meanwhile is not kept busy by a copy of it here.
            syscalls.make_all_slave()
            yield
        finally:
            syscalls.setns(space, syscalls.CLONE_NEWNS)
            os.fchdir(top)  # setns(2) moves a thread to the top of the namespace; the program may have been below
            os.chroot(".")
            os.fchdir(here)
    finally:
        for fd in kept:
            os.close(fd)


def _run_dir(directory: str) -> str:
    path = f"{directory}/run"
    try:
        store.prepare_run_dir(path)
    except TrustError:
        place = next((place for place in _PLACES if os.path.isdir(place)), None)
        if place is None:
            raise
        fd = syscalls.new_filesystem("tmpfs", [("mode", "0755")], 0)
        place_fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.move_mount(fd, place_fd)
        finally:
            os.close(place_fd)
            os.close(fd)
        return place
    return path


def _is_initial_user_namespace() -> bool:
    with open("/proc/self/uid_map", encoding="utf-8") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def _busybox() -> str:
    """The path of a busybox that needs no library, or ``""``."""
    for path in filter(None, (shutil.which("busybox"), shutil.which("busybox-static"), "/bin/busybox")):
        try:
            with open(path, "rb") as file:
                head = file.read(4096)
        except OSError:
            continue
        if head.startswith(b"\x7fELF") and b"/ld-" not in head:  # no dynamic loader is asked for (PT_INTERP)
            return path
    return ""


def _make_root(directory: str, files: Mapping[str, str]) -> None:
    for name in _DIRECTORIES:
        os.makedirs(f"{directory}/{name}", exist_ok=True)
    for path in (directory, *(f"{directory}/{name}" for name in _DIRECTORIES)):
        os.chmod(path, 0o755)  # whatever the umask is
    busybox = f"{directory}/bin/busybox"
    if not os.path.exists(busybox):
        shutil.copy(_busybox(), busybox)
        for applet in _applets(busybox):
            if applet != "busybox":
                os.symlink("busybox", f"{directory}/bin/{applet}")
    for path, text in {**_FILES, **files}.items():
        place = f"{directory}/{path.lstrip('/')}"
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o755 if text.startswith("#!") else 0o644)


def _applets(busybox: str) -> list[str]:
    import subprocess

    return subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()


def _processes_here() -> Sequence[int]:
    """The processes in this thread's mount namespace, but for the program itself."""
    here = store.mount_namespace()
    found = []
    for pid in processes.all_pids():
        try:
            if pid != os.getpid() and store.mount_namespace(pid) == here:
                found.append(pid)
        except OSError:
            continue  # it has ended
    return found


def _kill(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if store.mount_namespace(pid) == store.mount_namespace():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], _KILL_MAX)
    except OSError:
        pass  # it has ended
    finally:
        os.close(pidfd)


def _loops(directory: str) -> dict[str, str]:
    """The loop devices over files of the test."""
    names = [name for name in os.listdir("/sys/block") if name.startswith("loop")]
    found = {f"/dev/{name}": loops.backing_path(f"/dev/{name}") for name in names}
    return {device: file for device, file in found.items() if file and file.startswith(f"{directory}/")}


def _detach(device: str) -> None:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _LOOP_CLR_FD)
    except OSError:
        pass  # released meanwhile
    finally:
        os.close(fd)
