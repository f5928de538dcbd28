"""Row 19: an instance that lives in another mount namespace is found, never called absent, never mounted twice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import driving
import kernelview
import pytest
import roots

#: Ways in which the other namespace comes to be, as arguments of unshare(1).
SPACES = {
    "private": ["--mount"],
    "slave, as with PrivateTmp=": ["--mount", "--propagation=slave"],
    "shared, as systemd makes them": ["--mount", "--propagation=shared"],
    "private with a pid namespace": ["--mount", "--pid", "--fork", "--kill-child"],
}


_SAMPLE = [("image", "shared", "slave"), ("directory", "private", "private")]


@pytest.mark.parametrize("disk", ["directory", "image"])
def test_from_outside_and_from_inside(
    make_chroot: Callable[..., driving.Chroot],
    image: Callable[..., Path],
    cli: driving.Cli,
    outside: Callable[..., subprocess.Popen[str]],
    mounted: Callable[..., Path],
    run_dir: Path,
    whole: bool,
    figure: Callable[[int, str], None],
    disk: str,
) -> None:
    web1 = make_chroot(disk=image()) if disk == "image" else make_chroot()
    mounted(run_dir, "--bind", str(run_dir))
    asked = lives = 0
    for propagation in ("shared", "private"):
        subprocess.run(["mount", f"--make-{propagation}", str(run_dir)], check=True)
        for kind, arguments in SPACES.items():
            if not whole and (disk, propagation, kind.partition(",")[0]) not in _SAMPLE:
                continue
            keeper = outside(
                "unshare",
                *arguments,
                "sh",
                "-c",
                "echo $$; exec sleep 3600",
                stdout=subprocess.PIPE,
            )
            assert keeper.stdout is not None
            keeper.stdout.readline()
            # With --fork the namespaces are those of the child.
            target = _child_of(keeper.pid) if "--fork" in arguments else keeper.pid
            there = ["nsenter", f"--mount=/proc/{target}/ns/mnt"]
            for starts, other in (([], there), (there, [])):
                hears = propagation == "shared" and (
                    "shared" in kind or ("slave" in kind and not starts)
                )
                cli("start", "web1", prefix=starts)
                (own,) = (
                    p
                    for p in cli.json("ps", "web1", prefix=starts)["processes"]
                    if p["why"] in ("cgroup", "root")
                )
                for prefix in (starts, other):
                    (listed,) = cli.json("list", prefix=prefix)["instances"]
                    assert listed["state"] == "running", (kind, prefix, listed)
                    (shown,) = cli.json("info", "web1", prefix=prefix)["instances"]
                    assert shown["state"] == "running", (kind, prefix, shown)
                    asked += 2
                if not hears:
                    (listed,) = cli.json("list", prefix=other)["instances"]
                    assert str(_namespace(starts, target)) in listed["namespace"], (kind, listed)
                    for verb in (
                        ("start", "stop", "stop --force", "cleanup", "reboot")
                        if whole
                        else ("start", "stop --force")
                    ):
                        first, *more = verb.split()
                        cli(
                            first, "web1", *more, prefix=other, expect=1, says=["web1", "namespace"]
                        )
                        asked += 1
                    cli(
                        "exec",
                        "web1",
                        "--",
                        "/bin/true",
                        prefix=other,
                        expect=125,
                        says=["web1", "namespace"],
                    )
                    assert len(_roots_in(other, target, web1.root)) == 0, kind
                assert kernelview.is_running(own["pid"])
                assert len(_roots_in(starts, target, web1.root)) == 1, kind
                if disk == "image":
                    assert len(kernelview.loops_over(web1.disk)) == 1, kind
                cli("stop", "web1", prefix=starts)
                assert not kernelview.is_running(own["pid"])
                for prefix in (starts, other):
                    assert _roots_in(prefix, target, web1.root) == [], kind
                    (listed,) = cli.json("list", prefix=prefix)["instances"]
                    assert listed["state"] == "absent", (kind, prefix, listed)
                if disk == "image":
                    kernelview.wait_until(
                        lambda: not kernelview.loops_over(web1.disk), "the image is free"
                    )
                    roots.check_image(web1.disk, "ext4")
                lives += 1
            keeper.kill()
            keeper.wait()
    figure(
        19,
        f"{lives} lives of an instance ({disk}) in or beside another mount namespace: {asked} of {asked} answers from "
        "the other side named where it runs; mounted once each time",
    )


def _child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return int(kernelview.wait_until(lambda: children.read_text().split(), "unshare has forked")[0])


def _namespace(prefix: Sequence[str], pid: int) -> int:
    return os.stat(f"/proc/{pid if prefix else 'self'}/ns/mnt").st_ino


def _roots_in(prefix: Sequence[str], pid: int, root: Path) -> list[str]:
    """The mounts on an instance's root, in the other namespace or in ours."""
    table = Path(f"/proc/{pid if prefix else 'self'}/mountinfo").read_text()
    return [line for line in table.splitlines() if line.split()[4] == str(root)]
