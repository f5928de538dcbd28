"""Run tests in a virtual machine with a packaged kernel of Debian's, as root with every capability.

``python tests/guest/boot.py [ARGUMENT…]`` gives the arguments to pytest inside; without any, all that is for a guest is
run. A guest has what the machine may not: CAP_SYS_RESOURCE, and the controllers of cgroup v2. The system is made once,
and kept beside the Debian systems of tests/real. Nothing that the guest writes is kept: its disks are thrown away.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent

sys.path.insert(0, str(TREE / "tests/real"))

import prepare  # noqa: E402
import roots  # noqa: E402

#: What this machine needs, and what the system of the guest holds beside Debian's minimal set.
TOOLS = ("debian-archive-keyring", "e2fsprogs", "mmdebstrap", "qemu-system-x86")
PACKAGES = ("linux-image-cloud-amd64", "procps", "python3", *prepare.QUICK_TOOLS)
#: The Python of prepare.SUITE.
PYTHON = "3.11"

#: Counts the ways in which the system is made; a new one makes a new cache entry.
RECIPE = 1

#: What is run without arguments: paths in the tree.
TESTS = ("tests/guest",)

#: Seconds for the guest until its power-off, for an emulated one, and for the first line of its kernel.
SECONDS, SECONDS_EMULATED, SECONDS_SILENT = 600, 1800, 30

#: The guest's init is busybox's: it reaps, and runs two scripts of the second disk.
INITTAB = """\
::sysinit:/bin/mount -t proc proc /proc
::sysinit:/bin/mount -t ext4 -o ro /dev/vdb /mnt
::sysinit:/bin/sh /mnt/setup
::once:/bin/sh /mnt/run
"""

SETUP = """\
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo +$controller > /sys/fs/cgroup/cgroup.subtree_control
done
busybox ip link set lo up
modprobe loop
"""

#: Its end is what `status` looks for. The environment is no more than this.
RUN = """\
exec < /dev/null > /dev/ttyS0 2>&1
cd /mnt
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 CI={ci} PYTHONPATH=/mnt/site \
    PYTHONDONTWRITEBYTECODE=1 python3 tests/guest/inside.py {arguments}
