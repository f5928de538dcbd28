"""Run a command or a shell inside an instance that is started.

The start record has the entry, so no plugin is loaded, and the imports of this module are few.
"""

from __future__ import annotations

import os
import signal
import stat
from contextlib import contextmanager

from chrootfw.errors import (
    ChrootfwError,
    Hint,
    InputError,
    Interrupted,
    NotSupported,
    StepError,
    TransitionError,
)
from chrootfw.linux import deadlines, passwd, procfs, spawn, syscalls
from chrootfw.linux.child import Child, is_ready, known_status
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.isolation import Isolation
from chrootfw.linux.process_settings import ProcessSettings
from chrootfw.linux.root import Root
from chrootfw.planning import privileges
from chrootfw.planning.ids import check_environment, check_user, check_words
from chrootfw.planning.paths import check_absolute, check_name
from chrootfw.state import network, ownership, record, show
from chrootfw.state import snapshot as snapshots
from chrootfw.views import InstanceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from chrootfw.linux.namespaces import Joined
    from chrootfw.linux.relays import Relays
    from chrootfw.state.record import StartRecord

#: Seconds for the login shell and the home directory of a root to answer.
_EXISTS = 2.0
#: Seconds from TERM to KILL if no record says them, and the most that a record may say.
_GRACE, _GRACE_MAX = 10.0, 86400.0
#: Seconds after which KILL is sent again, and an output that nothing takes is given up.
_AGAIN = 1.0
#: Seconds for a timer of no time: 0 would be none.
_AT_ONCE = 0.001

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def base_environment(name: str, home: str = "/root") -> dict[str, str]:
    """Return the environment without anything of the caller's: PATH, HOME, LANG, instance name."""
    return {"PATH": PATH, "HOME": home, "LANG": "C.UTF-8", "CHROOTFW_INSTANCE": name}


