"""A batch is carried out alike by the compiled module, by a fork, and by what the docstring says."""

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chrootfw.linux import child as children
from chrootfw.linux import native
from chrootfw.linux.call_batch import UNSET, CallBatch

#: Calls that fail in a way of their own, or do not; what they return, the former umask left out.
CALLS = {
    ("umask", 0o022): 0,
    ("close", -1): -errno.EBADF,
    ("chdir", b"/nowhere"): -errno.ENOENT,
    ("chdir", b"/dev/null"): -errno.ENOTDIR,
    ("dup3", 0, 0, 0): -errno.EINVAL,
    ("ioctl", 0, 0, 0): -errno.ENOTTY,
    ("setns", -1, 0): -errno.EBADF,
    ("openat", -100, b"/", os.O_WRONLY): -errno.EISDIR,
    ("fsconfig", -1, 99, None, None, 0): None,  # of a kernel with no such command: whatever it says
    "compare": -errno.ESTALE,
}

steps = st.lists(
    st.tuples(
        st.sampled_from(list(CALLS)),
        st.lists(
            st.sampled_from(
                [errno.EBADF, errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.EISDIR, 62]
            )
        ),
        st.booleans(),  # a group ends after it
    ),
    min_size=1,
    max_size=40,
)


def made(plan):
    """The list, the room for its comparisons, and which step each goes on with after a failure (``None``: with none)."""
    calls = CallBatch()
    room = calls.add_buffer(8)
    begin, otherwise = 0, {}
    for number, (call, ignore, ends) in enumerate(plan):
        if call == "compare":
            calls.compare(room, 1)
        else:
            calls.add(*call, ignore=ignore)
        if ends:
            calls.skip(begin)
            otherwise.update(dict.fromkeys(range(begin, number + 1), number + 1))
            begin = number + 1
    return calls, otherwise


def expected(plan, otherwise, of_unknown):
    results, at = [UNSET] * len(plan), 0
    while at < len(plan):
        call, ignore, _ = plan[at]
        results[at] = of_unknown if CALLS[call] is None else CALLS[call]
        ignored = call != "compare" and -results[at] in ignore
        at = at + 1 if results[at] >= 0 or ignored else otherwise.get(at, len(plan))
    return results


def carried_out(calls):
    child = children.begin(calls)
    assert child.wait_for_end(60)
    assert child.status == 0
    child.close()
    return [0 if 0 < result < 0o10000 else result for result in calls.results()]


def unknown():
    calls = CallBatch()
    calls.add("fsconfig", -1, 99, None, None, 0)
    return carried_out(calls)[0]


@settings(max_examples=200, deadline=None)
@given(steps)
def test_both_ways_do_what_the_list_says(plan):
    calls, otherwise = made(plan)
    wanted = expected(plan, otherwise, unknown())
    assert carried_out(calls) == wanted
    stopped = calls.stopped_at()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "MODULE", None)
        patch.setattr(children, "_has_threads", lambda: False)  # none that holds a lock
        assert carried_out(calls) == wanted
    assert calls.stopped_at() == stopped
