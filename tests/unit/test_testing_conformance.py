"""The conformance suite: one bad plugin for each kind of mistake, and the good ones that ship."""

import asyncio
import importlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from signal import SIGKILL, SIGTERM

import attrs
import pytest

from chrootfw import (
    Escalation,
    Event,
    Instance,
    MountPoint,
    Omit,
    Parameter,
    Problem,
    Process,
    Step,
    hookimpl,
)
from chrootfw.hooks.registry import DEFAULTS
from chrootfw.model import NO_COMMAND, Command, Entry
from chrootfw.testing import Conformance, check, random_cases
from chrootfw.testing import examination as suite

WITH = Instance(
    "with-parameters",
    disk="/srv/x.img",
    params={"binds": ["/srv/a:/a"], "resolv_conf": "copy", "hosts": "bind"},
)


@pytest.mark.parametrize("name", [*DEFAULTS, "chrootfw_hardened.hardening"])
def test_what_ships_keeps_the_rules(name):
    instances = [WITH]
    if "hardened" in name:
        instances.append(
            Instance(
                "hardened", disk="/x", params={"hardened": True, "hardened_namespaces": ["pid"]}
            )
        )
    assert check(importlib.import_module(name), instances) == []


def plugin(hook, wrapper=False):
    """A class ``Bad`` with one hook."""

    def decorate(function):
        function.__name__ = f"chrootfw_{hook}"
        return type("Bad", (), {f"chrootfw_{hook}": hookimpl(function, wrapper=wrapper)})

    return decorate


@attrs.frozen
class Plain(Step):
    kind = "plain"
    text: str = "x"

    def describe(self):
        return f"do {self.text}"

    def apply(self):
        return {"source": "/tmp"}

    def undo(self, record):
        pass


@attrs.frozen
class Dumb(Plain):
    describe = Step.describe


@attrs.frozen
class Talkative(Plain):
    def describe(self):
        return "one\ntwo"


@attrs.frozen
class Stopped(Plain):
    def describe(self):
        return "This is a sentence."


@attrs.frozen
class NoJson(Plain):
    text: object = attrs.field(factory=object)


@attrs.frozen
class Lossy(Plain):
    text: dict = attrs.field(factory=lambda: {1: "one"})


@attrs.frozen
class Unmakeable(Plain):
    secret: str = attrs.field(default="", init=False)


@attrs.frozen
class Restless(Plain):
    counter = itertools.count()

    def describe(self):
        return f"do it for the {next(self.counter)}th time"


@attrs.frozen
class Once(Plain):
    """Its undo works once, and only after apply."""

    done = []

    def apply(self):
        self.done.append(1)
        return {"source": "/tmp"}

    def undo(self, record):
        self.done.pop()


@attrs.frozen
class NoFacts(Plain):
    def apply(self):
        return {"when": {1, 2}}


@attrs.frozen
class Unborn(Plain):
    def apply(self):
        raise OSError(28, "No space left on device")


@attrs.frozen
class Place:
    path: str


@attrs.frozen
class Nested(Plain):
    """attrs makes a dict of the place, and the dict stays one."""

    text: Place = attrs.field(factory=lambda: Place("/a"))


@attrs.frozen
class Rebuilt(Plain):
    """Its converter makes the place again."""

    text: Place = attrs.field(
        factory=lambda: Place("/a"),
        converter=lambda given: Place(**given) if isinstance(given, dict) else given,
    )


@attrs.frozen
class Listed(Plain):
    text: tuple = ("a", "b")

    def describe(self):
        return f"do {' and '.join(self.text)}"


@attrs.frozen
class KeyError_(Plain):
    """Its describe() fails only when it is made again."""

    text: dict = attrs.field(factory=lambda: {1: "one"})

    def describe(self):
        return f"do {self.text[1]}"


@attrs.frozen
class Interrupting(Plain):
    def describe(self):
        raise KeyboardInterrupt


@attrs.frozen
class Writing(Plain):
    def describe(self):
        os.mkdir(self.text)
        return "make it"


def local_step():
    @attrs.frozen
    class Local(Plain):
        pass

    return Local()


def before_start(*answers):
    return plugin("pre_start")(lambda self: list(answers))


@plugin("mount")
def slow(self):
    time.sleep(20)


