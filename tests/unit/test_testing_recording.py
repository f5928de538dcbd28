"""The recording runtime: what it tells, and a failure at every step. It needs no root; see the last test."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import attrs
import pytest

import chrootfw
import chrootfw_defaults.disk
from chrootfw import Escalation, Instance, MountPoint, Omit, Parameter, Problem, Step, hookimpl
from chrootfw.lifecycle import kill
from chrootfw.testing import Alive, RecordingRuntime, Sent, fake_kernel, kernel_view

WEB1 = Instance("web1", disk="/srv/web1.img")


@attrs.frozen
class Note(Step):
    """Writes into a list of the test's."""

    kind = "note"
    text: str
    fails: str = ""
    notes = []

    def describe(self):
        return f"note {self.text}"

    def apply(self):
        self.notes.append(f"apply {self.text}")
        if self.fails == "apply":
            raise OSError(5, "Input/output error")
        return {"source": "/tmp"}

    def undo(self, record):
        self.notes.append(f"undo {self.text}")
        if self.fails == "undo":
            raise OSError(5, "Input/output error")


class Notes:
    def __init__(self, *steps, problems=()):
        self.steps = steps
        self.problems = problems

    @hookimpl
    def chrootfw_mount(self):
        return [MountPoint("/data", Note("source"), options=["bind"]), Omit("/sys")]

    @hookimpl
    def chrootfw_pre_start(self):
        return [*self.problems, *self.steps]


@pytest.fixture
def record(tmp_path):
    """A factory of recording runtimes in a directory of the test's."""
    Note.notes.clear()
    return lambda *plugins, **how: RecordingRuntime(*plugins, directory=str(tmp_path), **how)


def test_a_start_and_a_stop_step_by_step(record):
    runtime = record(Notes(Note("a"), Note("b")))
    started = runtime.start(WEB1)
    assert [(step.stage, step.does.split(" (")[0], step.undo) for step in started.steps] == [
        ("mount", "mount /srv/web1.img on /", "unmount /run/chrootfw/web1/root"),
        ("mount", "note source", "undo note"),
        ("mount", "mount bind the result of note on /data", "unmount /run/chrootfw/web1/root/data"),
        ("mount", "mount proc on /proc", "unmount /run/chrootfw/web1/root/proc"),
        ("mount", "mount tmpfs on /dev", "unmount /run/chrootfw/web1/root/dev"),
        ("mount", "mount tmpfs on /run", "unmount /run/chrootfw/web1/root/run"),
        ("mount", "mount devpts on /dev/pts", "unmount /run/chrootfw/web1/root/dev/pts"),
        ("mount", "mount tmpfs on /dev/shm", "unmount /run/chrootfw/web1/root/dev/shm"),
        ("mount", "attach the tree of 7 mounts on /run/chrootfw/web1/root", ""),
        ("pre-start", "check the root", ""),
        ("pre-start", "note a", "undo note"),
        ("pre-start", "note b", "undo note"),
        ("init-start", "run /etc/chrootfw/init start", "SIGKILL to the own processes"),
    ]
    assert {step.plugin for step in started.steps if "note" in step.does} == {"Notes"}
    assert started.undo == ()
    assert started.failed is None
    assert started.warnings == ("made the mount point /data in the root: it was missing",)
    stopped = runtime.stop("web1")
    assert [step.does for step in stopped.steps][:4] == [
        "run /etc/chrootfw/init stop (at most 60 s)",
        "SIGTERM to the own processes, then wait at most 10 s",
        "undo note",
        "undo note",
    ]
    assert [step.does for step in stopped.steps][-2:] == ["undo note", "remove /run/chrootfw/web1"]
    assert {step.undo for step in stopped.steps} == {""}
    assert stopped.signals == (Sent(signal.SIGTERM, 4242),)
    assert Note.notes == [], "nothing is applied"
    assert runtime.stop("web1").steps == (), "nothing is started any more"


