"""Carry out a batch of system calls in Python, as `_native.c` does.

This happens in a fork of this process if it has one thread, and otherwise in an interpreter of its
own: `interpreter` passes this module to it, as code. So it imports nothing of chrootfw. A fork of a
program with threads would not do: a lock that another thread holds is never released there.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import marshal
import mmap
import os
import signal
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Mapping
    from typing import Any, NoReturn

_HEADER = struct.Struct("=4Q")
_OPERATION = struct.Struct("=6qQqii8B")
_RESULT_OFFSET = 56
_RESULT = struct.Struct("=q")
_POINTER = struct.Struct("=2Q")
_ADDRESS, _RESULT_OF = 1, 2
_COMPARE, _END = -1, -1
_ERRNOS = 63

_CLONE_PIDFD, _CLONE_PARENT, _CLONE_INTO_CGROUP = 0x1000, 0x8000, 0x200000000

#: The reports of an interpreter: it waits for the word to start a child; a child was started (its
#: pidfd comes with the report), or none could be (the errno follows).
READY, STARTED, FAILED = b"?", b"*", b"!"
#: The word to start a child, and that which lets the child begin.
START, BEGIN = b".", b"+"


def _bind() -> Any:
    """Bind syscall(2) of libc with whole registers, keeping the interpreter's lock."""
    call = ctypes.PyDLL(None, use_errno=True)["syscall"]
    call.restype, call.argtypes = ctypes.c_long, [ctypes.c_long] * 7
    return call


_syscall = _bind()


def _call(number: int, *arguments: int) -> int:
    """Make a system call; return a negative errno if it fails."""
    result: int = _syscall(number, *arguments, *(0,) * (6 - len(arguments)))
    return -ctypes.get_errno() if result == -1 else result


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def carry_out(memory: mmap.mmap) -> None:
    """Carry out the batch in a piece of memory."""
    base = _address(memory)
    operations, count, pointers, pointer_count = _HEADER.unpack_from(memory)
    for number in range(pointer_count):
        place, target = _POINTER.unpack_from(memory, pointers + number * _POINTER.size)
        _RESULT.pack_into(memory, place, base + target)
    results = [0] * count
    index = 0
    while index != _END and index < count:
        begin = operations + index * _OPERATION.size
        *given, ignored, _, number, on_failure = _OPERATION.unpack_from(memory, begin)[:10]
        kinds = memory[begin + 72 : begin + 78]
        arguments = [
            base + value if kind == _ADDRESS else results[value] if kind == _RESULT_OF else value
            for value, kind in zip(given, kinds, strict=True)
        ]
        if number == _COMPARE:
            there = _RESULT.unpack(ctypes.string_at(arguments[0], 8))[0]
            result = 0 if there & arguments[2] == arguments[1] else -errno.ESTALE
        else:
            result = _call(number, *arguments)
        results[index] = result
        _RESULT.pack_into(memory, begin + _RESULT_OFFSET, result)
        if result >= 0 or (-result < _ERRNOS and ignored >> -result & 1):
            index += 1
        else:
            index = on_failure


def start(
    numbers: Mapping[str, int],
    memory: mmap.mmap,
    pidfd: array[int],
    flags: int,
    cgroup: int,
    gate: int = -1,
) -> int:
    """Fork a child that carries out a batch, and exits.

    The caller has one thread, and has blocked all signals.

    Args:
        numbers: The numbers of system calls; `flags come second` if clone(2) takes the stack first.
        memory: The batch.
        pidfd: Its first element gets the pidfd.
        flags: Flags of clone3(2).
        cgroup: A descriptor of the cgroup v2 directory to start in; -1 for the caller's.
        gate: A socket from which the child receives `BEGIN` before it does anything; -1 for none.

    Returns:
        The pid.

    Raises:
        OSError: The kernel refused to create the process.
    """
    flags |= _CLONE_PIDFD
    place = pidfd.buffer_info()[0]
    signum = 0 if flags & _CLONE_PARENT else int(signal.SIGCHLD)
    words = (ctypes.c_uint64 * 11)(flags, place, 0, 0, signum)
    if cgroup >= 0:
        words[0] |= _CLONE_INTO_CGROUP
        words[10] = cgroup
    join = -1
    pid = _call(numbers["clone3"], ctypes.addressof(words), ctypes.sizeof(words))
    if pid == -errno.ENOSYS:  # a seccomp filter that predates clone3
        if cgroup >= 0:
            join = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=cgroup)
        how = [flags | signal.SIGCHLD, 0]
        if numbers["flags come second"]:
            how.reverse()
        pid = _call(numbers["clone"], *how, place)
    if pid == 0:
        try:
            # No garbage collection: finalizers would act on the parent's objects.
            gc.disable()
            joined = join < 0 or os.write(join, b"0") == 1
            if joined and (gate < 0 or os.read(gate, 1) == BEGIN):
                for fd in (gate, join, cgroup if gate >= 0 else -1):
                    if fd >= 0:
                        os.close(fd)
                carry_out(memory)
                _call(numbers["exit_group"], 0)
        finally:
            os._exit(127)
    if join >= 0:
        os.close(join)
    if pid < 0:
        raise OSError(-pid, f"clone3: {os.strerror(-pid)}")
    return pid


def run(plan: dict[str, Any]) -> NoReturn:
    """Start a child of the process that has started this interpreter, and exit.

    Args:
        plan: The descriptors `memory`, `socket` and `cgroup`, the `numbers`, and the `flags` of
            clone3(2).
    """
    from array import array

    report = socket.socket(fileno=plan["socket"])
    try:
        report.send(READY)
        if report.recv(1) != START:
            os._exit(0)  # the caller was interrupted: a child would have no owner
    except OSError:
        os._exit(0)
    try:
        memory = mmap.mmap(plan["memory"], 0)
        os.close(plan["memory"])
        pidfd = array("i", (-1,))
        flags = plan["flags"] | _CLONE_PARENT
        start(plan["numbers"], memory, pidfd, flags, plan["cgroup"], plan["socket"])
    except OSError as error:
        report.send(FAILED + b"%d" % (error.errno or 0))
    else:
        # The pidfd travels with the report (SCM_RIGHTS).
        report.sendmsg([STARTED], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, bytes(pidfd))])
    os._exit(0)


#: How an interpreter gets this program and its plan, from the descriptor in its first argument.
BOOTSTRAP = (
    "import marshal,sys;f=open(int(sys.argv[1]),'rb');"
    "g={'__name__':'batch'};exec(marshal.load(f),g);p=marshal.load(f);f.close();g['run'](p)"
)


def packed(code: Any, plan: dict[str, Any]) -> bytes:
    """Pack this program and its plan for `BOOTSTRAP`."""
    return marshal.dumps(code) + marshal.dumps(plan)
