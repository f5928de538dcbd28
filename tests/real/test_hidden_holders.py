"""What keeps an instance busy without a descriptor that anybody sees is named as far as /proc tells."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driving import Chroot
from kernelview import wait_until

MakeChroot = Callable[..., Chroot]
Outside = Callable[..., subprocess.Popen[str]]

_libc = ctypes.CDLL(None, use_errno=True)
#: Of fanotify(7): be told of each open; below a mount, or on a file system.
_OPEN, _ADD, _ON = 0x20, 0x01, {"mount": 0x10, "file system": 0x100}
#: A tracer that stops its tracee at its exit, and does not let it go (ptrace(2)).
_HOLD = """
import ctypes, sys, time
call, pid = ctypes.CDLL(None).ptrace, int(sys.argv[1])
call(0x4206, pid, None, ctypes.c_void_p(0x40))
call(0x4207, pid, None, None)
print(flush=True)
time.sleep(600)
"""


@pytest.fixture
def web1(make_chroot: MakeChroot, image: Callable[..., Path]) -> Iterator[Chroot]:
    web1 = make_chroot(disk=image(), init_script=False)
    web1.start()
    yield web1
    web1.cli("cleanup")
    assert web1.is_gone()


def test_a_swap_file(web1: Chroot) -> None:
    file = web1.root / "srv/swap file"
    file.write_bytes(bytes(1 << 20))
    file.chmod(0o600)
    subprocess.run(["mkswap", str(file)], check=True, capture_output=True)
    subprocess.run(["swapon", "--priority", "0", str(file)], check=True)
    try:
        held = web1.cli("stop", expect=4)
    finally:
        subprocess.run(["swapoff", str(file)], check=True)
    assert f"swap {file}" in held.stderr
    assert f"swapoff '{file}'" in held.stderr
    assert "holder unknown" not in held.stderr


def test_an_overlay(web1: Chroot, tmp_path: Path) -> None:
    layers = tmp_path / "layers"
    layers.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(layers)], check=True)
    for name in ("upper", "work", "merged"):
        (layers / name).mkdir()
    options = f"lowerdir={web1.root}/srv,upperdir={layers}/upper,workdir={layers}/work"
    merged = str(layers / "merged")
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
    try:
        held = web1.cli("stop", expect=4)
    finally:
        subprocess.run(["umount", merged], check=True)
        subprocess.run(["umount", str(layers)], check=True)
    assert f"overlay {merged}" in held.stderr
    assert f"umount {merged}" in held.stderr


@pytest.mark.parametrize("on", _ON)
def test_unread_events_of_fanotify(web1: Chroot, on: str) -> None:
    group = _libc.fanotify_init(0, os.O_RDONLY)
    path = os.fsencode(web1.root)
    assert not _libc.fanotify_mark(group, _ADD | _ON[on], ctypes.c_uint64(_OPEN), -100, path)
    try:
        (web1.root / "etc/passwd").read_bytes()
        held = web1.cli("stop", expect=4)
    finally:
        os.close(group)
    assert f"pid {os.getpid()} " in held.stderr
    assert "fanotify" in held.stderr


def test_a_tracer_that_lets_nothing_go(make_chroot: MakeChroot, outside: Outside) -> None:
    web1 = make_chroot(grace=0.2)
    web1.start()
    (traced,) = web1.pids("sleep")
    tracer = outside(sys.executable, "-c", _HOLD, str(traced), stdout=subprocess.PIPE)
    assert tracer.stdout is not None
    tracer.stdout.readline()
    left = web1.cli("stop", expect=1, says=["still has processes"])
    assert f"pid {traced} (sleep): state t, stopped by its tracer" in left.stderr
    assert f"pid {tracer.pid} (" in left.stderr
    (hint,) = [line for line in left.stderr.splitlines() if "hint:" in line]
    assert f"kill {tracer.pid}" in hint
    assert "state D" not in left.stderr
    tracer.kill()
    tracer.wait()
    wait_until(lambda: not Path(f"/proc/{traced}").exists(), "the traced process has ended")
    web1.cli("stop")
