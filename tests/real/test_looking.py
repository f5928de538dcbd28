"""What ps, list and info show of processes: who they are, what they cost, and that all have ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import roots
from driving import Chroot, Cli
from kernelview import wait_until

from chrootfw.linux import deadlines, procfs
from chrootfw.state import process_details, show
from chrootfw.views import Process

MakeChroot = Callable[..., Chroot]
#: Run in the background by exec, with nothing of the caller's.
QUIET = "exec > /dev/null 2>&1 < /dev/null; "


def processes(chroot: Chroot) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chroot.cli("ps", "--json").json()["processes"]
    return found


def one(chroot: Chroot, command: str) -> dict[str, Any]:
    (found,) = [each for each in processes(chroot) if each["command"] == command]
    return found


# -- users ----------------------------------------------------------------------------------------------


def test_users_have_the_names_of_the_root(web1: Chroot) -> None:
    """1 is the host's daemon; 4711 has two entries, and 2 has none."""
    passwd = web1.disk / "etc/passwd"
    names = (
        "root:x:0:0::/:/bin/sh\nnonsense\nmilena:x:4711:1::/:\nother:x:4711:1::/:\nfred:x:1:1::/:\n"
    )
    passwd.write_text(names)
    web1.cli("start", "--no-init")
    for user in ("4711", "1", "2"):
        web1.cli("exec", "--user", user, "--", "/bin/sh", "-c", f"{QUIET}sleep 3600 &")
    assert sorted(each["user"] for each in processes(web1)) == ["2", "fred", "milena"]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.write_text("")
    os.truncate(path, 40 << 30)


def link_to_the_hosts(path: Path) -> None:
    path.symlink_to("/proc/1/root/etc/passwd")


@pytest.mark.parametrize("make", [fifo, endless, link_to_the_hosts])
def test_a_hostile_list_of_users_keeps_nobody_waiting(
    web1: Chroot, make: Callable[[Path], None]
) -> None:
    web1.start()
    (web1.disk / "etc/passwd").unlink()
    make(web1.disk / "etc/passwd")
    begun = time.monotonic()
    assert one(web1, "sleep")["user"] == "root"
    assert time.monotonic() - begun < 20


def test_a_name_of_any_length_costs_nothing(web1: Chroot) -> None:
    """Longer than any name can be, it is none: the number is shown, and exec has no such variable."""
    (web1.disk / "etc/passwd").write_text(
        f"{'a' * 200_000}:x:0:0::/:/bin/sh\n{'b' * 300}:x:9:9::/:\n"
    )
    web1.cli("start", "--no-init")
    web1.cli("exec", "--user", "9", "--", "/bin/sh", "-c", f"{QUIET}sleep 3600 &")
    assert [each["user"] for each in processes(web1)] == ["9"]
    assert len(web1.cli("exec", "--", "env").stdout) < 10_000


# -- what a process is and costs ------------------------------------------------------------------------


def test_ps_says_what_a_process_does_and_costs(web1: Chroot) -> None:
    web1.cli("start", "--no-init")
    web1.cli("exec", "--", "/bin/sh", "-c", f"{QUIET}sh -c 'while :; do :; done' busy &")
    wait_until(lambda: one(web1, "sh")["cpu_seconds"] > 0.05, "it used the processor")
    busy = one(web1, "sh")
    assert busy["arguments"] == ["sh", "-c", "while :; do :; done", "busy"]
    assert busy["memory_bytes"] > 4096
    assert busy["started_at"].endswith("+00:00")
    os.kill(busy["pid"], signal.SIGSTOP)
    wait_until(lambda: one(web1, "sh")["state"] == "stopped", "it is shown as stopped")
    table = web1.cli("ps").stdout
    assert "stopped" in table
    assert "while :; do :; done" in table
    assert " s  " in table


