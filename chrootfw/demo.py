"""``chrootfw demo``: a whole life of a chroot on this machine, and the proof that nothing is left of it.

It uses chrootfw as any program would, by a ``Runtime`` of its own: with its own run directory, so that the machine's
instances are not touched. What the proof says comes from the kernel, not from chrootfw's records.
"""

from __future__ import annotations

import glob
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from chrootfw import display
from chrootfw.errors import ChrootfwError, Interrupted, PrivilegeError, TrustError
from chrootfw.interrupts import Interrupts
from chrootfw.model import Event, Instance
from chrootfw.planning.paths import is_within
from chrootfw.runtime import Runtime
from chrootfw.system import cgroups, loops, mounts, processes, store, syscalls

NAME = "demo"
_WIDTH = 100
_GRACE = 1.0
#: Seconds between two acts, for the eye; on a terminal only.
_PAUSE = 0.5
_IMAGE_BYTES = 32 << 20
_TOOL_SECONDS = 30.0

def main() -> int:
    """The demo; 0, or 1 when something is left. Raises ``ChrootfwError`` after cleaning up."""
    if os.geteuid() != 0:
        raise PrivilegeError("the demo needs root, to mount a file system and run daemons in it: sudo chrootfw demo")
    interrupts = Interrupts()
    with _signals(interrupts):
        life = _Life(interrupts, _make_base())
        try:
            return life.run()
        except BaseException as error:
            with interrupts.shield():
                _explain(error, life.clean_up())
            if isinstance(error, Interrupted) and life.screen.is_broken:
                raise BrokenPipeError from error
            raise


class _Life:
    """The acts, in their order. ``base`` is the demo's own directory: shown as ``$D``, gone at the end."""

    def __init__(self, interrupts: Interrupts, base: str) -> None:
        self.base = base
        self.disk = f"{base}/disk.img"
        self.began = time.monotonic()
        self.interrupts = interrupts
        self.screen = _Screen(interrupts, base)
        self.runtime = Runtime(
            run_dir=f"{base}/run", config_dir=f"{base}/etc", on_event=self.screen.event, interrupts=interrupts
        )
        self.instance = Instance(NAME, self.disk)
        self.witness = _Witness(base, self.disk)

    def run(self) -> int:
        """All acts; 0, or 1 when something is left."""
        print_title = self.screen.act
        print_title("A disk: an ext4 image with a small root file system")
        self.make_disk()
        print_title("Start: mount, check, run the init script")
        self.start()
        print_title("A page, served from inside")
        self.fetch()
        print_title("How it looks from outside")
        self.look()
        print_title("What a stop would do")
        self.screen.command(f"chrootfw plan stop {NAME}")
        self.screen.show(self.runtime.plan("stop", NAME).describe())
        print_title("Stop: TERM, a second of grace, KILL, unmount")
        self.stop()
        print_title("Proof: nothing is left")
        return self.prove()

    def make_disk(self) -> None:
        """The image and its contents."""
        self.screen.command(f"D={self.base}", is_path=True)
        self.screen.command(
            "export CHROOTFW_RUN_DIR=$D/run CHROOTFW_CONFIG_DIR=$D/etc   # apart from your own instances"
        )
        self.screen.command("truncate --size=32M $D/disk.img; mkfs.ext4 -q -d $D/rootfs $D/disk.img")
        os.mkdir(f"{self.base}/run", 0o755)
        os.mkdir(f"{self.base}/etc", 0o755)
        binds = _make_rootfs(f"{self.base}/rootfs", self.interrupts)
        with open(self.disk, "xb") as file:
            file.truncate(_IMAGE_BYTES)
        _tool("mkfs.ext4", "-q", "-F", "-d", f"{self.base}/rootfs", self.disk, interrupts=self.interrupts)
        params = {"binds": [f"{tree}:{tree}:ro" for tree in binds], "grace": _GRACE}
        self.instance = Instance(NAME, self.disk, params=params)
        self.witness.know_disk()
        used = display.size(os.stat(self.disk).st_blocks * 512)
        self.screen.show(
            f"32 MiB, {used} of them in use: programs come from the host, read-only. Its /etc/chrootfw/init:\n"
            + self.screen.paint(_INIT.rstrip(), "cyan")
        )

    def start(self) -> None:
        """Start the instance, every step shown."""
        binds = ", ".join(f'"{bind}"' for bind in self.instance.params["binds"])
        self.screen.command(
            f"chrootfw -v start {NAME} --disk $D/disk.img --set grace={_GRACE:g} \\\n    --set 'binds=[{binds}]'"
        )
        info = self.runtime.start(self.instance)
        self.screen.show(f"{info.name} is {info.state}: {info.processes} processes")
        self.witness.look(self.runtime)

    def fetch(self) -> None:
        """Ask the web server for its page."""
        from http.client import HTTPConnection, HTTPException

        try:
            self.screen.command(f"chrootfw exec {NAME} -- cat /run/web.port")
            port = self.runtime.run(
                NAME, ["cat", "/run/web.port"], capture_output=True, text=True, timeout=_TOOL_SECONDS, check=True
            ).stdout.strip()
            self.screen.show(port)
            self.screen.command(f"curl http://127.0.0.1:{port}/")
            connection = HTTPConnection("127.0.0.1", int(port), timeout=5)
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

    def stop(self) -> None:
        """Stop the instance, every step shown, and who ends when."""
        self.screen.command(f"chrootfw -v stop {NAME}")
        with self.witness.watching(self.screen):
            info = self.runtime.stop(NAME)
        self.screen.show(f"{NAME} is {info.state}")

    def prove(self) -> int:
        """A line for each thing that could be left, then the last line."""
        findings = [*self.witness.findings(self.screen), self._checked()]
        with self.interrupts.shield():
            findings.append((not (left := _remove(self.base)), "files", "; ".join(left) or "$D is removed"))
        for is_gone, what, detail in findings:
            mark = self.screen.paint("✓", "green") if is_gone else self.screen.paint("✗", "red")
            self.screen.show(f"{mark} {what:<12}{detail}")
        seconds = time.monotonic() - self.began
        pauses = f", {self.screen.paused:.1f} s pauses for the eye" if self.screen.paused else ""
        took = f"A whole life in {seconds:.1f} s ({_GRACE:.1f} s grace{pauses})."
        self.screen.show(f"\n{took} Next: README.md, docs/, chrootfw --help", indent="")
        return 0 if all(is_gone for is_gone, _, _ in findings) else 1

    def _checked(self) -> tuple[bool, str, str]:
        try:
            said = _tool("e2fsck", "-f", "-n", self.disk, interrupts=self.interrupts)
        except Interrupted:
            raise
        except ChrootfwError as error:
            return False, "file system", " ".join([error.brief, *error.details])
        return True, "file system", f"clean, says e2fsck -fn: {said.rpartition('disk.img: ')[2].strip()}"

    def clean_up(self) -> list[str]:
        """After a failure: end and unmount everything, remove the directory; what is left all the same."""
        self.screen.is_quiet = True
        left = []
        try:
            self.runtime.stop(self.instance, force=True)
        except ChrootfwError as error:
            left += [error.brief, *error.details]
        left += [f"{what}: {detail}" for is_gone, what, detail in self.witness.findings(self.screen) if not is_gone]
        return left + _remove(self.base)


