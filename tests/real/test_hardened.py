"""``hardened = true``: the classic ways out of a chroot work on a plain one and fail here; all verbs work the same."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import kernelview
import pytest
import roots
from driving import Chroot, Cli

import chrootfw
from chrootfw import Entry
from chrootfw_hardened import hardening

MakeChroot = Callable[..., Chroot]


@pytest.fixture
def runtime(run_dir: Path, config_dir: Path) -> chrootfw.Runtime:
    return chrootfw.Runtime([hardening], run_dir=str(run_dir), config_dir=str(config_dir))


NAMESPACES: dict[str, list[str]] = {
    "as few as there are": [],
    "all": ["pid", "ipc", "uts", "cgroup"],
    "uts": ["uts"],
}

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
#: Python, wherever it is installed.
#: Calls that a hardened instance is refused, with arguments that would do no harm: a number for each.
REFUSED_CALLS = {
    "io_uring_setup": (1, 0), "userfaultfd": (0,), "bpf": (0, 0, 0), "perf_event_open": (0, 0, -1, -1, 0), "keyctl": (0, -3, 1),
    "add_key": (0, 0, 0, 0, 0), "request_key": (0, 0, 0, 0), "pidfd_getfd": (-1, 0, 0), "process_vm_readv": (1, 0, 0, 0, 0, 0),
    "process_vm_writev": (1, 0, 0, 0, 0, 0), "kcmp": (1, 1, 0, 0, 0), "ptrace": (16, 1, 0, 0), "open_tree": (-100, 0, 0),
    "fsopen": (0, 0), "fspick": (-100, 0, 0), "fsconfig": (-1, 0, 0, 0, 0), "fsmount": (-1, 0, 0), "move_mount": (-1, 0, -1, 0, 0),
    "mount_setattr": (-1, 0, 0, 0, 0), "mount": (0, 0, 0, 0, 0), "umount2": (0, 0), "pivot_root": (0, 0), "setns": (-1, 0),
    "unshare": (0x20000,), "init_module": (0, 0, 0), "finit_module": (-1, 0, 0), "kexec_load": (0, 0, 0, 0), "reboot": (0, 0, 0, 0),
    "swapon": (0, 0), "acct": (0,), "syslog": (10, 0, 0), "settimeofday": (0, 0), "clock_settime": (0, 0), "vhangup": (),
    "quotactl": (0, 0, 0, 0), "fanotify_init": (0, 0), "name_to_handle_at": (-100, 0, 0, 0, 0), "open_by_handle_at": (-1, 0, 0),
    "file_setattr": (-1, 0, 0, 0, 0), "open_tree_attr": (-100, 0, 0, 0, 0),
}  # fmt: skip
#: The numbers of those that Debian's libseccomp does not know, where they are the same for each processor.
NEW_CALLS = (
    {"file_setattr": 469, "open_tree_attr": 467}
    if os.uname().machine in ("x86_64", "aarch64")
    else {}
)
PROBE = """
import json, socket, fcntl
calls = json.loads(sys.argv[4])
libc.syscall.restype = ctypes.c_long
for name, (number, arguments) in calls.items():
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(word) for word in arguments])
    print(name, ctypes.get_errno() if result < 0 else "done")
def attempt(name, what):
    try: what(); print(name, "done")
    except OSError as error: print(name, error.errno)
attempt("packets", lambda: socket.socket(17, 3, 0))
attempt("raw", lambda: socket.socket(2, 3, 1))
attempt("vsock", lambda: socket.socket(40, 1, 0))
number = {"x86_64": 41, "aarch64": 198}.get(os.uname().machine)
attempt("vsock in other words", lambda: number and check(libc.syscall(ctypes.c_long(number), ctypes.c_long(1 << 32 | 40), 1, 0)))
attempt("a namespace by clone3", lambda: check(libc.syscall(435, ctypes.byref((ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)), 64)))
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger", "/proc/sys/fs/binfmt_misc/register",
             "/sys/kernel/uevent_helper", "/sys/power/state", "/proc/kmsg", "/dev/mem", "/dev/kmsg", "/proc/1/mem",
             "/proc/1/exe", "/proc/1/fd/0", "/proc/1/environ"):
    attempt(path, lambda: os.open(path, os.O_WRONLY if path.startswith(("/proc/sys", "/sys")) else os.O_RDONLY))
