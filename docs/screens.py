"""Screens of the command line: real commands, run on a terminal, and what they said, as text with its colours.

``show(name)`` runs the commands of a screen on a machine of its own: a mount namespace in which /srv, /run and /etc/chrootfw are the
screens' own. That takes root. ``python docs/screens.py demo`` draws docs/demo.svg, the picture in the README.
"""

from __future__ import annotations

import html
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fcntl import ioctl
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).resolve().parent

#: Columns of the terminal; longer lines are folded, as on any terminal.
COLUMNS = 116

#: The screens that show nothing of a machine, and so need no root: their commands.
ANYWHERE: Mapping[str, Sequence[str]] = {
    "plugins": ["chrootfw plugins"],
}

#: Those with instances, one after the other on one machine. A command in brackets is run and not shown.
LIVES: Mapping[str, Sequence[str]] = {
    "plan": ["chrootfw plan start web1"],
    "start": ["chrootfw start web1 -v"],
    "look": ["chrootfw list", "chrootfw info web1", "chrootfw ps web1"],
    "stop": ["chrootfw stop web1 -v"],
    "refused": [
        "(rm /srv/web1.root/etc/chrootfw/init; chmod 0777 /srv/web1.root)",
        "chrootfw start web1",
        "(chmod 0755 /srv/web1.root; cp /srv/init /srv/web1.root/etc/chrootfw/init)",
    ],
    "held": [
        "(chrootfw start web1)",
        "(sleep 600 < /run/chrootfw/web1/root/bin/busybox > /dev/null 2>&1 & echo $! > /srv/holder)",
        "chrootfw stop web1",
        "chrootfw list",
        "(kill $(cat /srv/holder))",
        "(chrootfw cleanup web1)",
    ],
}

_INIT = """\
#!/bin/sh
case $1 in
start) httpd -p 127.0.0.1:8080 -h /var/www ;;
stop) exit 0 ;;
esac
"""


class Shown(NamedTuple):
    """A command and what it said on its terminal, with the escape sequences of its colours."""

    command: str
    said: str


def show(name: str) -> list[Shown] | None:
    """The commands of a screen with what they said; ``None`` where that takes root and this is not root."""
    if name in ANYWHERE:
        with tempfile.TemporaryDirectory() as place:
            return [_run(command, {"CHROOTFW_CONFIG_DIR": place}) for command in ANYWHERE[name]]
    return _lives()[name] if os.geteuid() == 0 else None


