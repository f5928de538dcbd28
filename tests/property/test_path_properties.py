"""Names and paths of any kind: what is accepted is harmless, and what is harmless is accepted."""

import os.path
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chrootfw.errors import InputError
from chrootfw.model import Instance
from chrootfw.planning import paths

texts = st.text(st.characters(codec=None), max_size=12) | st.text(
    "ab./-_\0\n ~é\udc80", max_size=12
)
long_names = st.builds(
    lambda a, n: a * n, st.sampled_from(["a", "Z9", "-", "web."]), st.integers(60, 300)
)
components = st.text("ab. \n\\#é\udc80", min_size=1, max_size=6).filter(
    lambda c: c not in (".", "..")
)


def accepted(check, *arguments):
    try:
        check(*arguments)
    except InputError:
        return False
    return True


@given(texts | long_names)
@example("web1\n")
def test_a_name_is_accepted_if_and_only_if_it_matches_in_full(name):
    matches = re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name) is not None
    assert accepted(paths.check_name, name) is matches
    assert accepted(Instance, name) is matches


@given(texts | st.builds("/{}".format, texts))
@example("/..")
@example("/a/..")
@example("//")
def test_an_accepted_path_cannot_leave_its_root(path):
    if not accepted(paths.check_absolute, path, "it"):
        return
    root = "/run/root"
    assert os.path.normpath(root + path) == (root + path if path != "/" else root)
    assert paths.is_within(os.path.normpath(root + path), root)
    assert "\0" not in path
    os.fsencode(path)


@given(st.lists(components, max_size=5))
def test_every_normalised_path_is_accepted(parts):
    path = "/" + "/".join(parts)
    assert paths.check_absolute(path, "it") == path
    assert paths.components(path) == tuple(parts)


@given(st.lists(components, min_size=1, max_size=5), st.sampled_from(["", ".", ".."]), st.data())
def test_one_bad_component_anywhere_is_refused(parts, bad, data):
    where = data.draw(st.integers(0, len(parts)))
    path = "/" + "/".join([*parts[:where], bad, *parts[where:]])
    with pytest.raises(InputError, match="not normalised"):
        paths.check_absolute(path, "it")


@given(st.lists(components, max_size=3), st.lists(components, max_size=3))
def test_within_agrees_with_the_components(one, other):
    path, directory = "/" + "/".join(one), "/" + "/".join(other)
    within = one[: len(other)] == other
    assert paths.is_within(path, directory) is within
    assert paths.is_within_bytes(os.fsencode(path), os.fsencode(directory)) is within
