"""The only caller of hooks: right answers get through, wrong ones are blamed on the right plugin."""

import contextvars
import logging
import threading
from contextlib import suppress
from signal import SIGKILL, SIGTERM

import attrs
import pytest

from chrootfw import Runtime, Step, config, hookimpl
from chrootfw.errors import ChrootfwError, InputError, Interrupted, PlanError, PluginError, StepError
from chrootfw.model import (
    NO_COMMAND,
    Command,
    Entry,
    Escalation,
    Event,
    Instance,
    Mount,
    MountPoint,
    Omit,
    Parameter,
    Problem,
)
from chrootfw.plugins import Registry
from chrootfw.stages import Stages
from chrootfw.views import Process

WEB1 = Instance("web1")
START = Command(["/etc/chrootfw/init", "start"])
OTHER = Command(["/sbin/other"])
ROOT = MountPoint("/", "/srv/web1.img")
TABLE = (Mount("/", "d", "ext4", (), "root", 1, 0), Mount("/proc", "proc", "proc", (), "root", 2, 1))
ALIVE = (Process(7, "nginx", "root", "cgroup"), Process(8, "sh", "root", "root"))
TERM = Escalation(SIGTERM, 1)


def plugin(name, **hooks):
    """An object of a class ``name`` whose hooks answer as given: a value, or a function to be the hook."""

    def method(hook, answer):
        if not callable(answer):
            return lambda self: answer
        answer.__name__ = hook
        return answer

    body = {
        f"chrootfw_{hook}": answer if hasattr(answer, "chrootfw_impl") else hookimpl(method(hook, answer))
        for hook, answer in hooks.items()
    }
    return type(name, (), body)()


def raising(error):
    def hook(self):
        raise error

    return hook


class Asked:
    """The stages of some plugins (the last one is asked first), and what was told."""

    def __init__(self, *plugins):
        self.told = []
        self.stages = Stages(Registry(plugins, defaults=False), self.told.append)

    @property
    def guilty(self):
        return [event.plugin for event in self.told]


# What a decide hook does is the same for all four; init_script stands for them.


def test_the_one_registered_last_is_asked_first():
    asked = Asked(plugin("Default", init_script=START), plugin("Mine", init_script=OTHER))
    assert asked.stages.init_script(WEB1, "start") == ("Mine", OTHER)


def test_none_means_not_mine():
    asked = Asked(plugin("Default", init_script=NO_COMMAND), plugin("Mine", init_script=None))
    assert asked.stages.init_script(WEB1, "start") == ("Default", NO_COMMAND)


def test_a_plugin_names_the_arguments_it_wants():
    seen = []

    def by_name(self, action, instance):
        seen.append((instance, action))

    def by_default(self, action="start"):
        seen.append(action)
        return START

    Asked(plugin("B", init_script=by_default), plugin("A", init_script=by_name)).stages.init_script(WEB1, "stop")
    assert seen == [(WEB1, "stop"), "stop"]


async def nothing():
    return None


BAD_ANSWERS = [
    ("a wrong type", lambda self: ["/bin/sh"], "answered ['/bin/sh']: expected a Command or NO_COMMAND"),
    ("false", lambda self: False, "answered False: expected"),
    ("an empty list", lambda self: [], "answered []: expected"),
    ("an exception", raising(ZeroDivisionError("by zero")), "raised ZeroDivisionError: by zero"),
    ("an error of ours", raising(InputError("no such user")), "raised InputError: no such user"),
    ("a false accusation", raising(PluginError("it was him", plugin="Default")), "raised PluginError: it was him"),
    ("no name", raising(PluginError("somebody")), "raised PluginError: somebody"),
    ("an exit", raising(SystemExit(3)), "raised SystemExit: 3"),
    ("a coroutine", lambda self: nothing(), "answered with a coroutine"),
    ("an object without repr", lambda self: NoRepr(), "answered <"),
]
bad_answers = pytest.mark.parametrize(
    ("bad", "words"), [case[1:] for case in BAD_ANSWERS], ids=[case[0] for case in BAD_ANSWERS]
)


