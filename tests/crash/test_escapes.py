"""A hostile root and hostile processes in a hardened instance, with witnesses outside that nothing may touch.

The host's interpreter is a copy that belongs to the test; the files, processes and disks that are attacked are the test's own, and a sysctl is
written with the value that it has.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import kernelview
import pytest
import roots
from driving import Chroot, Cli

import chrootfw
from chrootfw_hardened import hardening

MakeChroot = Callable[..., Chroot]


@pytest.fixture
def runtime(run_dir: Path, config_dir: Path) -> chrootfw.Runtime:
    return chrootfw.Runtime([hardening], run_dir=str(run_dir), config_dir=str(config_dir))


class Witness:
    """A file of the host that nothing may read or change."""

    TEXT = "canary-of-the-host\n"

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text(self.TEXT)
        path.chmod(0o600)
        self.before = self.look()

    def look(self) -> tuple[bytes, int, int, int]:
        status = self.path.stat()
        return self.path.read_bytes(), status.st_mode, status.st_uid, status.st_gid

    def check(self, *shown: str) -> None:
        assert self.look() == self.before
        for text in shown:
            assert self.TEXT.strip() not in text


@pytest.fixture
def canary(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "canary")


# -- the interpreter --------------------------------------------------------------------------------------


@pytest.fixture
def interpreter(tmp_path: Path) -> Path:
    """A Python of the test's own, as a file."""
    place = tmp_path / "venv"
    venv.create(place, symlinks=False, with_pip=False)
    return Path(os.path.realpath(place / "bin/python3"))


def by(interpreter: Path, cli: Cli, *argv: str) -> subprocess.CompletedProcess[str]:
    """``chrootfw`` run by that interpreter."""
    environment = {
        **cli.environment(),
        "PYTHONPATH": os.pathsep.join(
            filter(None, [*sys.path, cli.environment().get("PYTHONPATH")])
        ),
    }
    return subprocess.run(
        [interpreter, "-m", "chrootfw", *argv], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip


_ADDRESS = 0x10000000


def _loader() -> bytes:
    """A dynamic linker (elf(5), x86_64) that opens ``/proc/self/exe``, and executes ``/bin/sh /srv/evil`` with that as descriptor 3."""
    strings = {
        name: text
        for name, text in (
            ("exe", b"/proc/self/exe\0"),
            ("sh", b"/bin/sh\0"),
            ("evil", b"/srv/evil\0"),
        )
    }
    begin = 64 + 56 + 64
    places, at = {}, _ADDRESS + begin
    for name, text in strings.items():
        places[name] = at
        at += len(text)
    argv = at
    code = b"\xbf\x9c\xff\xff\xff"  # mov $AT_FDCWD, %edi
    code += b"\x48\xc7\xc6" + struct.pack("<I", places["exe"])
    code += b"\xba\x00\x00\x20\x00\x45\x31\xd2\xb8\x01\x01\x00\x00\x0f\x05"  # openat(…, O_PATH, 0)
    code += b"\x48\xc7\xc7" + struct.pack("<I", places["sh"])
    code += b"\x48\xc7\xc6" + struct.pack("<I", argv)
    code += b"\x31\xd2\xb8\x3b\x00\x00\x00\x0f\x05"  # execve(…)
    data = b"".join(strings.values()) + struct.pack("<3Q", places["sh"], places["evil"], 0)
    size = begin + len(data)
    header = b"\x7fELF\2\1\1" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _ADDRESS + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 4096)
    return header + segment + code.ljust(64, b"\0") + data


def _linker_of(program: Path) -> str:
    """The dynamic linker that a program asks for (PT_INTERP)."""
    data = program.read_bytes()[:65536]
    offset, size, count = (
        struct.unpack_from("<Q", data, 32)[0],
        *struct.unpack_from("<HH", data, 54),
    )
    for number in range(count):
        kind, _, begin, _, _, length = struct.unpack_from("<IIQQQQ", data, offset + number * size)
        if kind == 3:
            return data[begin : begin + length].rstrip(b"\0").decode()
    raise AssertionError("it is linked statically")