@plugin("kill_strategy", wrapper=True)
def slow_wrapper(self):
    time.sleep(20)
    return (yield)


@plugin("pre_start")
def asks(self):
    try:
        input("really? ")
    except EOFError:
        return None


@plugin("parameters")
def reads(self):
    sys.stdin.read()


@plugin("around_stage", wrapper=True)
def swallows(self):
    try:
        return (yield)
    except Exception:
        return None


@plugin("around_stage", wrapper=True)
def turns(self):
    try:
        return (yield)
    except Exception as error:
        raise ValueError("another") from error


@plugin("around_stage", wrapper=True)
def yields_twice(self):
    yield
    yield


@plugin("around_stage", wrapper=True)
def yields_twice_after_a_failure(self):
    try:
        return (yield)
    except Exception:
        yield


@plugin("around_stage", wrapper=True)
def yields_never(self, stage):
    if stage == "mount":
        yield


@plugin("around_stage", wrapper=True)
def raises_around(self, stage):
    yield
    if stage == "kill":
        raise ValueError("no")


def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def runs_around(self):
    os.system("true")
    return (yield)


def sets_around(self):
    os.environ["KIT_TEST"] = "1"
    return (yield)


def silent():
    def chrootfw_mount(self):
        return None

    return hookimpl(chrootfw_mount)


def forgets(hook):
    @plugin(hook, wrapper=True)
    def wrapper(self):
        yield

    return wrapper


@plugin("unmount_ordering", wrapper=True)
def reverses(self):
    order = yield
    return order[::-1]


@plugin("mount")
def changes(self, instance):
    instance.params["binds"].append("/x:/y")


@plugin("mount")
def changes_always(self, instance, counter=itertools.count()):
    return [MountPoint("/data", f"/srv/{next(counter)}")]


@plugin("kill_strategy", wrapper=True)
def changes_always_around(self, counter=itertools.count(1)):
    answer = yield
    return [Escalation(SIGTERM, next(counter) / 1000), *answer]


@plugin("kill_strategy")
def changes_processes(self, processes):
    for process in processes:
        process.why = "root" if process.why == "cwd" else "cwd"


@plugin("kill_strategy")
def names_others(self, processes):
    return (
        [Escalation(SIGKILL, 1, to=[process.pid + 1 for process in processes])]
        if processes
        else None
    )


@plugin("kill_strategy")
def at_length(self, timeout):
    return [Escalation(SIGTERM, (timeout or 0) * 2)]


@plugin("kill_strategy")
def nobody(self, force):
    return [] if force else None


@plugin("kill_strategy")
def nonsense(self):
    return [Escalation(4000, 1)]


@plugin("kill_strategy")
def ignores_force(self):
    return [Escalation(SIGTERM, 8), Escalation(SIGKILL, 2)]


@plugin("kill_strategy")
def never_kills(self):
    return [Escalation(SIGTERM, 8)]


@plugin("kill_strategy", wrapper=True)
def ignores_force_around(self):
    answer = yield
    return [Escalation(SIGTERM, 8), *answer]


def doing(effect, hook="pre_start"):
    """A hook that does something instead of answering."""

    @plugin(hook)
    def hook_that_does(self):
        effect()

    return hook_that_does


def with_parameter(hook, function, wrapper=False):
    class Bad:
        @hookimpl
        def chrootfw_parameters(self):
            return [Parameter("mine", int, 1)]

    function.__name__ = f"chrootfw_{hook}"
    setattr(Bad, function.__name__, hookimpl(function, wrapper=wrapper))
    return Bad


def reads_own(self, instance):
    return [Escalation(SIGKILL, instance.params["mine"])]


def reads_own_around(self, instance, stage):
    if stage == "kill":
        instance.params["mine"]
    return (yield)


class Empty:
    """No hook."""


@plugin("unmount_ordering")
def table_order(self, mounts):
    return mounts


@plugin("unmount_ordering")
def by_target(self, mounts):
    """Right until mounts are stacked."""
    return sorted(mounts, key=lambda mount: -len(mount.target))


@plugin("unmount_ordering")
def forgets_layers(self, mounts):
    return [mount for mount in sorted(mounts, key=lambda m: -m.id) if mount.at == "root"]


class Misspelt:
    @hookimpl
    def chrootfw_mounts(self):
        return []


