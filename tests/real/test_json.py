"""What each verb answers in JSON in a whole life is what the schema allows; every other test's answers are checked too."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import roots
from driving import Chroot, Cli
from kernelview import wait_until

MakeChroot = Callable[..., Chroot]


def test_every_answer_of_a_life(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    cli: Cli,
    outside: Callable[..., subprocess.Popen[str]],
) -> None:
    web1 = make_chroot(disk=image(), log="file")
    assert cli.json("plan", "start", "web1")["steps"]
    assert cli.json("start", "web1")["instances"][0]["state"] == "running"
    assert cli.json("info", "web1")["log"]["mode"] == "file"
    assert cli.json("logs", "web1")["lines"] is not None
    assert cli.json("show", "web1")["parameters"]
    assert cli.json("plugins", "web1")["answers"]
    assert cli.json("node")["node"]["image_disks"]
    assert cli.json("verify", expect=(0, 1))["checks"]
    assert cli.json("list")["instances"][0]["processes"] == 1
    assert cli.json("reboot", "--all")["instances"][0]["state"] == "running"
    holder = outside("sleep", "600", cwd=web1.root)
    for verb in ("ps", "tree"):
        assert {each["why"] for each in cli.json(verb, "web1")["processes"]} == {"cgroup", "cwd"}
    assert cli.json("plan", "stop", "web1")["steps"]
    assert cli.json("stop", "web1", expect=4)["error"]["holders"][0]["pid"] == holder.pid
    assert cli.json("stop", "web*", expect=4)["errors"][0]["holders"][0]["pid"] == holder.pid
    assert cli.json("info", "web1")["holders"][0]["pid"] == holder.pid
    holder.kill()
    holder.wait()
    assert cli.json("cleanup", "web1")["instances"][0]["state"] == "absent"


def test_every_kind_of_error(make_chroot: MakeChroot, cli: Cli) -> None:
    failing = make_chroot("failing", init="#!/bin/sh\necho no; exit 3\n")
    error = cli.json("start", "failing", expect=1)["error"]
    assert (error["kind"], error["output"]) == ("ScriptError", "no\n")
    setting = 'plugins=["not_there:Plugin"]'
    error = cli.json("start", "failing", "--set", setting, expect=1)["error"]
    assert (error["kind"], error["hook"]) == ("PluginLoadError", "")
    failing.write_init(roots.script("> /var/begun; sleep 600"))
    start = cli.begin("start", "failing", "--json")
    wait_until(lambda: (failing.disk / "var/begun").exists(), "the script runs")
    start.send_signal(signal.SIGTERM)
    error = cli.end(start, expect=128 + signal.SIGTERM).json()["error"]
    assert (error["kind"], error["signum"]) == ("Interrupted", signal.SIGTERM)
