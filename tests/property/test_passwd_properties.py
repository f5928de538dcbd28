"""What a root's own /etc/passwd and /etc/group hold: whatever that is, there is a user with valid IDs or an ``InputError``."""

from __future__ import annotations

import os
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chrootfw.errors import InputError
from chrootfw.linux import passwd as passwd_files

ID_MAX = 2**32 - 2
_FIELDS = st.sampled_from(
    [
        b"root",
        b"nobody",
        b"x",
        b"",
        b"0",
        b"1",
        b"65534",
        b"4294967294",
        b"4294967295",
        b"4294967296",
        b"9" * 5000,
    ]
    + [
        "²".encode(),
        "٣".encode(),
        b"-1",
        b"+0",
        b" 0",
        b"abc",
        b"/root",
        b"/bin/sh",
        b"\0",
        b"\xff\xfe",
        b"\x1b[2J",
    ]
)
_LINES = st.lists(_FIELDS, min_size=1, max_size=9).map(b":".join)
_FILES = st.lists(_LINES | st.binary(max_size=30), max_size=6).map(b"\n".join)
_WANTED = st.sampled_from(
    ["root", "nobody", "0", "1", "65534", "²", "root:x", "0:0", "1:nobody"]
) | st.text(max_size=5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    (path / "etc").mkdir()
    return path


@pytest.fixture(autouse=True)
def empty(root: Path) -> Iterator[None]:
    yield
    for file in (root / "etc").iterdir():
        file.unlink()


@given(passwd=_FILES, group=_FILES, wanted=_WANTED)
@example(b"nobody:x:4294967295:65534:nobody:/:/bin/sh", b"", "nobody")
@example(b"root:x:0:abc:root:/root:/bin/sh", b"x:x:\xc2\xb2:root", "0")
@settings(max_examples=400)
def test_any_content(root: Path, passwd: bytes, group: bytes, wanted: str) -> None:
    (root / "etc/passwd").write_bytes(passwd)
    (root / "etc/group").write_bytes(group)
    try:
        user = passwd_files.find(str(root), wanted)
    except InputError as error:
        assert "\n" not in error.brief
        return
    for number in (user.uid, user.gid, *user.groups):
        assert 0 <= number <= ID_MAX
    name = wanted.partition(":")[0]
    if name.isdigit():
        assert user.uid == int(name)
    else:
        row = next(
            line.split(b":")
            for line in passwd.split(b"\n")
            if line.split(b":")[0] == os.fsencode(name)
        )
        assert user.uid == int(row[2])
    for text in (user.home, user.shell, user.name):
        assert "\0" not in text
    assert user.home.startswith("/")
    assert user.shell.startswith("/")


def _write(root: Path, passwd: str = "", group: str = "") -> str:
    (root / "etc/passwd").write_text(passwd)
    (root / "etc/group").write_text(group)
    return str(root)


def test_the_entry_and_the_groups_of_a_user(root: Path) -> None:
    path = _write(
        root,
        "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/zsh\n",
        "root:x:0:\nann:x:1000:\naudio:x:29:bob,ann\nx:x:77:joann,anna\nvideo:x:44:ann\n",
    )
    ann = passwd_files.find(path, "ann")
    assert (ann.uid, ann.gid, ann.groups, ann.home, ann.shell) == (
        1000,
        1000,
        [29, 44, 1000],
        "/home/ann",
        "/bin/zsh",
    )
    assert passwd_files.find(path, "1000").groups == ann.groups
    assert passwd_files.find(path, "ann:audio").groups == [29]
    nobody = passwd_files.find(path, "4294967294")
    assert (nobody.uid, nobody.gid, nobody.groups, nobody.home) == (
        4294967294,
        4294967294,
        [4294967294],
        "/",
    )


def test_a_number_is_a_number_whatever_is_called_so(root: Path) -> None:
    path = _write(root, "1000:x:0:0::/:/bin/sh\n", "1000:x:0:\n")
    assert passwd_files.find(path, "1000").uid == 1000
    assert passwd_files.find(path, "1000:1000").gid == 1000


@pytest.mark.parametrize("wanted", ["nobody", "nogroup:x"])
def test_a_name_without_a_valid_id_is_refused(root: Path, wanted: str) -> None:
    path = _write(root, "nobody:x:4294967295:65534::/:/bin/sh\nnogroup:x:5:4294967296::/:/bin/sh\n")
    with pytest.raises(InputError, match="valid"):
        passwd_files.find(path, wanted)


@pytest.mark.parametrize(
    "content",
    [b"\0", b"\n", b"root:x:0:0:root:/root:/bin/sh\n" * 9, b":" * 50],
    ids=["NUL", "empty", "entries", "colons"],
)
@pytest.mark.parametrize("file", ["passwd", "group"])
def test_a_file_of_any_size_costs_little_memory(root: Path, file: str, content: bytes) -> None:
    with open(root / "etc" / file, "wb") as stream:
        stream.write(content * (6_000_000 // len(content)))
        stream.truncate(40 << 30)
    tracemalloc.start()
    try:
        try:
            passwd_files.find(str(root), "ann" if file == "passwd" else "0")
        except InputError:
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert passwd_files.find_root(str(root)).uid == 0


@pytest.mark.parametrize("kind", ["fifo", "directory", "loop", "socket"])
def test_what_is_not_a_regular_file_is_not_read(root: Path, kind: str) -> None:
    path = root / "etc/passwd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to("passwd")
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))  # its path may be too long
    try:
        with pytest.raises(InputError, match="passwd"):
            passwd_files.find(str(root), "ann")
        assert passwd_files.find_root(str(root)).shell == "/bin/sh"
    finally:
        path.rmdir() if kind == "directory" else None
