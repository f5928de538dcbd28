"""``python -m chrootfw``."""

from chrootfw.cli import main

raise SystemExit(main())
