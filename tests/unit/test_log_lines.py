"""The lines of a log are those that end with a newline, as it was printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from chrootfw.state import output_log


@pytest.mark.parametrize("script", [None, "start"])
def test_only_a_newline_ends_a_line(tmp_path: Path, script: str | None) -> None:
    printed = b"10 %\r100 %\r\n\x0bform\x0c\n\nlast"
    log = Path(output_log.path(str(tmp_path), "web1"))
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(printed)
    run = output_log.ScriptRun("start", 1.0, 2.0, "exited with status 0", output_log.FILE)
    output_log.write_script(str(tmp_path), "web1", run, printed)
    lines = list(output_log.read_lines(str(tmp_path), "web1", script=script))
    assert lines[:4] == [b"10 %\r100 %\r", b"\x0bform\x0c", b"", b"last"]
    assert len(lines) == (4 if script is None else 5)
