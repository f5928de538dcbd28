"""A walk along the system calls of the real command: at each of them in turn it is killed, or the call fails.

strace(1) does it. Its counters are per name, so a point of the walk is a name and how often it was called: ``openat``
for the 17th time. Such a reference is taken from the command itself, run as it is when it is struck.
"""

from __future__ import annotations

import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import kernelview
import leaks
import pytest
import roots
from zygote import TIMEOUT, Ended, Zygote

T = TypeVar("T")
R = TypeVar("R")

#: Two daemons: one that the stop script ends, one that ignores TERM and has to be killed.
INIT = roots.script(
    start=f"{roots.DAEMON}\n/bin/sh -c \"trap '' TERM; exec /bin/sleep 3601\" &",
    stop=roots.END_DAEMON,
)
DAEMONS = 2

#: Seconds between TERM and KILL.
GRACE = 0.02


class Point(NamedTuple):
    """One system call of a run: ``name`` for the ``count``-th time. ``late``: the run has had an effect before."""

    name: str
    count: int
    late: bool

    def __str__(self) -> str:
        return f"{self.name} {self.count}"


class Struck(NamedTuple):
    """How a run ended that was struck; ``hit``: what strace says was done, empty if the point was not reached."""

    ended: Ended
    hit: str


class World:
    """An instance on an image, with a run directory, definitions and a manager of its own."""

    def __init__(self, place: Path, ground: leaks.Ground, name: str, **params: str) -> None:
        place.mkdir()
        self.place = place
        self.name = name
        self.run_dir = place / "run"
        self.config_dir = place / "definitions"
        for directory in (self.run_dir, self.config_dir):
            directory.mkdir(mode=0o755)
        ground.know_run_dir(self.run_dir)
        self.image = roots.make_image(
            place / "disk.img", "ext4", lambda top: roots.make_root(top, INIT)
        )
        lines = {"disk": f'"{self.image}"', "grace": str(GRACE), "resolv_conf": '"copy"', **params}
        (self.config_dir / f"{name}.toml").write_text(
            "".join(f"{key} = {value}\n" for key, value in lines.items())
        )
        self.root = self.run_dir / name / "root"
        self.files = self._files()
        self.env = environment(self.run_dir, self.config_dir)
        self.zygote = Zygote(place / "zygote", self.env)

    def close(self) -> None:
        self.zygote.close()
        if self.left():  # the test has failed; the directory in memory is to be unmounted
            command = [sys.executable, "-m", "chrootfw", "stop", "--force", self.name]
            subprocess.run(command, env=self.env, timeout=TIMEOUT, check=False)

    # -- what the kernel says -----------------------------------------------------------------------

    def left(self) -> list[str]:
        """Everything of the instance that is there: mounts, loop devices, cgroups, processes, files; a line each."""
        identity = kernelview.identity(self.run_dir)
        return [
            *(str(mount) for mount in kernelview.mounts_below(self.run_dir)),
            *(f"{device} over {self.image}" for device in kernelview.loops_over(self.image)),
            *(f"cgroup {path}" for path in kernelview.cgroups_of(identity)),
            *(f"process {pid} ({command})" for pid, command in self.processes().items()),
            *(f"file {path}" for path in sorted(self._files() - self.files)),
        ]

    def processes(self) -> dict[int, str]:
        """The instance's processes and its managers, by what stands in their environment."""
        marks = (
            f"CHROOTFW_INSTANCE={self.name}".encode(),
            f"CHROOTFW_RUN_DIR={self.run_dir}".encode(),
        )
        found = {}
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            ours = marks[0] in environment and self._is_in_root(pid)
            if (
                (ours or marks[1] in environment)
                and pid != self.zygote.process.pid
                and kernelview.is_running(pid)
            ):
                found[pid] = (
                    Path(f"/proc/{pid}/cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode("utf-8", "replace")
                )
        return found

    def _is_in_root(self, pid: int) -> bool:
        """Another walk at the same time may have an instance of this name."""
        try:
            return os.readlink(f"/proc/{pid}/root") == str(self.root)
        except OSError:
            return False

    def _files(self) -> set[str]:
        """Every file and directory that the command may have made outside the image; its locks stay for ever."""
        found = set()
        for top in (self.run_dir, self.config_dir):
            for directory, directories, files in os.walk(top):
                if Path(directory) == self.root:
                    directories.clear()
                    continue
                found.update(f"{directory}/{name}" for name in (*directories, *files))
        return {path for path in found if not path.startswith(f"{self.run_dir}/.locks")}

    def is_running(self) -> bool:
        """Whether it is whole: the root, what is mounted in it, its daemons. In an execve a daemon has no environment for a
        moment: that is waited for."""
        deadline = time.monotonic() + 10
        while not self._is_whole():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)  # as kernelview.wait_until
        return True

    def _is_whole(self) -> bool:
        targets = [os.fsdecode(mount.target) for mount in kernelview.mounts_below(self.root)]
        whole = targets.count(str(self.root)) == 1 and {
            f"{self.root}/proc",
            f"{self.root}/dev",
        } <= set(targets)
        return whole and len(self.processes()) == DAEMONS

    def check_nothing_left(self, what: str) -> None:
        left = self.left()
        assert not left, f"{what}: left:\n  " + "\n  ".join(left)
        roots.check_image(self.image, "ext4")

    # -- the command --------------------------------------------------------------------------------

    def run(self, verb: str, *, expect: Sequence[int] = (0,), after: str = "") -> Ended:
        """Run a verb on the instance, undisturbed."""
        ended = self.zygote.run(verb, self.name)
        assert ended.status in expect, f"{after}: {ended}"
        check_words(ended)
        return ended

    def strike(self, verb: str, point: Point, how: str, *, child: bool = False) -> Struck:
        """Run a verb, and have strace do ``how`` (``signal=KILL``, ``error=EIO``) to it at a point.

        ``child``: count the calls from the moment before it makes the init script's process, and of that process too.
        """
        inject = [
            "-e",
            f"trace={point.name}",
            "-e",
            f"inject={point.name}:{how}:when={point.count}",
        ]
        ended, trace = self._traced(verb, inject, child=child)
        hit = [line for line in trace if "(INJECTED)" in line or "killed by SIGKILL" in line]
        return Struck(ended, hit[0] if hit else "")

    def reference(self, verb: str, *, child: bool = False) -> list[Point]:
        """The points of an undisturbed run, in order; with ``child`` those of the init script's process before its
        execve."""
        ended, trace = self._traced(verb, [], child=child)
        assert ended.status == 0, ended
        return points(trace, str(self.run_dir), child=child)

    def _traced(self, verb: str, more: Sequence[str], *, child: bool) -> tuple[Ended, list[str]]:
        output = self.place / "trace"
        pid = self.zygote.begin(verb, self.name, pause="clone" if child else "begin")
        follow = ["-f", "-b", "execve"] if child else []
        strace = subprocess.Popen(
            ["strace", "-p", str(pid), "-o", str(output), *follow, *more],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert strace.stderr is not None
        try:
            said = strace.stderr.readline()
            os.kill(pid, signal.SIGCONT)
            assert "attached" in said, said
            ended = self.zygote.end()
            strace.wait(TIMEOUT)
        finally:
            strace.kill()
            strace.wait()
            strace.stderr.close()
        return ended, output.read_text(errors="replace").splitlines()


@pytest.fixture
def in_memory(tmp_path: Path, mounted: Callable[..., Path]) -> Path:
    """A directory for run directories and images. Thousands of fsyncs would wait for the disk."""
    return mounted(tmp_path / "memory", "-t", "tmpfs", "-o", "mode=0755", "tmpfs")


@pytest.fixture
def worlds(in_memory: Path, ground: leaks.Ground) -> Iterator[list[World]]:
    """As many as there are processors, at most four."""
    made: list[World] = []
    try:
        for number in range(min(4, os.cpu_count() or 1)):
            made.append(World(in_memory / f"world{number}", ground, f"web{number}"))
        yield made
    finally:
        for world in made:
            world.close()


def environment(run_dir: Path, config_dir: Path) -> dict[str, str]:
    """What a manager finds in its environment."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(_packages()),
        "LANGUAGE": "C",  # no search for translations
        "CHROOTFW_RUN_DIR": str(run_dir),
        "CHROOTFW_CONFIG_DIR": str(config_dir),
    }


def _packages() -> list[str]:
    import psutil  # where the dependencies are: a virtual environment's Python is run by its real path

    import chrootfw
    import chrootfw_defaults

    found = [
        str(Path(str(module.__file__)).parent.parent)
        for module in (chrootfw, chrootfw_defaults, psutil)
    ]
    return list(dict.fromkeys(found))


def check_words(ended: Ended) -> None:
    """Whatever happens, the command speaks in sentences."""
    assert "Traceback" not in ended.stderr, ended
    assert ended.status <= 0 or ended.stderr.strip(), f"failed without a word: {ended}"
    if ended.status > 0:
        assert ended.stderr.startswith("chrootfw: "), ended


_CALL = re.compile(r"(?:(\d+) +)?([a-z_0-9]+)\((.*)")


def points(trace: Iterable[str], run_dir: str, *, child: bool = False) -> list[Point]:
    """The calls in what strace wrote. The first effect is the lock file: whatever changes something comes after it."""
    counts: dict[tuple[str, str], int] = {}
    found: list[Point] = []
    late = child
    first = ""
    for line in trace:
        match = _CALL.match(line)
        if match is None:
            continue  # a signal, the end, or the second half of a call
        pid, name, arguments = match[1] or "", match[2], match[3]
        first = first or pid
        late = late or (f"{run_dir}/.locks/" in arguments and "O_CREAT" in arguments)
        counts[pid, name] = counts.get((pid, name), 0) + 1
        if name == "restart_syscall" or (child and pid == first):
            continue
        if name.startswith("syscall_0x"):
            continue  # newer than this strace, which cannot strike what it cannot name; they only look
        found.append(Point(name, counts[pid, name], late))
    assert any(point.late for point in found), "no lock was taken?"
    return found


def sample(walk: Sequence[Point], more: int, seed: str, *, early: int = 0) -> list[Point]:
    """Of what comes after the first effect the first and the last call of every name, and ``more`` of the others; ``early`` of
    what comes before it."""
    late = [point for point in walk if point.late]
    ends: dict[Point, None] = {}
    for name in dict.fromkeys(point.name for point in late):
        calls = [point for point in late if point.name == name]
        ends.update({calls[0]: None, calls[-1]: None})
    others = [point for point in late if point not in ends]
    before = [point for point in walk if not point.late]
    chosen = random.Random(seed)
    return [
        *ends,
        *chosen.sample(others, min(more, len(others))),
        *chosen.sample(before, min(early, len(before))),
    ]


#: After so many failures a walk is given up.
FAILURES_SHOWN = 20


def in_parallel(
    worlds: Sequence[World], tasks: Sequence[T], do: Callable[[World, T], R]
) -> list[R]:
    """``do`` each of the tasks, each world in a thread of its own. What fails is raised together, in the end."""
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    results: list[R] = []
    failures: list[str] = []

    def work(world: World) -> None:
        while len(failures) < FAILURES_SHOWN:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                results.append(do(world, task))
            except AssertionError as failure:
                failures.append(f"{task} in {world.place}: {failure}")
                print(failures[-1])  # at once, for who watches a campaign of an hour
                try:
                    world.run("stop")
                    world.check_nothing_left("after a failure")
                except AssertionError as second:
                    failures.append(
                        f"after {task} in {world.place}: {second}; this world is given up"
                    )
                    return
            except BaseException as failure:
                failures.append(f"{task} in {world.place}: {failure!r}")
                raise

    threads = [threading.Thread(target=work, args=(world,)) for world in worlds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, f"{len(failures)} failures:\n" + "\n".join(failures)
    return results
