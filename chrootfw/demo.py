"""``chrootfw demo``: a whole life of a chroot on this machine, and the proof that nothing is left of it.

It uses chrootfw as any program would, by a ``Runtime`` of its own: with its own run directory, so that the machine's
instances are not touched. What the proof says comes from the kernel, not from chrootfw's records.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException

from chrootfw import demo_files, display
from chrootfw.errors import ChrootfwError, Interrupted, PrivilegeError
from chrootfw.interrupts import Interrupts, from_signals
from chrootfw.model import Event, Instance
from chrootfw.planning.paths import is_within
from chrootfw.runtime import Runtime
from chrootfw.system import cgroups, loops, mounts, processes

NAME = "demo"
_GRACE = 1.0
#: Seconds between two acts, for the eye; on a terminal only.
_PAUSE = 0.5
#: Seconds within which the page must come.
_PATIENCE = 10.0
_WIDTH = 100
_COLOUR = "\033\\[[0-9]+m"


def main() -> int:
    """The demo; 0, or 1 when something is left. Raises ``ChrootfwError`` after cleaning up."""
    if os.geteuid() != 0:
        raise PrivilegeError("the demo needs root, to mount a file system and run daemons in it: sudo chrootfw demo")
    interrupts = Interrupts()
    with from_signals(interrupts):
        life = _Life(interrupts, demo_files.make_directory())
        try:
            return life.run()
        except BaseException as error:
            with interrupts.shield():
                _explain(error, life.clean_up())
            if isinstance(error, Interrupted) and error.signum == signal.SIGPIPE:  # from _Screen.show
                raise BrokenPipeError from error
            raise


class _Life:
    """The acts, in their order. ``base`` is the demo's own directory: shown as ``$D``, gone at the end."""

    def __init__(self, interrupts: Interrupts, base: str) -> None:
        self.began = time.monotonic()
        self.base = base
        self.interrupts = interrupts
        self.screen = _Screen(interrupts, base)
        self.witness = _Witness(base)
        self.instance = Instance(NAME, f"{base}/disk.img")
        run_dir, config_dir = f"{base}/run", f"{base}/etc"
        self.runtime = Runtime(
            run_dir=run_dir, config_dir=config_dir, on_event=self.screen.event, interrupts=interrupts
        )

    def run(self) -> int:
        """All acts; 0, or 1 when something is left."""
        acts = {
            "A disk: an ext4 image with a small root file system": self.make_disk,
            "Start: mount, check, run the init script": self.start,
            "A page, served from inside": self.fetch,
            "How it looks from outside": self.look,
            "What a stop would do": self.plan,
            "Stop: TERM, a second of grace, KILL, unmount": self.stop,
        }
        for title, act in acts.items():
            self.screen.act(title)
            act()
        self.screen.act("Proof: is anything left?")
        return self.prove()

    def make_disk(self) -> None:
        """The image, and what must run in it."""
        say, disk = self.screen, f"{self.base}/disk.img"
        say.command(f"D={self.base}", shorten=False)
        say.command("export CHROOTFW_RUN_DIR=$D/run CHROOTFW_CONFIG_DIR=$D/etc  # your own instances are not touched")
        mib = demo_files.IMAGE_BYTES >> 20
        say.command(f"truncate --size={mib}M $D/disk.img; mkfs.ext4 -q -d $D/rootfs $D/disk.img")
        try:
            os.mkdir(f"{self.base}/run", 0o755)
            binds = demo_files.make_disk(disk, f"{self.base}/rootfs", self.interrupts)
        except OSError as error:
            raise ChrootfwError(f"the demo's disk cannot be made: {error}") from error
        self.instance = Instance(NAME, disk, params={"binds": binds, "grace": _GRACE})
        self.witness.know(disk)
        used = display.size(os.stat(disk).st_blocks * 512)
        say.show(f"{mib} MiB, of which {used} are written. The init script in it:")
        with open(f"{self.base}/rootfs/{demo_files.INIT_PATH}") as script:
            say.show(say.paint(script.read().rstrip(), "cyan"), indent=6)

    def start(self) -> None:
        """Start it, step by step."""
        binds = f",\n{'':20}".join(f'"{bind}"' for bind in self.instance.params["binds"])
        self.screen.command(
            f"chrootfw -v start {NAME} --disk $D/disk.img --set grace={_GRACE:g} \\\n    --set 'binds = [{binds}]'"
        )
        info = self.runtime.start(self.instance)
        self.screen.show(f"{NAME} is {info.state}: {info.processes} processes")
        self.witness.look(self.runtime)

    def fetch(self) -> None:
        """Ask the web server for its page."""
        try:
            self.screen.command(f"chrootfw exec {NAME} -- cat /run/web.port")
            cat = self.runtime.run(
                NAME, ["cat", "/run/web.port"], capture_output=True, text=True, timeout=_PATIENCE, check=True
            )
            port = int(cat.stdout)
            self.screen.show(str(port))
            self.screen.command(f"curl http://127.0.0.1:{port}/")
            connection = HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
            try:
                connection.request("GET", "/")
                page = connection.getresponse().read().decode()
            finally:
                connection.close()
        except (OSError, ValueError, HTTPException, subprocess.SubprocessError) as error:
            raise ChrootfwError(f"the page cannot be fetched: {error}") from error
        self.screen.show(self.screen.paint(page.rstrip(), "green"))

    def look(self) -> None:
        """``list``, ``ps`` and ``info``."""
        stream = self.screen.stream
        self.screen.command("chrootfw list")
        self.screen.show(display.instances(self.runtime.list(), stream))
        self.screen.command(f"chrootfw ps {NAME}")
        self.screen.show(display.process_table(self.runtime.processes(NAME), stream))
        self.screen.command(f"chrootfw info {NAME}")
        self.screen.show(display.instance(self.runtime.info(NAME), stream))

    def plan(self) -> None:
        """The plan of the stop; which plugin answered is dimmed."""
        self.screen.command(f"chrootfw plan stop {NAME}")
        for line in self.runtime.plan("stop", NAME).describe().splitlines():
            does, bracket, plugin = line.replace("chrootfw_defaults.", "…").partition("  [")
            self.screen.show(does + self.screen.paint(bracket + plugin, "dim"))

    def stop(self) -> None:
        """Stop it, step by step, and see who ends when."""
        self.screen.command(f"chrootfw -v stop {NAME}")
        with self.witness.watching(self.screen):
            info = self.runtime.stop(NAME)
        self.screen.show(f"{NAME} is {'stopped' if info.state == 'absent' else info.state}")

    def prove(self) -> int:
        """A line for each thing that could be left, and the last line."""
        findings = [*self.witness.findings(), self.check_disk()]
        with self.interrupts.shield():
            findings.append(("files", demo_files.remove(self.base), "$D is removed"))
        for what, left, gone in findings:
            mark = self.screen.paint("✗", "red") if left else self.screen.paint("✓", "green")
            self.screen.show(f"{mark} {what:<12}  {'; '.join(left) or gone}")
        paused = f", {self.screen.paused:.1f} s to look at it" if self.screen.paused else ""
        took = f"A whole life in {time.monotonic() - self.began:.1f} s ({_GRACE:.1f} s grace{paused})."
        self.screen.show(f"\n{took} Next: README.md, docs/, chrootfw --help", indent=0)
        return 1 if any(left for _, left, _ in findings) else 0

    def check_disk(self) -> tuple[str, list[str], str]:
        """What e2fsck finds, as a finding."""
        try:
            said = demo_files.check_disk(f"{self.base}/disk.img", self.interrupts)
        except Interrupted:
            raise
        except ChrootfwError as error:
            return "file system", [error.brief, *error.details], ""
        return "file system", [], f"e2fsck -fn: clean, {said}"

    def clean_up(self) -> list[str]:
        """After a failure: end and unmount everything, remove the directory. Says what is left all the same."""
        self.screen.is_quiet = True
        left: list[str] = []
        try:
            self.runtime.stop(self.instance, force=True)
        except ChrootfwError as error:
            left += [error.brief, *error.details]
        for what, found, _ in self.witness.findings():
            left += [f"{what}: {item}" for item in found]
        return left + demo_files.remove(self.base)