class NoRepr:
    def __repr__(self):
        raise ZeroDivisionError


@bad_answers
def test_in_a_start_a_bad_answer_is_fatal_and_blamed(bad, words):
    asked = Asked(plugin("Default", init_script=START), plugin("Bad", init_script=bad))
    with pytest.raises(PluginError) as caught:
        asked.stages.init_script(WEB1, "start")
    assert caught.value.brief.startswith("plugin Bad")
    assert "chrootfw_init_script for web1 " + words in caught.value.brief
    assert (caught.value.plugin, caught.value.hook) == ("Bad", "chrootfw_init_script")
    assert "--without Bad" in caught.value.hint
    assert asked.told == []


@bad_answers
def test_in_a_stop_a_bad_answer_is_told_and_the_next_is_asked(bad, words):
    asked = Asked(
        plugin("Default", init_script=START), plugin("Bad", init_script=bad), plugin("Silent", init_script=None)
    )
    assert asked.stages.init_script(WEB1, "stop", lenient=True) == ("Default", START)
    (event,) = asked.told
    assert (event.what, event.instance, event.plugin) == ("blame", "web1", "Bad")
    assert words in event.does
    assert words in event.error


def test_an_interrupt_is_nobodys_fault():
    asked = Asked(plugin("Default", init_script=START), plugin("A", init_script=raising(Interrupted("x", signum=2))))
    with pytest.raises(Interrupted):
        asked.stages.init_script(WEB1, "stop", lenient=True)


def test_when_all_are_guilty_the_stop_says_so():
    asked = Asked(plugin("B", init_script=1), plugin("A", init_script=2))
    with pytest.raises(PluginError, match="no plugin answered chrootfw_init_script for web1"):
        asked.stages.init_script(WEB1, "stop", lenient=True)
    assert asked.guilty == ["A", "B"]


def test_nobody_answers():
    with pytest.raises(PluginError, match="no plugin answered") as caught:
        Asked(plugin("A", init_script=None)).stages.init_script(WEB1, "start")
    assert caught.value.plugin == ""


def test_the_second_of_two_twins_is_blamed_when_it_was_the_second():
    calls = []

    def first_none_then_boom(self):
        calls.append(self)
        if self is twins[0]:
            raise ZeroDivisionError

    cls = type(plugin("Twin", init_script=first_none_then_boom))
    twins = [cls(), cls()]
    asked = Asked(plugin("Default", init_script=START), *twins)
    assert asked.stages.init_script(WEB1, "stop", lenient=True)[0] == "Default"
    assert asked.guilty == ["Twin"]
    assert calls[:2] == [twins[1], twins[0]]


def test_who_calls_another_plugin_wrongly_is_to_blame():
    default = plugin("Default", init_script=lambda self, action: START if action == "stop" else 1 / 0)
    asked = Asked(default, plugin("Caller", init_script=lambda self: default.chrootfw_init_script("nonsense")))
    assert asked.stages.init_script(WEB1, "stop", lenient=True) == ("Default", START)
    assert asked.guilty == ["Caller"]


# The other decide hooks: their own checks.


@pytest.mark.parametrize(
    ("entry", "words"), [("chroot", "expected an Entry"), ({"method": "chroot"}, "expected an Entry")]
)
def test_enter(entry, words):
    assert Asked(plugin("A", enter=Entry(user="www"))).stages.enter(WEB1, START) == ("A", Entry(user="www"))
    with pytest.raises(PluginError, match=words):
        Asked(plugin("A", enter=entry)).stages.enter(WEB1, START)


@pytest.mark.parametrize("bad", [[], TERM, [Escalation(SIGTERM, 1, [99])], [Escalation(SIGTERM, -1)], [None]])
def test_a_bad_kill_strategy_never_stops_a_stop(bad):
    asked = Asked(plugin("Default", kill_strategy=[TERM]), plugin("Bad", kill_strategy=bad))
    assert asked.stages.kill_strategy(WEB1, ALIVE, force=False, timeout=None) == ("Default", [TERM])
    assert asked.guilty == ["Bad"]


