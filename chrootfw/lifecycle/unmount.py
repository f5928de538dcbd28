"""Unmount the mounts of an instance, and name the processes that keep them busy.

`unmount_in_order` is the one place that unmounts an instance. The plugins decide the order by the
hook `chrootfw_unmount_ordering`, `planning.mount_order` checks it, and `linux.umount` makes the
system calls. `teardown` calls it at the end of a stop, and `start` for a fresh `/run`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import time
from collections.abc import Sequence

from chrootfw.errors import HeldError, Hint, PrivilegeError, StepError
from chrootfw.lifecycle.context import Job, StepTime
from chrootfw.linux import (
    capabilities,
    child,
    deadlines,
    freezing,
    mountinfo,
    syscalls,
    umount,
)
from chrootfw.model import Mount
from chrootfw.state import disks, holders, record
from chrootfw.state.record import RecordedDisk
from chrootfw.views import Process

#: Seconds for which a busy mount is tried again before its holders are searched for. The kernel
#: releases a process's files a moment after its end, and a child that another thread creates has a
#: copy of all descriptors until its execve(2).
_BUSY_SETTLE = 0.75

#: Seconds more while other threads of this program create such children: dozens of them share the
#: processors.
COPIES_SETTLE = 20.0

#: The most mounts that one child unmounts. Each takes memory of the child's batch, and the kernel
#: gives a process 65,530 mappings (vm.max_map_count).
_CHUNK_MAX = 500


def as_model_mounts(job: Job, entries: Sequence[mountinfo.MountEntry]) -> list[Mount]:
    """Return the instance's mounts as the hooks see them."""
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
    """Split a path into `Mount.at` and its target: `aux/low/a` is `/a` at `aux:low`."""
    first, _, rest = inside.partition("/")
    if first == "root":
        return "root", f"/{rest}"
    name, _, rest = rest.partition("/")
    return f"aux:{name}", f"/{rest}"


def check_right(job: Job, verb: str) -> None:
    """Check that this process may unmount what is mounted, before the verb does anything.

    Args:
        job: The instance.
        verb: What is asked for, for the error.

    Raises:
        PrivilegeError: It lacks CAP_SYS_ADMIN (umount(2)).
    """
    if not capabilities.may_administer() and job.read_mounts():
        raise PrivilegeError(
            f"cannot {verb} {job.name}: {capabilities.missing()} and unmount",
            hint=capabilities.HINT,
        )


def unmount_in_order(
    job: Job, *, keep_root: bool = False, mounts: Sequence[mountinfo.MountEntry] | None = None
) -> None:
    """Unmount in the plugins' order, read the mounts again, and repeat until none is left.

    Args:
        job: The instance.
        keep_root: Keep the root itself (the lowest mount on its mount point) and the auxiliary
            layers.
        mounts: The mounts to begin with, if the caller has just read them.

    Raises:
        HeldError: A mount is busy; the error names the holders.
        StepError: An unmount failed for another reason.
        Interrupted: An end was requested; raised between two chunks of `_CHUNK_MAX` mounts.
    """
    with UnmountSteps(job) as steps:
        _unmount_all(job, steps, keep_root=keep_root, mounts=mounts)


def _unmount_all(
    job: Job,
    steps: UnmountSteps,
    *,
    keep_root: bool,
    mounts: Sequence[mountinfo.MountEntry] | None,
) -> None:
    """Unmount as `unmount_in_order` does, and report the steps."""
    busy_until = 0.0
    while True:
        entries = job.read_mounts() if mounts is None else list(mounts)
        mounts = None
        if keep_root:
            kept = list_root_mounts(job, entries)[:1]
            entries = [e for e in entries if e not in kept and _is_root_tree(job, e)]
        if not entries:
            return
        plugin, order = job.stages.unmount_ordering(job.instance, as_model_mounts(job, entries))
        by_id = {entry.id: entry for entry in entries}
        later = check_thawed(job, entries)
        # Read before the attempt: a child that ends after it may have made it fail.
        copies = child.copies_are_about()
        steps.plugin = plugin
        done, busy = _unmount_round(
            job, steps, [by_id[mount.id] for mount in order if mount.id not in later]
        )
        if done:
            busy_until = 0.0
            continue
        unreachable = not busy  # below a mount that is busy or outside the instance
        busy = busy or [by_id[order[0].id]]
        busy_until = busy_until or time.monotonic() + _BUSY_SETTLE
        late = time.monotonic() - busy_until
        if late >= 0 and not (copies and late < COPIES_SETTLE):
            raise (unreachable and _covered_error(job, busy[0])) or _find_busy_error(
                job, entries, busy
            )
        time.sleep(0.005)  # the kernel has no event for a busy mount that becomes free


