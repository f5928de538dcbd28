"""A kernel in memory for the life cycle: mounts, processes, cgroups and a clock.

It has what ``chrootfw.lifecycle`` calls in ``chrootfw.linux`` and nothing more; the life cycle
itself is the real one. A function that is not here is refused.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import attrs

from chrootfw.errors import ChrootfwError, Lines, StepError
from chrootfw.lifecycle import kill, steps, unmount
from chrootfw.lifecycle.context import Job, StepTime
from chrootfw.linux import freezing, log_file, mount_tree, syscalls
from chrootfw.linux.mountinfo import MountEntry
from chrootfw.model import Event, Instance, MountPoint, Stage, Step
from chrootfw.planning import paths
from chrootfw.state import ownership, record
from chrootfw.state.record import RecordedStep, StartRecord
from chrootfw.state.snapshot import Elsewhere
from chrootfw.testing import kernel_view, root_tree
from chrootfw.testing.records import Alive, Book, Recorded, Sent
from chrootfw.views import InstanceState, Process

#: What a step that was made to fail says.
INJECTED = "injected failure"

#: Where its cgroups would be.
_TOP = "/sys/fs/cgroup"

#: Functions of ``chrootfw.linux`` and ``chrootfw.state`` that only read or compute, or write into
#: the run directory, which is a temporary one. The modules of ``chrootfw.state`` count as one.
_HARMLESS = frozenset((
    "cgroups.of_logger", "files.boot_id", "files.check_trusted", "files.mount_namespace",
    "files.read", "files.remove", "files.write",
    "logger.make_pipe", "mount_tree.check_options", "mount_tree.missing_on_read_only",
    "network_namespace.entered", "state.directory", "state.disk_devices", "state.guess_disks",
    "state.path", "state.root", "state.save", "statx.packed", "statx.statx_many", "syscalls.statx",
))  # fmt: skip

#: The names of the methods, by what they stand for.
_FAKES: dict[str, str] = {}


def _fake(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a method: it stands for functions of these modules."""

    def mark(method: Callable[..., Any]) -> Callable[..., Any]:
        _FAKES.update(dict.fromkeys(names, method.__name__))
        return method

    return mark


