"""The three ways in which a child carries out a batch, for tests of each."""

from __future__ import annotations

import pytest

from chrootfw.linux import child, native

#: By the compiled module, by a fork of this program, by an interpreter of its own. A run without
#: the compiled module (CHROOTFW_NATIVE=0) has the other two.
WAYS = ["fork", "interpreter"] if native.MODULE is None else ["native", "fork", "interpreter"]


def use(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start children in one way.

    A fork is made whatever threads this program has: those of the tests wait, and hold no lock.
    """
    if way == "native":
        assert native.MODULE is not None
        return
    monkeypatch.setattr(native, "MODULE", None)
    monkeypatch.setattr(child, "_has_threads", lambda: way == "interpreter")


def is_quick() -> bool:
    """Return whether a child takes less than some milliseconds."""
    return native.MODULE is not None or not child._has_threads()
