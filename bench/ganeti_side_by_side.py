"""Ganeti's own chroot class, with the one line repaired that keeps it from stopping, beside chrootfw's: in one run.

``sudo python bench/ganeti_side_by_side.py`` prints Markdown tables: each figure in milliseconds as stock / chrootfw, and the
ratio. It runs in a pid and mount namespace of its own, so that "other processes" is exact. Needs Debian's psmisc and
busybox-static; Ganeti's modules are downloaded and not installed. ``--quick`` leaves out what takes minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[0:0] = [str(HERE.parent / "tests/real"), str(HERE.parent / "tests/ganeti")]

import ganeti_packages
import roots

#: Three daemons, as many users of /proc to find.
START = "for i in 1 2 3; do sleep 100000 </dev/null >/dev/null 2>&1 & echo $! > /run/d$i; done"
STOP = "kill $(cat /run/d1 /run/d2 /run/d3)"
SCRIPTS = {
    "a clean daemon": (START, STOP),
    "a daemon that needs 0.3 s": (
        "sh -c 'trap \"sleep 0.3; exit 0\" TERM; while :; do sleep 0.01; done' </dev/null >/dev/null 2>&1 &",
        ":",
    ),
    "a daemon that ignores TERM": (
        "sh -c 'trap \"\" TERM; sleep 100000' </dev/null >/dev/null 2>&1 &",
        ":",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="no 2,000 others, at most 100 instances, no stubborn daemon",
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        command = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--propagation",
            "private",
            "--kill-child",
        ]
        sys.exit(subprocess.call([*command, sys.executable, *sys.argv, "--inside"]))
    ganeti_packages.use()
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        os.chmod(place, 0o755)
        bench = Bench(Path(place), quick=options.quick)
        try:
            bench.run()
        finally:
            bench.end_others()


class Bench:
    """Both classes, their instances, and the other processes."""

    def __init__(self, place: Path, *, quick: bool) -> None:
        import stock

        from chrootfw_ganeti.hypervisor import ChrootHypervisor, warm_up

        warm_up()  # as noded does before it forks

        class Ours(ChrootHypervisor):
            run_dir = str(place / "run")
            config_dir = str(place / "definitions")

        (place / "stock").mkdir()
        self.place = place
        self.quick = quick
        self.classes: dict[str, Any] = {"stock": stock.repaired(place / "stock"), "chrootfw": Ours}
        self.others: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        print(
            f"Linux {os.uname().release}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs; milliseconds, medians"
        )
        self.image("plain", START, STOP)
        counts = (1, 10, 100) if self.quick else (1, 10, 100, 300)
        print(
            "\n| Instances | Others | What | stock | chrootfw | stock / chrootfw |\n|---|---|---|---|---|---|"
        )
        for others in (0,) if self.quick else (0, 2000):
            self.have_others(others)
            for count in counts:
                found = {kind: self.life(kind, count) for kind in self.classes}
                for what, stocks in found["stock"].items():
                    ours = found["chrootfw"][what]
                    print(
                        f"| {count} | {others} | {what} | {stocks:.1f} | {ours:.1f} | {stocks / ours:.1f} |",
                        flush=True,
                    )
        self.have_others(0)
        print(
            "\n| Shutdown by Ganeti's backend, 120 s | stock | chrootfw | stock / chrootfw |\n|---|---|---|---|"
        )
        for what, (start, stop) in SCRIPTS.items():
            if self.quick and "ignores" in what:
                continue
            self.image(what, start, stop)
            stocks, ours = (
                self.shutdown(kind, what, 1 if "ignores" in what else 5) for kind in self.classes
            )
            print(f"| {what} | {stocks:.1f} | {ours:.1f} | {stocks / ours:.1f} |", flush=True)

    # -- the world ----------------------------------------------------------------------------------

    def image(self, what: str, start: str, stop: str) -> None:
        """The image from which those of the instances are copied."""

        def fill(place: Path) -> None:
            roots.make_root(place)
            os.mknod(
                place / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3)
            )  # the stock class mounts no /dev
            roots.write_init(place, roots.script(start, stop), name="ganeti-chroot")

        roots.make_image(self.template(what), "ext4", fill, 8 << 20)

    def template(self, what: str) -> Path:
        return self.place / f"{what.replace(' ', '-')}.img"

    def instance(self, number: int, what: str = "plain") -> Any:
        from ganeti import objects

        name = f"i{number}.example.com"
        disk = self.place / f"{name}.disk"
        if not disk.exists():
            shutil.copyfile(self.template(what), disk)
        hvparams = {"init_script": "/ganeti-chroot", "extra_config": "resolv_conf:off;hosts:off"}
        beparams = {"vcpus": 1, "maxmem": 64, "minmem": 64}
        return objects.Instance(
            name=name, hypervisor="chroot", hvparams=hvparams, beparams=beparams, disks_info=[]
        )

    def devices(self, instance: Any) -> list[tuple[None, str, None]]:
        return [(None, str(self.place / f"{instance.name}.disk"), None)]

    def have_others(self, count: int) -> None:
        self.end_others()
        if count:
            loop = f"i=0; while [ $i -lt {count} ]; do sleep 100000 & i=$((i+1)); done; echo ready; wait"
            process = subprocess.Popen(
                ["/bin/busybox", "sh", "-c", loop], stdout=subprocess.PIPE, start_new_session=True
            )
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            self.others.append(process)

    def end_others(self) -> None:
        for process in self.others:
            os.killpg(process.pid, 9)
            process.wait()
        self.others.clear()

    # -- the figures --------------------------------------------------------------------------------

    def life(self, kind: str, count: int) -> dict[str, float]:
        """Medians over the instances of each step; the two lists once where one takes seconds."""
        hyper = self.classes[kind]
        instances = [self.instance(number) for number in range(count)]
        sample = instances[: self.sample]
        start = self.median(
            [lambda i=i: hyper().StartInstance(i, self.devices(i), False) for i in instances]
        )
        listing = self.repeated(lambda: len(hyper().ListInstances()), count)
        infos = self.repeated(lambda: len(hyper().GetAllInstancesInfo()), count)
        stops, cleanups = [], []
        for instance in sample:
            stops.append(self.timed(lambda i=instance: hyper().StopInstance(i)))
            while hyper().GetInstanceInfo(instance.name):
                time.sleep(0.001)
            cleanups.append(self.timed(lambda i=instance: hyper().CleanupInstance(i.name)))
        self.clear(kind, instances[self.sample :])
        for disk in self.place.glob("*.disk"):
            disk.unlink()
        stop, cleanup = statistics.median(stops), statistics.median(cleanups)
        return {
            "StartInstance": start,
            "ListInstances": listing,
            "GetAllInstancesInfo": infos,
            "StopInstance": stop,
            "CleanupInstance": cleanup,
            "StopInstance and CleanupInstance": stop + cleanup,
        }

    def clear(self, kind: str, instances: list[Any]) -> None:
        """End those that were not measured, and reap: this is pid 1 of its namespace, and a zombie were another process."""
        if kind == "stock":
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if os.readlink(process / "root").startswith(f"{self.place}/stock/"):
                        os.kill(int(process.name), signal.SIGKILL)
            for instance in instances:
                while subprocess.call(
                    ["umount", f"{self.place}/stock/{instance.name}"], stderr=subprocess.DEVNULL
                ):
                    time.sleep(0.001)
        else:
            for instance in instances:
                self.classes[kind]().StopInstance(instance, force=True)
        others = {process.pid for process in self.others}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z" and int(
                    process.name
                ) not in others:
                    os.waitpid(int(process.name), 0)

    sample = 20

    def shutdown(self, kind: str, what: str, times: int) -> float:
        from ganeti import backend, hypervisor

        hypervisor._HYPERVISOR_MAP["chroot"] = hyper = self.classes[kind]
        taken = []
        for number in range(times):
            instance = self.instance(number, what)
            hyper().StartInstance(instance, self.devices(instance), False)
            taken.append(
                self.timed(
                    lambda i=instance: backend.InstanceShutdown(i, 120, [], store_reason=False)
                )
            )
            assert hyper().GetInstanceInfo(instance.name) is None
            Path(self.devices(instance)[0][1]).unlink()
        return statistics.median(taken)

    def median(self, calls: list[Callable[[], object]]) -> float:
        return statistics.median(self.timed(call) for call in calls)

    def repeated(self, call: Callable[[], int], count: int) -> float:
        taken: list[float] = []
        while len(taken) < 7 and sum(taken) < 2000:
            taken.append(self.timed(lambda: self.checked(call(), count)))
        return statistics.median(taken)

    @staticmethod
    def checked(got: int, wanted: int) -> None:
        assert got == wanted, f"{got} of {wanted} instances are listed"

    @staticmethod
    def timed(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
