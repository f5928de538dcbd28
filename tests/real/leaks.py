"""Nothing may be left: what there was before a test, what there is after it, and how to clear the difference."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import signal
from pathlib import Path

import kernelview

_LOOP_CLR_FD = 0x4C01
_MNT_DETACH = 2


class Ground:
    """What the tests can leave things on: a directory for files and images, and the run directories in use."""

    def __init__(self, files: Path) -> None:
        self.files = files
        self._run_dirs: dict[str, str] = {}  # by identity: another one may be mounted in its place

    def know_run_dir(self, run_dir: Path) -> None:
        """Called by whatever lets the product use a run directory."""
        try:
            self._run_dirs[kernelview.identity(run_dir)] = str(run_dir)
        except OSError:
            pass  # the product has not made it, and so cannot have left anything in it

    def forget_run_dirs(self) -> None:
        self._run_dirs.clear()

    def snapshot(self) -> Snapshot:
        return Snapshot(
            mounts=kernelview.mount_table(),
            loops={
                device: file
                for device, file in kernelview.loop_devices().items()
                if self._is_ours(device, file)
            },
            cgroups={
                str(path) for known in self._existing() for path in kernelview.cgroups_of(known)
            },
            directories={
                str(path)
                for run_dir in self._run_dirs.values()
                for path in _instance_directories(run_dir)
            },
            processes=kernelview.processes_of_the_tests(),
        )

    def _existing(self) -> list[str]:
        """The run directories that are still there; the number of one that is gone may be a stranger's by now."""
        return [
            known
            for known, path in self._run_dirs.items()
            if os.path.exists(path) and known == kernelview.identity(path)
        ]

    def _is_ours(self, device: str, file: str) -> bool:
        """Return whether a loop device is over a file of these tests.

        The path alone does not tell: another run, in a root or a mount namespace of its own, may use the same one.
        """
        if not file.startswith(f"{self.files}/"):
            return False
        number = kernelview.file_of_loop(device)
        if number is None:
            return False  # free by now
        try:
            status = os.stat(file)
            return number == (status.st_dev, status.st_ino)
        except OSError:  # the file was deleted or renamed
            place = Path(file).parent
            while not place.exists():
                place = place.parent
            return number[0] == place.stat().st_dev


def _instance_directories(run_dir: str) -> list[Path]:
    try:
        return [path for path in Path(run_dir).iterdir() if not path.name.startswith(".")]
    except OSError:
        return []


class Snapshot:
    """Mounts, loop devices, cgroups, directories of instances and processes at one moment."""

    def __init__(
        self,
        mounts: dict[int, kernelview.Mounted],
        loops: dict[str, str],
        cgroups: set[str],
        directories: set[str],
        processes: set[kernelview.Running],
    ) -> None:
        self.mounts = mounts
        self.loops = loops
        self.cgroups = cgroups
        self.directories = directories
        self.processes = processes

    def differences(self, before: Snapshot) -> list[str]:
        """What is new since ``before``, and which mounts are missing, a line each."""
        return [
            *(
                f"left: {self.mounts[mount]}"
                for mount in sorted(self.mounts.keys() - before.mounts.keys())
            ),
            *(
                f"left: {device} over {self.loops[device]}"
                for device in sorted(self.loops.keys() - before.loops.keys())
            ),
            *(f"left: cgroup {path}" for path in sorted(self.cgroups - before.cgroups)),
            *(f"left: directory {path}" for path in sorted(self.directories - before.directories)),
            *(f"left: {process}" for process in sorted(self.processes - before.processes)),
            *(
                f"lost: {before.mounts[mount]}"
                for mount in sorted(before.mounts.keys() - self.mounts.keys())
            ),
        ]

    def clear(self, before: Snapshot) -> None:
        """Take away what is new since ``before``, so that the next test is not blamed for it."""
        for process in self.processes - before.processes:
            _kill(process)
        for mount in sorted(self.mounts.keys() - before.mounts.keys(), reverse=True):
            ctypes.CDLL(None).umount2(self.mounts[mount].target, _MNT_DETACH)
        for device in self.loops.keys() - before.loops.keys():
            _detach(device)
        for path in sorted(self.cgroups - before.cgroups, key=len, reverse=True):
            try:
                os.rmdir(path)
            except OSError:
                pass  # its parent, which others use, or removed with the last process
        for path in self.directories - before.directories:
            if not kernelview.mounts_below(path):
                shutil.rmtree(path, ignore_errors=True)


def _kill(process: kernelview.Running) -> None:
    """KILL one process of the tests; by a pidfd, and only if it still is the one that was seen."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if process in kernelview.processes_of_the_tests():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 10)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def _detach(device: str) -> None:
    try:
        fd = os.open(device, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.ioctl(fd, _LOOP_CLR_FD)
    except OSError:
        pass  # released meanwhile
    finally:
        os.close(fd)
