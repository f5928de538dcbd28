"""The only caller of hooks: right answers get through, wrong ones are blamed on the right plugin."""

import asyncio
import contextvars
import os
import sys
import threading
import time
from contextlib import suppress
from signal import SIGKILL, SIGTERM

import attrs
import pytest

from chrootfw import Runtime, Step, config, hookimpl
from chrootfw.cancellation import Cancellation
from chrootfw.errors import (
    ChrootfwError,
    InputError,
    Interrupted,
    PlanError,
    PluginError,
    StepError,
)
from chrootfw.hooks.dispatch import Dispatcher
from chrootfw.hooks.registry import Registry
from chrootfw.hooks.time_limits import PluginCalls, has_thread_left
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
from chrootfw.views import Process

WEB1 = Instance("web1")
START = Command(["/etc/chrootfw/init", "start"])
OTHER = Command(["/sbin/other"])
ROOT = MountPoint("/", "/srv/web1.img")
TABLE = (
    Mount("/", "d", "ext4", (), "root", 1, 0),
    Mount("/proc", "proc", "proc", (), "root", 2, 1),
)
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
        f"chrootfw_{hook}": answer
        if hasattr(answer, "chrootfw_impl")
        else hookimpl(method(hook, answer))
        for hook, answer in hooks.items()
    }
    return type(name, (), body)()


def raising(error):
    def hook(self):
        raise error

    return hook


RELEASED = threading.Event()


def waits(*_):
    """Not come back before the test lets it."""
    RELEASED.wait(60)


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def release():
    """Let the hooks ``waits`` return at the end of the test."""
    RELEASED.clear()
    yield
    RELEASED.set()
    wait_for(lambda: not has_thread_left())


class Asked:
    """The stages of some plugins (the last one is asked first), and what was told."""

    def __init__(self, *plugins, is_isolated=False, **how):
        self.told = []
        calls = PluginCalls(is_isolated=is_isolated, **how)
        registry = Registry(plugins, defaults=False, calls=calls)
        self.stages = Dispatcher(registry, self.told.append)

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

    Asked(plugin("B", init_script=by_default), plugin("A", init_script=by_name)).stages.init_script(
        WEB1, "stop"
    )
    assert seen == [(WEB1, "stop"), "stop"]


async def nothing():
    return None


