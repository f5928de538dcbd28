"""Running the init script: a clean environment, a deadline, a bounded log."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Mapping, Sequence
from fcntl import F_SETFL, fcntl

import attrs

from chrootfw.entering import base_environment
from chrootfw.errors import InputError, ScriptError
from chrootfw.interrupts import Interrupts
from chrootfw.model import Command, Entry, Instance
from chrootfw.system import children, spawn, users
from chrootfw.system.isolation import Isolation
from chrootfw.system.namespaces import Joined
from chrootfw.values import Value

#: How much of a script's output is kept, in bytes: its end.
OUTPUT_MAX = 64 * 1024

_HINTS = {
    errno.ENOENT: "the script, or the interpreter in its first line, does not exist inside the root",
    errno.EACCES: "chmod +x it, and see that its file system is not mounted noexec",
    errno.ENOEXEC: "it needs a first line such as #!/bin/sh, or to be a program of this architecture",
    errno.ELOOP: "its path is a loop of symbolic links",
}


@attrs.frozen(eq=False, repr=False)
class Result(Value):
    """How a script ended. ``status``: exit status, negative for a signal, ``None`` when its time ran out.
    ``output``: at most the last 64 KiB."""

    status: int | None
    output: bytes

    def describe(self, seconds: float) -> str:
        """``exited with status 1``, and so on."""
        if self.status is None:
            return f"did not end within {seconds:g} s"
        if self.status < 0:
            return f"was ended by signal {-self.status}"
        if self.status == children.LOST:
            return "exited with status 255, or the embedding program reaped it (SIGCHLD ignored) and its status is lost"
        return f"exited with status {self.status}"


def environment(instance: Instance, action: str, command: Command) -> dict[str, str]:
    """All that an init script finds in its environment."""
    return {**base_environment(instance.name), "CHROOTFW_ACTION": action, **command.env}


def run(
    command: Command,
    entry: Entry,
    *,
    root: str,
    env: Mapping[str, str],
    cgroup: str | None,
    joins: Sequence[str],
    isolation: Isolation,
    own: Sequence[int],
    answers: float,
    interrupts: Interrupts,
) -> Result:
    """Run ``command`` inside ``root`` and wait for it alone, not for the daemons that it leaves.

    Its output goes to a pipe that is read while it runs. A daemon that keeps the pipe afterwards is neither ended by
    SIGPIPE nor blocked, and fills nothing: the descriptor that it inherits is open for reading too, and not blocking
    from then on (a full pipe says EAGAIN).

    ``own``: the instance's processes, whose namespaces it joins. ``answers``: seconds for its file system to hand it out. Raises ``ScriptError`` when it cannot be run, ``Interrupted`` when an
    end is asked for; a script that runs is killed then.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    both_fd = os.open(f"/proc/self/fd/{write_fd}", os.O_RDWR | os.O_CLOEXEC)
    os.close(write_fd)
    null_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    root_fd = -1
    os.set_blocking(read_fd, False)
    output = _Tail()
    try:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with Joined(isolation, own, root_fd, cgroup):
            child = spawn.spawn(
                command.argv,
                root_fd=root_fd,
                env={**env, **entry.env},
                cwd=entry.cwd,
                cgroup=cgroup,
                joins=joins,
                stdin=null_fd,
                stdout=both_fd,
                stderr=both_fd,
                ids=users.ids(root, entry.user),
                isolation=isolation,
                answers=answers,
            )
            os.close(root_fd)
            root_fd = -1
            try:
                status = _wait(child, read_fd, output, command.timeout, interrupts)
            finally:
                child.end()
        # First not blocking, then drained: a daemon that sleeps in a full pipe wakes up to EAGAIN.
        fcntl(both_fd, F_SETFL, os.O_RDWR | os.O_NONBLOCK)
        output.drain(read_fd)
        return Result(status, bytes(output.kept))
    except InputError as error:  # a user that the root does not know
        raise ScriptError(f"cannot run {command.argv[0]} inside the root: {error.brief}", hint=error.hint) from error
    except OSError as error:
        raise ScriptError(
            f"cannot run {command.argv[0]} inside the root: {error.strerror}",
            hint=_HINTS.get(error.errno or 0, ""),
        ) from error
    finally:
        fcntl(both_fd, F_SETFL, os.O_RDWR | os.O_NONBLOCK)
        for fd in (read_fd, both_fd, null_fd, root_fd):
            if fd >= 0:
                os.close(fd)


def _wait(child: children.Child, read_fd: int, output: _Tail, seconds: float, interrupts: Interrupts) -> int | None:
    deadline = time.monotonic() + seconds
    poller = select.poll()
    poller.register(child.pidfd, select.POLLIN)
    poller.register(read_fd, select.POLLIN)
    if interrupts.wakes:
        poller.register(interrupts.fd, select.POLLIN)
    while True:
        ready = dict(poller.poll(max(0, (deadline - time.monotonic()) * 1000)))
        if child.pidfd in ready:
            return child.reap()
        interrupts.check()
        if read_fd in ready:
            output.take(read_fd)
        if time.monotonic() >= deadline:
            return None


class _Tail:
    """The last ``OUTPUT_MAX`` bytes of a stream."""

    def __init__(self) -> None:
        self.kept = bytearray()

    def take(self, fd: int) -> int:
        """Read once; how many bytes came."""
        try:
            data = os.read(fd, OUTPUT_MAX)
        except BlockingIOError:
            return 0
        self.kept += data
        if (excess := len(self.kept) - OUTPUT_MAX) > 0:
            del self.kept[:excess]
        return len(data)

    def drain(self, fd: int) -> None:
        """What is in the pipe now; not what a daemon goes on to write."""
        for _ in range(16):
            if not self.take(fd):
                return


def shown(output: bytes, lines: int = 20, width: int = 1000) -> list[str]:
    """The end of a script's output as lines for people, at most ``lines``, each with its last ``width`` characters at
    most; control bytes are made visible."""
    text = output.decode("utf-8", "replace").splitlines()
    clean = [_visible(line if len(line) <= width else f"…{line[-width:]}") for line in text[-lines:]]
    return [f"… {len(text) - lines} earlier lines", *clean] if len(text) > lines else clean


def _visible(line: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in line)