attempt("a terminal's input", lambda: fcntl.ioctl(os.openpty()[1], 0x5412, b"x"))
attempt("a console's", lambda: fcntl.ioctl(os.openpty()[1], 0x541C, b"x"))
attempt("a project", lambda: fcntl.ioctl(os.open("/srv", os.O_RDONLY), 0x401C5820, bytes(28)))
attempt("a device", lambda: os.mknod("/srv/device", 0o60600, 0x700))
attempt("cgroups", lambda: os.open("/sys/fs/cgroup/cgroup.procs", os.O_WRONLY))
attempt("the host name", lambda: socket.sethostname("other"))
"""
BINDS = [
    f"{place}:{place}:ro" for place in dict.fromkeys(("/usr", os.path.realpath(sys.base_prefix)))
]


@pytest.fixture(params=NAMESPACES)
def namespaces(request: pytest.FixtureRequest) -> list[str]:
    return NAMESPACES[request.param]


@pytest.fixture
def make_python_chroot(make_chroot: MakeChroot, make_root: Callable[..., Path]) -> MakeChroot:
    """A factory of instances in which this Python runs."""

    def make(binds: Sequence[str] = (), **params: object) -> Chroot:
        root = make_root()
        for directory in ("lib", "lib64"):
            (root / directory).symlink_to(f"usr/{directory}")
        web1 = make_chroot(disk=root, binds=[*BINDS, *binds], **params)
        web1.cli("start")
        return web1

    return make


@pytest.fixture
def host(
    tmp_path: Path,
    secret: Path,
    attach: Callable[[Path], str],
    outside: Callable[..., subprocess.Popen[str]],
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


def test_a_plain_chroot_does_not_contain_root(
    make_python_chroot: MakeChroot, host: list[str]
) -> None:
    """docs/explanation/security.md says so; if one of these fails, it says too much."""
    web1 = make_python_chroot()
    found = escapes(web1, host)
    refused = found.pop(
        "a user namespace"
    )  # not for a process whose root is no mount namespace's (unshare(2))
    assert refused != "out"
    assert found == dict.fromkeys(found, "out")
    web1.cli("stop")


def test_a_hardened_one_does(
    make_python_chroot: MakeChroot, host: list[str], namespaces: list[str]
) -> None:
    web1 = make_python_chroot(hardened=True, hardened_namespaces=namespaces)
    found = escapes(web1, host)
    allowed = (
        "Operation not permitted",
        "Permission denied",
        "Read-only file system",
        "No such file or directory",
    )
    assert all(any(words in said for words in allowed) for said in found.values()), found
    web1.cli("stop")


def test_what_root_inside_is_refused(make_python_chroot: MakeChroot, host: list[str]) -> None:
    """System calls, files of the kernel's, sockets that belong to no network namespace: each is tried."""
    library = ctypes.CDLL("libseccomp.so.2")
    numbers = {name: library.seccomp_syscall_resolve_name(name.encode()) for name in REFUSED_CALLS}
    numbers |= NEW_CALLS
    calls = {name: (numbers[name], REFUSED_CALLS[name]) for name in numbers if numbers[name] >= 0}
    web1 = make_python_chroot(hardened=True)
    done = web1.cli(
        "exec",
        "--",
        os.path.realpath(sys.executable),
        "-I",
        "-S",
        "-c",
        PROLOGUE + PROBE,
        *host,
        json.dumps(calls),
    )
    found = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert found.keys() >= calls.keys()
    refusals = {
        str(code)
        for code in (
            errno.EPERM,
            errno.EACCES,
            errno.EROFS,
            errno.ENOENT,
            errno.ENOSYS,
            errno.ENODEV,
        )
    }
    assert {what: said for what, said in found.items() if said not in refusals} == {}
    assert {found[name] for name in calls} == {str(errno.EPERM)}
    web1.cli("stop")