def test_hostile_arguments_are_bounded_and_printable(web1: Chroot) -> None:
    web1.cli("start", "--no-init")
    hostile = "\x1b]0;owned\x07\nmore\udcff"
    long = "x" * 60_000
    script = f'{QUIET}exec sh -c "read never < /dev/zero & wait" "$@" &'
    web1.cli("exec", "--", "/bin/sh", "-c", script, "sh", hostile, long)
    shown = [each["arguments"] for each in processes(web1)]
    assert any(hostile in arguments for arguments in shown)
    assert all(sum(map(len, arguments)) <= 4096 for arguments in shown)
    table = web1.cli("ps").stdout
    assert "\x1b" not in table
    assert len(table.splitlines()) == len(shown) + 1
    assert max(map(len, table.splitlines())) < 400


def test_what_does_not_answer_is_left_out(tmp_path: Path) -> None:
    """A FIFO that nobody writes is as silent as the memory of a process whose page fault hangs."""
    (tmp_path / "first").write_text("1")
    (tmp_path / "last").write_text("2")
    for number in range(10):
        os.mkfifo(tmp_path / f"silent{number}")
    paths = [str(tmp_path / name) for name in ("first", "silent0", "missing", "last")]
    assert process_details._read_files(paths) == {paths[0]: b"1", paths[3]: b"2"}
    begun = time.monotonic()
    process_details._read_files([str(tmp_path / f"silent{number}") for number in range(10)])
    assert time.monotonic() - begun < 5


def test_many_processes_are_read_by_few_children() -> None:
    own = f"/proc/{os.getpid()}/cmdline"
    assert process_details._read_files([own] * 1200)[own]


#: The first thread ends before another one.
LEADERLESS = (
    "import ctypes, threading, time; threading.Thread(target=time.sleep, args=[600]).start();"
    "ctypes.CDLL(None).pthread_exit(None)"
)


@pytest.mark.parametrize("has_ended", [True, False])
def test_the_state_of_what_has_ended_in_part_or_whole(has_ended: bool) -> None:
    """The kernel shows both as a zombie."""
    process = subprocess.Popen([sys.executable, "-c", "" if has_ended else LEADERLESS])
    given = Process(process.pid, "python3", "root", "cgroup", "")

    def state() -> str | None:
        (found,) = process_details.add_details([given], "/")
        return found.state if found != given else "ended"

    try:
        wait_until(lambda: procfs.stat_fields(process.pid)[0] == "Z", "its first thread has ended")
        wait_until(lambda: state() == ("ended" if has_ended else "sleeping"), "it is known")
        if not has_ended:
            process.send_signal(signal.SIGSTOP)
            wait_until(lambda: state() == "stopped", "it is known to be stopped")
    finally:
        process.kill()
        process.wait()


