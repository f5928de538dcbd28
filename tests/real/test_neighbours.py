"""What one instance, or a user of the host, makes in the kernel's name spaces decides nothing about another instance."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import driving
import kernelview
import leaks
import pytest
import roots

import chrootfw
from chrootfw.cli import main
from chrootfw.lifecycle import kill
from chrootfw.state import holders as system_holders
from chrootfw.state import ownership, show

MakeChroot = Callable[..., driving.Chroot]
Outside = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def home(hierarchy: Path, run_dir: Path) -> Path:
    """Where the cgroups of the run directory are."""
    return hierarchy / "chrootfw" / kernelview.identity(run_dir)


@pytest.fixture
def forge(home: Path) -> Iterator[Callable[..., Path]]:
    """Make a cgroup as an instance's root user can that has mounted the hierarchy, with some processes in it."""
    made: list[Path] = []

    def make(name: str, *pids: int) -> Path:
        path = home / name
        path.mkdir(parents=True)
        made.append(path)
        for pid in pids:
            (path / "cgroup.procs").write_text(str(pid))
        return path

    yield make
    for path in made:
        if path.is_dir():
            for pid in (path / "cgroup.procs").read_text().split():
                (home.parent.parent / "cgroup.procs").write_text(pid)
            path.rmdir()
    for path in (home, home.parent):
        if path.is_dir() and not any(each.is_dir() for each in path.iterdir()):
            path.rmdir()


def cgroup_of(web1: driving.Chroot, home: Path) -> Path:
    (path,) = home.glob(f"{web1.name}@[0-9]*")
    return path


def listed(cli: driving.Cli) -> dict[str, tuple[str, int]]:
    return {
        each["name"]: (each["state"], each["processes"]) for each in cli.json("list")["instances"]
    }


def test_names_that_others_make_are_no_instances(
    web1: driving.Chroot, cli: driving.Cli, forge: Callable[..., Path], outside: Outside
) -> None:
    web1.start()
    stranger = outside("sleep", "3600")
    names = (
        "web1@²",
        "web1@٣",
        "bank\033[2K\033[1Aproduction@1",
        "web2@²",
        "@1",
        "web1@",
        "a b@1",
        "web1@" + "7" * 200,
    )
    for name in names:
        forge(name)
    forge("db1@1", stranger.pid)

    assert listed(cli) == {"web1": ("running", 1)}
    assert "\033" not in cli("list").stdout
    cli("info", "db1", expect=3)
    cli("stop", "db1", expect=3)
    web1.cli("info")
    web1.cli("exec", "--", "/bin/true")
    web1.cli("stop")
    web1.cli("start")
    web1.cli("stop")
    assert web1.is_gone()
    assert kernelview.is_running(stranger.pid)


def test_a_name_does_not_make_a_cgroup_an_instances(
    web1: driving.Chroot, cli: driving.Cli, forge: Callable[..., Path], outside: Outside
) -> None:
    """The start record says which one is."""
    stranger = outside("sleep", "3600")
    web1.start()
    forged = forge("web1@77", stranger.pid)
    assert listed(cli) == {"web1": ("running", 1)}
    web1.cli("stop", "--force")
    assert kernelview.is_running(stranger.pid)
    assert web1.is_gone()
    assert listed(cli) == {"web1": ("absent", 0)}
    web1.cli("start")
    assert listed(cli) == {"web1": ("running", 1)}
    web1.cli("stop")
    assert kernelview.is_running(stranger.pid)
    stranger.kill()
    stranger.wait()
    web1.cli("start")
    web1.cli("stop")
    assert not forged.exists(), "an empty one is a leftover"


def test_a_leftover_that_is_empty_goes_with_a_start_and_a_stop(
    web1: driving.Chroot, forge: Callable[..., Path]
) -> None:
    left = [forge("web1@7"), forge("web1@8")]
    web1.cli("stop")
    assert not any(each.exists() for each in left)


