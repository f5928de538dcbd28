"""``top``: the instances live, and a terminal that is as it was, however it ends."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterator

import pytest
import roots
from driving import Chroot, Cli

BUSY = "while :; do :; done & echo $! > /run/daemon"


class Screen:
    """A ``top`` on a terminal of 80 columns, and all that the terminal got."""

    def __init__(self, cli: Cli, *argv: str) -> None:
        self.fd, self.inside = pty.openpty()
        fcntl.ioctl(self.inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.inside)
        self.seen = ""
        env = {"TERM": "xterm", "COLUMNS": "", "LINES": "", "NO_COLOR": ""}
        self.process = cli.begin(
            "top",
            *argv,
            env=env,
            stdin=self.inside,
            stdout=self.inside,
            stderr=self.inside,
            start_new_session=True,
        )

    def until(self, pattern: str) -> str:
        """Read until a pattern has come; return what was seen, without the escape sequences."""
        deadline = time.monotonic() + 60
        while True:
            plain = re.sub("\033\\[[0-9;?]*[a-zA-Z]", "", self.seen.replace("\033[H", "\n"))
            if re.search(pattern, plain):
                return plain
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.fd], [], [], left)[0], f"{pattern!r} has not come: {plain}"
            self.seen += os.read(self.fd, 65536).decode(errors="replace")

    def is_restored(self) -> bool:
        """Whether the terminal is as it was: its settings, its screen, its cursor."""
        os.set_blocking(self.fd, False)
        try:
            while True:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
        except BlockingIOError:
            pass
        ends = [self.seen.rfind(end) > self.seen.rfind(begin) for begin, end in PAIRS]
        return all(ends) and termios.tcgetattr(self.inside) == self.before


#: What begins and ends the other screen, and a hidden cursor.
PAIRS = [("\033[?1049h", "\033[?1049l"), ("\033[?25l", "\033[?25h")]


@pytest.fixture
def top(cli: Cli) -> Iterator[Callable[..., Screen]]:
    made: list[Screen] = []

    def begin(*argv: str) -> Screen:
        made.append(Screen(cli, *argv))
        return made[-1]

    yield begin
    for screen in made:
        screen.process.kill()
        screen.process.wait()
        os.close(screen.fd)
        os.close(screen.inside)


def test_it_shows_processors_and_ends_with_q(
    make_chroot: Callable[..., Chroot], top: Callable[..., Screen]
) -> None:
    make_chroot("quiet").start()
    make_chroot("busy", init=roots.script(start=BUSY)).start()
    make_chroot("away")
    screen = top("--interval", "0.3")
    busiest_first = r"NAME  [^\n]*\s+busy +running +1 +[1-9][0-9]*\.[0-9][^\n]*\s+quiet [^\n]*"
    plain = screen.until(busiest_first)
    assert "3 instances: 1 absent, 2 running" in plain
    found = re.search(busiest_first, plain)
    assert found is not None
    assert "away" not in found[0]
    assert max(len(line) for line in re.split("[\r\n]+", plain)) <= 80
    os.write(screen.fd, b"n")
    screen.until("by name")
    os.write(screen.fd, b"q")
    assert screen.process.wait(60) == 0
    assert screen.is_restored()
    assert "Traceback" not in screen.seen


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_signal_leaves_the_terminal_as_it_was(
    top: Callable[..., Screen], signum: signal.Signals, status: int
) -> None:
    screen = top()
    screen.until("0 instances")
    screen.process.send_signal(signum)
    assert screen.process.wait(60) == status
    assert screen.is_restored()


def test_without_a_terminal_it_is_refused(cli: Cli) -> None:
    refused = cli("top", expect=2, says=["terminal"])
    assert "hint: chrootfw list" in refused.stderr
    cli("top", "--json", expect=2)