def test_the_kill_strategy_sees_who_lives_and_force_is_completed():
    seen = []

    def strategy(self, processes, force, timeout):
        seen.append((processes, force, timeout))
        return (Escalation(SIGTERM, timeout, [8]),)

    stages = Asked(plugin("A", kill_strategy=strategy)).stages
    answer = stages.kill_strategy(WEB1, list(ALIVE), force=True, timeout=3)
    assert answer == ("A", [Escalation(SIGTERM, 3, [8]), Escalation(SIGKILL, 2.0)])
    assert seen == [(ALIVE, True, 3)]


@pytest.mark.parametrize(
    "bad",
    [
        TABLE,
        TABLE[:1],
        [],
        ["/proc", "/"],
        iter(TABLE),
        (TABLE[1], attrs.evolve(TABLE[0], id=[])),
        (TABLE[1], TABLE[1], TABLE[0]),
    ],
)
def test_a_bad_unmount_order_never_stops_a_stop(bad):
    default = plugin("Default", unmount_ordering=lambda self, mounts: mounts[::-1])
    asked = Asked(default, plugin("Bad", unmount_ordering=lambda self: bad))
    assert asked.stages.unmount_ordering(WEB1, TABLE) == ("Default", [TABLE[1], TABLE[0]])
    assert asked.guilty == ["Bad"]


# Wrappers of decide hooks.


def wrapper(body):
    return hookimpl(wrapper=True)(body)


def swaps(self):
    yield
    return OTHER


def test_a_wrapper_sees_and_replaces_the_answer():
    seen = []

    def looks(self, action):
        answer = yield
        seen.append((action, answer))
        return answer

    asked = Asked(plugin("Default", init_script=START), plugin("Looks", init_script=wrapper(looks)),
                  plugin("Swaps", init_script=wrapper(swaps)))  # fmt: skip
    assert asked.stages.init_script(WEB1, "start") == ("Swaps", OTHER)
    assert seen == [("start", START)]


def test_a_wrapper_that_changes_nothing_leaves_the_credit():
    def looks(self):
        return (yield)

    asked = Asked(plugin("Default", init_script=START), plugin("Looks", init_script=wrapper(looks)))
    assert asked.stages.init_script(WEB1, "start") == ("Default", START)


def test_a_wrapper_may_answer_when_nobody_did():
    asked = Asked(plugin("Default", init_script=None), plugin("Swaps", init_script=wrapper(swaps)))
    assert asked.stages.init_script(WEB1, "start") == ("Swaps", OTHER)


def forgets(self):
    yield


def answers_nonsense(self):
    yield
    return "nonsense"


def raises_before(self):
    raise ZeroDivisionError("before")
    yield


def raises_after(self):
    yield
    raise ZeroDivisionError("after")


def never_yields(self):
    if self is None:
        yield


def yields_twice(self):
    yield
    yield


BAD_WRAPPERS = [
    (forgets, "turned the answer into None; a wrapper ends with return \\(yield\\)"),
    (answers_nonsense, "answered 'nonsense'"),
    (raises_before, "raised ZeroDivisionError: before"),
    (raises_after, "raised ZeroDivisionError: after"),
    (never_yields, "did not yield"),
    (yields_twice, "yields more than once"),
]
bad_wrappers = pytest.mark.parametrize(("bad", "words"), BAD_WRAPPERS, ids=[case[0].__name__ for case in BAD_WRAPPERS])


@bad_wrappers
@pytest.mark.parametrize("inner", [False, True])
def test_a_bad_wrapper_is_blamed_wherever_it_stands(bad, words, inner):
    innocent = plugin("Swaps", init_script=wrapper(swaps))
    wrappers = [plugin("Bad", init_script=wrapper(bad)), innocent][:: 1 if inner else -1]
    asked = Asked(plugin("Default", init_script=START), *wrappers)
    with pytest.raises(PluginError, match=words) as caught:
        asked.stages.init_script(WEB1, "start")
    assert caught.value.plugin == "Bad"
    assert asked.stages.init_script(WEB1, "stop", lenient=True) == ("Swaps", OTHER)
    assert asked.guilty == ["Bad"]


