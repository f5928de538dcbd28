"""Names and lexical path checks: what is refused, and with which words."""

from pathlib import PurePosixPath

import pytest

from chrootfw.errors import InputError
from chrootfw.model import Instance, MountPoint, Omit
from chrootfw.planning import paths

BAD_NAMES = [
    ("", "is empty"),
    (".", "begins with '.'"),
    ("..", "begins with '.'"),
    (".hidden", "begins with '.'"),
    ("-rf", "begins with '-'"),
    ("_web", "begins with '_'"),
    (" web", "begins with ' '"),
    ("web/1", "contains '/'"),
    ("../web", "begins with '.'"),
    ("a/../../etc", "contains '/'"),
    ("web\0", r"contains '\x00'"),
    ("web1\n", r"contains '\n'"),
    ("web\r", r"contains '\r'"),
    ("web\x07", r"contains '\x07'"),
    ("web\x1b[31m", r"contains '\x1b'"),
    ("web\x7f", r"contains '\x7f'"),
    ("web 1", "contains ' '"),
    ("web@1", "contains '@'"),
    ("wéb", "contains 'é'"),
    ("web\u0661", "contains '\u0661'"),
    ("web\udcff", r"contains '\udcff'"),
    ("a" * 201, "has 201 characters"),
    ("a" * 300, "has 300 characters"),
    (None, "must be a string"),
    (b"web1", "must be a string"),
    (7, "must be a string"),
    (["web1"], "must be a string"),
]


@pytest.mark.parametrize(
    ("name", "words"), BAD_NAMES, ids=[ascii(name)[:20] for name, _ in BAD_NAMES]
)
@pytest.mark.parametrize("taker", [paths.check_name, Instance])
def test_a_bad_name_is_refused(taker, name, words):
    with pytest.raises(InputError) as caught:
        taker(name)
    assert words in caught.value.brief
    assert "\n" not in caught.value.brief
    assert len(caught.value.brief) < 200


@pytest.mark.parametrize(
    "name", ["a", "Z", "0", "web1", "web-1.example.org", "a..b", "a_", "a.", "a" * 200]
)
def test_a_good_name_is_given_back(name):
    assert paths.check_name(name) == name
    assert Instance(name).name == name


BAD_PATHS = [
    ("", "is empty"),
    ("etc/passwd", "is not an absolute path"),
    ("./x", "is not an absolute path"),
    ("../x", "is not an absolute path"),
    ("//", "is not normalised"),
    ("//a", "is not normalised"),
    ("/a//b", "is not normalised"),
    ("/a/", "is not normalised"),
    ("/.", "is not normalised"),
    ("/a/./b", "is not normalised"),
    ("/..", "is not normalised"),
    ("/a/../../etc", "is not normalised"),
    ("/a\0b", "contains a NUL byte"),
    ("\0/a", "contains a NUL byte"),
    ("/" + "a" * 256, "has a component longer than 255 bytes"),
    ("/" + "é" * 128, "has a component longer than 255 bytes"),
    ("/a" * 2048, "is longer than 4095 bytes"),
    ("/\ud800", "contains a lone surrogate"),
    (None, "must be an absolute path"),
    (b"/a", "must be an absolute path"),
    (PurePosixPath("/a"), "must be an absolute path"),
    (3, "must be an absolute path"),
]


@pytest.mark.parametrize(
    ("path", "words"), BAD_PATHS, ids=[ascii(path)[:20] for path, _ in BAD_PATHS]
)
def test_a_bad_path_is_refused(path, words):
    with pytest.raises(InputError) as caught:
        paths.check_absolute(path, "the disk")
    assert caught.value.brief.startswith("the disk ")
    assert words in caught.value.brief
    assert len(caught.value.brief) < 250


@pytest.mark.parametrize(
    "path",
    ["/", "/a", "/a b/c", "/...", "/..a/b..", "/-", "/a\n", "/\udcff", "/" + "a" * 255, "/" + "é" * 127,
     ("/" + "a" * 255) * 15 + "/" + "a" * 254],
    ids=lambda path: ascii(path)[:20],
)  # fmt: skip
def test_a_good_path_is_given_back(path):
    assert paths.check_absolute(path, "the disk") == path


@pytest.mark.parametrize("taker", [lambda path: MountPoint(path, "tmpfs"), Omit])
def test_targets_are_checked(taker):
    with pytest.raises(InputError, match="not normalised"):
        taker("/proc/../../etc")


@pytest.mark.parametrize("at", ["root", "aux:lower", "aux:0"])
def test_a_good_place(at):
    assert paths.check_at(at) == at


@pytest.mark.parametrize(
    "at", ["", "aux", "aux:", "aux:.", "aux:../x", "aux:a/b", "aux:a\n", "ROOT", None, 3]
)
def test_a_bad_place(at):
    with pytest.raises(InputError):
        paths.check_at(at)


@pytest.mark.parametrize(
    ("path", "directory", "within"),
    [
        ("/a1", "/a1", True),
        ("/a1/b", "/a1", True),
        ("/a10", "/a1", False),
        ("/a", "/a/b", False),
        ("/a", "/", True),
        ("/", "/", True),
        ("/", "/a", False),
    ],
)
def test_within_is_by_component(path, directory, within):
    assert paths.is_within(path, directory) is within
    assert paths.is_within_bytes(path.encode(), directory.encode()) is within


def test_components():
    assert paths.components("/") == ()
    assert paths.components("/a/b c") == ("a", "b c")