class FakeKernel:
    """Hold one instance in memory.

    Args:
        instance: The instance as resolved.
        run_dir: A directory of the recording's, where the life cycle writes.
        words: The run directory in the steps' words.
        root: The tree that its disk has.
        keeps_root: Nothing is made in the tree.
        processes: What the init script starts.
    """

    def __init__(
        self,
        instance: Instance,
        run_dir: str,
        words: str,
        root: root_tree.TreeRoot,
        processes: Sequence[Alive],
        *,
        keeps_root: bool,
    ) -> None:
        self.instance = instance
        self.run_dir = run_dir
        self.words = words
        self.tree = root
        self.keeps_root = keeps_root
        self.given = processes
        self.record: StartRecord | None = None
        self.table: list[MountEntry] = []
        self.alive: list[Alive] = []
        self.cgroups: list[str] = []
        self.now = 0.0
        self.unknown: list[str] = []
        self._job: RecordedJob | None = None
        self._numbers = iter(range(2, 1 << 30))  # 1: the mount that the run directory lies in
        self._stuck: set[int] = set()
        self._exits: dict[int, int] = {}  # by pid: a descriptor that its exit makes readable
        self._pidfds: dict[int, int] = {}
        self._opened: dict[int, list[tuple[MountPoint, MountEntry]]] = {}
        self._places: dict[int, str] = {}
        self._awaits_cont = 0

    @contextmanager
    def carry_out(self, job: RecordedJob) -> Iterator[None]:
        """Show this kernel to the life cycle for one verb, and keep the record that it leaves."""
        self._job, self._stuck = job, set()
        try:
            with kernel_view.show(self):
                yield
        finally:
            self.record, self._job = job.record, None
            for fd in self._exits.values():
                os.close(fd)
            self._exits.clear()
        if self.unknown:
            raise AssertionError(
                f"the life cycle called {', '.join(self.unknown)}: the fake kernel has no such "
                "thing; report it to chrootfw"
            )

    def find(self, module: ModuleType, name: str) -> Any:
        """Return what the life cycle sees of a module."""
        _, layer, own_name = f"..{module.__name__}".rsplit(".", 2)
        key = f"{'state' if layer == 'state' else own_name}.{name}"
        if name in ("Root", "Joined", "Isolation"):
            key = name
        if key in _FAKES:
            return getattr(self, _FAKES[key])
        found = getattr(module, name)
        if layer in ("linux", "state") and isinstance(found, FunctionType) and key not in _HARMLESS:
            self.unknown.append(key)
            raise AssertionError(f"the fake kernel has no {key}")
        return found

    @property
    def job(self) -> RecordedJob:
        """The verb that is carried out."""
        assert self._job is not None
        return self._job

    @property
    def own(self) -> list[Alive]:
        """Return its own processes that are running."""
        return [alive for alive in self.alive if alive.process.own]

    @property
    def is_present(self) -> bool:
        """Return whether anything is there."""
        return bool(self.table or self.alive or self.record)

    @property
    def state(self) -> InstanceState:
        """Return the state that ``ownership.read_state`` would tell."""
        if self.own:
            return InstanceState.RUNNING
        known = self._job.record if self._job else self.record
        if known and known.phase == "stopping":
            return InstanceState.HELD
        return InstanceState.MOUNTED if self.table else InstanceState.ABSENT

    def describe_rest(self) -> list[str]:
        """Return a line for each thing that is still there."""
        recorded = self.record.steps if self.record else []
        return [
            *(f"pid {alive.pid} ({alive.process.command})" for alive in self.own),
            *(f"the mount on {self.in_words(os.fsdecode(e.mount_point))}" for e in self.table),
            *(
                f"the step {step.kind} {step.arguments} of plugin {step.plugin}"
                for step in recorded
            ),
        ]

    def in_words(self, text: str) -> str:
        """Return a text with the run directory's name in place of the recording's own directory."""
        if isinstance(text, Lines):
            return Lines(map(self.in_words, text.lines))
        return text.replace(self.run_dir, self.words)

    # -- mounts ------------------------------------------------------------------------------------

    @_fake("capabilities.may_administer")
    def _may_administer(self) -> bool:
        return True

    @_fake("mount_tree.detach")
    def _detach(
        self, point: MountPoint, source: str, options: Sequence[str], **_how: Any
    ) -> mount_tree.Detached:
        mount_tree.check_options(point, options)
        self.job.fail_if_due()
        base = self.job.root if point.at == "root" else f"{self._directory}/aux/{point.at[4:]}"
        self.job.book.takes_back = self.in_words(f"unmount {self._place(point, base)}")
        shown = [
            "ro" if "ro" in options else "rw",
            *(o for o in options if o in mount_tree.ATTRIBUTES and o != "ro"),
            "relatime",
        ]
        entry = MountEntry(
            id=next(self._numbers),
            parent=1,
            dev=0,
            root=b"/",
            mount_point=b"",
            options=",".join(shown).encode(),
            optional=(),
            fstype=(point.fstype or "ext4").encode(),
            source=os.fsencode(source),
            super_options=b"",
        )
        detached = self._open(point, [(point, entry)])
        entry.dev = syscalls.statx("", detached.fd).dev  # which the life cycle records of a disk
        return detached

    @_fake("mount_tree.assemble")
    def _assemble(
        self,
        root: mount_tree.Detached,
        parts: Sequence[mount_tree.Detached],
        _place: str,
        made: list[str],
        *,
        seconds: float,  # noqa: ARG002  # nothing takes time
    ) -> int:
        whole = [each for opened in (root, *parts) for each in self._opened[opened.fd]]
        self._make_mount_points([point for point, _ in whole], made)
        self.job.fail_if_due()
        return self._open(root.point, whole).fd

    @_fake("mount_tree.attach")
    def _attach(self, fd: int, place: str) -> None:
        for point, entry in self._opened[fd]:
            self._add_mount(entry, self._place(point, place))

    @_fake("mount_tree.attached_root")
    def _attached_root(self, point: MountPoint, place: str) -> mount_tree.Detached:
        opened = self._open(point, [])
        self._places[opened.fd] = place
        return opened

    @_fake("mount_tree.attach_parts")
    def _attach_parts(
        self,
        root: mount_tree.Detached,
        parts: Sequence[mount_tree.Detached],
        made: list[str],
        *,
        seconds: float,  # noqa: ARG002
    ) -> None:
        place = self._places[root.fd]
        whole = [each for opened in parts for each in self._opened[opened.fd]]
        if place == self.job.root:
            self._make_mount_points([root.point, *(point for point, _ in whole)], made)
        self.job.fail_if_due()
        for point, entry in whole:
            self._add_mount(entry, self._place(point, place))

    @_fake("umount.unmount")
    def _unmount(
        self,
        _directory: bytes,
        entries: Sequence[MountEntry],
        *,
        seconds: float,  # noqa: ARG002
        observer: Any = None,
    ) -> tuple[list[int | None], None]:
        outcomes: list[int | None] = []
        number = self.job.book.number
        for entry in entries:
            does = self.in_words(unmount.describe_unmount(entry))
            if self.job.book.is_due(number + 1, does):
                self._stuck.add(entry.id)
                self.job.book.failed = Recorded("unmount", does, "")
            if self._is_busy(entry):
                outcomes.append(errno.EBUSY)
            else:
                self.table.remove(entry)
                outcomes.append(0)
                number += 1
            if observer is not None:
                observer.end(entry, outcomes[-1], None)
        return outcomes, None

    def _is_busy(self, entry: MountEntry) -> bool:
        """Return whether a mount is in use: a process holds the root, a mount the one below it."""
        return (
            entry.id in self._stuck
            or any(other.parent == entry.id for other in self.table)
            or (bool(self.alive) and entry.mount_point == os.fsencode(self.job.root))
        )

    @property
    def _directory(self) -> str:
        return record.directory(self.run_dir, self.instance.name)

    def _open(
        self, point: MountPoint, mounts: list[tuple[MountPoint, MountEntry]]
    ) -> mount_tree.Detached:
        """Return a descriptor for mounts that are not attached; the life cycle closes it."""
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._opened[fd] = mounts
        return mount_tree.Detached(point, fd)

    def _place(self, point: MountPoint, base: str) -> str:
        target = self.tree.resolve(point.target) if point.at == "root" else point.target
        return base if target == "/" else base + target

    def _add_mount(self, entry: MountEntry, place: str) -> None:
        entry.mount_point = os.fsencode(place)
        for other in self.table:  # the last that holds it is the one that it lies in
            if paths.is_within_bytes(entry.mount_point, other.mount_point):
                entry.parent = other.id
        self.table.append(entry)

    def _make_mount_points(self, points: Sequence[MountPoint], made: list[str]) -> None:
        """Make what is missing of a mount point on the root's own mount, as a mount does."""
        read_only = any(point.target == "/" and "ro" in point.options for point in points)
        covered: list[str] = []
        for point in points:
            target = self.tree.resolve(point.target)
            if target == "/" or any(paths.is_within(target, other) for other in covered):
                covered += [target] if target != "/" else []
                continue
            covered.append(target)
            if self.tree.exists(target):
                continue
            is_file = os.path.isfile(str(point.source))
            if read_only:
                raise mount_tree.missing_on_read_only(point, is_directory=not is_file)
            parts = paths.components(target)
            for number in range(1, len(parts) + 1):
                path = "/" + "/".join(parts[:number])
                if not self.tree.exists(path) and path not in made:
                    made.append(path)
            if not self.keeps_root:
                root_tree.make_mount_point(self.tree.path, target, is_file=is_file)

    # -- disks: none is read -----------------------------------------------------------------------

    @_fake("block_devices.identify")
    def _identify(self, path: str, **_how: Any) -> Any:
        number = next(self._numbers)
        return SimpleNamespace(
            path=path,
            real=path,
            fd=-1,
            kind="image",
            dev=0,
            ino=number,
            rdev=0,
            file=(0, number),
            key=f"0:0-{number}",
            close=lambda: None,
        )

    @_fake("loop.find_loop_devices")
    def _find_loop_devices(self, files: Mapping[tuple[int, int], str]) -> list[str]:
        return list(files.values())

    @_fake(
        "block_devices.directories_above",
        "block_devices.users",
        "block_devices.way_to",
        "state.find_unreleased_disks",
        "state.find_users",
        "freezing.can_freeze",
        "freezing.images_below",
        "mount_copies.with_processes",
        "mountinfo.entries",
        "mountinfo.list_mounts_below",
        "mountinfo.table",
    )
    def _find_none(self, *_arguments: Any, **_how: Any) -> list[Any]:
        return []

    @_fake("freezing.find_frozen")
    def _find_frozen(self, *_arguments: Any, **_how: Any) -> freezing.Frozen:
        return freezing.Frozen(None, "", ())

    @_fake("deadlines.check_answers")
    def _check_answers(self, *_arguments: Any, **_how: Any) -> None:
        self.job.fail_if_due()

    @_fake(
        "block_devices.check_place",
        "block_devices.exposed",
        "cgroups.frozen_by",
        "cgroups.prune",
        "cgroups.remove_when_empty",
        "cgroups.thaw",
        "child.copies_are_about",
        "deadlines.cached_device",
        "mount_tree.check_bind",
        "mount_tree.restrict",
        "mountinfo.cover",
        "state.pin_network",
        "state.read",
        "state.write",
        "state.write_script",
    )
    def _do_nothing(self, *_arguments: Any, **_how: Any) -> None:
        return None

    @_fake("state.remove")
    def _remove_record(self, run_dir: str, name: str) -> None:
        self.job.fail_if_due()
        record.remove(run_dir, name)

    # -- cgroups -----------------------------------------------------------------------------------

    @_fake("cgroups.home")
    def _home(self, top: str, _run_dir: str) -> str:
        return f"{top}/chrootfw"

    @_fake("cgroups.create")
    def _create_cgroup(self, home: str, name: str, _controllers: Sequence[str] = ()) -> str:
        self.cgroups.append(f"{home}/{name}@{next(self._numbers)}")
        return self.cgroups[-1]

    @_fake("cgroups.identity")
    def _identity(self, path: str) -> int:
        return int(path.rpartition("@")[2])

    @_fake("cgroups.is_writable")
    def _is_writable(self, _path: str) -> bool:
        return True

    @_fake("cgroups.remove")
    def _remove_cgroup(self, path: str) -> None:
        if self.own:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        if path in self.cgroups:
            self.cgroups.remove(path)

    @_fake("cgroups.is_populated")
    def _is_populated(self, _path: str) -> bool:
        return bool(self.own)

    @_fake("cgroups.kill", "cgroups.move_out")
    def _refuse(self, *_arguments: Any) -> bool:
        return False  # then each process is signalled

    @_fake("cgroups.events_fd")
    def _events_fd(self, path: str) -> int:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    # -- processes and time ------------------------------------------------------------------------

    @_fake("Root")
    def _open_root(self, path: str, **_how: Any) -> root_tree.TreeRoot:
        assert path == self.job.root
        return self.tree

    @_fake("Isolation")
    def _isolate(self, *_arguments: Any) -> Any:
        return SimpleNamespace(is_plain=True)

    @_fake("process_settings.ProcessSettings")
    def _settings(self, *_arguments: Any) -> Any:
        return SimpleNamespace(shortfalls=list)

    @_fake("Joined")
    @contextmanager
    def _join(self, *_arguments: Any) -> Iterator[None]:
        yield

    @_fake("state.mode_of")
    def _log_mode(self, _params: Mapping[str, Any]) -> str:
        return log_file.OFF

    @_fake("state.open_network")
    def _open_network(self, *_arguments: Any) -> int:
        return -1

    @_fake("passwd.ids")
    def _ids(self, _root: str, _wanted: str | None) -> tuple[int, int, Sequence[int]]:
        return 0, 0, (0,)

    @_fake("spawn.spawn")
    def _spawn(self, _argv: Sequence[str], *, stdout: int, **_how: Any) -> Any:
        """Let the init script run and exit at once."""
        exit_fd = os.eventfd(1, os.EFD_CLOEXEC)
        if self.job.stage == "init-start":
            self.alive += [alive.copy() for alive in self.given]
            self.job.book.takes_back = kill.KILL_DESCRIPTION if self.own else ""
        status = 1 if self.job.take_due() else 0
        if status:
            os.write(stdout, INJECTED.encode())
        return SimpleNamespace(
            pidfd=exit_fd, status=status, reap=lambda: True, end=lambda: os.close(exit_fd)
        )

    @_fake("os.pidfd_open")
    def _pidfd_open(self, pid: int) -> int:
        alive = self._find(pid)
        if pid not in self._exits:
            self._exits[pid] = os.eventfd(0, os.EFD_CLOEXEC)
        fd = os.dup(self._exits[alive.pid])
        self._pidfds[fd] = alive.pid
        return fd

    @_fake("signal.pidfd_send_signal")
    def _send_signal(self, pidfd: int, signum: int) -> None:
        alive = self._find(self._pidfds[pidfd])
        self.job.fail_if_due()
        if signum == signal.SIGCONT and self._awaits_cont == alive.pid:
            self._awaits_cont = 0  # it goes with the signal before, for a process that is stopped
            return
        self.job.book.sent.append(Sent(signum, alive.pid))
        alive.receive(signum, self.now)
        ends = signum in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT)
        self._awaits_cont = 0 if ends else alive.pid

    @_fake("os.getpriority", "os.setpriority")
    def _keep_priority(self, *_arguments: Any) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    @_fake("procfs.self_and_ancestors")
    def _spared(self) -> frozenset[int]:
        return frozenset()

    @_fake("procfs.newest_first")
    def _newest_first(self) -> Iterator[int]:
        return iter([alive.pid for alive in self.alive])

    @_fake("procfs.command")
    def _command(self, pid: int) -> str:
        return self._find(pid).process.command

    @_fake("procfs.describe_state")
    def _describe_state(self, _pid: int) -> str:
        return "state D"

    @_fake("procfs.terminal")
    def _terminal(self, _pid: int) -> int:
        return -1

    @_fake("procfs.state")
    def _process_state(self, _pid: int) -> tuple[str, str]:
        return "D", ""

    @_fake("state.find_holders")
    def _find_holders(
        self,
        _entries: Sequence[MountEntry],
        _root: str,
        _record: StartRecord | None,
        own: Collection[int],
        only: Collection[int] | None = None,
        **_how: Any,
    ) -> list[Process]:
        return [
            alive.process
            for alive in self.alive
            if not alive.process.own
            and alive.pid not in own
            and (only is None or alive.pid in only)
        ]

    @_fake("polling.poll")
    def _poll(self, poller: Any, seconds: float | None) -> list[tuple[int, int]]:
        """Let the time pass until a descriptor is ready."""
        deadline = self.now + max(0.0, seconds or 0.0)
        while True:
            self._reap()
            ready: list[tuple[int, int]] = poller.poll(0)
            upcoming = min((alive.ends_at for alive in self.alive), default=float("inf"))
            if ready or self.now >= deadline:
                return ready
            began = self.now
            self.now = min(upcoming, deadline)
            self.job.book.seconds += self.now - began

    @_fake("time.monotonic")
    def _monotonic(self) -> float:
        return self.now

    @_fake("time.sleep")
    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self._reap()

    def _find(self, pid: int) -> Alive:
        for alive in self.alive:
            if alive.pid == pid:
                return alive
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    def _reap(self) -> None:
        """Let the processes go whose time is over."""
        for alive in [alive for alive in self.alive if alive.ends_at <= self.now]:
            self.alive.remove(alive)
            if alive.pid in self._exits:
                os.eventfd_write(self._exits[alive.pid], 1)


