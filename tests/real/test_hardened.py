"""``hardened = true``: the classic ways out of a chroot work on a plain one and fail here; all verbs work the same."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
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


NAMESPACES: dict[str, list[str]] = {"mounts alone": [], "all namespaces": ["pid", "ipc", "uts"], "uts": ["uts"]}

#: Each is run inside by Python; ``secret`` is a file of the host. It prints ``out`` when it got out of the root.
ESCAPES = {
    "mkdir, chroot and ..": """
os.mkdir("/srv/deeper"); os.chroot("/srv/deeper")
for _ in range(64): os.chdir("..")
os.chroot("."); open(secret).read()
""",
    "the root of another process": "open(f'/proc/{host_pid}/root{secret}').read()",
    "mknod of the host's disk": """
os.mknod("/srv/disk", 0o60600, device)
os.pread(os.open("/srv/disk", os.O_RDONLY), 512, 0)
""",
    "ptrace of a host process": """
check(libc.ptrace(16, host_pid, None, None)); os.waitpid(host_pid, 0x40000000); check(libc.ptrace(17, host_pid, None, None))
""",
    "the mount namespace of another process": """
check(libc.setns(os.open(f"/proc/{host_pid}/ns/mnt", os.O_RDONLY), 0)); open(secret).read()
""",
    "a core pattern": "os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)",
    "a mount": "check(libc.mount(b'proc', b'/mnt', b'proc', 0, None))",
    "a user namespace": "check(libc.unshare(0x10000000))",
    "a file by its handle": """
handle = (ctypes.c_char * 136).from_buffer(bytearray((128).to_bytes(4, sys.byteorder) + bytes(132)))
check(libc.name_to_handle_at(-100, b"/srv", handle, ctypes.byref(ctypes.c_int()), 0))
os.open(b"/proc/self/fd/%d" % check(libc.open_by_handle_at(os.open("/srv", os.O_RDONLY), handle, 0)), os.O_RDONLY)
""",
}
PROLOGUE = """
import ctypes, os, sys
secret, host_pid, device = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""
BINDS = ["/usr:/usr:ro", f"{sys.base_prefix}:{sys.base_prefix}:ro"]


@pytest.fixture(params=NAMESPACES)
def namespaces(request: pytest.FixtureRequest) -> list[str]:
    return NAMESPACES[request.param]


@pytest.fixture
def make_python_chroot(make_chroot: MakeChroot, make_root: Callable[..., Path]) -> MakeChroot:
    """A factory of instances in which this Python runs."""

    def make(**params: object) -> Chroot:
        root = make_root()
        for directory in ("lib", "lib64"):
            (root / directory).symlink_to(f"usr/{directory}")
        web1 = make_chroot(disk=root, binds=BINDS, **params)
        web1.cli("start")
        return web1

    return make


@pytest.fixture
def host(
    tmp_path: Path, secret: Path, attach: Callable[[Path], str], outside: Callable[..., subprocess.Popen[str]]
) -> list[str]:
    """What there is to reach outside: a file, a process, a disk."""
    disk = tmp_path / "disk of the host"
    disk.write_bytes(bytes(1 << 20))
    return [str(secret), str(outside("sleep", "3600").pid), str(os.stat(attach(disk)).st_rdev)]


def escapes(web1: Chroot, host: list[str]) -> dict[str, str]:
    """Which ways lead out: ``out``, or the error, by kind."""
    python = os.path.realpath(sys.executable)
    found = {}
    for kind, how in ESCAPES.items():
        code = f"{PROLOGUE}{how}\nprint('out')"
        attempt = f"try:\n{textwrap.indent(code, ' ')}\nexcept OSError as error: print(error)"
        done = web1.cli("exec", "--", python, "-I", "-S", "-c", attempt, *host)
        found[kind] = done.stdout.strip()
    return found


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("of the host\n")
    return file


def test_a_plain_chroot_does_not_contain_root(make_python_chroot: MakeChroot, host: list[str]) -> None:
    """docs/reliability.md says so; if one of these fails, it says too much."""
    web1 = make_python_chroot()
    found = escapes(web1, host)
    refused = found.pop("a user namespace")  # not for a process whose root is no mount namespace's (unshare(2))
    assert refused != "out"
    assert found == dict.fromkeys(found, "out")
    web1.cli("stop")


