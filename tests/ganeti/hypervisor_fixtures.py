"""What the tests of the class share: Ganeti's real modules, real mounts, and Ganeti's own class beside ours.

Imported with ``*`` by the modules that need it; each test is watched by ``leaks`` as those of tests/real are.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path[0:0] = [
    str(Path(__file__).resolve().parent),
    str(Path(__file__).resolve().parent.parent / "real"),
]

import ganeti_packages
import kernelview
import roots
import stock as stock_module
from fixtures import *  # noqa: F403

#: Where Ganeti's operating systems have their script.
SCRIPT = "/ganeti-chroot"

#: A daemon for an image that has no /dev but /dev/null.
DAEMON = "sleep 3600 </dev/null >/dev/null 2>&1 & echo $! > /run/daemon"
END = "kill $(cat /run/daemon)"
STUBBORN = "sh -c \"trap '' TERM; sleep 3600\" </dev/null >/dev/null 2>&1 & echo $! > /run/daemon"

#: The disks, in the shape in which Ganeti hands them to its hypervisors.
Devices = list[tuple[None, str, None]]


@pytest.fixture(scope="session")
def ganeti() -> Any:
    """Ganeti's modules, by name."""
    if reason := ganeti_packages.why_not():
        pytest.skip(reason)
    ganeti_packages.use()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Debian 12's libraries
        from ganeti import backend, constants, errors, hypervisor, objects
        from ganeti.hypervisor import hv_base, hv_chroot
    return SimpleNamespace(
        backend=backend, constants=constants, errors=errors, hypervisor=hypervisor, objects=objects, hv_base=hv_base,
        hv_chroot=hv_chroot,
    )  # fmt: skip


@pytest.fixture
def hyper(ganeti: Any, run_dir: Path, config_dir: Path) -> Any:
    """Our class as a node would have it, on the test's own directories. Made anew for each call, as Ganeti does."""
    from chrootfw_ganeti.hypervisor import ChrootHypervisor

    class Here(ChrootHypervisor):
        pass

    Here.run_dir = str(run_dir)
    Here.config_dir = str(config_dir)
    Here.stock_dir = str(run_dir.parent / "ganetis-own")
    return Here


@pytest.fixture
def stocks(ganeti: Any, tmp_path: Path) -> Iterator[Any]:
    """Ganeti's own class: ``released`` and ``repaired``; what it leaves mounted is taken down."""
    place = tmp_path / "stock"
    place.mkdir()
    yield SimpleNamespace(
        place=place, released=stock_module.as_released(place), repaired=stock_module.repaired(place)
    )
    for root in sorted(place.iterdir()):
        while kernelview.mount_on(root):
            subprocess.run(
                ["fuser", "-k", "-KILL", "-m", str(root)], check=False, capture_output=True
            )
            subprocess.run(["umount", "--recursive", str(root)], check=True)


@pytest.fixture
def make_instance(
    ganeti: Any, tmp_path: Path, hyper: Any
) -> Iterator[Callable[..., tuple[Any, Devices]]]:
    """A factory: an ``objects.Instance`` and its block devices; ours are stopped by force after the test."""
    made: list[str] = []

    def make(
        name: str = "web1.example.com", *, start: str = DAEMON, stop: str = END, **hvparams: Any
    ) -> tuple[Any, Devices]:
        def fill(place: Path) -> None:
            roots.make_root(place)
            subprocess.run(
                ["mknod", "-m", "666", str(place / "dev/null"), "c", "1", "3"], check=True
            )
            roots.write_init(place, roots.script(start, stop), name=SCRIPT[1:])

        disk = roots.make_image(tmp_path / f"{name}.img", "ext4", fill, 8 << 20)
        made.append(name)
        instance = ganeti.objects.Instance(
            name=name,
            hypervisor="chroot",
            hvparams={"init_script": SCRIPT, **hvparams},
            beparams={"vcpus": 3, "maxmem": 128, "minmem": 64},
            disks_info=[],
        )
        return instance, [(None, str(disk), None)]

    yield make
    for name in made:
        hyper().StopInstance(None, name=name, force=True)


def calls(hyper: Any, name: str) -> list[str]:
    """With what the init script of a started instance was called, in order."""
    return (Path(hyper.run_dir) / name / "root/var/calls").read_text().split()


def state_of(hyper: Any, name: str) -> int | None:
    """The state that Ganeti sees."""
    info = hyper().GetInstanceInfo(name)
    return None if info is None else info[4]
