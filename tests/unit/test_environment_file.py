"""What an environment file may say, and that everything else is refused with its line and without its value."""

from __future__ import annotations

import pytest

from chrootfw.planning.environment_file import parse


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=de_DE.UTF-8", "de_DE.UTF-8"),
        ("  A =  one two\t ", "one two"),
        ("A=", ""),
        (r"""A='a "b" $c \d '""", r"""a "b" $c \d """),
        (r'A="a \"b\" \$c \\ \e  "', r'a "b" $c \ \e  '),
        ("A=http://proxy:3128/?a=b#c", "http://proxy:3128/?a=b#c"),
        ("A=first\n# a comment\n; another = one\n\nA=last", "last"),
    ],
)
def test_what_it_may_say(line: str, value: str) -> None:
    assert parse(f"{line}\n".encode()) == {"A": value}


def test_line_ends_of_other_systems() -> None:
    assert parse(b"A=b\r\nC=d\r\n") == {"A": "b", "C": "d"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"secret", "NAME=VALUE"),
        (b"export A=secret", "NAME=VALUE"),
        (b"1A=secret", "NAME=VALUE"),
        (b"=secret", "NAME=VALUE"),
        (b"A='secret", "single quote"),
        (b"A='secret' b", "single quote"),
        (b'A="secret', "double quote"),
        (b'A="secret"b"', "double quote"),
        (b'A="secret\\"', "double quote"),
        (b"A=secret\\", "backslash"),
        (b"A=secret\0", "control"),
        (b"A=\xff\xfesecret", "UTF-8"),
    ],
)
def test_what_it_may_not(line: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says) as failed:
        parse(b"OK=1\n" + line + b"\n")
    assert "line 2" in str(failed.value)
    assert "secret" not in str(failed.value)
