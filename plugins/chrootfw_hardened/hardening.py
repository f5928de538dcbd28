"""Enter a hardened instance: ``hardened = true``.

docs/explanation/security.md says against what that helps.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

import chrootfw
from chrootfw import Command, Entry, Instance, Parameter, Problem, Root
from chrootfw.linux import mountinfo
from chrootfw.planning import paths, privileges
from chrootfw.runtime import CONFIG_DIR
from chrootfw_hardened import binfmt, mount_points, seccomp

#: What a service needs that changes its user and its root, owns its files and listens on a port
#: below 1024: capabilities(7). SYS_CHROOT lets root leave a mere chroot(2), but this root is that
#: of the mount namespace: above it there is nothing. Not among them, since each is a way out of the
#: root or to the host: MKNOD, SYS_ADMIN, SYS_PTRACE, SYS_MODULE, SYS_BOOT, SYS_RAWIO,
#: DAC_READ_SEARCH.
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
    "SYS_CHROOT",
    "AUDIT_WRITE",
    "SETFCAP",
)

#: By which root, without any capability, changes the host: sysctls such as core_pattern,
#: sysrq-trigger, what devices and drivers offer. In each mount of proc and sysfs, wherever it is.
READ_ONLY = (
    "/sys",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/irq",
    "/proc/bus",
    "/proc/fs",
    "/proc/driver",
    "/proc/dynamic_debug",
    "/proc/mtrr",
)

#: What tells root inside of the host's memory, keys, devices and other processes: all that runc,
#: crun, Podman, Docker and systemd-nspawn mask, and what else of /proc root alone may read. And the
#: files of sysfs by which reading changes something: a new zram device, the marks of idle pages, a
#: time stamp that is taken from a queue.
MASKED = (
    "/proc/acpi",
    "/proc/allocinfo",
    "/proc/apm",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/lock_stat",
    "/proc/lockdep",
    "/proc/lockdep_chains",
    "/proc/lockdep_stats",
    "/proc/pagetypeinfo",
    "/proc/profile",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slab_allocators",
    "/proc/slabinfo",
    "/proc/sys/net/ipv4/tcp_fastopen_key",
    "/proc/sys/net/ipv6/conf/*/stable_secret",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/tty/driver",
    "/proc/vmallocinfo",
    "/proc/vmcore",
    "/sys/class/zram-control",
    "/sys/dev/block",
    "/sys/devices/system/cpu/*/thermal_throttle",
    "/sys/devices/virtual/dmi",
    "/sys/devices/virtual/nvme-fabrics",
    "/sys/devices/virtual/powercap",
    "/sys/devices/virtual/ptp/*/fifo",
    "/sys/firmware",
    "/sys/fs/bpf",
    "/sys/fs/pstore",
    "/sys/fs/selinux",
    "/sys/kernel/boot_params",
    "/sys/kernel/debug",
    "/sys/kernel/mm/page_idle",
    "/sys/kernel/notes",
    "/sys/kernel/security",
    "/sys/kernel/slab",
    "/sys/kernel/tracing",
    "/sys/kernel/vmcoreinfo",
)


#: File systems by which root inside would reach the host's processes, devices, terminals or message
#: queues, or read what the host's kernel records and how it is configured: MASKED covers the places
#: of these in proc and sysfs, and not the mounts that an rbind brings along. proc and sysfs are
#: hardened wherever they are.
_HOSTS = frozenset(
    b"autofs cgroup cgroup2 devpts devtmpfs mqueue nfsd rpc_pipefs "
    b"bpf configfs debugfs efivarfs pstore resctrl securityfs selinuxfs smackfs tracefs".split()
)

#: Mounts that one message names.
_NAMED_MAX = 5


def _are_namespaces(value: list[object]) -> str | None:
    unknown = [word for word in value if word not in privileges.NAMESPACES]
    known = ", ".join(privileges.NAMESPACES)
    return f"{unknown[0]!r} is not a namespace; there are {known}" if unknown else None


def _are_capabilities(value: list[object]) -> str | None:
    unknown = [word for word in map(_plain_name, value) if word not in privileges.CAPABILITIES]
    return f"{unknown[0]!r} is not a capability (capabilities(7))" if unknown else None


def _plain_name(word: object) -> object:
    """Return the name of a capability without ``CAP_``, which it may be written with."""
    return word.removeprefix("CAP_") if isinstance(word, str) else word


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [
        Parameter(
            "hardened",
            bool,
            False,
            help="own mount namespace, few capabilities, a filter of system calls",
        ),
        Parameter(
            "hardened_namespaces",
            list,
            ["ipc", "uts", "cgroup"],
            _are_namespaces,
            "with hardened: the namespaces beside mount and pid, of ipc, uts and cgroup",
        ),
        Parameter(
            "hardened_capabilities",
            list,
            [],
            _are_capabilities,
            "with hardened: more capabilities to keep, with or without CAP_",
        ),
        Parameter(
            "hardened_seccomp",
            bool,
            True,
            help=(
                "with hardened: refuse the system calls that a service never needs; false: "
                "only user namespaces, CLONE_PARENT and keys"
            ),
        ),
    ]


@chrootfw.hookimpl
def chrootfw_pre_start(instance: Instance, root: Root | None) -> list[Problem]:
    hardened = instance.params["hardened"]
    problems = [] if root is None else _exposed_mounts(root, is_warning=not hardened)
    if not hardened:
        return problems
    if root is not None:
        problems += [*_brought_along(instance, root), *_given_directories(root)]
    return problems + [
        Problem(
            f"binfmt_misc hands the host's {interpreter or 'interpreter'} into every "
            f"root (flag F of {name}), where root inside can change it",
            f"echo 0 > /proc/sys/fs/binfmt_misc/{name}; register it without F, with a "
            "copy in the root, or from a read-only mount",
        )
        for name, interpreter in binfmt.interpreters_handed_in()
    ]


def _exposed_mounts(root: Root, *, is_warning: bool) -> list[Problem]:
    found: dict[bytes, list[str]] = {}
    for place, mount_point in mount_points.exposed(os.fsencode(root.path)):
        found.setdefault(place, []).append(os.fsdecode(mount_point))
    problems = []
    for place, names in found.items():
        shown = ", ".join(names[:_NAMED_MAX])
        if len(names) > _NAMED_MAX:
            shown += f" and {len(names) - _NAMED_MAX} more"
        problems.append(
            Problem(
                f"root inside can detach what the host has mounted on {shown}, since the mount "
                f"point is below what is writable on {os.fsdecode(place)} inside",
                f"umount {names[0]}, mount the source read-only, or bind {names[0]} as well, to "
                "its own place inside",
                warning=is_warning,
            )
        )
    return problems


def _given_directories(root: Root) -> list[Problem]:
    """Refuse to give away, writable, where chrootfw reads what a process inside may do."""
    directories = {
        "run directory": os.path.dirname(os.path.dirname(root.path)),
        "directory of the definitions": os.environ.get("CHROOTFW_CONFIG_DIR") or CONFIG_DIR,
    }
    problems = []
    for what, given in directories.items():
        directory = os.path.realpath(given)
        for place in mount_points.list_writable_with(
            os.fsencode(directory), os.fsencode(root.path)
        ):
            problems.append(
                Problem(
                    f"what is mounted on {os.fsdecode(place)} contains the {what} {directory}, or a"
                    " part of it: root inside could write its own privileges there",
                    f"bind what is needed one by one, or read-only, without {directory}",
                )
            )
    return problems


def _brought_along(instance: Instance, root: Root) -> list[Problem]:
    """Refuse interfaces of the host's kernel that an rbind brings along, and nobody has named.

    They are known by their file systems: a symbolic link in the root, which root inside can make,
    leads a mount elsewhere than its target says.
    """
    sources = []
    if instance.disk is not None and "rbind" in instance.params["mount_options"]:
        sources.append(Root("/", seconds=root.seconds).resolve(instance.disk))
    for bind in instance.params["binds"]:
        source, _, *options = paths.split_colons(bind)
        if options and "rbind" in options[0].split(","):
            sources.append(source)
    top = os.fsencode(root.path)
    brought = {
        (entry.dev, entry.root)
        for source in map(os.fsencode, sources)
        for entry in mountinfo.list_mounts_below(source)
        if entry.fstype in _HOSTS
        and entry.mount_point != source
        and not paths.is_within_bytes(entry.mount_point, top)
    }
    return [
        Problem(
            f"rbind brings the host's {os.fsdecode(entry.fstype)} into the hardened instance, on"
            f" {os.fsdecode(entry.mount_point[len(top) :])}",
            "bind what is needed of it one by one, without rbind",
        )
        for entry in mountinfo.list_mounts_below(top)
        if (entry.dev, entry.root) in brought
    ]


def _root_alone_reads() -> list[str]:
    """List the files of /proc that only root may read, also those of kernels that are not known.

    Of kmsg, reading alone is refused, to who has no CAP_SYSLOG.
    """
    found = []
    with os.scandir("/proc") as entries:
        for entry in entries:
            with suppress(OSError):
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISREG(mode) and mode & 0o444 == 0o400 and entry.name != "kmsg":
                    found.append(entry.path)
    return sorted(found)


@chrootfw.hookimpl
def chrootfw_enter(instance: Instance, command: Command) -> Entry | None:
    if not instance.params["hardened"]:
        return None
    more = map(_plain_name, instance.params["hardened_capabilities"])
    kept = tuple(dict.fromkeys([*CAPABILITIES, *map(str, more)]))
    # `namespaces` is a parameter of the default entry.
    wanted = [*instance.params["hardened_namespaces"], *instance.params.get("namespaces", ())]
    return Entry(
        method="pivot_root",
        # Without one of its own, /proc/PID/root leads to the host and to other instances.
        # systemctl cannot see by /proc/1/root that it is in a chroot, and would fail.
        env={"SYSTEMD_OFFLINE": "1"},
        namespaces=tuple(dict.fromkeys(["pid", *wanted])),
        mount_attributes=("nosuid", "nodev"),
        read_only=READ_ONLY,
        masked=tuple(dict.fromkeys([*MASKED, *_root_alone_reads()])),
        capabilities=kept,
        no_new_privs=True,
        seccomp=seccomp.program(kept, whole=instance.params["hardened_seccomp"]),
    )