class Unmarked:
    def chrootfw_mount(self):
        return []


class Coroutine:
    @hookimpl
    async def chrootfw_mount(self):
        return []


class NoWrapper:
    @hookimpl
    def chrootfw_around_stage(self):
        return None


class Strange:
    @hookimpl
    def chrootfw_mount(self, instances):
        return []


async def later():
    return []


class Unmakable:
    def __init__(self, something):
        pass


def needs_root(self, root):
    return [Problem("no")] if root.exists("/x") else None


def raising(self, event):
    raise ValueError(event.what)


BAD = {
    # not loadable
    "a misspelt hook": (Misspelt, "loading", "chrootfw_mounts, which is not a hook", "did you mean chrootfw_mount?"),
    "no mark": (Unmarked, "loading", "without the mark of a hook"),
    "a coroutine function": (Coroutine, "loading", "is a coroutine"),
    "no wrapper": (NoWrapper, "loading", "must be a wrapper"),
    "an unknown argument": (Strange, "loading", "cannot be registered"),
    "no hooks": (Empty, "loading", "implements no hook"),
    "a name": ("chrootfw_hardened", "loading", "the plugin is 'chrootfw_hardened'"),
    "nothing": (None, "loading", "the plugin is None"),
    "a class with arguments": (Unmakable, "loading", "cannot be made"),
    # wrong types
    "mount": (plugin("mount")(lambda self: MountPoint("/x", "tmpfs")), "answers", "expected a list of MountPoint or Omit"),
    "mount, inside": (plugin("mount")(lambda self: ["/x"]), "answers", "answered with '/x' in its list"),
    "no root": (plugin("mount")(lambda self: [Omit("/")]), "answers", "leaves out the root"),
    "pre_start": (plugin("pre_start")(lambda self: True), "answers", "expected a list of Problem or Step"),
    "pre_start in a plan": (plugin("pre_start")(needs_root), "answers", "raised AttributeError: 'NoneType'"),
    "init_script": (plugin("init_script")(lambda self: "/sbin/init"), "answers", "expected a Command or NO_COMMAND"),
    "init_script at stop": (
        plugin("init_script")(lambda self, action: None if action == "start" else 0), "answers", "answered 0",
    ),
    "enter": (plugin("enter")(lambda self: Command(["/x"])), "answers", "expected an Entry"),
    "parameters": (plugin("parameters")(lambda self: {"x": 1}), "answers", "expected a list of Parameter"),
    "a taken parameter": (plugin("parameters")(lambda self: [Parameter("grace", int)]), "answers", "declares the parameter 'grace'"),
    "the core's parameter": (plugin("parameters")(lambda self: [Parameter("disk", int)]), "answers", "chrootfw's own"),
    "a default of another type": (
        plugin("parameters")(lambda self: [Parameter("x", int, "1")]), "answers", "the default of parameter x is '1', which is not of its type",
    ),
    "a returned coroutine": (plugin("mount")(lambda self: later()), "answers", "answered with a coroutine"),
    "an exception": (plugin("enter")(lambda self: 1 / 0), "answers", "raised ZeroDivisionError"),
    "an exit": (plugin("init_script")(lambda self: sys.exit(3)), "answers", "raised SystemExit"),
    "an observer": (plugin("event")(raising), "answers", "raised ValueError: begin"),
    "a relative program": (
        plugin("init_script")(lambda self: Command(["true"])), "answers", "the program 'true'; expected its absolute path",
    ),
    "a parameter that is not there": (
        with_parameter("kill_strategy", reads_own), "answers", "raised KeyError: 'mine'", "older than the plugin",
    ),
    # wrappers
    "a parameter that is not there, around": (
        with_parameter("around_stage", reads_own_around, wrapper=True), "wrappers", "stage kill, raised KeyError: 'mine'", "older",
    ),
    "forgets an order": (forgets("unmount_ordering"), "wrappers", "turned the answer into None", "return (yield)"),
    "forgets a strategy": (forgets("kill_strategy"), "wrappers", "turned the answer into None"),
    "forgets an entry": (forgets("enter"), "wrappers", "turned the answer into None"),
    "forgets a script": (forgets("init_script"), "wrappers", "turned the answer into None"),
    "swallows": (swallows, "wrappers", "swallows what the stage raises"),
    "turns": (turns, "wrappers", "turns what the stage raises into ValueError: another"),
    "yields twice": (yields_twice, "wrappers", "yields more than once"),
    "yields twice after a failure": (yields_twice_after_a_failure, "wrappers", "yields more than once"),
    "yields never": (yields_never, "wrappers", "stage pre-start: it did not yield"),
    "raises around": (raises_around, "wrappers", "stage kill, raised ValueError: no"),
    "a wrapper with a wrong order": (reverses, "wrappers", "which is mounted on it"),
    # waiting
    "slow": (slow, "blocking", "chrootfw_mount did not answer within 0.05 s"),
    "a slow wrapper": (slow_wrapper, "blocking", "chrootfw_kill_strategy did not answer within 0.05 s"),
    "asks": (asks, "blocking", "chrootfw_pre_start reads standard input"),
    "reads": (reads, "blocking", "chrootfw_parameters reads standard input"),
    # changes something
    "makes a directory": (doing(lambda: os.mkdir("/proc/nothing/here")), "changes", "makes the directory /proc/nothing/here"),
    "writes": (doing(lambda: open("/proc/nothing", "a")), "changes", "opens /proc/nothing for writing"),
    "writes by number": (doing(lambda: os.open(b"/proc/nothing", os.O_RDWR)), "changes", "opens /proc/nothing for writing"),
    "removes": (doing(lambda: os.unlink("/proc/nothing")), "changes", "removes /proc/nothing"),
    "runs a program": (doing(lambda: subprocess.run(["/bin/true"]), "mount"), "changes", "runs /bin/true", "belongs into a Step"),
    "runs it in a thread": (doing(lambda: in_thread(lambda: os.system("true"))), "changes", "runs true"),
    "runs it in a wrapper": (
        plugin("enter", wrapper=True)(runs_around), "changes", "runs true",
    ),
    "sends a signal": (doing(lambda: os.kill(os.getpid(), signal.SIGCONT)), "changes", "sends signal 18"),
    "the working directory": (doing(lambda: os.chdir("/proc")), "changes", "changes the working directory to /proc"),
    "the umask": (doing(lambda: os.umask(0o777)), "changes", "changes the umask to 0777"),
    "the environment": (
        doing(lambda: os.environ.__setitem__("KIT_TEST", "1")), "changes", "the environment variable KIT_TEST",
    ),
    "the environment, around": (plugin("around_stage", wrapper=True)(sets_around), "changes", "the environment variable KIT_TEST"),
    "the environment, in a constructor": (
        type("Bad", (Empty,), {"__init__": lambda self: os.environ.pop("PATH"), "chrootfw_mount": silent()}), "changes", "variable PATH",
    ),
    "a step that writes": (before_start(Writing("/proc/nothing/here")), "changes", "makes the directory /proc/nothing/here"),
    # not the same twice
    "changes the instance": (changes, "repetition", "changes its argument instance"),
    "changes processes": (changes_processes, "kill_strategies", "Process.why cannot be set"),
    "changes always": (changes_always, "repetition", "answers two equal questions differently"),
    "changes always, around": (changes_always_around, "repetition", "answers two equal questions differently"),
    # steps
    "a dumb step": (before_start(Dumb()), "steps", "describe() raised NotImplementedError"),
    "two lines": (before_start(Talkative()), "steps", "expected a str of one line"),
    "a sentence": (before_start(Stopped()), "steps", "without a full stop"),
    "no JSON": (before_start(NoJson()), "steps", "its fields are not JSON values"),
    "lost in JSON": (before_start(Lossy()), "steps", "has other fields when it is made again"),
    "cannot be made again": (before_start(Unmakeable()), "steps", "cannot be made again from its record"),
    "another description": (before_start(Restless()), "steps", "describes itself differently"),
    "a nested value": (before_start(Nested()), "steps", "has other fields when it is made again", "text={'path': '/a'}, not Place("),
    "a failure when made again": (before_start(KeyError_()), "steps", "text={'1': 'one'}", "describe() raised KeyError: 1"),
    "an interrupt": (before_start(Interrupting()), "steps", "describe() raised KeyboardInterrupt"),
    "a local class": (before_start(local_step()), "steps", "cannot be found again as", "local_step.<locals>.Local"),
    "as a source": (plugin("mount")(lambda self: [MountPoint("/x", Stopped())]), "steps", "chrootfw_mount: the Step Stopped"),
    # illegal orders
    "the table's order": (table_order, "unmount_orderings", "which is mounted on it"),
    "an order by target": (by_target, "unmount_orderings", "which is mounted on it"),
    "an order without layers": (forgets_layers, "unmount_orderings", "it drops"),
    "others' pids": (names_others, "kill_strategies", "which it was not given"),
    "too long": (at_length, "kill_strategies", "not within 0 and 86400"),
    "nobody": (nobody, "kill_strategies", "expected at least one Escalation"),
    "ignores force": (ignores_force, "kill_strategies", "force=True", "waits 8 s before SIGKILL"),
    "never kills": (never_kills, "kill_strategies", "waits 8 s before SIGKILL"),
    "ignores force, around": (ignores_force_around, "kill_strategies", "waits 8 s before SIGKILL"),
    "no signal": (nonsense, "kill_strategies", "4000 is not a signal"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "look", "words"), [(b, look, w) for b, look, *w in BAD.values()], ids=BAD
)
def test_a_mistake_is_found_where_it_belongs(bad, look, words):
    seconds = 0.05 if any("0.05 s" in word for word in words) else 20
    with suite.Examination(bad, seconds=seconds) as examination:
        found = {name: examination.run(name) for name in suite.CHECKS}
    assert found[look], found
    for word in words:
        assert word in "\n".join(found[look])
    assert all("plugin" in line for line in found[look])
    assert look in ("loading", "changes") or all("chrootfw_" in line for line in found[look])
    assert "kill_strategies" == look or not found["kill_strategies"]
    assert "unmount_orderings" == look or not found["unmount_orderings"]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Once(), "undo() raised IndexError: pop from empty list when apply never ran"),
        (Once(), "when called twice"),
        (NoFacts(), "expected JSON facts"),
        (Unborn(), "apply() raised OSError"),
    ],
)
def test_steps_are_applied_only_when_that_is_asked_for(step, words):
    assert check(before_start(step)) == []
    assert words in "\n".join(check(before_start(step), apply_steps=True))