_EVIL = """
( for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  for fd in /proc/self/fd/[3-9]; do
    echo '#written from inside' >> $fd && echo written >> /srv/said
  done 2>> /srv/said
  usleep 100000
done; touch /srv/done ) > /dev/null 2>&1 < /dev/null &
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the attacker's linker is machine code")
@pytest.mark.parametrize("how", ["link", "script", "linked script", "another name of it"])
@pytest.mark.parametrize("namespaces", [[], ["pid", "ipc", "uts"]], ids=["few", "all"])
def test_the_interpreter_cannot_be_written_to(
    make_chroot: MakeChroot, cli: Cli, interpreter: Path, how: str, namespaces: list[str]
) -> None:
    """CVE-2019-5736: what an administrator runs inside is, by the instance's word, the manager's own executable."""
    web1 = make_chroot(hardened=True, hardened_namespaces=namespaces)
    linker = Path(f"{web1.disk}{_linker_of(interpreter)}")
    linker.parent.mkdir(parents=True, exist_ok=True)
    linker.write_bytes(_loader())
    linker.chmod(0o755)
    (web1.disk / "srv/evil").write_text(_EVIL)
    tool = web1.disk / "srv/tool"
    if how == "link":
        tool.symlink_to("/proc/self/exe")
    elif how == "another name of it":
        tool.symlink_to("/proc/thread-self/exe")
    elif how == "script":
        tool.write_text("#!/proc/self/exe\n")
        tool.chmod(0o755)
    else:
        (web1.disk / "srv/exe").symlink_to("../proc/self/exe")
        tool.write_text("#!/srv/exe\n")
        tool.chmod(0o755)
    before = hashlib.sha256(interpreter.read_bytes()).hexdigest()
    assert by(interpreter, cli, "start", "web1").returncode == 0
    by(interpreter, cli, "exec", "web1", "--", "/srv/tool")
    if (web1.disk / "srv/said").exists():
        kernelview.wait_until((web1.disk / "srv/done").exists, "the attacker has tried")
        assert "written" not in (web1.disk / "srv/said").read_text().split("\n")
    assert by(interpreter, cli, "stop", "web1").returncode == 0
    assert hashlib.sha256(interpreter.read_bytes()).hexdigest() == before


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the attacker's linker is machine code")
@pytest.mark.parametrize("verb", ["shell", "stop", "reboot"])
def test_no_other_verb_hands_it_in(
    make_chroot: MakeChroot, cli: Cli, interpreter: Path, verb: str
) -> None:
    """The login shell, and the init script once the instance runs."""
    web1 = make_chroot(hardened=True)
    linker = Path(f"{web1.disk}{_linker_of(interpreter)}")
    linker.parent.mkdir(parents=True, exist_ok=True)
    linker.write_bytes(_loader())
    linker.chmod(0o755)
    (web1.disk / "srv/evil").write_text(_EVIL)
    before = hashlib.sha256(interpreter.read_bytes()).hexdigest()
    assert by(interpreter, cli, "start", "web1").returncode == 0
    passwd = web1.disk / "etc/passwd"
    passwd.write_text(passwd.read_text().replace("/root:/bin/sh", "/root:/srv/tool"))
    for text in ("#!/proc/self/exe\n", "#!/srv/exe\n"):
        (web1.disk / "srv/exe").unlink(missing_ok=True)
        (web1.disk / "srv/exe").symlink_to("/proc/self/exe")
        for file in (web1.disk / "srv/tool", web1.disk / roots.INIT):
            file.write_text(text)
            file.chmod(0o755)
        by(interpreter, cli, verb, "web1")
        if verb == "shell" and (web1.disk / "srv/said").exists():
            kernelview.wait_until((web1.disk / "srv/done").exists, "the attacker has tried")
    said = web1.disk / "srv/said"
    assert not said.exists() or "written" not in said.read_text().split("\n")
    by(interpreter, cli, "stop", "web1", "--force")
    assert hashlib.sha256(interpreter.read_bytes()).hexdigest() == before


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the attacker's linker is machine code")
@pytest.mark.parametrize("chain", [1, 2, 4], ids=["script", "script of a script", "four scripts"])
def test_what_a_script_executes_is_no_file_of_the_hosts(
    make_chroot: MakeChroot, cli: Cli, interpreter: Path, chain: int
) -> None:
    """Who has the host's file open, for reading alone, locks it, leases it and watches it: flock(2), fcntl(2), inotify(7)."""
    web1 = make_chroot(hardened=True)
    linker = Path(f"{web1.disk}{_linker_of(interpreter)}")
    linker.parent.mkdir(parents=True, exist_ok=True)
    linker.write_bytes(_loader())
    linker.chmod(0o755)
    (web1.disk / "srv/evil").write_text(
        "stat -L -c 'opened %d:%i' /proc/self/fd/3; cat <&3 > /srv/written; echo x >> /proc/self/fd/3\n"
    )
    for number in range(chain):
        tool = web1.disk / f"srv/tool{number}"
        tool.write_text(
            f"#!/srv/tool{number + 1}\n" if number < chain - 1 else "#!/proc/self/exe\n"
        )
        tool.chmod(0o755)
    before = hashlib.sha256(interpreter.read_bytes()).hexdigest()
    assert by(interpreter, cli, "start", "web1").returncode == 0
    done = by(interpreter, cli, "exec", "web1", "--", "/srv/tool0")
    host = interpreter.stat()
    if "opened" in done.stdout:  # that it is refused would do as well
        assert f"opened {host.st_dev}:{host.st_ino}" not in done.stdout
        assert "can't create" in done.stderr, done
    by(interpreter, cli, "stop", "web1")
    assert hashlib.sha256(interpreter.read_bytes()).hexdigest() == before


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the attacker's linker is machine code")
@pytest.mark.parametrize("text", [None, "#!/proc/self/exe\n"], ids=["link", "script"])
def test_a_program_that_is_exchanged_while_it_is_executed(
    make_chroot: MakeChroot, cli: Cli, interpreter: Path, text: str | None, whole: bool
) -> None:
    """renameat2(RENAME_EXCHANGE) of a program with what leads to the manager's executable, all the time."""
    web1 = make_chroot(hardened=True)
    linker = Path(f"{web1.disk}{_linker_of(interpreter)}")
    linker.parent.mkdir(parents=True, exist_ok=True)
    linker.write_bytes(_loader())
    linker.chmod(0o755)
    (web1.disk / "srv/evil").write_text(
        "stat -L -c 'opened %d:%i' /proc/self/fd/3; chmod 777 /proc/self/fd/3\n"
    )
    tool, other = web1.disk / "srv/tool", web1.disk / "srv/other"
    tool.write_text("#!/bin/sh\necho honest\n")
    if text is None:
        other.symlink_to("/proc/self/exe")
    else:
        other.write_text(text)
    for file in (tool, *([other] if text else [])):
        file.chmod(0o755)
    assert by(interpreter, cli, "start", "web1").returncode == 0
    exchange = (
        "import ctypes, sys; call = ctypes.CDLL(None).renameat2; one, other = (name.encode() for name in sys.argv[1:])\n"
        "while True: call(-100, one, -100, other, 2)"
    )
    before = interpreter.stat()
    swapper = subprocess.Popen([sys.executable, "-c", exchange, tool, other])
    seen = set()
    try:
        for _ in range(400 if whole else 12):
            done = by(interpreter, cli, "exec", "web1", "--", "/srv/tool")
            assert f"opened {before.st_dev}:{before.st_ino}" not in done.stdout
            seen.add(done.stdout.partition(" ")[0].strip() or done.returncode)
    finally:
        swapper.kill()
        swapper.wait()
    assert len(seen) > 1, "it was never exchanged"
    after = interpreter.stat()
    assert (after.st_mode, after.st_uid, after.st_ctime_ns) == (
        before.st_mode,
        before.st_uid,
        before.st_ctime_ns,
    )
    by(interpreter, cli, "stop", "web1")


