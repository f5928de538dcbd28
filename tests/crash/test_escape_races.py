"""Row 21: a hostile root and a hostile process race with every verb, and nothing outside is touched."""

from __future__ import annotations

import hashlib
import os
import platform
import random
import shutil
import subprocess
import sys
import time
import venv
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile_root
import kernelview
import pytest
from driving import Chroot, Cli
from test_escapes import _linker_of, _loader
from zygote import Ended, Zygote

_SYSCTLS = (
    "kernel/core_pattern", "kernel/hostname", "kernel/modprobe", "kernel/sysrq", "kernel/panic", "kernel/randomize_va_space",
    "fs/suid_dumpable", "fs/protected_symlinks", "vm/overcommit_memory", "vm/swappiness",
)  # fmt: skip

#: What is done in a round, and how often among others. Whether it comes to something is not said.
_ROUNDS = (
    ["exec"] * 8 + ["exec as a user"] * 3 + ["shell"] * 4 + ["reboot"] * 2 + ["stop"] * 3 + ["list", "info", "ps", "verify", "cleanup"]
)  # fmt: skip


_OF_A_COMMAND = (
    "srv/tool",
    "srv/tool",
    "srv/tool",
    "srv/www",
    "srv/www",
    "root",
    "bin/sh",
    "bin",
    "etc/passwd",
)
#: The names that a verb resolves, where that is not all of them.
_AIMED = {
    "exec": _OF_A_COMMAND,
    "exec as a user": _OF_A_COMMAND,
    "shell": ("root", "bin/sh", "bin", "etc/passwd"),
}


def _sysctls() -> dict[str, str]:
    found = {}
    for name in _SYSCTLS:
        file = Path("/proc/sys", name)
        if file.exists():
            found[name] = file.read_text()
    return found


class Witnesses:
    """The host's, none of which may be touched."""

    def __init__(
        self,
        outside: hostile_root.Outside,
        process: subprocess.Popen[str],
        interpreter: Path,
        run_dir: Path,
    ) -> None:
        self.outside, self.process, self.interpreter, self.run_dir = (
            outside,
            process,
            interpreter,
            run_dir,
        )
        self.before = self._all()
        self.looks = 0

    def _all(self) -> tuple[object, ...]:
        status = self.interpreter.stat()
        return (
            self.outside.look(),
            _sysctls(),
            (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                hashlib.sha256(self.interpreter.read_bytes()).hexdigest(),
            ),
            os.getpriority(os.PRIO_PROCESS, self.process.pid),
            Path(f"/proc/{self.process.pid}/oom_score_adj").read_text(),
            self._mounts(),
        )

    def _mounts(self) -> dict[int, kernelview.Mounted]:
        top = os.fsencode(self.run_dir) + b"/"
        return {
            number: each
            for number, each in kernelview.mount_table().items()
            if not each.target.startswith(top)
        }

    def look(self) -> None:
        """Fail if anything was touched."""
        __tracebackhide__ = True
        assert self.process.poll() is None, "the canary process was ended"
        now = self._all()
        assert now == self.before
        self.looks += 1

    def glance(self, ended: Ended, disk: Path) -> None:
        """Fail if what costs little to look at was touched, or anything was handed in or out."""
        __tracebackhide__ = True
        assert ended.status >= 0, ended
        assert "Traceback" not in ended.stderr, ended
        assert "internal error" not in ended.stderr, ended
        assert self.process.poll() is None, "the canary process was ended"
        assert self.outside.canary.read_text() == f"{self.outside.secret}\n"
        assert not self.outside.made.exists(), ended
        assert self.outside.secret not in ended.stdout + ended.stderr, ended
        for loot in (disk / "srv/loot", disk / "srv/said"):
            text = loot.read_text(errors="replace") if loot.exists() else ""
            assert self.outside.secret not in text, ended
            assert "written" not in text.split("\n"), ended


@pytest.fixture
def swappiness() -> Iterator[str]:
    """Another value than the sysctl has; what it had is written back."""
    file = Path("/proc/sys", hostile_root.SYSCTL)
    before = file.read_text()
    yield str(int(before) ^ 1)
    if file.read_text() != before:
        file.write_text(before)


