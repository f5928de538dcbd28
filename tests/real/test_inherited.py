"""Limits, priorities and signals: what a service has is its own, and never what the caller happened to have."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from driving import Chroot, Cli

MakeChroot = Callable[..., Chroot]

#: Starts an instance in a program with threads.
WITH_THREADS = """
import sys, threading, chrootfw
threading.Thread(target=threading.Event().wait, daemon=True).start()
chrootfw.Runtime(discover=True).start("web1")
"""

#: Prints the nice value of the process that it runs.
NICE = "set -- $(cat /proc/self/stat); shift 18; echo $1"


def _be_a_bad_caller() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (1, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.nice(7)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    Path("/proc/self/oom_score_adj").write_text("300")
    for signum in (signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})


def _without_the_right() -> None:
    """Drop CAP_SYS_RESOURCE, which some machines do not give at all."""
    ctypes.CDLL(None).prctl(24, ctypes.c_ulong(24), 0, 0, 0)


class Found:
    """What a process has."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
        self.limits = {line[:25].strip(): tuple(line[25:].split()[:2]) for line in lines}
        self.nice = os.getpriority(os.PRIO_PROCESS, pid)
        self.policy = os.sched_getscheduler(pid)
        self.processors = os.sched_getaffinity(pid)
        self.oom = Path(f"/proc/{pid}/oom_score_adj").read_text().strip()
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        self.signals = {
            line[:6]: int(line.split()[1], 16)
            for line in status
            if line.startswith(("SigBlk", "SigIgn"))
        }


@pytest.mark.parametrize("way", ["compiled", "fork", "interpreter"])
@pytest.mark.parametrize("hardened", [False, True])
def test_nothing_of_the_callers(web1: Chroot, cli: Cli, way: str, hardened: bool) -> None:
    if hardened:
        web1.define(hardened=True)
    env = {} if way == "compiled" else {"CHROOTFW_NATIVE": "0"}
    if way == "interpreter":
        subprocess.run(
            [sys.executable, "-c", WITH_THREADS], env={**cli.environment(), **env},
            preexec_fn=_be_a_bad_caller, check=True, timeout=120,
        )  # fmt: skip
    else:
        web1.cli("start", env=env, preexec_fn=_be_a_bad_caller)
    (daemon,) = web1.pids("sleep")
    found = Found(daemon)
    assert found.limits["Max open files"][0] == "1024"
    assert found.limits["Max core file size"][0] == "0"
    assert (found.nice, found.policy, found.oom) == (0, os.SCHED_OTHER, "0")
    assert found.processors == os.sched_getaffinity(1)
    assert not found.signals["SigBlk"]
    assert found.signals["SigIgn"] & ~0b110 == 0  # INT and QUIT: of a background job of a shell


def test_nor_in_what_exec_runs(web1: Chroot) -> None:
    web1.cli("start")
    done = web1.cli(
        "exec", "--", "sh", "-c", f"ulimit -n; {NICE}; cat /proc/self/oom_score_adj",
        preexec_fn=_be_a_bad_caller,
    )  # fmt: skip
    assert done.stdout.split() == ["1024", "0", "0"]


def test_the_caller_keeps_its_own(web1: Chroot, runtime: object) -> None:
    """A child that shares the caller's memory would share its oom_score_adj."""
    web1.define(oom_score_adj=400)
    web1.start()
    (daemon,) = web1.pids("sleep")
    assert Found(daemon).oom == "400"
    assert Path("/proc/self/oom_score_adj").read_text().strip() != "400"


@pytest.mark.parametrize("hardened", [False, True])
def test_the_parameters(web1: Chroot, hardened: bool) -> None:
    limits = {"nofile": "128:256", "core": 0, "cpu": "3600:unlimited"}
    more = {"hardened": True} if hardened else {}
    web1.define(limits=limits, nice=5, oom_score_adj=500, **more)
    web1.cli("start")
    (daemon,) = web1.pids("sleep")
    found = Found(daemon)
    assert found.limits["Max open files"] == ("128", "256")
    assert found.limits["Max core file size"] == ("0", "0")
    assert found.limits["Max cpu time"] == ("3600", "unlimited")
    assert (found.nice, found.oom) == (5, "500")
    web1.cli("reboot")
    (again,) = web1.pids("sleep")
    assert Found(again).limits["Max open files"] == ("128", "256")
    shown = web1.cli("exec", "--", "sh", "-c", f"ulimit -n; {NICE}").stdout.split()
    assert shown == ["128", "5"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("limits={files=3}", "files"),
        ('limits={nofile="many"}', "nofile"),
        ('limits={nofile="20:10"}', "soft"),
        ("limits={nofile=3}", "at least"),
        ("limits={nofile=-1}", "nofile"),
        ("limits=[1]", "table"),
        ("nice=20", "-20 to 19"),
        ("oom_score_adj=2000", "-1000 to 1000"),
    ],
)
def test_a_value_that_is_not_valid(web1: Chroot, setting: str, says: str) -> None:
    web1.cli("start", "--set", setting, expect=2, says=[setting.partition("=")[0], says])
    assert web1.state == "absent"


def test_what_may_not_be_raised_is_said_once(web1: Chroot, cli: Cli) -> None:
    def be_limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
        _without_the_right()

    done = web1.cli("start", preexec_fn=be_limited)
    assert done.stderr.count("nofile is at most 512, not 1024:524288") == 1
    (daemon,) = web1.pids("sleep")
    assert Found(daemon).limits["Max open files"] == ("512", "512")
    assert web1.cli("exec", "--", "true", preexec_fn=be_limited).stderr == ""

    checks = cli("verify", "--json", preexec_fn=be_limited, expect=(0, 1)).json()["checks"]
    (check,) = (check for check in checks if check["name"] == "limits")
    assert check["status"] == "warning"
    assert "512" in check["detail"]


def test_a_limit_that_is_asked_for_and_cannot_be_given(web1: Chroot) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    web1.define(limits={"nofile": f"2000:{hard + 1}"})
    done = web1.cli("start", preexec_fn=_without_the_right)
    assert f"nofile is at most {hard}, not 2000:{hard + 1}" in done.stderr
    (daemon,) = web1.pids("sleep")
    assert Found(daemon).limits["Max open files"] == ("2000", str(hard))