def test_a_process_that_moves_to_another_instances_cgroup_stays_its_own_instances(
    make_chroot: MakeChroot, cli: driving.Cli, home: Path
) -> None:
    v1, w1 = make_chroot("v1"), make_chroot("w1")
    v1.start()
    w1.start()
    (pid,) = w1.pids()
    (cgroup_of(v1, home) / "cgroup.procs").write_text(str(pid))
    assert listed(cli) == {"v1": ("running", 1), "w1": ("running", 1)}
    assert pid not in v1.pids()
    assert pid in w1.pids()

    v1.cli("stop", "--force", "--kill-holders")
    assert kernelview.is_running(pid)
    assert v1.is_gone()
    w1.cli("stop", "--timeout", "1")
    assert not kernelview.is_running(pid)
    assert w1.is_gone()


@pytest.mark.parametrize("how", [[], ["--force"], ["--kill-holders"], ["--keep-mounted"]])
def test_one_of_another_instance_is_ended_by_its_own_stop(
    make_chroot: MakeChroot, home: Path, how: list[str]
) -> None:
    v1, w1 = make_chroot("v1"), make_chroot("w1")
    v1.start()
    w1.start()
    (pid,) = w1.pids()
    own = v1.pids()
    (cgroup_of(v1, home) / "cgroup.procs").write_text(str(pid))
    w1.cli("stop", "--timeout", "1", *how)
    assert not kernelview.is_running(pid)
    assert v1.pids() == own
    w1.cli("stop")


@pytest.mark.parametrize(
    "how", [[], ["--force"], ["--kill-holders"], ["--force", "--kill-holders"], ["--keep-mounted"]]
)
def test_a_process_of_the_hosts_that_is_moved_into_the_cgroup_is_not_ended(
    web1: driving.Chroot, cli: driving.Cli, home: Path, outside: Outside, how: list[str]
) -> None:
    web1.start()
    own = web1.pids()
    strangers = [
        outside("sleep", "3600"),
        outside("sh", "-c", "trap '' TERM; exec sleep 3600"),
        outside("unshare", "--mount", "sleep", "3600"),
    ]
    cgroup = cgroup_of(web1, home)
    for each in strangers:
        (cgroup / "cgroup.procs").write_text(str(each.pid))
    kernelview.wait_until(
        lambda: Path(f"/proc/{strangers[2].pid}/comm").read_text() == "sleep\n", "it has begun"
    )
    assert listed(cli) == {"web1": ("running", 1)}
    assert web1.pids() == own

    stopped = web1.cli("stop", *how)

    for each in strangers:
        assert each.poll() is None
        assert f"pid {each.pid} " in stopped.stderr
    assert not any(kernelview.is_running(pid) for pid in own)
    web1.cli("stop")
    assert web1.is_gone()
    assert not cgroup.exists()


