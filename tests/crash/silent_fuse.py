"""A FUSE file system that shows a directory, and can fall silent: it still takes requests, and answers none.

Run as ``silent_fuse.py SOURCE TARGET [OPTIONS]``: mounts (by default for everybody), prints ``ready``, and serves until its standard input ends. The line ``silent`` there silences it,
``opened-again`` silences it when a file is opened for the second time from then on, ``speak`` makes it answer all that it owes. When it ends, the kernel answers for it with ENOTCONN.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
import sys

(LOOKUP, FORGET, GETATTR, SETATTR, READLINK, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR,
 FSYNCDIR, BATCH_FORGET) = (1, 2, 3, 4, 5, 14, 15, 16, 17, 18, 20, 25, 26, 27, 28, 29, 30, 42)  # fmt: skip
HEADER = struct.Struct("<IIQQIIII")
_FOR_ALL = "user_id=0,group_id=0,allow_other,default_permissions"


class Server:
    def __init__(self, source: str, target: str, options: str = _FOR_ALL) -> None:
        self.paths = {1: os.fsencode(source)}
        self.numbers = {self.paths[1]: 1}
        self.fd = os.open("/dev/fuse", os.O_RDWR)
        data = f"fd={self.fd},rootmode=40000,{options}".encode()
        if ctypes.CDLL(None, use_errno=True).mount(
            b"silent", os.fsencode(target), b"fuse", 0, data
        ):
            raise OSError(ctypes.get_errno(), "mount")

    def serve(self) -> None:
        owed: list[bytes] = []
        silent = False
        opens = -1  # after so many more OPENs it falls silent
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        poller.register(0, select.POLLIN)
        while True:
            for ready, _ in poller.poll():
                if ready == 0:
                    said = os.read(0, 64)
                    if not said:
                        return
                    word = said.split()[-1]
                    silent = word == b"silent"
                    opens = 1 if word == b"opened-again" else -1
                    print("silent" if silent else "speaks", flush=True)
                else:
                    try:
                        owed.append(os.read(self.fd, 1 << 21))
                    except OSError as error:
                        if error.errno == errno.ENODEV:  # unmounted
                            return
                        if error.errno != errno.ENOENT:  # a request that was interrupted
                            raise
            while owed and not silent:
                if HEADER.unpack_from(owed[0])[1] == OPEN:
                    silent = opens == 0
                    opens -= 1
                if not silent:
                    self.answer(owed.pop(0))

    def answer(self, request: bytes) -> None:
        _length, operation, unique, node, *_ = HEADER.unpack_from(request)
        if operation in (FORGET, BATCH_FORGET):
            return
        try:
            code, payload = (
                0,
                self.do(operation, self.paths[node] if node else b"", node, request[HEADER.size :]),
            )
        except OSError as error:
            code, payload = error.errno or errno.EIO, b""
        try:
            os.write(self.fd, struct.pack("<IiQ", 16 + len(payload), -code, unique) + payload)
        except OSError as error:
            if error.errno != errno.ENOENT:  # whoever asked is gone
                raise

    def do(self, operation: int, path: bytes, node: int, body: bytes) -> bytes:
        if operation == INIT:
            readahead = struct.unpack_from("<IIII", body)[2]
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, readahead, 0, 16, 12, 1 << 20, 1, 0, 0, 0)
        if operation == LOOKUP:
            found = path + b"/" + body.rstrip(b"\0")
            status = os.lstat(found)
            number = self.numbers.setdefault(found, len(self.numbers) + 1)
            self.paths[number] = found
            return struct.pack("<QQQQII", number, 1, 0, 0, 0, 0) + attributes(number, status)
        if operation in (GETATTR, SETATTR):
            return struct.pack("<QII", 0, 0, 0) + attributes(node, os.lstat(path))
        if operation == READLINK:
            return os.readlink(path)
        if operation in (OPEN, OPENDIR):
            return struct.pack("<QII", 0, 0, 0)
        if operation == READ:
            _handle, offset, size = struct.unpack_from("<QQI", body)
            fd = os.open(path, os.O_RDONLY)
            try:
                return os.pread(fd, size, offset)
            finally:
                os.close(fd)
        if operation == WRITE:
            _handle, offset, size = struct.unpack_from("<QQI", body)
            fd = os.open(path, os.O_WRONLY)
            try:
                return struct.pack("<II", os.pwrite(fd, body[40 : 40 + size], offset), 0)
            finally:
                os.close(fd)
        if operation == READDIR:
            _handle, offset, size = struct.unpack_from("<QQI", body)
            return directory(path, offset, size)
        if operation == STATFS:
            return struct.pack("<QQQQQIIII24x", 9000, 5000, 5000, 100, 50, 4096, 255, 4096, 0)
        if operation in (RELEASE, FLUSH, FSYNC, RELEASEDIR, FSYNCDIR):
            return b""
        raise OSError(errno.ENOSYS, "not implemented")


def attributes(number: int, status: os.stat_result) -> bytes:
    return struct.pack(
        "<QQQQQQIIIIIIIIII", number, status.st_size, status.st_blocks, 0, 0, 0, 0, 0, 0, status.st_mode, 1,
        status.st_uid, status.st_gid, 0, 4096, 0,
    )  # fmt: skip


def directory(path: bytes, offset: int, size: int) -> bytes:
    entries = b""
    for number, name in enumerate([b".", b"..", *sorted(os.listdir(path))][offset:], offset + 1):
        kind = stat.S_IFMT(os.lstat(path + b"/" + name).st_mode) >> 12
        entry = struct.pack("<QQII", number, number, len(name), kind) + name
        entry += b"\0" * (-len(entry) % 8)
        if len(entries) + len(entry) > size:
            break
        entries += entry
    return entries


if __name__ == "__main__":
    server = Server(*sys.argv[1:])
    print("ready", flush=True)
    server.serve()
