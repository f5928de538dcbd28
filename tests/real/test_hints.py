"""What cannot be mounted or run: the message says why, and its hint is what helps."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import roots
from driving import Chroot, Cli

MakeChroot = Callable[..., Chroot]
MakeImage = Callable[..., Path]

WITHOUT_MKNOD = ["setpriv", "--bounding-set", "-mknod", "--inh-caps", "-mknod"]
#: In front of the command: a /dev in which nothing makes nodes, and which has only those of an old container.
STATIC_DEV = [
    "unshare", "--mount", "--propagation", "private", "sh", "-c",
    "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod /dev/loop-control c 10 237 &&"
    ' exec "$@"', "sh",
]  # fmt: skip


# -- the disk -------------------------------------------------------------------------------------------


def test_a_copy_of_an_xfs_image_beside_the_first(
    make_chroot: MakeChroot, image: MakeImage, tmp_path: Path
) -> None:
    first = make_chroot("first", disk=image("xfs"))
    copy = tmp_path / "copy.img"
    subprocess.run(["cp", "--sparse=always", str(first.disk), str(copy)], check=True)
    second = make_chroot("second", disk=copy)
    first.cli("start")
    refused = second.cli("start", expect=1, says=[str(copy), "same UUID"])
    assert "damaged" not in refused.stderr
    assert 'mount_options = ["nouuid"]' in refused.stderr
    second.cli("start", "--set", 'mount_options=["nouuid"]')
    second.cli("stop")
    first.cli("stop")


def test_the_kernels_own_words_are_in_the_details(
    make_chroot: MakeChroot, image: MakeImage
) -> None:
    web1 = make_chroot(disk=image("ext4"), mount_options=["nosuchoption=1"])
    refused = web1.cli("start", "--json", expect=1)
    error = json.loads(refused.stdout)["error"]
    assert "nosuchoption=1" in error["brief"]
    assert "Unknown parameter" not in error["brief"]
    assert any("Unknown parameter 'nosuchoption'" in line for line in error["details"]), error
    assert "mount_options" in error["hint"]
    assert "damaged" not in refused.stdout


def luks(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"LUKS\xba\xbe\x00\x01aes")


def lvm(path: Path) -> None:
    """The label of a physical volume; its checksum is that of pvcreate's own CRC-32."""
    label = b"LABELONE" + (1).to_bytes(8, "little")
    body = (32).to_bytes(4, "little") + b"LVM2 001" + b"x" * 32 + (32 << 20).to_bytes(8, "little")
    body = body.ljust(512 - 20, b"\0")
    crc = 0xF597A6CF
    for byte in body:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    with path.open("r+b") as file:
        file.seek(512)
        file.write(label + crc.to_bytes(4, "little") + body)


def partitions(path: Path) -> None:
    subprocess.run(["sfdisk", "--quiet", str(path)], input=",\n", text=True, check=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (luks, ["cryptsetup open PATH NAME", "/dev/mapper/NAME"]),
        (lvm, ["losetup --find --show PATH", "vgchange -ay", "lvs"]),
        (partitions, ["losetup --find --show --partscan PATH"]),
    ],
)
def test_what_lies_between_a_disk_and_its_file_system(
    cli: Cli, tmp_path: Path, make: Callable[[Path], None], words: list[str]
) -> None:
    disk = tmp_path / "whole.img"
    with disk.open("xb") as file:
        file.truncate(32 << 20)
    make(disk)
    refused = cli("start", "web1", "--disk", str(disk), expect=1, says=["not a file system"])
    for word in words:
        assert word.replace("PATH", str(disk)) in refused.stderr, refused


def test_a_partition_table_on_a_device(
    cli: Cli, tmp_path: Path, attach: Callable[[Path], str]
) -> None:
    disk = tmp_path / "whole.img"
    with disk.open("xb") as file:
        file.truncate(32 << 20)
    partitions(disk)
    device = attach(disk)
    refused = cli("start", "web1", "--disk", device, expect=1)
    assert f"hint: lsblk {device}" in refused.stderr


def test_a_device_node_without_a_device(cli: Cli, tmp_path: Path) -> None:
    """240 to 254 are for experiments (Documentation/admin-guide/devices.txt): no driver has them."""
    node = tmp_path / "nothing"
    os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(240, 77))
    refused = cli("start", "web1", "--disk", str(node), expect=1, says=[str(node)])
    assert "read_only" not in refused.stderr
    assert "hint: no driver, or no medium" in refused.stderr


