"""Code of a plugin that never comes back: the command goes on without it, and ends.

Where it waits: a name server that does not answer, a file of a FUSE server that is stopped, a loop
that swallows every exception, C code without the interpreter's lock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import driving
import kernelview
import pytest

#: Seconds that a hook of the command has.
HOOK_TIMEOUT = 10

_SILENT_FUSE = Path(__file__).parent.parent / "crash" / "silent_fuse.py"

WAYS = {
    "a silent name server": "import socket; socket.getaddrinfo('nobody.example.net', 80)",
    "a stopped FUSE server": "open(os.environ['STUCK_FILE'])",
    "a loop that swallows everything": (
        "exec('while True:\\n try: pass\\n except BaseException: pass')"
    ),
    "a loop in C": "import ctypes; ctypes.CDLL(None).sleep(3600)",
}

_MODULE = """
import os, time
import chrootfw

def stuck(where):
    if os.environ.get("STUCK") == where:
        open(os.environ["STUCK_MARK"], "w").close()
        {way}

stuck("import")

class Plugin:
    def __init__(self):
        stuck("class")

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(self):
        stuck("hook")
"""

#: What a name server that does not answer has: an address of its own, on which nothing arrives.
_BLACKHOLE = (
    "mount --bind {resolv_conf} /etc/resolv.conf && mount --bind {nsswitch} /etc/nsswitch.conf"
    ' && exec "$@"'
)


@pytest.fixture
def stopped_fuse(tmp_path: Path) -> Iterator[Path]:
    """A file of a FUSE server that is stopped."""
    source, target = tmp_path / "source", tmp_path / "fuse"
    source.mkdir()
    target.mkdir()
    (source / "file").write_text("text")
    server = subprocess.Popen(
        [sys.executable, _SILENT_FUSE, source, target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    server.send_signal(signal.SIGSTOP)
    try:
        yield target / "file"
    finally:
        server.kill()
        server.communicate()
        subprocess.run(["umount", "-l", target], check=True)


@pytest.fixture
def silent_name_server(tmp_path: Path) -> Iterator[list[str]]:
    """A command prefix: in a mount namespace, with a name server that never answers."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.53", 53))
        (tmp_path / "resolv.conf").write_text(
            "nameserver 127.0.0.53\noptions timeout:30 attempts:5\n"
        )
        (tmp_path / "nsswitch.conf").write_text("hosts: dns\n")
        script = _BLACKHOLE.format(
            resolv_conf=tmp_path / "resolv.conf", nsswitch=tmp_path / "nsswitch.conf"
        )
        yield ["unshare", "-m", "--propagation", "slave", "sh", "-c", script, "sh"]


@pytest.fixture
def stuck(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make_chroot: Callable[..., driving.Chroot],
    cli: driving.Cli,
) -> Callable[[str, str], tuple[dict[str, str], list[str]]]:
    """Start an instance whose plugin waits in one way; return an environment and a prefix."""

    def start(way: str, where: str) -> tuple[dict[str, str], list[str]]:
        site = tmp_path / "site"
        site.mkdir()
        (site / "stuck_plugin.py").write_text(_MODULE.replace("{way}", WAYS[way]))
        env = {"PYTHONPATH": f"{site}:{cli.environment()['PYTHONPATH']}"}
        web1 = make_chroot(plugins=["stuck_plugin:Plugin"])
        web1.cli("start", env=env)
        env["STUCK"] = where
        env["STUCK_MARK"] = str(tmp_path / "mark")
        prefix: list[str] = []
        if way == "a stopped FUSE server":
            env["STUCK_FILE"] = str(request.getfixturevalue("stopped_fuse"))
        if way == "a silent name server":
            prefix = request.getfixturevalue("silent_name_server")
        return env, prefix

    return start


@pytest.mark.parametrize("where", ["import", "class", "hook"])
@pytest.mark.parametrize("way", WAYS)
def test_a_stop_goes_on_without_what_does_not_come_back(
    way: str,
    where: str,
    stuck: Callable[[str, str], tuple[dict[str, str], list[str]]],
    cli: driving.Cli,
) -> None:
    env, prefix = stuck(way, where)
    began = time.monotonic()
    result = cli("stop", "web1", "--no-script", env=env, prefix=prefix)
    took = time.monotonic() - began
    assert "plugin stuck_plugin:Plugin" in result.stderr
    assert "did not come back within 10 s" in result.stderr
    assert HOOK_TIMEOUT <= took < HOOK_TIMEOUT + 5  # two seconds, where nothing else runs
    assert "web1 is stopped" in result.stdout


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["import", "class", "hook"])
@pytest.mark.parametrize("way", WAYS)
def test_a_request_to_end_does_not_wait_for_a_plugin(
    way: str,
    where: str,
    signum: int,
    stuck: Callable[[str, str], tuple[dict[str, str], list[str]]],
    cli: driving.Cli,
) -> None:
    env, prefix = stuck(way, where)
    process = cli.begin("stop", "web1", "--no-script", env=env, prefix=prefix)
    kernelview.wait_until(Path(env["STUCK_MARK"]).exists, "the plugin's code was called")
    began = time.monotonic()
    os.kill(process.pid, signum)
    ended = cli.end(process, expect=128 + signum)
    assert "stuck_plugin" not in ended.stderr, "it was the user who wanted an end"
    assert time.monotonic() - began < 3  # less than one second, where nothing else runs
    cli("stop", "web1", "--no-plugins")


_RAISES = """
import asyncio, os
import chrootfw

def fail(where):
    if os.environ.get("FAILS") == where:
        raise {error}

fail("import")

class Plugin:
    def __init__(self):
        fail("class")

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(self):
        fail("hook")

    @chrootfw.hookimpl
    def chrootfw_event(self, event):
        fail("event")
"""


@pytest.mark.parametrize("where", ["import", "class", "hook", "event"])
@pytest.mark.parametrize("error", ["KeyboardInterrupt", "asyncio.CancelledError"])
def test_no_exception_of_a_plugin_ends_a_command(
    error: str,
    where: str,
    tmp_path: Path,
    make_chroot: Callable[..., driving.Chroot],
    cli: driving.Cli,
) -> None:
    (tmp_path / "raising_plugin.py").write_text(_RAISES.replace("{error}", error))
    env = {"PYTHONPATH": f"{tmp_path}:{cli.environment()['PYTHONPATH']}"}
    web1 = make_chroot(plugins=["raising_plugin:Plugin"])
    web1.cli("start", env=env)
    result = cli("stop", "web1", "--no-script", env={**env, "FAILS": where})
    assert "plugin raising_plugin:Plugin" in result.stderr
    assert error.rpartition(".")[2] in result.stderr
    assert result.stderr.count("raising_plugin:Plugin:") <= 1, "it is said once"
    assert web1.is_gone()
