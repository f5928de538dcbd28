"""Fork bombs that the kernel itself bounds: RLIMIT_NPROC of a user that nobody else has.

A bomb ignores TERM, and refills itself up to that many processes whenever some are killed. It ends by itself when its time is over or
``/srv/go`` in its root is gone; ``end`` ends it in any case.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kernelview
import roots

#: Nobody's: RLIMIT_NPROC counts by user.
USER = 31_999

#: How many processes a bomb may have, and for how many seconds it may live.
PROCESSES, LIFETIME = 800, 60

#: What a bomb of each kind does.
KINDS = {
    "forks": "every process forks as often as it can",
    "re-parents": "every process forks twice as often as it can, and the one in between ends: init gets the child",
    "moves on": "every process forks once and ends: no pid is there for long",
    "leaves the cgroup": "as the first, from the root of the cgroup v2 hierarchy, where it has moved itself",
}

_PROGRAM = f"""
import os, resource, signal, sys, time

until = time.time() + {LIFETIME}
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os._exit(0)
resource.setrlimit(resource.RLIMIT_NPROC, ({PROCESSES}, {PROCESSES}))
os.setresgid({USER}, {USER}, {USER})
os.setresuid({USER}, {USER}, {USER})
kind = sys.argv[1]
if kind == "moves on":
    for _ in range({PROCESSES // 2}):
        if os.fork() == 0:
            break
    else:
        os._exit(0)
while time.time() < until and os.access("/srv/go", os.F_OK):
    between = False
    try:
        child = os.fork()
        if kind == "moves on" and child:
            os._exit(0)
        if kind == "re-parents":
            between = child == 0
            if child:
                os.waitpid(child, 0)
            elif os.fork():
                os._exit(0)
            time.sleep(0.05)
    except BlockingIOError:
        if between:
            os._exit(0)
        time.sleep(0.05)
"""

#: Runs a command, and is the init of all that it leaves behind (PR_SET_CHILD_SUBREAPER): the dead count for
#: RLIMIT_NPROC until they are reaped, and not every machine's pid 1 is quick.
_REAPER = """
import ctypes, os, subprocess, sys

done, tell = os.pipe()
if os.fork():
    os.close(tell)
    sys.exit(int(os.read(done, 9)))
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
status = subprocess.call(sys.argv[1:])
os.write(tell, str(status).encode())
os.nice(-20)
null = os.open("/dev/null", os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
"""
REAPER = (sys.executable, "-I", "-S", "-c", _REAPER)

#: What a process does that moves itself to the top of the hierarchy, if there is one.
_LEAVE = """
mkdir /srv/cg
if mount -t cgroup2 none /srv/cg; then
    echo $$ > /srv/cg/cgroup.procs
    umount /srv/cg
fi
"""


def put_into(root: Path, kind: str) -> list[str]:
    """Make a root file system one whose init script lights a bomb; the ``binds`` that the instance needs for it."""
    prefix = os.path.realpath(sys.base_prefix)
    for name in ("lib", "lib32", "lib64"):
        if os.path.islink(f"/{name}"):
            (root / name).symlink_to(os.readlink(f"/{name}"))
    (root / "etc/bomb").write_text(_PROGRAM)
    (root / "srv/go").touch()
    light = f"{os.path.realpath(sys.executable)} -I -S /etc/bomb '{kind}'"
    roots.write_init(
        root, roots.script((_LEAVE if kind.startswith("leaves") else "") + light, "true")
    )
    return ["/usr:/usr:ro"] + ([] if prefix.startswith("/usr") else [f"{prefix}:{prefix}:ro"])


def end(root: Path) -> None:
    """End whatever is left of a bomb: the kernel signals all of a user's processes at once."""
    (root / "srv/go").unlink(missing_ok=True)
    command = [
        "setpriv",
        f"--reuid={USER}",
        f"--regid={USER}",
        "--clear-groups",
        "kill",
        "-KILL",
        "--",
        "-1",
    ]
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
    kernelview.wait_until(is_out, "the bomb has ended")


def is_lit() -> bool:
    """Whether it has nearly as many processes as it may have."""
    return len(own_processes()) >= PROCESSES * 0.25


def is_out() -> bool:
    """Whether no process of a bomb lives. Asks the kernel by user first, which is quick beside 800 processes."""
    try:
        os.getpriority(os.PRIO_USER, USER)
    except ProcessLookupError:
        return True
    return not own_processes()


def own_processes() -> list[int]:
    """The processes of a bomb, zombies aside."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == USER and kernelview.is_running(int(name)):
                found.append(int(name))
        except OSError:
            continue
    return found
