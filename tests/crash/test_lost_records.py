"""Row 20: after a reboot, and with records lost, damaged or forged: ``list`` tells the truth, start and stop work."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import driving
import kernelview
import pytest

import chrootfw

Damage = Callable[[Path], None]

_VALUES: list[Any] = [
    None, True, False, 0, -1, 1 << 70, 1.5, "", "x", "/", "..", "web2", "\0", "\udc80", [], {}, [[]], [{}], [None], ["x"],
    {"x": None}, {"name": "web1"}, {"kind": "image"},
]  # fmt: skip


def _paths(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield here
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, each in inside:
        yield from _paths(each, (*here, key))


def forged(record: bytes, dice: random.Random) -> bytes:
    """A record with one to three values replaced or left out; or with its bytes damaged."""
    if dice.random() < 0.3:
        raw = bytearray(record)
        for _ in range(dice.randint(1, 8)):
            place = dice.randrange(len(raw))
            how = dice.randrange(3)
            if how == 0:
                raw[place] = dice.randrange(256)
            elif how == 1:
                del raw[place : place + dice.randint(1, 40)]
            else:
                raw[place:place] = dice.randbytes(dice.randint(1, 20))
            if not raw:
                break
        return bytes(raw)
    value = json.loads(record)
    for _ in range(dice.randint(1, 3)):
        *way, last = dice.choice([path for path in _paths(value) if path])
        place = value
        for key in way:
            place = place[key]
        if dice.random() < 0.25:
            del place[last]
        else:
            place[last] = copy.deepcopy(dice.choice(_VALUES))
    return json.dumps(value).encode()


def _replace(record: Path, by: bytes | Callable[[Path], object] | None) -> None:
    if record.is_dir() and not record.is_symlink():
        shutil.rmtree(record)
    record.unlink(missing_ok=True)
    if isinstance(by, bytes):
        record.write_bytes(by)
        record.chmod(0o600)
    elif by is not None:
        by(record)


#: What may stand in the record's place without being a file.
ODD: tuple[bytes | Callable[[Path], object] | None, ...] = (
    None, b"", b"\0" * 4096, b"[" * 100_000, b"{}", b"null", b'"x"', b"\xff\xfe", b'{"version": 1}', b'{"version": 2}',
    lambda path: path.mkdir(), lambda path: os.mkfifo(path, 0o600), lambda path: path.symlink_to("/etc/passwd"),
    lambda path: path.symlink_to("record.json"), lambda path: (path.write_bytes(b"{}"), path.chmod(0o666)),
)  # fmt: skip


@pytest.mark.parametrize("state", ["running", "mounted", "absent"])
def test_records_lost_damaged_and_forged(
    make_chroot: Callable[..., driving.Chroot],
    image: Callable[..., Path],
    runtime: chrootfw.Runtime,
    run_dir: Path,
    whole: bool,
    figure: Callable[[int, str], None],
    state: str,
) -> None:
    count = 1000 if whole else 48
    dice = random.Random(f"{state} {count}")
    web1 = make_chroot(disk=image(), grace=0.2)
    record = run_dir / "web1/record.json"

    def begin() -> bytes:
        chrootfw.Runtime(run_dir=run_dir, config_dir=runtime.config_dir).start(
            chrootfw.Instance("web1", disk=str(web1.disk), init_script=None)
            if state == "mounted"
            else "web1"
        )
        return record.read_bytes()

    good = begin()
    if state == "absent":
        runtime.stop("web1")
        record.parent.mkdir()
        (record.parent / "root").mkdir()
    told = stopped = refused = 0
    for number in range(count):
        damaged = ODD[number] if number < len(ODD) else forged(good, dice)
        _replace(record, damaged)
        what = damaged if isinstance(damaged, bytes) else f"odd {number}"
        lives = state == "running"
        for info in (*runtime.list(), runtime.info("web1")):
            allowed = {state} if lives else {state, "held"} if state == "mounted" else {"absent"}
            assert info.state in allowed, (what, info)
        told += 1
        if number % (3 if whole else 8):
            continue
        try:
            runtime.stop("web1", force=bool(number % 2))
        except (chrootfw.TrustError, chrootfw.NotSupported, chrootfw.StepError) as error:
            # A name in its place that is not ours to remove, or a newer one's: said, and the instance is intact or gone.
            assert str(error), what
            refused += 1
            _replace(
                record, good if web1.root.exists() and kernelview.mount_on(web1.root) else None
            )
            runtime.stop("web1", force=True)
        assert web1.is_gone(), what
        assert not kernelview.mounts_below(web1.root), what
        assert kernelview.cgroups_of(kernelview.identity(run_dir)) == [], what
        stopped += 1
        good = begin()
        assert runtime.info("web1").state == ("mounted" if state == "mounted" else "running"), what
        if state == "absent":
            runtime.stop("web1", force=True)
            record.parent.mkdir()
            (record.parent / "root").mkdir()
    _replace(record, good if state != "absent" else None)
    runtime.stop("web1", force=True)
    figure(
        20,
        f"{told} of {count} damaged or forged records beside an instance that is {state}: list and info told the truth; "
        f"{stopped} of {stopped} stops and starts with such a record worked ({refused} after a refusal that said why)",
    )


_SAMPLE = [
    ("start", None, True),
    ("start", "starting", False),
    ("stop", "stopping", True),
    ("cleanup", "started", False),
]


def test_after_a_reboot(
    make_chroot: Callable[..., driving.Chroot],
    image: Callable[..., Path],
    cli: driving.Cli,
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    """An empty run directory; a record of another boot; cgroups that are still there, which no reboot leaves."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    web1 = make_chroot(disk=image())
    hierarchy = kernelview.cgroup_hierarchy()
    assert hierarchy is not None
    home = hierarchy / "chrootfw" / kernelview.identity(cli.run_dir)
    rounds = 0
    for leftover in (False, True):
        for verb in ("start", "stop", "cleanup", "reboot"):
            for phase in (None, "starting", "started", "stopping"):
                if not whole and (verb, phase, leftover) not in _SAMPLE:
                    continue
                web1.start()
                kept = (cli.run_dir / "web1/record.json").read_text()
                web1.stop(force=True)
                if phase is not None:
                    web1.root.mkdir(parents=True)
                    value = {**json.loads(kept.replace(boot, str(uuid.uuid4()))), "phase": phase}
                    (cli.run_dir / "web1/record.json").write_text(json.dumps(value))
                    (cli.run_dir / "web1/record.json").chmod(0o600)
                if leftover:
                    (home / "web1@7").mkdir(parents=True)
                assert [(info.name, info.state) for info in web1.runtime.list()] == [
                    ("web1", "absent")
                ]
                web1.cli(verb, expect=1 if verb == "reboot" else 0)
                assert web1.state == ("running" if verb == "start" else "absent")
                web1.cli("stop")
                assert web1.is_gone()
                assert not (cli.run_dir / "web1").exists(), (verb, phase, leftover)
                assert not home.exists(), (verb, phase, leftover)
                rounds += 1
    figure(
        20,
        f"{rounds} of {rounds} returns from a reboot (empty run directory, stale record, leftover cgroup): nothing left",
    )
