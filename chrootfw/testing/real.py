"""Start a real, tiny instance for a test.

Its root is one busybox, or a disk of the test's, in a mount namespace that the test's thread enters
and leaves again.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import select
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import chrootfw
from chrootfw import (
    ChrootfwError,
    Event,
    Instance,
    InstanceInfo,
    MountPoint,
    Node,
    Runtime,
    TrustError,
)
from chrootfw.linux import cgroups, files, loop, mountinfo, procfs, syscalls
from chrootfw.planning import paths
from chrootfw.runtime import Chroot
from chrootfw.testing import tiny_root

#: A disk of the test's: its path, a function that makes one of the tiny root, ``True`` for the
#: directory of the tiny root itself, ``False`` for none.
Disk = str | os.PathLike[str] | Callable[[str], str | os.PathLike[str]] | bool

#: How to have these tests run without being root. A user namespace alone does not do: /proc may be
#: mounted by who owns the pid namespace, /sys by who owns the network namespace.
COMMAND = "unshare --map-root-user --pid --fork --mount-proc --net python3 -m pytest"

#: What the init script of an instance does unless the test brings one: one daemon, that a stop
#: ends.
INIT = """#!/bin/sh
case $1 in
start) sleep 3600 & echo $! > /run/daemon ;;
stop) kill $(cat /run/daemon) ;;
esac
"""

#: Where the run directory goes if the test's own directory cannot be trusted: in a user namespace
#: whatever stands above it belongs to nobody.
_PLACES = ("/mnt", "/media", "/srv", "/opt")

_LOOP_CLR_FD = 0x4C01
#: Seconds for a process to end after KILL, and for its cgroup to be empty.
_KILL_MAX = 10.0


def missing() -> str:
    """Return why no instance can be started here and what to do about it, or ``""``."""
    if os.geteuid() != 0:
        return f"real_chroot mounts file systems; run as root, or without root: {COMMAND}"
    if not tiny_root.find_busybox():
        return (
            "real_chroot needs a static busybox for its root; install it: apt-get install "
            "busybox-static"
        )
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
        return (
            f"real_chroot cannot mount /proc and /sys here ({failures[0].strerror}); this "
            f"may help: {COMMAND}"
        )
    return ""


class RealChroot(Chroot):
    """Hold a started instance.

    Attributes:
        name: The instance's name.
        runtime: The runtime that started it.
        disk: The path of its disk, the tiny root's directory unless the test has another; ``""``
            for none.
        events: All events so far.
        root: The path of its root while it is mounted.
    """

    def __init__(self, runtime: Runtime, instance: Instance, events: list[Event]) -> None:
        super().__init__(runtime, instance.name)
        self.instance = instance
        self.disk = instance.disk or ""
        self.events = events

    def start(self) -> InstanceInfo:
        """Start it again after a ``stop``."""
        return self.runtime.start(self.instance)

    def stop(self, **how: Any) -> InstanceInfo:
        """Stop it as ``Runtime.stop`` does."""
        return self.runtime.stop(self.instance, **how)


class Ground:
    """Hold a mount namespace, and the instances in it.

    The calling thread enters it with ``with``. Other threads that are running already do not enter.

    Attributes:
        left: What a test left, a line each, when it is over; it is cleared away.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.left: list[str] = []
        self.run_dir = ""
        self._chroots: list[RealChroot] = []
        self._files = {directory}
        self._way = _private_namespace()

    def __enter__(self) -> Ground:
        self._way.__enter__()
        try:
            self.run_dir = _run_dir(self.directory)
            self._mounts = {entry.id for entry in mountinfo.table()}
            self._loops = set(_find_loops(self._files))
            tops = filter(None, cgroups.hierarchies(mountinfo.Table))
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
        disk: Disk = True,
        init: str | bool | None = None,
        params: Mapping[str, Any] | None = None,
        root: Mapping[str, str] | None = None,
        name: str = "real",
        **runtime: Any,
    ) -> RealChroot:
        """Make an instance and start it.

        Args:
            plugins: As for ``Runtime``.
            disk: ``True``: a directory with a tiny root. The path of a block device, an image or a
                directory of the test's, which ``init`` and ``root`` do not change. A function that
                is called with the directory of the tiny root, and returns the path of the disk that
                it made of it. ``False``: no disk, a plugin makes the root.
            init: The text of its init script; ``None`` for one that leaves a daemon, ``False`` for
                none.
            params: As for ``Instance``.
            root: Texts of more files in its root, by path.
            name: The instance's name.
            runtime: Further arguments of ``Runtime``.

        Raises:
            ChrootfwError: As ``Runtime.start`` does.
            ValueError: ``init`` or ``root`` is given for a disk whose files are the test's.
        """
        how: dict[str, Any] = {"init_script": None} if init is False else {}
        files = dict(root or {})
        if isinstance(init, str):
            files = {"etc/chrootfw/init": init, **files}
        path = self._make_disk(name, disk, files)
        instance = Instance(name, disk=path, params=params or {}, **how)
        events: list[Event] = []
        helpers = [] if _is_initial_user_namespace() else [ForUserNamespaces]
        made = Runtime(
            [*helpers, *plugins],
            run_dir=self.run_dir,
            config_dir=f"{self.directory}/definitions",
            log_dir=f"{self.directory}/log",
            on_event=events.append,
            **runtime,
        )
        chroot = RealChroot(made, instance, events)
        self._chroots.append(chroot)
        chroot.start()
        return chroot

    def _make_disk(self, name: str, disk: Disk, files: Mapping[str, str]) -> str | None:
        """Return the path of the disk, with the tiny root in it unless it is the test's."""
        if disk is not True and not callable(disk):
            if files:
                raise ValueError(
                    f"the files {', '.join(files)} cannot be put on the disk {disk}; a function "
                    "disk(directory) makes a disk of the tiny root with these files"
                )
            if disk is False:
                return None
            self._files.add(os.path.realpath(disk))
            return os.fspath(disk)
        directory = f"{self.directory}/{name}.disk"
        tiny_root.make(directory, {"etc/chrootfw/init": INIT, **files})
        if disk is True:
            return directory
        made = os.fspath(disk(directory))
        self._files.add(os.path.realpath(made))
        return made

    def _clear(self) -> None:
        """Report what is left, and remove it.

        First processes, then mounts, then loop devices, then cgroups.
        """
        for pid in _processes_here():
            self.left.append(f"process {pid} ({procfs.command(pid)})")
            _kill(pid)
        for entry in reversed(mountinfo.table()):
            if entry.id not in self._mounts:
                self.left.append(f"the mount on {os.fsdecode(entry.mount_point)}")
                syscalls.umount2(entry.mount_point, syscalls.MNT_DETACH)
        for device, file in _find_loops(self._files).items():
            if device not in self._loops:
                self.left.append(f"{device} over {file}")
                _detach(device)
        for home in self._cgroup_homes:
            made = itertools.chain.from_iterable(cgroups.everything(home).values())
            for path in (*made, *cgroups.of_all_loggers(home)):
                self.left.append(f"the cgroup {path}")
                try:
                    cgroups.remove_when_empty(path, _KILL_MAX)
                except OSError:
                    pass  # a process that could not be killed is in it, and was told


