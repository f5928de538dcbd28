"""A path is resolved once: what was identified and locked is what is mounted, however its names are
exchanged meanwhile."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import driving
import kernelview
import pytest
import roots

MakeChroot = Callable[..., driving.Chroot]

#: renameat2(2) with RENAME_EXCHANGE, as often as it goes.
EXCHANGE = """
import ctypes, os, sys
one, other = (os.fsencode(path) for path in sys.argv[1:])
renameat2 = ctypes.CDLL(None).renameat2
print("begun", flush=True)
while os.getppid() != 1:
    renameat2(-100, one, -100, other, 2)
"""


@contextlib.contextmanager
def exchanged(one: Path, other: Path) -> Iterator[None]:
    """Two names are exchanged all the time."""
    process = subprocess.Popen(
        [sys.executable, "-c", EXCHANGE, str(one), str(other)],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "begun\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_an_image_is_never_mounted_twice(
    make_chroot: MakeChroot, image: Callable[..., Path], tmp_path: Path
) -> None:
    used, free = image(name="used"), image(name="free")
    web1 = make_chroot("web1", disk=used, init_script=False)
    web1.start()
    names = tmp_path / "names"
    names.mkdir()
    (names / "disk").symlink_to(free)
    (names / "other").symlink_to(used)
    web2 = make_chroot("web2", disk=names / "disk", init_script=False)
    started = 0
    with exchanged(names / "disk", names / "other"):
        for _ in range(20):
            result = web2.cli("start", expect=(0, 1))
            assert len(kernelview.loops_over(used)) == 1
            if result.status == 0:
                started += 1
                assert len(kernelview.loops_over(free)) == 1
                web2.cli("stop")
    assert started, "the other image was never the one"
    web1.stop()


def test_a_directory_that_was_refused_is_never_bound(
    make_chroot: MakeChroot, make_root: Callable[..., Path], run_dir: Path, tmp_path: Path
) -> None:
    """/ and what has the run directory in it are refused; a link that leads there now and then is
    no way round."""
    good = make_root("good")
    names = tmp_path / "names"
    names.mkdir()
    (names / "disk").symlink_to(good)
    (names / "other").symlink_to("/")
    web1 = make_chroot("web1", disk=names / "disk", init_script=False)
    root = os.stat("/")
    started = 0
    with exchanged(names / "disk", names / "other"):
        for _ in range(16):
            result = web1.cli("start", expect=(0, 1))
            if result.status == 0:
                started += 1
                assert (os.stat(web1.root).st_dev, os.stat(web1.root).st_ino) != (
                    root.st_dev,
                    root.st_ino,
                )
                web1.cli("stop")
    assert started


@pytest.mark.parametrize("kind", ["directory", "image"])
def test_a_disk_that_others_can_exchange_is_warned_of(
    make_chroot: MakeChroot, cli: driving.Cli, image: Callable[..., Path], make_root: Callable[..., Path], tmp_path: Path, kind: str
) -> None:  # fmt: skip
    place = tmp_path / "place"
    place.mkdir()
    disk = (image(name="disk") if kind == "image" else make_root("tree")).rename(place / "disk")
    link = tmp_path / "link"
    link.symlink_to(disk)
    for path in (disk, link):
        web1 = make_chroot("web1", disk=path, init_script=False)
        web1.define(init_script=False)
        assert str(place) not in cli("verify").stdout
        assert web1.cli("start").stderr == ""
        web1.cli("stop")
        for change in (lambda: os.chown(place, 1234, 0), lambda: place.chmod(0o777)):
            change()
            assert f"the directory {place} " in cli("verify").stdout
            assert f"the directory {place} " in web1.cli("start").stderr
            web1.cli("stop")
            os.chown(place, 0, 0)
            place.chmod(0o755)
        place.chmod(0o1777)
        assert web1.cli("start").stderr == ""
        web1.cli("stop")
        place.chmod(0o755)


@pytest.mark.parametrize("what", ["etc/chrootfw/init", "etc/chrootfw", "etc", "home/init"])
@pytest.mark.parametrize("mistake", ["owner", "group", "others"])
def test_an_init_script_that_is_not_roots_alone_is_refused(
    make_chroot: MakeChroot, what: str, mistake: str
) -> None:
    web1 = make_chroot()
    if what == "home/init":
        (web1.disk / "home").mkdir()
        (web1.disk / "etc/chrootfw/init").rename(web1.disk / "home/init")
        (web1.disk / "etc/chrootfw/init").symlink_to("/home/init")
        what = "home"
    path = web1.disk / what
    if mistake == "owner":
        os.chown(path, 1234, 0)
    else:
        path.chmod(0o775 if mistake == "group" else 0o757)
    refused = web1.cli(
        "start",
        expect=1,
        says=["init script", "1234" if mistake == "owner" else "written by others"],
    )
    assert (
        f"/{what} in the disk" in refused.stderr
        or "chown root" in refused.stderr
        or "chmod go-w" in refused.stderr
    )
    assert web1.is_gone()
    os.chown(path, 0, 0)
    path.chmod(0o755)
    web1.cli("start")
    web1.cli("stop")


def test_an_init_script_in_a_directory_of_roots_alone_is_run_through_links(
    make_chroot: MakeChroot,
) -> None:
    web1 = make_chroot(init=roots.script(start=roots.DAEMON))
    (web1.disk / "etc/chrootfw").rename(web1.disk / "etc/chrootfw.d")
    (web1.disk / "etc/chrootfw").symlink_to("../etc/chrootfw.d")
    web1.start()
    web1.cli("stop")
    assert web1.is_gone()


@pytest.mark.parametrize("verb", ["reboot", "start"])
def test_a_bind_does_not_follow_a_link_that_was_made_inside(
    make_chroot: MakeChroot, tmp_path: Path, verb: str
) -> None:
    """A bind of a directory that is writable inside by another bind."""
    victim, shared = tmp_path / "victim", tmp_path / "shared"
    victim.mkdir()
    (shared / "sub").mkdir(parents=True)
    binds = [f"{shared}:/mnt/s", f"{shared}/sub:/mnt/t"]
    web1 = make_chroot("web1", init_script=False, binds=binds)
    web1.start()
    (web1.root / "mnt/s/sub").rename(web1.root / "mnt/s/old")
    (web1.root / "mnt/s/sub").symlink_to(victim)
    if verb == "start":
        web1.stop()
    refused = web1.cli(verb, expect=1, says=["symbolic link", f"{shared}/sub"])
    assert f'binds = ["{victim}:/mnt/t"]' in refused.stderr
    assert not os.path.ismount(web1.root / "mnt/t")
    web1.cli("cleanup")
    (shared / "sub").unlink()
    (shared / "old").rename(shared / "sub")
    web1.cli("start")
    web1.cli("stop")


def test_a_bind_from_another_instance_does_not_follow_its_links(
    make_chroot: MakeChroot, make_root: Callable[..., Path], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    (victim / "www").mkdir(parents=True)
    web1 = make_chroot("web1", disk=make_root("web1.root"), init_script=False)
    web1.start()
    (web1.root / "data").symlink_to(victim)
    for root in (web1.disk, web1.root):
        web2 = make_chroot(
            "web2", disk=make_root(f"of-{root.name}"), init_script=False, binds=[f"{root}/data/www:/srv:ro"]
        )  # fmt: skip
        refused = web2.cli("start", expect=1, says=["symbolic link", f"{root}/data"])
        assert f'binds = ["{victim}/www:/srv:ro"]' in refused.stderr
        assert web2.is_gone()
    web1.stop()


def test_the_hosts_own_files_are_bound_where_their_links_lead(make_chroot: MakeChroot) -> None:
    web1 = make_chroot("web1", init_script=False, resolv_conf="bind", hosts="bind")
    web1.start()
    assert (web1.root / "etc/resolv.conf").samefile("/etc/resolv.conf")
    web1.stop()


def test_a_disk_in_the_root_of_a_running_instance_is_warned_of(
    make_chroot: MakeChroot, make_root: Callable[..., Path], image: Callable[..., Path], tmp_path: Path
) -> None:  # fmt: skip
    """Its processes can make the path a link to any disk of the host."""
    web1 = make_chroot("web1", disk=make_root("web1.root"), init_script=False)
    inside = image(name="disk").rename(web1.disk / "disk")
    link = tmp_path / "link"
    link.symlink_to(inside)
    for disk in (inside, link):
        web2 = make_chroot("web2", disk=disk, init_script=False)
        assert web2.cli("start").stderr == ""
        web2.cli("stop")
        web1.start()
        assert f"{disk} lies in the root of instance web1" in web2.cli("start").stderr
        web2.cli("stop")
        web1.stop()


def test_a_directory_that_is_the_root_of_another_instance_is_refused(
    make_chroot: MakeChroot, make_root: Callable[..., Path]
) -> None:
    tree = make_root("tree")
    web1 = make_chroot("web1", disk=tree, init_script=False)
    web1.start()
    web2 = make_chroot("web2", disk=tree, init_script=False)
    web2.cli("start", expect=1, says=["already in use", "the root of instance web1"])
    assert web2.is_gone()
    web1.stop()