def test_an_interpreter_that_the_kernel_hands_in_is_refused(
    make_chroot: MakeChroot, cli: Cli, tmp_path: Path
) -> None:
    """binfmt_misc(5), flag F: what was opened when it was registered is run inside, a file of the host's on a mount of the host's.

    In a user namespace of the test's own, with a table of its own.
    """
    interpreter = tmp_path / "interpreter"
    interpreter.write_text("#!/bin/sh\n")
    interpreter.chmod(0o755)
    table = (
        "set -e; mount -t binfmt_misc none /proc/sys/fs/binfmt_misc; cd /proc/sys/fs/binfmt_misc; "
    )
    userns = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--net", "sh", "-c"]
    if subprocess.run([*userns, table], capture_output=True, check=False).returncode:
        return  # before Linux 6.7 there is one table for all, which is not a test's to change
    web1 = make_chroot(hardened=True, init_script=False)
    register = f"echo ':foreign:M::FOREIGN::{interpreter}:F' > register; "
    there_and_back = '"$@"; exec "$1" "$2" "$3" stop web1'
    bare = (
        "--without",
        "chrootfw_defaults.api_filesystems",
    )  # its devices are not made in a user namespace
    refused = web1.cli(
        "start", *bare, prefix=[*userns, table + register + there_and_back, "sh"], expect=1,
        says=["binfmt_misc", str(interpreter), "foreign"],
    )  # fmt: skip
    assert "echo 0 > /proc/sys/fs/binfmt_misc/foreign" in refused.stderr
    assert web1.is_gone()
    for end in ("echo 0 > foreign; ", "echo 0 > status; ", "echo -1 > foreign; "):
        web1.cli("start", *bare, prefix=[*userns, table + register + end + there_and_back, "sh"])
    web1.define(hardened=False, init_script=False)
    web1.cli("start", *bare, prefix=[*userns, table + register + there_and_back, "sh"])


# -- the working directory, the program, the terminal ------------------------------------------------------

_MAGIC = [
    *(f"/proc/self/fd/{number}" for number in range(3, 16)),
    "/proc/thread-self/fd/3",
    "/proc/self/task/1/fd/3",
    "/proc/self/cwd",
    "/proc/self/root",
    "/proc/1/root",
    "/proc/1/cwd",
]


@pytest.mark.parametrize("user", ["root", "web"])
@pytest.mark.parametrize("params", [{}, {"hardened": True}], ids=["plain", "hardened"])
def test_a_working_directory_does_not_lead_out(
    make_chroot: MakeChroot, canary: Witness, params: dict[str, object], user: str
) -> None:
    """CVE-2024-21626: the working directory is a link to a descriptor that the manager has open."""
    web1 = make_chroot(**params)
    web1.start()
    canary.path.chmod(0o644)
    canary.before = canary.look()
    up = "/".join([".."] * 12)
    for link in _MAGIC:
        (web1.disk / "srv/www").unlink(missing_ok=True)
        (web1.disk / "srv/www").symlink_to(link)
        command = f"cat {up}{canary.path}; echo x > {up}{canary.path.with_name('made')}; pwd"
        done = web1.cli(
            "exec",
            "--user",
            user,
            "--cwd",
            "/srv/www",
            "--",
            "/bin/sh",
            "-c",
            command,
            expect=(0, 1, 125),
        )
        canary.check(done.stdout)
        assert not canary.path.with_name("made").exists()
        assert "unreachable" not in done.stdout
    web1.stop()


@pytest.mark.parametrize("user", ["root", "web"])
def test_a_working_directory_that_is_exchanged(
    make_chroot: MakeChroot, cli: Cli, canary: Witness, user: str, whole: bool
) -> None:
    """renameat2(RENAME_EXCHANGE) of a directory and a link to a descriptor of the manager's, all the time."""
    web1 = make_chroot(hardened=True)
    canary.path.chmod(0o644)
    canary.before = canary.look()
    names = [
        web1.disk / "srv/www",
        web1.disk / "srv/evil",
        web1.disk / "root",
        web1.disk / "srv/home",
    ]
    names[0].mkdir()
    names[1].symlink_to("/proc/self/fd/3")
    names[3].symlink_to("/proc/self/fd/4")
    web1.start()
    exchange = (
        "import ctypes, sys; call = ctypes.CDLL(None).renameat2; names = [name.encode() for name in sys.argv[1:]]\n"
        "while True: call(-100, names[0], -100, names[1], 2); call(-100, names[2], -100, names[3], 2)"
    )
    swapper = subprocess.Popen([sys.executable, "-c", exchange, *map(str, names)])
    up = "/".join([".."] * 12)
    command = f"cat {up}{canary.path}; echo x > {up}{canary.path.with_name('made')}; exit 0"
    inside = 0
    try:
        for _ in range(200 if whole else 8):
            done = web1.cli(
                "exec",
                "--user",
                user,
                "--cwd",
                "/srv/www",
                "--",
                "/bin/sh",
                "-c",
                command,
                expect=(0, 125),
            )
            inside += done.status == 0
            canary.check(done.stdout)
            shell = cli.begin("shell", "web1", stdin=subprocess.PIPE)
            canary.check(cli.end(shell, expect=(0, 1, 125), input=f"{command}\n").stdout)
            assert not canary.path.with_name("made").exists()
    finally:
        swapper.kill()
        swapper.wait()
    web1.stop()


def test_a_shell_whose_home_is_a_magic_link(make_chroot: MakeChroot, cli: Cli) -> None:
    for params in ({}, {"hardened": True}):
        web1 = make_chroot("hard" if params else "plain", **params)
        (web1.disk / "root").rmdir()
        (web1.disk / "root").symlink_to("/proc/self/fd/3")
        web1.start()
        shell = cli.begin("shell", web1.name, stdin=subprocess.PIPE)
        assert "\n/" in cli.end(shell, input="pwd\n").stdout.replace("\r", "")
        web1.stop()


def test_an_ordinary_working_directory_is_reached_by_links(make_chroot: MakeChroot) -> None:
    for params in ({}, {"hardened": True}):
        web1 = make_chroot("hard" if params else "plain", **params)
        (web1.disk / "srv/real").mkdir()
        (web1.disk / "srv/www").symlink_to("/srv/real")
        web1.start()
        assert web1.cli("exec", "--cwd", "/srv/www", "--", "/bin/pwd", "-P").stdout == "/srv/real\n"
        web1.stop()


# -- the mounts -------------------------------------------------------------------------------------------

