"""Lock instances and disks (flock(2))."""

from __future__ import annotations

import fcntl
import os
import time

from chrootfw.errors import Hint, LockError, StepError
from chrootfw.linux.descriptors import Descriptors
from chrootfw.linux.files import LOCKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Lock:
    """An flock(2) on a file in `RUN_DIR/.locks`, never inherited by a child.

    The file names the process that holds the lock. It is never unlinked, because two processes
    could then hold "the" lock.

    The lock belongs to the open file, of which a fork of the program has a copy. So it is released
    by LOCK_UN, and not only by closing the file. A fork cannot release the lock of its parent.
    """

    __slots__ = ("_opened", "_owner", "fd", "path")

    def __init__(self, path: str) -> None:
        """Open the file without locking it.

        Raises:
            OSError: The file cannot be opened.
        """
        self.path = path
        self._owner = os.getpid()
        self.fd = -1
        self._opened = Descriptors()
        self.fd = self._opened.take(
            os.open, path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        try:
            if self.fd in self._opened and os.getpid() == self._owner:
                fcntl.flock(self.fd, fcntl.LOCK_UN)
        finally:
            self._opened.close_all()

    def __del__(self) -> None:
        self.release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()


def lock(
    run_dir: str,
    name: str,
    *,
    what: str,
    verb: str,
    seconds: float,
    check: Callable[[], None] = lambda: None,
    report: Callable[[str], None] = lambda _holder: None,
) -> Lock:
    """Take a lock.

    Args:
        run_dir: The run directory.
        name: The name of the lock's file.
        what: The name of what is locked, for errors.
        verb: The verb that needs the lock, recorded in the file.
        seconds: Seconds to wait for the lock.
        check: Called while waiting; an exception from it ends the wait.
        report: Called once with the holder when there is something to wait for.

    Returns:
        The lock. The caller must release it.

    Raises:
        LockError: Another process holds the lock; the error names the process.
        StepError: The file cannot be opened or locked.
    """
    path = f"{run_dir}/{LOCKS}/{name}"
    try:
        made = Lock(path)
    except OSError as error:
        raise StepError(
            f"cannot open the lock {path}: {error.strerror}",
            hint="chrootfw verify checks the run directory",
        ) from error
    deadline = time.monotonic() + seconds
    pause = 0.001
    is_reported = False
    try:
        while True:
            try:
                fcntl.flock(made.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            check()
            left = deadline - time.monotonic()
            if left <= 0:
                raise LockError(
                    f"{what} is locked by {_holder(made)}",
                    [f"waited {seconds:g} s for {path}"],
                    Hint(
                        "wait for it to end, or give Runtime a longer lock_timeout",
                        "wait for it to end, or give a longer --lock-timeout",
                    ),
                )
            if not is_reported:
                is_reported = True
                report(_holder(made))
            time.sleep(min(pause, left))  # flock(2) has no timeout
            pause = min(pause * 2, 0.05)
    except OSError as error:
        made.release()
        raise StepError(f"cannot lock {what} ({path}): {error.strerror}") from error
    except BaseException:
        made.release()
        raise
    try:
        os.ftruncate(made.fd, 0)
        os.pwrite(made.fd, f"pid {os.getpid()} ({verb})\n".encode(), 0)
    except OSError:
        # a full disk must not prevent a stop: only the holder's name is lost
        pass
    return made


def _holder(lock: Lock) -> str:
    """Return which command holds a lock, as it has written into its file."""
    return os.pread(lock.fd, 256, 0).decode("utf-8", "replace").strip() or "another command"