def test_a_source_step_must_say_its_source():
    @plugin("mount")
    def without_source(self):
        return [MountPoint("/x", NoSource())]

    assert 'expected {"source": path}' in "\n".join(check(without_source, apply_steps=True))


@attrs.frozen
class NoSource(Plain):
    def apply(self):
        return None


@pytest.mark.parametrize("step", [Rebuilt(), Listed()])
def test_a_field_that_its_class_makes_again_is_right(step):
    assert check(before_start(step), apply_steps=True) == []


def test_what_a_hook_changes_in_the_process_is_put_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = os.getcwd(), dict(os.environ)

    def change():
        os.chdir("/")
        os.umask(0o777)
        os.environ["KIT_TEST"] = "1"
        del os.environ["PATH"]

    umask = os.umask(0o027)
    try:
        assert check(doing(change))
        assert os.umask(umask) == 0o027
    finally:
        os.umask(umask)
    assert (os.getcwd(), dict(os.environ)) == before


def test_who_reads_and_asks_changes_nothing(tmp_path):
    """A free port, a file, a process, a module that nobody has imported yet."""
    (tmp_path / "rarely_imported.py").write_text("x = 1\n")
    (tmp_path / "file").write_text("x")

    def ask():
        import socket

        sys.path.insert(0, str(tmp_path))
        try:
            sys.modules.pop("rarely_imported", None)
            importlib.import_module("rarely_imported")
        finally:
            sys.path.remove(str(tmp_path))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
        (tmp_path / "file").read_text()
        with open(os.devnull, "w") as null:
            null.write("x")
        os.listdir(tmp_path)
        os.kill(os.getpid(), 0)

    assert check(doing(ask)) == []
    assert not (tmp_path / "__pycache__").exists()


