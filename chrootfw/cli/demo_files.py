"""The files of ``chrootfw demo``: its directory, and a disk with an init script and three daemons.

The disk is an ext4 image where one can be made and attached, else a directory. Programs and
libraries come from the host: the disk has an empty directory for each of the host's to bind.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from chrootfw.cancellation import Cancellation
from chrootfw.errors import ChrootfwError, TrustError
from chrootfw.linux import files, loop, mountinfo, syscalls
from chrootfw.planning.paths import is_within

IMAGE_BYTES = 32 << 20
_TOOL_SECONDS = 30.0
_INSTALL = "apt-get update && apt-get install e2fsprogs"

INIT_PATH = "etc/chrootfw/init"
_INIT = """\
#!/bin/sh
# chrootfw calls its init script with start, and with stop.
case $1 in
start)
    /srv/web         # a web server on a free port of 127.0.0.1
    /srv/worker      # ends when it is asked to
    /srv/stubborn    # ignores TERM
    ;;
stop)
    ;;               # what still runs gets TERM, then KILL
esac
"""

# Each daemon returns to the init script when it is ready, and goes on in the background: nothing
# has to be waited for.
_DAEMON = """\
#!/srv/python -IS
import os, signal
{}if os.fork():
    os._exit(0)
while True:
    signal.pause()
"""
_WEB = """\
#!/srv/python -IS
import os, socket
server = socket.create_server(("127.0.0.1", 0))
with open("/run/web.port", "w") as file:
    print(server.getsockname()[1], file=file)
if os.fork():
    os._exit(0)
while True:
    client, _ = server.accept()
    try:
        client.recv(4096)
        with open("/srv/page") as file:
            page = file.read() % (os.getpid(), "  ".join(sorted(os.listdir("/"))))
        client.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Type: text/plain\\r\\n\\r\\n" + page.encode())
    except OSError:
        pass
    client.close()
"""
_FILES = {
    INIT_PATH: _INIT,
    "etc/group": "root:x:0:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "srv/page": "Hello! I am pid %d, and this page is in @KIND@.\nMy / holds  %s\n",
    "srv/stubborn": _DAEMON.format("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"),
    "srv/web": _WEB,
    "srv/worker": _DAEMON.format(""),
}
_DIRECTORIES = ("dev", "etc/chrootfw", "proc", "root", "run", "srv", "sys", "tmp", "var")

#: What the daemons need is what a bare interpreter has: itself, its prefixes, the libraries that it
#: maps.
_PROBE = """
import os, socket, sys
print(os.path.realpath(sys.executable), sys.base_prefix, sys.base_exec_prefix, sep="\\n")
for line in open("/proc/self/maps"):
    fields = line.rstrip("\\n").split(None, 5)
    if len(fields) == 6 and "x" in fields[1]:
        print(fields[5])
