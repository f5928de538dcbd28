"""Row 11: init scripts that flood, hang, ignore TERM, close their output, leave daemons with the pipe, write binary."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import driving
import kernelview
import roots

from chrootfw.linux.log_file import COMMAND

KEPT = 64 * 1024

#: Starts web1 and tells how that went: what the manager's memory came to, and what was kept of the output.
START = """
import json, re, time
import chrootfw

began = time.monotonic()
said, took = b"", 0.0

def tell(event):
    global said, took
    said = event.output or said
    if event.stage == "init-start" and event.what in ("end", "fail"):
        took = event.seconds

try:
    chrootfw.Runtime(on_event=tell).start("web1")
    result = "started"
except chrootfw.ChrootfwError as error:
    result, said = str(error), getattr(error, "output", b"")
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps({"result": result, "peak": peak * 1024, "kept": len(said), "took": took}))
"""

#: Seconds that a script gets. Seconds that a busy machine may be late with its end.
TIMEOUT, LATE = 1.5, 5.0

_IGNORES = "trap '' TERM INT HUP PIPE\n"
_FLOOD = "while :; do head -c 1048576 /dev/zero | tr '\\0' x; done"

#: What a script does, and whether it comes to an end. A flood has {size} MiB.
SCRIPTS: Mapping[str, tuple[str, bool]] = {
    "floods, then succeeds": ("dd if=/dev/zero bs=1048576 count={size}; exit 0", True),
    "floods, then fails": ("dd if=/dev/zero bs=1048576 count={size}; exit 3", True),
    "floods without an end": ("yes", False),
    "floods on the standard error without an end": ("exec yes >&2", False),
    "hangs": ("sleep 3600", False),
    "ignores signals and hangs": (_IGNORES + "while :; do sleep 3600; done", False),
    "closes its output and hangs": ("exec <&- >&- 2>&-; while :; do sleep 3600; done", False),
    "closes its output and ends": ("exec <&- >&- 2>&-; exit 3", True),
    "writes binary": ("head -c 300000 /dev/urandom; exit 3", True),
    "one endless line": ("head -c 3000000 /dev/zero | tr '\\0' x; exit 3", True),
    "leaves daemons with the pipe, and fails": ("for i in 1 2 3 4 5; do yes & done; sleep 1; exit 3", True),
    "leaves daemons that ignore signals, and hangs": (
        _IGNORES + "for i in 1 2 3; do setsid sh -c 'sleep 3600; :' & done; sleep 3600", False),
    "forks away and hangs": ("(sleep 3600 & ) & (yes & ) & sleep 3600", False),
}  # fmt: skip


def _begin(cli: driving.Cli) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", START],
        env=cli.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_hostile_init_scripts(
    make_chroot: Callable[..., driving.Chroot],
    cli: driving.Cli,
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    web1 = make_chroot(start_timeout=TIMEOUT)
    for name in ("tr", "dd", "head", "yes", "setsid"):
        if not (web1.disk / "bin" / name).is_symlink():
            (web1.disk / "bin" / name).symlink_to("busybox")
    web1.write_init(roots.script())
    for _ in range(2):  # the first compiles
        quiet = _begin(cli)
        assert quiet["result"] == "started"
        web1.stop(force=True)
    size = 2048 if whole else 128
    kept, growth, late = [], [], []
    for number, (kind, (text, ends)) in enumerate(SCRIPTS.items()):
        if not whole and not ends and number % 2:
            continue
        web1.define(start_timeout=60 if ends else TIMEOUT)
        web1.write_init(roots.script(text.format(size=size)))
        done = _begin(cli)
        if kind == "floods, then succeeds":
            assert done["result"] == "started", done
            text = (cli.log_dir / "web1@start.log").read_bytes()
            kept.append(len(text.partition(b"\n")[2]))
            sizes = [file.stat().st_size for file in cli.log_dir.glob("web1.log*")]
            assert max(sizes) <= 1 << 20, sizes
            web1.cli("stop", "--force")
        else:
            words = "exited with status 3" if ends else f"did not end within {TIMEOUT:g} s"
            assert words in done["result"], (kind, done)
            assert len(done["result"].encode()) <= KEPT, (kind, done)
            kept.append(done["kept"])
        assert done["kept"] <= KEPT, (kind, done)
        growth.append(done["peak"] - quiet["peak"])
        if not ends:
            late.append(done["took"] - TIMEOUT)
            assert 0 <= late[-1] <= LATE, (kind, done)
        assert web1.is_gone(), kind
        assert kernelview.cgroups_of(kernelview.identity(cli.run_dir)) == [], kind
        assert web1.state == "absent", kind
    assert max(kept) <= KEPT
    assert max(growth) <= 4 << 20, growth
    figure(
        11,
        f"{len(kept)} of {len(SCRIPTS)} hostile init scripts, floods of {size} MiB and without an end: at most "
        f"{max(kept)} bytes kept, the manager's memory at most {max(growth) / (1 << 20):.1f} MiB above that of a quiet "
        f"start, the time-out {max(late) * 1000:.0f} ms late at most ({len(late)} measured), no survivor",
    )


def test_a_daemon_that_writes_on_fills_nothing(
    make_chroot: Callable[..., driving.Chroot],
    cli: driving.Cli,
    image: Callable[..., Path],
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    """The script has succeeded, the manager is gone; a daemon goes on writing, to a log of limited size."""
    mib = 1024 if whole else 96
    daemon = (
        "b=$(head -c 65536 /dev/zero | tr '\\0' x)\n"
        '( n=0; while :; do n=$((n + 1)); echo "$b"; [ $((n % 100)) != 0 ] || echo $n > /run/tried; done ) 2>/dev/null &\n'
    )
    web1 = make_chroot(disk=image(init=roots.script(daemon)))
    web1.cli("start")
    run_dir_before = _bytes_below(cli.run_dir, web1.root)
    space = os.statvfs(cli.run_dir)
    allocated = os.stat(web1.disk).st_blocks
    tried = web1.root / "run/tried"

    def count() -> int:
        try:
            return int(tried.read_text() or 0)
        except (OSError, ValueError):
            return 0

    first = kernelview.wait_until(count, "the daemon writes")
    began = time.monotonic()
    kernelview.wait_until(
        lambda: not web1.pids() or (count() - first) * 65536 >= mib << 20,
        f"{mib} MiB are written",
        seconds=600,
    )
    seconds = time.monotonic() - began
    (pid,) = web1.pids()
    assert kernelview.is_running(pid)
    ours = kernelview.processes_of_the_tests()
    managers = [p for p in ours if p.command.startswith("chrootfw") and p.command != COMMAND]
    assert managers == []
    assert _bytes_below(cli.run_dir, web1.root) == run_dir_before
    assert os.stat(web1.disk).st_blocks - allocated < 4096, "the disk fills"
    lost = (space.f_bavail - os.statvfs(cli.run_dir).f_bavail) * space.f_frsize
    os.kill(pid, signal.SIGKILL)
    web1.cli("stop")
    sizes = [file.stat().st_size for file in cli.log_dir.glob("web1.log*")]
    assert len(sizes) == 2
    assert max(sizes) <= 1 << 20
    figure(
        11,
        f"a daemon wrote {mib} MiB in {seconds:.1f} s after its script: no file of the run directory grew, "
        f"its log has {sum(sizes)} bytes, it runs on (free space of the whole machine meanwhile: {-lost / (1 << 20):+.0f} MiB)",
    )


def _bytes_below(directory: Path, without: Path) -> dict[str, int]:
    found = {}
    for path, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if Path(path, name) != without]
        found.update({f"{path}/{name}": os.lstat(f"{path}/{name}").st_size for name in files})
    return found
