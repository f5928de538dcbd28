"""A terminal inside a root, for ``chrootfw shell``: a pty of the root's own devpts, relayed to the caller.

A pty of the host would be "not a tty" inside. See pty(7), ioctl_tty(2) for TIOCGPTPEER, termios(3) for the
line discipline. The relay waits in poll(2) only, never in a read or a write: a caller that does not read its
output holds up no signal.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import sys
import termios
import time
import tty

from chrootfw.errors import NotSupported, SurvivorError
from chrootfw.system import children, spawn, syscalls
from chrootfw.system import isolation as isolations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_PTMX = "dev/pts/ptmx"
_PTMX_DEVICE = os.makedev(5, 2)
_TTY_GROUP = 5
# termios lacks these three; MIPS and POWER number their ioctls in another way.
_TIOCGPTN = 0x80045430
_TIOCGPTPEER, _TIOCSPTLCK, _TIOCSIG = (
    (0x5441, 0x40045431, 0x40045436) if termios.TCGETS == 0x5401 else (0x20005441, 0x80045431, 0x80045436)
)
_UNUSABLE = (
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM,
    errno.ENXIO, errno.ENODEV, errno.ENOTTY, errno.EINVAL,
)  # fmt: skip
_WATCHED = (signal.SIGWINCH, signal.SIGCONT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CHUNK = 4096  # PIPE_BUF: a pipe that poll(2) calls writable takes as much without waiting
_LEFT_MAX = 65536  # more than the kernel keeps for a pty: what was written before the child's end
#: What follows a signal that did not end the child, after how many seconds. Interactive shells ignore TERM.
_NEXT = {
    signal.SIGTERM: (signal.SIGHUP, 2.0),
    signal.SIGHUP: (signal.SIGKILL, 10.0),
    signal.SIGKILL: (None, 10.0),
}
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
    isolation: isolations.Isolation = spawn.PLAIN,
    stdin: int = 0,
    stdout: int = 1,
) -> int:
    """Run ``argv`` on a new terminal inside the root ``root_fd`` (O_PATH); its status, 128+n for signal n.

    ``stdin`` and ``stdout`` are the caller's. A terminal as ``stdin`` lends the new one its attributes, is
    raw meanwhile, and is restored whatever happens. From anything else (pipe, file) the bytes are typed: a
    last line without a newline gets one, then comes VEOF, again whenever somebody inside has read it, until
    ``argv`` has ended. The rest is as in ``spawn.spawn``; with ``ids`` the new terminal is that user's.

    A background job that keeps the terminal open is not waited for. If ``stdout`` is closed or the caller's
    terminal is hung up, ``argv`` gets HUP, and KILL 10 s later. In the main thread, SIGWINCH brings the new
    size inside, SIGINT goes to the foreground job, SIGTERM and SIGHUP to ``argv`` (2 s after TERM comes HUP,
    as above); a signal that the caller ignores stays ignored.

    Raises ``NotSupported`` if the root has no usable ``/dev/pts/ptmx``, ``OSError`` as ``spawn.spawn`` does
    (ENOENT, EACCES … of execve), ``SurvivorError`` if ``argv`` survived KILL.
    """
    master, slave = _open_pair(root_fd)
    relay = _Relay(master, stdin, stdout)
    try:
        try:
            if ids is not None:  # as grantpt(3)
                os.fchown(slave, ids[0], _TTY_GROUP)
                os.fchmod(slave, 0o620)
            relay.prepare(slave)
            child = spawn.spawn(
                argv, root_fd=root_fd, env=env, cwd=cwd, cgroup=cgroup, joins=joins, ids=ids,
                stdin=slave, stdout=slave, stderr=slave, new_session=True, terminal=_number(master),
                isolation=isolation,
            )  # fmt: skip
        finally:
            os.close(slave)
        try:
            return relay.until_end(child)
        finally:
            child.close()
    finally:
        relay.close()


def _open_pair(root_fd: int) -> tuple[int, int]:
    """Master (non-blocking) and slave of a new pty of the root's devpts."""
    try:
        # Looked at before it is opened: opening a FIFO would wait, opening another device has side effects.
        found = syscalls.openat2(root_fd, _PTMX, os.O_PATH, syscalls.RESOLVE_IN_ROOT)
        try:
            status = os.fstat(found)
            if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _PTMX_DEVICE:
                raise OSError(errno.ENODEV, "not the pty multiplexer")
            master = os.open(f"/proc/thread-self/fd/{found}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
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
            hint="mount devpts on /dev/pts inside, or use `chrootfw exec`, which needs no terminal inside",
        ) from error


