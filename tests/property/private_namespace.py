"""Real mounts that the host never sees: a fresh thread with a mount namespace of its own.

Whatever a test leaves behind ends with the thread.
"""

import ctypes
import os
import threading

import pytest
import tiers

from chrootfw.linux import syscalls

MS_BIND, MS_MOVE, MS_REC = 0x1000, 0x2000, 0x4000

_libc = ctypes.CDLL(None, use_errno=True)

_WHY_NOT = tiers.why_no_mounts()
needs_root = pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)


def in_private_namespace(function):
    """Call ``function`` there; what it returns or raises is returned or raised here."""
    results, failures = [], []

    def run():
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_FS)
            syscalls.make_all_slave()
            results.append(function())
        except BaseException as error:  # noqa: BLE001  # raised again below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def mount(source, target, fstype=None, flags=0):
    """mount(2)."""
    if _libc.mount(source, target, fstype, ctypes.c_ulong(flags), None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def tmpfs(target, source=b"test"):
    mount(source, target, b"tmpfs")


def bind(source, target, *, recursive=False):
    mount(source, target, None, MS_BIND | (MS_REC if recursive else 0))


def move(source, target):
    mount(source, target, None, MS_MOVE)
