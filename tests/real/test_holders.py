"""Host processes that use an instance's files: named, spared, and signalled only when that is asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import roots
from driving import Chroot, Cli
from kernelview import is_running, loops_over, mounts_below, wait_until

import chrootfw

MakeChroot = Callable[..., Chroot]
Outside = Callable[..., "subprocess.Popen[str]"]

# Python's own mmap keeps a descriptor beside the mapping.
_MAP = """
import ctypes, os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
ctypes.CDLL(None).mmap(None, ctypes.c_size_t(1), 1, 1, fd, ctypes.c_long(0))
os.close(fd)
print(flush=True)
time.sleep(3600)
"""
_SOCKET = "import socket,sys,time; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); print(flush=True); time.sleep(3600)"


def by_cwd(outside: Outside, root: Path) -> subprocess.Popen[str]:
    return outside("sleep", "3600", cwd=root / "srv")


def by_file(outside: Outside, root: Path) -> subprocess.Popen[str]:
    with (root / "etc/passwd").open() as file:
        return outside("sleep", "3600", stdin=file)


def by_deleted_file(outside: Outside, root: Path) -> subprocess.Popen[str]:
    with (root / "srv/deleted").open("w") as file:
        (root / "srv/deleted").unlink()
        return outside("sleep", "3600", stdin=file)


def by_directory(outside: Outside, root: Path) -> subprocess.Popen[str]:
    return outside("sh", "-c", 'exec 7< "$1"; exec sleep 3600', "sh", str(root / "srv"))


def by_map(outside: Outside, root: Path) -> subprocess.Popen[str]:
    return _ready(
        outside(sys.executable, "-c", _MAP, str(root / "etc/passwd"), stdout=subprocess.PIPE)
    )


def by_program(outside: Outside, root: Path) -> subprocess.Popen[str]:
    return outside(str(root / "bin/busybox"), "sleep", "3600")


def by_api_file_system(outside: Outside, root: Path) -> subprocess.Popen[str]:
    return outside("sleep", "3600", cwd=root / "dev/shm")


def by_socket(outside: Outside, root: Path) -> subprocess.Popen[str]:
    return _ready(
        outside(
            sys.executable, "-c", _SOCKET, str(root / "srv/socket"), cwd="/", stdout=subprocess.PIPE
        )
    )


def _ready(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None
    process.stdout.readline()
    return process


HOLDERS = {
    "cwd": (by_cwd, "cwd", "sleep"),
    "file": (by_file, "fd", "sleep"),
    "deleted file": (by_deleted_file, "fd", "sleep"),
    "directory": (by_directory, "fd", "sleep"),
    "map": (by_map, "map", "python"),
    "program": (by_program, "map", "busybox"),
    "in /dev/shm": (by_api_file_system, "cwd", "sleep"),
}


@pytest.fixture(params=["directory", "ext4"])
def held_by(
    request: pytest.FixtureRequest, make_chroot: MakeChroot, image: Callable[..., Path]
) -> Chroot:
    """An instance to be held, on a directory and on an image."""
    return make_chroot(
        disk=image(name="held", init=roots.script()) if request.param == "ext4" else None
    )


@pytest.mark.parametrize("kind", HOLDERS)
def test_a_holder_is_named_and_spared(held_by: Chroot, outside: Outside, kind: str) -> None:
    hold, why, command = HOLDERS[kind]
    web1 = held_by
    web1.start()
    own = web1.pids()
    holder = hold(outside, web1.root)

    stopped = web1.cli("stop", expect=4, says=["web1"])

    assert str(holder.pid) in stopped.stderr
    assert command in stopped.stderr
    assert holder.poll() is None
    assert not any(is_running(pid) for pid in own)
    info = web1.cli("info", "--json").json()["instances"][0]
    assert info["state"] == "held"
    assert [(each["pid"], each["why"]) for each in info["holders"]] == [(holder.pid, why)]

    holder.kill()
    holder.wait()
    web1.cli("cleanup")
    assert web1.is_gone()
    assert web1.state == "absent"


def test_a_holder_by_a_unix_socket(held_by: Chroot, outside: Outside) -> None:
    web1 = held_by
    web1.start()
    holder = by_socket(outside, web1.root)
    stopped = web1.cli("stop", expect=(0, 4))
    if stopped.status == 4:  # whether a bound socket keeps its mount busy is the kernel's affair
        assert str(holder.pid) in stopped.stderr
        holder.kill()
        holder.wait()
        web1.cli("cleanup")
    assert web1.is_gone()


def test_a_holder_in_a_copy_of_the_mount_namespace(
    make_chroot: MakeChroot, image: Callable[..., Path], outside: Outside
) -> None:
    web1 = make_chroot(disk=image())
    web1.start()
    holder = outside(
        "unshare",
        "--mount",
        "sh",
        "-c",
        f"cd {web1.root}; echo; exec sleep 3600",
        stdout=subprocess.PIPE,
    )
    _ready(holder)

    stopped = web1.cli("stop", expect=4, says=["web1"])
    assert str(holder.pid) in stopped.stderr
    info = web1.cli("info", "--json").json()["instances"][0]
    assert info["state"] == "held"
    assert [(each["pid"], each["why"]) for each in info["holders"]] == [(holder.pid, "cwd")]

    holder.kill()
    holder.wait()
    wait_until(lambda: not loops_over(web1.disk), "the kernel let go of the image")
    web1.cli("cleanup")
    assert web1.state == "absent"
    roots.check_image(web1.disk, "ext4")


def test_a_holder_that_is_a_loop_device(
    make_chroot: MakeChroot, image: Callable[..., Path]
) -> None:
    web1 = make_chroot(disk=image())
    web1.start()
    with (web1.root / "srv/inner.img").open("wb") as file:
        file.truncate(1 << 20)
    device = subprocess.run(
        ["losetup", "--find", "--show", str(web1.root / "srv/inner.img")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()

    stopped = web1.cli("stop", expect=4, says=["web1"])

    assert device in stopped.stderr
    subprocess.run(["losetup", "--detach", device], check=True)
    web1.cli("cleanup")
    assert web1.is_gone()


def test_somebody_elses_loop_device_over_the_image_is_not_ours(
    make_chroot: MakeChroot, image: Callable[..., Path], attach: Callable[[Path], str]
) -> None:
    web1 = make_chroot(disk=image())
    web1.start()
    device = attach(web1.disk)
    web1.cli("stop")
    assert not mounts_below(web1.root)
    assert loops_over(web1.disk) == [device]


@pytest.mark.parametrize(
    "verb", ["stop --kill-holders", "stop --kill-holders --force", "cleanup", "info"]
)
def test_a_device_that_was_ours_once_is_not_ours_for_ever(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    mounted: Callable[..., Path],
    outside: Outside,
    tmp_path: Path,
    verb: str,
) -> None:
    """The number of a loop device that was released is soon another file's: who uses that one is a stranger."""
    web1, strangers = make_chroot(disk=image()), image(name="strangers")
    web1.start()
    (device,) = loops_over(web1.disk)
    holder = _ready(
        outside(
            "unshare",
            "--mount",
            "sh",
            "-c",
            "echo; exec sleep 3600",
            stdout=subprocess.PIPE,
            cwd=web1.root / "srv",
        )
    )
    web1.cli("stop", expect=4)
    holder.kill()
    holder.wait()
    attach_it = ["losetup", device, str(strangers)]
    wait_until(
        lambda: subprocess.run(attach_it, stderr=subprocess.DEVNULL).returncode == 0,
        "the device is free",
    )
    place = mounted(tmp_path / "strangers", device)
    subprocess.run(["losetup", "--detach", device], check=True)  # happens when it is unmounted
    stranger = outside("sleep", "3600", cwd=place)

    done = web1.cli(verb)

    assert stranger.poll() is None
    assert str(stranger.pid) not in done.stdout + done.stderr
    web1.cli("cleanup")
    assert web1.state == "absent"
    stranger.kill()
    stranger.wait()


