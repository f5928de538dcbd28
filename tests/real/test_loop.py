"""Which loop device is over which file: asked one by one, and by one child for all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from chrootfw.errors import DiskError
from chrootfw.linux import deadlines, loop


@pytest.mark.parametrize("few", [0, 1000])
def test_the_devices_over_a_file(
    tmp_path: Path, attach: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Found by what the file is, whatever it is called now."""
    monkeypatch.setattr(loop, "_FEW", few)
    files = []
    for number in range(7):
        file = tmp_path / f"{number}.img"
        file.write_bytes(bytes(1 << 20))
        files.append((file, attach(file)))
    again = attach(files[3][0])
    renamed = files[3][0].rename(tmp_path / "renamed.img")
    (tmp_path / "link.img").hardlink_to(files[5][0])
    asked = {
        (os.stat(path).st_dev, os.stat(path).st_ino): str(path)
        for path in (renamed, tmp_path / "link.img")
    }
    wanted = {
        files[3][1]: str(renamed),
        again: str(renamed),
        files[5][1]: str(tmp_path / "link.img"),
    }
    assert loop.find_loop_devices(asked) == wanted
    device = tmp_path.stat().st_dev
    everything = loop.find_loop_devices(devices=frozenset([device]))
    assert {name: everything.get(name) for _, name in files} == {
        name: str(renamed if file == files[3][0] else file) for file, name in files
    }
    assert loop.find_loop_devices() == {}


@pytest.mark.parametrize("few", [0, 1000])
@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ECHILD, errno.EMFILE, errno.ENOMEM])
def test_where_nobody_can_be_asked_no_file_is_free(
    tmp_path: Path,
    attach: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
    few: int,
    code: int,
) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(1 << 20))
    device = attach(file)

    def fail(*_arguments: object, **_how: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(loop, "_FEW", few)
    monkeypatch.setattr(deadlines, "run_batch", fail)
    monkeypatch.setattr(deadlines, "is_local", lambda _path: False)
    with pytest.raises(DiskError, match=os.strerror(code)):
        loop.find_loop_devices({(file.stat().st_dev, file.stat().st_ino): str(file)})
    with pytest.raises(DiskError, match=device):
        loop.is_over(device, (file.stat().st_dev, file.stat().st_ino), str(file))