_USER_NAMESPACES = """
number = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)
libc.syscall.restype = ctypes.c_long
def attempt(name, what):
    try: print(name, what())
    except OSError as error: print(name, error.errno)
flags = ctypes.c_long(0x10000000 | 17)
attempt("unshare", lambda: check(libc.unshare(0x10000000)))
attempt("unshare with mounts", lambda: check(libc.unshare(0x10020000)))
if number: attempt("clone", lambda: check(libc.syscall(ctypes.c_long(number), flags, 0, 0, 0, 0)) or os._exit(0))
if number: attempt("clone a sibling", lambda: check(libc.syscall(ctypes.c_long(number), ctypes.c_long(0x8000 | 17), 0, 0, 0, 0)) or os._exit(0))
attempt("clone3", lambda: check(libc.syscall(435, ctypes.byref((ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)), 64)) or os._exit(0))
attempt("keyctl", lambda: check(libc.syscall(ctypes.c_long(int(sys.argv[4])), 0, ctypes.c_long(-4), 1)))
attempt("another call", lambda: check(libc.name_to_handle_at(-100, None, None, None, 0)))
"""


def test_without_the_filter_it_holds_as_well(
    make_python_chroot: MakeChroot, host: list[str]
) -> None:
    """A user namespace, and the host's root's keys, would undo the rest: these are refused in any case."""
    keyctl = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name(b"keyctl")
    web1 = make_python_chroot(hardened=True, hardened_seccomp=False)
    assert {kind for kind, said in escapes(web1, host).items() if said == "out"} == set()
    python = os.path.realpath(sys.executable)
    done = web1.cli(
        "exec", "--", python, "-I", "-S", "-c", PROLOGUE + _USER_NAMESPACES, *host, str(keyctl)
    )
    found = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert found.pop("clone3") == str(errno.ENOSYS)
    assert found.pop("another call") == str(errno.EFAULT)
    assert set(found.values()) == {str(errno.EPERM)}
    assert len(found) >= 3
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
            assert (
                web1.runtime.run("web1", steal, stdin=fd, capture_output=True).stdout
                == b"of the host\n"
            )
    finally:
        os.close(fd)
    web1.stop()


def test_all_verbs_work_the_same(make_chroot: MakeChroot, cli: Cli, namespaces: list[str]) -> None:
    web1 = make_chroot(hardened=True, hardened_namespaces=namespaces)
    before = kernelview.mount_table()
    assert web1.cli("plan start").status == 0
    web1.cli("start")
    assert web1.state == "running"
    assert cli.json("list")["instances"][0]["processes"] == 2
    commands = sorted(
        process["command"] for process in web1.cli("ps", "--json").json()["processes"]
    )
    assert commands == ["chrootfw-init", "sleep"]
    assert web1.cli("info", "--json").json()["holders"] == []
    assert web1.cli("exec", "--", "/bin/sh", "-c", "exit 7", expect=7).status == 7
    assert (
        web1.cli(
            "exec",
            "--user",
            "web",
            "--",
            "/bin/sh",
            "-c",
            "echo $(id -u) > /tmp/by-web; cat /tmp/by-web",
        ).stdout
        == "1000\n"
    )
    assert web1.cli("exec", "--", "/none", expect=127).status == 127
    assert (
        web1.runtime.run("web1", ["/bin/cat"], input=b"words", capture_output=True).stdout
        == b"words"
    )
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
    assert {line.split()[4].split("/")[1] for line in mounts.splitlines()} <= {
        "",
        "proc",
        "sys",
        "dev",
        "run",
    }
    assert rest.splitlines()[0] == "web1"
    assert len(rest.splitlines()) <= 5
    # The first process of the namespace is a clone of the manager: nothing of that may be read.
    first = web1.cli(
        "exec",
        "--",
        "/bin/sh",
        "-c",
        "cat /proc/1/cmdline; cat /proc/1/environ; cat /proc/1/maps",
        expect=1,
    )
    assert first.stdout.strip("\0") == "chrootfw-init"
    web1.stop()


def test_what_loses_its_parent_is_reaped_and_does_not_end_the_instance(
    make_chroot: MakeChroot,
) -> None:
    orphans = "(/bin/sleep 0.01 &); (/bin/true &); /bin/sh -c '/bin/sleep 3600 &'"
    web1 = make_chroot(
        hardened=True, hardened_namespaces=["pid"], init=roots.script(start=orphans, stop="true")
    )
    web1.start()
    (first,) = web1.pids("chrootfw-init")
    kernelview.wait_until(lambda: len(web1.pids()) == 2, "the orphans are reaped")
    web1.runtime.run("web1", ["/bin/sh", "-c", "/bin/sleep 3600 & exit 0"], check=True)
    assert web1.pids("chrootfw-init") == {first}
    assert len(web1.pids("sleep")) == 2
    web1.cli("stop", "--timeout", "30")
    assert web1.is_gone()


