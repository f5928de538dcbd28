"""Run inside an instance: try what leads from there to the host, one attempt each, and write what came of it as JSON.

    python -I -S containment_probe.py WORLD RESULTS

WORLD is JSON: what of the host there is to reach, and the numbers of the system calls. RESULTS becomes ``{attempt: result}``, a result being
``open``, the name of the errno, or why nothing could be tried.

An attempt does no harm where it succeeds: it takes back what it did, opens a file and writes nothing, or asks for something that the kernel refuses
as nonsense, but only after it has looked whether the caller may (``passes``: the errnos that mean this). Each is a child of its own.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import stat
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any

OPEN = "open"

_NAMESPACES = {
    "mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip
_NEWTIME, _CLONE_PARENT = 0x80, 0x8000
_AT_FDCWD, _AT_EMPTY_PATH, _OPEN_TREE_CLONE = -100, 0x1000, 1
_TIOCSTI, _TIOCLINUX, _UPPER_HALF = 0x5412, 0x541C, 1 << 32

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_attempts: dict[str, tuple[Callable[[], object], tuple[int, ...]]] = {}
_world: dict[str, Any] = {}


class NothingToTry(Exception):
    """This process or machine has nothing on which it could be tried."""


def _attempt(name: str, how: Callable[[], object], *passes: int) -> None:
    assert name not in _attempts, name
    _attempts[name] = (how, passes)


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def _call(name: str, *arguments: Any, add: int = 0) -> int:
    """A system call by its name."""
    number = _world["calls"].get(name, -1)
    if number < 0:
        raise NothingToTry(f"no system call {name} on this machine")
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return _check(_libc.syscall(ctypes.c_long(number + add), *words))


def _refuse(code: int) -> None:
    raise OSError(code, os.strerror(code))


# -- mounts ----------------------------------------------------------------------------------------------


def _mount(source: str, fstype: str, flags: int = 0) -> None:
    scratch = os.fsencode(_world["scratch"])
    _check(
        _libc.mount(source.encode(), scratch, fstype.encode() or None, ctypes.c_ulong(flags), None)
    )
    _check(_libc.umount2(scratch, 2))


def _on_the_cgroups() -> None:
    scratch = os.fsencode(_world["scratch"])
    _check(_libc.mount(b"none", scratch, b"cgroup2", ctypes.c_ulong(0), None))
    try:
        os.close(os.open(scratch + b"/cgroup.procs", os.O_WRONLY))
    finally:
        _libc.umount2(scratch, 2)


def _clone_of_the_root() -> None:
    os.close(_call("open_tree", _AT_FDCWD, b"/", _OPEN_TREE_CLONE))


for _fstype in ("tmpfs", "proc", "sysfs", "cgroup2", "devtmpfs", "binfmt_misc", "bpf"):
    _attempt(f"mount a {_fstype}", lambda fstype=_fstype: _mount("none", fstype))
_attempt("mount a bind", lambda: _mount("/", "", 0x1000))
_attempt(
    "remount /proc",
    lambda: _check(_libc.mount(None, b"/proc", None, ctypes.c_ulong(0x1020 | 14), None)),
    errno.EINVAL,
)
_attempt("umount2", lambda: _call("umount2", os.fsencode(_world["scratch"]), 0), errno.EINVAL)
_attempt("pivot_root", lambda: _call("pivot_root", b"/", b"/"), errno.EINVAL, errno.EBUSY)
_attempt("fsopen", lambda: os.close(_call("fsopen", b"tmpfs", 0)))
_attempt("fspick", lambda: os.close(_call("fspick", _AT_FDCWD, b"/", 0)))
_attempt("fsconfig", lambda: _call("fsconfig", -1, 0, 0, 0, 0), errno.EINVAL)
_attempt("fsmount", lambda: _call("fsmount", -1, 0, 0), errno.EBADF)
_attempt("open_tree (a clone)", _clone_of_the_root)
_attempt(
    "move_mount",
    lambda: _call("move_mount", _AT_FDCWD, b"/none", _AT_FDCWD, b"/none", 0),
    errno.ENOENT,
)
_attempt(
    "mount_setattr",
    lambda: _call(
        "mount_setattr",
        _AT_FDCWD,
        os.fsencode(_world["scratch"]),
        0,
        (ctypes.c_uint64 * 4)(1, 0, 0, 0),
        32,
    ),
    errno.EINVAL,
)
_attempt("write to the cgroups", _on_the_cgroups)


# -- namespaces ------------------------------------------------------------------------------------------


def _clone(flags: int) -> None:
    child = _call("clone", flags | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _clone3(flags: int, signal_at_exit: int = signal.SIGCHLD) -> None:
    child = _call("clone3", (ctypes.c_uint64 * 8)(flags, 0, 0, 0, signal_at_exit), 64)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _join(kind: str) -> None:
    fd = os.open(f"/proc/{_host_process()}/ns/{kind}", os.O_RDONLY)
    _call("setns", fd, 0)
    _read(_world["canary"])


for _kind, _flag in (*_NAMESPACES.items(), ("time", _NEWTIME)):
    _attempt(f"unshare a {_kind} namespace", lambda flag=_flag: _call("unshare", flag))
    _attempt(f"clone3 into a new {_kind} namespace", lambda flag=_flag: _clone3(flag))
    if _flag != _NEWTIME:  # for clone(2) these bits are the signal
        _attempt(f"clone into a new {_kind} namespace", lambda flag=_flag: _clone(flag))
_attempt("join the mount namespace of a host process", lambda: _join("mnt"))
# The child is one of the process outside that waits for the caller: waitpid(2) knows of none then.
_attempt("clone a sibling", lambda: _clone(_CLONE_PARENT), errno.ECHILD)
_attempt("clone3 a sibling", lambda: _clone3(_CLONE_PARENT, 0), errno.ECHILD)
_attempt("setns", lambda: _call("setns", os.open("/proc/self/ns/uts", os.O_RDONLY), 0))


# -- other processes -------------------------------------------------------------------------------------


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _host_process() -> int:
    """The process of the host that is to be reached; ``ESRCH`` where it is not seen."""
    pid = int(_world["pid"])
    if not os.path.exists(f"/proc/{pid}") or _world["marker"].encode() not in _read(
        f"/proc/{pid}/cmdline"
    ):
        _refuse(errno.ESRCH)
    return pid


def _own_child() -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        while True:
            signal.pause()
    return child


def _with_a_child(how: Callable[[int], object]) -> None:
    child = _own_child()
    try:
        how(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _process_vm(call: str) -> None:
    """Of a child, which after the fork has the same addresses."""
    room = ctypes.create_string_buffer(8)
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(room), 8)
    _with_a_child(lambda pid: _call(call, pid, vector, 1, vector, 1, 0))


def _ptrace(pid: int) -> None:
    _call("ptrace", 0x4206, pid, 0, 0)  # PTRACE_SEIZE


def _pidfd_getfd(pid: int) -> None:
    _call("pidfd_getfd", os.pidfd_open(pid), 0, 0)


def _through_proc() -> None:
    """By any link in /proc of any process, its own descriptors among them."""
    up = "/.." * 40
    for pid in [name for name in os.listdir("/proc") if name.isdigit()]:
        links = [f"/proc/{pid}/root{_world['canary']}", f"/proc/{pid}/cwd{up}{_world['canary']}"]
        try:
            links += [
                f"/proc/{pid}/fd/{fd}{up}{_world['canary']}" for fd in os.listdir(f"/proc/{pid}/fd")
            ]
        except OSError:
            pass
        for link in links:
            try:
                if _read(link) == _world["text"].encode():
                    return
            except OSError:
                continue
    _refuse(errno.ENOENT)


_attempt("see a host process", _host_process)
_attempt("signal a host process", lambda: os.kill(_host_process(), 0))
_attempt(
    "change the priority of a host process",
    lambda: os.setpriority(os.PRIO_PROCESS, _host_process(), 0),
)
_attempt(
    "the root of a host process", lambda: _read(f"/proc/{_host_process()}/root{_world['canary']}")
)
_attempt("a descriptor of a host process by pidfd_getfd", lambda: _pidfd_getfd(_host_process()))
_attempt("trace a host process", lambda: _ptrace(_host_process()))
_attempt("a link in /proc that leads to the host", _through_proc)
_attempt("pidfd_getfd", lambda: _with_a_child(_pidfd_getfd))
_attempt("ptrace", lambda: _with_a_child(_ptrace))
_attempt("process_vm_readv", lambda: _process_vm("process_vm_readv"))
_attempt("process_vm_writev", lambda: _process_vm("process_vm_writev"))
_attempt(
    "process_madvise",
    lambda: _with_a_child(lambda pid: _call("process_madvise", os.pidfd_open(pid), 0, 0, 20, 0)),
    errno.EINVAL,
)
_attempt("kcmp", lambda: _with_a_child(lambda pid: _call("kcmp", os.getpid(), pid, 1, 0, 0)))
for _name in ("root", "cwd", "exe"):
    _attempt(f"/proc/1/{_name}", lambda name=_name: os.stat(f"/proc/1/{name}"))
_attempt("/proc/1/fd", lambda: [os.readlink(f"/proc/1/fd/{fd}") for fd in os.listdir("/proc/1/fd")])
_attempt("/proc/1/map_files", lambda: os.listdir("/proc/1/map_files"))
_attempt("/proc/1/mem", lambda: os.close(os.open("/proc/1/mem", os.O_RDONLY)))
for _name in ("environ", "maps", "auxv", "stack", "syscall", "io"):
    _attempt(f"/proc/1/{_name}", lambda name=_name: _read(f"/proc/1/{name}"))
_attempt("/proc/1/mem, written", lambda: os.close(os.open("/proc/1/mem", os.O_RDWR)))


# -- capabilities and the filter -------------------------------------------------------------------------


def _status(field: str) -> str:
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith(f"{field}:"))


def _more_than_kept(*fields: str) -> None:
    if not any(int(_status(field), 16) & ~_world["kept"] for field in fields):
        _refuse(errno.EPERM)


def _raise_one() -> None:
    """SYS_ADMIN, in one's own permitted set."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capget", header, data)
    for place in range(3):
        data[place] |= 1 << 21
    _call("capset", header, data)


