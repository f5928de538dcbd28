"""A request to end."""

from __future__ import annotations

import gc
import os
import select
import signal
from typing import Any

import pytest

from chrootfw.cancellation import Cancellation, from_signals
from chrootfw.errors import InputError, Interrupted


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_one_that_could_not_be_made_is_given_up_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_arguments: int) -> int:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(os, "eventfd", fails)
        with pytest.raises(OSError, match="Cannot allocate"):
            Cancellation()
    gc.collect()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_one_that_cannot_be_closed_is_given_up_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    close = os.close

    def interrupted(fd: int) -> None:
        close(fd)
        raise InterruptedError(4, "Interrupted system call")

    cancellation = Cancellation()
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", interrupted)
        del cancellation
        gc.collect()


def test_a_handler_that_python_does_not_know_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's that has Python in it: signal.signal could not restore it."""
    real, theirs = signal.signal, [signal.SIGHUP]

    def sets(signum: int, handler: Any) -> Any:
        if handler is None:
            raise TypeError(
                "signal handler must be signal.SIG_IGN, signal.SIG_DFL, or a callable object"
            )
        before = real(signum, handler)
        return None if signum in theirs else before

    monkeypatch.setattr(
        signal, "getsignal", lambda signum: None if signum in theirs else signal.SIG_DFL
    )
    monkeypatch.setattr(signal, "signal", sets)
    try:
        with from_signals(Cancellation()):
            theirs_now = (
                signal.Handlers(0)
                if real(signal.SIGHUP, signal.SIG_DFL) == signal.SIG_DFL
                else None
            )
        assert theirs_now == signal.SIG_DFL
    finally:
        real(signal.SIGHUP, signal.SIG_DFL)


def test_a_fork_has_its_own_requests() -> None:
    cancellation = Cancellation()
    pid = os.fork()
    if pid == 0:
        cancellation.request()
        os._exit(0 if select.select([cancellation.fd], [], [], 0)[0] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not select.select([cancellation.fd], [], [], 0)[0]


@pytest.mark.parametrize("signum", range(1, 65))
def test_any_signal_asks_to_end(signum: int) -> None:
    cancellation = Cancellation()
    cancellation.request(signum)
    with pytest.raises(Interrupted, match="interrupted by ") as ended:
        cancellation.check()
    assert ended.value.signum == signum


@pytest.mark.parametrize("signum", [0, -1, 65, 1 << 40, True, "TERM", None, 15.0])
def test_what_is_no_signal_is_refused(signum: object) -> None:
    cancellation = Cancellation()
    with pytest.raises(InputError, match="signal"):
        cancellation.request(signum)  # type: ignore[arg-type]
    cancellation.check()
