"""The terminal of ``chrootfw shell``, for real: a root with busybox and its own devpts, a caller's pty.

``run`` is called by a driver in a process and a mount namespace of its own, so nothing stays mounted. What is
typed has quotes inside the word that is waited for: the echo of a command is never taken for its output.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from open_descriptors import none_left_open

import chrootfw
from chrootfw.errors import NotSupported
from chrootfw.linux import pty

BUSYBOX = "/bin/busybox"
DEADLINE = 30.0
PROMPT = "READY> "
SOURCE = str(Path(chrootfw.__file__).parents[1])

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists(BUSYBOX), reason="needs root and busybox-static"
)

DRIVER = """
import fcntl, json, os, signal, subprocess, sys, termios, threading

job = json.loads(sys.argv[1])
fcntl.ioctl(job["terminal"], termios.TIOCSCTTY, 0)
os.close(job["terminal"])
sys.path.insert(0, job["source"])
from chrootfw.linux import pty as terminal

root = job["root"]
for arguments in (
    ["tmpfs", "tmpfs", root + "/dev"],
    ["proc", "proc", root + "/proc"],
    ["devpts", "-o", "newinstance,ptmxmode=0666,mode=0600", "devpts", root + "/dev/pts"],
):
    os.makedirs(arguments[-1], exist_ok=True)
    subprocess.run(["mount", "-t", *arguments], check=True)
os.mknod(root + "/dev/tty", 0o020666, os.makedev(5, 0))
if job["ignore"]:
    signal.signal(job["ignore"], signal.SIG_IGN)
for signum, (follows, _) in terminal._NEXT.items():
    terminal._NEXT[signum] = (follows, job["grace"])

def state():
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds[fd] = os.readlink("/proc/self/fd/" + fd)
        except FileNotFoundError:
            pass
    attributes = [repr(termios.tcgetattr(fd)) if os.isatty(fd) else None for fd in (0, 1)]
    flags = [os.get_blocking(fd) for fd in (0, 1)]
    return {"fds": fds, "attributes": attributes, "blocking": flags,
            "handlers": [repr(signal.getsignal(n)) for n in range(1, 32)]}

if job["fault"] == "bug":
    def write_out(self):
        raise RuntimeError
    terminal._Relay._write_out = write_out
elif job["fault"] == "survivor":
    kill, calls = terminal.Child.kill, []
    def unheard(self, signum=signal.SIGKILL):
        calls.append(signum)
        if len(calls) > 6:  # TERM, HUP, KILL, each with CONT
            kill(self, signum)
    terminal.Child.kill = unheard

