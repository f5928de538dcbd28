"""What a hardened instance refuses is said; namespaces without the rest of it; where a shell is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import roots
from driving import Chroot, Cli
from kernelview import wait_until

MakeChroot = Callable[..., Chroot]
_REFUSED = "is hardened (it keeps "


# -- hardened -------------------------------------------------------------------------------------------


def test_a_failed_start_says_what_may_have_refused_it(make_chroot: MakeChroot) -> None:
    init = roots.script(start="mknod /srv/node c 1 3", stop="true")
    web1 = make_chroot(init=init, hardened=True)
    refused = web1.cli("start", expect=1, says=["exited with status"])
    assert _REFUSED in refused.stderr
    assert "hardened_seccomp = false" in refused.stderr


def test_a_start_that_fails_by_itself_says_nothing_of_it(make_chroot: MakeChroot) -> None:
    init = roots.script(start="echo no; exit 1", stop="true")
    hardened, plain = make_chroot("h1", init=init, hardened=True), make_chroot("p1", init=init)
    for each in (hardened, plain):
        assert _REFUSED not in each.cli("start", expect=1).stderr


def test_an_exec_that_is_refused_says_what_may_have_refused_it(web1: Chroot) -> None:
    web1.cli("start", "--no-init", "--set", "hardened=true")
    node = ["exec", "--", "mknod", "/srv/node", "c", "1", "3"]
    assert _REFUSED in web1.cli(*node, expect=range(1, 256)).stderr
    assert _REFUSED not in web1.cli("exec", "--", "false", expect=1).stderr
    echo = ["exec", "--", "echo", "Operation not permitted"]
    assert _REFUSED not in web1.cli(*echo).stderr


#: A command, and whether it fails for something that is not permitted. The first one says so in two pieces.
TERMINAL_CASES = {
    "printf 'Operation not '; usleep 100000; echo permitted; exit 3": True,
    "echo Operation not permitted": False,
    "echo Operation permitted; exit 3": False,
}


def test_an_exec_on_a_terminal_is_hinted_too(web1: Chroot, cli: Cli) -> None:
    web1.cli("start", "--no-init", "--set", "hardened=true")
    for command, is_hinted in TERMINAL_CASES.items():
        words = ("exec", "-t", "web1", "sh", "-c", command)
        done = cli(*words, expect=(0, 3))
        assert "permitted" in done.stdout
        assert (_REFUSED in done.stderr) == is_hinted, command

        ours, theirs = os.openpty()
        process = cli.begin(
            "exec", "web1", "sh", "-c", command, stdin=theirs, stdout=theirs, stderr=theirs,
            prefix=["setsid", "--ctty", "--wait"],
        )  # fmt: skip
        os.close(theirs)
        shown = _read_all(ours)
        process.wait(60)
        assert (_REFUSED in shown) == is_hinted, shown
    shell = cli.begin("shell", "web1", stdin=subprocess.PIPE)
    said = cli.end(shell, input="echo Operation not permitted; exit 3\n", expect=3)
    assert _REFUSED not in said.stderr, "whoever works in a shell sees what refuses"


def _read_all(terminal: int) -> str:
    """Read a terminal until the other side is closed."""
    shown = b""
    with open(terminal, "rb", buffering=0) as file:
        while True:
            try:
                shown += file.read(4096)
            except OSError:  # EIO
                return shown.decode().replace("\r", "")


@pytest.mark.parametrize("name", ["NET_RAW", "CAP_NET_RAW"])
def test_a_capability_by_both_its_names(web1: Chroot, name: str) -> None:
    wanted = f'hardened_capabilities=["{name}"]'
    web1.cli("start", "--no-init", "--set", "hardened=true", "--set", wanted)
    status = web1.cli("exec", "--", "cat", "/proc/self/status").stdout
    (effective,) = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff")]
    assert int(effective, 16) >> 13 & 1
    web1.cli("stop")
    web1.cli(
        "start", "--set", 'hardened_capabilities=["CAP_NONSENSE"]', expect=2, says=["NONSENSE"]
    )


@pytest.mark.parametrize(("hardened", "value"), [("true", "1"), ("false", "")])
def test_systemctl_is_told_that_no_systemd_runs(web1: Chroot, hardened: str, value: str) -> None:
    web1.cli("start", "--no-init", "--set", f"hardened={hardened}")
    done = web1.cli("exec", "--", "/bin/sh", "-c", "echo $SYSTEMD_OFFLINE")
    assert done.stdout.strip() == value


# -- namespaces -----------------------------------------------------------------------------------------


def system_v_keys() -> set[str]:
    """The keys of shared memory in this ipc namespace."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {line.split()[0] for line in lines}


