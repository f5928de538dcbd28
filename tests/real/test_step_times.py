"""How long each step took: the time stands at the step that took it, and the steps add up to no more than the whole."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import roots
from driving import Chroot

import chrootfw

MakeChroot = Callable[..., Chroot]

#: Seconds that the slow step of a test takes at least.
SLOW = 1.2

_SILENT_FUSE = Path(__file__).parent.parent / "crash" / "silent_fuse.py"


class Observer:
    """What an observer receives, and when."""

    def __init__(self) -> None:
        self.events: list[tuple[float, chrootfw.Event]] = []

    def __call__(self, event: chrootfw.Event) -> None:
        self.events.append((time.monotonic(), event))

    def watch(self, chroot: Chroot) -> chrootfw.Runtime:
        """A runtime that reports to this observer."""
        runtime = chroot.runtime
        return chrootfw.Runtime(
            run_dir=runtime.run_dir, config_dir=runtime.config_dir, on_event=self
        )

    def find(self, what: str, does: str) -> tuple[float, chrootfw.Event] | None:
        return next(
            (each for each in self.events if each[1].what == what and each[1].does == does), None
        )

    def wait_for(self, what: str, does: str) -> None:
        deadline = time.monotonic() + 60
        while self.find(what, does) is None:
            assert time.monotonic() < deadline, f"{what} {does!r} has not come: {self.events}"
            time.sleep(0.01)

    def times(self) -> dict[str, float]:
        return {event.does: event.seconds for _, event in self.events if event.what == "end"}

    def check_slow(self, does: str, whole: float) -> None:
        """One step has the time, and begins and ends so far apart; all of them are within the whole."""
        times = self.times()
        (step,) = [found for found in times if does in (found, found.partition(" (")[0])]
        assert SLOW <= times[step] <= whole
        begin, end = self.find("begin", step), self.find("end", step)
        assert begin is not None
        assert end is not None
        assert SLOW <= end[0] - begin[0] <= whole
        assert sum(times.values()) <= whole


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A FUSE server that a test can silence, and the directory that it shows."""
    (tmp_path / "store").mkdir()
    place = tmp_path / "fuse"
    place.mkdir()
    with subprocess.Popen(
        [sys.executable, str(_SILENT_FUSE), str(tmp_path / "store"), str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process, place
        process.kill()
    subprocess.run(["umount", str(place)], check=True)


def _tell(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    process.stdout.readline()


def test_a_slow_unmount(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    server: tuple[subprocess.Popen[str], Path],
    tmp_path: Path,
) -> None:
    process, place = server
    image().rename(tmp_path / "store/disk.img")
    web1 = make_chroot(disk=place / "disk.img", init_script=False)
    web1.start()
    (web1.root / "tmp/written").write_bytes(b"x")
    observer, step = Observer(), f"unmount {web1.root}"
    stop = threading.Thread(target=observer.watch(web1).stop, args=["web1"])
    _tell(process, "silent")
    began = time.monotonic()
    stop.start()
    try:
        observer.wait_for("begin", step)
        time.sleep(SLOW + 0.2)
        assert observer.find("end", step) is None
    finally:
        _tell(process, "speak")
        stop.join(120)
    observer.check_slow(step, time.monotonic() - began)
    others = [took for does, took in observer.times().items() if does != step]
    assert len(others) > 3
    assert max(others) < observer.times()[step], "the others did not wait for the server"
    assert web1.is_gone()


def test_a_slow_observer_is_not_in_the_time_of_an_unmount(make_chroot: MakeChroot) -> None:
    """The child has its own clock: all of its unmounts are made while the first is reported."""

    class Slow(Observer):
        def __call__(self, event: chrootfw.Event) -> None:
            super().__call__(event)
            if (event.what, event.does) == ("begin", last):
                time.sleep(2 * SLOW)

    web1 = make_chroot(init_script=False)
    web1.start()
    observer, last = Slow(), f"unmount {web1.root}"
    observer.watch(web1).stop("web1")
    assert observer.times()[last] < 2 * SLOW


def test_a_slow_script_and_a_slow_kill(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(start=f"{roots.STUBBORN}; sleep {SLOW}"), grace=SLOW)
    for verb, slow in (
        ("start", "run /etc/chrootfw/init start"),
        ("stop", f"SIGTERM to the own processes, then wait at most {SLOW:g} s"),
    ):
        observer = Observer()
        began = time.monotonic()
        getattr(observer.watch(web1), verb)("web1")
        observer.check_slow(slow, time.monotonic() - began)


def test_text_and_json_have_the_same_times(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(start=f"sleep {SLOW}; {roots.DAEMON}"))
    began = time.monotonic()
    started = web1.cli("start", "-v", "--json")
    whole = time.monotonic() - began
    steps = started.json()["steps"]
    script = next(step for step in steps if step["stage"] == "init-start")
    assert SLOW <= script["seconds"] <= whole
    assert sum(step["seconds"] for step in steps) <= whole
    shown = [line.split() for line in started.stderr.splitlines() if line.startswith("✓")]
    assert [words[3] for words in shown] == [step["stage"] for step in steps]
    for words, step in zip(shown, steps, strict=True):
        seconds = float(words[1]) / {"ms": 1000, "s": 1}[words[2]]
        assert seconds == pytest.approx(step["seconds"], abs=0.06)


def test_a_busy_mount_is_a_step_that_fails(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init_script=False)
    web1.start()
    observer = Observer()
    with (web1.root / "etc/passwd").open(), pytest.raises(chrootfw.HeldError):
        observer.watch(web1).stop("web1")
    (failed,) = [event for _, event in observer.events if event.what == "fail"]
    assert failed.does == f"unmount {web1.root}"
    assert "busy" in failed.error
    assert failed.seconds >= 0.5, "it was tried again for that long"
    begun = [event.does for _, event in observer.events if event.what == "begin"]
    assert begun.count(failed.does) <= 2
    web1.stop()