def test_a_hardened_one_does(make_python_chroot: MakeChroot, host: list[str], namespaces: list[str]) -> None:
    web1 = make_python_chroot(hardened=True, hardened_namespaces=namespaces)
    found = escapes(web1, host)
    allowed = ("Operation not permitted", "Permission denied", "Read-only file system", "No such file or directory")
    assert all(any(words in said for words in allowed) for said in found.values()), found
    web1.cli("stop")


def test_capabilities_alone_hold_the_classic_ones(make_python_chroot: MakeChroot, host: list[str]) -> None:
    """Without the filter of system calls; an unprivileged user namespace is the kernel's to give."""
    web1 = make_python_chroot(hardened=True, hardened_seccomp=False)
    found = escapes(web1, host)
    assert {kind for kind, said in found.items() if said == "out"} <= {"a user namespace"}
    web1.cli("stop")


@pytest.mark.parametrize("hardened", [False, True])
def test_a_leaked_directory(make_chroot: MakeChroot, secret: Path, hardened: bool) -> None:
    """Standard input is a directory of the host."""
    web1 = make_chroot(hardened=hardened)
    web1.start()
    fd = os.open(secret.parent, os.O_RDONLY)
    try:
        steal = ["/bin/cat", "/proc/self/fd/0/secret"]
        if hardened:
            with pytest.raises(OSError, match="a way out of the root"):
                web1.runtime.run("web1", steal, stdin=fd)
        else:
            assert web1.runtime.run("web1", steal, stdin=fd, capture_output=True).stdout == b"of the host\n"
    finally:
        os.close(fd)
    web1.stop()


def test_all_verbs_work_the_same(make_chroot: MakeChroot, cli: Cli, namespaces: list[str]) -> None:
    web1 = make_chroot(hardened=True, hardened_namespaces=namespaces)
    before = kernelview.mount_table()
    assert web1.cli("plan start").status == 0
    web1.cli("start")
    assert web1.state == "running"
    keepers = 1 if "pid" in namespaces else 0
    assert cli.json("list")["instances"][0]["processes"] == 1 + keepers
    assert sorted(p["command"] for p in web1.cli("ps", "--json").json()["processes"]) == ["chrootfw-init"] * keepers + [
        "sleep"
    ]
    assert web1.cli("info", "--json").json()["holders"] == []
    assert web1.cli("exec", "--", "/bin/sh", "-c", "exit 7", expect=7).status == 7
    assert (
        web1.cli("exec", "--user", "web", "--", "/bin/sh", "-c", "echo $(id -u) > /tmp/by-web; cat /tmp/by-web").stdout
        == "1000\n"
    )
    assert web1.cli("exec", "--", "/none", expect=127).status == 127
    assert web1.runtime.run("web1", ["/bin/cat"], input=b"words", capture_output=True).stdout == b"words"
    web1.cli("reboot")
    assert web1.calls() == ["start", "stop", "start"]
    assert web1.state == "running"
    web1.cli("stop")
    assert web1.calls() == ["start", "stop", "start", "stop"]
    assert kernelview.mount_table() == before


def test_a_terminal(make_chroot: MakeChroot, namespaces: list[str]) -> None:
    web1 = make_chroot(hardened=True, hardened_namespaces=namespaces)
    web1.start()
    process = web1._cli.begin("shell", "web1", stdin=subprocess.PIPE)
    result = web1._cli.end(process, expect=3, input="tty; echo ok > /dev/tty; exit 3\n")
    assert "/dev/pts/0" in result.stdout
    assert "ok" in result.stdout
    web1.stop()


