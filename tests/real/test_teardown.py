"""Whatever was mounted inside, by whomever and however named, is gone after a stop; nothing outside is touched."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import roots
from driving import Chroot
from kernelview import mount_table, mounts_below

MakeChroot = Callable[..., Chroot]

MOUNTS_INSIDE = {
    "one": "mount -t tmpfs t /mnt",
    "nested": "mount -t tmpfs t /mnt; mkdir -p /mnt/a/b; mount -t tmpfs t /mnt/a; mkdir /mnt/a/b; mount -t tmpfs t /mnt/a/b",
    "stacked": "mount -t tmpfs t /mnt; mount -t tmpfs t /mnt; mount -t tmpfs t /mnt",
    "stacked on the root": "mount --bind / /; mount --bind / /",
    "stacked on /proc": "mount -t proc p /proc; mount -t proc p /proc",
    "hidden": "mount -t tmpfs t /mnt; mkdir -p /mnt/x/y; mount -t tmpfs t /mnt/x/y; mount -t tmpfs t /mnt",
    "hidden with the same names": (
        "mount -t tmpfs t /mnt; mkdir /mnt/x; mount -t tmpfs t /mnt/x; mount -t tmpfs t /mnt; mkdir /mnt/x; mount -t tmpfs t /mnt/x"
    ),
    "moved": "mount -t tmpfs t /mnt; mkdir /srv/there; mount --move /mnt /srv/there",
    "bound recursively": "mkdir /srv/all; mount --rbind / /srv/all",
    "a file": "touch /srv/file; mount --bind /etc/passwd /srv/file",
    "shared": "mount --make-rshared /; mkdir /srv/peer; mount --bind /mnt /srv/peer; mount -t tmpfs t /mnt",
    "many": "for n in $(seq 200); do mkdir /mnt/$n; mount -t tmpfs t /mnt/$n; done",
    "deep": "d=/mnt; for n in $(seq 30); do mount -t tmpfs t $d; d=$d/d; mkdir $d; done",
}


@pytest.mark.parametrize("by", ["init script", "exec"])
@pytest.mark.parametrize("kind", MOUNTS_INSIDE)
def test_mounts_made_inside(make_chroot: MakeChroot, kind: str, by: str) -> None:
    commands = f"set -e; {MOUNTS_INSIDE[kind]}; set +e;"
    web1 = make_chroot(
        init=roots.script(start=(commands if by == "init script" else "") + roots.DAEMON)
    )
    before = mount_table()
    web1.start()
    if by == "exec":
        web1.runtime.run("web1", ["/bin/sh", "-c", commands], check=True)
    web1.cli("stop")
    assert mount_table() == before


#: Mounts whose root directory answers no statx(2): that of a process that has ended.
UNANSWERED = {
    "a directory of /proc": "mount --bind /proc/self/fd /mnt",
    "stacked": "mount -t tmpfs t /mnt; mount --bind /proc/self/fd /mnt; mount -t tmpfs t /srv",
    "below another": "mount -t tmpfs t /mnt; mkdir /mnt/a; mount --bind /proc/self/fd /mnt/a; mount -t tmpfs t /srv",
    "a file": "touch /srv/file; mount --bind /proc/self/status /srv/file",
    "on the root": "mount --bind /proc/self/fd /",
}


@pytest.mark.parametrize("kind", UNANSWERED)
def test_a_mount_whose_root_answers_nothing_is_unmounted(
    make_chroot: MakeChroot, kind: str
) -> None:
    web1 = make_chroot()
    before = mount_table()
    web1.start()
    web1.runtime.run("web1", ["/bin/sh", "-c", f"set -e; {UNANSWERED[kind]}"], check=True)
    assert web1.state == "running"
    assert web1.pids()

    web1.cli("stop")

    assert mount_table() == before
    assert web1.state == "absent"


def test_what_covers_an_instance_is_named(
    web1: Chroot, run_dir: Path, mounted: Callable[..., Path]
) -> None:
    """No path leads to its mounts."""
    web1.start()
    place = mounted(run_dir / "web1", "-t", "tmpfs", "cover")
    held = web1.cli("stop", expect=4)
    assert f"covered by what was mounted on {place}" in held.stderr
    assert f"umount {place}" in held.stderr
    subprocess.run(["umount", str(place)], check=True)
    web1.cli("stop")
    assert web1.is_gone()


def test_a_bind_whose_source_answers_nothing_is_refused_or_unmounted(
    make_chroot: MakeChroot,
) -> None:
    web1 = make_chroot(binds=["/proc/self/fd:/mnt"])
    before = mount_table()
    started = web1.cli("start", expect=(0, 1))
    assert started.status == 0 or "/proc/self/fd" in started.stderr  # refused by name
    web1.cli("stop")
    assert mount_table() == before


ODD_NAMES = {
    "space": b"a b",
    "newline": b"a\nb",
    "tab and backslash": b"a\tb\\c",
    "an escape as text": b"a\\040b",
    "no UTF-8": b"\xff\xfe\x80",
    "UTF-8": "\u00fc\u2028\u65e5\u672c".encode(),
    "line ends of other people": b"a\rb\x0bc\x0cd\x1ce\x85f",
    "looks deleted": b"a (deleted)",
    "looks like an option": b"-rf",
    "a hash": b"#1",
    "longest": b"n" * 255,
    "a bell": b"\x07\x1b[31m",
}


@pytest.mark.quick
@pytest.mark.parametrize("kind", ODD_NAMES)
def test_mounts_with_odd_names(web1: Chroot, kind: str) -> None:
    name = ODD_NAMES[kind]
    before = mount_table()
    web1.start()
    target = bytes(web1.root) + b"/mnt/" + name
    for path in (target, target + b"/" + name):
        Path(path.decode("utf-8", "surrogateescape")).mkdir()
        subprocess.run([b"mount", b"-t", b"tmpfs", b"odd", b"--", path], check=True)
    assert sum(mount.source == "odd" for mount in mounts_below(web1.root)) == 2
    web1.cli("info")
    web1.cli("info", "--json")
    web1.cli("plan stop")
    web1.cli("stop")
    assert mount_table() == before


@pytest.mark.quick
def test_mounts_made_from_outside(
    web1: Chroot, tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    host = mounted(tmp_path / "host", "-t", "tmpfs", "tmpfs")
    (host / "kept").touch()
    web1.start()
    subprocess.run(["mount", "--bind", str(host), str(web1.root / "mnt")], check=True)
    web1.cli("stop")
    assert web1.is_gone()
    assert (host / "kept").exists()


@pytest.mark.quick
def test_a_mount_made_while_it_is_stopped(make_chroot: MakeChroot) -> None:
    """The stop script itself mounts something."""
    web1 = make_chroot(init=roots.script(stop="mount -t tmpfs t /mnt; mount -t tmpfs t /mnt"))
    web1.start()
    web1.cli("stop")
    assert web1.is_gone()


# -- symbolic links in the root -------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of the host at which a hostile root points."""
    path = tmp_path / "victim"
    path.mkdir()
    (path / "shm").mkdir()
    (path / "file").write_text("the host's")
    return path


