"""Show a whole life of a chroot on this machine, and prove that nothing is left: ``chrootfw demo``.

The demo uses chrootfw as any program would, by a ``Runtime`` of its own: with its own run
directory, so that the machine's instances are not touched. The proof comes from the kernel, not
from chrootfw's records.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import signal
import site
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException

from chrootfw.cancellation import Cancellation, from_signals
from chrootfw.cli import demo_files, render
from chrootfw.cli.progress import Progress
from chrootfw.errors import ChrootfwError, Interrupted, PrivilegeError
from chrootfw.linux import capabilities, cgroups, loop, mountinfo, procfs
from chrootfw.model import Event, Instance
from chrootfw.planning.paths import is_within
from chrootfw.planning.printable import Shown, printable
from chrootfw.runtime import Runtime

NAME = "demo"
_GRACE = 1.0
#: Seconds between two acts, for the eye; on a terminal only.
_PAUSE = 0.5
#: Seconds within which the page must come.
_TIME_LIMIT = 10.0
_WIDTH = 100
_COLOUR = "\033\\[[0-9]+m"


def main() -> int:
    """Run the demo.

    Returns:
        The exit status: 0, or 1 when something is left.

    Raises:
        ChrootfwError: A part of it failed; everything has been cleaned up.
    """
    if os.geteuid() != 0:
        command, unseen = as_root()
        brief = "the demo needs root, to mount a file system and run daemons in it"
        raise PrivilegeError(brief, [unseen] if unseen else [], hint=command)
    if not capabilities.may_administer():
        raise PrivilegeError(
            "the demo cannot mount a file system here",
            [capabilities.missing()],
            hint=capabilities.HINT,
        )
    program = called()
    os.chdir("/")  # as every verb does that needs no path of the caller's
    cancellation = Cancellation()
    with from_signals(cancellation):
        obstacle = demo_files.obstacle()
        life = _Life(
            cancellation, demo_files.make_directory(runs_programs=bool(obstacle)), obstacle, program
        )
        try:
            return life.run()
        except BaseException as error:
            with cancellation.shield():
                _explain(error, life.clean_up(), life.base)
            if isinstance(error, Interrupted) and life.screen.unwritable:
                raise life.screen.unwritable from error
            raise


def called() -> list[str]:
    """Return the program that this process runs, as a command that works in every directory."""
    script = sys.argv[0]
    if os.path.basename(script) == "__main__.py" or not os.access(script, os.X_OK):
        return [
            sys.executable,
            "-P",
            "-m",
            "chrootfw",
        ]  # as root, nothing of the directory that one happens to be in
    return [os.path.abspath(script)]


def as_root() -> tuple[str, str]:
    """Return the command that runs this demo as the root user, and what root cannot import.

    sudo sets a PATH of its own, and passes on neither PYTHONPATH nor the packages of one user.
    """
    places = [
        os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(":") if place
    ]
    unseen = ""
    if site.ENABLE_USER_SITE and is_within(
        os.path.realpath(__file__), os.path.realpath(site.getusersitepackages())
    ):
        places.append(site.getusersitepackages())
        unseen = f"root does not see what pip has installed for one user alone, in {places[-1]}"
    environment = ["env", f"PYTHONPATH={':'.join(places)}"] if places else []
    command = shlex.join([*environment, *called(), "demo"])
    return (f"sudo {command}" if shutil.which("sudo") else f"su -c {shlex.quote(command)}"), unseen


class _Life:
    """The acts, in their order.

    ``base`` is the demo's own directory: shown as ``$D``, gone at the end. ``obstacle``: why the
    disk is a directory; empty for an ext4 image. ``program``: how to call chrootfw.
    """

    def __init__(
        self, cancellation: Cancellation, base: str, obstacle: str, program: Sequence[str]
    ) -> None:
        self.began = time.monotonic()
        self.base = base
        self.cancellation = cancellation
        self.screen = _Screen(cancellation, base)
        self.witness = _Witness(base)
        self.obstacle = obstacle
        self.program = program
        self.kind = "a directory" if obstacle else "an ext4 image"
        self.disk = f"{base}/rootfs" if obstacle else f"{base}/disk.img"
        self.instance = Instance(NAME, self.disk)
        run_dir, config_dir = f"{base}/run", f"{base}/etc"
        self.runtime = Runtime(
            run_dir=run_dir,
            config_dir=config_dir,
            log_dir=f"{base}/log",
            on_event=self.screen.event,
            cancellation=cancellation,
        )

    def run(self) -> int:
        """Run all acts; return 0, or 1 when something is left."""
        os.umask(0o022)  # an init script in a directory that others can write is refused
        why = self.obstacle or "mkfs.ext4 and loop devices are here"
        self.screen.show(f"The disk of this demo will be {self.kind}:\n{why}.", indent=0)
        acts = {
            f"A disk: {self.kind} with a small root file system": self.make_disk,
            "Start: mount, check, run the init script": self.start,
            "A page, served from inside": self.fetch,
            "How it looks from outside": self.show_views,
            "What a stop would do": self.plan,
            "Stop: TERM, a second of grace, KILL, unmount": self.stop,
        }
        for title, act in acts.items():
            self.screen.act(title)
            act()
        self.screen.act("Proof: is anything left?")
        return self.prove()

    def make_disk(self) -> None:
        """Make the disk, and what must run in it."""
        say, rootfs = self.screen, f"{self.base}/rootfs"
        say.command(f"D={self.base}", shorten=False)
        say.command(
            "export CHROOTFW_RUN_DIR=$D/run CHROOTFW_CONFIG_DIR=$D/etc CHROOTFW_LOG_DIR=$D/log"
            "  # your own instances are not touched"
        )
        mib = demo_files.IMAGE_BYTES >> 20
        try:
            os.mkdir(f"{self.base}/run", 0o755)
            binds = demo_files.make_tree(rootfs, self.kind, self.cancellation)
            if not self.obstacle:
                say.command(
                    f"truncate --size={mib}M $D/disk.img; mkfs.ext4 -q -d $D/rootfs $D/disk.img"
                )
                demo_files.make_image(self.disk, rootfs, self.cancellation)
                self.witness.know(self.disk)
            used = render.size(demo_files.bytes_used(self.disk))
        except OSError as error:
            raise ChrootfwError(f"the demo's disk cannot be made: {error}") from error
        self.instance = Instance(NAME, self.disk, params={"binds": binds, "grace": _GRACE})
        size = (
            f"{self.disk}, with {used}"
            if self.obstacle
            else f"{mib} MiB, of which {used} are written"
        )
        say.show(f"{size}. The init script in it:")
        with open(f"{rootfs}/{demo_files.INIT_PATH}") as script:
            say.show(say.paint(script.read().rstrip(), "cyan"), indent=6)

    def start(self) -> None:
        """Start it, step by step."""
        binds = f",\n{'':20}".join(f'"{bind}"' for bind in self.instance.params["binds"])
        self.screen.command(
            f"chrootfw -v start {NAME} --disk {self.disk} --set grace={_GRACE:g} \\\n    "
            f"--set 'binds = [{binds}]'"
        )
        info = self.runtime.start(self.instance)
        self.screen.show(f"{NAME} is {info.state}: {info.processes} processes")
        self.witness.read(self.runtime)

    def fetch(self) -> None:
        """Ask the web server for its page."""
        try:
            self.screen.command(f"chrootfw exec {NAME} -- cat /run/web.port")
            cat = self.runtime.run(
                NAME,
                ["cat", "/run/web.port"],
                capture_output=True,
                text=True,
                timeout=_TIME_LIMIT,
                check=True,
            )
            port = int(cat.stdout)
            self.screen.show(str(port))
            self.screen.command(f"curl http://127.0.0.1:{port}/")
            connection = HTTPConnection("127.0.0.1", port, timeout=_TIME_LIMIT)
            try:
                connection.request("GET", "/")
                page = connection.getresponse().read().decode()
            finally:
                connection.close()
        except (OSError, ValueError, HTTPException, subprocess.SubprocessError) as error:
            raise ChrootfwError(f"the page cannot be fetched: {error}") from error
        self.screen.show(self.screen.paint(page.rstrip(), "green"))

    def show_views(self) -> None:
        """Show ``list``, ``ps`` and ``info``."""
        stream = self.screen.stream
        self.screen.command("chrootfw list")
        self.screen.show(render.instances(self.runtime.list(), stream))
        self.screen.command(f"chrootfw ps {NAME}")
        self.screen.show(
            render.process_table([(NAME, each) for each in self.runtime.processes(NAME)], stream)
        )
        self.screen.command(f"chrootfw info {NAME}")
        self.screen.show(render.instance(self.runtime.info(NAME), stream))

    def plan(self) -> None:
        """Show the plan of the stop; which plugin answered is dimmed."""
        self.screen.command(f"chrootfw plan stop {NAME}")
        for line in map(printable, self.runtime.plan("stop", NAME).lines()):
            does, bracket, plugin = line.replace("chrootfw_defaults.", "…").partition("  [")
            self.screen.show(does + self.screen.paint(bracket + plugin, "dim"))

    def stop(self) -> None:
        """Stop it, step by step, and see who ends when."""
        self.screen.command(f"chrootfw -v stop {NAME}")
        with self.witness.watching(self.screen):
            info = self.runtime.stop(NAME)
        self.screen.show(f"{NAME} is {'stopped' if info.state == 'absent' else info.state}")

    def prove(self) -> int:
        """Print a line for each thing that could be left, and the last line."""
        findings = [*self.witness.findings(), *([] if self.obstacle else [self.check_disk()])]
        with self.cancellation.shield():
            findings.append(("files", demo_files.remove(self.base, self.program), "$D is removed"))
        for what, left, gone in findings:
            mark = self.screen.paint("✗", "red") if left else self.screen.paint("✓", "green")
            self.screen.show(f"{mark} {what:<12}  {printable('; '.join(left) or gone)}")
        paused = f", {self.screen.paused:.1f} s to look at it" if self.screen.paused else ""
        is_something_left = any(left for _, left, _ in findings)
        end = "what is left of it stands above" if is_something_left else "nothing of it is left"
        took = (
            f"A whole life in {time.monotonic() - self.began:.1f} s ({_GRACE:.1f} s "
            f"grace{paused}): {end}."
        )
        self.screen.show(f"\n{took}", indent=0)
        return 1 if is_something_left else 0

    def check_disk(self) -> tuple[str, list[str], str]:
        """Return what e2fsck finds, as a finding."""
        try:
            said = demo_files.check_disk(self.disk, self.cancellation)
        except Interrupted:
            raise
        except ChrootfwError as error:
            return "file system", [error.brief, *error.details], ""
        return "file system", [], f"e2fsck -fn: clean, {said}"

    def clean_up(self) -> list[str]:
        """After a failure: end and unmount everything, remove the directory.

        Says what is left all the same.
        """
        self.screen.is_quiet = True
        left: list[str] = []
        try:
            self.runtime.stop(self.instance, force=True)
        except ChrootfwError as error:
            left += [error.brief, *error.details]
        for what, found, _ in self.witness.findings():
            left += [f"{what}: {item}" for item in found]
        return left + demo_files.remove(self.base, self.program)


class _Screen:
    """Show acts, the command lines that would do the same, and their answers."""

    def __init__(self, cancellation: Cancellation, base: str) -> None:
        self.cancellation = cancellation
        self.base = base
        self.stream = sys.stdout
        self.acts = 0
        self.paused = 0.0
        self.progress = Progress(verbose=True, stream=self.stream, write=self._show_step)
        self.is_quiet = False
        self.unwritable: render.Unwritable | None = None
        self.before_event: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def paint(self, text: str, colour: str) -> str:
        """Return each line of ``text`` in a colour."""
        return "\n".join(render.paint(line, colour, self.stream) for line in text.split("\n"))

    def act(self, title: str) -> None:
        """Print the title of the next act, after a moment to read the one before.

        Raises ``Interrupted``.
        """
        if self.acts and self.stream.isatty():
            select.select([self.cancellation.fd], [], [], _PAUSE)
            self.paused += _PAUSE
        self.cancellation.check()
        self.acts += 1
        self.show(f"\n{self.paint(f'{self.acts}  {title}', 'bold')}", indent=0)

    def command(self, text: str, *, shorten: bool = True) -> None:
        """Print a command line that would do what comes next. Raises ``Interrupted``."""
        self.cancellation.check()
        self.show(self.paint(f"$ {text}", "dim"), shorten=shorten)

    def show(self, text: str, *, indent: int = 3, shorten: bool = True) -> None:
        """Print lines at once.

        A closed output is a reason to end, at the next step.
        """
        whole = text.replace(self.base, "$D") if shorten else text
        lines = [_clipped(f"{'':{indent}}{line}".rstrip()) for line in whole.split("\n")]
        encoding = self.stream.encoding or "utf-8"
        with self._lock:
            if self.is_quiet:
                return
            try:
                render.show(
                    Shown("\n".join(lines).encode(encoding, "replace").decode(encoding)),
                    self.stream,
                )
                render.flush()
            except render.Unwritable as error:
                self.is_quiet = True
                self.unwritable = error
                self.cancellation.request(signal.SIGPIPE)

    def _show_step(self, line: Shown) -> None:
        self.show(line.replace("chrootfw_defaults.", "…"))

    def ended(self, pid: str) -> None:
        """Print that a process has ended just now."""
        self.show(f"{'':26}{self.paint(f'pid {pid} has ended', 'green')}")

    def event(self, event: Event) -> None:
        """Print an event of a runtime as ``-v`` does."""
        if self.before_event:
            self.before_event()
        self.progress(event)


class _Witness:
    """Read mounts, loop devices, cgroups and processes from the kernel, during and after."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.file: dict[tuple[int, int], str] = {}
        self.mounts = [len(mountinfo.table())]
        self.loops: list[str] = []
        self.cgroups: list[str] = []
        self.alive: dict[int, str] = {}

    def know(self, disk: str) -> None:
        """Let loop devices over this file be found from now on."""
        status = os.stat(disk)
        self.file[status.st_dev, status.st_ino] = disk

    def read(self, runtime: Runtime) -> None:
        """While it runs: what must be gone in the end.

        A pidfd stands for its process, never for a later one.
        """
        self.mounts.append(len(mountinfo.table()))
        self.loops, self.cgroups = sorted(loop.find_loop_devices(self.file)), self.find_cgroups()
        for process in (found for found in runtime.processes(NAME) if found.own and found.pid):
            with suppress(ProcessLookupError):
                self.alive[os.pidfd_open(process.pid)] = f"{process.pid} ({process.command})"

    @contextmanager
    def watching(self, screen: _Screen) -> Iterator[None]:
        """Meanwhile, a thread says who ends; at the latest before what is done next."""
        done = os.eventfd(0, os.EFD_CLOEXEC)
        waiting = dict(self.alive)
        telling = threading.Lock()

        def report() -> None:
            with telling:
                for pidfd in select.select([*waiting], [], [], 0)[0]:
                    screen.ended(waiting.pop(pidfd))

        def watch() -> None:
            while done not in select.select([*waiting, done], [], [])[0]:
                report()

        thread = threading.Thread(target=watch)
        thread.start()
        screen.before_event = report
        try:
            yield
        finally:
            screen.before_event = None
            os.eventfd_write(done, 1)
            thread.join()
            report()
            os.close(done)

    def findings(self) -> Iterator[tuple[str, list[str], str]]:
        """Yield what was searched for, what is left of it, and a sentence for nothing."""
        left = [
            os.fsdecode(entry.mount_point)
            for entry in mountinfo.list_mounts_below(os.fsencode(self.base))
        ]
        before, *during = self.mounts
        counts = (
            f"{before} before, {during[0] if during else '?'} while it ran, "
            f"{len(mountinfo.table())} now"
        )
        yield "mounts", left, f"{counts}, none below $D"
        left = sorted(loop.find_loop_devices(self.file)) if self.file else []
        yield (
            "loop device",
            left,
            f"{', '.join(self.loops)} is free again" if self.file else "none was used",
        )
        made = (
            f"{', '.join(self.cgroups)} is removed"
            if self.cgroups
            else "there was none: processes are found by the root that they run in"
        )
        yield "cgroup", self.find_cgroups(), made
        ended = select.select([*self.alive], [], [], 0)[0]
        left = [f"pid {name}" for pidfd, name in self.alive.items() if pidfd not in ended]
        yield (
            "processes",
            left + _inhabitants(self.base),
            f"{', '.join(self.alive.values())} have ended",
        )

    def find_cgroups(self) -> list[str]:
        """Return the cgroups of the demo's run directory, of v2 and of v1."""
        found = []
        for top in filter(None, cgroups.hierarchies(mountinfo.Table)):
            home = (
                cgroups.home(top, f"{self.base}/run") if os.path.isdir(f"{self.base}/run") else ""
            )
            if os.path.isdir(home):
                found += [
                    path for paths in cgroups.everything(home).values() for path in paths
                ] or [home]
        return found