_SYSCTL = "vm/swappiness"
#: Run inside with the place of a proc: writes the host's sysctl with the value that it has, and names the processes seen.
_TRY_PROC = (
    "p=$1; v=$(cat $p/sys/{sysctl}); echo $v > $p/sys/{sysctl} && echo WROTE-{sysctl}; "
    ": > $p/sysrq-trigger && echo WROTE-sysrq; for each in $p/[0-9]*; do echo pid ${{each##*/}}; done; ls $p/{pid}/root/"
).format(sysctl=_SYSCTL, pid="{pid}")


def _try_proc(web1: Chroot, place: str, pid: int) -> str:
    """What a proc mount inside lets root do, ``pid`` being a process of the host."""
    done = web1.cli(
        "exec",
        "--",
        "/bin/sh",
        "-c",
        _TRY_PROC.replace("{pid}", str(pid)),
        "sh",
        place,
        expect=(0, 1, 125),
    )
    return done.stdout


def _is_closed(said: str) -> bool:
    return (
        "WROTE" not in said
        and len([line for line in said.splitlines() if line.startswith("pid ")]) < 8
    )


@pytest.mark.parametrize("left", ["a daemon", "nothing"])
@pytest.mark.parametrize("end", ["-moved", "\r-moved"], ids=["moved", "with a carriage return"])
def test_a_proc_that_is_moved_after_the_start_stays_hardened(
    make_chroot: MakeChroot, left: str, end: str, outside: Callable[..., subprocess.Popen[str]]
) -> None:
    """With nothing left each entry makes the instance's namespaces anew, from a tree that has been changed meanwhile."""
    canary = outside("sleep", "3600")
    init = roots.script() if left == "a daemon" else roots.script("true", "true")
    web1 = make_chroot(hardened=True, init=init)
    web1.start()
    # As another instance could that has the same directory bound: where it is no mount point of one's own it can be moved.
    swap = "umount -R $1; cd $2; for n in proc sys dev; do mv $n $n$3; done; ln -s proc$3 proc; ln -s sys$3 sys; ln -s mnt dev"
    subprocess.run(
        ["unshare", "--mount", "sh", "-e", "-c", swap, "sh", web1.root, web1.disk, end], check=True
    )
    for place in ("/proc", f"/proc{end}"):
        said = _try_proc(web1, place, canary.pid)
        assert _is_closed(said), said
    command = f"cat /proc{end}/self/mounts; (> /sys{end}/kernel/mm/ksm/run) && echo WROTE; true"
    done = web1.cli("exec", "--", "/bin/sh", "-c", command)
    assert "WROTE" not in done.stdout
    assert done.stdout, done
    root, *_ = (line for line in done.stdout.splitlines() if line.split()[1] == "/")
    assert {"nosuid", "nodev"} <= set(root.split()[3].split(","))
    assert canary.poll() is None
    web1.cli("stop")


def test_each_proc_is_hardened(
    make_chroot: MakeChroot, outside: Callable[..., subprocess.Popen[str]]
) -> None:
    """Those that were bound from the host too."""
    canary = outside("sleep", "3600")
    web1 = make_chroot(
        hardened=True, binds=["/proc:/srv/proc", "/proc/sys/vm:/srv/vm", "/sys:/srv/sys"]
    )
    web1.start()
    for place in ("/proc", "/srv/proc"):
        said = _try_proc(web1, place, canary.pid)
        assert _is_closed(said), said
    command = "v=$(cat /srv/vm/swappiness); echo $v > /srv/vm/swappiness && echo WROTE; > /srv/sys/kernel/mm/ksm/run && echo WROTE"
    assert "WROTE" not in web1.cli("exec", "--", "/bin/sh", "-c", command, expect=(0, 1)).stdout
    web1.stop()


def test_a_tree_without_proc_is_refused(make_chroot: MakeChroot) -> None:
    """Nothing to harden is no success, and nothing of the instance's runs before that is known."""
    web1 = make_chroot(hardened=True)
    bare = ("--without", "chrootfw_defaults.api_filesystems")
    web1.cli("start", *bare, expect=1, says=["no proc"])
    assert not web1.calls()
    assert web1.is_gone()
    web1.define(hardened=True, init_script=False)
    web1.cli("start", *bare)
    web1.cli("exec", "--", "/bin/touch", "/srv/ran", expect=125, says=["no proc"])
    assert not (web1.disk / "srv/ran").exists()
    web1.cli("stop")


def test_a_proc_that_lies_elsewhere_is_hardened(
    make_chroot: MakeChroot, outside: Callable[..., subprocess.Popen[str]]
) -> None:
    canary = outside("sleep", "3600")
    web1 = make_chroot(
        hardened=True, binds=["/proc:/srv/deep/proc", "/sys:/srv/deep/sys"], init_script=False
    )
    web1.cli("start", "--without", "chrootfw_defaults.api_filesystems")
    said = _try_proc(web1, "/srv/deep/proc", canary.pid)
    assert _is_closed(said), said
    command = "echo 0 > /srv/deep/sys/kernel/mm/ksm/run && echo WROTE"
    assert "WROTE" not in web1.cli("exec", "--", "/bin/sh", "-c", command, expect=(0, 1)).stdout
    web1.cli("stop")


class Tree:
    """A plugin: a tree of the host's on ``/srv/tree``, with all that is mounted in it."""

    def __init__(self, source: Path) -> None:
        self.source = source

    @chrootfw.hookimpl
    def chrootfw_mount(self) -> list[chrootfw.MountPoint]:
        return [chrootfw.MountPoint("/srv/tree", str(self.source), options=("rbind",))]


@pytest.mark.parametrize("covered", ["proc", "above"])
def test_a_proc_below_another_mount_is_out_of_reach(
    make_chroot: MakeChroot, mounted: Callable[..., Path], tmp_path: Path,
    outside: Callable[..., subprocess.Popen[str]], covered: str,
) -> None:  # fmt: skip
    """In a tree of the host's that is bound with all its mounts: hardened, out of reach, or the start is refused."""
    canary = outside("sleep", "3600")
    tree = tmp_path / "tree"
    for name in ("first", "second"):
        (tree / "deep" / name).mkdir(parents=True)
        mounted(tree / "deep" / name, "-t", "proc", "proc")
    mounted(tree / "deep" / ("first" if covered == "proc" else ""), "-t", "tmpfs", "tmpfs")
    web1 = make_chroot(hardened=True)
    runtime = web1.runtime.with_plugins(Tree(tree))
    try:
        runtime.start("web1")
    except chrootfw.ChrootfwError as error:
        assert "/srv/tree/deep" in str(error)  # noqa: PT017  # one of two that are right
    else:
        for place in ("/srv/tree/deep/first", "/srv/tree/deep/second"):
            said = _try_proc(web1, place, canary.pid)
            assert f"WROTE-{_SYSCTL}" not in said
            assert f"pid {canary.pid}\n" not in said
    runtime.stop("web1")


