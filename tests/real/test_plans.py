"""The plans of every verb: with its options, and with what would block it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from driving import Chroot, Cli
from kernelview import wait_until

import chrootfw

Outside = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def holder(web1: Chroot, cli: Cli, outside: Outside) -> subprocess.Popen[str]:
    """A process that uses the root of the started instance."""
    web1.start()
    place = web1.root / "srv"
    place.mkdir(exist_ok=True)
    found = outside(sys.executable, "-c", "import time; time.sleep(600)", cwd=place)

    def is_found() -> bool:
        return any(each["pid"] == found.pid for each in cli.json("ps", "web1")["processes"])

    wait_until(is_found, "the holder")
    return found


def _steps(cli: Cli, *words: str) -> list[str]:
    return [f"{each['stage']}: {each['does']}" for each in cli.json("plan", *words)["steps"]]


def test_the_plan_of_a_stop_names_the_holder(
    web1: Chroot, cli: Cli, holder: subprocess.Popen[str]
) -> None:
    (problem,) = [step for step in _steps(cli, "stop", "web1") if "problem" in step]
    assert problem.startswith(f"unmount: problem: held by pid {holder.pid} (python")
    assert problem.endswith(": this would end with status 4")
    killed = _steps(cli, "stop", "web1", "--kill-holders")
    assert not [step for step in killed if "problem" in step]
    assert [step for step in killed if f"(holders: pid {holder.pid}" in step]
    assert web1.state == "running"
    assert holder.poll() is None
    cli("stop", "web1", "--kill-holders")


def test_the_plan_of_a_stop_has_its_options(web1: Chroot, cli: Cli) -> None:
    web1.start()
    assert "init-stop: run" in _steps(cli, "stop", "web1")[0]
    forced = _steps(cli, "stop", "web1", "--force")
    assert forced[0].startswith("kill: SIGKILL")
    assert not [step for step in forced if "init-stop" in step or "SIGTERM" in step]
    assert not [step for step in _steps(cli, "stop", "web1", "--no-script") if "init-stop" in step]
    kept = _steps(cli, "stop", "web1", "--keep-mounted")
    assert not [step for step in kept if step.startswith("unmount")]
    patient = _steps(cli, "stop", "web1", "--timeout", "77")
    assert [step for step in patient if "wait at most 77 s" in step]


def test_the_plans_of_a_reboot_and_a_cleanup(web1: Chroot, cli: Cli) -> None:
    cli("plan", "reboot", "web1", expect=1, says=["cannot reboot web1: it is not started"])
    web1.start()
    stages = [step.partition(":")[0] for step in _steps(cli, "reboot", "web1")]
    assert list(dict.fromkeys(stages)) == ["init-stop", "kill", "mount", "pre-start", "init-start"]
    cli("plan", "cleanup", "web1", expect=1, says=["it is running"])
    cli("stop", "web1", "--keep-mounted")
    assert {step.partition(":")[0] for step in _steps(cli, "cleanup", "web1")} == {"unmount"}
    cli("cleanup", "web1")
    assert _steps(cli, "cleanup", "web1") == []


@pytest.mark.parametrize("timeout", [float("nan"), -1, "1", True])
def test_a_plan_refuses_what_the_verb_refuses(
    runtime: chrootfw.Runtime, web1: Chroot, timeout: Any
) -> None:
    web1.start()
    for ask in (runtime.stop, partial(runtime.plan, "stop")):
        with pytest.raises(chrootfw.InputError, match="the timeout"):
            ask("web1", timeout=timeout)
    assert web1.state == "running"


def test_the_library_has_the_options_of_the_verb(runtime: chrootfw.Runtime, web1: Chroot) -> None:
    with pytest.raises(chrootfw.InputError, match="no option 'disk'"):
        runtime.plan("stop", "web1", disk="/x")
    with pytest.raises(chrootfw.InputError, match="no option 'force'"):
        runtime.plan("start", "web1", force=True)
    assert runtime.plan("stop", "web1", force=True).steps == ()
