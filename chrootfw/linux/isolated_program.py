"""The program of the interpreter between the host and an isolated instance.

`isolated_child` passes this module, as code, to `python -I -S -B`. It imports nothing of chrootfw.
Nothing else runs in that process: it has one thread, no copy of the manager's memory or
environment, and only the descriptors that were passed. Its executable is on a detached, read-only
mount, and is a copy if a program of the instance comes next. Whatever scripts and links lead to
that program's interpreter, `/proc/self/exe` reaches no file of the host.

No path of the instance is resolved before the last descriptor that leads to the host is closed, and
then without magic links.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

#: The descriptors after 0 to 2: the socket for reports, the plan, this program. Those that were
#: passed follow.
TELL, PLAN, PROGRAM, PASSED = 3, 4, 5, 6
#: The reports: all is ready, and execve is next; a step failed (errno and text follow); the init is
#: the only process left; a process was created in the instance's pid namespace and replaces this
#: one (its pidfd comes with the report).
READY, FAILED, ALONE, REPLACED = b"+", b"!", b"1", b"*"
INIT_NAME = b"chrootfw-init"

_NEWNS, _NEWPID = 0x00020000, 0x20000000
_CLONE_PIDFD, _CLONE_PARENT = 0x1000, 0x8000
_JOIN_SESSION_KEYRING = 1
_MS_REC, _MS_SLAVE, _MNT_DETACH = 0x4000, 0x80000, 2
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _OPENAT2, _MOUNT_SETATTR = (
    428,
    429,
    430,
    431,
    432,
    437,
    442,
)
_OPEN_TREE_CLONE, _SET_STRING, _CREATE, _CLOEXEC = 1, 1, 6, 1
_AT_FDCWD, _AT_NOFOLLOW, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x100, 0x1000, 0x8000
_ATTACH_BY_DESCRIPTORS = 0x44
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _IN_ROOT = 2, 4, 8, 16
_SET_DUMPABLE, _SET_NAME, _BOUNDS_READ, _BOUNDS_DROP, _SET_NO_NEW_PRIVS = 4, 15, 23, 24, 38
_TIOCSCTTY = 0x540E
_CAPABILITY_VERSION_3 = 0x20080522
#: File systems that configure the kernel, besides proc, or freeze and end the host's processes. A
#: bind mount of a whole tree brings them along.
_SWITCHES = frozenset(
    b"sysfs debugfs tracefs securityfs configfs efivarfs pstore bpf binfmt_misc selinuxfs "
    b"smackfs resctrl fusectl cgroup cgroup2".split()
)
_NOT_HERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Failed(Exception):
    """A step that failed.

    Attributes:
        what: The name of the step.
        code: The errno.
    """

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what, code)
        self.what, self.code = what, code


def _check(what: str, result: int) -> int:
    if result < 0:
        raise Failed(what, ctypes.get_errno())
    return result


def _call(what: str, number: int, *arguments: Any) -> int:
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return _check(what, _libc.syscall(ctypes.c_long(number), *words))


def _prctl(what: str, *arguments: int) -> None:
    _check(what, _libc.prctl(*[ctypes.c_ulong(word) for word in arguments]))


def _openat2(directory: int, path: bytes, flags: int, resolve: int) -> int:
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, 0, resolve)
    for _ in range(100):
        try:
            return _call("openat2", _OPENAT2, directory, path, how, ctypes.sizeof(how))
        except Failed as error:
            if error.code not in (errno.EAGAIN, errno.EINTR):  # it raced with a rename: try again
                raise
    raise Failed("openat2", errno.EAGAIN)


def _mount_id(fd: int) -> int:
    buffer = ctypes.create_string_buffer(256)
    _check("statx", _libc.statx(fd, b"", _AT_EMPTY_PATH | 0x4800, 0x1000, buffer))
    return int.from_bytes(buffer.raw[144:152], sys.byteorder)


def _clone_mount(directory: int, path: bytes) -> int:
    flags = (
        _OPEN_TREE_CLONE
        | os.O_CLOEXEC
        | _AT_NOFOLLOW
        | (_AT_EMPTY_PATH if not path else _AT_RECURSIVE)
    )
    return _call("open_tree", _OPEN_TREE, directory, path, flags)


def _set_attributes(what: str, fd: int, attributes: int, *, recursive: bool = False) -> None:
    how = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _call(what, _MOUNT_SETATTR, fd, b"", flags, how, ctypes.sizeof(how))


def _attach(what: str, mount: int, target: int) -> None:
    _call(what, _MOVE_MOUNT, mount, b"", target, b"", _ATTACH_BY_DESCRIPTORS)


def _new_filesystem(fstype: bytes, attributes: int) -> int:
    context = _call(f"fsopen {fstype.decode()}", _FSOPEN, fstype, _CLOEXEC)
    try:
        _call("fsconfig", _FSCONFIG, context, _SET_STRING, b"source", fstype, 0)
        _call(f"mount {fstype.decode()}", _FSCONFIG, context, _CREATE, None, None, 0)
        return _call(f"fsmount {fstype.decode()}", _FSMOUNT, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


# -- the instance's own mount namespace ------------------------------------------------------------


class _Mount:
    """A line of the mount table (proc_pid_mountinfo(5))."""

    def __init__(self, line: bytes) -> None:
        fields = line.split(b" ")
        self.id, self.parent = int(fields[0]), int(fields[1])
        self.top, self.place = fields[3], _unescaped(fields[4])
        self.fstype = fields[fields.index(b"-", 6) + 1]
        self.is_whole_proc = self.fstype == b"proc" and self.top == b"/"


def _unescaped(text: bytes) -> bytes:
    first, *rest = text.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def _make_namespace(plan: dict[str, Any], root: int) -> None:
    """Make a mount namespace that contains only the root, and harden it."""
    process = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(root)
    _check("unshare", _libc.unshare(_NEWNS | plan["unshare"]))
    # In the new namespace, the working directory is on the copy of the same mount.
    slave = ctypes.c_ulong(_MS_REC | _MS_SLAVE)
    _check("mount (slave)", _libc.mount(None, b"/", None, slave, None))
    _call("pivot_root", plan["pivot_root"], b".", b".")
    _check("umount2 (the host's root)", _libc.umount2(b".", _MNT_DETACH))
    os.chdir("/")
    if plan["hostname"]:
        _check(
            "sethostname",
            _libc.sethostname(plan["hostname"], ctypes.c_size_t(len(plan["hostname"]))),
        )
    table = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    os.close(process)
    os.close(root)
    with open(table, "rb") as file:
        mounts = [_Mount(line) for line in file.read().split(b"\n") if line]
    _harden(plan, mounts)


def _harden(plan: dict[str, Any], mounts: list[_Mount]) -> None:
    """Harden each mount by its ID: the instance chooses the path that it is on now.

    In a new pid namespace, a new proc covers each whole proc. In each proc, the paths that were to
    be read-only become so. A proc that cannot be hardened, or a missing proc, is an error: no
    process of the instance has run by then.
    """
    if not mounts:
        raise Failed("the mount table of the new namespace is empty", errno.ENOENT)
    if plan["attributes"]:
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        _set_attributes("mount_setattr", root, plan["attributes"], recursive=True)
        os.close(root)
    found = _find(mounts)
    wants_proc = plan["fresh_proc"] or any(path.startswith(b"/proc/") for path in plan["read_only"])
    if wants_proc and not any(mount.is_whole_proc for mount, _ in found):
        raise Failed("no proc is mounted in the root, so that none can be hardened", 0)
    masks = _Masks(plan["masked"]) if plan["masked"] else None
    fresh = -1
    for mount, opened in found:
        place = opened
        prefix = {b"proc": b"/proc", b"sysfs": b"/sys"}.get(mount.fstype)
        if mount.fstype != b"proc":
            if b"/sys" in plan["read_only"]:
                _set_attributes(f"mount_setattr ({mount.fstype.decode()})", place, _RDONLY)
        elif not mount.is_whole_proc:  # a bind mount of a part of proc
            if plan["fresh_proc"] and mount.top[1:2].isdigit():
                raise Failed(
                    f"what is bound on {mount.place!a} is a process of the host's in /proc, "
                    "which leads to the host",
                    0,
                )
            if plan["read_only"]:
                _set_attributes("mount_setattr (proc)", place, _RDONLY)
        elif plan["fresh_proc"]:
            if fresh < 0:
                made = fresh = _new_filesystem(b"proc", _NOSUID | _NODEV | _NOEXEC)
            else:
                made = _clone_mount(fresh, b"")
            _attach("mount /proc", made, place)
            os.close(place)
            place = made
        # A descriptor sees the mount itself, even if another mount covers it.
        if mount.is_whole_proc:
            _cover(place, plan["read_only"])
        if masks is not None and prefix is not None:
            masks.put(place, prefix, mount.top)
        if place != fresh:
            os.close(place)
    if fresh >= 0:
        os.close(fresh)
    for path in plan["read_only"]:
        if path == b"/sys" or path.startswith(b"/proc/"):
            continue
        place = _if_there(_AT_FDCWD, path, _NO_SYMLINKS | _IN_ROOT)
        if place >= 0:
            _make_read_only(_AT_FDCWD, path, place)
    if masks is not None:
        for path in plan["masked"]:
            if not f"{os.fsdecode(path)}/".startswith(("/sys/", "/proc/")):
                masks.put_on(_if_there(_AT_FDCWD, path, _NO_SYMLINKS | _IN_ROOT))
        masks.close()


def _if_there(directory: int, path: bytes, resolve: int, flags: int = os.O_PATH) -> int:
    """Open a path; return -1 if it does not exist, since not every kernel has every file."""
    try:
        return _openat2(directory, path, flags, resolve)
    except Failed as error:
        if error.code in _NOT_HERE[:2]:
            return -1
        raise


def _find(mounts: list[_Mount]) -> list[tuple[_Mount, int]]:
    """Open the mounts of the kernel's file systems, all before the first of them is covered.

    Returns:
        Pairs of the mount and its descriptor.
    """
    covered = {(mount.parent, mount.place) for mount in mounts if mount.parent != mount.id}
    found = []
    for mount in mounts:
        if mount.fstype != b"proc" and mount.fstype not in _SWITCHES:
            continue
        if (mount.id, mount.place) in covered:  # only an unmount makes it reachable
            continue
        place = _if_there(_AT_FDCWD, mount.place, _NO_SYMLINKS | _IN_ROOT)
        if place < 0 or _mount_id(place) != mount.id:
            what = f"the {mount.fstype.decode()} on {mount.place!a}"
            raise Failed(
                f"{what} was moved meanwhile, or another mount hides it: it cannot be hardened", 0
            )
        found.append((mount, place))
    return found


def _cover(proc: int, paths: list[bytes]) -> None:
    """Make paths below /proc read-only in one mount of proc.

    Names that the kernel makes there are never links to other files.
    """
    found = 0
    wanted = [path.removeprefix(b"/proc/") for path in paths if path.startswith(b"/proc/")]
    for name in wanted:
        place = _if_there(proc, name, _NO_SYMLINKS | _BENEATH)
        if place >= 0:
            found += 1
            _make_read_only(proc, name, place)
    if wanted and not found:
        raise Failed("proc has nothing of what was to be made read-only", errno.ENOENT)


def _make_read_only(directory: int, path: bytes, place: int) -> None:
    copy = _clone_mount(directory, path)
    _set_attributes("mount_setattr (read-only)", copy, _RDONLY, recursive=True)
    _attach("mount (read-only)", copy, place)
    os.close(copy)
    os.close(place)


class _Masks:
    """An empty file and an empty directory of one tmpfs, mounted over what is to be hidden.

    Until Linux 6.15, only an attached mount can be cloned, so the tmpfs is mounted over the root
    until `close`.
    """

    def __init__(self, paths: list[bytes]) -> None:
        self.paths = paths
        self.mount = _new_filesystem(b"tmpfs", _NOSUID | _NODEV | _NOEXEC)
        os.mkdir("directory", 0o555, dir_fd=self.mount)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444, dir_fd=self.mount))
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        _attach("mount (masks)", self.mount, root)
        os.close(root)

    def put(self, mount: int, prefix: bytes, top: bytes) -> None:
        """Mask the paths that exist in one mount of proc or sysfs.

        Args:
            mount: A descriptor of the mount.
            prefix: The path at which a whole mount of this file system is expected.
            top: The root of the mount within its file system.
        """
        top = prefix + top.rstrip(b"/")
        for path in self.paths:
            # A bind mount of a part of what is masked.
            if top == path or top.startswith(path + b"/"):
                self.put_on(os.dup(mount))
            elif path.startswith(top + b"/"):
                for name in _names(mount, path[len(top) + 1 :]):
                    self.put_on(_if_there(mount, name, _NO_SYMLINKS | _BENEATH))

    def put_on(self, place: int) -> None:
        """Mask the file that a descriptor refers to, and close it; do nothing for -1."""
        if place < 0:
            return
        copy = _clone_mount(
            self.mount, b"directory" if stat.S_ISDIR(os.fstat(place).st_mode) else b"file"
        )
        _set_attributes("mount_setattr (masks)", copy, _RDONLY)
        _attach("mount (masks)", copy, place)
        os.close(copy)
        os.close(place)

    def close(self) -> None:
        """Unmount the tmpfs; the masks stay mounted."""
        os.fchdir(self.mount)
        os.close(self.mount)
        _check("umount2 (masks)", _libc.umount2(b".", _MNT_DETACH))
        os.chdir("/")


def _names(directory: int, pattern: bytes) -> list[bytes]:
    """Expand a pattern in which `*` stands for every name in a directory."""
    first, star, rest = pattern.partition(b"*")
    if not star:
        return [pattern]
    place = _if_there(directory, first, _NO_SYMLINKS | _BENEATH, os.O_RDONLY | os.O_DIRECTORY)
    if place < 0:
        return []
    names = os.listdir(place)
    os.close(place)
    return [first + os.fsencode(name) + rest for name in names]


# -- before the program ----------------------------------------------------------------------------


def _join(plan: dict[str, Any], root: int, join: int) -> None:
    """Enter the namespaces of the process `join`, or make new ones.

    The pid namespace comes last, and applies only to children. Processes in it could see, stop and
    limit this process, which no longer has anything of the host then.
    """
    if join >= 0:
        _check("setns", _libc.setns(join, plan["join"]))
        if plan["join_pid"]:
            _check("setns (pid)", _libc.setns(join, _NEWPID))
        os.close(join)
    if plan["makes_mounts"]:
        _make_namespace(plan, root)
    else:
        os.chdir("/")
        status = os.fstat(root)
        os.close(root)
        here = os.stat("/")
        if (status.st_dev, status.st_ino) != (here.st_dev, here.st_ino):
            raise Failed(
                "the namespace that was joined does not have the instance's root", errno.EXDEV
            )


def _own_null(places: list[int]) -> None:
    """Replace the host's null device by a device of the process's own.

    A change of its mode or owner then stays inside.
    """
    if not places:
        return
    mount = _new_filesystem(b"tmpfs", _NOSUID | _NOEXEC)
    try:
        os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3), dir_fd=mount)
    except PermissionError:  # a user namespace, in which the host's device belongs to another user
        os.close(mount)
        return
    os.chmod("null", 0o666, dir_fd=mount)
    null = os.open("null", os.O_RDWR | os.O_CLOEXEC, dir_fd=mount)
    for place in places:
        os.dup2(null, place)
    os.close(null)
    os.close(mount)


def _open_terminal(number: int) -> None:
    """Open the terminal by the instance's name for it, if that is the terminal that was given."""
    given = os.fstat(0)
    path = b"/dev/pts/%d" % number
    try:
        found = _openat2(_AT_FDCWD, path, os.O_RDWR | os.O_NOCTTY, _NO_SYMLINKS | _IN_ROOT)
    except Failed as error:
        raise Failed(path.decode(), error.code) from error
    status = os.fstat(found)
    if (status.st_dev, status.st_ino, status.st_rdev) != (
        given.st_dev,
        given.st_ino,
        given.st_rdev,
    ):
        raise Failed(f"{path.decode()} is another terminal", errno.ENODEV)
    for place in range(3):
        os.dup2(found, place)
    os.close(found)