def _path(fd: int) -> str:
    try:
        return os.readlink(f"/proc/thread-self/fd/{fd}").rstrip("/")
    except OSError:
        return "the root"


def _peer(master: int) -> int:
    """The slave of ``master``, without a path (ioctl_tty(2): TIOCGPTPEER)."""
    return fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def _number(master: int) -> int:
    """N of the slave's name ``/dev/pts/N`` (TIOCGPTN)."""
    return int.from_bytes(fcntl.ioctl(master, _TIOCGPTN, bytes(4)), sys.byteorder)


def _reopen(fd: int, flags: int) -> int:
    """A terminal or pipe, opened again, non-blocking: O_NONBLOCK on ``fd`` itself would be everybody's.

    A mere copy of what cannot or must not be opened again: a socket, a file (its offset), a pty's master (it
    would be a new pty).
    """
    status = os.fstat(fd)
    if stat.S_ISFIFO(status.st_mode) or (os.isatty(fd) and status.st_rdev != _PTMX_DEVICE):
        try:
            return os.open(f"/proc/thread-self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            pass
    return os.dup(fd)


class _Relay:
    """Between the caller's streams and the master, until the child has ended. Owns ``master``."""

    __slots__ = (
        "arrived", "asked", "attributes", "child", "deadline", "eof_at", "eof_pause", "eofs", "follows",
        "inward", "master", "newline", "open", "outward", "replaced", "screen", "sink", "source", "stdin",
        "stdout", "wake",
    )  # fmt: skip
    child: children.Child

    def __init__(self, master: int, stdin: int, stdout: int) -> None:
        self.master, self.stdin, self.stdout = master, stdin, stdout
        self.screen = stdin if os.isatty(stdin) else stdout if os.isatty(stdout) else -1
        self.source = self.sink = self.wake = -1
        self.open = True  # somebody has the slave
        self.attributes: list[Any] | None = None  # of the caller's terminal, to be restored
        self.inward = self.outward = b""  # read, not yet written
        self.newline = True  # the last byte typed was one
        self.arrived: list[int] = []  # signals
        self.asked = False  # to end, by one of them
        self.replaced: list[tuple[int, Any]] = []
        self.follows: signal.Signals | None = None  # at ``deadline``
        self.deadline = self.eof_at = 0.0  # 0: none
        self.eof_pause, self.eofs = _EOF_FIRST, 0

    def prepare(self, slave: int) -> None:
        """All that comes before the child: attributes, size, streams, signals."""
        if os.isatty(self.stdin):
            attributes = termios.tcgetattr(self.stdin)
            termios.tcsetattr(slave, termios.TCSANOW, attributes)
            self.attributes = attributes
        self._resize()
        self.source = _reopen(self.stdin, os.O_RDONLY)
        self.sink = _reopen(self.stdout, os.O_WRONLY)
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
        """Restore the caller's terminal and signal handlers, give back the descriptors."""
        try:
            if self.attributes is not None:
                # Not TCSADRAIN, which waits for a terminal that takes no output.
                termios.tcsetattr(self.stdin, termios.TCSANOW, self.attributes)
        except termios.error:
            pass  # hung up
        finally:
            for signum, before in self.replaced:
                signal.signal(signum, before)
            for fd in (self.source, self.sink, self.wake, self.master):
                if fd >= 0:
                    os.close(fd)

    def until_end(self, child: children.Child) -> int:
        """Relay until ``child`` has ended; its status as a shell tells it."""
        self.child = child
        try:
            self._raw()
            while not self._turn():
                pass
            status = child.reap()
            self._drain()
        except BaseException:
            child.kill(signal.SIGHUP)
            child.kill(signal.SIGCONT)
            if child.wait(2.0) is None:
                child.kill()
                child.wait(2.0)
            raise
        return status if status >= 0 else 128 - status

    def _turn(self) -> bool:
        """Wait for something to do and do it; whether the child has ended."""
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
        wait = max(0, int((min(due) - time.monotonic()) * 1000) + 1) if due else None
        ready = {fd for fd, _ in poller.poll(wait)}
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
            self.inward = b"\n"  # VEOF in the middle of a line ends the line only, or nothing at all
        self.eof_at = time.monotonic()

    def _write_master(self) -> None:
        try:
            self.inward = self.inward[os.write(self.master, self.inward) :]
        except BlockingIOError:
            pass
        except OSError:
            self.inward = b""  # nobody has the slave; reading tells

    def _read_master(self) -> bool:
        """Take what is there; ``False`` if nothing is."""
        try:
            data = os.read(self.master, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # EIO: nobody has the slave
        if not data:
            self.open = False
            self.inward = b""
            self.eof_at = 0.0
            if not self.deadline:  # most likely it is just ending
                self._arm(*_NEXT[signal.SIGTERM])
            return False
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
        except OSError:  # EPIPE, EIO, ENOSPC: what is still to come is thrown away
            os.close(self.sink)
            self.sink = -1
            self.outward = b""
            self._send(signal.SIGHUP)

    def _type_eof(self) -> None:
        """Type VEOF if all that was typed has been read.

        Once is not enough: it ends one reader (``cat``), not the shell that runs it; and a shell that turns
        ICANON off while it waits in the queue reads a NUL instead. So from the second time on the line is erased
        before (VKILL). Who ignores it 100 times is hung up.
        """
        if not self.inward:
            peer = _peer(self.master)
            try:
                poller = select.poll()
                poller.register(peer, select.POLLIN)
                read = not any(events & select.POLLIN for _, events in poller.poll(0))
            finally:
                os.close(peer)
            if read:
                keys = termios.tcgetattr(self.master)[6]
                end = keys[termios.VEOF] if keys[termios.VEOF] != b"\0" else b"\x04"
                # A NUL that a line editor took for a character stands in its line now: VEOF ends an empty line only.
                erase = keys[termios.VKILL] if keys[termios.VKILL] != b"\0" else b"\x15"
                self.inward = end if self.eofs == 0 else erase + end
                self.eofs += 1
                if self.eofs == _EOF_MAX:
                    self._send(signal.SIGHUP)
        self.eof_at = time.monotonic() + self.eof_pause
        self.eof_pause = min(2 * self.eof_pause, _EOF_LATER)

    def _drain(self) -> None:
        """After the child's end: what it wrote, and no more, for a background job may write for ever.

        A caller that asked to end and does not read is not waited for.
        """
        left = _LEFT_MAX
        while self.sink >= 0:
            if not self.outward:
                if left <= 0 or not self.open or not self._read_master():
                    return
                left -= len(self.outward)
            poller = select.poll()
            poller.register(self.wake, select.POLLIN)
            poller.register(self.sink, select.POLLOUT)
            ready = {fd for fd, _ in poller.poll(0 if self.asked else None)}
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
        """To the signals that have arrived."""
        os.eventfd_read(self.wake)
        while self.arrived:
            signum = self.arrived.pop(0)
            if signum == signal.SIGWINCH:
                self._resize()
            elif signum == signal.SIGCONT:  # the caller's shell had the terminal meanwhile
                self._raw()
                self._resize()
            elif signum == signal.SIGINT and self.child.status is None:
                try:
                    fcntl.ioctl(self.master, _TIOCSIG, signum)
                except OSError:
                    pass  # nobody has the slave
            else:
                self.asked = True
                if signum != signal.SIGINT:
                    self._send(signal.Signals(signum))

    def _send(self, signum: signal.Signals) -> None:
        """Signal the child, and more strongly later; what is armed already is not put off."""
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
                pass  # hung up: reading tells

    def _resize(self) -> None:
        if self.screen >= 0:
            try:
                size = fcntl.ioctl(self.screen, termios.TIOCGWINSZ, bytes(8))
                fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)
            except OSError:
                pass
