"""What stands in the place of a root's /etc/resolv.conf and /etc/hosts: the check answers with problems, and nothing waits."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import chrootfw
from chrootfw_defaults import resolver_files

FILES = ("resolv.conf", "hosts")
_LINKS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: "\0" not in text
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    (path / "etc").mkdir()
    return path


@pytest.fixture(autouse=True)
def empty(root: Path) -> Iterator[None]:
    yield
    _empty(root)


def _empty(root: Path) -> None:
    for name in FILES:
        path = root / "etc" / name
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            path.rmdir()


def _answers(root: Path) -> list[object]:
    instance = chrootfw.Instance(
        "web1", disk="/srv/x", params={"resolv_conf": "keep", "hosts": "keep"}
    )
    return list(resolver_files.chrootfw_pre_start(instance, chrootfw.Root(str(root))))


@given(text=_LINKS)
@example("resolv.conf")
@example("../../../../../../etc/passwd")
@example("a" * 1000)
@example("a/" * 500)
@example("/\x1b[2J\n")
def test_a_link_to_anything(root: Path, text: str) -> None:
    _empty(root)
    for name in FILES:
        os.symlink(text, root / "etc" / name)
    for answer in _answers(root):
        assert isinstance(answer, chrootfw.Problem)
        assert answer.warning


@given(content=st.binary(max_size=50))
def test_any_content(root: Path, content: bytes) -> None:
    _empty(root)
    for name in FILES:
        (root / "etc" / name).write_bytes(content)
    assert _answers(root) == []


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "sparse"])
def test_what_is_no_file_of_lines(root: Path, kind: str) -> None:
    path = root / "etc/hosts"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 40 << 30)
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))
    assert _answers(root) == []


@pytest.mark.parametrize("code", [errno.EUCLEAN, errno.EIO, errno.EBADMSG])
def test_a_damaged_etc_is_a_problem_of_the_disk(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(_root: chrootfw.Root, path: str) -> bool:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(chrootfw.Root, "exists", refuse)
    answers = _answers(root)
    assert len(answers) == len(FILES)
    for answer in answers:
        assert isinstance(answer, chrootfw.Problem)
        assert os.strerror(code) in answer.brief
        assert "/srv/x" in answer.brief
