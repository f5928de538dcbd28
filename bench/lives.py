"""One instance, started and stopped again and again: by chrootfw in this process, and by the limit's programs."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from world import CLEAN, HERE, Daemons, World

import chrootfw
from chrootfw.linux import cgroups, mountinfo
from chrootfw.state import ownership
from chrootfw.state import snapshot as snapshots

INIT = "/etc/chrootfw/init"


class Ours:
    """An instance on an image (a loop device and ext4), or in a directory. Both verbs return their seconds."""

    def __init__(
        self,
        world: World,
        daemons: Daemons = CLEAN,
        *,
        in_directory: bool = False,
        **params: object,
    ) -> None:
        disk = world.root(daemons) if in_directory else world.image(daemons)
        self.world = world
        self.runtime = world.runtime()
        self.instance = chrootfw.Instance(world.name(), disk=str(disk), params=params)
        self.last_exits: list[float] = []

    def start(self) -> float:
        began = time.perf_counter()
        self.info = self.runtime.start(self.instance)
        return time.perf_counter() - began

    def stop(self, timeout: float | None = None) -> float:
        began = time.perf_counter()
        self.runtime.stop(self.instance, timeout=timeout)
        return time.perf_counter() - began

    def pids(self) -> list[int]:
        """Its own processes."""
        snapshot = snapshots.read_instance(self.runtime.run_dir, self.instance.name)
        return ownership.Judge(snapshot, self.instance.name).read_own().pids

    def stop_watched(self, timeout: float | None = None) -> float:
        """``stop``; how long it took after the end of the last process is added to ``last_exits``."""
        with Watch(self.world, self.pids()) as watch:
            taken = self.stop(timeout)
            ended = time.monotonic()
        self.last_exits.append(ended - watch.last)
        return taken


class Limit:
    """The same by ``start.c`` and ``stop.c``, which measure themselves."""

    def __init__(self, world: World, daemons: Daemons = CLEAN) -> None:
        top = cgroups.hierarchies(mountinfo.read_table)[0]
        assert top, "the limit needs a cgroup v2 hierarchy"
        self.image = world.image(daemons)
        self.place = world.new("limit")
        self.cgroup = Path(top, f"{world.mark}-limit", "run", f"{self.place.name}@1")
        self.programs = {name: program(world, name) for name in ("start", "stop")}
        self.last_exits: list[float] = []

    def start(self) -> float:
        return float(self._call("start", self.image, self.place, self.cgroup, INIT)[0])

    def stop(self, grace: float = 10) -> float:
        taken, after = map(float, self._call("stop", self.place, self.cgroup, INIT, grace))
        self.last_exits.append(after)
        return taken

    def _call(self, name: str, *arguments: object) -> list[str]:
        return output(self.programs[name], *arguments).split()


class Watch:
    """Says when the last of some processes has ended: ``last``, as ``time.monotonic`` has it."""

    def __init__(self, world: World, pids: list[int]) -> None:
        self.command = [str(program(world, "watch")), *map(str, pids)]

    def __enter__(self) -> Watch:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, failure: object, *_rest: object) -> None:
        if failure is not None:
            self.process.kill()
        said = self.process.communicate()[0]
        if failure is None:
            self.last = float(said)


def program(world: World, name: str) -> Path:
    """A program of ``limits/``, compiled."""
    return world.compiled(HERE / f"limits/{name}.c")


def output(command: Path, *arguments: object) -> str:
    done = subprocess.run(
        [str(command), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command.name}: {done.stderr}"
    return done.stdout


def resident_kib(pid: int) -> int:
    """The resident memory of a process, 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
