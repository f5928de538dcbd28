"""Copies of an instance's mounts in mount namespaces of strangers: they are unmounted there, and no stranger is signalled."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import roots
from driving import Chroot
from kernelview import loops_over, wait_until

MakeChroot = Callable[..., Chroot]
Stranger = Callable[..., "subprocess.Popen[str]"]

_WAITS = "echo; exec sleep 3600"


@pytest.fixture
def stranger(outside: Callable[..., subprocess.Popen[str]]) -> Stranger:
    """A factory of processes in mount namespaces of their own: ``stranger(commands, *options of unshare)``."""

    def make(commands: str = "", *options: str) -> subprocess.Popen[str]:
        script = f"set -e; {commands}{'; ' if commands else ''}{_WAITS}"
        process = outside(
            "unshare",
            *(options or ("--mount", "--propagation", "private")),
            "sh",
            "-c",
            script,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    return make


@pytest.fixture
def web1(make_chroot: MakeChroot, image: Callable[..., Path]) -> Iterator[Chroot]:
    """An instance on an image, running, with mounts of its own inside."""
    chroot = make_chroot(disk=image())
    chroot.start()
    chroot.runtime.run(
        "web1", ["/bin/sh", "-c", "mkdir -p /mnt/a; mount -t tmpfs t /mnt/a"], check=True
    )
    yield chroot
    roots.check_image(chroot.disk, "ext4")


def table_of(process: subprocess.Popen[str]) -> str:
    return Path(f"/proc/{process.pid}/mountinfo").read_text()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def assert_stopped(chroot: Chroot, *strangers: subprocess.Popen[str]) -> None:
    wait_until(lambda: not loops_over(chroot.disk), "the image is free")
    assert chroot.is_gone()
    assert chroot.state == "absent"
    for process in strangers:
        assert process.poll() is None
        assert str(chroot.root) not in table_of(process)


@pytest.mark.parametrize("verb", ["stop", "stop --force", "stop --kill-holders"])
def test_a_copy_is_unmounted_in_the_strangers_namespace(
    web1: Chroot, stranger: Stranger, verb: str
) -> None:
    one = stranger()
    assert str(web1.root) in table_of(one)
    web1.cli(verb)
    assert_stopped(web1, one)
    web1.cli("start")
    web1.cli("stop")


def test_several_namespaces_with_many_processes(
    web1: Chroot, stranger: Stranger, outside: Callable[..., subprocess.Popen[str]]
) -> None:
    strangers = [stranger() for _ in range(3)]
    more = [
        outside("nsenter", f"--mount=/proc/{strangers[0].pid}/ns/mnt", "sleep", "3600")
        for _ in range(8)
    ]
    web1.cli("stop")
    assert_stopped(web1, *strangers)
    assert all(each.poll() is None for each in more)


PLACES = {
    "pivoted": (
        "mkdir {tmp}/new; mount -t tmpfs t {tmp}/new; mkdir {tmp}/new/old; cp /bin/busybox {tmp}/new/; cd {tmp}/new; "
        "pivot_root . old; exec ./busybox sh -c 'echo; exec ./busybox sleep 3600'"
    ),
    "recursively bound elsewhere": "mkdir {tmp}/all; mount --rbind / {tmp}/all",
    "chrooted": "exec chroot {busybox} /bin/busybox sh -c 'echo; exec /bin/busybox sleep 3600'",
    "the run directory elsewhere": "mkdir {tmp}/all; mount --rbind {run} {tmp}/all",
    "mounted upon by the stranger": "mount -t tmpfs t {root}/mnt/a; mount -t tmpfs t {root}/mnt",
    "stacked": "mount --bind {root} {root}",
    "a namespace in a namespace": "exec unshare --mount sh -c 'echo; exec sleep 3600'",
    "odd names": "mkdir '{root}/mnt/a b\\c'; mount -t tmpfs t '{root}/mnt/a b\\c'",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_copy_in_any_place_there(
    web1: Chroot,
    stranger: Stranger,
    make_root: Callable[..., Path],
    tmp_path: Path,
    run_dir: Path,
    place: str,
) -> None:
    commands = PLACES[place].format(
        tmp=tmp_path,
        run=run_dir,
        root=web1.root,
        busybox=make_root("other") if place == "chrooted" else "",
    )
    one = stranger(commands)
    web1.cli("stop")
    wait_until(lambda: not loops_over(web1.disk), "the image is free")
    assert one.poll() is None
    assert web1.state == "absent"


def test_a_thread_with_a_namespace_of_its_own(
    web1: Chroot, outside: Callable[..., subprocess.Popen[str]]
) -> None:
    program = """