if job["fault"] == "elsewhere":  # a signal finds another thread: it interrupts no system call of the main one
    threading.Thread(target=signal.pause, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

said = {}
def call():
    try:
        said["status"] = terminal.run(
            job["argv"], root_fd=root_fd, env=job["env"], cwd="/", cgroup=None, joins=(), ids=job["ids"]
        )
    except BaseException as error:
        said["error"] = [type(error).__name__, getattr(error, "errno", None)]

root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
before = state()
if job["thread"]:
    worker = threading.Thread(target=call)
    worker.start()
    worker.join()
else:
    call()
try:
    os.waitpid(-1, os.WNOHANG)
    said["unreaped"] = True
except ChildProcessError:
    said["unreaped"] = False
after = state()
said["changed"] = [key for key in before if before[key] != after[key]]
with open(job["result"], "w") as file:
    json.dump(said, file)
"""


class Caller:
    """A driver, and our side of the terminal that it was called on."""

    def __init__(self, root: str, tmp_path: Path) -> None:
        self.root = root
        self.result = tmp_path / "result.json"
        self.screen = -1
        self.seen = b""
        self.process: subprocess.Popen[bytes] | None = None

    def start(
        self,
        *argv: str,
        stdin: Any = None,
        stdout: Any = None,
        size: tuple[int, int] = (24, 80),
        ids: tuple[int, int, list[int]] | None = None,
        grace: float = 10.0,
        thread: bool = False,
        ignore: int = 0,
        fault: str = "",
        prepare: Callable[[int], None] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Call ``run`` with ``argv`` (a shell); ``stdin`` and ``stdout`` replace the caller's terminal."""
        self.screen, slave = os.openpty()
        self.resize(*size)
        if prepare is not None:
            prepare(slave)
        job = {
            "root": self.root, "source": SOURCE, "result": str(self.result), "terminal": slave,
            "argv": argv or ["/bin/sh"], "ids": ids, "grace": grace, "thread": thread, "ignore": ignore,
            "fault": fault,
            "env": {"PATH": "/bin", "PS1": PROMPT, "HOME": "/", "TERM": "dumb"},
        }  # fmt: skip
        command = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            sys.executable,
            "-c",
            DRIVER,
            json.dumps(job),
        ]
        try:
            self.process = subprocess.Popen(
                command, stdin=slave if stdin is None else stdin, stdout=slave if stdout is None else stdout,
                stderr=slave, start_new_session=True, pass_fds=[slave],
            )  # fmt: skip
        finally:
            os.close(slave)
        return self.process

    def resize(self, rows: int, columns: int) -> None:
        """As a terminal emulator does."""
        fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """On the caller's keyboard."""
        os.write(self.screen, text.encode())

    def expect(self, pattern: str) -> str:
        """Read the screen until ``pattern`` is on it; what matched. The next call looks behind it."""
        until = time.monotonic() + DEADLINE
        while (found := re.search(pattern.encode(), self.seen)) is None:
            assert self._read(until), f"no {pattern!r} in {self.seen!r}"
        self.seen = self.seen[found.end() :]
        return found.group().decode()

    def command(self, line: str, pattern: str) -> str:
        """Wait for the prompt, type ``line``, wait for ``pattern``."""
        self.expect(PROMPT)
        self.type(line + "\n")
        return self.expect(pattern)

    def end(self) -> dict[str, Any]:
        """Read on until the driver has ended; what it says."""
        assert self.process is not None
        until = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert self._read(until), f"does not end; {self.seen!r}"
        while self._read(0):
            pass
        assert self.process.returncode == 0, self.seen
        said: dict[str, Any] = json.loads(self.result.read_text())
        return said

    def _read(self, until: float) -> bool:
        """More of the screen, or the driver's end; ``False`` if neither comes in time."""
        assert self.process is not None
        poller = select.poll()
        if self.screen >= 0:
            poller.register(self.screen, select.POLLIN)
        if self.process.returncode is None:
            pidfd = os.pidfd_open(self.process.pid)
            poller.register(pidfd, select.POLLIN)
        elif self.screen >= 0:
            pidfd = -1
        else:
            return False
        try:
            ready = dict(poller.poll(max(0, until - time.monotonic()) * 1000))
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        if self.screen in ready:
            try:
                self.seen += os.read(self.screen, 65536)
            except OSError:  # nobody has the other side
                self.hang_up()
                return pidfd >= 0
            return True
        return bool(ready) and self.process.poll() is not None

    def hang_up(self) -> None:
        """Close the terminal's window."""
        os.close(self.screen)
        self.screen = -1

    def close(self) -> list[int]:
        """End everything; the pids that had to be killed inside."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    stream.close()
        if self.screen >= 0:
            self.hang_up()
        return [pid for pid, pidfd in inside(self.root).items() if not ends(pidfd)]


def inside(root: str) -> dict[int, int]:
    """The processes whose root it is, with a pidfd each (to be closed)."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.path.samefile(f"/proc/{name}/root", root):
                    found[int(name)] = os.pidfd_open(int(name))
            except OSError:
                pass
    return found