"""


def obstacle() -> str:
    """Return what is in the way of an ext4 image as disk; empty where nothing is."""
    for program in ("mkfs.ext4", "e2fsck"):
        if _find(program) is None:
            return f"{program} is not installed ({_INSTALL})"
    reason = loop.obstacle()
    return reason and f"no loop device can be attached ({reason})"


def make_directory(*, runs_programs: bool) -> str:
    """Make a directory for everything, where chrootfw trusts the path.

    With ``runs_programs`` a file system that is not mounted noexec is preferred.
    """
    parents = list(dict.fromkeys((tempfile.gettempdir(), "/run", "/tmp", "/var/tmp")))
    if runs_programs:
        parents.sort(key=_forbids_programs)
    refusal: ChrootfwError | None = None
    for parent in parents:
        try:
            base = tempfile.mkdtemp(prefix="chrootfw-demo-", dir=os.path.realpath(parent))
        except OSError as error:
            refusal = ChrootfwError(f"the demo cannot make a directory: {error}")
            continue
        try:
            files.check_trusted(base, what="demo's directory")
        except TrustError as error:
            os.rmdir(base)
            refusal = error
        else:
            return base
    assert refusal is not None
    raise refusal


def remove(base: str, program: Sequence[str]) -> list[str]:
    """Remove the demo's directory, never through a mount; return why that could not be done.

    ``program`` is how to call chrootfw.
    """
    if left := mountinfo.list_mounts_below(os.fsencode(base)):
        stop = shlex.join(["env", f"CHROOTFW_RUN_DIR={base}/run", *program, "stop", "demo"])
        return [f"{len(left)} mounts below {base}: {stop}"]
    try:
        shutil.rmtree(base)
    except OSError as error:
        return [str(error)]
    return []


def _forbids_programs(directory: str) -> bool:
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_NOEXEC)
    except OSError:
        return True


def make_tree(rootfs: str, kind: str, cancellation: Cancellation) -> list[str]:
    """Make the directory ``rootfs``, whose page says that it is in ``kind``.

    Returns the ``binds`` that it needs to run. Raises ``OSError``, ``ChrootfwError``,
    ``Interrupted``.
    """
    python, trees = _borrowed(cancellation)
    for path in (*_DIRECTORIES, *(tree[1:] for tree in trees)):
        os.makedirs(f"{rootfs}/{path}", exist_ok=True)
    for name in filter(_holds_programs, os.listdir("/")):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{rootfs}/{name}")
    os.symlink(python, f"{rootfs}/srv/python")  # a first line may hold no long path
    for file in glob.glob("/etc/ld.so.*") + glob.glob("/etc/ld-musl-*"):
        (shutil.copytree if os.path.isdir(file) else shutil.copy)(file, rootfs + file)
    for name, text in _FILES.items():
        _write(f"{rootfs}/{name}", text.replace("@KIND@", kind))
    if libraries := os.environ.get(
        "LD_LIBRARY_PATH"
    ):  # else the interpreter would not start inside
        _write(
            f"{rootfs}/{INIT_PATH}",
            _INIT.replace("case", f"export LD_LIBRARY_PATH={shlex.quote(libraries)}\ncase", 1),
        )
    os.chmod(rootfs, 0o755)
    return [f"{tree}:{tree}:ro" for tree in trees]


def make_image(image: str, rootfs: str, cancellation: Cancellation) -> None:
    """Make an ext4 image of a directory. Raises ``OSError``, ``ChrootfwError``, ``Interrupted``."""
    with open(image, "xb") as file:
        file.truncate(IMAGE_BYTES)
    _run("mkfs.ext4", "-q", "-F", "-d", rootfs, image, cancellation=cancellation)


def bytes_used(path: str) -> int:
    """Return how many bytes a file takes on its file system, or all files below a directory."""
    paths = [path, *(f"{top}/{name}" for top, _, names in os.walk(path) for name in names)]
    return sum(os.lstat(file).st_blocks * 512 for file in paths)


def check_disk(disk: str, cancellation: Cancellation) -> str:
    """Return the report of e2fsck on a clean image.

    Args:
        disk: The path of the image.
        cancellation: What may end the check.

    Raises:
        ChrootfwError: The image is not clean.
    """
    return (
        _run("e2fsck", "-f", "-n", disk, cancellation=cancellation)
        .rpartition(f"{disk}: ")[2]
        .strip()
    )


def _borrowed(cancellation: Cancellation) -> tuple[str, list[str]]:
    """Return the interpreter, and the host's directories that it and its programs need."""
    said = _run(
        getattr(sys, "_base_executable", None) or sys.executable,
        "-ISc",
        _PROBE,
        cancellation=cancellation,
    )
    python, *prefixes = said.splitlines()[:3]
    tops = sorted(
        f"/{name}"
        for name in filter(_holds_programs, os.listdir("/"))
        if not os.path.islink(f"/{name}")
    )
    wanted = ["/usr", *tops, *map(os.path.realpath, prefixes), os.path.dirname(python)]
    wanted += [
        os.path.dirname(os.path.realpath(file))
        for file in said.splitlines()[3:]
        if os.path.isfile(file)
    ]
    trees: list[str] = []
    for directory in wanted:
        trees += _missing(directory, trees)
    return python, trees


def _holds_programs(name: str) -> bool:
    """Return whether a name in ``/`` is of programs and libraries, or a link to them."""
    return re.fullmatch(r"bin|sbin|lib\w*", name) is not None


def _missing(directory: str, trees: Sequence[str]) -> list[str]:
    """Return what to bind beside ``trees`` to see ``directory``.

    That is the directory itself, or the mounts on the way from a tree to it.
    """
    above = max((tree for tree in trees if is_within(directory, tree)), key=len, default="")
    if not above:
        return [directory] if os.path.isdir(directory) and directory != "/" else []
    parts = directory[len(above) :].split("/")[1:]
    ways = ["/".join([above, *parts[:number]]) for number in range(1, len(parts) + 1)]
    return [
        way
        for way in ways
        if syscalls.statx(way).mnt_id != syscalls.statx(os.path.dirname(way)).mnt_id
    ]


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o755 if text.startswith("#!") else 0o644)


def _find(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def _run(program: str, *arguments: str, cancellation: Cancellation) -> str:
    """Run a program of the host; what it says.

    It is apart from the terminal's signals, which are ours to notice.
    """
    path = _find(program)
    if path is None:
        raise ChrootfwError(f"the demo needs {program}, which is not installed", hint=_INSTALL)
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TOOL_SECONDS,
            process_group=0,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ChrootfwError(f"{program} cannot be run: {error}") from error
    cancellation.check()
    if done.returncode != 0:
        raise ChrootfwError(
            f"{program} exited with status {done.returncode}", done.stdout.splitlines()
        )
    return done.stdout