class _Screen:
    """What there is to see: acts, the command lines that would do the same, and what they say."""

    def __init__(self, interrupts: Interrupts, base: str) -> None:
        self.interrupts = interrupts
        self.base = base
        self.stream = sys.stdout
        self.acts = 0
        self.paused = 0.0
        self.command_began = 0.0
        self.is_quiet = False
        self.before_event: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def paint(self, text: str, colour: str) -> str:
        """Each line of ``text`` in a colour."""
        return "\n".join(display.paint(line, colour, self.stream) for line in text.split("\n"))

    def act(self, title: str) -> None:
        """The title of the next act, after a moment to read the one before. Raises ``Interrupted``."""
        if self.acts and self.stream.isatty():
            select.select([self.interrupts.fd], [], [], _PAUSE)
            self.paused += _PAUSE
        self.interrupts.check()
        self.acts += 1
        self.show(f"\n{self.paint(f'{self.acts}  {title}', 'bold')}", indent=0)

    def command(self, text: str, *, shorten: bool = True) -> None:
        """A command line that would do what comes next. Raises ``Interrupted``."""
        self.interrupts.check()
        self.command_began = time.monotonic()
        self.show(self.paint(f"$ {text}", "dim"), shorten=shorten)

    def show(self, text: str, *, indent: int = 3, shorten: bool = True) -> None:
        """Lines, at once. That nobody is left to read them is a reason to end, at the next step."""
        whole = text.replace(self.base, "$D") if shorten else text
        lines = [_clipped(f"{'':{indent}}{line}".rstrip()) for line in whole.split("\n")]
        encoding = self.stream.encoding or "utf-8"
        with self._lock:
            if self.is_quiet:
                return
            try:
                self.stream.write("\n".join([*lines, ""]).encode(encoding, "replace").decode(encoding))
                self.stream.flush()
            except OSError:
                self.is_quiet = True
                self.interrupts.request(signal.SIGPIPE)

    def happened(self, what: str, does: str, colour: str = "") -> None:
        """Something that happens just now, with the milliseconds since the command began."""
        elapsed = f"{(time.monotonic() - self.command_began) * 1000:8.1f} ms"
        self.show(f"{self.paint(elapsed, 'dim')}  {what:<10}  {self.paint(does, colour) if colour else does}")

    def event(self, event: Event) -> None:
        """What a runtime tells: steps when they are done, signals before they are sent."""
        if self.before_event:
            self.before_event()
        if event.what in ("warning", "blame"):
            self.happened(event.what, event.error or event.does, "yellow")
        elif event.what == "fail":
            self.happened(event.stage, f"{event.does}: {event.error}", "red")
        elif (event.what == "begin") is (event.stage == "kill"):
            self.happened(event.stage, event.does, "yellow" if event.stage == "kill" else "")