echo "guest: status $?"
sync
busybox poweroff -f
"""


def main(*arguments: str) -> int:
    if platform.machine() != "x86_64":
        sys.exit("the guest is one of amd64, and this machine is not")
    prepare.require_root()
    prepare.install(TOOLS)
    began = time.monotonic()
    name = hashlib.sha256(repr((RECIPE, prepare.SUITE, PACKAGES, INITTAB)).encode()).hexdigest()
    system = prepare.cached(f"guest-{prepare.SUITE}-{name[:16]}.img", make_system)
    with tempfile.TemporaryDirectory(prefix="chrootfw-guest-") as scratch:
        place = Path(scratch)
        kernel, initrd = extract_kernel(system, place)
        tree = make_tree(place, arguments or TESTS)
        print(f"guest: prepared in {time.monotonic() - began:.0f} s", flush=True)
        return boot(kernel, initrd, (system, tree))


def make_system(image: Path) -> None:
    """Make the file system of a Debian that boots, as an image."""
    with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
        archive, root = Path(scratch) / "system.tar", Path(scratch) / "root"
        options = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
        prepare.mmdebstrap(options, archive)
        root.mkdir(mode=0o755)
        roots.extract(archive, root)
        archive.unlink()
        (root / "etc/inittab").write_text(INITTAB)
        make_image(root, image, "3G")


def make_image(directory: Path, image: Path, size: str) -> None:
    """Make a sparse ext4 image of a directory."""
    with image.open("wb"):
        pass
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(directory), str(image), size]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)


def extract_kernel(system: Path, place: Path) -> tuple[Path, Path]:
    """Take the kernel and its initial ramdisk out of the image."""
    listed = debugfs(system, "ls -p /boot")
    found = []
    for begins in ("vmlinuz-", "initrd.img-"):
        (name,) = re.findall(rf"/({re.escape(begins)}[^/]+)/", listed)
        debugfs(system, f"dump /boot/{name} {place / name}")
        found.append(place / name)
    return found[0], found[1]


def debugfs(system: Path, command: str) -> str:
    """Run one command of debugfs(8), which only reads."""
    return subprocess.run(
        ["debugfs", "-R", command, str(system)], capture_output=True, text=True, check=True
    ).stdout


def make_tree(place: Path, arguments: tuple[str, ...]) -> Path:
    """Make the second disk: this tree's tests, chrootfw as it is installed, and what the tests import."""
    top = place / "tree"
    top.mkdir(mode=0o755)
    skipped = shutil.ignore_patterns("__pycache__", ".*cache")
    shutil.copytree(TREE / "tests", top / "tests", ignore=skipped)
    shutil.copy(TREE / "pyproject.toml", top)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", f"--wheel-dir={place}", str(TREE)],
        stdin=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    (wheel,) = place.glob("*.whl")
    platforms = ["--platform=manylinux2014_x86_64", "--platform=linux_x86_64"]
    subprocess.run(
        [
            *pip, "install", f"--target={top / 'site'}", "--only-binary=:all:",
            f"--python-version={PYTHON}", "--implementation=cp", *platforms, f"{wheel}[test]",
        ],
        stdin=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    (top / "setup").write_text(SETUP)
    ci = shlex.quote(os.environ.get("CI", ""))
    (top / "run").write_text(RUN.format(ci=ci, arguments=shlex.join(arguments)))
    image = place / "tree.img"
    make_image(top, image, "512M")
    return image


def boot(kernel: Path, initrd: Path, disks: tuple[Path, ...]) -> int:
    """Boot the guest, print what it prints, and return the status of the tests.

    A machine that is itself virtual can have a /dev/kvm with which no guest begins: it is emulated then.
    """
    words = "console=ttyS0 root=/dev/vda rw init=/bin/busybox panic=-1 -- init"
    command = [
        "qemu-system-x86_64", "-m", "2048", "-nodefaults", "-no-reboot", "-display", "none",
        "-serial", "stdio", "-kernel", str(kernel), "-initrd", str(initrd), "-append", words,
    ]  # fmt: skip
    for disk in disks:
        command += ["-drive", f"file={disk},if=virtio,format=raw,snapshot=on"]
    printed = b""
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        kvm = ["-accel", "kvm", "-cpu", "max,arch-capabilities=off", "-smp", "2"]
        printed = run([*command, *kvm], SECONDS, silent=SECONDS_SILENT)
    if not printed:
        print("guest: without KVM", flush=True)
        printed = run([*command, "-accel", "tcg", "-cpu", "max", "-smp", "1"], SECONDS_EMULATED)
    found = re.findall(rb"guest: status (\d+)", printed)
    if not found:
        print("guest: the tests did not come to their end", file=sys.stderr)
        return 1
    return int(found[-1])


def run(command: list[str], seconds: float, *, silent: float | None = None) -> bytes:
    """Run the guest until it ends, for so many seconds at most, and print what it prints.

    Args:
        command: What is run.
        seconds: Seconds after which it is ended.
        silent: Seconds after which it is ended if it has printed nothing.

    Returns:
        The end of what it has printed.
    """
    printed = b""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None
        os.set_blocking(guest.stdout.fileno(), False)
        try:
            began = time.monotonic()
            is_running = True
            while is_running:
                limit = silent if silent is not None and not printed else seconds
                is_running = guest.poll() is None and time.monotonic() - began < limit
                data = guest.stdout.read() or b""
                printed = (printed + data)[-65536:]
                sys.stdout.write(data.decode("utf-8", "replace"))
                sys.stdout.flush()
                time.sleep(0.1)
        finally:
            guest.kill()
    return printed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
