"""Which verb fits which state: the whole table."""

import pytest

from chrootfw.errors import TransitionError
from chrootfw.planning import transitions
from chrootfw.views import InstanceState

STATES = ("absent", "mounted", "running", "held")
LEGAL = {
    "start": ("absent", "mounted"),
    "stop": STATES,
    "cleanup": ("absent", "mounted", "held"),
    "reboot": ("mounted", "running"),
    "enter": ("mounted", "running"),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("verb", LEGAL)
def test_every_verb_in_every_state(verb, state):
    if state in LEGAL[verb]:
        transitions.check(verb, "web1", InstanceState(state))
        return
    with pytest.raises(TransitionError) as caught:
        transitions.check(verb, "web1", InstanceState(state))
    assert caught.value.brief.startswith(f"cannot {verb} web1: it ")
    assert "chrootfw " in caught.value.hint
    assert "web1" in caught.value.hint
