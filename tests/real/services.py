"""Five services of a Debian system, run in the foreground of one instance, and clients that use them.

A client goes on making requests while its service is taken away and comes back. It notes what the service has
acknowledged, which must be there ever after; a wrong answer is an error at once, a connection that is cut is none.
"""

from __future__ import annotations

import http.client
import smtplib
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import daemons
import roots
from driving import Chroot
from kernelview import wait_until

#: The ports that the services have by themselves: each run has a network of its own.
SSH, SMTP, HTTP, POSTGRESQL, REDIS = 22, 25, 80, 5432, 6379

#: Seconds between two requests of a client: the services are to be busy, not the processors.
PAUSE = 0.005


class Client(ABC):
    """One connection after the other to a service, in a thread of its own."""

    def __init__(self, chroot: Chroot) -> None:
        self.chroot = chroot
        #: Marks what this client has left, also for a later instance on the same disk.
        self.mark = chroot.name
        self.acknowledged: list[int] = []
        self.wrong: BaseException | None = None
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._is_ending.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), f"{type(self).__name__} does not end"
        self._fail_if_wrong()

    def _go_on(self) -> None:
        number = 0
        while not self._is_ending.is_set():
            number += 1
            try:
                self.request(number)
            except (OSError, subprocess.SubprocessError, smtplib.SMTPException, EOFError):
                time.sleep(0.05)  # it is not up now
            except BaseException as error:
                self.wrong = error
                return
            else:
                self.acknowledged.append(number)
                time.sleep(PAUSE)

    def has_served(self, more: int) -> Callable[[], bool]:
        """A condition: so many requests more are answered. A wrong answer ends the wait."""
        goal = len(self.acknowledged) + more

        def check() -> bool:
            self._fail_if_wrong()
            return len(self.acknowledged) >= goal

        return check

    def _fail_if_wrong(self) -> None:
        if self.wrong is not None:
            raise AssertionError(f"{type(self).__name__}: a wrong answer") from self.wrong

    @abstractmethod
    def request(self, number: int) -> None:
        """Make one request; it returns when the service has said that it is done."""

    def check(self) -> None:
        """Fail unless all that was acknowledged is there. A service that keeps nothing has nothing to check."""


class Pages(Client):
    def request(self, number: int) -> None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{HTTP}/?{number}", timeout=60) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:  # an OSError, yet no connection that was cut
            raise AssertionError(f"status {error.code}") from error
        except http.client.IncompleteRead as error:
            raise EOFError from error
        assert text == daemons.PAGE, text


class Logins(Client):
    """A command of an ordinary user's, and a session of root's with a terminal."""

    def request(self, number: int) -> None:
        daemons.DAEMONS["sshd"].request(self.chroot, SSH, number)


class Keys(Client):
    def request(self, number: int) -> None:
        assert _redis(f"SET {self.mark}:{number} {number}") == "+OK"

    def check(self) -> None:
        for number in self.acknowledged:
            assert _redis(f"STRLEN {self.mark}:{number}") == f":{len(str(number))}"


def _redis(command: str) -> str:
    with (
        socket.create_connection(("127.0.0.1", REDIS), timeout=60) as connection,
        connection.makefile("rw", newline="") as file,
    ):
        file.write(f"{command}\r\n")
        file.flush()
        answer = file.readline()
    if not answer.endswith("\r\n") or answer.startswith("-LOADING"):
        raise EOFError
    return answer.rstrip("\r\n")


class Mails(Client):
    def request(self, number: int) -> None:
        text = f"From: a@example.org\nSubject: {self._subject(number)}\n\n{daemons.PAGE}"
        with smtplib.SMTP("127.0.0.1", SMTP, timeout=60) as connection:
            connection.sendmail("a@example.org", [f"{daemons.USER}@localhost"], text)

    def _subject(self, number: int) -> str:
        return f"{self.mark} {number}."

    def check(self) -> None:
        """What waits in the queue is delivered by whichever start comes next."""
        mailbox = self.chroot.root / f"var/mail/{daemons.USER}"

        def are_all_there() -> bool:
            text = mailbox.read_text() if mailbox.exists() else ""
            return all(f"Subject: {self._subject(each)}\n" in text for each in self.acknowledged)

        try:
            wait_until(are_all_there, "each mail that was accepted is delivered", seconds=180)
        except TimeoutError as error:
            lines = self.chroot.cli("logs").stdout.splitlines()
            kept = [line for line in lines if "postfix" in line and "status=sent" not in line]
            raise AssertionError("\n".join(kept[-60:])) from error