def test_an_observer_may_write(tmp_path):
    @plugin("event")
    def writes(self, event):
        with open(tmp_path / "log", "a") as log:
            log.write(event.does)

    assert check(writes) == []
    assert (tmp_path / "log").exists()


# -- whatever the plugin does ---------------------------------------------------------------------------


class Hostile:
    """A value that fails in every way, with what is no Exception."""

    def _fail(self, *_args):
        raise asyncio.CancelledError("hostile")

    __eq__ = __repr__ = __str__ = __bool__ = __iter__ = __len__ = __getattr__ = _fail
    __hash__ = None


class HostileList(list):
    __iter__ = Hostile._fail
    __len__ = Hostile._fail


class HostileError(Exception):
    brief = property(Hostile._fail)
    __str__ = __repr__ = Hostile._fail


def endless(value):
    value.append(value)
    return value


def raises(error):
    raise error


class HostileConstructor:
    def __init__(self):
        raise KeyboardInterrupt

    @hookimpl
    def chrootfw_mount(self):
        return None


class SlowConstructor(HostileConstructor):
    def __init__(self):
        time.sleep(20)


class HostileProperty:
    @property
    def chrootfw_mount(self):
        raise KeyboardInterrupt


class Unequal:
    def __eq__(self, other):
        raise ValueError("never equal")

    __hash__ = object.__hash__

    @hookimpl
    def chrootfw_mount(self):
        return None