import ctypes, threading, time
def body():
    libc = ctypes.CDLL(None)
    assert libc.unshare(0x20000 | 0x200) == 0
    assert libc.mount(None, b"/", None, ctypes.c_ulong(0x44000), None) == 0
    print(flush=True)
    time.sleep(3600)
threading.Thread(target=body).start()
"""
    process = outside(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    web1.cli("stop")
    assert_stopped(web1)
    assert process.poll() is None


def test_what_is_used_there_is_a_holder(web1: Chroot, stranger: Stranger) -> None:
    user = stranger(f"cd {web1.root}/srv")
    idle = stranger()
    stopped = web1.cli("stop", expect=4, says=["web1"])
    assert f"pid {user.pid} " in stopped.stderr
    assert str(idle.pid) not in stopped.stderr
    info = web1.cli("info", "--json").json()["instances"][0]
    assert (info["state"], [(each["pid"], each["why"]) for each in info["holders"]]) == (
        "held",
        [(user.pid, "cwd")],
    )
    assert str(web1.root) not in table_of(idle)
    web1.cli("start")
    assert len(loops_over(web1.disk)) == 1
    web1.cli("stop", expect=4)
    end(user)
    web1.cli("cleanup")
    assert_stopped(web1, idle)


REFUSED = {
    "locked in another user namespace": (
        "",
        ["--user", "--map-root-user", "--mount"],
        "user namespace",
    ),
    "covered by a later mount": ("mount -t tmpfs t {run}", [], "covered"),
    "mounted on purpose elsewhere": ("mkdir {tmp}/x; mount --bind {root} {tmp}/x", [], "{tmp}/x"),
    "a part of it on purpose where a copy might be": (
        "mkdir -p {tmp}/web1/root; mount --bind {root}/srv {tmp}/web1/root",
        [],
        "{tmp}/web1/root",
    ),
    "a part of it on purpose": ("mkdir {tmp}/x; mount --bind {root}/srv {tmp}/x", [], "{tmp}/x"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_kernel_refuses_holds_and_start_works(
    web1: Chroot, stranger: Stranger, tmp_path: Path, run_dir: Path, kind: str
) -> None:
    commands, options, words = REFUSED[kind]
    paths = {"tmp": tmp_path, "run": run_dir, "root": web1.root}
    one = stranger(commands.format(**paths), *options)
    (device,) = loops_over(web1.disk)

    stopped = web1.cli("stop", "--kill-holders", expect=4, says=["web1"])

    assert words.format(**paths) in stopped.stderr
    assert str(one.pid) in stopped.stderr
    assert "kill" not in stopped.stderr
    assert one.poll() is None
    info = web1.cli("info", "--json").json()["instances"][0]
    assert (info["state"], [(each["pid"], each["why"]) for each in info["holders"]]) == (
        "held",
        [(one.pid, "namespace")],
    )

    web1.cli("start")
    assert web1.state == "running"
    assert loops_over(web1.disk) == [device]
    assert web1.cli("exec", "--", "/bin/cat", "/var/calls").stdout.split()[-1] == "start"
    web1.cli("stop", expect=4)
    hint = stopped.stderr.split("hint: ")[1].split(";")[0]
    if "nsenter" in hint:
        subprocess.run(shlex.split(hint), check=True)
    else:
        end(one)
    wait_until(lambda: web1.cli("cleanup", expect=(0, 4)).status == 0, "it can be cleaned up")
    assert_stopped(web1)


@pytest.mark.parametrize("by", ["descriptor", "file"])
def test_a_namespace_without_a_process(
    web1: Chroot, stranger: Stranger, outside: Callable[..., subprocess.Popen[str]], tmp_path: Path, by: str,
    mounted: Callable[..., Path],
) -> None:  # fmt: skip
    one = stranger()
    if by == "descriptor":
        with open(f"/proc/{one.pid}/ns/mnt") as namespace:
            keeper = outside("sleep", "3600", stdin=namespace)
        words = f"pid {keeper.pid} "
    else:
        words = str(tmp_path / "namespace")
        (tmp_path / "namespace").touch()
        # The kernel refuses one that it takes for older than ours; numbers are given out by processor.
        while subprocess.run(
            ["mount", "--bind", f"/proc/{one.pid}/ns/mnt", words], check=False
        ).returncode:
            end(one)
            one = stranger()
    end(one)
    (device,) = loops_over(web1.disk)
    stopped = web1.cli("stop", expect=4, says=["web1"])
    assert words in stopped.stderr
    assert "no process" in stopped.stderr
    assert web1.state == "held"
    web1.cli("start")
    assert loops_over(web1.disk) == [device]
    web1.cli("stop", expect=4)
    if by == "descriptor":
        end(keeper)
    else:
        subprocess.run(shlex.split(stopped.stderr.split("hint: ")[1].split(";")[0]), check=True)
    wait_until(lambda: web1.cli("cleanup", expect=(0, 4)).status == 0, "it can be cleaned up")
    assert_stopped(web1)


def test_namespaces_that_appear_during_the_stop(
    web1: Chroot, outside: Callable[..., subprocess.Popen[str]]
) -> None:
    maker = outside(
        "unshare", "--mount", "sh", "-c", "echo; while :; do unshare --mount sleep 0.3 & sleep 0.02; done",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert maker.stdout is not None
    maker.stdout.readline()
    web1.cli("stop")
    assert_stopped(web1, maker)
    end(maker)


def test_a_block_device(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    attach: Callable[[Path], str],
    stranger: Stranger,
) -> None:
    device = attach(image())
    chroot = make_chroot(disk=Path(device))
    chroot.start()
    one, locked = stranger(), stranger("", "--user", "--map-root-user", "--mount")
    stopped = chroot.cli("stop", expect=4, says=["web1"])
    assert str(one.pid) not in stopped.stderr
    assert str(locked.pid) in stopped.stderr
    chroot.cli("start")
    assert chroot.state == "running"
    end(locked)
    chroot.cli("stop")
    assert str(chroot.root) not in table_of(one)


@pytest.mark.parametrize(
    ("change", "says"), [({"read_only": True}, "read"), ({"fstype": "xfs"}, "ext4")]
)
def test_a_start_that_wants_another_file_system_is_refused(
    web1: Chroot, stranger: Stranger, change: dict[str, object], says: str
) -> None:
    locked = stranger("", "--user", "--map-root-user", "--mount")
    web1.cli("stop", expect=4)
    web1.define(**change)
    refused = web1.cli("start", expect=1, says=[str(web1.disk)])
    assert says in refused.stderr
    assert "damaged" not in refused.stderr
    assert web1.state == "held"
    web1.define(init_script="/does/not/exist")
    web1.cli("start", expect=1)  # undone, as far as that goes
    assert web1.state == "held"
    web1.define()
    web1.cli("start")
    end(locked)
    web1.cli("stop")
    assert_stopped(web1)


def test_another_instance_may_not_use_the_disk_meanwhile(
    web1: Chroot, make_chroot: MakeChroot, stranger: Stranger
) -> None:
    locked = stranger("", "--user", "--map-root-user", "--mount")
    web1.cli("stop", expect=4)
    web2 = make_chroot("web2", disk=web1.disk)
    web2.cli("start", expect=1, says=[str(web1.disk)])
    end(locked)
    wait_until(lambda: web1.cli("cleanup", expect=(0, 4)).status == 0, "it can be cleaned up")
    assert_stopped(web1)


def test_a_start_after_a_mount_of_ours_elsewhere_is_refused(
    web1: Chroot, mounted: Callable[..., Path], tmp_path: Path
) -> None:
    """In our own namespace a bind of the disk is its user's."""
    place = mounted(tmp_path / "place", "--bind", str(web1.root / "srv"))
    web1.cli("stop", expect=4)
    assert str(place) in web1.cli("start", expect=4, says=["web1"]).stderr
    subprocess.run(["umount", str(place)], check=True)
    web1.cli("start")
    web1.cli("stop")
    assert_stopped(web1)


def test_a_running_instance_is_not_held_by_strangers(web1: Chroot, stranger: Stranger) -> None:
    stranger()
    assert web1.cli("info", "--json").json()["instances"][0]["holders"] == []
    web1.cli("reboot")
    web1.cli("stop")
    assert_stopped(web1)


def test_a_neighbour_of_the_same_name_in_a_namespace_is_spared(
    web1: Chroot, stranger: Stranger, tmp_path: Path, run_dir: Path
) -> None:
    """What is mounted on the same path there is not ours if its device is not."""
    one = stranger(
        f"mount -t tmpfs t {run_dir}; mkdir -p {run_dir}/web1/root; mount -t tmpfs mine {run_dir}/web1/root"
    )
    web1.cli("stop", expect=4)
    assert " mine " in table_of(one)
    end(one)
    wait_until(lambda: web1.cli("cleanup", expect=(0, 4)).status == 0, "it can be cleaned up")
    assert os.path.exists(run_dir)
    assert tmp_path.exists()
