"""Plays the examples of a page: its fenced blocks, one after the other, on a machine of their own.

``unshare --mount --net --propagation private python play.py SCRATCH PAGE [TUTORIAL]``, as root. ``/srv``, ``/run``, ``/var/log`` and ``/etc`` are the page's own, so
that it can use the paths that its reader would; the host sees nothing of it. With TUTORIAL, what that page does up to ``fenced.MARK`` is done
first. DEBIAN in the environment is what pages know as ``/srv/debian.tar``. The status is 1, and the first difference is told, when an example does not do what the page says.

A ``console`` block is run by one bash for the whole page: every command must exit with 0, unless the next one is ``echo $?``, and must say what the
page shows. A ``python`` block is executed in one namespace for the whole page; a comment after a ``print`` is what it must print. A block with a
caption is written to the file that the caption names, as an editor would: what is to be executable, the page makes so. ``toml`` and ``json`` must be just that. All other blocks are only read by people.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import fenced

_TREE = Path(__file__).resolve().parents[2]
#: Seconds within which every single command must end.
_DEADLINE = 120.0
#: Seconds that a process has to end by itself before it counts as left.
_LAST_WORDS = 5.0
_SAID_SO = "--example-has-ended--"
#: Chrootfw's Python as the page Install has it.
_INSTALLED = "/opt/chrootfw/bin/python3"
_ACTIVATE = "/opt/chrootfw/bin/activate"


class Different(Exception):
    """An example does not do what the page says."""


def main(scratch: Path, page: Path, tutorial: Path | None) -> int:
    environment = _make_world(scratch)
    sys.path.insert(0, str(_TREE / "tests/real"))
    leaks = importlib.import_module("leaks")
    ground = leaks.Ground(Path("/srv"))
    with Stage(scratch, environment) as stage:
        before = ground.snapshot()
        try:
            for block in fenced.blocks(tutorial, until=fenced.MARK) if tutorial else ():
                stage.play(block)
            for block in fenced.blocks(page):
                stage.play(block)
        except Different as different:
            print(different)
            return 1
        finally:
            if Path("/run/chrootfw").is_dir():
                ground.know_run_dir(Path("/run/chrootfw"))
            _let_end(ground.snapshot().processes - before.processes)
            after = ground.snapshot()
            after.clear(before)
    left = after.differences(before)
    if left:
        print(f"{page.name}: its examples leave something:\n  " + "\n  ".join(left))
    return 1 if left else 0


def _let_end(processes: Set[Any]) -> None:
    """A daemon whose mount is gone, or whose master has ended, may be about to end by itself."""
    poller = select.poll()
    opened = {}
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            opened[os.pidfd_open(process.pid)] = process
    for pidfd in opened:
        poller.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + _LAST_WORDS
    waiting = len(opened)
    while waiting and time.monotonic() < deadline:
        for pidfd, _ in poller.poll((deadline - time.monotonic()) * 1000):
            poller.unregister(pidfd)
            waiting -= 1
    for pidfd in opened:
        os.close(pidfd)


# -- the machine ----------------------------------------------------------------------------------------


def _make_world(scratch: Path) -> dict[str, str]:
    """Put directories of its own over those that the examples write to; the environment of its commands."""
    _run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(scratch))
    for name in ("srv", "run", "log", "etc", "etc.work", "opt", "opt.work", "bin", "site"):
        (scratch / name).mkdir(mode=0o755)
    (scratch / "etc/resolv.conf").write_text("nameserver 192.0.2.53\n")
    activate = scratch / _ACTIVATE.lstrip("/")
    activate.parent.mkdir(parents=True)
    activate.touch()  # what it would find is in PATH already
    for name in ("etc", "opt"):
        layers = f"lowerdir=/{name},upperdir={scratch}/{name},workdir={scratch}/{name}.work"
        _run("mount", "-t", "overlay", "-o", layers, "overlay", f"/{name}")
    for name, place in (("srv", "/srv"), ("run", "/run"), ("log", "/var/log")):
        _run("mount", "--bind", str(scratch / name), place)
    _run("busybox", "ip", "link", "set", "lo", "up")
    # The network of this machine's own pid 1: what is started in it is in the host's.
    _run("mount", "--bind", f"/proc/{os.getpid()}/net", "/proc/1/net")
    packages = os.pathsep.join(
        [str(scratch / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    downloads = os.environ["CHROOTFW_TESTS_DOWNLOADS"]
    if "DEBIAN" in os.environ:
        (scratch / "srv/debian.tar").symlink_to(os.environ["DEBIAN"])
    for command, text in _COMMANDS.items():
        text = text.replace("PACKAGES", packages).replace("DOWNLOADS", downloads)
        text = text.replace("SITE", str(scratch / "site"))
        (scratch / "bin" / command).write_text(text)
        (scratch / "bin" / command).chmod(0o755)
    os.chdir("/")
    sys.path.insert(0, str(scratch / "site"))
    return {
        "PATH": f"{scratch}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "COLUMNS": "80",
    }


#: The chrootfw and the Python of the tests; apt-get only looks whether what it is to install is installed, and has
#: downloaded before; pip installs nothing but projects of a few modules (tests/plugins/test_distribution.py is about
#: the real one).
_PYTHON = (
    f'#!/bin/sh\nexport PYTHONPATH="PACKAGES${{PYTHONPATH:+:$PYTHONPATH}}"\nexec {sys.executable}'
)
_COMMANDS = {
    "chrootfw": f'{_PYTHON} -P -m chrootfw "$@"\n',  # as installed: the current directory is not looked into
    "python3": f'{_PYTHON} "$@"\n',
    "pip": f'{_PYTHON} {__file__} --pip SITE "$@"\n',
    "apt-get": """#!/bin/sh