def test_shared_memory_counts_once() -> None:
    """A process and three children that share its 64 MiB."""
    program = (
        "import os, time; kept = bytearray(b'x') * (64 << 20)\n"
        "for _ in range(3):\n    if not os.fork(): break\n"
        "os.write(1, b'%d\\n' % os.getpid()); time.sleep(600)"
    )
    process = subprocess.Popen(
        ["python3", "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(4)]
        memory = process_details.read_memory(pids)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert set(memory) == set(pids)
    assert 64 << 20 < sum(memory.values()) < 128 << 20


def test_ganeti_counts_shared_memory_once_too(
    make_chroot: MakeChroot, run_dir: Path, hierarchy: Path
) -> None:
    """Forty processes of one program, which differ in a few pages."""
    from chrootfw_ganeti import usage

    web1 = make_chroot(init=roots.script(start="for i in $(seq 40); do sleep 3600 & done"))
    web1.start()
    found = usage.read_all(str(run_dir))
    assert set(found) == {"web1"}
    resident = sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in web1.pids()
    ) * os.sysconf("SC_PAGE_SIZE")
    assert 0 < found["web1"].memory_bytes < resident / 2


def test_the_memory_of_all_instances_is_read_by_one_child(
    make_chroot: MakeChroot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child each would take most of a list's time, and what does not answer its time each."""
    children = []
    begin = deadlines.run_batch

    def run_batch(what: str, *arguments: Any, **how: Any) -> None:
        children.append(what)
        begin(what, *arguments, **how)

    chroots = [make_chroot(name) for name in ("web1", "web2", "web3")]
    for each in chroots:
        each.start()
    monkeypatch.setattr(show, "count_memory", lambda _snapshot, _name: None)
    monkeypatch.setattr(deadlines, "run_batch", run_batch)
    found = chroots[0].runtime.list()
    assert children == ["/proc"]
    assert {each.memory_source for each in found} == {"processes"}
    assert all(each.memory_bytes for each in found)


# -- a service that has ended ---------------------------------------------------------------------------


def test_a_service_that_ended_is_not_as_one_that_was_only_mounted(
    make_chroot: MakeChroot, cli: Cli
) -> None:
    ended, mounted, oneshot = (
        make_chroot(name, init=init)
        for name, init in (
            ("ended", roots.script(start="sleep 3600 > /dev/null 2>&1 &")),
            ("mounted", None),
            ("oneshot", roots.script(start="true")),
        )
    )
    ended.start()
    mounted.cli("start", "--no-init")
    oneshot.start()
    assert "ended" not in cli.json("list")["instances"][0]
    for pid in ended.pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not ended.pids(), "its process has ended")

    shown = {each["name"]: each for each in cli.json("list")["instances"]}
    assert {name: each["state"] for name, each in shown.items()} == dict.fromkeys(shown, "mounted")
    assert shown["ended"]["ended"] is True
    assert all("ended" not in shown[name] for name in ("mounted", "oneshot"))
    assert sum("mounted (ended)" in line for line in cli("list").stdout.splitlines()) == 1
    assert ended.runtime.info("ended").ended
    assert "have ended, without a stop" in cli("info", "ended").stdout
    checks = {each["name"]: each for each in cli.json("verify")["checks"]}
    assert checks["instance ended"]["status"] == "warning"
    assert checks["instance mounted"]["status"] == "ok"
    ended.cli("reboot")
    assert "ended" not in cli("info", "ended", "--json").json()


def test_info_says_when_a_service_last_printed(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(start="echo hello; sleep 3600 &"), log="file")
    web1.start()
    wait_until(lambda: web1.cli("info", "--json").json()["log"]["written_at"], "it is written")
    assert "printed     last at 2" in web1.cli("info").stdout


#: Shares 64 MiB, eighty times mapped, with as many processes as it is told.
SHARING = """
import ctypes, mmap, os, signal, sys
fd = os.memfd_create("x")
os.truncate(fd, 64 << 20)
kept = [mmap.mmap(fd, 64 << 20, flags=mmap.MAP_SHARED | 0x8000) for _ in range(80)]
libc = ctypes.CDLL(None)
stacks = []
sleep = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: 0)
pause = ctypes.cast(libc.pause, ctypes.c_void_p)
for _ in range(int(sys.argv[1])):
    stacks.append(ctypes.create_string_buffer(1 << 14))
    top = ctypes.c_void_p(ctypes.addressof(stacks[-1]) + (1 << 14) - 64)
    assert libc.clone(pause, top, 0x100 | signal.SIGCHLD, None) > 0  # CLONE_VM
print(os.getpid(), flush=True)
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
"""


def test_processes_that_share_much_memory_keep_nobody_waiting() -> None:
    """Each answer takes a moment, and there are many."""
    program = subprocess.Popen(
        [sys.executable, "-c", SHARING, "300"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        first = int(program.stdout.readline())
        pids = [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]
        assert len(pids) == 301
        begun = time.monotonic()
        memory = process_details.read_memory(pids)
        assert time.monotonic() - begun < 10
        assert all(memory[pid] > 0 for pid in pids)
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
