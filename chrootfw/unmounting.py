"""Taking an instance's mounts down to nothing, and proving that nothing is left."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence

from chrootfw import intents, inventory
from chrootfw.errors import HeldError, StepError
from chrootfw.jobs import Job
from chrootfw.model import Mount
from chrootfw.system import children, deadlines, disks, holders, mounts, umount
from chrootfw.views import Process

#: Seconds for which a busy mount is tried again before its holders are looked for: what a process held is
#: given back a moment after its end, and a child that another thread makes has a copy of all descriptors until its execve.
_BUSY_SETTLE = 0.75

#: Seconds more, while other threads of this program make such children: dozens of them share the processors.
_COPIES_SETTLE = 20.0


def values(job: Job, entries: Sequence[mounts.MountEntry]) -> list[Mount]:
    """The instance's mounts as the hooks see them."""
    base = os.fsencode(f"{job.run_dir}/{job.name}/")
    found = []
    for entry in entries:
        at, target = _place(os.fsdecode(entry.mount_point[len(base) :]))
        found.append(
            Mount(
                target,
                os.fsdecode(entry.source),
                os.fsdecode(entry.fstype),
                tuple(os.fsdecode(entry.options).split(",")),
                at,
                entry.id,
                entry.parent,
            )
        )
    return found


def _place(inside: str) -> tuple[str, str]:
    """``root/a/b`` is ``/a/b`` at ``root``; ``aux/low/a`` is ``/a`` at ``aux:low``."""
    first, _, rest = inside.partition("/")
    if first == "root":
        return "root", f"/{rest}"
    name, _, rest = rest.partition("/")
    return f"aux:{name}", f"/{rest}"


def take_down(job: Job, *, keep_root: bool = False, survey: inventory.Survey | None = None) -> None:
    """Unmount in the plugins' order, look again, and repeat until nothing is left.

    With ``keep_root`` the root itself (the lowest mount on its mount point) and the auxiliary layers stay. ``survey``: a look to begin with; what
    was mounted or unmounted since is seen by the next. Raises ``HeldError`` naming the
    holders, ``StepError`` for another failure of an unmount, ``Interrupted`` between two rounds: one is a list that a child carries out.
    """
    busy_until = 0.0
    while True:
        survey = survey or job.survey()
        entries = survey.mounts(job.name) if survey.is_mounted(job.name) else []
        survey = None
        if keep_root:
            kept = root_mounts(job, entries)[:1]
            entries = [e for e in entries if e not in kept and _is_root_tree(job, e)]
        if not entries:
            return
        plugin, order = job.stages.unmount_ordering(job.instance, values(job, entries))
        by_id = {entry.id: entry for entry in entries}
        copies = children.copies_are_about()  # asked before the attempt: one that ends after it may have made it fail
        done, busy = _one_round(job, plugin, [by_id[mount.id] for mount in order])
        if done:
            busy_until = 0.0
            continue
        if not busy:  # not reachable by path: below a mount that is busy or outside the instance
            busy = [by_id[order[0].id]]
        busy_until = busy_until or time.monotonic() + _BUSY_SETTLE
        late = time.monotonic() - busy_until
        if late >= 0 and not (copies and late < _COPIES_SETTLE):
            raise held(job, entries, busy)
        time.sleep(0.005)  # nothing tells when a busy mount is free


