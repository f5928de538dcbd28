"""Looks at a mounted root before anything runs in it; all problems are reported at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Literal

import chrootfw
from chrootfw import Command, Instance, NoCommand, Parameter, Problem, Root

_MIB = 1 << 20
#: e_machine of ELF(5) for what ``uname -m`` says; a 64-bit kernel runs its 32-bit programs too.
_MACHINES = {
    "x86_64": (62, 3), "i686": (3,), "aarch64": (183, 40), "armv7l": (40,), "riscv64": (243,), "ppc64le": (21,),
    "s390x": (22,), "loongarch64": (258,),
}  # fmt: skip
#: The kernel reads as much of a first line (BINPRM_BUF_SIZE).
_FIRST_LINE_MAX = 256


def _not_negative(value: int) -> str | None:
    return "it must not be negative" if value < 0 else None


@chrootfw.hookimpl
def chrootfw_parameters() -> list[Parameter]:
    return [Parameter("min_free", int, 0, _not_negative, "MiB that must be free on the root's file system")]


@chrootfw.hookimpl
def chrootfw_pre_start(instance: Instance, root: Root | None, command: Command | NoCommand) -> list[Problem]:
    if root is None:
        return []
    problems = [*_check_root(root), *_check_space(instance, root)]
    if isinstance(command, Command):
        problems += _check_script(command.argv[0], root)
    return problems


def _check_root(root: Root) -> Iterator[Problem]:
    """The top directory: whoever can write it can replace everything below, the init script included."""
    status = root.stat("/")
    if status.st_uid != 0:
        yield Problem(f"the root directory belongs to user {status.st_uid}, not to root", "chown root it")
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        yield Problem(f"the root directory is writable by others (mode {mode:04o})", "chmod go-w it")


def _check_space(instance: Instance, root: Root) -> Iterator[Problem]:
    wanted = instance.params["min_free"]
    free = root.free_bytes() // _MIB
    if free < wanted:
        yield Problem(f"only {free} MiB are free, min_free wants {wanted} MiB", "make room, or lower min_free")


def _check_script(path: str, root: Root) -> Iterator[Problem]:
    what = f"the init script {path}"
    try:
        status = root.stat(path)
    except OSError as error:
        link = _link_text(root, path)
        if link:
            yield Problem(
                f"{what} is a symbolic link to {link}, which leads nowhere inside the root ({error.strerror})"
            )
        else:
            yield Problem(f"{what} does not exist inside the root", "make it, or set init_script (false: mount only)")
        return
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    if not stat.S_ISREG(status.st_mode):
        yield Problem(f"{what} is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, not a regular file")
        return
    if not status.st_mode & 0o111:
        yield Problem(f"{what} is not executable", f"chmod +x {path} in the disk")
    if status.st_mode & 0o002:
        yield Problem(f"{what} can be written by everybody", f"chmod o-w {path} in the disk")
    if os.statvfs(root.path).f_flag & os.ST_NOEXEC:
        yield Problem("the root is mounted noexec, so nothing can be run in it", "take noexec out of mount_options")
    yield from _check_program(what, path, root, depth=0)


def _check_program(what: str, path: str, root: Root, depth: int) -> Iterator[Problem]:
    """What the kernel's execve(2) will say: the first line's interpreter, or the ELF header."""
    with root.open(path, "rb") as file:
        head = file.read(4096)
    if not head:
        yield Problem(f"{what} is empty")
    elif head.startswith(b"#!"):
        yield from _check_first_line(what, head, root, depth)
    elif head.startswith(b"\x7fELF"):
        yield from _check_elf(what, head, path, root)
    else:
        yield Problem(f"{what} has neither a first line #! nor an ELF header", "begin it with a line such as #!/bin/sh")


def _check_first_line(what: str, head: bytes, root: Root, depth: int) -> Iterator[Problem]:
    line, newline, _ = head[:_FIRST_LINE_MAX].partition(b"\n")
    if line.endswith(b"\r"):
        yield Problem(f"{what} has DOS line ends (CRLF)", "convert it with dos2unix, or sed -i 's/\\r$//'")
        return
    words = line[2:].split()
    if not words:
        yield Problem(f"{what} names no interpreter in its first line")
        return
    interpreter = os.fsdecode(words[0])
    if not newline and len(head) > _FIRST_LINE_MAX:
        yield Problem(f"{what} has a first line of more than {_FIRST_LINE_MAX} bytes")
    elif not interpreter.startswith("/"):
        yield Problem(f"{what}: its interpreter {interpreter} is no absolute path")
    elif not root.exists(interpreter):
        yield Problem(f"{what}: its interpreter {interpreter} does not exist inside the root")
    elif not stat.S_ISREG((status := root.stat(interpreter)).st_mode) or not status.st_mode & 0o111:
        yield Problem(f"{what}: its interpreter {interpreter} is no executable file")
    elif depth < 4:
        yield from _check_program(f"{what}: its interpreter {interpreter}", interpreter, root, depth + 1)


def _check_elf(what: str, head: bytes, path: str, root: Root) -> Iterator[Problem]:
    order: Literal["little", "big"] = "little" if head[5:6] == b"\x01" else "big"
    machine = int.from_bytes(head[18:20], order)
    here = os.uname().machine
    if machine not in _MACHINES.get(here, (machine,)):
        yield Problem(
            f"{what} is a program for another architecture (ELF machine {machine}) than this one ({here})",
            "a binfmt_misc interpreter (qemu-user) may run it",
            warning=_has_foreign_interpreters(),
        )
        return
    loader = _elf_interpreter(head, order)
    if loader and not root.exists(loader):
        yield Problem(f"{what} needs the dynamic loader {loader}, which does not exist inside the root")


def _has_foreign_interpreters() -> bool:
    try:
        return any(name not in ("register", "status") for name in os.listdir("/proc/sys/fs/binfmt_misc"))
    except OSError:
        return False


def _elf_interpreter(head: bytes, order: Literal["little", "big"]) -> str:
    """The path in PT_INTERP, if the program headers are in the first page, as they are in practice."""
    wide = head[4:5] == b"\x02"

    def number(at: int, size: int) -> int:
        return int.from_bytes(head[at : at + size], order)

    table, size, count = (
        (number(32, 8), number(54, 2), number(56, 2)) if wide else (number(28, 4), number(42, 2), number(44, 2))
    )
    for index in range(count):
        at = table + index * size
        if number(at, 4) == 3:
            offset, length = (
                (number(at + 8, 8), number(at + 32, 8)) if wide else (number(at + 4, 4), number(at + 16, 4))
            )
            return os.fsdecode(head[offset : offset + length].rstrip(b"\0"))
    return ""


def _link_text(root: Root, path: str) -> str:
    try:
        return root.readlink(path)
    except OSError:
        return ""
