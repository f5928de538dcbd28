"""Mount namespaces beside ours: an instance that lives in one, and services that have a copy of our mounts."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import driving
import pytest
import roots
from driving import Chroot, Cli
from kernelview import is_running, loops_over, mounts_below, wait_until

from chrootfw.state.ownership import Judge
from chrootfw.state.snapshot import read_snapshot

MakeChroot = Callable[..., Chroot]
Outside = Callable[..., "subprocess.Popen[str]"]


class Elsewhere:
    """A private mount namespace, kept by one process, in which the command can be run."""

    def __init__(self, keeper: subprocess.Popen[str], cli: Cli) -> None:
        self.keeper = keeper
        self._cli = cli

    def __call__(self, *argv: str, **how: object) -> driving.Result:
        return self._cli(
            *argv, prefix=["nsenter", f"--mount=/proc/{self.keeper.pid}/ns/mnt"], **how
        )


@pytest.fixture
def elsewhere(outside: Outside, cli: Cli) -> Iterator[Elsewhere]:
    keeper = outside(
        "unshare", "--mount", "sh", "-c", "echo; exec sleep 3600", stdout=subprocess.PIPE
    )
    assert keeper.stdout is not None
    keeper.stdout.readline()
    place = Elsewhere(keeper, cli)
    yield place
    place("stop", "web1", "--force", expect=(0, 1))  # 1: it lives here meanwhile


def test_an_instance_elsewhere_is_never_called_absent(
    web1: Chroot, cli: Cli, elsewhere: Elsewhere
) -> None:
    elsewhere("start", "web1")
    (pid,) = (each["pid"] for each in elsewhere("ps", "web1", "--json").json()["processes"])

    assert mounts_below(web1.root) == []
    (listed,) = cli.json("list")["instances"]
    assert listed["state"] != "absent"
    assert listed["namespace"]
    assert "namespace" in web1.cli("info").stdout
    for verb in ("stop", "stop --force", "cleanup", "reboot", "start"):
        web1.cli(verb, expect=1, says=["web1", "namespace"])
    web1.cli("exec", "--", "/bin/true", expect=125, says=["web1", "namespace"])
    assert is_running(pid)

    elsewhere("stop", "web1")
    assert not is_running(pid)
    assert web1.state == "absent"
    assert web1.calls() == ["start", "stop"]
    web1.cli("start")


def test_an_instance_elsewhere_whose_processes_are_gone_but_not_its_mounts(
    web1: Chroot, elsewhere: Elsewhere
) -> None:
    elsewhere("start", "web1", "--no-init")
    assert web1.state != "absent"
    web1.cli("start", expect=1, says=["web1", "namespace"])


def test_an_image_in_use_elsewhere_is_not_used_twice(
    make_chroot: MakeChroot, image: Callable[..., Path], elsewhere: Elsewhere
) -> None:
    disk = image()
    make_chroot("web1", disk=disk)
    web2 = make_chroot("web2", disk=disk)
    elsewhere("start", "web1")
    web2.cli("start", expect=1, says=[str(disk)])
    elsewhere("stop", "web1")
    roots.check_image(disk, "ext4")
    web2.cli("start")


@pytest.fixture
def shared(run_dir: Path, mounted: Callable[..., Path]) -> Path:
    """A shared run directory, as every directory is on a machine with systemd."""
    mounted(run_dir, "--bind", str(run_dir))
    subprocess.run(["mount", "--make-shared", str(run_dir)], check=True)
    return run_dir


def test_a_service_with_a_slave_copy_of_our_mounts_holds_nothing(
    make_chroot: MakeChroot, image: Callable[..., Path], outside: Outside, shared: Path
) -> None:
    """As with PrivateTmp= and the like: made after the start, it hears of the unmount."""
    web1 = make_chroot(disk=image())
    web1.start()
    service = outside(
        "unshare",
        "--mount",
        "--propagation=slave",
        "sh",
        "-c",
        "echo; exec sleep 3600",
        stdout=subprocess.PIPE,
    )
    assert service.stdout is not None
    service.stdout.readline()
    assert str(web1.root) in Path(f"/proc/{service.pid}/mountinfo").read_text()

    web1.cli("stop")

    wait_until(lambda: not loops_over(web1.disk), "the image is free")
    assert str(web1.root) not in Path(f"/proc/{service.pid}/mountinfo").read_text()
    assert service.poll() is None
    roots.check_image(web1.disk, "ext4")


@pytest.mark.parametrize("inside", ["/", "/dev"])
@pytest.mark.parametrize("kind", ["directory", "image"])
def test_who_has_his_root_in_a_copy_of_our_mounts_is_ours(
    make_chroot: MakeChroot, make_root: Callable[..., Path], image: Callable[..., Path], outside: Outside,
    mounted: Callable[..., Path], tmp_path: Path, kind: str, inside: str,
) -> None:  # fmt: skip
    """And no one else's, also where both instances are in one file system."""
    disks = [image(name="one"), image(name="two")]
    if kind == "directory":
        place = mounted(tmp_path / "place", "-t", "tmpfs", "tmpfs")
        disks = [place / name for name in ("one", "two")]
        for disk in disks:
            shutil.copytree(make_root(disk.name), disk, symlinks=True)
    web1, web2 = (
        make_chroot(name, disk=disk) for name, disk in zip(("web1", "web2"), disks, strict=True)
    )
    web1.start()
    program = (
        f"import os; os.chroot('{web1.root}{inside}'); os.chdir('/'); print(flush=True); input()"
    )
    process = outside(
        "unshare",
        "--mount",
        sys.executable,
        "-c",
        program,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    web2.start()
    snapshot = read_snapshot(str(web1.runtime.run_dir))
    assert process.pid in Judge(snapshot, "web1").read_own().pids
    assert process.pid not in Judge(snapshot, "web2").read_own().pids
    web2.cli("stop")
    assert process.poll() is None
    web1.cli("stop")
    assert process.wait(10) == -signal.SIGTERM


def test_a_whole_life_in_a_shared_run_directory(
    make_chroot: MakeChroot, image: Callable[..., Path], shared: Path
) -> None:
    web1 = make_chroot(disk=image())
    web1.cli("start")
    web1.runtime.run("web1", ["/bin/mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True)
    web1.cli("reboot")
    web1.cli("stop", "--keep-mounted")
    web1.cli("cleanup")
    assert web1.is_gone()
    roots.check_image(web1.disk, "ext4")


def test_a_daemon_that_chroots_into_what_others_have_too_is_its_own(
    make_chroot: MakeChroot, tmp_path: Path, hierarchy: Path
) -> None:
    """As a server does with the directory that it serves; its parents have ended."""
    assert hierarchy  # without a cgroup nothing tells whose it is
    shared = tmp_path / "shared"
    shared.mkdir()
    shutil.copy(shutil.which("busybox") or "/bin/busybox", shared / "busybox")
    daemon = "(chroot /data /busybox sleep 3600 </dev/null >/dev/null 2>&1 &)"
    binds = [f"{shared}:/data"]
    web1 = make_chroot(init=roots.script(daemon, "true"), binds=binds, namespaces=["ipc"])
    web2 = make_chroot("web2", binds=binds)
    web2.cli("start")
    others = web2.pids()
    web1.cli("start")
    (pid,) = web1.pids()
    assert web2.pids() == others
    assert "runs outside" not in web1.cli("stop").stderr
    assert not is_running(pid)
    assert web1.is_gone()
    assert web2.pids() == others
    web2.cli("stop")
