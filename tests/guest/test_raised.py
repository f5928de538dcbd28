"""With CAP_SYS_RESOURCE a service has the limits and priorities that are asked for, higher than the caller's too."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import roots
from driving import Chroot, Cli
from kernelview import wait_until

MakeChroot = Callable[..., Chroot]

WAYS = {"compiled": {}, "interpreter": {"CHROOTFW_NATIVE": "0"}}


def _be_a_low_caller() -> None:
    for limit, most in (
        (resource.RLIMIT_NOFILE, 512), (resource.RLIMIT_MEMLOCK, 4096), (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_NPROC, 200), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_STACK, 1 << 20),
    ):  # fmt: skip
        resource.setrlimit(limit, (min(64, most), most))
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))
    resource.setrlimit(resource.RLIMIT_NPROC, (200, 200))
    os.nice(7)
    Path("/proc/self/oom_score_adj").write_text("300")


def _limits(pid: int | str) -> dict[str, tuple[str, ...]]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:25].strip(): tuple(line[25:].split()[:2]) for line in lines}


def _daemon(chroot: Chroot) -> int:
    (pid,) = chroot.pids("sleep")
    return pid


def _priorities(pid: int) -> tuple[int, str]:
    score = Path(f"/proc/{pid}/oom_score_adj").read_text().strip()
    return os.getpriority(os.PRIO_PROCESS, pid), score


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hardened", [False, True])
def test_the_defaults_are_reached_from_below(web1: Chroot, way: str, hardened: bool) -> None:
    if hardened:
        web1.define(hardened=True)
    done = web1.cli("start", env=WAYS[way], preexec_fn=_be_a_low_caller)
    assert "at most" not in done.stderr
    daemon = _daemon(web1)
    found = _limits(daemon)
    assert found["Max open files"] == ("1024", "524288")
    assert found["Max locked memory"] == ("8388608", "8388608")
    assert found["Max stack size"] == ("8388608", "unlimited")
    assert found["Max core file size"] == ("0", "unlimited")
    for name in ("Max processes", "Max pending signals"):
        assert found[name] == _limits(1)[name]
    assert _priorities(daemon) == (0, "0")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hardened", [False, True])
def test_what_is_asked_for_is_given(web1: Chroot, way: str, hardened: bool) -> None:
    limits = {"nofile": "2000:600000", "memlock": "unlimited", "rtprio": 20, "nproc": "unlimited"}
    more = {"hardened": True} if hardened else {}
    web1.define(limits=limits, nice=-10, oom_score_adj=-500, **more)
    how = {"env": WAYS[way], "preexec_fn": _be_a_low_caller}
    said = web1.cli("start", **how).stderr
    assert not any(words in said for words in ("at most", "may stay", "nice is")), said
    for _ in range(2):
        daemon = _daemon(web1)
        found = _limits(daemon)
        assert found["Max open files"] == ("2000", "600000")
        assert found["Max locked memory"] == ("unlimited", "unlimited")
        assert found["Max realtime priority"] == ("20", "20")
        assert found["Max processes"] == ("unlimited", "unlimited")
        assert _priorities(daemon) == (-10, "-500")
        web1.cli("reboot", **how)
    script = "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj"
    shown = web1.cli("exec", "--", "sh", "-c", script, **how).stdout.split()
    assert shown == ["2000", "600000", "-500"]


def test_the_kernels_own_maximum_is_said(web1: Chroot, cli: Cli) -> None:
    """Above fs.nr_open the kernel refuses a limit whatever the caller may."""
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    web1.define(limits={"nofile": f"1024:{most + 1}"})
    done = web1.cli("start")
    assert f"nofile is at most {most}" in done.stderr
    assert _limits(_daemon(web1))["Max open files"][0] == "1024"


def test_verify_finds_nothing_that_cannot_be_raised(cli: Cli) -> None:
    checks = cli("verify", "--json", preexec_fn=_be_a_low_caller, expect=(0, 1)).json()["checks"]
    (check,) = (check for check in checks if check["name"] == "limits")
    assert check["status"] == "ok", check


def test_memory_is_the_cgroups(make_chroot: MakeChroot, cli: Cli) -> None:
    """What is in a tmpfs of the instance counts, which is no process's memory."""
    init = roots.script(
        "mount -t tmpfs none /srv; head -c 33554432 /dev/zero > /srv/file; sleep 3600 > /dev/null 2>&1 &"
    )
    web1 = make_chroot(init=init)
    web1.start()
    (listed,) = cli.json("list")["instances"]
    assert listed["memory_source"] == "cgroup v2"
    assert wait_until(
        lambda: cli.json("list")["instances"][0]["memory_bytes"] > 32 << 20, "it counts"
    )