def _clear_arguments() -> None:
    """Replace the arguments, which the instance's processes may read, by a name.

    They are overwritten in memory (proc_pid_stat(5): arg_start, arg_end). The first of them is the
    path of the interpreter on the host: Python finds its library by it, and with `-I` by no other
    word of the caller's. A hardened instance is to learn no path of the host, and without a
    compiled program of chrootfw's own there is nothing to execute in the interpreter's place.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    ctypes.memmove(start, INIT_NAME.ljust(end - start, b"\0"), end - start)


def _be_untraceable() -> None:
    _prctl("prctl (dumpable)", _SET_DUMPABLE, 0, 0, 0, 0)


def _leave_keyring(number: int) -> None:
    """Join a new session keyring without a name, in place of the manager's."""
    try:
        _call("keyctl", number, _JOIN_SESSION_KEYRING, 0)
    except Failed as error:
        # The kernel has no keyrings, or the instance is under the same filter.
        if error.code not in (errno.ENOSYS, errno.EPERM):
            raise


def _set_limits(limits: list[list[Any]]) -> None:
    for number, limit, may_fail in limits:
        given = ctypes.create_string_buffer(limit, len(limit))
        try:
            _check("prlimit", _libc.prlimit(0, number, given, None))
        except Failed as error:
            if not (may_fail and error.code == errno.EPERM):
                raise