[ "$1" = update ] && exit 0
[ "$1" = download ] && shift && for word; do cp -- "DOWNLOADS/$word".deb . || exit 1; done && exit 0
[ "$1" = install ] || exit 1
shift
for word; do
    case $word in
    -*) ;;
    *) [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$word")" = installed ] || exit 1 ;;
    esac
done
""",
}


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


# -- the examples ---------------------------------------------------------------------------------------


class Stage:
    """Where blocks are played: one shell and one Python namespace."""

    def __init__(self, scratch: Path, environment: Mapping[str, str]) -> None:
        self.site = scratch / "site"
        self.shell = Shell(scratch / "command", environment)
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shell.close()

    def play(self, block: fenced.Block) -> None:
        """Do what the block asks for. Raises ``Different``."""
        if block.language == "toml":
            self._parse(block, tomllib.loads)
        elif block.language == "json":
            self._parse(block, json.loads)
        if block.caption:
            self._write(block)
        elif block.language == "console":
            self._type(block)
        elif block.language == "python":
            self._execute(block)

    @staticmethod
    def _parse(block: fenced.Block, loads: Any) -> None:
        try:
            loads(block.text)
        except ValueError as error:
            raise Different(f"{block}: this is no {block.language}: {error}") from error

    def _write(self, block: fenced.Block) -> None:
        file = Path(block.caption)
        if not file.is_absolute():
            raise Different(f"{block}: the caption {block.caption!r} is no absolute path")
        file.write_text(block.text, encoding="utf-8")
        if file.suffix == ".py" and (file.parent / "pyproject.toml").exists():
            _link(file, self.site)

    def _type(self, block: fenced.Block) -> None:
        shown = fenced.commands(block)
        for number, one in enumerate(shown):
            status, said = self.shell.run(one.command)
            said = said.replace(sys.executable, _INSTALLED)
            where = f"{block.page.name}, line {one.line}: $ {one.command}"
            stated = number + 1 < len(shown) and shown[number + 1].command == "echo $?"
            if status != 0 and not stated:
                raise Different(f"{where}\nexited with {status} and said:\n{said}")
            if not fenced.is_as_shown(one.output, said):
                raise Different(f"{where}\nsaid:\n{said}\nand not:\n" + "\n".join(one.output))

    def _execute(self, block: fenced.Block) -> None:
        printed = io.StringIO()
        importlib.invalidate_caches()  # pip, which the page may have called, is another process
        code = compile("\n" * block.line + block.text, str(block.page), "exec", dont_inherit=True)
        try:
            with contextlib.redirect_stdout(printed):
                exec(code, self.names)
        except Exception as error:
            raise Different(
                f"{block} printed:\n{printed.getvalue()}\n{traceback.format_exc()}"
            ) from error
        promised = re.findall(r"^\s*print\(.*\)\s+# (.*)$", block.text, re.MULTILINE)
        said = "\n".join(filter(str.strip, printed.getvalue().splitlines()))
        if promised and not fenced.is_as_shown(promised, said):
            raise Different(
                f"{block} printed:\n{printed.getvalue()}\nand not:\n" + "\n".join(promised)
            )


def install(project: Path, site: Path) -> None:
    """What pip install --editable makes of a project of a few modules: the modules on the path, and the entry points
    beside them."""
    table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    information = site / f"{table['name'].replace('-', '_')}-{table['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {table['name']}\nVersion: {table['version']}\n"
    )
    lines = []
    for group, points in table["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module in project.glob("*.py"):
        _link(module, site)


def uninstall(projects: list[str], site: Path) -> None:
    """What pip uninstall makes of them: no entry points."""
    for project in projects:
        (found,) = site.glob(f"{project.replace('-', '_')}-*.dist-info")
        shutil.rmtree(found)


def _link(module: Path, site: Path) -> None:
    link = site / module.name
    if not link.is_symlink():
        link.symlink_to(module.resolve())


class Shell:
    """One bash that runs command after command: directories, variables and ``$?`` last."""

    def __init__(self, file: Path, environment: Mapping[str, str]) -> None:
        self.file = file
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            bufsize=0,
        )
        self.last = 0

    def run(self, command: str) -> tuple[int, str]:
        """Its status, and all that it said. A daemon that keeps the output open is not waited for."""
        assert self.process.stdin is not None
        self.file.write_text(f"{command}\n")
        line = f"(exit {self.last}); . {self.file} < /dev/null; printf '%s %d\\n' {_SAID_SO} $?\n"
        self.process.stdin.write(line.encode())
        said = self._read_to_the_end()
        text, _, status = said.rpartition(f"{_SAID_SO} ")
        self.last = int(status)
        return self.last, text

    def _read_to_the_end(self) -> str:
        assert self.process.stdout is not None
        said = b""
        deadline = time.monotonic() + _DEADLINE
        while not re.search(rb"%s \d+\n$" % _SAID_SO.encode(), said):
            ready, _, _ = select.select(
                [self.process.stdout], [], [], max(0, deadline - time.monotonic())
            )
            data = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            if not data:
                raise Different(
                    f"this hangs, or ended the shell:\n{self.file.read_text()}\n{said.decode(errors='replace')}"
                )
            said += data
        return said.decode(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__" and sys.argv[1] == "--pip":
    site, verb, *words = sys.argv[2:]
    if verb == "uninstall":
        uninstall([word for word in words if not word.startswith("-")], Path(site))
        raise SystemExit
    if verb != "install":
        raise SystemExit(f"pip {verb} is not played; see _COMMANDS")
    for word in words:
        if not word.startswith("-"):
            install(Path(word.partition("[")[0]).resolve(), Path(site))
elif __name__ == "__main__":
    first, second, *rest = (Path(argument).resolve() for argument in sys.argv[1:])
    raise SystemExit(main(first, second, rest[0] if rest else None))
