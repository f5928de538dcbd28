"""Which mounts that an rbind brings along a hardened instance refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

import chrootfw
from chrootfw.linux import mountinfo
from chrootfw.linux.mountinfo import MountEntry
from chrootfw_hardened import hardening

RBIND = chrootfw.Instance("web1", params={"binds": ["/data:/mnt:rbind"], "mount_options": []})


def _entry(number: int, fstype: str, place: str) -> MountEntry:
    return MountEntry(
        id=number, parent=1, dev=7, root=b"/", mount_point=place.encode(), options=b"rw",
        optional=(), fstype=fstype.encode(), source=b"none", super_options=b"rw",
    )  # fmt: skip


def _brought_along(
    monkeypatch: pytest.MonkeyPatch, root: Path, fstype: str
) -> list[chrootfw.Problem]:
    """Check a root with a file system that is mounted below the source of an rbind."""
    found = {
        b"/data": [_entry(2, fstype, "/data/it")],
        str(root).encode(): [_entry(3, fstype, f"{root}/mnt/it")],
    }
    monkeypatch.setattr(mountinfo, "list_mounts_below", found.__getitem__)
    return hardening._brought_along(RBIND, chrootfw.Root(str(root)))


@pytest.mark.parametrize(
    "fstype",
    [
        "devpts", "bpf", "configfs", "debugfs", "efivarfs", "pstore", "resctrl", "securityfs",
        "selinuxfs", "smackfs", "tracefs",
    ],
)  # fmt: skip
def test_an_interface_of_the_hosts_kernel_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fstype: str
) -> None:
    (problem,) = _brought_along(monkeypatch, tmp_path, fstype)
    assert not problem.warning
    assert fstype in problem.brief
    assert "/mnt/it" in problem.brief


@pytest.mark.parametrize("fstype", ["ext4", "tmpfs", "sysfs"])
def test_other_file_systems_come_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fstype: str
) -> None:
    assert _brought_along(monkeypatch, tmp_path, fstype) == []