def ends(pidfd: int) -> bool:
    """Whether the process ends within a deadline; killed if not."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    try:
        if poller.poll(5000):
            return True
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return False
    finally:
        os.close(pidfd)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory that is a root: busybox, and where to mount."""
    root = tmp_path_factory.mktemp("root")
    for name in ("bin", "dev", "proc"):
        (root / name).mkdir()
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in ("cat", "id", "ls", "seq", "sh", "sleep", "stty", "tty", "wc", "yes"):
        (root / "bin" / name).symlink_to("busybox")
    root.chmod(0o755)
    return str(root)


@pytest.fixture
def caller(root: str, tmp_path: Path) -> Iterator[Caller]:
    """One call of ``run``; nothing of it may be left behind."""
    caller = Caller(root, tmp_path)
    try:
        yield caller
    finally:
        left = caller.close()
    assert not left


def ended(status: int) -> dict[str, Any]:
    """What a driver says of a call that left everything as it was."""
    return {"status": status, "unreaped": False, "changed": []}


class TestOnATerminal:
    def test_is_one_and_tells_the_status(self, caller: Caller) -> None:
        caller.start()
        assert caller.command("tty", r"/dev/pts/\d+\r\n") == "/dev/pts/0\r\n"
        caller.command("[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all''three", "allthree")
        caller.command("echo thro''ugh > /dev/tty", "through")
        caller.command("exit 7", "")
        assert caller.end() == ended(7)

    def test_status_of_a_signal(self, caller: Caller) -> None:
        caller.start()
        caller.command("kill -KILL $$", "")
        assert caller.end() == ended(128 + signal.SIGKILL)

    def test_has_three_descriptors(self, caller: Caller) -> None:
        caller.start("/bin/sh", "-c", "ls /proc/$$/fd; kill -TERM $$")
        caller.expect(r"^0 +1 +2\r\n")
        assert caller.end() == ended(128 + signal.SIGTERM)

    def test_end_of_file_typed(self, caller: Caller) -> None:
        caller.start()
        caller.command("sh -c 'echo re''ady; exec cat'; echo cat: $?", "ready\r\n")
        caller.type("line\n")
        caller.expect("line\r\nline\r\n")
        caller.type("\x04")
        caller.expect("cat: 0")
        caller.expect(PROMPT)
        caller.type("\x04")
        assert caller.end() == ended(0)

    def test_attributes_are_the_callers(self, caller: Caller) -> None:
        def erase(fd: int) -> None:
            attributes = termios.tcgetattr(fd)
            attributes[6][termios.VERASE] = b"\x17"
            termios.tcsetattr(fd, termios.TCSANOW, attributes)

        caller.start("/bin/sh", "-c", "stty -a", prepare=erase)
        caller.expect(r"erase = \^W;")
        assert caller.end() == ended(0)

    def test_size(self, caller: Caller) -> None:
        caller.start(
            "/bin/sh", "-c", "trap changed=1 WINCH; stty size; until [ $changed ]; do :; done; stty size",
            size=(33, 101),
        )  # fmt: skip
        caller.expect("33 101\r\n")
        caller.resize(44, 55)
        caller.expect("44 55\r\n")
        assert caller.end() == ended(0)

    def test_interrupt_key_ends_the_job_only(self, caller: Caller) -> None:
        caller.start()
        caller.command("sh -c 'echo sl''eeps; exec sleep 1000'", "sleeps")
        caller.type("\x03")
        caller.command("echo job: $?", "job: 130")
        caller.command("exit 5", "")
        assert caller.end() == ended(5)

    def test_job_control(self, caller: Caller) -> None:
        caller.start()
        caller.command("sh -c 'echo wa''its; read line; echo got $line'", "waits")
        caller.type("\x1a")
        caller.expect(r"\[1\].*Stopped")
        caller.command("jobs", r"\[1\].*Stopped")
        caller.command("fg", "sh -c [^\n]*\n")
        caller.type("something\n")
        caller.expect("got something")
        caller.command("exit", "")
        assert caller.end() == ended(0)

    def test_background_job_is_not_waited_for(self, caller: Caller) -> None:
        caller.start()
        caller.command("sleep 1000 & echo started''.; exit 3", "started[.]")
        assert caller.end() == ended(3)
        (pid,) = inside(caller.root).values()
        signal.pidfd_send_signal(pid, signal.SIGKILL)
        assert ends(pid)

    def test_background_job_that_writes_for_ever(self, caller: Caller) -> None:
        caller.start()
        caller.command("yes & read line; exit 4", "y\r\ny\r\n")
        caller.type("\n")
        assert caller.end() == ended(4)  # yes gets EIO

    def test_all_output_arrives(self, caller: Caller) -> None:
        caller.start("/bin/seq", "100000")
        assert caller.end() == ended(0)
        assert caller.seen.split() == [b"%d" % number for number in range(1, 100001)]

    def test_user(self, caller: Caller) -> None:
        caller.start(
            "/bin/sh",
            "-c",
            "id; ls -ln $(tty); echo mi''ne > $(tty); tty",
            ids=(1234, 1235, [1236]),
        )
        caller.expect(r"uid=1234 gid=1235 groups=1236")
        caller.expect(r"crw--w---- +1 1234 +5 ")
        caller.expect("mine")
        caller.expect("/dev/pts/0")
        assert caller.end() == ended(0)

    def test_in_another_thread(self, caller: Caller) -> None:
        caller.start(thread=True)
        caller.command("exit 9", "")
        assert caller.end() == ended(9)

    @pytest.mark.parametrize(
        ("program", "number"),
        [("/bin/none", errno.ENOENT), ("none", errno.ENOENT), ("/dev/tty", errno.EACCES)],
    )
    def test_program_that_cannot_be_run(self, caller: Caller, program: str, number: int) -> None:
        caller.start(program)
        said = caller.end()
        kind = {errno.ENOENT: "FileNotFoundError", errno.EACCES: "PermissionError"}[number]
        assert said == {"error": [kind, number], "unreaped": False, "changed": []}

    def test_restored_after_a_bug(self, caller: Caller) -> None:
        caller.start(fault="bug")
        assert caller.end() == {"error": ["RuntimeError", None], "unreaped": False, "changed": []}