def _give_up(plan: dict[str, Any]) -> None:
    """Drop the bounding set, change the user, and drop capabilities."""
    kept = plan["capabilities"]
    if kept is not None:
        for number in range(64):
            if number not in kept and _libc.prctl(_BOUNDS_READ, ctypes.c_ulong(number)) >= 0:
                _prctl("prctl (bounding set)", _BOUNDS_DROP, number, 0, 0, 0)
    is_root = True
    if plan["ids"] is not None:
        user, group, groups = plan["ids"]
        is_root = user == 0
        if not plan["keeps_groups"]:
            os.setgroups(groups)
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    if kept is not None and is_root:
        mask = sum(1 << number for number in kept)
        low, high = mask & 0xFFFFFFFF, mask >> 32
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        _call("capset", plan["capset"], header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))
    _be_untraceable()  # the kernel resets this when the user changes


def _enter_directory(path: bytes, getcwd: int) -> None:
    try:
        found = _openat2(_AT_FDCWD, path, os.O_PATH | os.O_DIRECTORY, _NO_MAGICLINKS | _IN_ROOT)
    except Failed as error:
        raise Failed("chdir", error.code) from error
    os.fchdir(found)
    os.close(found)
    buffer = ctypes.create_string_buffer(4096)
    _call("getcwd", getcwd, buffer, 4096)
    if not buffer.value.startswith(b"/"):  # "(unreachable)"
        raise Failed("chdir", errno.EXDEV)


