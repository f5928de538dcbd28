"""Bugs that hostile testing found, each with its own small test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driving
import kernelview
import pytest
import roots

import chrootfw
from chrootfw.linux import procfs


@pytest.mark.parametrize("disk", ["directory", "image"])
def test_a_process_in_a_mount_namespace_of_its_own_is_the_instances(
    make_chroot: Callable[..., driving.Chroot], image: Callable[..., Path], disk: str
) -> None:
    """Also without a cgroup to find it by: the copy of the mounts that its root is in tells."""
    script = roots.script("/bin/busybox unshare -m /bin/sleep 3600 & exit 0", "true")
    chroot = (
        make_chroot(init=script) if disk == "directory" else make_chroot(disk=image(init=script))
    )
    chroot.start()
    kernelview.wait_until(lambda: chroot.pids("sleep"), "the process has its own mount namespace")
    assert chroot.state == "running"
    (pid,) = chroot.pids("sleep")
    chroot.cli("stop", "--timeout", "1")
    assert not procfs.is_alive(pid), "a zombie at most, until init reaps it"
    assert chroot.is_gone()


@pytest.mark.parametrize("call", ["rename", "write"])
def test_a_kill_while_the_log_is_written_leaves_nothing_for_ever(
    web1: driving.Chroot, cli: driving.Cli, call: str
) -> None:
    log = cli.log_dir / "web1@start.log.new"
    strace = [
        "strace", "-f", "-qq", "-b", "execve", "-o", "/dev/null", "-P", str(log), "-e", f"trace={call}",
        "-e", f"inject={call}:signal=KILL",
    ]  # fmt: skip
    python = os.path.realpath(sys.executable)
    done = subprocess.run(
        [*strace, python, "-m", "chrootfw", "start", "web1"],
        env=cli.environment(),
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    web1.cli("stop")
    assert not (cli.run_dir / "web1").exists()
    web1.cli("start")
    assert not log.exists()
    web1.cli("stop")


def test_copy_replaces_a_link_that_leads_nowhere_and_gives_it_back(web1: driving.Chroot) -> None:
    link = web1.disk / "etc/resolv.conf"
    link.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    web1.define(resolv_conf="copy")
    web1.cli("start")
    assert (web1.root / "etc/resolv.conf").read_bytes() == Path("/etc/resolv.conf").read_bytes()
    web1.cli("stop")
    assert os.readlink(link) == "../run/systemd/resolve/stub-resolv.conf"
    assert sorted(os.listdir(web1.disk / "etc")) == ["chrootfw", "group", "passwd", "resolv.conf"]


def test_copy_gives_back_the_roots_own_file(web1: driving.Chroot) -> None:
    own = web1.disk / "etc/hosts"
    own.write_text("127.0.0.1 mine\n")
    web1.define(hosts="copy")
    web1.cli("start")
    assert own.read_bytes() == Path("/etc/hosts").read_bytes()
    web1.cli("stop")
    assert own.read_text() == "127.0.0.1 mine\n"


def test_what_is_no_instance_is_not_listed(web1: driving.Chroot, cli: driving.Cli) -> None:
    web1.start()
    for name in ("lost+found", "a b", "-x"):
        (cli.run_dir / name).mkdir()
    assert [i["name"] for i in cli.json("list")["instances"]] == ["web1"]
    for name in ("lost+found", "a b", "-x"):
        (cli.run_dir / name).rmdir()


def test_a_failed_start_takes_its_mount_points_back(web1: driving.Chroot) -> None:
    before = sorted(path.relative_to(web1.disk) for path in web1.disk.rglob("*"))
    web1.define(binds=["/etc:/newly/made"], init_script="/none")
    failed = web1.cli("start", expect=1)
    assert "/newly/made" in failed.stderr
    assert sorted(path.relative_to(web1.disk) for path in web1.disk.rglob("*")) == before


def test_a_bind_of_the_hosts_own_file_system_makes_no_stranger_a_holder(
    make_chroot: Callable[..., driving.Chroot],
    cli: driving.Cli,
    image: Callable[..., Path],
    attach: Callable[[Path], str],
    mounted: Callable[..., Path],
    outside: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    """The record is lost; a process outside has a file open on a file system that is bound whole into the root."""
    data = mounted(tmp_path / "data", attach(image(name="data")))
    chroot = make_chroot(binds=[f"{data}:/mnt"])
    chroot.start()
    stranger = outside("sleep", "3600", cwd=str(data))
    (cli.run_dir / "web1/record.json").unlink()
    chroot.cli("stop", "--kill-holders")
    assert stranger.poll() is None
    assert chroot.is_gone()


def test_a_record_by_a_newer_chrootfw_is_kept(web1: driving.Chroot, cli: driving.Cli) -> None:
    web1.start()
    path = cli.run_dir / "web1/record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "version": 99}))
    refused = web1.cli("stop", expect=1)
    assert "newer" in refused.brief
    assert path.exists()
    path.write_text(json.dumps(record))
    web1.cli("stop")


def test_the_number_of_a_file_system_that_is_gone_makes_no_stranger_a_holder(
    make_chroot: Callable[..., driving.Chroot],
    cli: driving.Cli,
    image: Callable[..., Path],
    outside: Callable[..., subprocess.Popen[str]],
) -> None:
    """The kernel gives the device number of an unmounted tmpfs to the next one, whoever mounts it."""
    chroot = make_chroot(disk=image())
    chroot.start()
    (device,) = kernelview.loops_over(chroot.disk)
    with open(device, "rb") as held:
        holder = outside("sleep", "3600", stdin=held)
    stopping = cli.begin("stop", "web1")
    kernelview.wait_until(lambda: not kernelview.mounts_below(chroot.root), "it is unmounted")
    mounts = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do mount -t tmpfs x /mnt; done; exec sleep 3600"
    stranger = outside("unshare", "--mount", "sh", "-c", mounts)
    refused = cli.end(stopping, expect=4, says=["the disk"])
    assert f"pid {stranger.pid} " not in refused.stderr
    holder.kill()
    holder.wait()
    chroot.cli("cleanup")
    assert chroot.is_gone()


def test_one_endless_line_of_output_is_shown_in_part(
    make_chroot: Callable[..., driving.Chroot],
) -> None:
    """Each byte that is no text is shown as a character of three bytes."""
    chroot = make_chroot(
        init=roots.script("head -c 100000 /dev/zero; echo; echo last words; exit 3")
    )
    failed = chroot.cli("start", expect=1)
    assert "last words" in failed.stderr
    assert len(failed.stderr.encode()) < 64 * 1024


def test_a_frozen_instance_is_stopped_by_its_script(web1: driving.Chroot) -> None:
    """The script is born in the frozen cgroup; it could not begin."""
    web1.start()
    (pid,) = web1.pids()
    hierarchy = kernelview.cgroup_hierarchy()
    if hierarchy is None:
        return  # nothing can be frozen
    (path,) = [
        x[3:] for x in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if x.startswith("0::")
    ]
    Path(f"{hierarchy}{path}/cgroup.freeze").write_text("1")
    assert "the stop goes on" not in web1.cli("stop").stderr
    assert web1.calls() == ["start", "stop"]
    assert web1.is_gone()


@pytest.mark.parametrize("how", [{}, {"keep_mounted": True}], ids=["stop", "keep mounted"])
def test_one_that_leaves_the_cgroup_while_it_is_stopped_is_ended_too(
    make_chroot: Callable[..., driving.Chroot], how: dict[str, Any]
) -> None:
    """After the first look at /proc, just before the first signal; and TERM it ignores."""
    top = kernelview.cgroup_hierarchy()
    web1 = make_chroot(init=roots.script(start=roots.STUBBORN, stop="true"), grace=0.5)
    web1.start()
    (pid,) = web1.pids()

    def leave(event: chrootfw.Event) -> None:
        if top and (event.what, event.stage) == ("begin", "kill") and "TERM" in event.does:
            Path(top, "cgroup.procs").write_text(str(pid))

    runtime = chrootfw.Runtime(
        run_dir=web1._cli.run_dir, config_dir=web1._cli.config_dir, on_event=leave
    )
    runtime.stop("web1", **how)
    assert not kernelview.is_running(pid)
    web1.cli("stop")
    assert web1.is_gone()


def test_whoever_has_a_file_open_on_a_device_that_was_ours_once_is_a_stranger(
    make_chroot: Callable[..., driving.Chroot],
    image: Callable[..., Path],
    mounted: Callable[..., Path],
    outside: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    """Held and let go: then the loop device is another image's, and who uses that is not to be killed."""
    web1, strangers = make_chroot(disk=image()), image(name="strangers")
    web1.start()
    (device,) = kernelview.loops_over(web1.disk)
    with open(device, "rb") as file:
        holder = outside("sleep", "3600", stdin=file)
    web1.cli("stop", expect=4)
    holder.kill()
    holder.wait()
    attach_it = ["losetup", device, str(strangers)]
    kernelview.wait_until(
        lambda: subprocess.run(attach_it, stderr=subprocess.DEVNULL).returncode == 0, "it is free"
    )
    place = mounted(tmp_path / "strangers", device)
    subprocess.run(["losetup", "--detach", device], check=True)  # happens when it is unmounted
    with (place / "etc/passwd").open() as file:
        stranger = outside("sleep", "3600", stdin=file)
    web1.cli("stop", "--kill-holders", "--timeout", "0.2")
    assert stranger.poll() is None
    assert web1.state == "absent"
    stranger.kill()
    stranger.wait()