def test_who_is_inside_sees_only_the_root(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(hardened=True, hardened_namespaces=["pid", "uts"])
    web1.start()
    seen = web1.cli(
        "exec",
        "--",
        "/bin/sh",
        "-c",
        "cat /proc/self/mountinfo; echo; cat /proc/sys/kernel/hostname; ls -d /proc/[0-9]*",
    )
    mounts, rest = seen.stdout.split("\n\n")
    assert {line.split()[4].split("/")[1] for line in mounts.splitlines()} <= {"", "proc", "sys", "dev", "run"}
    assert rest.splitlines()[0] == "web1"
    assert len(rest.splitlines()) <= 5
    # The first process of the namespace is a clone of the manager: nothing of that may be read.
    first = web1.cli(
        "exec", "--", "/bin/sh", "-c", "cat /proc/1/cmdline; cat /proc/1/environ; cat /proc/1/maps", expect=1
    )
    assert first.stdout.strip("\0") == "chrootfw-init"
    web1.stop()


def test_what_loses_its_parent_is_reaped_and_does_not_end_the_instance(make_chroot: MakeChroot) -> None:
    orphans = "(/bin/sleep 0.01 &); (/bin/true &); /bin/sh -c '/bin/sleep 3600 &'"
    web1 = make_chroot(hardened=True, hardened_namespaces=["pid"], init=roots.script(start=orphans, stop="true"))
    web1.start()
    (first,) = web1.pids("chrootfw-init")
    kernelview.wait_until(lambda: len(web1.pids()) == 2, "the orphans are reaped")
    web1.runtime.run("web1", ["/bin/sh", "-c", "/bin/sleep 3600 & exit 0"], check=True)
    assert web1.pids("chrootfw-init") == {first}
    assert len(web1.pids("sleep")) == 2
    web1.cli("stop", "--timeout", "30")
    assert web1.is_gone()


def test_a_script_that_leaves_no_process(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(hardened=True, hardened_namespaces=["pid"], init=roots.script(start="true", stop="true"))
    assert "left no process alive" in web1.cli("start").stderr
    assert web1.state == "mounted"
    assert web1.cli("exec", "--", "/bin/echo", "alone").stdout == "alone\n"
    web1.cli("stop")


def test_term_reaches_the_daemons_and_nothing_waits_for_the_keeper(make_chroot: MakeChroot) -> None:
    daemon = "trap 'echo bye > /var/bye; exit' TERM; (while :; do sleep 0.05; done) & wait"
    start = f'/bin/sh -c "{daemon}" & '
    web1 = make_chroot(
        hardened=True, hardened_namespaces=["pid"], init=roots.script(start=start, stop="true"), grace=60
    )
    web1.start()
    web1.cli("stop")
    assert (web1.disk / "var/bye").read_text() == "bye\n"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"hardened_namespaces": ["net"]}, "'net' is no namespace"),
        ({"hardened_capabilities": ["CAP_KILL"]}, "'CAP_KILL' is no capability"),
        ({"hardened": "yes"}, "hardened"),
    ],
)
def test_what_is_not_understood_is_refused(make_chroot: MakeChroot, params: dict[str, object], words: str) -> None:
    refused = make_chroot(**{"hardened": True, **params}).cli("start", expect=1)
    assert words in refused.brief


def test_more_capabilities_can_be_kept(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(hardened=True, hardened_capabilities=["SYS_CHROOT"])
    web1.start()
    web1.cli("exec", "--", "/bin/busybox", "chroot", "/", "/bin/true")
    web1.stop()


def test_without_the_plugin_nothing_is_started_in_its_place(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(hardened=True)
    refused = web1.cli("start", "--without", "chrootfw_hardened", expect=1)
    assert "hardened" in refused.brief
    web1.cli("start")
    web1.cli("exec", "--no-plugins", "--", "/bin/busybox", "chroot", "/", "/bin/true", expect=1)
    web1.cli("stop", "--no-plugins")
    assert web1.is_gone()


def test_a_lost_record_does_not_open_it(make_chroot: MakeChroot, cli: Cli) -> None:
    web1 = make_chroot(hardened=True)
    web1.start()
    record = cli.run_dir / "web1/intent.json"
    for text in ("", record.read_text().replace('"pivot_root"', "7")):
        record.write_text(text)
        refused = web1.cli("exec", "--", "/bin/true", expect=125)
        assert "record" in refused.brief
    web1.cli("stop")
    assert web1.is_gone()
    assert web1.calls() == ["start", "stop"]