class Inside:
    """Everything that a process inside needs: the opened root, the cgroup, the environment, IDs.

    It is a context manager, which closes the descriptors.
    """

    __slots__ = (
        "cgroup", "cwd", "env", "grace", "ids", "isolation", "joined", "joins", "name", "opened",
        "root", "root_fd", "shell", "warn",
    )  # fmt: skip

    def __init__(
        self,
        run_dir: str,
        config_dir: str,
        name: str,
        *,
        user: str | None,
        env: Mapping[str, str],
        cwd: str | None,
        warn: Callable[[str], None],
    ) -> None:
        """Find out how a process gets inside, and open the root.

        Args:
            run_dir: The run directory.
            config_dir: The configuration directory, for the error if the name is unknown.
            name: The instance.
            user: A name or number of the root's own /etc/passwd; `None` for the entry's.
            env: Added to the clean environment.
            cwd: The working directory inside; `None` for the entry's.
            warn: Called with a sentence about a problem that does not prevent the process.

        Raises:
            NotFoundError: The name is neither present nor defined.
            TransitionError: The instance is not started, is being stopped, or runs in another
                mount namespace.
            InputError: An argument is not valid, or the root does not know the user.
            StepError: The root does not answer.
        """
        check_name(name)
        if cwd is not None:
            check_absolute(cwd, what="the working directory")
        if user is not None:
            check_user(user)
        check_environment(env)
        snapshot = snapshots.read_instance(run_dir, name)
        if not snapshot.is_present(name):
            if name in show.defined_names(config_dir):
                raise _not_started_error(name)
            raise show.not_found(name, config_dir, show.known_names(run_dir, config_dir))
        entry = _read_entry(snapshot, name)
        self.name, self.warn = name, warn
        self.isolation = Isolation(entry, name)
        recorded = snapshot.record(name)
        self.isolation.settings, environment, self.grace = _read_params(recorded, warn)
        self.root = record.root(snapshot.run_dir, name)
        try:
            deadlines.check_answers(self.root, seconds=spawn.ANSWERS)
        except deadlines.DeadlineExceeded as error:
            raise StepError(
                f"cannot enter {name}: its root does not answer: {error.strerror}",
                [error.describe()],
                "look at its disk",
            ) from error
        who = self._find_user(user if user is not None else entry["user"], warn)
        self.ids = (
            (who.uid, who.gid, who.groups) if who.uid or who.gid else passwd.ids(self.root, None)
        )
        self.shell, self.cwd = who.shell, cwd or entry["cwd"]
        terminal = {"TERM": os.environ["TERM"]} if "TERM" in os.environ else {}
        account = {"USER": who.name, "LOGNAME": who.name, "SHELL": who.shell}
        home = who.home if who.uid else "/root"
        base = {**base_environment(name, home), **account, **terminal}
        self.env = {**base, **entry["env"], **environment, **env}
        paths = snapshot.groups(
            name
        )  # without one of its own, its processes are found by their root directory
        self.cgroup = paths[-1] if paths else None
        groups = snapshot.memory_groups(name) if not paths else []
        self.joins = [f"{path}/cgroup.procs" for path in groups[-1:]]
        self.opened = Descriptors()
        try:
            self.root_fd = self._open_root()
            self.isolation.network = network.open_network(
                snapshot.run_dir, name, recorded, self.opened
            )
        except ChrootfwError:
            self.opened.close_all()
            raise
        self.joined: Joined | None = None
        if self.isolation.flags:
            from chrootfw.linux.namespaces import Joined

            try:
                own = ownership.Judge(snapshot, name).read_own().pids
                self.joined = Joined(self.isolation, own, self.root_fd, self.cgroup)
            except OSError as error:
                self.opened.close_all()
                raise StepError(f"cannot enter {name}: {error.strerror}") from error

    def _open_root(self) -> int:
        """Open the root. A bare directory is left of an instance that was stopped meanwhile."""
        fd = self.opened.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        if not syscalls.statx("", fd).attributes & syscalls.STATX_ATTR_MOUNT_ROOT:
            raise _not_started_error(self.name)
        return fd

    def _find_user(self, wanted: str | None, warn: Callable[[str], None]) -> passwd.User:
        """Find the user in the root's own files; by its number alone if those cannot be read.

        They cannot be read in time if the disk does not answer, or a process has leased them.
        """
        try:
            return passwd.find_root(self.root) if wanted is None else passwd.find(self.root, wanted)
        except OSError as error:
            brief = f"{error.filename} in the root cannot be read: {error.strerror}"
            details = [error.describe()] if isinstance(error, deadlines.DeadlineExceeded) else []
            try:
                found = passwd.by_number(wanted or "0")
            except InputError as unknown:
                raise StepError(
                    f"cannot enter {self.name}: {brief}",
                    details,
                    Hint('give the user by number: user="0"', "give the user by number: --user 0"),
                ) from unknown
            warn("; ".join([brief, *details]))
            return found

    def spawn(self, argv: Sequence[str], stdin: int, stdout: int, stderr: int) -> Child:
        """Start a command in the caller's session.

        Args:
            argv: The command's words.
            stdin: The descriptor of its standard input.
            stdout: Likewise.
            stderr: Likewise.

        Raises:
            OSError: As execve(2) says.
            InputError: A word has a NUL byte.
        """
        with self._explaining(argv):
            child = spawn.spawn(
                check_words(argv),
                root_fd=self.root_fd,
                env=self.env,
                cwd=self.cwd,
                cgroup=self.cgroup,
                joins=self.joins,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                ids=self.ids,
                new_session=False,
                isolation=self.isolation,
            )
        self._close_root()
        return child

    def _close_root(self) -> None:
        """Close the root: while the output of a command is waited for, it can be unmounted."""
        self.opened.close(self.root_fd)

    def run_on_terminal(self, argv: Sequence[str], cwd: str, *, is_shell: bool = False) -> int:
        """Run a command on a terminal of the instance's own, relayed to the caller's.

        Args:
            argv: The command's words.
            cwd: The working directory inside.
            is_shell: Whether it is a shell for a person, who sees what each command says.

        Returns:
            The exit status, as a shell gives it.

        Raises:
            NotSupported: The root has no terminals (/dev/ptmx).
        """
        from chrootfw.linux import pty

        refusals = privileges.RefusalWatch()
        with self._explaining(argv):
            status = pty.run(
                argv,
                root_fd=self.root_fd,
                env=self.env,
                cwd=cwd,
                cgroup=self.cgroup,
                joins=self.joins,
                ids=self.ids,
                isolation=self.isolation,
                seen=refusals,
                warn=self.warn,
                begun=self._close_root,
            )
        if status and refusals.has_seen and not is_shell:
            self.hint_at_refusal()
        return status

    def hint_at_refusal(self) -> None:
        """Warn of what may have refused something to a command, if the instance is hardened."""
        if hint := privileges.describe_refusal(self.name, self.isolation.entry):
            self.warn(hint)

    @contextmanager
    def _explaining(self, argv: Sequence[str]) -> Iterator[None]:
        """Add notes to the error of an execve(2) that refused a program which is there."""
        try:
            yield
        except OSError as error:
            if spawn.is_of_execve(error):
                for note in self._find_reasons(argv[0]):
                    error.add_note(note)
            raise

    def _find_reasons(self, program: str) -> list[str]:
        """Return why a program that is in the root cannot be run, a line for each reason."""
        from chrootfw.linux.program_check import check_program

        root = Root(self.root, seconds=_EXISTS)
        searched = [] if "/" in program else self.env.get("PATH", "").split(":")
        places = [program, *(f"{directory}/{program}" for directory in searched)]
        notes = []
        try:
            # A relative path begins at the working directory inside, which may be anywhere.
            absolute = (place for place in places if place.startswith("/"))
            path = next(place for place in absolute if root.exists(place))
            status = root.stat(path)
            if stat.S_ISREG(status.st_mode):
                if not status.st_mode & 0o111:
                    notes.append(f"{path} is not executable: nobody has the permission x")
                    notes.append(f"hint: chrootfw exec {self.name} -- chmod +x {path}")
                for problem in check_program(path, (path,), root):
                    notes.append(problem.brief)
                    notes += [f"hint: {problem.hint}"] if problem.hint else []
        except (OSError, StopIteration):
            pass  # it does not answer, or is not there: the error says that
        return notes

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.opened.close_all()
        if self.joined is not None:
            self.joined.__exit__()


