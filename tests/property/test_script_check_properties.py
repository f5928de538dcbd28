"""What an init script begins with: whatever that is, the check finds problems and nothing else goes wrong."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import chrootfw
from chrootfw_defaults import pre_start_checks

_LINES = st.sampled_from(
    [
        b"#!",
        b"#!/bin/sh\n",
        b"#!/\0",
        b"#!/" + b"a" * 300,
        b"#!/" + b"a/" * 120,
        b"#!relative\n",
        b"#!/..\r\n",
        b"\x7fELF",
    ]
)
_NUMBERS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 64, 2**63, 2**64 - 1])


@st.composite
def _elf(draw: st.DrawFn) -> bytes:
    """A header whose numbers are anything."""
    header = (
        b"\x7fELF"
        + bytes([draw(st.sampled_from([1, 2, 9])), draw(st.sampled_from([1, 2]))])
        + bytes(10)
    )
    table, count = draw(_NUMBERS), draw(st.sampled_from([0, 1, 3, 65535]))
    header += struct.pack(
        "<HHIQQQIHHHHHH",
        2,
        62,
        1,
        0,
        table,
        0,
        0,
        64,
        draw(st.sampled_from([0, 56, 65535])),
        count,
        0,
        0,
        0,
    )
    return (
        header
        + struct.pack("<IIQQQQQQ", 3, 4, draw(_NUMBERS), 0, 0, draw(_NUMBERS), 0, 0)
        + draw(st.binary(max_size=99))
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    (path / "bin").mkdir()
    return path


@given(
    content=st.tuples(_LINES, st.binary(max_size=60)).map(b"".join)
    | st.binary(max_size=300)
    | _elf()
)
@example(b"#!/bin/sh\0x\n")
def test_any_content(root: Path, content: bytes) -> None:
    script = root / "init"
    script.write_bytes(content)
    script.chmod(0o755)
    found = list(pre_start_checks._check_script("/init", chrootfw.Root(str(root)), []))
    assert all(isinstance(problem, chrootfw.Problem) for problem in found)


def test_a_script_of_any_size_costs_no_memory(root: Path) -> None:
    (root / "init").write_bytes(b"")
    (root / "init").chmod(0o755)
    os.truncate(root / "init", 40 << 30)
    assert list(pre_start_checks._check_script("/init", chrootfw.Root(str(root)), []))
