"""Row 4: a stop never signals a process that is not the instance's, however pids, mounts and cgroups mislead it."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import at_once
import kernelview
import pid_world
import roots
from proof import Proof

import chrootfw

_MNT_DETACH = 2

#: Two daemons, and one that makes processes without end: their pids are strangers' a moment later.
_RESTLESS = roots.script(
    "/bin/sleep 3600 & /bin/sleep 3600 & (while :; do /bin/true; done) & exit 0", "true"
)

#: Notes every signal that it gets, and lives on.
_RECORDER = '(for s in 1 2 3 10 12 14 15 18; do trap "echo $s >> /var/signals" $s; done; sleep 36000 & while :; do wait; done) &'

#: What is done to an instance before its stop, and how often.
_SCENES = {
    "nothing": 6, "forced": 3, "process of another pid namespace": 2, "root unmounted lazily": 2,
    "all unmounted lazily": 1, "root unmounted, no process": 1, "holder to be spared": 1, "holders to be killed": 2,
    "ancestor in the root": 1, "pid 1 in the root": 1,
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


class Manager:
    """One of those that start and stop, in the world. ``outsider`` joins a cgroup from outside the world."""

    def __init__(
        self, number: int, place: Path, stops: int, seconds: float, outsider: at_once.Worker
    ) -> None:
        """It makes so many stops, or fewer when the time is over: each scene once at least."""
        self.number = number
        self.stops = stops
        self.seconds = seconds
        self.outsider = outsider
        self.run_dir = place / f"run{number}"
        self.run_dir.mkdir()
        self.disks = {
            "web1": roots.make_root(place / f"web1.{number}", _RESTLESS),
            "web10": roots.make_root(place / f"web10.{number}", roots.script(_RECORDER, "true")),
        }
        self.scenes: Counter[str] = Counter()
        self.reused = 0

    def __call__(self, init: socket.socket) -> dict[str, Any]:
        """Inside the world."""
        self.init = init
        self.runtime = chrootfw.Runtime(
            run_dir=str(self.run_dir), config_dir=str(self.run_dir), lock_timeout=60
        )
        self.proof = Proof(self.run_dir)
        dice = random.Random(self.number)
        beside = pid_world.Recorder(process_group=os.getpgrp(), cwd="/")
        self.runtime.start(self._instance("web10"))
        neighbours = self._pids("web10")
        assert len(neighbours) == 2
        end = time.monotonic() + self.seconds
        more = (
            dice.choices(list(_SCENES), list(_SCENES.values()))[0]
            for _ in range(self.stops - len(_SCENES))
        )
        for scene in itertools.chain(dice.sample(list(_SCENES), len(_SCENES)), more):
            if len(self.scenes) == len(_SCENES) and time.monotonic() > end:
                break
            self.runtime.start(
                self._instance("web1", None if scene == "root unmounted, no process" else ...)
            )
            own = self._pids("web1")
            getattr(self, "_" + scene.replace(",", "").replace(" ", "_"))()
            self.reused += sum(
                kernelview.is_running(pid) for pid in own
            )  # its end is proven: they are others now
            self.proof("web1", self.disks["web1"])
            assert self._pids("web10") == neighbours, f"{scene}: the neighbour's processes"
            beside.check()
            self.scenes[scene] += 1
        signals = self.disks["web10"] / "var/signals"
        assert not signals.exists(), f"the neighbour got signals {signals.read_text().split()}"
        self.runtime.stop("web10", force=True)
        self.proof("web10", self.disks["web10"])
        beside.end()
        return {"scenes": self.scenes, "reused": self.reused, "proven": self.proof.checked}

    def _instance(self, name: str, script: Any = ...) -> chrootfw.Instance:
        how = () if script is ... else (script,)
        return chrootfw.Instance(name, str(self.disks[name]), *how)

    @property
    def _root(self) -> Path:
        return self.run_dir / "web1/root"

    def _cgroups(self, name: str) -> list[Path]:
        every = kernelview.cgroups_of(kernelview.identity(self.run_dir))
        own = [path for path in every if path.name.rpartition("@")[0] == name]
        return [path for path in own if not path.name.endswith("@log")]  # the logger's

    def _pids(self, name: str) -> set[int]:
        return {
            int(pid)
            for path in self._cgroups(name)
            for pid in (path / "cgroup.procs").read_text().split()
        }

    def _nothing(self) -> None:
        self.runtime.stop("web1")

    def _forced(self) -> None:
        self.runtime.stop("web1", force=True)

    def _process_of_another_pid_namespace(self) -> None:
        self.outsider.begin(str(self._cgroups("web1")[0]))
        self.outsider.end()
        assert 0 in self._pids("web1")
        self.runtime.stop("web1", timeout=0.02)  # nobody here can send it TERM

    def _root_unmounted_lazily(self) -> None:
        _unmount(self._root, _MNT_DETACH)
        self.runtime.stop("web1")

    def _all_unmounted_lazily(self) -> None:
        for mount in reversed(kernelview.mounts_below(self._root)):
            _unmount(mount.target, _MNT_DETACH)
        self.runtime.stop("web1", kill_holders=True)

    def _root_unmounted_no_process(self) -> None:
        for mount in reversed(kernelview.mounts_below(self._root)):
            _unmount(mount.target, 0)
        self.runtime.stop("web1", kill_holders=True)

    def _holder_to_be_spared(self) -> None:
        holder = pid_world.Recorder(cwd=self._root / "srv")
        self._held(kill_holders=False)
        holder.check()
        holder.end()
        self.runtime.cleanup("web1")

    def _holders_to_be_killed(self) -> None:
        """One has a file of the root open; the neighbour's process that stands in the root is not to be killed."""
        opened = [(os.POSIX_SPAWN_OPEN, 0, str(self._root / "etc/passwd"), os.O_RDONLY, 0)]
        holder = os.posix_spawn("/bin/sleep", ["sleep", "3600"], {}, file_actions=opened)
        neighbour = pid_world.Recorder(cwd=self._root / "srv")
        (cgroup,) = self._cgroups("web10")
        (cgroup / "cgroup.procs").write_text(str(neighbour.process.pid))
        self._held(kill_holders=True, timeout=0.05)
        assert os.WTERMSIG(os.waitpid(holder, 0)[1]) == signal.SIGTERM
        neighbour.check()
        neighbour.end()
        self.runtime.cleanup("web1")

    def _ancestor_in_the_root(self) -> None:
        """The stop is a child's; its parent, and the child itself, stand in the root."""
        os.chdir(self._root / "srv")
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self._held(kill_holders=True, timeout=0.05)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        os.chdir("/")
        self.runtime.cleanup("web1")

    def _pid_1_in_the_root(self) -> None:
        pid_world.let_init_hold(self.init, str(self._root / "srv"))
        self._held(kill_holders=True, timeout=0.05)
        pid_world.let_init_hold(self.init, "/")
        self.runtime.cleanup("web1")

    def _held(self, **how: Any) -> None:
        try:
            self.runtime.stop("web1", **how)
        except chrootfw.HeldError:
            return
        raise AssertionError("stopped, and somebody holds it")