def test_a_stranger_that_cannot_be_judged_is_named(
    web1: driving.Chroot, home: Path, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has no descriptor left at the moment when its pidfd is opened."""
    web1.start()
    stranger = outside("sleep", "3600")
    (cgroup_of(web1, home) / "cgroup.procs").write_text(str(stranger.pid))
    opened = os.pidfd_open

    def refuse(pid: int, *flags: int) -> int:
        if pid == stranger.pid:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        return opened(pid, *flags)

    monkeypatch.setattr(os, "pidfd_open", refuse)
    events: list[chrootfw.Event] = []
    monkeypatch.setattr(web1.runtime, "on_event", events.append)

    web1.stop()

    assert stranger.poll() is None
    assert web1.state == "absent"
    warnings = [event.does for event in events if event.what == "warning"]
    assert any(f"pid {stranger.pid} " in text for text in warnings), warnings


def test_an_instance_in_whose_cgroup_only_a_stranger_is_does_not_run(
    make_chroot: MakeChroot, cli: driving.Cli, home: Path, outside: Outside
) -> None:
    web1 = make_chroot(init=roots.script("true", "true"))
    web1.start()
    stranger = outside("sleep", "3600")
    (cgroup_of(web1, home) / "cgroup.procs").write_text(str(stranger.pid))
    assert listed(cli) == {"web1": ("mounted", 0)}
    web1.cli("cleanup")
    assert stranger.poll() is None
    assert web1.is_gone()


def test_what_an_own_process_has_started_is_its_own_in_whatever_root(
    make_chroot: MakeChroot, home: Path
) -> None:
    """A child that has left the root by a root of its own is a descendant of the instance's."""
    script = roots.script(
        "/bin/busybox unshare -m /bin/sh -c '/bin/mkdir -p /srv/n; /bin/mount -t tmpfs none /srv/n; cd /srv/n; "
        "/bin/mkdir -p bin lib proc old; /bin/cp /bin/busybox bin/; /bin/busybox pivot_root . old; "
        "exec /bin/busybox sleep 3600' & exec /bin/sleep 3600 &",
        "true",
    )
    web1 = make_chroot(init=script)
    web1.start()
    own = {int(pid) for pid in (cgroup_of(web1, home) / "cgroup.procs").read_text().split()}
    web1.cli("stop", "--timeout", "1")
    assert not any(kernelview.is_running(pid) for pid in own)
    assert web1.is_gone()


def test_the_cgroup_of_an_instance_has_limits(web1: driving.Chroot, home: Path) -> None:
    web1.start()
    for file in ("cgroup.max.depth", "cgroup.max.descendants"):
        assert int((cgroup_of(web1, home) / file).read_text()) < 10_000


def test_cgroups_nested_deeper_than_anything(
    make_chroot: MakeChroot, cli: driving.Cli, home: Path
) -> None:
    """1,024 below each other, as the root user inside can make them; the last one with a process."""
    v1, w1 = make_chroot("v1"), make_chroot("w1")
    w1.start()
    v1.start()
    (pid,) = v1.pids()
    top = cgroup_of(v1, home)
    (top / "cgroup.max.depth").write_text("max")
    fd = os.open(top, os.O_RDONLY)
    for _ in range(1024):
        os.mkdir("d" * 100, dir_fd=fd)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=fd)
    os.write(procs, str(pid).encode())
    os.close(procs)
    os.close(fd)
    assert listed(cli) == {"v1": ("running", 1), "w1": ("running", 1)}
    w1.cli("stop")
    v1.cli("stop", "--timeout", "5")
    assert not kernelview.is_running(pid)
    assert v1.is_gone()
    assert not top.exists()


def test_cgroups_by_the_thousand_do_not_hold_up_others(
    make_chroot: MakeChroot, cli: driving.Cli, home: Path
) -> None:
    v1, w1 = make_chroot("v1"), make_chroot("w1")
    v1.start()
    w1.start()
    top = cgroup_of(v1, home)
    (top / "cgroup.max.descendants").write_text("max")
    for number in range(3000):
        (top / str(number)).mkdir()
    assert listed(cli) == {"v1": ("running", 1), "w1": ("running", 1)}
    w1.cli("stop")
    v1.cli("stop")
    assert not top.exists()


def test_a_frozen_cgroup_holds_up_nobody_else(
    make_chroot: MakeChroot, cli: driving.Cli, home: Path
) -> None:
    v1, w1 = make_chroot("v1"), make_chroot("w1")
    v1.start()
    w1.start()
    inner = cgroup_of(v1, home) / "inner"
    inner.mkdir()
    (pid,) = v1.pids()
    (inner / "cgroup.procs").write_text(str(pid))
    (inner / "cgroup.freeze").write_text("1")
    assert listed(cli)["w1"] == ("running", 1)
    w1.cli("info")
    w1.cli("stop")
    v1.cli("stop")
    assert v1.is_gone()


@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_roots_umask_shuts_nobody_out(web1: driving.Chroot, home: Path, umask: int) -> None:
    web1.cli("start", preexec_fn=lambda: os.umask(umask))
    for place in (home.parent, home, cgroup_of(web1, home)):
        assert place.stat().st_mode & 0o777 == 0o755