class _Witness:
    """Looks at mounts, loop devices, cgroups and processes in the kernel, while there is something and afterwards."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.file: dict[tuple[int, int], str] = {}
        self.mounts = [len(mounts.table())]
        self.loops: list[str] = []
        self.cgroups: list[str] = []
        self.alive: dict[int, str] = {}

    def know(self, disk: str) -> None:
        """From now on, loop devices over this file can be found."""
        status = os.stat(disk)
        self.file[status.st_dev, status.st_ino] = disk

    def look(self, runtime: Runtime) -> None:
        """While it runs: what must be gone in the end. A pidfd stands for its process, never for a later one."""
        self.mounts.append(len(mounts.table()))
        self.loops, self.cgroups = sorted(loops.over(self.file)), self.find_cgroups()
        for process in (found for found in runtime.processes(NAME) if found.own and found.pid):
            with suppress(ProcessLookupError):
                self.alive[os.pidfd_open(process.pid)] = f"{process.pid} ({process.command})"

    @contextmanager
    def watching(self, screen: _Screen) -> Iterator[None]:
        """Meanwhile, a thread says who ends; at the latest before what is done next."""
        done = os.eventfd(0, os.EFD_CLOEXEC)
        waiting = dict(self.alive)
        telling = threading.Lock()

        def tell() -> None:
            with telling:
                for pidfd in select.select([*waiting], [], [], 0)[0]:
                    screen.happened("", f"pid {waiting.pop(pidfd)} has ended", "green")

        def watch() -> None:
            while done not in select.select([*waiting, done], [], [])[0]:
                tell()

        thread = threading.Thread(target=watch)
        thread.start()
        screen.before_event = tell
        try:
            yield
        finally:
            screen.before_event = None
            os.eventfd_write(done, 1)
            thread.join()
            tell()
            os.close(done)

    def findings(self) -> Iterator[tuple[str, list[str], str]]:
        """What was looked for, what is left of it, and what to say when nothing is."""
        left = [os.fsdecode(entry.mount_point) for entry in mounts.below(os.fsencode(self.base))]
        before, *during = self.mounts
        counts = f"{before} before, {during[0] if during else '?'} while it ran, {len(mounts.table())} now"
        yield "mounts", left, f"{counts}, none below $D"
        left = sorted(loops.over(self.file)) if self.file else []
        yield "loop device", left, f"{', '.join(self.loops)} is free again"
        made = f"{', '.join(self.cgroups)} is removed" if self.cgroups else "there was none: tracked by root directory"
        yield "cgroup", self.find_cgroups(), made
        ended = select.select([*self.alive], [], [], 0)[0]
        left = [f"pid {name}" for pidfd, name in self.alive.items() if pidfd not in ended]
        yield "processes", left + _inhabitants(self.base), f"{', '.join(self.alive.values())} have ended"

    def find_cgroups(self) -> list[str]:
        """The cgroups of the demo's run directory, of v2 and of v1."""
        found = []
        for top in filter(None, cgroups.hierarchies(mounts.read_table)):
            home = cgroups.home(top, f"{self.base}/run") if os.path.isdir(f"{self.base}/run") else ""
            if os.path.isdir(home):
                found += [path for paths in cgroups.everything(home).values() for path in paths] or [home]
        return found


def _clipped(line: str) -> str:
    """A line of at most ``_WIDTH`` columns, with its colours."""
    if len(re.sub(_COLOUR, "", line)) <= _WIDTH:
        return line
    room, shown = _WIDTH - 1, ""
    for part in re.split(f"({_COLOUR})", line):
        shown += part if part.startswith("\033") else part[:room]
        room -= 0 if part.startswith("\033") else len(part[:room])
    return shown + "…"


def _inhabitants(base: str) -> list[str]:
    """Processes whose root or working directory is below ``base``."""
    found = []
    for pid in processes.all_pids():
        for link in ("root", "cwd"):
            try:
                if is_within(os.readlink(f"/proc/{pid}/{link}"), base):
                    found.append(f"pid {pid} ({processes.command(pid)}), by its {link}")
            except OSError:
                continue  # it has ended
    return found


def _explain(error: BaseException, left: Sequence[str]) -> None:
    """Add to an error what the cleaning up after it has come to."""
    lines = [f"left: {line}" for line in left] or ["cleaned up: no mount, loop device, cgroup or process is left"]
    if isinstance(error, ChrootfwError):
        error.details = (*error.details, *lines)
    else:
        error.add_note("\n".join(lines))