def _read_params(
    recorded: StartRecord | None, warn: Callable[[str], None]
) -> tuple[ProcessSettings, Mapping[str, str], float]:
    """Return the settings, the environment and the grace of the start's record, or the defaults."""
    try:
        params = recorded.params if recorded else {}
        environment = dict(check_environment(params.get("environment") or {}))
        grace = float(params.get("grace", _GRACE))
        is_valid = 0 <= grace <= _GRACE_MAX
        return ProcessSettings(params), environment, grace if is_valid else _GRACE
    except (InputError, ValueError, TypeError, AttributeError):
        warn("the record has limits or an environment that no start wrote: the defaults are used")
        return ProcessSettings({}), {}, _GRACE


def _read_entry(snapshot: snapshots.Snapshot, name: str) -> Mapping[str, Any]:
    """Return how a process gets inside an instance that is present.

    Raises:
        TransitionError: The instance is not started, is being stopped, or runs in another mount
            namespace; or its record is lost and its processes are isolated.
    """
    recorded = snapshot.record(name)
    elsewhere = snapshot.find_elsewhere(name)
    if elsewhere.is_mounted:
        raise elsewhere_error(name, elsewhere.pid)
    state = ownership.read_state(snapshot, name, elsewhere=elsewhere)
    if state == InstanceState.HELD:
        raise TransitionError(
            f"cannot enter {name}: it is being stopped", hint=f"chrootfw cleanup {name}"
        )
    if state == InstanceState.ABSENT or not snapshot.is_mounted(name):
        raise _not_started_error(name)
    return (recorded and recorded.entry) or _make_plain_entry(snapshot, name)


def _not_started_error(name: str) -> TransitionError:
    return TransitionError(f"cannot enter {name}: it is not started", hint=f"chrootfw start {name}")


def _make_plain_entry(snapshot: snapshots.Snapshot, name: str) -> Mapping[str, Any]:
    """Return the entry of an instance whose record is lost: a plain chroot.

    Raises:
        TransitionError: Its processes are more isolated than that.
    """
    here = procfs.namespace("self")
    own = ownership.Judge(snapshot, name).read_own().pids
    if any(procfs.namespace(pid) not in (0, here) for pid in own):
        raise TransitionError(
            f"cannot enter {name}: the record of its start is lost, and its processes are isolated"
            " in a way that only that record says",
            hint=f"chrootfw stop {name}, then start it again",
        )
    return {"method": "chroot", "user": None, "cwd": "/", "env": {}}


def elsewhere_error(name: str, pid: int) -> TransitionError:
    """Make the error for an instance that runs in another mount namespace.

    Args:
        name: The instance.
        pid: A process in that namespace; 0 if it has none.
    """
    if not pid:
        return TransitionError(
            f"{name} runs in another mount namespace, which has no process",
            hint="its disk is in use: enter that mount namespace (nsenter --mount=FILE) and stop"
            " it there",
        )
    return TransitionError(
        f"{name} runs in another mount namespace, that of pid {pid}",
        hint=f"ask there: nsenter -m -t {pid} chrootfw …",
    )


