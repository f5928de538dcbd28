"""Running a command, or a shell, inside an instance that is started.

A lean room: how to get inside was recorded at the start, so no plugin is loaded.
"""

from __future__ import annotations

import os

from chrootfw import intents, inventory
from chrootfw.errors import StepError, TransitionError
from chrootfw.planning.paths import check_absolute, check_name
from chrootfw.system import cgroups, children, deadlines, processes, spawn, users
from chrootfw.system.isolation import Isolation
from chrootfw.views import InstanceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence
    from typing import Any

    from chrootfw.system.namespaces import Joined
else:
    import _signal as signal  # as in children

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def base_environment(name: str, home: str = "/root") -> dict[str, str]:
    """PATH, HOME, LANG and the instance's name: nothing of the caller's."""
    return {"PATH": PATH, "HOME": home, "LANG": "C.UTF-8", "CHROOTFW_INSTANCE": name}


class Inside:
    """What is needed to start a process inside: the root, opened, the cgroup, the environment. Close it when done."""

    __slots__ = ("cgroup", "cwd", "env", "ids", "isolation", "joined", "joins", "name", "root", "root_fd", "shell")

    def __init__(
        self, run_dir: str, config_dir: str, name: str, *, user: str | None, env: Mapping[str, str], cwd: str | None
    ) -> None:
        """Raises ``NotFoundError``, ``TransitionError``, ``InputError`` for a user that the root does not know."""
        check_name(name)
        if cwd is not None:
            check_absolute(cwd, what="the working directory")
        survey = inventory.Survey(run_dir)
        if not survey.is_present(name):
            if name in inventory.defined_names(config_dir):
                raise TransitionError(f"cannot enter {name}: it is not started", hint=f"chrootfw start {name}")
            raise inventory.not_found(name, config_dir, inventory.known_names(survey, config_dir))
        intent, _ = inventory.read_intent(survey, name)
        if pid := survey.elsewhere(name, intent):
            raise elsewhere(name, pid)
        _check_state(name, survey.state(name, intent), has_root=survey.is_mounted(name))
        entry = (intent or {}).get("entry") or _entry_of_the_lost(survey, name)
        self.name = name
        self.isolation = Isolation(entry, name)
        self.root = intents.root(survey.run_dir, name)
        try:
            deadlines.check_answers(self.root, seconds=spawn.ANSWERS)
        except deadlines.Overdue as error:
            raise StepError(
                f"cannot enter {name}: its root does not answer: {error.strerror}",
                [error.describe()],
                "look at its disk",
            ) from error
        who = users.find(self.root, user or entry["user"] or "0")
        self.ids = (who.uid, who.gid, who.groups) if who.uid or who.gid else users.ids(self.root, None)
        self.shell = who.shell
        self.cwd = cwd or entry["cwd"]
        terminal = {"TERM": os.environ["TERM"]} if "TERM" in os.environ else {}
        account = {"USER": who.name, "LOGNAME": who.name, "SHELL": who.shell}
        home = who.home if who.uid else "/root"
        self.env = {**base_environment(name, home), **account, **terminal, **entry["env"], **env}
        paths = survey.cgroups.get(name, [])
        if not paths and survey.tracking == "cgroup" and survey.top:
            paths = [cgroups.create(cgroups.home(survey.top, survey.run_dir), name, ("memory",))]
        self.cgroup = paths[-1] if paths else None
        groups = survey.v1_groups.get(name, []) if not paths else []
        self.joins = [f"{path}/cgroup.procs" for path in groups[-1:]]
        self.root_fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.joined: Joined | None = None
        if self.isolation.flags:
            from chrootfw.system.namespaces import Joined

            try:
                self.joined = Joined(self.isolation, survey.own(name), self.root_fd, self.cgroup)
            except OSError as error:
                os.close(self.root_fd)
                raise StepError(f"cannot enter {name}: {error.strerror}") from error

    def spawn(self, argv: Sequence[str], stdin: int, stdout: int, stderr: int) -> children.Child:
        """Start ``argv`` in the caller's session. Raises ``OSError`` as execve(2) does."""
        return spawn.spawn(
            argv,
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

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self.root_fd)
        if self.joined is not None:
            self.joined.__exit__()


