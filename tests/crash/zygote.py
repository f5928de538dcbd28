"""The real command without the price of an interpreter's start: a process that has imported it, forked for each run.

As a module: ``Zygote``, the tests' side. As a script: the process itself. It is told what to run over a socket, forks,
and tells how the fork ended. The fork calls ``chrootfw.cli.main.main`` with the arguments of a command line, and ends as
the command ends: by ``SystemExit``, with the interpreter's own clean-up.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

#: No command takes this long; one that does hangs.
TIMEOUT = 120


class Ended(NamedTuple):
    """How a run of the command ended. ``status`` is negative for a signal."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"chrootfw {' '.join(self.argv)}: status {self.status}, stdout {self.stdout!r}, stderr {self.stderr!r}"


class Zygote:
    """One command at a time. ``pid`` and ``argv`` are those of the running one."""

    def __init__(
        self, place: Path, env: dict[str, str], python: Path | None = None, runs: Path | None = None
    ) -> None:
        """``place``: a new directory for what the commands print. ``python``: what it takes for its interpreter, by default this one;
        ``runs``: what runs it in truth, by default that."""
        place.mkdir()
        self.place = place
        self.argv: tuple[str, ...] = ()
        self.pid = 0
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(TIMEOUT)
        with other:
            interpreter = os.path.realpath(python or sys.executable)
            command = [interpreter, __file__, str(other.fileno()), str(place)]
            self.process = subprocess.Popen(
                command,
                executable=runs,
                env=env,
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
            )
        assert self._hear() == {"ready": True}

    def begin(self, *argv: str, pause: str = "", stdin: Path | None = None) -> int:
        """Start a command; its pid. ``pause``: it stops itself (SIGSTOP) at the ``begin``, or before a ``clone``.

        ``stdin``: the file that it reads, by default the null device.
        """
        self.argv = argv
        self.socket.send(
            json.dumps({"argv": argv, "pause": pause, "stdin": str(stdin or os.devnull)}).encode()
        )
        self.pid = int(self._hear()["pid"])
        return self.pid

    def end(self) -> Ended:
        """Wait for its end."""
        return self.ended(self._hear())

    def ended(self, told: dict[str, Any]) -> Ended:
        """How the command ended, from what the process told."""
        self.pid = 0
        out, err = (
            (self.place / name).read_text(errors="replace") for name in ("stdout", "stderr")
        )
        return Ended(self.argv, int(told["status"]), out, err)

    def run(self, *argv: str, stdin: Path | None = None) -> Ended:
        """Run a command to its end."""
        self.begin(*argv, stdin=stdin)
        return self.end()

    def hear_now(self) -> dict[str, Any]:
        """What the process has told; the caller knows that it has."""
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            raise AssertionError(
                f"hangs: chrootfw {' '.join(self.argv)}:\n{_where(self.pid)}"
            ) from None
        assert data, f"the zygote has ended: {' '.join(self.argv)}"
        told: dict[str, Any] = json.loads(data)
        return told

    def close(self) -> None:
        """End it, and a command that hangs."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)  # the zygote reaps it, and has not yet
        self.socket.close()
        self.process.wait(TIMEOUT)


def _where(pid: int) -> str:
    """Where in the kernel a process that hangs is, and its children."""
    lines = []
    for each in (str(pid), *_text(f"/proc/{pid}/task/{pid}/children").split()):
        place = f"/proc/{each}"
        state = _text(f"{place}/stat").rpartition(")")[2][:3].strip()
        lines.append(
            f"  {each} {_text(f'{place}/comm').strip()}: {state}, {_text(f'{place}/syscall').strip()}"
        )
        lines.append(_text(f"{place}/stack"))
    return "\n".join(lines)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError as error:
        return f"({error.strerror})"


@contextlib.contextmanager
def zygotes(place: Path, env: dict[str, str], count: int = 1) -> Iterator[list[Zygote]]:
    """Some of them; ended when the block is left."""
    made: list[Zygote] = []
    try:
        for number in range(count):
            made.append(Zygote(place / f"zygote{number}", env))
        yield made
    finally:
        for each in made:
            each.close()


# -- the process itself -------------------------------------------------------------------------------


def _serve(told: socket.socket, place: str) -> None:
    _import_everything()
    gc.freeze()  # the forks' collections need not look at, and so copy, what was imported
    told.send(json.dumps({"ready": True}).encode())
    while data := told.recv(1 << 16):
        request = json.loads(data)
        pid = os.fork()
        if pid == 0:
            told.close()
            _be_the_command(request["argv"], request["pause"], request["stdin"], place)
        if request["pause"]:
            _, status = os.waitpid(pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), f"{request} ended without a pause"
        told.send(json.dumps({"pid": pid}).encode())
        status = os.waitpid(pid, 0)[1]
        told.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())


def _import_everything() -> None:
    """Whatever a verb may import late, too."""
    import chrootfw
    import chrootfw_defaults

    for package in (chrootfw, chrootfw_defaults):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in ("argparse", "attrs", "concurrent.futures", "difflib", "importlib.metadata", "json", "pluggy", "tomllib",
                 "traceback", "shutil", "encodings.idna", "gettext", "locale"):  # fmt: skip
        importlib.import_module(name)


def _be_the_command(argv: Sequence[str], pause: str, stdin: str, place: str) -> None:
    writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    for number, path, flags in (
        (0, stdin, os.O_RDONLY),
        (1, f"{place}/stdout", writing),
        (2, f"{place}/stderr", writing),
    ):
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        os.dup2(fd, number)
        os.close(fd)
    from chrootfw.cli import main
    from chrootfw.linux import child, spawn

    sys.argv = ["chrootfw", *argv]
    if pause == "begin":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif pause == "clone":
        begin = child.begin

        def stop_and_begin(*arguments: Any, **how: Any) -> Any:
            if (
                sys._getframe(1).f_code.co_filename == spawn.__file__
            ):  # not a child that asks a file system
                os.kill(os.getpid(), signal.SIGSTOP)
            return begin(*arguments, **how)

        child.begin = stop_and_begin
    raise SystemExit(main.main(argv))


if __name__ == "__main__":
    with contextlib.suppress(
        BrokenPipeError, ConnectionResetError
    ):  # the tests have gone, and their failure says why
        _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
