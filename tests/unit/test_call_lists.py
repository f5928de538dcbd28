"""System calls as data: their numbers, and the machine code that carries them out."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chrootfw.system import call_lists, children, runner, spawn, syscalls
from chrootfw.system.call_lists import UNSET, CallList

#: linux/audit.h, by the columns of the table; asm-generic is that of aarch64 and of riscv64.
ARCHITECTURES = (
    ("x86_64", 0xC000003E, 0),
    ("aarch64", 0xC00000B7, 1),
    ("riscv64", 0xC00000F3, 1),
    ("ppc64le", 0xC0000015, 2),
    ("s390x", 0x80000016, 3),
)


@pytest.fixture(scope="module")
def libseccomp() -> ctypes.CDLL:
    return ctypes.CDLL("libseccomp.so.2")


@pytest.mark.parametrize(("machine", "token", "column"), ARCHITECTURES)
def test_the_numbers_are_those_that_libseccomp_knows(
    libseccomp: ctypes.CDLL, machine: str, token: int, column: int
) -> None:
    known = {
        name: libseccomp.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(token), name.encode())
        for name in call_lists.NUMBERS
    }
    table = {name: numbers[column] for name, numbers in call_lists._BY_ARCHITECTURE.items()}
    assert {**call_lists.NUMBERS, **table} == known, machine


def test_the_code_is_its_source(tmp_path: Path) -> None:
    source, objects, code = (tmp_path / name for name in ("runner.S", "runner.o", "runner.bin"))
    source.write_text(runner.SOURCE)
    subprocess.run(["as", "--64", "-o", str(objects), str(source)], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(objects), str(code)], check=True)
    assert code.read_bytes() == runner.CODE


def test_the_code_is_used_here() -> None:
    assert (runner.start is not None) == (os.uname().machine == "x86_64")


@pytest.fixture(params=["machine code", "fork"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fork":
        monkeypatch.setattr(runner, "start", None)
    return str(request.param)


def carried_out(calls: CallList) -> list[int]:
    child = children.begin(calls)
    assert child.wait(60) == 0
    child.close()
    return calls.results()


def test_the_first_failure_is_the_end(way: str) -> None:
    calls = CallList()
    calls.add("umask", 0o022)
    calls.add("close", -1, what=b"closing")
    calls.add("umask", 0o022)
    assert carried_out(calls)[1:] == [-9, UNSET]
    assert calls.stopped_at() == (b"closing", 9)


def test_a_failure_that_is_to_be_ignored(way: str) -> None:
    calls = CallList()
    calls.add("close", -1, ignore=[2, 9, 62])
    calls.add("umask", 0o027)
    calls.add("umask", 0o022)
    assert carried_out(calls) == [-9, carried_out(calls)[1], 0o027]
    assert calls.stopped_at() is None


def test_a_group_is_skipped_from_its_failure_on(way: str) -> None:
    calls = CallList()
    first = calls.add("umask", 0o020)
    calls.add("close", -1)
    calls.add("umask", 0o007)
    calls.skip(first)
    calls.add("umask", 0o022)
    assert carried_out(calls)[1:] == [-9, UNSET, 0o020]
    assert calls.stopped_at() is None


@pytest.mark.parametrize("number", [0, 7, 1 << 62])
def test_a_comparison(way: str, number: int) -> None:
    calls = CallList()
    room = calls.room(8)
    room.data[:] = number.to_bytes(8, "little")
    calls.compare(room.address, number)
    calls.compare(room.address, number + 1)
    assert carried_out(calls) == [0, -116]
    assert calls.stopped_at() == (b"compare", 116)


def test_an_answer_comes_back(way: str) -> None:
    calls = CallList()
    room = calls.room(8)
    calls.add("close_range", 0, 0xFFFFFFFF, 0)
    calls.add("openat", -100, b"/proc/self/comm", os.O_RDONLY)
    calls.add("read", 0, room.address, 4)
    assert carried_out(calls) == [0, 0, 4]
    assert room.data[:4] == Path("/proc/self/comm").read_bytes()[:4]


def test_the_program_is_as_before(way: str) -> None:
    """A child has its own working directory, umask and descriptors; only its list is common."""
    before = os.getcwd(), os.umask(0o022), sorted(os.listdir("/proc/self/fd"))
    calls = CallList()
    calls.add("chdir", b"/proc")
    calls.add("umask", 0o777)
    calls.add("close_range", 0, 0xFFFFFFFF, 0)
    carried_out(calls)
    assert calls.stopped_at() is None
    assert (os.getcwd(), os.umask(before[1]), sorted(os.listdir("/proc/self/fd"))) == (before[0], 0o022, before[2])


def test_a_fork_that_begins_at_the_last_moment_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have run an init script, which is to run once."""
    monkeypatch.setattr(runner, "start", None)
    monkeypatch.setattr(children, "ATTEMPTS", (0.001, 5.0))
    made: list[children.Child] = []
    clone = children.clone

    def note(*arguments: Any) -> children.Child:
        made.append(clone(*arguments))
        return made[-1]

    def too_late(_begun: int, _ended: int, _seconds: float) -> bool:
        assert children.is_ready(made[-1].pidfd, 60)  # it has done everything when its time is over
        return False

    monkeypatch.setattr(children, "clone", note)
    monkeypatch.setattr(children, "_is_either_ready", too_late)
    calls = CallList()
    calls.add("umask", 0o022)
    with pytest.raises(OSError, match="no process could be made"):
        children.begin(calls)
    assert len(made) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_steps_that_are_repeated_are_those_added_one_by_one(count: int) -> None:
    one_by_one, at_once = CallList(), CallList()
    begins = []
    for calls in (one_by_one, at_once):
        calls.add("umask", 0)
    for number in range(count):
        begins.append(one_by_one.add("close_range", 5, 6, 7))
        one_by_one.add("openat", 1, 1000 + 24 * number)
        one_by_one.skip(begins[-1])
    repeated = at_once.repeat(count, ("close_range", [(5, 0), (6, 0), (7, 0)]), ("openat", [(1, 0), (1000, 24)]))
    assert list(repeated) == begins
    assert at_once.names == one_by_one.names
    assert at_once.words == one_by_one.words


