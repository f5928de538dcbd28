"""The library inside other programs: threads, interrupts, callbacks that raise, other mount namespaces."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import driving
import kernelview
import pytest

import chrootfw
from chrootfw.interrupts import Interrupts


def test_running_stops_whatever_happens_inside(web1: driving.Chroot, runtime: chrootfw.Runtime) -> None:
    with pytest.raises(ZeroDivisionError), runtime.running("web1") as chroot:
        assert chroot.info().state == "running"
        assert chroot.run(["/bin/echo", "hi"], capture_output=True, text=True).stdout == "hi\n"
        raise ZeroDivisionError
    assert web1.is_gone()


def test_running_stops_although_an_end_was_asked_for(web1: driving.Chroot, runtime: chrootfw.Runtime) -> None:
    with runtime.running("web1"):
        runtime.interrupts.request()
    assert web1.is_gone()


def test_a_request_from_another_thread_undoes_a_start(web1: driving.Chroot, run_dir: Path, config_dir: Path) -> None:
    web1.write_init("#!/bin/sh\n/bin/touch /run/waits; sleep 3600\n")
    asked = Interrupts()
    runtime = chrootfw.Runtime(run_dir=run_dir, config_dir=config_dir, interrupts=asked)
    caught: list[BaseException] = []

    def start() -> None:
        try:
            runtime.start("web1")
        except chrootfw.Interrupted as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    kernelview.wait_until(lambda: (web1.root / "run/waits").exists(), "the init script runs")
    asked.request()
    thread.join(60)
    assert caught
    assert web1.is_gone()


def test_a_request_ends_a_command_that_runs_inside(web1: driving.Chroot, runtime: chrootfw.Runtime) -> None:
    caught: list[chrootfw.Interrupted] = []

    def build() -> None:
        try:
            with runtime.running("web1") as chroot:
                # It reads what it is given, and waits for more: the pipe to it is open as well.
                chroot.run(
                    ["/bin/sh", "-c", "touch /run/waits; sleep 3600"], input=b"x" * (1 << 20), capture_output=True
                )
        except chrootfw.Interrupted as error:
            caught.append(error)

    gc.collect()  # what earlier tests left to it
    before = set(os.listdir("/proc/self/fd"))
    thread = threading.Thread(target=build)
    thread.start()
    kernelview.wait_until((web1.root / "run/waits").exists, "the command runs")
    runtime.interrupts.request(signal.SIGTERM)
    thread.join(60)
    assert [error.signum for error in caught] == [signal.SIGTERM]
    assert web1.is_gone()
    assert set(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(chrootfw.Interrupted):
        runtime.run("web1", ["/bin/true"])


def test_a_callback_that_raises_breaks_nothing(web1: driving.Chroot, runtime: chrootfw.Runtime) -> None:
    def fail(_event: chrootfw.Event) -> None:
        raise RuntimeError("not today")

    runtime.on_event = fail
    runtime.start("web1")
    runtime.stop("web1")
    assert web1.is_gone()


def test_many_threads_start_and_stop_their_own(
    make_chroot: Callable[..., driving.Chroot], runtime: chrootfw.Runtime
) -> None:
    chroots = [make_chroot(f"web{number}") for number in range(6)]
    failures: list[BaseException] = []

    def live(name: str) -> None:
        try:
            for _ in range(2):
                runtime.start(name)
                assert runtime.run(name, ["/bin/echo", name], capture_output=True, text=True).stdout == f"{name}\n"
                runtime.stop(name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=live, args=(chroot.name,)) for chroot in chroots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    assert all(chroot.is_gone() for chroot in chroots)


def test_an_instance_in_another_mount_namespace_is_never_called_absent(web1: driving.Chroot, cli: driving.Cli) -> None:
    """The first process of that namespace is chrooted: its own view of the mount table shows nothing."""
    keeper = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; read line; exit 0"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "ready\n"
        inside = ["nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt"]
        web1.cli("start", prefix=inside)
        info = cli.json("info", "web1")
        assert info["state"] == "running"
        assert info["namespace"]
        shown = next(i for i in cli.json("list")["instances"] if i["name"] == "web1")
        assert shown["state"] == "running"
        for verb in ("stop", "cleanup", "reboot", "start"):
            refused = web1.cli(verb, expect=1)
            assert "mount namespace" in refused.stderr
            assert "nsenter" in refused.stderr
        web1.cli("stop", prefix=inside)
    finally:
        keeper.communicate("\n", timeout=60)
    assert web1.state == "absent"


def test_a_plugin_that_was_installed_after_the_start_finds_its_parameters(
    web1: driving.Chroot, runtime: chrootfw.Runtime
) -> None:
    class Later:
        @chrootfw.hookimpl
        def chrootfw_parameters(self) -> list[chrootfw.Parameter]:
            return [chrootfw.Parameter("later", list, ["a"])]

        @chrootfw.hookimpl
        def chrootfw_enter(self, instance: chrootfw.Instance) -> None:
            seen.append(instance.params["later"])

    seen: list[object] = []
    web1.start()
    later = runtime.with_plugins(Later())
    later.reboot("web1")
    later.stop("web1")
    assert seen == [["a"]]