def test_each_step_fails_in_turn_and_all_is_taken_back(record):
    runtime = record(Notes(Note("a")))
    expected = [step.does for step in runtime.start(WEB1).steps]
    runtime.stop(WEB1)
    records = list(runtime.each_failure(WEB1))
    assert [failed.failed.does for failed in records] == expected
    for number, failed in enumerate(records):
        assert [step.does for step in failed.steps] == expected[:number]
        assert failed.undone, failed.describe()
        assert "injected failure" in str(failed.error)
        # What was attached is unmounted, what was applied is undone, the last first.
        undone = [step.does for step in failed.undo]
        attached = any(step.does.startswith("attach") for step in failed.steps)
        wanted = [
            step.undo
            for step in failed.steps
            if step.undo and (attached or "unmount" not in step.undo)
        ]
        # A step that fails may have done half of it: it is undone as well.
        extra = {"note source": ["undo note"], "note a": ["undo note"]}.get(failed.failed.does, [])
        extra += ["SIGKILL to the own processes"] if failed.failed.stage == "init-start" else []
        assert sorted(undone) == sorted([*wanted, *extra, "remove /run/chrootfw/web1"])
    assert type(records[0].error) is chrootfw.StepError
    assert type(records[-1].error) is chrootfw.ScriptError
    assert "plugin Notes" in str(records[1].error), "a Step's failure has a name"


def test_a_failure_by_words(record):
    runtime = record()
    runtime.fail_at("tmpfs on /dev/shm")
    failed = runtime.start(WEB1, check=False)
    assert failed.failed.does.startswith("mount tmpfs on /dev/shm")
    with pytest.raises(chrootfw.StepError, match="injected"):
        runtime.fail_at(1)
        runtime.start(WEB1)
    assert runtime.start(WEB1).error is None, "only the next verb fails"


@pytest.mark.parametrize("place", [99, 0, "no such step"])
def test_a_failure_at_no_step_is_a_mistake(record, place):
    runtime = record()
    runtime.fail_at(place)
    with pytest.raises(AssertionError, match=r"came to no step (?s:.*)check the root"):
        runtime.start(WEB1)


def test_what_an_undo_leaves_is_told(record):
    runtime = record(Notes(Note("a"), Note("b", "undo")), apply_steps=True)
    runtime.fail_at("run /etc/chrootfw/init")
    failed = runtime.start(WEB1, check=False)
    assert not failed.undone
    assert failed.left == ("the step note {'text': 'b', 'fails': 'undo'} of plugin Notes",)
    assert "could not be undone" in str(failed.error)
    assert "left: the step note" in failed.describe()


def test_steps_are_applied_and_undone_when_that_is_asked_for(record):
    runtime = record(Notes(Note("a"), Note("b")), apply_steps=True)
    runtime.start(WEB1)
    runtime.stop("web1")
    assert Note.notes == ["apply source", "apply a", "apply b", "undo b", "undo a", "undo source"]


def test_nothing_that_was_applied_is_there_at_the_next_failure(record):
    present = []
    for failed in record(Notes(Note("a")), apply_steps=True).each_failure(WEB1):
        assert not failed.left
        present.append(Note.notes.count("apply a") <= Note.notes.count("undo a"))
    assert all(present)
    assert Note.notes.count("apply a") == 2, "in the whole start, and in the one whose script fails"


def test_a_step_that_fails_by_itself(record):
    with pytest.raises(chrootfw.StepError, match="plugin Notes .*: cannot note b: OSError"):
        record(Notes(Note("a"), Note("b", "apply")), apply_steps=True).start(WEB1)
    assert Note.notes == ["apply source", "apply a", "apply b", "undo b", "undo a", "undo source"]


def test_a_step_whose_undo_fails(record):
    runtime = record(Notes(Note("a", "undo")), apply_steps=True)
    runtime.start(WEB1)
    with pytest.raises(chrootfw.StepError, match="could not be undone"):
        runtime.stop("web1")


def test_what_the_core_refuses_is_raised(record):
    with pytest.raises(chrootfw.PreStartError, match="it may not be"):
        record(Notes(problems=[Problem("it may not be")])).start(WEB1)
    with pytest.raises(chrootfw.PluginError, match="plugin Notes.*expected Problem or Step"):
        record(Notes("x")).start(WEB1)
    with pytest.raises(chrootfw.InputError, match="did you mean 'grace'"):
        record().start(Instance("web1", disk="/x", params={"garce": 1}))
    with pytest.raises(chrootfw.PlanError, match="web1 has no disk"):
        record().start(Instance("web1"))
    with pytest.raises(chrootfw.TransitionError, match="already running"):
        runtime = record()
        runtime.start(WEB1)
        runtime.start(WEB1)
    with pytest.raises(chrootfw.StepError, match="not for an instance's mounts"):
        record().start(Instance("web1", disk="/x", params={"mount_options": ["shared"]}))
    with pytest.raises(
        chrootfw.StepError, match="/data does not exist in the root, and the root is read-only"
    ):
        record(Notes()).start(Instance("web1", disk="/x", params={"read_only": True}))
    with pytest.raises(chrootfw.StepError, match="parameters must be JSON"):
        record(Strange).start(Instance("web1", disk="/x", params={"strange": {"a": {1}}}))


