"""Escalations: what is refused, what is appended, whom a signal reaches."""

import math
from signal import SIGHUP, SIGKILL, SIGTERM

import pytest

from chrootfw.model import Escalation
from chrootfw.planning import kill_plan

TERM, KILL = Escalation(SIGTERM, 10), Escalation(SIGKILL, 2)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([], "at least one"),
        (None, "a list of Escalation, not NoneType"),
        (TERM, "a list of Escalation, not Escalation"),
        ((step for step in [TERM]), "not generator"),
        ([TERM, "KILL"], "answer 2 is 'KILL'"),
        ([(15, 10)], "answer 1 is (15, 10)"),
        ([Escalation("TERM", 1)], "escalation 1: the signal is 'TERM'"),
        ([Escalation(True, 1)], "the signal is True"),
        ([Escalation(15.0, 1)], "the signal is 15.0"),
        ([Escalation(0, 1)], "0 is not a signal"),
        ([Escalation(-9, 1)], "-9 is not a signal"),
        ([Escalation(65, 1)], "65 is not a signal"),
        ([TERM, Escalation(SIGKILL, -0.5)], "escalation 2: the grace is -0.5 s"),
        ([Escalation(SIGTERM, math.nan)], "the grace is nan s"),
        ([Escalation(SIGTERM, math.inf)], "the grace is inf s"),
        ([Escalation(SIGTERM, 86_401)], "not within 0 and 86400"),
        ([Escalation(SIGTERM, "10")], "the grace is '10', not a number"),
        ([Escalation(SIGTERM, None)], "the grace is None"),
        ([Escalation(SIGTERM, False)], "the grace is False"),
        ([Escalation(SIGTERM, 1, "everyone")], "to is 'everyone'"),
        ([Escalation(SIGTERM, 1, [7, 9])], "names pid 9, which it was not given"),
        ([Escalation(SIGTERM, 1, ["7"])], "names pid '7'"),
        ([Escalation(SIGTERM, 1, [7.0])], "names pid 7.0"),
        ([Escalation(SIGTERM, 1, b"own")], "names pid 111"),
    ],
)
def test_a_wrong_strategy_is_named(answer, words):
    assert words in kill_plan.check(answer, [7, 8])


@pytest.mark.parametrize("pid", [-1, 0, 1, True])
def test_pids_up_to_one_are_refused_even_if_given(pid):
    assert "which it was not given" in kill_plan.check(
        [Escalation(SIGTERM, 1, [pid])], [pid, 1, 0, -1]
    )


@pytest.mark.parametrize(
    "answer",
    [
        [TERM],
        (TERM, KILL),
        [Escalation(15, 0)],
        [Escalation(64, 0.25, "all")],
        [Escalation(SIGHUP, 86_400, [8, 7, 7])],
        [Escalation(SIGHUP, 1, ())],
    ],
)
def test_a_right_strategy_passes(answer):
    assert kill_plan.check(answer, [7, 8]) is None


@pytest.mark.parametrize(
    ("answer", "force", "appended"),
    [
        ([TERM], False, False),
        ([TERM], True, True),
        ([TERM, KILL], True, False),
        ([KILL, TERM], True, True),
        ([Escalation(9, 5, "all")], True, False),
        ([Escalation(SIGKILL, 5, [7])], True, True),
    ],
)
def test_force_ends_with_kill(answer, force, appended):
    assert (
        kill_plan.complete(answer, force=force)
        == answer + [Escalation(SIGKILL, 2.0, "own")] * appended
    )


@pytest.mark.parametrize(
    ("force", "holders", "expected"),
    [
        (False, False, [Escalation(SIGTERM, 3, "own"), Escalation(SIGKILL, 2.0, "own")]),
        (False, True, [Escalation(SIGTERM, 3, "all"), Escalation(SIGKILL, 2.0, "all")]),
        (True, False, [Escalation(SIGKILL, 2.0, "own")]),
        (True, True, [Escalation(SIGKILL, 2.0, "all")]),
    ],
)
def test_make_strategy(force, holders, expected):
    assert kill_plan.make_strategy(grace=3, force=force, holders=holders) == expected


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("own", [5, 7]),
        ("all", [5, 7, 8]),
        ((8, 5, 8), [8, 5]),
        ((99,), []),
        ((), []),
        ((9,), []),
    ],
)
def test_targets(to, expected):
    """99 is gone; 9 is spared; 0 and 1 are never signalled."""
    step = Escalation(SIGTERM, 1, to)
    assert (
        kill_plan.list_targets(
            step, own=iter([5, 1, 0, 7, 5]), holders=iter([8, 9, 7]), spared=iter([9])
        )
        == expected
    )


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (TERM, "SIGTERM to the own processes, then wait at most 10 s"),
        (
            Escalation(9, 2.5, "all"),
            "SIGKILL to the own processes and the holders, then wait at most 2.5 s",
        ),
        (Escalation(40, 0, [7, 8]), "signal 40 to pid 7, 8, then wait at most 0 s"),
    ],
)
def test_describe(step, words):
    assert kill_plan.describe(step) == words


@pytest.mark.parametrize(
    ("answer", "graces"),
    [
        ([Escalation(SIGTERM, 8), KILL], [1.5, 2]),
        ([Escalation(SIGTERM, 1), Escalation(SIGHUP, 1, [7]), KILL], [1, 0.5, 2]),
        ([Escalation(SIGKILL, 60, [7]), Escalation(SIGKILL, 60, "all"), TERM], [1.5, 60, 10]),
        ([KILL], [2]),
    ],
)
def test_graces_before_kill_are_cut(answer, graces):
    cut = kill_plan.cut_graces(answer, 1.5)
    assert [step.grace for step in cut] == graces
    assert [(step.signal, step.to) for step in cut] == [(step.signal, step.to) for step in answer]


def test_without_time_kill_comes_at_once():
    cut = kill_plan.cut_graces([TERM, KILL], -1.0)
    assert [step.grace for step in cut] == [0, 2]
