"""What the class answers to an administrator of Ganeti: words and states that fit Ganeti's own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypervisor_fixtures import *  # noqa: F403
from hypervisor_fixtures import Devices, state_of

from chrootfw.errors import ChrootfwError
from chrootfw_ganeti import memory, move_hook, wording

WEB1 = "web1.example.com"
RUNNING, SHUTDOWN = 0, 1

Make = Callable[..., tuple[Any, Devices]]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        ("chrootfw stop aa, or chrootfw reboot aa", "gnt-instance stop aa, or gnt-instance reboot aa"),
        ("umount /x; then chrootfw cleanup aa", "umount /x; then chrootfw-ganeti cleanup aa"),
        ("chrootfw needs Linux 5.14 or newer", "chrootfw needs Linux 5.14 or newer"),
        ("set require_process = false if that is as it should be", "set extra_config=require_process:false if that is as it should be"),
        ('set mount_options = ["nouuid"]; or', "set extra_config=mount_options:nouuid; or"),
        ("install it, or set fstype", "install it, or set fstype in extra_config"),
        ("set resolv_conf to keep", "set extra_config=resolv_conf:keep"),
        ("make it, or set init_script (false: mount only)", "make it, or set init_script"),
        ("end what holds it; then chrootfw cleanup aa (stop --kill-holders signals these processes)", "end what holds it; then chrootfw-ganeti cleanup aa"),
    ],
)  # fmt: skip
def test_hints_are_for_an_administrator_of_ganeti(hint: str, shown: str) -> None:
    assert wording.hint(hint) == shown


def test_a_sentence_has_no_joints() -> None:
    error = ChrootfwError("it failed", ["its last output:", "  not here", "and more"], "ask")
    assert wording.sentence(error) == "it failed (its last output: not here; and more). Hint: ask"
    asked = ChrootfwError("did you mean 'grace'?", hint="ask")
    assert wording.sentence(asked) == "did you mean 'grace'? Hint: ask"


def test_a_second_start_is_answered_in_ganetis_words(make_instance: Make, hyper: Any) -> None:
    instance, devices = make_instance()
    hyper().StartInstance(instance, devices, False)
    with pytest.raises(Exception, match=f"gnt-instance stop {WEB1}, or gnt-instance reboot"):
        hyper().StartInstance(instance, devices, False)


@pytest.mark.parametrize("kind", [OSError, ValueError, ChrootfwError, "HypervisorError"])
def test_whatever_fails_is_answered_in_ascii(
    hyper: Any, ganeti: Any, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """Ganeti's commands and jobs end with a UnicodeDecodeError at other text."""
    error = (ganeti.errors.HypervisorError if isinstance(kind, str) else kind)("Ger\u00e4t \u2026")

    def fail(_self: object) -> None:
        raise error

    monkeypatch.setattr("chrootfw.runtime.Runtime.node_info", fail)
    with pytest.raises(ganeti.errors.HypervisorError, match=r"Ger.xe4t \.\.\.") as caught:
        hyper().GetNodeInfo()
    assert str(caught.value).isascii()