class _Screen:
    """What there is to see: acts, the command lines that would do the same, and their real output."""

    def __init__(self, interrupts: Interrupts, base: str) -> None:
        self.interrupts = interrupts
        self.base = base
        self.stream = sys.stdout
        self.acts = 0
        self.paused = 0.0
        self.command_began = 0.0
        self.is_quiet = False
        self.is_broken = False
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
        self.show(f"\n{self.paint(f'{self.acts}  {title}', 'bold')}", indent="")

    def command(self, text: str, *, is_path: bool = False) -> None:
        """A command line that does what comes next."""
        self.interrupts.check()
        self.command_began = time.monotonic()
        self.show(self.paint(f"$ {text}", "dim"), shorten=not is_path)

    def show(self, text: str, *, indent: str = "   ", shorten: bool = True) -> None:
        """Lines of output at once. Nobody left to read them is a reason to end, at the next step."""
        if self.is_quiet:
            return
        lines = []
        for line in text.split("\n"):
            line = indent + (line.replace(self.base, "$D") if shorten else line)
            plain = re.sub(r"\033\[\d+m", "", line)
            lines.append(line.rstrip() if len(plain) <= _WIDTH else plain[: _WIDTH - 1] + "…")
        encoding = self.stream.encoding or "utf-8"
        whole = "\n".join([*lines, ""]).encode(encoding, "replace").decode(encoding)
        try:
            with self._lock:
                self.stream.write(whole)
                self.stream.flush()
        except OSError:
            self.is_quiet = self.is_broken = True
            self.interrupts.request(signal.SIGPIPE)

    def happened(self, what: str, does: str, colour: str = "") -> None:
        """Something that happened just now, with the milliseconds since the command began."""
        elapsed = f"{(time.monotonic() - self.command_began) * 1000:8.1f} ms"
        self.show(f"{self.paint(elapsed, 'dim')}  {what:<10}  {self.paint(does, colour) if colour else does}")

    def event(self, event: Event) -> None:
        """Observe a runtime: steps when they are done, signals before they are sent."""
        if event.what in ("warning", "blame"):
            self.happened(event.what, event.error or event.does, "yellow")
        elif event.what == "fail":
            self.happened(event.stage, f"{event.does}: {event.error}", "red")
        elif (event.what == "begin") is (event.stage == "kill"):
            self.happened(event.stage, event.does, "yellow" if event.stage == "kill" else "")