def check_thawed(
    job: Job,
    entries: Sequence[mountinfo.MountEntry],
    *,
    is_written: bool = False,
    verb: str = "cleanup",
) -> set[int]:
    """Refuse the last unmount of a file system that is frozen (fsfreeze(8)).

    Without a mount nothing could thaw it, and its device would stay in use. An unmount also waits
    for ever if the file system that the image is on is frozen, because the unmount writes there.

    Args:
        job: The instance.
        entries: The mounts to unmount, or to write to.
        is_written: The mounts are written to, so all of them are checked, and not only the last one
            of each file system.
        verb: The verb that goes on when the file system is thawed.

    Returns:
        The IDs of the mounts that are hidden below others, and could not be checked.

    Raises:
        HeldError: A file system is frozen.
        StepError: The check could not be carried out.
    """
    wanted = freezing.can_freeze(entries)
    images: Sequence[str] = ()
    if not is_written:
        wanted = _last_mounts(job, wanted, entries)
        images = _images_below(job, {entry.dev for entry in wanted if not entry.read_only})
    directory = os.fsencode(record.directory(job.run_dir, job.name))
    try:
        found = freezing.find_frozen(directory, wanted, images, seconds=job.disk_timeout)
    except OSError as error:
        raise _unmount_error(job, error) from error
    if found.frozen is not None:
        place = os.fsdecode(found.frozen.mount_point)
        why = (
            "what the start wrote there cannot be undone"
            if is_written
            else "nothing could thaw it once it is unmounted"
        )
        raise _frozen_error(
            job, f"the file system on {place} is frozen, and {why}", place, found.waits, verb
        )
    if found.image:
        raise _frozen_image_error(job, found, verb)
    return {entry.id for entry in found.hidden}


def _images_below(job: Job, devices: set[int]) -> list[str]:
    """Return the image files that hold file systems with these device numbers.

    A file system may have a number of its own (btrfs), so the disk's recorded devices are added.
    """
    disks_of_them = [disk.devices for disk in (job.record.disks if job.record else ())]
    more = [device for each in disks_of_them if not devices.isdisjoint(each) for device in each]
    return freezing.images_below({*devices, *more})


def _frozen_image_error(job: Job, found: freezing.Frozen, verb: str = "cleanup") -> HeldError:
    directory = os.path.dirname(found.image)
    return _frozen_error(
        job,
        f"the file system that the image {found.image} is on is frozen, and what is written to the"
        " image waits for it",
        directory,
        found.waits,
        verb,
    )


def _frozen_error(job: Job, why: str, place: str, waits: str, verb: str) -> HeldError:
    return HeldError(
        f"{job.name} is held: {why}" if verb == "cleanup" else f"cannot {verb} {job.name}: {why}",
        [waits] if waits else [],
        f"fsfreeze -u {shlex.quote(place)}; then chrootfw {verb} {job.name}",
    )


def _last_mounts(
    job: Job, wanted: Sequence[mountinfo.MountEntry], entries: Sequence[mountinfo.MountEntry]
) -> list[mountinfo.MountEntry]:
    """Return the mounts of `wanted` whose file systems are mounted by `entries` alone.

    The mount table has a line for each mount of the machine, so it is read only if the record does
    not answer the question.
    """
    recorded = job.record.disks if job.record else ()
    own = {device for disk in recorded if disk.kind != "directory" for device in disk.devices}
    hosts = {syscalls.statx(path).dev for path in ("/", job.run_dir)}
    if job.instance.disk and (device := deadlines.cached_device(job.instance.disk)):
        hosts.add(device)
    unsure = [entry for entry in wanted if entry.dev not in own and entry.dev not in hosts]
    last = {entry.dev for entry in unsure if disks.is_last_of(entry, entries)} if unsure else set()
    return [entry for entry in wanted if entry.dev in own or entry.dev in last]