def test_verify_answers_in_ascii(hyper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SimpleNamespace(status="error", name="run", detail="Ger\u00e4t", hint="chrootfw list")
    monkeypatch.setattr("chrootfw.runtime.Runtime.verify", lambda _self: [wrong])
    assert hyper().Verify() == "run: Ger\\xe4t (chrootfw-ganeti list)"


def test_what_can_never_have_been_started_is_not_here(hyper: Any) -> None:
    """Ganeti takes longer names than a cgroup can have; an instance with one can be removed again."""
    name = f"{'a' * 201}.example.com"
    assert hyper().GetInstanceInfo(name) is None
    hyper().StopInstance(None, name=name, force=True)
    hyper().CleanupInstance(name)


# -- states -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [True, False])
def test_a_crash_is_no_shutdown_by_a_user(make_instance: Make, hyper: Any, allowed: bool) -> None:
    """Where users may shut down, Ganeti takes what is shut down for that; a stop still finds the disk mounted."""
    hyper.allows_user_shutdown = staticmethod(lambda: allowed)
    instance, devices = make_instance()
    hyper().StartInstance(instance, devices, False)
    assert [info[4] for info in hyper().GetAllInstancesInfo()] == [RUNNING]
    root = Path(hyper.run_dir) / WEB1 / "root"
    subprocess.run(["kill", (root / "run/daemon").read_text().strip()], check=True)
    wait_until(lambda: state_of(hyper, WEB1) == SHUTDOWN)
    shown = [info[4] for info in hyper().GetAllInstancesInfo()]
    assert shown == ([] if allowed else [SHUTDOWN])


def test_user_shutdown_is_read_from_the_cluster(
    hyper: Any, ganeti: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ganeti import ssconf

    store = ssconf.SimpleStore
    monkeypatch.setattr(ssconf, "SimpleStore", lambda: store(str(tmp_path)))
    assert not hyper.allows_user_shutdown()
    for value in ("True", "False"):
        (tmp_path / "ssconf_enabled_user_shutdown").write_text(f"{value}\n")
        assert hyper.allows_user_shutdown() is (value == "True")


# -- memory -------------------------------------------------------------------------------------------


@pytest.fixture
def uncontrolled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cgroup hierarchy without a memory controller, as files."""
    top = tmp_path / "cgroup"
    top.mkdir()
    (top / "cgroup.subtree_control").write_text("cpu pids\n")
    monkeypatch.setattr(memory.cgroups, "hierarchies", lambda _table: (str(top), None))
    return top


@pytest.mark.parametrize("wanted", ["maxmem", "64M"])
def test_a_limit_that_cannot_be_kept_is_refused_when_it_is_set(
    hyper: Any, ganeti: Any, uncontrolled: Path, wanted: str
) -> None:
    given = {"init_script": "/ganeti-chroot", "extra_config": f"memory:{wanted}"}
    hyper.CheckParameterSyntax(given)  # the master's, which need not run it
    with pytest.raises(ganeti.errors.HypervisorError, match="no memory controller"):
        hyper.ValidateParameters(given)
    hyper.ValidateParameters({**given, "extra_config": "grace:3"})
    (uncontrolled / "cgroup.subtree_control").write_text("cpu memory\n")
    hyper.ValidateParameters(given)


def test_a_start_with_a_limit_that_cannot_be_kept_runs_nothing(
    make_instance: Make, hyper: Any, ganeti: Any, uncontrolled: Path
) -> None:
    instance, devices = make_instance(start="exit 7", extra_config="memory:64M")
    with pytest.raises(ganeti.errors.HypervisorError, match="no memory controller"):
        hyper().StartInstance(instance, devices, False)
    assert not (Path(hyper.run_dir) / WEB1).exists()


def test_a_node_does_not_accept_what_it_could_not_start(
    make_instance: Make, hyper: Any, ganeti: Any, uncontrolled: Path
) -> None:
    instance, _ = make_instance(extra_config="memory:64M")
    instance.disks_info = [object()]
    with pytest.raises(ganeti.errors.HypervisorError, match="no memory controller"):
        hyper().AcceptInstance(instance, "{}", "192.0.2.2")


# -- other nodes --------------------------------------------------------------------------------------


def test_verify_compares_the_nodes(hyper: Any) -> None:
    files, optional = hyper.GetAncillaryFiles()
    assert files == optional == ["/etc/chrootfw/ganeti-hypervisor"]


@pytest.mark.parametrize(
    ("refusals", "says"),
    [
        ({}, "node3 does not use chrootfw"),
        ({"instance": "no memory controller"}, "node3 does not use chrootfw"),
        ({"invalid": "?", "instance": "no memory controller"}, "node3 cannot run web1: no memory"),
        ({"invalid": "?"}, ""),
    ],
)
def test_what_a_node_says_of_an_instance_that_is_to_come(
    refusals: dict[str, str], says: str
) -> None:
    reason = move_hook.why_not("node3", "web1", refusals)
    assert reason.startswith(says)
    assert bool(reason) is bool(says)


MOVE = {
    "GANETI_INSTANCE_HYPERVISOR": "chroot",
    "GANETI_MASTER": os.uname().nodename,
    "GANETI_NEW_PRIMARY": "node3",
    "GANETI_INSTANCE_NAME": "web1",
    "GANETI_INSTANCE_HV_extra_config": "grace:3",
}


@pytest.mark.parametrize(
    ("changed", "asks"),
    [
        ({}, True),
        ({"GANETI_INSTANCE_HYPERVISOR": "kvm"}, False),
        ({"GANETI_MASTER": "another"}, False),
        ({"GANETI_NEW_PRIMARY": ""}, False),
        ({"GANETI_NEW_PRIMARY": "", "GANETI_TARGET_NODE": "node3"}, True),  # gnt-instance move
        ({"GANETI_MIGRATE_CLEANUP": "True"}, False),
        ({"GANETI_FAILOVER_CLEANUP": "True"}, False),
    ],
)
def test_the_master_asks_the_node_before_a_move(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: dict[str, str], asks: bool
) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    monkeypatch.setattr(move_hook, "MARKER", str(marker))
    asked = []
    monkeypatch.setattr(move_hook, "_ask_node", lambda *given: asked.append(given) or {})
    assert move_hook.main({**MOVE, **changed}) == (1 if asks else 0)
    assert asked == ([("node3", {"extra_config": "grace:3"})] if asks else [])


@pytest.mark.parametrize(
    ("name", "is_it"),
    [("node1", True), ("node1.example.com", True), ("node2.example.com", False), ("", False)],
)
def test_the_hostname_of_a_node_may_be_short(
    monkeypatch: pytest.MonkeyPatch, name: str, is_it: bool
) -> None:
    """As Debian's installer leaves it."""
    monkeypatch.setattr(socket, "gethostname", lambda: "node1")
    monkeypatch.setattr(socket, "getfqdn", lambda: "Node1.example.com")
    assert move_hook.is_this_machine(name) is is_it


@pytest.mark.parametrize("answer", ["error", "none"])
def test_a_node_that_does_not_answer_is_left_to_ganeti(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
) -> None:
    """Syslog says why: Ganeti shows no output of a hook that succeeds."""

    def fail(*_: object) -> None:
        if answer == "none":
            time.sleep(60)
        raise OSError("connection refused")

    logged: list[str] = []
    monkeypatch.setattr(move_hook, "MARKER", str(tmp_path))
    monkeypatch.setattr(move_hook, "TIMEOUT", 1)
    monkeypatch.setattr(move_hook, "_ask_node", fail)
    monkeypatch.setattr(move_hook.syslog, "syslog", lambda _level, text: logged.append(text))
    before = signal.getsignal(signal.SIGALRM)
    try:
        assert move_hook.main(MOVE) == 0
    finally:
        signal.signal(signal.SIGALRM, before)
    (text,) = logged
    assert "node3 was not asked whether it can run web1" in text
    assert ("connection refused" if answer == "error" else "no answer within 1 s") in text
    assert signal.alarm(0) == 0  # none is pending