def _filter(plan: dict[str, Any]) -> None:
    """Set no_new_privs and install the filter of system calls.

    The filter may refuse CLONE_PARENT, so a process that joins a pid namespace installs it after
    that. Processes that see it before can neither trace it, nor make this fail unnoticed.
    """
    if plan["no_new_privs"]:
        _prctl("prctl (no_new_privs)", _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if plan["filter"]:
        program = ctypes.create_string_buffer(plan["filter"], len(plan["filter"]))
        words = (ctypes.c_uint64 * 2)(0, ctypes.addressof(program))
        ctypes.c_ushort.from_buffer(words).value = len(plan["filter"]) // 8  # struct sock_fprog
        _call("seccomp", plan["seccomp"], 1, 0, words)


def _default_signals() -> None:
    """Reset the signal handlers that the interpreter has changed."""
    for number in signal.valid_signals():
        try:
            signal.signal(number, signal.SIG_DFL)
        except OSError:  # KILL and STOP cannot be changed
            pass


def _execute(plan: dict[str, Any]) -> NoReturn:
    """Execute the first candidate that exists.

    A path through a magic link is refused. A link that replaces the path at this very moment, or
    that the program's interpreter line leads through, reaches nothing of the host. The only file
    outside the root that a magic link of this process reaches is its executable, which is a copy.
    """
    missed = errno.ENOENT
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.write(TELL, READY)
    for path in plan["candidates"]:
        try:
            os.close(_openat2(_AT_FDCWD, path, os.O_PATH, _NO_MAGICLINKS))
            _check("execve", _libc.execve(path, _strings(plan["argv"]), _strings(plan["env"])))
        except Failed as error:
            if error.code not in _NOT_HERE:
                raise Failed("execve", error.code) from error
            missed = error.code if error.code == errno.EACCES else missed
    raise Failed("execve", missed)


def _strings(words: list[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)


def _continue_in_child(clone: tuple[int, bool]) -> None:
    """Continue as a child of the manager in the pid namespace that was joined.

    This process exits, and the manager gets the child's pidfd. The child waits for that, so that it
    does nothing that the manager does not know of.
    """
    number, flags_come_second = clone  # on s390x
    waits, opens = os.pipe2(os.O_CLOEXEC)
    pidfd = ctypes.c_int(-1)
    flags = [_CLONE_PIDFD | _CLONE_PARENT | signal.SIGCHLD, 0]
    if flags_come_second:
        flags.reverse()
    if _call("clone", number, *flags, ctypes.byref(pidfd), 0, 0):
        report = socket.socket(fileno=TELL)
        # The pidfd travels with the report (SCM_RIGHTS).
        report.sendmsg([REPLACED], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, bytes(pidfd))])
        os.write(opens, REPLACED)
        os._exit(0)
    os.close(opens)
    if os.read(waits, 1) != REPLACED:
        os._exit(127)
    os.close(waits)
    os.setsid()


