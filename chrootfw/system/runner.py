"""A child that shares this process's memory and carries out a list of system calls by machine code, on x86_64.

A child that runs Python is a fork of the interpreter: a millisecond for its page tables, and a copy of each page that either
writes from then on. This one is what vfork(2) and posix_spawn(3) make, without the waiting: a tenth of that, whatever the program's
size. It touches nothing but its list, not even the stack, and all signals are blocked in it. Where it cannot be had, ``children`` forks.

It must not change its user, its capabilities, or whether it may be traced: that belongs to the memory, and so to the program too.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: What ``CODE`` was assembled from; a test does it again. A step is ten words of eight bytes (``call_lists``).
SOURCE = """\
        .globl  start
start:                                  # (struct clone_args *, size_t, struct step *) -> pid
        push    %rbx
        mov     %rdx, %rbx
        mov     $435, %eax              # clone3
        syscall
        test    %rax, %rax
        jz      next                    # the child
        pop     %rbx
        ret
next:   mov     (%rbx), %rax
        test    %rax, %rax
        js      other
        mov     8(%rbx), %rdi
        mov     16(%rbx), %rsi
        mov     24(%rbx), %rdx
        mov     32(%rbx), %r10
        mov     40(%rbx), %r8
        mov     48(%rbx), %r9
        syscall
done:   mov     %rax, 72(%rbx)
        neg     %rax                    # errno: 1 to 4095
        cmp     $4095, %rax
        ja      on
        test    %rax, %rax
        jz      on
        cmp     $63, %rax
        ja      failed
        mov     56(%rbx), %rcx
        bt      %rax, %rcx
        jnc     failed
on:     add     $80, %rbx
        jmp     next
failed: mov     64(%rbx), %rbx
        test    %rbx, %rbx
        jnz     next
end:    mov     $231, %eax              # exit_group
        xor     %edi, %edi
        syscall
other:  inc     %rax
        jz      end                     # -1
        mov     8(%rbx), %rcx           # -2: is it the number that it should be?
        mov     (%rcx), %rcx
        xor     %eax, %eax
        cmp     16(%rbx), %rcx
        je      done
        mov     $-116, %rax             # ESTALE
        jmp     done
"""
CODE = bytes.fromhex(
    "534889d3b8b30100000f054885c074025bc3488b034885c07856488b7b08488b7310488b53184c8b53204c8b"
    "43284c8b4b300f054889434848f7d8483dff0f000077154885c074104883f83f7710488b4b38480fa3c17306"
    "4883c350ebb4488b5b404885db75abb8e700000031ff0f0548ffc074f2488b4b08488b0931c0483b4b1074b0"
    "48c7c08cffffffeba7"
)

_PROT_READ_EXEC = mmap.PROT_READ | mmap.PROT_EXEC


def _load() -> Callable[[int, int, int], int] | None:
    """The code in memory that can be executed and not written; ``None`` on other processors, and where a policy forbids it."""
    if os.uname().machine != "x86_64" or struct.calcsize("P") != 8:
        return None
    memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
    memory.write(CODE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), _PROT_READ_EXEC) < 0:
        return None
    _kept.append(memory)
    # The interpreter's lock is kept: the child is made before another thread can do anything.
    found: Callable[[int, int, int], int] = ctypes.PYFUNCTYPE(
        ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
    )(address)
    return found


_kept: list[mmap.mmap] = []

#: ``start(clone_args, size, first step)``: the child's pid, or a negative errno. The child's end is that of its list.
start = _load()
