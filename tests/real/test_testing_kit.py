"""The test kit against the real thing: a recording tells what the real runtime tells, and a real chroot is one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import kernelview
import pytest
import roots

import chrootfw
from chrootfw import (
    Command,
    Escalation,
    Event,
    Instance,
    Mount,
    MountPoint,
    Node,
    Omit,
    Problem,
    Step,
)
from chrootfw.testing import Alive, RealChroot, Record, RecordingRuntime, real

pytestmark = pytest.mark.quick

pytest_plugins = ["pytester", "chrootfw.testing.fixtures"]

PLUGIN = ("-p", "chrootfw.testing.fixtures", "-p", "no:cacheprovider")

#: An init script that leaves a daemon, which TERM does not end; its stop ends nobody.
STUBBORN = roots.script(roots.STUBBORN, "true")


# -- plugins ------------------------------------------------------------------------------------------


@attrs.frozen
class MakeDirectory(Step):
    """A directory on the host that is bound into the root."""

    kind = "make-directory"
    path: str
    fail: bool = False

    def describe(self) -> str:
        return f"make the directory {self.path}"

    def apply(self) -> Mapping[str, Any]:
        Path(self.path).mkdir()
        if self.fail:
            raise OSError(28, "No space left on device")
        return {"source": self.path}

    def undo(self, record: Mapping[str, Any]) -> None:
        if Path(self.path).exists():
            Path(self.path).rmdir()


class SourceStep:
    """A mount whose source is made by a step, on a mount point that is missing in the disk."""

    def __init__(self, path: Path, *, fail: bool = False) -> None:
        self.step = MakeDirectory(str(path), fail)

    @chrootfw.hookimpl
    def chrootfw_mount(self) -> list[MountPoint]:
        return [MountPoint("/data/made", self.step, options=["bind"])]


class PreStart:
    """Two steps, and perhaps a problem, before the init script."""

    def __init__(self, path: Path, *, fail: bool = False, problem: bool = False) -> None:
        self.steps = [MakeDirectory(f"{path}.a"), MakeDirectory(f"{path}.b", fail)]
        self.problems = (
            [Problem("it may not be", "ask again"), Problem("look out", warning=True)]
            if problem
            else []
        )

    @chrootfw.hookimpl
    def chrootfw_pre_start(self) -> list[Problem | Step]:
        return [*self.problems, *self.steps]


class Throwaway:
    """The disk as a layer below an overlay, and something inside that layer."""

    @chrootfw.hookimpl
    def chrootfw_mount(self, instance: Instance) -> list[MountPoint | Omit]:
        assert instance.disk is not None
        layers = ["lowerdir={aux:disk}", "upperdir={aux:new}/upper", "workdir={aux:new}/work"]
        return [
            MountPoint("/", instance.disk, options=["ro"], at="aux:disk"),
            MountPoint("/srv", "tmpfs", "tmpfs", at="aux:disk"),
            MountPoint("/", "tmpfs", "tmpfs", at="aux:new", nodes=[Node("upper"), Node("work")]),
            MountPoint("/", "overlay", "overlay", layers),
            Omit("/sys"),
        ]


class Impatient:
    @chrootfw.hookimpl
    def chrootfw_kill_strategy(self) -> list[Escalation]:
        return [
            Escalation(signal.SIGINT, 0),
            Escalation(signal.SIGTERM, 0),
            Escalation(signal.SIGKILL, 5),
        ]


class ProcLast:
    """Everything before /proc, but for the root."""

    @chrootfw.hookimpl(wrapper=True)
    def chrootfw_unmount_ordering(self) -> Any:
        order = yield
        return sorted(
            order, key=lambda mount: (mount.target == "/proc") + 2 * (mount.target == "/")
        )


class LayersFirst:
    """What is in a layer before what is in the root: where mount points have to be taken back, it is asked twice."""

    @chrootfw.hookimpl(wrapper=True)
    def chrootfw_unmount_ordering(self) -> Any:
        order = yield
        return sorted(order, key=lambda mount: mount.at == "root" or mount.target == "/")


class UpsideDown:
    @chrootfw.hookimpl
    def chrootfw_unmount_ordering(self, mounts: Sequence[Mount]) -> Sequence[Mount]:
        return mounts


class Around:
    @chrootfw.hookimpl(wrapper=True)
    def chrootfw_around_stage(self, stage: str) -> Any:
        if stage == "kill":
            raise ValueError("no")
        return (yield)


class Itself:
    """A command of its own, without a counterpart in a stop."""

    @chrootfw.hookimpl
    def chrootfw_init_script(self, action: str) -> Any:
        return (
            Command(["/bin/sh", "-c", roots.DAEMON]) if action == "start" else chrootfw.NO_COMMAND
        )


# -- fidelity -----------------------------------------------------------------------------------------

Case = dict[str, Any]

CASES: dict[str, Case] = {
    "the defaults": {"init": STUBBORN},
    "a mount whose source is a step": {
        "plugins": lambda place: [SourceStep(place)],
        "init": STUBBORN,
    },
    "a source step that fails": {
        "plugins": lambda place: [SourceStep(place, fail=True)],
        "apply": True,
        "fails": True,
    },
    "steps of pre-start": {"plugins": lambda place: [PreStart(place)], "init": STUBBORN},
    "a step of pre-start that fails": {
        "plugins": lambda place: [PreStart(place, fail=True)],
        "apply": True,
        "fails": True,
    },
    "problems of pre-start": {
        "plugins": lambda place: [SourceStep(place), PreStart(place, problem=True)],
        "fails": True,
    },
    "an overlay on layers": {"plugins": lambda place: [Throwaway()], "init": STUBBORN},
    "layers taken down upside down": {
        "plugins": lambda place: [Throwaway(), UpsideDown()],
        "init": STUBBORN,
    },
    "a kill strategy": {"plugins": lambda place: [Impatient()], "init": STUBBORN},
    "an unmount ordering": {"plugins": lambda place: [ProcLast()], "init": STUBBORN},
    "a wrapper that fails in a stop": {"plugins": lambda place: [Around()], "init": STUBBORN},
    "a command without a script": {"plugins": lambda place: [Itself()], "dies": True},
    "no script": {"init_script": None, "processes": []},
    "a script that leaves nobody": {"init": roots.script("true", "true"), "processes": []},
    "… where somebody is required": {
        "init": roots.script("true", "true"),
        "processes": [],
        "params": {"require_process": True},
        "fails": True,
    },
    "an init script that fails": {
        "plugins": lambda place: [SourceStep(place), PreStart(f"{place}.p"), ProcLast()],
        "init": roots.script(f"{roots.STUBBORN}\nexit 1"),
        "fail_at": "run /etc/chrootfw/init start",
        "fails": True,
    },
    "mount points to take back beside layers": {
        "plugins": lambda place: [
            Throwaway(),
            SourceStep(place),
            PreStart(f"{place}.p"),
            LayersFirst(),
        ],
        "init": roots.script("exit 1"),
        "processes": [],
        "fail_at": "run /etc/chrootfw/init start",
        "fails": True,
    },
    "a mount that fails": {
        "plugins": lambda place: [SourceStep(place)],
        "params": {"binds": ["/nothing/there:/mnt"]},
        "fail_at": "mount bind /nothing/there",
        "fails": True,
    },
    "a mount point that a read-only root lacks": {
        "params": {"binds": ["/srv:/data"], "read_only": True},
        "fails": True,
    },
    "an init script that fails to stop": {
        "init": roots.script(roots.STUBBORN, "exit 1"),
        "fail_at_stop": "run /etc/chrootfw/init stop",
    },
    "by force": {"init": STUBBORN, "stop": {"force": True}},
    "without the script, at once": {"init": STUBBORN, "stop": {"run_script": False, "timeout": 0}},
}


def told(events: Sequence[Event]) -> list[tuple[str, str, str, str]]:
    """What an observer hears. Left out: a blamed answer, which shows the numbers of mounts, and what a script prints."""
    return [
        (event.what, event.stage, re.sub(r"answered .*: ", "answered … ", event.does), event.plugin)
        for event in events
        if event.what != "output"
    ]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_recording_tells_what_the_real_runtime_tells(
    case: Case, make_root: Callable[..., Path], run_dir: Path, config_dir: Path, tmp_path: Path
) -> None:
    disk = make_root("web1", case.get("init"))
    instance = Instance(
        "web1",
        disk=str(disk),
        params={"grace": 0.2, **case.get("params", {})},
        **({"init_script": None} if "init_script" in case else {}),
    )
    plugins = case.get("plugins", lambda place: [])(tmp_path / "made")
    processes = case.get(
        "processes", [Alive(ignores=[] if case.get("dies") else [signal.SIGINT, signal.SIGTERM])]
    )
    recording = RecordingRuntime(
        *plugins,
        root=disk,
        run_dir=str(run_dir),
        directory=str(tmp_path),
        processes=processes,
        apply_steps=case.get("apply", False),
    )
    events: list[Event] = []
    real = chrootfw.Runtime(plugins, run_dir=run_dir, config_dir=config_dir, on_event=events.append)

    if "fail_at" in case:
        recording.fail_at(case["fail_at"])
    record = recording.start(instance, check=False)
    error = None
    try:
        real.start(instance)
    except chrootfw.ChrootfwError as raised:
        error = raised
    assert told(record.events) == told(events)
    assert type(record.error) is type(error)
    assert (error is not None) == case.get("fails", False)
    assert record.undone
    if error is not None:
        if "fail_at" not in case:
            assert str(record.error) == str(error)
        return

    events.clear()
    if "fail_at_stop" in case:
        recording.fail_at(case["fail_at_stop"])
    record = recording.stop("web1", **case.get("stop", {}))
    real.stop("web1", **case.get("stop", {}))
    ours, theirs = told(record.events), told(events)
    if "fail_at_stop" in case:  # what the script printed is its own affair
        ours, theirs = [
            [line for line in lines if line[0] != "warning"] for lines in (ours, theirs)
        ]
    assert ours == theirs


def test_the_given_mounts_are_as_in_the_mount_table(
    make_root: Callable[..., Path], run_dir: Path, config_dir: Path, tmp_path: Path
) -> None:
    """Targets, types, places and parents; options as far as they were asked for."""

    class Seen:
        def __init__(self) -> None:
            self.mounts: list[list[Any]] = []

        @chrootfw.hookimpl
        def chrootfw_unmount_ordering(self, mounts: Sequence[Mount]) -> None:
            by_id = {mount.id: mount for mount in mounts}
            parents = [by_id[m.parent].target if m.parent in by_id else None for m in mounts]
            shown = [(m.at, m.target, m.fstype, m.options[0]) for m in mounts]
            # What a bound directory is on is the host's affair, and so is the directory of the disk.
            self.mounts.append(
                sorted(
                    (s[0], s[1], "" if s[2] == "ext4" or s[1] == "/" else s[2], s[3], p)
                    for s, p in zip(shown, parents, strict=True)
                )
            )

    disk = make_root("web1", STUBBORN)
    instance = Instance("web1", disk=str(disk), params={"grace": 0})
    seen = Seen(), Seen()
    recording = RecordingRuntime(
        Throwaway(), seen[0], root=disk, run_dir=str(run_dir), directory=str(tmp_path)
    )
    recording.start(instance)
    recording.stop("web1")
    real = chrootfw.Runtime([Throwaway(), seen[1]], run_dir=run_dir, config_dir=config_dir)
    real.start(instance)
    real.stop("web1")
    assert seen[0].mounts == seen[1].mounts


def test_the_root_is_the_one_that_a_real_start_would_show(
    make_root: Callable[..., Path], tmp_path: Path
) -> None:
    found: list[Any] = []

    class Look:
        @chrootfw.hookimpl
        def chrootfw_pre_start(self, root: chrootfw.Root) -> None:
            found.append((root.stat("/").st_uid, root.listdir("/data"), root.readlink("/bin/sh")))

    disk = make_root("web1")
    (disk / "data").mkdir()
    (disk / "data/file").touch()
    RecordingRuntime(Look(), root=disk, directory=str(tmp_path)).start(
        Instance("web1", disk=str(disk))
    )
    assert found == [(0, ["file"], "busybox")]


def test_nothing_is_touched(make_root: Callable[..., Path], tmp_path: Path) -> None:
    disk = make_root("web1")
    before = kernelview.mount_table(), sorted(disk.rglob("*"))
    recording = RecordingRuntime(SourceStep(tmp_path / "made"), root=disk, directory=str(tmp_path))
    recording.start(Instance("web1", disk=str(disk)))
    assert (kernelview.mount_table(), sorted(disk.rglob("*"))) == before
    assert not (tmp_path / "made").exists()
    assert isinstance(recording.stop("web1"), Record)


# -- real_chroot --------------------------------------------------------------------------------------


def test_a_real_chroot_is_a_running_instance(
    real_chroot: Callable[..., RealChroot], tmp_path: Path
) -> None:
    chroot = real_chroot(SourceStep(tmp_path / "made"), params={"grace": 1})
    assert chroot.info().state == "running"
    assert (
        chroot.run(
            ["/bin/sh", "-c", "echo $CHROOTFW_INSTANCE"], capture_output=True, text=True
        ).stdout
        == "real\n"
    )
    assert os.path.isdir(f"{chroot.root}/data/made")
    assert [event.plugin for event in chroot.events if "make the directory" in event.does][:1] == [
        "SourceStep"
    ]
    assert chroot.stop().state == "absent"
    assert not (tmp_path / "made").exists()
    assert chroot.start().state == "running"


def test_the_thread_is_back_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = (
        os.stat("/proc/thread-self/ns/mnt").st_ino,
        kernelview.mount_table(),
        os.stat("/").st_ino,
    )
    with real.Ground(str(tmp_path)) as ground:
        chroot = ground.start()
        assert os.stat("/proc/thread-self/ns/mnt").st_ino != before[0]
        assert os.path.exists(f"{chroot.root}/proc/self")
    assert ground.left == []
    assert not os.path.exists(f"{chroot.root}/proc/self")
    assert (
        os.stat("/proc/thread-self/ns/mnt").st_ino,
        kernelview.mount_table(),
        os.stat("/").st_ino,
    ) == before
    assert os.getcwd() == str(tmp_path)


def test_a_thread_that_runs_on_keeps_the_tests_thread_nowhere(tmp_path: Path) -> None:
    """A thread shares its working directory with the one that starts it, which setns(2) refuses."""
    before = os.stat("/proc/thread-self/ns/mnt").st_ino
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    try:
        with real.Ground(str(tmp_path)):
            thread.start()
        assert os.stat("/proc/thread-self/ns/mnt").st_ino == before
    finally:
        over.set()
        thread.join()


def test_what_a_start_raises_is_raised(real_chroot: Callable[..., RealChroot]) -> None:
    with pytest.raises(chrootfw.ScriptError, match="exited with status 3"):
        real_chroot(init="#!/bin/sh\nexit 3\n")
    chroot = real_chroot(name="another", init=False)
    assert chroot.info().state == "mounted"


def make_squashfs(tree: str) -> Path:
    image = Path(f"{tree}.img")
    return roots.make_image(
        image, "squashfs", lambda place: shutil.copytree(tree, place, symlinks=True)
    )


def make_ext4(tree: str) -> str:
    image = f"{tree}.img"
    with open(image, "xb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, image], check=True)
    return image


class OnMemory:
    """The disk read-only below an overlay, which keeps what is written in memory."""

    @chrootfw.hookimpl
    def chrootfw_mount(self, instance: Instance) -> list[MountPoint]:
        assert instance.disk is not None
        layers = ["lowerdir={aux:disk}", "upperdir={aux:new}/upper", "workdir={aux:new}/work"]
        return [
            MountPoint("/", instance.disk, options=["ro"], at="aux:disk"),
            MountPoint("/", "tmpfs", "tmpfs", at="aux:new", nodes=[Node("upper"), Node("work")]),
            MountPoint("/", "overlay", "overlay", layers),
        ]


@attrs.frozen
class Unpack(Step):
    """A tree from an archive."""

    kind = "unpack"
    archive: str
    directory: str

    def describe(self) -> str:
        return f"unpack {self.archive}"

    def apply(self) -> Mapping[str, Any]:
        Path(self.directory).mkdir()
        subprocess.run(["tar", "-xf", self.archive, "-C", self.directory], check=True)
        return {"source": self.directory}

    def undo(self, record: Mapping[str, Any]) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


class FromArchive:
    """A root that a step makes."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive

    @chrootfw.hookimpl
    def chrootfw_mount(self) -> list[MountPoint]:
        step = Unpack(str(self.archive), f"{self.archive}.unpacked")
        return [MountPoint("/", step, options=["bind"])]


