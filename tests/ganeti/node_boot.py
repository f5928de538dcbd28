"""What a node does between power and init: ``node_boot.py NAME DISK SHARED LAYER…``, as process 1 of new namespaces.

DISK is a directory: ``written`` in it is what the node has written, over the read-only LAYERs, topmost first. SHARED is the
directory that all nodes have below /srv/ganeti. The last thing said is ``up``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

#: The first process: it takes leave of what has lost its parent, and does nothing else.
_INIT = "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True:\n    signal.pause()\n"


def main(name: str, disk: Path, shared: str, *layers: str) -> None:
    short = name.partition(".")[0]  # as Debian's installer sets it; /etc/hosts has the whole name
    socket.sethostname(short)
    root = disk / "root"
    for directory in ("written", "work", "root"):
        (disk / directory).mkdir(exist_ok=True)
    lower = ":".join(layers)
    _mount(
        "-t",
        "overlay",
        "-o",
        f"lowerdir={lower},upperdir={disk}/written,workdir={disk}/work",
        "overlay",
        root,
    )
    _mount("-t", "proc", "proc", root / "proc")
    if Path("/proc/sysrq-trigger").exists():
        _mount(
            "--bind", "/dev/null", root / "proc/sysrq-trigger"
        )  # it would restart the real machine
    _mount("-t", "sysfs", "sysfs", root / "sys")
    if Path("/sys/fs/cgroup").is_dir():
        _mount("--rbind", "/sys/fs/cgroup", root / "sys/fs/cgroup")
    _mount("--rbind", "/dev", root / "dev")
    _mount("-t", "tmpfs", "-o", "mode=755", "run", root / "run")
    _mount("-t", "tmpfs", "-o", "mode=1777", "tmp", root / "tmp")
    for directory in ("lock", "sshd"):
        (root / "run" / directory).mkdir()
    _mount("--bind", shared, root / "srv/ganeti/shared-file-storage")
    (root / "etc/hostname").write_text(f"{short}\n")
    (root / "mnt/machine").mkdir(exist_ok=True)
    os.chdir(root)
    subprocess.run(["pivot_root", ".", "mnt/machine"], check=True)
    os.chroot(".")
    subprocess.run(["umount", "--lazy", "/mnt/machine"], check=True)
    sys.stdout.write("up\n")
    sys.stdout.flush()
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.execve("/usr/bin/python3", ["init", "-c", _INIT], {})


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
