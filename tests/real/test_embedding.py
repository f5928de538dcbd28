"""The library inside other programs: threads, asyncio, cancellation, logging, callbacks that raise, other mount namespaces."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driving
import kernelview
import pytest
from open_descriptors import none_left_open

import chrootfw
from chrootfw.cancellation import Cancellation
from chrootfw.linux import locks


def test_running_stops_whatever_happens_inside(
    web1: driving.Chroot, runtime: chrootfw.Runtime
) -> None:
    with pytest.raises(ZeroDivisionError), runtime.running("web1") as chroot:
        assert chroot.info().state == "running"
        assert chroot.run(["/bin/echo", "hi"], capture_output=True, text=True).stdout == "hi\n"
        raise ZeroDivisionError
    assert web1.is_gone()


def test_running_stops_although_an_end_was_asked_for(
    web1: driving.Chroot, runtime: chrootfw.Runtime
) -> None:
    with runtime.running("web1"):
        runtime.cancellation.request()
    assert web1.is_gone()


def test_a_request_from_another_thread_undoes_a_start(
    web1: driving.Chroot, run_dir: Path, config_dir: Path
) -> None:
    web1.write_init("#!/bin/sh\n/bin/touch /run/waits; sleep 3600\n")
    asked = Cancellation()
    runtime = chrootfw.Runtime(run_dir=run_dir, config_dir=config_dir, cancellation=asked)
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


def test_a_request_ends_a_command_that_runs_inside(
    web1: driving.Chroot, runtime: chrootfw.Runtime
) -> None:
    caught: list[chrootfw.Interrupted] = []

    def build() -> None:
        try:
            with runtime.running("web1") as chroot:
                # It reads what it is given, and waits for more: the pipe to it is open as well.
                chroot.run(
                    ["/bin/sh", "-c", "touch /run/waits; sleep 3600"],
                    input=b"x" * (1 << 20),
                    capture_output=True,
                )
        except chrootfw.Interrupted as error:
            caught.append(error)

    with none_left_open():
        thread = threading.Thread(target=build)
        thread.start()
        kernelview.wait_until((web1.root / "run/waits").exists, "the command runs")
        runtime.cancellation.request(signal.SIGTERM)
        thread.join(60)
        assert [error.signum for error in caught] == [signal.SIGTERM]
        assert web1.is_gone()
    with pytest.raises(chrootfw.Interrupted):
        runtime.run("web1", ["/bin/true"])


def test_a_callback_that_raises_breaks_nothing(
    web1: driving.Chroot, runtime: chrootfw.Runtime
) -> None:
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
                assert (
                    runtime.run(name, ["/bin/echo", name], capture_output=True, text=True).stdout
                    == f"{name}\n"
                )
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


def test_threads_share_a_runtime_and_its_instances(
    make_chroot: Callable[..., driving.Chroot], run_dir: Path, config_dir: Path
) -> None:
    """Every verb at once, from many threads, on the same few instances. An instance's verbs come one after the other."""
    chroots = {f"web{number}": make_chroot(f"web{number}") for number in range(3)}
    runtime = chrootfw.Runtime(run_dir=run_dir, config_dir=config_dir, lock_timeout=120)
    together = threading.Barrier(8)
    done: set[str] = set()
    failures: list[BaseException] = []

    def use(verb: str, name: str) -> None:
        match verb:
            case "start":
                assert runtime.start(name).state in (
                    "running",
                    "absent",
                    "mounted",
                )  # as it is by now
            case "stop":
                runtime.stop(name)
            case "run":
                answer = runtime.run(name, ["/bin/echo", name], capture_output=True, text=True)
                assert (answer.returncode, answer.stdout) == (
                    0,
                    f"{name}\n",
                ) or answer.returncode < 0  # or it was killed
            case "list":
                assert [info.name for info in runtime.list()] == sorted(chroots)
            case "info":
                assert runtime.info(name).name == name

    def live(seed: int) -> None:
        choose = random.Random(seed).choice
        together.wait()
        for _ in range(25):
            verb = choose(("start", "start", "stop", "run", "list", "info"))
            try:
                use(verb, choose(sorted(chroots)))
                done.add(verb)
            except chrootfw.TransitionError:
                pass  # another thread has just brought it into another state
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=live, args=(seed,)) for seed in range(together.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not failures
    assert done == {"start", "stop", "run", "list", "info"}
    for name, chroot in chroots.items():
        runtime.stop(name)
        assert chroot.is_gone()
        calls = chroot.calls()
        assert calls == ["start", "stop"] * (len(calls) // 2), (
            "no two starts, and no two stops, in a row"
        )


class _Says:
    """Two of these in one runtime would be refused: they declare the same parameter."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.asked: list[str] = []

    @chrootfw.hookimpl
    def chrootfw_parameters(self) -> list[chrootfw.Parameter]:
        return [chrootfw.Parameter("word", str, self.word)]

    @chrootfw.hookimpl
    def chrootfw_init_script(self, instance: chrootfw.Instance, action: str) -> chrootfw.Command:
        self.asked.append(f"{action} {instance.name} {instance.params['word']}")
        return chrootfw.Command(["/bin/sh", "-c", f"echo {self.word} > /var/said; sleep 3600 &"])

    @chrootfw.hookimpl
    def chrootfw_event(self, event: chrootfw.Event) -> None:
        self.asked.append(event.instance)


def test_two_runtimes_in_one_process_do_not_meet(
    make_chroot: Callable[..., driving.Chroot], run_dir: Path, config_dir: Path
) -> None:
    plugins = {"web1": _Says("one"), "web2": _Says("two")}
    runtimes = {
        name: chrootfw.Runtime([plugin], run_dir=run_dir, config_dir=config_dir)
        for name, plugin in plugins.items()
    }
    for name in plugins:
        make_chroot(name)
    threads = [
        threading.Thread(target=runtime.start, args=(name,)) for name, runtime in runtimes.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for name, plugin in plugins.items():
        other = next(each for each in plugins if each != name)
        said = runtimes[name].run(name, ["/bin/cat", "/var/said"], capture_output=True, text=True)
        assert said.stdout == f"{plugin.word}\n"
        assert f"start {name} {plugin.word}" in plugin.asked
        assert not [asked for asked in plugin.asked if other in asked]
        runtimes[name].stop(name)
    assert "_Says" not in [record.name for record in chrootfw.Runtime().plugins()]


def test_an_asyncio_loop_goes_on_while_a_start_runs(
    web1: driving.Chroot, runtime: chrootfw.Runtime
) -> None:
    """The start waits for the loop: were it blocked, the start would come to its deadline."""
    web1.write_init("#!/bin/sh\n/bin/mkfifo /run/gate; read line < /run/gate; sleep 3600 &\n")
    gate = web1.root / "run/gate"
    order: list[str] = []
    runtime.on_event = lambda event: order.append(f"{event.what} {event.stage}")

    async def tick() -> None:
        while "begin init-start" not in order or not gate.exists():
            await asyncio.sleep(0)
        for _ in range(100):
            order.append("tick")
            await asyncio.sleep(0)
        while True:
            try:
                os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
                return
            except OSError:  # ENXIO: the script has not opened it yet
                await asyncio.sleep(0)

    async def main() -> chrootfw.InstanceInfo:
        info, _ = await asyncio.gather(asyncio.to_thread(runtime.start, "web1"), tick())
        return info

    assert asyncio.run(main()).state == "running"
    began, ended = order.index("begin init-start"), order.index("end init-start")
    assert order[began:ended].count("tick") == 100


_PROGRAM = r"""
import logging, sys
import chrootfw

class UpsideDown:
    @chrootfw.hookimpl
    def chrootfw_unmount_ordering(self, mounts):
        return mounts

class Kept(logging.Handler):
    def emit(self, record):
        print(record.name, record.levelname, record.getMessage().replace("\n", " "))

quiet = sys.argv[3] == "quiet"
if not quiet:
    logging.getLogger().addHandler(Kept())
runtime = chrootfw.Runtime([] if quiet else [UpsideDown()], run_dir=sys.argv[1], config_dir=sys.argv[2])
with runtime.running("web1"):
    pass
logger = logging.getLogger("chrootfw")
assert (logger.handlers, logger.level, logger.propagate, logger.disabled) == ([], logging.NOTSET, True, False)
assert logging.getLogger().level == logging.WARNING
"""


@pytest.mark.parametrize("how", ["quiet", "logged"])
def test_a_library_prints_nothing_and_configures_no_logging(
    web1: driving.Chroot, cli: driving.Cli, how: str
) -> None:
    if how == "logged":
        web1.define(binds=["/etc:/missing:ro"])
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(cli.run_dir), str(cli.config_dir), how],
        env=cli.environment(), capture_output=True, text=True, timeout=driving.TIMEOUT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    if how == "quiet":
        assert not lines
    else:
        assert all(line.startswith("chrootfw WARNING web1: ") for line in lines)
        assert [line for line in lines if "made the mount point /missing" in line]
        assert [
            line
            for line in lines
            if "plugin UpsideDown (__main__): chrootfw_unmount_ordering for web1 answered" in line
        ]


def test_an_instance_in_another_mount_namespace_is_never_called_absent(
    web1: driving.Chroot, cli: driving.Cli
) -> None:
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


def test_who_waits_for_another_stop_finds_nothing_to_do(
    runtime: chrootfw.Runtime,
    web1: driving.Chroot,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That the record is gone then is as it should be, and nothing to warn of."""
    web1.start()
    lock = locks.lock

    def another_was_first(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(locks, "lock", lock)
        runtime.stop("web1")
        return lock(*args, **named)

    monkeypatch.setattr(locks, "lock", another_was_first)
    assert runtime.stop("web1").state == "absent"
    assert not caplog.records


#: A program that reaps its children itself, in one way or another, and starts an instance.
REAPER = """
import os, signal, sys, threading, time
import chrootfw

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

def wait():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.001)

if sys.argv[1] == "ignores":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
elif sys.argv[1] == "handles":
    signal.signal(signal.SIGCHLD, reap)
else:
    threading.Thread(target=wait, daemon=True).start()
if sys.argv[2] == "old kernel":
    import errno, fcntl
    ioctl = fcntl.ioctl
    def old(fd, request, *more):
        if request == 0xC040FF0B:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        return ioctl(fd, request, *more)
    fcntl.ioctl = old
runtime = chrootfw.Runtime()
try:
    print(runtime.start("web1").state, flush=True)
    print(runtime.run("web1", ["/bin/sh", "-c", "exit 7"]).returncode, flush=True)
except chrootfw.ChrootfwError as error:
    print(f"{type(error).__name__}: {error.brief}", flush=True)
print(runtime.stop("web1").state, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("how", ["ignores", "handles", "waits"])
@pytest.mark.parametrize("kernel", ["this kernel", "old kernel"])
def test_a_program_that_reaps_every_child(
    web1: driving.Chroot, cli: driving.Cli, request: pytest.FixtureRequest, how: str, kernel: str
) -> None:
    """Linux 6.15 and later keep the status of a child that was reaped; before, an error says what took it."""
    command = [sys.executable, "-c", REAPER, how, kernel]
    done = subprocess.run(
        command, env=cli.environment(), check=True, timeout=120, capture_output=True, text=True
    )
    said = done.stdout.splitlines()
    release = [int(part) for part in os.uname().release.replace("-", ".").split(".")[:2]]
    is_old = release < [6, 15] or request.config.getoption("--kernel") != "running"
    if kernel == "this kernel" and not is_old:
        assert said == ["running", "7", "absent"]
    elif "running" in said:  # the program happened not to be first, at least once
        assert said[-1] == "absent"
    else:
        assert said[0].startswith("ScriptError: ")
        assert "SIGCHLD is ignored, or a handler or thread waits" in said[0]
        assert "255" not in said[0]
        assert said[-1] == "absent"
    assert web1.is_gone()


@pytest.mark.parametrize("how", ["the body", "an administrator", "the body, which then fails"])
def test_a_block_whose_instance_was_stopped_meanwhile(
    runtime: chrootfw.Runtime, cli: driving.Cli, web1: driving.Chroot, how: str
) -> None:
    """It has no definition, so that nothing of it is known when the block ends."""
    scratch = chrootfw.Instance("scratch", disk=web1.disk)
    caught: list[ZeroDivisionError] = []
    try:
        with runtime.running(scratch) as chroot:
            if how == "an administrator":
                cli("stop", chroot.name)
            else:
                assert runtime.stop(scratch).state == "absent"
                assert runtime.stop(scratch).state == "absent", "there is nothing to do"
            if how.endswith("fails"):
                raise ZeroDivisionError
    except ZeroDivisionError as error:
        caught.append(error)
    assert [getattr(error, "__notes__", []) for error in caught] == (
        [[]] if how.endswith("fails") else []
    )
    with pytest.raises(chrootfw.NotFoundError):
        runtime.stop("scratch")  # a name may be a typing error
    assert runtime.list()[0].state == "absent"


def test_events_and_cancellation_of_one_call(
    make_chroot: Callable[..., driving.Chroot], runtime: chrootfw.Runtime
) -> None:
    """Of two starts with the same plugins one is cancelled; each has its own events."""
    events: dict[str, set[str]] = {"web1": set(), "web2": set(), "": set()}
    runtime.on_event = lambda event: events[""].add(event.instance)
    make_chroot("web1")
    waits = make_chroot("web2")
    waits.write_init("#!/bin/sh\n/bin/touch /run/waits; sleep 3600\n")
    cancellation = Cancellation()
    one = runtime.with_options(on_event=lambda event: events["web1"].add(event.instance))
    other = runtime.with_options(
        on_event=lambda event: events["web2"].add(event.instance), cancellation=cancellation
    )
    caught: list[BaseException] = []

    def start() -> None:
        try:
            other.start("web2")
        except chrootfw.Interrupted as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    kernelview.wait_until(lambda: (waits.root / "run/waits").exists(), "the init script runs")
    assert one.start("web1").state == "running"
    cancellation.request()
    thread.join(60)
    assert caught
    assert waits.is_gone()
    assert events == {"web1": {"web1"}, "web2": {"web2"}, "": set()}
    assert runtime.stop("web1").state == "absent"
    assert events[""] == {"web1"}
    assert one.plugins() == runtime.plugins()
    with pytest.raises(chrootfw.InputError, match="on_event"):
        runtime.with_options(on_event=3)  # type: ignore[arg-type]


def test_a_fork_of_a_program_goes_on_with_its_runtime(
    make_chroot: Callable[..., driving.Chroot], run_dir: Path, config_dir: Path
) -> None:
    """Another thread is in the middle of a start when the program forks; both use the runtime."""
    runtime = chrootfw.Runtime(run_dir=run_dir, config_dir=config_dir, isolate_plugins=True)
    waits = make_chroot("web1")
    waits.write_init(
        "#!/bin/sh\n[ $1 = stop ] || { mkfifo /run/gate; read line < /run/gate; sleep 3600 & }\n"
    )
    make_chroot("web2")
    started: list[str] = []
    thread = threading.Thread(target=lambda: started.append(runtime.start("web1").state))
    thread.start()
    gate = waits.root / "run/gate"
    kernelview.wait_until(gate.exists, "the init script runs")
    pid = os.fork()
    if pid == 0:
        try:
            states = [runtime.start("web2").state, runtime.stop("web2").state]
            os._exit(states != ["running", "absent"])
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.write_text("go\n")
    thread.join(60)
    assert started == ["running"]
    assert runtime.stop("web1").state == "absent", "its lock did not stay with the fork"
    assert waits.is_gone()


def test_a_signal_handler_that_raises_undoes_a_start(
    web1: driving.Chroot, runtime: chrootfw.Runtime
) -> None:
    web1.write_init("#!/bin/sh\n/bin/touch /run/waits; sleep 3600\n")

    class Alarm(Exception):
        pass

    def handle(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGUSR1, handle)
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def ring() -> None:
        kernelview.wait_until((web1.root / "run/waits").exists, "the init script runs")
        signal.pthread_kill(main_thread, signal.SIGUSR1)

    thread = threading.Thread(target=ring)
    thread.start()
    try:
        with pytest.raises(Alarm):
            runtime.start("web1")
    finally:
        thread.join(60)
        signal.signal(signal.SIGUSR1, before)
    assert web1.is_gone()