@pytest.mark.parametrize(
    ("disk", "plugins", "fstype"),
    [
        (make_ext4, [], "ext4"),
        (make_squashfs, [OnMemory()], "overlay"),
        (True, [OnMemory()], "overlay"),
    ],
    ids=["an image", "an overlay on squashfs", "an overlay on a directory"],
)
def test_a_real_chroot_has_the_tests_disk(
    real_chroot: Callable[..., RealChroot], disk: Any, plugins: list[object], fstype: str
) -> None:
    chroot = real_chroot(*plugins, disk=disk, root={"etc/motd": "hello"}, params={"grace": 1})
    shown = chroot.run(["/bin/cat", "/etc/motd"], capture_output=True, text=True)
    assert shown.stdout == "hello"
    (top,) = [mount for mount in chroot.info().mounts if mount["target"] == "/"]
    assert top["fstype"] == fstype
    chroot.run(["/bin/touch", "/etc/mine"], check=True)
    chroot.stop()
    assert chroot.start().state == "running"


def test_a_real_chroot_has_a_root_that_a_step_makes(
    real_chroot: Callable[..., RealChroot], make_root: Callable[..., Path], tmp_path: Path
) -> None:
    subprocess.run(
        ["tar", "-cf", tmp_path / "root.tar", "-C", make_root("packed"), "."], check=True
    )
    chroot = real_chroot(FromArchive(tmp_path / "root.tar"), disk=False)
    assert (chroot.disk, chroot.info().state) == ("", "running")
    chroot.stop()
    assert not (tmp_path / "root.tar.unpacked").exists()