class TestSignals:
    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
    def test_go_inside(self, caller: Caller, signum: signal.Signals) -> None:
        process = caller.start("/bin/sh", "-c", "echo sl''eeps; exec sleep 1000")
        caller.expect("sleeps")
        process.send_signal(signum)
        assert caller.end() == ended(128 + signum)

    def test_one_that_interrupts_no_wait(self, caller: Caller) -> None:
        process = caller.start("/bin/sh", "-c", "echo sl''eeps; exec sleep 1000", fault="elsewhere")
        caller.expect("sleeps")
        process.send_signal(signal.SIGTERM)
        assert caller.end() == ended(128 + signal.SIGTERM)

    def test_handled_inside(self, caller: Caller) -> None:
        process = caller.start(
            "/bin/sh", "-c", "trap 'exit 12' TERM; echo re''ady; while :; do :; done"
        )
        caller.expect("ready")
        process.terminate()
        assert caller.end() == ended(12)

    def test_interrupt_goes_to_the_job(self, caller: Caller) -> None:
        process = caller.start()
        caller.command("sh -c 'echo sl''eeps; exec sleep 1000'", "sleeps")
        process.send_signal(signal.SIGINT)
        caller.command("echo job: $?", "job: 130")
        caller.command("exit", "")
        assert caller.end() == ended(0)

    def test_a_shell_that_ignores_term_is_hung_up(self, caller: Caller) -> None:
        process = caller.start(grace=0.1)
        caller.expect(PROMPT)
        process.terminate()
        assert caller.end() == ended(128 + signal.SIGHUP)

    def test_one_that_ignores_both_is_killed(self, caller: Caller) -> None:
        process = caller.start(
            "/bin/sh", "-c", "trap '' TERM HUP; echo re''ady; while :; do :; done", grace=0.1
        )
        caller.expect("ready")
        process.terminate()
        assert caller.end() == ended(128 + signal.SIGKILL)

    def test_one_that_survives_them_all(self, caller: Caller) -> None:
        process = caller.start(fault="survivor", grace=0.05)
        caller.expect(PROMPT)
        process.terminate()
        assert caller.end() == {"error": ["SurvivorError", None], "unreaped": False, "changed": []}

    def test_a_stopped_shell_gets_them(self, caller: Caller) -> None:
        process = caller.start("/bin/sh", "-c", "echo st''ops; kill -STOP $$; :")
        caller.expect("stops")
        process.terminate()
        assert caller.end() == ended(128 + signal.SIGTERM)

    def test_what_the_caller_ignores_stays_ignored(self, caller: Caller) -> None:
        process = caller.start(ignore=signal.SIGHUP)
        caller.expect(PROMPT)
        process.send_signal(signal.SIGHUP)
        caller.type("trap 'exit 2' HUP; echo st''ill\n")
        caller.expect("still")
        caller.command("exit 6", "")
        assert caller.end() == ended(6)

    def test_raw_again_after_a_stop(self, caller: Caller) -> None:
        process = caller.start()
        caller.expect(PROMPT)
        attributes = termios.tcgetattr(caller.screen)
        assert not attributes[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        attributes[3] |= termios.ICANON | termios.ECHO | termios.ISIG  # as the caller's shell does
        termios.tcsetattr(caller.screen, termios.TCSANOW, attributes)
        caller.resize(22, 77)
        process.send_signal(signal.SIGCONT)
        caller.type("stty size\n")
        caller.expect("22 77")
        attributes = termios.tcgetattr(caller.screen)
        assert not attributes[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        caller.command("exit", "")
        assert caller.end() == ended(0)

    def test_hung_up_terminal(self, caller: Caller) -> None:
        caller.start()
        caller.expect(PROMPT)
        caller.hang_up()
        said = caller.end()
        assert (said["status"], said["unreaped"]) == (128 + signal.SIGHUP, False)


class TestOnPipes:
    @pytest.mark.parametrize("typed", ["echo a$((1+1))b; exit 3\n", "echo a$((1+1))b; exit 3"])
    def test_no_terminal_at_all(self, caller: Caller, typed: str) -> None:
        process = caller.start(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        output, _ = process.communicate(typed.encode(), DEADLINE)
        assert b"a2b\r\n" in output
        assert caller.end() == ended(3)

    @pytest.mark.parametrize(
        "typed",
        [
            "",
            "echo a$((1+1))b\n",
            "echo a$((1+1))b",
            "cat",
            "cat\n",
            "cat; cat; sh\n",
            "sh -c 'read x; cat'\nline\n",
        ],
    )
    def test_its_end_ends_the_shell(self, caller: Caller, typed: str) -> None:
        process = caller.start(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        output, _ = process.communicate(typed.encode(), DEADLINE)
        assert (b"a2b\r\n" in output) == ("a$((" in typed)
        assert caller.end() == ended(0)

    def test_null(self, caller: Caller) -> None:
        caller.start(stdin=subprocess.DEVNULL)
        assert caller.end() == ended(0)

    def test_file(self, caller: Caller, tmp_path: Path) -> None:
        script = tmp_path / "script"
        script.write_text("echo a$((1+1))b\nexit 4\n")
        with script.open() as file:
            caller.start(stdin=file)
            caller.expect("a2b\r+\n")
            assert caller.end() == ended(4)

    def test_size_of_the_other_end(self, caller: Caller) -> None:
        caller.start("/bin/stty", "size", stdin=subprocess.DEVNULL, size=(35, 99))
        caller.expect("35 99")
        assert caller.end() == ended(0)

    def test_interrupt_goes_to_the_job(self, caller: Caller) -> None:
        process = caller.start(stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(b"sh -c 'echo sl''eeps; exec sleep 1000'\n")
        process.stdin.flush()
        caller.expect("sleeps\r")
        caller.type("\x03")
        caller.expect(PROMPT)
        process.stdin.close()
        assert caller.end() == ended(130)

    def test_long_input_and_output(self, caller: Caller) -> None:
        process = caller.start(
            "/bin/sh",
            "-c",
            "stty -echo; echo go; cat",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"go\r\n"
        lines = [b"%d %s" % (number, b"x" * (number % 300)) for number in range(5000)]
        output, _ = process.communicate(b"\n".join(lines), DEADLINE)
        assert output.split(b"\r\n") == [*lines, b""]
        assert caller.end() == ended(0)

    def test_who_ignores_the_end_is_hung_up(self, caller: Caller) -> None:
        caller.start(
            "/bin/sh",
            "-c",
            "stty raw -echo; while :; do read -n 1 x; echo $x; done",
            stdin=subprocess.DEVNULL,
        )
        assert caller.end() == ended(128 + signal.SIGHUP)

    def test_closed_output(self, caller: Caller) -> None:
        process = caller.start("/bin/yes", stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.read(9) == b"y\r\ny\r\ny\r\n"
        process.stdout.close()
        assert caller.end() == ended(128 + signal.SIGHUP)

    def test_closed_output_and_hup_ignored(self, caller: Caller) -> None:
        process = caller.start(
            "/bin/sh", "-c", "trap '' HUP; yes", stdout=subprocess.PIPE, grace=0.1
        )
        assert process.stdout is not None
        assert process.stdout.read(3) == b"y\r\n"
        process.stdout.close()
        assert caller.end() == ended(128 + signal.SIGKILL)

    def test_output_that_nobody_reads_holds_up_no_signal(self, caller: Caller) -> None:
        process = caller.start("/bin/yes", stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.read(3) == b"y\r\n"
        until = time.monotonic() + DEADLINE
        queued, full = -1, 0
        while full < 3 and time.monotonic() < until:  # until the pipe is full
            poller = select.poll()
            poller.poll(20)
            before, queued = (
                queued,
                struct.unpack("i", fcntl.ioctl(process.stdout, termios.FIONREAD, bytes(4)))[0],
            )
            full = full + 1 if queued == before else 0
        process.terminate()
        assert caller.end() == ended(128 + signal.SIGTERM)

    def test_terminal_closed_inside(self, caller: Caller) -> None:
        caller.start("/bin/sh", "-c", "exec <&- >&- 2>&-; while :; do :; done", grace=0.1)
        assert caller.end() == ended(128 + signal.SIGHUP)


class TestWithout:
    """No devpts inside: told, and nothing opened that should not be."""

    @staticmethod
    def refused(root: Path) -> NotSupported:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
        try:
            with none_left_open(), pytest.raises(NotSupported) as caught:
                pty.run(
                    ["/bin/sh"], root_fd=root_fd, env={}, cwd="/", cgroup=None, joins=(), ids=None,
                )  # fmt: skip
        finally:
            os.close(root_fd)
        assert f"{root}/dev/pts/ptmx" in caught.value.brief
        assert "chrootfw exec" in caught.value.hint
        return caught.value

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert os.strerror(errno.ENOENT) in self.refused(tmp_path).brief

    @pytest.mark.parametrize("kind", ["fifo", "file", "link outside", "loop"])
    def test_something_else(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "dev/pts/ptmx"
        path.parent.mkdir(parents=True)
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "file":
            path.touch()
        else:
            path.symlink_to("/dev/ptmx" if kind == "link outside" else "ptmx")
        self.refused(tmp_path)
