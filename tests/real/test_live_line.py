"""What a verb shows while it takes long: one line on a terminal, plain lines with -v elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from pathlib import Path

import pytest
from driving import Chroot, Cli
from kernelview import mount_on, wait_until

SLOW = "#!/bin/sh\n[ $1 = start ] && sleep 3 && sleep 600 &\n[ $1 = start ] && sleep 3\nexit 0\n"


def _on_terminal(
    cli: Cli, *argv: str, columns: int = 80, until: tuple[str, Path] | None = None, **env: str
) -> tuple[int, str]:
    """The status of a command and everything that its terminal got.

    ``until``: words, and the file that is made when they have come.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = cli.begin(
        *argv, stdout=theirs, stderr=theirs, env={"TERM": "xterm", "COLUMNS": "", **env}
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # EIO: the command has ended
            break
        if until and until[0] in _plain(seen.decode("utf-8", "replace")):
            until[1].touch()
    os.close(ours)
    return process.wait(), seen.decode("utf-8", "replace")


def _plain(screen: str) -> str:
    return re.sub("\033\\[[0-9;?]*[a-zA-Z]", "", screen)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_long_step_is_one_line_that_goes_away(web1: Chroot, cli: Cli, columns: int) -> None:
    web1.write_init(SLOW)
    status, screen = _on_terminal(cli, "start", "web1", columns=columns)
    assert status == 0
    what = r"web1: run /etc/chrootfw/init st(art \(at most 60 s\)|.*…), \d s  Ctrl-C undoes it"
    assert re.search(what, _plain(screen))
    assert screen.count("\033[1A") == 1, "the cursor goes up at the end alone: no line is folded"
    lines = [re.sub(".*\r", "", line) for line in _plain(screen).replace("\r\n", "\n").split("\n")]
    assert max(map(len, _plain(screen).replace("\r", "\n").split("\n"))) <= columns
    assert lines[-2].startswith("web1 is running: ")
    assert "\033[?25h" in screen, "the cursor is shown again"


def test_what_is_quick_shows_no_line(web1: Chroot, cli: Cli) -> None:
    status, screen = _on_terminal(cli, "start", "web1", "--no-init", NO_COLOR="1")
    assert (status, screen) == (0, "web1 is mounted\r\n")


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CHROOTFW_PROGRESS": "0"}, {}])
def test_no_terminal_and_no_v_are_no_line(web1: Chroot, cli: Cli, env: dict[str, str]) -> None:
    web1.write_init(SLOW)
    if env:
        status, screen = _on_terminal(cli, "start", "web1", **env)
        assert status == 0
        assert "at most" not in screen
    else:
        assert cli("start", "web1").stderr == ""


PRINTING = r"""#!/bin/sh
[ $1 = start ] || exit 0
echo one
printf 'evil \033[2J\033]0;title\007\n'
printf 'no end'
sleep 600 &
until [ -e /go ]; do sleep 0.05; done
"""


@pytest.mark.parametrize("where", ["pipe", "terminal"])
def test_with_v_a_script_is_shown_while_it_runs(web1: Chroot, cli: Cli, where: str) -> None:
    """The daemon that it leaves has the same output, and is not waited for."""
    web1.write_init(PRINTING)
    ours, theirs = pty.openpty() if where == "terminal" else os.pipe()
    process = cli.begin("start", "web1", "-v", stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"title" not in seen:
        seen += os.read(ours, 65536)
    assert process.poll() is None
    assert b"no end" not in seen, "a line is shown when it is whole"
    (web1.disk / "go").touch()
    cli.end(process)
    while data := _read(ours):
        seen += data
    os.close(ours)
    text = seen.decode()
    assert "\033[2J" not in text
    assert "\007" not in text
    lines = [line.rstrip() for line in _plain(text).splitlines()]
    (begin,) = [n for n, line in enumerate(lines) if line.startswith("…") and "init start" in line]
    (end,) = [n for n, line in enumerate(lines) if line.startswith("✓") and "init start" in line]
    shown = [line.rpartition("│ ")[2] for line in lines[begin + 1 : end] if "│" in line]
    assert shown == ["one", r"evil \x1b[2J\x1b]0;title\x07", "no end"]
    if where == "pipe":
        assert "\033" not in text


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # EIO: the command has ended
        return b""


def test_a_reader_that_is_slow_holds_no_script_up(web1: Chroot, cli: Cli) -> None:
    web1.write_init(
        "#!/bin/sh\n[ $1 = start ] || exit 0\n"
        "head -c 3000000 /dev/zero | tr '\\000' '\\012'\necho last\ntouch /printed\nsleep 600 &\n"
    )
    process = cli.begin("start", "web1", "-v")  # nobody reads
    wait_until((web1.disk / "printed").exists, "the script has printed all")
    lines = cli.end(process).stderr.splitlines()
    assert any("bytes more, which chrootfw logs shows" in line for line in lines)


def test_in_a_pipe_the_steps_that_wait_are_plain_lines(web1: Chroot, cli: Cli) -> None:
    web1.write_init(SLOW)
    lines = cli("start", "web1", "-v").stderr.splitlines()
    steps = [line for line in lines if "run /etc/chrootfw/init start" in line]
    assert [line[0] for line in steps] == ["…", "✓"]
    assert not re.search("\033", "".join(lines))


def test_a_wait_for_another_command_is_shown(web1: Chroot, cli: Cli) -> None:
    web1.write_init(PRINTING)
    first = cli.begin("start", "web1")
    wait_until(lambda: mount_on(web1.root) is not None, "the root, so that it has the lock")
    words = f"web1: wait for pid {first.pid} (start web1), at most 60 s"
    status, screen = _on_terminal(
        cli,
        *("stop", "web1", "--lock-timeout", "60"),
        columns=120,
        until=(words, web1.disk / "go"),
    )
    assert status == 0
    assert words in _plain(screen)
    assert "Ctrl-C ends the wait" in _plain(screen)
    cli.end(first)