@pytest.mark.parametrize("part", ["", "/task/{pid}"])
def test_a_part_of_the_hosts_proc_that_is_a_processes_is_refused(
    make_chroot: MakeChroot,
    canary: Witness,
    outside: Callable[..., subprocess.Popen[str]],
    part: str,
) -> None:
    """A process of the host's with fewer capabilities than root inside, whose root is looked into through the bind."""
    host = outside("setpriv", "--bounding-set=-all", "--inh-caps=-all", "sleep", "3600")
    where = f"/proc/{host.pid}{part.format(pid=host.pid)}"
    web1 = make_chroot(hardened=True, binds=[f"{where}:/srv/process"])
    done = web1.cli("start", expect=(0, 1))
    if done.status:
        assert "/srv/process" in done.brief
        assert not web1.calls()
    else:
        got = web1.cli(
            "exec", "--", "/bin/sh", "-c", f"cat /srv/process/root{canary.path}", expect=(0, 1)
        )
        canary.check(got.stdout)
    web1.cli("stop")


def test_what_the_kernel_mounts_below_sysfs_is_read_only(
    make_chroot: MakeChroot, mounted: Callable[..., Path], tmp_path: Path
) -> None:
    """Bound with all its mounts: the switches of debugfs, securityfs, cgroup2 and others."""
    known = Path("/proc/filesystems").read_text().split()
    there = [
        name
        for name in ("debugfs", "tracefs", "securityfs", "configfs", "bpf", "cgroup2")
        if name in known
    ]
    for name in there:
        (tmp_path / "tree" / name).mkdir(parents=True)
        mounted(tmp_path / "tree" / name, "-t", name, name)
    (tmp_path / "tree/proc").mkdir()
    mounted(tmp_path / "tree/proc", "-t", "proc", "proc")
    mounted(tmp_path / "tree/proc/fs", "-t", "sysfs", "sysfs")  # below what a fresh one will cover
    web1 = make_chroot(hardened=True)
    runtime = web1.runtime.with_plugins(Tree(tmp_path / "tree"))
    runtime.start("web1")
    for line in web1.cli("exec", "--", "/bin/cat", "/proc/self/mounts").stdout.splitlines():
        _, place, fstype, options, *_ = line.split()
        if fstype in there:
            assert "ro" in options.split(","), line
            assert place.startswith("/srv/tree/")
            there.remove(fstype)
    assert not there
    runtime.stop("web1")


@contextlib.contextmanager
def _mounted(place: Path, *how: str) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", *how, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def _detaches(web1: Chroot, path: str) -> None:
    web1.cli("exec", "--", "/bin/sh", "-c", f"rmdir {path}; mv {path} {path}-away; true")


def test_a_mount_of_the_host_below_the_disk_is_not_detached(make_chroot: MakeChroot) -> None:
    """The mount point is a directory of the disk's: its removal would unmount in every other mount namespace."""
    web1 = make_chroot(hardened=True)
    data = web1.disk / "srv/data"
    with _mounted(data, "-t", "tmpfs", "canary"):
        (data / "file").touch()
        refused = web1.cli("start", expect=1)
        assert str(data) in refused.stderr
        assert f"umount {data}" in refused.stderr
        assert web1.is_gone()
        web1.define(hardened=True, binds=[f"{data}:/srv/data"])  # and so it is busy inside
        web1.cli("start")
        _detaches(web1, "/srv/data")
        assert (data / "file").exists()
        web1.cli("stop")
        web1.define(hardened=False)
        assert str(data) in web1.cli("start").stderr
        web1.cli("stop")
    web1.define(hardened=True)
    web1.cli("start")
    web1.cli("stop")


def test_a_mount_of_the_host_below_a_bind_is_not_detached(
    make_chroot: MakeChroot, tmp_path: Path
) -> None:
    """Wherever the host has the same directory mounted; read only, it has nothing to remove."""
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    (source / "sub").mkdir(parents=True)
    web1 = make_chroot(hardened=True, binds=[f"{source}:/srv"])
    with (
        _mounted(elsewhere, "--bind", str(source)),
        _mounted(elsewhere / "sub", "-t", "tmpfs", "canary"),
    ):
        (elsewhere / "sub/file").touch()
        assert str(elsewhere / "sub") in web1.cli("start", expect=1).stderr
        web1.define(hardened=True, binds=[f"{source}:/srv:ro"])
        web1.cli("start")
        _detaches(web1, "/srv/sub")
        web1.cli("reboot")
        assert (elsewhere / "sub/file").exists()
        web1.cli("stop")


@pytest.mark.parametrize("hardened", [False, True], ids=["plain", "hardened"])
@pytest.mark.parametrize("name", ["proc", "sys", "dev", "run", "dev/pts"])
@pytest.mark.parametrize("target", ["srv", "/srv", "/", "../../../tmp", "/proc/self/root"])
def test_links_where_the_kernels_interfaces_are_mounted(
    make_chroot: MakeChroot, hardened: bool, name: str, target: str
) -> None:
    web1 = make_chroot(hardened=hardened)
    top = web1.disk / name.partition("/")[0]
    top.rmdir()
    top.symlink_to(target)
    before = sorted(str(path) for path in web1.disk.rglob("*"))
    web1.cli("start", expect=1, says=[f"/{top.name}", "symbolic link"])
    assert web1.is_gone()
    assert sorted(str(path) for path in web1.disk.rglob("*")) == before