def run_command(
    run_dir: str,
    config_dir: str,
    name: str,
    argv: Sequence[str],
    *,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    on_terminal: bool = False,
    warn: Callable[[str], None],
) -> int:
    """Run a command with the caller's standard streams: the verb `exec`.

    A terminal's Ctrl-C reaches the command directly; TERM and HUP sent to the caller are passed on.
    In an isolated instance the command gets a terminal of the instance's own, or pipes, which are
    relayed (`linux.pty`, `linux.relays`).

    Args:
        run_dir: The run directory.
        config_dir: The configuration directory.
        name: The instance.
        argv: The command's words.
        user: A name or number of the root's own /etc/passwd; `None` for the entry's.
        env: Added to the clean environment.
        cwd: The working directory inside; `None` for the entry's.
        on_terminal: Give the command a terminal of the instance's own.
        warn: Called with a sentence about a problem that does not prevent the command.

    Returns:
        The exit status, as a shell gives it: 128 and the signal's number after a signal.

    Raises:
        ChrootfwError: The instance is not started, or an argument is not valid.
        OSError: The command cannot be run.
    """
    with Inside(run_dir, config_dir, name, user=user, env=env or {}, cwd=cwd, warn=warn) as inside:
        if on_terminal:
            return inside.run_on_terminal(argv, inside.cwd)
        if not inside.isolation.is_plain:
            return _execute_isolated(inside, argv, warn)
        with _Forwarding(inside.grace) as forwarding:
            with deadlines.Waiting(forwarding.check):
                child = inside.spawn(argv, 0, 1, 2)
            try:
                forwarding.start(child)
                child.wait_for_end(None)
            finally:
                child.close()
    status = known_status(child, f"{argv[0]} in {name}")
    return status if status >= 0 else 128 - status


def _execute_isolated(inside: Inside, argv: Sequence[str], warn: Callable[[str], None]) -> int:
    from chrootfw.linux import relays

    if all(os.isatty(fd) for fd in range(3)) and relays.in_foreground(0):
        try:
            return inside.run_on_terminal(argv, inside.cwd)
        except NotSupported:
            pass  # the root has no terminals: pipes in place of one
    streams = relays.Relays((0, 1, 2))
    try:
        with _Forwarding(inside.grace, streams) as forwarding:
            with deadlines.Waiting(forwarding.check):
                child = inside.spawn(argv, *streams.childs)
            try:
                forwarding.start(child)
                streams.run(child.pidfd)
                child.wait_for_end(None)
            finally:
                child.close()
    finally:
        streams.close()
        for worker in streams.left:
            warn(f"cannot use a pipe of {argv[0]} in {inside.name}: {worker}")
    if streams.failed is not None:
        place, error = streams.failed
        raise StepError(
            f"cannot write to the standard {('', 'output', 'error')[place]}: {error.strerror}"
        )
    status = known_status(child, f"{argv[0]} in {inside.name}")
    if status and streams.has_refusal:
        inside.hint_at_refusal()
    return status if status >= 0 else 128 - status


