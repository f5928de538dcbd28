"""Relay a terminal inside a root to the caller, for `chrootfw shell`.

The terminal is a pty of the root's own devpts, since a pty of the host would be "not a tty" inside.
See pty(7), ioctl_tty(2) for TIOCGPTPEER, and termios(3) for the line discipline. The relay waits in
poll(2) only, never in a read or a write, so a caller that does not read its output delays no
signal.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import struct
import sys
import termios
import time
import tty

from chrootfw.errors import NotSupported, SurvivorError
from chrootfw.linux import deadlines, polling, spawn, syscalls
from chrootfw.linux.call_batch import ZEROS
from chrootfw.linux.child import Child, known_status
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.isolation import Isolation
from chrootfw.linux.pipe_workers import LastClose
from chrootfw.linux.root import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

_PTMX = "dev/pts/ptmx"
_PTMX_DEVICE = os.makedev(5, 2)
_TTY_GROUP = 5
# termios lacks these three; MIPS and POWER have other numbers for them.
_TIOCGPTN = 0x80045430
_TIOCGPTPEER, _TIOCSPTLCK, _TIOCSIG = (
    (0x5441, 0x40045431, 0x40045436)
    if termios.TCGETS == 0x5401
    else (0x20005441, 0x80045431, 0x80045436)
)
_UNUSABLE = (
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM,
    errno.ENXIO, errno.ENODEV, errno.ENOTTY, errno.EINVAL,
)  # fmt: skip
_WATCHED = (signal.SIGWINCH, signal.SIGCONT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CHUNK = 4096  # PIPE_BUF: a pipe that poll(2) reports as writable takes as much without waiting
_LEFT_MAX = 65536  # more than the kernel buffers for a pty: the output before the child's exit
#: For each signal the next one and its delay in seconds, if the child does not exit. Interactive
#: shells ignore TERM.
_NEXT = {
    signal.SIGTERM: (signal.SIGHUP, 2.0),
    signal.SIGHUP: (signal.SIGKILL, 10.0),
    signal.SIGKILL: (None, 10.0),
}
#: struct pollfd.
_POLLED = struct.Struct("=ihh")
#: Seconds for what a process inside can delay: the size of the terminal, whether all was read.
_ANSWERS = 1.0
_CONTROL_CHARACTERS = 32  # NCCS, at most 19 of them in use
_EOF_FIRST, _EOF_LATER, _EOF_MAX = 0.02, 1.0, 100


def run(
    argv: Sequence[str],
    *,
    root_fd: int,
    env: Mapping[str, str],
    cwd: str = "/",
    cgroup: str | None = None,
    joins: Sequence[str] = (),
    ids: tuple[int, int, Sequence[int]] | None = None,
    isolation: Isolation = spawn.PLAIN,
    stdin: int = 0,
    stdout: int = 1,
    seen: Callable[[bytes], None] = lambda _data: None,
    warn: Callable[[str], None] = lambda _text: None,
    begun: Callable[[], None] = lambda: None,
) -> int:
    """Run a command on a new terminal inside a root.

    A terminal as `stdin` gives the new one its attributes, is raw meanwhile, and is always
    restored. The bytes of any other `stdin` (pipe, file) are typed. A last line without a newline
    gets one. Then VEOF is typed, again whenever a process inside has read it, until the command
    exits.

    A background job that keeps the terminal open is not waited for. If `stdout` is closed or the
    caller's terminal is hung up, the command gets HUP, and KILL 10 s later.

    In the main thread, signals are passed on. SIGWINCH sets the new size inside, SIGINT goes to the
    foreground job, SIGTERM and SIGHUP go to the command. HUP follows 2 s after TERM, as above. A
    signal that the caller ignores stays ignored.

    Args:
        argv: The command and its arguments.
        root_fd: A descriptor of the root (O_PATH).
        env: The whole environment.
        cwd: The working directory inside.
        cgroup: The path of the v2 cgroup to start in.
        joins: The paths of `cgroup.procs` files to write to.
        ids: User, group and supplementary groups; the new terminal is that user's.
        isolation: What the command is isolated from.
        stdin: The caller's input.
        stdout: The caller's output.
        seen: Called with each piece of the output.
        warn: Called with a sentence about what was left behind.
        begun: Called when the command runs: `root_fd` is not used any more.

    Returns:
        The exit status; 128+n for signal n.

    Raises:
        NotSupported: The root has no usable `/dev/pts/ptmx`.
        OSError: The command cannot be started (ENOENT, EACCES … of execve), as in `spawn.spawn`.
        SurvivorError: The command survived KILL.
    """
    shared = Descriptors()
    shared.extend(_open_pair(root_fd))
    master, slave = shared
    closing = LastClose(shared, slave)
    relay = _Relay(master, stdin, stdout, seen, closing.close)
    try:
        try:
            if ids is not None:  # as grantpt(3) does
                os.fchown(slave, ids[0], _TTY_GROUP)
                os.fchmod(slave, 0o620)
            relay.prepare(slave)
            child = spawn.spawn(
                argv, root_fd=root_fd, env=env, cwd=cwd, cgroup=cgroup, joins=joins, ids=ids,
                stdin=slave, stdout=slave, stderr=slave, new_session=True, terminal=_number(master),
                isolation=isolation,
            )  # fmt: skip
            begun()
        finally:
            closing.close_first()
        try:
            return relay.until_end(child)
        finally:
            child.close()
    finally:
        relay.close()
        closing.close()
        if closing.left:
            warn(f"the terminal of {argv[0]} is locked: {closing.left}")


def _open_pair(root_fd: int) -> tuple[int, int]:
    """Open master (non-blocking) and slave of a new pty of the root's devpts."""
    try:
        # Checked before it is opened: opening a FIFO would wait, and opening another device has
        # side effects. The same device file on another file system would use the devpts beside it.
        found = Root("the root", fd=root_fd).open_fd(_PTMX)
        try:
            status = syscalls.statx("", found)
            is_multiplexer = stat.S_ISCHR(status.mode) and status.rdev == _PTMX_DEVICE
            if not is_multiplexer or deadlines.fstype(found, status.mnt_id) != b"devpts":
                raise OSError(errno.ENODEV, "not the pty multiplexer")
            master = os.open(
                f"/proc/thread-self/fd/{found}",
                os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC,
            )
        finally:
            os.close(found)
        try:
            fcntl.ioctl(master, _TIOCSPTLCK, bytes(4))
            return master, _peer(master)
        except BaseException:
            os.close(master)
            raise
    except OSError as error:
        if error.errno not in _UNUSABLE:
            raise
        raise NotSupported(
            f"no terminal inside: {_path(root_fd)}/{_PTMX}: {os.strerror(error.errno)}",
            hint="mount devpts on /dev/pts inside, or use `chrootfw exec`, which needs no "
            "terminal inside",
        ) from error


