"""Run the init script: a clean environment, a time limit, and its output kept."""

from __future__ import annotations

import errno
import os
import select
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import attrs

from chrootfw.cancellation import Cancellation
from chrootfw.errors import InputError, ScriptError
from chrootfw.lifecycle.cgroup import current_cgroup
from chrootfw.lifecycle.context import Job
from chrootfw.lifecycle.exec import base_environment
from chrootfw.lifecycle.output import ScriptOutput
from chrootfw.linux import deadlines, passwd, polling, process_settings, procfs, spawn
from chrootfw.linux.child import STATUS_LOST, Child
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.isolation import Isolation
from chrootfw.linux.namespaces import Joined
from chrootfw.linux.root import Root
from chrootfw.model import Command, Entry, Instance, NoCommand
from chrootfw.planning import privileges
from chrootfw.planning.printable import printable
from chrootfw.state import network

#: Arguments of the process of a script among which its path is: interpreter, option, script.
_SCRIPT_AT = 3
#: Characters of a command that a hint shows.
_SHOWN_MAX = 200

_HINTS = {
    errno.ENOENT: (
        "the script, or the interpreter in its first line, does not exist inside the root"
    ),
    errno.EACCES: "chmod +x it, and see that its file system is not mounted noexec",
    errno.ENOEXEC: (
        "it needs a first line such as #!/bin/sh, or to be a program of this architecture"
    ),
    errno.ELOOP: (
        "its path is a loop of symbolic links, or its interpreter is a script whose interpreter is"
        " one, and so on"
    ),
}


@attrs.frozen
class Result:
    """How a script ended.

    Attributes:
        status: The exit status, negative for a signal. `None` if its time limit was reached, or, if
            `ended` is true, its status is not known.
        output: At most the last 64 KiB of its output.
        ended: Whether it has exited.
        foreground: If it has not, the arguments of the program that it waited for.
    """

    status: int | None
    output: bytes
    ended: bool = True
    foreground: Sequence[str] = ()

    def describe(self, seconds: float) -> str:
        """Describe the end, such as `exited with status 1`; `seconds` is the time limit."""
        if not self.ended:
            return f"did not end within {seconds:g} s"
        if self.status is None:
            return f"has ended, but {STATUS_LOST}"
        if self.status < 0:
            return f"was ended by signal {-self.status}"
        return f"exited with status {self.status}"


def environment(instance: Instance, action: str, command: Command, entry: Entry) -> dict[str, str]:
    """Return the whole environment of an init script; what the definition says comes last."""
    return {
        **base_environment(instance.name),
        "CHROOTFW_ACTION": action,
        **command.env,
        **entry.env,
        **instance.params.get("environment", {}),
    }


def run(
    command: Command,
    entry: Entry,
    output: ScriptOutput,
    *,
    root: str,
    env: Mapping[str, str],
    cgroup: str | None,
    joins: Sequence[str],
    isolation: Isolation,
    own: Sequence[int],
    open_network: Callable[[Descriptors], int],
    root_timeout: float,
    cancellation: Cancellation,
) -> Result:
    """Run the init script inside the root and wait for it, but not for the daemons that it starts.

    Args:
        command: The script with its arguments and its time limit.
        entry: How a process gets inside.
        output: Where its output goes, which is read while it runs.
        root: The root's mount point.
        env: The whole environment.
        cgroup: The path of the cgroup that the script is created in.
        joins: The `cgroup.procs` files that it joins.
        isolation: What it is isolated from.
        own: The instance's processes, whose namespaces it joins.
        open_network: Opens the network namespace that it is run in; -1 for the caller's.
        root_timeout: Seconds for the root's file system to answer.
        cancellation: Reports whether an end was requested.

    Returns:
        How the script ended.

    Raises:
        ScriptError: It cannot be run.
        Interrupted: An end was requested; a script that runs is killed.
    """
    with _explain_errors(command):
        with Descriptors() as opened:
            null_fd = opened.open("/dev/null", os.O_RDONLY)
            _check_free(Root(root, seconds=root_timeout), command.argv[0])
            isolation.network = open_network(opened)
            root_fd = opened.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            with Joined(isolation, own, root_fd, cgroup):
                child = spawn.spawn(
                    command.argv,
                    root_fd=root_fd,
                    env=env,
                    cwd=entry.cwd,
                    cgroup=cgroup,
                    joins=joins,
                    stdin=null_fd,
                    stdout=output.fd,
                    stderr=output.fd,
                    ids=passwd.ids(root, entry.user),
                    isolation=isolation,
                    answers=root_timeout,
                )
                opened.close(root_fd)
                foreground: Sequence[str] = ()
                try:
                    ended = _wait(child, output, command.timeout, cancellation)
                    if not ended:
                        foreground = _find_foreground(child.pid, command.argv[0])
                finally:
                    child.end()
        result = Result(child.status if ended else None, b"", ended, foreground)
        how = result.describe(command.timeout)
        return attrs.evolve(result, output=output.finish(how, has_failed=result.status != 0))


@contextmanager
def _explain_errors(command: Command) -> Iterator[None]:
    """Make a `ScriptError` of an error that kept a script from running."""
    brief = f"cannot run {command.argv[0]} inside the root"
    try:
        yield
    except InputError as error:  # a user that the root does not know
        raise ScriptError(f"{brief}: {error.brief}", hint=error.hint) from error
    except OSError as error:
        raise ScriptError(
            f"{brief}: {error.strerror}",
            [error.describe()] if isinstance(error, deadlines.DeadlineExceeded) else [],
            hint=_HINTS.get(error.errno or 0, ""),
        ) from error


