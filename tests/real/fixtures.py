"""What tests on the real kernel share: they mount, run and kill, as root, in a mount namespace of their own.

Every test is watched by ``leaks``: a mount, loop device, cgroup, process or directory of an instance that is there
afterwards fails the test that left it, and is cleared away.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import driving
import kernelview
import leaks as leaks_module
import prepare
import pytest
import roots

import chrootfw
from chrootfw.linux import syscalls

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture(scope="session")
def tracking(request: pytest.FixtureRequest) -> str:
    """How the product must find own processes in this run: ``cgroup`` or ``root``."""
    return str(request.config.getoption("--tracking"))


@pytest.fixture(scope="session", autouse=True)
def private_namespace(request: pytest.FixtureRequest, tracking: str) -> None:
    """Move this process, and so all that it starts, to a mount namespace of which the machine hears nothing.

    What is started also finds the signals as in the foreground.
    """
    assert os.geteuid() == 0, "these tests mount file systems and must run as root"
    os.environ[kernelview.WORKER] = str(os.getpid())
    prepare.install(prepare.QUICK_TOOLS if request.config.getoption("--quick") else prepare.TOOLS)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if (
            signal.getsignal(signum) == signal.SIG_IGN
        ):  # a job in the background; commands would inherit it
            signal.signal(signum, signal.default_int_handler)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    _mount("--make-rprivate", "/")
    if tracking == "root":
        while hierarchy := kernelview.cgroup_hierarchy():
            subprocess.run(["umount", str(hierarchy)], check=True)


@pytest.fixture
def hierarchy() -> Path:
    """Where cgroup v2 is mounted. A test that takes it is left out where own processes are found by their root."""
    found = kernelview.cgroup_hierarchy()
    assert found is not None, "no cgroup v2 hierarchy is mounted"
    return found


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> leaks_module.Ground:
    return leaks_module.Ground(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def leaks(
    request: pytest.FixtureRequest,
    private_namespace: None,
    ground: leaks_module.Ground,
    tmp_path: Path,
) -> Iterator[None]:
    """Fail the test that leaves something, and clear it away. A test that failed already is only cleared away."""
    before = ground.snapshot()
    yield
    after = ground.snapshot()
    differences = after.differences(before)
    if differences:
        after.clear(before)
    ground.forget_run_dirs()
    failed = request.node.stash.get(_failed, False)
    if not failed and not differences and not kernelview.mounts_below(tmp_path):
        shutil.rmtree(tmp_path)  # the roots and images of hundreds of tests would fill the disk
    if differences and not failed:
        pytest.fail("the test left something:\n  " + "\n  ".join(differences), pytrace=False)


@pytest.fixture
def run_dir(tmp_path: Path, ground: leaks_module.Ground) -> Path:
    path = tmp_path / "run"
    path.mkdir(mode=0o755)
    ground.know_run_dir(path)
    return path


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    path = tmp_path / "definitions"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture
def runtime(run_dir: Path, config_dir: Path) -> chrootfw.Runtime:
    return chrootfw.Runtime(run_dir=str(run_dir), config_dir=str(config_dir))


@pytest.fixture
def cli(run_dir: Path, config_dir: Path, ground: leaks_module.Ground) -> Iterator[driving.Cli]:
    cli = driving.Cli(run_dir, config_dir, ground)
    yield cli
    cli.end_all()


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[..., Path]:
    """A factory of small root file systems: ``make_root(name, init)`` is the directory of one."""

    def make(name: str = "root", init: str | bytes | None = None) -> Path:
        return roots.make_root(tmp_path / f"{name}.root", init)

    return make


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., Path]:
    """A factory of image files: ``image(fstype, size, init=…)`` holds a small root file system."""

    def make(
        fstype: str = "ext4",
        size: int | None = None,
        *,
        name: str = "disk",
        init: str | None = None,
    ) -> Path:
        return roots.make_image(
            tmp_path / f"{name}.img", fstype, lambda place: roots.make_root(place, init), size
        )

    return make


@pytest.fixture
def make_chroot(
    cli: driving.Cli, runtime: chrootfw.Runtime, make_root: Callable[..., Path]
) -> Iterator[Callable[..., driving.Chroot]]:
    """A factory of defined instances; those that a test leaves running are stopped by force after it."""
    made: list[driving.Chroot] = []

    def make(
        name: str = "web1",
        *,
        disk: Path | None = None,
        init: str | bytes | None = None,
        **params: Any,
    ) -> driving.Chroot:
        instance = driving.Chroot(name, disk or make_root(name, init), cli, runtime, params)
        made.append(instance)
        return instance

    yield make
    for instance in made:
        with contextlib.suppress(chrootfw.ChrootfwError):  # leaks tells what that leaves
            runtime.stop(instance.name, force=True)


@pytest.fixture
def web1(make_chroot: Callable[..., driving.Chroot]) -> driving.Chroot:
    """An instance on a directory, with one daemon, defined and not started."""
    return make_chroot()


@pytest.fixture
def outside() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A factory of processes outside all instances; they are ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*argv: str, **how: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            argv, text=True, **{"stdout": subprocess.DEVNULL, "stdin": subprocess.DEVNULL, **how}
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def mounted() -> Iterator[Callable[..., Path]]:
    """A factory of the tests' own mounts: ``mounted(path, *arguments of mount(8))``."""
    made: list[Path] = []

    def mount(path: Path, *arguments: str) -> Path:
        path.mkdir(exist_ok=True)
        _mount(*arguments, str(path))
        made.append(path)
        return path

    yield mount
    for path in reversed(made):
        if kernelview.mount_on(path):  # os.path.ismount sees no bind of the same file system
            subprocess.run(["umount", "--recursive", str(path)], check=True)


@pytest.fixture
def attach(ground: leaks_module.Ground) -> Iterator[Callable[[Path], str]]:
    """A factory of block devices: a loop device over a file, which the test itself owns."""
    devices: list[str] = []

    def make(file: Path) -> str:
        device = subprocess.run(
            ["losetup", "--find", "--show", str(file)], check=True, capture_output=True, text=True
        ).stdout.strip()
        devices.append(device)
        return device

    yield make
    for device in devices:
        if (
            kernelview.loop_devices().get(device, "").startswith(f"{ground.files}/")
        ):  # not detached by the test
            subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture(scope="session")
def debian_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a whole Debian system, to be copied."""
    path = tmp_path_factory.mktemp("debian")
    roots.extract(prepare.debian_system(), path)
    yield path
    shutil.rmtree(path)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
