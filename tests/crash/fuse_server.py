"""A FUSE server that a test can silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SERVER = str(Path(__file__).with_name("silent_fuse.py"))


class Fuse:
    """The server of ``silent_fuse.py``, and where it shows its directory."""

    def __init__(self, source: Path, place: Path, *options: str) -> None:
        self.place = place
        place.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, _SERVER, str(source), str(place), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._hears("ready")

    def fall_silent(self) -> None:
        self._say("silent", "silent")

    def fall_silent_when_opened_again(self) -> None:
        self._say("opened-again", "speaks")

    def speak(self) -> None:
        self._say("speak", "speaks")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _say(self, word: str, answer: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        self._hears(answer)

    def _hears(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word