def test_system_v_objects_end_with_the_instance(make_chroot: MakeChroot, tmp_path: Path) -> None:
    key = 0x43570000 + os.getpid() % 0x10000
    source = tmp_path / "make.c"
    source.write_text(
        "#include <sys/shm.h>\n#include <unistd.h>\n"
        f"int main(void) {{ shmget({key}, 4096, 0600 | IPC_CREAT); for (;;) pause(); }}\n"
    )
    web1 = make_chroot(init=roots.script(start="/bin/makes > /dev/null 2>&1 &"))
    program = web1.disk / "bin/makes"
    if subprocess.run(["cc", "-static", "-o", program, source], check=False).returncode:
        pytest.skip("there is no C compiler, or no static C library")
    web1.cli("start", "--set", 'namespaces=["ipc"]')
    shown = web1.cli("exec", "--", "cat", "/proc/sysvipc/shm").stdout
    assert str(key) in shown, "exec joins the namespace of the service"
    assert str(key) not in system_v_keys()
    web1.cli("reboot")
    assert str(key) in web1.cli("exec", "--", "cat", "/proc/sysvipc/shm").stdout
    web1.cli("stop")
    assert str(key) not in system_v_keys()


def test_namespaces_take_nothing_else_away(web1: Chroot) -> None:
    web1.cli("start", "--set", 'namespaces=["ipc", "uts", "cgroup"]')
    assert web1.cli("exec", "--", "hostname").stdout.strip() == "web1"
    status = web1.cli("exec", "--", "cat", "/proc/self/status").stdout
    own = Path("/proc/self/status").read_text()
    for field in ("CapEff:", "NoNewPrivs:", "Seccomp:"):
        assert [line for line in status.splitlines() if line.startswith(field)] == [
            line for line in own.splitlines() if line.startswith(field)
        ]
    web1.cli("stop")


def test_a_namespace_that_is_not_for_it(web1: Chroot) -> None:
    web1.cli("start", "--set", 'namespaces=["pid"]', expect=2, says=["'pid'", "ipc, uts, cgroup"])


def test_hardened_has_them_too(web1: Chroot) -> None:
    wanted = ["--set", "hardened_namespaces=[]", "--set", 'namespaces=["ipc"]']
    web1.cli("start", "--set", "hardened=true", *wanted)
    inside = web1.cli("exec", "--", "readlink", "/proc/self/ns/ipc").stdout.strip()
    assert inside != os.readlink("/proc/self/ns/ipc")


# -- shell ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardened", ["false", "true"])
def test_a_shell_shows_where_it_is(web1: Chroot, cli: Cli, hardened: str) -> None:
    web1.cli("start", "--set", f"hardened={hardened}")
    before = sorted(os.listdir(web1.disk / "etc"))
    process = cli.begin("shell", "web1", stdin=subprocess.PIPE)
    done = cli.end(process, input='cd /srv; echo "<$debian_chroot>"\nexit\n')
    assert "<web1>" in done.stdout
    assert "(web1) /srv# " in done.stdout
    assert sorted(os.listdir(web1.disk / "etc")) == before
    assert not web1.cli("exec", "--", "/bin/sh", "-c", "echo $debian_chroot").stdout.strip()


def test_a_caller_that_reads_late_gets_all_output(make_chroot: MakeChroot) -> None:
    """More than one pipe holds, and the command has exited before the first byte is read."""
    web1 = make_chroot(hardened=True)
    web1.cli("start")
    script = "head -c 190000 /dev/zero; echo $? > /var/done"
    command = web1._cli.begin("exec", "web1", "--", "sh", "-c", script)
    wait_until((web1.disk / "var/done").exists, "the command has written all")
    assert len(web1._cli.end(command).stdout) == 190000
