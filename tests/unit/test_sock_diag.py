"""What the kernel says about unix sockets, as bytes."""

import os
import struct

import pytest

from chrootfw.linux import sock_diag


def message(inode, *attributes, state=1, kind=20):
    body = struct.pack("=BBBBIII", 1, 1, state, 0, inode, 0, 0)
    for number, value in attributes:
        body += struct.pack("=HH", len(value) + 4, number) + value + b"\0" * (-len(value) % 4)
    return struct.pack("=IHHII", len(body) + 16, kind, 0, 1, 0) + body


def test_numbers_are_in_the_byte_order_of_the_machine():
    data = message(
        0x01020304, (0, b"/srv/x\0"), (1, struct.pack("=II", 0x0A0B0C0D, 8 << 20 | 17)), (4, struct.pack("=II", 3, 128)), state=10
    ) + message(5)  # fmt: skip
    found, is_last = sock_diag.parse(data)
    assert [each.inode for each in found] == [0x01020304, 5]
    first, second = found
    assert (first.file, first.dev, first.path) == (0x0A0B0C0D, os.makedev(8, 17), b"/srv/x\0")
    assert (first.listens, first.waiting) == (True, 3)
    assert (second.dev, second.listens, second.waiting, second.path) == (-1, False, 0, b"")
    assert not is_last


@pytest.mark.parametrize(
    "data",
    [
        message(1, kind=3),
        message(1, kind=2),
        struct.pack("=IHHII", 4, 20, 0, 1, 0) + b"\0" * 64,
        struct.pack("=IHHII", 4000, 20, 0, 1, 0) + b"\0" * 64,
        message(1)[:-8],
    ],
    ids=["done", "error", "too short", "too long", "cut"],
)
def test_what_is_no_message_is_the_end(data):
    assert sock_diag.parse(data) == ([], True)


@pytest.mark.parametrize("size", [0, 1, 3, 5, 0xFFFF])
def test_an_attribute_of_a_wrong_size_is_passed_over(size):
    body = struct.pack("=BBBBIII", 1, 1, 1, 0, 9, 0, 0) + struct.pack("=HH", size, 1) + b"\1" * 4
    data = struct.pack("=IHHII", len(body) + 16, 20, 0, 1, 0) + body
    (each,) = sock_diag.parse(data)[0]
    assert (each.inode, each.dev) == (9, -1)