def test_a_script_that_leaves_no_process(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(
        hardened=True, hardened_namespaces=["pid"], init=roots.script(start="true", stop="true")
    )
    assert "left no process alive" in web1.cli("start").stderr
    assert web1.state == "mounted"
    assert web1.cli("exec", "--", "/bin/echo", "alone").stdout == "alone\n"
    web1.cli("stop")


def test_term_reaches_the_daemons_and_nothing_waits_for_the_keeper(make_chroot: MakeChroot) -> None:
    daemon = "trap 'echo bye > /var/bye; exit' TERM; (while :; do sleep 0.05; done) & wait"
    start = f'/bin/sh -c "{daemon}" & '
    web1 = make_chroot(
        hardened=True,
        hardened_namespaces=["pid"],
        init=roots.script(start=start, stop="true"),
        grace=60,
    )
    web1.start()
    web1.cli("stop")
    assert (web1.disk / "var/bye").read_text() == "bye\n"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"hardened_namespaces": ["net"]}, "'net' is not a namespace"),
        ({"hardened_capabilities": ["CAP_NONSENSE"]}, "'NONSENSE' is not a capability"),
        ({"hardened": "yes"}, "hardened"),
    ],
)
def test_what_is_not_understood_is_refused(
    make_chroot: MakeChroot, params: dict[str, object], words: str
) -> None:
    refused = make_chroot(**{"hardened": True, **params}).cli("start", expect=1)
    assert words in refused.brief


def test_more_capabilities_can_be_kept(make_chroot: MakeChroot) -> None:
    make = ("exec", "--", "/bin/mknod", "/srv/null", "c", "1", "3")
    for name, kept in (("web1", []), ("web2", ["MKNOD"])):
        web1 = make_chroot(name, hardened=True, hardened_capabilities=kept)
        web1.start()
        web1.cli(*make, expect=0 if kept else 1)
        web1.stop()


_PROTOCOLS = """
import socket
for protocol in range(32):
    try: socket.socket(16, socket.SOCK_RAW, protocol).close()
    except OSError as error: assert error.errno == 93, error
    else: print(protocol)
"""


@pytest.mark.parametrize(
    ("kept", "allowed"),
    [([], {0, 4}), (["NET_ADMIN"], {0, 4, 6, 12, 16}), (["AUDIT_CONTROL"], {0, 4, 9})],
)
def test_netlink_has_the_protocols_of_the_capabilities(
    make_python_chroot: MakeChroot, kept: list[str], allowed: set[int]
) -> None:
    """Without any, addresses, routes and sockets; each other protocol is one that the kernel does not have."""
    command = [os.path.realpath(sys.executable), "-I", "-S", "-c", _PROTOCOLS]
    host = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    web1 = make_python_chroot(hardened=True, hardened_capabilities=kept)
    inside = web1.cli("exec", "--", *command).stdout
    assert set(inside.split()) == {str(number) for number in allowed} & set(host.split())
    web1.cli("stop")


def test_who_changes_the_root_stays_below_the_instances(
    make_python_chroot: MakeChroot, host: list[str]
) -> None:
    """SYS_CHROOT is kept, for services that give themselves a smaller root: the one that they leave it for is the instance's."""
    web1 = make_python_chroot(hardened=True)
    (web1.disk / "srv/of-the-instance").touch()
    code = f"{PROLOGUE}{ESCAPES['mkdir, chroot and ..'].replace('open(secret).read()', '')}print(*os.listdir('/srv'))"
    python = os.path.realpath(sys.executable)
    done = web1.cli("exec", "--", python, "-I", "-S", "-c", code, *host)
    assert set(done.stdout.split()) >= {"of-the-instance", "deeper"}
    web1.stop()