@lru_cache
def _lives() -> dict[str, list[Shown]]:
    done = subprocess.run(
        [*_APART, "--net", sys.executable, __file__, "lives"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=_environment({}),
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(
            f"the screens of docs/screens.py could not be made:\n{done.stdout}{done.stderr}"
        )
    return {
        name: [Shown(*each) for each in screen] for name, screen in json.loads(done.stdout).items()
    }


def _live() -> dict[str, list[Shown]]:
    """Run as root in a mount namespace of its own: every screen of ``LIVES``."""
    with tempfile.TemporaryDirectory() as scratch:
        _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", scratch)
        places = {
            "CHROOTFW_RUN_DIR": "/run/chrootfw",
            "CHROOTFW_CONFIG_DIR": f"{scratch}/etc",
            "CHROOTFW_LOG_DIR": f"{scratch}/log",
        }
        try:
            for name in ("srv", "run", "etc"):
                Path(scratch, name).mkdir(mode=0o755)
            _make_instance(Path(scratch, "srv/web1.root"))
            Path(scratch, "srv/init").write_text(_INIT)
            Path(scratch, "srv/init").chmod(0o755)
            Path(scratch, "etc/web1.toml").write_text('disk = "/srv/web1.root"\n')
            for name in ("srv", "run"):
                _mount("--bind", f"{scratch}/{name}", f"/{name}")
            subprocess.run(["busybox", "ip", "link", "set", "lo", "up"], check=True)
            return {name: [*_commands(commands, places)] for name, commands in LIVES.items()}
        finally:
            _run(
                "chrootfw stop web1 --force --kill-holders", places
            )  # already stopped, unless a screen failed
            subprocess.run(["umount", scratch], check=True)


def _make_instance(root: Path) -> None:
    for directory in ["bin", "dev", "etc/chrootfw", "proc", "root", "run", "sys", "tmp", "var/www"]:
        (root / directory).mkdir(parents=True)
    subprocess.run(["cp", "/bin/busybox", root / "bin"], check=True)
    subprocess.run(["chroot", root, "/bin/busybox", "--install", "-s", "/bin"], check=True)
    (root / "var/www/index.html").write_text("served from inside\n")
    (root / "etc/chrootfw/init").write_text(_INIT)
    (root / "etc/chrootfw/init").chmod(0o755)


def _commands(commands: Sequence[str], places: Mapping[str, str]) -> Iterator[Shown]:
    for command in commands:
        shown = _run(command.strip("()"), places)
        if not command.startswith("("):
            yield shown


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """What finds this chrootfw, and nothing that would change what it says."""
    kept = {
        key: os.environ[key]
        for key in ("PATH", "HOME", "PYTHONPATH", "TMPDIR")
        if key in os.environ
    }
    return {
        **kept,
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm",
        "COLUMNS": str(COLUMNS),
        "CHROOTFW_PROGRESS": "0",
        "LINES": "50",
        **more,
    }


#: In a mount namespace of which no other process that is about to make one gets a copy.
_APART = ("unshare", "--mount", "--propagation", "private")


def _run(command: str, places: Mapping[str, str], *, prefix: Sequence[str] = ()) -> Shown:
    """Run a command of bash on a terminal. What it leaves running must not keep the terminal."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    function = f'chrootfw() {{ {sys.executable} -m chrootfw "$@"; }}\n'
    process = subprocess.Popen(
        [*prefix, "bash", "-c", function + command],
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=_environment(places), cwd="/",
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while data := _read(ours):
        said += data
    process.wait()
    os.close(ours)
    return Shown(command, said.decode().replace("\r\n", "\n").rstrip("\n"))


def _read(terminal: int) -> bytes:
    """What comes next; nothing when nobody has the terminal any more."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # EIO: the other end is closed
        return b""


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


# -- the picture ----------------------------------------------------------------------------------------

_CLASSES = {"1": "b", "2": "d", "31": "red", "32": "green", "33": "yellow", "36": "cyan"}
_CHARACTER, _LINE, _MARGIN, _BAR = 8.4, 19, 14, 30

#: What a picture needs that stands alone; in the pages docs/_static/site.css says it.
_STYLE = """
svg { --back: #f6f8f7; --line: #ccd6d3; --text: #1d2624; --dim: #66736f; --red: #b3261e; --green: #14713a; --yellow: #855b00; --cyan: #00677d }
@media (prefers-color-scheme: dark) { svg { --back: #14191a; --line: #3a4546; --text: #d5dedb; --dim: #8a9693;
  --red: #ff8a80; --green: #7fd39b; --yellow: #e6c26a; --cyan: #6fd0e0 } }
rect { fill: var(--back); stroke: var(--line) } text { fill: var(--text); white-space: pre }
""" + "".join(f".{name} {{ fill: var(--{name}) }} " for name in ("red", "green", "yellow", "cyan"))  # fmt: skip
_STYLE += ".b { font-weight: bold } .d { fill: var(--dim) } .title { fill: var(--dim) }"


def text(shown: Sequence[Shown]) -> str:
    """Commands and what they said as preformatted HTML, which can be copied and read aloud."""
    return _preformatted(_coloured(line) for line in _lines(shown))


def demo_text() -> str:
    """The picture in the README as preformatted HTML."""
    drawn = (_HERE / "demo.svg").read_text(encoding="utf-8")
    lines: list[str] = []
    for y, line in re.findall(r'<text x="\d+" y="(\d+)" textLength[^>]*>(.*?)</text>', drawn):
        number = (int(y) - _BAR - _MARGIN - 10) // _LINE
        lines += [""] * (number - len(lines)) + [line.replace("\N{NO-BREAK SPACE}", " ")]
    return _preformatted(lines)


def _preformatted(lines: Iterable[str]) -> str:
    joined = "\n".join(lines).replace("<tspan", "<span").replace("</tspan>", "</span>")
    return f'<pre class="screen">{joined}</pre>'


def _lines(shown: Sequence[Shown]) -> list[str]:
    lines: list[str] = []
    for command, said in shown:
        prompt = [f"\033[32m$\033[0m \033[1m{command}\033[0m"] if command else []
        lines += ["", *prompt, *said.split("\n")] if lines else [*prompt, *said.split("\n")]
    return lines


def picture(shown: Sequence[Shown], title: str) -> str:
    """A terminal with commands and what they said, as an SVG that stands in a file of its own."""
    lines = [part for line in _lines(shown) for part in _folded(line)]
    columns = max(len(_plain(line)) for line in lines)
    width, height = columns * _CHARACTER + 2 * _MARGIN, len(lines) * _LINE + _BAR + 2 * _MARGIN
    drawn = [
        (
            f'<svg class="screen" role="img" aria-label="{html.escape(title)}" xmlns="http://www.w3.org/2000/svg" '
            f'viewBox="0 0 {width:.0f} {height}" font-family="ui-monospace, DejaVu Sans Mono, Menlo, Consolas, monospace" '
            f'font-size="14" width="{width:.0f}">'
        ),
        f"<style>{_STYLE}</style>",
        f'<rect x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1}" rx="8"/>',
        f'<text class="title" x="{width / 2:.0f}" y="20" text-anchor="middle" font-size="12">{html.escape(title)}</text>',
    ]
    for number, line in enumerate(lines):
        if length := len(_plain(line)):
            where = f'x="{_MARGIN}" y="{_BAR + _MARGIN + number * _LINE + 10}" textLength="{length * _CHARACTER:.1f}"'
            drawn.append(
                f'<text {where} lengthAdjust="spacingAndGlyphs" xml:space="preserve">{_coloured(line)}</text>'
            )
    return "\n".join(filter(None, [*drawn, "</svg>"]))


def _plain(line: str) -> str:
    return re.sub(r"\033\[[\d;]*m", "", line)


def _folded(line: str) -> Iterator[str]:
    """A line as a terminal shows it. Only plain text is ever so long, with a colour before it perhaps."""
    while len(_plain(line)) > COLUMNS:
        at = COLUMNS + len(line) - len(_plain(line))
        yield line[:at]
        line = line[at:]
    yield line


def _coloured(line: str) -> str:
    """A line with its colours as spans. Raises ``KeyError`` for a colour that has no class."""
    out, open_spans = [], 0
    for part in re.split(r"(\033\[[\d;]*m)", line):
        if not part.startswith("\033"):
            out.append(html.escape(part, quote=False))
        elif part in ("\033[0m", "\033[m"):
            out.append("</tspan>" * open_spans)
            open_spans = 0
        else:
            classes = " ".join(_CLASSES[code] for code in part[2:-1].split(";"))
            out.append(f'<tspan class="{classes}">')
            open_spans += 1
    return "".join(out) + "</tspan>" * open_spans


# -- the demo -------------------------------------------------------------------------------------------

#: The acts of the demo that its picture shows.
_ACTS = "2367"

#: What it leaves out of them: each mount and unmount, and that a script begins.
_LEFT_OUT = re.compile(r" ms  (?:mount|pre-start|unmount) |… +init-")


def demo() -> list[Shown]:
    """Return the acts of a real demo that the picture shows, and its last line.

    ``⋮`` stands for the lines that it leaves out.
    """
    said = _run("chrootfw demo", {}, prefix=_APART).said.strip("\n")
    _, *acts, end = re.split(r"\n\n(?=\033\[1m\d  |A whole life)", said)
    if not end.startswith("A whole life"):
        raise RuntimeError(f"the demo did not come to its end:\n{said}")
    shown = [_abridged(act) for act in acts if _plain(act)[0] in _ACTS]
    return [Shown("", "\n\n".join([*shown, end]))]


def _abridged(act: str) -> str:
    lines: list[str] = []
    for line in act.split("\n"):
        if not _LEFT_OUT.search(_plain(line)):
            lines.append(line)
        elif lines[-1] != f"{'':12}⋮":
            lines.append(f"{'':12}⋮")
    return "\n".join(lines)


def main(what: str) -> None:
    if what == "lives":
        json.dump(_live(), sys.stdout)
    else:
        (_HERE / "demo.svg").write_text(picture(demo(), "chrootfw demo") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
