"""Whatever lives and whatever was answered: whom a signal reaches, and that it ends."""

from signal import SIGKILL

from hypothesis import given
from hypothesis import strategies as st

from chrootfw.model import Escalation
from chrootfw.planning import kill_plan

pids = st.lists(st.integers(-2, 12), max_size=8)
to = st.sampled_from(["own", "all"]) | pids
escalations = st.builds(Escalation, st.sampled_from([1, 9, 15, 40]), st.floats(0, 86_400), to)


@given(escalations, pids, pids, pids)
def test_targets(step, own, holders, spared):
    found = kill_plan.list_targets(step, own, holders, spared)
    assert len(set(found)) == len(found)
    assert all(pid > 1 for pid in found)
    assert not set(found) & set(spared)
    asked = {"own": own, "all": own + holders}[step.to] if isinstance(step.to, str) else step.to
    alive = set(own) | set(holders)
    assert set(found) == {pid for pid in asked if pid in alive and pid > 1 and pid not in spared}


@given(st.lists(escalations, min_size=1, max_size=5), st.booleans())
def test_complete_ends_and_only_adds(answer, force):
    done = kill_plan.complete(answer, force=force)
    assert done[: len(answer)] == answer
    assert len(done) <= len(answer) + 1
    assert force or done == answer
    if force:
        assert done[-1].signal == SIGKILL
        assert done[-1].to in ("own", "all")
    assert kill_plan.complete(done, force=force) == done


@given(st.lists(escalations, max_size=4), st.sets(st.integers(-2, 12)))
def test_an_answer_passes_if_and_only_if_every_pid_was_given(answer, given_pids):
    named = {pid for step in answer if not isinstance(step.to, str) for pid in step.to}
    right = bool(answer) and named <= given_pids and all(pid > 1 for pid in named)
    assert (kill_plan.check(answer, given_pids) is None) is right


anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4)
)


@given(
    st.lists(st.builds(Escalation, anything, anything, st.text() | st.lists(anything)) | anything)
    | anything
)
def test_check_answers_for_everything(answer):
    wrong = kill_plan.check(answer, [7, 8])
    if wrong is None:
        for step in kill_plan.complete(answer, force=True):
            assert set(kill_plan.list_targets(step, [7], [8], ())) <= {7, 8}
            assert kill_plan.describe(step)
            assert 0 <= step.grace <= kill_plan.GRACE_MAX
    else:
        assert isinstance(wrong, str)


@given(st.floats(0, 100), st.booleans(), st.booleans())
def test_our_own_strategy_is_right(grace, force, holders):
    answer = kill_plan.make_strategy(grace=grace, force=force, holders=holders)
    assert kill_plan.check(answer, []) is None
    assert kill_plan.complete(answer, force=True) == answer