def test_whoever_has_the_device_number_that_an_in_memory_file_system_had_is_not_named(
    make_chroot: Callable[..., driving.Chroot],
    cli: driving.Cli,
    image: Callable[..., Path],
    mounted: Callable[..., Path],
    outside: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    """The root is unmounted, and the proof waits for the disk. The numbers that /dev and /run had are others' by then."""
    web1 = make_chroot(disk=image())
    web1.start()
    (device,) = kernelview.loops_over(web1.disk)
    with open(device, "rb"):
        stop = cli.begin("stop", "web1")
        kernelview.wait_until(
            lambda: not kernelview.mounts_below(web1.root), "the root is unmounted"
        )
        # The kernel gives the lowest number that is free.
        places = [
            mounted(tmp_path / f"strangers{number}", "-t", "tmpfs", "strangers")
            for number in range(10)
        ]
        with contextlib.ExitStack() as files:
            opened = [files.enter_context((place / "file").open("w")) for place in places]
            strangers = [outside("sleep", "3600", stdin=file) for file in opened]
        held = cli.end(stop, expect=4)
    assert f"pid {os.getpid()} " in held.stderr, held
    for stranger in strangers:
        assert f"pid {stranger.pid} " not in held.stderr, held
        stranger.kill()
        stranger.wait()
    web1.cli("cleanup")


def test_processes_that_live_for_a_moment_only_are_found_without_a_cgroup(
    make_chroot: Callable[..., driving.Chroot], make_root: Callable[..., Path]
) -> None:
    """Each starts the next one and ends; a look at /proc may show none of them."""
    hops = "for n in 1 2 3 4; do /srv/hop 20000 & done"  # they end by themselves, in less than a minute
    root = make_root(init=roots.script(start=hops, stop="true"))
    roots.write_init(
        root,
        "#!/bin/sh\n[ $1 -gt 0 ] && [ -e /srv/go ] || exit\n/srv/hop $(($1 - 1)) &\n",
        name="srv/hop",
    )
    (root / "srv/go").touch()
    chroot = make_chroot(disk=root)
    try:
        chroot.start()
        chroot.cli("stop", "--timeout", "0.2")
        assert chroot.is_gone()
    finally:
        (root / "srv/go").unlink()


def test_a_mount_point_that_a_failed_start_cannot_take_back_is_told(web1: driving.Chroot) -> None:
    web1.write_init("#!/bin/sh\numount /new\n> /new/mine\nexit 3\n")
    web1.define(binds=["/etc:/new"])
    failed = web1.cli("start", expect=1)
    assert (
        "the mount point /new, which this start made in the disk, stays there: Directory not empty"
        in failed.stderr
    )
    assert (web1.disk / "new/mine").exists()


@pytest.mark.parametrize("verbs", [["stop"], ["stop --force"], ["reboot", "stop"], ["cleanup"]])
def test_a_mount_whose_path_is_longer_than_the_kernel_takes_is_unmounted(
    make_chroot: Callable[..., driving.Chroot], verbs: list[str]
) -> None:
    """Root inside makes such a path by renaming the directory that a mount is in."""
    web1 = make_chroot("web1", init_script=False, hosts="bind")
    web1.start()
    with contextlib.ExitStack() as opened:
        root = os.open(web1.root, os.O_RDONLY | os.O_DIRECTORY)
        opened.callback(os.close, root)
        place = root
        for number in range(60):
            name = f"{number:0250}"
            os.mkdir(name, dir_fd=place)
            place = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=place)
            opened.callback(os.close, place)
        os.rename("etc", "etc", src_dir_fd=root, dst_dir_fd=place)
    try:
        for verb in verbs:
            web1.cli(verb)
        assert web1.is_gone()
    finally:
        shutil.rmtree(web1.disk)  # by descriptors: other programs may not reach so deep
