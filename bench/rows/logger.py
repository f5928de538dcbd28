"""What the logger costs: a start that leaves one, and a daemon that prints a lot."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from lives import Ours
from measure import Row, at_most, interleaved, median, times
from world import ONE, Daemons, World

from chrootfw.state import output_record, process_details

KEY = "logger"

#: A daemon that keeps the output of the script, so that a logger reads it.
_PRINTS = "sleep 100000 </dev/null 2>&1 & echo $! >> /run/pids"
TALKS = Daemons(f"rm -f /run/pids\n{_PRINTS}")


def run(world: World, *, quick: bool) -> Iterator[Row]:
    with_one, without = Ours(world, TALKS, log="file"), Ours(world, ONE, log="file")
    samples = interleaved(
        {"with a logger": _life(with_one), "without": _life(without)},
        rounds=3 if quick else 25,
        at_most=120,
    )
    with_one.start()
    memory = _memory_of_logger(with_one)
    with_one.stop()
    yield Row(
        KEY,
        "start in process, of a daemon that keeps the output",
        samples,
        [at_most("x the start without", times(samples, "with a logger", "without"), 1.5)],
        [f"the logger takes {memory / 2**20:.1f} MiB (PSS), as long as the daemon runs"],
    )
    mebibytes = 16 if quick else 256
    logged = _printing(world, f"dd if=/dev/zero bs=64k count={mebibytes * 16}")
    kept = _printing(world, f"dd if=/dev/zero bs=64k count={mebibytes * 16} | cat >/run/output")
    samples = interleaved(
        {"by the logger": logged, "by cat, to a file inside": kept},
        rounds=3 if quick else 9,
        at_most=120,
    )
    per_gib = median(samples["by the logger"]) * 1024 / mebibytes
    ratio = times(samples, "by the logger", "by cat, to a file inside") or 0
    yield Row(
        f"{KEY}-flood",
        f"a daemon prints {mebibytes} MiB",
        samples,
        [at_most("seconds for 1 GiB", per_gib, 60)],
        [f"{ratio:.1f} x cat, whose file takes it all; the log never takes more than 2 MiB"],
    )


def _life(ours: Ours) -> Callable[[], float]:
    def measured() -> float:
        taken = ours.start()
        ours.stop()
        return taken

    return measured


def _memory_of_logger(ours: Ours) -> int:
    """Return the memory of an instance's logger in bytes."""
    record = output_record.read(ours.runtime.run_dir, ours.instance.name)
    assert record is not None
    return process_details.read_memory([record.pid])[record.pid]


def _printing(world: World, command: str) -> Callable[[], float]:
    """Start an instance that prints when it is asked to, and return what measures one life of it."""
    script = f"(read go < /ready; {command} 2>/dev/null; echo done > /ready) & "
    ours = Ours(world, Daemons(script, "true"), in_directory=True, log="file")

    def measured() -> float:
        ours.start()
        fifo = os.path.join(str(ours.instance.disk), "ready")
        try:
            began = time.perf_counter()
            with open(fifo, "w", encoding="ascii") as file:
                file.write("go\n")
            with open(fifo, encoding="ascii") as file:
                file.read()
            return time.perf_counter() - began
        finally:
            ours.stop()

    return measured