class _Forwarding:
    """Forward signals to the command while it runs.

    TERM and HUP are forwarded. KILL follows some time after TERM: a process inside may keep the
    command stopped. INT and QUIT of a terminal reach the command without help, unless it
    is isolated: it is then in a session of its own, and its process group gets them from here.
    """

    def __init__(self, grace: float, streams: Relays | None = None) -> None:
        self.grace = grace
        self.isolated = streams is not None
        self.streams = streams
        self.child: Child | None = None
        self.arrived: list[int] = []
        self.interrupted = 0  # by INT or QUIT, before there was a child
        self.before: dict[int, object] = {}

    def start(self, child: Child) -> None:
        """Set the process to forward to, and send it the signals that have arrived before."""
        self.child = child
        for signum in self.arrived:
            child.kill(signum)
        if signal.SIGTERM in self.arrived:
            self._arm()

    def _arm(self) -> None:
        """Have KILL sent after the grace period, unless that is so already."""
        if signal.SIGALRM in self.before and signal.getitimer(signal.ITIMER_REAL)[0] == 0:
            signal.setitimer(signal.ITIMER_REAL, max(self.grace, _AT_ONCE), _AGAIN)

    def check(self) -> None:
        """Check that no signal has arrived before the command runs.

        Raises:
            Interrupted: One has.
        """
        if self.child is None and (signum := self.interrupted or next(iter(self.arrived), 0)):
            raise Interrupted(f"signal {signum} came before the command ran", signum=signum)

    def __enter__(self) -> _Forwarding:
        def forward(signum: int, _frame: object) -> None:
            if self.child is None:
                self.arrived.append(signum)
            else:
                self.child.kill(signum)
                self.child.kill(signal.SIGCONT)  # one that is stopped would never see it
                stop_relays()
                if signum == signal.SIGTERM:
                    self._arm()

        def kill(_signum: int, _frame: object) -> None:
            if self.child is not None:
                self.child.kill(signal.SIGKILL)
                stop_relays()

        def stop_relays() -> None:
            pidfd = self.child.pidfd if self.child else -1
            if self.streams is not None and pidfd >= 0 and is_ready(pidfd, 0):
                self.streams.stop()  # it has exited, and nothing reads its output

        if signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.SIG_IGN):
            self.before[signal.SIGALRM] = signal.signal(signal.SIGALRM, kill)
        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):  # nohup(1); not Python's
                self.before[signum] = signal.signal(signum, forward)

        def forward_to_group(signum: int, _frame: object) -> None:
            if self.child is None:
                self.interrupted = signum
                if self.isolated:
                    self.arrived.append(signum)
            elif self.isolated and self.child is not None and not self.child.has_ended:
                try:
                    os.killpg(self.child.pid, signum)  # its number is kept until it is reaped
                except ProcessLookupError:
                    pass  # the whole group has exited

        for signum in (signal.SIGINT, signal.SIGQUIT):
            if signal.getsignal(signum) is not None:
                self.before[signum] = signal.signal(signum, forward_to_group)
        return self

    def __exit__(self, *_exc: object) -> None:
        if signal.SIGALRM in self.before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in self.before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal() itself returned


def run_shell(
    run_dir: str,
    config_dir: str,
    name: str,
    argv: Sequence[str] = (),
    *,
    user: str | None = None,
    cwd: str | None = None,
    warn: Callable[[str], None],
) -> int:
    """Run a shell on a terminal of the instance's own: the verb `shell`.

    Args:
        run_dir: The run directory.
        config_dir: The configuration directory.
        name: The instance.
        argv: A command in place of the user's login shell.
        user: A name or number of the root's own /etc/passwd; `None` for the entry's.
        cwd: The working directory inside; `None` for the user's home directory.
        warn: Called with a sentence about a problem that does not prevent the shell.

    Returns:
        The shell's exit status.

    Raises:
        ChrootfwError: The instance is not started, an argument is not valid, or its root does not
            answer.
        OSError: The command cannot be run.
    """
    with Inside(run_dir, config_dir, name, user=user, env={}, cwd=cwd, warn=warn) as inside:
        home = inside.env["HOME"]
        # As /etc/bash.bashrc of Debian has it; the prompt is for shells that set none.
        inside.env = {"debian_chroot": name, "PS1": f"({name}) $PWD# ", **inside.env}
        place = cwd or (home if _exists(inside.root, home) else "/")
        try:
            if argv:
                return inside.run_on_terminal(argv, place)
            program = inside.shell if _exists(inside.root, inside.shell) else "/bin/sh"
            return _run_shell(inside, program, place, warn)
        except deadlines.DeadlineExceeded as error:
            raise StepError(
                f"cannot open a shell in {name}: {error.filename} in the root does not answer:"
                f" {error.strerror}",
                [error.describe()],
                f"chrootfw exec {name} needs no terminal inside",
            ) from error


def _run_shell(inside: Inside, program: str, cwd: str, warn: Callable[[str], None]) -> int:
    """Run a shell on a terminal; `/bin/sh` if the kernel refuses it."""
    try:
        return inside.run_on_terminal([program], cwd, is_shell=True)
    except OSError as error:
        if program == "/bin/sh" or not spawn.is_of_execve(error):
            raise
        reasons = [note for note in getattr(error, "__notes__", []) if not note.startswith("hint:")]
        warn(f"{'; '.join(reasons) or f'{program}: {error.strerror}'}: /bin/sh is run instead")
    return inside.run_on_terminal(["/bin/sh"], cwd, is_shell=True)


def _exists(root: str, path: str) -> bool:
    """Return whether a path in a root leads to a file that answers in time."""
    try:
        return Root(root, seconds=_EXISTS).exists(path)
    except OSError:
        return False  # the caller then uses /bin/sh, or / as working directory