def _clipped(line: str) -> str:
    """Return a line cut to ``_WIDTH`` columns, with its colours."""
    if len(re.sub(_COLOUR, "", line)) <= _WIDTH:
        return line
    left, shown = _WIDTH - 1, ""
    for part in re.split(f"({_COLOUR})", line):
        shown += part if part.startswith("\033") else part[:left]
        left -= 0 if part.startswith("\033") else len(part[:left])
    return shown + "…"


def _inhabitants(base: str) -> list[str]:
    """Return the processes whose root or working directory is below ``base``."""
    found = []
    for pid in procfs.all_pids():
        for link in ("root", "cwd"):
            try:
                if is_within(os.readlink(f"/proc/{pid}/{link}"), base):
                    found.append(f"pid {pid} ({procfs.command(pid)}), by its {link}")
            except OSError:
                continue  # it has ended
    return found


def _explain(error: BaseException, left: Sequence[str], base: str) -> None:
    """Add to an error the result of the cleaning up after it.

    A hint that names a removed file is removed.
    """
    if isinstance(error, ChrootfwError) and base in error.hint and not left:
        error.hint = ""
    lines = [f"left: {line}" for line in left] or [
        "cleaned up: no mount, loop device, cgroup or process is left"
    ]
    if isinstance(error, ChrootfwError):
        error.details = (*error.details, *lines)
    else:
        error.add_note("\n".join(lines))