def test_a_hierarchy_that_an_instance_has_mounted_is_not_the_hosts(
    make_chroot: MakeChroot, cli: driving.Cli, home: Path, outside: Outside
) -> None:
    """In a mount namespace without one, as on a host that has none."""
    v1, w1 = make_chroot("v1"), make_chroot("w1")
    hide = "while umount $(findmnt -n -o TARGET -t cgroup2 | head -1) 2>/dev/null; do :; done; echo; exec sleep 3600"
    keeper = outside(
        "unshare", "--mount", "--propagation", "private", "sh", "-c", hide, stdout=subprocess.PIPE
    )
    assert keeper.stdout is not None
    keeper.stdout.readline()
    prefix = ["nsenter", "--mount", "--target", str(keeper.pid)]
    w1.cli("start", prefix=prefix)
    inside = w1.root / "mnt/cg"
    (w1.disk / "mnt/cg").mkdir(parents=True)
    subprocess.run([*prefix, "mount", "-t", "cgroup2", "none", str(inside)], check=True)
    v1.cli("start", prefix=prefix)
    assert not home.exists(), "the instance's mount shows the same hierarchy"
    shown = {
        each["name"]: each for each in cli("list", "--json", prefix=prefix).json()["instances"]
    }
    assert shown["v1"]["tracking"] == "root"
    v1.cli("exec", "--", "/bin/true", prefix=prefix)
    w1.cli("stop", prefix=prefix)
    v1.cli("stop", prefix=prefix)
    assert not home.exists()


_BIND = """
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
print(flush=True)
time.sleep(3600)
"""
_PRETEND = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 0x44000, None) == 0
assert libc.mount(b"none", sys.argv[2].encode(), b"tmpfs", 0, None) == 0
os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True)
"""


def by_socket(outside: Outside, path: Path, before: str = "", *more: str) -> subprocess.Popen[str]:
    holder = outside(
        sys.executable, "-c", before + _BIND, str(path), *more, cwd="/", stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "\n"
    return holder


@pytest.mark.parametrize("how", [["--kill-holders"], ["--kill-holders", "--force"]])
def test_the_path_of_a_socket_makes_no_holder(
    web1: driving.Chroot, cli: driving.Cli, outside: Outside, how: list[str]
) -> None:
    """It is text: what a process has bound in another mount namespace, by a path that looks like the instance's."""
    web1.start()
    stranger = by_socket(outside, web1.root / "srv/S.gpg-agent", _PRETEND, str(cli.run_dir.parent))
    holder = outside("sleep", "3600", cwd=web1.root)
    shown = [
        (each["pid"], each["why"]) for each in cli.json("info", "web1")["instances"][0]["holders"]
    ]
    assert (holder.pid, "cwd") in shown
    assert (stranger.pid, "socket") not in shown
    web1.cli("stop", *how)
    assert stranger.poll() is None
    assert holder.wait() < 0
    assert web1.is_gone()


@pytest.mark.parametrize("disk", ["directory", "image"])
def test_a_socket_that_is_bound_inside_is_found_by_its_file(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    cli: driving.Cli,
    outside: Outside,
    disk: str,
) -> None:
    web1 = make_chroot() if disk == "directory" else make_chroot(disk=image())
    web1.start()
    holder = by_socket(outside, web1.root / "srv/socket")
    (named,) = cli.json("info", "web1")["instances"][0]["holders"]
    assert (named["pid"], named["why"], named["what"]) == (
        holder.pid,
        "socket",
        str(web1.root / "srv/socket"),
    )
    holder.kill()
    holder.wait()


_LISTEN = """
import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1].replace("@", chr(0)))
s.listen()
print(flush=True)
time.sleep(3600)
"""
_SEND = """
import array, os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1].replace("@", chr(0)))
fd = os.open(sys.argv[2], os.O_RDONLY)
s.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
"""


