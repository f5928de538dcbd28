"""User and group IDs, and the words and variables of a command: what the kernel would cut or read as something else."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

import chrootfw
from chrootfw.linux import spawn
from chrootfw.planning import ids

GOOD = ["0", "1", "1000", "65534", "4294967294"]
BAD = ["4294967295", "4294967296", "99999999999999999999999", "9" * 5000]


@pytest.mark.parametrize("text", GOOD)
def test_an_id(text: str) -> None:
    assert ids.parse_id(text) == ids.parse_id(text.encode()) == int(text)
    assert ids.check_user(text) == (text, None)
    assert chrootfw.Entry(user=text).user == text


@pytest.mark.parametrize("text", [*BAD, "²", "٣", "-1", "+1", "0x0", "1_0", "", " 1", "1 ", "1\n"])
def test_what_is_not_an_id(text: str) -> None:
    assert ids.parse_id(text) is None


@pytest.mark.parametrize(
    "text", [*BAD, *(f"0:{bad}" for bad in BAD), "", ":", "0:", ":0", "a\0b", "\ud800", 0, b"0"]
)
def test_a_user_that_no_process_can_have(text: object) -> None:
    with pytest.raises(chrootfw.InputError):
        ids.check_user(text)
    with pytest.raises(chrootfw.InputError):
        chrootfw.Entry(user=text)  # type: ignore[arg-type]


@given(st.text() | st.integers().map(str))
def test_any_text_is_an_id_or_not(text: str) -> None:
    number = ids.parse_id(text)
    if number is not None:
        assert 0 <= number <= 2**32 - 2
        assert int(text) == number
        assert set(text) <= set("0123456789")


@pytest.mark.parametrize("number", [-1, 2**32 - 1, 2**32, 2**63, 2**64, True, "0", 1.0, None])
def test_no_process_is_started_with_an_id_that_is_not_one(number: object) -> None:
    for given_ids in ((number, 0, ()), (0, number, ()), (0, 0, (number,))):
        with pytest.raises(chrootfw.InputError, match="ID"):
            spawn.spawn(
                ["/bin/true"], root_fd=-1, env={}, stdin=0, stdout=1, stderr=2, ids=given_ids
            )  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["a\0b", "\0", "\ud800", b"x", 7, None])
def test_a_word_that_execve_does_not_take_whole(word: object) -> None:
    with pytest.raises(chrootfw.InputError):
        ids.check_words(["/bin/echo", word])
    with pytest.raises(chrootfw.InputError):
        ids.check_environment({"A": word})  # type: ignore[dict-item]
    with pytest.raises(chrootfw.InputError):
        chrootfw.Command(["/bin/echo", word])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["", "A=B", "=", "A\0", "\ud800", 7])
def test_a_variable_with_a_name_that_is_not_one(name: object) -> None:
    with pytest.raises(chrootfw.InputError):
        ids.check_environment({name: "x"})  # type: ignore[dict-item]


def test_any_byte_but_nul_is_taken() -> None:
    text = os.fsdecode(bytes(range(1, 256)))
    assert ids.check_words([text]) == [text]
    assert ids.check_environment({"A": text}) == {"A": text}
