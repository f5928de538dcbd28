"""Unix sockets and where they are bound (sock_diag(7), unix_diag): what /proc/net/unix does not tell."""

from __future__ import annotations

import _socket as socket  # socket itself imports enum and selectors, which take as long as a list
import os
import struct

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_F_REQUEST_DUMP = 0x301
_SHOW_NAME, _SHOW_VFS = 0x01, 0x02
_ATTRIBUTE_NAME, _ATTRIBUTE_VFS = 0, 1
_NLMSG_ERROR, _NLMSG_DONE = 2, 3


class UnixSocket:
    """A bound unix socket: the ``inode`` of the socket, the ``path`` as bound, the ``dev`` of the file it is bound to."""

    __slots__ = ("dev", "inode", "path")

    def __init__(self, inode: int, path: bytes, dev: int) -> None:
        self.inode = inode
        self.path = path
        self.dev = dev


def unix_sockets() -> list[UnixSocket]:
    """The sockets bound to files, in the caller's network namespace; empty where the kernel lacks unix_diag."""
    body = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW_NAME | _SHOW_VFS, 0, 0)
    header = struct.pack("=IHHII", 16 + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0)
    found: list[UnixSocket] = []
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        try:
            netlink.settimeout(5)
            netlink.send(header + body)
            while _parse(netlink.recv(1 << 16), found):
                pass
        finally:
            netlink.close()
    except OSError:
        pass
    return found


def _parse(data: bytes, found: list[UnixSocket]) -> bool:
    """Take one datagram's messages; ``False`` after the last."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < 16:
            return False
        inode = int.from_bytes(data[20:24], "little")
        path, dev = b"", -1
        offset = 16 + 16
        while offset + 4 <= length:
            size, attribute = struct.unpack_from("=HH", data, offset)
            value = data[offset + 4 : offset + size]
            if attribute == _ATTRIBUTE_NAME:
                path = value.rstrip(b"\0")
            elif attribute == _ATTRIBUTE_VFS and len(value) == 8:
                dev = _kernel_dev(int.from_bytes(value[4:], "little"))
            offset += max((size + 3) & ~3, 4)
        if dev >= 0:
            found.append(UnixSocket(inode, path, dev))
        data = data[(length + 3) & ~3 :]
    return True


def _kernel_dev(dev: int) -> int:
    """The kernel's own dev_t (12 bits major, 20 bits minor) as ``os.stat`` gives it."""
    return os.makedev(dev >> 20, dev & 0xFFFFF)