class Strange:
    @hookimpl
    def chrootfw_parameters(self):
        return [Parameter("strange", dict)]


# -- the root -------------------------------------------------------------------------------------------


class Look:
    def __init__(self, look):
        self.look = look

    @hookimpl
    def chrootfw_pre_start(self, root):
        self.seen = self.look(root)


def test_the_given_files_are_over_a_root_that_is_fit(record):
    look = Look(
        lambda root: (
            root.stat("/etc/motd").st_size,
            root.stat("/opt/run").st_mode & 0o777,
            root.listdir("/opt"),
        )
    )
    record(look, root={"etc/motd": "hello", "/opt/run": b"#!/bin/sh\n", "opt/x/y": ""}).start(WEB1)
    assert look.seen == (5, 0o755, ["run", "x"])


def test_a_file_that_is_not_there(record):
    with pytest.raises(
        chrootfw.PreStartError, match="init script /etc/chrootfw/init does not exist"
    ):
        record(root={"etc/chrootfw/init": None}).start(WEB1)


def test_a_directory_is_only_read(record, tmp_path):
    (tmp_path / "given/etc").mkdir(parents=True)
    (tmp_path / "given/etc/motd").write_text("hello")
    (tmp_path / "given").chmod(0o755)
    before = sorted((tmp_path / "given").rglob("*"))
    look = Look(lambda root: root.listdir("/"))
    recorded = record(look, root=tmp_path / "given").start(
        Instance("web1", disk="/x", init_script=None), check=False
    )
    assert look.seen == ["etc"]
    assert "made the mount point /proc in the root: it was missing" in recorded.warnings
    assert sorted((tmp_path / "given").rglob("*")) == before


def test_what_the_user_owns_belongs_to_root_inside(record):
    look = Look(
        lambda root: (
            root.stat("/").st_uid,
            root.stat("/etc").st_gid,
            root.stat("/bin/sh").st_size > 0,
        )
    )
    record(look).start(WEB1)
    assert look.seen == (0, 0, True)


def test_all_else_of_a_status_is_the_files_own(record, tmp_path):
    def differences(root):
        shown, own = root.stat("/etc/motd"), os.stat(tmp_path / "etc/motd")
        names = [
            name for name in dir(own) if name.startswith("st_") and name not in ("st_uid", "st_gid")
        ]
        return (shown.st_uid, shown.st_gid), [
            name for name in names if getattr(shown, name) != getattr(own, name)
        ]

    (tmp_path / "etc").mkdir(mode=0o755)
    (tmp_path / "etc/motd").write_text("hello")
    look = Look(differences)
    record(look, root=tmp_path).start(Instance("web1", disk="/x", init_script=None), check=False)
    assert look.seen == ((0, 0), [])


def test_a_mount_point_that_was_missing_is_there_for_pre_start(record):
    look = Look(lambda root: root.exists("/data"))
    record(look, Notes()).start(WEB1)
    assert look.seen


# -- processes ------------------------------------------------------------------------------------------


class Gently:
    @hookimpl
    def chrootfw_kill_strategy(self, force):
        return (
            None
            if force
            else [
                Escalation(signal.SIGINT, 30),
                Escalation(signal.SIGTERM, 5),
                Escalation(signal.SIGKILL, 2),
            ]
        )


@pytest.mark.parametrize(
    ("processes", "how", "signals", "seconds"),
    [
        ([Alive(7)], {}, ["INT 7"], 0),
        ([Alive(7, takes=3)], {}, ["INT 7"], 3),
        ([Alive(7, takes=33)], {}, ["INT 7", "TERM 7"], 33),
        ([Alive(7, takes=40)], {}, ["INT 7", "TERM 7", "KILL 7"], 35),
        ([Alive(7, ignores=[signal.SIGINT]), Alive(8)], {}, ["INT 7", "INT 8", "TERM 7"], 30),
        (
            [Alive(7, ignores=[signal.SIGINT, signal.SIGTERM])],
            {},
            ["INT 7", "TERM 7", "KILL 7"],
            35,
        ),
        ([Alive(7)], {"force": True}, ["KILL 7"], 0),
        ([], {}, [], 0),
    ],
)
def test_signals_are_sent_to_who_is_left(record, processes, how, signals, seconds):
    runtime = record(Gently(), processes=processes)
    runtime.start(WEB1)
    stopped = runtime.stop("web1", **how)
    assert [
        f"{signal.Signals(sent.signal).name[3:]} {sent.pid}" for sent in stopped.signals
    ] == signals
    assert stopped.seconds == seconds