class _Witness:
    """Looks at mounts, loop devices, cgroups and processes in the kernel, while there is something and afterwards."""

    def __init__(self, base: str, disk: str) -> None:
        self.base = base
        self.disk = disk
        self.mounts_before = self.mounts_during = len(mounts.table())
        self.file: dict[tuple[int, int], str] = {}
        self.loops: list[str] = []
        self.cgroups: list[str] = []
        self.pidfds: dict[int, str] = {}
        self.names: list[str] = []

    def know_disk(self) -> None:
        """The image is there; from now on its loop devices can be found."""
        status = os.stat(self.disk)
        self.file = {(status.st_dev, status.st_ino): self.disk}

    def look(self, runtime: Runtime) -> None:
        """While it runs: what must be gone in the end. A pidfd stands for its process, never for a later one."""
        self.mounts_during = len(mounts.table())
        self.loops = sorted(loops.over(self.file))
        self.cgroups = self._cgroups()
        for process in runtime.processes(NAME):
            if not process.own:
                continue
            try:
                self.pidfds[os.pidfd_open(process.pid)] = f"pid {process.pid} ({process.command})"
            except ProcessLookupError:
                continue
        self.names = list(self.pidfds.values())

    @contextmanager
    def watching(self, screen: _Screen) -> Iterator[None]:
        """Meanwhile, a thread says who ends."""
        done = os.eventfd(0, os.EFD_CLOEXEC)

        def watch() -> None:
            waiting = dict(self.pidfds)
            while waiting:
                ready, _, _ = select.select([*waiting, done], [], [])
                if done in ready:
                    return
                for pidfd in ready:
                    screen.happened("", f"{waiting.pop(pidfd)} has ended", "green")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.eventfd_write(done, 1)
            thread.join()
            os.close(done)

    def findings(self, screen: _Screen) -> Iterator[tuple[bool, str, str]]:
        """``(whether all of it is gone, what, detail)``, as the kernel says now."""
        left = [os.fsdecode(entry.mount_point) for entry in mounts.below(os.fsencode(self.base))]
        counts = f"{self.mounts_before} before, {self.mounts_during} while it ran, {len(mounts.table())} now"
        yield not left, "mounts", f"left: {', '.join(left)}" if left else f"{counts}; none below $D"
        left = sorted(loops.over(self.file)) if self.file else []
        yield not left, "loop device", f"left: {', '.join(left)}" if left else f"{', '.join(self.loops)} is free again"
        left = self._cgroups()
        gone = (
            f"{', '.join(self.cgroups)} is removed"
            if self.cgroups
            else "none was made: cgroup v2 cannot be written here"
        )
        yield not left, "cgroup", f"left: {', '.join(left)}" if left else gone
        ended = select.select([*self.pidfds], [], [], 0)[0]
        left = [name for pidfd, name in self.pidfds.items() if pidfd not in ended] + _inhabitants(self.base)
        yield not left, "processes", f"left: {', '.join(left)}" if left else f"{', '.join(self.names)} have ended"

    def _cgroups(self) -> list[str]:
        table, run_dir = mounts.read_table(), f"{self.base}/run"
        tops = [top for top in (cgroups.hierarchy(table), cgroups.memory_v1(table)) if top]
        homes = [cgroups.home(top, run_dir) for top in tops] if os.path.isdir(run_dir) else []
        return [os.path.join(home, name) for home in homes if os.path.isdir(home) for name in _cgroups_in(home)]


def _make_base() -> str:
    """A new directory for everything, where chrootfw trusts the path."""
    for parent in (tempfile.gettempdir(), "/run", "/tmp"):
        base = tempfile.mkdtemp(prefix="chrootfw-demo-", dir=os.path.realpath(parent))
        try:
            store.check_trusted(base, what="demo's directory")
            return base
        except TrustError as error:
            os.rmdir(base)
            refusal = error
    raise refusal


def _cgroups_in(home: str) -> list[str]:
    """The names of the cgroups in a run directory's own one; that itself where it is empty."""
    return [name for name in os.listdir(home) if os.path.isdir(f"{home}/{name}")] or [""]


def _inhabitants(base: str) -> list[str]:
    """Processes whose root or working directory is below ``base``."""
    found = []
    for pid in processes.all_pids():
        for link in ("root", "cwd"):
            try:
                if is_within(os.readlink(f"/proc/{pid}/{link}"), base):
                    found.append(f"pid {pid} ({processes.command(pid)}): its {link}")
            except (OSError, ValueError):
                continue  # ended, or a kernel thread
    return found


def _remove(base: str) -> list[str]:
    """Remove the demo's directory, never through a mount; why it could not be done."""
    if left := mounts.below(os.fsencode(base)):
        return [
            f"{base} is kept: {len(left)} mounts are below it; chrootfw stop {NAME}, with CHROOTFW_RUN_DIR={base}/run, ends it"
        ]
    try:
        shutil.rmtree(base)
    except OSError as error:
        return [f"{base} is kept: {error}"]
    return []


def _explain(error: BaseException, left: Sequence[str]) -> None:
    """Add to an error what the cleaning up after it has come to."""
    lines = [f"left: {line}" for line in left] or ["cleaned up: no mount, loop device, cgroup or process is left"]
    if isinstance(error, ChrootfwError):
        error.details = (*error.details, *lines)
    else:
        error.add_note("\n".join(lines))


@contextmanager
def _signals(interrupts: Interrupts) -> Iterator[None]:
    """INT, TERM and HUP ask to end, as they do for the other verbs."""
    before = {}
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:
            before[signum] = signal.signal(signum, lambda number, _frame: interrupts.request(number))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
