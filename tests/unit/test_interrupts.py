"""A request to end."""

from __future__ import annotations

import gc
import os

import pytest

from chrootfw.interrupts import Interrupts


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_one_that_could_not_be_made_is_given_up_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_arguments: int) -> int:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(os, "eventfd", fails)
        with pytest.raises(OSError, match="Cannot allocate"):
            Interrupts()
    gc.collect()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_one_that_cannot_be_closed_is_given_up_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    close = os.close

    def interrupted(fd: int) -> None:
        close(fd)
        raise InterruptedError(4, "Interrupted system call")

    interrupts = Interrupts()
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", interrupted)
        del interrupts
        gc.collect()