def test_a_wrapper_that_spoils_the_answer_in_place_is_blamed_itself():
    def spoils(self):
        answer = yield
        answer.reverse()
        return answer

    default = plugin("Default", unmount_ordering=lambda self, mounts: list(mounts[::-1]))
    asked = Asked(default, plugin("Spoils", unmount_ordering=wrapper(spoils)))
    assert asked.stages.unmount_ordering(WEB1, TABLE) == ("Default", [TABLE[1], TABLE[0]])
    assert asked.guilty == ["Spoils"]


def test_plugins_need_not_be_hashable():
    @attrs.define
    class Data:
        size: int = 1

        @hookimpl
        def chrootfw_init_script(self):
            return START

    asked = Asked(Data(), plugin("Swaps", init_script=wrapper(swaps)))
    assert asked.stages.init_script(WEB1, "start") == ("Swaps", OTHER)


# Contribute hooks.


def test_contributions_are_gathered_in_the_order_of_asking():
    problem, warning = Problem("no init"), Problem("old", warning=True)
    asked = Asked(plugin("A", pre_start=[problem]), plugin("B", pre_start=None), plugin("C", pre_start=(warning,)))
    assert asked.stages.pre_start(WEB1, None, START) == [("C", warning), ("A", problem)]


def test_mounts_are_merged():
    proc = MountPoint("/proc", "proc", "proc")
    asked = Asked(plugin("Disk", mount=[ROOT]), plugin("Api", mount=[proc]), plugin("Mine", mount=[Omit("/proc")]))
    assert asked.stages.mount(WEB1) == [("Disk", ROOT)]
    with pytest.raises(PlanError, match=r"plugin Mine \(test_stages\): chrootfw_mount for web1 leaves out the root"):
        Asked(plugin("Disk", mount=[ROOT]), plugin("Mine", mount=[Omit("/")])).stages.mount(WEB1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda self: ROOT, "expected a list of MountPoint or Omit, or None"),
        (lambda self: iter([ROOT]), "expected a list of MountPoint or Omit"),
        (lambda self: [ROOT, Problem("x")], "answered with Problem"),
        (lambda self: [None], "answered with None in its list"),
        (lambda self: nothing(), "answered with a coroutine"),
        (raising(OSError(5, "I/O error")), "raised OSError: [Errno 5] I/O error"),
    ],
)
def test_a_bad_contribution_is_blamed(answer, words):
    with pytest.raises(PluginError) as caught:
        Asked(plugin("Disk", mount=[ROOT]), plugin("Bad", mount=answer)).stages.mount(WEB1)
    assert words in caught.value.brief
    assert caught.value.plugin == "Bad"


def test_a_parameter_declared_twice_is_refused():
    size, level = Parameter("size", int, 1), Parameter("level", str)
    declared = Asked(plugin("A", parameters=[size]), plugin("B", parameters=[level])).stages.parameters()
    assert declared == [("A", size), ("B", level)]
    with pytest.raises(PluginError) as caught:
        Asked(
            plugin("A", parameters=[size]), plugin("B", parameters=[attrs.evolve(size, default=2)])
        ).stages.parameters()
    assert caught.value.plugin == "B"
    assert "declares the parameter 'size', which plugin A" in caught.value.brief


# Around a stage.


def around(asked, body, **how):
    return asked.stages.around(WEB1, "kill", body, **how)


def test_wrappers_surround_the_body_and_do_not_touch_its_result():
    trace = []

    def surround(name):
        def wraps(self, instance, stage):
            trace.append(f"{name} before {stage} of {instance.name}")
            yield
            trace.append(f"{name} after")
            return "my own result"

        return plugin(name, around_stage=wrapper(wraps))

    asked = Asked(surround("Inner"), surround("Outer"))
    assert around(asked, lambda: trace.append("body") or 42) == 42
    assert trace == ["Outer before kill of web1", "Inner before kill of web1", "body", "Inner after", "Outer after"]
    assert around(Asked(), lambda: 42) == 42


def swallows(self):
    with suppress(Exception):
        yield


def swallows_everything(self):
    with suppress(BaseException):
        yield