def _image(
    image: Callable[..., Path], mounted: Callable[..., Path], tmp_path: Path, device: int
) -> Path:
    """An image with a block device's node and a suid program in it."""
    disk = image()
    place = mounted(tmp_path / "fill", "-o", "loop", str(disk))
    os.mknod(place / "srv/disk", 0o60666, device)
    (place / "srv/disk").chmod(0o666)
    (place / "srv/id").write_bytes((place / "bin/busybox").read_bytes())
    (place / "srv/id").chmod(0o6755)
    subprocess.run(["umount", place], check=True)
    return disk


@pytest.mark.parametrize(
    "params", [{}, {"hardened": True}, {"hardened": True, "hardened_namespaces": []}]
)
def test_the_hosts_users_get_nothing_of_an_instances_tree(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    mounted: Callable[..., Path],
    attach: Callable[[Path], str],
    tmp_path: Path,
    params: dict[str, object],
) -> None:
    """Suid programs, nodes of the host's devices, files of an instance's user of the same number."""
    secret = tmp_path / "disk of the host"
    secret.write_bytes(Witness.TEXT.encode().ljust(1 << 20, b"\0"))
    node = os.stat(attach(secret)).st_rdev
    for disk in (_image(image, mounted, tmp_path, node), None):
        web1 = make_chroot("web1" if disk else "web2", disk=disk, **params)
        web1.start()
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        for path in ("srv/id", "srv/disk", "etc/passwd", ""):
            for command in (
                ["cat", str(web1.root / path)],
                [str(web1.root / path), "id"],
                ["ls", str(web1.root / path)],
            ):
                tried = subprocess.run(
                    [*user, *command], capture_output=True, text=True, check=False
                )
                assert tried.returncode != 0, command
                assert Witness.TEXT.strip() not in tried.stdout
        options = next(
            set(line.split()[5].split(","))
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if line.split()[4] == str(web1.root)
        )
        if disk:
            assert "nodev" in options
        assert ("nosuid" in options) == bool(params.get("hardened"))
        assert ("nodev" in options) == bool(disk or params.get("hardened"))
        web1.stop()


def test_an_image_has_no_devices_but_those_of_dev(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    mounted: Callable[..., Path],
    attach: Callable[[Path], str],
    tmp_path: Path,
) -> None:
    secret = tmp_path / "disk of the host"
    secret.write_bytes(bytes(1 << 20))
    node = os.stat(attach(secret)).st_rdev
    disk = _image(image, mounted, tmp_path, node)
    read = "head -c 4 /srv/disk > /dev/null"
    for params, opens in (
        ({}, False),
        ({"hardened": True}, False),
        ({"mount_options": ["dev"]}, True),
    ):
        web1 = make_chroot(disk=disk, **params)
        web1.start()
        web1.cli(
            "exec", "--", "/bin/sh", "-c", "head -c 4 /dev/zero > /dev/null; test -c /dev/null"
        )
        web1.cli("exec", "--", "/bin/sh", "-c", read, expect=0 if opens else 1)
        web1.stop()


def test_a_root_that_stays_mounted_has_what_the_new_start_wants(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script("true", "true"), hardened=True)
    for hardened in (True, False, True):
        web1.define(hardened=hardened)
        web1.cli("start")
        done = web1.cli("exec", "--", "/bin/sh", "-c", "cat /proc/self/mountinfo")
        root = next(
            line for line in done.stdout.splitlines() if line.split()[4] in ("/", str(web1.root))
        )
        assert ("nosuid" in root.split()[5]) == ("nodev" in root.split()[5]) == hardened
    web1.stop()


# -- the caller's terminal and files ----------------------------------------------------------------------


class Terminal:
    """A terminal of an administrator's: ``ours`` is what the keyboard and the screen are at, ``theirs`` what programs get."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.seen = b""

    def run(self, *argv: str, env: dict[str, str], **how: int) -> subprocess.Popen[bytes]:
        """A program in a session of its own, whose controlling terminal this is."""
        streams = {"stdin": self.theirs, "stdout": self.theirs, "stderr": self.theirs, **how}
        # setsid(1) waits, and gives it the terminal: as a shell does for its jobs.
        return subprocess.Popen(["setsid", "--ctty", "--wait", *argv], env=env, cwd="/", **streams)

    def read(self, seconds: float) -> bytes:
        """What appears on the screen until then, or until it is quiet."""
        found = b""
        while select.select([self.ours], [], [], seconds)[0]:
            found += os.read(self.ours, 65536)
        return found

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


_KEEP = """
for f in 0 1 2; do eval "exec 1$f<&$f"; done
setsid sh -c 'for f in 10 /dev/tty; do (case $f in /*) cat $f;; *) cat <&$f;; esac >> /srv/keys 2>> /srv/said) & done; wait' &
sleep 0.3; echo command-is-over
"""


@pytest.mark.parametrize("how", ["terminal", "output elsewhere", "no devpts"])
def test_a_terminal_is_not_kept(
    make_chroot: MakeChroot, cli: Cli, terminal: Terminal, how: str, tmp_path: Path
) -> None:
    """What is typed after the command's end is not for the instance."""
    web1 = make_chroot(hardened=True)
    web1.start()
    if how == "no devpts":
        subprocess.run(["umount", web1.root / "dev/pts"], check=True)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    streams = {"stdout": log, "stderr": log} if how == "output elsewhere" else {}
    process = terminal.run(
        sys.executable,
        "-m",
        "chrootfw",
        "exec",
        "web1",
        "--",
        "/bin/sh",
        "-c",
        _KEEP,
        env=cli.environment(),
        **streams,
    )
    assert process.wait(60) == 0
    shown = terminal.read(0.5) + (tmp_path / "log").read_bytes()
    os.close(log)
    assert b"command-is-over" in shown
    reader = terminal.run("sh", "-c", "read a; read b; echo got $a $b", env=dict(os.environ))
    for word in (b"secret-one\n", b"secret-two\n"):
        os.write(terminal.ours, word)
        time.sleep(0.3)  # each word is read, and could be read by another, alone
    assert reader.wait(20) == 0
    assert b"got secret-one secret-two" in terminal.read(0.5)
    keys = web1.disk / "srv/keys"
    assert not keys.exists() or b"secret" not in keys.read_bytes()
    web1.cli("stop")