def _arguments(what: str, chance: random.Random) -> list[str]:
    if what.startswith("exec"):
        user = ["--user", "web"] if what != "exec" else []
        return [
            "exec",
            *user,
            "--cwd",
            chance.choice(("/srv/www", "/root", "/tmp")),
            "web1",
            "--",
            "/srv/tool",
        ]
    if what in ("list", "verify"):
        return [what]
    return ["stop", "web1", "--timeout", "20"] if what == "stop" else [what, "web1"]


def test_a_hostile_root_and_a_hostile_process_race_with_every_verb(
    make_chroot: Callable[..., Chroot],
    make_root: Callable[..., Path],
    cli: Cli,
    outside: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    swappiness: str,
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    """The instance's dynamic linker is hostile as well: it runs where a link has led to the host's interpreter."""
    rounds = 10_000 if whole else 80
    canary = outside("sleep", "86400")
    (tmp_path / "outside").mkdir()
    host = hostile_root.Outside(tmp_path / "outside", canary.pid, swappiness)
    place = tmp_path / "venv"
    venv.create(place, symlinks=False, with_pip=False)
    interpreter = Path(os.path.realpath(place / "bin/python3"))
    root = make_root("hostile")
    hostile_root.make(root, host)
    if platform.machine() == "x86_64":  # the linker is machine code
        linker = Path(f"{root}{_linker_of(interpreter)}")
        linker.parent.mkdir(parents=True, exist_ok=True)
        linker.write_bytes(_loader())
        linker.chmod(0o755)
    (tmp_path / "bound").mkdir()
    web1 = make_chroot(
        disk=root, hardened=True, binds=[f"{tmp_path / 'bound'}:/mnt/bind"], holders="kill", start_timeout=20,
        stop_script_timeout=20, grace=2,
    )  # fmt: skip
    typed = tmp_path / "typed"
    typed.write_text(
        f"pwd; cat .{hostile_root.UP}{host.canary}; echo x > .{hostile_root.UP}{host.made}; /srv/tool; exit 0\n"
    )
    inherited = cli.environment()
    path = os.pathsep.join(filter(None, [*sys.path, inherited["PYTHONPATH"]]))
    env = {**inherited, "PYTHONPATH": path, "ADMINISTRATORS": host.secret}
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    witnesses = Witnesses(host, canary, interpreter, cli.run_dir)
    done: Counter[str] = Counter()
    succeeded: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    # What is being run cannot be written to: so the manager, which always is, is run by a file of its own.
    manager = Path(shutil.copy2(interpreter, interpreter.with_name("manager")))
    zygote = Zygote(tmp_path / "zygote", env, interpreter, manager)
    began = time.monotonic()
    try:
        with hostile_root.exchanging(root, host.top, seed) as aim:
            is_started = False
            for number in range(1, rounds + 1):
                what = chance.choice(_ROUNDS if is_started else ["start"] * 4 + ["cleanup"])
                aim(_AIMED.get(what, hostile_root.NAMES))
                ended = zygote.run(
                    *_arguments(what, chance), stdin=typed if what == "shell" else None
                )
                witnesses.glance(ended, root)
                done[what] += 1
                succeeded[what] += ended.status == 0
                if ended.status:
                    refused[f"{what}: {ended.status}: {ended.stderr.partition(chr(10))[0]}"] += 1
                if what == "start":
                    is_started = ended.status == 0
                elif what in ("stop", "reboot", "cleanup"):
                    is_started = web1.state == "running"
                if number % 50 == 0:
                    witnesses.look()
        ended = zygote.run("stop", "web1", "--force")
        assert ended.status == 0, ended
    finally:
        zygote.close()
        for text, count in refused.most_common():
            print(count, text)
    took = time.monotonic() - began
    print(done, succeeded, f"{took:.0f} s")
    witnesses.look()
    for what in done:
        if done[what] > 20:
            assert succeeded[what] > done[what] / 10, (
                f"hardly any {what} came through, so that nothing was attacked"
            )
    assert web1.is_gone()
    reached = (
        (root / "srv/reached").read_text().count("\n") if (root / "srv/reached").exists() else 0
    )
    counts = ", ".join(f"{done[what]} {what}" for what in sorted(done))
    figure(
        21,
        f"{rounds} verbs ({counts}) of a hardened instance while its names are exchanged and a process inside tries all that it sees, "
        f"{succeeded.total()} of them with status 0: no file of the host read, made or changed; sysctls, mounts, the interpreter and the canary "
        f"process as before ({witnesses.looks} looks at all of them). The instance's dynamic linker was run for the interpreter {reached} times, "
        f"from its read-only mount",
    )