class ForUserNamespaces:
    """Do what the root of a user namespace may do in place of the defaults.

    Bind device nodes instead of making them, and leave the terminals to the one group that there
    is.
    """

    @chrootfw.hookimpl
    def chrootfw_mount(self) -> list[MountPoint]:  # noqa: D102  # the hook's specification documents it
        names = ("null", "zero", "full", "random", "urandom", "tty")
        links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd"} | {
            name: f"/proc/self/fd/{number}"
            for number, name in enumerate(("stdin", "stdout", "stderr"))
        }
        nodes = [Node("pts"), Node("shm"), *(Node(name, link=link) for name, link in links.items())]
        return [
            MountPoint(
                "/dev", "tmpfs", "tmpfs", ("mode=0755", "size=1m", "nosuid", "noexec"), nodes=nodes
            ),
            *(MountPoint(f"/dev/{name}", f"/dev/{name}", options=("bind",)) for name in names),
            MountPoint(
                "/dev/pts",
                "devpts",
                "devpts",
                ("newinstance", "ptmxmode=0666", "mode=0620", "nosuid", "noexec"),
            ),
        ]


@contextmanager
def _private_namespace() -> Iterator[None]:
    """Put the calling thread into a mount namespace of its own, and then back."""
    kept = [
        os.open(path, flags | os.O_CLOEXEC)
        for path, flags in (
            ("/proc/thread-self/ns/mnt", os.O_RDONLY),
            ("/", os.O_PATH),
            (".", os.O_PATH),
        )
    ]
    space, top, here = kept
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        try:
            # Slaves, not private: what the host unmounts meanwhile is not kept busy by a copy of it
            # here.
            syscalls.make_all_slave()
            yield
        finally:
            # A thread that was started meanwhile, and may have just ended, shares the working
            # directory with this one, and setns(2) would refuse.
            syscalls.unshare(syscalls.CLONE_FS)
            syscalls.setns(space, syscalls.CLONE_NEWNS)
            # setns(2) moves a thread to the top of the namespace; the program may have been below.
            os.fchdir(top)
            os.chroot(".")
            os.fchdir(here)
    finally:
        for fd in kept:
            os.close(fd)


def _run_dir(directory: str) -> str:
    path = f"{directory}/run"
    try:
        files.prepare_run_dir(path)
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


def _processes_here() -> Sequence[int]:
    """Return the processes in this thread's mount namespace, without the program itself."""
    here = files.mount_namespace()
    found = []
    for pid in procfs.all_pids():
        try:
            if pid != os.getpid() and files.mount_namespace(pid) == here:
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
        if files.mount_namespace(pid) == files.mount_namespace():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], _KILL_MAX)
    except OSError:
        pass  # it has ended
    finally:
        os.close(pidfd)


def _find_loops(places: Collection[str]) -> dict[str, str]:
    """Return the loop devices over files of the test, and over files in its directories."""
    names = [name for name in os.listdir("/sys/block") if name.startswith("loop")]
    found = {f"/dev/{name}": loop.backing_path(f"/dev/{name}") for name in names}
    return {
        device: file
        for device, file in found.items()
        if file and any(paths.is_within(file, place) for place in places)
    }


def _detach(device: str) -> None:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _LOOP_CLR_FD)
    except OSError:
        pass  # released meanwhile
    finally:
        os.close(fd)