class _Snapshot:
    """What there is of the instance, as ``state.snapshot.Snapshot`` shows it."""

    tracking, top, v1, locations = "cgroup", _TOP, None, None

    def __init__(self, kernel: FakeKernel, known: StartRecord | None) -> None:
        self.kernel = kernel
        self.known = known
        self.table = list(kernel.table)
        self.cgroups = list(kernel.cgroups)

    def is_present(self, _name: str) -> bool:
        return bool(self.table or self.known)

    def is_mounted(self, _name: str) -> bool:
        return bool(self.table)

    def record(self, _name: str) -> StartRecord | None:
        return self.known

    def groups(self, _name: str) -> list[str]:
        return list(self.cgroups)

    def leftovers(self, _name: str) -> list[str]:
        return []

    memory_groups = leftovers

    def read_mounts(self, _name: str) -> list[MountEntry]:
        return list(self.kernel.table)

    def find_elsewhere(self, _name: str) -> Elsewhere:
        return Elsewhere(is_mounted=False)


class _OwnProcesses(ownership.OwnProcesses):
    """Own processes that know what they are."""

    __slots__ = ("processes",)

    def __init__(self, own: Sequence[Alive], *, has_roots: bool) -> None:
        pids = [alive.pid for alive in own]
        super().__init__(pids, [], is_populated=bool(own), rooted=pids if has_roots else None)
        self.processes = [alive.process for alive in own]

    def describe(self) -> list[Process]:
        return list(self.processes)


