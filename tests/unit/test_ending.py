"""The end of a command: what asked to be called then is called, and no thread keeps it from ending."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

_AT_THE_END = "import atexit, sys\natexit.register(lambda: print('last words', file=sys.stderr))\n"

#: Threads that a module leaves behind.
_BEHIND = {
    "none": "",
    "it prints for ever": """
import threading
def work():
    while True:
        try: print("x" * 5000, file=open("/dev/null", "w")); sys.stdout.write("")
        except BaseException: pass
threading.Thread(target=work, daemon=True).start()
""",
    "it waits for ever": """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
""",
    "a pool": """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor()
pool.submit(print, "work", file=sys.stderr)
""",
    "it ends soon": """
import threading, time
def work():
    time.sleep(0.5)  # longer than the verb, and not for long
    print("work", file=sys.stderr)
threading.Thread(target=work).start()
""",
}


def _run(
    tmp_path: Path, *verb: str, path: Path | None = None
) -> tuple[subprocess.CompletedProcess[str], float]:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(path or tmp_path), *sys.path]),
        "CHROOTFW_RUN_DIR": str(tmp_path / "run"),
        "CHROOTFW_CONFIG_DIR": str(tmp_path / "etc"),
    }
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "chrootfw", *verb],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done, time.monotonic() - began


def _plugin(tmp_path: Path, text: str) -> None:
    (tmp_path / "leaves.py").write_text(
        f"import chrootfw\n{text}\n@chrootfw.hookimpl\ndef chrootfw_event(event): pass\n"
    )
    info = tmp_path / "leaves-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaves\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[chrootfw]\nleaves = leaves\n")


@pytest.mark.parametrize(
    ("verb", "status"), [(["list"], 0), (["plugins"], 0), (["info", "nothing"], 3), (["bogus"], 2)]
)
def test_what_a_tool_wants_done_at_the_end_is_done(
    tmp_path: Path, verb: list[str], status: int
) -> None:
    """A tool such as coverage, which Python's site module loads."""
    (tmp_path / "sitecustomize.py").write_text(_AT_THE_END)
    done, _ = _run(tmp_path, *verb)
    assert done.stderr.count("last words") == 1
    assert done.returncode == status


@pytest.mark.parametrize("behind", _BEHIND)
def test_what_a_plugin_wants_done_at_the_end_is_done(tmp_path: Path, behind: str) -> None:
    _plugin(tmp_path, _AT_THE_END + _BEHIND[behind])
    done, _ = _run(tmp_path, "plugins")
    assert "leaves" in done.stdout
    assert done.stderr.count("last words") == 1
    assert ("work" in done.stderr) is ("work" in _BEHIND[behind] and "for ever" not in behind)
    assert done.returncode == 0


def test_a_thread_that_does_not_end_is_left_and_named(tmp_path: Path) -> None:
    _plugin(
        tmp_path,
        f"{_AT_THE_END}import threading\n"
        "threading.Thread(target=threading.Event().wait, name='sits').start()",
    )
    done, seconds = _run(tmp_path, "plugins")
    assert "a thread has not ended in 10 s, and is left: sits" in done.stderr
    assert "last words" in done.stderr
    assert done.returncode == 0
    assert seconds >= 10


def test_a_handler_that_does_not_end_is_left(tmp_path: Path) -> None:
    _plugin(
        tmp_path,
        "import atexit, threading\natexit.register(threading.Event().wait)\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
    )
    done, _ = _run(tmp_path, "plugins")
    assert "atexit" in done.stderr
    assert done.returncode == 0
