"""Processes that do something at the same moment, again and again."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import socket
from collections.abc import Callable
from typing import Any

import chrootfw

_PR_SET_PDEATHSIG = 1


class Worker:
    """A child that calls ``body(argument)`` for each ``begin(argument)``; ``end()`` is what came of it.

    What the body raises of chrootfw's errors is an answer too.
    """

    def __init__(self, body: Callable[[Any], Any]) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(120)
        self.pid = os.fork()
        if self.pid:
            theirs.close()
            return
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            self._ours.close()
            while data := theirs.recv(1 << 16):
                try:
                    answer = body(pickle.loads(data))
                except chrootfw.ChrootfwError as error:
                    answer = Failed(type(error).__name__, error.brief)
                except BaseException as error:
                    answer = Crashed(repr(error))
                theirs.send(pickle.dumps(answer))
        finally:
            os._exit(0)

    def begin(self, argument: Any = None) -> None:
        self._ours.send(pickle.dumps(argument))

    def end(self) -> Any:
        answer = pickle.loads(self._ours.recv(1 << 16))
        assert not isinstance(answer, Crashed), answer.text
        return answer

    def close(self) -> None:
        self._ours.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Failed:
    """One of chrootfw's errors."""

    def __init__(self, kind: str, brief: str) -> None:
        self.kind = kind
        self.brief = brief

    def __repr__(self) -> str:
        return f"{self.kind}: {self.brief}"


class Crashed:
    """Any other exception."""

    def __init__(self, text: str) -> None:
        self.text = text