def test_a_disk_of_the_tests_is_used_as_it_is(
    real_chroot: Callable[..., RealChroot], make_root: Callable[..., Path]
) -> None:
    disk = make_root("mine")
    with pytest.raises(ValueError, match="etc/motd cannot be put on the disk"):
        real_chroot(disk=disk, root={"etc/motd": "hello"})
    before = sorted(disk.rglob("*"))
    chroot = real_chroot(disk=disk, params={"grace": 1})
    assert chroot.disk == str(disk)
    chroot.run(["/bin/grep", "web", "/etc/passwd"], check=True, stdout=subprocess.DEVNULL)
    chroot.stop()
    assert [p for p in sorted(disk.rglob("*")) if p not in before] == [disk / "var/calls"]


LEFT = {
    "a process": ("subprocess.Popen(['sleep', '3600'])", "process * (sleep)"),
    "a mount": (
        "subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', '/mnt'], check=True)",
        "the mount on /mnt",
    ),
    "a mount in the root": (
        "chroot.stop = lambda **_how: None",
        "the mount on */run/real/root/proc",
    ),
    "a loop device": (
        "(tmp_path / 'image').write_bytes(bytes(1 << 20)); "
        "subprocess.run(['losetup', '--find', str(tmp_path / 'image')], check=True)",
        "/dev/loop* over */image",
    ),
    "a loop device over another's image": (
        "path = tmp_path.parent / 'image'; "
        "path.write_bytes(bytes(1 << 20)); "
        "subprocess.run(['losetup', '--find', str(path)], check=True); "
        "pytest.raises(chrootfw.ChrootfwError, real_chroot, disk=path, name='broken')",
        "/dev/loop* over */image",
    ),
    "a stop that fails": (
        "chroot.stop = lambda **_: (_ for _ in ()).throw(chrootfw.ChrootfwError('it will not'))",
        "it will not",
    ),
}