def test_nothing_outside_is_seen(
    make_python_chroot: MakeChroot, make_chroot: MakeChroot, secret: Path
) -> None:
    """No process of the host or of another instance, also not one with as few rights (ptrace(2)); no System V memory; no host name."""
    other = make_chroot("web2", hardened=True)
    other.start()
    web1 = make_chroot("web1", hardened=True)
    web1.start()
    confined = subprocess.Popen(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "sleep", "3600"]
    )
    try:
        for pid in (confined.pid, *other.pids(), os.getpid()):
            web1.cli("exec", "--", "/bin/ls", f"/proc/{pid}/root/bin", expect=(0, 1))
        script = "for p in /proc/[0-9]*; do cat $p/comm; ls $p/root/; done; cat /proc/self/cgroup"
        seen = web1.cli("exec", "--", "/bin/sh", "-c", script, expect=(0, 1)).stdout
    finally:
        confined.kill()
        confined.wait()
    assert secret.parent.name not in seen
    assert seen.count("sleep\n") == 1
    assert "web2" not in seen
    for kind in ("pid", "mnt", "ipc", "uts", "cgroup"):
        inside = web1.cli("exec", "--", "/bin/readlink", f"/proc/self/ns/{kind}").stdout.strip()
        assert inside != os.readlink(f"/proc/self/ns/{kind}")
        assert (
            inside
            == web1.cli("exec", "--", "/bin/readlink", f"/proc/self/ns/{kind}").stdout.strip()
        )
    web1.stop()
    other.stop()


def test_the_first_process_has_nothing_of_the_managers(
    make_python_chroot: MakeChroot, cli: Cli
) -> None:
    """Even where it may be traced. Its executable is on no mount of the host's, and cannot be written to."""
    web1 = make_python_chroot(hardened=True, hardened_capabilities=["SYS_PTRACE"])
    web1.cli("stop")
    cli("start", "web1", env={"ADMINS_SECRET": "of-the-administrator"})
    code = """
import os
for file in ("environ", "cmdline", "comm"):
    print(file, open(f"/proc/1/{file}", "rb").read().strip(b"\\0"))
print(*sorted(os.listdir("/proc/1/fd")))
for fd in os.listdir("/proc/1/fd"): print(fd, os.readlink(f"/proc/1/fd/{fd}"))
print("root", sorted(os.listdir("/proc/1/root/")) == sorted(os.listdir("/")), os.path.samefile("/proc/1/cwd/", "/"))
print("read-only", bool(os.statvfs("/proc/1/exe").f_flag & os.ST_RDONLY))
memory = open("/proc/1/mem", "rb", 0)
for line in open("/proc/1/maps"):
    begin, end = (int(word, 16) for word in line.split()[0].split("-"))
    if "[v" in line: continue
    try: memory.seek(begin); part = memory.read(end - begin)
    except (OSError, OverflowError): continue
    if b"of-the-" b"administrator" in part or b"ADMINS_" b"SECRET" in part: print("LEAKED", line)
"""
    python = os.path.realpath(sys.executable)
    seen = web1.cli("exec", "--", python, "-I", "-S", "-c", code).stdout
    assert "environ b''" in seen
    assert "cmdline b'chrootfw-init'" in seen
    assert "root True True" in seen
    assert "read-only True" in seen
    assert "memfd" not in seen
    assert "LEAKED" not in seen
    assert str(cli.run_dir) not in seen
    web1.cli("stop")