def test_a_file_in_flight_is_suspected_where_something_waits(
    make_chroot: MakeChroot, image: Callable[..., Path], outside: Outside, tmp_path: Path
) -> None:
    """It is in the queue of a process that has not taken it, and perhaps never does; it gets no signal."""
    web1 = make_chroot(disk=image())
    web1.start()
    name = f"@{tmp_path}"
    listener = outside(sys.executable, "-c", _LISTEN, name, cwd="/", stdout=subprocess.PIPE)
    assert listener.stdout is not None
    listener.stdout.readline()
    subprocess.run(
        [sys.executable, "-c", _SEND, name, str(web1.root / "etc/passwd")], check=True, cwd="/"
    )
    held = web1.cli("stop", "--kill-holders", expect=4)
    assert f"may be held by pid {listener.pid} " in held.stderr
    assert name in held.stderr
    assert listener.poll() is None
    listener.kill()
    listener.wait()
    web1.cli("cleanup")
    assert web1.is_gone()


_MAPS = """
import ctypes, mmap, os, sys, time
os.chdir(sys.argv[1])
for _ in range(14):
    os.makedirs("x" * 250, exist_ok=True)
    os.chdir("x" * 250)
fd = os.open("f", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8192)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
for n in range(int(sys.argv[2])):
    libc.mmap(None, ctypes.c_size_t(4096), 1 + n % 2 * 2, 2, fd, ctypes.c_long(4096 * (n % 2)))
os.close(fd)
os.chdir("/")
print(flush=True)
time.sleep(3600)
"""
_DESCRIPTORS = """
import os, resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]) + 100, int(sys.argv[2]) + 100))
for _ in range(int(sys.argv[2])):
    os.dup(1)
print(flush=True)
time.sleep(3600)
"""
_THREADS = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
def body():
    assert libc.unshare(0x400) == 0
    for _ in range(40):
        os.dup(1)
    ready.release()
    time.sleep(3600)
ready = threading.Semaphore(0)
threading.stack_size(65536)
for _ in range(int(sys.argv[2])):
    threading.Thread(target=body, daemon=True).start()
    ready.acquire()