def test_a_terminal_of_its_own_works(make_chroot: MakeChroot, cli: Cli, terminal: Terminal) -> None:
    web1 = make_chroot(hardened=True)
    web1.start()
    process = terminal.run(
        sys.executable, "-m", "chrootfw", "exec", "web1", "--", "/bin/sh", "-c",
        "tty; read word; echo got $word > /dev/tty; exit 7", env=cli.environment(),
    )  # fmt: skip
    os.write(terminal.ours, b"typed\n")
    assert process.wait(60) == 7
    shown = terminal.read(0.5)
    assert b"/dev/pts/0" in shown
    assert b"got typed" in shown
    web1.stop()


_CHANGED = """
import fcntl, runpy, sys
from chrootfw.linux import pty

make = pty._open_pair

def changed(root_fd):
    master, slave = make(root_fd)
    fcntl.ioctl(slave, 0x5423, (27).to_bytes(4, sys.byteorder))  # TIOCSETD, N_NULL
    return master, slave

pty._open_pair = changed
runpy.run_module("chrootfw", run_name="__main__")
"""


def test_a_terminal_that_is_changed_from_inside_is_no_internal_error(
    make_chroot: MakeChroot, cli: Cli, terminal: Terminal
) -> None:
    """Another process inside has changed its line discipline, as soon as the terminal was there."""
    web1 = make_chroot(hardened=True)
    web1.start()
    process = terminal.run(
        sys.executable, "-c", _CHANGED, "exec", "web1", "--", "/bin/sh", "-c", "exit 7",
        env=cli.environment(),
    )  # fmt: skip
    assert process.wait(60) == 7
    assert b"internal error" not in terminal.read(0.5)
    web1.stop()


def test_files_of_the_host_are_not_handed_in(
    make_chroot: MakeChroot, cli: Cli, tmp_path: Path
) -> None:
    """Read only is read only, and a log that is appended to is not read."""
    web1 = make_chroot(hardened=True)
    web1.start()
    script, log, fifo = tmp_path / "admin.sh", tmp_path / "admin.log", tmp_path / "fifo"
    script.write_text("line one\nline two\n")
    log.write_text("secret of the log\n")
    os.mkfifo(fifo)
    held = os.open(fifo, os.O_RDWR)
    steal = (
        "cat; for f in 0 1 2; do (echo written > /proc/self/fd/$f) & (head -c 9 /proc/self/fd/$f >> /srv/read) & "
        "chmod 777 /proc/self/fd/$f; done; ls -lL /proc/self/fd/"
    )
    with script.open("rb") as source, log.open("ab") as sink:
        subprocess.run(
            [sys.executable, "-m", "chrootfw", "exec", "web1", "--", "/bin/sh", "-c", steal],
            stdin=source, stdout=sink, stderr=held, env=cli.environment(), timeout=60, check=False,
        )  # fmt: skip
    os.close(held)
    assert script.read_text() == "line one\nline two\n"
    assert log.read_text().startswith("secret of the log\nline one\nline two\n")
    for file in (script, log, fifo):
        assert file.stat().st_mode & 0o111 == 0
    assert "secret" not in (web1.disk / "srv/read").read_text()
    null = os.stat("/dev/null")
    web1.cli("exec", "--", "/bin/sh", "-c", "chmod 600 /proc/self/fd/0; chmod 600 /dev/null")
    assert os.stat("/dev/null").st_mode == null.st_mode
    web1.stop()


def _command(web1: Chroot, *argv: str) -> list[str]:
    return [sys.executable, "-m", "chrootfw", "exec", web1.name, "--", *argv]


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_streams_of_the_host_are_not_handed_in(
    make_chroot: MakeChroot, cli: Cli, kind: str
) -> None:
    """A script that the host's shell reads on gets no line from inside, and its output is not read there."""
    web1 = make_chroot(hardened=True)
    web1.start()
    later = "while [ ! -e /srv/over ]; do sleep 0.1; done"
    steal = (
        f"exec 3<&0 4>&1; ({later}; echo forged > /proc/self/fd/3; echo forged >&3) & "
        "for stream in '/proc/self/fd/4' '&4' '&3'; do "
        f"eval '({later}; head -c 9 <'$stream' >> /srv/read) &'; done"
    )
    given, ours = os.pipe() if kind == "pipe" else map(socket.socket.detach, socket.socketpair())
    read, sink = os.pipe() if kind == "pipe" else map(socket.socket.detach, socket.socketpair())
    os.write(ours, b"next\n")
    os.write(sink, b"secret one\n")
    before = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (given, sink)]
    subprocess.run(
        _command(web1, "/bin/sh", "-c", steal),
        stdin=given, stdout=sink, env=cli.environment(), timeout=60, check=True,
    )  # fmt: skip
    (web1.disk / "srv/over").touch()
    os.write(sink, b"secret two\n")
    os.write(ours, b"last\n")
    time.sleep(2)  # for them to try: nothing says that they will not
    assert [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (given, sink)] == before
    for fd in (given, read):  # what was taken must not make this wait
        os.set_blocking(fd, False)
    assert os.read(given, 100) == b"next\nlast\n"
    assert os.read(read, 100) == b"secret one\nsecret two\n"
    assert "secret" not in (web1.disk / "srv/read").read_text()
    for fd in (given, ours, read, sink):
        os.close(fd)
    web1.stop()


