"""Check a mounted root before anything runs in it; report all problems at once."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

import chrootfw
from chrootfw import Command, Instance, NoCommand, Parameter, Problem, Root
from chrootfw.linux import mountinfo, syscalls
from chrootfw.linux.program_check import check_program

_MIB = 1 << 20


def _not_negative(value: int) -> str | None:
    return "it must not be negative" if value < 0 else None


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [
        Parameter(
            "min_free",
            int,
            0,
            _not_negative,
            "MiB that must be free on the root's file system",
            unit="MiB",
        )
    ]


@chrootfw.hookimpl
def chrootfw_pre_start(
    instance: Instance, root: Root | None, command: Command | NoCommand
) -> list[Problem]:
    if root is None:
        return []
    problems = [*_check_root(root), *_check_space(instance, root)]
    problems += _check_suid(instance, root)
    if isinstance(command, Command):
        problems += _check_script(command.argv[0], root, instance.params["mount_options"])
    return problems


def _check_root(root: Root) -> Iterator[Problem]:
    """Check the top directory.

    A user that can write it can replace everything below, the init script included.
    """
    status = root.stat("/")
    if status.st_uid != 0:
        yield Problem(
            f"the root directory belongs to user {status.st_uid}, not to root", "chown root it"
        )
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        yield Problem(
            f"the root directory is writable by others (mode {mode:04o})", "chmod go-w it"
        )


def _check_suid(instance: Instance, root: Root) -> Iterator[Problem]:
    """Warn of a root that has nosuid from the file system that it lies on."""
    wanted = "nosuid" in instance.params["mount_options"] or instance.params.get("hardened")
    if not wanted and _has_option(root.path, b"nosuid"):
        yield Problem(
            "the root is mounted nosuid, as the file system that it lies on: sudo, su, ping and"
            " other set-user-ID programs do not work inside",
            'mount_options = ["suid"] takes that back',
            warning=True,
        )


def _check_space(instance: Instance, root: Root) -> Iterator[Problem]:
    wanted = instance.params["min_free"]
    if wanted and (free := root.free_bytes() // _MIB) < wanted:
        yield Problem(
            f"only {free} MiB are free, min_free wants {wanted} MiB",
            "free space, or lower min_free",
        )


def _check_script(path: str, root: Root, mount_options: list[str]) -> Iterator[Problem]:
    what = f"the init script {path}"
    try:
        status = root.stat(path)
    except OSError as error:
        if error.errno == errno.ETIMEDOUT:
            raise
        link = _link_text(root, path)
        if link:
            yield Problem(
                f"{what} is a symbolic link to {link}, which leads nowhere inside the "
                f"root ({error.strerror})"
            )
        else:
            yield Problem(
                f"{what} does not exist inside the root",
                "make it, or set init_script (false: mount only)",
            )
        return
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    if not stat.S_ISREG(status.st_mode):
        yield Problem(
            f"{what} is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, not a regular file"
        )
        return
    if not status.st_mode & 0o111:
        yield Problem(f"{what} is not executable", f"chmod +x {path} in the disk")
    yield from _check_owner(what, path, status)
    for place, found in root.on_the_way(path).items():
        if place != "/" and stat.S_ISDIR(
            found.st_mode
        ):  # the root directory itself has been checked
            yield from _check_owner(f"{what}: the directory {place}", place, found)
    if _has_option(root.path, b"noexec"):
        yield Problem(
            "the root is mounted noexec, so nothing can be run in it",
            "take noexec out of mount_options"
            if "noexec" in mount_options
            else 'the file system that it lies on is mounted so: mount_options = ["exec"]',
        )
    try:
        yield from check_program(what, (path,), root)
    except OSError as error:
        yield _unread(f"{what} cannot be read: {error.strerror}", error)


def _has_option(path: str, option: bytes) -> bool:
    """Return whether the mount that a path is on has an option, such as ``noexec``.

    By the mount table, which reads nothing from a file system.
    """
    entry = mountinfo.by_id(mountinfo.pieces(), syscalls.statx(path).mnt_id)
    return entry is not None and option in entry.options.split(b",")


def _check_owner(what: str, path: str, status: os.stat_result) -> Iterator[Problem]:
    """Check that only the root user can change what it runs on the host, and the way to it."""
    if status.st_uid != 0:
        yield Problem(
            f"{what} belongs to user {status.st_uid}, not to root",
            f"chown root: {path} in the disk",
        )
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        yield Problem(
            f"{what} can be written by others (mode {mode:04o})", f"chmod go-w {path} in the disk"
        )


def _unread(brief: str, error: OSError) -> Problem:
    """Return the problem of a file that cannot be read.

    Raise the error of a file that does not answer: the core names what waits.
    """
    if error.errno == errno.ETIMEDOUT:
        raise error
    return Problem(brief)


def _link_text(root: Root, path: str) -> str:
    try:
        return root.readlink(path)
    except OSError:
        return ""