class _Judge:
    """Tell the own processes, as ``state.ownership.Judge`` does."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.groups = list(kernel.cgroups)

    def read_tracked(self) -> _OwnProcesses:
        return _OwnProcesses(self.kernel.own, has_roots=False)

    read_running = read_tracked

    def read_own(self, _tracked: object = None) -> _OwnProcesses:
        return _OwnProcesses(self.kernel.own, has_roots=True)

    def is_own(self, pid: int) -> bool:
        return any(alive.pid == pid for alive in self.kernel.own)

    def is_of_another(self, _pid: int) -> bool:
        return False

    def was_moved_in(self, _pid: int) -> bool:
        return False


@attrs.define(eq=False, repr=False)
class RecordedJob(Job):
    """Be a verb on an instance that is in memory only."""

    kernel: FakeKernel = attrs.field(kw_only=True)
    book: Book = attrs.field(kw_only=True)
    apply_steps: bool = attrs.field(kw_only=True)
    stage: str = attrs.field(default="", init=False)
    due: str = attrs.field(default="", init=False)

    def read_snapshot(self) -> Any:
        """Read what there is in memory."""
        self.last_snapshot = found = _Snapshot(self.kernel, self.record)  # type: ignore[assignment]  # what the life cycle reads of one
        return found

    def judge(self, snapshot: Any) -> Any:  # noqa: ARG002
        """Return the judge of the processes in memory."""
        return _Judge(self.kernel)

    def read_state(self, snapshot: Any) -> InstanceState:  # noqa: ARG002
        """Read the state from memory."""
        return self.kernel.state

    @contextmanager
    def step(
        self, stage: Stage, does: str, plugin: str = "", *, limit: float = 0.0
    ) -> Iterator[StepTime]:
        """Report the step as the core does, and record it."""
        book = self.book
        words = self.kernel.in_words(does)
        if book.verb in ("start", "reboot") and sys.exc_info()[1] is not book.outer:
            book.failing = True  # the life cycle undoes what it did while it handles an error
        book.number += 1
        book.takes_back = ""
        self.stage, before = stage, self.stage
        try:
            with Job.step(self, stage, does, plugin, limit=limit) as took:
                self.due = words if book.is_due(book.number, words) else ""
                yield took
                self.fail_if_due()  # no call to the kernel has failed
        except BaseException:
            book.failed = book.failed or Recorded(stage, words, plugin)
            raise
        finally:
            self.due = ""
            self.stage = before
        (book.undo if book.failing else book.steps).append(
            Recorded(stage, words, plugin, book.takes_back)
        )

    def take_due(self) -> bool:
        """Return whether the step that runs is to fail here; it fails once."""
        due, self.due = self.due, ""
        return bool(due)

    def fail_if_due(self) -> None:
        """Raise ``StepError`` in the step that is to fail."""
        does = self.due
        if self.take_due():
            raise StepError(f"cannot {does}: {INJECTED}")

    def check_step(self, step: Step) -> None:
        """Check the step with ``apply_steps`` only: the recording is not about this machine."""
        if self.apply_steps:
            with kernel_view.show(None):
                step.check()

    def apply_step(self, step: Step) -> Mapping[str, Any] | None:
        """Apply the step with ``apply_steps`` only; else make up a source."""
        assert self.record is not None
        self.book.takes_back = steps.describe_undo(self.record.steps[-1])
        if self.take_due():
            raise OSError(errno.EIO, INJECTED)
        if not self.apply_steps:
            return {"source": "/dev/recorded"}
        with kernel_view.show(None):
            return step.apply()

    def undo_step(self, step: Step, recorded: RecordedStep) -> None:
        """Undo the step with ``apply_steps`` only."""
        if self.take_due():
            raise OSError(errno.EIO, INJECTED)
        if self.apply_steps:
            with kernel_view.show(None):
                step.undo(recorded.to_json())


def put_in_words(error: BaseException, kernel: FakeKernel) -> None:
    """Let an error name the run directory in place of the recording's own."""
    if isinstance(error, ChrootfwError):
        error.brief = kernel.in_words(error.brief)
        error.details = tuple(kernel.in_words(line) for line in error.details)
        error.hint = kernel.in_words(error.hint)
        error.args = (error.brief,)


def event_in_words(event: Event, kernel: FakeKernel) -> Event:
    """Return an event that names the run directory in place of the recording's own."""
    return attrs.evolve(event, does=kernel.in_words(event.does), error=kernel.in_words(event.error))