def _not_set(field: str) -> None:
    if int(_status(field)):
        _refuse(errno.EPERM)


_attempt(
    "a capability too many",
    lambda: _more_than_kept("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"),
)
_attempt("more capabilities by capset", _raise_one)
_attempt("new privileges by execve", lambda: _not_set("NoNewPrivs"))
_attempt("no filter", lambda: _not_set("Seccomp"))


# -- what the kernel offers to few -----------------------------------------------------------------------


def _perf() -> None:
    attributes = ctypes.create_string_buffer(
        struct.pack("=IIQ", 1, 112, 0), 112
    )  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK
    os.close(_call("perf_event_open", attributes, 0, -1, -1, 0))


def _bpf_map() -> None:
    attributes = ctypes.create_string_buffer(struct.pack("=IIII", 2, 4, 4, 1), 128)  # an array
    os.close(_call("bpf", 0, attributes, 128))


def _handle() -> None:
    handle = (ctypes.c_char * 136).from_buffer(
        bytearray((128).to_bytes(4, sys.byteorder) + bytes(132))
    )
    place = os.fsencode(_world["scratch"])
    _call("name_to_handle_at", _AT_FDCWD, place, handle, ctypes.byref(ctypes.c_int()), 0)


def _without_a_terminal(how: Callable[[], object]) -> None:
    os.setsid()
    how()