@pytest.mark.parametrize(("deed", "said"), LEFT.values(), ids=LEFT)
def test_what_a_test_leaves_fails_it(pytester: pytest.Pytester, deed: str, said: str) -> None:
    pytester.makepyfile(
        f"""
        import subprocess
        import chrootfw
        import pytest

        def test_it(real_chroot, tmp_path):
            chroot = real_chroot()
            {deed}

        def test_the_next_one_is_not_blamed(real_chroot):
            real_chroot()
        """
    )
    before = _cgroups_of_real()
    result = _pytest(pytester)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["the test left something:", f"*{said}*"])
    assert _cgroups_of_real() - before == set()


def _cgroups_of_real() -> set[Path]:
    tops = {
        Path(os.fsdecode(m.target))
        for m in kernelview.mount_table().values()
        if m.fstype in ("cgroup", "cgroup2")
    }
    return {path for top in tops for path in top.glob("chrootfw/*/real@*")}


#: Lets somebody who is not root reach the interpreter and the packages, wherever they are, and becomes that one.
AS_NOBODY = """
nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
for place in $PLACES; do
    mkdir -p "$STAGE$place"
    mount --bind "$place" "$STAGE$place"
done
for place in $PLACES; do
    above=
    for part in $(echo "$place" | tr / ' '); do
        above=$above/$part
        [ ! -d "$above" ] || nobody test -x "$above" || mount -t tmpfs -o mode=0755 tmpfs "$above"
    done
    [ -d "$place" ] || { mkdir -p "$place"; mount --bind "$STAGE$place" "$place"; }
done
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory that belongs to somebody else; pytest's own are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="chrootfw-nobody-"))
    os.chown(path, 65534, 65534)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def another_users_cgroup() -> Iterator[None]:
    """The cgroup of somebody's run directory that others may not read."""
    hierarchy = kernelview.cgroup_hierarchy()
    if hierarchy is None:
        yield
        return
    home = hierarchy / "chrootfw/0:0-0"
    home.mkdir(parents=True)
    home.chmod(0o700)
    yield
    home.rmdir()