def test_holders_are_signalled_when_that_is_asked_for(record):
    runtime = record(processes=[Alive(7), Alive(9, why="cwd", takes=1)])
    runtime.start(WEB1)
    assert runtime.stop("web1", kill_holders=True).signals == (
        Sent(signal.SIGTERM, 7),
        Sent(signal.SIGTERM, 9),
    )


def test_what_no_signal_ends(record):
    runtime = record(processes=[Alive(7, "stuck", ignores=[signal.SIGTERM, signal.SIGKILL])])
    runtime.start(WEB1)
    with pytest.raises(chrootfw.SurvivorError, match="stuck"):
        runtime.stop("web1")
    runtime = record(processes=[Alive(7, "stuck", ignores=[signal.SIGKILL])])
    runtime.fail_at("init start")
    assert runtime.start(WEB1, check=False).left[0] == "pid 7 (stuck)"


def test_a_busy_mount(record):
    runtime = record(processes=[Alive(7), Alive(9, "shell", why="cwd")])
    runtime.start(WEB1)
    runtime.fail_at("unmount /run/chrootfw/web1/root/proc")
    with pytest.raises(chrootfw.HeldError, match="root/proc, .*web1/root is busy") as caught:
        runtime.stop("web1")
    assert [holder.pid for holder in caught.value.holders] == [9]
    with pytest.raises(chrootfw.HeldError, match="held: /run/chrootfw/web1/root is busy"):
        runtime.stop("web1")
    assert runtime.state("web1") == "held"
    runtime.end_process(9)
    assert [step.does for step in runtime.cleanup("web1").steps] == [
        "unmount /run/chrootfw/web1/root",
        "remove /run/chrootfw/web1",
    ]
    assert runtime.state("web1") == "absent"


def test_nothing_of_the_recordings_own_directory_is_shown(record, tmp_path):
    runtime = record(Notes(Note("a")), processes=[Alive(7), Alive(9, "shell", why="cwd")])
    shown = [runtime.start(WEB1), runtime.stop("web1", check=False)]
    for each in shown:
        assert str(tmp_path) not in f"{each.describe()} {each.error} {each.warnings}"
        assert not any(str(tmp_path) in event.does + event.error for event in each.events)
    assert isinstance(shown[1].error, chrootfw.HeldError)


def test_a_reboot_keeps_the_root_and_ends_the_processes(record):
    runtime = record(Notes(Note("a")), processes=[Alive(7, takes=2)])
    runtime.start(WEB1)
    rebooted = runtime.reboot("web1")
    assert list(dict.fromkeys(step.stage for step in rebooted.steps))[:2] == ["init-stop", "kill"]
    assert "unmount /run/chrootfw/web1/root" not in [step.does for step in rebooted.steps]
    assert rebooted.signals == (Sent(signal.SIGTERM, 7),)
    assert rebooted.seconds == 2
    assert rebooted.steps[-1].stage == "init-start"
    assert runtime.state("web1") == "running"
    with pytest.raises(chrootfw.TransitionError, match="running"):
        runtime.cleanup("web1")


def test_a_call_that_the_fake_kernel_does_not_have_is_refused(record, monkeypatch):
    """It would reach the machine."""
    monkeypatch.delitem(fake_kernel._FAKES, "umount.unmount")
    runtime = record()
    runtime.start(WEB1)
    with pytest.raises(AssertionError, match=r"umount\.unmount"):
        runtime.stop("web1")


def test_another_runtime_beside_a_recording_sees_the_real_kernel(record):
    """In the hooks of a recording, and in other threads."""
    seen = []

    class Looks:
        @hookimpl
        def chrootfw_pre_start(self):
            with kernel_view.show(None):
                seen.append(kill.procfs.self_and_ancestors())
            thread = threading.Thread(target=lambda: seen.append(kill.procfs.self_and_ancestors()))
            thread.start()
            thread.join()

    record(Looks()).start(WEB1)
    assert [os.getpid() in pids for pids in seen] == [True, True]
    assert os.getpid() in kill.procfs.self_and_ancestors()


