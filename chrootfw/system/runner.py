"""Lists of system calls carried out by machine code, on x86_64: by a child that shares this process's memory, or right here.

A child that runs Python is a fork of the interpreter: a millisecond for its page tables, and a copy of each page that either
writes from then on. This one is what vfork(2) and posix_spawn(3) make, without the waiting: a tenth of that, whatever the program's
size. It touches nothing but its list, not even the stack, and all signals are blocked in it until its execve. Where it cannot be had, ``children``
forks.

The child must not change its user, its capabilities, or whether it may be traced: that belongs to the memory, and so to the program too. So
does its end where the kernel's own hand is in it: a cgroup that is out of memory ends all processes that share the memory of the one
chosen, wherever they are, and up to Linux 5.15 a core dump did.

Thousands of calls of one kind (``statuses``) take half as long as through ctypes, one by one.
"""

from __future__ import annotations

import ctypes
import mmap

from chrootfw.system import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: What ``CODE`` was assembled from; a test does it again. A step is ten words of eight bytes (``call_lists``).
SOURCE = """\
        .globl  start, run
start:                                  # (struct clone_args *, size_t, struct step *) -> pid
        push    %rbx
        mov     %rdx, %rbx
        mov     $435, %eax              # clone3
        syscall
        test    %rax, %rax
        jz      child
        pop     %rbx
        ret
child:  lea     exit(%rip), %rbp        # its stack is its parent's: not to be touched
        jmp     next
exit:   mov     $231, %eax              # exit_group
        xor     %edi, %edi
        syscall
        .balign 64
run:                                    # (struct step *)
        push    %rbx
        push    %rbp
        mov     %rdi, %rbx
        lea     back(%rip), %rbp
        jmp     next
back:   pop     %rbp
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
end:    jmp     *%rbp
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
    "534889d3b8b30100000f054885c074025bc3488d2d02000000eb36b8e700000031ff0f0566662e0f1f840000"
    "00000066662e0f1f840000000000660f1f44000053554889fb488d2d02000000eb035d5bc3488b034885c078"
    "4f488b7b08488b7310488b53184c8b53204c8b43284c8b4b300f054889434848f7d8483dff0f000077154885"
    "c074104883f83f7710488b4b38480fa3c173064883c350ebb4488b5b404885db75abffe548ffc074f9488b4b"
    "08488b0931c0483b4b1074b748c7c08cffffffebae"
)

_PROT_READ_EXEC = mmap.PROT_READ | mmap.PROT_EXEC
#: Where ``run`` begins.
_RUN = 0x40


def _load() -> int:
    """The address of the code, in memory that can be executed and not written; 0 on other processors, and where a policy forbids it."""
    if syscalls.ARCHITECTURE != "x86_64":
        return 0
    memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
    memory.write(CODE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), _PROT_READ_EXEC) < 0:
        return 0
    _kept.append(memory)
    return address


_kept: list[mmap.mmap] = []
_address = _load()

# The interpreter's lock is kept: the child is made before another thread can do anything, and what is asked for here takes no time.
_START = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_WALK = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)

#: Whether the end of one process by a core dump is no longer that of all that share its memory: Linux 5.16.
_IS_ALONE = syscalls.kernel() >= (5, 16)

#: ``start(clone_args, size, first step)``: the pid of a child whose end is that of the list, or a negative errno.
start: Callable[[int, int, int], int] | None = _START(_address) if _address and _IS_ALONE else None

#: ``run(first step)``: the list is carried out by the caller.
run: Callable[[int], None] | None = _WALK(_address + _RUN) if _address else None
