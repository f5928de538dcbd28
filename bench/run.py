"""chrootfw, its peers and the physical limit, side by side in one run.

``python bench/run.py`` as root measures every row and prints a Markdown table; the rows' names may be given. It takes Linux and Debian
packages, which it installs. ``--quick`` only shows that everything works: its counts are too small for figures.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import world as worlds
from measure import Row

#: In the order of the table; a file of bench/rows each.
ROWS = (
    "listing", "commands", "start", "stop", "slow_daemons", "sub_mounts", "holders", "many", "logger", "hooks", "scale",
)  # fmt: skip

#: The options that name a file to write.
FILES = ("json", "plot", "markdown")

#: Of the caller's environment: where the packages of the tests and of pip come from.
KEPT = ("XDG_CACHE_HOME", "PIP_", "http_proxy", "https_proxy", "no_proxy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(_present())} (all)")
    parser.add_argument(
        "--quick", action="store_true", help="small counts, few rounds: does it work?"
    )
    parser.add_argument("--json", metavar="FILE", help="write machine, versions, samples and goals")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw the medians of every row")
    parser.add_argument(
        "--markdown", metavar="FILE", help="write everything that is printed there, too, for a page"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order in which contestants run")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.rows) - set(_present()):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("mounting needs root")
    if options.inside:
        measure(options)
        return
    subprocess.run([sys.executable, str(HERE / "prepare.py")], check=True)
    for option in FILES:
        if file := getattr(options, option):
            setattr(options, option, os.path.abspath(file))
            if not os.path.isdir(os.path.dirname(getattr(options, option))):
                parser.error(f"--{option}: there is no directory for {file}")
    sys.exit(_in_namespaces(options))


def _present() -> list[str]:
    return [row for row in ROWS if (HERE / f"rows/{row}.py").exists()]


def _in_namespaces(options: argparse.Namespace) -> int:
    """Run again with private mounts and processes, so that "other processes" is exact and nothing is left."""
    mark = f"bench{os.getpid()}"
    place = tempfile.mkdtemp(prefix=f"{mark}-")
    os.chmod(place, 0o755)
    words = [*options.rows, "--seed", str(options.seed), *(["--quick"] if options.quick else [])]
    for option in FILES:
        if file := getattr(options, option):
            words += [f"--{option}", file]
    command = [
        "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--propagation", "private", "--kill-child",
        # A shell as process 1, which waits for whatever ends: a zombie would be another process.
        "/bin/busybox", "sh", "-c", '"$@"; exit $?', "sh",
        sys.executable, "-B", str(HERE / "run.py"), *words, "--inside", place,
    ]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return subprocess.run(command, env={**worlds.ENVIRONMENT, **kept}, check=False).returncode
    finally:
        worlds.forget_cgroups(mark)
        shutil.rmtree(place)


def measure(options: argparse.Namespace) -> None:
    import report

    random.seed(options.seed)
    place = Path(options.inside)
    failed = []
    with worlds.World(place, place.name.partition("-")[0]) as world:
        machine = report.machine(world, quick=options.quick)
        print(report.heading(machine), flush=True)
        rows: list[Row] = []
        for name in options.rows or _present():
            try:
                for row in _rows(name, world, quick=options.quick):
                    rows.append(row)
                    print(report.row(row), flush=True)
            except Exception:  # the rows after it shall be measured all the same
                traceback.print_exc()
                failed.append(name)
            _write(options, machine, rows)  # after each: the next may take an hour, and fail
        print(report.goals(rows))
    if failed:
        sys.exit(f"these rows could not be measured: {', '.join(failed)}")


def _write(options: argparse.Namespace, machine: dict[str, Any], rows: list[Row]) -> None:
    import report

    if options.json:
        report.write_json(Path(options.json), machine, rows)
    if options.plot:
        report.write_plot(Path(options.plot), rows)
    if options.markdown:
        plot = options.plot and os.path.relpath(options.plot, os.path.dirname(options.markdown))
        Path(options.markdown).write_text(report.markdown(machine, rows, plot))


def _rows(name: str, world: worlds.World, *, quick: bool) -> Iterator[Row]:
    found: Iterator[Row] = importlib.import_module(f"rows.{name}").run(world, quick=quick)
    return found


if __name__ == "__main__":
    main()