print(flush=True)
time.sleep(3600)
"""
_MOUNTS = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 0x44000, None) == 0
assert libc.mount(b"none", b"/mnt", b"tmpfs", 0, None) == 0
for number in range(int(sys.argv[2])):
    path = b"/mnt/" + b"%d" % number
    os.mkdir(path)
    assert libc.mount(b"/mnt", path, None, 0x1000, None) == 0
print(flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize(
    ("program", "count"), [(_MAPS, 400), (_DESCRIPTORS, 3000), (_THREADS, 60), (_MOUNTS, 3000)],
    ids=["maps", "descriptors", "threads", "mounts"],
)  # fmt: skip
@pytest.mark.parametrize("is_read", [True, False], ids=["read", "given up"])
def test_what_a_process_makes_large_hides_no_other(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    outside: Outside,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    count: int,
    is_read: bool,
) -> None:
    large = outside(
        sys.executable, "-c", program, str(tmp_path), str(count), cwd="/", stdout=subprocess.PIPE
    )
    assert large.stdout is not None
    assert large.stdout.readline() == "\n"
    web1 = make_chroot(disk=image())
    web1.start()
    if not is_read:
        monkeypatch.setattr(system_holders, "_SECONDS_EACH", 0.0)
    else:
        monkeypatch.setattr(system_holders, "_SECONDS_EACH", 60.0)
        monkeypatch.setattr(system_holders, "_SECONDS", 60.0)
    holder = outside("sleep", "3600", cwd=web1.root)

    info = web1.runtime.info("web1")

    assert holder.pid in {each.pid for each in info.holders or ()}
    notes = [note for note in info.notes if "not examined" in note]
    assert any(f"pid {large.pid} " in note for note in notes) != is_read
    shown = show.all_processes(web1.runtime.run_dir, web1.runtime.config_dir, "web1")
    assert (large.pid in shown.unexamined) != is_read
    with pytest.raises(chrootfw.HeldError) as error:
        web1.stop()
    assert any(str(holder.pid) in line for line in error.value.details)
    assert (
        any("not examined" in line and f"pid {large.pid} " in line for line in error.value.details)
        != is_read
    )
    assert large.poll() is None
    for each in (holder, large):
        each.kill()
        each.wait()
    web1.cli("cleanup")


@pytest.mark.parametrize(
    "program", [_MAPS, _DESCRIPTORS, _THREADS], ids=["maps", "descriptors", "threads"]
)
def test_what_is_large_is_examined_to_its_end_where_there_is_time(
    web1: driving.Chroot,
    outside: Outside,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
) -> None:
    """The tie is the last that is read: a large process that holds is found."""
    web1.start()
    for limit in ("_SECONDS_EACH", "_SECONDS"):
        monkeypatch.setattr(system_holders, limit, 60.0)
    last = (
        f"import os; os.fchdir(os.open({str(web1.root / 'srv')!r}, os.O_RDONLY)); os.chdir('/')\n"
    )
    large = outside(
        sys.executable, "-c", program.replace("print(flush", last + "print(flush"), str(tmp_path), "1500" if program != _THREADS else "60",
        cwd="/", stdout=subprocess.PIPE,
    )  # fmt: skip
    assert large.stdout is not None
    assert large.stdout.readline() == "\n"
    info = web1.runtime.info("web1")
    assert [(each.pid, each.why) for each in info.holders or ()] == [(large.pid, "fd")]
    large.kill()
    large.wait()


def as_a_user(call: Callable[[], object]) -> str:
    """What a call of the library comes to for an ordinary user, in a process of its own; called once before, since that user may
    not be able to read the modules that it imports."""
    with contextlib.suppress(chrootfw.ChrootfwError):
        call()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            try:
                said = f"{call()}"
            except chrootfw.ChrootfwError as error:
                said = f"{error.brief}; {error.hint}"
            except BaseException as error:
                said = repr(error)
            os.write(write, said.encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


@pytest.fixture
def tree_for_users(tmp_path: Path) -> Iterator[None]:
    """The directories of the test can be entered by everybody, as the machine's own can."""
    above = [
        each for each in tmp_path.parents if each.stat().st_uid == 0 and not each.stat().st_mode & 1
    ]
    modes = {each: each.stat().st_mode for each in (tmp_path, *above)}
    for each, mode in modes.items():
        each.chmod(mode | 0o755)
    yield
    for each, mode in modes.items():
        each.chmod(mode)


@pytest.mark.parametrize("verb", ["list", "info", "processes", "plan"])
def test_a_user_who_may_not_read_is_told_in_one_sentence(
    web1: driving.Chroot, home: Path, tree_for_users: None, verb: str
) -> None:
    web1.start()
    home.chmod(0o700)
    calls: dict[str, Callable[[], object]] = {
        "list": web1.runtime.list,
        "info": lambda: web1.runtime.info("web1"),
        "processes": lambda: web1.runtime.processes("web1"),
        "plan": lambda: web1.runtime.plan("stop", "web1"),
    }
    said = as_a_user(calls[verb])
    assert said.startswith("cannot read")
    assert "sudo" in said


@pytest.fixture
def shut(tmp_path: Path, ground: leaks.Ground, tree_for_users: None) -> Path:
    """A directory of root's that others cannot enter, with an empty run directory and one definition."""
    place = tmp_path / "shut"
    for name in ("run", "definitions"):
        (place / name).mkdir(parents=True)
    ground.know_run_dir(place / "run")
    (place / "definitions/web1.toml").write_text('disk = "/usr"\n')
    place.chmod(0o700)
    return place


@pytest.mark.parametrize("verb", ["list", "info", "processes"])
def test_a_user_who_may_not_look_is_not_told_that_there_is_none(shut: Path, verb: str) -> None:
    runtime = chrootfw.Runtime(run_dir=shut / "run", config_dir=shut.parent / "none")
    calls: dict[str, Callable[[], object]] = {
        "list": runtime.list,
        "info": lambda: runtime.info("web1"),
        "processes": lambda: runtime.processes("web1"),
    }
    said = as_a_user(calls[verb])
    assert said == (
        f"cannot look at the run directory {shut}/run: Permission denied; run it with sudo, or as root"
    )


