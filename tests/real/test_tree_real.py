"""What ``tree`` shows of an instance: its mounts, its processes, and an outside process that holds it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from driving import Chroot


def test_a_running_instance(web1: Chroot, outside: Callable[..., subprocess.Popen[str]]) -> None:
    absent = web1.cli("tree")
    assert absent.stdout.splitlines()[0] == "web1: absent"
    web1.start()
    with (web1.root / "bin/busybox").open("rb") as held:
        holder = outside("sleep", "600", stdin=held)
    lines = web1.cli("tree").stdout.splitlines()
    assert lines[0] == "web1: running"
    mounts = lines[lines.index("mounts") + 1 : lines.index("processes")]
    assert mounts[0].startswith("└── /  ")
    assert any(line.startswith("    ├── /proc  proc ") for line in mounts)
    assert any(" └── /dev/" in line and not line.startswith("    └") for line in mounts)
    (own,) = lines[lines.index("processes") + 1 : lines.index("outside holders")]
    assert "sleep" in own
    assert f"pid {holder.pid} (sleep, root): fd {web1.root}/bin/busybox" in lines[-1]

    answer = web1.cli("tree", "--json").json()
    assert (answer["name"], answer["state"]) == ("web1", "running")
    points = {each["id"]: each for each in answer["mounts"]}
    (proc,) = [each for each in answer["mounts"] if each["target"] == "/proc"]
    assert points[proc["parent"]]["target"] == "/"
    assert [each["why"] for each in answer["processes"]] == ["cgroup", "fd"]
    holder.kill()
    holder.wait()
    web1.stop()
    assert web1.cli("tree", "--json").json()["mounts"] == []
