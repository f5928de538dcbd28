"""A Debian system with services, prepared to run as an instance."""

from __future__ import annotations

import itertools
import os
import socket
import urllib.request
from pathlib import Path

import roots

PAGE = "served by {name}\n"

_INIT = """\
#!/bin/sh
# The services of this instance, by Debian's own init scripts.
case $1 in
start) services="redis-server cron nginx" ;;
stop) services="nginx cron redis-server" ;;
esac
for service in $services; do
    /etc/init.d/$service $1 || exit 1
done
"""

_SITE = """\
server {{
    listen 127.0.0.1:{port};
    root /var/www/html;
}}
"""


class Debian:
    """An instance's Debian, with ports of its own for its services."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.web_port, self.redis_port = free_ports(2)

    def configure(self, root: Path) -> None:
        """Turn a copy of the Debian system into this instance's."""
        (root / "etc/chrootfw").mkdir()
        roots.write_init(root, _INIT)
        (root / "etc/nginx/sites-enabled/default").unlink()
        (root / "etc/nginx/sites-enabled/instance").write_text(_SITE.format(port=self.web_port))
        (root / "var/www/html/index.html").write_text(PAGE.format(name=self.name))
        with (root / "etc/redis/redis.conf").open("a") as file:
            file.write(f"bind 127.0.0.1\nport {self.redis_port}\n")

    def page(self) -> str:
        """What nginx serves; raises ``OSError`` while it does not."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web_port}/", timeout=60) as answer:
            return str(answer.read().decode())

    def ping(self) -> str:
        """What redis answers to PING; raises ``OSError`` while it does not."""
        with socket.create_connection(("127.0.0.1", self.redis_port), timeout=60) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).decode().strip()

    def serves(self) -> bool:
        """Whether both services answer, and with the right thing."""
        try:
            return self.page() == PAGE.format(name=self.name) and self.ping() == "+PONG"
        except OSError:
            return False

    def is_silent(self) -> bool:
        """Whether nobody listens on either port."""
        return not any(_listens(port) for port in (self.web_port, self.redis_port))


#: So many ports from here on for each worker; the kernel gives clients none of them (ip_local_port_range).
_FIRST, _EACH = 10000, 1000
_given = itertools.count()


def free_ports(count: int) -> list[int]:
    """Ports that are free now, and that no other test of this run gets."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    found: list[int] = []
    while len(found) < count:
        port = _FIRST + worker * _EACH + next(_given) % _EACH
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True