def test_held_until_the_holder_is_gone(web1: Chroot, outside: Outside) -> None:
    web1.start()
    holder = by_cwd(outside, web1.root)
    web1.cli("stop", expect=4)
    web1.cli("stop", expect=4)
    web1.cli("cleanup", expect=4, says=["web1"])
    web1.cli("start", expect=1, says=["web1"])
    web1.cli("reboot", expect=(1, 4))
    assert web1.state == "held"
    assert holder.poll() is None
    holder.kill()
    holder.wait()
    web1.cli("stop")
    assert web1.calls() == ["start", "stop"]
    assert web1.is_gone()


def test_the_librarys_error_has_the_holders(web1: Chroot, outside: Outside) -> None:
    web1.start()
    holder = by_cwd(outside, web1.root)
    with pytest.raises(chrootfw.HeldError) as error:
        web1.stop()
    (named,) = error.value.holders
    assert (named.pid, named.command, named.why) == (holder.pid, "sleep", "cwd")


def test_the_error_as_json_names_the_holders(web1: Chroot, outside: Outside) -> None:
    web1.start()
    holder = by_cwd(outside, web1.root)
    error = web1.cli("stop", "--json", expect=4).json()["error"]
    assert error["kind"] == "HeldError"
    assert "web1" in error["brief"]
    assert any(str(holder.pid) in line for line in error["details"])
    assert isinstance(error["hint"], str)


def test_a_holder_does_not_keep_a_running_instance_from_being_shown(
    web1: Chroot, outside: Outside
) -> None:
    web1.start()
    holder = by_cwd(outside, web1.root)
    info = web1.cli("info", "--json").json()["instances"][0]
    assert info["state"] == "running"
    assert [each["pid"] for each in info["holders"]] == [holder.pid]
    assert holder.pid not in web1.pids()


@pytest.mark.parametrize("how", ["flag", "definition", "library", "flag with force"])
def test_holders_are_signalled_when_that_is_asked_for(
    held_by: Chroot, outside: Outside, how: str
) -> None:
    web1 = held_by
    if how == "definition":
        web1.define(holders="kill")
    web1.start()
    holders = [by_cwd(outside, web1.root), by_file(outside, web1.root)]
    bystander = outside("sleep", "3600")

    if how == "library":
        web1.stop(kill_holders=True)
    elif how == "definition":
        web1.cli("stop")
    else:
        web1.cli("stop", "--kill-holders", *(["--force"] if "force" in how else []))

    assert all(holder.wait() < 0 for holder in holders)
    assert bystander.poll() is None
    assert web1.is_gone()