LINKED = {
    "/proc": {},
    "/sys": {},
    "/dev": {},
    "/run": {},
    "/mnt": {"binds": ["{other}:/mnt"]},
    "/srv": {"binds": ["{other}:/srv/deeper"]},
}


@pytest.mark.quick
@pytest.mark.parametrize("link", LINKED)
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_a_link_in_the_root_never_leads_to_the_host(
    web1: Chroot, victim: Path, tmp_path: Path, link: str, relative: bool
) -> None:
    (tmp_path / "other").mkdir()
    web1.define(
        **{
            key: [each.format(other=tmp_path / "other") for each in value]
            for key, value in LINKED[link].items()
        }
    )
    place = web1.disk / link.lstrip("/")
    place.rmdir()
    place.symlink_to(f"{'../' * 20}{str(victim)[1:]}" if relative else victim)
    before = mount_table()

    started = web1.cli("start", expect=(0, 1))

    assert mounts_below(victim) == []
    assert sorted(path.name for path in victim.iterdir()) == ["file", "shm"]
    if started.status == 1:
        assert link in started.stderr
    web1.cli("stop")
    assert mount_table() == before
    assert (victim / "file").read_text() == "the host's"


@pytest.mark.parametrize("way", ["copy", "bind"])
@pytest.mark.parametrize("link", ["etc/resolv.conf", "etc"])
def test_resolver_files_never_reach_the_host(
    web1: Chroot, victim: Path, way: str, link: str
) -> None:
    victim.joinpath("resolv.conf").write_text("the host's")
    if link == "etc":
        (web1.disk / "etc").rename(web1.disk / "real-etc")
        (web1.disk / "etc").symlink_to(victim)
        web1.define(resolv_conf=way, init_script=False)
    else:
        (web1.disk / link).symlink_to(victim / "resolv.conf")
        web1.define(resolv_conf=way)
    web1.cli("start", expect=(0, 1))
    assert mounts_below(victim) == []
    assert victim.joinpath("resolv.conf").read_text() == "the host's"
    web1.cli("stop")
    assert sorted(path.name for path in victim.iterdir()) == ["file", "resolv.conf", "shm"]
    assert victim.joinpath("resolv.conf").read_text() == "the host's"


@pytest.mark.parametrize("name", ["proc", "mnt", "dev/shm"])
def test_a_link_put_in_later_never_leads_an_unmount_to_the_host(
    make_chroot: MakeChroot, victim: Path, mounted: Callable[..., Path], name: str
) -> None:
    """The instance moves its mount away and puts a link to a mount of the host in its place."""
    mounted(victim / "shm", "-t", "tmpfs", "of-the-host")
    swap = f"mkdir /srv/away; mount -t tmpfs t /{name}; mount --move /{name} /srv/away; umount -l /{name}; rmdir /{name}; ln -s {victim}/shm /{name}"
    web1 = make_chroot(init=roots.script(start=f"{roots.DAEMON}; {swap}"))
    web1.start()
    web1.cli("stop")
    assert [mount.source for mount in mounts_below(victim)] == ["of-the-host"]
    assert web1.is_gone()


def test_in_a_shared_run_directory_nothing_of_the_host_is_unmounted(
    web1: Chroot, run_dir: Path, tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    """On a machine with systemd every mount is shared: what happens inside reaches the peers, and nobody else."""
    host = mounted(tmp_path / "host", "-t", "tmpfs", "tmpfs")
    subprocess.run(["mount", "--make-shared", str(host)], check=True)
    (host / "inner").mkdir()
    mounted(host / "inner", "-t", "tmpfs", "inner")
    web1.define(binds=[f"{host}:/mnt"])
    mounted(run_dir, "--bind", str(run_dir))
    subprocess.run(["mount", "--make-shared", str(run_dir)], check=True)
    before = mount_table()

    web1.cli("start")
    web1.runtime.run(
        "web1",
        ["/bin/sh", "-c", "mkdir /srv/x; mount -t tmpfs t /srv/x; umount -l /mnt; umount -l /proc"],
        check=True,
    )
    web1.cli("stop")

    assert mount_table() == before