def test_a_stop_script_that_fails_stops_nothing(record):
    runtime = record()
    runtime.start(WEB1)
    runtime.fail_at("init stop")
    stopped = runtime.stop("web1")
    assert "the stop goes on" in stopped.warnings[0]
    assert stopped.steps[-1].does == "remove /run/chrootfw/web1"


def test_processes_end_and_mounts_stay(record):
    runtime = record()
    runtime.start(WEB1)
    assert {step.stage for step in runtime.stop("web1", keep_mounted=True).steps} == {
        "init-stop",
        "kill",
    }
    assert {step.stage for step in runtime.stop("web1").steps} == {"unmount"}


# -- others ---------------------------------------------------------------------------------------------


class Observer:
    def __init__(self):
        self.seen = []

    @hookimpl
    def chrootfw_event(self, event):
        self.seen.append(event)

    @hookimpl(wrapper=True)
    def chrootfw_around_stage(self, stage):
        self.seen.append(stage)
        return (yield)


def test_observers_and_wrappers_are_there(record):
    observer = Observer()
    runtime = record(observer)
    started = runtime.start(WEB1)
    assert [seen for seen in observer.seen if isinstance(seen, str)] == [
        "mount",
        "pre-start",
        "init-start",
    ]
    assert tuple(seen for seen in observer.seen if not isinstance(seen, str)) == started.events


def test_plugins_of_an_instance_and_arguments_of_the_runtime(record):
    started = record().start(Instance("web1", disk="/x", plugins=[f"{__name__}:Observer"]))
    assert started.error is None
    with pytest.raises(chrootfw.PluginLoadError):
        record().start(Instance("web1", disk="/x", plugins=["nothing"]))
    with pytest.raises(chrootfw.PlanError):
        record(defaults=False).start(WEB1)


def test_its_directory_goes_with_it():
    """At once, not when cycles of references are looked for."""
    runtime = RecordingRuntime()
    directory = Path(runtime._directory)
    runtime.start(WEB1)
    assert all(failed.undone for failed in runtime.each_failure(WEB1))
    assert directory.is_dir()
    del runtime
    assert not directory.exists()


@pytest.mark.parametrize(
    ("verb", "fails"),
    [
        ("start", None),
        ("start", 1),
        ("start", "check the root"),
        ("start", "run /etc/chrootfw/init start"),
        ("stop", None),
        ("stop", "unmount"),
    ],
)
def test_its_directory_goes_with_it_though_a_record_was_kept(verb, fails):
    def use():
        runtime = RecordingRuntime()
        if verb == "stop":
            runtime.start(WEB1)
        if fails:
            runtime.fail_at(fails)
        kept = getattr(runtime, verb)(WEB1, check=False)
        assert (kept.error is None) == (fails is None)
        return Path(runtime._directory)

    assert not use().exists()


#: Everything is imported, perhaps from a directory that is root's alone, and then done once more as nobody.
ORDINARY = """
import os, sys
from chrootfw import Instance
from chrootfw.testing import Conformance, RecordingRuntime, check
import chrootfw_defaults.deepest_first

def all_of_it():
    runtime = RecordingRuntime()
    web1 = Instance("web1", disk="/srv/web1.img")
    print(len(runtime.start(web1).steps), len(runtime.stop(web1).steps))
    print(all(failed.undone for failed in runtime.each_failure(web1)))
    print(check(chrootfw_defaults.deepest_first))

all_of_it()
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    all_of_it()
print(os.geteuid())
"""


def test_it_needs_no_root():
    places = {
        str(Path(module.__file__).parents[1]) for module in (chrootfw, chrootfw_defaults.disk)
    }
    env = {
        name: value for name, value in os.environ.items() if name != "TMPDIR"
    }  # which may be root's alone
    env["PYTHONPATH"] = os.pathsep.join(places)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ORDINARY],
        env=env, capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *lines, user = done.stdout.split("\n")[:-1]
    assert user != "0"
    assert set(map(tuple, zip(*[iter(lines)] * 3, strict=True))) == {("10 10", "True", "[]")}
