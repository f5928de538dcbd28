"""Daemons as Debian packages them, each with what it takes to run it as an instance and to use it."""

from __future__ import annotations

import os
import smtplib
import socket
import struct
import subprocess
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import roots
from driving import Chroot
from kernelview import wait_until

#: What a web server of these serves.
PAGE = "served from inside\n"

#: An ordinary user of the roots, who gets mail and comes by ssh.
USER, UID = "web", 4000

Request = Callable[[Chroot, int, int], object]


class Daemon(NamedTuple):
    """One daemon. Its configuration is Debian's own, apart from the port."""

    #: The Debian packages, the daemon's and what its clients need inside.
    packages: tuple[str, ...]
    #: A command that ``ps`` shows.
    process: str
    #: Lines of the init script; $PORT is a free port.
    start: str
    stop: str
    #: ``request(chroot, port, number)`` makes one request; it raises unless it is answered rightly.
    request: Request
    #: Lines of a shell script that prepares the root: it runs outside, in the root's directory.
    setup: str = ""
    #: How many requests are made, four at a time.
    load: int = 200


def prepare_root(root: Path) -> None:
    """Do once what all daemons of a root need."""
    (root / "etc/chrootfw").mkdir()
    for file, line in (
        ("passwd", f"{USER}:x:{UID}:{UID}::/home/{USER}:/bin/sh"),
        ("group", f"{USER}:x:{UID}:"),
        ("shadow", f"{USER}:*:19000:0:99999:7:::"),
    ):
        with (root / "etc" / file).open("a") as opened:
            opened.write(f"{line}\n")
    (root / "home" / USER).mkdir()
    os.chown(root / "home" / USER, UID, UID)
    (root / "srv/www").mkdir()
    (root / "srv/www/index.html").write_text(PAGE)


def configure(daemon: Daemon, root: Path, port: int) -> None:
    """Turn the root into one that runs this daemon."""
    subprocess.run(
        ["/bin/sh", "-euc", daemon.setup],
        cwd=root,
        env={**os.environ, "PORT": str(port)},
        stdin=subprocess.DEVNULL,
        check=True,
    )
    actions = f"case $1 in\nstart)\n{daemon.start}\n;;\nstop)\n{daemon.stop}\n;;\nesac\n"
    roots.write_init(root, f"#!/bin/sh\nset -e\nPORT={port}\n{actions}")


def answers(daemon: Daemon, chroot: Chroot, port: int) -> bool:
    """Whether a request is answered rightly."""
    try:
        daemon.request(chroot, port, 0)
    except (OSError, AssertionError, subprocess.SubprocessError, smtplib.SMTPException):
        return False
    return True


# Requests


