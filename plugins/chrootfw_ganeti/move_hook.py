"""Refuse to move a chroot to a node that cannot run it, as a hook of Ganeti's on the master.

Ganeti's own class would start the instance there, and could neither stop nor release it. This file
is installed as the hook `chrootfw` of migrations, failovers and moves, before the operation. So it
imports nothing of chrootfw's.

If the node cannot be asked, the hook lets Ganeti continue: a failover in need must not depend on
it. Ganeti discards the output of a hook that succeeds, so the reason goes to syslog.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import syslog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MARKER = "/etc/chrootfw/ganeti-hypervisor"
NODED = ("/usr/sbin/ganeti-noded", "/usr/local/sbin/ganeti-noded")
#: Seconds for the node's answer.
TIMEOUT = 60
_PARAMETER = "GANETI_INSTANCE_HV_"
#: Parameters that chrootfw's class refuses, and Ganeti's own class, which ignores `extra_config`,
#: accepts.
_INVALID = {"init_script": "/ganeti-chroot", "extra_config": "?"}


def main(environment: Mapping[str, str]) -> int:
    """Ask the target node, and print why it is refused.

    Args:
        environment: The variables of Ganeti's hooks.

    Returns:
        The exit status; 1 ends Ganeti's job before anything is stopped.
    """
    ask = environment.get
    target = ask("GANETI_NEW_PRIMARY") or ask("GANETI_TARGET_NODE")  # the latter of a move
    is_cleanup = "True" in (ask("GANETI_MIGRATE_CLEANUP"), ask("GANETI_FAILOVER_CLEANUP"))
    is_chroot = ask("GANETI_INSTANCE_HYPERVISOR") == "chroot" and os.path.exists(MARKER)
    if not (target and is_chroot and is_this_machine(ask("GANETI_MASTER", ""))) or is_cleanup:
        return 0
    parameters = {
        name.removeprefix(_PARAMETER): value
        for name, value in environment.items()
        if name.startswith(_PARAMETER)
    }
    instance = ask("GANETI_INSTANCE_NAME", "the instance")
    # Ganeti's client waits for 15 minutes, and has no parameter for it.
    signal.signal(signal.SIGALRM, _time_out)
    signal.alarm(TIMEOUT)
    try:
        refusals = _ask_node(target, parameters)
        signal.alarm(0)
    except Exception as error:
        signal.alarm(0)
        text = f"{target} was not asked whether it can run {instance}, which moves there: {error!a}"
        syslog.openlog("chrootfw")
        syslog.syslog(syslog.LOG_WARNING, text)
        return 0
    reason = why_not(target, instance, refusals)
    sys.stdout.write(reason)
    return 1 if reason else 0


def _time_out(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"no answer within {TIMEOUT} s")


def is_this_machine(name: str) -> bool:
    """Check that a node is this machine, as Ganeti does; its hostname may be the short one."""
    return bool(name) and name in (socket.gethostname(), socket.getfqdn().lower())


def why_not(target: str, instance: str, refusals: Mapping[str, str]) -> str:
    """Return why an instance cannot be moved to a node.

    Args:
        target: The node's name.
        instance: The instance's name.
        refusals: Why the node's class refused the parameters `invalid`, and the instance's own
            (`instance`). There is no entry for parameters that the class accepted.

    Returns:
        A sentence; "" if the instance can be moved.
    """
    if "invalid" not in refusals:
        return (
            f"{target} does not use chrootfw for chroots: Ganeti's own class there would start "
            f"{instance} and not be able to stop it. Hint: on {target}: chrootfw ganeti install; "
            "then restart ganeti-noded there: /usr/lib/ganeti/daemon-util stop ganeti-noded; "
            "/usr/lib/ganeti/daemon-util start ganeti-noded"
        )
    if "instance" in refusals:
        return f"{target} cannot run {instance}: {refusals['instance']}"
    return ""


def _ask_node(target: str, parameters: Mapping[str, str]) -> dict[str, str]:
    """Let the target's node daemon validate parameters; return the `refusals` of `why_not`."""
    import importlib

    noded = next(path for path in NODED if os.path.exists(path))
    sys.path.insert(0, os.path.dirname(os.path.realpath(noded)))
    constants: Any = importlib.import_module("ganeti.constants")
    rpc: Any = importlib.import_module("ganeti.rpc.node")
    ssconf: Any = importlib.import_module("ganeti.ssconf")
    given = [
        ("invalid", constants.HT_CHROOT, _INVALID),
        ("instance", constants.HT_CHROOT, dict(parameters)),
    ]
    rpc.Init()
    client = rpc.DnsOnlyRunner()  # it needs no configuration
    answer = client.call_node_verify_light(
        [target], {constants.NV_HVPARAMS: given}, ssconf.SimpleStore().GetClusterName(), {}
    )[target]
    answer.Raise("no answer")
    return {source: reason for source, _, reason in answer.payload[constants.NV_HVPARAMS]}


if __name__ == "__main__":
    sys.exit(main(os.environ))
