"""One command for several instances: names, patterns, --all, and what it returns."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from driving import Chroot, Cli
from kernelview import is_running, wait_until

MakeChroot = Callable[..., Chroot]


@pytest.fixture
def some(make_chroot: MakeChroot) -> list[Chroot]:
    return [make_chroot(name) for name in ("db10", "db9", "web1")]


def _lines(text: str) -> list[str]:
    return sorted(text.splitlines())


def test_each_has_its_line_and_the_status_is_the_highest(some: list[Chroot], cli: Cli) -> None:
    db10, db9, web1 = some
    started = cli("start", "db9", "nothing", "db10", expect=3)
    assert [line.partition(":")[0] for line in _lines(started.stdout)] == [
        "db10 is running",
        "db9 is running",
    ]
    assert "there is no instance nothing" in started.stderr
    assert (db10.state, db9.state, web1.state) == ("running", "running", "absent")
    assert _lines(cli("stop", "db*").stdout) == ["db10 is stopped", "db9 is stopped"]
    assert cli("stop", "db*").stdout == "there is nothing to stop\n"
    assert cli("stop", "db*", "db9", "db9").stdout == "db9 is already stopped\n"
    cli("stop", "x*", expect=3, says=["no instance fits x*"])


def test_all_means_those_for_which_there_is_something_to_do(some: list[Chroot], cli: Cli) -> None:
    db10, db9, web1 = some
    web1.start()
    assert len(cli("start", "--all").stdout.splitlines()) == 2
    answer = cli.json("reboot", "--all")
    assert [info["name"] for info in answer["instances"]] == ["db9", "db10", "web1"]
    assert answer["errors"] == []
    cli("stop", "web1", "--keep-mounted")
    assert cli("cleanup", "--all", "-q").stdout == ""
    assert (db10.state, db9.state, web1.state) == ("running", "running", "absent")
    assert len(cli("stop", "--all").stdout.splitlines()) == 2


def test_what_fails_is_named_in_the_json(some: list[Chroot], cli: Cli) -> None:
    db10, db9, _ = some
    db9.start()
    answer = cli.json("start", "db9", "db10", expect=1)
    assert [info["name"] for info in answer["instances"]] == ["db10"]
    (error,) = answer["errors"]
    assert (error["instance"], error["kind"]) == ("db9", "TransitionError")
    answer = cli.json("start", "db9", "db10", "--if-needed")
    assert [info["name"] for info in answer["instances"]] == ["db9", "db10"]
    assert cli("start", "db9", "--if-needed").stdout.startswith("db9 is already running: ")
    cli("stop", "db*")
    assert db10.state == "absent"


def test_an_error_names_its_instance_once(some: list[Chroot], cli: Cli) -> None:
    failed = cli("start", "db*", "nothing", "--set", 'disk="/nowhere/db9"', expect=1)
    assert [line for line in _lines(failed.stderr) if line.startswith("chrootfw: ")] == [
        "chrootfw: db10: the disk /nowhere/db9 does not exist",
        "chrootfw: db9: the disk /nowhere/db9 does not exist",
        "chrootfw: nothing: the disk /nowhere/db9 does not exist",
    ]
    some[1].start()
    failed = cli("start", "db9", "db9", "web1", expect=1)
    assert failed.stderr.splitlines()[0] == "chrootfw: cannot start db9: it is already running"


def test_an_interrupt_reaches_all_of_them(make_chroot: MakeChroot, cli: Cli) -> None:
    names = [f"slow{number}" for number in range(10)]
    slow = [make_chroot(name) for name in names]
    for each in slow:
        each.write_init("#!/bin/sh\n[ $1 = start ] && { echo began >> /var/calls; sleep 600; }\n")
    process = cli.begin("start", "slow*")
    wait_until(lambda: sum(len(each.calls()) for each in slow) == 8, "eight scripts to run")
    process.send_signal(signal.SIGINT)
    done = cli.end(process, expect=130)
    assert "interrupted before these were begun: slow8, slow9" in done.stderr
    assert {each.state for each in slow} == {"absent"}
    assert not is_running(process.pid)
