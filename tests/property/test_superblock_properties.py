"""What a disk holds: whatever that is, its size as recorded is a size, and the hint destroys nothing."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chrootfw.errors import DiskError
from chrootfw.linux import block_devices

_BIGGEST = [0, 1, 6, 7, 62, 63, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]
_WORDS = st.sampled_from(_BIGGEST) | st.integers(0, 2**64 - 1)


@contextmanager
def _disk(parts: dict[int, bytes], size: int = 1 << 20) -> Iterator[int]:
    fd = os.memfd_create("disk")
    try:
        os.ftruncate(fd, size)
        for at, data in parts.items():
            os.pwrite(fd, data, at)
        yield fd
    finally:
        os.close(fd)


def _ext(blocks: int, log: int, magic: bytes = b"\x53\xef") -> dict[int, bytes]:
    return {
        1028: struct.pack("<I", blocks & 0xFFFFFFFF),
        1048: struct.pack("<I", log & 0xFFFFFFFF),
        1080: magic,
    }


@given(first=_WORDS, second=_WORDS, rest=st.binary(max_size=64))
@example(0xFFFFFFFF, 0x7FFFFFFF, b"")
def test_a_recorded_size_is_a_size(first: int, second: int, rest: bytes) -> None:
    made = {
        "ext4": _ext(first, second),
        "xfs": {0: b"XFSB" + struct.pack(">IQ", first & 0xFFFFFFFF, second)},
        "btrfs": {0x10040: b"_BHRfS_M", 0x10070: struct.pack("<Q", first)},
        "vfat": {0: rest},
    }
    for fstype, parts in made.items():
        with _disk(parts) as fd:
            tracemalloc.start()
            assert 0 <= block_devices.size_recorded(fd, fstype) < 2**63
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
            tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1, 1024, 1030, 1080])
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "ext", "", "../x"])
def test_a_disk_that_ends_in_its_superblock(size: int, fstype: str) -> None:
    with _disk({}, size) as fd:
        assert block_devices.size_recorded(fd, fstype) == 0


def test_the_sizes_of_file_systems() -> None:
    with _disk(_ext(8192, 2)) as fd:
        assert block_devices.size_recorded(fd, "ext4") == 8192 * 4096
    with _disk(_ext(8192, 2, magic=b"\0\0")) as fd:
        assert block_devices.size_recorded(fd, "ext4") == 0
    with _disk({0: b"XFSB" + struct.pack(">IQ", 4096, 1000)}) as fd:
        assert block_devices.size_recorded(fd, "xfs") == 4096_000
    with _disk({0x10040: b"_BHRfS_M", 0x10070: struct.pack("<Q", 12345)}) as fd:
        assert block_devices.size_recorded(fd, "btrfs") == 12345


def _hint(path: Path, content: dict[int, bytes], size: int = 4 << 20) -> DiskError:
    with open(path, "wb") as file:
        file.truncate(size)
        for at, data in content.items():
            file.seek(at)
            file.write(data)
    with open(path, "rb") as file, pytest.raises(DiskError) as failed:
        block_devices.filesystem(str(path), file.fileno())
    return failed.value


@given(
    at=st.integers(0, (4 << 20) - 9),
    data=st.binary(min_size=1, max_size=8).filter(lambda data: data.strip(b"\0")),
)
def test_a_disk_with_anything_on_it_is_not_to_be_overwritten(
    tmp_path_factory: pytest.TempPathFactory, at: int, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "disk.img"
    assert "mkfs" not in _hint(path, {at: data}).hint


def test_an_empty_disk_wants_a_file_system(tmp_path: Path) -> None:
    assert "mkfs" in _hint(tmp_path / "disk.img", {}).hint
    assert "mkfs" in _hint(tmp_path / "disk.img", {}, size=40 << 30).hint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({0: b"QFI\xfb\0\0\0\3"}, "qcow2"),
        ({0: b"\xfd7zXZ\0"}, "xz"),
        ({0: b"\x1f\x8b\x08"}, "gzip"),
        ({0: b"\x28\xb5\x2f\xfd"}, "zstd"),
        ({257: b"ustar\x0000"}, "tar"),
        ({0: b"PK\3\4"}, "zip"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_disk_is_named(tmp_path: Path, content: dict[int, bytes], words: str) -> None:
    failed = _hint(tmp_path / "it's.img", content)
    assert words in failed.brief
    assert "mkfs" not in failed.hint
