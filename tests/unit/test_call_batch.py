"""System calls as data: their numbers, and the three ways of carrying them out."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ways
from open_descriptors import none_left_open

from chrootfw.linux import call_batch, native, spawn, syscall_numbers, syscalls
from chrootfw.linux import child as children
from chrootfw.linux.call_batch import UNSET, CallBatch, Result

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


#: What libseccomp says of sendmsg on architectures that have socketcall(2): its pseudo number
#: (__PNR_sendmsg).
_MULTIPLEXED = -116


@pytest.mark.parametrize(("machine", "token", "column"), ARCHITECTURES)
def test_the_numbers_are_those_that_libseccomp_knows(
    libseccomp: ctypes.CDLL, machine: str, token: int, column: int
) -> None:
    table = {name: row[column] for name, row in syscall_numbers._BY_ARCHITECTURE.items()}
    table |= syscall_numbers._EVERYWHERE
    known = {
        name: libseccomp.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(token), name.encode())
        for name in table
    }
    if known["sendmsg"] == _MULTIPLEXED:  # the kernel has a number of its own for it too, since 4.3
        table["sendmsg"] = _MULTIPLEXED
    assert table == known, machine


def test_headers_and_table_agree() -> None:
    assert syscall_numbers._from_table() == syscall_numbers.NUMBERS


_KCMP_VM = 1
_SHARES = """
import ctypes, os, sys
from chrootfw.linux import syscalls
syscalls.RELEASE = sys.argv[1]
from chrootfw.linux import child, syscall_numbers
from chrootfw.linux.call_batch import CallBatch
waits, opens = os.pipe()
calls = CallBatch([waits])
calls.add("read", waits, calls.add_buffer(1), 1)
made = child.begin(calls)
print(syscalls.CALLS.syscall(syscall_numbers.NUMBERS["kcmp"], os.getpid(), made.pid, 1, 0, 0) == 0)
os.write(opens, b"+")
assert made.wait_for_end(60) and made.status == 0
made.close()
"""


@pytest.mark.parametrize(
    ("release", "shares"),
    [("5.14.0", False), ("5.15.203-1", False), ("5.16-rc1", True), ("6.12.1+deb13", True)],
)
def test_memory_is_shared_wherever_it_may_be(release: str, shares: bool) -> None:
    """Up to Linux 5.15 a child that dumps core ends all that share its memory."""
    done = subprocess.run(
        [sys.executable, "-c", _SHARES, release],
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
    )
    can_share = native.MODULE is not None and bool(native.MODULE.CAN_SHARE)
    assert done.stdout.split() == [str(can_share and shares)]


@pytest.fixture(params=ways.WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    ways.use(request.param, monkeypatch)
    return str(request.param)


def carried_out(calls: CallBatch) -> list[int]:
    child = children.begin(calls)
    assert child.wait_for_end(60)
    assert child.status == 0
    child.close()
    return calls.results()


def test_the_first_failure_is_the_end(way: str) -> None:
    calls = CallBatch()
    calls.add("umask", 0o022)
    calls.add("close", -1, what=b"closing")
    calls.add("umask", 0o022)
    assert carried_out(calls)[1:] == [-9, UNSET]
    assert calls.stopped_at() == (b"closing", 9)


def test_a_failure_that_is_to_be_ignored(way: str) -> None:
    calls = CallBatch()
    calls.add("close", -1, ignore=[2, 9, 62])
    calls.add("umask", 0o027)
    calls.add("umask", 0o022)
    assert carried_out(calls) == [-9, carried_out(calls)[1], 0o027]
    assert calls.stopped_at() is None


def test_a_group_is_skipped_from_its_failure_on(way: str) -> None:
    calls = CallBatch()
    first = calls.add("umask", 0o020)
    calls.add("close", -1)
    calls.add("umask", 0o007)
    calls.skip(first)
    calls.add("umask", 0o022)
    assert carried_out(calls)[1:] == [-9, UNSET, 0o020]
    assert calls.stopped_at() is None


@pytest.mark.parametrize("number", [0, 7, 1 << 62])
def test_a_comparison(way: str, number: int) -> None:
    calls = CallBatch()
    room = calls.add_buffer(8)
    room.write(number.to_bytes(8, sys.byteorder))
    calls.compare(room, number)
    calls.compare(room, number + 1)
    assert carried_out(calls) == [0, -116]
    assert calls.stopped_at() == (b"compare", 116)


@pytest.mark.parametrize("mask", [0xF0, -1 << 32, (-1 << 63) | 1])
def test_a_comparison_of_some_bits(way: str, mask: int) -> None:
    there = 0x7123_4567_89AB_CDE1
    calls = CallBatch()
    room = calls.add_buffer(8)
    room.write(there.to_bytes(8, sys.byteorder))
    calls.compare(room, there & mask, mask)
    calls.compare(room, there, mask)
    assert carried_out(calls) == [0, -116]


def test_an_answer_comes_back(way: str) -> None:
    calls = CallBatch()
    room = calls.add_buffer(8)
    calls.add("close_range", 0, 0xFFFFFFFF, 0)
    calls.add("openat", -100, b"/proc/sys/kernel/ostype", os.O_RDONLY)
    calls.add("read", 0, room, 4)
    assert carried_out(calls) == [0, 0, 4]
    assert room.data == b"Linu\0\0\0\0"


def test_six_arguments_come_in_their_order(
    way: str, tmp_path: Path, libseccomp: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """copy_file_range(2) has so many; its last must be zero."""
    number = libseccomp.seccomp_syscall_resolve_name(b"copy_file_range")
    monkeypatch.setitem(call_batch.NUMBERS, "copy_file_range", number)
    (tmp_path / "from").write_bytes(b"0123456789")
    (tmp_path / "to").write_bytes(b"..........")
    with (tmp_path / "from").open("rb") as source, (tmp_path / "to").open("r+b") as target:
        calls = CallBatch([source.fileno(), target.fileno()])
        begin = calls.add_buffer(8, (2).to_bytes(8, sys.byteorder))
        to = calls.add_buffer(8, (5).to_bytes(8, sys.byteorder))
        for last in (0, 1):
            calls.add("copy_file_range", source.fileno(), begin, target.fileno(), to, 3, last)
        assert carried_out(calls) == [3, -errno.EINVAL]
        assert (tmp_path / "to").read_bytes() == b".....234.."


def test_a_result_that_is_large_is_no_failure(way: str, tmp_path: Path) -> None:
    sizes = [1, 62, 63, 64, 116, 4095, 4096, 70_000]
    (tmp_path / "file").write_bytes(bytes(sum(sizes)))
    with (tmp_path / "file").open("rb") as file:
        calls = CallBatch([file.fileno()])
        room = calls.add_buffer(max(sizes))
        for size in sizes:
            calls.add("read", file.fileno(), room, size)
        assert carried_out(calls) == sizes
        assert calls.stopped_at() is None


def test_the_program_is_as_before(way: str) -> None:
    """A child has its own working directory, umask and descriptors; only its list is common."""
    before = os.getcwd(), os.umask(0o022)
    with none_left_open():
        with open("/dev/null") as kept:
            calls = CallBatch()
            calls.add("chdir", b"/proc")
            calls.add("umask", 0o777)
            calls.add("close_range", 0, 0xFFFFFFFF, 0)
            carried_out(calls)
            assert calls.stopped_at() is None
            os.fstat(kept.fileno())  # the child closed its own alone
        del calls
    assert (os.getcwd(), os.umask(before[1])) == (before[0], 0o022)


def test_a_result_is_an_argument(way: str) -> None:
    """The number of a descriptor that the child opens is not guessed."""
    calls = CallBatch()
    room = calls.add_buffer(4)
    opened = calls.add("openat", -100, b"/proc/sys/kernel/ostype", os.O_RDONLY)
    calls.add("read", Result(opened), room, room.size)
    calls.add("close", Result(opened))
    calls.add("close", Result(opened), what=b"again")
    results = carried_out(calls)
    assert results[1:] == [4, 0, -errno.EBADF]
    assert room.data == b"Linu"


def test_pointers_lead_to_bytes_of_the_batch(way: str) -> None:
    waits, tells = os.pipe()
    calls = CallBatch([tells])
    calls.add("dup3", tells, 1, 0)
    argv = calls.add_strings(["sh", "-c", 'echo "$0" "$WORD" "$#"', "first", "second"])
    calls.add("execve", b"/bin/sh", argv, calls.add_strings(["WORD=a word"]))
    child = children.begin(calls)
    os.close(tells)
    with open(waits, "rb") as file:
        assert file.read() == b"first a word 1\n"
    assert child.wait_for_end(60)
    assert child.status == 0
    child.close()


def test_a_batch_is_used_again(way: str) -> None:
    calls = CallBatch()
    room = calls.add_buffer(8, b"before")
    calls.add("getcwd", room, room.size, ignore=[errno.ERANGE])
    path = os.getcwdb() + b"\0"
    for _ in range(2):
        assert len(carried_out(calls)) == 1
        assert room.read(6) in (b"before", path[:6] + b"before"[len(path) :])


def test_a_signal_stays_blocked_in_the_child(way: str) -> None:
    waits, opens = os.pipe()
    calls = CallBatch([waits])
    calls.add("read", waits, calls.add_buffer(1), 1)
    child = children.begin(calls)
    status = Path(f"/proc/{child.pid}/status").read_text()
    blocked = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))
    os.write(opens, b"+")
    os.close(waits)
    os.close(opens)
    assert child.wait_for_end(60)
    child.close()
    never = [signal.SIGKILL, signal.SIGSTOP, *range(32, signal.SIGRTMIN)]  # the last are libc's own
    may_be_open = sum(1 << number - 1 for number in never)
    assert int(blocked, 16) | may_be_open == (1 << 64) - 1


@pytest.mark.parametrize("way", [way for way in ways.WAYS if way != "fork"])
def test_locks_of_other_threads_do_not_matter(
    way: str, monkeypatch: pytest.MonkeyPatch, in_threads: Callable[[Callable[[], None]], None]
) -> None:
    """A fork that ran Python would wait for the interpreter's lock, or for one of the allocator's."""
    ways.use(way, monkeypatch)

    def make() -> None:
        for _ in range(40 if way == "native" else 3):
            calls = CallBatch()
            calls.add("umask", 0o022)
            assert len(carried_out(calls)) == 1

    in_threads(make)


@pytest.fixture
def in_threads() -> Callable[[Callable[[], None]], None]:
    import threading

    def run(body: Callable[[], None]) -> None:
        failures: list[BaseException] = []

        def noted() -> None:
            try:
                body()
            except BaseException as error:
                failures.append(error)

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=noted) for _ in range(6)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
        finally:
            sys.setswitchinterval(before)
        assert not any(thread.is_alive() for thread in threads)
        assert not failures

    return run


def test_the_numbers_are_the_programs_whatever_the_machine_is_called() -> None:
    """As by who enters a 32-bit root with ``setarch``."""
    program = "import os; from chrootfw.linux.syscall_numbers import NUMBERS; print(os.uname().machine, sorted(NUMBERS.items()))"
    done = subprocess.run(
        ["linux32", sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    machine, _, numbers = done.stdout.strip().partition(" ")
    assert machine != os.uname().machine
    assert numbers == str(sorted(call_batch.NUMBERS.items()))


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
def test_the_version_of_a_kernel(
    monkeypatch: pytest.MonkeyPatch, release: str, version: tuple[int, int]
) -> None:
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
def test_a_limit_on_memory_is_found_above_too(
    tmp_path: Path, limits: dict[str, str], limited: bool, how: str
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for file, text in limits.items():
        (tmp_path / file).write_text(text)
    cgroup = str(tmp_path / "a/b")
    given = (cgroup, []) if how == "born" else (None, [f"{cgroup}/cgroup.procs"])
    assert spawn.memory_is_limited(*given) is limited