@pytest.mark.parametrize("verb", [["list"], ["list", "--json"], ["info", "web1"], ["verify"]])
def test_definitions_that_a_user_may_not_read_are_not_called_absent(
    shut: Path, tmp_path: Path, verb: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run-of-all"
    run_dir.mkdir()
    given = ["--run-dir", str(run_dir), "--config-dir", str(shut / "definitions"), *verb]
    capfd.readouterr()
    as_a_user(lambda: main.main(given))
    said = "".join(capfd.readouterr())
    assert "does not exist" not in said
    assert "none is defined" not in said
    assert f"{shut}/definitions" in said
    assert "Permission denied" in said


@pytest.mark.parametrize("place", ["home", "the one above"])
def test_a_run_directory_of_ones_own_is_read_whatever_root_has_shut(
    web1: driving.Chroot, home: Path, tree_for_users: None, tmp_path: Path, place: str
) -> None:
    web1.start()
    mine = tmp_path / "mine"
    mine.mkdir()
    os.chown(mine, 65534, 65534)
    runtime = chrootfw.Runtime(run_dir=mine, config_dir=web1.runtime.config_dir)
    web1.runtime.list()
    before = home.parent.stat().st_mode
    shut = home if place == "home" else home.parent
    shut.chmod(0o700)
    try:
        said = as_a_user(lambda: [(info.name, info.state.value) for info in runtime.list()])
    finally:
        home.parent.chmod(before)
    assert said == "[('web1', 'absent')]"


def test_verify_names_the_cgroups_that_belong_to_none(
    web1: driving.Chroot, cli: driving.Cli, forge: Callable[..., Path]
) -> None:
    web1.start()
    forge("db1@3")
    forge("web1@9")
    forge("bank\033[2K@1")
    shown = cli("verify", expect=(0, 1)).stdout
    assert "db1@3" in shown
    assert "web1@9" in shown
    assert "bank" in shown
    assert "\033[2K" not in shown


def test_one_instance_that_cannot_be_read_keeps_no_other_from_being_shown(
    make_chroot: MakeChroot, monkeypatch: pytest.MonkeyPatch
) -> None:
    v1, w1 = make_chroot("v1"), make_chroot("w1")
    v1.start()
    w1.start()
    read_tracked = ownership.Judge.read_tracked

    def fail(judge: ownership.Judge) -> ownership.OwnProcesses:
        if judge.name == "v1":
            raise OSError(5, "Input/output error")
        return read_tracked(judge)

    monkeypatch.setattr(ownership.Judge, "read_tracked", fail)
    shown = {info.name: info for info in v1.runtime.list()}
    assert shown["w1"].state == "running"
    assert any("Input/output error" in note for note in shown["v1"].notes)
    checks = {check.name: check for check in v1.runtime.verify()}
    assert checks["instance w1"].status == "ok"
    assert checks["instance v1"].status == "error"
    assert v1.runtime.node_info().instances == 2
    w1.stop()
    monkeypatch.undo()


def test_an_instance_that_makes_its_cgroup_threaded_holds_up_nobody(
    make_chroot: MakeChroot, cli: driving.Cli, hierarchy: Path, home: Path
) -> None:
    """It can where it is the only one; then no cgroup beside it is a domain."""
    v1, w1 = make_chroot("v1", log="off"), make_chroot("w1")
    v1.start()
    own = v1.pids()
    top = cgroup_of(v1, home)
    for pid in own:
        (hierarchy / "cgroup.procs").write_text(str(pid))
    (top / "cgroup.type").write_text("threaded")
    for pid in own:
        (top / "cgroup.procs").write_text(str(pid))
    w1.cli("start")
    assert listed(cli) == {"v1": ("running", 1), "w1": ("running", 1)}
    assert v1.pids() == own
    w1.cli("info")
    w1.cli("stop")
    v1.cli("stop", "--force")
    assert not any(kernelview.is_running(pid) for pid in own)
    assert v1.is_gone()


def test_a_cgroup_that_is_frozen_above_is_thawed(web1: driving.Chroot, home: Path) -> None:
    """One that may write in it may freeze all."""
    web1.start()
    (home / "cgroup.freeze").write_text("1")
    assert "the stop goes on" not in web1.cli("stop").stderr
    assert web1.calls() == ["start", "stop"]


def test_a_start_below_a_frozen_cgroup_is_refused_at_once(
    web1: driving.Chroot, make_chroot: MakeChroot, home: Path
) -> None:
    """It may be frozen on purpose, so only a stop thaws it."""
    web1.start()
    (home / "cgroup.freeze").write_text("1")
    try:
        web2 = make_chroot("web2")
        refused = web2.cli("start", expect=1)
        assert f"the cgroup {home} is frozen" in refused.stderr
        assert f"hint: echo 0 > {home}/cgroup.freeze" in refused.stderr
        assert web2.is_gone()
    finally:
        (home / "cgroup.freeze").write_text("0")
    web2.cli("start")
    assert web1.calls() == ["start"]


def test_names_by_the_thousand_in_the_directory_of_cgroups(
    make_chroot: MakeChroot, cli: driving.Cli, home: Path, outside: Outside
) -> None:
    v1, w1 = make_chroot("v1"), make_chroot("w1")
    v1.start()
    w1.start()
    for number in range(2, 2002):
        (home / f"v1@{number}").mkdir()
    assert listed(cli) == {"v1": ("running", 1), "w1": ("running", 1)}
    w1.cli("stop")
    v1.cli("stop")
    for path in home.glob("v1@[0-9]*"):
        path.rmdir()
    home.rmdir() if home.exists() else None


def test_a_service_of_the_hosts_is_none_of_an_instance_that_has_the_hosts_root(
    web1: driving.Chroot, home: Path, outside: Outside
) -> None:
    """It has a mount namespace of its own, as systemd gives one, and the root that is bound."""
    web1.define(binds=["/:/mnt:ro"])
    web1.start()
    service = outside(
        "unshare", "--mount", "sh", "-c", "echo; exec sleep 3600", stdout=subprocess.PIPE
    )
    assert service.stdout is not None
    service.stdout.readline()
    (cgroup_of(web1, home) / "cgroup.procs").write_text(str(service.pid))
    assert service.pid not in web1.pids()
    assert f"pid {service.pid} " in web1.cli("stop").stderr
    assert service.poll() is None
    assert web1.is_gone()


def test_processes_by_the_hundred_that_are_moved_into_the_cgroup(
    make_chroot: MakeChroot, cli: driving.Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are not judged or moved in time get no signal; the instance is stopped all the same."""
    many = roots.script("i=0; while [ $i -lt 100 ]; do /bin/sleep 3600 & i=$((i+1)); done", "true")
    v1, w1 = make_chroot("v1"), make_chroot("w1", init=many)
    v1.start()
    w1.start()
    moved, own = w1.pids(), v1.pids()
    for pid in moved:
        (cgroup_of(v1, home) / "cgroup.procs").write_text(str(pid))
    assert listed(cli) == {"v1": ("running", 1), "w1": ("running", 100)}
    monkeypatch.setattr(ownership, "_JUDGE_SECONDS", -1.0)
    monkeypatch.setattr(kill, "_MOVING", 0.01)
    v1.stop()
    assert not any(kernelview.is_running(pid) for pid in own)
    assert all(kernelview.is_running(pid) for pid in moved)
    assert v1.state == "absent"
    monkeypatch.undo()
    w1.cli("stop", "--timeout", "5")
    assert not any(kernelview.is_running(pid) for pid in moved)
    v1.cli("stop")
