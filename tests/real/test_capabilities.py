"""A root user who may not mount: as in a container, or of a user namespace only."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import driving
import pytest

WITHOUT_CAPABILITY = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
IN_A_USER_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]

PREFIXES = {
    "no capability": (WITHOUT_CAPABILITY, "CAP_SYS_ADMIN"),
    "a user namespace": (IN_A_USER_NAMESPACE, "user namespace"),
}
each_prefix = pytest.mark.parametrize(("prefix", "reason"), PREFIXES.values(), ids=PREFIXES)


@pytest.fixture
def image(tmp_path: Path, make_root: Callable[..., Path]) -> Path:
    file = tmp_path / "small.img"
    with file.open("wb") as made:
        made.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-d", make_root(), file], check=True)
    return file


@each_prefix
def test_a_start_from_an_image_names_the_right(
    cli: driving.Cli, image: Path, prefix: list[str], reason: str
) -> None:
    result = cli(
        "start", "i1", "--disk", str(image), expect=1, prefix=prefix, says=["cannot", str(image)]
    )
    assert reason in result.stderr
    assert "hint: run chrootfw on the host" in result.stderr
    assert "damaged" not in result.stderr


@each_prefix
def test_a_start_from_a_directory_names_the_right(
    cli: driving.Cli, make_root: Callable[..., Path], prefix: list[str], reason: str
) -> None:
    result = cli(
        "start", "d1", "--disk", str(make_root()), expect=1, prefix=prefix, says=["cannot mount"]
    )
    assert reason in result.stderr
    assert "hint: run chrootfw on the host" in result.stderr


@each_prefix
def test_verify_names_the_right(cli: driving.Cli, prefix: list[str], reason: str) -> None:
    checks = {
        check["name"]: check for check in cli.json("verify", expect=1, prefix=prefix)["checks"]
    }
    assert checks["privileges"]["status"] in ("warning", "error")
    assert reason in checks["privileges"]["detail"]
    assert checks["mount API"]["status"] == "error"
    assert "host" in checks["mount API"]["hint"]


def test_with_the_right_verify_has_no_objection(cli: driving.Cli) -> None:
    checks = {check["name"]: check for check in cli.json("verify", expect=(0, 1))["checks"]}
    assert checks["privileges"]["status"] == "ok"


def test_a_damaged_disk_is_still_suspected(cli: driving.Cli, image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(1024 + 20)
        file.write(b"\xff" * 4)
    result = cli("start", "i1", "--disk", str(image), expect=1)
    assert "CAP_SYS_ADMIN" not in result.stderr
    assert "damaged" in result.stderr or "truncated" in result.stderr


@pytest.mark.parametrize("verb", ["stop", "cleanup", "reboot"])
def test_what_has_to_unmount_does_nothing_without_the_right(
    web1: driving.Chroot, cli: driving.Cli, verb: str
) -> None:
    web1.cli("start")
    if verb == "cleanup":
        web1.cli("stop", "--keep-mounted")
    before = cli.json("info", "web1")
    refused = cli(verb, "web1", expect=1, prefix=WITHOUT_CAPABILITY, says=["CAP_SYS_ADMIN"])
    assert "hint: run chrootfw on the host" in refused.stderr
    after = cli.json("info", "web1")
    assert (after["state"], after["processes"]) == (before["state"], before["processes"])
    assert after["mounts"] == before["mounts"]
    web1.cli("stop")
    assert web1.is_gone()


def test_processes_can_be_ended_without_the_right_to_unmount(
    web1: driving.Chroot, cli: driving.Cli
) -> None:
    web1.cli("start")
    cli("stop", "web1", "--keep-mounted", prefix=WITHOUT_CAPABILITY)
    assert web1.state == "mounted"
    web1.cli("stop")