class UnmountSteps:
    """Report each unmount as a step, which begins and ends when the child does.

    A busy mount is tried again: its step goes on, until another mount is unmounted meanwhile. The
    step that goes on when this context ends fails with the error that ends it.

    Args:
        job: The instance.
        where: Where the mounts are, for the descriptions, if not in this namespace.

    Attributes:
        plugin: The plugin that decided the order.
    """

    def __init__(self, job: Job, where: str = "") -> None:
        self.job = job
        self.plugin = ""
        self._where = where
        self._mount_id = 0
        self._attempts = 0
        self._why = ""
        self._step = contextlib.ExitStack()
        self._time = StepTime()

    def begin(self, entry: mountinfo.MountEntry) -> None:
        """Begin the step of a mount, unless it goes on."""
        if self._mount_id == entry.id:
            self._attempts += 1
            return
        if self._mount_id:
            self._close(StepError(self._why or "it was not unmounted"))
        does = describe_unmount(entry) + self._where
        step = self.job.step("unmount", does, self.plugin, limit=self.job.disk_timeout)
        self._time = self._step.enter_context(step)
        self._mount_id, self._attempts, self._why = entry.id, 1, ""

    def end(self, entry: mountinfo.MountEntry, outcome: int | None, seconds: float | None) -> None:
        """End the step of a mount, if it is unmounted.

        Args:
            entry: The mount.
            outcome: 0, an errno, or `None`.
            seconds: How long the child worked on it.
        """
        if outcome == 0:
            if self._mount_id != entry.id:
                self.begin(entry)
            if self._attempts == 1:  # else the waiting between the attempts counts too
                self._time.seconds = seconds
            self._close()
        elif self._mount_id == entry.id:
            self._why = os.strerror(outcome) if outcome else "its path leads to another mount"

    def _close(self, error: BaseException | None = None) -> None:
        self._mount_id = 0
        if error is None:
            self._step.close()
        else:
            with contextlib.suppress(type(error)):  # the step reports it, and raises it again
                self._step.__exit__(type(error), error, error.__traceback__)

    def __enter__(self) -> UnmountSteps:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if self._mount_id:
            self._close(error or (StepError(self._why) if self._why else None))


def _unmount_round(
    job: Job, steps: UnmountSteps, order: Sequence[mountinfo.MountEntry]
) -> tuple[int, list[mountinfo.MountEntry]]:
    """Unmount each mount once, in the given order.

    Returns:
        The number of mounts that were unmounted, and the mounts that are busy.
    """
    done = 0
    busy: list[mountinfo.MountEntry] = []
    for at in range(0, len(order), _CHUNK_MAX):
        gone, waiting = _unmount_chunk(job, steps, order[at : at + _CHUNK_MAX])
        done += gone
        busy += waiting
    return done, busy


def _unmount_chunk(
    job: Job, steps: UnmountSteps, order: Sequence[mountinfo.MountEntry]
) -> tuple[int, list[mountinfo.MountEntry]]:
    """Unmount a part of a round, as many mounts as one child takes; return as `_unmount_round`."""
    job.cancellation.check()
    directory = os.fsencode(record.directory(job.run_dir, job.name))
    try:
        outcomes, failure = umount.unmount(
            directory, order, seconds=job.disk_timeout, observer=steps
        )
    except OSError as error:  # the instance's own directory, or no descriptor or memory is left
        raise _unmount_error(job, error) from error
    if isinstance(failure, deadlines.DeadlineExceeded):
        raise HeldError(
            f"{job.name} is held: {failure.filename} has not returned: {failure.strerror}",
            [failure.describe()],
            f"its device or server is slow or dead; when it answers: chrootfw cleanup {job.name}",
        ) from failure
    if failure is not None:
        raise _unmount_error(job, failure) from failure
    for entry, outcome in zip(order, outcomes, strict=True):
        if outcome not in (0, None, errno.EBUSY, errno.EINVAL):  # EINVAL: gone meanwhile
            raise StepError(
                f"cannot unmount {os.fsdecode(entry.mount_point)}: {os.strerror(outcome)}",
                hint="chrootfw verify checks privileges and mount propagation",
            )
    return outcomes.count(0), [
        entry for entry, outcome in zip(order, outcomes, strict=True) if outcome == errno.EBUSY
    ]


def _unmount_error(job: Job, error: OSError) -> StepError:
    return StepError(
        f"cannot unmount what is mounted in {job.name}: {error.strerror or error}",
        hint=f"chrootfw cleanup {job.name}",
    )


def describe_unmount(entry: mountinfo.MountEntry) -> str:
    """Return the description of the step that unmounts one mount."""
    return f"unmount {os.fsdecode(entry.mount_point)}"


def _is_root_tree(job: Job, entry: mountinfo.MountEntry) -> bool:
    root = os.fsencode(job.root)
    return entry.mount_point == root or entry.mount_point.startswith(root + b"/")


