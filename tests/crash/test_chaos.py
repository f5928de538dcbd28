"""Row 3: six managers do what they like with the same four instances, and are killed while they do it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import kernelview
import leaks
import pytest
import roots
import syscall_walk
from syscall_walk import GRACE, INIT, check_words, environment
from zygote import TIMEOUT, Ended, Zygote, zygotes

in_memory = syscall_walk.in_memory  # a fixture

MANAGERS = 6

#: Each instance with its image; two of them share one, and can never be there at the same time.
INSTANCES = {"web1": "one", "web2": "two", "web3": "shared", "web4": "shared"}

#: What a manager does, and how often.
VERBS = {
    "start": 26, "stop": 12, "stop --force": 8, "cleanup": 8, "reboot": 10, "list --json": 12, "info --json": 12, "exec": 12,
}  # fmt: skip

#: Those that change nothing.
LOOKING = ("list --json", "info --json", "exec")
#: Those after which less is there than before, or as much.
ENDING = ("stop", "stop --force", "cleanup")
#: How an exec ends whose command a stop has ended.
EXEC_ENDED = (128 + signal.SIGTERM, 128 + signal.SIGKILL)

#: How often a manager is told to end while it works.
KILLED = 0.75

#: Seconds of a sample, and how many kills and judged answers it goes on for.
SAMPLE_SECONDS, SAMPLE_KILLS, SAMPLE_JUDGED = 20, 100, 10
#: Operations and kills of a whole campaign.
WHOLE_OPERATIONS, WHOLE_KILLS = 1500, 600
#: As long as a campaign may take, in seconds.
DEADLINE = 300


class Instance:
    """What the kernel says of one of them. It is asked; nothing is remembered."""

    def __init__(self, run_dir: Path, name: str, image: Path) -> None:
        self.run_dir = run_dir
        self.name = name
        self.image = image
        self.root = run_dir / name / "root"

    def look(self) -> Look:
        processes = [
            command
            for root, command in rooted().items()
            if root == str(self.root)
            for command in command
        ]
        mounts = len(kernelview.mounts_below(self.run_dir / self.name))
        groups = self._cgroups()
        populated = any("populated 1" in _text(path / "cgroup.events") for path in groups)
        state = "running" if processes or populated else "mounted" if mounts else "absent"
        return Look(
            state,
            is_settled=not any("/etc/chrootfw/init" in command for command in processes),
            image_in_use=bool(kernelview.loops_over(self.image)),
            left=[f"{mounts} mounts"] * bool(mounts)
            + [str(path) for path in groups]
            + processes
            + [str(path) for path in [self.run_dir / self.name] if path.exists()],
        )

    def stop(self, env: dict[str, str]) -> int:
        """By the command in a process of its own; its exit status."""
        command = [sys.executable, "-m", "chrootfw", "stop", self.name]
        return subprocess.run(command, env=env, timeout=TIMEOUT, check=False).returncode

    def _cgroups(self) -> list[Path]:
        """They come and go while they are listed."""
        tops = {
            mount.target
            for mount in kernelview.mount_table().values()
            if mount.fstype in ("cgroup", "cgroup2")
        }
        found = []
        for top in sorted(tops):
            home = Path(os.fsdecode(top)) / "chrootfw" / kernelview.identity(self.run_dir)
            with contextlib.suppress(FileNotFoundError):
                found += [
                    home / name for name in os.listdir(home) if name.rpartition("@")[0] == self.name
                ]
        return found


class Look(NamedTuple):
    """``state``: ``running``, ``mounted`` or ``absent``. ``is_settled``: no init script runs. ``left``: what there is of it."""

    state: str
    is_settled: bool
    image_in_use: bool
    left: list[str]


def rooted() -> dict[str, list[str]]:
    """The command lines of all processes that live, by their root directory."""
    found: dict[str, list[str]] = {}
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            root = os.readlink(f"/proc/{pid}/root")
            if root != "/" and kernelview.is_running(int(pid)):
                found.setdefault(root, []).append(
                    _text(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")
                )
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


class Operation:
    """One command of one manager. ``others``: what changed, or may have changed, its image's instances meanwhile."""

    def __init__(
        self, manager: Zygote, verb: str, instance: Instance, before: dict[str, Look]
    ) -> None:
        self.manager = manager
        self.verb = verb
        self.instance = instance
        self.before = before
        self.began = time.monotonic()
        self.others: dict[str, set[str]] = {name: set() for name in INSTANCES}
        self.pidfd = -1
        self.kill_at: float | None = None

    def argv(self, chance: random.Random) -> list[str]:
        first, *flags = self.verb.split(" ")
        name = [] if first == "list" else [self.instance.name]
        if first == "exec":
            return ["exec", *name, "--", "/bin/echo", "hi"]
        impatient = (
            ["--lock-timeout", "0"] if self.verb not in LOOKING and chance.random() < 0.15 else []
        )
        return [first, *name, *flags, *impatient]


