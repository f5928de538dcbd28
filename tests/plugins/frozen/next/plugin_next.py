"""A plugin that uses all that chrootfw offers; the next minor version freezes it: see README.md one level up."""

from __future__ import annotations

import json
import os
from pathlib import Path
from signal import SIGKILL, SIGTERM

import attrs

import chrootfw
from chrootfw import (
    NO_COMMAND,
    Command,
    Entry,
    Escalation,
    MountPoint,
    Node,
    Omit,
    Parameter,
    Problem,
    Step,
)

__version__ = "0.2.0"

#: The parameters of the instance with which it is tried.
PARAMS = {"frozen_word": "ice", "frozen_level": 2, "frozen_list": ["a"]}


@attrs.frozen
class Layer(Step):
    """The source of a mount point."""

    kind = "frozen-layer"
    path: str

    def describe(self):
        return f"make the layer {os.path.basename(self.path)}"

    def apply(self):
        os.mkdir(self.path)
        return {"source": self.path}

    def undo(self, record):
        if os.path.isdir(self.path):
            os.rmdir(self.path)


@attrs.frozen
class Marker(Step):
    """A step of pre_start; it leaves behind what its undo was told."""

    kind = "frozen-marker"
    path: str
    words: list[str]

    def describe(self):
        return f"mark {os.path.basename(self.path)} with {' '.join(self.words)}"

    def apply(self):
        Path(self.path).write_text(" ".join(self.words))
        return {"size": os.path.getsize(self.path)}

    def undo(self, record):
        told = {key: record[key] for key in ("kind", "facts", "plugin")}
        told["arguments"] = sorted(record["arguments"])
        Path(f"{self.path}.undone").write_text(json.dumps(told, sort_keys=True))
        Path(self.path).unlink(missing_ok=True)


class Everything:
    """Every hook. ``place``: a directory for its steps. ``said``: what it was asked and told, each thing once."""

    def __init__(self, place):
        self.place = place
        self.said = []

    def say(self, *words):
        line = " ".join(map(str, words))
        if line not in self.said:
            self.said.append(line)

    @chrootfw.hookimpl
    def chrootfw_parameters(self):
        self.say("parameters")
        return [
            Parameter("frozen_word", str, "", lambda value: None if value else "it is empty", "a word"),
            Parameter("frozen_level", (int, float), default=1, help="a number"),
            Parameter("frozen_list", list, []),
            Parameter("frozen_off", bool, False),
        ]

    @chrootfw.hookimpl
    def chrootfw_mount(self, instance):
        params = {key: value for key, value in sorted(instance.params.items()) if key.startswith("frozen_")}
        self.say("mount", instance.name, os.path.basename(instance.disk), instance.init_script, params)
        return (
            Omit("/sys"),
            MountPoint("/mnt", Layer(f"{self.place}/layer"), options=("bind", "ro")),
            MountPoint(
                "/", "tmpfs", "tmpfs", ["size=1m"], at="aux:frozen", nodes=[Node("inside"), Node("link", link="inside")]
            ),
        )

    @chrootfw.hookimpl
    def chrootfw_pre_start(self, instance, root):
        if root is not None:
            with root.open("/etc/passwd") as file:
                self.say("pre_start", "root" in file.read(4), root.exists("/nothing"), sorted(root.listdir("/mnt")))
        else:
            self.say("pre_start", None)
        return [
            Marker(f"{self.place}/marker", [instance.params["frozen_word"]]),
            Problem("it is cold", "wait", warning=True),
        ]

    @chrootfw.hookimpl
    def chrootfw_init_script(self, instance, action):
        self.say("init_script", action)
        if action == "stop":
            return NO_COMMAND
        return Command(("/bin/sh", "-c", "echo $FROZEN $LEVEL > /var/frozen; sleep 600 &"), {"LEVEL": "2"}, timeout=30)

    @chrootfw.hookimpl(tryfirst=True)
    def chrootfw_enter(self, instance, command):
        self.say("enter", command.argv[0])
        return Entry("chroot", cwd="/var", env={"FROZEN": instance.params["frozen_word"]})

    @chrootfw.hookimpl
    def chrootfw_kill_strategy(self, instance, processes, force, timeout):
        own = [process for process in processes if process.own]
        self.say("kill_strategy", [(process.user, process.pid > 1) for process in own], force, timeout)
        return [Escalation(SIGTERM, 5, to=[process.pid for process in own] or "own"), Escalation(SIGKILL, 2.0)]

    @chrootfw.hookimpl(specname="chrootfw_unmount_ordering")
    def order(self, instance, mounts):
        ours = ("/", "/mnt", "/sys")
        self.say("unmount_ordering", [f"{mount.at}{mount.target}" for mount in mounts if mount.target in ours])
        return list(reversed(mounts))

    @chrootfw.hookimpl(wrapper=True)
    def chrootfw_unmount_ordering(self, mounts):
        order = yield
        self.say("unmount_ordering wrapped", sorted(order, key=mounts.index) == list(mounts))
        return order

    @chrootfw.hookimpl(wrapper=True)
    def chrootfw_around_stage(self, stage):
        self.say("before", stage)
        try:
            return (yield)
        finally:
            self.say("after", stage)

    @chrootfw.hookimpl
    def chrootfw_event(self, event):
        if event.plugin == "Everything" or event.what == "warning":
            self.say("event", event.what, event.instance, event.stage)