def _adjust_the_clock() -> None:
    _call(
        "clock_adjtime",
        0,
        ctypes.create_string_buffer(struct.pack("=I", 0x4000).ljust(208, b"\0"), 208),
    )  # ADJ_TICK, 0


_attempt("add_key", lambda: _call("add_key", b"user", b"chrootfw-probe", b"x", 1, -2))
_attempt("request_key", lambda: _call("request_key", b"user", b"chrootfw-none", 0, 0), errno.ENOKEY)
_attempt("keyctl", lambda: _call("keyctl", 0, -3, 1))
_attempt("perf_event_open", _perf)
_attempt(
    "io_uring_setup", lambda: os.close(_call("io_uring_setup", 1, ctypes.create_string_buffer(120)))
)
_attempt("io_uring_enter", lambda: _call("io_uring_enter", -1, 0, 0, 0, 0, 0), errno.EBADF)
_attempt(
    "io_uring_register", lambda: _call("io_uring_register", -1, 0, 0, 0), errno.EBADF, errno.EINVAL
)
_attempt("userfaultfd", lambda: os.close(_call("userfaultfd", 0)))
_attempt("bpf", _bpf_map)
_attempt("fanotify_init", lambda: os.close(_call("fanotify_init", 0, 0)))
_attempt("name_to_handle_at", _handle)
_attempt(
    "open_by_handle_at",
    lambda: _call("open_by_handle_at", -1, ctypes.create_string_buffer(136), 0),
    errno.EINVAL,
    errno.EBADF,
)
_attempt("kexec_load", lambda: _call("kexec_load", 0, 0, 0, 0xDEAD), errno.EINVAL)
_attempt("kexec_file_load", lambda: _call("kexec_file_load", -1, -1, 0, 0, 0xDEAD), errno.EINVAL)
_attempt("init_module", lambda: _call("init_module", 0, 0, 0), errno.ENOEXEC)
_attempt("finit_module", lambda: _call("finit_module", -1, 0, 1 << 30), errno.EINVAL)
_attempt("delete_module", lambda: _call("delete_module", 0, 0), errno.EFAULT)
_attempt("quotactl", lambda: _call("quotactl", 0x800001 << 8, 0, 0, 0))  # Q_SYNC
_attempt("quotactl_fd", lambda: _call("quotactl_fd", -1, 0, 0, 0), errno.EBADF)
_attempt("reboot", lambda: _call("reboot", 0, 0, 0, 0), errno.EINVAL)
_attempt("settimeofday", lambda: _call("settimeofday", 0, 0))
_attempt(
    "clock_settime", lambda: _call("clock_settime", 0, (ctypes.c_int64 * 2)(-1, -1)), errno.EINVAL
)
_attempt("clock_adjtime", _adjust_the_clock, errno.EINVAL)
_attempt("syslog", lambda: _call("syslog", 10, 0, 0))
_attempt("acct", lambda: _call("acct", b"/none/none"), errno.ENOENT)
_attempt("swapon", lambda: _call("swapon", b"/none/none", 0), errno.ENOENT)
_attempt("swapoff", lambda: _call("swapoff", b"/none/none"), errno.ENOENT)
_attempt("iopl", lambda: _call("iopl", 3))
_attempt("ioperm", lambda: _call("ioperm", 0x80, 1, 1))
_attempt("vhangup", lambda: _without_a_terminal(lambda: _call("vhangup")))
_attempt("sethostname", lambda: socket.sethostname(socket.gethostname()))