class Chaos:
    """The managers at work, and who watches them."""

    def __init__(
        self, instances: list[Instance], managers: list[Zygote], chance: random.Random
    ) -> None:
        self.instances = instances
        self.free = list(managers)
        self.chance = chance
        self.running: list[Operation] = []
        self.seconds: dict[str, float] = dict.fromkeys(VERBS, 0.1)
        self.counts: Counter[str] = Counter()
        self.doubles: list[str] = []
        self.lies: list[str] = []

    def go_on(self, until: Callable[[], bool]) -> None:
        """Keep every manager busy until it is time, and then let all of them come to their ends."""
        stop = False
        while self.running or not stop:
            stop = stop or until() or bool(self.lies or self.doubles)
            while self.free and not stop:
                self._begin(self.free.pop())
            now = time.monotonic()
            for operation in self.running:
                if operation.kill_at is not None and operation.kill_at <= now:
                    with contextlib.suppress(ProcessLookupError):  # it has just ended
                        signal.pidfd_send_signal(operation.pidfd, signal.SIGKILL)
                    operation.kill_at = None
                assert now - operation.began < TIMEOUT, f"hangs: {operation.manager.argv}"
            self._watch()
            by_socket = {operation.manager.socket: operation for operation in self.running}
            due = [
                operation.kill_at - now
                for operation in self.running
                if operation.kill_at is not None
            ]
            for ready in select.select(by_socket, [], [], max(0.0, min([0.005, *due])))[0]:
                self._end(by_socket[ready])

    def _begin(self, manager: Zygote) -> None:
        verb = self.chance.choices(list(VERBS), list(VERBS.values()))[0]
        instance = self.chance.choice(self.instances)
        before = {
            each.name: each.look()
            for each in self.instances
            if verb == "list --json" or each is instance
        }
        operation = Operation(manager, verb, instance, before)
        for other in self.running:
            self._note(operation, other)
            self._note(other, operation)
        pid = manager.begin(*operation.argv(self.chance))
        with contextlib.suppress(ProcessLookupError):  # it has ended by now
            operation.pidfd = os.pidfd_open(pid)
        if operation.pidfd >= 0 and self.chance.random() < KILLED:
            operation.kill_at = time.monotonic() + self.chance.random() * self.seconds[verb]
        self.running.append(operation)

    def _note(self, operation: Operation, other: Operation) -> None:
        """``other`` may change what ``operation`` finds."""
        if other.verb not in LOOKING:
            for name, image in INSTANCES.items():
                if image == INSTANCES[other.instance.name]:
                    operation.others[name].add(other.verb)

    def _end(self, operation: Operation) -> None:
        ended = operation.manager.end()
        took = time.monotonic() - operation.began
        self.running.remove(operation)
        self.free.append(operation.manager)
        if operation.pidfd >= 0:
            os.close(operation.pidfd)
        self.counts["operations"] += 1
        self.counts[operation.verb] += 1
        if ended.status == -signal.SIGKILL:
            self.counts["kills"] += 1
            return
        self.seconds[operation.verb] = 0.8 * self.seconds[operation.verb] + 0.2 * took
        self.counts["answers"] += 1
        if operation.verb != "exec" or ended.status not in EXEC_ENDED:
            check_words(ended)
        self._judge(operation, ended)

    # -- the observer -------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Never one image twice: no two writable loop devices over it, no two mounts of it that are roots."""
        self.counts["observations"] += 1
        roots_of = {os.fsencode(instance.root): instance for instance in self.instances}
        mounted = Counter(
            mount.device for mount in kernelview.mount_table().values() if mount.target in roots_of
        )
        self.doubles += [
            f"device {device} is mounted on {n} roots" for device, n in mounted.items() if n > 1
        ]
        first = self._loops()
        for image, devices in first.items():
            if len(devices) > 1:
                again = (
                    self._loops()
                )  # they were read one after the other: one may have come when the other had gone
                if len(devices & again.get(image, set())) > 1:
                    self.doubles.append(f"{image} has the loop devices {devices}")

    def _loops(self) -> dict[str, set[tuple[str, str]]]:
        """The writable loop devices over each image, as name and number of use: another use is another number."""
        found: dict[str, set[tuple[str, str]]] = {}
        images = {str(instance.image) for instance in self.instances}
        for device, file in kernelview.loop_devices().items():
            block = Path("/sys/block") / Path(device).name
            if file in images and _text(block / "ro").strip() == "0":
                found.setdefault(file, set()).add((device, _text(block / "diskseq").strip()))
        return found

    # -- whether an answer is true ------------------------------------------------------------------

    def _judge(self, operation: Operation, ended: Ended) -> None:
        verb = operation.verb
        if verb not in LOOKING:
            allowed = (0, 1) if verb in ("start", "reboot") else (0, 1, 4)
            self._expect(
                ended.status in allowed, operation, ended, "an exit status of the contract"
            )
        judged = 0
        for each, before in operation.before.items():
            meanwhile = operation.others[each]
            instance = next(i for i in self.instances if i.name == each)
            if verb in LOOKING:
                if not meanwhile and before.is_settled and before.state == instance.look().state:
                    self._judge_look(operation, ended, each, before.state)
                    judged += 1
            elif not meanwhile and before.is_settled:
                self._judge_change(operation, ended, before, instance.look())
                judged += 1
            elif ended.status == 0 and meanwhile <= set(ENDING) and verb in ENDING:
                self._expect(not instance.look().left, operation, ended, "nothing of it is left")
                judged += 1
            elif ended.status == 0 and meanwhile == {"start"} == {verb}:
                self._expect(instance.look().state == "running", operation, ended, "it runs")
                judged += 1
        self.counts["judged"] += bool(judged)

    def _judge_look(self, operation: Operation, ended: Ended, name: str, state: str) -> None:
        if operation.verb == "exec":
            self._expect(
                ended.status == 0 or state != "running", operation, ended, f"it is {state}"
            )
            self._expect(
                ended.status == 125 or state != "absent", operation, ended, f"it is {state}"
            )
            self._expect(ended.status in (0, 125), operation, ended, "the status of echo, or 125")
            self._expect(
                (ended.stdout == "hi\n") == (ended.status == 0), operation, ended, "what echo says"
            )
            return
        shown = {each["name"]: each["state"] for each in json.loads(ended.stdout)["instances"]}
        true = {
            "running": ("running",),
            "mounted": ("mounted", "held"),
            "absent": ("absent", "held"),
        }[state]
        self._expect(shown.get(name) in true, operation, ended, f"{name} is {state}")

    def _judge_change(self, operation: Operation, ended: Ended, before: Look, after: Look) -> None:
        verb, done = operation.verb, ended.status == 0

        def expect(is_true: bool, what: str) -> None:
            self._expect(is_true, operation, ended, f"{what}; before {before}, after {after}")

        if verb in ("stop", "stop --force") or (verb == "cleanup" and before.state != "running"):
            expect(done, "it can be ended")
            expect(not after.left, "nothing of it is left")
        elif verb == "cleanup":
            expect(not done and "is running" in ended.stderr, "no cleanup of what runs")
            expect(after.state == "running", "it runs as before")
        elif done:
            expect(after.state == "running", "it runs")
        elif verb == "start":
            expect(before.state != "absent" or before.image_in_use, "it can be started")
            reasons = ("is already running", "is held", "is already in use")
            expect(any(reason in ended.stderr for reason in reasons), "a true reason")
            expect(after.state == before.state, "as before")
        else:
            expect(before.state != "running", "it can be started again")
            expect("is not started" in ended.stderr or "is held" in ended.stderr, "a true reason")

    def _expect(self, is_true: bool, operation: Operation, ended: Ended, what: str) -> None:
        if not is_true:
            meanwhile = operation.others[operation.instance.name]
            self.lies.append(f"not true: {what}\n  {ended}\n  meanwhile: {meanwhile or 'nothing'}")