def test_who_has_the_disk_itself_open_is_named_and_never_signalled(
    make_chroot: Callable[..., Chroot], image: Callable[..., Path], outside: Outside
) -> None:
    """It may be udev, which looks at each device for a moment."""
    web1 = make_chroot(disk=image())
    web1.start()
    (device,) = loops_over(web1.disk)
    with open(device, "rb") as disk:
        opener = outside("sleep", "3600", stdin=disk)
    held = web1.cli("stop", "--kill-holders", expect=4)
    assert f"pid {opener.pid} (sleep, root): fd {device}" in held.stderr, held
    assert opener.poll() is None
    opener.kill()
    opener.wait()
    web1.cli("cleanup")
    assert web1.is_gone()


def test_a_holder_that_ignores_term_is_killed_too(web1: Chroot, outside: Outside) -> None:
    web1.start()
    holder = outside(
        "sh", "-c", "trap '' TERM; echo; exec sleep 3600", cwd=web1.root, stdout=subprocess.PIPE
    )
    _ready(holder)
    web1.cli("stop", "--kill-holders", "--timeout", "0.1")
    assert holder.wait() == -9
    assert web1.is_gone()


def test_force_alone_spares_holders(web1: Chroot, outside: Outside) -> None:
    web1.start()
    holder = by_cwd(outside, web1.root)
    web1.cli("stop", "--force", expect=4, says=["web1"])
    assert holder.poll() is None


def test_the_command_that_stops_never_signals_itself_or_those_above_it(
    web1: Chroot, cli: Cli
) -> None:
    """Run from a shell that stands in the root, as people do."""
    web1.start()
    web1.cli(
        "stop", "--kill-holders", prefix=["sh", "-c", 'cd "$0" && "$@"; status=$?; cd /; exit $status', str(web1.root)], expect=4
    )  # fmt: skip
    web1.cli("cleanup")
    assert web1.is_gone()


def test_processes_of_another_instance_are_spared(make_chroot: MakeChroot) -> None:
    web1, web2 = make_chroot("web1"), make_chroot("web2")
    web1.start()
    web2.start()
    with (web1.root / "etc/passwd").open() as file:
        web2.runtime.run(
            "web2",
            ["/bin/sh", "-c", "exec 3<&0 > /dev/null 2>&1; sleep 3600 &"],
            stdin=file,
            check=True,
        )
    neighbours = web2.pids()
    assert len(neighbours) == 2

    web1.cli("stop", "--kill-holders", "--timeout", "0.1", expect=4, says=["web1"])

    assert web2.pids() == neighbours
    web2.cli("stop")
    web1.cli("cleanup")
    assert web1.is_gone()


@pytest.mark.parametrize("how", [[], ["--force"]])
def test_a_copy_of_the_mounts_is_no_reason_for_a_signal(
    make_chroot: MakeChroot, image: Callable[..., Path], outside: Outside, how: list[str]
) -> None:
    """Every process with a mount namespace of its own has one; it keeps nothing busy by that."""
    web1 = make_chroot(disk=image())
    web1.start()
    stranger = _ready(
        outside("unshare", "--mount", "sh", "-c", "echo; exec sleep 3600", stdout=subprocess.PIPE)
    )
    web1.cli("stop", "--kill-holders", *how, expect=(0, 4))
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    wait_until(lambda: not loops_over(web1.disk), "the kernel let go of the image")
    web1.cli("cleanup")


def test_a_holder_is_signalled_only_when_something_is_busy(web1: Chroot, outside: Outside) -> None:
    """Its file is given back before the first unmount: it was in nobody's way."""
    web1.write_init(roots.script(stop="true; echo > /srv/go; while [ -e /srv/go ]; do :; done"))
    web1.start()
    program = 'exec 3< etc/passwd; until [ -e srv/go ]; do sleep 0.01; done; exec 3<&-; go=$PWD/srv/go; cd /; rm "$go"; exec sleep 3600'
    holder = outside("sh", "-c", program, cwd=web1.root)
    web1.cli("stop", "--kill-holders")
    assert holder.poll() is None
    assert web1.is_gone()


def test_a_start_of_what_is_held_by_its_disk_says_what_holds_it(
    make_chroot: Callable[..., Chroot],
    image: Callable[..., Path],
    mounted: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """The mounts are gone; a start goes on with the stop first, which cannot end."""
    web1 = make_chroot(disk=image(), init_script=False)
    web1.cli("start")
    copy = mounted(tmp_path / "copy", "--bind", str(web1.root))
    web1.cli("stop", expect=4)
    refused = web1.cli("start", expect=4, says=["web1", str(web1.disk), "in use"])
    assert str(copy) in refused.stderr
    subprocess.run(["umount", str(copy)], check=True)
    web1.cli("start")
    web1.cli("stop")
    assert web1.is_gone()