def test_a_static_dev(make_chroot: MakeChroot, image: MakeImage) -> None:
    web1 = make_chroot(disk=image("ext4"))
    refused = web1.cli("start", expect=1, prefix=STATIC_DEV, says=["/dev/loop"])
    assert "hint: mknod -m 0660 /dev/loop" in refused.stderr


# -- device nodes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardened", ["false", "true"])
def test_the_hosts_device_nodes_where_mknod_is_not_permitted(web1: Chroot, hardened: str) -> None:
    web1.cli("start", "--no-init", "--set", f"hardened={hardened}", prefix=WITHOUT_MKNOD)
    before = os.stat("/dev/null").st_mode
    inside = "echo x > /dev/null && head -c 3 /dev/zero | wc -c; chmod 600 /dev/null; true"
    done = web1.cli("exec", "--", "/bin/sh", "-c", inside)
    assert done.stdout.strip() == "3"
    assert os.stat("/dev/null").st_mode == before, "what is inside changed the host's node"
    web1.cli("reboot", prefix=WITHOUT_MKNOD)
    web1.cli("exec", "--", "/bin/sh", "-c", "echo x > /dev/null")
    web1.cli("stop")


def test_no_node_of_the_host_to_bind(web1: Chroot) -> None:
    bare = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && touch /dev/zero && exec"
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    prefix += [f'{bare} {" ".join(WITHOUT_MKNOD)} "$@"', "sh"]
    web1.cli("start", "--no-init", expect=1, prefix=prefix, says=["mknod is not permitted"])


# -- programs -------------------------------------------------------------------------------------------


@pytest.fixture
def with_bad_programs(web1: Chroot) -> Chroot:
    shutil.copy("/bin/bash", web1.disk / "bin/dynamic")
    roots.write_init(web1.disk, "#!/no/such/interpreter\n", name="bin/orphan")
    roots.write_init(web1.disk, "#!/bin/sh\r\n", name="bin/dos")
    web1.cli("start", "--no-init")
    return web1


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("dynamic", "/bin/dynamic needs the dynamic loader "),
        ("/bin/orphan", "/bin/orphan: its interpreter /no/such/interpreter does not exist inside"),
        ("dos", "dos2unix"),
    ],
)
def test_a_program_that_is_there_and_cannot_be_run(
    with_bad_programs: Chroot, program: str, words: str
) -> None:
    refused = with_bad_programs.cli("exec", "--", program, expect=127, says=["cannot run"])
    assert words in refused.stderr


def test_the_library_has_the_reason_as_a_note(with_bad_programs: Chroot) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        with_bad_programs.runtime.run("web1", ["dynamic"])
    assert "dynamic loader" in "".join(caught.value.__notes__)


def test_a_login_shell_that_cannot_be_run(with_bad_programs: Chroot, cli: Cli) -> None:
    passwd = with_bad_programs.disk / "etc/passwd"
    passwd.write_text("root:x:0:0::/root:/bin/dynamic\n")
    process = cli.begin("shell", "web1", stdin=subprocess.PIPE)
    done = cli.end(process, input="echo i$((40 + 2))i; exit 7\n", expect=7)
    assert "i42i" in done.stdout
    assert "dynamic loader" in done.stderr
    assert "/bin/sh is run instead" in done.stderr


def test_a_damaged_directory_in_the_disk_names_the_disk(
    make_chroot: Callable[..., Chroot], image: Callable[..., Path]
) -> None:
    """The kernel answers EUCLEAN for whatever is in it."""
    disk = image("ext4")
    subprocess.run(
        ["debugfs", "-w", "-R", "set_inode_field /etc mode 0170000", disk],
        check=True,
        capture_output=True,
    )
    web1 = make_chroot(disk=disk)
    refused = web1.cli("start", expect=1)
    assert "raised" not in refused.stderr
    assert refused.brief.startswith("chrootfw: cannot read /etc")
    assert f"the disk of web1 is {disk}" in refused.stderr
    assert f"e2fsck -n {disk}" in refused.stderr
    assert web1.is_gone()


def test_an_image_of_no_bytes_has_a_size_to_get_first(cli: Cli, tmp_path: Path) -> None:
    disk = tmp_path / "empty.img"
    disk.touch()
    refused = cli("start", "web1", "--disk", str(disk), expect=1, says=["is empty"])
    assert f"hint: truncate -s SIZE {disk}" in refused.stderr