@pytest.fixture
def instances(in_memory: Path, ground: leaks.Ground) -> list[Instance]:
    run_dir, config_dir = in_memory / "run", in_memory / "definitions"
    for directory in (run_dir, config_dir):
        directory.mkdir(mode=0o755)
    ground.know_run_dir(run_dir)
    images = {
        name: roots.make_image(
            in_memory / f"{name}.img", "ext4", lambda top: roots.make_root(top, INIT)
        )
        for name in dict.fromkeys(INSTANCES.values())
    }
    for name, image in INSTANCES.items():
        (config_dir / f"{name}.toml").write_text(
            f'disk = "{images[image]}"\ngrace = {GRACE}\nresolv_conf = "copy"\n'
        )
    return [Instance(run_dir, name, images[image]) for name, image in INSTANCES.items()]


def test_six_managers_at_once(
    instances: list[Instance], in_memory: Path, whole: bool, figure: Callable[[int, str], None]
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    began = time.monotonic()

    def is_over() -> bool:
        """How many kills hit is the machine's business: it goes on until they are enough."""
        counts, took = chaos.counts, time.monotonic() - began
        assert took < DEADLINE, f"too few of them hit: {counts}"
        if whole:
            return counts["operations"] >= WHOLE_OPERATIONS and counts["kills"] >= WHOLE_KILLS
        return (
            took > SAMPLE_SECONDS
            and counts["kills"] >= SAMPLE_KILLS
            and counts["judged"] >= SAMPLE_JUDGED
        )

    with zygotes(
        in_memory, environment(in_memory / "run", in_memory / "definitions"), MANAGERS
    ) as managers:
        chaos = Chaos(instances, managers, random.Random(seed))
        try:
            chaos.go_on(is_over)
            assert not chaos.doubles, "\n".join(chaos.doubles[:3])
            assert not chaos.lies, "\n".join(chaos.lies[:3])
        finally:
            ends = [
                instance.stop(environment(in_memory / "run", in_memory / "definitions"))
                for instance in instances
            ]
        assert ends == [0] * len(instances)
    for instance in instances:
        look = instance.look()
        assert not look.left, look
        assert not look.image_in_use, look
        roots.check_image(instance.image, "ext4")
    counts = chaos.counts
    figure(
        3,
        f"{MANAGERS} managers on {len(instances)} instances: {counts['operations']} operations, {counts['kills']} of them "
        f"killed, {counts['answers']} answers, {counts['judged']} of which could be judged and were true; "
        f"{counts['observations']} looks at mounts and loop devices: never an image twice; in the end nothing left, e2fsck clean",
    )
