"""Row 9: a fork bomb of 800 processes, one that re-parents, one that leaves its cgroup: ended, and in time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import driving
import fork_bombs
import kernelview
import pytest

#: Seconds from KILL to the last process gone, as promised; a busy machine gets this many times as long.
PROMISED = {"cgroup": 0.5, "root": 15.0}
BUSY = {"cgroup": 10, "root": 1}

#: No stop takes longer than this, whatever happens.
NEVER_ENDLESS = 60.0


@pytest.fixture
def prefix(
    request: pytest.FixtureRequest, outside: Callable[..., subprocess.Popen[str]]
) -> Sequence[str]:
    """What makes a command run with cgroup v2, or in a mount namespace that shows none."""
    if request.param == "cgroup":
        return []
    hide = "while umount $(findmnt -n -o TARGET -t cgroup2 | head -1) 2>/dev/null; do :; done; echo; exec sleep 3600"
    keeper = outside("unshare", "--mount", "sh", "-c", hide, stdout=subprocess.PIPE)
    assert keeper.stdout is not None
    keeper.stdout.readline()
    assert " cgroup2 " not in Path(f"/proc/{keeper.pid}/mountinfo").read_text()
    return ["nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt"]


@pytest.fixture
def light(
    make_chroot: Callable[..., driving.Chroot], make_root: Callable[..., Path]
) -> Iterator[Callable[[str, Sequence[str]], driving.Chroot]]:
    lit: list[driving.Chroot] = []

    def start(kind: str, prefix: Sequence[str]) -> driving.Chroot:
        chroot = make_chroot("web1", disk=make_root(f"bomb{len(lit)}"))
        chroot.define(binds=fork_bombs.put_into(chroot.disk, kind))
        lit.append(chroot)
        chroot.cli("start", prefix=[*fork_bombs.REAPER, *prefix])
        kernelview.wait_until(fork_bombs.is_lit, "the bomb has spread", seconds=40)
        return chroot

    yield start
    for chroot in lit:
        fork_bombs.end(chroot.disk)


#: Stops web1, and tells when KILL is about to be sent.
STOP = """
import sys, time
import chrootfw

def tell(event):
    if event.what == "begin" and "SIGKILL" in event.does:
        print(time.monotonic(), flush=True)

options = {"force": True} if sys.argv[1] == "force" else {"timeout": float(sys.argv[1])}
chrootfw.Runtime(on_event=tell).stop("web1", **options)
"""


def seconds_to_the_end(cli: driving.Cli, how: str, prefix: Sequence[str]) -> float:
    """Stop web1; the seconds from its first KILL to the last process of the bomb gone."""
    command = [*prefix, sys.executable, "-c", STOP, how]
    signalled = gone = 0.0
    deadline = time.monotonic() + NEVER_ENDLESS
    with subprocess.Popen(
        command, env=cli.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.set_blocking(process.stdout.fileno(), False)
        while (ended := process.poll()) is None and time.monotonic() < deadline:
            signalled = signalled or float(process.stdout.readline() or 0)
            if signalled and not gone and fork_bombs.is_out():
                gone = time.monotonic()
            time.sleep(0.002)  # as kernelview.wait_until
        process.kill()
        signalled = signalled or float(process.stdout.readline() or 0)
        said = process.stderr.read().decode()
    assert ended is not None, f"the stop does not end within {NEVER_ENDLESS} s: {said}"
    assert ended == 0, said
    assert fork_bombs.is_out(), fork_bombs.living()
    assert signalled
    return (gone or time.monotonic()) - signalled


@pytest.mark.parametrize("prefix", ["cgroup", "root"], indirect=True)
def test_a_fork_bomb_is_ended_in_time(
    request: pytest.FixtureRequest,
    light: Callable[[str, Sequence[str]], driving.Chroot],
    cli: driving.Cli,
    prefix: Sequence[str],
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    tracking = "root" if prefix else "cgroup"
    measured: list[float] = []
    rounds = [(kind, how) for kind in fork_bombs.KINDS for how in ("force", "0.3")]
    sample = {"cgroup": [("forks", "force"), ("leaves the cgroup", "0.3")],
              "root": [("re-parents", "0.3"), ("moves on", "force")]}  # fmt: skip
    rounds = rounds * 5 if whole else sample[tracking]
    for kind, how in rounds:
        chroot = light(kind, prefix)
        measured.append(seconds_to_the_end(cli, how, prefix))
        assert chroot.state == "absent"
        print(f"{tracking}: {kind}, {how}: {measured[-1]:.2f} s")
    assert max(measured) <= PROMISED[tracking] * BUSY[tracking], measured
    figure(
        9,
        f"{'cgroup v2' if tracking == 'cgroup' else 'without cgroup v2'}: {len(measured)} of {len(rounds)} bombs of "
        f"up to {fork_bombs.PROCESSES} processes ({len({kind for kind, _ in rounds})} kinds) ended: from KILL to the last process "
        f"{sorted(measured)[len(measured) // 2]:.2f} s (median), {max(measured):.2f} s at most",
    )
