"""Check `chrootfw/linux/_native.c`: warnings as errors, then a driver under sanitizers and valgrind.

``python tools/check_native.py`` needs gcc with its sanitizers, valgrind and Python's headers. The
driver starts children in each way that the module has, gives it broken batches, and looks at
thousands of files. It runs in this interpreter, with the module compiled for the check.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
SOURCE = TREE / "chrootfw/linux/_native.c"
WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Wpointer-arith", "-Werror")
#: Every wait has an end, also for a driver that hangs.
SECONDS = 600

DRIVER = r"""
import errno, os, struct, sys
from array import array
sys.path.insert(0, sys.argv[1])
from chrootfw.linux import child, native
from chrootfw.linux.call_batch import CallBatch, Result
module = native.MODULE
assert module is not None and module.__file__.startswith(sys.argv[2]), native.REASON
rounds = int(sys.argv[3])

def end(made):
    assert made.wait_for_end(60) and made.status == 0, made.status
    made.close()

for number in range(rounds):
    for shares in (True, False):
        calls = CallBatch()
        calls.add("umask", 0o022)
        space = calls.add_buffer(64)
        opened = calls.add("openat", -100, b"/proc/sys/kernel/ostype", os.O_RDONLY)
        calls.add("read", Result(opened), space, space.size)
        calls.add("close", -1, ignore=[errno.EBADF])
        first = calls.compare(space, 0)
        calls.skip(first)
        calls.add("close", Result(opened))
        message = calls.add_buffer(16)
        message.point(8, calls.add_buffer(4, b"text"))
        end(child.begin(calls, shares_memory=shares))
        assert space.data.startswith(b"Linux"), space.data
        assert calls.stopped_at() is None, calls.stopped_at()
        calls = CallBatch()
        argv = calls.add_strings(["true", "x" * number])
        calls.add("execve", b"/bin/true", argv, calls.add_strings(["A=b"]))
        end(child.begin(calls, shares_memory=shares))

def refused(memory, pidfd=None):
    for shares in (True, False):
        try:
            module.start(memory, array("i", (-1,)) if pidfd is None else pidfd, 0, -1, shares)
        except OSError as error:
            assert error.errno == errno.EINVAL, error
        else:
            raise AssertionError(bytes(memory[:48]))

calls = CallBatch()
calls.add("umask", 0)
calls.add_buffer(8).point(0, calls.add_buffer(8))
whole = bytes(calls.prepare())
refused(bytearray(0)); refused(bytearray(47)); refused(bytearray(whole), bytearray(3))
size = len(whole)
for word, values in {0: (size + 1, 2**64 - 1), 1: (size, 2**63), 2: (size + 1, 2**64 - 1), 3: (size, 2**63),
                     4: (size + 1, 2**64 - 1), 5: (size + 1, 2**64 - 1)}.items():
    for value in values:
        broken = bytearray(whole)
        struct.pack_into("=Q", broken, word * 8, value)
        refused(broken)
pointers = struct.unpack_from("=6Q", whole)[2]
for offset in (0, 8):
    broken = bytearray(whole)
    struct.pack_into("=Q", broken, pointers + offset, size + 1)
    refused(broken)
for arguments in ((), (b"",), (bytearray(48), array("i", (-1,)), "x", 0, 0)):
    try:
        module.start(*arguments)
    except (TypeError, BufferError):
        pass
    else:
        raise AssertionError(arguments)
paths = [b"/", b"/dev/null", b"/nowhere", b"", b"x" * 5000]
for _ in range(rounds):
    found = module.statx_many(paths * 50, 0x4800, 0x17FF)
    assert [row is not None for row in found[:5]] == [True, True, False, False, False]
for wrong in ((), ((),), (["text"], 0, 0), ([b"/", None], 0, 0)):
    try:
        module.statx_many(*wrong)
    except TypeError:
        pass
    else:
        raise AssertionError(wrong)
print("driver: all as expected")
"""


def main() -> None:
    """Run every check; end with the first that fails."""
    with tempfile.TemporaryDirectory(prefix="chrootfw-native-") as directory:
        place = Path(directory)
        print("== warnings", flush=True)
        for number, flags in enumerate((("-O2",), ("-O0",), ("-Os", "-fstack-protector-strong"))):
            compile_module(place / f"plain{number}", *flags)
        print("== AddressSanitizer, UndefinedBehaviorSanitizer", flush=True)
        sanitizers = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
        environment = {
            "LD_PRELOAD": " ".join(library(name) for name in ("libasan.so", "libubsan.so")),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps memory until its end
            "PYTHONMALLOC": "malloc",
        }
        sanitized = place / "sanitized"
        compile_module(sanitized, *sanitizers)
        drive([], sanitized, 50, **environment)
        print("== the same without assembler, as on other processors", flush=True)
        portable = place / "portable"
        compile_module(portable, *sanitizers, "-DNO_ASSEMBLER")
        drive([], portable, 50, **environment)
        print("== valgrind", flush=True)
        checked = place / "checked"
        compile_module(checked, "-O1", "-g")
        valgrind = ["valgrind", "--quiet", "--error-exitcode=9", "--undef-value-errors=no"]
        drive([*valgrind, "--child-silent-after-fork=yes"], checked, 3, PYTHONMALLOC="malloc")


def compile_module(place: Path, *flags: str) -> None:
    """Compile the module into a package of its own, beside links to the Python code."""
    package = place / "chrootfw"
    (package / "linux").mkdir(parents=True)
    for source in (TREE / "chrootfw", TREE / "chrootfw/linux"):
        for entry in source.iterdir():
            target = package / entry.relative_to(TREE / "chrootfw")
            if entry.name not in ("linux", "__pycache__") and entry.suffix != ".so":
                target.symlink_to(entry)
    subprocess.run(
        [
            "gcc", *WARNINGS, *flags, "-fPIC", "-shared", f"-I{sysconfig.get_path('include')}",
            str(SOURCE), "-o", str(package / "linux/_native.abi3.so"),
        ],
        check=True,
    )  # fmt: skip


def library(name: str) -> str:
    """Return the path of a library of gcc's."""
    done = subprocess.run(
        ["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    )
    return os.path.realpath(done.stdout.strip())


def drive(prefix: list[str], place: Path, rounds: int, **environment: str) -> None:
    """Run the driver with the module in a directory."""
    driver = place / "driver.py"
    driver.write_text(DRIVER)
    command = [*prefix, sys.executable, "-S", "-B", driver, place, place, str(rounds)]
    subprocess.run(
        command,
        env={**os.environ, "CHROOTFW_NATIVE": "1", **environment},
        check=True,
        timeout=SECONDS,
    )


if __name__ == "__main__":
    main()