# -- the same by another door ----------------------------------------------------------------------------


def _in_32_bits(number: int, *arguments: int) -> int:
    """A system call of i386 by ``int $0x80``, which a 64-bit program may use too."""
    if os.uname().machine != "x86_64":
        raise NothingToTry("no second way to call the kernel is known on this machine")
    # push %rbx; mov %edi,%eax; mov %esi,%ebx; xchg %ecx,%edx; int $0x80; pop %rbx; ret
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("5389f889f387d1cd805bc3"))
    words = [ctypes.c_int] * 4
    function = ctypes.CFUNCTYPE(ctypes.c_int, *words)(
        ctypes.addressof(ctypes.c_char.from_buffer(code))
    )
    result = function(number, *arguments)
    if result < 0:
        _refuse(-result)
    return int(result)


def _clone_in_32_bits(flags: int) -> None:
    child = _in_32_bits(120, flags | signal.SIGCHLD, 0, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


_attempt("unshare by int $0x80", lambda: _in_32_bits(310, _NAMESPACES["mount"], 0, 0))
_attempt("keyctl by int $0x80", lambda: _in_32_bits(288, 0, -3, 1))
_attempt("reboot by int $0x80", lambda: _in_32_bits(88, 0, 0, 0), errno.EINVAL)
_attempt("clone a sibling by int $0x80", lambda: _clone_in_32_bits(_CLONE_PARENT), errno.ECHILD)
_attempt("unshare by the x32 ABI", lambda: _call("unshare", _NAMESPACES["mount"], add=0x40000000))


# -- terminals -------------------------------------------------------------------------------------------


def _own_terminal() -> int:
    """A new terminal, made the controlling one."""
    os.setsid()
    _, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    return terminal


def _given_terminal() -> int:
    if not os.isatty(0):
        raise NothingToTry("it was given no terminal")
    return 0


def _ioctl(fd: int, request: int) -> None:
    _call("ioctl", fd, request, ctypes.create_string_buffer(b"\n"))


for _whose, _terminal in (("its own", _own_terminal), ("the given", _given_terminal)):
    _attempt(
        f"TIOCSTI on {_whose} terminal", lambda terminal=_terminal: _ioctl(terminal(), _TIOCSTI)
    )
    # A terminal that is no console does not know it: then it got as far as the driver.
    _attempt(
        f"TIOCLINUX on {_whose} terminal",
        lambda terminal=_terminal: _ioctl(terminal(), _TIOCLINUX),
        errno.ENOTTY,
    )
    # The kernel takes an unsigned int: what is in the upper half of the register is not compared by it.
    _attempt(
        f"TIOCSTI and more bits on {_whose} terminal",
        lambda terminal=_terminal: _ioctl(terminal(), _UPPER_HALF | _TIOCSTI),
    )


# -- files of the kernel's -------------------------------------------------------------------------------


def _write_to(path: str) -> None:
    """Open it for writing, and write nothing. In sysfs by a mount of one's own where there is none that can be written."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.EROFS or not path.startswith("/sys/"):
            raise
        _in_own_sysfs(
            lambda top: os.close(
                os.open(top + path.removeprefix("/sys"), os.O_WRONLY | os.O_NONBLOCK)
            )
        )


def _write_to_any_of_proc() -> None:
    """What its mode keeps for root, not what everybody may, as pressure; the processes' own files apart."""
    for place, directories, files in os.walk("/proc"):
        if place == "/proc":
            directories[:] = [
                name for name in directories if not name.isdigit() and not name.endswith("self")
            ]
        for name in files:
            path = os.path.join(place, name)
            try:
                mode = os.lstat(path).st_mode
                if stat.S_ISREG(mode) and mode & 0o222 and not mode & 0o002:
                    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                    return
            except OSError:
                continue
    _refuse(errno.EROFS)


def _read_some(path: str) -> None:
    """What is masked can be opened, and is empty."""
    with open(path, "rb", buffering=0) as file:
        if not file.read(64):
            _refuse(errno.ENOENT)


def _change_mode_of_sysfs() -> None:
    try:
        os.chmod("/sys", 0o555)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        _in_own_sysfs(lambda top: os.chmod(top, 0o555))


def _in_own_sysfs(how: Callable[[str], object]) -> None:
    top = str(_world["scratch"])
    try:
        _check(_libc.mount(b"sysfs", os.fsencode(top), b"sysfs", ctypes.c_ulong(0), None))
    except OSError:
        _refuse(errno.EROFS)
    try:
        how(top)
    finally:
        _libc.umount2(os.fsencode(top), 2)


for _path in (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/sysrq", "/proc/sys/vm/drop_caches",
    "/proc/sys/vm/swappiness", "/proc/sys/fs/binfmt_misc/register", "/proc/sys/fs/binfmt_misc/status", "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity", "/proc/bus/pci/00/00.0", "/proc/acpi/wakeup", "/proc/scsi/scsi",
    "/sys/kernel/uevent_helper", "/sys/power/state", "/sys/kernel/mm/ksm/run", "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/module/kernel/parameters/panic", "/sys/kernel/profiling", "/sys/kernel/kexec_crash_size", "/sys/class/net/lo/mtu",
    "/sys/devices/system/cpu/cpu1/online", "/sys/block/loop0/queue/read_ahead_kb",
):  # fmt: skip
    _attempt(f"write to {_path}", lambda path=_path: _write_to(path))
_attempt("write to any file of proc that is root's", _write_to_any_of_proc)
_attempt("change the mode of /sys", _change_mode_of_sysfs)
for _path in ("/proc/kcore", "/proc/kmsg"):
    _attempt(
        f"read {_path}", lambda path=_path: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    )
for _path in (
    "/proc/kpageflags",
    "/proc/kpagecount",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/vmallocinfo",
    "/proc/slabinfo",
    "/proc/iomem",
):
    _attempt(f"read {_path}", lambda path=_path: _read_some(path))


# Opened alone: to read it makes a device.
_attempt(
    "open a file of sysfs that makes a device when it is read",
    lambda: os.close(os.open("/sys/class/zram-control/hot_add", os.O_RDONLY)),
)


# -- what delays or tells of the host's calls ------------------------------------------------------------


def _of_a_file_of_sysfs(how: Callable[[int], object]) -> None:
    """A file of the host's that root inside owns, as far as the kernel sees it, and may open for reading."""
    fd = os.open("/sys/kernel/uevent_seqnum", os.O_RDONLY)
    try:
        how(fd)
    finally:
        os.close(fd)  # that ends what was set


def _of_a_directory_of_sysfs(how: Callable[[int], object]) -> None:
    fd = os.open("/sys/kernel", os.O_RDONLY | os.O_DIRECTORY)
    try:
        how(fd)
    finally:
        os.close(fd)


def _fcntl(fd: int, command: int, argument: object) -> None:
    _call("fcntl", fd, command, argument)


_F_SETLEASE, _F_NOTIFY, _F_SETDELEG, _DN_DELETE = 1024, 1026, 1040, 8
for _more, _bits in (("", 0), (" and more bits", _UPPER_HALF)):
    _attempt(
        f"a lease{_more}",
        lambda bits=_bits: _of_a_file_of_sysfs(lambda fd: _fcntl(fd, bits | _F_SETLEASE, 0)),
    )
    _attempt(
        f"a watched directory{_more}",
        lambda bits=_bits: _of_a_directory_of_sysfs(
            lambda fd: _fcntl(fd, bits | _F_NOTIFY, _DN_DELETE)
        ),
    )
_attempt(
    "a delegation",
    lambda: _of_a_file_of_sysfs(lambda fd: _fcntl(fd, _F_SETDELEG, (ctypes.c_uint32 * 2)(0, 0))),
)
for _name, _number in (("fcntl", 55), ("fcntl64", 221)):
    _attempt(
        f"a lease by {_name} of int $0x80",
        lambda number=_number: _of_a_file_of_sysfs(
            lambda fd: _in_32_bits(number, fd, _F_SETLEASE, 0)
        ),
    )


# -- the root, devices, the network, what has no file ----------------------------------------------------


def _out_by_chroot() -> None:
    deeper = os.path.join(_world["scratch"], "deeper")
    os.makedirs(deeper, exist_ok=True)
    os.chroot(deeper)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    if _read(_world["canary"]) != _world["text"].encode():
        _refuse(errno.ENOENT)


def _node(kind: int, device: int) -> None:
    node = os.path.join(_world["scratch"], "node")
    os.mknod(node, kind | 0o600, device)
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_NONBLOCK))
    finally:
        os.unlink(node)


