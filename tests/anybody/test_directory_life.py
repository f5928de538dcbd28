"""A directory's whole life for anybody: as root, or as an ordinary user in a user namespace."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiers

import chrootfw
from chrootfw.testing import real

LIFE = """
import signal

import chrootfw


class KillsAtOnce:
    @chrootfw.hookimpl
    def chrootfw_kill_strategy(self):
        return [chrootfw.Escalation(signal.SIGKILL, 5)]


def test_a_life(real_chroot):
    chroot = real_chroot(KillsAtOnce)
    assert chroot.info().state == "running"
    shown = chroot.run(["/bin/sh", "-c", "echo from inside"], capture_output=True, text=True)
    assert (shown.returncode, shown.stdout) == (0, "from inside\\n")
    assert chroot.stop().state == "absent"
"""


def test_a_directory_is_started_entered_and_stopped(tmp_path: Path) -> None:
    (tmp_path / "test_life.py").write_text(LIFE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "chrootfw.testing.fixtures",
        str(tmp_path),
    ]
    if tiers.why_no_mounts():
        flags = shlex.split(real.COMMAND.partition(" python3 ")[0])
        if subprocess.run([*flags, "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip("no user namespaces for this user")
        command = [*flags, *command]
    done = subprocess.run(
        [*command, f"--basetemp={tmp_path}/life"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_packages()), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    if "static busybox" in done.stdout:
        pytest.skip("no static busybox: apt-get install busybox-static")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def _packages() -> list[str]:
    import chrootfw_defaults.disk

    return sorted(
        {
            str(Path(str(module.__file__)).parents[1])
            for module in (chrootfw, chrootfw_defaults.disk)
        }
    )
