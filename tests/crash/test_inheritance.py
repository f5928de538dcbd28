"""Row 12: what a process inside inherits from the manager: nothing but what is meant for it.

Each process inside tells what it has found; the manager is started under every combination of what could be inherited:
signals ignored, signals blocked, another umask, inheritable descriptors, secrets in the environment, a terminal, and in
a program with busy threads.
"""

from __future__ import annotations

import itertools
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import driving
import kernelview
import roots

#: Writes into the file named by $1 what it has. Descriptors and signals are a child's of the shell: what that itself
#: keeps or ignores (QUIT) is not passed on, and all else is.
TELL = """
tell() {
    { ls -l /proc/self/fd
      grep -E '^(Sig|Shd)' /proc/self/status
      echo "umask $(umask)"
      echo "cwd $(readlink /proc/$$/cwd)"
      echo "pid $$"
      echo "stat $(sed 's/.*) //' /proc/$$/stat)"
      tr '\\0' '\\n' < /proc/$$/environ | sed 's/^/env /'
    } > "$1" 2>&1
}
"""

#: A manager in a program of its own: what it is told to have, it has, when it starts web1 and runs a command in it.
PROGRAM = """
import json, os, signal, subprocess, sys, threading
import chrootfw

wanted = json.loads(sys.argv[1])
if "umask" in wanted:
    os.umask(0o777)
if "ignored" in wanted:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            pass  # the C library's own
if "blocked" in wanted:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
kept = []
if "descriptors" in wanted:
    for path in ("/etc/passwd", "/", "/dev/zero"):
        kept.append(os.open(path, os.O_RDONLY))
        os.set_inheritable(kept[-1], True)
    kept += os.pipe()
    for fd in kept[-2:]:
        os.set_inheritable(fd, True)
    os.dup2(kept[0], 200)
if "threads" in wanted:
    def busy():
        while True:
            fd = os.open("/dev/null", os.O_RDONLY)
            os.set_inheritable(fd, True)
            sum(range(500))
            os.close(fd)
    for _ in range(4):
        threading.Thread(target=busy, daemon=True).start()
runtime = chrootfw.Runtime()
runtime.start("web1")
runtime.run("web1", ["/bin/sh", "/srv/tell", "/var/told-exec"], check=True, stdin=subprocess.DEVNULL)
os._exit(0)
"""

CAUSES = ("umask", "ignored", "blocked", "descriptors", "threads", "environment", "terminal")

_MEANT = {"PATH", "HOME", "LANG", "CHROOTFW_INSTANCE"}
_SCRIPT_TOO, _COMMAND_TOO, _OF_THE_SHELL = (
    {"CHROOTFW_ACTION"},
    {"USER", "LOGNAME", "SHELL", "TERM"},
    {"PWD", "SHLVL", "_"},
)


def _check(told: Path, what: str, run_dir: Path, *, action: bool) -> None:
    lines = told.read_text().splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        key, _, rest = line.replace("\t", " ").partition(" ")
        found.setdefault(key, []).append(rest.strip())
    fds = dict(line.rpartition(" -> ")[::2] for line in lines if " -> " in line)
    fds = {left.split()[-1]: target for left, target in fds.items()}
    assert set(fds) == {"0", "1", "2"}, (what, fds)
    assert not any(
        str(run_dir) in target or "pidfd" in target or "/dev/pts" in target
        for target in fds.values()
    ), (
        what,
        fds,
    )
    for name in ("SigIgn:", "SigBlk:", "SigCgt:", "SigPnd:", "ShdPnd:"):
        assert int(found[name][0], 16) == 0, (what, name, found[name])
    assert found["umask"] == ["0022"], (what, found["umask"])
    assert found["cwd"][0].rstrip("/") in ("", str(run_dir / "web1/root")), (what, found["cwd"])
    state = found["stat"][0].split()
    # A command is in the session and in the foreground of whoever asked for it (a session that may lie outside this
    # pid namespace, and is 0 then); a script has a session of its own, and never the terminal.
    assert (state[3] == found["pid"][0]) == action, (
        what,
        f"session {state[3]} of pid {found['pid'][0]}",
    )
    assert state[4] == "0" or not action, (what, f"a controlling terminal: {state[4]}")
    names = {line.partition("=")[0] for line in found["env"]}
    assert names <= _MEANT | _OF_THE_SHELL | (_SCRIPT_TOO if action else _COMMAND_TOO), (
        what,
        names,
    )
    assert ("CHROOTFW_ACTION" in names) == action, (what, names)
    assert not any("secret" in line for line in found["env"]), (what, found["env"])


def _cases(whole: bool) -> Iterable[tuple[str, ...]]:
    if whole:
        return [
            case for size in range(len(CAUSES) + 1) for case in itertools.combinations(CAUSES, size)
        ]
    return [(), *((cause,) for cause in CAUSES), CAUSES]


def test_what_is_inherited(
    make_chroot: Callable[..., driving.Chroot],
    cli: driving.Cli,
    whole: bool,
    figure: Callable[[int, str], None],
) -> None:
    web1 = make_chroot(
        init=roots.script(
            f"{TELL}tell /var/told-start\n{roots.DAEMON}",
            f"{TELL}tell /var/told-stop\n{roots.END_DAEMON}",
        )
    )
    (web1.disk / "srv/tell").write_text(f"{TELL}tell $1\n")
    for applet in ("tr", "sed", "kill"):
        if not (web1.disk / "bin" / applet).is_symlink():
            (web1.disk / "bin" / applet).symlink_to("busybox")
    cases = list(_cases(whole))
    looked = 0
    for case in cases:
        environment = cli.environment()
        if "environment" in case:
            environment |= {
                "AWS_SECRET": "secret",
                "LD_LIBRARY_PATH": "/secret",
                "BASH_ENV": "/secret",
                "ENV": "/secret",
                "IFS": "secret",
            }
        command = [sys.executable, "-c", PROGRAM, json.dumps(case)]
        if "terminal" in case:
            _in_a_terminal(command, environment)
        else:
            subprocess.run(
                command, env=environment, check=True, timeout=120, stdin=subprocess.DEVNULL
            )
        ignored = (signal.SIGCHLD, signal.SIGPIPE, signal.SIGUSR1) if "ignored" in case else ()

        def ignore(numbers: Iterable[int] = ignored) -> None:
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)

        web1.cli(
            "exec",
            "--",
            "/bin/sh",
            "/srv/tell",
            "/var/told-command",
            env=environment,
            preexec_fn=ignore,
        )
        web1.cli(
            "exec", "--", "/bin/sh", "-c", "exit 7", env=environment, preexec_fn=ignore, expect=7
        )
        web1.cli("stop", env=environment, preexec_fn=ignore)
        for name, action in (("start", True), ("exec", False), ("command", False), ("stop", True)):
            told = web1.disk / f"var/told-{name}"
            _check(told, f"{name} with {case}", cli.run_dir, action=action)
            told.unlink()
            looked += 1
    assert kernelview.mounts_below(web1.root) == []
    figure(
        12,
        f"{looked} of {looked} processes inside, under {len(cases)} combinations of {len(CAUSES)} things to inherit: "
        "descriptors 0, 1, 2 only, default signals, umask 022, the meant environment, no terminal for a script, no lock, no pidfd",
    )


def _in_a_terminal(command: list[str], environment: dict[str, str]) -> None:
    """Run it with a controlling terminal, on 0, 1 and 2."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], command, environment)
    said = b""
    try:
        while data := os.read(terminal, 4096):
            said += data
    except OSError:
        pass  # EIO: nobody has it open any more
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said.decode(errors="replace")