def _memory() -> None:
    _libc.shmat.restype = ctypes.c_void_p
    address = _libc.shmat(_world["shm"], None, 0o10000)
    if address == ctypes.c_void_p(-1).value:  # EINVAL: there is none of that number
        _refuse(errno.ENOENT if ctypes.get_errno() == errno.EINVAL else ctypes.get_errno())
    if ctypes.string_at(address, len(_world["text"])) != _world["text"].encode():
        _refuse(errno.ENOENT)


def _same(seen: str, hosts: str) -> None:
    if seen != hosts:
        _refuse(errno.ENOENT)


def _name_of_its_cgroup() -> None:
    if b"/chrootfw/" not in _read("/proc/self/cgroup"):
        _refuse(errno.ENOENT)


def _abstract() -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect("\0" + _world["abstract"])


_attempt("leave the root by chroot and ..", _out_by_chroot)
_attempt("mknod of the host's disk", lambda: _node(0o60000, _world["device"]))
_attempt("mknod of /dev/kmsg", lambda: _node(0o20000, os.makedev(1, 11)))
_attempt("a packet socket", lambda: socket.socket(17, socket.SOCK_RAW, 0).close())
_attempt("a raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
_attempt("a socket to the machine's host", lambda: socket.socket(40, socket.SOCK_STREAM, 0).close())
_attempt(
    "a socket to the machine's host, and more bits",
    lambda: os.close(_call("socket", _UPPER_HALF | 40, 1, 0)),
)
for _name, _protocol in (
    ("user's", 2), ("of packet filters", 12), ("of audit", 9), ("of the host's processes", 11), ("of the host's devices", 15),
    ("of generic families", 16),
):  # fmt: skip
    _attempt(
        f"a netlink socket {_name}",
        lambda protocol=_protocol: socket.socket(16, socket.SOCK_RAW, protocol).close(),
    )
_attempt(
    "a netlink socket, and more bits",
    lambda: os.close(_call("socket", _UPPER_HALF | 16, 3, _UPPER_HALF | 11)),
)
_attempt("a netlink socket by int $0x80", lambda: os.close(_in_32_bits(359, 16, 3, 11)))
# Its arguments are in memory, which a filter cannot read.
_attempt("socketcall by int $0x80", lambda: _in_32_bits(102, 1, 0, 0), errno.EFAULT)
_attempt("System V memory of the host", _memory)
_attempt("the host's name", lambda: _same(socket.gethostname(), _world["hostname"]))
_attempt("the name of its cgroup", _name_of_its_cgroup)
_attempt("an abstract socket of the host", _abstract)


# ---------------------------------------------------------------------------------------------------------


def _result(how: Callable[[], object], passes: tuple[int, ...]) -> str:
    try:
        how()
    except OSError as error:
        code = error.errno or 0
        return OPEN if code in passes else errno.errorcode.get(code, str(error))
    except NothingToTry as error:
        return str(error)
    return OPEN


def _in_a_child(how: Callable[[], object], passes: tuple[int, ...]) -> str:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            os.write(theirs, _result(how, passes).encode())
        except BaseException as error:  # noqa: BLE001  # a mistake in the probe is a result too
            os.write(theirs, repr(error).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as file:
        told = file.read().decode()
    _, status = os.waitpid(child, 0)
    return told or f"ended by signal {os.WTERMSIG(status)}"


def main(world: str, results: str) -> None:
    _world.update(json.loads(world))
    os.makedirs(_world["scratch"], exist_ok=True)
    found = {name: _in_a_child(how, passes) for name, (how, passes) in _attempts.items()}
    with open(f"{results}.new", "w") as file:
        json.dump(found, file)
    os.rename(f"{results}.new", results)


if __name__ == "__main__":
    main(*sys.argv[1:])
