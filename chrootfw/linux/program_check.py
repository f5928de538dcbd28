"""Find out why a program of a root cannot be run: its loader, its interpreter, its architecture."""

from __future__ import annotations

import os
import stat

from chrootfw.linux.root import LEADS_NOWHERE
from chrootfw.model import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from chrootfw.linux.root import Root

#: e_machine of ELF(5) for what ``uname -m`` says; a 64-bit kernel runs its 32-bit programs too.
_MACHINES = {
    "x86_64": (62, 3), "i686": (3,), "aarch64": (183, 40), "armv7l": (40,), "riscv64": (243,),
    "ppc64le": (21,), "s390x": (22,), "loongarch64": (258,),
}  # fmt: skip
#: The kernel reads as much of a first line (BINPRM_BUF_SIZE).
_FIRST_LINE_MAX = 256
#: So many scripts can be each other's interpreters (exec_binprm in the kernel).
_SCRIPTS_MAX = 5
_NAME_A_PROGRAM = "name a program in the first line, such as #!/bin/sh"


def check_program(what: str, chain: tuple[str, ...], root: Root) -> Iterator[Problem]:
    """Check what execve(2) would refuse: the first line's interpreter, or the ELF header.

    Args:
        what: The program, as a sentence names it.
        chain: The path of the script, of its interpreter, and so on to the program in question.
        root: The root that it is in.

    Yields:
        The problems.

    Raises:
        OSError: A file cannot be read, or does not answer in time.
    """
    with root.open(chain[-1], "rb") as file:
        head = file.read(4096)
    if not head:
        yield Problem(f"{what} is empty", _NAME_A_PROGRAM)
    elif head.startswith(b"#!"):
        yield from _check_first_line(what, head, chain, root)
    elif head.startswith(b"\x7fELF"):
        yield from _check_elf(what, head, root)
    else:
        yield Problem(
            f"{what} has neither a first line #! nor an ELF header",
            "begin it with a line such as #!/bin/sh",
        )


def _check_first_line(
    what: str, head: bytes, chain: tuple[str, ...], root: Root
) -> Iterator[Problem]:
    line, newline, _ = head[:_FIRST_LINE_MAX].partition(b"\n")
    if line.endswith(b"\r"):
        yield Problem(
            f"{what} has DOS line ends (CRLF)", "convert it with dos2unix, or sed -i 's/\\r$//'"
        )
        return
    words = line[2:].split()
    if not words:
        yield Problem(f"{what} names no interpreter in its first line", _NAME_A_PROGRAM)
        return
    interpreter = os.fsdecode(words[0])
    if not newline and len(head) > _FIRST_LINE_MAX:
        yield Problem(
            f"{what} has a first line of more than {_FIRST_LINE_MAX} bytes", _NAME_A_PROGRAM
        )
    elif not interpreter.startswith("/"):
        yield Problem(
            f"{what}: its interpreter {interpreter} is not an absolute path", _NAME_A_PROGRAM
        )
    elif (status := _status(root, interpreter)) is None:
        yield Problem(
            f"{what}: its interpreter {interpreter} does not exist inside the root",
            "install it there, or name another program in the first line",
        )
    elif not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        yield Problem(
            f"{what}: its interpreter {interpreter} is not an executable file",
            f"chmod +x {interpreter} in the disk, if it is a program",
        )
    elif interpreter in chain:
        itself = "itself" if interpreter == chain[-1] else f"{interpreter} again"
        yield Problem(f"{what} names {itself} as its interpreter", _NAME_A_PROGRAM)
    elif len(chain) > _SCRIPTS_MAX:
        yield Problem(
            f"{what} is a script again, the sixth: Linux runs no more than five, each by the next",
            _NAME_A_PROGRAM,
        )
    else:
        yield from check_program(
            f"{what}: its interpreter {interpreter}", (*chain, interpreter), root
        )


def _status(root: Root, path: str) -> os.stat_result | None:
    """Return the status of a file; `None` if the path leads to none."""
    try:
        return root.stat(path)
    except OSError as error:
        if error.errno in LEADS_NOWHERE:
            return None
        raise


def _check_elf(what: str, head: bytes, root: Root) -> Iterator[Problem]:
    order: Literal["little", "big"] = "little" if head[5:6] == b"\x01" else "big"
    machine = int.from_bytes(head[18:20], order)
    here = os.uname().machine
    if machine not in _MACHINES.get(here, (machine,)):
        yield Problem(
            f"{what} is a program for another architecture (ELF machine {machine}) than "
            f"this one ({here})",
            "a binfmt_misc interpreter (qemu-user) may run it",
            warning=_has_other_interpreters(),
        )
        return
    loader = _elf_interpreter(head, order)
    if loader and not root.exists(loader):
        yield Problem(
            f"{what} needs the dynamic loader {loader}, which does not exist inside the root",
            "install the C library that it was made for there, or take a static program",
        )


def _has_other_interpreters() -> bool:
    try:
        return any(
            name not in ("register", "status") for name in os.listdir("/proc/sys/fs/binfmt_misc")
        )
    except OSError:
        return False


def _elf_interpreter(head: bytes, order: Literal["little", "big"]) -> str:
    """Return the path in PT_INTERP; empty for a program without one.

    The program headers must be in the first page, as they are in practice.
    """
    wide = head[4:5] == b"\x02"

    def number(at: int, size: int) -> int:
        return int.from_bytes(head[at : at + size], order)

    table, size, count = (
        (number(32, 8), number(54, 2), number(56, 2))
        if wide
        else (number(28, 4), number(42, 2), number(44, 2))
    )
    for index in range(count):
        at = table + index * size
        if number(at, 4) == 3:
            offset, length = (
                (number(at + 8, 8), number(at + 32, 8))
                if wide
                else (number(at + 4, 4), number(at + 16, 4))
            )
            return os.fsdecode(head[offset : offset + length].rstrip(b"\0"))
    return ""