def test_without_the_plugin_nothing_is_started_in_its_place(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(hardened=True)
    refused = web1.cli("start", "--without", "chrootfw_hardened", expect=1)
    assert "hardened" in refused.brief
    web1.cli("start")
    web1.cli("exec", "--no-plugins", "--", "/bin/mknod", "/srv/null", "c", "1", "3", expect=1)
    web1.cli("stop", "--no-plugins")
    assert web1.is_gone()


def test_a_lost_record_does_not_open_it(make_chroot: MakeChroot, cli: Cli) -> None:
    web1 = make_chroot(hardened=True)
    web1.start()
    record = cli.run_dir / "web1/record.json"
    for text in ("", record.read_text().replace('"pivot_root"', "7")):
        record.write_text(text)
        refused = web1.cli("exec", "--", "/bin/true", expect=125)
        assert "record" in refused.brief
    web1.cli("stop")
    assert web1.is_gone()
    assert web1.calls() == ["start", "stop"]


def test_a_disk_that_every_user_can_enter_is_told(make_chroot: MakeChroot, tmp_path: Path) -> None:
    """A suid program of the instance's, in a directory, is one of the host's too."""
    place = Path(tempfile.mkdtemp())
    try:
        disk = roots.make_root(place / "disk")
        web1 = make_chroot(disk=disk, hardened=True)
        for mode, told in ((0o700, False), (0o755, True)):
            place.chmod(mode)
            open_to_all = all(way.stat().st_mode & 0o001 for way in disk.parents)
            started = web1.cli("start")
            assert ("every user of the host can enter" in started.stderr) == (told and open_to_all)
            web1.cli("stop")
    finally:
        shutil.rmtree(place)


def test_a_writable_bind_that_every_user_can_enter_is_told(make_chroot: MakeChroot) -> None:
    """A suid program that is left in it, too. Read only, or out of reach, there is nothing to tell."""
    place = Path(tempfile.mkdtemp(dir="/var/tmp"))
    web1 = make_chroot()
    try:
        (place / "shared").mkdir()
        source = f"{place}/shared"
        open_to_all = all(way.stat().st_mode & 0o001 for way in place.parents)
        for mode, bind, told in (
            (0o700, f"{source}:/srv", False),
            (0o755, f"{source}:/srv:ro", False),
            (0o755, f"{source}:/srv", True),
        ):
            place.chmod(mode)
            web1.define(hardened=True, binds=[bind])
            said = f"every user of the host can enter {source}" in web1.cli("start").stderr
            assert said == (told and open_to_all)
            web1.cli("stop")
    finally:
        shutil.rmtree(place)


def test_what_is_done_to_the_child_that_enters_is_not_done_to_the_manager(
    make_chroot: MakeChroot, cli: Cli, hierarchy: Path
) -> None:
    """It is seen inside; what is set on one of two processes with one memory is set on both (oom_score_adj)."""
    web1 = make_chroot(hardened=True)
    web1.start()
    group = Path(f"/proc/{min(web1.pids())}/cgroup").read_text().rpartition("0::/")[2].strip()
    freeze, procs = hierarchy / group / "cgroup.freeze", hierarchy / group / "cgroup.procs"
    before = set(procs.read_text().split())
    freeze.write_text("1")  # the child is born in there, and comes no further
    try:
        manager = cli.begin("exec", "web1", "--", "/bin/true")
        own = Path(f"/proc/{manager.pid}/oom_score_adj")
        (child,) = kernelview.wait_until(
            lambda: set(procs.read_text().split()) - before, "its child is there"
        )
        was = own.read_text()
        Path(f"/proc/{child}/oom_score_adj").write_text("555")
        assert own.read_text() == was
    finally:
        freeze.write_text("0")
    cli.end(manager)


#: What is seen of each process that comes into the pid namespace, from the first moment. One that has other mounts is stopped.
_WATCH = """
import os, signal, time
own, end, seen = open("/proc/self/mountinfo").read(), time.monotonic() + 60, set()
open("/srv/watching", "w").close()
def look(pid, file):
    try: return open(f"/proc/{pid}/{file}").read()
    except OSError: return ""
while time.monotonic() < end and not os.path.exists("/srv/enough"):
    for pid in [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]:
        mounts = look(pid, "mountinfo")
        seen.add(look(pid, "cmdline").replace("\\0", " ").strip())
        if mounts and mounts != own:
            seen.add("other mounts: " + mounts)
            try: os.kill(int(pid), signal.SIGSTOP)
            except ProcessLookupError: pass
print(*sorted(seen), sep="\\n")
"""


def test_a_process_that_comes_in_is_wholly_inside_when_it_is_seen(
    make_python_chroot: MakeChroot, cli: Cli
) -> None:
    """No mounts and no arguments of the host's, and nothing that can be stopped before."""
    web1 = make_python_chroot(hardened=True)
    watching, enough = web1.disk / "srv/watching", web1.disk / "srv/enough"
    watcher = cli.begin(
        "exec", "web1", "--", os.path.realpath(sys.executable), "-I", "-S", "-c", _WATCH
    )
    kernelview.wait_until(watching.exists, "it watches")
    for _ in range(10):
        web1.cli("exec", "--user", "web", "--cwd", "/srv", "--", "/bin/true")
    web1.runtime.run("web1", ["/bin/true"], check=True)
    shell = cli.begin("shell", "web1", stdin=subprocess.PIPE)
    cli.end(shell, input="exit\n")
    enough.touch()
    seen = cli.end(watcher).stdout.splitlines()
    assert [line for line in seen if "other mounts" in line] == []
    assert {line.split()[0].rpartition("/")[2] for line in seen if line} <= {
        "chrootfw-init",
        "true",
        "sleep",
        "sh",
        "-sh",
    }
    web1.cli("stop")


#: What root alone may read of the host's memory, keys and devices, and what container managers hide. Where a kernel has it, it is empty.
HIDDEN = (
    "acpi asound apm cancellation iomem ioports kallsyms kcore key-users keys kmsg kpagecgroup kpagecount kpageflags latency_stats lock_stat "
    "pagetypeinfo sched_debug scsi slabinfo timer_list timer_stats tty/driver vmallocinfo vmcore sys/net/ipv4/tcp_fastopen_key "
    "sys/net/ipv6/conf/all/stable_secret sys/net/ipv6/conf/lo/stable_secret"
).split()
HIDDEN_SYS = (
    "firmware devices/virtual/powercap devices/virtual/dmi fs/selinux fs/pstore dev/block kernel/slab kernel/debug kernel/tracing kernel/security "
    "kernel/notes kernel/boot_params kernel/vmcoreinfo devices/system/cpu/cpu0/thermal_throttle "
    "class/zram-control kernel/mm/page_idle devices/virtual/nvme-fabrics devices/virtual/ptp/ptp0/fifo"
).split()
_SHOWN = """
import os, stat, sys
def what_is_in(path):
    if os.path.isdir(path): return ",".join(os.listdir(path)) or "nothing"
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try: return "content" if os.read(fd, 16) else "nothing"
    finally: os.close(fd)
def attempt(path, what):
    try: return what(path)
    except OSError as error: return f"errno {error.errno}"
def files(top):
    for place, directories, names in os.walk(top):
        if place == top: directories[:] = [name for name in directories if not name.isdigit() and name not in ("self", "thread-self", "net")]
        for name in names: yield os.path.join(place, name)
for path in sys.argv[1:]:
    if os.path.exists(path): print("named", path, attempt(path, what_is_in))
for path in files("/proc"):
    try: mode = os.lstat(path).st_mode
    except OSError: continue
    if not stat.S_ISREG(mode): continue
    if not mode & 0o044 and not path.startswith("/proc/sys/"): print("roots", path, attempt(path, what_is_in))
    written = attempt(path, lambda path: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK)) or "written")
    if mode & 0o222 and written == "written": print("written", path, written)
"""


def test_what_root_alone_may_read_is_hidden(make_python_chroot: MakeChroot) -> None:
    """In each mount of proc and sysfs, by its name and by its mode: what a kernel adds is found too."""
    binds = [
        "/proc:/srv/proc",
        "/proc/sys/net:/srv/net",
        "/sys:/srv/sys",
        "/sys/kernel:/srv/kernel",
    ]
    web1 = make_python_chroot(hardened=True, binds=binds)
    places = [f"{proc}/{name}" for proc in ("/proc", "/srv/proc") for name in HIDDEN]
    places += [f"{sysfs}/{name}" for sysfs in ("/sys", "/srv/sys") for name in HIDDEN_SYS]
    places += [
        "/srv/net/ipv4/tcp_fastopen_key",
        "/srv/net/ipv6/conf/lo/stable_secret",
        "/srv/kernel/slab",
        "/srv/kernel/notes",
    ]
    python = os.path.realpath(sys.executable)
    done = web1.cli("exec", "--", python, "-I", "-S", "-c", _SHOWN, *places)
    found = [line.split(" ", 2) for line in done.stdout.splitlines()]
    named = {path for kind, path, _ in found if kind == "named"}
    for path in ("/proc/keys", "/proc/key-users", "/srv/proc/keys", "/sys/firmware"):
        assert (path in named) == Path(path.replace("/srv", "")).exists()
    closed = ("nothing", f"errno {errno.EPERM}", f"errno {errno.EACCES}")
    assert [line for line in found if line[0] != "written" and line[2] not in closed] == []
    # Pressure can be asked for by any user of the host.
    assert [
        path
        for kind, path, _ in found
        if kind == "written" and not path.startswith("/proc/pressure/")
    ] == []
    mounts = web1.cli("exec", "--", "/bin/cat", "/proc/self/mountinfo").stdout
    assert {line.split()[4] for line in mounts.splitlines() if line.split()[4].count("/") == 1} >= {
        "/",
        "/proc",
        "/sys",
    }
    assert [line for line in mounts.splitlines() if line.split()[4] == "/"][1:] == []
    web1.cli("stop")


_FIND_KEY = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
found = libc.syscall(ctypes.c_long(int(sys.argv[1])), 10, ctypes.c_long(-3), b"user", b"of-the-administrator", 0)
print("found" if found >= 0 else ctypes.get_errno())
"""


class _IsolatedAlone:
    """Mounts and processes of its own, and every system call."""

    @chrootfw.hookimpl
    def chrootfw_enter(self) -> Entry:
        return Entry("pivot_root", namespaces=["pid"])


def test_the_managers_session_keyring_stays_outside(
    make_python_chroot: MakeChroot, run_dir: Path, config_dir: Path
) -> None:
    """On each verb: keyrings(7) are inherited by fork and execve."""
    library = ctypes.CDLL("libseccomp.so.2")
    keyctl, add_key = (
        library.seccomp_syscall_resolve_name(name) for name in (b"keyctl", b"add_key")
    )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    if libc.syscall(ctypes.c_long(keyctl), 1, None) < 0:
        pytest.skip("this kernel has no keyrings, or does not let them be used")
    session = ctypes.c_long(-3)
    assert (
        libc.syscall(
            ctypes.c_long(add_key),
            b"user",
            b"of-the-administrator",
            b"x",
            ctypes.c_long(1),
            session,
        )
        >= 0
    )
    look = [os.path.realpath(sys.executable), "-I", "-S", "-c", _FIND_KEY, str(keyctl)]
    here = subprocess.run(look, capture_output=True, text=True, check=True)
    assert here.stdout == "found\n"
    web1 = make_python_chroot()
    web1.cli("stop")
    script = web1.disk / "srv/look"
    script.write_text(f"#!/bin/sh\n{shlex.join(look)} >> /srv/found\n")
    script.chmod(0o755)
    (web1.disk / roots.INIT).write_text(roots.script("/srv/look; /bin/sleep 3600 &", "/srv/look"))
    runtime = chrootfw.Runtime([_IsolatedAlone()], run_dir=str(run_dir), config_dir=str(config_dir))
    runtime.start(web1.name)
    assert (
        runtime.run(web1.name, look, capture_output=True, text=True).stdout == f"{errno.ENOKEY}\n"
    )
    runtime.reboot(web1.name)
    runtime.stop(web1.name)
    assert (web1.disk / "srv/found").read_text().split() == [str(errno.ENOKEY)] * 4


@pytest.mark.parametrize("when", ["the disk is a mount point", "bound before", "bound later"])
def test_a_disk_that_is_mounted_elsewhere_too_hides_no_process(
    web1: Chroot, mounted: Callable[..., Path], tmp_path: Path, tracking: str, when: str
) -> None:
    """The instance's processes see a copy of its root, which then is no copy of that root alone."""
    if when == "the disk is a mount point":
        mounted(web1.disk, "--bind", str(web1.disk))
    elif when == "bound before":
        mounted(tmp_path / "elsewhere", "--bind", str(web1.disk))
    web1.define(hardened=True)
    if tracking == "root" and when != "bound later":
        refused = web1.cli("start", expect=1)
        assert "is mounted elsewhere, too, and without a cgroup" in refused.stderr
        assert web1.is_gone()
        return
    assert "left no process" not in web1.cli("start").stderr
    if when == "bound later" and tracking == "cgroup":
        mounted(tmp_path / "elsewhere", "--bind", str(web1.disk))
    pids = web1.pids()
    assert len(pids) == 2
    assert web1.state == "running"
    assert {each["why"] for each in web1.cli("ps", "--json").json()["processes"]} == {tracking}
    assert web1.cli("exec", "--", "/bin/echo", "x").stdout == "x\n"
    assert "runs outside" not in web1.cli("stop").stderr
    assert not any(map(kernelview.is_running, pids))
    assert web1.is_gone()
