"""Row 16: on a kernel that has nothing newer than Linux 5.14, everything works as on this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_TREE = Path(__file__).resolve().parent.parent.parent

#: What the sample runs: some of each way in which a newer kernel would be used.
SAMPLE = ("tests/real/test_old_kernel.py", "tests/real/test_hostile.py", "tests/real/test_leaks.py")


def test_the_real_tests_on_an_old_kernel(
    whole: bool, figure: Callable[[int, str], None], tmp_path: Path
) -> None:
    chosen = ("tests/real",) if whole else SAMPLE
    command = [
        sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--kernel=5.14", f"--basetemp={tmp_path}/real",
        *chosen,
    ]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=_TREE, capture_output=True, text=True, check=False, timeout=3600 if whole else 300,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    counted = dict(
        (what, int(number))
        for number, what in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])
    )
    passed = counted.pop("passed")
    counted.pop("warnings", None)
    assert not any(
        counted.get(what) for what in ("failed", "error", "errors", "skipped", "xfailed")
    ), done.stdout
    which = "all real tests" if whole else f"real tests of {len(SAMPLE)} files"
    figure(
        16,
        f"all that is newer than Linux 5.14 refused (ENOSYS; EINVAL for a detached target): {passed} of {passed} "
        f"{which} pass, in {time.monotonic() - began:.0f} s",
    )