BAD_ANSWERS = [
    (
        "a wrong type",
        lambda self: ["/bin/sh"],
        "answered ['/bin/sh']: expected a Command or NO_COMMAND",
    ),
    ("false", lambda self: False, "answered False: expected"),
    ("an empty list", lambda self: [], "answered []: expected"),
    ("an exception", raising(ZeroDivisionError("by zero")), "raised ZeroDivisionError: by zero"),
    ("an error of ours", raising(InputError("no such user")), "raised InputError: no such user"),
    (
        "a false accusation",
        raising(PluginError("it was him", plugin="Default")),
        "raised PluginError: it was him",
    ),
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
    assert "without=['Bad']" in caught.value.hint
    assert asked.told == []


@bad_answers
def test_in_a_stop_a_bad_answer_is_told_and_the_next_is_asked(bad, words):
    asked = Asked(
        plugin("Default", init_script=START),
        plugin("Bad", init_script=bad),
        plugin("Silent", init_script=None),
    )
    assert asked.stages.init_script(WEB1, "stop", report_errors=True) == ("Default", START)
    (event,) = asked.told
    assert (event.what, event.instance, event.plugin) == ("plugin-error", "web1", "Bad")
    assert words in event.does
    assert words in event.error


BASE_EXCEPTIONS = [
    ZeroDivisionError("x"),
    SystemExit(3),
    GeneratorExit(),
    StopIteration("x"),
    asyncio.CancelledError(),
    ExceptionGroup("several", [ValueError("one"), OSError(5, "two")]),
    BaseExceptionGroup("several", [KeyboardInterrupt()]),
]
INTERRUPTS = [Interrupted("x", signum=2), KeyboardInterrupt()]
isolated_or_not = pytest.mark.parametrize("is_isolated", [True, False])


def name_of(error):
    return (error if isinstance(error, type) else type(error)).__name__


class Hostile(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__

    @property
    def __class__(self):
        raise RuntimeError("no class")


@isolated_or_not
@pytest.mark.parametrize("error", [*BASE_EXCEPTIONS, Hostile], ids=lambda e: name_of(e))
def test_every_exception_of_a_plugin_is_attributed(error, is_isolated):
    asked = Asked(
        plugin("Default", init_script=START),
        plugin("A", init_script=raising(error)),
        is_isolated=is_isolated,
    )
    assert asked.stages.init_script(WEB1, "stop", report_errors=True) == ("Default", START)
    assert asked.guilty == ["A"]
    assert name_of(error) in asked.told[0].error


@isolated_or_not
def test_nothing_that_runs_a_plugins_code_is_the_cause_of_an_error(is_isolated):
    asked = Asked(plugin("A", init_script=raising(Hostile)), is_isolated=is_isolated)
    with pytest.raises(PluginError) as caught:
        asked.stages.init_script(WEB1, "start")
    assert not isinstance(caught.value.__cause__, Interrupted)  # as an undo asks


@pytest.mark.parametrize("error", INTERRUPTS, ids=lambda e: type(e).__name__)
def test_isolated_an_interrupt_is_the_plugins(error):
    asked = Asked(
        plugin("Default", init_script=START),
        plugin("A", init_script=raising(error)),
        is_isolated=True,
    )
    assert asked.stages.init_script(WEB1, "stop", report_errors=True) == ("Default", START)
    assert asked.guilty == ["A"]


@pytest.mark.parametrize("error", INTERRUPTS, ids=lambda e: type(e).__name__)
def test_in_the_callers_thread_an_interrupt_may_be_the_users(error):
    asked = Asked(plugin("Default", init_script=START), plugin("A", init_script=raising(error)))
    with pytest.raises(type(error)) as caught:
        asked.stages.init_script(WEB1, "stop", report_errors=True)
    assert caught.value is error
    assert asked.guilty == ["A"]
    assert any("plugin A" in note for note in caught.value.__notes__)


def test_isolated_the_text_of_an_exception_has_a_time_limit_too(release):
    class Hangs(Exception):
        def __str__(self):
            waits(self)

    asked = Asked(
        plugin("Default", init_script=START),
        plugin("A", init_script=raising(Hangs())),
        is_isolated=True,
    )
    asked.stages.hook_timeout = 0.2
    assert asked.stages.init_script(WEB1, "stop", report_errors=True) == ("Default", START)
    assert asked.guilty == ["A"]


def test_when_all_are_guilty_the_stop_says_so():
    asked = Asked(plugin("B", init_script=1), plugin("A", init_script=2))
    with pytest.raises(PluginError, match="no plugin answered chrootfw_init_script for web1"):
        asked.stages.init_script(WEB1, "stop", report_errors=True)
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
    assert asked.stages.init_script(WEB1, "stop", report_errors=True)[0] == "Default"
    assert asked.guilty == ["Twin"]
    assert calls[:2] == [twins[1], twins[0]]


def test_who_calls_another_plugin_wrongly_is_to_blame():
    default = plugin(
        "Default", init_script=lambda self, action: START if action == "stop" else 1 / 0
    )
    asked = Asked(
        default, plugin("Caller", init_script=lambda self: default.chrootfw_init_script("nonsense"))
    )
    assert asked.stages.init_script(WEB1, "stop", report_errors=True) == ("Default", START)
    assert asked.guilty == ["Caller"]


# The other decide hooks: their own checks.


@pytest.mark.parametrize(
    ("entry", "words"),
    [("chroot", "expected an Entry"), ({"method": "chroot"}, "expected an Entry")],
)
def test_enter(entry, words):
    assert Asked(plugin("A", enter=Entry(user="www"))).stages.enter(WEB1, START) == (
        "A",
        Entry(user="www"),
    )
    with pytest.raises(PluginError, match=words):
        Asked(plugin("A", enter=entry)).stages.enter(WEB1, START)


@pytest.mark.parametrize(
    "bad", [[], TERM, [Escalation(SIGTERM, 1, [99])], [Escalation(SIGTERM, -1)], [None]]
)
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
bad_wrappers = pytest.mark.parametrize(
    ("bad", "words"), BAD_WRAPPERS, ids=[case[0].__name__ for case in BAD_WRAPPERS]
)


@bad_wrappers
@pytest.mark.parametrize("inner", [False, True])
def test_a_bad_wrapper_is_blamed_wherever_it_stands(bad, words, inner):
    innocent = plugin("Swaps", init_script=wrapper(swaps))
    wrappers = [plugin("Bad", init_script=wrapper(bad)), innocent][:: 1 if inner else -1]
    asked = Asked(plugin("Default", init_script=START), *wrappers)
    with pytest.raises(PluginError, match=words) as caught:
        asked.stages.init_script(WEB1, "start")
    assert caught.value.plugin == "Bad"
    assert asked.stages.init_script(WEB1, "stop", report_errors=True) == ("Swaps", OTHER)
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
    asked = Asked(
        plugin("A", pre_start=[problem]),
        plugin("B", pre_start=None),
        plugin("C", pre_start=(warning,)),
    )
    assert asked.stages.pre_start(WEB1, None, START) == [("C", warning), ("A", problem)]


def test_an_answer_without_effect_is_warned_of():
    asked = Asked(plugin("Disk", mount=[ROOT]), plugin("Mine", mount=[Omit("/sis")]))
    assert asked.stages.mount(WEB1) == [("Disk", ROOT)]
    (event,) = asked.told
    assert event.does == "plugin Mine (test_dispatch) leaves out /sis, which nobody mounts"
    assert (event.what, event.plugin, event.instance) == ("warning", "Mine", "web1")


def test_mounts_are_merged():
    proc = MountPoint("/proc", "proc", "proc")
    asked = Asked(
        plugin("Disk", mount=[ROOT]),
        plugin("Api", mount=[proc]),
        plugin("Mine", mount=[Omit("/proc")]),
    )
    assert asked.stages.mount(WEB1) == [("Disk", ROOT)]
    with pytest.raises(
        PlanError,
        match=r"plugin Mine \(test_dispatch\): chrootfw_mount for web1 leaves out the root",
    ):
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
    declared = Asked(
        plugin("A", parameters=[size]), plugin("B", parameters=[level])
    ).stages.parameters()
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
    assert trace == [
        "Outer before kill of web1",
        "Inner before kill of web1",
        "body",
        "Inner after",
        "Outer after",
    ]
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


@pytest.mark.parametrize("report_errors", [False, True])
@pytest.mark.parametrize("wraps", [swallows, swallows_everything, replaces, passes])
@pytest.mark.parametrize(
    "failure", [StepError("umount failed"), Interrupted("x", signum=15), KeyboardInterrupt()]
)
def test_a_failed_stage_stays_failed(wraps, failure, report_errors):
    cause = OSError(16, "busy")

    def body():
        raise failure from cause

    with pytest.raises(type(failure)) as caught:
        around(Asked(plugin("A", around_stage=wrapper(wraps))), body, report_errors=report_errors)
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
    assert around(asked, lambda: ran.append(1) or 42, report_errors=True) == 42
    assert ran == [1]
    assert asked.guilty == ["Bad"]


def test_an_innocent_surrounding_still_sees_the_end_when_another_fails():
    trace = []

    def tidy(self):
        try:
            return (yield)
        finally:
            trace.append("tidied")

    asked = Asked(
        plugin("Bad", around_stage=wrapper(raises_before)),
        plugin("Tidy", around_stage=wrapper(tidy)),
    )
    assert around(asked, lambda: 42, report_errors=True) == 42
    assert trace == ["tidied"]
    assert asked.guilty == ["Bad"]


def test_a_wrapper_that_swallows_anothers_failure_runs_no_body_twice():
    ran = []
    asked = Asked(
        plugin("Bad", around_stage=wrapper(raises_after)),
        plugin("Swallows", around_stage=wrapper(swallows)),
    )
    with pytest.raises(PluginError, match="plugin Bad .* raised ZeroDivisionError: after"):
        around(asked, lambda: ran.append(1) or 42)
    assert around(asked, lambda: ran.append(1) or 42, report_errors=True) == 42
    assert ran == [1, 1]


def test_a_stage_that_was_kept_from_running_is_an_error_or_runs():
    asked = Asked(
        plugin("Bad", around_stage=wrapper(raises_before)),
        plugin("Swallows", around_stage=wrapper(swallows)),
    )
    with pytest.raises(PluginError, match="plugin Bad .* raised ZeroDivisionError: before"):
        around(asked, lambda: 42)
    assert around(asked, lambda: 42, report_errors=True) == 42


def test_the_failure_of_a_stage_hides_no_wrong_wrapper():
    def body():
        raise StepError("umount failed")

    asked = Asked(plugin("Bad", around_stage=wrapper(replaces)))
    with pytest.raises(StepError, match="umount failed"):
        around(asked, body)
    assert asked.guilty == ["Bad"]


# Observers.


@isolated_or_not
@pytest.mark.parametrize("failure", [*BASE_EXCEPTIONS, Interrupted("x", signum=2)], ids=repr)
def test_an_observer_that_raises_changes_nothing_and_is_told_of_once(failure, is_isolated):
    seen = []
    event = Event("begin", "web1", "mount", "mount it")
    asked = Asked(
        plugin("A", event=lambda self, event: seen.append(event)),
        plugin("Bad", event=raising(failure)),
        plugin("B", event=lambda self, event: seen.append(event)),
        is_isolated=is_isolated,
    )
    asked.stages.event(event)
    asked.stages.event(event)
    assert seen == [event] * 4
    assert set(asked.guilty) == {"Bad"}
    assert type(failure).__name__ in asked.told[0].error


def test_ctrl_c_in_an_observer_is_raised_when_all_were_told():
    seen = []
    event = Event("begin", "web1", "mount", "mount it")
    asked = Asked(
        plugin("A", event=lambda self, event: seen.append(event)),
        plugin("Bad", event=raising(KeyboardInterrupt())),
    )
    with pytest.raises(KeyboardInterrupt):
        asked.stages.event(event)
    assert seen == [event]
    assert asked.guilty == ["Bad"]


# Answers that never come.


def test_who_does_not_answer_is_blamed_and_not_asked_again(release):
    asked = Asked(
        plugin("Default", kill_strategy=[TERM]),
        plugin("Slow", kill_strategy=waits, unmount_ordering=waits),
        is_isolated=True,
    )
    asked.stages.hook_timeout = 0.2
    assert asked.stages.kill_strategy(WEB1, ALIVE, force=False, timeout=None) == ("Default", [TERM])
    assert "did not come back within 0.2 s" in asked.told[0].does
    with pytest.raises(PluginError, match="no plugin answered"):
        asked.stages.unmount_ordering(WEB1, TABLE)
    assert asked.guilty == ["Slow"]


def test_nothing_is_thrown_into_a_thread_that_is_left_behind(release):
    ended = []

    def stubborn(self):
        try:
            waits(self)
        finally:
            ended.append(sys.exc_info()[0])

    asked = Asked(plugin("Slow", mount=stubborn), is_isolated=True)
    asked.stages.hook_timeout = 0.2
    with pytest.raises(PluginError, match="did not come back"):
        asked.stages.mount(WEB1)
    assert has_thread_left()
    RELEASED.set()
    wait_for(lambda: not has_thread_left())
    assert ended == [None]


def test_one_thread_and_one_context_serve_all_plugins():
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    def surround(self):
        token = variable.set("set")
        try:
            return (yield)
        finally:
            variable.reset(token)

    def see(self):
        seen.append((variable.get(), threading.get_ident()))
        return [ROOT]

    asked = Asked(
        plugin("A", mount=see, pre_start=see),
        plugin("B", around_stage=wrapper(surround)),
        is_isolated=True,
    )
    around(asked, lambda: asked.stages.mount(WEB1))
    asked.stages.mount(WEB1)
    assert [value for value, _ in seen] == ["set", "none"]
    assert len({ident for _, ident in seen}) == 1
    assert seen[0][1] != threading.get_ident()


def test_a_plugin_that_hangs_spoils_no_token_of_another(release):
    variable = contextvars.ContextVar("variable")
    trace = []

    def surround(self):
        token = variable.set("set")
        try:
            return (yield)
        finally:
            variable.reset(token)
            trace.append("reset")

    def see(self):
        trace.append(variable.get("nothing"))
        return [TERM]

    asked = Asked(
        plugin("Seeing", kill_strategy=see),
        plugin("Slow", kill_strategy=waits, around_stage=wrapper(passes)),
        plugin("Tidy", around_stage=wrapper(surround)),
        is_isolated=True,
    )
    asked.stages.hook_timeout = 0.2

    def body():
        return asked.stages.kill_strategy(WEB1, ALIVE, force=False, timeout=None)

    assert around(asked, body, report_errors=True) == ("Seeing", [TERM])
    assert trace == ["set", "reset"]
    assert asked.guilty == ["Slow"]


def test_a_request_to_end_does_not_wait_for_a_hook(release):
    requested = Cancellation()
    threading.Timer(0.3, requested.request).start()
    asked = Asked(plugin("Slow", mount=waits), is_isolated=True, check=requested.check)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        asked.stages.mount(WEB1)
    assert time.monotonic() - began < 5  # of the 10 that it has
    assert asked.told == []


def test_in_the_callers_thread_a_watchdog_reports_what_takes_long():
    reported = []

    def slow(self):
        wait_for(lambda: reported)
        return [ROOT]

    asked = Asked(plugin("Slow", mount=slow), report_slow=lambda *what: reported.append(what))
    asked.stages.hook_timeout = 0.1
    assert asked.stages.mount(WEB1) == [("Slow", ROOT)]
    ((name, what, clause),) = reported
    assert (name, what) == ("Slow", "chrootfw_mount")
    assert "has not come back after 0.1 s" in clause
    assert "test_dispatch.py" in clause


def test_without_isolation_a_hook_runs_in_its_callers_thread_and_context():
    variable = contextvars.ContextVar("variable")
    variable.set("mine")
    seen = []

    def hook(self):
        seen.append((variable.get(), threading.get_ident()))
        variable.set("the hook's")
        return [ROOT]

    Asked(plugin("A", mount=hook)).stages.mount(WEB1)
    assert seen == [("mine", threading.get_ident())]
    assert variable.get() == "the hook's"


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
    (
        lambda value: 1 / 0,
        "plugin A (test_dispatch): the check of parameter size raised ZeroDivisionError",
    ),
    (
        lambda value: False,
        "plugin A (test_dispatch): the check of parameter size answered False; expected None, or",
    ),
    (waits, "plugin A (test_dispatch): the check of parameter size did not come back within 0.2 s"),
]


def test_chrootfws_own_parameters_are_there_whatever_another_plugin_answers():
    wrong = plugin("Wrong", parameters=raising(ValueError("wrong")))
    dispatcher = Dispatcher(Registry([wrong]), list)
    with pytest.raises(PluginError):
        dispatcher.parameters()
    names = {parameter.name for _, parameter in dispatcher.first_party_parameters()}
    assert {"grace", "stop_script_timeout"} <= names


@pytest.mark.parametrize(("check", "words"), CHECKS)
def test_the_check_of_a_parameter_is_called_like_a_hook(check, words, release):
    asked = Asked(plugin("A", parameters=[Parameter("size", int, check=check)]), is_isolated=True)
    asked.stages.hook_timeout = 0.2
    try:
        config.resolve(
            Instance("web1", params={"size": 1}),
            asked.stages.parameters(),
            asked.stages.check_parameter,
        )
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


@pytest.mark.parametrize(
    "hook", [{"mount": [ROOT, MountPoint("/mnt", Dumb())]}, {"pre_start": [Dumb()]}]
)
def test_a_step_that_does_not_say_what_it_does_is_blamed_in_a_plan(tmp_path, hook):
    runtime = Runtime([plugin("Bad", **hook)], run_dir=tmp_path / "run", config_dir=tmp_path)
    with pytest.raises(
        PluginError,
        match=r"plugin Bad .* for web1: the step Dumb is not plain data: NotImplementedError",
    ):
        runtime.plan("start", Instance("web1", disk="/srv/web1.img"))


def test_a_fork_of_a_program_finds_a_thread_that_works(tmp_path):
    runtime = Runtime(
        [plugin("A", kill_strategy=[TERM])],
        isolate_plugins=True,
        run_dir=tmp_path / "run",
        config_dir=tmp_path,
    )
    child = os.fork()
    if not child:
        rows = runtime.who_answers(Instance("web1", disk=str(tmp_path)))
        os._exit(0 if ("kill", "kill_strategy", "A") in rows else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_wrappers_and_observers_are_among_those_that_answer(tmp_path):
    @hookimpl(wrapper=True)
    def chrootfw_around_stage():
        return (yield)

    @hookimpl(wrapper=True)
    def chrootfw_kill_strategy():
        return (yield)

    watching = plugin(
        "A", around_stage=chrootfw_around_stage, kill_strategy=chrootfw_kill_strategy, event=None
    )
    runtime = Runtime([watching], run_dir=tmp_path / "run", config_dir=tmp_path)
    rows = runtime.who_answers(Instance("web1", disk=str(tmp_path)))
    assert rows[-3:] == [
        ("kill", "kill_strategy (wrapper)", "A"),
        ("every", "around_stage", "A"),
        ("every", "event", "A"),
    ]


@isolated_or_not
def test_a_verb_leaves_no_thread(tmp_path, is_isolated):
    def live():
        runtime = Runtime(
            [plugin("A", kill_strategy=[TERM])],
            isolate_plugins=is_isolated,
            run_dir=tmp_path / "run",
            config_dir=tmp_path,
        )
        for _ in range(3):
            runtime.who_answers(Instance("web1", disk=str(tmp_path)))

    before = threading.active_count()
    live()
    wait_for(lambda: threading.active_count() <= before)


def test_a_thread_of_a_plugin_is_no_daemon_unless_it_says_so():
    seen = []

    def starts(self):
        seen.append(threading.Thread().daemon)
        return [ROOT]

    Asked(plugin("A", mount=starts), is_isolated=True).stages.mount(WEB1)
    assert seen == [False]


def test_a_plugin_that_says_the_same_wrong_thing_of_each_event_is_told_of_once():
    asked = Asked(plugin("Bad", event=raising(ValueError("no"))))
    for number in range(3):
        asked.stages.event(Event("begin", "web1", "mount", f"step {number}"))
    assert len(asked.told) == 1


def test_an_observer_that_fails_each_time_otherwise_is_reported_once():
    numbers = iter(range(100))

    def fail(self):
        raise ValueError(f"number {next(numbers)}")

    asked = Asked(plugin("A", event=fail))
    for _ in range(3):
        asked.stages.event(Event("begin", "web1", "mount", "mount"))
    assert next(numbers) == 3
    assert [event.what for event in asked.told] == ["plugin-error"]
