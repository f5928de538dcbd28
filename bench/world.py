"""The ground of a run: a tmpfs with images, roots and environments of Python, and how many other processes there are.

It is made in namespaces of its own (``run.py`` sees to that). The directories in which the peers keep their state are covered,
so that nothing of a run is left on the machine; cgroups, which no namespace here hides, have names that ``forget_cgroups`` finds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
TREE = HERE.parent
for _place in (TREE / "tests/ganeti", TREE / "tests/real"):
    if str(_place) not in sys.path:
        sys.path.insert(0, str(_place))
# What is installed has the compiled module; the tree, which may not, would hide it.
if importlib.util.find_spec("chrootfw") is None:
    sys.path[:0] = [str(TREE / "plugins"), str(TREE)]

import roots

import chrootfw

#: What commands of the peers and of chrootfw are run with, and nothing else.
ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}

#: Where the peers keep something: covered by empty directories of the World.
COVERED = (
    "/dev/shm", "/etc/lxc", "/etc/schroot/chroot.d", "/run", "/var/cache/lxc", "/var/lib/containers", "/var/lib/lxc",
    "/var/lib/schroot/session", "/var/lib/schroot/unpack", "/var/lib/schroot/mount", "/var/lib/machines",
)  # fmt: skip

HYBRID = "/sys/fs/cgroup/unified"

SLEEP = "sleep 100000 </dev/null >/dev/null 2>&1 & echo $! >> /run/pids"


class Daemons(NamedTuple):
    """What an instance runs, as the shell text of its init script for ``start`` and for ``stop``."""

    start: str
    stop: str = "kill $(cat /run/pids)"


def _daemons(*each: str) -> Daemons:
    return Daemons("\n".join(("rm -f /run/pids", *each)))


#: A daemon that handles TERM writes its pid when it does, and the script waits for that: a stop may follow at once.
_WHEN_READY = "& until grep -qx $! /run/pids 2>/dev/null; do usleep 200; done"
_STUBBORN = f"sh -c 'trap \"\" TERM; echo $$ >> /run/pids; exec sleep 100000' </dev/null >/dev/null 2>&1 {_WHEN_READY}"

#: Three daemons that end at once.
CLEAN = _daemons(SLEEP, SLEEP, SLEEP)
#: One daemon.
ONE = _daemons(SLEEP)
#: One that needs 0.3 s for its end, whoever is signalled meanwhile.
SLOW = _daemons(
    """sh -c 'trap "trap \\"\\" TERM; sleep 0.3; exit 0" TERM; echo $$ >> /run/pids; sleep 100000 & wait' """
    f"</dev/null >/dev/null 2>&1 {_WHEN_READY}"
)
#: One that no TERM ends.
STUBBORN = _daemons(_STUBBORN)
#: Fourteen, two of which no TERM ends.
FOURTEEN = _daemons(*[SLEEP] * 12, _STUBBORN, _STUBBORN)

#: For the peers in which an instance is its first process: it starts the daemons, says so, and ends when they have.
FIRST_PROCESS = """#!/bin/sh
trap '{stop} 2>/dev/null; wait; exit 0' TERM
{start}
echo ready > /ready
wait
"""


class World:
    """``place``: an empty directory, which becomes a tmpfs. ``mark``: what all names begin with that this run makes."""

    def __init__(self, place: Path, mark: str) -> None:
        self.place = place
        self.mark = mark
        self.environment: dict[str, str] = dict(ENVIRONMENT)
        self._numbers = itertools.count(1)
        self._templates: dict[tuple[Any, ...], Path] = {}
        self._runtimes: list[chrootfw.Runtime] = []
        self._python: Path | None = None

    def __enter__(self) -> World:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "mode=755,size=80%", "bench", str(self.place)],
            check=True,
        )
        resolver = Path("/etc/resolv.conf")
        names = resolver.read_bytes() if resolver.exists() else b""
        for covered in COVERED:
            if os.path.isdir(covered):
                empty = self.new("covered")
                empty.mkdir(parents=True)
                subprocess.run(["mount", "--bind", str(empty), covered], check=True)
        Path("/run/lock").mkdir()
        if os.path.ismount(
            HYBRID
        ):  # crun refuses a v2 hierarchy with controllers beside v1; chrootfw finds it anywhere
            elsewhere = self.new("cgroup2")
            elsewhere.mkdir()
            subprocess.run(["mount", "--bind", HYBRID, str(elsewhere)], check=True)
            subprocess.run(["umount", HYBRID], check=True)
        if not resolver.exists():  # a link into /run
            target = Path(os.path.realpath(resolver))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(names)
        return self

    def __exit__(self, *_error: object) -> None:
        for runtime in self._runtimes:
            self.stop_all(runtime)

    def name(self, what: str = "i") -> str:
        """A name that was not given before, for an instance or a container."""
        return f"{self.mark}-{what}{next(self._numbers)}"

    def new(self, what: str) -> Path:
        """A path that is not there yet."""
        return self.place / f"{what}-{next(self._numbers)}"

    # -- what instances are made of ------------------------------------------------------------------

    def root(self, daemons: Daemons = CLEAN, *, linked: bool = False) -> Path:
        """A directory with a root file system of its own. ``linked``: its files are shared with others; for hundreds of them."""
        path, template = self.new("root"), self._template("root", daemons, 0)
        if linked:
            subprocess.run(
                ["cp", "--archive", "--link", "--no-target-directory", str(template), str(path)],
                check=True,
            )
            os.unlink(path / "ready")
            os.mkfifo(path / "ready")
        else:
            roots.copy(template, path)
        return path

    def image(self, daemons: Daemons = CLEAN, size: int = 24 << 20) -> Path:
        """An image file with a root file system, ext4. ``size`` in bytes; the file is sparse."""
        path = self.new("image")
        subprocess.run(
            ["cp", "--sparse=always", str(self._template("image", daemons, size)), str(path)],
            check=True,
        )
        return path

    def _template(self, kind: str, daemons: Daemons, size: int) -> Path:
        key = (kind, daemons, size)
        if key not in self._templates:
            path = self.new(f"template-{kind}")
            if kind == "image":
                roots.make_image(path, "ext4", lambda place: _fill(place, daemons), size)
            else:
                path.mkdir()
                _fill(path, daemons)
            self._templates[key] = path
        return self._templates[key]

    # -- chrootfw ------------------------------------------------------------------------------------

    def runtime(self, *plugins: object, **how: Any) -> chrootfw.Runtime:
        """A runtime with a run directory of its own; all of its instances are stopped at the end."""
        directories = {
            "run_dir": self.new("run"),
            "config_dir": self.new("definitions"),
            "log_dir": self.new("logs"),
        }
        directories["config_dir"].mkdir(mode=0o755)
        runtime = chrootfw.Runtime(plugins, **{**directories, **how})
        self._runtimes.append(runtime)
        return runtime

    def stop_all(self, runtime: chrootfw.Runtime) -> None:
        for info in runtime.list():
            with contextlib.suppress(chrootfw.ChrootfwError):
                runtime.stop(info.name, force=True)

    # -- the machine around --------------------------------------------------------------------------

    @contextlib.contextmanager
    def others(self, count: int) -> Iterator[None]:
        """So many idle processes that have nothing to do with any instance."""
        if not count:
            yield
            return
        loop = (
            f"i=0; while [ $i -lt {count} ]; do sleep 100000 & i=$((i+1)); done; echo ready; wait"
        )
        process = subprocess.Popen(
            ["/bin/busybox", "sh", "-c", loop],
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=self.environment,
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.stdout.close()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.settle(process.pid)

    def settle(self, session: int) -> None:
        """Wait until the processes of a session are reaped: a zombie is another process, too."""
        while _in_session(session):
            os.sched_yield()

    # -- programs ------------------------------------------------------------------------------------

    def compiled(self, source: Path) -> Path:
        """The program made of one C file."""
        program = self.place / source.stem
        if not program.exists():
            subprocess.run(
                ["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)], check=True
            )
        return program

    def python(self) -> Path:
        """The ``bin`` of an environment of Python in which chrootfw is installed from a wheel, with all its .pyc files.

        Beside it, written by the same installer: ``empty``, a console script that does nothing, and ``imports``, which does
        nothing but import pluggy, attrs and argparse.
        """
        if self._python is None:
            self._python = _environment(self.new("python"), self.new("scripts"))
        return self._python

    def run(
        self, *command: str | Path, check: bool = True, **how: Any
    ) -> subprocess.CompletedProcess[Any]:
        """A command with the clean environment; its output goes nowhere unless ``how`` says otherwise.

        Raises ``RuntimeError`` with what it said to stderr, which is a file: what a daemon keeps open is not waited for.
        """
        fd = os.memfd_create("stderr")
        try:
            how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": fd, **how}
            done = subprocess.run([*map(str, command)], env=self.environment, check=False, **how)
            if check and done.returncode != 0:
                said = os.pread(fd, 10_000, 0).decode(errors="replace")
                raise RuntimeError(
                    f"{' '.join(map(str, command))} ended with {done.returncode}: {said}"
                )
            return done
        finally:
            os.close(fd)


def _fill(place: Path, daemons: Daemons) -> None:
    roots.make_root(place)
    (place / "usr/lib").mkdir(parents=True)  # without, systemd-nspawn takes it for no system
    (place / "usr/lib/os-release").write_text("ID=bench\n")
    os.mknod(
        place / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3)
    )  # Ganeti's class mounts no /dev
    os.chmod(place / "dev/null", 0o666)
    script = roots.script(daemons.start, daemons.stop)
    roots.write_init(place, script)
    roots.write_init(place, script, name="ganeti-chroot")
    roots.write_init(
        place, FIRST_PROCESS.format(start=daemons.start, stop=daemons.stop), name="first-process"
    )
    os.mkfifo(place / "ready")


def _in_session(session: int) -> bool:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    if int(file.read().rpartition(")")[2].split()[3]) == session:
                        return True
            except OSError:
                continue
    return False


def _environment(place: Path, project: Path) -> Path:
    """Made by the newest pip: its console scripts import less than those of pip before 26, and that is the harder goal."""
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "bench-scripts"\nversion = "1"\n'
        '[project.scripts]\nempty = "bench_empty:main"\nimports = "bench_imports:main"\n'
        '[tool.hatch.build.targets.wheel]\nonly-include = ["bench_empty.py", "bench_imports.py"]\n'
    )
    (project / "bench_empty.py").write_text("def main():\n    return 0\n")
    (project / "bench_imports.py").write_text(
        "import argparse\nimport attrs\nimport pluggy\ndef main():\n    return 0\n"
    )
    tree = project / "tree"  # what building leaves behind stays out of the source tree
    shutil.copytree(
        TREE,
        tree,
        ignore=shutil.ignore_patterns(
            ".git", ".tox", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis"
        ),
    )
    environment = {
        **ENVIRONMENT,
        **{k: v for k, v in os.environ.items() if k.startswith(("PIP_", "http", "no_proxy"))},
    }
    python = place / "bin/python"

    def run(*command: str | Path) -> None:
        subprocess.run([*map(str, command)], env=environment, stdout=subprocess.DEVNULL, check=True)

    run(sys.executable, "-m", "venv", place)
    run(python, "-m", "pip", "install", "-qq", "--upgrade", "pip")
    run(python, "-m", "pip", "install", "-qq", tree, project)
    run(
        python, "-m", "pip", "uninstall", "-qq", "--yes", "setuptools"
    )  # its .pth file slows every start
    return python.parent


def forget_cgroups(mark: str) -> None:
    """Remove the empty cgroups of a run, in every hierarchy, and the directories above them that only it had made."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        tops = [line.split(" ")[4] for line in table if re.search(r" - cgroup2? ", line)]
    for top in tops:
        for directory, _below, _files in os.walk(top, topdown=False):
            parts = Path(directory).relative_to(top).parts
            if any(part.startswith(f"{mark}-") for part in parts):
                _remove_upwards(Path(directory), Path(top))


def _remove_upwards(directory: Path, top: Path) -> None:
    """Its parents too where they are chrootfw's own, and empty."""
    while directory != top:
        try:
            directory.rmdir()
        except OSError:
            return
        directory = directory.parent
        if "chrootfw" not in directory.relative_to(top).parts:
            return