def replaces(self):
    try:
        yield
    except Exception as error:
        raise ZeroDivisionError("mine") from error


def passes(self):
    return (yield)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("wraps", [swallows, swallows_everything, replaces, passes])
@pytest.mark.parametrize("failure", [StepError("umount failed"), Interrupted("x", signum=15), KeyboardInterrupt()])
def test_a_failed_stage_stays_failed(wraps, failure, lenient):
    cause = OSError(16, "busy")

    def body():
        raise failure from cause

    with pytest.raises(type(failure)) as caught:
        around(Asked(plugin("A", around_stage=wrapper(wraps))), body, lenient=lenient)
    assert caught.value is failure
    assert failure.__cause__ is cause


@pytest.mark.parametrize(
    ("wraps", "runs", "words"),
    [
        (raises_before, 0, "raised ZeroDivisionError: before"),
        (raises_after, 1, "raised ZeroDivisionError: after"),
        (never_yields, 0, "did not yield"),
        (yields_twice, 1, "yields more than once"),
        (raising(SystemExit(3)), 0, "raised SystemExit: 3"),
    ],
    ids=["raises_before", "raises_after", "never_yields", "yields_twice", "exits"],
)
def test_a_bad_surrounding_is_fatal_in_a_start_and_told_in_a_stop(wraps, runs, words):
    def exits(self):
        wraps(self)
        yield

    ran = []
    asked = Asked(plugin("Bad", around_stage=wrapper(exits if wraps.__name__ == "hook" else wraps)))
    with pytest.raises(PluginError) as caught:
        around(asked, lambda: ran.append(1))
    assert caught.value.plugin == "Bad"
    assert words in caught.value.brief
    assert len(ran) == runs
    assert asked.told == []

    ran.clear()
    assert around(asked, lambda: ran.append(1) or 42, lenient=True) == 42
    assert ran == [1]
    assert asked.guilty == ["Bad"]


def test_an_innocent_surrounding_still_sees_the_end_when_another_fails():
    trace = []

    def tidy(self):
        try:
            return (yield)
        finally:
            trace.append("tidied")

    asked = Asked(plugin("Bad", around_stage=wrapper(raises_before)), plugin("Tidy", around_stage=wrapper(tidy)))
    assert around(asked, lambda: 42, lenient=True) == 42
    assert trace == ["tidied"]
    assert asked.guilty == ["Bad"]


def test_a_wrapper_that_swallows_anothers_failure_runs_no_body_twice():
    ran = []
    asked = Asked(plugin("Bad", around_stage=wrapper(raises_after)), plugin("Swallows", around_stage=wrapper(swallows)))
    with pytest.raises(PluginError, match="plugin Bad .* raised ZeroDivisionError: after"):
        around(asked, lambda: ran.append(1) or 42)
    assert around(asked, lambda: ran.append(1) or 42, lenient=True) == 42
    assert ran == [1, 1]


def test_a_stage_that_was_kept_from_running_is_an_error_or_runs():
    asked = Asked(
        plugin("Bad", around_stage=wrapper(raises_before)), plugin("Swallows", around_stage=wrapper(swallows))
    )
    with pytest.raises(PluginError, match="plugin Bad .* raised ZeroDivisionError: before"):
        around(asked, lambda: 42)
    assert around(asked, lambda: 42, lenient=True) == 42


def test_the_failure_of_a_stage_hides_no_wrong_wrapper():
    def body():
        raise StepError("umount failed")

    asked = Asked(plugin("Bad", around_stage=wrapper(replaces)))
    with pytest.raises(StepError, match="umount failed"):
        around(asked, body)
    assert asked.guilty == ["Bad"]


# Observers.


@pytest.mark.parametrize("failure", [ZeroDivisionError("x"), SystemExit(3), Interrupted("x", signum=2)])
def test_an_observer_that_raises_changes_nothing(failure, caplog):
    seen = []
    event = Event("begin", "web1", "mount", "mount it")
    asked = Asked(
        plugin("A", event=lambda self, event: seen.append(event)),
        plugin("Bad", event=raising(failure)),
        plugin("B", event=lambda self, event: seen.append(event)),
    )
    with caplog.at_level(logging.WARNING, logger="chrootfw"):
        asked.stages.event(event)
    assert seen == [event, event]
    (record,) = caplog.records
    assert "plugin Bad" in record.getMessage()
    assert type(failure).__name__ in record.getMessage()


