"""List Unix sockets, their files and their queues (sock_diag(7), unix_diag).

/proc/net/unix does not report the files and queues.
"""

from __future__ import annotations

import os
import socket
import struct
import time

from chrootfw.linux.descriptors import SHORT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_F_REQUEST_DUMP = 0x301
_SHOW_NAME, _SHOW_VFS, _SHOW_RQLEN = 0x01, 0x02, 0x10
_ATTRIBUTE_NAME, _ATTRIBUTE_VFS, _ATTRIBUTE_RQLEN = 0, 1, 4
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_LISTEN = 10

#: Seconds for the kernel to list all sockets; other programs may have made a great many.
_SECONDS = 1.0

#: struct nlmsghdr with struct unix_diag_msg behind it; struct nlattr; both words of struct
#: unix_diag_vfs and of unix_diag_rqlen.
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=BBBxI8x")
_ATTRIBUTE = struct.Struct("=HH")
_PAIR = struct.Struct("=II")


class UnixSocket:
    """A Unix socket.

    Attributes:
        inode: The socket's own inode.
        listens: Whether it listens.
        path: The path that it was bound by, in its maker's root and mount namespace.
        dev: The device of the file that it is bound to, as in `os.stat`; -1 for none.
        file: The last 32 bits of that file's inode.
        waiting: Bytes that were sent and not received; for a listening socket, connections.
    """

    __slots__ = ("dev", "file", "inode", "listens", "path", "waiting")

    def __init__(self, inode: int, *, listens: bool) -> None:
        self.inode = inode
        self.listens = listens
        self.path = b""
        self.dev = -1
        self.file = 0
        self.waiting = 0


def unix_sockets() -> Iterator[UnixSocket]:
    """Yield the sockets in the caller's network namespace, in the kernel's order.

    There are none if the kernel lacks unix_diag. Sockets that are not listed after a second are
    left out.

    Raises:
        OSError: There is no descriptor or memory for it.
    """
    show = _SHOW_NAME | _SHOW_VFS | _SHOW_RQLEN
    body = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, show, 0, 0)
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0)
    deadline = time.monotonic() + _SECONDS
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    except OSError as error:
        if error.errno in SHORT:
            raise
        return  # this kernel has no sock_diag
    try:
        netlink.settimeout(_SECONDS)
        netlink.send(header + body)
        is_last = False
        while not is_last and time.monotonic() < deadline:
            found, is_last = parse(netlink.recv(1 << 16))
            yield from found
    except OSError:
        return  # this kernel has no unix_diag, or does not answer in time
    finally:
        netlink.close()


def parse(data: bytes) -> tuple[list[UnixSocket], bool]:
    """Parse one datagram, in the byte order of this machine.

    Returns:
        The sockets, and whether the datagram is the last one.
    """
    found: list[UnixSocket] = []
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or not _HEADER.size + _MESSAGE.size <= length <= len(
            data
        ):
            return found, True
        _family, _type, state, inode = _MESSAGE.unpack_from(data, _HEADER.size)
        each = UnixSocket(inode, listens=state == _LISTEN)
        offset = _HEADER.size + _MESSAGE.size
        while offset + _ATTRIBUTE.size <= length:
            size, attribute = _ATTRIBUTE.unpack_from(data, offset)
            value = data[offset + _ATTRIBUTE.size : min(offset + size, length)]
            if attribute == _ATTRIBUTE_NAME:
                each.path = value
            elif attribute == _ATTRIBUTE_VFS and len(value) == _PAIR.size:
                each.file, dev = _PAIR.unpack(value)
                each.dev = _kernel_dev(dev)
            elif attribute == _ATTRIBUTE_RQLEN and len(value) == _PAIR.size:
                each.waiting, _ = _PAIR.unpack(value)
            offset += max((size + 3) & ~3, _ATTRIBUTE.size)
        found.append(each)
        data = data[(length + 3) & ~3 :]
    return found, False


def _kernel_dev(dev: int) -> int:
    """Convert the kernel's own dev_t (12 bits major, 20 bits minor) to the form of `os.stat`."""
    return os.makedev(dev >> 20, dev & 0xFFFFF)