def test_a_fork_that_ends_before_it_begins_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its cgroup is killed at that moment."""
    monkeypatch.setattr(runner, "start", None)
    monkeypatch.setattr(children, "_carry_out", lambda _calls, _tell: children.CALLS.exit(7))
    calls = CallList()
    calls.add("umask", 0o022)
    child = children.begin(calls)
    assert child.wait(60) == 7
    assert calls.stopped_at() == (b"umask", 0)
    child.close()


def test_the_numbers_are_the_programs_whatever_the_machine_is_called() -> None:
    """As by who enters a 32-bit root with ``setarch``."""
    program = "import os; from chrootfw.system import call_lists; print(os.uname().machine, call_lists.NUMBERS)"
    done = subprocess.run(["linux32", sys.executable, "-c", program], check=True, capture_output=True, text=True)
    machine, _, numbers = done.stdout.strip().partition(" ")
    assert machine != os.uname().machine
    assert numbers == str(call_lists.NUMBERS)


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.18.44-fc-v657", (6, 18)),
        ("5.15-rc3", (5, 15)),
        ("6.1.0-13-amd64", (6, 1)),
        ("5.14", (5, 14)),
        ("7.0+", (7, 0)),
    ],
)
def test_the_version_of_a_kernel(monkeypatch: pytest.MonkeyPatch, release: str, version: tuple[int, int]) -> None:
    monkeypatch.setattr(syscalls, "RELEASE", release)
    assert syscalls.kernel() == version


@pytest.mark.parametrize(
    ("limits", "limited"),
    [
        ({"a/memory.max": "max\n", "a/b/memory.max": "max\n"}, False),
        ({"a/memory.max": "max\n", "a/b/memory.max": "1048576\n"}, True),
        ({"a/memory.max": "0\n", "a/b/memory.max": "max\n"}, True),
        ({"a/memory.limit_in_bytes": "9223372036854771712\n"}, False),
        ({"a/b/memory.limit_in_bytes": "1048576\n"}, True),
        ({}, False),
    ],
)
@pytest.mark.parametrize("how", ["born", "joins"])
def test_a_limit_on_memory_is_found_above_too(tmp_path: Path, limits: dict[str, str], limited: bool, how: str) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for file, text in limits.items():
        (tmp_path / file).write_text(text)
    cgroup = str(tmp_path / "a/b")
    given = (cgroup, []) if how == "born" else (None, [f"{cgroup}/cgroup.procs"])
    assert spawn.memory_is_limited(*given) is limited