# Answers that never come.


def loops(self):
    while True:
        pass


def test_who_does_not_answer_is_blamed_and_not_asked_again():
    asked = Asked(plugin("Default", kill_strategy=[TERM]), plugin("Slow", kill_strategy=loops, unmount_ordering=loops))
    asked.stages.hook_timeout = 0.2
    assert asked.stages.kill_strategy(WEB1, ALIVE, force=False, timeout=None) == ("Default", [TERM])
    assert "did not come back within 0.2 s" in asked.told[0].does
    with pytest.raises(PluginError, match="no plugin answered"):
        asked.stages.unmount_ordering(WEB1, TABLE)
    assert asked.guilty == ["Slow"]


def test_the_threads_of_endless_loops_end():
    asked = Asked(plugin("Slow", mount=loops))
    asked.stages.hook_timeout = 0.2
    with pytest.raises(PluginError, match="did not come back"):
        asked.stages.mount(WEB1)
    for thread in threading.enumerate():
        if thread.name == "chrootfw-hook":
            thread.join(60)
            assert not thread.is_alive()


def test_a_hook_has_the_context_variables_of_its_caller():
    variable = contextvars.ContextVar("variable")
    variable.set("mine")
    seen = []
    asked = Asked(plugin("A", mount=lambda self: seen.append(variable.get()) or [ROOT]))
    asked.stages.mount(WEB1)
    assert seen == ["mine"]


CHECKS = [
    (lambda value: None, ""),
    (lambda value: "too small", "the parameter size is 1: too small"),
    (lambda value: int("one") and None, "the parameter size is 1: invalid literal"),
    (lambda value: 1 / 0, "plugin A (test_stages): the check of parameter size raised ZeroDivisionError"),
    (lambda value: False, "plugin A (test_stages): the check of parameter size answered False; expected None, or"),
    (loops, "plugin A (test_stages): the check of parameter size did not come back within 0.2 s"),
]


@pytest.mark.parametrize(("check", "words"), CHECKS)
def test_the_check_of_a_parameter_is_called_like_a_hook(check, words):
    asked = Asked(plugin("A", parameters=[Parameter("size", int, check=check)]))
    asked.stages.hook_timeout = 0.2
    try:
        config.resolve(Instance("web1", params={"size": 1}), asked.stages.parameters(), asked.stages.check_parameter)
        said = ""
    except ChrootfwError as error:
        said = error.brief
    assert said.startswith(words) if words else not said


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"name": "Size"}, "a Parameter's name is 'Size'"),
        ({"name": 3}, "a Parameter's name is 3"),
        ({"type": set}, "must be out of str, bool, int, float, list, dict"),
        ({"check": "positive"}, "the check of parameter size is 'positive', not a function"),
        ({"default": "big"}, "the default of parameter size is 'big', which is not of its type"),
        ({"default": True}, "the default of parameter size is True"),
    ],
)
def test_a_parameter_checks_itself(how, words):
    with pytest.raises(InputError) as caught:
        Parameter(**{"name": "size", "type": int, **how})
    assert words in caught.value.brief


# Plans.


@attrs.frozen
class Dumb(Step):
    """It does not say what it does."""


@pytest.mark.parametrize("hook", [{"mount": [ROOT, MountPoint("/mnt", Dumb())]}, {"pre_start": [Dumb()]}])
def test_a_step_that_does_not_say_what_it_does_is_blamed_in_a_plan(tmp_path, hook):
    runtime = Runtime([plugin("Bad", **hook)], run_dir=tmp_path / "run", config_dir=tmp_path)
    with pytest.raises(
        PluginError, match=r"plugin Bad .* for web1: the step Dumb is not plain data: NotImplementedError"
    ):
        runtime.plan("start", Instance("web1", disk="/srv/web1.img"))