def list_root_mounts(
    job: Job, entries: Sequence[mountinfo.MountEntry]
) -> list[mountinfo.MountEntry]:
    """Return the mounts on the root's mount point, the lowest first."""
    root = os.fsencode(job.root)
    return [entry for entry in entries if entry.mount_point == root]


def _covered_error(job: Job, entry: mountinfo.MountEntry) -> HeldError | None:
    """Make the error for a mount that a later mount covers, so that its path leads elsewhere.

    Returns:
        The error; `None` if no mount covers it.
    """
    cover = mountinfo.cover(entry, mountinfo.table())
    if cover is None:
        return None
    place = os.fsdecode(cover.mount_point)
    return HeldError(
        f"{job.name} is held: {os.fsdecode(entry.mount_point)} is covered by what was mounted on"
        f" {place} later",
        [f"{os.fsdecode(cover.source)} ({os.fsdecode(cover.fstype)}) on {place}"],
        f"umount {shlex.quote(place)}; then chrootfw cleanup {job.name}",
    )


def _find_busy_error(
    job: Job, entries: Sequence[mountinfo.MountEntry], busy: Sequence[mountinfo.MountEntry]
) -> HeldError:
    """Find the holders of busy mounts, and make the error that names them."""
    return busy_error(job, busy, holders.find_holders(entries, job.root, job.record, ()))


def busy_error(
    job: Job, busy: Sequence[mountinfo.MountEntry], found: Sequence[Process]
) -> HeldError:
    """Make the error for busy mounts, which names the holders that were found."""
    targets = ", ".join(os.fsdecode(entry.mount_point) for entry in busy)
    return held_error(f"{job.name} is held: {targets} is busy", job.name, found)


def check_thawed_below(job: Job, recorded: Sequence[RecordedDisk]) -> None:
    """Check that no disk waits for a frozen file system that its image is on.

    Args:
        job: The instance.
        recorded: Its disks, which are still in use.

    Raises:
        HeldError: A disk waits for one.
    """
    loops = [disk.loop for disk in recorded if disk.loop]
    devices = {device for disk in recorded for device in disk.devices}
    for path in loops:
        with contextlib.suppress(OSError):  # removed: then no image is mounted by it
            devices.add(os.stat(path).st_rdev)
    # The caller reports the disk as held in any case; this only finds a better reason.
    with contextlib.suppress(OSError):
        found = freezing.find_frozen(
            b"/", (), freezing.images_below(devices), seconds=job.disk_timeout
        )
        if found.image:
            raise _frozen_image_error(job, found)


def _describe_release(process: Process) -> str:
    """Return the command that ends what a hidden holder holds."""
    if process.why == "swap":
        return f"swapoff {shlex.quote(process.what)}"
    if process.why == "overlay":
        return f"umount {shlex.quote(process.what)}"
    return f"let {process.command} read its events, or end it: kill {process.pid}"


def held_error(
    brief: str, name: str, found: Sequence[Process], *, only_copies: bool = False
) -> HeldError:
    """Make the error for mounts or disks that are in use.

    Args:
        brief: The sentence that says what is in use.
        name: The instance.
        found: The holders.
        only_copies: Only copies of the mounts in other mount namespaces use the disk.
    """
    then = f"then chrootfw cleanup {name}"
    was_scanned = isinstance(found, holders.Holders)  # the test kit gives a plain list
    unexamined = found.describe_unexamined() if isinstance(found, holders.Holders) else []
    hidden = (
        holders.find_hidden(found.target)
        if not found and isinstance(found, holders.Holders) and found.target is not None
        else []
    )
    if hidden:
        return HeldError(
            brief,
            [*(process.describe() for process in hidden), *unexamined],
            f"{_describe_release(hidden[0])}; {then}",
            holders=hidden,
            only_copies=only_copies,
        )
    if not found:
        return HeldError(
            brief,
            [
                (
                    "busy, holder unknown: the kernel itself may hold it (a loop device, an"
                    " overlay, swap, a socket in flight, a file system that was frozen)"
                ),
                *(holders.find_suspects() if was_scanned else ()),
                *unexamined,
            ],
            f"find what holds it, and end it; {then}",
            only_copies=only_copies,
        )
    return HeldError(
        brief,
        [*(process.describe() for process in found), *unexamined],
        Hint(
            "end what holds it and call cleanup; stop(kill_holders=True) signals these processes",
            f"end what holds it; {then} (stop --kill-holders signals these processes)",
        )
        if any(process.pid for process in found)
        else f"end what holds it; {then}",
        holders=found,
        only_copies=only_copies,
    )