def _one_round(job: Job, plugin: str, order: Sequence[mounts.MountEntry]) -> tuple[int, list[mounts.MountEntry]]:
    """How many mounts are gone, and those that are busy."""
    job.interrupts.check()
    directory = os.fsencode(intents.directory(job.run_dir, job.name))
    try:
        outcomes, failure = umount.unmount(directory, order, seconds=job.disk_timeout)
    except OSError as error:  # the instance's own directory, or no descriptor or memory is left
        raise _not_carried_out(job, error) from error
    for entry, outcome in zip(order, outcomes, strict=True):
        if outcome == 0:
            with job.step("unmount", unmount_does(entry), plugin):
                pass
    if isinstance(failure, deadlines.Overdue):
        raise HeldError(
            f"{job.name} is held: {failure.filename} has not returned: {failure.strerror}",
            [failure.describe()],
            f"its device or server is slow or dead; when it answers: chrootfw cleanup {job.name}",
        ) from failure
    if failure is not None:
        raise _not_carried_out(job, failure) from failure
    for entry, outcome in zip(order, outcomes, strict=True):
        if outcome not in (0, None, errno.EBUSY, errno.EINVAL):  # EINVAL: gone meanwhile
            raise StepError(
                f"cannot unmount {os.fsdecode(entry.mount_point)}: {os.strerror(outcome)}",
                hint="chrootfw verify checks privileges and mount propagation",
            )
    return outcomes.count(0), [entry for entry, outcome in zip(order, outcomes, strict=True) if outcome == errno.EBUSY]


def _not_carried_out(job: Job, error: OSError) -> StepError:
    return StepError(
        f"cannot unmount what is mounted in {job.name}: {error.strerror or error}", hint=f"chrootfw cleanup {job.name}"
    )


def unmount_does(entry: mounts.MountEntry) -> str:
    """What the step of one unmount does, in words."""
    return f"unmount {os.fsdecode(entry.mount_point)}"


def _is_root_tree(job: Job, entry: mounts.MountEntry) -> bool:
    root = os.fsencode(job.root)
    return entry.mount_point == root or entry.mount_point.startswith(root + b"/")


def root_mounts(job: Job, entries: Sequence[mounts.MountEntry]) -> list[mounts.MountEntry]:
    """What is mounted on the root's mount point, the lowest first."""
    root = os.fsencode(job.root)
    return [entry for entry in entries if entry.mount_point == root]


def held(job: Job, entries: Sequence[mounts.MountEntry], busy: Sequence[mounts.MountEntry]) -> HeldError:
    """The error for mounts that are in use, with everyone who uses them."""
    return held_by(job, busy, inventory.find_holders(entries, job.root, job.intent, ()))


def held_by(job: Job, busy: Sequence[mounts.MountEntry], found: Sequence[Process]) -> HeldError:
    """The error for busy mounts with the holders that were found."""
    targets = ", ".join(os.fsdecode(entry.mount_point) for entry in busy)
    return _held_error(f"{job.name} is held: {targets} is busy", found)


def prove_released(job: Job, lost: Sequence[mounts.MountEntry]) -> None:
    """The proof that the disks are free. ``lost``: the mounts as they were, where there is no record. Raises ``HeldError``."""
    recorded = job.intent["disks"] if job.intent else inventory.disks_of(lost)
    deadline = time.monotonic() + _COPIES_SETTLE
    while True:
        copies = children.copies_are_about()
        left = inventory.unreleased(recorded, settle=disks.SETTLE, survey=job.survey(), name=job.name)
        if not left:
            return
        if not copies or time.monotonic() >= deadline:
            break
    # Not those of its in-memory file systems: their numbers were given back with the mounts, and are soon others'.
    devices = inventory.disk_devices(recorded)
    found = holders.find(holders.Held((), job.root, devices))
    elsewhere = [
        Process(0, f"a mount on {os.fsdecode(entry.mount_point)}", "root", "namespace", "outside the instance")
        for entry in mounts.table()
        if entry.dev in devices
    ]
    raise _held_error(
        f"{job.name} is held: its mounts are gone, but the disk {', '.join(left)} is in use", [*elsewhere, *found]
    )


def _held_error(brief: str, found: Sequence[Process]) -> HeldError:
    if not found:
        return HeldError(
            brief,
            [
                "busy, holder unknown: the kernel itself may hold it (a loop device, an overlay, swap, a socket in flight)"
            ],
            "look for it, then run cleanup again",
        )
    return HeldError(
        brief,
        [process.describe() for process in found],
        "end what holds it and run cleanup again"
        + ("; stop --kill-holders signals these processes" if any(process.pid for process in found) else ""),
        holders=found,
    )