def _enter(plan: dict[str, Any], passed: list[int]) -> NoReturn:
    _own_null(plan["nulls"])
    _join(plan, *passed)
    os.closerange(TELL + 1, 1 << 16)
    if plan["terminal"] is not None:
        _open_terminal(plan["terminal"])
    _set_limits(plan["limits"])
    _give_up(plan)
    _default_signals()
    if plan["join_pid"]:
        _continue_in_child(plan["clone"])
    _filter(plan)
    if plan["terminal"] is not None:
        _check("TIOCSCTTY", _libc.ioctl(0, ctypes.c_ulong(_TIOCSCTTY), 0))
    _enter_directory(plan["cwd"], plan["getcwd"])
    _execute(plan)


# -- the first process of a pid namespace ----------------------------------------------------------


def _keep(plan: dict[str, Any], passed: list[int]) -> NoReturn:
    held, *passed = passed
    _own_null([0, 1, 2])
    _join(plan, *passed)
    _give_up(plan)
    _filter(plan)
    _check("prctl (name)", _libc.prctl(_SET_NAME, INIT_NAME))  # shows that the namespaces are ready
    os.write(TELL, READY)
    os.read(held, 1)  # until the manager closes its end, or exits
    wait_flags = os.WNOHANG
    while True:
        try:
            ended = os.waitpid(-1, wait_flags)[0]
        except ChildProcessError:
            ended = -1
        if ended > 0:
            continue
        if ended < 0:
            try:
                os.kill(-1, 0)
            except ProcessLookupError:  # no children, and no other process in the namespace
                os._exit(0)
        if wait_flags:
            os.write(TELL, ALONE)
            os.close(TELL)
            wait_flags = 0
        elif ended < 0:
            # A process whose parent is outside is still running: its end is not announced.
            _libc.usleep(200_000)


def run(plan: dict[str, Any]) -> NoReturn:
    """Do what the plan says, then exit."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    sys.path.clear()  # once the root is entered, its paths would be the instance's
    try:
        _be_untraceable()
        # A wrapper script has executed another interpreter.
        if not os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY:
            raise Failed("the interpreter between host and instance can be written to", errno.EPERM)
        _clear_arguments()
        os.close(PLAN)
        os.set_inheritable(TELL, False)
        os.umask(0o022)
        _leave_keyring(plan["keyctl"])
        passed = [PASSED + number if there else -1 for number, there in enumerate(plan["passed"])]
        (_keep if plan["is_init"] else _enter)(plan, passed)
    except Failed as error:
        failure: tuple[str, int] = (error.what, error.code)
    except OSError as error:
        failure = (
            error.filename if isinstance(error.filename, str) else "a call",
            error.errno or 0,
        )
    except BaseException as error:
        failure = (f"{type(error).__name__}: {error}", 0)
    os.write(TELL, FAILED + b"%d %s" % (failure[1], failure[0].encode(errors="replace")))
    os._exit(127)