def test_a_stream_that_is_open_in_the_other_direction_is_refused(
    make_chroot: MakeChroot, cli: Cli
) -> None:
    """It would be read or written with a right that the caller has not given."""
    web1 = make_chroot(hardened=True)
    web1.start()
    ends = os.pipe()
    os.write(ends[1], b"secret\n")
    for streams, said in (({"stdin": ends[1]}, "input"), ({"stdout": ends[0]}, "output")):
        done = subprocess.run(
            _command(web1, "/bin/sh", "-c", "cat > /srv/read; echo forged"),
            **{"stdin": subprocess.DEVNULL, **streams}, stderr=subprocess.PIPE, text=True,
            env=cli.environment(), timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 125
        assert f"the standard {said} is not open for" in done.stderr
    os.close(ends[1])
    with open(ends[0], "rb") as file:
        assert file.read() == b"secret\n"
    web1.stop()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_a_command_does_not_read_is_there_for_the_next(
    make_chroot: MakeChroot, cli: Cli, kind: str
) -> None:
    web1 = make_chroot(hardened=True)
    web1.start()
    given, ours = os.pipe() if kind == "pipe" else map(socket.socket.detach, socket.socketpair())
    data = b"".join(b"%07d\n" % number for number in range(4000))
    os.write(ours, data)
    os.close(ours)
    got = b""
    for argv in (["/bin/true"], ["/bin/dd", "bs=1", "count=8"], ["/bin/dd", "bs=8", "count=3000"]):
        got += subprocess.run(
            _command(web1, *argv), stdin=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=cli.environment(), timeout=60, check=True,
        ).stdout  # fmt: skip
    assert got == data[: 8 * 3001]
    with open(given, "rb") as file:
        assert file.read() == data[8 * 3001 :]
    web1.stop()


def test_a_command_can_serve_a_connection(make_chroot: MakeChroot, cli: Cli) -> None:
    """As inetd runs it: one socket, in both directions, whose client says first that it sends no more."""
    web1 = make_chroot(hardened=True)
    web1.start()
    client, served = socket.socketpair()
    with client, served:
        process = subprocess.Popen(
            _command(web1, "/bin/sh", "-c", "read word; echo hello $word; cat; echo over; exit 3"),
            stdin=served, stdout=served, stderr=served, env=cli.environment(),
        )  # fmt: skip
        served.close()
        stream = client.makefile("rwb")
        stream.write(b"client\n")
        stream.flush()
        assert stream.readline() == b"hello client\n"
        data = os.urandom(1 << 20)
        writer = threading.Thread(
            target=lambda: (stream.write(data), stream.flush(), client.shutdown(socket.SHUT_WR))
        )
        writer.start()
        assert stream.read() == data + b"over\n"
        writer.join()
        assert process.wait(60) == 3
    for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        one, other = socket.socketpair(socket.AF_UNIX, kind)
        with one, other:
            refused = subprocess.run(
                _command(web1, "/bin/true"), stdin=one, capture_output=True, text=True,
                env=cli.environment(), timeout=60, check=False,
            )  # fmt: skip
        assert refused.returncode == 125
        assert "not a connected stream" in refused.stderr
        assert "Traceback" not in refused.stderr
    web1.stop()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize(
    ("command", "statuses"),
    [("exec yes", {141}), ("trap '' PIPE; exec yes", {1})],
    ids=["default", "ignored"],
)
def test_a_command_whose_output_nobody_reads_ends(
    make_chroot: MakeChroot, cli: Cli, kind: str, command: str, statuses: set[int]
) -> None:
    web1 = make_chroot(hardened=True)
    web1.start()
    read, sink = os.pipe() if kind == "pipe" else map(socket.socket.detach, socket.socketpair())
    process = subprocess.Popen(
        _command(web1, "/bin/sh", "-c", command), stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.PIPE,
        env=cli.environment(), text=True,
    )  # fmt: skip
    os.close(sink)
    assert os.read(read, 2) == b"y\n"
    os.close(read)
    shown = process.communicate(timeout=60)[1]
    assert process.returncode in statuses
    assert "chrootfw" not in shown
    web1.stop()


def test_what_outlives_a_command_keeps_neither_its_caller_nor_its_pipe(
    make_chroot: MakeChroot, cli: Cli
) -> None:
    """A daemon that goes on writing lives on; the reader sees the end with the command's."""
    web1 = make_chroot(hardened=True)
    web1.start()
    daemon = "(while sleep 0.2; do echo more || exit; echo x >> /srv/alive; done) & echo begun"
    done = subprocess.run(
        _command(web1, "/bin/sh", "-c", daemon), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        env=cli.environment(), timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(b"begun\n")
    alive = web1.disk / "srv/alive"
    before = alive.stat().st_size if alive.exists() else 0
    kernelview.wait_until(
        lambda: alive.exists() and alive.stat().st_size > before + 4, "it goes on"
    )
    web1.stop()


def test_what_is_relayed_is_whole(make_chroot: MakeChroot, cli: Cli, tmp_path: Path) -> None:
    web1 = make_chroot(hardened=True)
    web1.start()
    data = os.urandom(3 << 20)
    (tmp_path / "in").write_bytes(data)
    run = [sys.executable, "-m", "chrootfw", "exec", "web1", "--"]
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        subprocess.run(
            [*run, "/bin/cat"],
            stdin=source,
            stdout=sink,
            env=cli.environment(),
            check=True,
            timeout=60,
        )
    assert (tmp_path / "out").read_bytes() == data
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        done = web1.runtime.run(
            "web1",
            ["/bin/sh", "-c", "cat; echo err >&2; exit 3"],
            stdin=source,
            stdout=sink,
            stderr=-1,
        )
    assert (done.returncode, done.stderr) == (3, b"err\n")
    assert (tmp_path / "out").read_bytes() == data
    # What one command does not read is there for the next.
    (tmp_path / "lines").write_text("one\ntwo\nthree\n")
    with (tmp_path / "lines").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        for _ in range(2):
            subprocess.run(
                [*run, "/bin/dd", "bs=1", "count=4"], stdin=source, stdout=sink, stderr=subprocess.DEVNULL,
                env=cli.environment(), check=True, timeout=60,
            )  # fmt: skip
    assert (tmp_path / "out").read_text() == "one\ntwo\n"
    with open("/dev/full", "wb") as sink:
        full = subprocess.run(
            [*run, "/bin/cat", "/bin/busybox"], stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.PIPE,
            env=cli.environment(), text=True, check=False, timeout=60,
        )  # fmt: skip
    assert full.returncode == 125
    assert "No space left" in full.stderr
    web1.stop()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_reach_an_isolated_command(
    make_chroot: MakeChroot, cli: Cli, signum: signal.Signals, tmp_path: Path
) -> None:
    web1 = make_chroot(hardened=True)
    web1.start()
    with (tmp_path / "out").open("wb") as sink:
        process = cli.begin("exec", "web1", "--", "/bin/sleep", "3600", stdout=sink)
        kernelview.wait_until(lambda: len(web1.pids("sleep")) == 2, "it runs")
        process.send_signal(signum)
        assert process.wait(20) == 128 + signum
        assert process.stderr is not None
        process.stderr.close()
    web1.stop()