def _inside(chroot: Chroot, *command: str, user: str | None = None) -> str:
    """Run a command in the instance and return what it prints."""
    done = chroot.runtime.run(
        chroot.name, list(command), user=user, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return str(done.stdout)


def _page(chroot: Chroot, port: int, number: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
        assert answer.read().decode() == PAGE


def _exchange(port: int, *lines: str) -> str:
    """Send lines to a server that answers each with lines, and return its last answer."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
        connection.makefile("rw", newline="") as file,
    ):
        for line in lines:
            file.write(f"{line}\r\n")
            file.flush()
            answer = file.readline()
        return answer.rstrip("\r\n")


def _redis(chroot: Chroot, port: int, number: int) -> None:
    assert (
        _exchange(port, f"SET key{number} {number}", f"STRLEN key{number}")
        == f":{len(str(number))}"
    )


def _memcached(chroot: Chroot, port: int, number: int) -> None:
    assert (
        _exchange(port, f"set key{number} 0 60 2\r\n42", f"get key{number}")
        == f"VALUE key{number} 0 2"
    )


def _ssh(chroot: Chroot, port: int, number: int) -> None:
    """A command of an ordinary user's, and a session of root's with a terminal."""
    command = [
        "ssh",
        "-F",
        "none",
        "-i",
        str(chroot.disk / "srv/key"),
        "-p",
        str(port),
        "-o",
        "BatchMode=yes",
    ]
    command += [
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
    ]
    for options, user, asked, right in (
        ([], USER, f"id -u; echo {number}", [str(UID), str(number)]),
        (["-tt"], "root", "id -u; tty", ["0", "/dev/pts/"]),
    ):
        done = subprocess.run(
            [*command, *options, f"{user}@127.0.0.1", asked], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60, check=True,
        )  # fmt: skip
        uid, said = done.stdout.split()
        assert uid == right[0], done
        assert said.startswith(right[1]), done


def _mail(chroot: Chroot, port: int, number: int) -> None:
    """A message to an ordinary user, which is delivered to a file of that user's."""
    text = f"From: a@example.org\nSubject: {number}\n\n{PAGE}"
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as connection:
        connection.sendmail("a@example.org", [f"{USER}@localhost"], text)
    mailbox = chroot.disk / f"var/mail/{USER}"
    assert wait_until(
        lambda: mailbox.exists() and f"Subject: {number}\n" in mailbox.read_text(),
        "the mail is delivered",
    )
    assert mailbox.stat().st_uid == UID


def _log(chroot: Chroot, port: int, number: int) -> None:
    _inside(chroot, "/usr/bin/logger", f"line {number}.")
    wait_until(
        lambda: f"line {number}." in (chroot.disk / "var/log/syslog").read_text(),
        "the line is logged",
    )


def _cron(chroot: Chroot, port: int, number: int) -> None:
    """The job that cron runs when it is started; which is at each start."""
    assert (chroot.disk / "srv/www/job").read_text().startswith(f"uid={UID}({USER}) ")


def _resolve(chroot: Chroot, port: int, number: int) -> None:
    """A question for the address of localhost."""
    question = (
        struct.pack("!6H", number, 0x0100, 1, 0, 0, 0)
        + b"\x09localhost\x00"
        + struct.pack("!2H", 1, 1)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(("127.0.0.1", port))
        client.send(question)
        answer = client.recv(512)
    assert struct.unpack("!H", answer[:2]) == (number,)
    assert socket.inet_aton("127.0.0.1") in answer


def _fastcgi(chroot: Chroot, port: int, number: int) -> None:
    """A request to run /srv/www/page.php."""

    def record(kind: int, content: bytes = b"") -> bytes:
        return struct.pack("!BBHHBx", 1, kind, 1, len(content), 0) + content

    names = {
        "SCRIPT_FILENAME": "/srv/www/page.php",
        "REQUEST_METHOD": "GET",
        "QUERY_STRING": f"number={number}",
    }
    params = b"".join(
        bytes((len(key), len(value))) + f"{key}{value}".encode() for key, value in names.items()
    )
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            record(1, struct.pack("!HB5x", 1, 0)) + record(4, params) + record(4) + record(5)
        )
        with connection.makefile("rb") as file:
            answer = file.read()
    assert f"number {number}.".encode() in answer, answer


def _postgresql(chroot: Chroot, port: int, number: int) -> None:
    """A transaction on a table of its own, with tools that share memory with nobody."""
    table = f"t{number}"
    sql = f"drop table if exists {table}; create table {table} as select generate_series(1, 10000) as n; select sum(n) from {table}"
    assert (
        _inside(chroot, "/usr/bin/psql", f"--port={port}", "-qAtc", sql, user="postgres").split()[
            -1
        ]
        == "50005000"
    )


def _mariadb(chroot: Chroot, port: int, number: int) -> None:
    table = f"test.t{number}"
    sql = f"create database if not exists test; create or replace table {table} as select seq as n from test.seq_1_to_10000; select sum(n) from {table}"
    assert _inside(chroot, "/usr/bin/mariadb", "-Ne", sql).strip() == "50005000"


def _supervised(*status: str) -> Request:
    """The page of a supervised server, and now and then the state that the supervisor reports."""

    def request(chroot: Chroot, port: int, number: int) -> None:
        _page(chroot, port, number)
        if number % 100 == 0:
            said = _inside(chroot, *status)
            assert any(word in said for word in ("RUNNING", "run: ", "up ")), said

    return request


def _script(service: str) -> tuple[str, str]:
    """The lines of the init script for a service that has one of Debian's own."""
    return f"/etc/init.d/{service} start", f"/etc/init.d/{service} stop"


_SERVER = "python3 -m http.server --bind 127.0.0.1 --directory /srv/www"

#: Makes /srv/services, a directory of services for daemontools and those that came after it.
_SERVICES = f"""
mkdir -p srv/services/web
printf '#!/bin/sh\\nexec {_SERVER} %s 2>/dev/null\\n' $PORT > srv/services/web/run
chmod +x srv/services/web/run
"""

DAEMONS: Mapping[str, Daemon] = {
    "apache2": Daemon(
        ("apache2",), "apache2", *_script("apache2"), _page,
        """
        sed -i "s/^Listen 80$/Listen 127.0.0.1:$PORT/" etc/apache2/ports.conf
        sed -i "s/:80>/:$PORT>/" etc/apache2/sites-available/000-default.conf
        cp srv/www/index.html var/www/html/index.html
        """,
    ),
    "bind9": Daemon(
        ("bind9",), "named", "mkdir -p /run/named; chown bind: /run/named; named -u bind -p $PORT",
        "kill $(cat /run/named/named.pid)", _resolve,
        "sed -i 's/listen-on-v6.*/listen-on { 127.0.0.1; };/' etc/bind/named.conf.options",
    ),
    "cron": Daemon(
        ("cron",), "cron", *_script("cron"), _cron,
        f"echo '@reboot {USER} id > /srv/www/job' > etc/cron.d/job; chmod 777 srv/www", load=1,
    ),
    "daemontools": Daemon(
        ("daemontools", "python3"), "svscan", "svscan /srv/services > /dev/null 2>&1 &", "svc -dx /srv/services/web",
        _supervised("svstat", "/srv/services/web"), _SERVICES,
    ),
    "haproxy": Daemon(
        ("haproxy",), "haproxy", *_script("haproxy"), _page,
        """
        printf 'frontend web\\n bind 127.0.0.1:%s\\n' $PORT >> etc/haproxy/haproxy.cfg
        echo ' http-request return status 200 content-type text/plain file /srv/www/index.html' >> etc/haproxy/haproxy.cfg
        """,
    ),
    "mariadb": Daemon(
        ("mariadb-server",), "mariadbd", *_script("mariadb"), _mariadb,
        "printf '[mariadbd]\\nport = %s\\n' $PORT > etc/mysql/mariadb.conf.d/99-port.cnf", load=40,
    ),
    "memcached": Daemon(
        ("memcached",), "memcached", *_script("memcached"), _memcached,
        'sed -i "s/^-p .*/-p $PORT/" etc/memcached.conf',
    ),
    "node": Daemon(
        ("nodejs",), "node", "node /srv/server.js > /dev/null 2>&1 &", "pkill node", _page,
        """
        echo 'const page = require("fs").readFileSync("/srv/www/index.html");' > srv/server.js
        echo "require('http').createServer((_, answer) => answer.end(page)).listen($PORT, '127.0.0.1');" >> srv/server.js
        """,
    ),
    "openrc": Daemon(
        ("openrc", "redis-server"), "redis-server",
        "mkdir -p /run/openrc; touch /run/openrc/softlevel; rc-service redis-server start",
        "rc-service redis-server stop", _redis,
        'echo "port $PORT" >> etc/redis/redis.conf',
    ),
    "php-fpm": Daemon(
        ("php-fpm",), "php-fpm8.2", *_script("php8.2-fpm"), _fastcgi,
        """
        sed -i "s/^listen = .*/listen = 127.0.0.1:$PORT/" etc/php/8.2/fpm/pool.d/www.conf
        echo '<?php echo "number $_GET[number]."; ?>' > srv/www/page.php
        """,
    ),
    "postfix": Daemon(
        ("postfix",), "master", *_script("postfix"), _mail,
        """
        sed -i "s/^smtp  *inet/127.0.0.1:$PORT inet/" etc/postfix/master.cf
        echo maillog_file = /var/log/mail.log >> etc/postfix/main.cf
        """, load=40,
    ),
    "postgresql": Daemon(
        ("postgresql",), "postgres", *_script("postgresql"), _postgresql,
        'sed -i "s/^port = .*/port = $PORT/" etc/postgresql/*/main/postgresql.conf', load=40,
    ),
    "redis": Daemon(
        ("redis-server",), "redis-server", *_script("redis-server"), _redis, 'echo "port $PORT" >> etc/redis/redis.conf'
    ),
    "rsyslog": Daemon(
        ("rsyslog",), "rsyslogd", "rsyslogd", "kill $(cat /run/rsyslogd.pid)", _log, load=20,
    ),
    "runit": Daemon(
        ("runit", "python3"), "runsvdir", "runsvdir /srv/services > /dev/null 2>&1 &", "sv down /srv/services/web; pkill -HUP runsvdir",
        _supervised("sv", "status", "/srv/services/web"), _SERVICES,
    ),
    "s6": Daemon(
        ("s6", "python3"), "s6-svscan", "s6-svscan /srv/services > /dev/null 2>&1 &", "s6-svscanctl -t /srv/services",
        _supervised("s6-svstat", "/srv/services/web"), _SERVICES,
    ),
    "sshd": Daemon(
        ("openssh-server",), "sshd", *_script("ssh"), _ssh,
        f"""
        printf 'Port %s\\nListenAddress 127.0.0.1\\n' $PORT > etc/ssh/sshd_config.d/port.conf
        ssh-keygen -q -t ed25519 -N '' -f srv/key
        for home in root home/{USER}; do
            mkdir -p $home/.ssh
            chmod 700 $home/.ssh
            cp srv/key.pub $home/.ssh/authorized_keys
        done
        chown -R {UID}:{UID} home/{USER}
        """, load=8,
    ),
    "supervisor": Daemon(
        ("supervisor",), "supervisord", *_script("supervisor"), _supervised("supervisorctl", "status", "web"),
        f"printf '[program:web]\\ncommand={_SERVER} %s\\n' $PORT > etc/supervisor/conf.d/web.conf",
    ),
    "unbound": Daemon(
        ("unbound",), "unbound", *_script("unbound"), _resolve,
        """
        printf 'server:\\n interface: 127.0.0.1@%s\\n chroot: /etc/unbound\\n' $PORT > etc/unbound/unbound.conf.d/port.conf
        rm etc/unbound/unbound.conf.d/root-auto-trust-anchor-file.conf
        """,
    ),
}  # fmt: skip
