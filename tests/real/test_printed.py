"""What a root and those in it call themselves reaches no terminal as it is; the command works whatever signals it inherits."""

from __future__ import annotations

import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import kernelview
import pytest
from driving import Chroot, Cli

EVIL = "a\x1b[31m\x1b]0;pwned\x07\n1      root  cgroup  init\u202e\x7f"


def _is_fit(text: str) -> bool:
    return all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") for c in text)


def test_names_of_processes_and_files(
    web1: Chroot, cli: Cli, outside: Callable[..., subprocess.Popen[str]]
) -> None:
    web1.start()
    program = "import os, sys, time; open('/proc/self/comm', 'w').write('a\\x1b[31m\\nb'); time.sleep(600)"
    held = web1.root / "srv"
    held.mkdir(exist_ok=True)
    evil = held / EVIL
    evil.mkdir()
    holder = outside(sys.executable, "-c", program, cwd=evil)
    kernelview.wait_until(lambda: "\x1b" in Path(f"/proc/{holder.pid}/comm").read_text(), "a name")
    shown = [
        cli("ps", "web1"),
        cli("info", "web1"),
        cli("-v", "stop", "web1", expect=4),
        cli("list"),
        cli("plan", "stop", "web1"),
        cli("verify", expect=(0, 1)),
    ]
    for result in shown:
        assert _is_fit(result.stdout), result
        assert _is_fit(result.stderr), result
        assert "\n1      root" not in result.stdout + result.stderr, result
    assert "\\x1b[31m" in shown[0].stdout
    assert any(EVIL in each["what"] for each in cli.json("ps", "web1")["processes"])
    holder.kill()
    holder.wait()
    cli("stop", "web1")


@pytest.mark.parametrize("kind", ["interpreter", "link"])
def test_names_that_a_check_finds(
    make_chroot: Callable[..., Chroot], make_root: Callable[..., Path], cli: Cli, kind: str
) -> None:
    root = make_root()
    script = root / "etc/chrootfw/init"
    script.unlink()
    if kind == "link":
        script.symlink_to(EVIL)
    else:
        script.write_bytes(b"#!/bin/\x1b[31mx\x1b]0;pwned\x07\xe2\x80\xae\n")
        script.chmod(0o755)
    make_chroot(disk=root)
    refused = cli("-v", "start", "web1", expect=1)
    assert _is_fit(refused.stderr), refused
    assert "\\x1b" in refused.stderr


def test_the_output_of_a_script(make_chroot: Callable[..., Chroot], cli: Cli) -> None:
    make_chroot(init="#!/bin/sh\nprintf 'a\\033[31m\\r\\tb\\302\\233x\\342\\200\\256\\n'\nexit 1\n")
    refused = cli("start", "web1", expect=1)
    assert _is_fit(refused.stderr), refused


def test_sigchld_is_ignored_by_the_caller(web1: Chroot, cli: Cli) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    cli("start", "web1", preexec_fn=ignore)
    cli("exec", "web1", "--", "/bin/sh", "-c", "exit 7", expect=7, preexec_fn=ignore)
    cli("exec", "web1", "--", "/bin/sh", "-c", "kill -KILL $$", expect=137, preexec_fn=ignore)
    told = cli("exec", "web1", "--", "/bin/grep", "SigIgn", "/proc/self/status", preexec_fn=ignore)
    assert int(told.stdout.split()[1], 16) & 1 << (signal.SIGCHLD - 1) == 0
    cli("stop", "web1", preexec_fn=ignore)
    assert web1.is_gone()


def test_an_answer_that_cannot_be_printed(web1: Chroot, cli: Cli) -> None:
    with open("/dev/full", "w") as full:
        cli("-v", "start", "web1", expect=1, stdout=full, stderr=full)
        assert web1.state == "running"
        cli("exec", "web1", "--", "/bin/sh", "-c", "exit 7", expect=7, stdout=full, stderr=full)
        cli("exec", "web1", "--", "nonsense", expect=127, stdout=full, stderr=full)
        cli("exec", "web1", "nonsense", "--json", expect=127, stderr=full)
        cli("-v", "stop", "web1", expect=0, stderr=full)
    assert web1.is_gone()


def test_what_python_reports_of_a_plugin(
    make_chroot: Callable[..., Chroot], cli: Cli, tmp_path: Path
) -> None:
    """A thread of its own that fails, a warning, an object that cannot be cleared away: a line each, and no traceback."""
    (tmp_path / "reporting.py").write_text(
        "import threading, warnings, chrootfw\n"
        "class Broken:\n"
        "    def __del__(self):\n"
        "        raise ValueError('deleted\\n\\x1b[31m')\n"
        "def fails():\n"
        "    raise ValueError('threaded\\n\\x1b[31m')\n"
        "class Reporting:\n"
        "    @chrootfw.hookimpl\n"
        "    def chrootfw_mount(self, instance):\n"
        "        thread = threading.Thread(target=fails)\n"
        "        thread.start()\n"
        "        thread.join()\n"
        "        warnings.warn('warned\\n\\x1b[31m')\n"
        "        Broken()\n"
        "        return []\n"
    )
    web1 = make_chroot(plugins=["reporting:Reporting"])
    path = f"{cli.environment()['PYTHONPATH']}:{tmp_path}"
    said = cli("start", "web1", env={"PYTHONPATH": path})
    assert _is_fit(said.stderr), said
    for word in ("threaded\\n", "warned\\n", "deleted\\n"):
        assert word in said.stderr
    web1.stop()