def _check_free(root: Root, path: str) -> None:
    """Check that execve(2) will not wait for the script's file.

    Raises:
        OSError: The file does not answer in time, or a process has leased it (fcntl(2)).
    """
    try:
        root.open(path, "rb").close()
    except OSError as error:
        if error.errno in (errno.ETIMEDOUT, errno.EAGAIN):
            raise  # execve(2) reports any other error itself


def _wait(child: Child, output: ScriptOutput, seconds: float, cancellation: Cancellation) -> bool:
    """Wait for a child, and read its output meanwhile.

    Returns:
        Whether it has exited within `seconds`.

    Raises:
        Interrupted: An end was requested.
    """
    deadline = time.monotonic() + seconds
    poller = select.poll()
    poller.register(child.pidfd, select.POLLIN)
    if output.reads >= 0:
        poller.register(output.reads, select.POLLIN)
    if cancellation.wakes:
        poller.register(cancellation.fd, select.POLLIN)
    while True:
        ready = dict(polling.poll(poller, deadline - time.monotonic()))
        if child.pidfd in ready:
            child.reap()
            return True
        cancellation.check()
        if cancellation.fd in ready:
            cancellation.answer()
        if output.reads in ready and output.take() == b"":
            poller.unregister(output.reads)  # its worker was ended
        if time.monotonic() >= deadline:
            return False


def _find_foreground(pid: int, script: str) -> Sequence[str]:
    """Find the program that a script waits for, or that has taken its place.

    Args:
        pid: The process that was started for the script.
        script: The path of the script.

    Returns:
        Its arguments; none if the script itself is at work.
    """
    arguments = procfs.arguments(pid)
    if script not in arguments[:_SCRIPT_AT]:
        return arguments
    children = procfs.children(pid)
    return procfs.arguments(children[-1]) if children else ()


def show_output(output: bytes, lines: int = 20, width: int = 1000) -> list[str]:
    """Return the end of a script's output as lines, with control characters replaced.

    Args:
        output: The output.
        lines: How many lines at most.
        width: How many characters of each line at most, its last ones.
    """
    text = output.decode("utf-8", "replace").splitlines()
    clean = [
        _visible(line if len(line) <= width else f"…{line[-width:]}") for line in text[-lines:]
    ]
    return [f"… {len(text) - lines} earlier lines", *clean] if len(text) > lines else clean


def _visible(line: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in line)


def call_init_script_hook(
    job: Job, action: str, *, report_errors: bool = False
) -> tuple[str, Command | NoCommand]:
    """Call the hook `chrootfw_init_script`.

    Args:
        job: The instance.
        action: `start` or `stop`.
        report_errors: Report the error of a plugin, and go on with the next answer.

    Returns:
        The plugin that answered, and its answer.

    Raises:
        PluginError: A plugin failed, and `report_errors` is false.
    """
    return job.stages.init_script(job.instance, action, report_errors=report_errors)


def run_script(job: Job, action: str, command: Command, entry: Entry) -> Result:
    """Run the init script inside the instance's cgroup; keep its output.

    Args:
        job: The instance.
        action: `start` or `stop`.
        command: The script.
        entry: How a process gets inside.

    Returns:
        How the script ended, whatever its status.

    Raises:
        ScriptError: It cannot be run.
        Interrupted: An end was requested; the script is killed.
    """
    cgroup, joins = current_cgroup(job)
    isolation = Isolation(entry.to_dict(), job.name)
    isolation.settings = process_settings.ProcessSettings(job.instance.params)
    if action == "start" and (short := isolation.settings.shortfalls()):
        job.warn(
            "init-start",
            f"{job.name} has less than its limits and priorities, which this process may not raise:"
            f" {'; '.join(short)}",
        )
    output = ScriptOutput(job, action, command.argv[0], is_isolated=not isolation.is_plain)
    try:
        return run(
            command,
            entry,
            output,
            root=job.root,
            env=environment(job.instance, action, command, entry),
            cgroup=cgroup,
            joins=joins,
            isolation=isolation,
            own=job.read_own(job.read_snapshot()).pids if entry.namespaces else (),
            open_network=partial(network.open_network, job.run_dir, job.name, job.record),
            root_timeout=job.disk_timeout,
            cancellation=job.cancellation,
        )
    finally:
        output.close()


def script_error(job: Job, action: str, command: Command, result: Result) -> ScriptError:
    """Make the error for a script that failed, with the end of its output."""
    said = show_output(result.output)
    hint = "" if result.ended or action != "start" else _describe_foreground(command, result)
    if not hint and job.record and privileges.REFUSAL in result.output:
        hint = privileges.describe_refusal(job.name, job.record.entry)
    return ScriptError(
        f"the init script {command.argv[0]} {action} of {job.name}"
        f" {result.describe(command.timeout)}",
        ["its last output:", *(f"  {line}" for line in said)] if said else ["it printed nothing"],
        hint=hint,
        output=result.output,
    )


def _describe_foreground(command: Command, result: Result) -> str:
    """Return the hint for a start script that did not end: it may be the service itself."""
    shown = printable(shlex.join(result.foreground))
    what = shown if len(shown) <= _SHOWN_MAX else f"{shown[:_SHOWN_MAX]}…"
    script = shlex.join(command.argv)
    if not what:
        return f"let {script} end: start what is to go on in the background (PROGRAM &)"
    return (
        f"{script} waited for a program; if that is the service, let it go on in the background:"
        f" {what} &"
    )


def describe_script(command: Command) -> str:
    """Return the description of the step that runs an init script."""
    return f"run {printable(shlex.join(command.argv))} (at most {command.timeout:g} s)"
