"""A ``Step`` that is made of two commands: one that does it, one that takes it back."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs

from chrootfw.errors import InputError, StepError
from chrootfw.model import Step


def _words(command: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    if isinstance(command, str) or not command:
        raise InputError(f"expected a command as a sequence of words, not {command!r}")
    return tuple(os.fspath(word) for word in command)


@attrs.frozen
class CommandStep(Step):
    """A step that a command of the host does, and another one takes back.

    ``command`` and ``undo_command``: argument vectors, run by root as they are, without a shell. ``makes``: the path of what
    ``command`` makes. It must not be there before: a step never takes over what somebody else made. It is the
    step's ``source``, and ``undo_command`` runs only while it is there. ``timeout``: seconds for either command.
    """

    kind: ClassVar[str] = "command"
    command: tuple[str, ...] = attrs.field(converter=_words)
    undo_command: tuple[str, ...] = attrs.field(converter=_words)
    makes: str = attrs.field(kw_only=True, converter=os.fspath)
    timeout: float = attrs.field(default=60.0, kw_only=True)

    def describe(self) -> str:
        """The command, as a shell would be given it."""
        return shlex.join(self.command)

    def check(self) -> None:
        """Refuse what is there already. Raises ``StepError``."""
        if os.path.lexists(self.makes):
            raise StepError(
                f"cannot run {self.describe()}: {self.makes} is there already",
                hint="see whose it is; what an interrupted start left is removed by hand",
            )

    def apply(self) -> Mapping[str, Any]:
        """Run the command. Raises ``StepError`` when it fails, or does not make what it should."""
        self._run(self.command)
        if not os.path.lexists(self.makes):
            raise StepError(f"{self.describe()} succeeded, but there is no {self.makes}")
        return {"source": self.makes}

    def undo(self, record: Mapping[str, Any]) -> None:  # noqa: ARG002  # what is there tells
        """Run the other one, if there is anything to take back. Raises ``StepError`` when it fails."""
        if os.path.lexists(self.makes):
            self._run(self.undo_command)

    def _run(self, command: Sequence[str]) -> None:
        brief = f"cannot run {shlex.join(command)}"
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=self.timeout,
                check=False,
            )
        except OSError as error:
            raise StepError(f"{brief}: {error.strerror}", hint="is the program installed?") from error
        except subprocess.TimeoutExpired as error:
            raise StepError(f"{brief}: it did not end within {self.timeout:g} s") from error
        if done.returncode != 0:
            said = done.stdout.decode("utf-8", "replace").splitlines()
            raise StepError(f"{brief}: it exited with status {done.returncode}", [line.rstrip() for line in said[-20:]])