def _unmount(path: bytes | Path, flags: int) -> None:
    if _libc.umount2(os.fsencode(path), flags) != 0:
        raise OSError(ctypes.get_errno(), "umount2", str(path))


class Outsider:
    """Processes that join a cgroup of the world's from outside its pid namespace."""

    def __init__(self) -> None:
        self.last = 0

    def __call__(self, cgroup: str) -> None:
        if self.last:
            assert os.waitstatus_to_exitcode(os.waitpid(self.last, 0)[1]) == -signal.SIGKILL
        self.last = os.posix_spawn("/bin/sleep", ["sleep", "3600"], {})
        Path(cgroup, "cgroup.procs").write_text(str(self.last))


def test_no_stranger_is_signalled(
    tmp_path: Path, whole: bool, ground: Any, figure: Callable[[int, str], None]
) -> None:
    managers, stops, seconds = (4, 2500, 7200) if whole else (3, 80, 25)
    outsiders = [at_once.Worker(Outsider()) for _ in range(managers)]
    try:
        bodies = [
            Manager(number, tmp_path, stops, seconds, outsiders[number])
            for number in range(managers)
        ]
        for body in bodies:
            ground.know_run_dir(body.run_dir)
        strangers = pid_world.World(bodies)
        answers, seen = strangers.live(seconds + 240)
    finally:
        for outsider in outsiders:
            outsider.close()
    assert not seen["hit"], f"strangers were signalled (pid, wait status): {seen['hit']}"
    for answer in answers:
        assert answer is None or isinstance(answer, dict), answer
    done = sum((answer["scenes"] for answer in answers), Counter())
    assert all(done[scene] for scene in _SCENES), done
    reused = sum(answer["reused"] for answer in answers)
    assert reused, "no pid was used again"
    figure(
        4,
        f"{done.total()} stops by the library, {managers} at a time, of directory instances on the host's file system "
        f"beside {seen['count']} strangers on {seen['pids']} pids: no stranger got a signal; {reused} pids of the stopped "
        f"were strangers' already when the stop was over; {done['process of another pid namespace']} with a line 0, "
        f"{done['root unmounted lazily'] + done['all unmounted lazily']} with a lazily unmounted root, "
        f"{done['root unmounted, no process']} with none, {done['holders to be killed']} with holders killed and web10's "
        f"process spared, {done['ancestor in the root']} with an ancestor and {done['pid 1 in the root']} with pid 1 spared",
    )
    figure(
        8,
        f"strangers: {sum(a['proven'] for a in answers)} stops and cleanups that said 0, all proven",
    )