@attrs.frozen
class HostileStep(Plain):
    def arguments(self):
        raise SystemExit(3)


@attrs.frozen
class UnequalStep(Plain):
    text: object = attrs.field(factory=Hostile)

    def arguments(self):
        return {"text": "x"}


HOOKS = ("parameters", "mount", "pre_start", "init_script", "enter", "kill_strategy",
         "unmount_ordering", "event")  # fmt: skip
ANSWERS = {
    "a hostile value": lambda: Hostile(),
    "a list of them": lambda: [Hostile()],
    "a hostile list": lambda: HostileList([1]),
    "a list in itself": lambda: endless([]),
    "an interrupt": lambda: raises(KeyboardInterrupt()),
    "a cancellation": lambda: raises(asyncio.CancelledError()),
    "pytest.fail": lambda: pytest.fail("no"),
    "pytest.exit": lambda: pytest.exit("no"),
    "a hostile error": lambda: raises(HostileError()),
    "the end of a generator": lambda: raises(GeneratorExit()),
    "a group": lambda: raises(BaseExceptionGroup("no", [KeyboardInterrupt()])),
    "recursion": lambda: (f := lambda: f())(),
    "hostile fields": lambda: [MountPoint("/x", HostileStep())],
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_no_answer_breaks_the_suite(hook, answer):
    found = check(plugin(hook)(lambda self: answer()))
    if hook != "event":  # nothing is made of its answer
        assert found


@pytest.mark.parametrize(
    "make",
    [
        lambda: HostileConstructor,
        lambda: HostileProperty,
        lambda: Hostile(),
        lambda: SlowConstructor,
    ],
    ids=["its constructor", "a property", "all of it", "a constructor that takes long"],
)
def test_no_plugin_breaks_the_suite(make):
    (finding,) = check(make(), seconds=0.5)
    assert "plugin" in finding


def test_two_plugins_need_not_be_comparable():
    assert isinstance(check(Unequal()), list)


@pytest.mark.parametrize("kind", [HostileStep, UnequalStep])
def test_no_step_breaks_the_suite(kind):
    (finding, *_) = check(before_start(kind()), apply_steps=True)
    assert f"the Step {kind.__name__}" in finding


def test_an_instance_of_another_kind_is_a_finding():
    (finding,) = check(before_start(), ["web1"])
    assert "'web1' is refused" in finding


def test_a_silent_plugin_is_asked_about_the_given_instances():
    @plugin("pre_start")
    def when_asked(self, instance):
        return 3 if instance.params["min_free"] else None

    assert check(when_asked) == []
    (finding,) = check(when_asked, [Instance("x", disk="/x", params={"min_free": 1})])
    assert "chrootfw_pre_start for x answered 3" in finding


def test_an_instance_that_is_refused_is_told():
    (finding,) = check(before_start(), [Instance("x", disk="/x", params={"nothing": 1})])
    assert "there is no parameter 'nothing'" in finding


def test_a_hook_that_hangs_is_waited_for_once():
    asked = []
    never = threading.Event()

    @plugin("mount")
    def hangs(self):
        asked.append(1)
        never.wait()

    try:
        (finding,) = check(hangs, seconds=0.05)
    finally:
        never.set()
    assert "did not answer within 0.05 s" in finding
    assert len(asked) == 1


def test_standard_input_is_given_back():
    before = sys.stdin
    check(reads)
    assert sys.stdin is before


class Good:
    """Every hook, and no mistake."""

    @hookimpl
    def chrootfw_parameters(self):
        return [Parameter("mine", list, ["a"], lambda value: None, "mine")]

    @hookimpl
    def chrootfw_mount(self, instance):
        return [MountPoint("/data", Plain(instance.name)), Omit("/sys")]

    @hookimpl
    def chrootfw_pre_start(self, root):
        return [Plain(), *([Problem("no")] if root and root.exists("/x") else [])]

    @hookimpl
    def chrootfw_init_script(self, action):
        return NO_COMMAND if action == "stop" else Command(["/bin/true"])

    @hookimpl
    def chrootfw_enter(self):
        return Entry()

    @hookimpl
    def chrootfw_kill_strategy(self, processes: list[Process]):
        to = [process.pid for process in processes if process.own]
        return [Escalation(SIGTERM, 1, to), Escalation(SIGKILL, 2)] if to else None

    @hookimpl
    def chrootfw_unmount_ordering(self, mounts):
        return sorted(mounts, key=lambda mount: -mount.id)

    @hookimpl(wrapper=True)
    def chrootfw_around_stage(self):
        try:
            return (yield)
        finally:
            pass

    @hookimpl
    def chrootfw_event(self, event: Event):
        event.to_dict() if hasattr(event, "to_dict") else None


def test_a_good_plugin_has_nothing_against_it():
    assert check(Good, apply_steps=True) == []
    assert check(Good()) == []


class TestGood(Conformance):
    plugin = Good
    instances = (WITH,)
    apply_steps = True


def test_what_is_asked_about_could_be_shown_by_the_kernel():
    trees = random_cases.mount_tables()
    assert len(set(trees)) > 30
    targets = [[(mount.at, mount.target) for mount in tree] for tree in trees]
    assert any(len(set(places)) < len(places) for places in targets), "stacked mounts"
    assert any(place[0].startswith("aux:") for places in targets for place in places)
    for tree in trees:
        by_id = {mount.id: mount for mount in tree}
        assert len(by_id) == len(tree)
        for mount in tree:
            parent = by_id.get(mount.parent)
            assert (parent is None) == (mount.parent == 1)
            if parent is not None:
                assert parent.at == mount.at and parent.id < mount.id
                assert f"{mount.target}/".startswith(parent.target.rstrip("/") + "/")
    lists = random_cases.process_lists()
    assert {force for _, force, _ in lists} == {True, False}
    assert any(not processes for processes, _, _ in lists)


def _signal_all() -> None:
    os.kill(os.getpid(), 9)


def _exec() -> None:
    os.execv("/bin/true", ["true"])


@pytest.mark.parametrize(
    ("end", "what"),
    [
        (lambda: os._exit(3), "os._exit"),
        (lambda: os.abort(), "os.abort"),
        (_exec, "os.exec"),
        (_signal_all, "os.kill"),
    ],
)
@pytest.mark.parametrize("where", ["hook", "class", "undo"])
def test_a_plugin_that_ends_the_process_is_a_finding(where, end, what):
    """Without that this process would have ended, and the tests with it."""

    class Ends:
        def __init__(self):
            if where == "class":
                end()

        @hookimpl
        def chrootfw_kill_strategy(self):
            if where == "hook":
                end()

        @hookimpl
        def chrootfw_pre_start(self):
            return [EndsInUndo(what)] if where == "undo" else []

    found = check(Ends, apply_steps=where == "undo")
    assert any(f"ProcessEnd: {what} ends this process" in line for line in found), found
    if where == "hook":
        assert any(f"ends this process by {what}; expected it to answer" in line for line in found)


@attrs.frozen
class EndsInUndo(Step):
    what: str

    def describe(self):
        return "end the process later"

    def undo(self, record):
        {"os._exit": lambda: os._exit(3), "os.abort": os.abort, "os.exec": _exec}.get(
            self.what, _signal_all
        )()


def test_a_fork_in_a_hook_can_end(tmp_path):
    class Forks:
        @hookimpl
        def chrootfw_event(self, event):
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

    assert check(Forks) == []