def _path(fd: int) -> str:
    try:
        return os.readlink(f"/proc/thread-self/fd/{fd}").rstrip("/")
    except OSError:
        return "the root"


def _peer(master: int) -> int:
    """Open the slave of a master without a path (ioctl_tty(2): TIOCGPTPEER)."""
    return fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def _number(master: int) -> int:
    """Return N of the slave's name `/dev/pts/N` (TIOCGPTN)."""
    return int.from_bytes(fcntl.ioctl(master, _TIOCGPTN, bytes(4)), sys.byteorder)


def reopen(fd: int, flags: int) -> int:
    """Open a terminal or pipe again, non-blocking.

    O_NONBLOCK on `fd` itself would apply to every process that shares it. A file that cannot or
    must not be opened again is only duplicated: a socket, a file (its offset), a pty's master (a
    new pty would be opened), and what is not open in this way already: a pipe to write to is not
    read.

    Args:
        fd: The descriptor.
        flags: O_RDONLY or O_WRONLY.

    Returns:
        The new descriptor. The caller must close it.
    """
    status = os.fstat(fd)
    now = fcntl.fcntl(fd, fcntl.F_GETFL)
    is_allowed = not now & os.O_PATH and now & os.O_ACCMODE in (flags, os.O_RDWR)
    if is_allowed and (
        stat.S_ISFIFO(status.st_mode) or (os.isatty(fd) and status.st_rdev != _PTMX_DEVICE)
    ):
        try:
            return os.open(
                f"/proc/thread-self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            )
        except OSError:
            pass
    return os.dup(fd)


class _Relay:
    """A relay between the caller's streams and the master until the child exits."""

    __slots__ = (
        "arrived", "asked", "attributes", "child", "deadline", "eof_at", "eof_pause", "eofs",
        "follows", "hang_up", "inward", "master", "newline", "open", "outward", "replaced",
        "screen", "seen", "sink", "source", "stdin", "stdout", "wake",
    )  # fmt: skip
    child: Child

    def __init__(
        self,
        master: int,
        stdin: int,
        stdout: int,
        seen: Callable[[bytes], None],
        hang_up: Callable[[], None],
    ) -> None:
        self.master, self.stdin, self.stdout, self.seen = master, stdin, stdout, seen
        self.hang_up = hang_up  # closes the master
        self.screen = stdin if os.isatty(stdin) else stdout if os.isatty(stdout) else -1
        self.source = self.sink = self.wake = -1
        self.open = True  # a process has the slave
        self.attributes: list[Any] | None = None  # of the caller's terminal, to be restored
        self.inward = self.outward = b""  # read, not yet written
        self.newline = True  # the last byte typed was a newline
        self.arrived: list[int] = []  # signals
        self.asked = False  # a signal asked to end
        self.replaced: list[tuple[int, Any]] = []
        self.follows: signal.Signals | None = None  # at `deadline`
        self.deadline = self.eof_at = 0.0  # 0: none
        self.eof_pause, self.eofs = _EOF_FIRST, 0

    def prepare(self, slave: int) -> None:
        """Set attributes, size, streams and signals before the child starts."""
        if os.isatty(self.stdin):
            try:
                self.attributes = termios.tcgetattr(self.stdin)
                termios.tcsetattr(slave, termios.TCSANOW, self.attributes)
            except termios.error:
                # The caller's terminal was hung up: reading reports it. Or a process inside has
                # changed the line discipline of the new one: only what is inside is affected.
                pass
        self._resize()
        self.source = reopen(self.stdin, os.O_RDONLY)
        self.sink = reopen(self.stdout, os.O_WRONLY)
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for signum in _WATCHED:
            before = signal.getsignal(signum)
            if before is None or (before is signal.SIG_IGN and signum != signal.SIGWINCH):
                continue  # not Python's, or nohup(1)
            try:
                signal.signal(signum, self._note)
            except ValueError:
                break  # not the main thread
            self.replaced.append((signum, before))

    def close(self) -> None:
        """Restore the caller's terminal and signal handlers, and close the descriptors."""
        try:
            if self.attributes is not None:
                # Not TCSADRAIN, which waits for a terminal that takes no output.
                termios.tcsetattr(self.stdin, termios.TCSANOW, self.attributes)
        except termios.error:
            pass  # hung up
        finally:
            for signum, before in self.replaced:
                signal.signal(signum, before)
            for fd in (self.source, self.sink, self.wake):
                if fd >= 0:
                    os.close(fd)

    def until_end(self, child: Child) -> int:
        """Relay until the child exits.

        Returns:
            The exit status as a shell reports it.
        """
        self.child = child
        try:
            self._raw()
            while not self._turn():
                pass
            child.reap()
            self._drain()
        except BaseException:
            child.kill(signal.SIGHUP)
            child.kill(signal.SIGCONT)
            if not child.wait_for_end(2.0):
                child.kill()
                child.wait_for_end(2.0)
            raise
        status = known_status(child, "the program on the terminal")
        return status if status >= 0 else 128 - status

    def _turn(self) -> bool:
        """Wait for an event and handle it.

        Returns:
            Whether the child has exited.
        """
        poller = select.poll()
        poller.register(self.wake, select.POLLIN)
        poller.register(self.child.pidfd, select.POLLIN)
        if self.source >= 0 and self.open and not self.inward:
            poller.register(self.source, select.POLLIN)
        wanted = (0 if self.outward else select.POLLIN) | (select.POLLOUT if self.inward else 0)
        if self.open and wanted:
            poller.register(self.master, wanted)
        if self.outward:
            poller.register(self.sink, select.POLLOUT)
        due = [moment for moment in (self.deadline, self.eof_at) if moment]
        wait = min(due) - time.monotonic() + 0.001 if due else None
        ready = {fd for fd, _ in polling.poll(poller, wait)}
        if self.wake in ready:
            self._answer()
        if self.child.pidfd in ready:
            return True
        if self.sink in ready:
            self._write_out()
        if self.master in ready:
            if not self.outward:
                self._read_master()
            if self.inward:
                self._write_master()
        if self.source in ready:
            self._read_source()
        now = time.monotonic()
        if self.deadline and now >= self.deadline:
            self._escalate()
        if self.eof_at and now >= self.eof_at:
            self._type_eof()
        return False

    def _read_source(self) -> None:
        try:
            data = os.read(self.source, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal that was hung up: EIO
        if data:
            self.inward = data
            self.newline = data.endswith(b"\n")
            return
        os.close(self.source)
        self.source = -1
        if self.attributes is not None:
            self._send(signal.SIGHUP)
            return
        if not self.newline:
            self.inward = (
                b"\n"  # VEOF in the middle of a line ends only the line, or nothing at all
            )
        self.eof_at = time.monotonic()

    def _write_master(self) -> None:
        try:
            self.inward = self.inward[os.write(self.master, self.inward) :]
        except BlockingIOError:
            pass
        except OSError:
            self.inward = b""  # no process has the slave; reading reports that

    def _read_master(self) -> bool:
        """Read once; return false if no output is available."""
        try:
            data = os.read(self.master, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # EIO: no process has the slave
        if not data:
            self.open = False
            self.inward = b""
            self.eof_at = 0.0
            if not self.deadline:  # most likely it is exiting
                self._arm(*_NEXT[signal.SIGTERM])
            return False
        self.seen(data)
        if self.sink >= 0:
            self.outward = data
        if self.eof_at:
            self.eof_pause = _EOF_FIRST
        return True

    def _write_out(self) -> None:
        try:
            self.outward = self.outward[os.write(self.sink, self.outward) :]
        except BlockingIOError:
            pass
        except OSError:  # EPIPE, EIO, ENOSPC: further output is discarded
            os.close(self.sink)
            self.sink = -1
            self.outward = b""
            self._send(signal.SIGHUP)

    def _type_eof(self) -> None:
        """Type VEOF if all that was typed has been read.

        Once is not enough: VEOF ends one reader (`cat`), not the shell that runs it. A shell that
        turns ICANON off while VEOF is queued reads a NUL instead. So from the second time on, the
        line is erased before (VKILL). A process that ignores VEOF 100 times is hung up.
        """
        if not self.inward and self._is_read():
            keys = self._control_characters()
            end = keys[termios.VEOF] if keys[termios.VEOF] != b"\0" else b"\x04"
            # The line editor may have taken a NUL for a character of its line, but VEOF ends
            # only an empty line.
            erase = keys[termios.VKILL] if keys[termios.VKILL] != b"\0" else b"\x15"
            self.inward = end if self.eofs == 0 else erase + end
            self.eofs += 1
            if self.eofs == _EOF_MAX:
                self._send(signal.SIGHUP)
        self.eof_at = time.monotonic() + self.eof_pause
        self.eof_pause = min(2 * self.eof_pause, _EOF_LATER)

    def _is_read(self) -> bool:
        """Check that all that was typed has been read, or cannot be."""
        calls = deadlines.make_closing_batch([self.master])
        peer = deadlines.lowest_free([self.master])
        polled = calls.add_buffer(_POLLED.size, _POLLED.pack(peer, select.POLLIN, 0))
        calls.add("ioctl", self.master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
        calls.add("ppoll", polled, 1, ZEROS, None, 0)
        try:
            deadlines.run_batch("the terminal", calls, seconds=_ANSWERS)
        except OSError:  # a process inside has hung it up, or keeps it locked
            return True
        return not _POLLED.unpack(polled.data)[2] & select.POLLIN

    def _control_characters(self) -> Sequence[Any]:
        try:
            found: Sequence[Any] = termios.tcgetattr(self.master)[6]
        except termios.error:  # a process inside has changed the line discipline
            return [b"\0"] * _CONTROL_CHARACTERS
        return found

    def _drain(self) -> None:
        """Relay what the child wrote before it exited, and no more.

        A background job may write for ever. The terminal is closed before anything is written: it
        would keep the root mounted as long as the caller does not read. A caller that asked to end
        and does not read is not waited for.
        """
        kept = self.outward
        end = len(kept) + _LEFT_MAX
        while self.open and len(kept) < end and self._read_master():
            kept += self.outward
        self.outward = kept
        self.master = -1
        self.hang_up()
        while self.outward and self.sink >= 0:
            poller = select.poll()
            poller.register(self.wake, select.POLLIN)
            poller.register(self.sink, select.POLLOUT)
            ready = {fd for fd, _ in polling.poll(poller, 0 if self.asked else None)}
            if self.wake in ready:
                self._answer()
            if self.sink in ready:
                self._write_out()
            elif self.asked:
                return

    def _note(self, signum: int, _frame: object) -> None:
        self.arrived.append(signum)
        os.eventfd_write(self.wake, 1)

    def _answer(self) -> None:
        """Act on the signals that have arrived."""
        os.eventfd_read(self.wake)
        while self.arrived:
            signum = self.arrived.pop(0)
            if signum == signal.SIGWINCH:
                self._resize()
            elif signum == signal.SIGCONT:  # the caller's shell had the terminal meanwhile
                self._raw()
                self._resize()
            elif signum == signal.SIGINT and not self.child.has_ended:
                try:
                    fcntl.ioctl(self.master, _TIOCSIG, signum)
                except OSError:
                    pass  # no process has the slave
            else:
                self.asked = True
                if signum != signal.SIGINT:
                    self._send(signal.Signals(signum))

    def _send(self, signum: signal.Signals) -> None:
        """Signal the child, and schedule a stronger signal.

        A signal that is scheduled already is not delayed.
        """
        self.child.kill(signum)
        self.child.kill(signal.SIGCONT)
        follows, seconds = _NEXT[signum]
        if self.deadline == 0.0 or (self.follows is signal.SIGHUP and follows is not self.follows):
            self._arm(follows, seconds)

    def _arm(self, follows: signal.Signals | None, seconds: float) -> None:
        self.follows, self.deadline = follows, time.monotonic() + seconds

    def _escalate(self) -> None:
        if self.follows is None:
            raise SurvivorError(f"process {self.child.pid}, started on the terminal, survived KILL")
        signum, self.deadline = self.follows, 0.0
        self._send(signum)

    def _raw(self) -> None:
        if self.attributes is not None:
            try:
                tty.setraw(self.stdin, termios.TCSANOW)
            except termios.error:
                pass  # hung up: reading reports it

    def _resize(self) -> None:
        if self.screen >= 0 and self.master >= 0:
            try:
                size = fcntl.ioctl(self.screen, termios.TIOCGWINSZ, bytes(8))
                calls = deadlines.make_closing_batch([self.master])
                calls.add("ioctl", self.master, termios.TIOCSWINSZ, size)
                deadlines.run_batch("the terminal", calls, seconds=_ANSWERS)
            except OSError:
                pass  # hung up; or a process inside keeps it locked