def test_an_ordinary_user_has_real_chroots_too(
    scratch: Path, tmp_path: Path, another_users_cgroup: None
) -> None:
    """By the command that the skipped tests name."""
    (scratch / "test_mine.py").write_text(
        textwrap.dedent(
            """
        import signal
        import chrootfw
        import pytest

        class Special:
            @chrootfw.hookimpl
            def chrootfw_mount(self):
                return [chrootfw.MountPoint("/data", "tmpfs", "tmpfs")]

            @chrootfw.hookimpl
            def chrootfw_kill_strategy(self):
                return [chrootfw.Escalation(signal.SIGKILL, 5)]

        def test_it(real_chroot):
            chroot = real_chroot(Special)
            assert chroot.info().state == "running"
            script = "echo x > /dev/null && echo y > /data/y && ls /sys/class/net && cat /data/y"
            assert chroot.run(["/bin/sh", "-c", script], capture_output=True, text=True).stdout.split() == ["lo", "y"]
            assert chroot.stop().state == "absent"

        def test_a_failure(real_chroot):
            with pytest.raises(chrootfw.ScriptError, match="exited with status 3"):
                real_chroot(init="#!/bin/sh\\nexit 3\\n")
        """
        )
    )
    flags = real.COMMAND.partition(" python3 ")[0].split()
    inside = [
        *flags,
        sys.executable,
        "-m",
        "pytest",
        "-q",
        *PLUGIN,
        f"--basetemp={scratch}/tests",
        str(scratch),
    ]
    places = {sys.prefix, sys.base_prefix, *_packages()}
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", AS_NOBODY, "sh", *inside],
        env={**os.environ, "PLACES": " ".join(sorted(places)), "STAGE": str(tmp_path / "stage"), "PYTHONPATH": os.pathsep.join(_packages()), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def _packages() -> list[str]:
    import chrootfw_defaults.disk

    return sorted(
        {
            str(Path(str(module.__file__)).parents[1])
            for module in (chrootfw, chrootfw_defaults.disk)
        }
    )


def _pytest(pytester: pytest.Pytester) -> pytest.RunResult:
    os.environ["PYTHONPATH"] = os.pathsep.join(_packages())  # given back by pytester
    return pytester.runpytest_subprocess(*PLUGIN)
