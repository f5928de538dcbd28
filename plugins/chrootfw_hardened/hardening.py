"""How a hardened instance is entered: ``hardened = true`` (docs/reliability.md says against what that helps)."""

from __future__ import annotations

import chrootfw
from chrootfw import Command, Entry, Instance, Parameter
from chrootfw.planning import privileges
from chrootfw_hardened import seccomp

#: What a service needs that changes its user, owns its files and listens on a port below 1024: capabilities(7). Not among them, since each is a
#: way out of the root or to the host: SYS_CHROOT, MKNOD, SYS_ADMIN, SYS_PTRACE, SYS_MODULE, SYS_BOOT, SYS_RAWIO, DAC_READ_SEARCH.
CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "AUDIT_WRITE",
    "SETFCAP",
)

#: Files of proc(5) by which root, without any capability, changes the host: sysctls such as core_pattern, sysrq-trigger.
READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/scsi")


def _are_among(known: tuple[str, ...], what: str, value: list[object]) -> str | None:
    unknown = [word for word in value if word not in known]
    return f"{unknown[0]!r} is no {what}; there are {', '.join(known)}" if unknown else None


def _are_namespaces(value: list[object]) -> str | None:
    return _are_among(tuple(privileges.NAMESPACES), "namespace", value)


def _are_capabilities(value: list[object]) -> str | None:
    return _are_among(privileges.CAPABILITIES, "capability", value)


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [
        Parameter("hardened", bool, False, help="own mount namespace, few capabilities, a filter of system calls"),
        Parameter("hardened_namespaces", list, [], _are_namespaces, "with hardened: more namespaces, of pid, ipc, uts"),
        Parameter("hardened_capabilities", list, [], _are_capabilities, "with hardened: more capabilities to keep"),
        Parameter(
            "hardened_seccomp", bool, True, help="with hardened: refuse the system calls that a service never needs"
        ),
    ]


@chrootfw.hookimpl
def chrootfw_enter(instance: Instance, command: Command) -> Entry | None:
    if not instance.params["hardened"]:
        return None
    kept = tuple(dict.fromkeys([*CAPABILITIES, *instance.params["hardened_capabilities"]]))
    return Entry(
        method="pivot_root",
        namespaces=instance.params["hardened_namespaces"],
        mount_attributes=("nosuid", "nodev"),
        read_only=READ_ONLY,
        capabilities=kept,
        no_new_privs=True,
        seccomp=seccomp.program(kept) if instance.params["hardened_seccomp"] else "",
    )