def _entry_of_the_lost(survey: inventory.Survey, name: str) -> Mapping[str, Any]:
    """A plain chroot, unless the instance's processes are more isolated than that. Raises ``TransitionError``."""
    here = processes.namespace("self")
    if any(processes.namespace(pid) not in (0, here) for pid in survey.own(name)):
        raise TransitionError(
            f"cannot enter {name}: the record of its start is lost, and its processes are isolated in a way that only that knows",
            hint=f"chrootfw stop {name}, then start it again",
        )
    return {"method": "chroot", "user": None, "cwd": "/", "env": {}}


def elsewhere(name: str, pid: int) -> TransitionError:
    """The error for an instance that lives in another mount namespace."""
    if pid < 0:
        return TransitionError(
            f"{name} lives in another mount namespace, which has no process",
            hint="its disk is in use: enter that mount namespace (nsenter --mount=FILE) and stop it there",
        )
    return TransitionError(
        f"{name} lives in another mount namespace, that of pid {pid}", hint=f"ask there: nsenter -m -t {pid} chrootfw …"
    )


def _check_state(name: str, state: InstanceState, *, has_root: bool) -> None:
    if state == InstanceState.HELD:
        raise TransitionError(f"cannot enter {name}: it is being stopped", hint=f"chrootfw cleanup {name}")
    if state == InstanceState.ABSENT or not has_root:
        raise TransitionError(f"cannot enter {name}: it is not started", hint=f"chrootfw start {name}")


def execute(
    run_dir: str,
    config_dir: str,
    name: str,
    argv: Sequence[str],
    *,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> int:
    """``chrootfw exec``: run ``argv`` with the caller's stdin, stdout and stderr; its status as a shell gives it.

    A terminal's Ctrl-C reaches the command directly; TERM and HUP sent to the caller are passed on. Raises ``ChrootfwError``; ``OSError`` when
    the command cannot be run.
    """
    with Inside(run_dir, config_dir, name, user=user, env=env or {}, cwd=cwd) as inside, _Forwarding() as forwarding:
        child = inside.spawn(argv, 0, 1, 2)
        try:
            forwarding.to(child)
            status = child.wait(None)
        finally:
            child.close()
    assert status is not None
    return status if status >= 0 else 128 - status


class _Forwarding:
    """While the command runs: TERM and HUP go to it, INT and QUIT are its own business."""

    def __init__(self) -> None:
        self.child: children.Child | None = None
        self.arrived: list[int] = []
        self.before: dict[int, object] = {}

    def to(self, child: children.Child) -> None:
        """Whom to forward to; what arrived before goes there now."""
        self.child = child
        for signum in self.arrived:
            child.kill(signum)

    def __enter__(self) -> _Forwarding:
        def forward(signum: int, _frame: object) -> None:
            if self.child is None:
                self.arrived.append(signum)
            else:
                self.child.kill(signum)

        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) != signal.SIG_IGN:  # nohup(1)
                self.before[signum] = signal.signal(signum, forward)
        for signum in (signal.SIGINT, signal.SIGQUIT):
            self.before[signum] = signal.signal(signum, lambda _signum, _frame: None)
        return self

    def __exit__(self, *_exc: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal() itself returned


def shell(run_dir: str, config_dir: str, name: str) -> int:
    """``chrootfw shell``: the root user's shell on a terminal of the instance's own."""
    from chrootfw.system import terminal
    from chrootfw.system.root import Root

    with Inside(run_dir, config_dir, name, user=None, env={}, cwd=None) as inside:
        program = inside.shell if Root(inside.root).exists(inside.shell) else "/bin/sh"
        return terminal.run(
            [program],
            root_fd=inside.root_fd,
            env=inside.env,
            cwd=inside.env["HOME"] if Root(inside.root).exists(inside.env["HOME"]) else "/",
            cgroup=inside.cgroup,
            joins=inside.joins,
            ids=inside.ids,
            isolation=inside.isolation,
        )
