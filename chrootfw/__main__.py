"""``python -m chrootfw``."""

from chrootfw.cli import run

raise SystemExit(run())
