"""The plugin for pytest: the fixtures.

It imports nothing of chrootfw before one of them is used.
"""

from __future__ import annotations

import functools

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chrootfw.testing.real import RealChroot
    from chrootfw.testing.recording import RecordingRuntime


@pytest.fixture
def recording_runtime(tmp_path: Path) -> Callable[..., RecordingRuntime]:
    """Return a factory of runtimes that only record.

    Such as ``recording_runtime(*plugins, root={…}, processes=[…])``.
    """
    from chrootfw.testing.recording import RecordingRuntime

    return functools.partial(RecordingRuntime, directory=str(tmp_path))


@pytest.fixture
def real_chroot(tmp_path: Path) -> Iterator[Callable[..., RealChroot]]:
    """Yield a factory of real, tiny instances, started.

    Such as ``real_chroot(*plugins, init="…", params={…})``. They are in a mount namespace that the
    test's thread enters and leaves; they are stopped after the test, which fails when a mount, loop
    device or process is left. Skipped where mounts cannot be made.
    """
    from chrootfw.testing import real

    if reason := real.missing():
        pytest.skip(reason)
    with real.Ground(str(tmp_path)) as ground:
        yield ground.start
    if ground.left:
        pytest.fail("the test left something:\n  " + "\n  ".join(ground.left), pytrace=False)