class Rows(Client):
    """Rows of a table, each in a transaction of its own, beside pgbench(1)."""

    def __init__(self, chroot: Chroot) -> None:
        super().__init__(chroot)
        self._bench: subprocess.Popen[str] | None = None

    def __exit__(self, *exc: object) -> None:
        try:
            super().__exit__(*exc)
        finally:
            if self._bench is not None:
                self._bench.kill()
                self._bench.communicate()

    def prepare(self) -> None:
        """Make the tables, where an earlier start has not."""
        made = "create table if not exists acknowledged (who text, n int)"
        wait_until(lambda: self._sql(made)[0] == 0, "postgresql answers")
        tables = "select count(*) from pg_tables where tablename = 'pgbench_history'"
        if self._sql(tables)[1].strip() == "0":
            self.chroot.cli("exec", "--user", "postgres", "--", "pgbench", "-qi")

    def bench(self) -> None:
        """Begin pgbench, which ends with the start of the instance that it is begun in."""
        command = ["--user", "postgres", "--", "pgbench", "-n", "-c2", "-T3600"]
        self._bench = self.chroot._cli.begin("exec", self.chroot.name, *command)

    def request(self, number: int) -> None:
        status, _ = self._sql(f"insert into acknowledged values ('{self.mark}', {number})")
        if status:
            raise EOFError

    def check(self) -> None:
        who = f"select n from acknowledged where who = '{self.mark}'"
        rows = {int(line) for line in self._sql(who)[1].split()}
        assert rows >= set(self.acknowledged)
        sums = [
            self._sql(f"select coalesce(sum({column}), 0) from pgbench_{table}")[1].strip()
            for table, column in (
                ("accounts", "abalance"), ("tellers", "tbalance"), ("branches", "bbalance"),
                ("history", "delta"),
            )
        ]  # fmt: skip
        assert len(set(sums)) == 1, f"half a transaction: {sums}"
        assert self._sql("select count(*) > 0 from pgbench_history")[1].strip() == "t"

    def _sql(self, text: str) -> tuple[int, str]:
        """Run a command of SQL inside; return the status and the answer."""
        psql = ["--user", "postgres", "--", "psql", "-XqAtc", text]
        done = self.chroot._cli("exec", self.chroot.name, *psql, expect=range(256))
        return done.status, done.stdout


class Service(NamedTuple):
    """One of the services."""

    client: type[Client]
    #: Lines of a shell script that prepares the root: it runs outside, in the root's directory.
    setup: str
    #: Lines of the init script.
    start: str
    stop: str
    #: What `chrootfw logs` shows of it, after some requests.
    prints: str
    #: How many requests are answered before the reboot, and again after it.
    load: int


SERVICES = {
    "nginx": Service(
        Pages,
        """
        rm etc/nginx/sites-enabled/default  # a link to a path of the host's, seen from outside
        printf 'server { listen 127.0.0.1:80; root /srv/www; access_log /dev/stdout; }' > etc/nginx/sites-enabled/default
        sed -i 's,error_log .*,error_log /dev/stderr info;,' etc/nginx/nginx.conf
        """,
        "nginx", "nginx -s quit", '"GET /?1 HTTP/1.1" 200', 1000,
    ),
    "postfix": Service(
        Mails,
        f"""
        PORT={SMTP}
        {daemons.DAEMONS["postfix"].setup.replace("/var/log/mail.log", "/dev/stdout")}
        # What the reboot has interrupted is tried again at once, not after minutes.
        for setting in mailbox_delivery_lock=fcntl queue_run_delay=3s minimal_backoff_time=3s maximal_backoff_time=6s; do
            echo $setting >> etc/postfix/main.cf
        done
        """,
        "/usr/lib/postfix/configure-instance.sh -; postfix start-fg &", "postfix stop",
        "status=sent (delivered to mailbox)", 50,
    ),
    "postgresql": Service(
        Rows, "sed -i 's/^max_connections.*/max_connections = 20/' etc/postgresql/*/main/postgresql.conf",
        "cluster=$(cd /etc/postgresql; echo *); pg_ctlcluster --foreground $cluster main start &",
        "cluster=$(cd /etc/postgresql; echo *); pg_ctlcluster --mode fast $cluster main stop",
        "database system is ready to accept connections", 30,
    ),
    "redis": Service(
        Keys,
        """
        printf 'daemonize no\\nlogfile ""\\nappendonly yes\\nappendfsync always\\n' >> etc/redis/redis.conf
        """,
        "install -d -o redis -g redis /run/redis\n"
        "setpriv --reuid=redis --regid=redis --init-groups redis-server /etc/redis/redis.conf &",
        "redis-cli shutdown", "Ready to accept connections", 1000,
    ),
    "sshd": Service(
        Logins, f"PORT={SSH}; {daemons.DAEMONS['sshd'].setup}", "mkdir -p /run/sshd; /usr/sbin/sshd -D -e &",
        "kill $(cat /run/sshd.pid)", f"Accepted publickey for {daemons.USER}", 5,
    ),
}  # fmt: skip


def configure(root: Path, names: tuple[str, ...]) -> None:
    """Turn a Debian system into one that runs these services."""
    daemons.prepare_root(root)
    for name in names:
        script = SERVICES[name].setup
        subprocess.run(["/bin/sh", "-euc", script], cwd=root, stdin=subprocess.DEVNULL, check=True)
    start = "\n".join(SERVICES[name].start for name in names)
    stop = "\n".join(SERVICES[name].stop for name in reversed(names))
    roots.write_init(root, roots.script(start, stop))
