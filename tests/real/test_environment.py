"""``environment`` and ``environment_file``: for the init script, exec and shell; ``--env`` on top."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import roots
from driving import Chroot

MakeChroot = Callable[..., Chroot]

NOTE = "env > /var/env.$1"


@pytest.fixture
def noting(make_chroot: MakeChroot) -> Chroot:
    return make_chroot(init=roots.script(f"{NOTE}\n{roots.DAEMON}", f"{NOTE}\n{roots.END_DAEMON}"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "web1.env"
    path.write_text("# the proxy\nPROXY='http://one two'\nLANG=from-file\nPASSWORD=secret\n")
    path.chmod(0o600)
    return path


def _noted(chroot: Chroot, action: str) -> dict[str, str]:
    lines = (chroot.disk / f"var/env.{action}").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_who_has_them(noting: Chroot, file: Path) -> None:
    noting.define(
        environment={"LANG": "de_DE.UTF-8", "PATH": "/bin", "GREETING": "hello"},
        environment_file=str(file),
    )
    noting.cli("start", env={"PROXY": "the caller's"})
    expected = {
        "LANG": "de_DE.UTF-8", "PATH": "/bin", "GREETING": "hello", "PROXY": "http://one two",
        "PASSWORD": "secret", "CHROOTFW_INSTANCE": "web1", "CHROOTFW_ACTION": "start",
    }  # fmt: skip
    assert expected.items() <= _noted(noting, "start").items()

    # What was read at the start counts, also for a reboot.
    file.write_text("PROXY=another\n")
    show = ("--", "sh", "-c", "echo $GREETING $PROXY $LANG")
    assert noting.cli("exec", *show).stdout == "hello http://one two de_DE.UTF-8\n"
    done = noting.cli("exec --env GREETING=bye", *show)
    assert done.stdout.startswith("bye http")
    shell = noting._cli.begin("shell", "web1", stdin=subprocess.PIPE)
    assert "[hello]" in noting._cli.end(shell, input="echo [$GREETING]\nexit\n").stdout
    noting.cli("reboot")
    assert _noted(noting, "start")["PROXY"] == "http://one two"
    noting.cli("stop")
    assert _noted(noting, "stop")["PROXY"] == "http://one two"

    noting.cli("start")
    assert _noted(noting, "start")["PROXY"] == "another"


def test_a_hardened_one_has_them_too(noting: Chroot) -> None:
    noting.define(environment={"GREETING": "hello"}, hardened=True)
    noting.cli("start")
    assert noting.cli("exec", "--", "sh", "-c", "echo $GREETING").stdout == "hello\n"


def _huge(file: Path) -> None:
    file.write_text("A=b\n" * 100_000)


def _binary(file: Path) -> None:
    file.write_bytes(b"A=b\n\x7fELF\0\1\2=\xff")


def _of_another(file: Path) -> None:
    os.chown(file, 1000, 1000)


def _writable(file: Path) -> None:
    file.chmod(0o666)


def _link(file: Path) -> None:
    file.rename(file.with_suffix(".real"))
    file.symlink_to(file.with_suffix(".real"))


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("hurt", "says"),
    [
        (_huge, "KiB"),
        (_binary, "line 2"),
        (_of_another, "root"),
        (_writable, "writable"),
        (_link, "symbolic link"),
        (_fifo, "FIFO"),
        (_directory, "directory"),
        (Path.unlink, "No such file"),
        (lambda file: file.write_text("CHROOTFW_ACTION=stop\n"), "CHROOTFW_ACTION"),
    ],
)
def test_a_hostile_file(
    noting: Chroot, file: Path, hurt: Callable[[Path], object], says: str
) -> None:
    noting.define(environment_file=str(file))
    hurt(file)
    planned = noting._cli("plan", "start", "web1").stdout
    assert "problem: " in planned
    assert str(file) in planned
    noting.cli("start", expect=1, says=[str(file), says])
    assert noting.state == "absent"
    assert noting.calls() == []


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("environment={A=1}", "string"),
        ('environment=["A=b"]', "table"),
        ('environment={"A=B"="c"}', "A=B"),
        ('environment={A="b\\u0000"}', "A"),
        ('environment={CHROOTFW_ACTION="stop"}', "CHROOTFW_ACTION"),
        ("environment_file=some/file", "absolute"),
    ],
)
def test_a_value_that_is_not_valid(noting: Chroot, setting: str, says: str) -> None:
    noting.cli("start", "--set", setting, expect=2, says=[setting.partition("=")[0], says])
